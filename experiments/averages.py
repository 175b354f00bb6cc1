"""A test of one explanation of Table 4: were batch-norm averages and batch statistics mixed up?

    make exp-averages

In Table 4 the random-subspace sharpness of F1 is 9.11 higher for LB than for SB at one epsilon, and 9.12 higher at
the other. A constant difference suggests that f(x) and f(x + A y) were evaluated in two ways. Keras keeps moving
averages of the batch-norm statistics, with a momentum of 0.99. They need some hundred updates to settle, and LB
makes few. If f(x) was evaluated with batch statistics and f(x + A y) with these averages, the metric is too large
by 100 (f_averages - f) / (1 + f). This experiment computes that number after each epoch, up to the minimum that
Table 4 is about.
"""

import math
import statistics
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from experiments.lib import command, settings, tables
from experiments.lib.claims import Claim
from experiments.lib.rows import converged, diverged
from experiments.lib.settings import SIDES, Training
from gengap import minima, objective, paper, plots, records, report, stats
from gengap.records import Cell, Row
from gengap.report import Section, plain, spread

PAPERS = "LB - SB in the paper's Table 4, at two epsilons"


class Config(NamedTuple):
    """Moving averages of batch-norm statistics. Training keeps the parameters of every epoch in memory."""

    training: Training = Training(dataset="mnist", num_seeds=3, epochs=40)
    momentum: float = 0.99
    """momentum of the moving averages; the default is that of Keras"""


CONFIG = Config()
SMOKE = Config(Training(num_seeds=1, train_size=400, epochs=2))


def row(config: Config, cell: Cell, store: Path) -> Row:
    """The updates after each epoch, and f there with batch statistics and with moving averages."""
    training, label = config.training, settings.label(config.training, cell)
    ds, model, loss, *_ = settings.problem(training, cell["network"])
    recipe = settings.recipe(training, settings.batch_size(training, cell["side"]))
    recipe = recipe._replace(snapshots=tuple(range(1, training.epochs + 1)))
    minimum = minima.find(model, ds, settings.training_key(training), recipe, seed=cell["seed"], progress=label)
    frozen = model._replace(apply=lambda both, x: model.apply_frozen(*both, x))  # type: ignore[misc]
    loss, loss_frozen = jax.jit(loss), jax.jit(settings.loss_over(training, frozen, ds))
    of_batch = jax.jit(lambda params, x: model.statistics(params, objective.scale(x)))  # type: ignore[misc]
    averages, steps, batch, moving = None, [0], [], []
    for snapshot in list(minimum.snapshots.values())[: minimum.epochs]:  # later ones repeat the end
        latest = of_batch(snapshot.params, ds.x_train[: minimum.batch_size])
        averages = averaged(averages, latest, config.momentum ** (snapshot.steps - steps[-1]))
        steps.append(snapshot.steps)
        batch.append(loss(snapshot.params))
        moving.append(loss_frozen((snapshot.params, averages)))
    return {"diverged_at": minimum.diverged_at, "steps": steps[1:], "batch": batch, "moving": moving}


def averaged(averages: PyTree | None, own: PyTree, kept: float) -> PyTree:
    """Moving averages after an epoch, from the statistics at its end; means start at 0 and variances at 1."""
    if averages is None:
        averages = jax.tree.map_with_path(lambda path, a: jnp.full_like(a, path[-1].key == "var"), own)
    return jax.tree.map(lambda a, b: kept * a + (1 - kept) * b, averages, own)


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each seed and side; the options are those of `records.fill`."""
    if not 0 <= config.momentum < 1:
        raise ValueError(f"momentum is {config.momentum}; it must be from 0 to below 1")
    training = settings.resolved(config.training)
    config = config._replace(training=training)

    def seconds(cells: Sequence[Cell]) -> float:
        return settings.seconds(training, gradients=0, epochs=len(cells) * training.epochs)

    return records.fill("averages", config, settings.cells_of(training), row, out, seconds=seconds, **options)


@report.apart
def figures(rows: list[Row]) -> list[Section]:
    """What moving averages would add to the metric along training, beside the paper's table."""
    lost, kept = diverged(rows), converged(rows)
    small, large = ([row for row in kept if row["side"] == side] for side in SIDES)
    if not small or not large:
        return lost
    lines = [
        line
        for side, marker, of_side in (("SB", "o", small), ("LB", "s", large))
        for line in plots.seeds([(row["steps"], added(row)) for row in of_side], side, side, marker=marker)
    ]
    theirs = paper.TABLE_4.get(kept[0]["network"], paper.TABLE_4["F1"])
    excess = [theirs["LB"][epsilon][0] - theirs["SB"][epsilon][0] for epsilon in (1e-3, 5e-4)]
    most, mean = max(max(row["steps"]) for row in kept), statistics.fmean(excess)
    for value in excess:
        lines.append(plots.Line([1, most], [value, value], PAPERS, "paper", ":", 1.1))
    ends = [added(row)[-1] for row in small]
    findings = [
        f"At the LB minimum, after {plain(statistics.fmean(row['steps'][-1] for row in large))} updates, moving "
        f"averages would add {spread([added(row)[-1] for row in large])} to the sharpness, at any epsilon.",
        f"At the SB minimum they would add {spread(ends)}.",
    ]
    passed = [stats.at_loss(added(row), row["steps"], mean) for row in large]
    if passed := [steps for steps in passed if math.isfinite(steps)]:
        findings.append(f"Earlier, after {spread(passed)} updates of LB, they would add {plain(mean)}.")
    whole = [theirs["SB"][epsilon][0] for epsilon in (1e-3, 5e-4)]
    is_less = min(ends) > max(whole)
    if paper.beside(kept[0]["network"], kept[0]["dataset"]):
        findings += [
            f"In Table 4 of the {tables.paper_heading(kept)} LB is above SB by {plain(excess[0])} at epsilon 1e-3 "
            f"and by {plain(excess[1])} at 5e-4. A difference in sharpness alone would fall with epsilon.",
            f"The sharpness of SB in Table 4 is {plain(whole[0])} and {plain(whole[1])}, "
            + (
                "less than moving averages would add. So SB was not measured with them."
                if is_less
                else "not less than moving averages would add in every seed."
            ),
        ]
    label = "added to the metric (% of 1 + f)"
    title = f"f with moving averages minus f, {stats.where(kept[0])}"
    panel = plots.Panel(title, "updates", label, lines, log_x=True, log_y=True)
    caption = (
        "One point for each epoch, up to the minimum: 100 (f with averages - f) / (1 + f), where f uses the "
        "batch statistics of each chunk, as elsewhere. Dotted: how much LB lies above SB in the paper's Table 4."
    )
    title = "What moving averages in batch norm would add to the sharpness"
    return [*lost, Section(title, findings, figure=plots.panels([panel]), caption=caption, name="averages")]


def added(row: Row) -> list[float]:
    """What moving averages would add to the metric after each epoch."""
    return [100 * (moving - f) / (1 + f) for moving, f in zip(row["moving"], row["batch"], strict=True)]


def claims(rows: list[Row]) -> list[Claim]:
    """None: the paper says nothing about moving averages."""
    return []


if __name__ == "__main__":
    command.main("averages", run, figures, CONFIG, __doc__)
