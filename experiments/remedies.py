"""What closes the generalisation gap? Each remedy of `methods`, on SB and LB from the same starting points.

    make exp-remedies ARGS="--dataset digits"
    make exp-remedies ARGS="--methods plain augmentation SAM conservative"
    make exp-remedies

The default is F1 on 4,000 images of CIFAR-10. LB is trained twice: for as many epochs as SB, and for as many
updates, which is the regime adaptation of Hoffer et al. Strengths are those of the papers, or common ones. None is
tuned.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lib import command, settings, tables
from experiments.lib.claims import Claim
from experiments.lib.rows import Value, by_seed, converged, diverged, means, test_accuracy
from experiments.lib.settings import Training
from experiments.lib.tables import epsilons_of
from gengap import comparison, methods, minima, paper, plots, records, report, stats, train
from gengap.comparison import Metric, column
from gengap.methods import PLAIN, Method
from gengap.records import Row
from gengap.report import plain, spread

RUNS = {("SB", "epochs"): "SB", ("LB", "epochs"): "LB", ("LB", "updates"): "LB, updates of SB"}
"""LB has as many epochs as SB, or as many updates."""
TEST = 1000
"""Number of test examples evaluated after each epoch; the tables use all of them."""
FLIPS = ("cifar10", "cifar100")
"""Data sets whose images may be mirrored."""
PAPER = {
    ("augmentation", "SB"): paper.TABLE_6,
    ("augmentation", "LB"): paper.TABLE_6,
    ("conservative", "LB"): paper.TABLE_7,
    ("plain", "SB"): paper.TABLE_7,
}


class Config(NamedTuple):
    """Remedies for the generalisation gap. The figures show the largest epsilon."""

    training: Training = Training("cifar10", "f1", train_size=4000, num_seeds=3, small_batch=32, epochs=25)
    methods: tuple[str, ...] = ()
    """names of the methods, as in the table; by default all"""
    metric: Metric = Metric(epsilons=(1e-3,), num_draws=0)


CONFIG = Config()
DIGITS = Config(Training(num_seeds=2, small_batch=32, epochs=5), metric=CONFIG.metric._replace(max_evaluations=12))
SMOKE = Config(
    Training(num_seeds=1, train_size=60, small_batch=6, large_batch=20, epochs=2),
    ("plain", "augmentation", "conservative", "SAM", "matched noise", "doubling", "LAMB"),
    CONFIG.metric._replace(max_evaluations=2),
)


def remedies(training: Training) -> dict[str, dict[str, Method]]:
    """Each remedy by name, for SB and for LB; it has no entry for a side for which it is plain training."""
    small, large, m = settings.sizes(training)
    ratio, warm_up = large / small, methods.warm_up(-(-m // large))
    both = {
        "plain": PLAIN,
        "augmentation": methods.augmentation(flip=0.5 if training.dataset in FLIPS else 0.0),
        "conservative": methods.conservative(),
        "conservative, lambda 0": methods.conservative(0.0),
        "adversarial": methods.adversarial(),
        "stability": methods.stability(),
        "SAM": methods.sam(),
        "ASAM": methods.sam(0.5, adaptive=True),
        "label smoothing": methods.label_smoothing(),
        "weight averaging": methods.weight_averaging(),
        "weight decay": methods.instead(train.adam(1e-3, weight_decay=0.1)),
        "momentum SGD": methods.instead(train.sgd(0.1)),
        "Adagrad": methods.instead(train.adagrad(0.01)),
        "LARS": methods.instead(train.lars(1.0)),
        "LAMB": methods.instead(train.lamb(0.01)),
    }
    large_only = {
        "ghost batch norm": methods.ghost_batch_norm(small),
        "matched noise": methods.matched_noise(small),
        "rate x sqrt": methods.combine(methods.scale_rate(math.sqrt(ratio)), warm_up),
        "rate x linear": methods.combine(methods.scale_rate(ratio), warm_up),
        "SAM, ghosts, warm-up": methods.combine(methods.sam(), methods.ghost_batch_norm(small), warm_up),
    }
    every = max(1, round(training.epochs / (1 + math.log2(ratio))))
    small_only = {"doubling": methods.doubling(every, most=large), "Byrd's test": methods.byrd(most=large)}
    return (
        {name: {"SB": method, "LB": method} for name, method in both.items()}
        | {name: {"LB": method} for name, method in large_only.items()}
        | {name: {"SB": method} for name, method in small_only.items()}
    )


def cells(config: Config) -> list[records.Cell]:
    """For each seed and remedy: SB, LB with as many epochs, and LB with as many updates."""
    dataset, known = settings.dataset(config.training).name, remedies(config.training)
    return [
        {"network": network, "dataset": dataset, "side": side, "budget": budget, "remedy": remedy, "seed": seed}
        for network in settings.networks(config.training)
        for seed in range(config.training.num_seeds)
        for remedy in dict.fromkeys(config.methods or known)
        for side, budget in RUNS
        if side in known[remedy]
    ]


def recipe(config: Config, cell: records.Cell) -> minima.Recipe:
    """How SB or LB is trained with a remedy."""
    small, large, m = settings.sizes(config.training)
    epochs, side = config.training.epochs, cell["side"]
    return settings.recipe(config.training, settings.batch_size(config.training, side))._replace(
        method=remedies(config.training)[cell["remedy"]][side],
        epochs=methods.same_updates(epochs, small, large, m) if cell["budget"] == "updates" else epochs,
    )


def row(config: Config, cell: records.Cell, store: Path) -> Row:
    """One minimum; its seconds are those of training, even if it was found on disk."""
    training, label = config.training, settings.label(config.training, cell)
    ds, model, loss, evaluate_train, evaluate_test = settings.problem(training, cell["network"])
    few = ds._replace(x_test=ds.x_test[:TEST], y_test=ds.y_test[:TEST])
    asked, key = recipe(config, cell), settings.training_key(training)
    minimum = minima.find(model, few, key, asked, seed=cell["seed"], store=store, progress=label)
    key = settings.measure_key(training, cell["seed"])
    measured = comparison.measure(
        loss, minimum.params, key, config.metric, train=evaluate_train, test=evaluate_test, progress=label
    )
    gradients = minimum.steps * asked.method.gradients
    summary = minimum.summary() | {"changes": asked.method.name, "gradients": gradients}
    del summary["history"]  # up to some hundred epochs, which nothing reads
    return summary | measured


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each cell; the options are those of `records.fill`."""
    config = config._replace(training=settings.resolved(config.training, all_epochs=True))
    settings.check_metric(config.training, config.metric)
    known = remedies(config.training)
    if unknown := set(config.methods) - set(known):
        raise ValueError(f"methods has {', '.join(sorted(unknown))}; there are: {', '.join(known)}")

    def seconds(cells: Sequence[records.Cell]) -> float:
        recipes = [recipe(config, cell) for cell in cells]
        epochs = sum(asked.epochs * asked.method.gradients for asked in recipes)
        return settings.seconds(config.training, gradients=len(cells) * config.metric.gradients, epochs=epochs)

    return records.fill("remedies", config, cells(config), row, out, seconds=seconds, **options)


