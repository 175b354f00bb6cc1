"""The figures: paths, planes, sharpness and accuracy, from plain numbers or results.

`path`, `plane`, `sharpness` and `accuracy` draw into `ax`, by default pyplot's current Axes, with a legend, and
return the Axes. `gengap.sheet` says what colours and dashes mean. Importing this module chooses no backend and
opens no window.
"""

import importlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gengap import paper as keskar
from gengap.sheet import ROLES, Line, Numbers, axes, dotted, draw, finish, image, logarithmic, numbers, seeds, tick

__all__ = [
    "ACCURACY", "LOSS", "SHARPNESS", "Line", "Panel", "accuracy", "axes", "beside_paper", "dotted", "image",
    "intervals", "levels", "logarithmic", "panels", "path", "plane", "seeds", "sharpness",
]  # fmt: skip

# Labels of axes: what is shown, its unit, and which way is better.
SHARPNESS = "sharpness (% of 1 + f)\nlower is flatter"
ACCURACY = "accuracy (%)\nhigher is better"
LOSS = "training loss f (nats)\nlower is better"

_SIDES = {"SB": (ROLES["SB"], "o"), "LB": (ROLES["LB"], "s")}
_OTHERS = (("#333333", "^"), ("#7a5195", "v"), ("#5a9e6f", "D"), ("#b5651d", "P"), ("#999999", "X"))


def path(alphas: Numbers, curves: Numbers | Mapping[str, Numbers], *, ax: Axes | None = None) -> Axes:
    """A function along a path, such as the result of `landscape.along(...)`; the ends, 0 and 1, are marked.

    Args:
      alphas: [k], the points.
      curves: [k], or label -> [k] or [seeds, k]. Seeds are thin lines, their mean is a thick one. Labels that
        differ only in "train" and "test" share a colour.
    """
    x = numbers("alphas", alphas, None)
    if isinstance(curves, Mapping) and not curves:
        raise ValueError("curves is empty; it must hold a curve")
    ax, colours = ax or _current(), dict[str, str]()
    for label, values in (curves if isinstance(curves, Mapping) else {"": curves}).items():
        pairs = [(x, y) for y in numbers(f"curves {label!r}", values, None, len(x))]
        if label.startswith("paper"):
            draw(ax, [dotted(pair, label) for pair in pairs])
        else:
            words = label.replace(",", " ").split()
            what = " ".join(word for word in words if word not in ("train", "test"))
            unnamed = colours.setdefault(what, _OTHERS[len(colours) % len(_OTHERS)][0])
            colour = next((word for word in words if word in _SIDES), unnamed)
            lines = seeds(pairs, label, colour, "--" if "test" in words else "-")
            draw(ax, [line._replace(seeds=0) for line in lines] if np.ndim(values) < 2 else lines)
    for end in [end for end in (0, 1) if x.min() <= end <= x.max()]:
        ax.axvline(end, color="#999999", linewidth=0.7, zorder=1)
    ax.set(xlabel="alpha", ylabel="value on the path")
    return finish(ax)


def levels(*values: Numbers) -> np.ndarray:
    """Levels at every half decade from the smallest positive value to the largest, at most the upper 6 decades."""
    positive = [v for array in values for v in numbers("values", np.ravel(array), None) if v > 0]
    if not positive:
        raise ValueError("values has none that is positive and finite, as a logarithmic scale needs")
    low, high = np.floor(np.log10(min(positive))), np.ceil(np.log10(max(positive)))
    return 10 ** np.arange(max(low, high - 6), max(high, low + 1) + 0.25, 0.5)


