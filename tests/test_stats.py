"""Statistics whose values can be counted, and intervals that hold what they should."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from gengap import paper, stats

GRID = [
    {"batch": float(b), "rate": r, "seed": float(s)}
    for b, r, s in itertools.product((16, 32, 64), (0.1, 0.2), (0, 1))
]


def alone(count: int) -> list[dict[str, int]]:
    """One run in each of so many settings."""
    return [{"rate": i} for i in range(count)]


@pytest.mark.parametrize("pairs", [2, 5, 12])
def test_the_sign_test_sums_a_binomial(pairs) -> None:
    for wins in range(pairs + 1):
        sure = max(wins, pairs - wins)
        p = min(1, 2 * sum(math.comb(pairs, i) for i in range(sure, pairs + 1)) / 2**pairs)
        found = stats.signs([1.0] * wins + [-1.0] * (pairs - wins) + [0.0, math.nan])
        assert found[:2] == (wins, pairs) and found.p_value == pytest.approx(p)


@pytest.mark.parametrize("count", [3, 5])
def test_an_interval_of_few_seeds_holds_their_mean_as_often_as_it_says(count) -> None:
    x = np.random.default_rng(0).normal(3, 2, (1000, count))
    ends = np.array([stats.interval(values) for values in x])
    assert 0.94 < np.mean((ends[:, 1] <= 3) & (ends[:, 2] >= 3)) < 0.96


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_an_interval_is_that_of_the_t_test(level) -> None:
    for count in (2, 3, 10):
        x = np.random.default_rng(count).normal(3, 2, count)
        ends = scipy.stats.ttest_1samp(x, 0).confidence_interval(level)
        assert stats.interval(x, level=level) == pytest.approx((x.mean(), *ends), rel=1e-12)


def test_an_interval_is_students() -> None:
    """Of five values with the standard deviation sqrt(2.5): 2.776 sqrt(2.5 / 5) on either side, 2.132 at 90 %."""
    ends = stats.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert ends == pytest.approx((3, 3 - 2.776 * math.sqrt(0.5), 3 + 2.776 * math.sqrt(0.5)), abs=1e-3)
    assert stats.interval([1, 2, 3, 4, 5], level=0.9).high == pytest.approx(3 + 2.132 * math.sqrt(0.5), abs=1e-3)


def test_no_interval_where_there_is_none() -> None:
    assert stats.interval([2.5]) == pytest.approx((2.5, math.nan, math.nan), nan_ok=True)
    assert stats.interval([2.0] * 8) == (2, 2, 2)
    for values in ([], [1.0, None, 2.0, 3.0, 4.0, 5.0], [1.0, math.inf]):
        assert np.isnan(stats.interval(values)).all()
    with pytest.raises(ValueError, match="level is 95"):
        stats.interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match=r"shape \(2, 5\)"):
        stats.interval(np.ones((2, 5)))


def test_a_verdict_is_the_side_of_the_interval() -> None:
    """Of three seeds it is the mean -+ 4.303 s / sqrt(3), so that of 1, 1, 1 + d has 0 in it from d = 0.91 on."""
    assert stats.verdict([1, 1, 1.9]) == ("holds", 3, 3, 0)
    assert stats.verdict([-1, -1, -1.9]) == ("does not hold", 3, 0, 3)
    assert stats.verdict([1, 1, 1.92]).word == "undecided"
    assert stats.verdict([1.0, 1.0]) == ("undecided", 2, 2, 0)
    assert stats.verdict([1.0]) == ("no test", 1, 1, 0) and str(stats.verdict([1.0])) == "no test (n = 1)"
    assert stats.verdict([]) == stats.verdict([math.nan]) == ("not tested", 0, 0, 0)
    assert str(stats.verdict([1, 1, 1, 0.0, -0.5])) == "undecided (n = 5, 3 of 4)"
    assert stats.verdict([0.0] * 5) == ("undecided", 5, 0, 0)


def test_an_infinite_margin_counts_and_decides_nothing() -> None:
    margins = [stats.log_ratio(a, b) for a, b in ((9.0, 0.0), (9.0, 1.0), (9.0, 1.0), (0.0, 0.0))]
    assert margins == [math.inf, math.log(9), math.log(9), 0]
    assert stats.verdict(margins) == ("undecided", 4, 3, 0)


def test_a_claim_of_several_numbers_is_as_strong_as_the_weakest() -> None:
    holds, fails, open_, untested = (stats.verdict(m) for m in ([1.0, 1, 1], [-1.0, -1, -1], [1.0, 1], []))
    assert stats.weakest([holds, holds, untested]) == holds
    assert stats.weakest([holds, open_]) == open_
    assert stats.weakest([open_, fails, holds]) == fails
    assert stats.weakest([]) == stats.weakest([untested]) == untested


def test_the_papers_own_curve_ends_within_half_a_point_of_its_peak() -> None:
    """C1's LB in Fig. 2: its last epoch alone is 0.61 below the peak, the mean of the last tenth 0.46."""
    y = paper.figure("fig2_curves")["C1"]["LB_test"].y
    assert stats.decay(y) == pytest.approx(0.46, abs=0.005)
    assert max(y) - y[-1] == pytest.approx(0.61, abs=0.005)
    assert stats.decay([None, 90.0, 80.0]) == 10 and math.isnan(stats.decay([]))


