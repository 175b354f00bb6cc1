"""The choices that the paper leaves open about Table 4, changed one at a time on one pair of minima.

    make exp-choices

It uses the minima of `make exp-mnist` if they exist, and trains them otherwise. Here f is the mean loss of the
first 5,000 training images, and each choice is measured with two draws of A. One choice is how long to train: for
it SB and LB are also measured after a few epochs.
"""

from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from experiments.lib import command, settings, tables
from experiments.lib.settings import Problem, Training
from experiments.lib.tables import epsilons_of
from gengap import (
    ascent,
    checks,
    data,
    flat,
    minima,
    models,
    objective,
    paper,
    program,
    records,
    report,
    sharpness,
    subspace,
)
from gengap.comparison import Metric, column
from gengap.records import Row
from gengap.report import plain, times


class Config(NamedTuple):
    """Other choices, tried at the minima of one starting point."""

    training: Training = Training(dataset="mnist")
    metric: Metric = Metric(num_draws=2)
    """Sharpness (Metric 2.1). SciPy may spend more gradients than --max-evaluations."""
    which: int = 0
    """number of the starting point, from 0"""
    examples: int = 5_000
    """number of training examples in f"""
    stages: tuple[int, ...] = (3, 7, 15)
    """also measure after these epochs of training"""


CONFIG = Config()
SMOKE = Config(
    Training(train_size=400, epochs=2), Metric(num_draws=1, max_evaluations=3), examples=200, stages=(1,)
)
NOTES = {
    "default": "random signs, batch statistics over 5000, corner ascent",
    "N(0, 1)": "entries of A",
    "unit columns": "columns of A scaled to length 1",
    "U(-1, 1)": "entries of A",
    "U(0, 1)": "entries of A",
    "batch norm over 250": "batch statistics over chunks of 250",
    "population statistics": "taken at x, then frozen",
    "Keras clip": "probabilities clipped to [1e-7, 1 - 1e-7]",
    "SciPy": "10 iterations of L-BFGS-B from y = 0, tolerances 0",
    "SciPy, its tolerances": "10 iterations of L-BFGS-B from y = 0",
}
STAGE = "from the same starting point"


def cells(config: Config) -> list[records.Cell]:
    """SB and LB for each choice, and at each stage of training with the default choice."""
    problem = settings.problem(config.training)
    names = [name for name in NOTES if name != "population statistics" or problem.model.apply_frozen]
    names += [f"after {epochs} epochs" for epochs in sorted(config.stages)]
    cell = {"network": settings.networks(config.training)[0], "dataset": problem.ds.name, "seed": config.which}
    return [{**cell, "choice": name, "side": side} for name in names for side in settings.SIDES]


def row(config: Config, cell: records.Cell, store: Path) -> Row:
    """Sharpness in random subspaces at one minimum under one choice, and f there."""
    problem = settings.problem(config.training)
    some = data.head(problem.ds, min(config.examples, len(problem.ds.x_train)))
    stages = {f"after {epochs} epochs": epochs for epochs in config.stages}
    stage = stages.get(cell["choice"])
    params = _minimum(config, problem, cell["side"], stage, store).params
    measure = _choices(config, problem.model, some)["default" if stage else cell["choice"]]
    measured: Row = {"ascent_version": ascent.ASCENT_VERSION}
    measured["train_loss"] = objective.over_dataset(problem.model.apply, some.x_train, some.y_train)(params)
    for epsilon, draws in zip(config.metric.epsilons, np.asarray(measure(params), float), strict=True):
        measured[column("random", epsilon)] = draws.mean()
        measured[f"{column('random', epsilon)}_draws"] = draws
    return measured


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each choice and side; the options are those of `records.fill`."""
    checks.check_counts({"examples": config.examples, "num_draws": config.metric.num_draws})
    settings.check_distinct({"stages": config.stages})
    config = config._replace(training=settings.resolved(config.training))
    settings.check_metric(config.training, config.metric)
    return records.fill("choices", config, cells(config), row, out, **options)


def _minimum(config: Config, problem: Problem, side: str, stage: int | None, store: Path) -> minima.Minimum:
    """The minimum of a side, or its parameters after `stage` epochs of training."""
    network = settings.networks(config.training)[0]
    if stage is None:
        return settings.pair(config.training, network, config.which, store)[side]
    training = config.training._replace(patience=0, target=0.0, epochs=max(config.stages))
    recipe = settings.recipe(training, settings.batch_size(training, side))._replace(snapshots=config.stages)
    key, label = settings.training_key(training), f"{network} to epoch {training.epochs}, {side}"
    minimum = minima.find(problem.model, problem.ds, key, recipe, seed=config.which, store=store, progress=label)
    return minimum.snapshots[stage]


def _choices(config: Config, model: models.Model, some: data.Dataset) -> dict[str, Callable[[PyTree], Any]]:
    """Each choice as a measurement, `params -> [epsilons, draws]`."""
    metric, key = config.metric, flat.key_for(settings.measure_key(config.training, config.which), "random")
    loss = partial(objective.over_dataset, model.apply, some.x_train, some.y_train)

    def signs(f: Callable, entries: subspace.Entries = subspace.signs) -> Callable[[PyTree], Any]:
        return lambda params: (
            sharpness.random_subspaces(
                f,
                params,
                key,
                dim=metric.dim,
                epsilon=metric.epsilons,
                num_draws=metric.num_draws,
                max_evaluations=metric.max_evaluations,
                num_directions=metric.num_directions,
                entries=entries,
            ).value
        )

    def frozen(params: PyTree) -> Any:
        assert model.apply_frozen is not None
        statistics, apply = models.population_statistics(model, params, some.x_train), model.apply_frozen
        f = objective.over_dataset(lambda p, x: apply(p, statistics, x), some.x_train, some.y_train)
        return signs(f)(params)

    return {
        "default": signs(loss()),
        "N(0, 1)": signs(loss(), jax.random.normal),
        "unit columns": signs(loss(), _unit),
        "U(-1, 1)": signs(loss(), _symmetric),
        "U(0, 1)": signs(loss(), jax.random.uniform),
        "batch norm over 250": signs(loss(chunk=250)),
        "population statistics": frozen,
        "Keras clip": signs(loss(clip=1e-7)),
        "SciPy": partial(_by_scipy, metric, key, loss(), 0.0),
        "SciPy, its tolerances": partial(_by_scipy, metric, key, loss(), None),
    }


def _by_scipy(
    metric: Metric, key: Array, f: Callable, tolerance: float | None, params: PyTree
) -> list[list[float]]:
    """What the paper's solver finds in each of the same subspaces, for each epsilon and draw."""
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    values: list[list[float]] = [[] for _ in metric.epsilons]
    for draw_key in sharpness.draw_keys(key, metric.num_draws):
        A = subspace.draw(draw_key, n, metric.dim)
        for of_epsilon, epsilon in zip(values, metric.epsilons, strict=True):
            box = sharpness.box(params, A, epsilon)
            evaluate = program.compiled(jax.value_and_grad(sharpness.restrict(f, params, A)))
            start = jnp.zeros_like(box)
            top, base = ascent.scipy_lbfgsb(evaluate, box, start, tolerance=tolerance).value, evaluate(start)[0]
            of_epsilon.append(100 * float((top - base) / (1 + base)))
    return values


