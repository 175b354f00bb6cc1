"""What `compare` returns: how minima differ, as a table, as curves between them, as figures and as a page."""

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from gengap import flat, landscape, plots, records, report, stats
from gengap.words import shown

__all__ = ["Comparison", "Curve", "Surface"]

_WORDS: Mapping[str, str] = {
    "train_loss": "loss", "train_accuracy": "accuracy", "test_loss": "test loss", "test_accuracy": "test accuracy",
    "gradient_length": "length of the gradient", "hessian_top": "largest eigenvalue of the Hessian",
    "hessian_trace": "trace of the Hessian", "distance": "distance from the start",
}  # fmt: skip
_CAPTIONS = {
    "sharpness": "Metric 2.1, in percent of 1 + f: how far the loss rises in a box around the minimum, in the full"
    " space and, as a mean over the matrices A, in random subspaces.",
    "path": "alpha is 0 at the first minimum and 1 at the other one.",
    "plane": "Distances are Euclidean, from the first minimum.",
}


class Curve(NamedTuple):
    """The loss on lines between two minima, at alpha 0 and 1; `losses` maps their names to [seeds, alphas]."""

    alphas: np.ndarray
    losses: dict[str, np.ndarray]


class Surface(NamedTuple):
    """The loss on a plane, [t, s], with distances as coordinates, and where the points lie that span it."""

    s: np.ndarray
    t: np.ndarray
    loss: np.ndarray
    points: dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """How minima differ; IPython shows it as a table.

    Attributes:
      rows: the numbers of `measure` for each minimum and seed, and those that `compare` adds; see `frame`.
      notes: what makes the comparison unfair, or a number unreliable.
      points: name -> the parameters of each seed.
      loss, start: as given.
      settings: how it was measured, for the page.
    """

    rows: list[dict[str, Any]]
    notes: list[str]
    points: dict[str, list[PyTree]]
    loss: Callable
    start: PyTree
    settings: dict[str, Any]

    def frame(self) -> Any:
        """A row for each minimum and seed, a column for each number, such as `sharpness_full_1e-3`."""
        return report.frame([{name: v for name, v in row.items() if name != "origin"} for row in self.rows])

    def table(self) -> Any:
        """What the comparison prints: value ± error, or for several seeds their mean and its 95 % interval.

        With two minima the last column is the second divided by the first; for accuracies, and if a value is not
        above 0, the second minus the first. For several seeds it adds the interval and the sign test.
        """
        lines = []
        for column, words in self._columns().items():
            seeds = {name: self._of(name, column) for name in self.points}
            cells = {name: _cell(values, self._of(name, f"{column}_sem")[0]) for name, values in seeds.items()}
            if len(seeds) == 2:
                (a, first), (b, second) = seeds.items()
                cells[f"{b} / {a}"] = _difference(first, second, is_ratio="accuracy" not in column)
            lines.append({"": words, **cells})
        return report.frame(lines)

    def __repr__(self) -> str:
        text = self.table().to_string(index=False)
        return "\n".join([text, *(f"- {sentence}" for sentence in self.notes)])

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.notes)
        return f"{self.table().to_html(index=False)}<ul>{items}</ul>"

    @functools.cached_property
    def path(self) -> Curve:
        """The loss on the line from the first minimum to each other one, for each seed; 25 alphas from -1 to 2."""
        first, *others = self.points
        if not others:
            raise ValueError(f"there is one minimum, {first}; a path needs two")
        alphas = np.linspace(-1, 2, 25)
        losses = {}
        for other in others:
            pairs = zip(self.points[first], self.points[other], strict=False)
            lines = [landscape.along(self.loss, landscape.linear(a, b), alphas) for a, b in pairs]
            losses[f"{first} to {other}"] = np.stack(lines)
        return Curve(alphas, losses)

    @functools.cached_property
    def plane(self) -> Surface:
        """The loss on the plane through two minima and a third, or the start, or a random point as far away."""
        first, *others = ((name, seeds[0]) for name, seeds in self.points.items())
        if not others:
            raise ValueError(f"there is one minimum, {first[0]}; a plane needs two")
        thirds = [*others[1:2], *[("start", self.start)] * (self.start is not None)]
        for third in [*thirds, ("random", _as_far(first[1], others[0][1]))]:
            corners = dict([first, others[0], third])
            with contextlib.suppress(ValueError):  # all three on one line
                plane, at = landscape.through(*corners.values())
                break
        else:
            raise ValueError(f"{first[0]} and {others[0][0]} are one point; a plane needs two")
        places = np.asarray(at)
        margin = 0.25 * np.ptp(places, axis=0).max()
        low, high = places.min(0) - margin, places.max(0) + margin
        s, t = (np.linspace(a, b, 15) for a, b in zip(low, high, strict=True))
        loss = np.asarray(landscape.over(self.loss, plane, s, t))
        return Surface(s, t, loss, dict(zip(corners, map(tuple, places.tolist()), strict=True)))

    def plot(self) -> Any:
        """Sharpness, and with two minima the loss on the line and on the plane."""
        draw = self._figures()
        figure, places = plots.axes(len(draw))
        for (title, onto), ax in zip(draw.items(), places, strict=True):
            onto(ax)
            ax.set_title(title)
        return figure

    def report(self, directory: str | PathLike) -> Path:
        """Write a page, `report.html`, with its Markdown and its figures, and return its path."""
        title = f"Comparison of {' and '.join(self.points)}"
        sections = [report.Section("Results", self.notes, self.table())]
        for name, (words, onto) in zip(_CAPTIONS, self._figures().items(), strict=False):
            figure, (ax,) = plots.axes(1)
            onto(ax)
            sections.append(report.Section(words, figure=figure, caption=_CAPTIONS[name], name=name))
        return report.write(title, sections, records.Run(None, "compare", self.settings, self.rows, []), directory)

    def _of(self, name: str, column: str) -> list[float | None]:
        """One column of a minimum, a number for each seed."""
        return [row.get(column) for row in self.rows if row["minimum"] == name]

    def _columns(self) -> dict[str, str]:
        """The columns to show, in order, with their names in words."""
        hidden = re.compile("minimum|seed|origin|ascent_version|linear_full_.*|.*_(sem|draws|evaluations)")
        columns = dict.fromkeys(name for row in self.rows for name in row)
        return {name: _in_words(name) for name in columns if not hidden.fullmatch(name)}

    def _figures(self) -> dict[str, Callable[[Any], Any]]:
        """What can be drawn of these minima: title -> what draws it."""

        def sharpness(ax: Any) -> None:
            values = {
                "\n".join(_in_words(column).removesuffix(" (%)").split(", ")[1:]): {
                    name: dict(enumerate(self._of(name, column))) for name in self.points
                }
                for column in self._columns()
                if column.startswith("sharpness_")
            }
            plots.sharpness(values, ax=ax)

        def path(ax: Any) -> None:
            plots.path(self.path.alphas, self.path.losses, ax=ax)
            ax.set(xlabel=f"alpha, {next(iter(self.points))} at 0", ylabel="loss")

        def plane(ax: Any) -> None:
            plots.plane(self.plane.s, self.plane.t, self.plane.loss, points=self.plane.points, ax=ax)
            ax.set(xlabel="distance from the first minimum", ylabel="distance")

        draw: dict[str, Callable[[Any], Any]] = {"Sharpness of each minimum": sharpness}
        if len(self.points) > 1:
            draw["Loss on the line between the minima"] = path
            with contextlib.suppress(ValueError):  # the points span no plane
                if np.nanmax(self.plane.loss) > 0:
                    draw["Loss on a plane through the minima"] = plane
        return draw