def test_rows_of_other_networks_data_sets_and_runs_are_apart() -> None:
    rows = [{"network": n, "dataset": "digits", "run": r} for n, r in (("F1", "a"), ("F1", "b"), ("C1", "a"))]
    assert list(stats.comparable(rows)) == ["F1 on digits, a", "F1 on digits, b", "C1 on digits"]
    assert stats.comparable(rows[:1]) == {"F1 on digits": rows[:1]}
    with pytest.raises(
        ValueError, match="rows of F1 on digits, a and of F1 on digits, b; they cannot be compared"
    ):
        stats.check_comparable(rows[:2])


def test_tau_counts_pairs() -> None:
    """Of 6 pairs 5 agree: (5 - 1) / 6. With one tied in x 4 agree and 1 does not: (4 - 1) / sqrt(5 * 6)."""
    assert stats.kendall([1, 2, 3, 4], [1, 2, 4, 3], alone(4)).value == pytest.approx(4 / 6)
    tied = stats.kendall([1, 1, 2, 3], [1, 2, 4, 3], alone(4)).value
    assert tied == pytest.approx((4 - 1) / math.sqrt(5 * 6))
    assert math.isnan(stats.kendall([1, 1, 1], [1, 2, 3], alone(3)).value)


def test_runs_that_are_not_finite_are_left_out_with_their_settings() -> None:
    values, gaps = [1, 2, None, 3, 4, 5, 6], [1, 2, 0, 4, 3, math.inf, 6]
    tau = stats.kendall(values, gaps, alone(7))
    kept = [0, 1, 3, 4, 6]
    assert tau == stats.kendall([values[i] for i in kept], [gaps[i] for i in kept], alone(5))
    assert math.isfinite(tau.low)


