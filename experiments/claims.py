"""The paper's claims against rows: each holds, does not hold, is undecided, or was not tested.

A claim is tested on the rows of one network, data set and run, from by how much it is true in each seed: a
difference of SB and LB or of a number and a bound, or the logarithm of a ratio of sharpnesses or distances.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments import landscape, reparametrise, trajectory
from gengap import records, report
from gengap import statistics as stats
from gengap.records import Row
from gengap.report import number, plain, sharpness_at

EPSILONS = (1e-3, 5e-4)
TABLES = ("digits", "mnist", "cifar", "tables")
"""Parts whose rows are those of `experiments/tables.py`."""
WORDS = {
    "holds": "hold",
    "does not hold": "do not hold",
    "undecided": "undecided",
    "not tested": "not tested",
}
RULE = (
    "A claim holds where the 95 % t interval over n seeds is on its side, and does not hold where it is on the "
    "other. Else, and with fewer than three seeds, it is undecided. The interval is of paired differences, for "
    "sharpness and distance of logarithms. A claim with several epsilons has the verdict of the weakest. Beside n "
    "stands in how many of the seeds that are not tied it is true."
)
Tested = tuple[str, list[stats.Verdict]]
"""Our numbers in words, and the verdict, of each epsilon where there are several."""


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


def gathered(run: records.Run, name: str) -> list[Row]:
    """The rows of a run as they stand among those of others, with its experiment as "part" and with its "run"."""
    return [{**row, "part": run.experiment, "run": f"{run.experiment}/{name}"} for row in run.rows]


def table(rows: Sequence[Row]) -> report.Section:
    """The claims in the order of the paper, a line for each network, data set and run that tests one."""
    lines, counts = [], Counter[str]()
    for where, claim, theirs, part, test in CLAIMS:
        names = TABLES if part == "tables" else (part,)
        own = [row for row in rows if row["part"] in names and row.get("diverged_at") is None]
        for of, group in (stats.comparable(own) or {report.DASH: []}).items():
            ours, verdicts = test(group) if group else ("", [])
            found = stats.weakest(verdicts)
            counts[found.word] += 1
            line = {"paper": where, "claim": claim, "there": theirs, "of": of, "here": ours or report.DASH}
            lines.append({**line, "seeds": found.tally if found.n else report.DASH, "": found.word})
    said = ", ".join(f"{words}: {counts[word]}" for word, words in WORDS.items() if counts[word])
    of = ", ".join(sorted({stats.where(row) for row in rows if "network" in row}))
    findings = [f"Of {len(lines)} claims, {said}.", RULE]
    return report.Section(f"The paper's claims, {of}", findings, pd.DataFrame(lines))


def side_by_side(data_sets: Iterable[list[Row]]) -> report.Section:
    """The claims with a column of verdicts and numbers for the rows of each data set."""
    columns, said = {}, []
    for section in map(table, data_sets):
        of, own = section.title.removeprefix("The paper's claims, "), section.table
        assert own is not None
        several = own.duplicated("claim", keep=False) & (own["of"] != report.DASH)
        cells = own[""] + " (" + own["here"] + "; " + own["seeds"] + ")"
        cells = (own["of"] + ": ").where(several, "") + cells.where(own[""] != "not tested", report.DASH)
        columns[of] = cells.groupby([own["paper"], own["claim"], own["there"]], sort=False).agg("; ".join)
        said.append(f"{of}: {section.findings[0][0].lower()}{section.findings[0][1:]}")
    return report.Section("The paper's claims", [*said, RULE], pd.DataFrame(columns).reset_index())


def _pairs(rows: list[Row], value: Callable[[Row], float | None], names: Sequence[str] = ("SB", "LB")) -> Any:
    """Values of two ways of training, by default of SB and of LB, for each seed that has both."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if (own := value(row)) is not None:
            found.setdefault(row["seed"], {})[row["method"]] = own
    return [tuple(one[name] for name in names) for one in found.values() if one.keys() >= set(names)]


def _means(pairs: Sequence[tuple[float, float]], unit: str = "") -> str:
    return " | ".join(plain(float(np.mean(side))) + unit for side in zip(*pairs, strict=True)) if pairs else ""


