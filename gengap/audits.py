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
      verdict: "unchanged", "changed", or "not resolved" where the spread over the keys hides a change by less
        than a third, or the values are not finite.
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

    Every measure is taken at `params` and at each image of it with the same keys. A change counts if it is above
    `tolerance` of the value and above three standard errors of the difference over the keys.

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
        before = [_number(measure(params, k)) for k in keys]
        for symmetry, image in images.items():
            after = [_number(measure(image, k)) for k in keys]
            found.append(_compare(name, symmetry, before, after, tolerance))
    return found


def _compare(name: str, symmetry: str, before: list[float], after: list[float], tolerance: float) -> Finding:
    a, b = statistics.fmean(before), statistics.fmean(after)
    if not (math.isfinite(a) and math.isfinite(b)):
        return Finding(name, symmetry, a, b, math.nan, "not resolved")
    differences = [y - x for x, y in zip(before, after, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    scale = max(abs(a), abs(b))
    change = abs(b - a)
    if change > max(tolerance * scale, 3 * error):
        verdict = "changed"
    else:
        verdict = "unchanged" if 3 * error <= scale / 3 else "not resolved"
    return Finding(name, symmetry, a, b, b / a if a else math.nan, verdict)


def _number(value: Any) -> float:
    return float(getattr(value, "value", value))
