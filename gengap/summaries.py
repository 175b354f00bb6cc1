"""Reading the summary of a run: its rows by network and method, what was measured, and comparisons by seed.

A summary is the dictionary that a run writes to `summary.json`. Any of its numbers may be null, and rows,
sharpness records and histories may be missing. A run that diverged stays among the rows and is in no value.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gengap import paper
from gengap.statistics import sign_test

Summary = Mapping[str, Any]
Row = Mapping[str, Any]
Seeds = dict[int, float]

_NAMES = {"mnist": "MNIST", "timit": "TIMIT", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


class Group(NamedTuple):
    """The rows of one network on one data set, method -> seed -> row, SB and LB first."""

    network: str
    dataset: str
    methods: dict[str, dict[int, Row]]

    def __str__(self) -> str:
        return f"{self.network} on {self.dataset}" if self.dataset else self.network

    def values(self, method: str, quantity: Callable[[Row], float | None]) -> Seeds:
        """The finite values of a quantity by seed, without runs that diverged."""
        rows = self.methods.get(method, {})
        return {
            seed: value for seed, row in rows.items() if not diverged(row) and (value := quantity(row)) is not None
        }

    def pair(self, quantity: Callable[[Row], float | None]) -> tuple[Seeds, Seeds]:
        """The values of SB and those of LB."""
        return self.values("SB", quantity), self.values("LB", quantity)

    def differences(self, quantity: Callable[[Row], float | None]) -> list[float]:
        """SB - LB for each seed that has both."""
        small, large = self.pair(quantity)
        return [small[seed] - large[seed] for seed in small if seed in large]

    def paper(self, table: Mapping[str, Any], method: str, key: str | float) -> tuple[float, float] | None:
        """The paper's mean and standard deviation, on whichever data set the paper took for this network."""
        columns = table.get(self.network, {}).get(method, {})
        return next((columns[name] for name in columns if _same(name, key)), None)

    @property
    def elsewhere(self) -> str:
        """The paper's data set for this network where this group has another one, else nothing."""
        theirs = paper.DATASET.get(self.network, "")
        return "" if theirs == self.dataset.split(":")[0] else _NAMES.get(theirs, "")


class Measure(NamedTuple):
    """What a sharpness record measured: the space, its dimension if it is a subspace, epsilon."""

    space: str
    dim: int | None
    epsilon: float

    def __str__(self) -> str:
        return f"{self.where}, epsilon {self.epsilon:g}"

    @property
    def where(self) -> str:
        """The space in words."""
        if self.space == "full":
            return "full space"
        return f"{self.space} subspaces" + ("" if self.dim is None else f", dim {self.dim}")

    @property
    def table(self) -> Mapping[str, Any]:
        """The paper's table of this measure; empty where the paper has none."""
        if self.space == "full":
            return paper.TABLE_3
        return paper.TABLE_4 if (self.space, self.dim) == ("random", 100) else {}

    def find(self, row: Row) -> Mapping[str, Any]:
        """The record of this measure in a row, empty if there is none."""
        return next((record for record in row.get("sharpness") or [] if _measure(record) == self), {})

    def value(self, row: Row) -> float | None:
        """The sharpness of a row: in subspaces the mean over its draws; None unless all are finite."""
        record = self.find(row)
        if record.get("finite") is False:
            return None
        if self.space == "full":
            return number(record.get("value"))
        draws = [number(draw) for draw in record.get("draws") or []]
        finite = [draw for draw in draws if draw is not None]
        if draws:
            return statistics.fmean(finite) if len(finite) == len(draws) else None
        return number(record.get("mean"))

    def loss(self, row: Row) -> float | None:
        """The training loss f(x) that the sharpness started from."""
        base = number(self.find(row).get("base_loss"))
        return number(row.get("train_loss")) if base is None else base


def number(value: object) -> float | None:
    """A finite number as a float; None for null, text, NaN and infinities."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def percent(key: str) -> Callable[[Row], float | None]:
    """The quantity that reads a share such as `"test_accuracy"` from a row, in percent."""

    def quantity(row: Row) -> float | None:
        share = number(row.get(key))
        return None if share is None else 100 * share

    return quantity


def diverged(row: Row) -> bool:
    """Whether the training of a row left the finite numbers."""
    return row.get("diverged_at") is not None


def groups(summary: Summary) -> list[Group]:
    """The rows of a summary by network and data set, in the order in which they first appear.

    Raises:
        ValueError: two rows have the same network, data set, method and seed.
    """
    found: dict[tuple[str, str], dict[str, dict[int, Row]]] = {}
    for row in summary.get("rows") or []:
        dataset = row.get("dataset") or (summary.get("config") or {}).get("dataset") or ""
        methods = found.setdefault((str(row["network"]), str(dataset)), {"SB": {}, "LB": {}})
        seeds = methods.setdefault(str(row["method"]), {})
        if row["seed"] in seeds:
            what = f"{row['network']} on {dataset}, {row['method']}, seed {row['seed']}"
            raise ValueError(f"rows hold {what} twice; they must hold it once")
        seeds[row["seed"]] = row
    return [
        Group(network, dataset, {method: seeds for method, seeds in methods.items() if seeds})
        for (network, dataset), methods in found.items()
    ]


def measures(summary: Summary) -> list[Measure]:
    """What was measured: the full space first, small subspaces before large, large epsilon before small."""
    found = {_measure(record) for row in summary.get("rows") or [] for record in row.get("sharpness") or []}
    return sorted(found, key=lambda m: (m.space != "full", m.space, m.dim or 0, -m.epsilon))


def compare(high: Seeds, low: Seeds, words: str) -> str:
    """In how many seeds one side is larger, with the sign test; ties are left out, as that test has it.

    Args:
        high: values by seed of the side expected to be larger.
        low: values by seed of the other side.
        words: the claim, such as "LB sharper than SB".

    Returns:
        A clause with the count and p.

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
    return f"{words} in {wins} of {n} seeds{tied} (sign test, p = {sign_test(wins, n):.2g} one-sided)"


def _measure(record: Mapping[str, Any]) -> Measure:
    return Measure(str(record["space"]), record.get("dim"), float(record["epsilon"]))


def _same(name: str | float, key: str | float) -> bool:
    if isinstance(name, str) or isinstance(key, str):
        return name == key
    return math.isclose(name, key, rel_tol=1e-6)
