"""What the paper left open about Table 4, varied one choice at a time on one pair of minima.

    make exp-choices

The minima are those of `make exp-mnist` where they are there. f is the mean loss of the first 5,000 training
images here, and each choice is measured with two draws of A. For the stages of training, SB and LB are those after
a few epochs from the same starting point.
"""

from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, PyTree

from experiments import command, training
from experiments.training import Training
from gengap import ascent, data, minima, models, objective, paper, program, records, report, sharpness, subspace
from gengap.report import plain

DIM = 100


class Config(NamedTuple):
    """Choices of the metric, on the minima of one starting point."""

    training: Training = Training(dataset="mnist")
    which: int = 0
    """the starting point"""
    examples: int = 5_000
    """measure f on the first so many training examples"""
    epsilons: tuple[float, ...] = (1e-3, 5e-4)
    """sizes of the box"""
    num_draws: int = 2
    """matrices A for each choice"""
    max_evaluations: int = 24
    """gradients to spend on each maximum; SciPy may spend more"""
    stages: tuple[int, ...] = (3, 7, 15)
    """epochs of training after which to measure"""


CONFIG = Config()
SMOKE = Config(Training(train_size=400, epochs=2), examples=200, num_draws=1, max_evaluations=3, stages=(1,))


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> records.Run:
    """Measure and record, a row for each choice: sharpness of SB and of LB, an entry for each epsilon and draw."""
    for name in ("examples", "num_draws", "max_evaluations"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    training.check_distinct({"epsilons": config.epsilons, "stages": config.stages})
    setting, ds = training.begin(config.training, data_dir)
    model = training.model(setting, ds)
    some = data.head(ds, min(config.examples, len(ds.x_train)))
    asked = command.flat(config._replace(training=setting))
    with records.opened("choices", asked, out, fresh=fresh) as run:
        choices = _choices(config, model, some)
        names = [*choices, *(f"after {epochs} epochs" for epochs in sorted(config.stages))]
        if all(run.has({"choice": name}) for name in names):
            return run
        f = objective.over_dataset(model.apply, some.x_train, some.y_train)
        pair = training.pair(setting, model, ds, config.which, run.store)
        found = {method: minimum.params for method, minimum in pair.items()}
        for name, (note, measure) in choices.items():
            if not run.has({"choice": name}):
                row: records.Row = {"choice": name, "note": note, "epsilons": config.epsilons}
                row |= {method: measure(params) for method, params in found.items()}
                row["train_loss"] = {method: f(params) for method, params in found.items()}
                run.add({**row, "maximiser": ascent.ASCENT_VERSION})
                command.say_what_is_left(run, len(names))
        default = choices["default"][1]
        along = {
            method: minima.find_along(
                *(model, ds, jax.random.key(setting.seed), size, config.stages),
                progress=f"{training.network_name(setting)} to epoch {max(config.stages)}, {method}",
                **training.how(setting._replace(patience=0, target=0.0), ds, size, config.which, run.store),
            )
            for method, size in training.sizes(setting).items()
        }
        for i, epochs in enumerate(sorted(config.stages)):
            name = f"after {epochs} epochs"
            if not run.has({"choice": name}):
                row = {"choice": name, "note": "from the same starting point", "epsilons": config.epsilons}
                row |= {method: default(stages[i].params) for method, stages in along.items()}
                row["loss"] = {method: f(stages[i].params) for method, stages in along.items()}
                run.add({**row, "maximiser": ascent.ASCENT_VERSION})
        return run


def _choices(
    config: Config, model: models.Model, some: data.Dataset
) -> dict[str, tuple[str, Callable[[PyTree], Any]]]:
    """Name -> note and measurement of every choice; the first is the default one."""
    key = training.key_of(config.training, config.which, "random")
    loss = partial(objective.over_dataset, model.apply, some.x_train, some.y_train)
    scipy = partial(_by_scipy, config, key)

    def signs(f: Callable, entries: subspace.Entries = subspace.signs) -> Callable[[PyTree], Any]:
        return lambda params: (
            sharpness.random_subspaces(
                *(f, params, key),
                dim=DIM,
                epsilon=config.epsilons,
                num_draws=config.num_draws,
                max_evaluations=config.max_evaluations,
                entries=entries,
            ).value
        )

    def frozen(params: PyTree) -> Any:
        apply = _frozen(model, models.population_statistics(model, params, some.x_train))
        return signs(objective.over_dataset(apply, some.x_train, some.y_train))(params)

    choices: dict[str, tuple[str, Callable[[PyTree], Any]]] = {
        "default": ("random signs, batch statistics over 5000, corner ascent", signs(loss())),
        "N(0, 1)": ("entries of A", signs(loss(), jax.random.normal)),
        "unit columns": ("columns of A scaled to length 1", signs(loss(), _unit)),
        "U(-1, 1)": ("entries of A", signs(loss(), _symmetric)),
        "U(0, 1)": ("entries of A", signs(loss(), jax.random.uniform)),
        "batch norm over 250": ("batch statistics over chunks of 250", signs(loss(chunk=250))),
        "population statistics": ("taken at x, then frozen", frozen),
        "Keras clip": ("probabilities clipped to [1e-7, 1 - 1e-7]", signs(loss(clip=1e-7))),
        "SciPy": ("10 iterations of L-BFGS-B from y = 0, tolerances 0", partial(scipy, loss(), 0.0)),
        "SciPy, its tolerances": ("10 iterations of L-BFGS-B from y = 0", partial(scipy, loss(), None)),
    }
    if model.apply_frozen is None:
        del choices["population statistics"]
    return choices


def _by_scipy(
    config: Config, key: Array, f: Callable, tolerance: float | None, params: PyTree
) -> list[list[float]]:
    """What the paper's solver finds in each of the same subspaces, for each epsilon and draw."""
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    found: list[list[float]] = [[] for _ in config.epsilons]
    for draw_key in sharpness.draw_keys(key, config.num_draws):
        A = subspace.draw(draw_key, n, DIM)
        for values, epsilon in zip(found, config.epsilons, strict=True):
            box = sharpness.box(params, A, epsilon)
            look = program.compiled(jax.value_and_grad(sharpness.restrict(f, params, A)))
            start = jnp.zeros_like(box)
            top, base = ascent.scipy_lbfgsb(look, box, start, tolerance=tolerance).value, look(start)[0]
            values.append(100 * float((top - base) / (1 + base)))
    return found


def _symmetric(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, minval=-1.0)


def _unit(key: Array, shape: tuple[int, ...]) -> Array:
    columns = jax.random.normal(key, shape)
    return columns / jnp.linalg.norm(columns, axis=1, keepdims=True)


def _frozen(model: models.Model, statistics: PyTree) -> Callable:
    assert model.apply_frozen is not None
    apply = model.apply_frozen
    return lambda params, x: apply(params, statistics, x)


@report.apart
def figures(rows: list[records.Row]) -> list[report.Section]:
    """The table of choice against value, the paper's numbers for F1 on MNIST in its first line."""
    if not rows:
        return []
    epsilons = rows[0]["epsilons"]
    places = [(method, epsilon) for method in ("SB", "LB") for epsilon in epsilons]
    theirs = {(m, e): paper.TABLE_4["F1"][m].get(e, (np.nan, np.nan))[0] for m, e in places}
    lines = [{"choice": "the paper's Table 4", "note": ""}]
    lines[0] |= {f"{m}, {e:g}": plain(value) for (m, e), value in theirs.items()}
    ratios: dict[str, dict[tuple[str, float], float]] = {}
    for row in rows:
        means = {
            (m, e): float(np.mean(np.array(row[m][i], float)))
            for m in ("SB", "LB")
            for i, e in enumerate(epsilons)
        }
        ratios[row["choice"]] = {place: mean / theirs[place] for place, mean in means.items()}
        cells = {f"{m}, {e:g}": plain(mean) for (m, e), mean in means.items()}
        lines.append({"choice": row["choice"], "note": row["note"], **cells})
    said = []
    for e in epsilons:
        finite = {name: r for name, r in ratios.items() if np.isfinite(r["LB", e]) and r["LB", e] > 0}
        both = [name for name, r in ratios.items() if all(0.5 <= r[m, e] <= 2 for m in ("SB", "LB"))]
        text = f"At epsilon {e:g} {' and '.join(both) or 'no choice'} comes within a factor of two of both"
        if finite:
            nearest = min(finite, key=lambda name: abs(np.log(finite[name]["LB", e])))
            text += (
                f"; nearest for LB is {nearest}, at {finite[nearest]['LB', e]:.2g} times the paper's value, SB at "
                f"{finite[nearest]['SB', e]:.2g} times"
            )
        said.append(f"{text}.")
    losses = [
        f"{r['choice']}: SB {plain(r['loss']['SB'])}, LB {plain(r['loss']['LB'])}" for r in rows if "loss" in r
    ]
    said += [f"f(x) at the stages, in nats: {'; '.join(losses)}."] if losses else []
    title = "What moves Table 4: sharpness in random subspaces under other choices, mean over the draws"
    return [report.Section(title, said, pd.DataFrame(lines))]


if __name__ == "__main__":
    command.main("choices", run, figures, CONFIG, __doc__)
