"""Along training: test accuracy per epoch (Fig. 2) and sharpness against the loss (Fig. 6).

    make exp-trajectory
    make exp-trajectory ARGS="--network c1 --dataset cifar10 --epochs 100"

SB and LB are trained for a fixed number of epochs, 100 in the paper, and full-space sharpness is measured after
some of them. Two results go beyond the paper: SB against LB at the same training loss, and when large batches pay.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lib import command, curves, settings
from experiments.lib.claims import Claim
from experiments.lib.curves import EPSILONS, Curve
from experiments.lib.rows import converged, diverged, pairs
from experiments.lib.settings import SIDES, Training
from gengap import comparison, minima, paper, plots, records, report, stats
from gengap.comparison import Metric, column
from gengap.records import Cell, Row
from gengap.report import DASH, Section, percent, plain, positive, spread, times

LEVELS = [10 ** (-k / 4) for k in range(2, 21)]
"""Training losses at which SB and LB are compared, in nats."""


class Config(NamedTuple):
    """Sharpness along training; training runs for all epochs."""

    training: Training = Training(num_seeds=3, epochs=40)
    metric: Metric = Metric(num_draws=0)
    points: int = 12
    """number of epochs at which to measure, logarithmically spaced"""


CONFIG = Config()
SMOKE = Config(Training(num_seeds=1, train_size=400, epochs=3), Metric(num_draws=0, max_evaluations=3), points=2)


def cells(config: Config) -> list[Cell]:
    """For each training: its starting point, the measured epochs, and its end, which has no epoch."""
    epochs = [0, *measured_epochs(config), None]
    return [{**cell, "epoch": epoch} for cell in settings.cells_of(config.training) for epoch in epochs]


def measured_epochs(config: Config) -> tuple[int, ...]:
    """The epochs at which to measure, evenly spaced on a logarithmic scale; the last one is among them."""
    return tuple(np.unique(np.geomspace(1, config.training.epochs, config.points).round().astype(int)).tolist())


def row(config: Config, cell: Cell, store: Path) -> Row:
    """Loss and sharpness after an epoch; without an epoch, the history of the whole training and how it ended."""
    training, seed, epoch = config.training, cell["seed"], cell["epoch"]
    ds, model, loss, train, _ = settings.problem(training, cell["network"])
    recipe = settings.recipe(training, settings.batch_size(training, cell["side"]))
    recipe = recipe._replace(snapshots=measured_epochs(config))
    key, label = settings.training_key(training), settings.label(training, cell)
    minimum = minima.find(model, ds, key, recipe, seed=seed, store=store, progress=label)
    if epoch is None:
        return minimum.summary()
    params = minimum.snapshots[epoch].params if epoch else minima.starting_point(model, ds, key, seed)
    key = settings.measure_key(training, seed)
    return comparison.measure(loss, params, key, config.metric, train=train, progress=label)


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each side, seed and epoch, and one for each history; the options are those of `records.fill`."""
    training = settings.resolved(config.training, all_epochs=True)
    config = config._replace(training=training)
    settings.check_metric(training, config.metric)
    if config.points < 2:
        raise ValueError(f"points is {config.points}; it must be at least 2")

    def seconds(cells: Sequence[Cell]) -> float:
        trainings = {(cell["network"], cell["side"], cell["seed"]) for cell in cells}
        gradients, epochs = len(cells) * config.metric.gradients, len(trainings) * training.epochs
        return settings.seconds(training, gradients=gradients, epochs=epochs)

    return records.fill("trajectory", config, cells(config), row, out, seconds=seconds, **options)


@report.apart
def figures(rows: list[Row]) -> list[Section]:
    """Figs 2 and 6, the comparison at equal loss and appendix C; each if there are rows for it."""
    kept = converged(rows)
    *of_fig6, at_lowest = claims(kept)
    of_losses = [*sharpness_figure(kept, *of_fig6), *equal_loss_figure(kept, at_lowest)]
    return [*diverged(rows), *accuracy_figure(kept), *of_losses, *speedup_figure(kept)]


