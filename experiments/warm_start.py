"""Large batches that start where small ones were after each epoch (Fig. 5): test accuracy and sharpness.

    make exp-warm_start
    make exp-warm_start ARGS="--network c1 --dataset cifar10 --epochs 100"

In the paper SB is trained for 100 epochs, and LB for 100 from each of its iterates, with a new optimiser state.
"""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from experiments.lib import command, curves, settings
from experiments.lib.claims import Claim
from experiments.lib.curves import EPSILONS, Curve
from experiments.lib.rows import Value, converged, diverged, means, test_accuracy
from experiments.lib.settings import Training
from gengap import comparison, minima, paper, plots, records, report, stats
from gengap.comparison import Metric, column
from gengap.records import Cell, Row
from gengap.report import DASH, Section, percent, positive

EPOCH = "epoch of SB that LB starts from"


class Config(NamedTuple):
    """LB training started from iterates of SB; both run for all epochs."""

    training: Training = Training(num_seeds=2, epochs=20)
    metric: Metric = Metric(num_draws=0)
    starts: int = 8
    """number of SB iterates to start from, logarithmically spaced; all if it is at least the number of epochs"""


CONFIG = Config()
SMOKE = Config(Training(num_seeds=1, train_size=400, epochs=2), Metric(num_draws=0, max_evaluations=3), starts=2)


def cells(config: Config) -> list[Cell]:
    """For each seed SB, and an LB for each epoch of SB that it starts from."""
    large = [{"side": "LB", "epoch": epoch} for epoch in start_epochs(config)]
    small = settings.cells_of(config.training, ("SB",))
    return [{**cell, **changes} for cell in small for changes in [{}, *large]]


def start_epochs(config: Config) -> tuple[int, ...]:
    """The epochs of SB that LB starts from; the last one is among them."""
    last = config.training.epochs
    if config.starts >= last:
        return tuple(range(1, last + 1))
    return tuple(np.unique(np.geomspace(1, last, config.starts).round().astype(int)).tolist())


