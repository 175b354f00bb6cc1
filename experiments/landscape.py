"""The loss between SB and LB minima: Figs 3 and 7, planes, a path of low loss, distances, steep directions.

    make exp-landscape
    python -m experiments.landscape --dataset cifar10 --network c1

The straight line and the curve have 25 points on [-1, 2], as in the paper. Beyond it: the plane through three
minima, a plane of two filter-normalised directions around each minimum (Li et al. 2018), and a Bézier curve of low
loss between the two minima (Garipov et al. 2018). Minima that another experiment trained with the same settings
are not trained again. Three pairs on the digits take some 3 minutes on two cores.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from experiments import command, training
from experiments.training import Training
from gengap import data, landscape, minima, objective, paper, plots, records
from gengap.models import Model
from gengap.report import Section, apart, plain, spread
from gengap.statistics import log_ratio, verdict


class Config(NamedTuple):
    """The loss between the minima of one network."""

    training: Training = Training(num_seeds=3)
    points: int = 25
    """alphas on [-1, 2]"""
    side: int = 21
    """points along each side of a plane"""
    examples: int = 5_000
    """training examples for the planes and the random directions"""
    num_directions: int = 100
    """random directions around each minimum"""
    steps: int = 500
    """of Adam, with batches of 256, for the curve of low loss"""


CONFIG = Config()
SMALL = {"points": 7, "side": 3, "num_directions": 3, "steps": 2}
SMOKE = CONFIG._replace(training=Training(num_seeds=1, epochs=2, train_size=400), **SMALL)
PATHS = {"linear": landscape.linear, "curvilinear": landscape.curvilinear}


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> records.Run:
    """Train, measure and record: a row for each pair of minima, and one for the planes through those of seed 0.

    Args:
      config: the settings.
      out: the run directory; `None` keeps nothing on disk.
      fresh: move an earlier run aside and begin anew; else what it has finished is not done again.
      data_dir: the TFDS directory.

    Raises:
      ValueError: a setting out of its range, or `out` holds a run with other settings.
    """
    for name in ("points", "side", "examples", "num_directions", "steps"):
        if getattr(config, name) < 2:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 2")
    setting, ds = training.begin(config.training, data_dir)
    model = training.model(setting, ds)
    evaluate = training.evaluate(setting, model, ds)
    some = training.loss(setting, model, data.head(ds, min(config.examples, len(ds.x_train))))
    batches = objective.over_batches(model.apply, ds.x_train, ds.y_train, clip=setting.clip)
    root = jax.random.key(setting.seed)
    asked = command.flat(config._replace(training=setting))
    with records.opened("landscape", asked, out, fresh=fresh) as run:
        if not run.rows:
            _expect(config, setting, model, ds)
        for seed in range(setting.num_seeds):
            row, planes = (training.row(setting, ds, method, seed) for method in ("pair", "planes"))
            if run.has(row) and (seed or run.has(planes)):
                continue
            pair = training.pair(setting, model, ds, seed, run.store)
            if lost := {m: found.diverged_at for m, found in pair.items() if found.diverged_at is not None}:
                if not run.has(row):
                    run.add(row | {"diverged_at": lost})
                continue
            ends = {method: found.params for method, found in pair.items()}
            start = minima.starting_point(model, ds, root, seed)
            key = partial(training.key_of, setting, seed)
            if not run.has(row):
                measured = {
                    **_along(config, ends, evaluate),
                    "distance": _distances(start, **ends),
                    "directions": {m: _directions(config, some, params, key) for m, params in ends.items()},
                    "connection": _connection(config, ends, evaluate, batches, key),
                }
                run.add(row | measured)
            if seed == 0 and not run.has(planes):
                third = {"start": start}
                if setting.num_seeds > 1:
                    other = training.pair(setting, model, ds, 1, run.store)["SB"]
                    third = {"SB, seed 1": other.params} if other.diverged_at is None else third
                run.add(planes | {"planes": _planes(config, some, ends | third, key)})
        return run


def _expect(config: Config, setting: Training, model: Model, ds: data.Dataset) -> None:
    """Say how long it will take; a look at the loss costs a third of a gradient."""
    m = len(ds.x_train)
    looks = 4 * config.points * (1 + len(ds.x_test) / m)
    some = min(1, config.examples / m)
    directions = 2 * some * (config.num_directions / 3 + 12)
    each = looks / 3 + directions + config.steps * min(1, 256 / m)
    gradients = setting.num_seeds * each + some * config.side**2
    training.say_how_long(setting, model, ds, gradients, 2 * setting.num_seeds * setting.epochs)


def _along(config: Config, ends: dict, evaluate: dict) -> records.Row:
    """Loss and accuracy on both splits along the paper's two paths, and at their ends."""
    alphas = np.linspace(-1, 2, config.points)
    row: records.Row = {"alphas": alphas}
    for name, path in PATHS.items():
        row[name] = _evaluated(evaluate, path(*ends.values()), alphas)
    row["ends"] = {m: {split: of(params)[0] for split, of in evaluate.items()} for m, params in ends.items()}
    return row


