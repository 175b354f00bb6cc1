"""Large batches begun from where small ones stand after each epoch (Fig. 5): accuracy, sharpness.

    make exp-warm_start
    make exp-warm_start ARGS="--network c1 --dataset cifar10"

SB is trained for 100 epochs in the paper, and LB for 100 from each of the iterates, with a new optimiser state.
"""

from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np

from gengap import cli, loops, minima, protocol, records


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

    def find(run: records.Run, name: str, batch_size: float, seed: int, **more: Any) -> minima.Minimum:
        return minima.find(
            at.model,
            at.ds,
            key,
            batch_size,
            num_seeds=1,
            first_seed=seed,
            epochs=epochs,
            patience=None,
            chunk=at.protocol.chunk,
            checkpoint=run.file(f"minima/{name}-{seed}.npz"),
            progress=f"{at.name} seed {seed} {name}",
            **more,
        )

    with records.opened("warm_start", asked, out, fresh=fresh) as run:
        for seed in range(config.num_seeds):
            if all(run.has(at.name, "LB", seed, epoch) for epoch in wanted) and run.has(at.name, "SB", seed):
                continue
            row = {"network": at.name, "dataset": at.ds.name, "seed": seed}
            iterates = minima.Iterates(wanted, run.file(f"iterates/SB-{seed}"))
            small = find(run, "SB", at.protocol.small_batch, seed, on_epoch=iterates.keep)
            if not run.has(at.name, "SB", seed):
                history = {name: values[0] for name, values in small.history.items()}
                run.add(row | {"method": "SB", "batch_size": small.batch_size, "history": history})
            for epoch in [e for e in wanted if e <= small.epochs[0] and not run.has(at.name, "LB", seed, e)]:
                start = iterates.at(epoch, small.params)
                large = find(run, f"LB-after-{epoch}", at.protocol.large_batch, seed, start=start)
                measured = protocol.measure(
                    at.model, at.ds, loops.row(large.params, 0), key, at.protocol, subspaces=False
                )
                run.add(
                    row
                    | {
                        "method": "LB",
                        "epoch": epoch,
                        "batch_size": large.batch_size,
                        "diverged_at": None if large.diverged_at[0] < 0 else large.diverged_at[0],
                        **measured,
                    }
                )
        return run.summary()


if __name__ == "__main__":
    cli.main("warm_start", run, CONFIG, __doc__)
