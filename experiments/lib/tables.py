"""Tables 2, 3 and 4 and what goes with them: sections and claims from rows of pairs of minima."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from experiments.lib.claims import Claim
from experiments.lib.rows import converged, diverged, means, of_side, pairs, test_accuracy
from gengap import paper, plots, stats
from gengap.comparison import column
from gengap.records import Row
from gengap.report import DASH, Section, frame, number, percent, plain, spread, theirs, times
from gengap.stats import comparable

Space = Literal["full", "random"]
SPACES: dict[Space, tuple[str, paper.SharpnessTable]] = {
    "full": ("Table 3. Sharpness in the full space", paper.TABLE_3),
    "random": ("Table 4. Sharpness in random subspaces", paper.TABLE_4),
}
SHARPER, BETTER = "LB is sharper than SB", "SB tests better than LB"
_MEANS = "mean ± standard deviation over n seeds"
WORDS: dict[Space, str] = {"full": "full space", "random": "random subspaces"}


def figures(rows: list[Row]) -> list[Section]:
    """The headline and the tables beside the paper's, sharpness of every seed, accuracy per epoch (Fig. 2)."""
    kept = converged(rows)
    of = next(iter(groups), "") if len(groups := comparable(kept)) == 1 else ""
    lost = [sentence for section in diverged(rows) for sentence in section.findings]
    sections = [Section(f"Results{of and ': '}{of}", [*headline(kept), *lost])]
    if kept:
        sections.append(_accuracy_table(kept))
        sections += [_sharpness_table(kept, space) for space in SPACES if epsilons_of(kept, space)]
        sections.append(_distance_table(kept))
    return [*sections, sharpness_figure(rows), accuracy_figure(rows)] if rows else sections


def claims(rows: list[Row]) -> list[Claim]:
    """Tables 2, 3 and 4, and what section 2 says of overfitting and of distances."""
    accuracies = pairs(rows, test_accuracy)
    histories = [row["history"].get("test_accuracy", ()) for row in rows if row["side"] == "LB"]
    decays = [stats.decay([percent(share) for share in history]) for history in histories]
    drops = [drop for drop in decays if math.isfinite(drop)]
    known = [np.array([number(share) or 0.0 for share in history]) for history in histories if history]
    peaks = [1 + int(accuracies.argmax()) for accuracies in known]
    ratios = [stats.log_ratio(small, large) for small, large in pairs(rows, "distance")]
    more, factor, less = times(math.exp(float(np.mean(ratios))) if ratios else math.nan, "SB", "LB")
    overfits = stats.decay(paper.figure("fig2_curves")["C1"]["LB_test"].y)
    return [
        Claim(
            "Table 2",
            BETTER,
            in_paper(paper.TABLE_2, "test", " %"),
            means(accuracies, " %"),
            [stats.verdict([small - large for small, large in accuracies])],
        ),
        Claim(
            "sec. 2.1",
            "LB does not overfit: its test accuracy ends at most 0.5 points below its peak (mean)",
            {"C1": f"{plain(overfits)} points"},
            f"{plain(float(np.mean(drops)))} points" if drops else "",
            [stats.verdict([0.5 - drop for drop in drops])],
            f"LB's test accuracy peaks after {spread(peaks)} of {max(map(len, histories), default=0)} epochs, "
            f"and ends {spread(drops)} points lower; in the paper C1's ends {plain(overfits)} points lower.",
        ),
        Claim(
            "Table 3",
            "LB is sharper than SB in the full space",
            in_paper(paper.TABLE_3, 1e-3),
            *_sharper(rows, "full"),
        ),
        Claim(
            "Table 4",
            "LB is sharper than SB in random subspaces",
            in_paper(paper.TABLE_4, 1e-3),
            *_sharper(rows, "random"),
        ),
        Claim(
            "sec. 2.2",
            "SB ends farther from the start than LB (the paper: 3 to 10 times as far)",
            {},
            f"{more} {factor} times as far as {less}" if ratios else "",
            [stats.verdict(ratios)],
        ),
    ]


def in_paper(table: Mapping[str, Any], key: Any, unit: str = "") -> dict[str, str]:
    """The means of SB and of LB in one of the paper's tables, of each network: {"F1": "98.03 | 97.81 %"}."""
    return {network: means([(sides["SB"][key][0], sides["LB"][key][0])], unit) for network, sides in table.items()}


def _sharper(rows: list[Row], space: Space) -> tuple[str, list[stats.Verdict]]:
    """The means at the largest epsilon that has any, and the verdict at each."""
    values = [pairs(rows, column(space, epsilon)) for epsilon in sorted(epsilons_of(rows, space), reverse=True)]
    verdicts = [stats.verdict([stats.log_ratio(large, small) for small, large in both]) for both in values]
    return next(filter(None, map(means, values)), ""), verdicts