def plane(
    s: Numbers, t: Numbers, values: Numbers, *, points: Any = None, at: Numbers = None, label: str = "loss",
    beside: Sequence[Axes] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Contours of a positive function on a plane, such as from `landscape.over(...)`, on logarithmic levels.

    Args:
      s, t: [columns] and [rows], coordinates.
      values: [rows, columns]. One that is not finite is drawn as the highest level, one below the lowest level as
        that level.
      points: name -> (s, t), to mark.
      at: the levels, for planes that share them; by default `levels(values)`.
      label: label of the colour bar.
      beside: the Axes that share the colour bar, by default `ax`; an empty list draws no bar.
    """
    s, t, points = numbers("s", s, None), numbers("t", t, None), points or {}
    z = numbers("values", values, len(t), len(s))
    if not np.minimum(np.ptp(s), np.ptp(t)) > 0:
        raise ValueError(f"s and t have {len(s)} and {len(t)} numbers; two of each must differ, else draw a path")
    steps = levels(z) if at is None else numbers("at", at, None)
    if len(steps) < 2 or not (np.diff(steps, prepend=0) > 0).all():
        raise ValueError(f"at is {at}; it must be two levels or more, from above 0 upwards")
    ax, z = ax or _current(), np.clip(np.nan_to_num(z, nan=steps[-1]), steps[0], steps[-1])
    filled = ax.contourf(s, t, z, steps, norm="log", vmin=steps[0], vmax=steps[-1], cmap="Greys", alpha=0.8)
    ax.contour(s, t, z, steps[::2], colors="#444444", linewidths=0.5)
    for name, (x, y) in points.items():
        colour, marker = _of_side(name, list(points))
        ax.plot([x], [y], marker, color=colour, markeredgecolor="white", markersize=8, label=name)
    if beside is None or len(beside):
        bar = ax.figure.colorbar(filled, ax=beside or ax, ticks=steps[::2], format=tick, label=label)
        bar.ax.tick_params(labelsize=8)
    ax.set(aspect="equal", xlabel="first coordinate", ylabel="second coordinate")
    return finish(ax, grid="")


def sharpness(
    values: Mapping[str, Any], *, paper: Mapping | None = None, papers: str = "", ax: Axes | None = None
) -> Axes:
    """Sharpness of every seed on a logarithmic axis, SB beside LB; a thin line joins the two of one seed.

    A value that the axis cannot show is drawn at its bottom edge: a triangle for 0, a cross if it is not finite.

    Args:
      values: label of a network -> side -> seed -> value, `None` or NaN if it is not finite.
      paper: label of a network -> side -> (mean, standard deviation), drawn beside them.
      papers: the network and data set of the paper's values, for the legend.
    """
    if not any(isinstance(minima, Mapping) and minima for sides in values.values() for minima in sides.values()):
        raise ValueError("values must be network -> side -> seed -> value, with one seed at least")
    ax = ax or _current()
    sides = list(dict.fromkeys(side for minima in values.values() for side in minima))
    centres = min(0.36, 0.72 / len(sides)) * (np.arange(len(sides)) - (len(sides) - 1) / 2)
    for place, (network, minima) in enumerate(values.items()):
        seeds_here = sorted({seed for of_side in minima.values() for seed in of_side})
        for k, seed in enumerate(seeds_here):
            x = place + centres + 0.035 * (k - (len(seeds_here) - 1) / 2)
            y = numbers(f"values {network!r}", [minima.get(side, {}).get(seed) for side in sides], len(sides))
            ax.plot(x[y > 0], y[y > 0], color="#bbbbbb", linewidth=0.6, zorder=1)
            for i, side in enumerate(sides):
                if seed in minima.get(side, {}):
                    _minimum(ax, x[i], y[i], side, sides)
        for i, side in enumerate(sides):
            if theirs := (paper or {}).get(network, {}).get(side):
                mean, std = np.nan_to_num(numbers(f"paper {network!r}", theirs, 2))
                x = place + centres[i] + (-0.15 if i < len(sides) / 2 else 0.15)
                ax.errorbar(x, mean, std, fmt="kD-", markerfacecolor="white", markersize=4, linewidth=1, capsize=2,
                            zorder=2, label=f"paper{papers and f' ({papers})'}, mean ± std")  # fmt: skip
    turned = 30 if sum(max(map(len, label.split("\n"))) for label in values) > 40 else 0
    ax.set_xticks(range(len(values)), list(values), rotation=turned, ha="right" if turned else "center")
    ax.tick_params(axis="x", length=0, pad=0 if turned else 14)
    if not turned:
        ax.set_xticks([k + x for k in range(len(values)) for x in centres], sides * len(values), minor=True)
        ax.tick_params(axis="x", which="minor", length=0)
    ax.set(xlim=(-0.6, len(values) - 0.4), ylabel=SHARPNESS)
    low, high = (ax.dataLim.minposy, ax.dataLim.ymax) if np.isfinite(ax.dataLim.minposy) else (0.22, 5)
    logarithmic(ax, "y", low / 2.2, high * 1.8)
    return finish(ax)


def _minimum(ax: Axes, x: float, y: float, side: str, sides: Sequence[str]) -> None:
    """One minimum, at the bottom edge if a logarithmic axis cannot show it."""
    colour, marker = _of_side(side, sides)
    if y > 0:
        ax.plot(x, y, marker, color=colour, markersize=4, alpha=0.85, zorder=3, label=f"{side}, one seed")
    else:
        kind, face, words = ("x", colour, "not finite") if np.isnan(y) else ("v", "white", "0")
        ax.plot(x, 0.03, kind, color=colour, markerfacecolor=face, markersize=5,
                transform=ax.get_xaxis_transform(), label=f"at the edge: {words}")  # fmt: skip


def accuracy(
    histories: Mapping[str, Any], *, paper: Mapping | None = None, updates: Mapping[str, float] | None = None,
    zoom: bool = False, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Accuracy per epoch, as in the paper's Fig. 2: training solid, test dashed.

    Thin lines are seeds, thick ones their mean over the epochs that all seeds have. A seed with a number that is
    not finite is a thin line that ends in a cross; it is left out of the mean.

    Args:
      histories: side -> a `train.History` for each seed, or one; "train_accuracy", "test_accuracy" are shares.
      paper: (side, "train" or "test") -> epochs, accuracies in percent.
      updates: side -> updates per epoch, to draw over updates on a logarithmic axis.
      zoom: whether an inset shows test accuracy after the first quarter of the axis.
    """
    sides = {side: [runs] if isinstance(runs, Mapping) else list(runs) for side, runs in histories.items()}
    if not paper and not any(np.size(v) for runs in sides.values() for run in runs for v in run.values()):
        raise ValueError("histories has no epoch of any seed: there is nothing to draw")
    ax, test = ax or _current(), list[Line]()
    for side, runs in sides.items():
        colour = _of_side(side, list(sides))[0]
        for split, dashes in (("train", "-"), ("test", "--")):
            curves = []
            for run in [run for run in runs if np.size(run.get(f"{split}_accuracy", ()))]:
                y = 100 * numbers(f"histories {side!r}", run[f"{split}_accuracy"], None)
                x = np.arange(1, len(y) + 1) * (updates or {}).get(side, 1)
                if all(np.isfinite(np.asarray(values, float)).all() for values in run.values()):
                    curves.append((x, y))
                else:
                    last = np.flatnonzero(np.isfinite(y))[-1:]
                    draw(ax, [Line(x, y, "", colour, dashes, 0.5, alpha=0.6)])
                    ax.plot(x[last], y[last], "x", color="black", markersize=6, zorder=5, label="diverged")
            lines = seeds(curves, f"{side} {split}", colour, dashes)
            lines += [
                dotted(curve, f"paper, {side} {split}") for curve in [(paper or {}).get((side, split))] if curve
            ]
            draw(ax, lines)
            test += lines if split == "test" else []
    strangers = {key: curve for key, curve in (paper or {}).items() if key[0] not in sides}
    draw(ax, [dotted(curve, f"paper, {side} {split}") for (side, split), curve in strangers.items()])
    if zoom and test:
        _zoom(ax, test)
    ax.set(xlabel="updates" if updates else "epoch", ylabel=ACCURACY)
    if updates:
        logarithmic(ax, "x")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10], min_n_ticks=1))
    return finish(ax)


