"""The drawing of a run's two figures from plain numbers, and what all figures have in common.

Nothing here touches pyplot, so importing it chooses no backend and opens no window.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

# Dark blue and light orange differ in hue for every kind of colour vision, and in lightness in print.
COLOURS = {"SB": "#00498d", "LB": "#e08300"}
MARKERS = {"SB": "o", "LB": "s"}
_OTHERS = (("#5d3a6b", "^"), ("#5a9e6f", "v"), ("#777777", "D"))
_LINES: dict[str, Any] = {"train": "-", "test": "--"}
_PAPER_COLOURS = {"SB": "black", "LB": "#808080"}
_PAPER_LINES: dict[str, Any] = {"train": (0, (1, 1)), "test": (0, (1, 3))}
RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "gengap",
}


class Curves(NamedTuple):
    """Accuracy per epoch of one network, in percent; each key is a method and `"train"` or `"test"`."""

    title: str
    kept: Mapping[tuple[str, str], Sequence[Sequence[float | None]]]  # one sequence per seed
    diverged: Mapping[tuple[str, str], Sequence[Sequence[float | None]]]
    paper: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]]  # epochs, accuracies


class Points(NamedTuple):
    """Sharpness of one network under one measure: method -> seed -> value, None where it is not finite."""

    label: str
    values: Mapping[str, Mapping[int, float | None]]
    paper: Mapping[str, tuple[float, float]]  # method -> mean, standard deviation


def style(method: str, methods: Sequence[str]) -> tuple[str, str]:
    """The colour and marker of a method: SB and LB have theirs in every figure."""
    if method in COLOURS:
        return COLOURS[method], MARKERS[method]
    others = [name for name in methods if name not in COLOURS]
    return _OTHERS[others.index(method) % len(_OTHERS)]


def finish(figure: Figure, handles: Sequence[Line2D], columns: int) -> Figure:
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, frameon=False,
                  handlelength=2.6, columnspacing=1.4)  # fmt: skip
    return figure


def accuracy(panels: Sequence[Curves]) -> Figure:
    """Accuracy per epoch, one panel per network, as the paper's Fig. 2.

    Train is solid and test dashed; thin lines are seeds, thick lines their mean over the epochs that all
    seeds have. Seeds that diverged are thin lines that end in a cross and are in no mean.

    Args:
        panels: what to draw, at least one.

    Returns:
        The figure, 7 inches wide.
    """
    methods = list(dict.fromkeys(method for panel in panels for method, _ in [*panel.kept, *panel.diverged]))
    splits = list(_LINES)
    columns = min(len(panels), 3 if len(panels) > 4 else 2)
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7, 3.6 if rows == 1 else 2.6 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in grid[len(panels) :]:
            ax.remove()
        for ax, panel in zip(grid, panels, strict=False):
            for (method, split), (epochs, values) in panel.paper.items():
                ax.plot(epochs, values, color=_PAPER_COLOURS[method], linestyle=_PAPER_LINES[split],
                        linewidth=1.1, zorder=3)  # fmt: skip
            for (method, split), seeds in panel.diverged.items():
                for seed in seeds:
                    y = array(seed)
                    colour = style(method, methods)[0]
                    ax.plot(_epochs(y), y, color=colour, linestyle=_LINES[split], linewidth=0.5, alpha=0.6)
                    last = np.flatnonzero(np.isfinite(y))[-1:]
                    ax.plot(last + 1, y[last], "x", color="black", markersize=6, zorder=5)
            for (method, split), seeds in panel.kept.items():
                colour, line = style(method, methods)[0], _LINES[split]
                curves = [array(seed) for seed in seeds]
                for y in curves if len(curves) > 1 else []:
                    ax.plot(_epochs(y), y, color=colour, linestyle=line, linewidth=0.5, alpha=0.45)
                shared = min(map(len, curves), default=0)
                if shared:
                    mean = np.mean([y[:shared] for y in curves], axis=0)
                    ax.plot(_epochs(mean), mean, color=colour, linestyle=line, linewidth=1.7,
                            marker="." if shared < 4 else "", zorder=4)  # fmt: skip
            ax.set_title(panel.title)
            ax.set_xlabel("epoch")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
            ax.grid(axis="y", color="#dddddd", linewidth=0.5)
        for row in range(rows):
            grid[row * columns].set_ylabel("accuracy (%)")
        handles = [
            Line2D([], [], color=style(method, methods)[0], linestyle=_LINES[split], linewidth=1.7,
                   label=f"{method} {split}")
            for method in methods for split in splits
        ]  # fmt: skip
        drawn = dict.fromkeys(key for panel in panels for key in panel.paper)
        handles += [
            Line2D([], [], color=_PAPER_COLOURS[method], linestyle=_PAPER_LINES[split], linewidth=1.1,
                   label=f"paper, {method} {split}")
            for method, split in drawn
        ]  # fmt: skip
        away = any(panel.diverged for panel in panels)
        if away:
            handles.append(Line2D([], [], color="black", linestyle="", marker="x", label="diverged"))
        return finish(figure, handles, 5 if away else 4)


def sharpness(panels: Mapping[tuple[str, str], Sequence[Points]]) -> Figure:
    """Sharpness of every seed, SB beside LB, with the paper's mean and standard deviation.

    A thin line joins the two minima of one seed. A value that a log axis cannot show stands at the bottom
    edge: an open triangle for 0, a cross for a value that is not finite or a run that diverged.

    Args:
        panels: the networks of each panel, by the space and the setting (epsilon) in its title; at least
            one panel.

    Returns:
        The figure, 7 inches wide; panels of one space have the same vertical axis.
    """
    every = [points for panel in panels.values() for points in panel]
    methods = list(dict.fromkeys(method for points in every for method in points.values))
    # side by side, the names of more than three networks run into each other
    columns = 1 if len(panels) == 1 or max(map(len, panels.values())) > 3 else 2
    rows = math.ceil(len(panels) / columns)
    limits = {
        space: _limits([points for key, panel in panels.items() if key[0] == space for points in panel])
        for space, _ in panels
    }
    edge: set[str] = set()
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7, (2.5 if columns > 1 else 2.1) * rows + 0.7), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in grid[len(panels) :]:
            ax.remove()
        for ax, ((space, setting), networks) in zip(grid, panels.items(), strict=False):
            for place, points in enumerate(networks):
                edge |= _draw_points(ax, place, points, methods)
            ax.set_title(f"{space}, {setting}")
            ax.set_xticks(range(len(networks)), [points.label for points in networks])
            ax.set_xlim(-0.6, len(networks) - 0.4)
            ax.tick_params(axis="x", length=0)
            ax.grid(axis="y", color="#dddddd", linewidth=0.5)
            ax.set_yscale("log")
            ax.set_ylim(limits[space])
            ax.set_ylabel("sharpness (% of 1 + f)")
        handles = [
            Line2D([], [], linestyle="", marker=style(method, methods)[1], color=style(method, methods)[0],
                   label=f"{method}, one seed")
            for method in methods
        ]  # fmt: skip
        if any(points.paper for points in every):
            handles.append(Line2D([], [], color="black", marker="D", markerfacecolor="white", linewidth=1,
                                  label="paper, mean ± std"))  # fmt: skip
        if "zero" in edge:
            handles.append(Line2D([], [], color="#444444", linestyle="", marker="v", markerfacecolor="white",
                                  label="at the edge: 0"))  # fmt: skip
        if "missing" in edge:
            handles.append(Line2D([], [], color="#444444", linestyle="", marker="x",
                                  label="at the edge: not finite or diverged"))  # fmt: skip
        return finish(figure, handles, 3)


def image(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of an image file: the same figure gives the same bytes.

    Args:
        figure: what to write.
        kind: `"svg"`, or `"png"` at 200 dots per inch.

    Returns:
        The content of the file, without a date or a version in it.
    """
    absent = {"svg": ("Date", "Creator"), "png": ("Software",)}
    if kind not in absent:
        raise ValueError(f"kind is {kind!r}; it must be 'svg' or 'png'")
    target = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(target, format=kind, dpi=200, metadata=dict.fromkeys(absent[kind]))
    return target.getvalue()


