"""The loss between and around SB and LB minima: Figs 3 and 7, planes, a curve of low loss, steep directions.

    make exp-landscape
    python -m experiments.landscape --dataset cifar10 --network c1

As in the paper, the straight line and the curve between SB and LB have 25 points on [-1, 2]. The rest goes beyond
the paper: the plane through three minima, a plane of two filter-normalised directions around each minimum (Li et
al. 2018), and a Bézier curve of low loss between SB and LB (Garipov et al. 2018). Minima that another experiment
trained with the same settings are used again. Three pairs on the digits take some 3 minutes on two cores.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from jaxtyping import PyTree

from experiments.lib import command, settings
from experiments.lib.claims import Claim
from experiments.lib.rows import means
from experiments.lib.settings import Problem, Training
from experiments.lib.tables import paper_heading
from gengap import checks, data, flat, landscape, minima, objective, paper, plots, records
from gengap.records import Row
from gengap.report import Section, apart, percent, plain, spread
from gengap.stats import log_ratio, verdict


class Config(NamedTuple):
    """The loss between the minima of one network."""

    training: Training = Training(num_seeds=3)
    points: int = 25
    """number of points on each path between the minima"""
    side: int = 21
    """number of points along each side of a plane"""
    examples: int = 5_000
    """number of training examples for planes and random directions"""
    num_directions: int = 100
    """number of random directions per minimum"""
    steps: int = 500
    """number of Adam steps that train the low-loss curve, with batch size 256"""


CONFIG = Config()
SMALL = {"points": 7, "side": 3, "num_directions": 3, "steps": 2}
SMOKE = CONFIG._replace(training=Training(num_seeds=1, epochs=2, train_size=400), **SMALL)


def cells(config: Config) -> list[records.Cell]:
    """One for each pair of minima, and one for the planes through the minima of seed 0."""
    names = ("network", "dataset", "seed")
    pairs = [{name: cell[name] for name in names} for cell in settings.cells_of(config.training, ["any"])]
    return [{**pairs[0], "of": "pair"}, {**pairs[0], "of": "planes"}, *({**p, "of": "pair"} for p in pairs[1:])]


def row(config: Config, cell: records.Cell, store: Path) -> Row:
    """The loss along the paths between a pair of minima and around them; or on planes."""
    training, seed = config.training, cell["seed"]
    problem = settings.problem(training, cell["network"])
    ds, model = problem.ds, problem.model
    pair = settings.pair(training, cell["network"], seed, store)
    if lost := {side: minimum.diverged_at for side, minimum in pair.items() if minimum.diverged_at is not None}:
        return {"diverged_at": lost}
    ends = {side: minimum.params for side, minimum in pair.items()}
    start = minima.starting_point(model, ds, settings.training_key(training), seed)
    keys = partial(flat.key_for, settings.measure_key(training, seed))
    some = settings.loss_over(training, model, data.head(ds, min(config.examples, len(ds.x_train))))
    if cell["of"] == "planes":
        third = {"start": start}
        if training.num_seeds > 1:
            other = settings.pair(training, cell["network"], 1, store)["SB"]
            third = {"SB, seed 1": other.params} if other.diverged_at is None else third
        axes = keys("first axis"), keys("second axis")
        return {"planes": _planes(some, ends | third, axes, config.side)}
    batches = objective.over_batches(model.apply, ds.x_train, ds.y_train, clip=training.clip)
    control = landscape.connect(batches, ends["SB"], ends["LB"], keys("connection"), steps=config.steps)
    evaluate = partial(_evaluated, problem)
    wide, narrow = np.linspace(-1, 2, config.points), np.linspace(0, 1, config.points)
    return {
        "alphas": wide,
        "linear": evaluate(landscape.linear(*ends.values()), wide),
        "curvilinear": evaluate(landscape.curvilinear(*ends.values()), wide),
        "ends": {
            side: {"train": problem.train(params)[0], "test": problem.test(params)[0]}
            for side, params in ends.items()
        },
        "distance": _distances(start, **ends),
        "directions": {
            side: _directions(some, params, keys("directions"), config.num_directions)
            for side, params in ends.items()
        },
        "connection": {
            "alphas": narrow,
            "straight": evaluate(landscape.linear(*ends.values()), narrow),
            "curve": evaluate(landscape.bezier(ends["SB"], control, ends["LB"]), narrow),
        },
    }


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each pair of minima, and one for the planes; the options are those of `records.fill`."""
    counts = {name: getattr(config, name) for name in ("points", "side", "examples", "num_directions", "steps")}
    checks.check_counts(counts, least=2)
    config = config._replace(training=settings.resolved(config.training))
    seconds = partial(_seconds, config)
    return records.fill("landscape", config, cells(config), row, out, seconds=seconds, **options)


