"""A run's numbers counted up into tables beside the paper's, and those tables as plain text.

A gap in the records is a dash in a table, never a zero.
"""

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gengap import paper
from gengap.summaries import (
    Group,
    Measure,
    Row,
    Summary,
    compare,
    diverged,
    groups,
    measures,
    number,
    percent,
)

DASH = "-"
_WIDTH = 100
_SPREAD = "mean ± sample std over n seeds"
_TEST_ACCURACY = percent("test_accuracy")


class Table(NamedTuple):
    """Cells ready to be printed; the first `labels` columns are words, `notes` stand below the table."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]
    labels: int


def tables(summary: Summary) -> list[Table]:
    """Tables 2, 3 and 4 and the distance from the start, the paper's numbers beside those of the run.

    Args:
        summary: the summary of a run.

    Returns:
        The tables for which the run has rows; Table 4 once for each dimension of the subspaces.
    """
    every = groups(summary)
    spaces: dict[str, list[Measure]] = {}
    for measure in measures(summary):
        spaces.setdefault(measure.where, []).append(measure)
    sharp = [_sharpness(every, found) for found in spaces.values()]
    return [_accuracy(every), *sharp, _distance(every)] if every else []


def headline(summary: Summary) -> str:
    """What the run found, computed from its numbers: a sentence a network, or one for three and more."""
    every = groups(summary)
    measure = max(measures(summary), key=lambda m: (m.space == "full", m.epsilon), default=None)
    ratios = {str(g): ratio for g in every if measure and (ratio := _sharpness_ratio(g, measure)) is not None}
    gaps = {str(g): statistics.fmean(paired) for g in every if (paired := g.differences(_TEST_ACCURACY))}
    if len(every) > 2:
        said = [f"{len(every)} networks"]
        if ratios:
            low, high = _ratio(min(ratios.values())), _ratio(max(ratios.values()))
            larger = f"{sum(ratio > 1 for ratio in ratios.values())} of {len(ratios)}"
            said.append(
                f"mean sharpness of LB ({measure}) is {low} to {high} times that of SB, larger in {larger}"
            )
        if gaps:
            low, high = plain(min(gaps.values())), plain(max(gaps.values()))
            lower = f"{sum(gap > 0 for gap in gaps.values())} of {len(gaps)}"
            said.append(f"mean test accuracy of LB is {low} to {high} points below SB's, lower in {lower}")
        return "; ".join([*said, "sign tests stand below the tables"]) + "."
    sentences = []
    for group in every:
        parts = []
        if measure and str(group) in ratios:
            small, large = group.pair(measure.value)
            theirs = _labelled(group, _ratio(_paper_ratio(group, measure)))
            beside = "" if theirs == DASH else f"; paper: {theirs}"
            times = _ratio(ratios[str(group)])
            parts.append(
                f"LB minima are {times} times as sharp as SB minima ({measure}{beside}), "
                f"{compare(large, small, 'LB sharper than SB')}"
            )
        if str(group) in gaps:
            gap = gaps[str(group)]
            theirs = _labelled(group, _lower(_paper_gap(group)))
            beside = "" if theirs == DASH else f" (paper: {theirs})"
            parts.append(
                f"the test accuracy of LB is {_lower(gap, ' points')}{beside}, "
                f"{compare(*group.pair(_TEST_ACCURACY), 'SB higher than LB')}"
            )
        sentences.append(f"{group}: {'; '.join(parts) or 'nothing to compare yet'}.")
    return " ".join(sentences) or "No rows yet."


def text(summary: Summary) -> str:
    """Tables 2, 3 and 4 as plain text, "paper | here", at most 100 columns wide.

    Args:
        summary: the summary of a run.

    Returns:
        Lines for a terminal: the headline, the tables, sign tests below each, and runs that diverged.

    Example:
        >>> row = {"network": "F1", "dataset": "mnist", "method": "SB", "seed": 0, "test_accuracy": 0.98}
        >>> next(line.split() for line in text({"rows": [row]}).splitlines() if " test " in line)
        ['test', 'SB', '98.03', '±', '0.07', '98.00', '±', '-', '1']
    """
    lines = [line for block in [*unfinished(summary), headline(summary)] for line in wrapped(block)]
    for table in tables(summary):
        lines += ["", *wrapped(table.title), *_aligned(table)]
        lines += [line for note in table.notes for line in wrapped(note, "  ")]
    lines += ["", *(line for item in lost(summary) for line in wrapped(item))]
    return "\n".join(lines) + "\n"


def unfinished(summary: Summary) -> list[str]:
    """A warning for a run that is not complete, else nothing."""
    rows = len(summary.get("rows") or [])
    return [] if summary.get("complete") else [f"This run is not complete: {rows} rows so far."]


def lost(summary: Summary) -> list[str]:
    """A sentence for each run that diverged, or one that says that none did."""
    found = [
        f"Diverged, in no mean: {group}, {method}, seed {seed}, at step {row['diverged_at']}."
        for group in groups(summary)
        for method, seeds in group.methods.items()
        for seed, row in seeds.items()
        if diverged(row)
    ]
    return found or ["No run diverged."]


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, which is a dash for one value, to two digits of a small mean."""
    if not values:
        return DASH
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    if 1e-6 < abs(mean) < 0.1:
        digits = 1 - math.floor(math.log10(abs(mean)))
        return f"{mean:.{digits}f} ± {DASH if deviation is None else f'{deviation:.{digits}f}'}"
    return f"{plain(mean)} ± {plain(deviation)}"