def _of_seeds(points: Iterable[tuple]) -> list[list[tuple]]:
    """The columns of the points of each seed, which stands first in a point."""
    found: dict[int, list[tuple]] = {}
    for seed, *point in points:
        found.setdefault(seed, []).append(tuple(point))
    return [list(zip(*own, strict=True)) for own in found.values()]


def _ranks(points: Iterable[tuple]) -> list[float]:
    """The rank correlation of x and y in each seed that has one."""
    return [rank for own in _of_seeds(points) if math.isfinite(rank := stats.trend(*own))]


def _test_accuracy(row: Row) -> float | None:
    return report.percent(row.get("test_accuracy"))


def _gap(rows: list[Row]) -> Tested:
    pairs = _pairs(rows, _test_accuracy)
    return _means(pairs, " %"), [stats.verdict([small - large for small, large in pairs])]


def _no_decay(rows: list[Row]) -> Tested:
    histories = [row["history"].get("test_accuracy", ()) for row in rows if row["method"] == "LB"]
    every = [stats.decay([report.percent(share) for share in one]) for one in histories]
    drops = [drop for drop in every if math.isfinite(drop)]
    words = f"{plain(float(np.mean(drops)))} points, {plain(max(drops))} at most" if drops else ""
    return words, [stats.verdict([0.5 - drop for drop in drops])]


def _sharper(space: str) -> Callable[[list[Row]], Tested]:
    def test(rows: list[Row]) -> Tested:
        found = report.sharpness(rows)
        found = found[found["space"] == space].dropna(subset=["value"])
        every = [
            _pairs(group.to_dict("records"), lambda line: line["value"])
            for _, group in found.groupby("epsilon", sort=False)
        ]
        verdicts = [stats.verdict([stats.log_ratio(large, small) for small, large in pairs]) for pairs in every]
        return "; ".join(filter(None, map(_means, every))), verdicts

    return test


def _distance(rows: list[Row]) -> Tested:
    logs = [
        stats.log_ratio(small, large) for small, large in _pairs(rows, lambda row: number(row.get("distance")))
    ]
    return f"{plain(math.exp(float(np.mean(logs))))} times" if logs else "", [stats.verdict(logs)]


def _steep(rows: list[Row]) -> Tested:
    every = [report.percent(row["directions"]["LB"]["mean_over_highest"]) for row in rows if row.get("directions")]
    shares = [share for share in every if share is not None]
    words = f"{plain(float(np.mean(shares)))} %" if shares else ""
    return words, [stats.verdict([5 - share for share in shares])]


def _beyond(rows: list[Row]) -> Tested:
    every = [landscape.beyond(row["alphas"], row["linear"]["train_loss"]) for row in rows if row.get("linear")]
    rises = [pair for pair in every if np.isfinite(pair).all()]
    return _means(rises), [stats.verdict([large - small for small, large in rises])]


def _trend(method: str, sign: int) -> Callable[[list[Row]], Tested]:
    def test(rows: list[Row]) -> Tested:
        every = [
            -stats.trend(
                [number(row["train_loss"]) for row in points], [sharpness_at(row, 1e-3) for row in points]
            )
            for (own, _), points in trajectory.points_along(rows).items()
            if own == method
        ]
        known = [rank for rank in every if math.isfinite(rank)]
        words = f"rank correlation {plain(float(np.mean(known)))}" if known else ""
        return words, [stats.verdict([sign * rank for rank in known])]

    return test


def _equal_loss(rows: list[Row]) -> Tested:
    along, logs = trajectory.points_along(rows), []
    for seed in sorted({seed for _, seed in along}):
        curves = []
        for method in ("SB", "LB"):
            every = [
                (number(r["train_loss"]), sharpness_at(r, 1e-3))
                for r in along.get((method, seed), [])
                if r["epoch"] > 0
            ]
            curves.append([pair for pair in every if pair[0] is not None])
        if all(curves):
            (f, of_small), (g, of_large) = (zip(*curve, strict=True) for curve in curves)
            level = 1.05 * max(min(f), min(g))
            logs.append(math.log(stats.at_loss(g, of_large, level) / stats.at_loss(f, of_small, level)))
    known = [one for one in logs if math.isfinite(one)]
    words = f"LB {plain(math.exp(float(np.mean(known))))} times as sharp" if known else ""
    return words, [stats.verdict(known)]