def _seconds(config: Config, left: Sequence[records.Cell]) -> float:
    """An upper bound on the seconds that cells take; a value of the loss costs a third of a gradient."""
    ds = settings.dataset(config.training)
    m, pairs = len(ds.x_train), sum(cell["of"] == "pair" for cell in left)
    some = min(1, config.examples / m)
    values = 4 * config.points * (1 + len(ds.x_test) / m) / 3 + 2 * some * config.num_directions / 3
    gradients = pairs * (values + 24 * some + config.steps * min(1, 256 / m)) + some * config.side**2
    return settings.seconds(config.training, gradients=gradients, epochs=2 * pairs * config.training.epochs)


def _evaluated(problem: Problem, path: landscape.Path, alphas: np.ndarray) -> dict[str, Any]:
    """Loss and accuracy on both splits along a path."""
    curves = {}
    for split, evaluate in {"train": problem.train, "test": problem.test}.items():
        curves[f"{split}_loss"], curves[f"{split}_accuracy"] = landscape.along(evaluate, path, alphas)
    return curves


def _distances(start: PyTree, SB: PyTree, LB: PyTree) -> dict[str, Any]:
    ends = {"SB from start": (SB, start), "LB from start": (LB, start), "SB from LB": (SB, LB)}
    return {name: optax.tree.norm(optax.tree.sub(*points)) for name, points in ends.items()}


def _directions(loss: Any, params: PyTree, key: Any, num_directions: int) -> dict[str, Any]:
    """The loss in random directions, at the distance of the corners of the metric's box."""
    near = landscape.neighbourhood(loss, params, key, num_directions=num_directions)
    return {**near._asdict(), "share": near.share, "mean_over_highest": near.mean_over_highest}


def _planes(loss: Any, points: dict[str, PyTree], keys: Sequence[Any], side: int) -> list[dict[str, Any]]:
    """The loss on the plane through three points, and on one of two random directions around each minimum."""
    plane, corners = landscape.through(*points.values())
    low, high = np.asarray(corners.min(0)), np.asarray(corners.max(0))
    margin = 0.25 * (high - low).max()
    s, t = (np.linspace(a - margin, b + margin, side) for a, b in zip(low, high, strict=True))
    name = "two minima, start" if "start" in points else "three minima"
    planes = [_on(loss, plane, s, t, name, dict(zip(points, corners, strict=True)))]
    for end in settings.SIDES:
        axes = (landscape.filter_normalised(points[end], key) for key in keys)
        s = t = np.linspace(-1, 1, side)
        around = landscape.Plane(points[end], *axes)
        planes.append(_on(loss, around, s, t, f"around {end}", {end: (0, 0)}))
    return planes


def _on(
    loss: Any, plane: landscape.Plane, s: np.ndarray, t: np.ndarray, name: str, points: dict[str, Any]
) -> dict[str, Any]:
    return {"name": name, "s": s, "t": t, "loss": landscape.over(loss, plane, s, t), "points": points}


@apart
def figures(rows: list[Row]) -> list[Section]:
    """Figs 3 and 7, whether the minima are connected, planes, and section 2's claims without a figure."""
    pairs = [row for row in rows if row["of"] == "pair"]
    runs = [row for row in pairs if "diverged_at" not in row]
    lost = [
        f"Diverged, in no figure: the pair of seed {row['seed']} "
        f"({', '.join(f'{side} at step {step}' for side, step in row['diverged_at'].items())})."
        for row in pairs
        if "diverged_at" in row
    ]
    sections = [Section("Minima that were not found", lost)] if lost else []
    if runs:
        sections += [straight(runs), curved(runs), connection(runs)]
    if planes := [plane for row in rows for plane in row.get("planes", [])]:
        sections.append(on_planes(planes))
    return [*sections, neighbourhood(runs)] if runs else sections


