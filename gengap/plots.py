"""Axes with lines, contours, intervals and grids of words, drawn from plain numbers.

Nothing here touches pyplot, so importing it chooses no backend and opens no window.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from gengap.figures import COLOURS, MARKERS, RC, array, finish

_ROLES = {**COLOURS, "here": "#333333", "other": "#7a5195", "paper": "black", "paper, other": "#808080"}


class Line(NamedTuple):
    """One curve of a panel; lines of one label share an entry of the legend."""

    x: Sequence[float]
    y: Sequence[float | None]
    label: str = ""
    colour: str = "here"  # "SB", "LB", "here", "other", "paper", "paper, other"
    dashes: Any = "-"
    width: float = 1.7
    marker: str = ""
    alpha: float = 1.0


class Panel(NamedTuple):
    """Axes and the lines in them; `marks` are vertical lines with a text, x -> text."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    flip_x: bool = False
    marks: Mapping[float, str] = {}


class Map(NamedTuple):
    """A positive function on a grid of a plane, and points to name in it."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    y: Sequence[float]
    values: Sequence[Sequence[float | None]]  # rows of y
    points: Mapping[str, tuple[float, float]]


def seeds(
    curves: Sequence[tuple[Sequence[float], Sequence[float | None]]],
    label: str,
    colour: str,
    dashes: Any = "-",
    marker: str = "",
) -> list[Line]:
    """A thin line for each seed and a thick one for their mean, where they have the same x."""
    lines = [Line(x, y, "", colour, dashes, 0.5, "", 0.55) for x, y in curves] if len(curves) > 1 else []
    same = [list(x) for x, _ in curves]
    if curves and all(x == same[0] for x in same):
        mean = np.mean([array(y) for _, y in curves], axis=0)
        return [*lines, Line(same[0], mean.tolist(), label, colour, dashes, 1.7, marker)]
    return [Line(x, y, label, colour, dashes, 1.0, marker, 0.8) for x, y in curves]


def panels(every: Sequence[Panel], columns: int = 2) -> Figure:
    """Axes side by side with one legend below them.

    Args:
        every: the panels, at least one.
        columns: how many side by side.

    Returns:
        The figure, 7 inches wide.
    """
    columns = min(columns, len(every))
    rows = math.ceil(len(every) / columns)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7, 2.7 * rows + 0.7), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in grid[len(every) :]:
            ax.remove()
        named: dict[str, Line] = {}
        for ax, panel in zip(grid, every, strict=False):
            for line in panel.lines:
                ours = not line.colour.startswith("paper")
                ax.plot(line.x, array(line.y), color=_ROLES[line.colour], linestyle=line.dashes,
                        linewidth=line.width, marker=line.marker, markersize=3.5, alpha=line.alpha,
                        zorder=4 if ours and line.width > 1 else 3)  # fmt: skip
                if line.label:
                    named.setdefault(line.label, line)
            for x, words in panel.marks.items():
                ax.axvline(x, color="#555555", linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)
                ax.annotate(words, (x, 1), xycoords=("data", "axes fraction"), xytext=(2, -2),
                            textcoords="offset points", fontsize=7.5, va="top", color="#333333")  # fmt: skip
            ax.set_title(panel.title)
            ax.set_xlabel(panel.x_label)
            ax.set_ylabel(panel.y_label)
            ax.grid(axis="y", color="#dddddd", linewidth=0.5)
            for log, axis, set_scale in (
                (panel.log_x, ax.xaxis, ax.set_xscale),
                (panel.log_y, ax.yaxis, ax.set_yscale),
            ):
                if log:
                    set_scale("log")
                    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                    low, high = axis.get_view_interval()
                    if high < 12 * low:
                        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.1g}"))
            if panel.flip_x:
                ax.invert_xaxis()
        handles = [
            Line2D([], [], color=_ROLES[line.colour], linestyle=line.dashes, marker=line.marker, markersize=3.5,
                   linewidth=line.width, label=label)
            for label, line in named.items()
        ]  # fmt: skip
        return finish(figure, handles, 3 if max(map(len, named), default=0) > 20 else 4)


def maps(every: Sequence[Map]) -> Figure:
    """Contours of positive functions, on one logarithmic scale of levels."""
    values = [np.array(one.values, dtype=float) for one in every]
    positive = np.concatenate([v[np.isfinite(v) & (v > 0)] for v in values])
    low, high = np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max()))
    low = max(low, high - 6)
    levels = 10 ** np.arange(low, high + 0.25, 0.5)
    with matplotlib.rc_context(RC):
        columns = min(3, len(every))
        rows = math.ceil(len(every) / columns)
        figure = Figure(figsize=(7, 2.7 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in grid[len(every) :]:
            ax.remove()
        for ax, one, value in zip(grid, every, values, strict=False):
            value = np.clip(np.nan_to_num(value, nan=levels[-1]), levels[0], levels[-1])
            norm = LogNorm(levels[0], levels[-1])
            filled = ax.contourf(one.x, one.y, value, levels, norm=norm, cmap="Greys", alpha=0.8)
            ax.contour(one.x, one.y, value, levels[::2], norm=norm, colors="#444444", linewidths=0.5)
            for name, (x, y) in one.points.items():
                colour = COLOURS.get(name, "#5d3a6b")
                ax.plot([x], [y], MARKERS.get(name, "^"), color=colour, markeredgecolor="white", markersize=7)
                side = -1 if x > (one.x[0] + one.x[-1]) / 2 else 1
                ax.annotate(name, (x, y), xytext=(5 * side, 5), textcoords="offset points", fontsize=8,
                            ha="left" if side > 0 else "right")  # fmt: skip
            ax.set_aspect("equal")
            ax.set_title(one.title)
            ax.set_xlabel(one.x_label)
            ax.set_ylabel(one.y_label)
        figure.colorbar(filled, ax=list(grid[: len(every)]), label="training loss (nats)", shrink=0.9,
                        ticks=levels[::2])  # fmt: skip
        return figure


def intervals(names: Sequence[str], series: Mapping[str, Sequence[tuple[float, float, float]]]) -> Figure:
    """A value with an interval for each name, one marker for each series; names from the bottom up."""
    styles = (("here", "o"), ("other", "s"), ("paper, other", "^"))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7, 0.26 * len(names) + 1.2), layout="constrained")
        ax = figure.subplots()
        handles = []
        for k, (label, values) in enumerate(series.items()):
            colour, marker = _ROLES[styles[k][0]], styles[k][1]
            place = np.arange(len(names)) + 0.16 * (0.5 * (len(series) - 1) - k)
            middle, low, high = np.array(values, dtype=float).T
            ax.hlines(place, low, high, color=colour, linewidth=1.2)
            ax.plot(middle, place, marker, color=colour, markersize=4)
            handles.append(Line2D([], [], color=colour, marker=marker, markersize=4, linewidth=1.2, label=label))
        ax.axvline(0, color="#555555", linewidth=0.7)
        ax.set_yticks(range(len(names)), list(names))
        ax.grid(axis="x", color="#dddddd", linewidth=0.5)
        ax.set_xlim(-1.02, 1.02)
        ax.set_xlabel("rank correlation with the generalisation gap")
        return finish(figure, handles, 3)


def grid(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Figure:
    """Words in rows and columns; cells that hold more than one character are shaded."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7, 0.25 * len(rows) + 0.5), layout="constrained")
        ax = figure.subplots()
        ax.set_axis_off()
        shades = [["#f6dcb8" if len(word) > 1 else "white" for word in line] for line in cells]
        table = ax.table(list(map(list, cells)), cellColours=shades, rowLabels=list(rows), colLabels=list(columns),
                         cellLoc="center", bbox=Bbox.from_bounds(0.34, 0, 0.66, 1))  # fmt: skip
        table.auto_set_font_size(False)
        table.set_fontsize(8)
        for cell in table.get_celld().values():
            cell.set_linewidth(0.4)
            cell.set_edgecolor("#bbbbbb")
        return figure