def epsilons_of(rows: Sequence[Row], space: Space) -> list[float]:
    """The epsilons at which rows have a sharpness, in the order of their columns."""
    names = [re.fullmatch(rf"sharpness_{space}_([\d.]+e-?\d+)", name) for row in rows for name in row]
    return list(dict.fromkeys(float(name[1]) for name in names if name))


def headline(rows: Sequence[Row]) -> list[str]:
    """How sharpness and accuracy of LB compare with those of SB, in sentences."""
    if not rows:
        return ["No rows yet."]
    groups = comparable(rows)
    sentences = []
    for of, group in groups.items():
        found = [*_sharper_in_words(group), *gap_in_words(*of_side(group, test_accuracy).values())] or [
            "There is nothing to compare yet."
        ]
        sentences += found if len(groups) == 1 else [f"{of}: {sentence}" for sentence in found]
    return sentences


def _sharper_in_words(group: Sequence[Row]) -> list[str]:
    epsilon = max(epsilons_of(group, "full"), default=math.nan)
    small, large = of_side(group, column("full", epsilon)).values()
    if not small or not large or statistics.fmean(small.values()) <= 0:
        return []
    ratio = statistics.fmean(large.values()) / statistics.fmean(small.values())
    more, factor, less = times(ratio, "LB", "SB")
    losses = [statistics.fmean(of_seed.values()) for of_seed in of_side(group, "train_loss").values()]
    shared = [stats.log_ratio(large[seed], small[seed]) for seed in small if seed in large]
    return [
        f"{more} minima are {factor} times as sharp as {less} minima (full space, epsilon {epsilon:g}).",
        f"{SHARPER}: {stats.verdict(shared)}.",
        f"Their training losses are {plain(losses[0])} (SB) and {plain(losses[1])} (LB).",
    ]


def gap_in_words(small: Mapping[int, float], large: Mapping[int, float]) -> list[str]:
    """By how much SB tests better than LB, or LB than SB; the accuracies are in percent, by seed."""
    differences = [small[seed] - large[seed] for seed in small if seed in large]
    if not differences:
        return []
    gap = statistics.fmean(differences)
    better, worse = ("SB", "LB") if gap >= 0 else ("LB", "SB")
    return [
        f"{better} tests {plain(abs(gap))} points better than {worse}.",
        f"{BETTER}: {stats.verdict(differences)}.",
    ]


def sharpness_figure(rows: Sequence[Row]) -> Section:
    """Sharpness of every minimum, in a panel for each space and epsilon, beside the paper's values."""
    places = [(space, epsilon) for space in SPACES for epsilon in epsilons_of(rows, space)]
    figure, axes = plots.axes(max(1, len(places)))
    for ax, (space, epsilon) in zip(axes, places, strict=False):
        values, known = {}, {}
        for of, group in comparable(rows).items():
            label = re.sub(" on |, ", "\n", of)
            sides = dict.fromkeys(row["side"] for row in group)
            values[label] = {
                side: {r["seed"]: _shown(r.get(column(space, epsilon))) for r in group if r["side"] == side}
                for side in sides
            }
            columns = SPACES[space][1].get(group[0]["network"], {})
            known[label] = {side: columns[side][epsilon] for side in columns if epsilon in columns[side]}
        theirs = dict.fromkeys(row["network"] for row in rows if row["network"] in SPACES[space][1])
        plots.sharpness(values, paper=known, papers=", ".join(map(paper.where, theirs)), ax=ax)
        ax.set_title(f"{WORDS[space]}, epsilon {epsilon:g}")
    ranges = [ax.get_ylim() for ax in axes if ax.has_data()]
    for ax in axes if ranges else ():
        ax.set_title(ax.get_title() or "sharpness")
        plots.logarithmic(ax, "y", min(low for low, _ in ranges), max(high for _, high in ranges))
    words = "Metric 2.1 of every minimum, on one logarithmic axis in all panels; a line joins SB and LB of a seed."
    draws = [row.get(f"{column('random', epsilon)}_draws", ()) for row in rows for _, epsilon in places]
    if any(len(of_row) > 1 for of_row in draws):
        words += " In random subspaces a point is the mean over the draws."
    return Section("Sharpness of every minimum", figure=figure, caption=words, name="sharpness")


def _shown(value: float | None) -> float:
    return math.nan if value is None else value


