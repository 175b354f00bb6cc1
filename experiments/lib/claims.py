"""The paper's claims, tested on rows: each holds, does not hold, is undecided, or was not tested.

The experiment that draws the figure of a claim tests it, on the rows of one network, data set and run. Each seed
gives a number, above 0 if the claim is true there: a difference of SB and LB, or of a number and a bound, or the
logarithm of a ratio of sharpnesses or distances.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.lib.rows import converged
from gengap import ascent, origins, paper, records, report, stats
from gengap.records import Row

WORDS = {
    "holds": "hold",
    "does not hold": "do not hold",
    "undecided": "are undecided",
    "no test": "have one seed, which is no test",
    "not tested": "are not tested",
}
RULE = (
    "The interval of a verdict is that of paired differences; for sharpness and distance, of their logarithms.",
    "With several epsilons a claim has the weakest of their verdicts, and the numbers of the largest epsilon.",
)


class Claim(NamedTuple):
    """What the paper says, and what rows say about it.

    Attributes:
      where: the section, table or figure of the paper.
      claim: in words, with the rule of the test.
      theirs: the paper's numbers of each network.
      here: our numbers in words; empty if there are none.
      verdicts: one, or one for each epsilon.
      differs: what differs from the paper if the claim does not hold, in a sentence with numbers.
    """

    where: str
    claim: str
    theirs: Mapping[str, str]
    here: str = ""
    verdicts: Sequence[stats.Verdict] = ()
    differs: str = ""

    @property
    def verdict(self) -> stats.Verdict:
        """The weakest of the verdicts."""
        return stats.weakest(self.verdicts)


Tests = Callable[[list[Row]], list[Claim]]
"""The claims of an experiment, from its rows of one network, data set and run; untested if there are none."""


def gathered(run: records.Run, name: str) -> list[Row]:
    """The rows of a run for a list with those of other runs: each has its experiment as "part", and its "run"."""
    return [{**row, "part": run.experiment, "run": f"{run.experiment}/{name}"} for row in run.rows]


def by_version(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Gathered rows by the versions that computed them: "" for the present ones, else "training 1, maximiser 3".

    A row without sharpness goes with the newest maximiser among the rows of its version of training.
    """
    present = origins.TRAINING_VERSION, ascent.ASCENT_VERSION
    newest: dict[int, int] = {}
    for row in rows:
        newest[training_version(row)] = max(newest.get(training_version(row), 0), row.get("ascent_version", 0))
    newest[present[0]] = present[1]
    groups: dict[tuple[int, int], list[Row]] = {present: []}
    for row in rows:
        trained = training_version(row)
        groups.setdefault((trained, row.get("ascent_version") or newest[trained]), []).append(row)
    older = {f"training {key[0]}, maximiser {key[1]}": groups[key] for key in sorted(groups) if key != present}
    return {"": groups[present], **older}


def training_version(row: Row) -> int:
    """The version of training; a row whose origin does not record it counts as version 1."""
    return row["origin"].get("training_version", 1) if "origin" in row else origins.TRAINING_VERSION


def tables(rows: Sequence[Row], parts: Mapping[tuple[str, ...], Tests]) -> list[report.Section]:
    """The claims in the order of the parts, a line for each network, data set and run that tests one.

    Args:
      rows: gathered from runs.
      parts: names of experiments -> what tests claims with their rows.

    Returns:
      A table for the rows of the present versions, and one for those of each older version.
    """
    return [_table(of_version, parts, version) for version, of_version in by_version(rows).items()]


def _table(rows: Sequence[Row], parts: Mapping[tuple[str, ...], Tests], version: str) -> report.Section:
    lines, counts = [], Counter[str]()
    for of, claim, theirs in _tested(rows, parts, untested=not version):
        verdict = claim.verdict
        counts[verdict.word] += 1
        line = {"where": claim.where, "claim": claim.claim, "paper": theirs or report.DASH, "of": of}
        line |= {"here": claim.here or report.DASH, "seeds": verdict.tally if verdict.n else report.DASH}
        lines.append(line | {"verdict": verdict.word})
    counted = ", ".join(f"{counts[word]} {words}" for word, words in WORDS.items() if counts[word])
    of = ", ".join(sorted({stats.where(row) for row in rows if "network" in row}))
    findings = [f"Of {len(lines)} claims, {counted}.", *RULE]
    return report.Section(_title(f"The paper's claims, {of}", version), findings, report.frame(lines))


