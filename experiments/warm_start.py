"""Large batches begun from where small ones stand after each epoch (Fig. 5): accuracy, sharpness.

    make exp-warm_start
    make exp-warm_start ARGS="--network c1 --dataset cifar10 --epochs 100"

SB is trained for 100 epochs in the paper, and LB for 100 from each of the iterates, with a new optimiser state.
"""

import math
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import command, training
from experiments.training import Training
from gengap import ascent, minima, paper, plots, records, report, sharpness
from gengap import statistics as stats
from gengap.report import positive, sharpness_at

EPSILONS = ((1e-3, "1e-3"), (5e-4, "5e-4"))


class Config(NamedTuple):
    """LB begun from iterates of SB; both are trained for all their epochs."""

    training: Training = Training(num_seeds=2, epochs=20)
    starts: int = 8
    """iterates of SB to begin from, evenly spaced on a logarithmic scale; as many as epochs are all of them"""
    max_evaluations: int = 24
    """gradients to spend on each maximum"""


CONFIG = Config()
SMOKE = CONFIG._replace(training=Training(num_seeds=1, train_size=400, epochs=2), starts=2, max_evaluations=3)


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> records.Run:
    """Train, measure and record: a row with the history of SB, and one for each LB, by the epoch it began at."""
    setting, ds = training.begin(config.training, data_dir, all_epochs=True)
    if config.max_evaluations < 1:
        raise ValueError(f"max_evaluations is {config.max_evaluations}; it must be at least 1")
    epochs = setting.epochs
    if config.starts < 2:
        raise ValueError(f"starts is {config.starts}; it must be at least 2")
    spaced = np.geomspace(1, epochs, config.starts) if config.starts < epochs else np.arange(1, epochs + 1)
    wanted = sorted(set(spaced.round().astype(int).tolist()))
    model = training.model(setting, ds)
    loss, evaluate = training.loss(setting, model, ds), training.evaluate(setting, model, ds)
    key = jax.random.key(setting.seed)
    small_size, large_size = training.sizes(setting).values()
    rows = setting.num_seeds * (1 + len(wanted))
    with records.opened("warm_start", command.flat(config._replace(training=setting)), out, fresh=fresh) as run:
        if len(run.rows) < rows:
            training.say_how_long(setting, model, ds, 2 * rows * config.max_evaluations, rows * epochs)
        for seed in range(setting.num_seeds):
            row = training.row(setting, ds, "SB", seed)
            large_row = training.row(setting, ds, "LB", seed)
            if run.has(row) and all(run.has({**large_row, "epoch": epoch}) for epoch in wanted):
                continue
            words = f"{row['network']} seed {seed + 1} of {setting.num_seeds}"
            how = training.how(setting, ds, small_size, seed, run.store)
            small = minima.find_along(model, ds, key, small_size, wanted, progress=f"{words}, SB", **how)
            if not run.has(row):
                run.add({**row, "batch_size": small[-1].batch_size, "history": small[-1].history})
            for epoch, begun in zip(wanted, small, strict=True):  # where SB diverged, so does LB at once
                row = {**large_row, "epoch": epoch}
                if run.has(row):
                    continue
                found = minima.find(
                    *(model, ds, key, large_size),
                    start=begun.params,
                    epochs=epochs,
                    progress=f"{words}, LB after epoch {epoch} of SB",
                    **training.how(setting, ds, large_size, seed, run.store),
                )
                row |= {"batch_size": found.batch_size, "diverged_at": found.diverged_at}
                for split, of in evaluate.items():
                    row[f"{split}_loss"], row[f"{split}_accuracy"] = of(found.params)
                if np.isfinite(row["train_loss"]):
                    most: Any = {"epsilon": [e for e, _ in EPSILONS], "max_evaluations": config.max_evaluations}
                    most["progress"] = f"{words}, LB after epoch {epoch} of SB, full space"
                    row |= {
                        "epsilons": most["epsilon"],
                        "full": sharpness.full_space(
                            loss, found.params, training.key_of(setting, seed, "full"), **most
                        ),
                    }
                run.add({**row, "maximiser": ascent.ASCENT_VERSION})
                command.say_what_is_left(run, rows)
        return run


