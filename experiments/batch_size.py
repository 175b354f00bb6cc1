"""Test accuracy and sharpness against batch size (Fig. 4).

    make exp-batch_size
    make exp-batch_size ARGS="--network c1 --dataset cifar10 --epochs 100"

All batch sizes begin at the same starting points and are trained for the same number of epochs, 100 in the paper.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from experiments.lib import command, curves, settings
from experiments.lib.claims import Claim
from experiments.lib.curves import EPSILONS, Curve
from experiments.lib.rows import Value, converged, diverged, test_accuracy
from experiments.lib.settings import Training
from gengap import comparison, minima, paper, plots, records, report, stats
from gengap.comparison import Metric, column
from gengap.records import Cell, Row
from gengap.report import DASH, Section, percent, plain, positive

PAPER = (100, 250, 500, 750, 1000, 1500, 2000, 2500, 3000, 4000, 5000)
"""Those of C1 on CIFAR-10; those of F2 are larger, in proportion to its training set."""
DIGITS = (16, 32, 64, 128, 256, 512, 1024)
SHARE = "batch size (% of the training set)"


class Config(NamedTuple):
    """One network, trained with many batch sizes, each time for all epochs."""

    training: Training = Training(num_seeds=3, epochs=30)
    metric: Metric = Metric(num_draws=0)
    batch_sizes: tuple[int | float, ...] = ()
    """batch sizes: examples, or fractions of the training set; by default the paper's, for digits 16 to 1024"""


CONFIG = Config()
SMOKE = Config(Training(num_seeds=1, train_size=200, epochs=1), Metric(num_draws=0, max_evaluations=3), (50, 100))


