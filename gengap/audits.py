"""Which maps of parameters leave which measures of a minimum as they are."""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key, PyTree


class Finding(NamedTuple):
    """What a map of parameters does to a measure.

    Attributes:
      measure, symmetry: their names.
      before, after: the mean of the measure over the keys.
      factor: after / before; NaN where before is 0.
      verdict: "unchanged", "changed", or "not resolved" where the errors would hide a change by a third, or the
        values are not finite.
    """

    measure: str
    symmetry: str
    before: float
    after: float
    factor: float
    verdict: str


def audit(
    measures: Mapping[str, Callable[[PyTree, Key[Array, ""]], Any]],
    symmetries: Mapping[str, Callable[[PyTree], PyTree]],
    params: PyTree,
    key: Key[Array, ""],
    *,
    repeats: int = 3,
    tolerance: float = 0.01,
) -> list[Finding]:
    """Which maps leave which measures unchanged.

    Every measure is taken at `params` and at each image of it with the same keys. What counts is the mean of the
    logarithm of after / before (of the difference, where a value is not positive): up to `tolerance` it is
    unchanged; above it is a change if it is above three standard errors, those over the keys and those that the
    measure itself states; else it is unchanged if three standard errors are below a third, and not resolved.

    Args:
      measures: name -> `(params, key) -> number` (what has a `value`, such as an `Estimate`, counts by it).
      symmetries: name -> map of parameters.
      params: the point.
      key: of the measures.
      repeats: keys, at least 2.
      tolerance: relative; what arithmetic may change.

    Returns:
      A finding for each pair, the measures in order.
    """
    if repeats < 2:
        raise ValueError(f"repeats is {repeats}; it must be at least 2")
    keys = jax.random.split(key, repeats)
    images = {name: move(params) for name, move in symmetries.items()}
    found = []
    for name, measure in measures.items():
        before = [_read(measure(params, k)) for k in keys]
        for symmetry, image in images.items():
            after = [_read(measure(image, k)) for k in keys]
            found.append(_compare(name, symmetry, before, after, tolerance))
    return found


def _compare(
    name: str,
    symmetry: str,
    before: list[tuple[float, float]],
    after: list[tuple[float, float]],
    tolerance: float,
) -> Finding:
    n = len(before)
    a, b = (statistics.fmean(value for value, _ in side) for side in (before, after))
    finding = Finding(name, symmetry, a, b, b / a if a else math.nan, "not resolved")
    if not (math.isfinite(a) and math.isfinite(b)):
        return finding
    if all(x > 0 and y > 0 for (x, _), (y, _) in zip(before, after, strict=True)):
        changes = [math.log(y / x) for (x, _), (y, _) in zip(before, after, strict=True)]
        scale = 1.0
    else:
        changes = [y - x for (x, _), (y, _) in zip(before, after, strict=True)]
        scale = max(abs(a), abs(b))
    relative = [(sem / abs(value) if value else math.inf) if sem else 0.0 for value, sem in (*before, *after)]
    sampling = scale * math.sqrt(sum(r**2 for r in relative)) / n
    error = math.hypot(statistics.stdev(changes) / math.sqrt(n), sampling)
    change = abs(statistics.fmean(changes))
    if change <= tolerance * scale:
        return finding._replace(verdict="unchanged")
    if change > 3 * error:
        return finding._replace(verdict="changed")
    return finding._replace(verdict="unchanged" if 3 * error <= scale / 3 else "not resolved")


def _read(value: Any) -> tuple[float, float]:
    """A number, and its standard error where it has one."""
    return float(getattr(value, "value", value)), float(getattr(value, "sem", 0.0))
