"""Along training: accuracy per epoch (Fig. 2), sharpness against cross entropy (Fig. 6), when large batches pay.

    make exp-trajectory
    make exp-trajectory ARGS="--network c1 --dataset cifar10"

SB and LB are trained for a fixed number of epochs, 100 in the paper, and the sharpness in the full space is
measured after some of them. From it comes a comparison that the paper does not make: SB against LB at the same
training loss.
"""

from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np

from gengap import cli, minima, protocol, records


class Config(NamedTuple):
    """Sharpness along the training of one network."""

    network: protocol.Network = "f1"
    """which of the paper's networks"""
    dataset: str = "digits"
    """"digits", or any TFDS image-classification set"""
    num_seeds: int = 3
    """starting points"""
    train_size: int | None = None
    """use only the first so many training examples"""
    epochs: int | None = None
    """of training; by default 100, and 40 on the digits"""
    points: int = 12
    """epochs after which to measure, evenly spaced on a logarithmic scale"""


CONFIG = Config()
SMOKE = CONFIG._replace(num_seeds=1, train_size=400, epochs=3, points=2)


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> dict[str, Any]:
    """Train, measure and record; returns the summary, which is also in the run directory `out`."""
    epochs = config.epochs or (40 if config.dataset == "digits" else 100)
    at = protocol.setting(config, data_dir, epochs=epochs)
    if config.points < 2:
        raise ValueError(f"points is {config.points}; it must be at least 2")
    wanted = sorted(set(np.geomspace(1, epochs, config.points).round().astype(int).tolist()))
    key = jax.random.key(at.protocol.seed)
    asked = at.protocol._asdict() | config._asdict() | {"epochs": epochs}
    with records.opened("trajectory", asked, out, fresh=fresh) as run:
        for seed in range(config.num_seeds):
            for method, batch_size in (("SB", at.protocol.small_batch), ("LB", at.protocol.large_batch)):
                if run.has(at.name, method, seed):
                    continue
                *some, found = minima.find_along(
                    at.model,
                    at.ds,
                    key,
                    batch_size,
                    wanted,
                    seed=seed,
                    patience=None,
                    chunk=at.protocol.chunk,
                    store=protocol.store(out, "trajectory"),
                    progress=f"{at.name} seed {seed} {method}",
                )
                row = {"network": at.name, "dataset": at.ds.name, "method": method, "seed": seed}
                points = {0: minima.starting_point(at.model, at.ds, key, seed)}
                points |= {one.epochs: one.params for one in (*some, found)}
                for epoch in [e for e in points if not run.has(at.name, method, seed, e)]:
                    measured = protocol.measure(at.model, at.ds, points[epoch], key, at.protocol, subspaces=False)
                    run.add(row | {"epoch": epoch, "batch_size": found.batch_size, **measured})
                run.add(
                    row
                    | {
                        "batch_size": found.batch_size,
                        "epochs": found.epochs,
                        "steps": found.steps,
                        "diverged_at": found.diverged_at,
                        "history": found.history,
                    }
                )
        return run.summary()


if __name__ == "__main__":
    cli.main("trajectory", run, CONFIG, __doc__)
