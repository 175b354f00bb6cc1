"""Thresholds, verdicts and appendix C on made-up curves whose answers are known."""

import math

import numpy as np
import pytest

from gengap import findings, paper, training_sections

SIZES = [16, 32, 64, 128, 256, 512, 1024]


@pytest.mark.parametrize("at", [64, 100, 300])
def test_a_threshold_is_found_through_noise(at) -> None:
    rng = np.random.default_rng(0)
    sizes = SIZES * 5
    accuracies = [90 - 3 * max(0, math.log10(size / at)) + rng.normal(0, 0.05) for size in sizes]
    found = findings.threshold(sizes, accuracies)
    assert found is not None
    assert abs(math.log10(found.batch_size / at)) < 0.1
    assert found.plateau == pytest.approx(90, abs=0.05) and found.slope == pytest.approx(-3, abs=0.3)
    assert found.p_value < 1e-6


def test_no_threshold_where_accuracy_rises() -> None:
    assert findings.threshold(SIZES, [90 + size / 100 for size in SIZES]) is None


def test_noise_alone_has_no_small_p_value_more_often_than_it_says() -> None:
    rng = np.random.default_rng(0)
    repeats = [findings.threshold(SIZES * 3, rng.normal(0, 1, 21).tolist()) for _ in range(200)]
    small = sum(found is not None and found.p_value < 0.01 for found in repeats)
    assert small <= 10  # the threshold is fitted too, so that the test is a little liberal


def test_too_few_batch_sizes_have_no_threshold() -> None:
    assert findings.threshold(SIZES[:4] * 3, [90.0, 90, 80, 70] * 3) is None


def test_the_thresholds_of_the_papers_curves_are_of_the_order_of_its_words() -> None:
    """About 500 for C1 and 15,000 for F2, where the sharpness has risen; accuracy begins to fall earlier."""
    for network, words in (("C1", 500), ("F2", 15_000)):
        curve = paper.figure("fig4_batchsize")[network]["test_acc"]
        found = findings.threshold(curve.x, curve.y)
        assert found is not None and words / 3 < found.batch_size < 2 * words


def test_bad_batch_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="2 batch sizes and 1 accuracies"):
        findings.threshold([1, 2], [1.0])
    with pytest.raises(ValueError, match="must be above 0"):
        findings.threshold([0, 2], [1.0, 2.0])


def test_large_batches_pay_below_the_efficiency_of_appendix_c() -> None:
    """LB takes three epochs of 2 steps to the 0.8 that both reach, SB one of 20: 6 / 20, and 30 / (300 * 0.3)."""
    runs = [("SB", 30, 20, [0.8, 0.9, 0.7]), ("LB", 300, 2, [0.1, None, 0.8])]
    rows = [
        {"method": method, "seed": 0, "epochs": 3, "steps": 3 * steps, "batch_size": batch_size}
        | {"history": {"test_accuracy": accuracies}}
        for method, batch_size, steps, accuracies in runs
    ]
    section = training_sections.speedup(rows)
    assert section is not None
    (said,) = section.findings
    assert "LB (300) takes 0.30 ± - times the iterations of SB (30)" in said
    assert "efficiency below 0.33 ± -." in said
    (drawn,) = [line for line in section.figure.axes[0].lines if len(line.get_xdata()) > 2]
    at = dict(zip(np.round(drawn.get_xdata(), 2), drawn.get_ydata(), strict=True))
    assert at[0.2] == pytest.approx(0.5)  # the paper's example: a tenth of the batch, an efficiency of 0.2
    assert training_sections.speedup([rows[0], rows[1] | {"history": {"test_accuracy": [None]}}]) is None


def test_a_verdict_counts() -> None:
    assert findings.verdict([True, False, True]) == "agrees with the paper in 2 of 3 seeds"
    assert findings.verdict([True, False], "starts") == "agrees with the paper in 1 of 2 starts"
    assert findings.verdict([]) == "nothing to compare"
