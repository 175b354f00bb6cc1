"""Statistics of seeds and runs: a sign test, intervals, what goes with the gap, values at an equal loss.

A number that the data do not give is NaN.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

Values = Sequence[float | None] | np.ndarray


class Interval(NamedTuple):
    """A number, and the ends of its interval."""

    value: float
    low: float
    high: float


def interval(values: Values, *, level: float = 0.95) -> Interval:
    """The mean of seeds or draws with its bootstrap interval (BCa, 999 resamples of a fixed seed).

    Few values give too short an interval: at 95 %, of normal values, it holds their mean in 84 % of all cases with
    five of them, in 89 % with ten and in 92 % with thirty.

    Args:
      values: independent of each other; one that is not finite makes the mean NaN.
      level: of confidence.

    Returns:
      The ends are NaN below five values, too few for a bootstrap, and where all values are alike.

    Reference: Efron, "Better Bootstrap Confidence Intervals", 1987.

    >>> found = interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    >>> found.value, 1.8 < found.low < 2.6, 4.4 < found.high < 5.2
    (3.5, True, True)
    """
    x = np.asarray(values, float)
    if x.ndim != 1:
        raise ValueError(f"values has the shape {x.shape}; it must have one axis, that of seeds or draws")
    return _bootstrap(float(x.mean()) if x.size else math.nan, x, np.mean, level)


def kendall(
    values: Values, gaps: Values, settings: Sequence[Mapping[str, Hashable]], *, level: float = 0.95
) -> Interval:
    """Kendall's tau-b of a measure and the gaps, with a bootstrap over settings.

    Runs of one setting that differ in their seed alone are no independent evidence, so a resample takes settings,
    each with all its runs. A resample that has no order counts as tau = 0.

    Args:
      values: of the measure, one a run; runs where it or the gap is not finite are left out.
      gaps: one a run.
      settings: the hyperparameters of each run; a `seed` among them tells no settings apart.
      level: of confidence.

    Returns:
      tau, NaN where one side is constant; the ends are NaN below five settings.

    >>> kendall([1, 2, 3, 4], [10, 20, 40, 30], [{"rate": r} for r in (1, 2, 3, 4)]).value
    0.6666666666666669
    """
    x, y, kept = _finite(values, gaps, settings)

    def tau(runs: np.ndarray) -> float:
        return float(scipy.stats.kendalltau(x[runs], y[runs]).statistic) if len(runs) > 1 else math.nan

    return _over_settings(tau, kept, level)


def granulated(
    values: Values, gaps: Values, settings: Sequence[Mapping[str, Hashable]], *, level: float = 0.95
) -> tuple[Interval, dict[str, float]]:
    r"""The granulated coefficient $\Psi = \frac{1}{n} \sum_i \psi_i$: does a measure go with every hyperparameter?

    $\psi_i$ is the mean of $\mathrm{sign}(\mu - \mu')\, \mathrm{sign}(g - g')$ over the pairs of runs of one seed
    that differ in hyperparameter i alone. On a full grid this is the paper's mean of the tau of each group. A tie
    counts 0, so that a measure that follows one hyperparameter only scores for that one only.

    Arguments as of `kendall`.

    Returns:
      Psi with an interval over settings, and psi for each hyperparameter that varies alone somewhere.

    Raises:
      ValueError: no two runs differ in one hyperparameter alone.

    Reference: Jiang et al., "Fantastic Generalization Measures and Where to Find Them", 2020, eqs. 2, 5 and 6.
    """
    x, y, kept = _finite(values, gaps, settings)
    agree = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    names = list(kept[0]) if kept else []
    differ = {name: np.array([[a[name] != b[name] for b in kept] for a in kept]) for name in names}
    count = sum(differ.values(), np.zeros(agree.shape, int))
    alone = {name: pairs for name in names if name != "seed" and (pairs := differ[name] & (count == 1)).any()}
    if not alone:
        raise ValueError("no two runs differ in one hyperparameter alone")

    def psi(pairs: np.ndarray, runs: np.ndarray) -> float:
        both = np.ix_(runs, runs)
        return float(agree[both][pairs[both]].mean()) if pairs[both].any() else 0.0

    def mean(runs: np.ndarray) -> float:
        return float(np.mean([psi(pairs, runs) for pairs in alone.values()]))

    return _over_settings(mean, kept, level), {name: float(agree[pairs].mean()) for name, pairs in alone.items()}


def trend(x: Values, y: Values) -> float:
    """Spearman's rank correlation of the finite pairs; NaN for fewer than three, or where one side is constant."""
    a, b, _ = _finite(x, y, [{}] * len(x))
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(scipy.stats.spearmanr(a, b).statistic)


