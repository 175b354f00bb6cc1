"""The paper's claims against rows: each holds, does not hold, is undecided, or was not tested.

A claim is tested beside the figure that shows it, on the rows of one network, data set and run. What counts is by
how much it is true in each seed: a difference of SB and LB or of a number and a bound, or the logarithm of a ratio
of sharpnesses or distances.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.lib.rows import converged
from gengap import records, report, stats
from gengap.records import Row

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


class Claim(NamedTuple):
    """What the paper says, and what rows say of it.

    Attributes:
      where: the section, table or figure of the paper.
      claim: in words, with the rule of the test.
      theirs: the paper's numbers.
      here: our numbers in words; empty where there are none.
      verdicts: of each epsilon where there are several.
    """

    where: str
    claim: str
    theirs: str
    here: str = ""
    verdicts: Sequence[stats.Verdict] = ()

    @property
    def verdict(self) -> stats.Verdict:
        """That of the weakest number."""
        return stats.weakest(self.verdicts)


Tests = Callable[[list[Row]], list[Claim]]
"""The claims of an experiment, from its rows of one network, data set and run; from none they are not tested."""


def gathered(run: records.Run, name: str) -> list[Row]:
    """The rows of a run as they stand among those of others, with its experiment as "part" and with its "run"."""
    return [{**row, "part": run.experiment, "run": f"{run.experiment}/{name}"} for row in run.rows]


def table(rows: Sequence[Row], parts: Mapping[tuple[str, ...], Tests]) -> report.Section:
    """The claims in the order of the parts, a line for each network, data set and run that tests one.

    Args:
      rows: gathered from runs.
      parts: names of experiments -> what tests claims with their rows.
    """
    lines, counts = [], Counter[str]()
    for names, tests in parts.items():
        of_part = [row for row in converged(rows) if row["part"] in names]
        groups = stats.comparable(of_part) or {report.DASH: []}
        for of_groups in zip(*map(tests, groups.values()), strict=True):
            for of, claim in zip(groups, of_groups, strict=True):
                verdict = claim.verdict
                counts[verdict.word] += 1
                line = {"paper": claim.where, "claim": claim.claim, "there": claim.theirs, "of": of}
                line |= {"here": claim.here or report.DASH, "seeds": verdict.tally if verdict.n else report.DASH}
                lines.append(line | {"": verdict.word})
    counted = ", ".join(f"{words}: {counts[word]}" for word, words in WORDS.items() if counts[word])
    of = ", ".join(sorted({stats.where(row) for row in rows if "network" in row}))
    findings = [f"Of {len(lines)} claims, {counted}.", RULE]
    return report.Section(f"The paper's claims, {of}", findings, report.frame(lines))


def side_by_side(tables: Iterable[report.Section]) -> report.Section:
    """The claims with a column of verdicts and numbers for each of several tables of claims."""
    columns, sentences = {}, []
    for section in tables:
        of, lines = section.title.removeprefix("The paper's claims, "), section.table
        assert lines is not None
        several = lines.duplicated("claim", keep=False) & (lines["of"] != report.DASH)
        cells = lines[""] + " (" + lines["here"] + "; " + lines["seeds"] + ")"
        cells = (lines["of"] + ": ").where(several, "") + cells.where(lines[""] != "not tested", report.DASH)
        columns[of] = cells.groupby([lines["paper"], lines["claim"], lines["there"]], sort=False).agg("; ".join)
        sentences.append(f"{of}: {section.findings[0][0].lower()}{section.findings[0][1:]}")
    return report.Section("The paper's claims", [*sentences, RULE], report.frame(columns).reset_index())
