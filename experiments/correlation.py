"""Which measure predicts the generalisation gap? Rank correlations over a grid of runs.

    make exp-correlation

A dense network with batch norm is trained at each point of a grid: batch size, learning rate, width, weight decay
and seed. Every run stops at the same training loss, as in Jiang et al. (2020), and every measure is taken there.
Two coefficients rank the measures: Kendall's tau over all runs, and the granulated one, which compares runs that
differ in one hyperparameter only.
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

from experiments.lib import command, settings
from experiments.lib.claims import Claim
from experiments.lib.settings import Training
from gengap import (
    ascent,
    data,
    flat,
    hessian,
    measures,
    minima,
    models,
    objective,
    plots,
    records,
    report,
    sharpness,
    stats,
    theories,
    train,
)
from gengap.records import Row
from gengap.report import number, plain

AXES = ("width", "batch_size", "learning_rate", "weight_decay")


class Config(NamedTuple):
    """A grid of runs of a dense network."""

    dataset: str = "digits"
    """"digits", any image-classification set of TFDS, or an .npz file"""
    train_size: int | None = None
    """number of training examples, the first ones; by default all"""
    batch_sizes: tuple[int, ...] = (32, 128, 512)
    """batch sizes, in examples"""
    learning_rates: tuple[float, ...] = (3e-4, 3e-3)
    """learning rates of Adam"""
    widths: tuple[int, ...] = (64, 256)
    """widths of the two hidden layers"""
    weight_decays: tuple[float, ...] = (0.0, 1e-2)
    """decoupled weight decays (AdamW)"""
    num_seeds: int = 2
    """number of starting points"""
    target: float = 0.01
    """stop at this training loss, in nats"""
    epochs: int = 100
    """maximum number of epochs"""
    examples: int = 500
    """number of training examples that the measures use"""


CONFIG = Config()
SMOKE = CONFIG._replace(
    train_size=200, batch_sizes=(50, 100), learning_rates=(3e-3,), weight_decays=(0.0,), num_seeds=1, epochs=2,
    widths=(4, 8), examples=100,
)  # fmt: skip


def cells(config: Config) -> list[records.Cell]:
    """One for each run of the grid."""
    axes = config.widths, config.batch_sizes, config.learning_rates, config.weight_decays
    name = settings.dataset(_training(config)).name
    return [
        {"network": "dense", "dataset": name, **dict(zip((*AXES, "seed"), place, strict=True))}
        for place in itertools.product(*axes, range(config.num_seeds))
    ]


def row(config: Config, cell: records.Cell, store: Path) -> Row:
    """One run: how it ended, its gap, and every measure."""
    ds, seed = settings.dataset(_training(config)), cell["seed"]
    model, key = models.dense(ds.num_classes, widths=(cell["width"],) * 2), jax.random.key(0)
    recipe = minima.Recipe(
        batch_size=cell["batch_size"],
        optimizer=train.adam(cell["learning_rate"], weight_decay=cell["weight_decay"]),
        epochs=config.epochs,
        patience=None,
        target=config.target,
    )
    label = f"width {cell['width']}, batch {cell['batch_size']}, seed {seed}"
    minimum = minima.find(model, ds, key, recipe, seed=seed, store=store, progress=label)
    ended: Row = {"epochs": minimum.epochs, "diverged_at": minimum.diverged_at}
    ended["ascent_version"] = ascent.ASCENT_VERSION
    if minimum.diverged_at is not None:
        return ended
    for split, x, y in (("train", ds.x_train, ds.y_train), ("test", ds.x_test, ds.y_test)):
        evaluate = objective.loss_and_accuracy(model.apply, x, y)
        ended[f"{split}_loss"], ended[f"{split}_accuracy"] = evaluate(minimum.params)
    start = minima.starting_point(model, ds, key, seed)
    some = data.head(ds, min(config.examples, len(ds.x_train)))
    measured = _measures(model, some.x_train, some.y_train, minimum.params, start, seed)
    return ended | {"measures": measured}


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each run of the grid; the options are those of `records.fill`."""
    axes = (config.widths, config.batch_sizes, config.learning_rates, config.weight_decays)
    if not all(axes) or config.num_seeds < 1 or config.epochs < 1 or config.examples < 2:
        raise ValueError(
            "every axis of the grid needs a value; num_seeds and epochs must be at least 1, and examples must be "
            "at least 2"
        )
    if config.train_size is not None and config.train_size < 1:
        raise ValueError(f"train_size is {config.train_size}; it must be at least 1")
    settings.counts({"batch_sizes": config.batch_sizes}, len(settings.dataset(_training(config)).x_train))
    return records.fill("correlation", config, cells(config), row, out, **options)


def _training(config: Config) -> Training:
    return Training(config.dataset, train_size=config.train_size)


