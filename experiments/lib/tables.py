"""Tables 2, 3 and 4 and what goes with them: sections and claims from rows of pairs of minima."""

import math
import re
import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np

from experiments.lib.claims import Claim
from experiments.lib.rows import converged, diverged, means, of_side, pairs, test_accuracy
from gengap import paper, plots, stats
from gengap.comparison import column
from gengap.records import Row
from gengap.report import DASH, Section, frame, number, percent, plain, spread, theirs
from gengap.stats import comparable, compare

Space = Literal["full", "random"]
SPACES: dict[Space, tuple[str, paper.SharpnessTable]] = {
    "full": ("Table 3. Sharpness in the full space", paper.TABLE_3),
    "random": ("Table 4. In random subspaces", paper.TABLE_4),
}
WORDS: dict[Space, str] = {"full": "full space", "random": "random subspaces"}
DATASETS = {"mnist": "MNIST", "timit": "TIMIT", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def figures(rows: list[Row]) -> list[Section]:
    """The headline and the tables beside the paper's, sharpness of every seed, accuracy per epoch (Fig. 2)."""
    kept = converged(rows)
    sections = [Section("What came out", [headline(kept), *(s for lost in diverged(rows) for s in lost.findings)])]
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
    ratios = [stats.log_ratio(small, large) for small, large in pairs(rows, "distance")]
    return [
        Claim(
            "Table 2",
            "SB tests better than LB",
            "F1 98.0 | 97.8 %, C1 80.0 | 77.3 %",
            means(accuracies, " %"),
            [stats.verdict([small - large for small, large in accuracies])],
        ),
        Claim(
            "sec. 2.1",
            "LB does not overfit: its test accuracy ends within 0.5 points of its peak",
            "no decay seen; C1's curve in Fig. 2 by 0.46",
            f"{plain(float(np.mean(drops)))} points, {plain(max(drops))} at most" if drops else "",
            [stats.verdict([0.5 - drop for drop in drops])],
        ),
        Claim("Table 3", "LB is sharper, full space", "F1 1.2 | 205, C1 29 | 707", *_sharper(rows, "full")),
        Claim(
            "Table 4", "LB is sharper, random subspaces", "F1 0.11 | 9.2, C1 2.2 | 137", *_sharper(rows, "random")
        ),
        Claim(
            "sec. 2.2",
            "SB ends farther from the start than LB",
            "3 to 10 times",
            f"{plain(math.exp(float(np.mean(ratios))))} times" if ratios else "",
            [stats.verdict(ratios)],
        ),
    ]


def _sharper(rows: list[Row], space: Space) -> tuple[str, list[stats.Verdict]]:
    values = [pairs(rows, column(space, epsilon)) for epsilon in epsilons_of(rows, space)]
    verdicts = [stats.verdict([stats.log_ratio(large, small) for small, large in both]) for both in values]
    return "; ".join(filter(None, map(means, values))), verdicts


def epsilons_of(rows: Sequence[Row], space: Space) -> list[float]:
    """The epsilons at which rows have a sharpness, in the order of their columns."""
    names = [re.fullmatch(rf"sharpness_{space}_([\d.]+e-?\d+)", name) for row in rows for name in row]
    return list(dict.fromkeys(float(name[1]) for name in names if name))


def headline(rows: Sequence[Row]) -> str:
    """How sharpness and accuracy of LB compare with those of SB, a sentence for each network."""
    if not rows:
        return "No rows yet."
    sentences = []
    for of, group in comparable(rows).items():
        parts = []
        epsilon = max(epsilons_of(group, "full"), default=math.nan)
        small, large = of_side(group, column("full", epsilon)).values()
        if small and large and statistics.fmean(small.values()) > 0:
            ratio = statistics.fmean(large.values()) / statistics.fmean(small.values())
            losses = [statistics.fmean(of_seed.values()) for of_seed in of_side(group, "train_loss").values()]
            parts.append(
                f"LB minima are {plain(ratio)} times as sharp as SB minima (full space, epsilon {epsilon:g}; "
                f"measured at a training loss of {plain(losses[0])} for SB and {plain(losses[1])} for LB), "
                f"{compare(large, small, 'LB sharper than SB')}"
            )
        small, large = of_side(group, "test_accuracy").values()
        if differences := [100 * (small[seed] - large[seed]) for seed in small if seed in large]:
            gap = statistics.fmean(differences)
            parts.append(
                f"the test accuracy of LB is {plain(abs(gap))} points {'lower' if gap >= 0 else 'higher'}, "
                f"{compare(small, large, 'SB higher than LB')}"
            )
        sentences.append(f"{of}: {'; '.join(parts) or 'nothing to compare yet'}.")
    return " ".join(sentences)


def sharpness_figure(rows: Sequence[Row]) -> Section:
    """Sharpness of every minimum, a panel for each space and epsilon, beside the paper's."""
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
    """Accuracy per epoch of every network, the paper's curve beside it where there is one (Fig. 2)."""
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


def _accuracy_table(rows: Sequence[Row]) -> Section:
    lines, sentences = [], []
    for of, group in comparable(rows).items():
        network, dataset = group[0]["network"], group[0]["dataset"]
        for split in ("train", "test"):
            line = {"network": of, "accuracy, %": split}
            values = of_side(group, f"{split}_accuracy")
            for side, of_seed in values.items():
                line[f"{side}, paper"] = theirs(paper.TABLE_2, network, side, split)
                line[f"{side}, here"] = spread([100 * share for share in of_seed.values()])
            lines.append(line | {"n": str(max(map(len, values.values())))})
        small, large = of_side(group, "test_accuracy").values()
        sentences.append(f"{of}: {compare(small, large, 'SB tests better than LB')}.")
        if paper.DATASET.get(network, dataset) != dataset.split(":")[0]:
            sentences.append(f"The paper has {network} on {DATASETS[paper.DATASET[network]]}.")
    title = "Table 2. Accuracy; mean ± standard deviation over n seeds"
    return Section(title, sentences, frame(lines))


def _sharpness_table(rows: Sequence[Row], space: Space) -> Section:
    title, table = SPACES[space]
    lines, sentences = [], []
    for of, group in comparable(rows).items():
        for epsilon in epsilons_of(group, space):
            name = column(space, epsilon)
            line, averages = {"network": of, "epsilon": f"{epsilon:g}"}, {}
            values = of_side(group, name)
            for side, of_seed in values.items():
                line[f"{side}, paper"] = theirs(table, group[0]["network"], side, epsilon)
                line[f"{side}, here"] = spread(list(of_seed.values()))
                averages[side] = statistics.fmean(of_seed.values()) if of_seed else math.nan
            line["LB / SB"] = plain(averages["LB"] / averages["SB"] if averages["SB"] else math.nan)
            for side, losses in of_side(group, "train_loss").items():
                line[f"f, {side}"] = plain(statistics.fmean(losses.values())) if losses else DASH
            lines.append(line | {"n": str(max(map(len, values.values())))})
            place = f"{of}, epsilon {epsilon:g}"
            sentences.append(f"{place}: {compare(values['LB'], values['SB'], 'LB sharper than SB')}.")
            if lost := sum(number(row.get(name)) is None for row in group):
                sentences.append(
                    f"{place}: {lost} of {len(group)} met a loss that is not finite, and are in no mean."
                )
    return Section(f"{title}; mean ± standard deviation over n seeds", sentences, frame(lines))


def _distance_table(rows: Sequence[Row]) -> Section:
    lines = []
    for of, group in comparable(rows).items():
        small, large = of_side(group, "distance").values()
        ratios = [small[seed] / large[seed] for seed in small if large.get(seed, 0) > 0]
        cells = [spread(list(small.values())), spread(list(large.values())), spread(ratios), str(len(ratios))]
        lines.append({"network": of, **dict(zip(("SB", "LB", "SB / LB", "n"), cells, strict=True))})
    low, high = paper.DISTANCE_RATIO
    sentences = [f"The paper gives SB / LB in words only, for no network in particular: {low:g} to {high:g}."]
    return Section("Distance of the minimum from the starting point, Euclidean", sentences, frame(lines))
