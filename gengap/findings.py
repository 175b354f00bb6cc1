"""Numbers that the paper's figures are read for: a threshold, values at an equal loss, how often a claim holds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from gengap.figures import Figure


class Section(NamedTuple):
    """A figure with what there is to say of it.

    Attributes:
      name: of its files.
      title: with the number of the paper's figure.
      figure: from `figures`.
      caption: what is drawn.
      findings: sentences computed from the numbers.
    """

    name: str
    title: str
    figure: Figure
    caption: str
    findings: list[str]


class Threshold(NamedTuple):
    """Where accuracy begins to fall with the batch size.

    Attributes:
      batch_size: the threshold.
      plateau: the accuracy below it.
      slope: the change of the accuracy for each factor of ten above it, negative.
      p_value: of the F test against an accuracy that is the same at all batch sizes.
    """

    batch_size: float
    plateau: float
    slope: float
    p_value: float


def threshold(batch_sizes: Sequence[float], accuracies: Sequence[float]) -> Threshold | None:
    r"""The batch size after which accuracy falls: a least-squares fit of a constant that turns into a descent.

    $a + b \max(0, \log_{10} B - \log_{10} t)$ with b < 0; t is sought on a grid of 400 values between the second
    and the last but one of the batch sizes, a and b follow for each. The F test has 2 and N - 3 degrees of
    freedom, and takes the points as independent.

    Args:
      batch_sizes: of each point; a batch size may occur several times, once for each seed.
      accuracies: of each point.

    Returns:
      The threshold; None with fewer than five batch sizes, or if accuracy falls nowhere.

    Raises:
      ValueError: lengths that differ, or a batch size that is not above 0.

    >>> sizes = [10, 30, 100, 300, 1000, 3000]
    >>> found = threshold(sizes, [80 - 2 * max(0, math.log10(B / 100)) for B in sizes])
    >>> round(found.batch_size), round(found.plateau), round(found.slope)
    (100, 80, -2)
    """
    if len(batch_sizes) != len(accuracies):
        raise ValueError(f"there are {len(batch_sizes)} batch sizes and {len(accuracies)} accuracies")
    if not all(size > 0 for size in batch_sizes):
        raise ValueError(f"batch_sizes is {batch_sizes}; each must be above 0")
    x, y = np.log10(np.asarray(batch_sizes, float)), np.asarray(accuracies, float)
    distinct = np.unique(x)
    if len(distinct) < 5:
        return None
    candidates = []
    for t in np.linspace(distinct[1], distinct[-2], 400):
        beyond = np.maximum(0, x - t)
        (a, b), *_ = np.linalg.lstsq(np.stack([np.ones_like(x), beyond], 1), y, rcond=None)
        candidates.append((float(((a + b * beyond - y) ** 2).sum()), t, a, b))
    least, t, a, b = min(candidates)
    if b >= 0:
        return None
    freedom = len(x) - 3
    flat = float(((y - y.mean()) ** 2).sum())
    f = math.inf if least == 0 else (flat - least) / 2 / (least / freedom)
    return Threshold(float(10**t), float(a), float(b), float(scipy.stats.f.sf(f, 2, freedom)))


def at_loss(losses: Sequence[float | None], values: Sequence[float | None], level: float) -> float | None:
    """The value where a falling loss first reaches a level, by interpolation in both logarithms.

    Args:
      losses: along training.
      values: such as sharpness, at the same moments.
      level: of the loss.

    Returns:
      The value; None if the loss never crosses the level, or a number beside the crossing is not positive.

    >>> at_loss([1.0, 0.01], [100.0, 1.0], 0.1)
    10.000000000000002
    """
    for (l0, v0), (l1, v1) in zip(*(list(zip(losses, values, strict=True))[i:] for i in (0, 1)), strict=False):
        if l0 is None or l1 is None or not l0 > level >= l1:
            continue
        if v0 is None or v1 is None or min(l1, v0, v1) <= 0:
            return None
        share = (math.log(l0) - math.log(level)) / (math.log(l0) - math.log(l1))
        return math.exp((1 - share) * math.log(v0) + share * math.log(v1))
    return None


def trend(x: Sequence[float | None], y: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation of the pairs that are finite; None for fewer than three, or a constant."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return float(scipy.stats.spearmanr(*zip(*pairs, strict=True)).statistic)


def verdict(holds: Sequence[bool], of: str = "seeds") -> str:
    """What a claim of the paper comes to, from whether it holds in each seed, or in each of something else.

    >>> verdict([True, True]), verdict([True, False]), verdict([False])
    ('agrees with the paper', 'agrees with the paper in 1 of 2 seeds', 'does not agree with the paper')
    """
    if not holds:
        return "nothing to compare"
    if all(holds):
        return "agrees with the paper"
    return (
        f"agrees with the paper in {sum(holds)} of {len(holds)} {of}"
        if any(holds)
        else "does not agree with the paper"
    )