def _evaluated(evaluate: dict, path: landscape.Path, alphas: np.ndarray) -> dict[str, Any]:
    found = {split: landscape.along(of, path, alphas) for split, of in evaluate.items()}
    return {
        f"{split}_{what}": values
        for split, both in found.items()
        for what, values in zip(("loss", "accuracy"), both, strict=True)
    }


def _distances(start: PyTree, SB: PyTree, LB: PyTree) -> dict[str, Array]:
    places = {"SB from start": (SB, start), "LB from start": (LB, start), "SB from LB": (SB, LB)}
    return {name: optax.tree.norm(optax.tree.sub(*points)) for name, points in places.items()}


def _directions(config: Config, loss: Any, params: PyTree, key: Callable[[str], Array]) -> dict[str, Any]:
    """The loss in random directions, at the distance of the corners of the metric's box."""
    found = landscape.neighbourhood(loss, params, key("directions"), num_directions=config.num_directions)
    return {**found._asdict(), "share": found.share, "mean_over_highest": found.mean_over_highest}


def _connection(
    config: Config, ends: dict, evaluate: dict, batches: Any, key: Callable[[str], Array]
) -> dict[str, Any]:
    """Loss and accuracy along the straight line and along a Bézier curve that was trained to be low."""
    small, large = ends.values()
    control = landscape.connect(batches, small, large, key("connection"), steps=config.steps)
    paths = {"straight": landscape.linear(small, large), "curve": landscape.bezier(small, control, large)}
    alphas = np.linspace(0, 1, config.points)
    return {"alphas": alphas} | {name: _evaluated(evaluate, path, alphas) for name, path in paths.items()}


def _planes(
    config: Config, loss: Any, points: dict[str, PyTree], key: Callable[[str], Array]
) -> list[dict[str, Any]]:
    """The loss on the plane through three points, and on one of two random directions around each minimum."""
    plane, corners = landscape.through(*points.values())
    low, high = np.asarray(corners.min(0)), np.asarray(corners.max(0))
    margin = 0.25 * (high - low).max()
    s, t = (np.linspace(a - margin, b + margin, config.side) for a, b in zip(low, high, strict=True))
    name = "two minima, start" if "start" in points else "three minima"
    planes = [_on(loss, plane, s, t, name, dict(zip(points, corners, strict=True)))]
    for method in ("SB", "LB"):
        u, v = (landscape.filter_normalised(points[method], key(axis)) for axis in ("first axis", "second axis"))
        s = t = np.linspace(-1, 1, config.side)
        around = landscape.Plane(points[method], u, v)
        planes.append(_on(loss, around, s, t, f"around {method}", {method: (0, 0)}))
    return planes


def _on(
    loss: Any, plane: landscape.Plane, s: np.ndarray, t: np.ndarray, name: str, points: dict[str, Any]
) -> dict[str, Any]:
    return {"name": name, "s": s, "t": t, "loss": landscape.over(loss, plane, s, t), "points": points}


