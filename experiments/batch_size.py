"""Test accuracy and sharpness against batch size (Fig. 4).

    make exp-batch_size
    make exp-batch_size ARGS="--network c1 --dataset cifar10 --epochs 100"

Every batch size is trained for the same number of epochs, 100 in the paper, from the same starting points.
"""

import math
from collections.abc import Callable
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import command, training
from experiments.training import Training
from gengap import ascent, minima, paper, plots, records, report, sharpness, train
from gengap import statistics as stats
from gengap.report import plain, positive, sharpness_at

EPSILONS = ((1e-3, "1e-3"), (5e-4, "5e-4"))
PAPER = (100, 250, 500, 750, 1000, 1500, 2000, 2500, 3000, 4000, 5000)
"""For C1 on CIFAR-10; those for F2 are in proportion to a training set that is larger."""
DIGITS = (16, 32, 64, 128, 256, 512, 1024)


class Config(NamedTuple):
    """One network at many batch sizes, trained for all its epochs."""

    training: Training = Training(num_seeds=3, epochs=30)
    batch_sizes: tuple[int | float, ...] = ()
    """in examples, or with a point as shares of the training set; by default the paper's, on digits 16 to 1024"""
    max_evaluations: int = 24
    """gradients to spend on each maximum"""


CONFIG = Config()
SMOKE = CONFIG._replace(
    training=Training(num_seeds=1, train_size=200, epochs=1), batch_sizes=(50, 100), max_evaluations=3
)


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> records.Run:
    """Train, measure and record, a row for each seed and batch size."""
    setting, ds = training.begin(config.training, data_dir, pair=False, all_epochs=True)
    if config.max_evaluations < 1:
        raise ValueError(f"max_evaluations is {config.max_evaluations}; it must be at least 1")
    sizes = _sizes(config, setting, len(ds.x_train))
    model = training.model(setting, ds)
    loss, evaluate = training.loss(setting, model, ds), training.evaluate(setting, model, ds)
    key = jax.random.key(setting.seed)
    asked = command.flat(config._replace(training=setting)) | {"batch_sizes": sizes}
    rows = setting.num_seeds * len(sizes)
    with records.opened("batch_size", asked, out, fresh=fresh) as run:
        if len(run.rows) < rows:
            training.say_how_long(setting, model, ds, 2 * rows * config.max_evaluations, rows * setting.epochs)
        for seed in range(setting.num_seeds):
            for size in sizes:
                row = training.row(setting, ds, f"B={size}", seed)
                if run.has(row):
                    continue
                words = f"{row['network']} seed {seed + 1} of {setting.num_seeds}, batch size {size}"
                found = minima.find(
                    *(model, ds, key, size),
                    epochs=setting.epochs,
                    progress=words,
                    **training.how(setting, ds, size, seed, run.store),
                )
                row |= {"batch_size": size, "share": size / len(ds.x_train), "diverged_at": found.diverged_at}
                for split, of in evaluate.items():
                    row[f"{split}_loss"], row[f"{split}_accuracy"] = of(found.params)
                if np.isfinite(row["train_loss"]):
                    how: Any = {"epsilon": [e for e, _ in EPSILONS], "max_evaluations": config.max_evaluations}
                    how["progress"] = f"{words}, full space"
                    row |= {
                        "epsilons": how["epsilon"],
                        "full": sharpness.full_space(
                            loss, found.params, training.key_of(setting, seed, "full"), **how
                        ),
                    }
                run.add({**row, "epochs": found.epochs, "maximiser": ascent.ASCENT_VERSION})
                command.say_what_is_left(run, rows)
        return run


def _sizes(config: Config, setting: Training, examples: int) -> list[int]:
    known = DIGITS if setting.dataset == "digits" else PAPER
    asked = config.batch_sizes or [size for size in known if size <= examples]
    try:
        sizes = [train.count(size, examples) for size in asked]
    except ValueError as error:
        raise ValueError(f"batch_sizes: {error}") from None
    if repeated := {size for size in sizes if sizes.count(size) > 1}:
        raise ValueError(f"batch_sizes has {', '.join(map(str, repeated))} more than once")
    return sizes