def test_the_interval_of_single_runs_is_that_of_a_bootstrap_of_pairs() -> None:
    """And it holds the tau of normal pairs, 2 / pi arcsin(rho)."""
    x, y = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 40).T
    tau = stats.kendall(x, y, alone(40), level=0.9)
    pairs = scipy.stats.bootstrap(
        (x, y),
        lambda a, b: scipy.stats.kendalltau(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=999,
        confidence_level=0.9,
        rng=0,
    )
    assert tau[1:] == tuple(pairs.confidence_interval)
    assert tau.low < 2 / np.pi * np.arcsin(0.5) < tau.high


def clusters(seeds: int) -> tuple[np.ndarray, np.ndarray, list[dict[str, int]]]:
    """Eight settings whose runs are nearly alike over so many seeds."""
    rng = np.random.default_rng(3)
    x, noise = rng.normal(size=(2, 8, 1))
    x, y = (side + 1e-3 * rng.normal(size=(8, seeds)) for side in (x, x + noise))
    return x.ravel(), y.ravel(), [{"rate": i, "seed": s} for i in range(8) for s in range(seeds)]


def test_a_resample_takes_settings_not_runs() -> None:
    """Eight settings of ten seeds say no more than eight settings; eighty runs would seem to say much more."""
    x, y, settings = clusters(10)
    width = {
        name: interval.high - interval.low
        for name, interval in {
            "settings": stats.kendall(x, y, settings),
            "runs": stats.kendall(x, y, alone(80)),
            "eight": stats.kendall(x[::10], y[::10], alone(8)),
        }.items()
    }
    assert width["runs"] < 0.5 * width["settings"]
    assert 0.7 < width["settings"] / width["eight"] < 1.3


def test_seeds_tell_no_settings_apart() -> None:
    """Twelve runs, but four settings: too few for an interval."""
    rng = np.random.default_rng(0)
    settings = [{"rate": i, "seed": s} for i in range(4) for s in range(3)]
    tau = stats.kendall(rng.normal(size=12), rng.normal(size=12), settings)
    assert math.isfinite(tau.value) and math.isnan(tau.low) and math.isnan(tau.high)


def test_a_measure_that_follows_one_hyperparameter_only_scores_for_that() -> None:
    gaps = [math.log(run["batch"]) + run["rate"] for run in GRID]
    psi, each = stats.granulated([run["batch"] for run in GRID], gaps, GRID)
    assert each == {"batch": 1, "rate": 0} and psi.value == 0.5
    psi, each = stats.granulated(gaps, gaps, GRID)
    assert each == {"batch": 1, "rate": 1} and psi.value == 1


def test_psi_is_the_mean_over_hyperparameters() -> None:
    gaps = [math.log(run["batch"]) + run["rate"] for run in GRID]
    psi, each = stats.granulated([run["batch"] - 1000 * run["rate"] for run in GRID], gaps, GRID)
    assert each == {"batch": 1, "rate": -1} and psi.value == 0


def test_psi_is_the_mean_of_the_taus_of_the_groups() -> None:
    """As in eqs. 5 and 6 of Jiang et al.: one tau for each group that differs in one hyperparameter alone."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, len(GRID)))
    psi, each = stats.granulated(x, y, GRID)
    for name in ("batch", "rate"):
        groups: dict[tuple, list[int]] = {}
        for i, run in enumerate(GRID):
            groups.setdefault(tuple(v for k, v in run.items() if k != name), []).append(i)
        taus = [scipy.stats.kendalltau(x[group], y[group]).statistic for group in groups.values()]
        assert each[name] == pytest.approx(np.mean(taus))
    assert psi.value == pytest.approx(np.mean(list(each.values())))
    assert psi.low < psi.value < psi.high


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="3 values, 2 gaps and 3 settings"):
        stats.kendall([1, 2, 3], [1, 2], alone(3))
    for values in ([1.0], [math.nan]):
        with pytest.raises(ValueError, match="no two runs"):
            stats.granulated(values, [1.0], GRID[:1])


def test_a_trend_is_a_rank_correlation() -> None:
    """Spearman's: 1 - 6 sum d^2 / (n (n^2 - 1)); one swap of neighbours among four is 1 - 12 / 60."""
    assert stats.trend([1, 2, 3, 4], [1, 10, 100, None]) == pytest.approx(1)
    assert stats.trend([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert stats.trend([1, 2, 3, 4], [1, 2, 9, 5]) == pytest.approx(0.8)
    for x, y in (([1, 2], [3, 2]), ([1, 2, 3], [1, 1, 1]), ([1, 2, 3], [1, None, 2])):
        assert math.isnan(stats.trend(x, y))


@pytest.mark.parametrize("power", [-1.0, 0.5, 2.0])
def test_a_power_law_is_exact_between_any_two_points(power) -> None:
    losses = [1.0, 0.3, 0.02, 0.004]
    values = [7 * loss**power for loss in losses]
    for level in (0.9, 0.3, 0.1, 0.005):
        assert stats.at_loss(losses, values, level) == pytest.approx(7 * level**power)


def test_the_first_crossing_counts() -> None:
    assert stats.at_loss([1.0, 0.1, 1.0, 0.1], [1.0, 1.0, 5.0, 5.0], 0.5) == pytest.approx(1)


@pytest.mark.parametrize(
    ("losses", "values"),
    [
        ([1.0, 0.5], [1.0, 2.0]),
        ([0.05, 0.01], [1.0, 2.0]),
        ([0.05, 0.2, 0.05], [1.0, 2.0, 3.0]),
        ([1.0, None, 0.01], [1.0, 1.0, 2.0]),
        ([1.0, 0.01], [None, 2.0]),
        ([1.0, 0.01], [0.0, 2.0]),
        ([1.0], [1.0]),
        ([], []),
    ],
)
def test_a_level_that_is_not_crossed_has_no_value(losses, values) -> None:
    assert math.isnan(stats.at_loss(losses, values, 0.1))


SIZES = [16, 32, 64, 128, 256, 512, 1024]


@pytest.mark.parametrize("at", [64, 100, 300])
def test_a_threshold_is_found_through_noise(at) -> None:
    rng = np.random.default_rng(0)
    sizes = SIZES * 5
    accuracies = [90 - 3 * max(0, math.log10(size / at)) + rng.normal(0, 0.05) for size in sizes]
    threshold = stats.threshold(sizes, accuracies)
    assert threshold is not None
    assert abs(math.log10(threshold.batch_size / at)) < 0.1
    assert threshold.plateau == pytest.approx(90, abs=0.05) and threshold.slope == pytest.approx(-3, abs=0.3)
    assert threshold.p_value < 1e-6


def test_no_threshold_where_accuracy_rises_or_stays() -> None:
    assert stats.threshold(SIZES, [90 + size / 100 for size in SIZES]) is None
    assert stats.threshold(SIZES, [90.0] * 7) is stats.threshold(SIZES, [0.1] * 7) is None


def test_noise_alone_has_no_small_p_value_more_often_than_it_says() -> None:
    rng = np.random.default_rng(0)
    repeats = [stats.threshold(SIZES * 3, rng.normal(0, 1, 21).tolist()) for _ in range(200)]
    small = sum(threshold is not None and threshold.p_value < 0.01 for threshold in repeats)
    assert small <= 10  # the threshold is fitted too, so that the test is a little liberal


def test_too_few_batch_sizes_have_no_threshold() -> None:
    assert stats.threshold(SIZES[:4] * 3, [90.0, 90, 80, 70] * 3) is None


def test_the_thresholds_of_the_papers_curves_are_of_the_order_of_its_words() -> None:
    """About 500 for C1 and 15,000 for F2, where the sharpness has risen; accuracy begins to fall earlier."""
    for network, words in (("C1", 500), ("F2", 15_000)):
        curve = paper.figure("fig4_batchsize")[network]["test_acc"]
        threshold = stats.threshold(curve.x, curve.y)
        assert threshold is not None and words / 3 < threshold.batch_size < 2 * words


def test_an_accuracy_that_is_not_finite_is_left_out_of_the_threshold() -> None:
    accuracies = [90 - 3 * max(0, math.log10(size / 100)) for size in SIZES]
    threshold = stats.threshold([*SIZES, 48, 2048], [*accuracies, math.nan, None])
    assert threshold == stats.threshold(SIZES, accuracies) and threshold.batch_size == pytest.approx(100, rel=0.02)


def test_bad_batch_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="2 batch sizes and 1 accuracies"):
        stats.threshold([1, 2], [1.0])
    with pytest.raises(ValueError, match="must be above 0"):
        stats.threshold([0, 2], [1.0, 2.0])