@apart
def figures(rows: list[records.Row]) -> list[Section]:
    """Figs 3 and 7, whether the minima are connected, planes, and section 2's claims without a figure."""
    pairs = [row for row in rows if row["method"] == "pair"]
    runs = [row for row in pairs if "diverged_at" not in row]
    lost = [
        f"Diverged, in no figure: the pair of seed {row['seed']} "
        f"({', '.join(f'{method} at step {step}' for method, step in row['diverged_at'].items())})."
        for row in pairs
        if "diverged_at" in row
    ]
    sections = [Section("Minima that were not found", lost)] if lost else []
    if runs:
        sections += [straight(runs), curved(runs), connection(runs)]
    if planes := [plane for row in rows for plane in row.get("planes", [])]:
        sections.append(on_planes(planes))
    return [*sections, neighbourhood(runs)] if runs else sections


def straight(runs: Sequence[records.Row]) -> Section:
    """Fig. 3: the straight line through both minima."""
    theirs = paper.figure("fig3_linear")[runs[0]["network"]]["train_xent"]
    near, far = zip(*(beyond(row["alphas"], row["linear"]["train_loss"]) for row in runs), strict=True)
    steeper = [large - small for small, large in zip(near, far, strict=True)]
    here, there = ([plain(v) for v in pair] for pair in (map(statistics.fmean, (near, far)), beyond(*theirs)))
    between = [_barrier(row["alphas"], row["linear"]["train_loss"]) for row in runs]
    said = [
        *_ends(runs, "linear"),
        f"A quarter of the way beyond each the training loss rises by {here[0]} (SB) and {here[1]} (LB), "
        f"in the paper by {there[0]} and {there[1]}. Steeper beyond LB: {verdict(steeper)}.",
        f"Between them the training loss rises above the higher end by {spread(between)}, in the paper by "
        f"{plain(_barrier(*theirs))}.",
    ]
    caption = (
        "Cross entropy and accuracy at alpha x_LB + (1 - alpha) x_SB: 0 is the small-batch minimum, 1 the "
        f"large-batch one. {_SEEDS}"
    )
    figure = _paths(runs, "linear", "fig3_linear")
    return Section("Straight line through both minima (Fig. 3)", said, None, figure, caption, "fig3")


def curved(runs: Sequence[records.Row]) -> Section:
    """Fig. 7: the curve through both minima."""
    theirs = paper.figure("fig7_curvilinear")[runs[0]["network"]]["train_xent"]
    between = [_barrier(row["alphas"], row["curvilinear"]["train_loss"]) for row in runs]
    theirs_between = _barrier(*theirs)
    side = 1 if theirs_between > 0.1 else -1
    outside = [max(v for v in row["curvilinear"]["train_loss"] if v is not None) for row in runs]
    said = [
        *_ends(runs, "curvilinear"),
        f"Between the minima the training loss rises above the higher end by {spread(between)}, in the paper by "
        f"{plain(theirs_between)}. {'More' if side > 0 else 'Less'} than 0.1 nats, as there: "
        f"{verdict([side * (rise - 0.1) for rise in between])}.",
        f"Its highest value is {spread(outside)}; the paper's cannot pass 16.12, where Keras clips it.",
    ]
    caption = (
        "Cross entropy and accuracy at sin(alpha pi / 2) x_LB + cos(alpha pi / 2) x_SB; at -1 it is -x_LB, at 2 "
        f"it is -x_SB. {_SEEDS}"
    )
    figure = _paths(runs, "curvilinear", "fig7_curvilinear")
    return Section("Curve through both minima (Fig. 7)", said, None, figure, caption, "fig7")


_SEEDS = "Training solid, test dashed, the paper's dotted. Thin lines are pairs of minima, thick ones their mean."


