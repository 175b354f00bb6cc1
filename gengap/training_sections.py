"""Figs 2, 4, 5 and 6 and appendix C from the rows of a run, the paper's curve under ours, and what of it agrees.

Each function takes rows, and returns a drawing with sentences computed from their numbers; None where the rows
have nothing for it.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gengap import paper, plots
from gengap.findings import Section, threshold, verdict
from gengap.statistics import at_loss, trend
from gengap.summaries import Row, compare, number
from gengap.tables import plain, spread

_TRAIN, _TEST = "-", "--"
_EPSILONS = ((1e-3, "1e-3"), (5e-4, "5e-4"))
_THEIRS: dict[str, Any] = {"train": (0, (1, 1)), "test": (0, (1, 3))}


def accuracy(rows: Sequence[Row]) -> Section | None:
    """Fig. 2: accuracy per epoch."""
    runs = [row for row in rows if row.get("history") and row["method"] in ("SB", "LB")]
    if not runs:
        return None
    network, theirs = _paper("fig2_curves", runs[0])
    lines, ends, peaks = [], {}, {}
    for method in ("SB", "LB"):
        for split, dashes in (("train", _TRAIN), ("test", _TEST)):
            curves = []
            for row in [r for r in runs if r["method"] == method]:
                shares = [_times(100, share) for share in row["history"].get(f"{split}_accuracy") or []]
                curves.append((list(range(1, len(shares) + 1)), shares))
                if split == "test" and shares and shares[-1] is not None:
                    ends[method, row["seed"]] = shares[-1]
                    peaks[method, row["seed"]] = max(s for s in shares if s is not None)
            lines += plots.seeds(curves, f"{method} {split}", method, dashes)
            curve = theirs[f"{method}_{split}"]
            colour = "paper" if method == "SB" else "paper, other"
            label = f"paper, {network}, {method} {split}"
            lines.append(plots.Line(curve.x, curve.y, label, colour, _THEIRS[split], 1.1))
    small, large = ({seed: v for (m, seed), v in ends.items() if m == method} for method in ("SB", "LB"))
    gaps = [small[seed] - large[seed] for seed in small if seed in large]
    paper_gap = theirs["SB_test"].y[-1] - theirs["LB_test"].y[-1]
    drops = {method: [peaks[key] - ends[key] for key in ends if key[0] == method] for method in ("SB", "LB")}
    said = [
        f"Test accuracy at the end, SB - LB: {spread(gaps)} points here, {plain(paper_gap)} in the paper's Fig. 2 "
        f"({network}). {compare(small, large, 'SB higher than LB')}: {verdict([gap > 0 for gap in gaps])}.",
        f"From its peak to the end test accuracy falls by {spread(drops['SB'])} points (SB) and "
        f"{spread(drops['LB'])} (LB); the paper sees no peak after which it decays.",
    ]
    panels = _beside(plots.Panel(_where(runs[0]), "epoch", "accuracy (%)", lines), network, runs[0])
    caption = "Training solid, test dashed; thin lines are seeds, thick ones their mean. Dots: the paper's curve."
    return Section("fig2", "Accuracy per epoch (Fig. 2)", plots.panels(panels), caption, said)


def batch_size(rows: Sequence[Row]) -> Section | None:
    """Fig. 4: test accuracy and sharpness against batch size."""
    runs = [row for row in rows if row.get("share") and row.get("diverged_at") is None]
    if not runs:
        return None
    network, theirs = _paper("fig4_batchsize", runs[0])
    size = {"F2": 721_329, "C1": 50_000}[network]  # training sets, Table 5
    seeds = sorted({row["seed"] for row in runs})

    def curves(value: Callable[[Row], float | None]) -> list[tuple[list[float], list[float | None]]]:
        every = [sorted((r for r in runs if r["seed"] == seed), key=lambda r: r["share"]) for seed in seeds]
        return [([100 * row["share"] for row in one], [value(row) for row in one]) for one in every]

    accuracies = curves(lambda row: _times(100, number(row.get("test_accuracy"))))
    found = threshold(
        [x for xs, ys in accuracies for x, y in zip(xs, ys, strict=True) if y is not None],
        [y for _, ys in accuracies for y in ys if y is not None],
    )
    curve = theirs["test_acc"]
    share = [100 * x / size for x in curve.x]
    same = threshold(share, curve.y)
    marks = {found.batch_size: "threshold, here"} if found else {}
    marks |= {same.batch_size: f"threshold,\npaper's {network}"} if same else {}
    panels = _beside(
        plots.Panel(f"test accuracy, {_where(runs[0])}", "batch size (% of the training set)", "accuracy (%)",
                      [*plots.seeds(accuracies, "here", "here", marker="o"),
                       plots.Line(share, curve.y, f"paper, {network}", "paper", _THEIRS["train"], 1.1)],
                      log_x=True, marks=marks), network, runs[0]
    )  # fmt: skip
    rises = []
    for epsilon, name in _EPSILONS:
        values = curves(lambda row: _sharpness(row, epsilon))  # noqa: B023
        curve = theirs[f"sharp_{name}"]
        lines = [*plots.seeds(values, "here", "here", marker="o"),
                 plots.Line([100 * B / size for B in curve.x], curve.y, f"paper, {network}", "paper",
                              _THEIRS["train"], 1.1)]  # fmt: skip
        panels.append(plots.Panel(f"full space, epsilon {name}", "batch size (% of the training set)",
                                    "sharpness (% of 1 + f)", lines, log_x=True, log_y=True))  # fmt: skip
        rises += [trend(xs, ys) for xs, ys in values]
    known = [rise for rise in rises if math.isfinite(rise)]
    how = "a constant that turns into a straight descent in log batch size, by least squares over all seeds"
    if found is None:
        said = ["Test accuracy falls nowhere with the batch size, or there are too few to tell."]
    else:
        weak = "" if found.p_value < 0.05 else ", so that there may be no fall at all"
        said = [
            f"Test accuracy begins to fall at {plain(found.batch_size)} % of the training set, by "
            f"{plain(-found.slope)} points for each factor of ten (F test against no fall: p = "
            f"{found.p_value:.2g}{weak}); fitted is {how}."
        ]
    words = {"F2": 15_000, "C1": 500}[network]
    said.append(
        f"The same fit to the paper's curve of {network} gives {plain(same.batch_size if same else None)} %; the "
        f"paper's text has about {words} examples, {plain(100 * words / size)} %, as where sharpness has risen."
    )
    ranks = f"{min(known):.2f} to {max(known):.2f}" if known else "-"
    said.append(
        f"Sharpness rises with the batch size: rank correlation {ranks} over seeds and epsilons: "
        f"{verdict([rise > 0 for rise in known], 'of them')}."
    )
    caption = (
        "Every batch size trained for the same number of epochs. The axis is a share of the training set, since "
        "the paper's data sets are larger. Thin lines are seeds, thick ones their mean."
    )
    return Section(
        "fig4", "Accuracy and sharpness against batch size (Fig. 4)", plots.panels(panels), caption, said
    )


def warm_start(rows: Sequence[Row]) -> Section | None:
    """Fig. 5: LB begun from the iterates of SB."""
    starts = [row for row in rows if row["method"] == "LB" and row.get("epoch") and row.get("diverged_at") is None]
    base = {row["seed"]: row["history"] for row in rows if row["method"] == "SB"}
    if not starts or not base:
        return None
    network, theirs = _paper("fig5_warmstart", starts[0])
    every = [sorted((r for r in starts if r["seed"] == s), key=lambda r: r["epoch"]) for s in sorted(base)]
    every = [one for one in every if one]
    accuracies = [
        ([row["epoch"] for row in one], [_times(100, number(row.get("test_accuracy"))) for row in one])
        for one in every
    ]
    small = [
        (x, [_times(100, base[one[0]["seed"]]["test_accuracy"][epoch - 1]) for epoch in x])
        for (x, _), one in zip(accuracies, every, strict=True)
    ]
    panels = _beside(
        plots.Panel(f"test accuracy, {_where(starts[0])}", "epoch of SB that LB begins from", "accuracy (%)",
                      [*plots.seeds(small, "SB there", "SB", marker="o"),
                       *plots.seeds(accuracies, "LB begun there", "LB", marker="s"),
                       *_dotted(theirs["SB_test"], f"paper, {network}, SB", "paper"),
                       *_dotted(theirs["LB_piggyback_test"], f"paper, {network}, LB", "paper, other")],
                      log_x=True), network, starts[0]
    )  # fmt: skip
    falls = []
    for epsilon, name in _EPSILONS:
        values = [([row["epoch"] for row in one], [_sharpness(row, epsilon) for row in one]) for one in every]
        lines = [*plots.seeds(values, "LB begun there", "LB", marker="s"),
                 *_dotted(theirs[f"sharp_{name}"], f"paper, {network}, LB", "paper, other")]  # fmt: skip
        panels.append(plots.Panel(f"full space, epsilon {name}", "epoch of SB that LB begins from",
                                    "sharpness (% of 1 + f)", lines, log_x=True, log_y=True))  # fmt: skip
        falls += [trend(x, y) for x, y in values]
    known = [fall for fall in falls if math.isfinite(fall)]
    above = [
        b >= a
        for (_, ours), (_, there) in zip(accuracies, small, strict=True)
        for b, a in zip(ours, there, strict=True)
        if a is not None and b is not None
    ]
    ranks = f"{min(known):.2f} to {max(known):.2f}" if known else "-"
    said = [
        f"LB begun from an iterate of SB tests at least as well as that iterate in {sum(above)} of {len(above)} "
        f"starts; in the paper's curve of {network} in "
        f"{sum(b >= a for a, b in zip(theirs['SB_test'].y, theirs['LB_piggyback_test'].y, strict=True))} of "
        f"{len(theirs['SB_test'].y)}.",
        f"The later LB begins, the flatter it ends: rank correlation of sharpness with the epoch {ranks} over "
        f"seeds and epsilons: {verdict([fall < 0 for fall in known], 'of them')}.",
    ]
    caption = "Above the epoch of SB from whose parameters LB began, with a new optimiser state."
    return Section(
        "fig5", "Large batches begun from small-batch iterates (Fig. 5)", plots.panels(panels), caption, said
    )


def along_training(rows: Sequence[Row]) -> Section | None:
    """Fig. 6: sharpness against cross entropy along training."""
    points = _points(rows)
    if not points:
        return None
    network, theirs = _paper("fig6_sharp_vs_xent", next(iter(points.values()))[0])
    panels, ranks = [], {}
    for epsilon, name in _EPSILONS:
        lines = []
        for method in ("SB", "LB"):
            for label, (_, seed), one in ((method, key, p) for key, p in points.items() if key[0] == method):
                x = [number(row.get("train_loss")) or math.nan for row in one]
                y = [_sharpness(row, epsilon) for row in one]
                lines.append(plots.Line(x, y, label, method, width=1.0, marker="o" if method == "SB" else "s"))
                if epsilon == 1e-3:
                    ranks[method, seed] = trend([-v for v in x], y)
            lines += _dotted(theirs[f"{method}_{name}"], f"paper, {network}, {method}",
                             "paper" if method == "SB" else "paper, other")  # fmt: skip
        panels.append(plots.Panel(f"epsilon {name}", "training loss f (nats)", "sharpness (% of 1 + f)", lines,
                                    log_x=True, log_y=True, flip_x=True))  # fmt: skip
    losses = [number(row.get("train_loss")) for key, one in points.items() if key[0] == "LB" for row in one]
    reached = [loss for loss in losses if loss]
    ours, paper_losses = ((plain(max(v)), plain(min(v))) for v in (reached, theirs["LB_1e-3"].x))
    sides = {m: [r for (method, _), r in ranks.items() if method == m and math.isfinite(r)] for m in ("SB", "LB")}
    said = [
        f"As the loss falls, LB gets sharper: rank correlation {spread(sides['LB'])} over seeds: "
        f"{verdict([r > 0 for r in sides['LB']])}. Its losses run from {ours[0]} to {ours[1]} here, "
        f"from {paper_losses[0]} to {paper_losses[1]} in the paper's Fig. 6 ({network}).",
        f"As the loss falls, SB gets flatter in the end: rank correlation {spread(sides['SB'])}: "
        f"{verdict([r < 0 for r in sides['SB']])}.",
    ]
    caption = "One line for each seed; the loss falls to the right, as in the paper."
    title = "Sharpness against cross entropy along training (Fig. 6)"
    return Section("fig6", title, plots.panels(panels), caption, said)


def equal_loss(rows: Sequence[Row]) -> Section | None:
    """SB against LB at the same training loss, which the paper does not compare."""
    # at the starting point the loss is far from that after the first epoch, too far to interpolate between
    points = {key: [row for row in one if row["epoch"] > 0] for key, one in _points(rows).items()}
    seeds = sorted({seed for method, seed in points} & {seed for m, seed in points if m == "LB"})
    levels = [10 ** (-k / 4) for k in range(2, 21)]
    panels, said = [], []
    for epsilon, name in _EPSILONS:
        curves: list[tuple[list[float], list[float]]] = []
        pairs: dict[float, list[float]] = {level: [] for level in levels}
        for seed in [s for s in seeds if ("SB", s) in points]:
            ratios: list[float] = []
            for level in levels:
                small, large = (
                    at_loss(
                        [number(row.get("train_loss")) for row in points[method, seed]],
                        [_sharpness(row, epsilon) for row in points[method, seed]],
                        level,
                    )
                    for method in ("SB", "LB")
                )
                ratios.append(large / small)
                if math.isfinite(ratios[-1]):
                    pairs[level].append(ratios[-1])
            curves.append((levels, ratios))
        shared = [(level, math.exp(statistics.fmean(map(math.log, r)))) for level, r in pairs.items() if r]
        if not shared:
            continue
        lines = [plots.Line(x, y, "one seed", "here", width=0.8, marker=".", alpha=0.6) for x, y in curves]
        x, y = zip(*shared, strict=True)
        lines.append(plots.Line(x, y, "geometric mean over the seeds that reach the loss", "here", width=1.9))
        lines.append(plots.Line([levels[0], levels[-1]], [1, 1], "equally sharp", "paper, other", ":", 1.0))
        panels.append(plots.Panel(f"epsilon {name}", "training loss f (nats)", "sharpness of LB / SB", lines,
                                    log_x=True, log_y=True, flip_x=True))  # fmt: skip
        full = [level for level, ratios in pairs.items() if len(ratios) == max(map(len, pairs.values()))]
        for level in dict.fromkeys((full[0], full[-1])):
            above = pairs[level]
            times = plain(statistics.geometric_mean(above))
            said.append(
                f"Epsilon {name}, at a training loss of {level:.2g}: LB is {times} times as sharp as SB "
                f"(geometric mean), sharper in {sum(r > 1 for r in above)} of {len(above)} seeds."
            )
    if not panels:
        return None
    caption = (
        "Each run where its training loss first crosses the level, interpolated in both logarithms between the "
        "epochs at which it was measured. The paper compares SB and LB at the end of training only."
    )
    return Section("equal_loss", "SB and LB at the same training loss", plots.panels(panels), caption, said)


def speedup(rows: Sequence[Row]) -> Section | None:
    """Appendix C: when large batches pay."""
    runs = {(row["method"], row["seed"]): row for row in rows if row.get("history")}
    ratios, sizes = [], None
    for seed in sorted({seed for _, seed in runs}):
        pair = [runs.get((method, seed)) for method in ("SB", "LB")]
        if None in pair:
            continue
        curves = [[number(v) for v in row["history"].get("test_accuracy") or []] for row in pair if row]
        best = [max((v for v in curve if v is not None), default=math.nan) for curve in curves]
        if not all(map(math.isfinite, best)):
            continue
        goal = min(best)
        epochs = [next(e for e, v in enumerate(curve, 1) if v is not None and v >= goal) for curve in curves]
        steps = [e * (row["steps"] // row["epochs"]) for e, row in zip(epochs, pair, strict=True) if row]
        ratios.append(steps[1] / steps[0])
        sizes = [row["batch_size"] for row in pair if row]
    if not ratios or sizes is None:
        return None
    efficiency = [k / 100 for k in range(4, 101)]
    line = [sizes[0] / (f * sizes[1]) for f in efficiency]
    lines = [
        plots.Line(efficiency, line, "break-even, $B_s / (f_s(P) B_l)$", "here"),
        *(plots.Line([0.04, 1], [r, r], "$I_l / I_s$, one seed", "LB", "-", 0.9) for r in ratios),
    ]
    panel = plots.Panel("LB is faster where its line lies below the break-even",
                          "parallel efficiency of small batches, $f_s(P)$", "iterations, LB / SB",
                          lines, log_x=True, log_y=True)  # fmt: skip
    pays = [sizes[0] / (sizes[1] * ratio) for ratio in ratios]
    said = [
        f"To the best test accuracy that both reach, LB ({sizes[1]}) takes {spread(ratios)} times the iterations "
        f"of SB ({sizes[0]}). By the model it is the faster one once SB uses the processors with an "
        f"efficiency below {spread(pays)}" + (" (above 1: always)." if max(pays) > 1 else ".")
    ]
    caption = "Appendix C: large batches use all processors fully, small ones with the efficiency on the axis."
    return Section("speedup", "When large batches pay (appendix C)", plots.panels([panel]), caption, said)


def _beside(panel: plots.Panel, network: str, row: Row) -> list[plots.Panel]:
    """The panel, or where the paper's curves in it are another network's, one for those beside it."""
    if network == row["network"]:
        return [panel]
    theirs = [line for line in panel.lines if line.colour.startswith("paper")]
    ours = [line for line in panel.lines if not line.colour.startswith("paper")]
    own = {x: words for x, words in panel.marks.items() if "paper" not in words}
    marks = {x: words for x, words in panel.marks.items() if "paper" in words}
    name = {"F2": "F2 on TIMIT", "C1": "C1 on CIFAR-10"}[network]
    return [
        panel._replace(lines=ours, marks=own),
        panel._replace(title=f"paper, {name}", lines=theirs, marks=marks),
    ]


def _points(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """The measurements along training of each method and seed, by epoch."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.get("epoch") is not None and row["method"] in ("SB", "LB") and row.get("sharpness"):
            found.setdefault((row["method"], row["seed"]), []).append(row)
    return {key: sorted(found[key], key=lambda row: row["epoch"]) for key in sorted(found, reverse=True)}


def _sharpness(row: Row, epsilon: float) -> float | None:
    """The full-space sharpness of a row; None where it is not positive, for a logarithmic axis."""
    for entry in row.get("sharpness") or []:
        if entry["space"] == "full" and math.isclose(entry["epsilon"], epsilon, rel_tol=1e-6):
            value = number(entry.get("value"))
            return value if value is not None and value > 0 else None
    return None


def _paper(name: str, row: Row) -> tuple[str, Mapping[str, paper.Curve]]:
    return paper.nearest(name, str(row["network"]))


def _dotted(curve: paper.Curve, label: str, colour: str) -> list[plots.Line]:
    return [plots.Line(curve.x, curve.y, label, colour, _THEIRS["train"], 1.1)]


def _where(row: Row) -> str:
    return f"{row['network']} on {row['dataset']}"


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value
