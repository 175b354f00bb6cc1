"""The figures: paths, planes, spectral densities, sharpness and accuracy, from plain numbers or results.

`path`, `plane`, `density`, `sharpness` and `accuracy` draw into `ax`, by default pyplot's current Axes, with a
legend, and return the Axes. The words of a label say how a line looks: SB is blue, LB orange, test dashed, and the
paper dotted. Importing this chooses no backend and opens no window.
"""

import importlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

__all__ = [
    "Line", "Panel", "accuracy", "axes", "beside_paper", "density", "dotted", "grid", "image", "intervals",
    "levels", "panels", "path", "plane", "seeds", "sharpness",
]  # fmt: skip

Numbers = Any  # what NumPy makes floats of; None is NaN

# Dark blue and light orange differ in hue for every kind of colour vision, and in lightness in print.
_ROLES = {"SB": "#00498d", "LB": "#e08300", "here": "#333333", "other": "#7a5195", "paper": "black",
          "paper, other": "#808080"}  # fmt: skip
_SIDES = {"SB": (_ROLES["SB"], "o"), "LB": (_ROLES["LB"], "s")}
_OTHERS = (("#333333", "^"), ("#7a5195", "v"), ("#5a9e6f", "D"), ("#b5651d", "P"), ("#999999", "X"))
_SIZE = 9
_RC: dict[Any, Any] = {"font.size": _SIZE, "axes.linewidth": 0.7, "svg.hashsalt": "gengap"}
_RC |= {"axes.spines.top": False, "axes.spines.right": False}


class _Sheet(Figure):
    """A figure with one legend for all its Axes, below them."""


