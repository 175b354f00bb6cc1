"""The parts of every figure: Axes on a sheet with one legend, lines, logarithmic axes, and the image file.

A colour means the same in all figures: SB is blue, LB orange, the paper black and grey, a third kind of run
purple. Test is dashed, the paper dotted, a seed thin, a mean of seeds thick. `gengap.mplstyle` has the sizes.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

__all__ = ["Line", "axes", "dotted", "draw", "finish", "image", "logarithmic", "numbers", "seeds", "tick"]

Numbers = Any  # what NumPy makes floats of; None is NaN

# Dark blue and light orange differ in hue for every kind of colour vision, and in lightness in print.
ROLES = {"SB": "#00498d", "LB": "#e08300", "here": "#333333", "other": "#7a5195", "paper": "black",
          "paper, other": "#808080"}  # fmt: skip
_RC = matplotlib.rc_params_from_file(Path(__file__).with_name("gengap.mplstyle"), use_default_template=False)


class _Sheet(Figure):
    """A figure with one legend for all its Axes, below them."""


def axes(count: int, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure for a report, 7 inches wide, with one legend below all its Axes, at most `columns` side by side."""
    if count < 1:
        raise ValueError(f"there is nothing to draw: the number of panels is {count}; it must be 1 or more")
    rows, columns = -(-count // columns), min(columns, count)
    with matplotlib.rc_context(_RC):
        figure = _Sheet(figsize=(7, 2.7 * rows + (0.7 if count > 1 else 1.2)), layout="constrained")
        for k in range(count):
            figure.add_subplot(rows, columns, k + 1)
    return figure, figure.axes


class Line(NamedTuple):
    """One curve of a panel; lines with the same label share a legend entry."""

    x: Numbers
    y: Numbers
    label: str = ""
    colour: str = "here"  # "SB", "LB", "here", "other", "paper", "paper, other", or any of matplotlib's
    dashes: Any = "-"
    width: float = 1.7
    marker: str = ""
    alpha: float = 1.0
    seeds: int = 0  # how many seeds it is the mean of; 1 for a single seed


def dotted(curve: tuple[Numbers, Numbers], label: str) -> Line:
    """A dotted curve of the paper: grey for LB, and for test if the label has no side; wider gaps for test."""
    is_test = "test" in label
    colour = "paper, other" if "LB" in label or (is_test and "SB" not in label) else "paper"
    return Line(*curve, label, colour, (0, (1, 3 if is_test else 1)), 1.1)


def seeds(curves: Sequence[Any], label: str, colour: str, dashes: Any = "-", marker: str = "") -> list[Line]:
    """A thin line for each (x, y). If they share x, also a thick line for their mean, as far as all reach."""
    pairs = [[numbers(f"curve {label!r}", v, np.size(x)) for v in (x, y)] for x, y in curves if np.size(x)]
    shared = min((len(x) for x, _ in pairs), default=0)
    if any((x[:shared] != pairs[0][0][:shared]).any() for x, _ in pairs):
        return [Line(x, y, label, colour, dashes, 1.0, marker, 0.8, 1) for x, y in pairs]
    dot = "." if shared < 4 else ""
    lines = [Line(x, y, "", colour, dashes, 0.5, dot, 0.55, 1) for x, y in pairs] if len(pairs) > 1 else []
    if shared:
        mean, marker = np.mean([y[:shared] for _, y in pairs], axis=0), marker or dot
        lines.append(Line(pairs[0][0][:shared], mean, label, colour, dashes, marker=marker, seeds=len(pairs)))
    return lines


def image(figure: Figure) -> bytes:
    """The bytes of an SVG file; the same figure gives the same bytes, as the file has no date and no version."""
    for ax in figure.axes:
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
            text.set_fontsize(_RC["font.size"])  # text set later has matplotlib's default size
    with matplotlib.rc_context(_RC), warnings.catch_warnings(action="ignore", category=UserWarning):  # no glyph
        figure.savefig(target := io.BytesIO(), format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def numbers(argument: str, values: Numbers, *shape: int | None) -> np.ndarray:
    """Floats of a shape, `None` being 1 or more. Infinities become NaN; what would overflow is cut at 1e250."""
    try:
        x = np.array(values, float, ndmin=len(shape))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{argument} must be numbers: {error}") from None
    if x.shape != tuple(n or m if m is None else m for n, m in zip(x.shape, shape, strict=False)):
        raise ValueError(f"{argument} has the shape {x.shape}; it must be {shape}".replace("None", "1 or more"))
    return np.where(np.abs(x) < 1e-250, 0, np.where(np.isfinite(x), x.clip(-1e250, 1e250), np.nan))


def draw(ax: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        x, y = (numbers(f"line {line.label!r}", values, np.size(line.x)) for values in (line.x, line.y))
        front = 5 if line.colour.startswith("paper") else 4 if line.width > 1 else 3
        (drawn,) = ax.plot(x, y, color=ROLES.get(line.colour, line.colour), linestyle=line.dashes,
                linewidth=line.width, marker=line.marker, markersize=3.5, alpha=line.alpha, zorder=front,
                label=line.label or None)  # fmt: skip
        drawn.gengap_seeds = line.seeds  # type: ignore[attr-defined]


def finish(ax: Axes, grid: Literal["x", "y", "both", ""] = "y") -> Axes:
    """Add a faint grid, and a legend of everything with a label: below a figure of `axes`, else in the Axes."""
    if grid:
        ax.grid(axis=grid, color="#dddddd", linewidth=0.5)
    sheet = figure if isinstance(figure := ax.get_figure(), _Sheet) else None
    named = [zip(*each.get_legend_handles_labels(), strict=True) for each in (sheet.axes if sheet else [ax])]
    artists = {label: handle for pairs in named for handle, label in pairs}
    labels = sorted(artists, key=lambda label: label.startswith(("at the edge", "diverged", "paper")))
    artists |= (rule := _seeds_rule(sheet.axes if sheet else [ax]))
    labels += rule
    handles = [artists[label] for label in labels]
    if sheet and labels:
        sheet.legends.clear()
        fitting = max(1, min(4, int(7 / (0.065 * max(map(len, labels)) + 0.6))))  # columns in 7 inches
        rows = -(-len(labels) // fitting)
        sheet.legend(handles, labels, handlelength=2.6, ncols=-(-len(labels) // rows), columnspacing=1.4,
                     loc="outside lower center", fontsize=_RC["font.size"], frameon=False)  # fmt: skip
    elif labels:
        ax.legend(handles, labels, handlelength=2.6, fontsize="small")
    return ax


def _seeds_rule(places: Sequence[Axes]) -> dict[str, Any]:
    """Legend entries that say what thin and thick lines are."""
    counts = sorted({getattr(line, "gengap_seeds", 0) for ax in places for line in ax.lines} - {0})
    means = [count for count in counts if count > 1]
    if not means:
        return {"every line: one seed": Line2D([], [], alpha=0)} if counts else {}
    many = f"{means[0]} to {means[-1]}" if len(means) > 1 else means[0]
    looks = {"thin: one seed": 0.5, f"thick: mean of {many} seeds": 1.7}
    return {words: Line2D([], [], color="#777777", linewidth=width) for words, width in looks.items()}


def logarithmic(ax: Axes, which: str, *limits: float) -> None:
    """Make the "x" or "y" axis logarithmic with plain numbers; without limits only if some value is positive."""
    if not limits and np.isinf(getattr(ax.dataLim, f"minpos{which}")):
        return
    axis = getattr(ax, f"{which}axis")
    ax.set(**{f"{which}scale": "log", f"{which}lim": limits or None})
    decades = np.ptp(np.log10(axis.get_view_interval()))
    finest = (1, 2, 3, 4, 6, 8) if decades < 0.6 else (1, 2, 5) if decades < 1.3 else (1, 3)
    axis.set_major_locator(LogLocator(subs=finest if decades < 2.3 else (1,)))
    axis.set_major_formatter(tick)
    if decades < 2.3:
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_minor_formatter("")


def tick(value: float, _: Any = None) -> str:
    """The text of a tick: 0.003, 0.01, 600; a power of ten if far from 1."""
    if value > 0 and not 1e-4 <= value < 1e6:
        power = int(np.floor(np.log10(value) + 1e-9))
        factor = value / 10.0**power
        return (f"{factor:.3g}×" if abs(factor - 1) > 1e-6 else "") + f"$10^{{{power}}}$"
    return f"{value:.10g}"
