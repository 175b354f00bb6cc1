"""When large batches pay: the performance model of appendix C of Keskar et al. (2016).

Large batches of $B_l$ take $I_l$ iterations to the test accuracy that small ones of $B_s$ reach in $I_s$. On P
processors, $P < B_l$, an iteration takes time proportional to $B_l / P$, and $B_s / (P f_s(P))$ where small
batches use the processors with an efficiency of $f_s(P)$ between 0 and 1; large ones use them fully.
"""

from collections.abc import Sequence


def break_even(small_batch: float, large_batch: float, efficiency: float) -> float:
    r"""The ratio of iterations $I_l / I_s$ below which large batches are faster: $B_s / (f_s(P) B_l)$.

    Args:
      small_batch, large_batch: examples per iteration, $B_s$ and $B_l$.
      efficiency: $f_s(P)$, above 0 and at most 1.

    Raises:
      ValueError: an argument out of its range.

    The paper's example: at an efficiency of 0.2 and a tenth of the batch size, at most half the iterations.

    >>> break_even(256, 2560, 0.2)
    0.5
    """
    _positive(small_batch=small_batch, large_batch=large_batch, efficiency=efficiency)
    if efficiency > 1:
        raise ValueError(f"efficiency is {efficiency}; it must be above 0 and at most 1")
    return small_batch / (efficiency * large_batch)


def gain(
    small_iterations: float, large_iterations: float, small_batch: float, large_batch: float, efficiency: float
) -> float:
    r"""How many times as fast large batches are: $\frac{I_s B_s}{f_s(P)\, I_l B_l}$, above 1 where they pay.

    Arguments as of `break_even`, and the iterations $I_s$ and $I_l$ to comparable test accuracy.

    >>> gain(1000, 250, 256, 2560, 0.2)
    2.0
    """
    _positive(small_iterations=small_iterations, large_iterations=large_iterations)
    return break_even(small_batch, large_batch, efficiency) * small_iterations / large_iterations


def iterations_to(accuracies: Sequence[float | None], accuracy: float, steps_per_epoch: int) -> int | None:
    """Iterations until an epoch ends with at least this accuracy; None where none does.

    Args:
      accuracies: after each epoch.
      accuracy: to reach, in the same units.
      steps_per_epoch: iterations of an epoch.

    >>> iterations_to([0.5, 0.9, 0.8], 0.85, steps_per_epoch=10)
    20
    """
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch}; it must be at least 1")
    for epoch, value in enumerate(accuracies, 1):
        if value is not None and value >= accuracy:
            return epoch * steps_per_epoch
    return None


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}; it must be above 0")
