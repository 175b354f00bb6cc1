"""Figs 3 and 7, planes, a path of low loss, distances and steep directions, from the rows of a run.

Each function takes rows, and returns a drawing with sentences computed from their numbers; None where the rows
have nothing for it.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from gengap import paper, plots
from gengap.figures import Figure
from gengap.findings import Section, verdict
from gengap.summaries import Row
from gengap.tables import plain, spread


def straight(rows: Sequence[Row]) -> Section | None:
    """Fig. 3: the straight line through both minima."""
    runs = _pairs(rows)
    if not runs:
        return None
    theirs = paper.figure("fig3_linear")[runs[0]["network"]]
    near, far = zip(*(_beyond(row["alphas"], row["linear"]["train_loss"]) for row in runs), strict=True)
    paper_near, paper_far = _beyond(theirs["train_xent"].x, theirs["train_xent"].y)
    steeper = [large > small for small, large in zip(near, far, strict=True)]
    means = [plain(statistics.fmean(side)) for side in (near, far)]
    between = [_barrier(row["alphas"], row["linear"]["train_loss"]) for row in runs]
    said = [
        *_ends(runs, "linear"),
        f"A quarter of the way beyond each the training loss rises by {means[0]} (SB) and {means[1]} (LB), "
        f"in the paper by {plain(paper_near)} and {plain(paper_far)}. Steeper beyond LB: "
        f"{verdict(steeper)}.",
        f"Between them the training loss rises above the higher end by {spread(between)}, in the paper by "
        f"{plain(_barrier(theirs['train_xent'].x, theirs['train_xent'].y))}.",
    ]
    caption = "alpha x_LB + (1 - alpha) x_SB: 0 is the small-batch minimum, 1 the large-batch one."
    title = "Straight line through both minima (Fig. 3)"
    return Section("fig3", title, _drawing(runs, "linear", theirs), caption, said)


def curved(rows: Sequence[Row]) -> Section | None:
    """Fig. 7: the curve through both minima."""
    runs = _pairs(rows)
    if not runs:
        return None
    theirs = paper.figure("fig7_curvilinear")[runs[0]["network"]]
    between = [_barrier(row["alphas"], row["curvilinear"]["train_loss"]) for row in runs]
    paper_between = _barrier(theirs["train_xent"].x, theirs["train_xent"].y)
    outside = [max(row["curvilinear"]["train_loss"]) for row in runs]
    said = [
        *_ends(runs, "curvilinear"),
        f"Between the minima the training loss rises above the higher end by {spread(between)}, in the paper by "
        f"{plain(paper_between)}. Whether that is more than 0.1 nats: "
        f"{verdict([(b > 0.1) == (paper_between > 0.1) for b in between])}.",
        f"Its highest value is {spread(outside)}; the paper's cannot pass 16.12, where Keras clips it.",
    ]
    caption = "sin(alpha pi / 2) x_LB + cos(alpha pi / 2) x_SB; at -1 it is -x_LB, at 2 it is -x_SB."
    title = "Curve through both minima (Fig. 7)"
    return Section("fig7", title, _drawing(runs, "curvilinear", theirs), caption, said)


def connection(rows: Sequence[Row]) -> Section | None:
    """The straight line between the minima and a curve of low loss."""
    runs = [row for row in _pairs(rows) if row.get("connection")]
    if not runs:
        return None
    panels = []
    for split in ("train", "test"):
        lines = []
        for name, words, colour, dashes in (
            ("straight", "straight line", "here", "-"),
            ("curve", "trained Bézier curve", "other", "--"),
        ):
            curves = [(row["connection"]["alphas"], row["connection"][name][f"{split}_loss"]) for row in runs]
            lines += plots.seeds(curves, words, colour, dashes)
        words = {"train": "training loss (nats)", "test": "test loss (nats)"}[split]
        panels.append(plots.Panel("", "along the path: SB at 0, LB at 1", words, lines, log_y=True))
    heights = {
        name: [_barrier(row["connection"]["alphas"], row["connection"][name]["train_loss"]) for row in runs]
        for name in ("straight", "curve")
    }
    worst = max(heights["straight"])
    real = "there is no barrier to go round" if worst < 0.01 else (
        "the barrier on the straight line is not one of the landscape"
        if max(heights["curve"]) < 0.1 * worst else "the curve does not get round it"
    )  # fmt: skip
    said = [
        f"The training loss rises above the higher end by {spread(heights['straight'])} nats on the straight line "
        f"and by {spread(heights['curve'])} on the curve: {real}."
    ]
    caption = (
        "A quadratic Bézier curve whose control point was trained for a low loss along it (Garipov et al. 2018)."
    )
    title = "Are the minima connected?"
    return Section("connection", title, plots.panels(panels), caption, said)


def planes(rows: Sequence[Row]) -> Section | None:
    """Contours on planes."""
    found = [plane for row in rows for plane in row.get("planes") or []]
    if not found:
        return None
    maps = []
    for plane in found:
        axes = ("direction 1", "direction 2")
        if len(plane["points"]) > 1:
            axes = ("from SB to LB", "across")
        points = {name: (float(x), float(y)) for name, (x, y) in plane["points"].items()}
        maps.append(plots.Map(plane["name"], *axes, plane["s"], plane["t"], plane["loss"], points))
    shares = []
    for plane in found[1:]:
        loss = np.array(plane["loss"], float)
        shares.append(f"{100 * np.nanmean(loss < 0.1):.0f} % {plane['name']}")
    said = [
        f"The training loss is below 0.1 nats on this share of the square drawn: {', '.join(shares)}. Filters of "
        "both have the same length as those of the minimum, so that the two squares compare (Li et al. 2018)."
    ]
    caption = (
        "Training loss, half a factor of ten between shades. In the first plane distances are Euclidean; the "
        "others have a filter-normalised random direction on each axis."
    )
    return Section("planes", "Planes through the minima", plots.maps(maps), caption, said)


def neighbourhood(rows: Sequence[Row]) -> Section | None:
    """Section 2's claims without a figure: distances from the start, and the share of steep directions."""
    runs = _pairs(rows)
    if not runs:
        return None
    lines = []
    for method in ("SB", "LB"):
        for row in runs:
            near = row["directions"][method]
            rises = sorted(max(loss - near["base_loss"], 1e-9) for loss in near["losses"])
            shares_below = [(i + 1) / len(rises) for i in range(len(rises))]
            lines.append(plots.Line(rises, shares_below, f"{method}, random directions", method, width=1.2))
    highest = {
        m: [row["directions"][m]["highest"] - row["directions"][m]["base_loss"] for row in runs]
        for m in ("SB", "LB")
    }
    lines += [
        plots.Line([rise, rise], [0, 1], f"{method}, steepest found", method, ":", 1.2)
        for method in ("SB", "LB") for rise in highest[method]
    ]  # fmt: skip
    panel = plots.Panel("", "rise of the training loss (nats)", "share of directions below", lines, log_x=True)
    shares, over_highest = (
        {m: [v for row in runs if math.isfinite(v := 100 * share(row["directions"][m]))] for m in ("SB", "LB")}
        for share in (_steep, _mean_over_highest)
    )
    length = statistics.fmean(row["directions"]["LB"]["length"] for row in runs)
    ratios = [row["distance"]["SB from start"] / row["distance"]["LB from start"] for row in runs]
    apart = [row["distance"]["SB from LB"] for row in runs]
    low, high = paper.DISTANCE_RATIO
    said = [
        f"SB ends {spread(ratios)} times as far from the start as LB; the paper has {low:g} to {high:g}: "
        f"{verdict([low <= ratio <= high for ratio in ratios])}.",
        f"SB and LB end {spread(apart)} from each other (Euclidean).",
        f"At a distance of {plain(length)}, that of the corners of the metric's box, the loss rises by "
        f"{spread(highest['SB'])} (SB) and {spread(highest['LB'])} (LB) nats in the steepest direction found.",
        f"The mean rise in random directions is {spread(over_highest['SB'])} % (SB) and "
        f"{spread(over_highest['LB'])} % (LB) of that. It would be k / n if f rose along k of n orthogonal "
        "directions and equally along each. The rise is more than twice the median rise along "
        f"{spread(shares['SB'])} % (SB) and {spread(shares['LB'])} % (LB) of the random directions (minima whose "
        "median is above 0). The paper has 'e.g. 5 %' of the space for LB, without saying how it sampled.",
    ]
    caption = (
        "Rises in random directions, each line one minimum, and in the steepest direction that an ascent found. "
        "Directions along which the loss falls, or rises by less than 1e-9, stand at the left."
    )
    title = "Distances and steep directions (section 2)"
    return Section("neighbourhood", title, plots.panels([panel]), caption, said)