def array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _epochs(values: np.ndarray) -> np.ndarray:
    return np.arange(1, len(values) + 1)


def _limits(every: Sequence[Points]) -> tuple[float, float]:
    """The ends of a log axis that holds every positive value and the paper's mean ± std."""
    drawn = [v for points in every for seeds in points.values.values() for v in seeds.values()]
    for points in every:
        for mean, std in points.paper.values():
            drawn += [mean + std, mean - std if std < mean else mean / 3]
    values = [value for value in drawn if value is not None and value > 0]
    return (min(values) / 2.2, max(values) * 1.8) if values else (0.1, 10.0)


def _draw_points(ax: Axes, place: int, points: Points, methods: Sequence[str]) -> set[str]:
    """Draw one network at x = place; return which kinds of value stand at the bottom edge."""
    edge: set[str] = set()
    at_edge = ax.get_xaxis_transform()
    seeds = sorted({seed for values in points.values.values() for seed in values})
    jitter = {seed: 0.035 * (i - (len(seeds) - 1) / 2) for i, seed in enumerate(seeds)}
    step = 0.36 if len(methods) < 3 else 0.72 / len(methods)
    centre = {method: place + step * (i - (len(methods) - 1) / 2) for i, method in enumerate(methods)}
    for seed in seeds:
        drawn = [
            (centre[method] + jitter[seed], value)
            for method in methods
            if (value := points.values.get(method, {}).get(seed)) is not None and value > 0
        ]
        ax.plot([x for x, _ in drawn], [y for _, y in drawn], color="#bbbbbb", linewidth=0.6, zorder=1)
    for i, method in enumerate(methods):
        colour, marker = style(method, methods)
        for seed, value in points.values.get(method, {}).items():
            x = centre[method] + jitter[seed]
            if value is not None and value > 0:
                ax.plot([x], [value], marker, color=colour, markersize=4, alpha=0.85, zorder=3)
            else:
                kind, face = ("x", colour) if value is None else ("v", "white")
                edge.add("missing" if value is None else "zero")
                ax.plot([x], [0.03], kind, color=colour, markerfacecolor=face, markersize=5, zorder=3,
                        transform=at_edge)  # fmt: skip
        if method in points.paper:
            mean, std = points.paper[method]
            outside = centre[method] + (-0.15 if i < len(methods) / 2 else 0.15)
            ax.errorbar([outside], [mean], yerr=[[min(std, mean * 0.999)], [std]], color="black", marker="D",
                        markerfacecolor="white", markersize=4, linewidth=1, capsize=2, zorder=2)  # fmt: skip
    return edge