def plain(value: float | None) -> str:
    """A number for a table cell: two decimals, or two digits where those would be lost."""
    if value is None:
        return DASH
    size = abs(value)
    if size >= 1e6 or 0 < size < 0.005:
        return f"{value:.2g}"
    return f"{value:.0f}" if size >= 1e4 else f"{value:.2f}"


def blanked(table: Table) -> list[tuple[str, ...]]:
    """The rows of a table, with a label left out where it and those to its left repeat the row above."""
    rows = []
    above: tuple[str, ...] = ()
    for row in table.rows:
        last = table.labels - 1
        same = next((i for i in range(last) if row[: i + 1] != above[: i + 1]), last)
        rows.append(("",) * same + row[same:])
        above = row
    return rows


def _accuracy(every: Sequence[Group]) -> Table:
    rows: list[tuple[str, ...]] = []
    notes = []
    for group in every:
        for split in ("train", "test"):
            for method in group.methods:
                values = list(group.values(method, percent(f"{split}_accuracy")).values())
                theirs = _theirs(group, paper.TABLE_2, method, split)
                rows.append((str(group), split, method, theirs, spread(values), str(len(values))))
        gap = group.differences(_TEST_ACCURACY)
        theirs = _labelled(group, plain(_paper_gap(group)))
        rows.append((str(group), "test", "SB - LB", theirs, spread(gap), str(len(gap))))
        higher = compare(*group.pair(_TEST_ACCURACY), "test accuracy of SB higher than of LB")
        notes.append(f"{group}: {higher}.")
    columns = ("network", "accuracy", "method", "paper", "here", "n")
    return Table(f"Table 2. Accuracy in percent; {_SPREAD}", columns, rows, notes, 3)


