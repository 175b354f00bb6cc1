"""The figures: paths, planes, spectral densities, sharpness and accuracy, from plain numbers or results.

`path`, `plane`, `density`, `sharpness` and `accuracy` draw into `ax`, by default pyplot's current Axes, with a
legend, and return the Axes. The words of a label say how a line looks: SB is blue, LB orange, test dashed, and the
paper dotted. Importing this chooses no backend and opens no window.
"""

import importlib
import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
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
    if count < 1:
        raise ValueError(f"there is nothing to draw: the number of panels is {count}; it must be 1 or more")
    rows, columns = -(-count // columns), min(columns, count)
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
    """
    ax, x = ax or _current(), _numbers("alphas", alphas, None)
    if isinstance(curves, Mapping) and not curves:
        raise ValueError("curves is empty; it must hold a curve")
    for label, values in (curves if isinstance(curves, Mapping) else {"": curves}).items():
        every = _numbers(f"curves {label!r}", values, None, len(x))
        _draw(ax, seeds([(x, y) for y in every], label, *_look(ax, label)))
    for end in [end for end in (0, 1) if x.min() <= end <= x.max()]:
        ax.axvline(end, color="#999999", linewidth=0.7, zorder=1)
    ax.set_xlabel("alpha")
    return _finish(ax)


def levels(*values: Numbers) -> np.ndarray:
    """Every half decade from the least positive one of some values to the largest, at most the upper 6 decades."""
    positive = [v for one in values for v in _numbers("values", np.ravel(one), None) if v > 0]
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
    s, t = _numbers("s", s, None), _numbers("t", t, None)
    z = _numbers("values", values, len(t), len(s))
    if not np.minimum(np.ptp(s), np.ptp(t)) > 0:
        raise ValueError(f"s and t have {len(s)} and {len(t)} numbers; two of each must differ, else draw a path")
    steps = levels(z) if at is None else _numbers("at", at, None)
    if len(steps) < 2 or not (np.diff(steps, prepend=0) > 0).all():
        raise ValueError(f"at is {at}; it must be two levels or more, from above 0 upwards")
    ax, z = ax or _current(), np.clip(np.nan_to_num(z, nan=steps[-1]), steps[0], steps[-1])
    norm = LogNorm(steps[0], steps[-1])
    filled = ax.contourf(s, t, z, steps, norm=norm, cmap="Greys", alpha=0.8)
    ax.contour(s, t, z, steps[::2], norm=norm, colors="#444444", linewidths=0.5)
    for name, (x, y) in (points or {}).items():
        colour, marker = _of_method(name, list(points or {}))
        ax.plot([x], [y], marker, color=colour, markeredgecolor="white", markersize=8, label=name)
    ax.figure.colorbar(filled, ax=ax, ticks=steps[::2], format="{x:g}").ax.tick_params(labelsize=8)
    ax.set_aspect("equal")
    return _finish(ax, grid=False)


def density(found: Any, *, ax: Axes | None = None) -> Axes:
    """A spectral density from `hessian.density` with its standard error.

    Between two eigenvalues it falls to 1e-39 and the like, which says nothing but how wide its Gaussians are: the
    logarithmic axis ends at a tenth of the lowest peak.
    """
    x = _numbers("found.eigenvalues", found.eigenvalues, None)
    y, sem = (_numbers(f"found.{name}", getattr(found, name), len(x)) for name in ("density", "sem"))
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
      values: label of a network -> method -> seed -> value, `None` or NaN where it is not finite.
      paper: label of a network -> method -> (mean, standard deviation), drawn beside them.
    """
    if not any(isinstance(own, Mapping) and own for of in values.values() for own in of.values()):
        raise ValueError("values must be network -> method -> seed -> value, with one seed at least")
    ax, on_axis = ax or _current(), []
    methods = list(dict.fromkeys(method for of in values.values() for method in of))
    for place, (network, of) in enumerate(values.items()):
        every = sorted({seed for own in of.values() for seed in own})
        centre = place + min(0.36, 0.72 / len(methods)) * (np.arange(len(methods)) - (len(methods) - 1) / 2)
        x = centre[:, None] + 0.035 * (np.arange(len(every)) - (len(every) - 1) / 2)
        given = np.array([[seed in of.get(method, {}) for seed in every] for method in methods], bool)
        y = _numbers(f"values {network!r}", [[of.get(m, {}).get(s) for s in every] for m in methods], *given.shape)
        shown, lost = y > 0, given & np.isnan(y)
        on_axis += y[shown].tolist()
        for pair_x, pair_y, both in zip(x.T, y.T, shown.T, strict=True):
            ax.plot(pair_x[both], pair_y[both], color="#bbbbbb", linewidth=0.6, zorder=1)
        for i, method in enumerate(methods):
            colour, marker = _of_method(method, methods)
            name = f"{method}, one seed" if shown[i].any() else None
            ax.plot(x[i, shown[i]], y[i, shown[i]], marker, color=colour, ms=4, alpha=0.85, zorder=3, label=name)
            for there, kind, face, words in ((y <= 0, "v", "white", "0"), (lost, "x", colour, "not finite")):
                if there[i].any():
                    edge = x[i, there[i]]
                    ax.plot(edge, np.full(len(edge), 0.03), kind, color=colour, markerfacecolor=face, markersize=5,
                            transform=ax.get_xaxis_transform(), label=f"at the edge: {words}")  # fmt: skip
            if theirs := (paper or {}).get(network, {}).get(method):
                mean, std = np.nan_to_num(_numbers(f"paper {network!r}", theirs, 2))
                beside = centre[i] + (-0.15 if i < len(methods) / 2 else 0.15)
                ax.errorbar(beside, mean, [[min(std, mean * 0.999)], [std]], fmt="kD-", markerfacecolor="white",
                            markersize=4, linewidth=1, capsize=2, zorder=2, label="paper, mean ± std")  # fmt: skip
                on_axis += [v for v in (mean + std, mean - std if std < mean else mean / 3) if v > 0]
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
      histories: method -> a `train.History` for each seed, or one; "train_accuracy", "test_accuracy" are shares.
      paper: (method, "train" or "test") -> epochs, accuracies in percent.
    """
    ax, runs = ax or _current(), {m: [e] if isinstance(e, Mapping) else list(e) for m, e in histories.items()}
    if not paper and not any(np.size(v) for every in runs.values() for one in every for v in one.values()):
        raise ValueError("histories has no epoch of any seed: there is nothing to draw")
    for method, every in runs.items():
        colour = _of_method(method, list(histories))[0]
        for split, dashes in (("train", "-"), ("test", "--")):
            ran = [one for one in every if np.size(one.get(f"{split}_accuracy", ()))]
            finite = [all(np.isfinite(np.asarray(v, float)).all() for v in one.values()) for one in ran]
            shares = [_numbers(f"histories {method!r}", one[f"{split}_accuracy"], None) for one in ran]
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
    every = [[_numbers(f"curve {label!r}", v, np.size(x)) for v in (x, y)] for x, y in curves if np.size(x)]
    shared = min((len(x) for x, _ in every), default=0)
    if any((x[:shared] != every[0][0][:shared]).any() for x, _ in every):
        return [Line(x, y, label, colour, dashes, 1.0, marker, 0.8) for x, y in every]
    dot = "." if shared < 4 else ""
    lines = [Line(x, y, "", colour, dashes, 0.5, dot, 0.55) for x, y in every] if len(every) > 1 else []
    if shared:
        mean, width = np.mean([y[:shared] for _, y in every], axis=0), 1.1 if label.startswith("paper") else 1.7
        lines.append(Line(every[0][0][:shared], mean, label, colour, dashes, width, marker or dot))
    return lines


def beside_paper(panel: Panel, own: str, network: str) -> list[Panel]:
    """The panel, or where the paper's curves in it are another network's, one for those beside it."""
    if network == own:
        return [panel]
    sides, name = [], {"F2": "F2 on TIMIT", "C1": "C1 on CIFAR-10"}[network]
    for title, is_paper in ((panel.title, False), (f"paper, {name}", True)):
        lines = [line for line in panel.lines if line.colour.startswith("paper") == is_paper]
        marks = {x: words for x, words in panel.marks.items() if ("paper" in words) == is_paper}
        sides.append(panel._replace(title=title, lines=lines, marks=marks))
    return sides


def panels(every: Sequence[Panel], columns: int = 2) -> Figure:
    """Axes, at least one, with one legend below them, at most `columns` side by side."""
    figure, places = axes(len(every), columns)
    for ax, panel in zip(places, every, strict=True):
        _draw(ax, panel.lines)
        for k, (x, words) in enumerate(panel.marks.items()):
            dashes: Any = (0, ((6, 3), (1, 2))[k % 2])
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
    figure, every = axes(len(panels), len(panels))
    figure.set_figheight(0.26 * len(names) + 1.2)
    for ax, (title, series) in zip(every, panels.items(), strict=True):
        for k, (label, values) in enumerate(series.items()):
            colour, marker = (("#333333", "o"), ("#7a5195", "s"), ("#808080", "^"), *_OTHERS[2:])[k % 6]
            place = np.arange(len(names)) + 0.16 * (0.5 * (len(series) - 1) - k)
            middle, low, high = _numbers(f"panels {title!r}", values, len(names) or None, 3).T
            ax.hlines(place, low, high, color=colour, linewidth=1.2)
            ax.plot(middle, place, marker, color=colour, markersize=4, label=label or None)
        ax.axvline(0, color="#555555", linewidth=0.7)
        ax.set_yticks(range(len(names)), list(names) if ax is every[0] else [])
        ax.grid(axis="x", color="#dddddd", linewidth=0.5)
        ax.set(xlabel=title, xlim=limits)
        _finish(ax, grid=False)
    return figure


def grid(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Figure:
    """Words in rows and columns; cells that hold more than one character are shaded."""
    if not len(rows) * len(columns) or [len(line) for line in cells] != [len(columns)] * len(rows):
        raise ValueError(f"cells must be words, one at least, in {len(rows)} rows and {len(columns)} columns")
    figure, (ax,) = axes(1)
    figure.set_figheight(0.25 * len(rows) + 0.5)
    ax.set_axis_off()
    shades = [["#f6dcb8" if len(word) > 1 else "white" for word in line] for line in cells]
    table = ax.table(list(map(list, cells)), cellColours=shades, rowLabels=list(rows), colLabels=list(columns),
                     cellLoc="center", bbox=Bbox.from_bounds(0.34, 0, 0.66, 1))  # fmt: skip
    table.auto_set_font_size(False)
    for cell in table.get_celld().values():
        cell.set(linewidth=0.4, edgecolor="#bbbbbb", fontsize=8)
    return figure


def image(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """The bytes of an image file: the same for the same figure, since it holds no date and no version."""
    absent, target = {"svg": ("Date", "Creator"), "png": ("Software",)}[kind], io.BytesIO()
    with matplotlib.rc_context(_RC), warnings.catch_warnings(action="ignore", category=UserWarning):  # no glyph
        for ax in figure.axes:
            ax.title.set_fontsize(_SIZE)  # `set_title` has made it larger
        figure.savefig(target, format=kind, dpi=200, metadata=dict.fromkeys(absent))
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


def _finish(ax: Axes, *, grid: bool = True) -> Axes:
    """Faint lines, and a legend of what has a label: below a figure of `axes`, else in the Axes."""
    if grid:
        ax.grid(axis="y", color="#dddddd", linewidth=0.5)
    figure: Any = ax.get_figure()
    every = [one.get_legend_handles_labels() for one in (figure.axes if isinstance(figure, _Sheet) else [ax])]
    named = {label: artist for artists, labels in every for artist, label in zip(artists, labels, strict=True)}
    names = sorted(named, key=lambda label: label.startswith(("at the edge", "diverged", "paper")))
    how: Any = {"handles": [named[name] for name in names], "labels": names, "handlelength": 2.6}
    if named and isinstance(figure, _Sheet):
        figure.legends.clear()
        rows = -(-len(names) // (3 if max(map(len, names)) > 20 else 4))
        how |= {"ncols": -(-len(names) // rows), "columnspacing": 1.4, "fontsize": _SIZE}
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
    return _LOOKS.get(method) or _OTHERS[[m for m in methods if m not in _LOOKS].index(method) % len(_OTHERS)]


def _logarithmic(ax: Axes, which: str, *limits: float) -> None:
    """Make the "x" or "y" axis logarithmic, with plain numbers, between limits or where something is positive."""
    if not limits and np.isinf(getattr(ax.dataLim, f"minpos{which}")):
        return
    axis = getattr(ax, f"{which}axis")
    ax.set(**{f"{which}scale": "log", f"{which}lim": limits or None})
    low, high = axis.get_view_interval()
    axis.set_major_formatter("{x:g}")
    if high < 12 * low:
        axis.set_minor_formatter("{x:g}")