def claims(rows: list[Row]) -> list[Claim]:
    """Fig. 6, and a comparison that the paper does not make: SB and LB at the same training loss."""
    small, large = (falls(rows, side) for side in SIDES)
    sharper, flatter = "LB gets sharper as its loss falls", "SB gets flatter as its loss falls"
    at_lowest = "LB is sharper at the lowest training loss that both reach"
    logs = list(log_ratios(rows, 1e-3).values())
    here = _times_as_sharp(logs) if logs else ""
    return [
        Claim(
            "Fig. 6", sharper, {"F2": "28 to 961"}, curves.mean_rank(large), [stats.verdict(large)], _ends(rows)
        ),
        Claim("Fig. 6", flatter, {"F2": "20 to 0.84"}, curves.mean_rank(small), [stats.verdict(-small)]),
        Claim("not in it", at_lowest, {}, here, [stats.verdict(logs)]),
    ]


def _ends(rows: list[Row]) -> str:
    """LB after the first epoch and at the end, beside the paper's numbers."""
    seeds = along(rows, "LB", 1e-3, first=1).values()
    points = ([(losses[at], sharpness[at]) for losses, sharpness in seeds] for at in (0, -1))
    first, end = (np.array(of, float).mean(0).tolist() if of else [math.nan] * 2 for of in points)
    return (
        f"LB's sharpness is {plain(first[1])} % after the first epoch, at a training loss of {plain(first[0])}, "
        f"and {plain(end[1])} % at the end, at {plain(end[0])} (means). In the paper F2's rises from 28 "
        "to 961 %."
    )


def _times_as_sharp(logs: Iterable[float]) -> str:
    """The geometric mean of ratios, LB over SB, in words: "LB is 6.57 times as sharp as SB"."""
    more, factor, less = times(math.exp(statistics.fmean(logs)), "LB", "SB")
    return f"{more} is {factor} times as sharp as {less}"


def along(rows: Sequence[Row], side: str, epsilon: float, *, first: int = 0) -> dict[int, Curve]:
    """Training losses and sharpness of each seed of a side, from epoch `first` on."""
    measured = [row for row in rows if row["side"] == side and row.get("epoch") is not None]
    return curves.curves(
        [row for row in measured if row["epoch"] >= first], "epoch", "train_loss", column("full", epsilon)
    )


def falls(rows: Sequence[Row], side: str) -> np.ndarray:
    """Rank correlation of sharpness with the fall of the loss, of each seed that has one; epsilon is 1e-3."""
    return -curves.ranks(along(rows, side, 1e-3).values())


def log_ratios(rows: Sequence[Row], epsilon: float, level: float | None = None) -> dict[int, float]:
    """log(sharpness of LB / of SB) at one training loss, for each seed whose SB and LB both reach it.

    The level is in nats; by default it is 1.05 times the lowest that both sides of the seed reach.
    """
    # at the starting point the loss is far from that after the first epoch, too far to interpolate between
    small, large = (along(rows, side, epsilon, first=1) for side in SIDES)
    logs = {}
    for seed in [seed for seed in small if seed in large]:
        lowest = max(min(losses) for losses, _ in (small[seed], large[seed]))
        flat, sharp = (stats.at_loss(*side[seed], level or 1.05 * lowest) for side in (small, large))
        logs[seed] = math.log(sharp / flat)
    return {seed: log for seed, log in logs.items() if math.isfinite(log)}


def accuracy_figure(rows: Sequence[Row]) -> list[Section]:
    """Fig. 2: accuracy per epoch."""
    runs = [row for row in rows if row.get("history")]
    if not runs:
        return []
    network, theirs = paper.nearest("fig2_curves", runs[0]["network"])
    lines: list[plots.Line] = []
    falls: dict[str, list[float]] = {}
    for side in SIDES:
        of_side = [row for row in runs if row["side"] == side]
        for split, dashes in (("train", "-"), ("test", "--")):
            values = [_accuracies(row, split) for row in of_side]
            per_epoch = [(range(1, len(accuracies) + 1), accuracies) for accuracies in values]
            label = f"{side} {split}"
            lines += plots.seeds(per_epoch, label, side, dashes)
            lines.append(plots.dotted(theirs[f"{side}_{split}"], f"paper, {paper.where(network)}, {label}"))
        drops = [stats.decay(_accuracies(row, "test")) for row in of_side]
        falls[side] = [drop for drop in drops if math.isfinite(drop)]
    gaps = [small - large for small, large in pairs(runs, lambda row: (_accuracies(row, "test") or [None])[-1])]
    findings = [
        f"At the end the test accuracy of SB minus that of LB is {spread(gaps)} points. SB tests better: "
        f"{stats.verdict(gaps)}.",
        f"From its peak to the mean of the last tenth of the epochs, test accuracy falls by {spread(falls['SB'])} "
        f"points (SB) and {spread(falls['LB'])} points (LB).",
    ]
    if _is_the_papers(network, runs[0]):
        small, large = (theirs[f"{side}_test"].y for side in SIDES)
        findings.append(
            f"In the paper's Fig. 2 the difference is {plain(small[-1] - large[-1])} points, and the falls are "
            f"{plain(stats.decay(small))} and {plain(stats.decay(large))} points."
        )
    panel = plots.Panel(stats.where(runs[0]), "epoch", plots.ACCURACY, lines)
    figure = plots.panels(plots.beside_paper(panel, runs[0]["network"], network))
    caption = f"Training is solid, test dashed, the paper's curve of {paper.where(network)} dotted."
    return [Section("Accuracy per epoch (Fig. 2)", findings, figure=figure, caption=caption, name="fig2")]