def _threshold(rows: list[Row]) -> Tested:
    points = [(row["seed"], 100 * row["share"], _test_accuracy(row)) for row in rows if row.get("share")]
    ranks = _ranks(points)
    found = stats.threshold([size for _, size, _ in points], [accuracy for *_, accuracy in points])
    at = f"from {plain(found.batch_size)} % of the set" if found else "no fall"
    words = f"rank correlation {plain(float(np.mean(ranks)))}, {at}" if ranks else ""
    return words, [stats.verdict([-rank for rank in ranks])]


def _rank(of: str, sign: int) -> Callable[[list[Row]], Tested]:
    """Sharpness against the batch size, or against the epoch of a warm start."""

    def test(rows: list[Row]) -> Tested:
        ends = [row for row in rows if row.get(of) is not None and row.get("full")]
        every = [
            _ranks((row["seed"], row[of], sharpness_at(row, epsilon)) for row in ends) for epsilon in EPSILONS
        ]
        known = [rank for ranks in every for rank in ranks]
        words = f"rank correlation {plain(min(known))} to {plain(max(known))}" if known else ""
        return words, [stats.verdict([sign * rank for rank in ranks]) for ranks in every]

    return test


def _warm(rows: list[Row]) -> Tested:
    base = {row["seed"]: row["history"]["test_accuracy"] for row in rows if row["method"] == "SB"}
    ends = [row for row in rows if row["method"] == "LB" and row.get("epoch") and row["seed"] in base]
    every = [
        (row["seed"], report.percent(base[row["seed"]][row["epoch"] - 1]), _test_accuracy(row)) for row in ends
    ]
    seeds = _of_seeds(point for point in every if None not in point)
    means = [(math.fsum(begin) / len(begin), math.fsum(end) / len(end)) for begin, end in seeds]
    return _means(means, " %"), [stats.verdict([end - begin for begin, end in means])]


def _reparametrised(space: str) -> Callable[[list[Row]], Tested]:
    def test(rows: list[Row]) -> Tested:
        logs = []
        for row in (row for row in rows if row.get("maps")):
            own, values = reparametrise.values_of(reparametrise.unchanged(row["maps"]), space)
            if own is not None:
                logs.append((row["seed"], stats.log_ratio(max(values), own)))
        times = [plain(math.exp(end([log for _, log in logs]))) for end in (min, max)] if logs else []
        least = [min(of_minima) for (of_minima,) in _of_seeds(logs)]
        return f"{' to '.join(times)} times" if times else "", [
            stats.verdict([log - math.log(10) for log in least])
        ]

    return test


def _against(name: str, other: str, sharper: bool | None = None) -> Callable[[list[Row]], Tested]:
    """Whether one way of training tests better than another, or is sharper or flatter."""

    def test(rows: list[Row]) -> Tested:
        if sharper is None:
            pairs = _pairs(rows, _test_accuracy, (name, other))
            return _means(pairs, " %"), [stats.verdict([a - b for a, b in pairs])]
        pairs = _pairs(rows, _full, (name, other))
        sign = 1 if sharper else -1
        return _means(pairs), [stats.verdict([sign * stats.log_ratio(a, b) for a, b in pairs])]

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
    tau = stats.kendall(values, gaps, [row["setting"] for row in runs])
    if not math.isfinite(tau.low):
        return "", []
    settings = {tuple(sorted((k, v) for k, v in row["setting"].items() if k != "seed")) for row in runs}
    return f"tau {tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f})", [stats.Verdict(tau.word, len(settings))]


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
        "beyond a batch size accuracy falls (rank correlation)",
        "F2 2 %, C1 1 % of the set",
        "batch_size",
        _threshold,
    ),
    Claim("Fig. 4", "sharpness rises with the batch size", "F2 118 to 1117", "batch_size", _rank("share", 1)),
    Claim(
        "Fig. 5",
        "LB begun from an SB iterate tests at least as well as that iterate, on average over these",
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
        "sharpness goes with the gap over a grid of n settings (95 % interval of tau)",
        "two batch sizes only",
        "correlation",
        _grid,
    ),
)
