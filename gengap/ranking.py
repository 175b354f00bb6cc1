"""How well a measure predicts the generalisation gap over many runs: Kendall's tau, and by hyperparameter.

Reference: Jiang et al., "Fantastic Generalization Measures and Where to Find Them", 2020, section 2.2.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats


class Rank(NamedTuple):
    """A rank correlation with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def kendall(values: Sequence[float], gaps: Sequence[float], *, resamples: int = 1000, seed: int = 0) -> Rank:
    """Kendall's tau-b of a measure and the gaps, with a bootstrap over the runs.

    >>> kendall([1, 2, 3, 4], [10, 20, 30, 40]).value
    1.0
    """
    x, y = _finite(values, gaps)
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, len(x), len(x)) for _ in range(resamples)]
    return _rank(_tau(x, y), [_tau(x[i], y[i]) for i in draws])


def granulated(
    values: Sequence[float],
    gaps: Sequence[float],
    settings: Sequence[Mapping[str, float]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Rank, dict[str, Rank]]:
    r"""The granulated coefficient: tau where only one hyperparameter varies, averaged over all.

    $\psi_i$ is the mean over all settings of the others of the tau of the runs that differ in hyperparameter i
    alone, $\Psi$ the mean of the $\psi_i$; a measure that goes with one hyperparameter only does not score.

    Args:
      values: of the measure, one a run.
      gaps: one a run.
      settings: of each run, its hyperparameters; the seed may be among them, and is then only held fixed.
      resamples: of the bootstrap, over the groups of each hyperparameter.
      seed: of the bootstrap.

    Returns:
      Psi, and psi for each hyperparameter.
    """
    x, y = np.asarray(values, float), np.asarray(gaps, float)
    rng = np.random.default_rng(seed)
    names = [name for name in settings[0] if name != "seed" and len({one[name] for one in settings}) > 1]
    taus: dict[str, np.ndarray] = {}
    for name in names:
        order = sorted(range(len(settings)), key=lambda i: _others(settings[i], name))
        groups = [list(g) for _, g in itertools.groupby(order, key=lambda i: _others(settings[i], name))]
        found = [_tau(x[g], y[g]) for g in groups if len(g) > 1]
        taus[name] = np.array([tau for tau in found if np.isfinite(tau)])
    kept = {name: every for name, every in taus.items() if len(every)}
    if not kept:
        raise ValueError("no two runs differ in one hyperparameter alone")
    drawn = {
        name: every[rng.integers(0, len(every), (resamples, len(every)))].mean(1) for name, every in kept.items()
    }
    each = {name: _rank(float(kept[name].mean()), drawn[name]) for name in kept}
    return _rank(float(np.mean([rank.value for rank in each.values()])), np.mean(list(drawn.values()), 0)), each


def _others(setting: Mapping[str, float], name: str) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((key, value) for key, value in setting.items() if key != name))


def _tau(x: np.ndarray, y: np.ndarray) -> float:
    if len(set(x.tolist())) < 2 or len(set(y.tolist())) < 2:
        return float("nan")
    return float(scipy.stats.kendalltau(x, y).statistic)


def _rank(value: float, draws: Sequence[float] | np.ndarray) -> Rank:
    finite = np.asarray(draws, float)
    finite = finite[np.isfinite(finite)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (float("nan"),) * 2
    return Rank(value, float(low), float(high))


def _finite(values: Sequence[float], gaps: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(values, float), np.asarray(gaps, float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"there are {x.size} values and {y.size} gaps; there must be as many")
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]
