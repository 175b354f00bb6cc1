"""How far sharpness can be trusted: the same function made sharper, the audit, and what predicts the gap.

Each function takes rows, and returns a drawing with sentences computed from their numbers; None where the rows
have nothing for it.
"""

import math
from collections.abc import Sequence

from gengap import plots
from gengap.findings import Section
from gengap.statistics import Interval, granulated, kendall
from gengap.summaries import Row, number
from gengap.tables import plain

_WORDS = {
    "before batch norm": "weights before batch norm times c",
    "behind batch norm": "batch norm times a, next weights by 1 / a",
}
_SAME = 0.01
_NAMES = {"full": "full space", "random": "random subspaces"}


def reparametrised(rows: Sequence[Row]) -> Section | None:
    """Sharpness of one function under maps of its parameters."""
    runs = [row for row in rows if row.get("maps")]
    if not runs:
        return None
    said = [_kept(runs)]
    runs = [{**row, "maps": [one for one in row["maps"] if (one["logits_change"] or 0) <= _SAME]} for row in runs]
    panels = []
    for space, space_words in _NAMES.items():
        for name, words in _WORDS.items():
            lines = []
            for method in ("SB", "LB"):
                curves = []
                for row in [r for r in runs if r["method"] == method]:
                    points = [one for one in row["maps"] if one["map"] == name]
                    curves.append(([one["factor"] for one in points], [_positive(one[space]) for one in points]))
                lines += plots.seeds(curves, method, method, marker="o" if method == "SB" else "s")
            panels.append(plots.Panel(space_words, words, "sharpness (% of 1 + f)", lines, log_x=True, log_y=True))
    for space, words in _NAMES.items():
        up, down = [], []
        for row in runs:
            values = [v for one in row["maps"] if (v := _positive(one[space])) is not None]
            own = next(_positive(one[space]) for one in row["maps"] if one["factor"] == 1)
            if own:
                up.append(max(values) / own)
                down.append(own / min(values))
        turned, pairs = _turned(runs, space)
        said.append(
            f"In the {words}, the same function comes out up to {_range(up)} times sharper and up to "
            f"{_range(down)} times flatter ({len(up)} minima). The order of SB and LB is turned round in "
            f"{turned} of {pairs} pairs by mapping one of the two."
        )
    said.append(_open_question(runs))
    caption = (
        "Every point on a line is the same function, evaluated on the training set. Above: full space; below: "
        "random subspaces, the mean over the draws. Thin lines are seeds, thick ones their mean."
    )
    title = "The same function, sharper and flatter (Dinh et al. 2017)"
    return Section("reparametrised", title, plots.panels(panels), caption, said)


def audited(rows: Sequence[Row]) -> Section | None:
    """Which maps leave which measures unchanged."""
    found = next((row["audit"] for row in rows if row.get("audit")), None)
    if not found:
        return None
    measures = list(dict.fromkeys(one["measure"] for one in found))
    maps = list(dict.fromkeys(one["symmetry"] for one in found))
    cells = {(one["measure"], one["symmetry"]): (one["verdict"], number(one["factor"])) for one in found}
    figure = plots.grid(measures, maps, [[_cell(*cells[m, s]) for s in maps] for m in measures])
    invariant = [m for m in measures if all(cells[m, s][0] == "unchanged" for s in maps)]
    moved = [m for m in measures if any(cells[m, s][0] == "changed" for s in maps)]
    said = [
        f"Unchanged by all of them: {'; '.join(invariant) or 'none'}.",
        f"Changed by at least one: {'; '.join(moved) or 'none'}.",
    ]
    caption = (
        "Each map leaves the function as it is. The number is the factor by which the measure changes; a dot: "
        "unchanged; a question mark: not resolved, since the spread over the keys hides it."
    )
    return Section("audited", "Which measures survive which maps", figure, caption, said)