def _steep(near: Row) -> float:
    """The share of random directions along which the loss rises by more than twice the median rise, if above 0."""
    rises = [loss - near["base_loss"] for loss in near["losses"]]
    median = statistics.median(rises)
    return statistics.fmean(rise > 2 * median for rise in rises) if median > 0 else math.nan


def _mean_over_highest(near: Row) -> float:
    return (statistics.fmean(near["losses"]) - near["base_loss"]) / (near["highest"] - near["base_loss"])


def _pairs(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["method"] == "pair"]


def _ends(runs: Sequence[Row], path: str) -> list[str]:
    """How far the ends of a path are from the minima's own losses."""
    errors = []
    for row in runs:
        for split in ("train", "test"):
            for alpha, method in ((0.0, "SB"), (1.0, "LB")):
                where = [i for i, a in enumerate(row["alphas"]) if math.isclose(a, alpha, abs_tol=1e-6)]
                if where:
                    own = row["ends"][method][split]
                    errors.append(abs(row[path][f"{split}_loss"][where[0]] - own) / own)
    return [f"At the ends it has the minima's own losses to {max(errors):.1g} (relative)."] if errors else []


def _beyond(alphas: Sequence[float], losses: Sequence[float | None]) -> tuple[float, float]:
    """f(-1/4) - f(0) and f(5/4) - f(1), between points by interpolation."""
    at = np.interp([-0.25, 0.0, 1.0, 1.25], alphas, [math.nan if v is None else v for v in losses])
    return float(at[0] - at[1]), float(at[3] - at[2])


