"""One number of rows against another, a curve for each seed, and the rank correlation of the two."""

import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from experiments.lib.rows import Value, value_of
from gengap import stats
from gengap.records import Row
from gengap.report import plain

EPSILONS = ((1e-3, "1e-3"), (5e-4, "5e-4"))
"""The epsilons of the full space in the paper's figures, each as a number and in words."""
Curve = tuple[list[float], list[float | None]]


def curves(rows: Sequence[Row], order: str, x: Value, y: Value) -> dict[int, Curve]:
    """Two numbers x and y of the rows of each seed, in the order of a column.

    Rows without x are left out. If a row has no y, or one that is not finite, y is `None`.

    Raises:
      ValueError: the rows are of several networks, data sets or runs.
    """
    stats.check_comparable(rows)
    of_seeds: dict[int, Curve] = {}
    for row in sorted(rows, key=lambda row: (row["seed"], row[order])):
        if (value := value_of(row, x)) is not None:
            xs, ys = of_seeds.setdefault(row["seed"], ([], []))
            xs.append(value)
            ys.append(value_of(row, y))
    return of_seeds


def ranks(curves: Iterable[Curve]) -> np.ndarray:
    """The rank correlation of x and y in each seed that has one."""
    correlations = np.array([stats.trend(x, y) for x, y in curves])
    return correlations[np.isfinite(correlations)]


def mean_rank(ranks: np.ndarray) -> str:
    """The mean rank correlation in words; empty if no seed has one."""
    return f"rank correlation {plain(statistics.fmean(ranks))}" if len(ranks) else ""


def lowest_and_highest(ranks: Iterable[np.ndarray]) -> str:
    """The lowest and highest rank correlation over several epsilons in words; empty if there are none."""
    known = np.concatenate(list(ranks))
    return f"rank correlation {plain(known.min())} to {plain(known.max())}" if len(known) else ""