@report.apart
def figures(rows: list[Row]) -> list[report.Section]:
    """Test accuracy and sharpness of each remedy, and its numbers beside Tables 6 and 7."""
    sections, epsilon = diverged(rows), _epsilon(rows)
    kept = [row for row in converged(rows) if column("full", epsilon) in row]
    if not kept:
        return sections
    groups = _grouped(kept)
    names = list(dict.fromkeys(name for _, name in groups))
    return [*sections, _beside(groups, names, epsilon, claims(kept)), _table(groups, names, epsilon)]


def claims(rows: list[Row]) -> list[Claim]:
    """Tables 6 and 7, and what section 5 says of conservative training."""
    groups, full = _grouped(rows), column("full", _epsilon(rows))
    augmented = _paired(test_accuracy, groups["LB", "augmentation"], groups["LB", "plain"])
    conservative = _paired(test_accuracy, groups["LB", "conservative"], groups["LB", "plain"])
    sharpnesses, trained = (
        _paired(full, groups["SB", "plain"], groups["LB", "conservative"]),
        paper.TABLE_7.items(),
    )
    return [
        Claim(
            "Table 6",
            "LB tests better with augmentation than without it (with | without)",
            _in_paper(paper.TABLE_6),
            means(augmented, " %"),
            [stats.verdict([remedied - bare for remedied, bare in augmented])],
        ),
        Claim(
            "Table 7",
            "LB tests better with conservative training than without it (with | without)",
            _in_paper(paper.TABLE_7),
            means(conservative, " %"),
            [stats.verdict([remedied - bare for remedied, bare in conservative])],
        ),
        Claim(
            "sec. 5",
            "LB with conservative training is still sharper than SB",
            {name: means([(paper.TABLE_3[name]["SB"][1e-3][0], of["LB"][1e-3][0])]) for name, of in trained},
            means(sharpnesses),
            [stats.verdict([stats.log_ratio(large, small) for small, large in sharpnesses])],
        ),
    ]


def _in_paper(table: Mapping[str, Any]) -> dict[str, str]:
    """The paper's mean test accuracies of LB with a remedy and without one, of each network."""
    both = {name: (of["LB"]["test"][0], paper.TABLE_2[name]["LB"]["test"][0]) for name, of in table.items()}
    return {name: means([pair], " %") for name, pair in both.items()}


Groups = Mapping[tuple[str, str], list[Row]]


def _grouped(rows: Sequence[Row]) -> Groups:
    """The rows of each run and remedy; an empty list for any other."""
    groups = defaultdict(list)
    for row in rows:
        groups[RUNS[row["side"], row["budget"]], row["remedy"]].append(row)
    return groups


def _paired(value: Value, first: Sequence[Row], second: Sequence[Row]) -> list[tuple[float, float]]:
    """The numbers of two runs, for each seed that has both."""
    a, b = by_seed(first, value), by_seed(second, value)
    return [(a[seed], b[seed]) for seed in a if seed in b]


def _epsilon(rows: Sequence[Row]) -> float:
    return max(epsilons_of(rows, "full"), default=math.nan)