def _zoom(ax: Axes, lines: Sequence[Line]) -> None:
    """An inset with some lines after the first quarter of the axis; the labelled lines set its height."""
    inset, end = ax.inset_axes((0.42, 0.14, 0.56, 0.4)), ax.dataLim.xmax
    draw(inset, lines)
    late = np.concatenate([np.array(line.y)[np.array(line.x) > 0.25 * end] for line in lines if line.label])
    low, high = np.nanmin(late, initial=100), np.nanmax(late, initial=0)
    margin = 0.1 * max(high - low, 0.1)
    inset.set(xlim=(0.25 * end, end), ylim=(low - margin, high + margin))
    inset.set_title("inset: test, larger", fontsize=8)
    inset.tick_params(labelsize=8)
    inset.grid(axis="y", color="#dddddd", linewidth=0.5)


class Panel(NamedTuple):
    """Axes and their lines; `marks` are vertical lines named in the legend, x -> text.

    A panel must be clear without its report: it has a title, and labels on both axes.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    flip_x: bool = False
    marks: Mapping[float, str] = {}


def beside_paper(panel: Panel, network: str, papers_network: str) -> list[Panel]:
    """The panel; if its curves from the paper are of another network, they go into a second panel beside it."""
    if papers_network == network:
        return [panel]
    panels = []
    for title, is_paper in ((panel.title, False), (f"paper, {keskar.where(papers_network)}", True)):
        lines = [line for line in panel.lines if line.colour.startswith("paper") == is_paper]
        marks = {x: words for x, words in panel.marks.items() if ("paper" in words) == is_paper}
        panels.append(panel._replace(title=title, lines=lines, marks=marks))
    return panels


def panels(panels: Sequence[Panel]) -> Figure:
    """A figure of panels, at least one, two side by side, with one legend below them."""
    for panel in panels:
        if not (panel.title and panel.x_label and panel.y_label):
            raise ValueError(f"panel has the title and labels {panel[:3]}; it must have all three")
    figure, places = axes(len(panels))
    for ax, panel in zip(places, panels, strict=True):
        draw(ax, panel.lines)
        for k, (x, words) in enumerate(panel.marks.items()):
            dashes = (0, ((6, 3), (1, 2))[k % 2])
            ax.axvline(x, color="#555555", linewidth=1, linestyle=dashes, zorder=1, label=" ".join(words.split()))
        ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        for axis in "x" * panel.log_x + "y" * panel.log_y:
            logarithmic(ax, axis)
        ax.xaxis.set_inverted(panel.flip_x)
        finish(ax)
    return figure


def intervals(
    names: Sequence[str], panels: Mapping[tuple[str, str], Any], *, limits: Numbers = None, start: float = 0
) -> Figure:
    """A value with an interval for each name, one marker for each series; names from the bottom up.

    Args:
      panels: (title, label of the axis) -> series -> a value and the ends of its interval for each name. An axis
        with "times" or "% of" in its label is logarithmic.
      limits: limits of all axes; by default each axis fits its values.
      start: where to draw a vertical line, but at 1 on an axis of "times"; NaN for no line.
    """
    figure, places = axes(len(panels), len(panels))
    most = max(map(len, panels.values()), default=0)
    figure.set_figheight((0.2 + 0.05 * most) * len(names) + 1.5)
    for ax, ((title, label), series) in zip(places, panels.items(), strict=True):
        others = itertools.cycle(_OTHERS[1:] if "SB" in series else (("#333333", "o"), *_OTHERS[1:]))
        for k, (name, values) in enumerate(series.items()):
            colour, marker = _SIDES.get(name) or next(others)
            height = np.arange(len(names)) + 0.22 * (0.5 * (len(series) - 1) - k)
            middle, low, high = numbers(f"panels {title!r}", values, len(names) or None, 3).T
            ax.hlines(height, low, high, color=colour, linewidth=1.2)
            ax.plot(middle, height, marker, color=colour, markersize=4, label=name or None)
        if "times" in label or "% of" in label:
            logarithmic(ax, "x")
        if np.isfinite(start):
            ax.axvline(1 if "times" in label else start, color="#555555", linewidth=0.7, zorder=1)
        ax.set_yticks(range(len(names)), list(names) if ax is places[0] else [])
        ax.set(title=title, xlabel=label, xlim=limits)
        finish(ax, grid="both" if len(series) > 1 else "x")
    return figure


def _current() -> Axes:
    return importlib.import_module("matplotlib.pyplot").gca()  # which chooses a backend


def _of_side(side: str, sides: Sequence[str]) -> tuple[str, str]:
    """The colour and marker of a side: those of SB and LB are the same in every figure."""
    return _SIDES.get(side) or _OTHERS[[name for name in sides if name not in _SIDES].index(side) % len(_OTHERS)]
