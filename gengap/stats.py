"""Statistics of seeds and runs: intervals, verdicts, correlation with the gap, values at an equal loss.

A number that the data do not determine is NaN.
"""

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # loads its modules when they are used

__all__ = [
    "Interval", "Signs", "Threshold", "Verdict", "at_loss", "check_comparable", "comparable", "decay",
    "granulated", "interval", "kendall", "log_ratio", "signs", "threshold", "trend", "verdict", "weakest", "where",
]  # fmt: skip

Values = Sequence[float | None] | np.ndarray
Settings = Sequence[Mapping[str, Hashable]]


def comparable(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows grouped by network, data set and run: name -> rows. Different groups are never compared or pooled.

    If rows of several runs are gathered, each row has its "run". The name includes it if the network and the data
    set do not identify the group.
    """
    groups: dict[tuple, list[Any]] = {}
    for row in rows:
        groups.setdefault((row.get("network"), row.get("dataset"), row.get("run")), []).append(row)
    runs = Counter(key[:2] for key in groups)
    names = [(where(group[0]), key[2] if runs[key[:2]] > 1 else "") for key, group in groups.items()]
    return {", ".join(filter(None, name)): group for name, group in zip(names, groups.values(), strict=True)}


def check_comparable(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows of more than one group."""
    if len(groups := comparable(rows)) > 1:
        raise ValueError(f"there are rows of {' and of '.join(groups)}; they cannot be compared")


def where(row: Mapping[str, Any]) -> str:
    """The network and the data set of a row."""
    return " on ".join(row[name] for name in ("network", "dataset") if name in row)


class Interval(NamedTuple):
    """A number, and the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """Whether a claim that the number is above 0 "holds", "does not hold" or is "undecided"."""
        return "holds" if self.low > 0 else "does not hold" if self.high < 0 else "undecided"


def interval(values: Values, *, level: float = 0.95) -> Interval:
    """The mean of seeds or draws with Student's t interval.

    Args:
      values: independent values; one that is not finite makes the mean NaN.
      level: confidence level. For normal values, however few, the interval contains the true mean this often.

    Returns:
      The interval; its ends are NaN for fewer than two values.

    >>> tuple(round(end, 2) for end in interval([1.0, 2.0, 3.0, 4.0, 5.0]))
    (3.0, 1.04, 4.96)
    """
    _check_level(level)
    x = np.asarray(values, float)
    if x.ndim != 1:
        raise ValueError(f"values has the shape {x.shape}; it must have one axis, that of seeds or draws")
    mean = float(x.mean()) if len(x) and np.isfinite(x).all() else math.nan
    if len(x) < 2 or math.isnan(mean):
        return Interval(mean, math.nan, math.nan)
    half = float(scipy.stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half)


class Verdict(NamedTuple):
    """The verdict on a claim; as text "holds (n = 5, 5 of 5)".

    Attributes:
      word: "holds", "does not hold", "undecided", "no test" for one seed, or "not tested" for none.
      n: number of seeds.
      wins: seeds on the claimed side.
      losses: seeds on the other side; the rest are ties.
    """

    word: str
    n: int
    wins: int = 0
    losses: int = 0

    @property
    def tally(self) -> str:
        """n, and in how many seeds the claim is true, without ties: "n = 5, 5 of 5"."""
        sides = self.wins + self.losses
        return f"n = {self.n}" + (f", {self.wins} of {sides}" if sides and self.n > 1 else "")

    def __str__(self) -> str:
        return f"{self.word} ({self.tally})" if self.n else self.word


def verdict(margins: Values) -> Verdict:
    """Whether a claim holds, given its margin in each seed.

    It holds if the 95 % t interval of the margins is above 0, and does not hold if it is below. It is undecided if
    the interval contains 0, if a margin is infinite, or with two seeds. One seed is no test.

    Args:
      margins: one for each seed, above 0 if the claim is true for it: a paired difference, or the distance to a
        bound. NaN is left out.

    >>> str(verdict([1.0, 1.2, 0.9])), str(verdict([1.0, -1.2, 0.9])), str(verdict([1.0, 1.2]))
    ('holds (n = 3, 3 of 3)', 'undecided (n = 3, 2 of 3)', 'undecided (n = 2, 2 of 2)')
    """
    x = np.asarray(margins, float)
    x = x[~np.isnan(x)]
    word = interval(x).word if len(x) > 2 else ("not tested", "no test", "undecided")[len(x)]
    return Verdict(word, len(x), int((x > 0).sum()), int((x < 0).sum()))


def weakest(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim about several numbers, such as one for each epsilon: the weakest of theirs.

    So it holds if it holds for all that were tested, and does not hold if it does not hold for one.
    """
    order = ("does not hold", "undecided", "no test", "holds")
    tested = [verdict for verdict in verdicts if verdict.n]
    return min(tested, key=lambda v: (order.index(v.word), v.wins - v.losses), default=Verdict("not tested", 0))


def log_ratio(a: float, b: float) -> float:
    """log(a / b) of two numbers that are not negative: infinite if one is 0, and 0 if they are equal."""
    if a == b:
        return 0.0
    return (math.log(a) if a > 0 else -math.inf) - (math.log(b) if b > 0 else -math.inf)


def decay(accuracies: Values) -> float:
    """How far an accuracy is below its peak at the end of training: the peak minus the mean of the last tenth.

    >>> decay([50, 90, 80])
    10.0
    """
    x = np.asarray(accuracies, float)
    x = x[np.isfinite(x)]
    return float(x.max() - x[-max(1, len(x) // 10) :].mean()) if len(x) else math.nan


def kendall(values: Values, gaps: Values, settings: Settings, *, level: float = 0.95) -> Interval:
    """Kendall's tau-b of a measure and the gaps, with a bootstrap over settings.

    Runs that differ only in their seed are not independent evidence, so a resample draws settings, each with all
    its runs. A resample without an order counts as tau = 0. In simulations of normal pairs, with two runs for each
    setting, the 95 % interval contained tau in 95 % of all cases with 24 settings, 94 % with 12, 92 % with 6.

    Args:
      values: the measure, one for each run; runs whose measure or gap is not finite are left out.
      gaps: one for each run.
      settings: the hyperparameters of each run; a `seed` among them is ignored.
      level: confidence level.

    Returns:
      tau, NaN if one side is constant; the ends are NaN for fewer than five settings.

    >>> kendall([1, 2, 3, 4], [10, 20, 40, 30], [{"rate": r} for r in (1, 2, 3, 4)]).value
    0.6666666666666669
    """
    x, y, kept = _finite(values, gaps, settings)

    def tau(runs: np.ndarray) -> float:
        return float(scipy.stats.kendalltau(x[runs], y[runs]).statistic) if len(runs) > 1 else math.nan

    return _over_settings(tau, kept, level)


def granulated(
    values: Values, gaps: Values, settings: Settings, *, level: float = 0.95
) -> tuple[Interval, dict[str, float]]:
    r"""The granulated coefficient $\Psi = \frac{1}{n} \sum_i \psi_i$: does a measure follow every hyperparameter?

    $\psi_i$ is the mean of $\mathrm{sign}(\mu - \mu')\, \mathrm{sign}(g - g')$ over the pairs of runs of one seed
    that differ only in hyperparameter i. On a full grid this is the paper's mean of the tau of each group. A tie
    counts 0, so a measure that follows a single hyperparameter scores only for that one.

    Arguments as in `kendall`.

    Returns:
      Psi with an interval over settings, and psi for each hyperparameter that alone differs in some pair of runs.

    Raises:
      ValueError: no two runs differ in exactly one hyperparameter.

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

    def mean(runs: np.ndarray) -> float:
        both = np.ix_(runs, runs)
        resampled = [(agree[both], pairs[both]) for pairs in alone.values()]
        return float(np.mean([signs[pairs].mean() if pairs.any() else 0.0 for signs, pairs in resampled]))

    return _over_settings(mean, kept, level), {name: float(agree[pairs].mean()) for name, pairs in alone.items()}


def trend(x: Values, y: Values) -> float:
    """Spearman's rank correlation of the finite pairs; NaN for fewer than three, or if one side is constant."""
    a, b, _ = _finite(x, y, [{}] * len(x))
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(scipy.stats.spearmanr(a, b).statistic)


def at_loss(losses: Values, values: Values, level: float) -> float:
    """The value where a falling loss first reaches a level, by interpolation in both logarithms.

    Args:
      losses: the loss along training.
      values: values such as sharpness, at the same times.
      level: the loss to reach.

    Returns:
      The value. NaN if the loss never reaches the level, or begins at or below it, or if a number next to the
      crossing is not positive.

    >>> round(at_loss([1.0, 0.01], [100.0, 1.0], 0.1), 6)
    10.0
    """
    f, v = np.array([losses, values], float)
    k = int((f <= level).argmax()) if len(f) else 0
    if k == 0 or not (np.minimum(f, v)[k - 1 : k + 1] > 0).all():
        return math.nan
    f, v = np.log([f[[k, k - 1]], v[[k, k - 1]]])  # the later first: the abscissae of `interp` rise
    return math.exp(np.interp(math.log(level), f, v))


class Signs(NamedTuple):
    """The sign test of paired differences; as text "4 of 5 seeds (p = 0.38)".

    Attributes:
      wins: differences above 0.
      n: differences that are not 0.
      p_value: two-sided; NaN if there is no difference.
    """

    wins: int
    n: int
    p_value: float

    def __str__(self) -> str:
        return f"{self.wins} of {self.n} seeds (p = {self.p_value:.2g})"


def signs(differences: Values) -> Signs:
    """How many differences are above 0, with the two-sided sign test; NaN and ties are left out.

    >>> str(signs([1.0, 2.0, 0.5, 3.0, -1.0]))
    '4 of 5 seeds (p = 0.38)'
    """
    x = np.asarray(differences, float)
    wins, n = int((x > 0).sum()), int(((x > 0) | (x < 0)).sum())
    return Signs(wins, n, float(scipy.stats.binomtest(wins, n).pvalue) if n else math.nan)


class Threshold(NamedTuple):
    """Where accuracy begins to fall with the batch size.

    Attributes:
      batch_size: the threshold.
      plateau: the accuracy below it.
      slope: the change of the accuracy for each factor of ten above it; negative.
      p_value: p-value of the F test against an accuracy that is the same at all batch sizes.
    """

    batch_size: float
    plateau: float
    slope: float
    p_value: float


def threshold(batch_sizes: Values, accuracies: Values) -> Threshold | None:
    r"""The batch size above which accuracy falls: a least-squares fit that is constant, then a falling line.

    $a + b \max(0, \log_{10} B - \log_{10} t)$ with b < 0. The search for t is on a grid of 400 values between the
    second and the last but one batch size; a and b are fitted for each. The F test has 2 and N - 3 degrees of
    freedom, and assumes independent points.

    Args:
      batch_sizes: one for each point; a batch size may occur several times, once for each seed.
      accuracies: one for each point; one that is not finite is left out.

    Returns:
      The threshold; None with fewer than five batch sizes, or if accuracy does not fall.

    Raises:
      ValueError: the lengths differ, or a batch size is not above 0.

    >>> sizes = [10, 30, 100, 300, 1000, 3000]
    >>> fall = threshold(sizes, [80 - 2 * max(0, math.log10(B / 100)) for B in sizes])
    >>> round(fall.batch_size), round(fall.plateau), round(fall.slope)
    (100, 80, -2)
    """
    if len(batch_sizes) != len(accuracies):
        raise ValueError(f"there are {len(batch_sizes)} batch sizes and {len(accuracies)} accuracies")
    sizes = np.asarray(batch_sizes, float)
    if not (sizes > 0).all():
        raise ValueError(f"batch_sizes is {batch_sizes}; each must be above 0")
    x, y, _ = _finite(np.log10(sizes), accuracies, [{}] * len(sizes))
    distinct = np.unique(x)
    if len(distinct) < 5:
        return None
    turns = np.linspace(distinct[1], distinct[-2], 400)
    beyond = np.maximum(0, x - turns[:, None])
    designs = np.stack([np.ones_like(beyond), beyond], -1)  # [turns, points, 2]
    fits = np.linalg.pinv(designs) @ y
    squares = ((np.einsum("tpk,tk->tp", designs, fits) - y) ** 2).sum(1)
    best = squares.argmin()
    (plateau, slope), least = fits[best], squares[best]
    if slope >= 0 or np.ptp(y) == 0:
        return None
    freedom, flat = len(x) - 3, ((y - y.mean()) ** 2).sum()
    f = (flat - least) / 2 / (least / freedom) if least > 0 else math.inf
    p_value = scipy.stats.f.sf(f, 2, freedom)
    return Threshold(float(10 ** turns[best]), float(plateau), float(slope), float(p_value))


def _finite(values: Values, gaps: Values, settings: Settings) -> tuple[np.ndarray, np.ndarray, Settings]:
    x, y = np.asarray(values, float), np.asarray(gaps, float)
    if not len(x) == len(y) == len(settings):
        raise ValueError(f"{len(x)} values, {len(y)} gaps and {len(settings)} settings; they must match")
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep], list(itertools.compress(settings, keep))


def _over_settings(statistic: Callable[[np.ndarray], float], settings: Settings, level: float) -> Interval:
    """A statistic of runs, given by their indices, with a bootstrap that draws settings with all their runs."""
    _check_level(level)
    runs: dict[Hashable, list[int]] = {}
    for i, setting in enumerate(settings):
        runs.setdefault(frozenset((k, v) for k, v in setting.items() if k != "seed"), []).append(i)
    value, groups = statistic(np.arange(len(settings))), list(runs.values())
    if len(groups) < 5 or not math.isfinite(value):
        return Interval(value, math.nan, math.nan)

    def resampled(drawn: np.ndarray) -> float:
        return float(np.nan_to_num(statistic(np.concatenate([groups[k] for k in drawn]))))

    with warnings.catch_warnings(action="ignore"):  # if all resamples are equal, the ends are NaN
        ends = scipy.stats.bootstrap(
            (np.arange(len(groups)),), resampled, n_resamples=999, confidence_level=level, rng=0
        ).confidence_interval
    return Interval(value, *map(float, ends))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be between 0 and 1")