def _barrier(alphas: Sequence[float], losses: Sequence[float | None]) -> float:
    """How far the loss rises between 0 and 1 above the higher of the two ends."""
    inside = [v for a, v in zip(alphas, losses, strict=True) if v is not None and -1e-6 <= a <= 1 + 1e-6]
    ends = np.interp([0.0, 1.0], alphas, [math.nan if v is None else v for v in losses])
    return max(0.0, max(inside) - float(max(ends)))


def _drawing(runs: Sequence[Row], path: str, theirs: dict[str, paper.Curve]) -> Figure:
    network = runs[0]["network"]
    panels = []
    for what, theirs_name, words, factor in (
        ("loss", "xent", "cross entropy (nats)", 1),
        ("accuracy", "acc", "accuracy (%)", 100),
    ):
        lines = []
        for split, dashes, dots in (("train", "-", (0, (1, 1))), ("test", "--", (0, (1, 3)))):
            curves = [
                (row["alphas"], [math.nan if v is None else factor * v for v in row[path][f"{split}_{what}"]])
                for row in runs
            ]
            lines += plots.seeds(curves, split, "here", dashes)
            curve = theirs[f"{split}_{theirs_name}"]
            lines.append(plots.Line(curve.x, curve.y, f"paper, {network}, {split}", "paper", dots, 1.1))
        panels.append(plots.Panel(f"{network} on {runs[0]['dataset']}", "alpha", words, lines,
                                    marks={0.0: "SB", 1.0: "LB"}))  # fmt: skip
    return plots.panels(panels)