def _sharpness(every: Sequence[Group], found: Sequence[Measure]) -> Table:
    rows: list[tuple[str, ...]] = []
    notes = []
    for group in every:
        for measure in found:
            labels = (str(group), f"{measure.epsilon:g}")
            where = f"{group}, epsilon {measure.epsilon:g}"
            for method, seeds in group.methods.items():
                values = group.values(method, measure.value)
                losses = group.values(method, measure.loss)
                shares = group.values(method, percent("train_accuracy"))
                theirs = _theirs(group, measure.table, method, measure.epsilon)
                at = (_mean(losses, values), _mean(shares, values))
                rows.append((*labels, method, theirs, spread(list(values.values())), str(len(values)), *at))
                left = [str(s) for s, row in seeds.items() if s not in values and not diverged(row)]
                if left:
                    notes.append(f"{where}, {method}: no finite value for seed {', '.join(left)}.")
            theirs = _labelled(group, _ratio(_paper_ratio(group, measure)))
            rows.append((*labels, "LB / SB", theirs, _ratio(_sharpness_ratio(group, measure)), "", "", ""))
            small, large = group.pair(measure.value)
            notes.append(f"{where}: {compare(large, small, 'LB sharper than SB')}.")
    name = "Table 3. Sharpness in the full space, A = I"
    if found[0].space != "full":
        name = f"Table 4. Sharpness in {found[0].where}, mean over the draws of a seed"
    columns = ("network", "epsilon", "method", "paper", "here", "n", "f(x)", "train %")
    title = f"{name}; {_SPREAD}; f(x), train %: mean training loss and accuracy there"
    return Table(title, columns, rows, notes, 3)


def _distance(every: Sequence[Group]) -> Table:
    rows: list[tuple[str, ...]] = []
    for group in every:
        moved = {method: group.values(method, _moved) for method in group.methods}
        rows += [(str(group), method, spread(list(d.values())), str(len(d))) for method, d in moved.items()]
        small, large = group.pair(_moved)
        ratios = [small[seed] / large[seed] for seed in small if large.get(seed, 0) > 0]
        rows.append((str(group), "SB / LB", spread(ratios), str(len(ratios))))
    low, high = paper.DISTANCE_RATIO
    notes = [f"The paper gives SB / LB in words only, for no network in particular: {low:g} to {high:g}."]
    title = f"Distance of the minimum from the starting point, Euclidean; {_SPREAD}"
    return Table(title, ("network", "method", "here", "n"), rows, notes, 2)


def _moved(row: Row) -> float | None:
    return number(row.get("distance"))


def _sharpness_ratio(group: Group, measure: Measure) -> float | None:
    small, large = (list(values.values()) for values in group.pair(measure.value))
    if not small or not large or statistics.fmean(small) <= 0:
        return None
    return statistics.fmean(large) / statistics.fmean(small)


def _paper_ratio(group: Group, measure: Measure) -> float | None:
    small, large = (group.paper(measure.table, method, measure.epsilon) for method in ("SB", "LB"))
    return large[0] / small[0] if small and large else None


def _paper_gap(group: Group) -> float | None:
    small, large = (group.paper(paper.TABLE_2, method, "test") for method in ("SB", "LB"))
    return small[0] - large[0] if small and large else None


def _theirs(group: Group, table: Mapping[str, Any], method: str, key: str | float) -> str:
    found = group.paper(table, method, key)
    return _labelled(group, f"{found[0]:.2f} ± {found[1]:.2f}" if found else DASH)


def _labelled(group: Group, theirs: str) -> str:
    return f"{theirs} ({group.elsewhere})" if group.elsewhere and theirs != DASH else theirs


def _lower(gap: float | None, unit: str = "") -> str:
    if gap is None:
        return DASH
    return f"{plain(abs(gap))}{unit} {'lower' if gap >= 0 else 'higher'}"


def _ratio(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _mean(values: Mapping[int, float], seeds: Mapping[int, float]) -> str:
    kept = [values[seed] for seed in seeds if seed in values]
    return plain(statistics.fmean(kept)) if kept else DASH


def wrapped(line: str, indent: str = "") -> list[str]:
    """A paragraph as lines for a terminal."""
    return textwrap.wrap(
        line, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )


def _aligned(table: Table) -> list[str]:
    """The lines of a table; its first column gives way where the whole would be too wide."""
    rows = [table.columns, *blanked(table)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = max(8, min(widths[0], _WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    lines = []
    for row in rows:
        first = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 1] + "…"
        words = [cell.ljust(w) for cell, w in zip((first, *row[1:]), widths, strict=True)][: table.labels]
        numbers = [cell.rjust(w) for cell, w in zip(row, widths, strict=True)][table.labels :]
        lines.append("  ".join([*words, *numbers]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines
