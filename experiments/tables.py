"""Tables 2, 3 and 4: train pairs of minima, evaluate them, measure how sharp they are.

    python -m experiments.tables --dataset mnist --network f1

`digits`, `mnist` and `cifar` are this experiment with other settings.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import command, training
from experiments.training import Network, Training
from gengap import ascent, minima, records, report, sharpness


class Config(NamedTuple):
    """Pairs of minima, and how their sharpness is measured."""

    training: Training = Training()
    epsilons: tuple[float, ...] = (1e-3, 5e-4)
    """sizes of the box"""
    dim: int = 100
    """columns of the random matrix A"""
    num_draws: int = 10
    """matrices A for each minimum"""
    max_evaluations: int = 24
    """gradients to spend on each maximum"""
    num_directions: int = 6
    """directions besides the gradient that the ascents in all subspaces begin in, at six gradients each"""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """of matrix products when sharpness is measured; the others are faster on accelerators"""


CONFIG = Config()
SMOKE = Config(
    Training(num_seeds=1, epochs=2, train_size=400), dim=5, num_draws=2, max_evaluations=3, num_directions=1
)


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
    experiment: str = "tables",
) -> records.Run:
    """Train, measure and record, a row for each network, starting point and batch size.

    Args:
      config: the settings.
      out: the run directory; `None` keeps nothing on disk.
      fresh: move an earlier run aside and begin anew; else what it has finished is not done again.
      data_dir: the TFDS directory.
      experiment: what the run is called.

    Raises:
      ValueError: a setting out of its range, or `out` holds a run with other settings.
    """
    setting, ds = training.begin(config.training, data_dir)
    networks = training.networks(config.training)
    _check(config, setting, ds, networks)
    asked = command.flat(config._replace(training=setting)) | {"network": networks}
    with records.opened(experiment, asked, out, fresh=fresh) as run:
        for setting in [setting._replace(network=network) for network in networks]:
            model = training.model(setting, ds)
            loss = training.loss(setting, model, ds)
            evaluate = training.evaluate(setting, model, ds)
            left = [s for s in range(setting.num_seeds) if not run.has(training.row(setting, ds, "LB", s))]
            if left:
                draws = (1 + config.num_draws) * config.max_evaluations + 6 * config.num_directions
                gradients = 2 * len(left) * len(config.epsilons) * draws
                training.say_how_long(setting, model, ds, gradients, 2 * len(left) * setting.epochs)
            for seed in left:
                for method, minimum in training.pair(setting, model, ds, seed, run.store).items():
                    identity = training.row(setting, ds, method, seed)
                    if not run.has(identity):
                        words = f"{identity['network']} seed {seed + 1} of {setting.num_seeds}, {method}"
                        run.add(identity | _measured(config, setting, loss, evaluate, minimum, seed, words))
                        command.say_what_is_left(run, 2 * setting.num_seeds * len(networks))
        return run


def _measured(
    config: Config, setting: Training, loss: Any, evaluate: Any, minimum: minima.Minimum, seed: int, words: str
) -> records.Row:
    """How training ended, loss and accuracy on both splits without dropout, and the sharpness."""
    row = minimum._asdict()
    params = row.pop("params")
    del row["settings"]
    for split, of in evaluate.items():
        row[f"{split}_loss"], row[f"{split}_accuracy"] = of(params)
    row |= {"epsilons": config.epsilons, "dim": config.dim, "maximiser": ascent.ASCENT_VERSION}
    if not np.isfinite(row["train_loss"]):
        return row
    of_full, of_random = (training.key_of(setting, seed, space) for space in ("full", "random"))
    how: Any = {"epsilon": config.epsilons, "max_evaluations": config.max_evaluations}
    with jax.default_matmul_precision(config.precision):
        row["full"] = sharpness.full_space(loss, params, of_full, progress=f"{words}, full space", **how)
        how |= {"dim": config.dim, "num_draws": config.num_draws, "num_directions": config.num_directions}
        how["progress"] = f"{words}, random subspaces"
        row["random"] = sharpness.random_subspaces(loss, params, of_random, **how)
    return row


def figures(rows: list[records.Row]) -> list[report.Section]:
    """The headline and the tables beside the paper's, sharpness of every seed, accuracy per epoch (Fig. 2)."""
    return [*report.paper_tables(rows), report.sharpness_figure(rows), report.accuracy_figure(rows)]


def _check(config: Config, setting: Training, ds: Any, networks: Sequence[Network]) -> None:
    """Refuse, before anything is trained, what would be refused after it."""
    for name in ("dim", "num_draws", "max_evaluations"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    if config.num_directions < 0:
        raise ValueError(f"num_directions is {config.num_directions}; it must be at least 0")
    if not config.epsilons or not all(0 < epsilon < np.inf for epsilon in config.epsilons):
        raise ValueError(f"epsilons is {config.epsilons}; each must be above 0, and there must be one")
    training.check_distinct({"epsilons": config.epsilons})
    for network in networks:
        model = training.model(setting._replace(network=network), ds)
        start = jax.eval_shape(lambda: minima.starting_point(model, ds, jax.random.key(0)))  # noqa: B023
        n = sum(leaf.size for leaf in jax.tree.leaves(start))
        if config.dim > n:
            raise ValueError(f"dim is {config.dim}; it must be from 1 to {n}, the parameters of {network}")


if __name__ == "__main__":
    command.main("tables", run, figures, CONFIG, __doc__)