def accuracy_figure(rows: Sequence[Row]) -> Section:
    """Accuracy per epoch of every network, beside the paper's curve if there is one (Fig. 2)."""
    groups = comparable(rows)
    figure, axes = plots.axes(len(groups))
    for ax, (words, group) in zip(axes, groups.items(), strict=True):
        network = group[0]["network"]
        sides = dict.fromkeys(row["side"] for row in group)
        histories = {side: [row["history"] for row in group if row["side"] == side] for side in sides}
        is_the_papers = paper.DATASET.get(network) == group[0]["dataset"]
        digitised = paper.figure("fig2_curves").get(network, {}) if is_the_papers else {}
        curves = {tuple(name.split("_")): (curve.x, curve.y) for name, curve in digitised.items()}
        steps = {
            row["side"]: row["steps"] / row["epochs"] for row in group if row.get("epochs") and row.get("steps")
        }
        updates = steps if not curves and set(steps) == set(sides) else None
        plots.accuracy(histories, paper=curves, updates=updates, zoom=bool(curves), ax=ax)
        ax.set_title(words)
    words = "Training is solid, test dashed."
    return Section("Accuracy per epoch (Fig. 2)", figure=figure, caption=words, name="accuracy")


def paper_heading(rows: Iterable[Row]) -> str:
    """The name of the columns with the paper's numbers, with its data sets; empty if there are none."""
    known = (paper.NAMES[paper.DATASET[row["network"]]] for row in rows if _of_paper(row))
    return f"paper ({', '.join(names)})" if (names := dict.fromkeys(known)) else ""


def of_paper(table: Mapping[Any, Any], row: Row, side: str, key: Any) -> str:
    """The paper's number for the network of a row, if it may stand beside its data set."""
    return theirs(table if _of_paper(row) else {}, row["network"], side, key)


def _of_paper(row: Row) -> bool:
    return paper.beside(row["network"], row["dataset"])


def _accuracy_table(rows: Sequence[Row]) -> Section:
    lines, heading = [], paper_heading(rows)
    for of, group in comparable(rows).items():
        for split in ("train", "test"):
            line = {"network": of, "accuracy, %": split}
            values = of_side(group, f"{split}_accuracy")
            for side, of_seed in values.items():
                if heading:
                    line[f"{side}, {heading}"] = of_paper(paper.TABLE_2, group[0], side, split)
                line[f"{side}, here"] = spread([100 * share for share in of_seed.values()])
            lines.append(line | {"n": str(max(map(len, values.values())))})
    return Section(f"Table 2. Accuracy; {_MEANS}", table=frame(lines))


def _sharpness_table(rows: Sequence[Row], space: Space) -> Section:
    title, table = SPACES[space]
    lines, sentences, heading = [], [], paper_heading(rows)
    for of, group in comparable(rows).items():
        for epsilon in epsilons_of(group, space):
            name = column(space, epsilon)
            line, averages = {"network": of, "epsilon": f"{epsilon:g}"}, {}
            values = of_side(group, name)
            for side, of_seed in values.items():
                if heading:
                    line[f"{side}, {heading}"] = of_paper(table, group[0], side, epsilon)
                line[f"{side}, here"] = spread(list(of_seed.values()))
                averages[side] = statistics.fmean(of_seed.values()) if of_seed else math.nan
            line["larger / smaller"] = _ratio(averages["LB"], averages["SB"], "LB", "SB")
            losses = [list(of_seed.values()) for of_seed in of_side(group, "train_loss").values()]
            line["training loss"] = " | ".join(plain(statistics.fmean(of)) if of else DASH for of in losses)
            ratios = [stats.log_ratio(large, small) for small, large in pairs(group, name)]
            lines.append(line | {"LB is sharper": str(stats.verdict(ratios))})
            if lost := sum(number(row.get(name)) is None for row in group):
                sentences.append(
                    f"{of}, epsilon {epsilon:g}: {lost} of {len(group)} met a loss that is not finite, "
                    "and are in no mean."
                )
    return Section(f"{title}; {_MEANS}", sentences, frame(lines))


def _ratio(a: float, b: float, first: str, second: str) -> str:
    """The larger of two numbers over the smaller, and which is which: "LB / SB = 2.74"."""
    if not (a > 0 and b > 0):
        return DASH
    more, factor, less = times(a / b, first, second)
    return f"{more} / {less} = {factor}"


def _distance_table(rows: Sequence[Row]) -> Section:
    lines = []
    for of, group in comparable(rows).items():
        small, large = of_side(group, "distance").values()
        ratios = [small[seed] / large[seed] for seed in small if small[seed] > 0 and large.get(seed, 0) > 0]
        over = "SB / LB" if not ratios or statistics.fmean(ratios) >= 1 else "LB / SB"
        turned = ratios if over == "SB / LB" else [1 / ratio for ratio in ratios]
        line = {"network": of, "SB": spread(list(small.values())), "LB": spread(list(large.values()))}
        line["larger / smaller"] = f"{over} = {spread(turned)}" if ratios else DASH
        lines.append(line | {"n": str(len(ratios))})
    low, high = paper.DISTANCE_RATIO
    sentences = [f"The text of the paper says that SB / LB is {low:g} to {high:g}, without naming a network."]
    of_any = sentences if paper_heading(rows) else []
    return Section("Euclidean distance from the starting point to the minimum", of_any, frame(lines))
