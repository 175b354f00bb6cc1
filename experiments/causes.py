"""What causes the generalisation gap? Large batches are made like small ones, one difference at a time.

    make exp-causes ARGS="--dataset digits"
    make exp-causes

The default is F1 on 4,000 images of CIFAR-10. Small batches make more updates, have noisier gradients, compute
batch norm from fewer examples, and have a higher learning rate for their size. LB is given each of these four, in
all sixteen combinations: as many updates as SB, SB's gradient noise, SB's batch-norm noise, and a learning rate
scaled by the root of the batch size. `--factors updates noise` takes two of them, in four combinations. SB and LB
share starting points.

The second part starts at an LB minimum and goes on with SB, with LB, and with LB plus SB's gradient noise. Does
noise leave a sharp minimum?
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from experiments.lib import command, settings
from experiments.lib.claims import Claim
from experiments.lib.rows import converged, diverged, means, pairs, test_accuracy, value_of
from experiments.lib.settings import Training
from experiments.lib.tables import epsilons_of, gap_in_words
from gengap import checks, comparison, methods, minima, plots, records, report, stats
from gengap.comparison import Metric, column
from gengap.records import Row
from gengap.report import plain, spread, times

Factor = Literal["updates", "noise", "ghosts", "rate"]
FACTORS: tuple[Factor, ...] = get_args(Factor)
MEANING = {
    "updates": "as many as SB",
    "noise": "gradient noise of SB",
    "ghosts": "batch norm in groups of SB's size",
    "rate": "that of SB × √(B_LB / B_SB)",
}
EFFECTS = (
    ("test accuracy", "change (points)\nright is better"),
    ("sharpness,\nfull space", "times\nleft is flatter"),
    ("sharpness,\nrandom subspaces", "times\nleft is flatter"),
)
SHARP = "LB + updates"
"""Escapes start at its minimum."""
ESCAPES = {"SB": "SB", "LB": "LB", "LB + noise": "other"}
"""The trainings that start there, with their colours."""
TEST = 1000
"""Number of test examples evaluated after each epoch; the tables use all of them."""


class Config(NamedTuple):
    """A factorial of four differences between SB and LB. The figures show the largest epsilon."""

    training: Training = Training("cifar10", "f1", train_size=4000, small_batch=32, epochs=25)
    metric: Metric = Metric(epsilons=(1e-3,), num_draws=2, num_directions=2)
    factors: tuple[Factor, ...] = FACTORS
    """the differences between SB and LB that LB is given, in all combinations"""
    escape: tuple[int, ...] = (1, 2, 4, 8, 16)
    """measure after these epochs of SB from the LB minimum, and LB after as many updates; needs
    the factor updates"""


CONFIG = Config()
DIGITS = Config(
    Training(num_seeds=3, small_batch=32, epochs=8),
    CONFIG.metric._replace(num_draws=1, max_evaluations=12, num_directions=1),
    escape=(1, 2, 4, 8),
)
SMOKE = Config(
    Training(num_seeds=1, train_size=60, small_batch=6, large_batch=20, epochs=1),
    DIGITS.metric._replace(dim=5, max_evaluations=3),
    escape=(1, 2),
)


def cells(config: Config) -> list[records.Cell]:
    """For each network and seed: SB, each LB of the factorial, and each measured epoch of an escape."""
    training, after = config.training, sorted(set(config.escape))
    ways: list[dict[str, Any]] = [{**_way(name), "begun": ""} for name in ("SB", *factorial(config.factors))]
    if "updates" in config.factors:
        ways += [{**_way(name), "begun": f"from {SHARP}", "after": epochs} for name in ESCAPES for epochs in after]
    dataset = settings.dataset(training).name
    return [
        {"network": network, "dataset": dataset, "seed": seed, **way}
        for network in settings.networks(training)
        for seed in range(training.num_seeds)
        for way in ways
    ]


def factorial(factors: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The LB cells of a factorial, and the factors that are on in each: {"LB": (), "LB + noise": ("noise",)}."""
    ordered = [factor for factor in FACTORS if factor in factors]
    of_size = (itertools.combinations(ordered, k) for k in range(len(ordered) + 1))
    return {" + ".join(("LB", *on)): on for on in itertools.chain(*of_size)}


