"""Along training: accuracy per epoch (Fig. 2), sharpness against cross entropy (Fig. 6), when large batches pay.

    make exp-trajectory
    make exp-trajectory ARGS="--network c1 --dataset cifar10 --epochs 100"

SB and LB are trained for a fixed number of epochs, 100 in the paper, and the sharpness in the full space is
measured after some of them. From it comes a comparison that the paper does not make: SB against LB at the same
training loss.
"""

import math
import statistics
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import command, training
from experiments.training import Training
from gengap import ascent, minima, paper, plots, records, report, sharpness
from gengap import statistics as stats
from gengap.report import number, plain, positive, sharpness_at, spread

EPSILONS = ((1e-3, "1e-3"), (5e-4, "5e-4"))


class Config(NamedTuple):
    """Sharpness along the training of one network, which runs for all its epochs."""

    training: Training = Training(num_seeds=3, epochs=40)
    points: int = 12
    """epochs after which to measure, evenly spaced on a logarithmic scale"""
    max_evaluations: int = 24
    """gradients to spend on each maximum"""


CONFIG = Config()
SMOKE = CONFIG._replace(training=Training(num_seeds=1, train_size=400, epochs=3), points=2, max_evaluations=3)


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> records.Run:
    """Train, measure and record: a row for each method, seed and epoch, and one with the history of each."""
    setting, ds = training.begin(config.training, data_dir, all_epochs=True)
    if config.max_evaluations < 1:
        raise ValueError(f"max_evaluations is {config.max_evaluations}; it must be at least 1")
    if config.points < 2:
        raise ValueError(f"points is {config.points}; it must be at least 2")
    wanted = sorted(set(np.geomspace(1, setting.epochs, config.points).round().astype(int).tolist()))
    model = training.model(setting, ds)
    loss, evaluate = training.loss(setting, model, ds), training.evaluate(setting, model, ds)
    key = jax.random.key(setting.seed)
    rows = 2 * setting.num_seeds * (len(wanted) + 2)
    with records.opened("trajectory", command.flat(config._replace(training=setting)), out, fresh=fresh) as run:
        if len(run.rows) < rows:
            epochs = 2 * setting.num_seeds * setting.epochs
            training.say_how_long(setting, model, ds, 2 * rows * config.max_evaluations, epochs)
        for seed in range(setting.num_seeds):
            for method, size in training.sizes(setting).items():
                row = training.row(setting, ds, method, seed)
                if run.has({**row, "epoch": None}):
                    continue
                words = f"{row['network']} seed {seed + 1} of {setting.num_seeds}, {method}"
                along = minima.find_along(
                    *(model, ds, key, size, wanted),
                    progress=words,
                    **training.how(setting, ds, size, seed, run.store),
                )
                points = {0: minima.starting_point(model, ds, key, seed)} | {
                    one.epochs: one.params for one in along
                }
                for epoch, params in points.items():
                    if run.has({**row, "epoch": epoch}):
                        continue
                    train_loss, train_accuracy = evaluate["train"](params)
                    epsilons = [epsilon for epsilon, _ in EPSILONS]
                    how: Any = {"epsilon": epsilons, "max_evaluations": config.max_evaluations}
                    measured = {"train_loss": train_loss, "train_accuracy": train_accuracy, "epsilons": epsilons}
                    if np.isfinite(train_loss):
                        how["progress"] = f"{words}, epoch {epoch}, full space"
                        of_full = training.key_of(setting, seed, "full")
                        measured["full"] = sharpness.full_space(loss, params, of_full, **how)
                    run.add({**row, "epoch": epoch, **measured, "maximiser": ascent.ASCENT_VERSION})
                    command.say_what_is_left(run, rows)
                last = along[-1]
                ended = {name: getattr(last, name) for name in ("batch_size", "steps", "diverged_at", "history")}
                run.add({**row, "epochs": last.epochs, **ended})
        return run


