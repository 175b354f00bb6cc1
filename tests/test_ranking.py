"""Rank correlations whose values can be counted."""

import itertools

import numpy as np
import pytest

from gengap import ranking

GRID = [
    {"batch": float(b), "rate": r, "seed": float(s)}
    for b, r, s in itertools.product((16, 32, 64), (0.1, 0.2), (0, 1))
]


def test_tau_counts_pairs() -> None:
    """Of 6 pairs 5 agree: (5 - 1) / 6."""
    assert ranking.kendall([1, 2, 3, 4], [1, 2, 4, 3]).value == pytest.approx(4 / 6)


def test_the_interval_holds_the_tau_of_normal_pairs() -> None:
    """tau = 2 / pi arcsin(rho); 95 % of intervals hold it, at least 88 of 100."""
    rng = np.random.default_rng(0)
    exact, held = 2 / np.pi * np.arcsin(0.5), 0
    for repeat in range(100):
        x = rng.normal(size=60)
        y = 0.5 * x + np.sqrt(0.75) * rng.normal(size=60)
        found = ranking.kendall(x.tolist(), y.tolist(), resamples=200, seed=repeat)
        held += found.low <= exact <= found.high
    assert held >= 88


def test_a_measure_that_follows_one_hyperparameter_only_scores_for_that() -> None:
    gaps = [np.log(one["batch"]) + one["rate"] for one in GRID]
    follows = [one["batch"] for one in GRID]
    psi, each = ranking.granulated(follows, gaps, GRID)
    assert each["batch"].value == pytest.approx(1)
    assert "rate" not in each  # where only the rate varies the measure is constant
    right, each = ranking.granulated(gaps, gaps, GRID)
    assert {name: rank.value for name, rank in each.items()} == {"batch": 1.0, "rate": 1.0}
    assert right.value == psi.value == 1


def test_psi_is_the_mean_over_hyperparameters() -> None:
    gaps = [np.log(one["batch"]) + one["rate"] for one in GRID]
    mixed = [one["batch"] - 1000 * one["rate"] for one in GRID]
    psi, each = ranking.granulated(mixed, gaps, GRID)
    assert each["batch"].value == pytest.approx(1) and each["rate"].value == pytest.approx(-1)
    assert psi.value == pytest.approx(0)


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="3 values and 2 gaps"):
        ranking.kendall([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="no two runs"):
        ranking.granulated([1.0], [1.0], GRID[:1])
