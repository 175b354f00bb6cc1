"""The paper's claims against rows: each holds, holds in part, does not hold, or was not tested.

A claim is tested once for each seed, and for each epsilon or start where there are several. It holds if all tests
come out as the paper says, in part if some do. Rows are those of the experiments, each with its "part".
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments import landscape, reparametrise, trajectory
from gengap import report
from gengap import statistics as stats
from gengap.records import Row
from gengap.report import number, plain, sharpness_at

EPSILONS = (1e-3, 5e-4)
TABLES = ("digits", "mnist", "cifar", "tables")
"""Parts whose rows are those of `experiments/tables.py`."""
WORDS = {
    "holds": "hold",
    "holds in part": "hold in part",
    "does not hold": "do not hold",
    "not tested": "not tested",
}
Tested = tuple[str, list[bool]]
"""Our numbers in words, and whether each test came out as the paper says."""


class Claim(NamedTuple):
    """What the paper says, and what tests it.

    Attributes:
      where: the section, table or figure of the paper.
      claim: in words, with the rule of the test.
      theirs: the paper's numbers.
      part: the experiment whose rows test it.
      test: of these rows.
    """

    where: str
    claim: str
    theirs: str
    part: str
    test: Callable[[list[Row]], Tested]


def table(rows: Sequence[Row]) -> report.Section:
    """The claims, a line each, in the order of the paper."""
    lines, counts = [], dict.fromkeys(WORDS, 0)
    for where, claim, theirs, part, test in CLAIMS:
        names = TABLES if part == "tables" else (part,)
        own = [row for row in rows if row["part"] in names and row.get("diverged_at") is None]
        ours, tests = test(own) if own else ("", [])
        word = verdict(tests)
        counts[word.split(":")[0]] += 1
        lines.append({"paper": where, "claim": claim, "there": theirs, "here": ours or report.DASH, "": word})
    said = ", ".join(f"{WORDS[word]}: {count}" for word, count in counts.items() if count)
    of = ", ".join(sorted({f"{row['network']} on {row['dataset']}" for row in rows if "network" in row}))
    return report.Section(f"The paper's claims, {of}", [f"Of {len(lines)} claims, {said}."], pd.DataFrame(lines))


def side_by_side(data_sets: Iterable[list[Row]]) -> report.Section:
    """The claims with a column of verdicts and numbers for the rows of each data set."""
    whole, said = pd.DataFrame(), []
    for section in map(table, data_sets):
        of, own = section.title.removeprefix("The paper's claims, "), section.table
        assert own is not None
        whole = own[["paper", "claim", "there"]] if whole.empty else whole
        tested = own[""] != "not tested"
        whole = whole.assign(**{of: (own[""] + " (" + own["here"] + ")").where(tested, report.DASH)})
        said.append(f"{of}: {section.findings[0][0].lower()}{section.findings[0][1:]}")
    return report.Section("The paper's claims", said, whole)


def verdict(tests: Sequence[bool]) -> str:
    """What the tests of a claim come to.

    >>> verdict([True, True]), verdict([True, False]), verdict([False]), verdict([])
    ('holds', 'holds in part: 1 of 2', 'does not hold', 'not tested')
    """
    if not tests:
        return "not tested"
    if all(tests):
        return "holds"
    return f"holds in part: {sum(tests)} of {len(tests)}" if any(tests) else "does not hold"


def _pairs(rows: list[Row], value: Callable[[Row], float | None]) -> list[tuple[float, float]]:
    """A value of SB and of LB for each network and seed that has both."""
    found: dict[Any, dict[str, float]] = {}
    for row in rows:
        if (own := value(row)) is not None:
            found.setdefault((row["network"], row["dataset"], row["seed"]), {})[row["method"]] = own
    return [(one["SB"], one["LB"]) for one in found.values() if "SB" in one and "LB" in one]


def _means(pairs: Sequence[tuple[float, float]], unit: str = "") -> str:
    return " | ".join(plain(float(np.mean(side))) + unit for side in zip(*pairs, strict=True)) if pairs else ""


def _test_accuracy(row: Row) -> float | None:
    return report.percent(row.get("test_accuracy"))


def _gap(rows: list[Row]) -> Tested:
    pairs = _pairs(rows, _test_accuracy)
    return _means(pairs, " %"), [small > large for small, large in pairs]


def _no_decay(rows: list[Row]) -> Tested:
    drops = []
    for row in (row for row in rows if row["method"] == "LB"):
        seen = [
            share for one in row["history"].get("test_accuracy", ()) if (share := report.percent(one)) is not None
        ]
        if seen:
            drops.append(max(seen) - float(np.mean(seen[-max(1, len(seen) // 10) :])))
    return (f"{plain(max(drops))} points at most" if drops else ""), [drop < 0.5 for drop in drops]


def _sharper(space: str) -> Callable[[list[Row]], Tested]:
    def test(rows: list[Row]) -> Tested:
        found = report.sharpness(rows)
        found = found[found["space"] == space].dropna(subset=["value"])
        every = [
            _pairs(group.to_dict("records"), lambda line: line["value"])
            for _, group in found.groupby("epsilon", sort=False)
        ]
        return "; ".join(map(_means, every)), [large > small for pairs in every for small, large in pairs]

    return test


def _distance(rows: list[Row]) -> Tested:
    ratios = [small / large for small, large in _pairs(rows, lambda row: number(row.get("distance")))]
    return f"{plain(float(np.mean(ratios)))} times" if ratios else "", [ratio > 1 for ratio in ratios]


def _steep(rows: list[Row]) -> Tested:
    every = [report.percent(row["directions"]["LB"]["mean_over_highest"]) for row in rows if row.get("directions")]
    shares = [share for share in every if share is not None]
    return f"{plain(float(np.mean(shares)))} %" if shares else "", [share < 5 for share in shares]


def _beyond(rows: list[Row]) -> Tested:
    every = [landscape.beyond(row["alphas"], row["linear"]["train_loss"]) for row in rows if row.get("linear")]
    rises = [pair for pair in every if np.isfinite(pair).all()]
    return _means(rises), [large > small for small, large in rises]


def _trend(method: str, sign: int) -> Callable[[list[Row]], Tested]:
    def test(rows: list[Row]) -> Tested:
        ranks = []
        for (own, _), points in trajectory.points_along(rows).items():
            if own == method:
                losses = [-(number(row["train_loss"]) or math.nan) for row in points]
                ranks.append(stats.trend(losses, [sharpness_at(row, 1e-3) for row in points]))
        known = [rank for rank in ranks if math.isfinite(rank)]
        return f"rank correlation {plain(float(np.mean(known)))}" if known else "", [sign * r > 0 for r in known]

    return test


def _equal_loss(rows: list[Row]) -> Tested:
    along, ratios = trajectory.points_along(rows), []
    for seed in sorted({seed for _, seed in along}):
        curves = []
        for method in ("SB", "LB"):
            points = [
                row for row in along.get((method, seed), []) if row["epoch"] > 0 and number(row["train_loss"])
            ]
            curves.append(([row["train_loss"] for row in points], [sharpness_at(row, 1e-3) for row in points]))
        if not all(losses for losses, _ in curves):
            continue
        level = 1.05 * max(min(losses) for losses, _ in curves)
        small, large = (stats.at_loss(*curve, level) for curve in curves)
        if math.isfinite(large / small):
            ratios.append(large / small)
    return f"LB {plain(float(np.mean(ratios)))} times as sharp" if ratios else "", [r > 1 for r in ratios]


def _threshold(rows: list[Row]) -> Tested:
    points = [(100 * row["share"], _test_accuracy(row)) for row in rows if row.get("share")]
    kept = [(size, accuracy) for size, accuracy in points if accuracy is not None]
    if len({size for size, _ in kept}) < 5:
        return "", []
    found = stats.threshold(*zip(*kept, strict=True))
    if found is None:
        return "no fall", [False]
    return f"{plain(found.batch_size)} % of the set, p = {found.p_value:.2g}", [found.p_value < 0.05]


def _rank(of: str, sign: int) -> Callable[[list[Row]], Tested]:
    """Sharpness against the batch size, or against the epoch of a warm start."""

    def test(rows: list[Row]) -> Tested:
        ranks = []
        for seed in sorted({row["seed"] for row in rows}):
            own = sorted(
                (row for row in rows if row["seed"] == seed and row.get(of) and row.get("full")),
                key=lambda row: row[of],
            )
            for epsilon in EPSILONS:
                ranks.append(stats.trend([row[of] for row in own], [sharpness_at(row, epsilon) for row in own]))
        known = [rank for rank in ranks if math.isfinite(rank)]
        words = f"rank correlation {plain(min(known))} to {plain(max(known))}" if known else ""
        return words, [sign * rank > 0 for rank in known]

    return test


def _warm(rows: list[Row]) -> Tested:
    base = {row["seed"]: row["history"]["test_accuracy"] for row in rows if row["method"] == "SB"}
    ends = [row for row in rows if row["method"] == "LB" and row.get("epoch") and row["seed"] in base]
    pairs = [(report.percent(base[row["seed"]][row["epoch"] - 1]), _test_accuracy(row)) for row in ends]
    known = [(begin, end) for begin, end in pairs if begin is not None and end is not None]
    return _means(known, " %"), [end >= begin for begin, end in known]


def _reparametrised(space: str) -> Callable[[list[Row]], Tested]:
    def test(rows: list[Row]) -> Tested:
        times = []
        for row in (row for row in rows if row.get("maps")):
            kept = [one for one in reparametrise.unchanged(row["maps"]) if number(one[space])]
            own = next((one[space] for one in kept if one["factor"] == 1), None)
            if own:
                times.append(max(one[space] for one in kept) / own)
        return f"{plain(min(times))} to {plain(max(times))} times" if times else "", [t > 10 for t in times]

    return test


def _against(name: str, other: str, sharper: bool | None = None) -> Callable[[list[Row]], Tested]:
    """Whether one way of training tests better than another at each seed, or is sharper or flatter."""

    def test(rows: list[Row]) -> Tested:
        value = _test_accuracy if sharper is None else _full
        found = {(row["method"], row["seed"]): value(row) for row in rows}
        seeds = sorted({row["seed"] for row in rows})
        pairs = [(a, b) for s in seeds if (a := found.get((name, s))) and (b := found.get((other, s)))]
        return _means(pairs, " %" if sharper is None else ""), [
            (a > b) is (sharper is not False) for a, b in pairs
        ]

    return test


def _full(row: Row) -> float | None:
    full = row.get("full")
    return number(np.ravel(full["value"])[0]) if full and np.all(full["finite"]) else None


def _grid(rows: list[Row]) -> Tested:
    runs = [row for row in rows if row.get("measures")]
    if len(runs) < 3:
        return "", []
    gaps = [100 * (row["train_accuracy"] - row["test_accuracy"]) for row in runs]
    values = [number(row["measures"]["sharpness, full space, 1e-3"]) for row in runs]
    tau = stats.kendall([math.nan if v is None else v for v in values], gaps, [row["setting"] for row in runs])
    words = f"tau {tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f})"
    return words, [tau.low > 0] if math.isfinite(tau.low) else []


CLAIMS = (
    Claim("Table 2", "SB tests better than LB", "F1 98.0 | 97.8 %, C1 80.0 | 77.3 %", "tables", _gap),
    Claim(
        "sec. 2.1",
        "LB does not overfit: its test accuracy ends within 0.5 points of its peak",
        "no decay seen; C1's curve in Fig. 2 by 0.46",
        "tables",
        _no_decay,
    ),
    Claim("Table 3", "LB is sharper, full space", "F1 1.2 | 205, C1 29 | 707", "tables", _sharper("full")),
    Claim(
        "Table 4", "LB is sharper, random subspaces", "F1 0.11 | 9.2, C1 2.2 | 137", "tables", _sharper("random")
    ),
    Claim("sec. 2.2", "SB ends farther from the start than LB", "3 to 10 times", "tables", _distance),
    Claim(
        "sec. 2.2",
        "LB is steep along few directions: the mean rise is below 5 % of the steepest",
        "e.g. 5 % of the space",
        "landscape",
        _steep,
    ),
    Claim("Fig. 3", "the loss rises more steeply beyond LB", "F1 0.002 | 1.71", "landscape", _beyond),
    Claim("Fig. 6", "LB gets sharper as its loss falls", "F2 28 to 961", "trajectory", _trend("LB", 1)),
    Claim("Fig. 6", "SB gets flatter as its loss falls", "F2 20 to 0.84", "trajectory", _trend("SB", -1)),
    Claim(
        "none",
        "LB is sharper at the lowest training loss that both reach",
        "not compared",
        "trajectory",
        _equal_loss,
    ),
    Claim(
        "Fig. 4",
        "beyond a batch size accuracy falls (F test, p < 0.05)",
        "F2 2 %, C1 1 % of the set",
        "batch_size",
        _threshold,
    ),
    Claim("Fig. 4", "sharpness rises with the batch size", "F2 118 to 1117", "batch_size", _rank("share", 1)),
    Claim(
        "Fig. 5",
        "LB begun from an SB iterate tests at least as well as that iterate",
        "C1: all epochs",
        "warm_start",
        _warm,
    ),
    Claim("Fig. 5", "the later LB begins, the flatter it ends", "C1 532 to 1", "warm_start", _rank("epoch", -1)),
    Claim(
        "sec. 4",
        "with SB's noise and as many updates LB tests better than with the updates alone",
        "not tested there",
        "causes",
        _against("LB + updates + noise", "LB + updates"),
    ),
    Claim(
        "sec. 4",
        "with SB's noise and as many updates LB is flatter than with the updates alone",
        "not tested there",
        "causes",
        _against("LB + updates + noise", "LB + updates", sharper=False),
    ),
    Claim(
        "Table 6",
        "with augmentation LB tests better than without",
        "C1 82.5 | 77.3 %",
        "remedies",
        _against("LB, augmentation", "LB, plain"),
    ),
    Claim(
        "Table 7",
        "with conservative training LB tests better than without",
        "C1 78.4 | 77.3 %",
        "remedies",
        _against("LB, conservative", "LB, plain"),
    ),
    Claim(
        "sec. 5",
        "with conservative training LB is still sharper than SB",
        "C1 520 | 29",
        "remedies",
        _against("LB, conservative", "SB, plain", sharper=True),
    ),
    Claim(
        "Dinh et al.",
        "the same function can be made ten times sharper, full space",
        "without bound",
        "reparametrise",
        _reparametrised("full"),
    ),
    Claim(
        "Dinh et al.",
        "the same function can be made ten times sharper, random subspaces",
        "an open question",
        "reparametrise",
        _reparametrised("random"),
    ),
    Claim(
        "sec. 1",
        "sharpness goes with the gap over a grid of runs (95 % interval of tau above 0)",
        "two batch sizes only",
        "correlation",
        _grid,
    ),
)