def _beside(groups: Groups, names: Sequence[str], epsilon: float, tested: Sequence[Claim]) -> report.Section:
    full = column("full", epsilon)
    order = sorted(names, key=lambda name: _mean(groups["LB", name], test_accuracy))
    spans = "mean, lowest to highest seed"
    where = next(stats.where(rows[0]) for rows in groups.values() if rows)
    axes: dict[tuple[str, str], Value] = {
        (f"test accuracy, {where}", f"accuracy (%), {spans}\nright is better"): test_accuracy,
        (f"sharpness, full space, epsilon {epsilon:g}", f"% of 1 + f, {spans}\nleft is flatter"): full,
    }
    panels = {
        axis: {run: [_span(groups[run, name], value) for name in order] for run in RUNS.values()}
        for axis, value in axes.items()
    }
    return report.Section(
        "Do remedies that test better end flatter?",
        [
            *_findings(groups, names, full),
            *(f"{claim.claim}: {claim.here}, {claim.verdict}." for claim in tested if claim.verdict.n),
        ],
        figure=plots.intervals(order, panels, start=math.nan),
        caption="Markers: means over seeds, for sharpness geometric means. Bars: from the lowest to the highest "
        "seed. Sorted by the test accuracy of LB with as many epochs as SB. Sharpnesses of 0 are left out.",
        name="remedies",
    )


def _mean(rows: Sequence[Row], value: Value) -> float:
    return float(np.mean(list(by_seed(rows, value).values()) or [-1.0]))


def _span(rows: Sequence[Row], value: Value) -> tuple[float, float, float]:
    """The mean (for sharpness the geometric mean), the lowest and the highest seed."""
    seeds = list(by_seed(rows, value).values())
    if value is not test_accuracy:
        seeds = [math.log(seed) for seed in seeds if seed > 0]
    ends = (float(np.mean(seeds)), min(seeds), max(seeds)) if seeds else (math.nan,) * 3
    return ends if value is test_accuracy else tuple(map(math.exp, ends))  # type: ignore[return-value]


def _findings(groups: Groups, names: Sequence[str], full: str) -> list[str]:
    """The gap without a remedy, and the best remedy of LB."""
    of_plain = (by_seed(groups[run, "plain"], test_accuracy) for run in ("SB", "LB"))
    findings = [f"Without a remedy, {sentence}" for sentence in tables.gap_in_words(*of_plain)]
    for run in ("LB", "LB, updates of SB"):
        accuracies, sharpnesses = (
            {name: list(by_seed(groups[run, name], value).values()) for name in names}
            for value in (test_accuracy, full)
        )
        known = [name for name in names if accuracies[name] and sharpnesses[name]]
        if not known:
            continue
        best = max(known, key=lambda name: float(np.mean(accuracies[name])))
        above = [a - b for a, b in _paired(test_accuracy, groups[run, best], groups["LB", "plain"])]
        rank = stats.trend(*([float(np.mean(v[name])) for name in known] for v in (accuracies, sharpnesses)))
        of = "LB with as many epochs as SB" if run == "LB" else "LB with as many updates as SB"
        findings += [
            f"Of {len(known)} ways to train {of}, {best} tests best: {spread(accuracies[best])} %, "
            f"{spread(above)} points above plain LB with as many epochs. It was chosen on these seeds, so they do "
            "not test it.",
            f"Over the ways to train {of}, the rank correlation of test accuracy and sharpness is {plain(rank)}.",
        ]
    return findings


def _table(groups: Groups, names: Sequence[str], epsilon: float) -> report.Section:
    first, lines = next(rows[0] for rows in groups.values() if rows), []
    heading = tables.paper_heading([first])
    in_paper = {"test": heading, epsilon: f"sharpness, {heading}"} if heading else {}
    for name in names:
        for run in RUNS.values():
            rows, known = groups[run, name], PAPER.get((name, run), {})
            theirs = {words: tables.of_paper(known, first, run[:2], key) for key, words in in_paper.items()}
            if not rows:
                continue
            gaps = [small - other for small, other in _paired(test_accuracy, groups["SB", "plain"], rows)]
            lines.append(
                {
                    "remedy": name,
                    "run": run,
                    "test accuracy, %": spread(list(by_seed(rows, test_accuracy).values())),
                    "below plain SB, points": spread(gaps),
                    "sharpness": spread(list(by_seed(rows, column("full", epsilon)).values())),
                    **theirs,
                    "updates": plain(float(np.mean([row["steps"] for row in rows]))),
                    "gradients": plain(float(np.mean([row["gradients"] for row in rows]))),
                    "seconds": plain(float(np.mean([row["seconds"] for row in rows]))),
                    "n": str(len(rows)),
                }
            )
    findings = [f"Sharpness is in the full space at epsilon {epsilon:g}."]
    findings += ["The paper's numbers are those of Tables 6 and 7."] if heading else []
    title = f"Every remedy, {stats.where(first)}; mean ± standard deviation over n seeds"
    return report.Section(title, findings, report.frame(lines))


if __name__ == "__main__":
    command.main("remedies", run, figures, CONFIG, __doc__, sets={"digits": DIGITS})
