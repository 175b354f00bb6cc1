"""Test accuracy and sharpness against batch size (Fig. 4).

    make exp-batch_size
    make exp-batch_size ARGS="--network c1 --dataset cifar10"

Every batch size is trained for the same number of epochs, 100 in the paper, from the same starting points.
"""

from os import PathLike
from typing import Any, NamedTuple

import jax

from gengap import cli, minima, protocol, records

PAPER = (100, 250, 500, 750, 1000, 1500, 2000, 2500, 3000, 4000, 5000)
"""For C1 on CIFAR-10; those for F2 are in proportion to a training set that is larger."""
DIGITS = (16, 32, 64, 128, 256, 512, 1024)


class Config(NamedTuple):
    """One network at many batch sizes."""

    network: protocol.Network = "f1"
    """which of the paper's networks"""
    dataset: str = "digits"
    """"digits", or any TFDS image-classification set"""
    num_seeds: int = 3
    """starting points"""
    train_size: int | None = None
    """use only the first so many training examples"""
    epochs: int | None = None
    """of training; by default 100, and 30 on the digits"""
    batch_sizes: tuple[float, ...] = ()
    """in examples, or as fractions of the training set; by default the paper's, and 16 to 1024 on the digits"""


CONFIG = Config()
SMOKE = CONFIG._replace(num_seeds=1, train_size=200, epochs=1, batch_sizes=(50, 100))


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> dict[str, Any]:
    """Train, measure and record; returns the summary, which is also in the run directory `out`."""
    epochs = config.epochs or (30 if config.dataset == "digits" else 100)
    at = protocol.setting(config, data_dir, epochs=epochs, pair=False)
    asked_sizes = config.batch_sizes or (DIGITS if config.dataset == "digits" else PAPER)
    sizes = [minima.train.count(size, len(at.ds.x_train)) for size in asked_sizes]
    if repeated := {size for size in sizes if sizes.count(size) > 1}:
        raise ValueError(f"batch_sizes has {', '.join(map(str, repeated))} more than once")
    key = jax.random.key(at.protocol.seed)
    asked = at.protocol._asdict() | config._asdict() | {"epochs": epochs, "batch_sizes": sizes}
    with records.opened("batch_size", asked, out, fresh=fresh) as run:
        for seed in range(config.num_seeds):
            for size in sizes:
                method = f"B={size}"
                if run.has(at.name, method, seed):
                    continue
                found = minima.find(
                    at.model,
                    at.ds,
                    key,
                    size,
                    seed=seed,
                    epochs=epochs,
                    patience=None,
                    chunk=at.protocol.chunk,
                    store=protocol.store(out, "batch_size"),
                    progress=f"{at.name} seed {seed} batch size {size}",
                )
                measured = protocol.measure(at.model, at.ds, found.params, key, at.protocol, subspaces=False)
                run.add(
                    {
                        "network": at.name,
                        "dataset": at.ds.name,
                        "method": method,
                        "seed": seed,
                        "batch_size": size,
                        "share": size / len(at.ds.x_train),
                        "epochs": found.epochs,
                        "diverged_at": found.diverged_at,
                        **measured,
                    }
                )
        return run.summary()


if __name__ == "__main__":
    cli.main("batch_size", run, CONFIG, __doc__)
