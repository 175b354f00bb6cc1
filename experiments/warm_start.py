"""Large batches begun from where small ones stand after each epoch (Fig. 5): accuracy, sharpness.

    make exp-warm_start
    make exp-warm_start ARGS="--network c1 --dataset cifar10"

SB is trained for 100 epochs in the paper, and LB for 100 from each of the iterates, with a new optimiser state.
"""

from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np

from gengap import cli, minima, protocol, records


class Config(NamedTuple):
    """LB begun from iterates of SB."""

    network: protocol.Network = "f1"
    """which of the paper's networks"""
    dataset: str = "digits"
    """"digits", or any TFDS image-classification set"""
    num_seeds: int = 2
    """starting points"""
    train_size: int | None = None
    """use only the first so many training examples"""
    epochs: int | None = None
    """of each training; by default 100, and 20 on the digits"""
    starts: int = 8
    """iterates of SB to begin from, evenly spaced on a logarithmic scale; as many as epochs are all of them"""


CONFIG = Config()
SMOKE = CONFIG._replace(num_seeds=1, train_size=400, epochs=2, starts=2)


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> dict[str, Any]:
    """Train, measure and record; returns the summary, which is also in the run directory `out`."""
    epochs = config.epochs or (20 if config.dataset == "digits" else 100)
    at = protocol.setting(config, data_dir, epochs=epochs)
    if not 2 <= config.starts <= epochs:
        raise ValueError(f"starts is {config.starts}; it must be from 2 to {epochs}, the epochs")
    spaced = np.geomspace(1, epochs, config.starts) if config.starts < epochs else np.arange(1, epochs + 1)
    wanted = sorted(set(spaced.round().astype(int).tolist()))
    key = jax.random.key(at.protocol.seed)
    asked = at.protocol._asdict() | config._asdict() | {"epochs": epochs}

    how: dict[str, Any] = {
        "patience": None,
        "chunk": at.protocol.chunk,
        "store": protocol.store(out, "warm_start"),
    }
    with records.opened("warm_start", asked, out, fresh=fresh) as run:
        for seed in range(config.num_seeds):
            if all(run.has(at.name, "LB", seed, epoch) for epoch in wanted) and run.has(at.name, "SB", seed):
                continue
            row = {"network": at.name, "dataset": at.ds.name, "seed": seed}
            words = f"{at.name} seed {seed}"
            small = minima.find_along(
                *(at.model, at.ds, key, at.protocol.small_batch, wanted), seed=seed, progress=f"{words} SB", **how
            )
            if not run.has(at.name, "SB", seed):
                history = small[-1].history
                run.add(row | {"method": "SB", "batch_size": small[-1].batch_size, "history": history})
            for epoch, start in [(one.epochs, one.params) for one in small]:
                if run.has(at.name, "LB", seed, epoch):
                    continue
                large = minima.find(
                    *(at.model, at.ds, key, at.protocol.large_batch),
                    seed=seed,
                    start=start,
                    epochs=epochs,
                    progress=f"{words} LB after {epoch}",
                    **how,
                )
                measured = protocol.measure(at.model, at.ds, large.params, key, at.protocol, subspaces=False)
                run.add(
                    row
                    | {
                        "method": "LB",
                        "epoch": epoch,
                        "batch_size": large.batch_size,
                        "diverged_at": large.diverged_at,
                        **measured,
                    }
                )
        return run.summary()


if __name__ == "__main__":
    cli.main("warm_start", run, CONFIG, __doc__)