def _paths(runs: Sequence[records.Row], path: str, figure: str) -> Any:
    """Loss and accuracy along a path, ours over the paper's."""
    network, dataset = runs[0]["network"], runs[0]["dataset"]
    theirs = paper.figure(figure)[network]
    drawn, axes = plots.axes(2)
    for ax, (what, curve, words, factor) in zip(
        axes, (("loss", "xent", "cross entropy (nats)", 1), ("accuracy", "acc", "accuracy (%)", 100)), strict=True
    ):
        ours = {s: [factor * np.array(row[path][f"{s}_{what}"], float) for row in runs] for s in ("train", "test")}
        plots.path(runs[0]["alphas"], ours, ax=ax)
        for split in ours:
            x, y = theirs[f"{split}_{curve}"]
            plots.path(x, {f"paper, {network}, {split}": y}, ax=ax)
        ax.set(title=f"{network} on {dataset}", ylabel=words)
        ax.set_xticks([-1, 0, 1, 2], ["-1", "0\nSB", "1\nLB", "2"])
    return drawn


def connection(runs: Sequence[records.Row]) -> Section:
    """The straight line between the minima and a curve of low loss."""
    figure, axes = plots.axes(2)
    names = {"straight": "straight line", "curve": "trained Bézier curve"}
    for ax, split in zip(axes, ("train", "test"), strict=True):
        curves = {
            words: [row["connection"][name][f"{split}_loss"] for row in runs] for name, words in names.items()
        }
        plots.path(runs[0]["connection"]["alphas"], curves, ax=ax)
        words = {"train": "training", "test": "test"}[split]
        ax.set(yscale="log", xlabel="along the path: SB at 0, LB at 1", ylabel=f"{words} loss (nats)")
    straight, curve = (
        [_barrier(row["connection"]["alphas"], row["connection"][name]["train_loss"]) for row in runs]
        for name in names
    )
    if max(straight) < 0.01:
        real = "there is no barrier to go round (less than 0.01)"
    elif max(curve) < 0.1 * max(straight):
        real = "the barrier on the straight line is not one of the landscape (a tenth of it, or less, is left)"
    else:
        real = "the curve does not get round it (more than a tenth of it is left)"
    said = [
        f"The training loss rises above the higher end by {spread(straight)} nats on the straight line "
        f"and by {spread(curve)} on the curve: {real}."
    ]
    caption = (
        "Loss along the straight line and along a quadratic Bézier curve whose control point was trained for a "
        "low loss (Garipov et al. 2018). Thin lines are pairs of minima, thick ones their mean."
    )
    return Section("Are the minima connected?", said, None, figure, caption, "connection")


def on_planes(planes: Sequence[dict[str, Any]]) -> Section:
    """Contours of the loss on planes."""
    levels = plots.levels(*(plane["loss"] for plane in planes))
    figure, axes = plots.axes(len(planes))
    for ax, plane in zip(axes, planes, strict=True):
        plots.plane(plane["s"], plane["t"], plane["loss"], points=plane["points"], at=levels, ax=ax)
        x, y = ("from SB to LB", "across") if len(plane["points"]) > 1 else ("direction 1", "direction 2")
        ax.set(title=plane["name"], xlabel=x, ylabel=y)
    shares = [
        f"{100 * np.nanmean(np.array(plane['loss'], float) < 0.1):.0f} % {plane['name']}" for plane in planes[1:]
    ]
    said = [
        f"The training loss is below 0.1 nats on this share of the square drawn: {', '.join(shares)}. Filters of "
        "both have the same length as those of the minimum, so that the two squares compare (Li et al. 2018)."
    ]
    caption = (
        "Training loss in nats, two shades for each factor of ten, and lines at the powers of ten. In the first "
        "plane distances are Euclidean; the others have a filter-normalised random direction on each axis, and "
        "the minimum at their centre."
    )
    return Section("Planes through the minima", said, None, figure, caption, "planes")