def _symmetric(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, minval=-1.0)


def _unit(key: Array, shape: tuple[int, ...]) -> Array:
    columns = jax.random.normal(key, shape)
    return columns / jnp.linalg.norm(columns, axis=1, keepdims=True)


@report.apart
def figures(rows: list[Row]) -> list[report.Section]:
    """The values under each choice, with the paper's numbers for F1 on MNIST in the first line."""
    if not rows:
        return []
    epsilons = epsilons_of(rows, "random")
    places = [(side, epsilon) for side in settings.SIDES for epsilon in epsilons]
    in_paper = paper.TABLE_4.get(rows[0]["network"], paper.TABLE_4["F1"])
    theirs = {(s, epsilon): in_paper[s].get(epsilon, (np.nan,))[0] for s, epsilon in places}
    heading = tables.paper_heading(rows)
    lines = [{"choice": f"Table 4, {heading}", "note": ""} | _table_cells(theirs)] if heading else []
    ratios: dict[str, dict[tuple[str, float], float]] = {}
    for name in dict.fromkeys(row["choice"] for row in rows):
        of_side = {row["side"]: row for row in rows if row["choice"] == name}
        values = {(s, e): _float(of_side.get(s, {}).get(column("random", e))) for s, e in places}
        ratios[name] = {place: value / theirs[place] for place, value in values.items()}
        lines.append({"choice": name, "note": NOTES.get(name, STAGE), **_table_cells(values)})
    findings = [sentence for epsilon in epsilons if heading for sentence in _nearest(ratios, epsilon)]
    stages = [row for row in rows if row["choice"] not in NOTES]
    losses = [
        f"{small['choice']}: SB {plain(small['train_loss'])}, LB {plain(large['train_loss'])}"
        for small in stages
        for large in stages
        if (small["side"], large["side"]) == settings.SIDES and small["choice"] == large["choice"]
    ]
    findings += [f"The training losses at the stages, in nats, are: {'; '.join(losses)}."] if losses else []
    title = "Table 4 under other choices: sharpness in random subspaces, mean over the draws"
    return [report.Section(title, findings, report.frame(lines))]


def _float(value: float | None) -> float:
    return np.nan if value is None else value


def _table_cells(values: dict[tuple[str, float], float]) -> dict[str, str]:
    return {f"{side}, {epsilon:g}": plain(value) for (side, epsilon), value in values.items()}


def _nearest(ratios: dict[str, dict[tuple[str, float], float]], epsilon: float) -> list[str]:
    """Which choices come close to the paper's values at an epsilon."""
    finite = {name: r for name, r in ratios.items() if np.isfinite(r["LB", epsilon]) and r["LB", epsilon] > 0}
    both = [name for name, r in ratios.items() if all(0.5 <= r[side, epsilon] <= 2 for side in settings.SIDES)]
    comes = f"{' and '.join(both)} {'come' if len(both) > 1 else 'comes'}" if both else "no choice comes"
    found = [f"At epsilon {epsilon:g} {comes} within a factor of two of the paper's SB and LB."]
    if finite:
        nearest = min(finite, key=lambda name: abs(np.log(finite[name]["LB", epsilon])))
        found.append(
            f"The choice nearest to the paper's LB is: {nearest}. With it LB is "
            f"{_than_paper(finite[nearest]['LB', epsilon])}, SB {_than_paper(finite[nearest]['SB', epsilon])}."
        )
    return found


def _than_paper(ratio: float) -> str:
    word, factor, _ = times(ratio, "larger", "smaller")
    return f"{factor} times {word} than the paper's"


if __name__ == "__main__":
    command.main("choices", run, figures, CONFIG, __doc__)
