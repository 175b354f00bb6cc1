"""The figures: paths, planes, spectral densities, sharpness and accuracy, from plain numbers or results.

`path`, `plane`, `density`, `sharpness` and `accuracy` draw into `ax`, by default pyplot's current Axes, with a
legend, and return the Axes. The words of a label say how a line looks: SB is blue, LB orange, test dashed, and the
paper dotted. Importing this chooses no backend and opens no window.
"""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

Numbers = Any  # what NumPy makes floats of; None is NaN

# Dark blue and light orange differ in hue for every kind of colour vision, and in lightness in print.
_LOOKS = {"SB": ("#00498d", "o"), "LB": ("#e08300", "s")}
_OTHERS = (("#333333", "^"), ("#7a5195", "v"), ("#5a9e6f", "D"), ("#b5651d", "P"), ("#999999", "X"))
_ROLES = {"SB": "#00498d", "LB": "#e08300", "here": "#333333", "other": "#7a5195", "paper": "black"}
_ROLES["paper, other"] = "#808080"
_SIZE = 9
_RC: dict[Any, Any] = {"font.size": _SIZE, "axes.linewidth": 0.7, "svg.hashsalt": "gengap"}
_RC |= {"axes.spines.top": False, "axes.spines.right": False}


class _Sheet(Figure):
    """A figure with one legend for all its Axes, below them."""


def axes(count: int, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure for a report, 7 inches wide, with one legend below all its Axes, at most `columns` side by side."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    with matplotlib.rc_context(_RC):
        figure = _Sheet(figsize=(7, 2.7 * rows + 0.7), layout="constrained")
        every = [figure.add_subplot(rows, columns, k + 1) for k in range(count)]
        for ax in every:
            ax.tick_params(which="both", labelsize=_SIZE)
    return figure, every


def path(alphas: Numbers, curves: Numbers | Mapping[str, Numbers], *, ax: Axes | None = None) -> Axes:
    """A function along a path, such as `landscape.along(...)` gives it; 0 and 1, the ends, are marked.

    Args:
      alphas: [k], where.
      curves: [k], or label -> [k] or [seeds, k]. Seeds are thin lines, their mean is a thick one.
      ax: where to draw.
    """
    ax, x = _current(ax), np.asarray(alphas, float)
    for label, values in (curves if isinstance(curves, Mapping) else {"": curves}).items():
        every = np.atleast_2d(np.asarray(values, float))
        if every.shape[1:] != x.shape:
            raise ValueError(f"curves {label!r} has the shape {every.shape}; alphas has {len(x)} points")
        _draw(ax, seeds([(x, y) for y in every], label, *_look(ax, label)))
    for end in (0, 1):
        if x.min() <= end <= x.max():
            ax.axvline(end, color="#999999", linewidth=0.7, zorder=1)
    ax.set_xlabel("alpha")
    return _finish(ax)


def levels(*values: Numbers) -> np.ndarray:
    """Every half decade from the least positive one of some values to the largest, at most the upper 6 decades."""
    every = np.concatenate([np.ravel(np.asarray(one, float)) for one in values])
    positive = every[np.isfinite(every) & (every > 0)]
    if not positive.size:
        raise ValueError("values has none that is positive and finite, as a logarithmic scale needs")
    low, high = np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max()))
    return 10 ** np.arange(max(low, high - 6), max(high, low + 1) + 0.25, 0.5)


def plane(
    s: Numbers, t: Numbers, values: Numbers, *, points: Any = None, at: Numbers = None, ax: Axes | None = None
) -> Axes:
    """Contours of a positive function on a plane, such as `landscape.over(...)` gives it, on logarithmic levels.

    Args:
      s, t: [columns] and [rows], coordinates.
      values: [rows, columns]. NaN is drawn as the highest level, what is below the lowest one as that.
      points: name -> (s, t), to mark.
      at: the levels, for planes that share them; `levels(values)` unless given.
      ax: where to draw.
    """
    ax, z = _current(ax), np.asarray(values, float)
    steps = levels(z) if at is None else np.asarray(at, float)
    z = np.clip(np.nan_to_num(z, nan=steps[-1]), steps[0], steps[-1])
    norm = LogNorm(steps[0], steps[-1])
    filled = ax.contourf(s, t, z, steps, norm=norm, cmap="Greys", alpha=0.8)
    ax.contour(s, t, z, steps[::2], norm=norm, colors="#444444", linewidths=0.5)
    for name, (x, y) in (points or {}).items():
        colour, marker = _of_method(name, list(points or {}))
        ax.plot([x], [y], marker, color=colour, markeredgecolor="white", markersize=8, label=name)
    bar = ax.figure.colorbar(filled, ax=ax, ticks=steps[::2], format=StrMethodFormatter("{x:g}"))
    bar.ax.tick_params(labelsize=8)
    ax.set_aspect("equal")
    return _finish(ax, grid=False)