def row(config: Config, cell: Cell, store: Path) -> Row:
    """The end of training with one batch size: its loss, accuracy and sharpness."""
    training, label = config.training, settings.label(config.training, cell)
    ds, model, loss, train, test = settings.problem(training, cell["network"])
    recipe, key = settings.recipe(training, cell["batch_size"]), settings.training_key(training)
    minimum = minima.find(model, ds, key, recipe, seed=cell["seed"], store=store, progress=label)
    key = settings.measure_key(training, cell["seed"])
    measured = comparison.measure(loss, minimum.params, key, config.metric, train=train, test=test, progress=label)
    return {"share": minimum.batch_size / len(ds.x_train)} | minimum.summary() | measured


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each seed and batch size, in examples; the options are those of `records.fill`."""
    training = settings.resolved(config.training, pair=False, all_epochs=True)
    settings.check_metric(training, config.metric)
    dataset = settings.dataset(training)
    known = [size for size in (DIGITS if training.dataset == "digits" else PAPER) if size <= len(dataset.x_train)]
    sizes = settings.counts({"batch_sizes": config.batch_sizes or known}, len(dataset.x_train))
    settings.check_distinct({"batch_sizes": sizes})
    config = config._replace(training=training, batch_sizes=tuple(sizes))
    cells = [
        {"network": network, "dataset": dataset.name, "seed": seed, "batch_size": size}
        for network in settings.networks(training)
        for seed in range(training.num_seeds)
        for size in sizes
    ]

    def seconds(cells: Sequence[Cell]) -> float:
        gradients, epochs = len(cells) * config.metric.gradients, len(cells) * training.epochs
        return settings.seconds(training, gradients=gradients, epochs=epochs)

    return records.fill("batch_size", config, cells, row, out, seconds=seconds, **options)


@report.apart
def figures(rows: list[Row]) -> list[Section]:
    """Fig. 4: test accuracy and sharpness against batch size."""
    lost, kept = diverged(rows), converged(rows)
    if not kept:
        return lost
    network, theirs = paper.nearest("fig4_batchsize", kept[0]["network"])
    examples, in_words = {"F2": (721_329, 15_000), "C1": (50_000, 500)}[network]  # Table 5; section 2.2
    known = {name: ([100 * size / examples for size in curve.x], curve.y) for name, curve in theirs.items()}
    fall, their_fall = threshold(kept), stats.threshold(*known["test_acc"])
    marks = {fall.batch_size: "threshold, here"} if fall else {}
    marks |= {their_fall.batch_size: f"threshold,\npaper's {network}"} if their_fall else {}
    here, there = stats.where(kept[0]), f"paper, {paper.where(network)}"
    lines = plots.seeds(against(kept, test_accuracy), here, "here", marker="o")
    lines.append(plots.dotted(known["test_acc"], there))
    panel = plots.Panel(f"test accuracy, {here}", SHARE, plots.ACCURACY, lines, log_x=True, marks=marks)
    panels = plots.beside_paper(panel, kept[0]["network"], network)
    for epsilon, name in EPSILONS:
        shown = [(x, list(map(positive, y))) for x, y in against(kept, column("full", epsilon))]
        lines = plots.seeds(shown, here, "here", marker="o")
        lines.append(plots.dotted(known[f"sharp_{name}"], there))
        title = f"full space, epsilon {name}"
        panels.append(plots.Panel(title, SHARE, plots.SHARPNESS, lines, log_x=True, log_y=True))
    falls, rises = claims(kept)
    findings = [
        *_fall_in_words(fall),
        f"Accuracy falls with the batch size ({falls.here or DASH}): {falls.verdict}.",
        f"Sharpness rises with the batch size ({rises.here or DASH} over seeds and epsilons): {rises.verdict}.",
    ]
    if network == kept[0]["network"] and paper.beside(network, kept[0]["dataset"]):
        findings += [
            "The same fit to the paper's curve of this network gives "
            f"{plain(their_fall and their_fall.batch_size)} %.",
            f"The paper's text says that its sharpness has risen at about {in_words} examples, which is "
            f"{plain(100 * in_words / examples)} %.",
        ]
    caption = (
        "Every batch size was trained for the same number of epochs. The axis is a share of the training set, "
        "because the paper's data sets are larger. Dotted: the paper's network named in the legend."
    )
    title = "Accuracy and sharpness against batch size (Fig. 4)"
    return [*lost, Section(title, findings, figure=plots.panels(panels), caption=caption, name="fig4")]


def _fall_in_words(fall: stats.Threshold | None) -> list[str]:
    if fall is None:
        return ["Test accuracy does not fall with the batch size, or there are too few batch sizes to tell."]
    weak = "" if fall.p_value < 0.05 else ", so there may be no fall at all"
    return [
        f"Test accuracy begins to fall at {plain(fall.batch_size)} % of the training set, by {plain(-fall.slope)} "
        f"points for each factor of ten (F test against no fall: p = {fall.p_value:.2g}{weak}).",
        "The least-squares fit over all seeds is constant up to there, and then falls linearly with the logarithm "
        "of the batch size.",
    ]


def claims(rows: list[Row]) -> list[Claim]:
    """Fig. 4."""
    fall, falls = threshold(rows), curves.ranks(against(rows, test_accuracy))
    place = f"from {plain(fall.batch_size)} % of the set" if fall else "no fall"
    here = f"{curves.mean_rank(falls)}, {place}" if len(falls) else ""
    rises = [curves.ranks(against(rows, column("full", epsilon))) for epsilon, _ in EPSILONS]
    falling = "accuracy falls beyond a batch size"
    rising, of_epsilons = "sharpness rises with the batch size", list(map(stats.verdict, rises))
    return [
        Claim(
            "Fig. 4",
            falling,
            {"F2": "from 2 % of the set", "C1": "from 1 % of the set"},
            here,
            [stats.verdict(-falls)],
        ),
        Claim("Fig. 4", rising, {"F2": "118 to 1117"}, curves.lowest_and_highest(rises), of_epsilons),
    ]


def against(rows: Sequence[Row], value: Value) -> list[Curve]:
    """For each seed, the batch sizes in percent of the training set, and a number at each."""
    return list(curves.curves(rows, "share", lambda row: percent(row["share"]), value).values())


def threshold(rows: Sequence[Row]) -> stats.Threshold | None:
    """The share of the training set, in percent, beyond which test accuracy falls."""
    points = [point for curve in against(rows, test_accuracy) for point in zip(*curve, strict=True)]
    return stats.threshold([share for share, _ in points], [accuracy for _, accuracy in points])


if __name__ == "__main__":
    command.main("batch_size", run, figures, CONFIG, __doc__)