def _is_the_papers(network: str, row: Row) -> bool:
    """Whether a curve of the paper has the network of a row, and may stand beside its data set."""
    return network == row["network"] and paper.beside(network, row["dataset"])


def _accuracies(row: Row, split: str) -> list[float | None]:
    return [percent(share) for share in row["history"][f"{split}_accuracy"]]


def sharpness_figure(rows: Sequence[Row], sharper: Claim, flatter: Claim) -> list[Section]:
    """Fig. 6: sharpness against cross entropy along training."""
    of_sides = {side: along(rows, side, 1e-3) for side in SIDES}
    if not any(of_sides.values()):
        return []
    network, theirs = paper.nearest("fig6_sharp_vs_xent", rows[0]["network"])
    panels = []
    for epsilon, name in EPSILONS:
        lines = []
        for side, marker in (("SB", "o"), ("LB", "s")):
            for curve in along(rows, side, epsilon).values():
                losses, sharpness = (list(map(positive, values)) for values in curve)
                lines.append(plots.Line(losses, sharpness, side, side, width=1.0, marker=marker, seeds=1))
            lines.append(plots.dotted(theirs[f"{side}_{name}"], f"paper, {paper.where(network)}, {side}"))
        title = f"{stats.where(rows[0])}, full space, epsilon {name}"
        panels.append(_against_loss(title, plots.SHARPNESS, lines))
    here, there = (
        f"from {plain(max(losses, default=math.nan))} to {plain(min(losses, default=math.nan))}"
        for losses in ([loss for losses, _ in of_sides["LB"].values() for loss in losses], theirs["LB_1e-3"].x)
    )
    in_paper = f", in the paper's Fig. 6 {there}" if _is_the_papers(network, rows[0]) else ""
    findings = [
        f"As the loss falls, LB gets sharper (rank correlation {spread(falls(rows, 'LB').tolist())} over seeds): "
        f"{sharper.verdict}.",
        f"As the loss falls, SB gets flatter (rank correlation {spread(falls(rows, 'SB').tolist())} over seeds): "
        f"{flatter.verdict}.",
        f"The training loss of LB runs {here}{in_paper}.",
    ]
    caption = "One point for each epoch measured; the loss falls to the right, as in the paper. Dotted: the paper."
    title = "Sharpness against cross entropy along training (Fig. 6)"
    return [Section(title, findings, figure=plots.panels(panels), caption=caption, name="fig6")]