def claims(rows: list[Row]) -> list[Claim]:
    """Section 2.2 and Fig. 3."""
    runs = [row for row in rows if row.get("linear")]
    shares = [
        share for row in runs if (share := percent(row["directions"]["LB"]["mean_over_highest"])) is not None
    ]
    rises = [rise for row in runs if np.isfinite(rise := beyond(row["alphas"], row["linear"]["train_loss"])).all()]
    return [
        Claim(
            "sec. 2.2",
            "LB is steep along few directions: the mean rise is below 5 % of the steepest",
            {},
            f"{plain(statistics.fmean(shares))} %" if shares else "",
            [verdict([5 - share for share in shares])],
        ),
        Claim(
            "Fig. 3",
            "the loss rises more steeply beyond LB than beyond SB",
            {of: means([beyond(*curve["train_xent"])]) for of, curve in paper.figure("fig3_linear").items()},
            means(rises),
            [verdict([large - small for small, large in rises])],
        ),
    ]


def straight(runs: Sequence[Row]) -> Section:
    """Fig. 3: the straight line through both minima."""
    theirs = paper.figure("fig3_linear")[runs[0]["network"]]["train_xent"]
    near, far = zip(*(beyond(row["alphas"], row["linear"]["train_loss"]) for row in runs), strict=True)
    here, there = ([plain(v) for v in pair] for pair in (map(statistics.fmean, (near, far)), beyond(*theirs)))
    between = [_barrier(row["alphas"], row["linear"]["train_loss"]) for row in runs]
    findings = [
        f"Beyond the minima, at alpha -1/4 and 5/4, the training loss rises by {here[0]} (SB) and {here[1]} (LB)"
        f"{_paper(runs, f'{there[0]} and {there[1]}')}. It is steeper beyond LB: {claims(list(runs))[1].verdict}.",
        f"Between the minima the training loss rises above the higher end by {spread(between)}"
        f"{_paper(runs, plain(_barrier(*theirs)))}.",
    ]
    caption = (
        "Cross entropy and accuracy at alpha x_LB + (1 - alpha) x_SB: alpha 0 is the small-batch "
        "minimum, alpha 1 the large-batch one. Training is solid, test dashed, the paper's curves dotted."
    )
    figure = _paths(runs, "linear", "fig3_linear")
    return Section("Straight line through both minima (Fig. 3)", findings, None, figure, caption, "fig3")


def curved(runs: Sequence[Row]) -> Section:
    """Fig. 7: the curve through both minima."""
    theirs = paper.figure("fig7_curvilinear")[runs[0]["network"]]["train_xent"]
    between = [_barrier(row["alphas"], row["curvilinear"]["train_loss"]) for row in runs]
    theirs_between = _barrier(*theirs)
    side = 1 if theirs_between > 0.1 else -1
    outside = [max(v for v in row["curvilinear"]["train_loss"] if v is not None) for row in runs]
    findings = [
        f"Between the minima the training loss rises above the higher end by {spread(between)}"
        f"{_paper(runs, plain(theirs_between))}. It rises by {'more' if side > 0 else 'less'} than 0.1 nats: "
        f"{verdict([side * (rise - 0.1) for rise in between])}.",
        f"Its highest value on the whole curve is {spread(outside)}. In the paper Keras clips the loss at 16.12.",
    ]
    caption = (
        "Cross entropy and accuracy at sin(alpha pi / 2) x_LB + cos(alpha pi / 2) x_SB. This is -x_LB at alpha -1 "
        "and -x_SB at alpha 2. Training is solid, test dashed, the paper's curves dotted."
    )
    figure = _paths(runs, "curvilinear", "fig7_curvilinear")
    return Section("Curve through both minima (Fig. 7)", findings, None, figure, caption, "fig7")


LOSS = "cross entropy (nats)\nlower is better"
ALPHA = {
    "linear": r"$\alpha$, where $x = \alpha\,x_{LB} + (1 - \alpha)\,x_{SB}$",
    "curvilinear": r"$\alpha$, where $x = \sin(\alpha\pi/2)\,x_{LB} + \cos(\alpha\pi/2)\,x_{SB}$",
}