def _measures(model: models.Model, x: Array, y: Array, params: PyTree, start: PyTree, seed: int) -> Row:
    f = objective.over_dataset(model.apply, x, y)
    error = partial(_error, objective.loss_and_accuracy(model.apply, x, y))
    last = ("Dense_2", "kernel")
    known: dict[str, Callable] = {
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
        "description length": partial(theories.description_length, f, rise=1e-3, examples=len(x)),
        "- ln evidence": lambda p, k: -theories.evidence(f, p, k, examples=len(x)).value,
        "free energy": partial(theories.free_energy, f, width=0.01, examples=len(x), num_steps=100),
        "distance from the start": lambda p, k: measures.distance(p, start),
        "length of the parameters": lambda p, k: optax.tree.norm(p),
        "training loss": lambda p, k: f(p),
    }
    key = settings.measure_key(Training(), seed)
    values = {name: measure(params, flat.key_for(key, name)) for name, measure in known.items()}
    return {name: float(np.asarray(getattr(value, "value", value))) for name, value in values.items()}


def _error(loss_and_accuracy: Callable, params: PyTree) -> Array:
    return 1 - loss_and_accuracy(params)[1]


def claims(rows: list[Row]) -> list[Claim]:
    """Section 1: a larger sharpness goes with a larger gap."""
    runs = [row for row in rows if row.get("measures")]
    words, verdicts = "", []
    if len(runs) >= 3:
        tau = _taus(runs, "sharpness, full space, 1e-3")[0]
        if math.isfinite(tau.low):
            settings_tested = {tuple(row[name] for name in AXES) for row in runs}
            words = f"tau {tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f})"
            verdicts = [stats.Verdict(tau.word, len(settings_tested))]
    claim = "sharpness goes with the gap (Kendall's tau over n settings, with its 95 % interval)"
    return [Claim("sec. 1", claim, {}, words, verdicts)]


def _gaps(runs: list[Row]) -> list[float]:
    return [100 * (row["train_accuracy"] - row["test_accuracy"]) for row in runs]


def _taus(runs: list[Row], name: str) -> tuple[stats.Interval, stats.Interval | None]:
    """Kendall's tau and the granulated Psi of a measure with the gap."""
    values = [math.nan if (v := number(row["measures"][name])) is None else v for row in runs]
    grid = [{axis: row[axis] for axis in (*AXES, "seed")} for row in runs]
    try:
        psi = stats.granulated(values, _gaps(runs), grid)[0]
    except ValueError:
        psi = None
    return stats.kendall(values, _gaps(runs), grid), psi


@report.apart
def figures(rows: list[Row]) -> list[report.Section]:
    """Rank correlation of each measure with the generalisation gap."""
    runs = [row for row in rows if row.get("measures") and row.get("diverged_at") is None]
    if len(runs) < 3:
        return []
    gaps = _gaps(runs)
    taus = {name: _taus(runs, name) for name in runs[0]["measures"]}
    order = sorted(taus, key=lambda name: (not math.isnan(taus[name][0].value), taus[name][0].value))
    coefficients = {"Kendall's tau, 95 % bootstrap interval": 0, "granulated Psi, 95 % bootstrap interval": 1}
    figure = plots.intervals(
        order,
        {
            (stats.where(runs[0]), "rank correlation with the generalisation gap; right: a larger gap"): {
                label: [taus[name][k] or (math.nan,) * 3 for name in order] for label, k in coefficients.items()
            }
        },
        limits=(-1.02, 1.02),
    )
    best = order[-1]
    above = [name for name in order if taus[name][0].word == "holds"]
    below = [name for name in order if taus[name][0].word == "does not hold"]
    findings = [
        f"The gap between training and test accuracy is {plain(min(gaps))} to {plain(max(gaps))} points over "
        f"{len(runs)} runs.",
        f"The measure with the highest Kendall's tau, {plain(taus[best][0].value)}, is: {best}.",
        f"The 95 % interval of tau is above 0 for: {'; '.join(above) or 'none'}.",
        f"It is below 0 for: {'; '.join(below) or 'none'}.",
    ]
    lines = [
        {
            "measure": name,
            "Kendall's tau": _interval(tau),
            "granulated Psi": _interval(psi) if psi else report.DASH,
        }
        for name, (tau, psi) in ((name, taus[name]) for name in reversed(order))
    ]
    caption = (
        "Above 0: the larger the measure, the larger the gap. Bars: 95 % bootstrap intervals over settings, each "
        "setting with all its seeds, if there are at least five settings. They do not allow for picking the "
        f"highest of {len(order)} measures. Psi is defined as in Jiang et al. (2020)."
    )
    title = "Which measure predicts the gap"
    return [report.Section(title, findings, report.frame(lines), figure, caption, "correlated")]


def _interval(interval: stats.Interval) -> str:
    ends = f" ({interval.low:.2f} to {interval.high:.2f})" if math.isfinite(interval.low) else ""
    return "-" if math.isnan(interval.value) else f"{interval.value:.2f}{ends}"


if __name__ == "__main__":
    command.main("correlation", run, figures, CONFIG, __doc__)
