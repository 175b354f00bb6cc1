"""Which measure predicts the generalisation gap: a grid of runs, rank correlations over them.

    make exp-correlation

A dense network with batch norm is trained over batch size, learning rate, width, weight decay and seed, each run
to the same training loss as in Jiang et al. (2020), and every measure is taken at each end point. Kendall's tau
and the granulated coefficient, which varies one hyperparameter at a time, rank the measures.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from experiments import command, training
from experiments.training import Training
from gengap import (
    ascent,
    data,
    hessian,
    measures,
    minima,
    models,
    objective,
    plots,
    records,
    report,
    sharpness,
    train,
)
from gengap import statistics as stats
from gengap.report import number, plain


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
) -> records.Run:
    """Train, measure and record, a row for each run of the grid."""
    axes = (config.widths, config.batch_sizes, config.learning_rates, config.weight_decays)
    if not all(axes) or config.num_seeds < 1 or config.epochs < 1 or config.examples < 2:
        raise ValueError(
            "every axis of the grid needs a value, and num_seeds, epochs and examples at least 1, 1 and 2"
        )
    ds = data.load(config.dataset, data_dir)
    if config.train_size is not None:
        if not 1 <= config.train_size <= len(ds.x_train):
            raise ValueError(f"train_size is {config.train_size}; it must be from 1 to {len(ds.x_train)}")
        ds = data.head(ds, config.train_size)
    for batch_size in config.batch_sizes:
        train.count(batch_size, len(ds.x_train))
    grid = list(itertools.product(*axes, range(config.num_seeds)))
    with records.opened("correlation", config._asdict(), out, fresh=fresh) as run:
        for width, batch_size, rate, decay, seed in grid:
            method = f"width {width}, batch {batch_size}, rate {rate:g}, decay {decay:g}"
            row = {"network": "dense", "dataset": ds.name, "method": method, "seed": seed}
            if not run.has(row):
                setting = {"width": width, "batch size": batch_size, "learning rate": rate, "weight decay": decay}
                row |= {"setting": setting | {"seed": seed}, "maximiser": ascent.ASCENT_VERSION}
                run.add(row | _end_point(config, ds, setting, seed, run.store))
                command.say_what_is_left(run, len(grid))
        return run


def _end_point(
    config: Config, ds: data.Dataset, setting: dict[str, Any], seed: int, store: Path | None
) -> dict[str, Any]:
    """One run: how it ended, its gap, and every measure."""
    model = models.dense(ds.num_classes, widths=(setting["width"],) * 2)
    key = jax.random.key(0)
    found = minima.find(
        model,
        ds,
        key,
        setting["batch size"],
        seed=seed,
        optimizer=train.adam(setting["learning rate"], weight_decay=setting["weight decay"]),
        epochs=config.epochs,
        patience=None,
        target=config.target,
        store=store,
        progress=f"width {setting['width']}, batch {setting['batch size']}, seed {seed}",
    )
    params = found.params
    row: dict[str, Any] = {"epochs": found.epochs, "diverged_at": found.diverged_at}
    if found.diverged_at is not None:
        return row
    for split, x, y in (("train", ds.x_train, ds.y_train), ("test", ds.x_test, ds.y_test)):
        loss, accuracy = objective.loss_and_accuracy(model.apply, x, y)(params)
        row |= {f"{split}_loss": loss, f"{split}_accuracy": accuracy}
    start = minima.starting_point(model, ds, key, seed)
    return row | {"measures": _measures(config, ds, model, params, start, seed)}


def _measures(
    config: Config, ds: data.Dataset, model: models.Model, params: PyTree, start: PyTree, seed: int
) -> dict[str, float]:
    some = data.head(ds, min(config.examples, len(ds.x_train)))
    x, y = some.x_train, some.y_train
    f = objective.over_dataset(model.apply, x, y)
    error = partial(_error, objective.loss_and_accuracy(model.apply, x, y))
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
    found = {name: measure(params, training.key_of(Training(), seed, name)) for name, measure in every.items()}
    return {name: float(np.asarray(getattr(value, "value", value))) for name, value in found.items()}


def _error(loss_and_accuracy: Callable, params: PyTree) -> Array:
    return 1 - loss_and_accuracy(params)[1]


@report.apart
def figures(rows: list[records.Row]) -> list[report.Section]:
    """Rank correlation of each measure with the generalisation gap."""
    runs = [row for row in rows if row.get("measures") and row.get("diverged_at") is None]
    if len(runs) < 3:
        return []
    settings = [row["setting"] for row in runs]
    gaps = [100 * (row["train_accuracy"] - row["test_accuracy"]) for row in runs]
    taus: dict[str, tuple[stats.Interval, stats.Interval | None]] = {}
    for name in runs[0]["measures"]:
        values = [math.nan if (v := number(row["measures"][name])) is None else v for row in runs]
        try:
            psi = stats.granulated(values, gaps, settings)[0]
        except ValueError:
            psi = None
        taus[name] = (stats.kendall(values, gaps, settings), psi)
    order = sorted(taus, key=lambda name: (not math.isnan(taus[name][0].value), taus[name][0].value))
    rows_of = {"Kendall's tau": 0, "granulated Psi": 1}
    figure = plots.intervals(
        order,
        {
            "rank correlation with the generalisation gap": {
                label: [taus[name][k] or (math.nan,) * 3 for name in order] for label, k in rows_of.items()
            }
        },
        limits=(-1.02, 1.02),
    )
    best = order[-1]
    sure = [name for name in order if taus[name][0].word == "holds"]
    against = [name for name in order if taus[name][0].word == "does not hold"]
    said = [
        f"{len(runs)} runs; the gap between training and test accuracy runs from {plain(min(gaps))} to "
        f"{plain(max(gaps))} points.",
        f"Highest Kendall's tau: {best}, {plain(taus[best][0].value)}.",
        f"The 95 % interval of tau is above 0 for {'; '.join(sure) or 'none'}; below 0 for "
        f"{'; '.join(against) or 'none'}.",
    ]
    for name in order:
        psi = taus[name][1]
        said.append(f"{name}: tau {_interval(taus[name][0])}, Psi {_interval(psi) if psi else '-'}.")
    caption = (
        "Above 0: the larger the measure, the larger the gap. Bars: 95 % bootstrap intervals over settings, each "
        f"with all its seeds; each is for one measure, none for the highest of {len(order)}. None below five "
        "settings. Psi as in Jiang et al. (2020)."
    )
    return [
        report.Section("Which measure predicts the gap", said, figure=figure, caption=caption, name="correlated")
    ]


def _interval(found: stats.Interval) -> str:
    ends = f" ({found.low:.2f} to {found.high:.2f})" if math.isfinite(found.low) else ""
    return "-" if math.isnan(found.value) else f"{found.value:.2f}{ends}"


if __name__ == "__main__":
    command.main("correlation", run, figures, CONFIG, __doc__)