@report.apart
def figures(rows: list[records.Row]) -> list[report.Section]:
    """Figs 2 and 6, the comparison at equal loss and appendix C; each where there are rows for it."""
    lost = report.diverged(rows)
    kept = [row for row in rows if row.get("diverged_at") is None]
    made = [draw(kept) for draw in (_accuracy, _along_training, _equal_loss, _speedup)]
    sections = [report.Section("Training that diverged", lost)] if lost else []
    return [*sections, *(section for section in made if section is not None)]


def _accuracy(rows: Sequence[records.Row]) -> report.Section | None:
    """Fig. 2: accuracy per epoch."""
    runs = [row for row in rows if row.get("history") and row["method"] in ("SB", "LB")]
    if not runs:
        return None
    network, theirs = paper.nearest("fig2_curves", runs[0]["network"])
    lines: list[plots.Line] = []
    ends: dict[str, dict[int, float]] = {"SB": {}, "LB": {}}
    falls: dict[str, list[float]] = {"SB": [], "LB": []}
    for method in ends:
        for split, dashes in (("train", "-"), ("test", "--")):
            curves = []
            for row in [r for r in runs if r["method"] == method]:
                shares = [report.percent(share) for share in row["history"].get(f"{split}_accuracy") or []]
                curves.append((list(range(1, len(shares) + 1)), shares))
                if split == "test" and shares and shares[-1] is not None:
                    ends[method][row["seed"]] = shares[-1]
                    falls[method].append(stats.decay(shares))
            lines += plots.seeds(curves, f"{method} {split}", method, dashes)
            curve = theirs[f"{method}_{split}"]
            colour = "paper" if method == "SB" else "paper, other"
            label = f"paper, {network}, {method} {split}"
            lines.append(plots.dotted(curve, label, colour, gap=1 if split == "train" else 3))
    gaps = [end - ends["LB"][seed] for seed, end in ends["SB"].items() if seed in ends["LB"]]
    paper_gap = theirs["SB_test"].y[-1] - theirs["LB_test"].y[-1]
    said = [
        f"Test accuracy at the end, SB - LB: {spread(gaps)} points here, {plain(paper_gap)} in the paper's Fig. 2 "
        f"({network}). SB higher than LB: {stats.verdict(gaps)}.",
        f"From its peak to the mean of the last tenth of the epochs test accuracy falls by {spread(falls['SB'])} "
        f"points (SB) and {spread(falls['LB'])} (LB), in the paper by "
        f"{plain(stats.decay(theirs['SB_test'].y))} and {plain(stats.decay(theirs['LB_test'].y))}.",
    ]
    panels = plots.beside_paper(
        plots.Panel(stats.where(runs[0]), "epoch", "accuracy (%)", lines), runs[0]["network"], network
    )
    caption = "Training solid, test dashed; thin lines are seeds, thick ones their mean. Dots: the paper's curve."
    return report.Section(
        "Accuracy per epoch (Fig. 2)", said, figure=plots.panels(panels), caption=caption, name="fig2"
    )