def _paths(runs: Sequence[Row], path: str, digitised: str) -> Any:
    """Loss and accuracy along a path, ours over the paper's."""
    network, dataset = runs[0]["network"], runs[0]["dataset"]
    theirs = paper.figure(digitised)[network]
    figure, axes = plots.axes(2)
    for ax, (what, curve, words, factor) in zip(
        axes, (("loss", "xent", LOSS, 1), ("accuracy", "acc", plots.ACCURACY, 100)), strict=True
    ):
        ours = {s: [factor * np.array(row[path][f"{s}_{what}"], float) for row in runs] for s in ("train", "test")}
        plots.path(runs[0]["alphas"], ours, ax=ax)
        for split in ours:
            x, y = theirs[f"{split}_{curve}"]
            plots.path(x, {f"paper, {paper.where(network)}, {split}": y}, ax=ax)
        ax.set(title=f"{what}, {network} on {dataset}", xlabel=ALPHA[path], ylabel=words)
        ax.set_xticks([-1, 0, 1, 2], ["-1", "0\nSB", "1\nLB", "2"])
    return figure


def connection(runs: Sequence[Row]) -> Section:
    """The straight line between the minima and a curve of low loss."""
    figure, axes = plots.axes(2)
    names = {"straight": "straight line", "curve": "trained Bézier curve"}
    for ax, split in zip(axes, ("train", "test"), strict=True):
        curves = {
            words: [row["connection"][name][f"{split}_loss"] for row in runs] for name, words in names.items()
        }
        plots.path(runs[0]["connection"]["alphas"], curves, ax=ax)
        words = {"train": "training", "test": "test"}[split]
        ax.set(title=f"{words} loss, {runs[0]['network']} on {runs[0]['dataset']}", ylabel=LOSS)
        ax.set_xlabel("along the path: SB at 0, LB at 1")
        plots.logarithmic(ax, "y")
    straight, curve = (
        [_barrier(row["connection"]["alphas"], row["connection"][name]["train_loss"]) for row in runs]
        for name in names
    )
    if max(straight) < 0.01:
        real = "there is no barrier (less than 0.01 nats)"
    elif max(curve) < 0.1 * max(straight):
        real = "a curve avoids the barrier of the straight line (a tenth of it, or less, is left)"
    else:
        real = "the curve does not avoid the barrier (more than a tenth of it is left)"
    findings = [
        f"The training loss rises above the higher end by {spread(straight)} nats on the straight line "
        f"and by {spread(curve)} on the curve.",
        f"{real[0].upper()}{real[1:]}.",
    ]
    caption = (
        "Loss along the straight line and along a quadratic Bézier curve whose control point was trained for a "
        "low loss (Garipov et al. 2018). A seed is a pair of minima."
    )
    return Section("Are the minima connected?", findings, None, figure, caption, "connection")


def on_planes(planes: Sequence[dict[str, Any]]) -> Section:
    """Contours of the loss on planes."""
    levels = plots.levels(*(plane["loss"] for plane in planes))
    figure, axes = plots.axes(len(planes), columns=3)
    for k, (ax, plane) in enumerate(zip(axes, planes, strict=True)):
        beside = axes if k == len(planes) - 1 else []
        drawn = plane["s"], plane["t"], plane["loss"]
        plots.plane(*drawn, points=plane["points"], at=levels, label="training loss (nats)", beside=beside, ax=ax)
        x, y = ("SB to LB\n(distance)", "across (distance)")
        if len(plane["points"]) < 2:
            x, y = ("direction 1\n(filter norms)", "direction 2 (filter norms)")
        ax.set(title=plane["name"], xlabel=x, ylabel=y)
    shares = [
        f"{100 * np.nanmean(np.array(plane['loss'], float) < 0.1):.0f} % {plane['name']}" for plane in planes[1:]
    ]
    findings = [
        f"The share of the square with a training loss below 0.1 nats is {', '.join(shares)}.",
        "In both directions each filter is as long as that of the minimum, so the squares can be compared (Li et "
        "al. 2018).",
    ]
    caption = (
        "Training loss in nats, with two shades for each factor of ten and lines at the powers of ten. Distances "
        "in the first plane are Euclidean. The other planes have the minimum at the centre and a "
        "filter-normalised random direction on each axis."
    )
    return Section("Planes through the minima", findings, None, figure, caption, "planes")


