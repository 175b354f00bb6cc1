"""Rows of experiments as numbers: by seed, in pairs of SB and LB, without those of trainings that diverged."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gengap import report, stats
from gengap.records import Row
from gengap.report import number, percent, plain

Value = str | Callable[[Row], float | None]
"""A column, or a function of a row."""


def value_of(row: Row, value: Value) -> float | None:
    """A number of a row; `None` if it has none, or one that is not finite."""
    return number(row.get(value)) if isinstance(value, str) else value(row)


def by_seed(rows: Iterable[Row], value: Value) -> dict[int, float]:
    """A number of each seed that has it."""
    values = {row["seed"]: value_of(row, value) for row in rows}
    return {seed: number for seed, number in values.items() if number is not None}


def pairs(
    rows: Sequence[Row], value: Value, names: Sequence[str] = ("SB", "LB"), *, by: str = "side"
) -> list[tuple[float, float]]:
    """The numbers of two ways of training, by default of SB and of LB, for each seed that has both."""
    stats.check_comparable(rows)
    first, second = (by_seed((row for row in rows if row.get(by) == name), value) for name in names)
    return [(first[seed], second[seed]) for seed in first if seed in second]


def of_side(rows: Sequence[Row], value: Value) -> dict[str, dict[int, float]]:
    """A number of SB and of LB by seed; only of the seeds that both have, if there are any."""
    stats.check_comparable(rows)
    values = {side: by_seed((row for row in rows if row["side"] == side), value) for side in ("SB", "LB")}
    shared = values["SB"].keys() & values["LB"].keys()
    return {
        side: {seed: number for seed, number in of_seed.items() if seed in shared or not shared}
        for side, of_seed in values.items()
    }


def means(pairs: Sequence[tuple[float, float]], unit: str = "") -> str:
    """The means of pairs in words: "98.11 | 97.94 %"; empty if there are none."""
    return " | ".join(plain(float(np.mean(side))) for side in zip(*pairs, strict=True)) + unit if pairs else ""


def test_accuracy(row: Row) -> float | None:
    """Test accuracy in percent."""
    return percent(row.get("test_accuracy"))


def converged(rows: Iterable[Row]) -> list[Row]:
    """The rows of trainings that did not diverge."""
    return [row for row in rows if row.get("diverged_at") is None]


def diverged(rows: Iterable[Row]) -> list[report.Section]:
    """A section with a sentence for each training that diverged, if there are any; such rows are in no mean."""
    sentences = [
        f"Diverged, in no comparison: {row['network']} on {row['dataset']}, {_place(row)}, seed {row['seed']}"
        f"{_begun_after(row)}, at step {row['diverged_at']}."
        for row in rows
        if row.get("diverged_at") is not None
    ]
    return [report.Section("Training that diverged", sentences)] if sentences else []


def _place(row: Row) -> str:
    names = ("side", "factors", "begun", "budget", "remedy") if "side" in row else ("batch_size",)
    return ", ".join(str(row[name]) for name in names if row.get(name))


def _begun_after(row: Row) -> str:
    return f", begun after epoch {row['epoch']} of SB" if row.get("epoch") else ""