@report.apart
def figures(rows: list[records.Row]) -> list[report.Section]:
    """Fig. 4: test accuracy and sharpness against batch size."""
    runs = [row for row in rows if row.get("share") and row.get("diverged_at") is None]
    lost = report.diverged(rows)
    sections = [report.Section("Training that diverged", lost)] if lost else []
    if not runs:
        return sections
    network, theirs = paper.nearest("fig4_batchsize", runs[0]["network"])
    size = {"F2": 721_329, "C1": 50_000}[network]  # training sets, Table 5
    seeds = sorted({row["seed"] for row in runs})

    def curves(value: Callable[[records.Row], float | None]) -> list[tuple[list[float], list[float | None]]]:
        every = [sorted((r for r in runs if r["seed"] == seed), key=lambda r: r["share"]) for seed in seeds]
        return [([100 * row["share"] for row in one], [value(row) for row in one]) for one in every]

    accuracies = curves(lambda row: report.percent(row.get("test_accuracy")))
    found = stats.threshold(*([v for curve in accuracies for v in curve[axis]] for axis in (0, 1)))
    curve = theirs["test_acc"]
    share = [100 * x / size for x in curve.x]
    same = stats.threshold(share, curve.y)
    marks = {found.batch_size: "threshold, here"} if found else {}
    marks |= {same.batch_size: f"threshold,\npaper's {network}"} if same else {}
    panels = plots.beside_paper(
        plots.Panel(f"test accuracy, {stats.where(runs[0])}", "batch size (% of the training set)",
                      "accuracy (%)",
                      [*plots.seeds(accuracies, "here", "here", marker="o"),
                       plots.dotted((share, curve.y), f"paper, {network}")],
                      log_x=True, marks=marks), runs[0]["network"], network
    )  # fmt: skip
    rises, verdicts = [], []
    for epsilon, name in EPSILONS:
        values = curves(lambda row: sharpness_at(row, epsilon))  # noqa: B023
        curve = theirs[f"sharp_{name}"]
        shown = [(xs, list(map(positive, ys))) for xs, ys in values]
        lines = [*plots.seeds(shown, "here", "here", marker="o"),
                 plots.dotted(([100 * B / size for B in curve.x], curve.y), f"paper, {network}")]  # fmt: skip
        panels.append(plots.Panel(f"full space, epsilon {name}", "batch size (% of the training set)",
                                    "sharpness (% of 1 + f)", lines, log_x=True, log_y=True))  # fmt: skip
        ranks = [rank for xs, ys in values if math.isfinite(rank := stats.trend(xs, ys))]
        rises += ranks
        verdicts.append(stats.verdict(ranks))
    how = "a constant that turns into a straight descent in log batch size, by least squares over all seeds"
    if found is None:
        said = ["Test accuracy falls nowhere with the batch size, or there are too few to tell."]
    else:
        weak = "" if found.p_value < 0.05 else ", so that there may be no fall at all"
        said = [
            f"Test accuracy begins to fall at {plain(found.batch_size)} % of the training set, by "
            f"{plain(-found.slope)} points for each factor of ten (F test against no fall: p = "
            f"{found.p_value:.2g}{weak}); fitted is {how}."
        ]
    words = {"F2": 15_000, "C1": 500}[network]
    said.append(
        f"The same fit to the paper's curve of {network} gives {plain(same.batch_size if same else None)} %; the "
        f"paper's text has about {words} examples, {plain(100 * words / size)} %, as where sharpness has risen."
    )
    spread = f"{min(rises):.2f} to {max(rises):.2f}" if rises else "-"
    said.append(
        f"Sharpness rises with the batch size: rank correlation {spread} over seeds and epsilons: "
        f"{stats.weakest(verdicts)}."
    )
    caption = (
        "Every batch size trained for the same number of epochs. The axis is a share of the training set, since "
        "the paper's data sets are larger. Thin lines are seeds, thick ones their mean."
    )
    title = "Accuracy and sharpness against batch size (Fig. 4)"
    return [*sections, report.Section(title, said, figure=plots.panels(panels), caption=caption, name="fig4")]


if __name__ == "__main__":
    command.main("batch_size", run, figures, CONFIG, __doc__)
