"""What makes the generalisation gap: everything in which large batches differ from small ones, taken apart.

    make exp-causes ARGS="--dataset digits"
    make exp-causes

By default F1 on 4,000 images of CIFAR-10. LB is trained in all sixteen ways of having, or not having, as many
updates as SB, the gradient noise of SB, the batch-norm noise of SB, and a learning rate scaled by the root of the
batch. SB and LB share starting points. Then SB, LB, and LB with that noise are begun at an LB minimum: does noise
leave it?
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from experiments import command, training
from experiments.training import Training
from gengap import ascent, flat, growth, methods, minima, plots, records, report, sharpness, train, updates
from gengap import statistics as stats
from gengap.report import plain

FACTORS = ("updates", "noise", "ghosts", "rate")
MEANING = {
    "updates": "as many updates as SB, in place of as many epochs",
    "noise": "a gradient with the covariance of SB's",
    "ghosts": "batch norm over groups of SB's size",
    "rate": "the learning rate times the root of B_L / B_S",
}
CELLS = {" + ".join(("LB", *on)): on for k in range(len(FACTORS) + 1) for on in itertools.combinations(FACTORS, k)}
BEGIN = "LB + updates"
TERMS = [*((name,) for name in FACTORS), *itertools.combinations(FACTORS, 2)]
ESCAPES: dict[str, tuple[str, ...]] = {"SB": ("warm-up",), "LB": ("warm-up",), "LB + noise": ("noise", "warm-up")}
TEST = 1000
"""test examples after each epoch; the tables are of all of them"""


class Config(NamedTuple):
    """The factorial, and how its minima are measured."""

    training: Training = Training("cifar10", "f1", train_size=4000, small_batch=32, epochs=25)
    epsilon: float = 1e-3
    """size of the box"""
    dim: int = 100
    """columns of the random matrix A"""
    num_draws: int = 2
    """matrices A for each minimum"""
    max_evaluations: int = 24
    """gradients to spend on each maximum"""
    num_directions: int = 2
    """directions besides the gradient that the ascents in all subspaces begin in, at six gradients each"""
    escape: tuple[int, ...] = (1, 2, 4, 8, 16)
    """epochs of SB from the LB minimum at which to look; LB is looked at after as many updates"""


CONFIG = Config()
DIGITS = CONFIG._replace(
    training=Training(num_seeds=3, small_batch=32, epochs=8),
    num_draws=1,
    max_evaluations=12,
    num_directions=1,
    escape=(1, 2, 4, 8),
)
SMOKE = DIGITS._replace(
    training=Training(num_seeds=1, train_size=60, small_batch=6, large_batch=20, epochs=1),
    dim=5,
    max_evaluations=3,
    escape=(1, 2),
)


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> records.Run:
    """Train, measure and record: a row for SB, each cell, and each look at an escape, of each seed."""
    counts = {name: getattr(config, name) for name in ("dim", "num_draws", "max_evaluations")}
    flat.check_counts(counts | {"escape": min(config.escape, default=0)})
    flat.check_counts({"num_directions": config.num_directions}, least=0)
    flat.check_positive({"epsilon": config.epsilon})
    setting, ds = training.begin(config.training, data_dir, all_epochs=True)
    model, m, wanted = training.model(setting, ds), len(ds.x_train), sorted(set(config.escape))
    loss, evaluate = training.loss(setting, model, ds), training.evaluate(setting, model, ds)
    small, large = (train.count(size, m) for size in training.sizes(setting).values())
    some = ds._replace(x_test=ds.x_test[:TEST], y_test=ds.y_test[:TEST])
    rows = setting.num_seeds * (1 + len(CELLS) + len(ESCAPES) * len(wanted))
    pieces = {
        "noise": methods.matched_noise(small),
        "ghosts": methods.ghost_batch_norm(small),
        "rate": updates.scale_rate(math.sqrt(large / small)),
        # the first steps of a new Adam have full length, however small the gradient of the minimum
        "warm-up": updates.warm_up(-(-m // small)),
    }

    def updates_of(epochs: int) -> int:
        return growth.same_updates(epochs, small, large, m)

    with records.opened("causes", command.flat(config._replace(training=setting)), out, fresh=fresh) as run:

        def trained(name: str, epochs: Sequence[int], on: Sequence[str], seed: int, start: Any = None) -> Any:
            size = small if name == "SB" else large
            return minima.find_along(
                *(model, some, jax.random.key(setting.seed), size, epochs),
                start=start,
                method=methods.combine(*(piece for factor, piece in pieces.items() if factor in on)),
                progress=f"seed {seed + 1} of {setting.num_seeds}, {name}{', from LB' if start else ''}",
                **training.how(setting, ds, size, seed, run.store),
            )

        def measured(row: records.Row, found: minima.Minimum, spaces: Sequence[str]) -> None:
            row |= {"batch_size": found.batch_size, "epochs": found.epochs, "steps": found.steps}
            row |= {"distance": found.distance, "diverged_at": found.diverged_at}
            for split, of in evaluate.items():
                row[f"{split}_loss"], row[f"{split}_accuracy"] = of(found.params)
            if np.isfinite(row["train_loss"]):
                of_full, of_random = (training.key_of(setting, row["seed"], space) for space in ("full", "random"))
                how: Any = {"epsilon": config.epsilon, "max_evaluations": config.max_evaluations}
                row |= {"epsilon": config.epsilon, "maximiser": ascent.ASCENT_VERSION}
                row["full"] = sharpness.full_space(loss, found.params, of_full, **how)
                if "random" in spaces:
                    how |= {name: getattr(config, name) for name in ("dim", "num_draws", "num_directions")}
                    row["random"] = sharpness.random_subspaces(loss, found.params, of_random, **how)
            run.add(row)
            command.say_what_is_left(run, rows)

        if len(run.rows) < rows:
            looks = 2 * config.max_evaluations + 6 * config.num_directions
            looks = 17 * (looks + (config.num_draws - 1) * config.max_evaluations)
            looks += 3 * len(wanted) * config.max_evaluations
            epochs = 9 * setting.epochs + 8 * updates_of(setting.epochs) + wanted[-1] + 2 * updates_of(wanted[-1])
            training.say_how_long(setting, model, ds, setting.num_seeds * looks, setting.num_seeds * epochs)
        for seed in range(setting.num_seeds):
            for name, on in {"SB": (), **CELLS}.items():
                row = training.row(setting, ds, name, seed)
                if not run.has(row):
                    last = updates_of(setting.epochs) if "updates" in on else setting.epochs
                    (found,) = trained(name, [last], on, seed)
                    measured(row, found, ("full", "random"))
            begin = trained(BEGIN, [updates_of(setting.epochs)], CELLS[BEGIN], seed)[0].params
            for name, on in ESCAPES.items():
                row = training.row(setting, ds, f"from LB: {name}", seed)
                if not all(run.has({**row, "after": after}) for after in wanted):
                    at = wanted if name == "SB" else [updates_of(after) for after in wanted]
                    for after, found in zip(wanted, trained(name, at, on, seed, begin), strict=True):
                        if not run.has({**row, "after": after}):
                            measured({**row, "after": after}, found, ("full",))
        return run


@report.apart
def figures(rows: list[records.Row]) -> list[report.Section]:
    """Every cell, the effects of the factors and of their pairs, and the way from an LB minimum."""
    lost = report.diverged(rows)
    sections = [report.Section("Training that diverged", lost)] if lost else []
    finite = [row for row in rows if row.get("diverged_at") is None]
    seeds = sorted({row["seed"] for row in rows})
    cells = {name: {row["seed"]: row for row in finite if row["method"] == name} for name in ("SB", *CELLS)}
    whole = [seed for seed in seeds if all(seed in own for own in cells.values())]
    if whole:
        sections += [_effects(cells, whole), _table(cells, whole)]
    if any("after" in row for row in finite):
        sections.append(_escapes(finite, cells))
    return sections


def _response(row: records.Row, name: str) -> float:
    """What is compared; sharpness, distance and loss by their logarithms, so that an effect is a factor."""
    if name == "accuracy":
        return 100 * row["test_accuracy"]
    if name in ("full", "random"):
        found = row.get(name) or {"value": None, "finite": False}
        known = np.all(found["finite"]) and None not in np.ravel(found["value"])
        value = float(np.mean(found["value"])) if known else math.nan
    else:
        value = row[name]
    return math.log10(value) if value and value > 0 else math.nan


def contrast(values: Mapping[str, float], term: Sequence[str]) -> float:
    """An effect in a two-level factorial: of a factor, or of how it changes with the level of a second one.

    Args:
      values: of every cell.
      term: one factor, whose effect is the mean where it is on less the mean where it is off; or two, whose
        interaction is half of the difference between the effects of the one where the other is on and off.

    Reference: Box, Hunter and Hunter, "Statistics for Experimenters", 2005, chapter 5.
    """
    signs = {name: math.prod(1 if factor in on else -1 for factor in term) for name, on in CELLS.items()}
    return sum(signs[name] * values[name] for name in CELLS) / (len(CELLS) / 2)


RESPONSES = {
    "accuracy": "test accuracy, points",
    "full": "log10 sharpness, full",
    "random": "log10 sharpness, random",
    "distance": "log10 distance from x0",
    "train_loss": "log10 training loss",
}


def _effects(cells: Mapping[str, Mapping[int, records.Row]], whole: Sequence[int]) -> report.Section:
    effects: dict[str, dict[str, list[float]]] = {}
    for response in RESPONSES:
        values = [{name: _response(cells[name][seed], response) for name in CELLS} for seed in whole]
        effects[response] = {" x ".join(t): [contrast(v, t) for v in values] for t in TERMS}
    found = {r: {t: stats.interval(values) for t, values in own.items()} for r, own in effects.items()}
    terms = list(found["accuracy"])
    order = terms[::-1]
    figure = plots.intervals(
        order,
        {RESPONSES[name]: {"": [found[name][term] for term in order]} for name in ("accuracy", "full", "random")},
    )

    def words(response: str, term: str) -> str:
        value, low, high = found[response][term]
        ends = f", {plain(low)} to {plain(high)}" if math.isfinite(low) else ""
        if response == "accuracy":
            return f"{term} ({value:+.2f} points{ends})"
        ends = f", {plain(10**low)} to {plain(10**high)}" if math.isfinite(low) else ""
        return f"{term} (times {plain(10**value)}{ends})"

    def sure(response: str, sign: int) -> list[str]:
        """The factors that raise a response, or with -1 lower it, the strongest first."""
        own = [t for t in FACTORS if stats.verdict([sign * v for v in effects[response][t]]).word == "holds"]
        return sorted(own, key=lambda t: -abs(found[response][t].value))

    def moved(what: str, response: str) -> str:
        up, down = (_list([words(response, t) for t in sure(response, sign)]) for sign in (1, -1))
        return f"{what} rises with {up}; it falls with {down}."

    closes, flattens = sure("accuracy", 1), sure("full", -1)
    both = [factor for factor in FACTORS if factor in closes and factor in flattens]
    tests = {name: {seed: cells[name][seed]["test_accuracy"] for seed in whole} for name in ("SB", "LB")}
    gap = 100 * float(np.mean([tests["SB"][seed] - tests["LB"][seed] for seed in whole]))
    rank = stats.trend(
        *(
            [float(np.mean([_response(cells[name][seed], response) for seed in whole])) for name in CELLS]
            for response in ("accuracy", "full")
        )
    )
    said = [
        f"The gap: SB tests {plain(abs(gap))} points {'above' if gap >= 0 else 'below'} LB, "
        f"{stats.compare(tests['SB'], tests['LB'], 'SB higher than LB')}.",
        moved("Test accuracy", "accuracy"),
        moved("Sharpness in the full space", "full"),
        moved("Sharpness in random subspaces", "random"),
        "Named are, the strongest first, factors whose 95 % t interval over at least three seeds is on one side.",
        "What closes the gap and what flattens in the full space is "
        f"{'the same' if set(closes) == set(flattens) else 'not the same'}: {_list(both)} {_do(both)} both. Over "
        f"the means of the sixteen cells, test accuracy and sharpness have a rank correlation of {plain(rank)}.",
    ]
    columns = {"effect": terms, **{RESPONSES[r]: [_cell(found[r][t]) for t in terms] for r in RESPONSES}}
    caption = (
        "Each point is the change of the mean over the LB cells when a factor is turned on; for a pair, half the "
        "change of one effect by the other factor. Bars: 95 % t intervals over seeds. "
        + " ".join(f"{name.capitalize()}: {meaning}." for name, meaning in MEANING.items())
    )
    title = "Which difference makes the gap, and which the sharpness"
    return report.Section(title, said, pd.DataFrame(columns), figure, caption, "effects")


def _table(cells: Mapping[str, Mapping[int, records.Row]], whole: Sequence[int]) -> report.Section:
    lines = []
    for name, own in cells.items():
        of = [own[seed] for seed in whole]
        gaps = [100 * (cells["SB"][s]["test_accuracy"] - own[s]["test_accuracy"]) for s in whole]
        line = {"run": name, "test accuracy, %": report.spread([100 * row["test_accuracy"] for row in of])}
        line["below SB, points"] = report.spread(gaps) if name != "SB" else report.DASH
        for space, title in (("full", "sharpness, full"), ("random", "sharpness, random")):
            line[title] = report.spread([10 ** _response(row, space) for row in of])
        line |= {"distance": report.spread([row["distance"] for row in of])}
        line |= {"training loss": report.spread([row["train_loss"] for row in of])}
        line |= {"updates": str(of[0]["steps"]), "n": str(len(of))}
        lines.append(line)
    first = cells["SB"][whole[0]]
    said = [
        f"{first['network']} on {first['dataset']}, batches of {first['batch_size']} (SB) and "
        f"{cells['LB'][whole[0]]['batch_size']} (LB), epsilon {first['epsilon']:g}."
    ]
    return report.Section("Every run; mean ± standard deviation over n seeds", said, pd.DataFrame(lines))


def _escapes(finite: list[records.Row], cells: Mapping[str, Mapping[int, records.Row]]) -> report.Section:
    begun = cells[BEGIN]
    every = {
        name: {
            seed: sorted((r for r in finite if r["method"] == f"from LB: {name}" and r["seed"] == seed),
                         key=lambda r: r["after"])
            for seed in begun
        }
        for name in ESCAPES
    }  # fmt: skip
    panels = []
    for response, words in (("distance", "distance from the LB minimum"), ("full", "sharpness, full space"),
                            ("train_loss", "training loss"), ("accuracy", "test accuracy (%)")):  # fmt: skip
        lines: list[plots.Line] = []
        for name, colour in zip(ESCAPES, ("SB", "LB", "other"), strict=True):
            curves = []
            for seed, looks in every[name].items():
                if not looks:
                    continue
                at = [] if response == "distance" else [begun[seed]]
                y = [_response(row, response) for row in (*at, *looks)]
                y = y if response == "accuracy" else [10**value for value in y]
                curves.append(([0] * len(at) + [row["steps"] for row in looks], y))
            lines += plots.seeds(curves, name, colour, marker="o")
        log = response != "accuracy"
        panels.append(plots.Panel(words, "updates from the LB minimum", "", lines, log_y=log))
    last = {name: {seed: looks[-1] for seed, looks in own.items() if looks} for name, own in every.items()}
    said = []
    for name in ("SB", "LB + noise"):
        for response, adjective, words in (("distance", "far", "farther"), ("full", "sharp", "sharper")):
            values = {n: {s: _response(row, response) for s, row in last[n].items()} for n in (name, "LB")}
            shared = [s for s in values[name] if math.isfinite(values[name][s] - values["LB"].get(s, math.nan))]
            times = (
                10 ** float(np.mean([values[name][s] - values["LB"][s] for s in shared])) if shared else math.nan
            )
            own, other = ({s: values[n][s] for s in shared} for n in (name, "LB"))
            said.append(
                f"At the end {name} is {plain(times)} times as {adjective} as LB: "
                f"{stats.compare(own, other, f'{name} {words} than LB')}."
            )
        fall = [_response(begun[s], "full") - _response(row, "full") for s, row in last[name].items()]
        said.append(f"{name} ends flatter than the LB minimum that it began at: {stats.verdict(fall)}.")
    caption = (
        "Begun at the minimum of LB with as many updates as SB, with a new state of the optimiser and a rate that "
        "grows over the first epoch of SB: SB, LB, and LB with the gradient noise of SB. Thin lines are seeds, "
        "thick ones their mean."
    )
    title = "Does noise leave a sharp minimum?"
    return report.Section(title, said, figure=plots.panels(panels), caption=caption, name="escape")


def _cell(found: stats.Interval) -> str:
    ends = f" ({found.low:+.2f} to {found.high:+.2f})" if math.isfinite(found.low) else ""
    return report.DASH if math.isnan(found.value) else f"{found.value:+.2f}{ends}"


def _do(factors: Sequence[str]) -> str:
    return "do" if len(factors) > 1 or _list(factors) in ("updates", "ghosts") else "does"


def _list(words: Sequence[str]) -> str:
    return ", ".join(words) or "nothing"


if __name__ == "__main__":
    command.main("causes", run, figures, CONFIG, __doc__, sets={"digits": DIGITS})