def at_loss(losses: Values, values: Values, level: float) -> float:
    """The value where a falling loss first reaches a level, by interpolation in both logarithms.

    Args:
      losses: along training.
      values: such as sharpness, at the same moments.
      level: of the loss.

    Returns:
      The value, NaN if the loss never crosses the level, or a number beside the crossing is not positive.

    >>> round(at_loss([1.0, 0.01], [100.0, 1.0], 0.1), 6)
    10.0
    """
    f, v = np.array([losses, values], float)
    k = next((k for k in range(len(f) - 1) if f[k] > level >= f[k + 1]), None)
    if k is None or not (np.minimum(f, v)[k : k + 2] > 0).all():
        return math.nan
    (f0, f1), (v0, v1) = np.log(f[k : k + 2]), np.log(v[k : k + 2])
    share = (f0 - math.log(level)) / (f0 - f1)
    return math.exp((1 - share) * v0 + share * v1)


def compare(high: Mapping[int, float], low: Mapping[int, float], words: str) -> str:
    """In how many seeds one side is larger, with the sign test; ties are left out, as that test has it.

    Args:
        high: values by seed of the side expected to be larger.
        low: values by seed of the other side.
        words: the claim, such as "LB sharper than SB".

    Returns:
        A clause with the count, and with p where there are two seeds or more.

    Example:
        >>> compare({0: 3.0, 1: 2.0}, {0: 1.0, 1: 1.0}, "LB sharper than SB")
        'LB sharper than SB in 2 of 2 seeds (sign test, p = 0.25 one-sided)'
    """
    pairs = [(high[seed], low[seed]) for seed in high if seed in low]
    if not pairs:
        return f"{words}: no seed has both"
    wins, ties = sum(a > b for a, b in pairs), sum(a == b for a, b in pairs)
    n = len(pairs) - ties
    tied = f", {ties} tied and left out" if ties else ""
    count = f"{words} in {wins} of {n} seed{'s' * (n != 1)}{tied}"
    if n < 2:
        return count
    p = scipy.stats.binomtest(wins, n, alternative="greater").pvalue
    return f"{count} (sign test, p = {p:.2g} one-sided)"


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


def _finite(
    values: Values, gaps: Values, settings: Sequence[Mapping[str, Hashable]]
) -> tuple[np.ndarray, np.ndarray, list[Mapping[str, Hashable]]]:
    x, y = np.asarray(values, float), np.asarray(gaps, float)
    if not len(x) == len(y) == len(settings):
        raise ValueError(f"{len(x)} values, {len(y)} gaps and {len(settings)} settings; there must be as many")
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep], [one for one, kept in zip(settings, keep, strict=True) if kept]


def _over_settings(
    statistic: Callable[[np.ndarray], float], settings: Sequence[Mapping[str, Hashable]], level: float
) -> Interval:
    """A statistic of the runs with these numbers, with a bootstrap that draws settings with all their runs."""
    runs: dict[Hashable, list[int]] = {}
    for i, one in enumerate(settings):
        runs.setdefault(frozenset((k, v) for k, v in one.items() if k != "seed"), []).append(i)
    groups = [np.array(group) for group in runs.values()]

    def resampled(drawn: np.ndarray) -> float:
        return float(np.nan_to_num(statistic(np.concatenate([groups[k] for k in drawn]))))

    return _bootstrap(statistic(np.arange(len(settings))), np.arange(len(groups)), resampled, level)


def _bootstrap(value: float, data: np.ndarray, statistic: Callable, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be between 0 and 1")
    if len(data) < 5 or not math.isfinite(value):
        return Interval(value, math.nan, math.nan)
    with warnings.catch_warnings(action="ignore"):  # where all resamples are alike, the ends are NaN
        found = scipy.stats.bootstrap((data,), statistic, n_resamples=999, confidence_level=level, rng=0)
    return Interval(value, *map(float, found.confidence_interval))