def row(config: Config, cell: Cell, store: Path) -> Row:
    """How SB was trained; or the loss, accuracy and sharpness of an LB that started from it."""
    training, seed, label = config.training, cell["seed"], settings.label(config.training, cell)
    ds, model, loss, train, test = settings.problem(training, cell["network"])
    key = settings.training_key(training)
    recipe = settings.recipe(training, settings.batch_size(training, "SB"))
    recipe = recipe._replace(snapshots=start_epochs(config))
    small = minima.find(model, ds, key, recipe, seed=seed, store=store, progress=label)
    if cell["side"] == "SB":
        return small.summary()
    start = small.snapshots[cell["epoch"]].params  # if SB diverged, so does LB at once
    recipe = settings.recipe(training, settings.batch_size(training, "LB"))
    large = minima.find(model, ds, key, recipe, seed=seed, start=start, store=store, progress=label)
    key = settings.measure_key(training, seed)
    measured = comparison.measure(loss, large.params, key, config.metric, train=train, test=test, progress=label)
    return large.summary() | measured


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for SB of each seed, and one for each LB; the options are those of `records.fill`."""
    training = settings.resolved(config.training, all_epochs=True)
    config = config._replace(training=training)
    settings.check_metric(training, config.metric)
    if config.starts < 2:
        raise ValueError(f"starts is {config.starts}; it must be at least 2")

    def seconds(cells: Sequence[Cell]) -> float:
        gradients, epochs = len(cells) * config.metric.gradients, len(cells) * training.epochs
        return settings.seconds(training, gradients=gradients, epochs=epochs)

    return records.fill("warm_start", config, cells(config), row, out, seconds=seconds, **options)


@report.apart
def figures(rows: list[Row]) -> list[Section]:
    """Fig. 5: LB started from the iterates of SB."""
    lost, kept = diverged(rows), converged(rows)
    better = [large >= small for of_seed in accuracies(kept) for small, large in of_seed]
    if not better:
        return lost
    network, theirs = paper.nearest("fig5_warmstart", kept[0]["network"])
    here, there = stats.where(kept[0]), f"paper, {paper.where(network)}"
    lines = [
        *plots.seeds(starts(kept, sb_accuracy(kept)), "SB at that epoch", "SB", marker="o"),
        *plots.seeds(starts(kept, test_accuracy), "LB started there", "LB", marker="s"),
        plots.dotted(theirs["SB_test"], f"{there}, SB"),
        plots.dotted(theirs["LB_piggyback_test"], f"{there}, LB"),
    ]
    panel = plots.Panel(f"test accuracy, {here}", EPOCH, plots.ACCURACY, lines, log_x=True)
    panels = plots.beside_paper(panel, kept[0]["network"], network)
    for epsilon, name in EPSILONS:
        shown = [(x, list(map(positive, y))) for x, y in starts(kept, column("full", epsilon))]
        lines = plots.seeds(shown, "LB started there", "LB", marker="s")
        lines.append(plots.dotted(theirs[f"sharp_{name}"], f"{there}, LB"))
        title = f"full space, epsilon {name}"
        panels.append(plots.Panel(title, EPOCH, plots.SHARPNESS, lines, log_x=True, log_y=True))
    in_paper = [b >= a for a, b in zip(theirs["SB_test"].y, theirs["LB_piggyback_test"].y, strict=True)]
    as_good, flatter = claims(kept)
    findings = [
        f"LB started from an iterate of SB tests at least as well as that iterate in {sum(better)} of "
        f"{len(better)} starts.",
        f"It does so on average over the starts of a seed: {as_good.verdict}.",
        f"The later LB starts, the flatter it ends ({flatter.here or DASH} over seeds and epsilons): "
        f"{flatter.verdict}.",
    ]
    if network == kept[0]["network"] and paper.beside(network, kept[0]["dataset"]):
        findings.append(f"In the paper's curve of {network} it does in {sum(in_paper)} of {len(in_paper)} starts.")
    caption = (
        "LB starts from the parameters of SB after the epoch on the axis, with a new optimiser state. Dotted: the "
        "paper's network named in the legend."
    )
    title = "Large batches started from small-batch iterates (Fig. 5)"
    return [*lost, Section(title, findings, figure=plots.panels(panels), caption=caption, name="fig5")]


def claims(rows: list[Row]) -> list[Claim]:
    """Fig. 5."""
    both = [(fmean(small for small, _ in pairs), fmean(large for _, large in pairs)) for pairs in accuracies(rows)]
    verdict = stats.verdict([large - small for small, large in both])
    ranks = [curves.ranks(starts(rows, column("full", epsilon))) for epsilon, _ in EPSILONS]
    verdicts = [stats.verdict(-of_epsilon) for of_epsilon in ranks]
    as_good = "LB started from an SB iterate tests at least as well as it, on average over the iterates"
    flatter = "the later LB starts, the flatter it ends"
    return [
        Claim("Fig. 5", as_good, {"C1": "at all epochs"}, means(both, " %"), [verdict]),
        Claim("Fig. 5", flatter, {"C1": "532 to 1"}, curves.lowest_and_highest(ranks), verdicts),
    ]


def starts(rows: Sequence[Row], value: Value, x: Value = "epoch") -> list[Curve]:
    """For each seed a number of its LB runs, against the epoch that they started from or another number."""
    return list(curves.curves([row for row in rows if row["side"] == "LB"], "epoch", x, value).values())


def accuracies(rows: Sequence[Row]) -> list[list[tuple[float, float]]]:
    """Test accuracy of SB where LB started, and of LB at the end, in percent, for each seed that has both."""
    of_seeds = starts(rows, test_accuracy, x=sb_accuracy(rows))
    return [[(a, b) for a, b in zip(*curve, strict=True) if b is not None] for curve in of_seeds]


def sb_accuracy(rows: Sequence[Row]) -> Callable[[Row], float | None]:
    """Test accuracy of SB, in percent, at the epoch from which the LB of a row began."""
    histories = {row["seed"]: row["history"]["test_accuracy"] for row in rows if row["side"] == "SB"}
    return lambda row: percent(histories[row["seed"]][row["epoch"] - 1]) if row["seed"] in histories else None


if __name__ == "__main__":
    command.main("warm_start", run, figures, CONFIG, __doc__)