def density(found: Any, *, ax: Axes | None = None) -> Axes:
    """A spectral density from `hessian.density` with its standard error.

    Between two eigenvalues it falls to 1e-39 and the like, which says nothing but how wide its Gaussians are: the
    logarithmic axis ends at a tenth of the lowest peak.
    """
    ax = _current(ax)
    x, y, sem = (np.asarray(values, float) for values in (found.eigenvalues, found.density, found.sem))
    if not (np.isfinite(y).all() and y.max() > 0):
        raise ValueError("the density is not finite, or 0 everywhere: there is nothing to draw")
    peaks = y[1:-1][(y[1:-1] >= y[:-2]) & (y[1:-1] >= y[2:]) & (y[1:-1] > 1e-12 * y.max())]
    bottom = min(peaks, default=y.max()) / 10
    ax.plot(x, y, color=_ROLES["here"], linewidth=1.5, label="density of the eigenvalues")
    low, high = np.maximum(y - sem, bottom), np.maximum(y + sem, bottom)
    ax.fill_between(x, low, high, color=_ROLES["here"], alpha=0.25, linewidth=0, label="± standard error")
    _logarithmic(ax, "y", bottom, 2 * high.max())
    ax.set(xlabel="eigenvalue of the Hessian", ylabel="density")
    return _finish(ax)


def sharpness(values: Mapping[str, Any], *, paper: Mapping | None = None, ax: Axes | None = None) -> Axes:
    """Sharpness of every seed on a logarithmic axis, SB beside LB; a thin line joins the two of one seed.

    A value that the axis cannot show stands at its bottom edge: a triangle for 0, a cross where it is not finite.

    Args:
      values: label of a network -> method -> seed -> value, `None` or NaN where it is not finite.
      paper: label of a network -> method -> (mean, standard deviation), drawn beside them.
      ax: where to draw.
    """
    ax, on_axis = _current(ax), []
    methods = list(dict.fromkeys(method for of in values.values() for method in of))
    step = 0.36 if len(methods) < 3 else 0.72 / len(methods)
    for place, (network, of) in enumerate(values.items()):
        every = sorted({seed for own in of.values() for seed in own})
        centre = place + step * (np.arange(len(methods)) - (len(methods) - 1) / 2)
        x = centre[:, None] + 0.035 * (np.arange(len(every)) - (len(every) - 1) / 2)
        y = np.array([[of.get(method, {}).get(seed) for seed in every] for method in methods], float)
        lost = np.array([[seed in of.get(method, {}) for seed in every] for method in methods]) & ~np.isfinite(y)
        shown = np.isfinite(y) & (y > 0)
        on_axis += y[shown].tolist()
        for pair_x, pair_y, both in zip(x.T, y.T, shown.T, strict=True):
            ax.plot(pair_x[both], pair_y[both], color="#bbbbbb", linewidth=0.6, zorder=1)
        for i, method in enumerate(methods):
            colour, marker = _of_method(method, methods)
            if shown[i].any():
                ax.plot(x[i, shown[i]], y[i, shown[i]], marker, color=colour, markersize=4, alpha=0.85, zorder=3,
                        label=f"{method}, one seed")  # fmt: skip
            for there, kind, face, words in ((y <= 0, "v", "white", "0"), (lost, "x", colour, "not finite")):
                if there[i].any():
                    edge = x[i, there[i]]
                    ax.plot(edge, np.full(len(edge), 0.03), kind, color=colour, markerfacecolor=face, markersize=5,
                            transform=ax.get_xaxis_transform(), label=f"at the edge: {words}")  # fmt: skip
            if theirs := (paper or {}).get(network, {}).get(method):
                mean, std = theirs
                beside = centre[i] + (-0.15 if i < len(methods) / 2 else 0.15)
                ax.errorbar([beside], [mean], yerr=[[min(std, mean * 0.999)], [std]], color="black", marker="D",
                            markerfacecolor="white", markersize=4, linewidth=1, capsize=2, zorder=2,
                            label="paper, mean ± std")  # fmt: skip
                on_axis += [mean + std, mean - std if std < mean else mean / 3]
    turned = 30 if sum(max(map(len, label.split("\n"))) for label in values) > 40 else 0
    ax.set_xticks(range(len(values)), list(values), rotation=turned, ha="right" if turned else "center")
    ax.tick_params(axis="x", length=0)
    ax.set(xlim=(-0.6, len(values) - 0.4), ylabel="sharpness (% of 1 + f)")
    _logarithmic(ax, "y", min(on_axis, default=0.22) / 2.2, max(on_axis, default=5) * 1.8)
    return _finish(ax)