def axes(count: int, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure for a report, 7 inches wide, with one legend below all its Axes, at most `columns` side by side."""
    if count < 1:
        raise ValueError(f"there is nothing to draw: the number of panels is {count}; it must be 1 or more")
    rows, columns = -(-count // columns), min(columns, count)
    with matplotlib.rc_context(_RC):
        figure = _Sheet(figsize=(7, 2.7 * rows + 0.7), layout="constrained")
        for k in range(count):
            figure.add_subplot(rows, columns, k + 1).tick_params(which="both", labelsize=_SIZE)
    return figure, figure.axes


def path(alphas: Numbers, curves: Numbers | Mapping[str, Numbers], *, ax: Axes | None = None) -> Axes:
    """A function along a path, such as `landscape.along(...)` gives it; 0 and 1, the ends, are marked.

    Args:
      alphas: [k], where.
      curves: [k], or label -> [k] or [seeds, k]. Seeds are thin lines, their mean is a thick one.
    """
    x = _numbers("alphas", alphas, None)
    if isinstance(curves, Mapping) and not curves:
        raise ValueError("curves is empty; it must hold a curve")
    ax = ax or _current()
    for label, values in (curves if isinstance(curves, Mapping) else {"": curves}).items():
        pairs = [(x, y) for y in _numbers(f"curves {label!r}", values, None, len(x))]
        if label.startswith("paper"):
            _draw(ax, [dotted(pair, label) for pair in pairs])
        else:
            words = label.replace(",", " ").split()
            unnamed = _OTHERS[len(ax.get_legend_handles_labels()[1]) % len(_OTHERS)][0]
            colour = next((word for word in words if word in _SIDES), unnamed)
            _draw(ax, seeds(pairs, label, colour, "--" if "test" in words else "-"))
    for end in [end for end in (0, 1) if x.min() <= end <= x.max()]:
        ax.axvline(end, color="#999999", linewidth=0.7, zorder=1)
    ax.set_xlabel("alpha")
    return _finish(ax)


def levels(*values: Numbers) -> np.ndarray:
    """Every half decade from the least positive one of some values to the largest, at most the upper 6 decades."""
    positive = [v for array in values for v in _numbers("values", np.ravel(array), None) if v > 0]
    if not positive:
        raise ValueError("values has none that is positive and finite, as a logarithmic scale needs")
    low, high = np.floor(np.log10(min(positive))), np.ceil(np.log10(max(positive)))
    return 10 ** np.arange(max(low, high - 6), max(high, low + 1) + 0.25, 0.5)


def plane(
    s: Numbers, t: Numbers, values: Numbers, *, points: Any = None, at: Numbers = None, ax: Axes | None = None
) -> Axes:
    """Contours of a positive function on a plane, such as `landscape.over(...)` gives it, on logarithmic levels.

    Args:
      s, t: [columns] and [rows], coordinates.
      values: [rows, columns]. What is not finite is drawn as the highest level, what is below the lowest as that.
      points: name -> (s, t), to mark.
      at: the levels, for planes that share them; `levels(values)` unless given.
    """
    s, t, points = _numbers("s", s, None), _numbers("t", t, None), points or {}
    z = _numbers("values", values, len(t), len(s))
    if not np.minimum(np.ptp(s), np.ptp(t)) > 0:
        raise ValueError(f"s and t have {len(s)} and {len(t)} numbers; two of each must differ, else draw a path")
    steps = levels(z) if at is None else _numbers("at", at, None)
    if len(steps) < 2 or not (np.diff(steps, prepend=0) > 0).all():
        raise ValueError(f"at is {at}; it must be two levels or more, from above 0 upwards")
    ax, z = ax or _current(), np.clip(np.nan_to_num(z, nan=steps[-1]), steps[0], steps[-1])
    filled = ax.contourf(s, t, z, steps, norm="log", vmin=steps[0], vmax=steps[-1], cmap="Greys", alpha=0.8)
    ax.contour(s, t, z, steps[::2], colors="#444444", linewidths=0.5)
    for name, (x, y) in points.items():
        colour, marker = _of_side(name, list(points))
        ax.plot([x], [y], marker, color=colour, markeredgecolor="white", markersize=8, label=name)
    ax.figure.colorbar(filled, ax=ax, ticks=steps[::2], format="{x:g}").ax.tick_params(labelsize=8)
    ax.set_aspect("equal")
    return _finish(ax, grid="")


def density(spectrum: Any, *, ax: Axes | None = None) -> Axes:
    """A spectral density from `hessian.density` with its standard error.

    Between two eigenvalues it falls to 1e-39 and the like, which says nothing but how wide its Gaussians are: the
    logarithmic axis ends at a tenth of the lowest peak.
    """
    x = _numbers("spectrum.eigenvalues", spectrum.eigenvalues, None)
    y, sem = (_numbers(f"spectrum.{name}", getattr(spectrum, name), len(x)) for name in ("density", "sem"))
    if not (np.isfinite(y).all() and y.max() > 0):
        raise ValueError("the density is not finite, or 0 everywhere: there is nothing to draw")
    peaks = y[1:-1][(y[1:-1] >= y[:-2]) & (y[1:-1] >= y[2:]) & (y[1:-1] > 1e-12 * y.max())]
    ax, bottom = ax or _current(), min(peaks, default=y.max()) / 10
    ax.plot(x, y, "-" if len(x) > 3 else ".", color=_ROLES["here"], lw=1.5, label="density of the eigenvalues")
    low, high = np.maximum(y - sem, bottom), np.maximum(y + sem, bottom)
    if np.isfinite(sem).any():  # one draw has none
        ax.fill_between(x, low, high, color=_ROLES["here"], alpha=0.25, linewidth=0, label="± standard error")
    _logarithmic(ax, "y", bottom, 2 * np.fmax(y, high).max())
    ax.set(xlabel="eigenvalue of the Hessian", ylabel="density")
    return _finish(ax)


def sharpness(values: Mapping[str, Any], *, paper: Mapping | None = None, ax: Axes | None = None) -> Axes:
    """Sharpness of every seed on a logarithmic axis, SB beside LB; a thin line joins the two of one seed.

    A value that the axis cannot show stands at its bottom edge: a triangle for 0, a cross where it is not finite.

    Args:
      values: label of a network -> side -> seed -> value, `None` or NaN where it is not finite.
      paper: label of a network -> side -> (mean, standard deviation), drawn beside them.
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
            y = _numbers(f"values {network!r}", [minima.get(side, {}).get(seed) for side in sides], len(sides))
            ax.plot(x[y > 0], y[y > 0], color="#bbbbbb", linewidth=0.6, zorder=1)
            for i, side in enumerate(sides):
                if seed in minima.get(side, {}):
                    _minimum(ax, x[i], y[i], side, sides)
        for i, side in enumerate(sides):
            if papers := (paper or {}).get(network, {}).get(side):
                mean, std = np.nan_to_num(_numbers(f"paper {network!r}", papers, 2))
                x = place + centres[i] + (-0.15 if i < len(sides) / 2 else 0.15)
                ax.errorbar(x, mean, std, fmt="kD-", markerfacecolor="white", markersize=4, linewidth=1, capsize=2,
                            zorder=2, label="paper, mean ± std")  # fmt: skip
    turned = 30 if sum(max(map(len, label.split("\n"))) for label in values) > 40 else 0
    ax.set_xticks(range(len(values)), list(values), rotation=turned, ha="right" if turned else "center")
    ax.tick_params(axis="x", length=0)
    ax.set(xlim=(-0.6, len(values) - 0.4), ylabel="sharpness (% of 1 + f)")
    low, high = (ax.dataLim.minposy, ax.dataLim.ymax) if np.isfinite(ax.dataLim.minposy) else (0.22, 5)
    _logarithmic(ax, "y", low / 2.2, high * 1.8)
    return _finish(ax)


def _minimum(ax: Axes, x: float, y: float, side: str, sides: Sequence[str]) -> None:
    """One minimum, at the bottom edge where a logarithmic axis cannot show it."""
    colour, marker = _of_side(side, sides)
    if y > 0:
        ax.plot(x, y, marker, color=colour, markersize=4, alpha=0.85, zorder=3, label=f"{side}, one seed")
    else:
        kind, face, words = ("x", colour, "not finite") if np.isnan(y) else ("v", "white", "0")
        ax.plot(x, 0.03, kind, color=colour, markerfacecolor=face, markersize=5,
                transform=ax.get_xaxis_transform(), label=f"at the edge: {words}")  # fmt: skip


def accuracy(histories: Mapping[str, Any], *, paper: Mapping | None = None, ax: Axes | None = None) -> Axes:
    """Accuracy per epoch, as in the paper's Fig. 2: training solid, test dashed.

    Thin lines are seeds, thick ones their mean over the epochs that all have. A seed with a number that is not
    finite is a thin line that ends in a cross, and in no mean.

    Args:
      histories: side -> a `train.History` for each seed, or one; "train_accuracy", "test_accuracy" are shares.
      paper: (side, "train" or "test") -> epochs, accuracies in percent.
    """
    sides = {side: [runs] if isinstance(runs, Mapping) else list(runs) for side, runs in histories.items()}
    if not paper and not any(np.size(v) for runs in sides.values() for run in runs for v in run.values()):
        raise ValueError("histories has no epoch of any seed: there is nothing to draw")
    ax = ax or _current()
    for side, runs in sides.items():
        colour = _of_side(side, list(sides))[0]
        for split, dashes in (("train", "-"), ("test", "--")):
            curves = []
            for run in [run for run in runs if np.size(run.get(f"{split}_accuracy", ()))]:
                y = 100 * _numbers(f"histories {side!r}", run[f"{split}_accuracy"], None)
                x = np.arange(1, len(y) + 1)
                if all(np.isfinite(np.asarray(values, float)).all() for values in run.values()):
                    curves.append((x, y))
                else:
                    last = np.flatnonzero(np.isfinite(y))[-1:]
                    _draw(ax, [Line(x, y, "", colour, dashes, 0.5, alpha=0.6)])
                    ax.plot(x[last], y[last], "x", color="black", markersize=6, zorder=5, label="diverged")
            _draw(ax, seeds(curves, f"{side} {split}", colour, dashes))
    _draw(ax, [dotted(curve, f"paper, {side} {split}") for (side, split), curve in (paper or {}).items()])
    ax.set(xlabel="epoch", ylabel="accuracy (%)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10], min_n_ticks=1))
    return _finish(ax)


class Line(NamedTuple):
    """One curve of a panel; lines of one label share an entry of the legend."""

    x: Numbers
    y: Numbers
    label: str = ""
    colour: str = "here"  # "SB", "LB", "here", "other", "paper", "paper, other", or any of matplotlib's
    dashes: Any = "-"
    width: float = 1.7
    marker: str = ""
    alpha: float = 1.0


def dotted(curve: tuple[Numbers, Numbers], label: str) -> Line:
    """A curve of the paper; one whose label says LB is grey, one that says test has wider gaps."""
    colour, gap = "paper, other" if "LB" in label else "paper", 3 if "test" in label else 1
    return Line(*curve, label, colour, (0, (1, gap)), 1.1)


class Panel(NamedTuple):
    """Axes and the lines in them; `marks` are vertical lines that the legend names, x -> text."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    flip_x: bool = False
    marks: Mapping[float, str] = {}


def seeds(curves: Sequence[Any], label: str, colour: str, dashes: Any = "-", marker: str = "") -> list[Line]:
    """A thin line for each (x, y), and a thick one for their mean as far as all reach, if they have the same x."""
    pairs = [[_numbers(f"curve {label!r}", v, np.size(x)) for v in (x, y)] for x, y in curves if np.size(x)]
    shared = min((len(x) for x, _ in pairs), default=0)
    if any((x[:shared] != pairs[0][0][:shared]).any() for x, _ in pairs):
        return [Line(x, y, label, colour, dashes, 1.0, marker, 0.8) for x, y in pairs]
    dot = "." if shared < 4 else ""
    lines = [Line(x, y, "", colour, dashes, 0.5, dot, 0.55) for x, y in pairs] if len(pairs) > 1 else []
    if shared:
        mean = np.mean([y[:shared] for _, y in pairs], axis=0)
        lines.append(Line(pairs[0][0][:shared], mean, label, colour, dashes, marker=marker or dot))
    return lines


def beside_paper(panel: Panel, network: str, papers_network: str) -> list[Panel]:
    """The panel, or where the paper's curves in it are another network's, one for those beside it."""
    if papers_network == network:
        return [panel]
    panels, name = [], {"F2": "F2 on TIMIT", "C1": "C1 on CIFAR-10"}[papers_network]
    for title, is_paper in ((panel.title, False), (f"paper, {name}", True)):
        lines = [line for line in panel.lines if line.colour.startswith("paper") == is_paper]
        marks = {x: words for x, words in panel.marks.items() if ("paper" in words) == is_paper}
        panels.append(panel._replace(title=title, lines=lines, marks=marks))
    return panels


def panels(panels: Sequence[Panel]) -> Figure:
    """Axes, at least one, with one legend below them, two side by side."""
    figure, places = axes(len(panels))
    for ax, panel in zip(places, panels, strict=True):
        _draw(ax, panel.lines)
        for k, (x, words) in enumerate(panel.marks.items()):
            dashes = (0, ((6, 3), (1, 2))[k % 2])
            ax.axvline(x, color="#555555", linewidth=1, linestyle=dashes, zorder=1, label=" ".join(words.split()))
        ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        for axis in "x" * panel.log_x + "y" * panel.log_y:
            _logarithmic(ax, axis)
        ax.xaxis.set_inverted(panel.flip_x)
        _finish(ax)
    return figure


def intervals(names: Sequence[str], panels: Mapping[str, Any], *, limits: Numbers = None) -> Figure:
    """A value with an interval for each name, one marker for each series; names from the bottom up.

    Args:
      panels: what an axis shows -> series -> a value and the ends of its interval for each name.
      limits: of all axes; by default each is as long as it needs.
    """
    figure, places = axes(len(panels), len(panels))
    figure.set_figheight(0.26 * len(names) + 1.2)
    for ax, (title, series) in zip(places, panels.items(), strict=True):
        for k, (label, values) in enumerate(series.items()):
            colour, marker = (("#333333", "o"), ("#7a5195", "s"), ("#808080", "^"), *_OTHERS[2:])[k % 6]
            height = np.arange(len(names)) + 0.16 * (0.5 * (len(series) - 1) - k)
            middle, low, high = _numbers(f"panels {title!r}", values, len(names) or None, 3).T
            ax.hlines(height, low, high, color=colour, linewidth=1.2)
            ax.plot(middle, height, marker, color=colour, markersize=4, label=label or None)
        ax.axvline(0, color="#555555", linewidth=0.7)
        ax.set_yticks(range(len(names)), list(names) if ax is places[0] else [])
        ax.set(xlabel=title, xlim=limits)
        _finish(ax, grid="x")
    return figure


def grid(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Figure:
    """Words in rows and columns; cells that hold more than one character are shaded."""
    if not len(rows) * len(columns) or [len(row) for row in cells] != [len(columns)] * len(rows):
        raise ValueError(f"cells must be words, one at least, in {len(rows)} rows and {len(columns)} columns")
    figure, (ax,) = axes(1)
    figure.set_figheight(0.25 * len(rows) + 0.5)
    ax.set_axis_off()
    shades = [["#f6dcb8" if len(word) > 1 else "white" for word in row] for row in cells]
    table = ax.table(list(map(list, cells)), cellColours=shades, rowLabels=list(rows), colLabels=list(columns),
                     cellLoc="center", bbox=Bbox.from_bounds(0.34, 0, 0.66, 1))  # fmt: skip
    table.auto_set_font_size(False)
    for cell in table.get_celld().values():
        cell.set(linewidth=0.4, edgecolor="#bbbbbb", fontsize=8)
    return figure


def image(figure: Figure) -> bytes:
    """The bytes of an SVG file: the same for the same figure, since it holds no date and no version."""
    for ax in figure.axes:
        ax.title.set_fontsize(_SIZE)  # `set_title` has made it larger
    with matplotlib.rc_context(_RC), warnings.catch_warnings(action="ignore", category=UserWarning):  # no glyph
        figure.savefig(target := io.BytesIO(), format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def _current() -> Axes:
    return importlib.import_module("matplotlib.pyplot").gca()  # which chooses a backend


def _numbers(argument: str, values: Numbers, *shape: int | None) -> np.ndarray:
    """Floats of a shape, in which `None` is 1 or more; not finite is NaN, what matplotlib overflows with 1e250."""
    try:
        x = np.array(values, float, ndmin=len(shape))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{argument} must be numbers: {error}") from None
    if x.shape != tuple(n or m if m is None else m for n, m in zip(x.shape, shape, strict=False)):
        raise ValueError(f"{argument} has the shape {x.shape}; it must be {shape}".replace("None", "1 or more"))
    return np.where(np.abs(x) < 1e-250, 0, np.where(np.isfinite(x), x.clip(-1e250, 1e250), np.nan))


def _draw(ax: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        x, y = (_numbers(f"line {line.label!r}", values, np.size(line.x)) for values in (line.x, line.y))
        front = 4 if line.width > 1 and not line.colour.startswith("paper") else 3
        ax.plot(x, y, color=_ROLES.get(line.colour, line.colour), linestyle=line.dashes, linewidth=line.width,
                marker=line.marker, markersize=3.5, alpha=line.alpha, zorder=front,
                label=line.label or None)  # fmt: skip


def _finish(ax: Axes, grid: Literal["x", "y", ""] = "y") -> Axes:
    """Faint lines, and a legend of what has a label: below a figure of `axes`, else in the Axes."""
    if grid:
        ax.grid(axis=grid, color="#dddddd", linewidth=0.5)
    sheet = figure if isinstance(figure := ax.get_figure(), _Sheet) else None
    named = [zip(*each.get_legend_handles_labels(), strict=True) for each in (sheet.axes if sheet else [ax])]
    artists = {label: handle for pairs in named for handle, label in pairs}
    labels = sorted(artists, key=lambda label: label.startswith(("at the edge", "diverged", "paper")))
    handles = [artists[label] for label in labels]
    if sheet and labels:
        sheet.legends.clear()
        rows = -(-len(labels) // (3 if max(map(len, labels)) > 20 else 4))
        sheet.legend(handles, labels, handlelength=2.6, ncols=-(-len(labels) // rows), columnspacing=1.4,
                     fontsize=_SIZE, loc="outside lower center", frameon=False)  # fmt: skip
    elif labels:
        ax.legend(handles, labels, handlelength=2.6, fontsize="small")
    return ax


def _of_side(side: str, sides: Sequence[str]) -> tuple[str, str]:
    """The colour and marker of a side: SB and LB have theirs in every figure."""
    return _SIDES.get(side) or _OTHERS[[name for name in sides if name not in _SIDES].index(side) % len(_OTHERS)]


def _logarithmic(ax: Axes, which: str, *limits: float) -> None:
    """Make the "x" or "y" axis logarithmic, with plain numbers, between limits or where something is positive."""
    if not limits and np.isinf(getattr(ax.dataLim, f"minpos{which}")):
        return
    axis = getattr(ax, f"{which}axis")
    ax.set(**{f"{which}scale": "log", f"{which}lim": limits or None})
    axis.set_major_formatter("{x:g}")
    if np.ptp(np.log10(axis.get_view_interval())) < np.log10(12):
        axis.set_minor_formatter("{x:g}")