@report.apart
def figures(rows: list[records.Row]) -> list[report.Section]:
    """Fig. 5: LB begun from the iterates of SB."""
    starts = [row for row in rows if row["method"] == "LB" and row.get("epoch") and row.get("diverged_at") is None]
    base = {row["seed"]: row["history"] for row in rows if row["method"] == "SB"}
    lost = report.diverged(rows)
    sections = [report.Section("Training that diverged", lost)] if lost else []
    if not starts or not base:
        return sections
    network, theirs = paper.nearest("fig5_warmstart", starts[0]["network"])
    every = [sorted((r for r in starts if r["seed"] == s), key=lambda r: r["epoch"]) for s in sorted(base)]
    every = [one for one in every if one]
    accuracies = [
        ([row["epoch"] for row in one], [report.percent(row.get("test_accuracy")) for row in one]) for one in every
    ]
    small = [
        (x, [report.percent(base[one[0]["seed"]]["test_accuracy"][epoch - 1]) for epoch in x])
        for (x, _), one in zip(accuracies, every, strict=True)
    ]
    panels = plots.beside_paper(
        plots.Panel(f"test accuracy, {stats.where(starts[0])}", "epoch of SB that LB begins from", "accuracy (%)",
                      [*plots.seeds(small, "SB there", "SB", marker="o"),
                       *plots.seeds(accuracies, "LB begun there", "LB", marker="s"),
                       plots.dotted(theirs["SB_test"], f"paper, {network}, SB", "paper"),
                       plots.dotted(theirs["LB_piggyback_test"], f"paper, {network}, LB", "paper, other")],
                      log_x=True), starts[0]["network"], network
    )  # fmt: skip
    falls, verdicts = [], []
    for epsilon, name in EPSILONS:
        values = [([row["epoch"] for row in one], [sharpness_at(row, epsilon) for row in one]) for one in every]
        shown = [(x, list(map(positive, y))) for x, y in values]
        lines = [*plots.seeds(shown, "LB begun there", "LB", marker="s"),
                 plots.dotted(theirs[f"sharp_{name}"], f"paper, {network}, LB", "paper, other")]  # fmt: skip
        panels.append(plots.Panel(f"full space, epsilon {name}", "epoch of SB that LB begins from",
                                    "sharpness (% of 1 + f)", lines, log_x=True, log_y=True))  # fmt: skip
        ranks = [rank for x, y in values if math.isfinite(rank := stats.trend(x, y))]
        falls += ranks
        verdicts.append(stats.verdict([-rank for rank in ranks]))
    gains = [
        [b - a for b, a in zip(ours, there, strict=True) if a is not None and b is not None]
        for (_, ours), (_, there) in zip(accuracies, small, strict=True)
    ]
    above = [gain >= 0 for own in gains for gain in own]
    ends = f"{min(falls):.2f} to {max(falls):.2f}" if falls else "-"
    said = [
        f"LB begun from an iterate of SB tests at least as well as that iterate in {sum(above)} of {len(above)} "
        f"starts; in the paper's curve of {network} in "
        f"{sum(b >= a for a, b in zip(theirs['SB_test'].y, theirs['LB_piggyback_test'].y, strict=True))} of "
        f"{len(theirs['SB_test'].y)}. On average over the starts of a seed: "
        f"{stats.verdict([math.fsum(own) / len(own) for own in gains if own])}.",
        f"The later LB begins, the flatter it ends: rank correlation of sharpness with the epoch {ends} over "
        f"seeds and epsilons: {stats.weakest(verdicts)}.",
    ]
    caption = "Above the epoch of SB from whose parameters LB began, with a new optimiser state."
    title = "Large batches begun from small-batch iterates (Fig. 5)"
    return [*sections, report.Section(title, said, figure=plots.panels(panels), caption=caption, name="fig5")]


if __name__ == "__main__":
    command.main("warm_start", run, figures, CONFIG, __doc__)