def neighbourhood(runs: Sequence[records.Row]) -> Section:
    """Section 2's claims without a figure: distances from the start, and the share of steep directions."""
    lines, highest = [], {}
    for method in ("SB", "LB"):
        every = [row["directions"][method] for row in runs]
        highest[method] = [near["highest"] - near["base_loss"] for near in every]
        for near in every:
            rises = sorted(max(loss - near["base_loss"], 1e-9) for loss in near["losses"])
            below = [(i + 1) / len(rises) for i in range(len(rises))]
            lines.append(plots.Line(rises, below, f"{method}, random directions", method, width=1.2))
        for rise in highest[method]:
            lines.append(plots.Line([rise, rise], [0, 1], f"{method}, steepest found", method, ":", 1.2))
    panel = plots.Panel("", "rise of the training loss (nats)", "share of directions below", lines, log_x=True)
    percent = {
        name: {m: [100 * v for row in runs if (v := row["directions"][m][name]) is not None] for m in ("SB", "LB")}
        for name in ("share", "mean_over_highest")
    }
    length = statistics.fmean(row["directions"]["LB"]["length"] for row in runs)
    ratios = [row["distance"]["SB from start"] / row["distance"]["LB from start"] for row in runs]
    low, high = paper.DISTANCE_RATIO
    said = [
        f"SB ends {spread(ratios)} times as far from the start as LB; the paper has {low:g} to {high:g}: "
        f"{verdict([min(log_ratio(ratio, low), log_ratio(high, ratio)) for ratio in ratios])}.",
        f"SB and LB end {spread([row['distance']['SB from LB'] for row in runs])} from each other (Euclidean).",
        f"At a distance of {plain(length)}, that of the corners of the metric's box, the loss rises by "
        f"{spread(highest['SB'])} (SB) and {spread(highest['LB'])} (LB) nats in the steepest direction found.",
        f"The mean rise in random directions is {spread(percent['mean_over_highest']['SB'])} % (SB) and "
        f"{spread(percent['mean_over_highest']['LB'])} % (LB) of that. It would be k / n if f rose along k of n "
        "orthogonal directions and equally along each. The rise is more than twice the median rise along "
        f"{spread(percent['share']['SB'])} % (SB) and {spread(percent['share']['LB'])} % (LB) of the random "
        "directions (minima whose median is above 0). The paper has 'e.g. 5 %' of the space for LB, without "
        "saying how it sampled.",
    ]
    caption = (
        "Rises in random directions, each line one minimum, and in the steepest direction that an ascent found "
        "(dotted). Directions along which the loss falls, or rises by less than 1e-9, stand at the left."
    )
    title = "Distances and steep directions (section 2)"
    return Section(title, said, None, plots.panels([panel]), caption, "neighbourhood")


def _ends(runs: Sequence[records.Row], path: str) -> list[str]:
    """How far the ends of a path are from the minima's own losses."""
    errors = []
    for row in runs:
        for alpha, method in ((0.0, "SB"), (1.0, "LB")):
            for where in np.flatnonzero(np.isclose(row["alphas"], alpha, atol=1e-6)):
                for split in ("train", "test"):
                    own = row["ends"][method][split]
                    errors.append(abs(row[path][f"{split}_loss"][where] - own) / own)
    return [f"At the ends it has the minima's own losses to {max(errors):.1g} (relative)."] if errors else []


def beyond(alphas: Sequence[float], losses: Sequence[float | None]) -> tuple[float, float]:
    """f(-1/4) - f(0) and f(5/4) - f(1), between points by interpolation."""
    at = np.interp([-0.25, 0.0, 1.0, 1.25], alphas, np.array(losses, float))
    return float(at[0] - at[1]), float(at[3] - at[2])


def _barrier(alphas: Sequence[float], losses: Sequence[float | None]) -> float:
    """How far the loss rises between 0 and 1 above the higher of the two ends."""
    x, y = np.array(alphas, float), np.array(losses, float)
    inside = y[(x >= -1e-6) & (x <= 1 + 1e-6)]
    return max(0.0, float(np.nanmax(inside) - np.interp([0.0, 1.0], x, y).max()))


if __name__ == "__main__":
    command.main("landscape", run, figures, CONFIG, __doc__)
