"""What a figure is read for: the threshold of Fig. 4, and how often a claim of the paper holds."""

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