def accuracy(histories: Mapping[str, Any], *, paper: Mapping | None = None, ax: Axes | None = None) -> Axes:
    """Accuracy per epoch, as in the paper's Fig. 2: training solid, test dashed.

    Thin lines are seeds, thick ones their mean over the epochs that all have. A seed with a number that is not
    finite is a thin line that ends in a cross, and in no mean.

    Args:
      histories: method -> a `train.History` for each seed, with "train_accuracy" and "test_accuracy" as shares.
      paper: (method, "train" or "test") -> epochs, accuracies in percent.
      ax: where to draw.
    """
    ax = _current(ax)
    for method, every in histories.items():
        colour = _of_method(method, list(histories))[0]
        finite = [all(np.isfinite(np.asarray(v, float)).all() for v in one.values()) for one in every]
        for split, dashes in (("train", "-"), ("test", "--")):
            shares = [np.asarray(one[f"{split}_accuracy"], float) for one in every]
            curves = [(np.arange(1, len(y) + 1), 100 * y) for y in shares]
            _draw(ax, seeds(list(itertools.compress(curves, finite)), f"{method} {split}", colour, dashes))
            for epochs, y in itertools.compress(curves, np.logical_not(finite)):
                last = np.flatnonzero(np.isfinite(y))[-1:]
                _draw(ax, [Line(epochs, y, "", colour, dashes, 0.5, alpha=0.6)])
                ax.plot(epochs[last], y[last], "x", color="black", markersize=6, zorder=5, label="diverged")
    for (method, split), (x, y) in (paper or {}).items():
        label = f"paper, {method} {split}"
        _draw(ax, [Line(x, y, label, *_look(ax, label), 1.1)])
    ax.set(xlabel="epoch", ylabel="accuracy (%)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
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


def dotted(curve: tuple[Numbers, Numbers], label: str, colour: str = "paper", gap: float = 1) -> Line:
    """A curve of the paper."""
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
    every = [(np.asarray(x, float), np.asarray(y, float)) for x, y in curves]
    shared = min((len(x) for x, _ in every), default=0)
    if any((x[:shared] != every[0][0][:shared]).any() for x, _ in every):
        return [Line(x, y, label, colour, dashes, 1.0, marker, 0.8) for x, y in every]
    lines = [Line(x, y, "", colour, dashes, 0.5, "", 0.55) for x, y in every] if len(every) > 1 else []
    if shared:
        mean = np.mean([y[:shared] for _, y in every], axis=0)
        width, marker = 1.1 if label.startswith("paper") else 1.7, marker or ("." if shared < 4 else "")
        lines.append(Line(every[0][0][:shared], mean, label, colour, dashes, width, marker))
    return lines


def beside_paper(panel: Panel, own: str, network: str) -> list[Panel]:
    """The panel, or where the paper's curves in it are another network's, one for those beside it."""
    if network == own:
        return [panel]
    theirs = [line for line in panel.lines if line.colour.startswith("paper")]
    ours = [line for line in panel.lines if not line.colour.startswith("paper")]
    marks = {x: words for x, words in panel.marks.items() if "paper" in words}
    name = {"F2": "F2 on TIMIT", "C1": "C1 on CIFAR-10"}[network]
    return [
        panel._replace(lines=ours, marks={x: words for x, words in panel.marks.items() if x not in marks}),
        panel._replace(title=f"paper, {name}", lines=theirs, marks=marks),
    ]


def panels(every: Sequence[Panel], columns: int = 2) -> Figure:
    """Axes, at least one, with one legend below them, at most `columns` side by side."""
    figure, places = axes(len(every), columns)
    for ax, panel in zip(places, every, strict=True):
        _draw(ax, panel.lines)
        for k, (x, words) in enumerate(panel.marks.items()):
            dashes: Any = (0, ((6, 3), (1, 2))[k % 2])
            ax.axvline(x, color="#555555", linewidth=1, linestyle=dashes, zorder=1, label=" ".join(words.split()))
        ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        for log, axis in ((panel.log_x, "x"), (panel.log_y, "y")):
            if log:
                _logarithmic(ax, axis)
        if panel.flip_x:
            ax.invert_xaxis()
        _finish(ax)
    return figure


def intervals(
    names: Sequence[str],
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    *,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A value with an interval for each name, one marker for each series; names from the bottom up.

    Args:
      names: of the values.
      panels: what an axis shows -> series -> a value and the ends of its interval for each name.
      limits: of all axes; by default each is as long as it needs.
    """
    figure, every = axes(len(panels), len(panels))
    figure.set_figheight(0.26 * len(names) + 1.2)
    for ax, (title, series) in zip(every, panels.items(), strict=True):
        for k, (label, values) in enumerate(series.items()):
            colour, marker = (("here", "o"), ("other", "s"), ("paper, other", "^"))[k]
            place = np.arange(len(names)) + 0.16 * (0.5 * (len(series) - 1) - k)
            middle, low, high = np.array(values, dtype=float).T
            ax.hlines(place, low, high, color=_ROLES[colour], linewidth=1.2)
            ax.plot(middle, place, marker, color=_ROLES[colour], markersize=4, label=label or None)
        ax.axvline(0, color="#555555", linewidth=0.7)
        ax.set_yticks(range(len(names)), list(names) if ax is every[0] else [])
        ax.grid(axis="x", color="#dddddd", linewidth=0.5)
        ax.set(xlabel=title, xlim=limits)
        _finish(ax, grid=False)
    return figure


def grid(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Figure:
    """Words in rows and columns; cells that hold more than one character are shaded."""
    figure, (ax,) = axes(1)
    figure.set_figheight(0.25 * len(rows) + 0.5)
    ax.set_axis_off()
    shades = [["#f6dcb8" if len(word) > 1 else "white" for word in line] for line in cells]
    table = ax.table(list(map(list, cells)), cellColours=shades, rowLabels=list(rows), colLabels=list(columns),
                     cellLoc="center", bbox=Bbox.from_bounds(0.34, 0, 0.66, 1))  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for cell in table.get_celld().values():
        cell.set(linewidth=0.4, edgecolor="#bbbbbb")
    return figure


def image(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """The bytes of an image file: the same for the same figure, since it holds no date and no version."""
    absent = {"svg": ("Date", "Creator"), "png": ("Software",)}[kind]
    target = io.BytesIO()
    with matplotlib.rc_context(_RC):
        for ax in figure.axes:
            ax.title.set_fontsize(_SIZE)  # `set_title` has made it larger
        figure.savefig(target, format=kind, dpi=200, metadata=dict.fromkeys(absent))
    return target.getvalue()


def _current(ax: Axes | None) -> Axes:
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.gca()
    return ax


def _draw(ax: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        front = 4 if line.width > 1 and not line.colour.startswith("paper") else 3
        ax.plot(np.asarray(line.x, float), np.asarray(line.y, float), color=_ROLES.get(line.colour, line.colour),
                linestyle=line.dashes, linewidth=line.width, marker=line.marker, markersize=3.5,
                alpha=line.alpha, zorder=front, label=line.label or None)  # fmt: skip


def _finish(ax: Axes, *, grid: bool = True) -> Axes:
    """Faint lines, and a legend of what has a label: below a figure of `axes`, else in the Axes."""
    if grid:
        ax.grid(axis="y", color="#dddddd", linewidth=0.5)
    figure: Any = ax.get_figure()
    ours = isinstance(figure, _Sheet)
    every = [one.get_legend_handles_labels() for one in (figure.axes if ours else [ax])]
    named = {label: artist for artists, labels in every for artist, label in zip(artists, labels, strict=True)}
    names = sorted(named, key=lambda label: label.startswith(("at the edge", "diverged", "paper")))
    how: Any = {"handles": [named[name] for name in names], "labels": names, "handlelength": 2.6}
    if named and ours:
        figure.legends.clear()
        rows = math.ceil(len(names) / (3 if max(map(len, names)) > 20 else 4))
        how |= {"ncols": math.ceil(len(names) / rows), "columnspacing": 1.4, "fontsize": _SIZE}
        figure.legend(**how, loc="outside lower center", frameon=False)
    elif named:
        ax.legend(**how, fontsize="small")
    return ax


def _look(ax: Axes, label: str) -> tuple[str, Any]:
    """Colour and dashes from the words of a label; where these name no method, the next colour."""
    words = label.replace(",", " ").split()
    if label.startswith("paper"):
        return "paper, other" if "LB" in words else "paper", (0, (1, 3) if "test" in words else (1, 1))
    method = next((word for word in words if word in _LOOKS), None)
    colour = method or _OTHERS[len(ax.get_legend_handles_labels()[1]) % len(_OTHERS)][0]
    return colour, "--" if "test" in words else "-"


def _of_method(method: str, methods: Sequence[str]) -> tuple[str, str]:
    """The colour and marker of a method: SB and LB have theirs in every figure."""
    others = [name for name in methods if name not in _LOOKS]
    return _LOOKS.get(method) or _OTHERS[others.index(method) % len(_OTHERS)]


def _logarithmic(ax: Axes, which: str, *limits: float) -> None:
    """Make the "x" or "y" axis logarithmic, with plain numbers, between limits if given."""
    axis = getattr(ax, f"{which}axis")
    getattr(ax, f"set_{which}scale")("log")
    low, high = limits or axis.get_view_interval()
    getattr(ax, f"set_{which}lim")(low, high)
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if high < 12 * low:
        axis.set_minor_formatter(StrMethodFormatter("{x:g}"))