def _along_training(rows: Sequence[records.Row]) -> report.Section | None:
    """Fig. 6: sharpness against cross entropy along training."""
    points = points_along(rows)
    if not points:
        return None
    network, theirs = paper.nearest("fig6_sharp_vs_xent", next(iter(points.values()))[0]["network"])
    panels = []
    ranks: dict[str, list[float]] = {"SB": [], "LB": []}
    for epsilon, name in EPSILONS:
        lines = []
        for method in ("SB", "LB"):
            for one in (p for key, p in points.items() if key[0] == method):
                x = [number(row.get("train_loss")) for row in one]
                y = [sharpness_at(row, epsilon) for row in one]
                loss, value = ([positive(v) for v in values] for values in (x, y))
                lines.append(
                    plots.Line(loss, value, method, method, width=1.0, marker="o" if method == "SB" else "s")
                )
                if epsilon == 1e-3:
                    ranks[method].append(-stats.trend(x, y))
            colour = "paper" if method == "SB" else "paper, other"
            lines.append(plots.dotted(theirs[f"{method}_{name}"], f"paper, {network}, {method}", colour))
        panels.append(plots.Panel(f"epsilon {name}", "training loss f (nats)", "sharpness (% of 1 + f)", lines,
                                    log_x=True, log_y=True, flip_x=True))  # fmt: skip
    losses = [number(row.get("train_loss")) for key, one in points.items() if key[0] == "LB" for row in one]
    reached = [loss for loss in losses if loss is not None]
    ours, paper_losses = (
        (plain(max(v, default=math.nan)), plain(min(v, default=math.nan))) for v in (reached, theirs["LB_1e-3"].x)
    )
    known = {method: [rank for rank in own if math.isfinite(rank)] for method, own in ranks.items()}
    said = [
        f"As the loss falls, LB gets sharper: rank correlation {spread(known['LB'])} over seeds: "
        f"{stats.verdict(known['LB'])}. Its losses run from {ours[0]} to {ours[1]} here, "
        f"from {paper_losses[0]} to {paper_losses[1]} in the paper's Fig. 6 ({network}).",
        f"As the loss falls, SB gets flatter in the end: rank correlation {spread(known['SB'])}: "
        f"{stats.verdict([-rank for rank in known['SB']])}.",
    ]
    caption = "One line for each seed; the loss falls to the right, as in the paper."
    title = "Sharpness against cross entropy along training (Fig. 6)"
    return report.Section(title, said, figure=plots.panels(panels), caption=caption, name="fig6")


def _equal_loss(rows: Sequence[records.Row]) -> report.Section | None:
    """SB against LB at the same training loss, which the paper does not compare."""
    # at the starting point the loss is far from that after the first epoch, too far to interpolate between
    points = {key: [row for row in one if row["epoch"] > 0] for key, one in points_along(rows).items()}
    seeds = sorted({seed for method, seed in points} & {seed for m, seed in points if m == "LB"})
    levels = [10 ** (-k / 4) for k in range(2, 21)]
    panels, said = [], []
    for epsilon, name in EPSILONS:
        curves: list[tuple[list[float], list[float]]] = []
        pairs: dict[float, list[float]] = {level: [] for level in levels}
        for seed in [s for s in seeds if ("SB", s) in points]:
            ratios: list[float] = []
            for level in levels:
                small, large = (
                    stats.at_loss(
                        [number(row.get("train_loss")) for row in points[method, seed]],
                        [sharpness_at(row, epsilon) for row in points[method, seed]],
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
                f"(geometric mean). LB sharper: {stats.verdict(list(map(math.log, above)))}."
            )
    if not panels:
        return None
    caption = (
        "Each run where its training loss first crosses the level, interpolated in both logarithms between the "
        "epochs at which it was measured. The paper compares SB and LB at the end of training only."
    )
    return report.Section(
        "SB and LB at the same training loss",
        said,
        figure=plots.panels(panels),
        caption=caption,
        name="equal_loss",
    )


def _speedup(rows: Sequence[records.Row]) -> report.Section | None:
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
    return report.Section(
        "When large batches pay (appendix C)", said, figure=plots.panels([panel]), caption=caption, name="speedup"
    )


def points_along(rows: Sequence[records.Row]) -> dict[tuple[str, int], list[records.Row]]:
    """The measurements along training of each method and seed of comparable rows, by epoch."""
    stats.check_comparable(rows)
    found: dict[tuple[str, int], list[records.Row]] = {}
    for row in rows:
        if row.get("epoch") is not None and row.get("full"):
            found.setdefault((row["method"], row["seed"]), []).append(row)
    return {key: sorted(found[key], key=lambda row: row["epoch"]) for key in sorted(found, reverse=True)}


if __name__ == "__main__":
    command.main("trajectory", run, figures, CONFIG, __doc__)
