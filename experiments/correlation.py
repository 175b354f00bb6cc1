"""Which measure predicts the generalisation gap: a grid of runs, rank correlations over them.

    make exp-correlation

A dense network with batch norm is trained over batch size, learning rate, width, weight decay and seed, each run
to the same training loss as in Jiang et al. (2020), and every measure is taken at each end point. Kendall's tau
and the granulated coefficient, which varies one hyperparameter at a time, rank the measures.
"""

import itertools
from collections.abc import Callable
from functools import cache, partial
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from gengap import cli, data, hessian, measures, minima, models, objective, records, sharpness, train


class Config(NamedTuple):
    """A grid of runs of a dense network."""

    dataset: str = "digits"
    """"digits", or any TFDS image-classification set"""
    train_size: int | None = None
    """use only the first so many training examples"""
    batch_sizes: tuple[int, ...] = (32, 128, 512)
    """examples"""
    learning_rates: tuple[float, ...] = (3e-4, 3e-3)
    """of Adam"""
    widths: tuple[int, ...] = (64, 256)
    """of each of two hidden layers"""
    weight_decays: tuple[float, ...] = (0.0, 1e-2)
    """decoupled, as in AdamW"""
    num_seeds: int = 2
    """starting points"""
    target: float = 0.01
    """the training loss at which a run stops, in nats"""
    epochs: int = 100
    """the most epochs of a run"""
    examples: int = 500
    """training examples on which the measures are taken"""


CONFIG = Config()
SMOKE = CONFIG._replace(
    train_size=200, batch_sizes=(50, 100), learning_rates=(3e-3,), weight_decays=(0.0,), num_seeds=1, epochs=2,
    widths=(4, 8), examples=100,
)  # fmt: skip


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> dict[str, Any]:
    """Train, measure and record; returns the summary, which is also in the run directory `out`."""
    axes = (config.widths, config.batch_sizes, config.learning_rates, config.weight_decays)
    if not all(axes) or config.num_seeds < 1 or config.epochs < 1 or config.examples < 2:
        raise ValueError(
            "every axis of the grid needs a value, and num_seeds, epochs and examples at least 1, 1 and 2"
        )
    ds = data.load(config.dataset, data_dir)
    if config.train_size is not None:
        ds = data.head(ds, config.train_size)
    for batch_size in config.batch_sizes:
        train.count(batch_size, len(ds.x_train))
    with records.opened("correlation", config._asdict(), out, fresh=fresh) as run:
        for width, batch_size, rate, decay in itertools.product(*axes):
            method = f"width {width}, batch {batch_size}, rate {rate:g}, decay {decay:g}"
            for seed in range(config.num_seeds):
                if not run.has("dense", method, seed):
                    setting = {
                        "width": width,
                        "batch size": batch_size,
                        "learning rate": rate,
                        "weight decay": decay,
                    }
                    run.add(
                        {"network": "dense", "dataset": ds.name, "method": method, "seed": seed}
                        | {"setting": setting | {"seed": seed}, **_end_point(config, ds, setting, seed)}
                    )
        return run.summary()


def _end_point(config: Config, ds: data.Dataset, setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run: how it ended, its gap, and every measure."""
    model = models.dense(ds.num_classes, widths=(setting["width"],) * 2)
    key = jax.random.key(0)
    found = minima.find(
        model,
        ds,
        key,
        setting["batch size"],
        seed=seed,
        optimizer=_optimizer(setting["learning rate"], setting["weight decay"]),
        epochs=config.epochs,
        patience=None,
        target=config.target,
    )
    params = found.params
    row: dict[str, Any] = {"epochs": found.epochs, "diverged_at": found.diverged_at}
    if found.diverged_at is not None:
        return row
    for split, x, y in (("train", ds.x_train, ds.y_train), ("test", ds.x_test, ds.y_test)):
        loss, accuracy = objective.loss_and_accuracy(model.apply, x, y)(params)
        row |= {f"{split}_loss": loss, f"{split}_accuracy": accuracy}
    start = minima.starting_point(model, ds, key, seed)
    return row | {"measures": _measures(config, ds, model, params, start, jax.random.fold_in(key, seed))}


@cache
def _optimizer(rate: float, decay: float) -> train.Optimizer:
    return train.named(f"adamw({rate}, weight_decay={decay})", optax.adamw(rate, weight_decay=decay))


def _measures(
    config: Config, ds: data.Dataset, model: models.Model, params: PyTree, start: PyTree, key: Array
) -> dict[str, float]:
    some = data.head(ds, min(config.examples, len(ds.x_train)))
    x, y = some.x_train, some.y_train
    f = objective.over_dataset(model.apply, x, y)
    error = Partial(_error, objective.loss_and_accuracy(model.apply, x, y))
    last = ("Dense_2", "kernel")
    every: dict[str, Callable] = {
        "sharpness, full space, 1e-3": lambda p, k: sharpness.full_space(f, p, k, epsilon=1e-3).value,
        "sharpness, full space, 5e-4": lambda p, k: sharpness.full_space(f, p, k, epsilon=5e-4).value,
        "sharpness, random subspaces, 1e-3": lambda p, k: sharpness.random_subspaces(f, p, k, num_draws=4).mean,
        "worst case l2 (SAM)": partial(measures.worst_case, f),
        "worst case l2, adaptive (ASAM)": partial(measures.worst_case, f, rho=0.5, adaptive=True),
        "worst case l-inf, adaptive": partial(measures.worst_case_linf, f, rho=0.01, adaptive=True),
        "average case": partial(measures.average_case, f),
        "average case, adaptive": partial(measures.average_case, f, rho=0.1, adaptive=True),
        "Hessian, top eigenvalue": lambda p, k: hessian.eigenpairs(f, p, k).values[0],
        "Hessian, trace": lambda p, k: hessian.trace(f, p, k, num_samples=20).value,
        "Fisher trace": lambda p, k: measures.fisher_trace(model.apply, p, x, k),
        "relative flatness, last layer": partial(measures.relative_flatness, f, layer=last, num_samples=50),
        "PAC-Bayes 1 / sigma^2": lambda p, k: measures.pac_bayes_sigma(error, p, k, steps=10) ** -2,
        "PAC-Bayes 1 / sigma^2, adaptive": lambda p, k: (
            measures.pac_bayes_sigma(error, p, k, adaptive=True, steps=10) ** -2
        ),
        "distance from the start": lambda p, k: measures.distance(p, start),
        "length of the parameters": lambda p, k: optax.tree.norm(p),
        "training loss": lambda p, k: f(p),
    }
    found = {name: measure(params, key) for name, measure in every.items()}
    return {name: float(np.asarray(getattr(value, "value", value))) for name, value in found.items()}


def _error(loss_and_accuracy: Callable, params: PyTree) -> Array:
    return 1 - loss_and_accuracy(params)[1]


if __name__ == "__main__":
    cli.main("correlation", run, CONFIG, __doc__)
