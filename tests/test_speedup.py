"""Appendix C of the paper, in its own numbers."""

import pytest

from gengap import speedup


def test_the_example_of_the_paper() -> None:
    """f_s = 0.2 and B_s / B_l = 0.1: large batches need at most half the iterations."""
    assert speedup.break_even(256, 2560, 0.2) == pytest.approx(0.5)


def test_the_gain_is_the_ratio_of_the_two_times() -> None:
    P, I_s, I_l, B_s, B_l, f_s = 64, 900, 130, 100, 1500, 0.35
    small, large = I_s * B_s / (P * f_s), I_l * B_l / P
    assert speedup.gain(I_s, I_l, B_s, B_l, f_s) == pytest.approx(small / large)


def test_at_the_break_even_both_take_as_long() -> None:
    ratio = speedup.break_even(32, 144, 0.3)
    assert speedup.gain(1000, 1000 * ratio, 32, 144, 0.3) == pytest.approx(1)


def test_iterations_are_counted_at_the_ends_of_epochs() -> None:
    assert speedup.iterations_to([0.1, None, 0.5, 0.4], 0.5, 7) == 21
    assert speedup.iterations_to([0.1, 0.2], 0.5, 7) is None


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"efficiency is 1\.5"):
        speedup.break_even(1, 2, 1.5)
    with pytest.raises(ValueError, match="large_batch is 0"):
        speedup.break_even(1, 0, 0.5)
    with pytest.raises(ValueError, match="small_iterations is nan"):
        speedup.gain(float("nan"), 1, 1, 1, 0.5)
    with pytest.raises(ValueError, match="steps_per_epoch is 0"):
        speedup.iterations_to([], 1, 0)
