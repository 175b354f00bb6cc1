"""What closes the gap: each remedy of `methods`, `updates` and `growth` on SB and LB from the same points.

    make exp-remedies ARGS="--dataset digits"
    make exp-remedies ARGS="--methods plain augmentation sam conservative"
    make exp-remedies

By default F1 on 4,000 images of CIFAR-10. LB takes as many epochs as SB, and then as many updates, which alone is
the regime adaptation of Hoffer et al. Strengths are those of the papers, or common ones; none is tuned.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from experiments import command, training
from experiments.training import Training
from gengap import (
    ascent,
    flat,
    growth,
    methods,
    minima,
    paper,
    plots,
    records,
    report,
    sharpness,
    train,
    updates,
)
from gengap import statistics as stats
from gengap.methods import PLAIN, Method
from gengap.report import plain, theirs

SIDES = ("SB", "LB", "LB, updates of SB")
TEST = 1000
"""test examples after each epoch; the tables are of all of them"""
FLIPS = ("cifar10", "cifar100")
"""whose images may be mirrored"""
PAPER = {
    ("augmentation", "SB"): paper.TABLE_6,
    ("augmentation", "LB"): paper.TABLE_6,
    ("conservative", "LB"): paper.TABLE_7,
    ("plain", "SB"): paper.TABLE_7,
}


class Config(NamedTuple):
    """Remedies, and how their minima are measured."""

    training: Training = Training("cifar10", "f1", train_size=4000, num_seeds=3, small_batch=32, epochs=25)
    methods: tuple[str, ...] = ()
    """their names in the table; by default all"""
    epsilon: float = 1e-3
    """size of the box"""
    max_evaluations: int = 24
    """gradients to spend on each maximum"""


CONFIG = Config()
DIGITS = CONFIG._replace(training=Training(num_seeds=2, small_batch=32, epochs=5), max_evaluations=12)
SMOKE = DIGITS._replace(
    training=Training(num_seeds=1, train_size=60, small_batch=6, large_batch=20, epochs=2),
    methods=("plain", "augmentation", "conservative", "SAM", "matched noise", "doubling", "LAMB"),
    max_evaluations=2,
)


def remedies(dataset: str, small: int, large: int, m: int, epochs: int) -> dict[str, dict[str, Method]]:
    """Each remedy by name, for SB and for LB; one that is plain training for a side has no entry for it.

    Args:
      dataset: by name; only CIFAR's images are mirrored.
      small, large: batches in examples, of `m`.
      epochs: of SB.
    """
    ratio, warm_up = large / small, updates.warm_up(-(-m // large))
    both = {
        "plain": PLAIN,
        "augmentation": methods.augmentation(flip=0.5 if dataset in FLIPS else 0.0),
        "conservative": updates.conservative(),
        "conservative, lambda 0": updates.conservative(0.0),
        "adversarial": methods.adversarial(),
        "stability": methods.stability(),
        "SAM": updates.sam(),
        "ASAM": updates.sam(0.5, adaptive=True),
        "label smoothing": methods.label_smoothing(),
        "weight averaging": updates.weight_averaging(),
        "weight decay": updates.instead(train.adam(1e-3, weight_decay=0.1)),
        "momentum SGD": updates.instead(train.sgd(0.1)),
        "Adagrad": updates.instead(train.adagrad(0.01)),
        "LARS": updates.instead(train.lars(1.0)),
        "LAMB": updates.instead(train.lamb(0.01)),
    }
    large_only = {
        "ghost batch norm": methods.ghost_batch_norm(small),
        "matched noise": methods.matched_noise(small),
        "rate x sqrt": methods.combine(updates.scale_rate(math.sqrt(ratio)), warm_up),
        "rate x linear": methods.combine(updates.scale_rate(ratio), warm_up),
        "SAM, ghosts, warm-up": methods.combine(updates.sam(), methods.ghost_batch_norm(small), warm_up),
    }
    every = max(1, round(epochs / (1 + math.log2(ratio))))
    small_only = {"doubling": growth.doubling(every, most=large), "Byrd's test": growth.byrd(most=large)}
    found = {name: {"SB": one, "LB": one} for name, one in both.items()}
    found |= {name: {"LB": one} for name, one in large_only.items()}
    return found | {name: {"SB": one} for name, one in small_only.items()}


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> records.Run:
    """Train, measure and record: a row for each remedy, side and seed.

    Its seconds are those of training, also where the minimum lay on disk.
    """
    flat.check_counts({"max_evaluations": config.max_evaluations})
    flat.check_positive({"epsilon": config.epsilon})
    setting, ds = training.begin(config.training, data_dir, all_epochs=True)
    m, model = len(ds.x_train), training.model(setting, ds)
    loss, evaluate = training.loss(setting, model, ds), training.evaluate(setting, model, ds)
    small, large = (train.count(size, m) for size in training.sizes(setting).values())
    known = remedies(setting.dataset, small, large, m, setting.epochs)
    if unknown := set(config.methods) - set(known):
        raise ValueError(f"methods has {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    some = ds._replace(x_test=ds.x_test[:TEST], y_test=ds.y_test[:TEST])
    same = growth.same_updates(setting.epochs, small, large, m)
    how_long = dict(zip(SIDES, ((small, setting.epochs), (large, setting.epochs), (large, same)), strict=True))
    asked = [
        (name, side, known[name][side[:2]])
        for name in config.methods or known
        for side in SIDES
        if side[:2] in known[name]
    ]
    with records.opened("remedies", command.flat(config._replace(training=setting)), out, fresh=fresh) as run:
        if len(run.rows) < setting.num_seeds * len(asked):
            epochs = sum(method.gradients * how_long[side][1] for _, side, method in asked)
            looks = len(asked) * config.max_evaluations
            training.say_how_long(setting, model, ds, setting.num_seeds * looks, setting.num_seeds * epochs)
        for seed in range(setting.num_seeds):
            for name, side, method in asked:
                row = training.row(setting, ds, f"{side}, {name}", seed)
                if run.has(row):
                    continue
                size, epochs = how_long[side]
                found = minima.find(
                    *(model, some, jax.random.key(setting.seed), size),
                    epochs=epochs,
                    method=method,
                    progress=f"seed {seed + 1} of {setting.num_seeds}, {side}, {name}",
                    **training.how(setting, ds, size, seed, run.store),
                )
                row |= {"seconds": found.seconds, "side": side, "remedy": name, "changes": method.name}
                row |= {"batch_size": size, "epochs": found.epochs, "steps": found.steps}
                row |= {"gradients": found.steps * method.gradients, "diverged_at": found.diverged_at}
                for split, of in evaluate.items():
                    row[f"{split}_loss"], row[f"{split}_accuracy"] = of(found.params)
                if np.isfinite(row["train_loss"]):
                    how: Any = {"epsilon": (config.epsilon,), "max_evaluations": config.max_evaluations}
                    row |= {"epsilons": how["epsilon"], "maximiser": ascent.ASCENT_VERSION}
                    row["full"] = sharpness.full_space(
                        loss, found.params, training.key_of(setting, seed, "full"), **how
                    )
                run.add(row)
                command.say_what_is_left(run, setting.num_seeds * len(asked))
        return run


@report.apart
def figures(rows: list[records.Row]) -> list[report.Section]:
    """Test accuracy against sharpness, what each remedy does, and its numbers beside Tables 6 and 7."""
    lost = report.diverged(rows)
    sections = [report.Section("Training that diverged", lost)] if lost else []
    finite = [row for row in rows if row.get("diverged_at") is None and row.get("full")]
    if not finite:
        return sections
    names = list(dict.fromkeys(row["remedy"] for row in finite))
    letters = {name: "abcdefghijklmnopqrstuvwxyz"[i] for i, name in enumerate(names)}
    return [*sections, _scatter(finite, letters), _table(finite, letters)]


def _by_seed(rows: Sequence[records.Row], side: str, remedy: str, value: Callable) -> dict[int, float]:
    found = {row["seed"]: value(row) for row in rows if (row["side"], row["remedy"]) == (side, remedy)}
    return {seed: one for seed, one in found.items() if one is not None}


def _accuracy(row: records.Row) -> float:
    return 100 * row["test_accuracy"]


def _sharpness(row: records.Row) -> float | None:
    return report.sharpness_at(row, row["epsilons"][0])


def _scatter(rows: list[records.Row], letters: Mapping[str, str]) -> report.Section:
    figure, every = plots.axes(2)
    looks = {"SB": "#00498d", "LB": "#e08300", "LB, updates of SB": "#7a5195"}
    for ax, sides in zip(every, (SIDES[:2], (SIDES[0], SIDES[2])), strict=True):
        for side in sides:
            for name, letter in letters.items():
                x, y = (_by_seed(rows, side, name, value) for value in (_sharpness, _accuracy))
                seeds = [seed for seed in x if seed in y and x[seed] > 0]
                if seeds:
                    xs, ys = [x[s] for s in seeds], [y[s] for s in seeds]
                    ax.plot(xs, ys, ".", color=looks[side], alpha=0.35, markersize=4)
                    middle = math.exp(np.mean(np.log(xs))), float(np.mean(ys))
                    ax.text(*middle, letter, color=looks[side], ha="center", va="center", fontweight="bold")
        ax.set(xscale="log", xlabel="sharpness, full space (% of 1 + f)", ylabel="test accuracy (%)")
        ax.set_title(f"SB and LB with as many {'epochs' if sides[1] == 'LB' else 'updates'}")
    said = _said(rows, letters)
    key = "; ".join(f"{letter} {name}" for name, letter in letters.items())
    caption = (
        "A letter is the mean of the seeds of a remedy, a dot is one seed. Blue: SB; orange: LB with as many "
        f"epochs; purple: LB with as many updates. {key}."
    )
    return report.Section(
        "Does what tests better end flatter?", said, figure=figure, caption=caption, name="remedies"
    )


def _said(rows: list[records.Row], letters: Mapping[str, str]) -> list[str]:
    said = []
    small, large = (_by_seed(rows, side, "plain", _accuracy) for side in SIDES[:2])
    if shared := [small[seed] - large[seed] for seed in small if seed in large]:
        gap = float(np.mean(shared))
        said.append(
            f"Without a remedy SB tests {plain(abs(gap))} points {'above' if gap >= 0 else 'below'} LB: "
            f"{stats.compare(small, large, 'SB higher than LB')}."
        )
    for side in SIDES[1:]:
        tests = {name: _by_seed(rows, side, name, _accuracy) for name in letters}
        sharp = {name: _by_seed(rows, side, name, _sharpness) for name in letters}
        known = [name for name in letters if tests[name] and sharp[name]]
        if not known:
            continue
        best = max(known, key=lambda name: float(np.mean(list(tests[name].values()))))
        above = [accuracy - large[seed] for seed, accuracy in tests[best].items() if seed in large]
        means = [[float(np.mean(list(of[name].values()))) for name in known] for of in (tests, sharp)]
        said.append(
            f"{side}: best of {len(known)} is {best} with {report.spread(list(tests[best].values()))} %, "
            f"{report.spread(above)} points above plain LB of as many epochs. It was chosen on "
            "these seeds, so that they do not test it. Over the remedies, test accuracy and sharpness have a rank "
            f"correlation of {plain(stats.trend(*means))}."
        )
    return said


def _table(rows: list[records.Row], letters: Mapping[str, str]) -> report.Section:
    lines = []
    base = _by_seed(rows, "SB", "plain", _accuracy)
    for name, letter in letters.items():
        for side in SIDES:
            own = [row for row in rows if (row["side"], row["remedy"]) == (side, name)]
            if not own:
                continue
            network, known = own[0]["network"], PAPER.get((name, side), {})
            gaps = [base[row["seed"]] - _accuracy(row) for row in own if row["seed"] in base]
            sharp = [value for row in own if (value := _sharpness(row)) is not None]
            lines.append(
                {
                    "": letter,
                    "remedy": name,
                    "run": side,
                    "test accuracy, %": report.spread([_accuracy(row) for row in own]),
                    "paper": theirs(known, network, side[:2], "test"),
                    "below plain SB, points": report.spread(gaps),
                    "sharpness": report.spread(sharp),
                    "paper, sharpness": theirs(known, network, side[:2], own[0]["epsilons"][0]),
                    "updates": plain(float(np.mean([row["steps"] for row in own]))),
                    "gradients": plain(float(np.mean([row["gradients"] for row in own]))),
                    "seconds": plain(float(np.mean([row["seconds"] for row in own]))),
                    "n": str(len(own)),
                }
            )
    one = rows[0]
    said = [
        f"{one['network']} on {one['dataset']}; sharpness in the full space, epsilon {one['epsilons'][0]:g}. The "
        f"paper's numbers are those of Tables 6 and 7, for {one['network']} on "
        f"{paper.DATASET.get(one['network'], 'no data set')}."
    ]
    return report.Section("Every remedy; mean ± standard deviation over n seeds", said, pd.DataFrame(lines))


if __name__ == "__main__":
    command.main("remedies", run, figures, CONFIG, __doc__, sets={"digits": DIGITS})