def _way(name: str) -> dict[str, str]:
    side, _, factors = name.partition(" + ")
    return {"side": side, "factors": factors}


def _name(row: records.Cell) -> str:
    return " + ".join(filter(None, (row["side"], row["factors"])))


def epochs_of(config: Config, cell: records.Cell) -> int:
    """The epochs of a cell: as many as SB takes, or as many as LB needs for the same number of updates."""
    epochs = cell.get("after", config.training.epochs)
    if "after" not in cell and "updates" not in cell["factors"]:
        return epochs
    small, large, m = settings.sizes(config.training)
    return methods.same_updates(epochs, small, small if cell["side"] == "SB" else large, m)


def recipe(config: Config, cell: records.Cell) -> minima.Recipe:
    """How SB, or LB with some factors, is trained; an escape has a snapshot after each measured epoch."""
    small, large, m = settings.sizes(config.training)
    pieces = {
        "noise": methods.matched_noise(small),
        "ghosts": methods.ghost_batch_norm(small),
        "rate": methods.scale_rate(math.sqrt(large / small)),
        # the first steps of a new Adam have full length, however small the gradient at the minimum
        "warm-up": methods.warm_up(-(-m // small)),
    }
    factors, same_training = {*cell["factors"].split(" + ")}, [cell]
    if "after" in cell:
        factors.add("warm-up")
        same_training = [{**cell, "after": after} for after in sorted(set(config.escape))]
    lengths = tuple(epochs_of(config, other) for other in same_training)
    return settings.recipe(config.training, settings.batch_size(config.training, cell["side"]))._replace(
        method=methods.combine(*(piece for factor, piece in pieces.items() if factor in factors)),
        epochs=lengths[-1],
        snapshots=lengths,
    )


def _metric(config: Config, cell: records.Cell) -> Metric:
    """An escape is measured in the full space alone."""
    return config.metric._replace(num_draws=0) if "after" in cell else config.metric


def row(config: Config, cell: records.Cell, store: Path) -> Row:
    """One minimum, or one moment of an escape: how training ended, loss and accuracy, and the sharpness."""
    training, label = config.training, settings.label(config.training, cell)
    ds, model, loss, evaluate_train, evaluate_test = settings.problem(training, cell["network"])
    few = ds._replace(x_test=ds.x_test[:TEST], y_test=ds.y_test[:TEST])
    find = partial(minima.find, model, few, settings.training_key(training), seed=cell["seed"], store=store)
    start = find(recipe(config, _way(SHARP)), progress=label).params if "after" in cell else None
    ended = find(recipe(config, cell), start=start, progress=label)
    minimum = ended.snapshots[epochs_of(config, cell)]
    key, metric = settings.measure_key(training, cell["seed"]), _metric(config, cell)
    measured = comparison.measure(
        loss, minimum.params, key, metric, train=evaluate_train, test=evaluate_test, progress=label
    )
    summary = minimum.summary()
    del summary["history"]  # up to some hundred epochs, which nothing reads
    return summary | measured


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each cell; the options are those of `records.fill`."""
    config = config._replace(training=settings.resolved(config.training, all_epochs=True))
    checks.check_counts({"escape": min(config.escape, default=0), "num_draws": config.metric.num_draws})
    if not config.factors:
        raise ValueError(f"factors is {config.factors}; it needs at least one of {', '.join(FACTORS)}")
    settings.check_distinct({"factors": config.factors})
    settings.check_metric(config.training, config.metric)

    def seconds(cells: Sequence[records.Cell]) -> float:
        trainings = {(c["network"], c["seed"], c["begun"], _name(c)): recipe(config, c).epochs for c in cells}
        gradients = sum(_metric(config, cell).gradients for cell in cells)
        return settings.seconds(config.training, gradients=gradients, epochs=sum(trainings.values()))

    return records.fill("causes", config, cells(config), row, out, seconds=seconds, **options)


@report.apart
def figures(rows: list[Row]) -> list[report.Section]:
    """The effects of the factors and of their pairs, a table of all cells, and the escapes from an LB minimum."""
    kept, sections = converged(rows), diverged(rows)
    factors = {factor for row in rows if "after" not in row for factor in row["factors"].split(" + ")}
    by_name = {
        name: {row["seed"]: row for row in kept if "after" not in row and _name(row) == name}
        for name in ("SB", *factorial(list(factors)))
    }
    seeds = sorted(set.intersection(*map(set, by_name.values())))
    if seeds:
        whole = {name: [by_seed[seed] for seed in seeds] for name, by_seed in by_name.items()}
        sections += [_effects(whole, claims(kept)), _table(whole)]
    if any("after" in row for row in kept):
        sections.append(_escapes(kept, by_name.get(SHARP, {})))
    return sections


def claims(rows: list[Row]) -> list[Claim]:
    """What as many updates as SB change in LB, and what SB's noise then does; the paper has no such experiment."""
    named = [row | {"name": _name(row)} for row in rows if "after" not in row]
    _, full, *_ = _columns(rows)
    closed, losses = (pairs(named, value, (SHARP, "SB"), by="name") for value in (test_accuracy, "train_loss"))
    noise = f"{SHARP} + noise", SHARP
    accuracies, sharpnesses = (pairs(named, value, noise, by="name") for value in (test_accuracy, full))
    return [
        Claim(
            "sec. 4",
            "LB with as many updates as SB tests at least as well as SB (LB | SB)",
            {},
            means(closed, " %"),
            [stats.verdict([large - small for large, small in closed])],
            f"The test accuracies are {means(closed, ' %')}, the training losses {means(losses)} (LB | SB).",
        ),
        Claim(
            "sec. 4",
            "LB with as many updates as SB tests better with SB's noise than without it (with | without)",
            {},
            means(accuracies, " %"),
            [stats.verdict([noisy - still for noisy, still in accuracies])],
        ),
        Claim(
            "sec. 4",
            "LB with as many updates as SB is flatter with SB's noise than without it (with | without)",
            {},
            means(sharpnesses),
            [stats.verdict([stats.log_ratio(still, noisy) for noisy, still in sharpnesses])],
        ),
    ]


def _columns(rows: Sequence[Row]) -> dict[str, str]:
    """The columns that are compared, and their names in the report."""
    epsilon = max(epsilons_of(rows, "full"), default=math.nan)
    return {
        "test_accuracy": "test accuracy, points",
        column("full", epsilon): "log10 sharpness, full",
        column("random", epsilon): "log10 sharpness, random",
        "distance": "log10 distance from x0",
        "train_loss": "log10 training loss",
    }


def _value(row: Row, name: str) -> float:
    value = value_of(row, test_accuracy if name == "test_accuracy" else name)
    return math.nan if value is None else value


def _response(row: Row, name: str) -> float:
    """Accuracy in percent; the logarithms of sharpness, distance and loss, so that an effect is a factor."""
    value = _value(row, name)
    if name == "test_accuracy":
        return value
    return math.log10(value) if value > 0 else math.nan


def contrast(values: Mapping[str, Any], term: Sequence[str]) -> Any:
    """An effect in a two-level factorial: the main effect of one factor, or the interaction of two.

    Args:
      values: a number or an array for each cell of a `factorial`; others are ignored.
      term: one factor, whose effect is the mean with it minus the mean without it; or two, whose interaction is
        half of the difference between the effects of one with and without the other.

    Reference: Box, Hunter and Hunter, "Statistics for Experimenters", 2005, chapter 5.
    """
    cells = [name for name in values if name != "SB"]
    signs = [math.prod(1 if factor in name.split(" + ") else -1 for factor in term) for name in cells]
    return sum(sign * values[name] for sign, name in zip(signs, cells, strict=True)) / (len(cells) / 2)


def _effects(whole: Mapping[str, list[Row]], tested: Sequence[Claim]) -> report.Section:
    columns = _columns([row for rows in whole.values() for row in rows])
    values = {run: np.array([[_response(row, c) for row in rows] for c in columns]) for run, rows in whole.items()}
    factors = [factor for factor in FACTORS if f"LB + {factor}" in whole]
    factors_of = [*((factor,) for factor in factors), *itertools.combinations(factors, 2)]
    terms = [" x ".join(term) for term in factors_of]
    effects = np.array([contrast(values, term) for term in factors_of])  # [terms, responses, seeds]
    intervals = {
        words: [stats.interval(effect) for effect in effects[:, k]] for k, words in enumerate(columns.values())
    }
    accuracy, full, random, *_ = (dict(zip(terms, effects[:, k], strict=True)) for k in range(len(columns)))
    small, large = (dict(enumerate(values[side][0].tolist())) for side in settings.SIDES)
    closes, flattens = _movers(accuracy, 1), _movers(full, -1)
    both = [factor for factor in closes if factor in flattens]
    rank = stats.trend(*([values[run][k].mean() for run in whole if run != "SB"] for k in (0, 1)))
    findings = [
        *gap_in_words(small, large),
        *_moved("test accuracy", accuracy, in_points=True),
        *_moved("sharpness in the full space", full),
        *_moved("sharpness in random subspaces", random),
        "A factor is named if its 95 % t interval over at least three seeds excludes no change; the strongest "
        "comes first.",
        f"Factors that raise test accuracy and flatten in the full space: {', '.join(both) or 'none'}.",
        "The rank correlation of test accuracy and full-space sharpness over the means of the LB cells is "
        f"{plain(rank)}.",
        *(f"{claim.claim}: {claim.here}, {claim.verdict}." for claim in tested if claim.verdict.n),
    ]
    table = {words: [_cell(interval) for interval in of_terms] for words, of_terms in intervals.items()}
    caption = (
        "Each point is the change of the mean over the LB cells when a factor is added; for a pair, half of what "
        "adding one changes in the effect of the other. Bars: 95 % t intervals over seeds. Grey line: no effect."
    )
    return report.Section(
        "Which difference makes the gap, and which the sharpness",
        findings,
        report.frame({"effect": terms, **table}),
        _drawn(factors_of, effects, list(intervals.values()), stats.where(whole["SB"][0])),
        caption,
        "effects",
    )


def _drawn(
    terms: Sequence[tuple[str, ...]], effects: np.ndarray, intervals: Sequence[Sequence[stats.Interval]], of: str
) -> "plots.Figure":
    """The effects on accuracy in points, and on sharpness as factors."""
    names = [" × ".join(term) if len(term) > 1 else f"{term[0]}: {MEANING[term[0]]}" for term in terms]
    label = f"{of}: mean over {effects.shape[2]} seeds, with its 95 % t interval"
    panels = {}
    for axis, of_terms in zip(EFFECTS, intervals, strict=False):
        values = np.array([tuple(interval)[:3] for interval in of_terms[::-1]])
        panels[axis] = {label: 10**values if "times" in axis[1] else values}
    return plots.intervals(names[::-1], panels)


def _movers(effects: Mapping[str, np.ndarray], sign: int) -> list[str]:
    """The factors that raise a response, or with sign -1 lower it, the strongest first."""
    sure = [name for name in FACTORS if name in effects and stats.verdict(sign * effects[name]).word == "holds"]
    return sorted(sure, key=lambda factor: -abs(effects[factor].mean()))


def _moved(what: str, effects: Mapping[str, np.ndarray], *, in_points: bool = False) -> list[str]:
    """A sentence for the factors that raise a response, and one for those that lower it."""

    def words(factor: str) -> str:
        change = stats.interval(effects[factor])
        if in_points:
            return f"{factor} ({change.value:+.2f} points{_ends(change.low, change.high)})"
        size = sorted(10 ** abs(end) for end in (change.low, change.high))
        return f"{factor} (by a factor of {plain(10 ** abs(change.value))}{_ends(*size)})"

    sentences = []
    for sign, verb in ((1, "raise"), (-1, "lower")):
        named = [words(factor) for factor in _movers(effects, sign)]
        who = f"Factors that {verb} {what}: {', '.join(named)}" if named else f"No factor {verb}s {what}"
        sentences.append(f"{who}.")
    return sentences


def _ends(low: float, high: float) -> str:
    return f", {plain(low)} to {plain(high)}" if math.isfinite(low) else ""


def _table(whole: Mapping[str, list[Row]]) -> report.Section:
    all_rows = [row for rows in whole.values() for row in rows]
    accuracy, *others = _columns(all_rows)
    titles, lines = ("sharpness, full", "sharpness, random", "distance", "training loss"), []
    for name, rows in whole.items():
        accuracies = [_value(row, accuracy) for row in rows]
        gaps = [_value(small, accuracy) - large for small, large in zip(whole["SB"], accuracies, strict=True)]
        line = {"run": name, "test accuracy, %": spread(accuracies)}
        line["below SB, points"] = spread(gaps) if name != "SB" else report.DASH
        for title, other in zip(titles, others, strict=True):
            line[title] = spread([_value(row, other) for row in rows])
        lines.append({**line, "updates": str(rows[0]["steps"]), "n": str(len(rows))})
    return report.Section("Every run; mean ± standard deviation over n seeds", table=report.frame(lines))


def _escapes(rows: Sequence[Row], begun: Mapping[int, Row]) -> report.Section:
    escapes: dict[str, dict[int, list[Row]]] = {name: {} for name in ESCAPES}
    for row in sorted((row for row in rows if "after" in row), key=lambda row: (row["seed"], row["after"])):
        if row["seed"] in begun:
            escapes[_name(row)].setdefault(row["seed"], []).append(row)
    accuracy, full, _, distance, loss = _columns(rows)
    epsilon = max(epsilons_of(rows, "full"), default=math.nan)
    shown = {
        distance: ("distance from the LB minimum", "Euclidean distance"),
        full: (f"sharpness, full space, epsilon {epsilon:g}", plots.SHARPNESS),
        loss: ("training loss", plots.LOSS),
        accuracy: ("test accuracy", plots.ACCURACY),
    }
    panels = [_escape_panel(escapes, begun, name, *words) for name, words in shown.items()]
    caption = (
        "SB, LB, and LB with the gradient noise of SB, all started at the minimum of LB with as many updates as "
        "SB. The optimiser state is new, and the learning rate grows over the first epoch of SB."
    )
    last = {name: {seed: later[-1] for seed, later in of_seeds.items()} for name, of_seeds in escapes.items()}
    return report.Section(
        "Does noise leave a sharp minimum?",
        [sentence for name in ("SB", "LB + noise") for sentence in _escape_findings(last, begun, name, full)],
        figure=plots.panels(panels),
        caption=caption,
        name="escape",
    )


def _escape_panel(
    escapes: Mapping[str, Mapping[int, list[Row]]], begun: Mapping[int, Row], name: str, title: str, label: str
) -> "plots.Panel":
    lines: list[plots.Line] = []
    for run, colour in ESCAPES.items():
        curves = []
        for seed, later in escapes[run].items():
            first = [] if name == "distance" else [begun[seed]]  # its own distance is that from x0
            steps = [0] * len(first) + [row["steps"] for row in later]
            curves.append((steps, [_value(row, name) for row in (*first, *later)]))
        lines += plots.seeds(curves, run, colour, marker="o")
    return plots.Panel(title, "updates from the LB minimum", label, lines, log_y=name != "test_accuracy")


def _escape_findings(
    last: Mapping[str, Mapping[int, Row]], begun: Mapping[int, Row], name: str, full: str
) -> list[str]:
    """How the end of an escape differs from that of LB, and from its start."""
    sentences = []
    for measured, adjective, comparative in (
        ("distance", "far from the start", "farther from the start"),
        (full, "sharp", "sharper"),
    ):
        logs = [
            log
            for seed, row in last[name].items()
            if math.isfinite(log := _response(row, measured) - _response(last["LB"].get(seed, {}), measured))
        ]
        more, factor, less = times(10 ** float(np.mean(logs)) if logs else math.nan, name, "LB")
        compared = stats.verdict([log if more == name else -log for log in logs])
        sentences += [
            f"At the end {more} is {factor} times as {adjective} as {less}.",
            f"{more} is {comparative}: {compared}.",
        ]
    falls = [_response(begun[seed], full) - _response(row, full) for seed, row in last[name].items()]
    return [*sentences, f"{name} ends flatter than the LB minimum that it started from: {stats.verdict(falls)}."]


def _cell(interval: stats.Interval) -> str:
    ends = f" ({interval.low:+.2f} to {interval.high:+.2f})" if math.isfinite(interval.low) else ""
    return report.DASH if math.isnan(interval.value) else f"{interval.value:+.2f}{ends}"


if __name__ == "__main__":
    command.main("causes", run, figures, CONFIG, __doc__, sets={"digits": DIGITS})