def _title(title: str, version: str) -> str:
    return f"{title}, by older code: {version}" if version else title


def _tested(
    rows: Sequence[Row], parts: Mapping[tuple[str, ...], Tests], *, untested: bool
) -> Iterator[tuple[str, Claim, str]]:
    """The network, data set and run of each claim, the claim, and the paper's number beside it.

    With `untested`, a claim for which there are no rows has a line too, with a dash for the network.
    """
    for names, tests in parts.items():
        of_part = [row for row in converged(rows) if row["part"] in names]
        groups = stats.comparable(of_part) or ({report.DASH: []} if untested else {})
        for of_groups in zip(*map(tests, groups.values()), strict=True):
            for (of, group), claim in zip(groups.items(), of_groups, strict=True):
                network = group[0]["network"] if group and paper.beside(*_place(group[0])) else ""
                yield of, claim, claim.theirs.get(network, "")


def _place(row: Row) -> tuple[str, str]:
    return row["network"], row["dataset"]


def side_by_side(rows: Sequence[Row], parts: Mapping[tuple[str, ...], Tests]) -> list[report.Section]:
    """Which network ran on which data; the claims with columns of each: the paper's, here, and n; those that fail.

    Args:
      rows, parts: as in `tables`. Each version has a table of its own.
    """
    sections, fail = [report.Section("Which network ran on which data", table=_ran(rows))], []
    for version, of_version in by_version(rows).items():
        tested = list(_tested(of_version, parts, untested=not version))
        if any(of != report.DASH for of, *_ in tested):
            sections.append(report.Section(_title("The claims", version), RULE, _columns(tested)))
        fail += [
            f"{of}{f' ({version})' * bool(version)}: {claim.claim}? "
            f"{claim.differs or f'Here {claim.here}; in the paper {theirs or report.DASH}.'}"
            for of, claim, theirs in tested
            if claim.verdict.word == "does not hold"
        ]
    return [
        *sections,
        report.Section("Claims that do not hold, and what differs from the paper", fail or ["None."]),
    ]


def _columns(tested: Sequence[tuple[str, Claim, str]]) -> Any:
    """A line for each claim, with columns of each network and data set: the paper's numbers, those here, and n."""
    places = [of for of in dict.fromkeys(of for of, *_ in tested) if of != report.DASH]
    networks = {of: of.split(" on ")[0] for of in places}
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for of, claim, _ in tested:
        line = lines.setdefault((claim.where, claim.claim), {"where": claim.where, "claim": claim.claim})
        for place in sorted(places, key=lambda place: networks[place]):
            if (network := networks[place]) in paper.DATASET:
                column = f"paper, {network} on {paper.NAMES[paper.DATASET[network]]}"
                line[column] = claim.theirs.get(network, report.DASH)
            own, verdict = place == of and claim.here, claim.verdict
            cell = f"{verdict.word}: {claim.here}" if own else line.get(place, report.DASH)
            line |= {place: cell, f"n, {place}": str(verdict.n) if own else line.get(f"n, {place}", report.DASH)}
    return report.frame(list(lines.values()))


def _ran(rows: Sequence[Row]) -> Any:
    """A line for each network, data set and device, with the seeds of each experiment."""
    seeds: dict[tuple[str, str, str], dict[str, set[int]]] = {}
    for row in rows:
        key = (*_place(row), row.get("origin", {}).get("device", report.DASH))
        seeds.setdefault(key, {}).setdefault(row["part"], set()).add(row["seed"])
    return report.frame(
        [
            dict(zip(("network", "data set", "device"), key, strict=True))
            | {"experiments and their seeds": ", ".join(f"{part}: {len(of)}" for part, of in parts.items())}
            for key, parts in sorted(seeds.items())
        ]
    )