def equal_loss_figure(rows: Sequence[Row], at_lowest: Claim) -> list[Section]:
    """SB and LB at the same training loss, a comparison that the paper does not make."""
    panels, findings = [], []
    for epsilon, name in EPSILONS:
        logs = {level: log_ratios(rows, epsilon, level) for level in LEVELS}
        means = {level: statistics.fmean(of_seeds.values()) for level, of_seeds in logs.items() if of_seeds}
        if not means:
            continue
        lines = []
        for seed in sorted({seed for of_seeds in logs.values() for seed in of_seeds}):
            ratios = [math.exp(logs[level].get(seed, math.nan)) for level in means]
            lines.append(plots.Line(list(means), ratios, "one seed", "here", width=0.8, marker=".", alpha=0.6))
        label = "geometric mean over the seeds that reach the loss"
        lines.append(plots.Line(list(means), list(map(math.exp, means.values())), label, "here", width=1.9))
        lines.append(plots.Line([max(means), min(means)], [1, 1], "equally sharp", "#999999", "--", 1.0))
        title = f"{stats.where(rows[0])}, full space, epsilon {name}"
        panels.append(_against_loss(title, "sharpness of LB / SB (times)\nabove 1: LB is sharper", lines))
        most = max(map(len, logs.values()))
        by_most = [level for level, of_seeds in logs.items() if len(of_seeds) == most]
        findings += [
            f"Epsilon {name}, at a training loss of {level:.2g}: {_times_as_sharp([means[level]])} (geometric "
            f"mean). LB is sharper: {stats.verdict(list(logs[level].values()))}."
            for level in dict.fromkeys((by_most[0], by_most[-1]))
        ]
    if not panels:
        return []
    findings.append(
        f"Epsilon 1e-3, at 1.05 times the lowest training loss that both reach: {at_lowest.here or DASH}. LB is "
        f"sharper: {at_lowest.verdict}."
    )
    caption = (
        "The sharpness of each run is taken where its training loss first crosses the level; both logarithms are "
        "interpolated between the measured epochs. The loss falls to the right. The paper compares SB and LB only "
        "at the end of training."
    )
    title = "SB and LB at the same training loss"
    return [Section(title, findings, figure=plots.panels(panels), caption=caption, name="equal_loss")]


def _against_loss(title: str, label: str, lines: "Sequence[plots.Line]") -> "plots.Panel":
    """Axes on which the training loss falls to the right."""
    return plots.Panel(
        title, "training loss f (nats), falling to the right", label, lines, log_x=True, log_y=True, flip_x=True
    )


def speedup_figure(rows: Sequence[Row]) -> list[Section]:
    """Appendix C: when large batches pay."""
    runs = {side: {r["seed"]: r for r in rows if r.get("history") and r["side"] == side} for side in SIDES}
    shared = [(small, runs["LB"][seed]) for seed, small in runs["SB"].items() if seed in runs["LB"]]
    ratios = [ratio for small, large in shared if (ratio := iterations(small, large)) is not None]
    if not ratios:
        return []
    small_batch, large_batch = (row["batch_size"] for row in shared[0])
    efficiency = [k / 100 for k in range(4, 101)]
    even = [small_batch / (share * large_batch) for share in efficiency]
    lines = [
        plots.Line(efficiency, even, "break-even, $B_s / (f_s(P) B_l)$", "here"),
        *(plots.Line([0.04, 1], [ratio, ratio], "$I_l / I_s$, one seed", "LB", "-", 0.9) for ratio in ratios),
    ]
    title = f"{stats.where(rows[0])}: LB is faster where its line is below the break-even"
    x_label = "parallel efficiency of small batches, $f_s(P)$"
    panel = plots.Panel(title, x_label, "iterations, LB / SB (times)", lines, log_x=True, log_y=True)
    pays = [small_batch / (large_batch * ratio) for ratio in ratios]
    more, less, turned = "LB", "SB", ratios
    if statistics.fmean(ratios) < 1:
        more, less, turned = "SB", "LB", [1 / ratio for ratio in ratios]
    findings = [
        f"{more} takes {spread(turned)} times the iterations of {less} to the best test accuracy that both reach. "
        f"The batches are {small_batch} (SB) and {large_batch} (LB).",
        "By the paper's model LB is faster if SB uses the processors with an efficiency below "
        f"{spread(pays)}" + (" (above 1: always)." if max(pays) > 1 else "."),
    ]
    caption = "Appendix C assumes that LB uses all processors fully, and SB with the efficiency on the axis."
    title = "When large batches pay (appendix C)"
    return [Section(title, findings, figure=plots.panels([panel]), caption=caption, name="speedup")]


def iterations(small: Row, large: Row) -> float | None:
    """Iterations of LB over those of SB to the best test accuracy that both reach; `None` if one has none."""
    accuracies = [np.array(row["history"]["test_accuracy"], float) for row in (small, large)]
    if not all(np.isfinite(values).any() for values in accuracies):
        return None
    goal = min(map(np.nanmax, accuracies))
    epochs = [1 + int(np.argmax(values >= goal)) for values in accuracies]
    return epochs[1] * (large["steps"] // large["epochs"]) / (epochs[0] * (small["steps"] // small["epochs"]))


if __name__ == "__main__":
    command.main("trajectory", run, figures, CONFIG, __doc__)