def correlated(rows: Sequence[Row]) -> Section | None:
    """Rank correlation of each measure with the generalisation gap."""
    runs = [row for row in rows if row.get("measures") and row.get("diverged_at") is None]
    if len(runs) < 3:
        return None
    settings = [row["setting"] for row in runs]
    gaps = [100 * (row["train_accuracy"] - row["test_accuracy"]) for row in runs]
    taus: dict[str, tuple[Interval, Interval | None]] = {}
    for name in runs[0]["measures"]:
        values = [math.nan if (v := number(row["measures"][name])) is None else v for row in runs]
        try:
            psi = granulated(values, gaps, settings)[0]
        except ValueError:
            psi = None
        taus[name] = (kendall(values, gaps, settings), psi)
    order = sorted(taus, key=lambda name: (not math.isnan(taus[name][0].value), taus[name][0].value))
    rows_of = {"Kendall's tau": 0, "granulated Psi": 1}
    figure = plots.intervals(
        order, {label: [taus[name][k] or (math.nan,) * 3 for name in order] for label, k in rows_of.items()}
    )
    best = order[-1]
    sure = [name for name in order if taus[name][0].low > 0]
    against = [name for name in order if taus[name][0].high < 0]
    said = [
        f"{len(runs)} runs; the gap between training and test accuracy runs from {plain(min(gaps))} to "
        f"{plain(max(gaps))} points.",
        f"Highest Kendall's tau: {best}, {_interval(taus[best][0])}.",
        f"The 95 % interval of tau is above 0 for {'; '.join(sure) or 'none'}; below 0 for "
        f"{'; '.join(against) or 'none'}.",
    ]
    for name in order:
        psi = taus[name][1]
        said.append(f"{name}: tau {_interval(taus[name][0])}, Psi {_interval(psi) if psi else '-'}.")
    caption = (
        "Above 0: the larger the measure, the larger the gap. Bars: 95 % bootstrap intervals over settings, each "
        "with all its seeds; none below five settings. Psi as in Jiang et al. (2020)."
    )
    return Section("correlated", "Which measure predicts the gap", figure, caption, said)


def _positive(value: object) -> float | None:
    found = number(value)
    return found if found is not None and found > 0 else None


def _range(values: Sequence[float]) -> str:
    return f"{_round(min(values))} to {_round(max(values))}" if values else "-"


def _round(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def _kept(runs: Sequence[Row]) -> str:
    every = [one["logits_change"] for row in runs for one in row["maps"]]
    kept = [change for change in every if change <= _SAME]
    return (
        f"In {len(kept)} of {len(every)} images the logits stay the same to {max(kept):.1g} of the largest. In "
        "the others small weights meet the epsilon in a batch norm's variance and the logits change by more than "
        f"{_SAME:g}; those are left out."
    )


def _turned(runs: Sequence[Row], space: str) -> tuple[int, int]:
    """Pairs whose order can be turned round by mapping one of the two, and all pairs."""
    turned = pairs = 0
    for seed in {row["seed"] for row in runs}:
        pair = {row["method"]: row["maps"] for row in runs if row["seed"] == seed}
        if len(pair) < 2:
            continue
        own = {m: next(one[space] for one in maps if one["factor"] == 1) for m, maps in pair.items()}
        low, high = sorted(own, key=lambda m: own[m])
        pairs += 1
        above = max(number(one[space]) or 0 for one in pair[low]) > own[high]
        below = min(number(one[space]) or math.inf for one in pair[high]) < own[low]
        turned += above or below
    return turned, pairs


def _open_question(runs: Sequence[Row]) -> str:
    """What the numbers say of the question that Dinh et al. left open."""
    changed = factors = 0
    ratios = []
    for row in runs:
        own = next(one for one in row["maps"] if one["factor"] == 1)
        largest = max(row["maps"], key=lambda one: number(one["random"]) or 0)
        ratios.append(largest["random"] / own["random"] if own["random"] else math.inf)
        for a, b in zip(own["draws"], largest["draws"], strict=True):
            factors += 1
            changed += b > 10 * a
    return (
        "Dinh et al. could not show the problem for random subspaces. Here, at each minimum, the map that raises "
        f"the mean over the draws of A most raises it by factors of {_range(ratios)} ({len(runs)} minima). Under "
        f"that map the same draw of A finds the same function more than ten times as sharp in {changed} of "
        f"{factors} draws. The map was chosen by these draws, so this is what was seen, not a test."
    )


def _interval(found: Interval) -> str:
    ends = f" ({found.low:.2f} to {found.high:.2f})" if math.isfinite(found.low) else ""
    return "-" if math.isnan(found.value) else f"{found.value:.2f}{ends}"


def _cell(verdict: str, factor: float | None) -> str:
    if verdict == "unchanged":
        return "·"
    if verdict == "not resolved" or factor is None:
        return "?"
    return f"× {factor:.2g}" if factor < 1000 else f"× {factor:.0e}"