def neighbourhood(runs: Sequence[Row]) -> Section:
    """Section 2's claims without a figure: distances from the start, and the share of steep directions."""
    lines, highest = [], {}
    for side in settings.SIDES:
        neighbourhoods = [row["directions"][side] for row in runs]
        highest[side] = [near["highest"] - near["base_loss"] for near in neighbourhoods]
        for near in neighbourhoods:
            rises = sorted(loss - near["base_loss"] for loss in near["losses"])
            below = [(rise, (i + 1) / len(rises)) for i, rise in enumerate(rises) if rise > 1e-9]
            x, y = zip(*below, strict=True) if below else ((), ())
            lines.append(plots.Line(x, y, f"{side}, random directions", side, width=1.2, seeds=1))
        for rise in highest[side]:
            lines.append(plots.Line([rise, rise], [0, 1], f"{side}, steepest found", side, ":", 1.2))
    length = statistics.fmean(row["directions"]["LB"]["length"] for row in runs)
    title = f"at a distance of {plain(length)} from the minimum, {runs[0]['network']} on {runs[0]['dataset']}"
    label = "share of directions with a smaller rise"
    panel = plots.Panel(title, "rise of the training loss (nats); left is flatter", label, lines, log_x=True)
    percent = {
        name: {m: [100 * v for row in runs if (v := row["directions"][m][name]) is not None] for m in ("SB", "LB")}
        for name in ("share", "mean_over_highest")
    }
    ratios = [row["distance"]["SB from start"] / row["distance"]["LB from start"] for row in runs]
    low, high = paper.DISTANCE_RATIO
    findings = [
        f"SB ends {spread(ratios)} times as far from the start as LB. It is {low:g} to {high:g} times, as the "
        f"paper says: {verdict([min(log_ratio(ratio, low), log_ratio(high, ratio)) for ratio in ratios])}.",
        f"The Euclidean distance from SB to LB is {spread([row['distance']['SB from LB'] for row in runs])}.",
        f"At a distance of {plain(length)}, that of the corners of the metric's box, the loss rises by "
        f"{spread(highest['SB'])} (SB) and {spread(highest['LB'])} (LB) nats in the steepest direction found.",
        f"The mean rise in random directions is {spread(percent['mean_over_highest']['SB'])} % (SB) and "
        f"{spread(percent['mean_over_highest']['LB'])} % (LB) of that. It would be k / n if f rose along k of n "
        "orthogonal directions, and equally along each.",
        f"The rise is more than twice the median rise along {spread(percent['share']['SB'])} % (SB) and "
        f"{spread(percent['share']['LB'])} % (LB) of the random directions (minima whose median rise is above 0).",
    ]
    caption = (
        "The rise of the loss in random directions, one line for each minimum, and in the steepest direction that "
        "an ascent found (dotted). A line starts at the share of directions along which the loss falls, or rises "
        "by less than 1e-9."
    )
    title = "Distances and steep directions (section 2)"
    return Section(title, findings, None, plots.panels([panel]), caption, "neighbourhood")


def _paper(runs: Sequence[Row], words: str) -> str:
    """A clause with the paper's numbers for the network; empty if they may not stand beside the data set."""
    heading = paper_heading(runs[:1])
    return f", in the {heading} by {words}" if heading else ""


def beyond(alphas: Sequence[float], losses: Sequence[float | None]) -> tuple[float, float]:
    """f(-1/4) - f(0) and f(5/4) - f(1), interpolated between the points."""
    at = np.interp([-0.25, 0.0, 1.0, 1.25], alphas, np.array(losses, float))
    return float(at[0] - at[1]), float(at[3] - at[2])


def _barrier(alphas: Sequence[float], losses: Sequence[float | None]) -> float:
    """How far the loss rises between 0 and 1 above the higher of the two ends."""
    x, y = np.array(alphas, float), np.array(losses, float)
    inside = y[(x >= -1e-6) & (x <= 1 + 1e-6)]
    return max(0.0, float(np.nanmax(inside) - np.interp([0.0, 1.0], x, y).max()))


if __name__ == "__main__":
    command.main("landscape", run, figures, CONFIG, __doc__)