@jax.jit
def _as_far(a: PyTree, b: PyTree) -> Any:
    """A point in a random direction from a, as far as b."""
    (x, layout), (y, _) = flat.ravel(a), flat.ravel(b)
    direction = flat.unit(jax.random.normal(jax.random.key(0), x.shape, x.dtype))[1]
    return layout.unravel(x + flat.unit(y - x)[0] * direction)


def _cell(values: Sequence[float | None], error: float | None) -> str:
    """A number ± its error; for several seeds the mean and its interval."""
    numbers = np.array([np.nan if value is None else value for value in values])
    if len(numbers) == 1:
        return shown(numbers[0]) + (f" ± {error:.2g}" if error is not None and np.isfinite(error) else "")
    mean, low, high = stats.interval(numbers)
    return f"{shown(mean)} ({shown(low)} to {shown(high)})"


def _difference(first: Sequence[float | None], second: Sequence[float | None], *, is_ratio: bool) -> str:
    """The second / the first, or the second - the first; for several seeds with interval and sign test."""
    pairs = [(a, b) for a, b in zip(first, second, strict=False) if a is not None and b is not None]
    is_ratio = is_ratio and all(a > 0 and b > 0 for a, b in pairs)
    values = [stats.log_ratio(b, a) if is_ratio else b - a for a, b in pairs]
    if not values or not np.isfinite(values).all():
        return report.DASH
    middle, low, high = (f"× {np.exp(v):.3g}" if is_ratio else f"{v:+.3g}" for v in stats.interval(values))
    return middle if len(values) == 1 else f"{middle} ({low} to {high}), larger in {stats.signs(values)}"


def _in_words(column: str) -> str:
    """The name of a column in words."""
    if not column.startswith("sharpness_"):
        return _WORDS.get(column, column)
    _, space, epsilon = column.split("_")
    return f"sharpness, {'full space' if space == 'full' else 'random subspaces'}, epsilon {epsilon} (%)"
