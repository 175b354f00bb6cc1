"""The riddle of Table 4: f with Keras's moving averages in batch norm against f with batch statistics.

    make exp-averages

The paper's sharpness of LB in random subspaces is, for F1, that of SB plus 9.11 at one epsilon and 9.12 at the
other, as if f(x) and f(x + A y) had been evaluated in two ways. Keras averages the statistics of batch norm with a
momentum of 0.99, which forgets its beginning in some hundred updates; LB makes few. If f(x) was evaluated with
batch statistics and f(x + A y) with those averages, the metric is larger by 100 (f_averages - f) / (1 + f). Here
is that number after every epoch of training, up to the minimum that Table 4 is about.
"""

import math
import statistics
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from experiments import command, training
from experiments.training import Training
from gengap import minima, objective, paper, plots, records, report
from gengap import statistics as stats
from gengap.report import plain, spread


class Config(NamedTuple):
    """Training whose every epoch is kept in memory; a network with batch norm."""

    training: Training = Training(dataset="mnist", num_seeds=3, epochs=40)
    momentum: float = 0.99
    """of the moving averages; Keras's"""


CONFIG = Config()
SMOKE = CONFIG._replace(training=Training("digits", num_seeds=1, train_size=400, epochs=2))


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> records.Run:
    """Train, measure and record, a row for each starting point and batch size."""
    if not 0 <= config.momentum < 1:
        raise ValueError(f"momentum is {config.momentum}; it must be from 0 to below 1")
    setting, ds = training.begin(config.training, data_dir)
    model = training.model(setting, ds)
    f, apply = jax.jit(training.loss(setting, model, ds)), model.apply_frozen
    of_batch = jax.jit(lambda params, x: model.statistics(params, objective.scale(x)))  # type: ignore[misc]
    frozen = model._replace(apply=lambda both, x: apply(*both, x))  # type: ignore[misc]
    f_frozen = jax.jit(training.loss(setting, frozen, ds))
    with records.opened("averages", command.flat(config._replace(training=setting)), out, fresh=fresh) as run:
        if not run.rows:
            training.say_how_long(setting, model, ds, 0, 2 * setting.num_seeds * setting.epochs)
        for seed in range(setting.num_seeds):
            for method, size in training.sizes(setting).items():
                row = training.row(setting, ds, method, seed)
                if run.has(row):
                    continue
                every = minima.find_along(
                    *(model, ds, jax.random.key(setting.seed), size, range(1, setting.epochs + 1)),
                    progress=f"{row['network']} seed {seed + 1} of {setting.num_seeds}, {method}",
                    **training.how(setting, ds, size, seed, None),
                )
                every = every[: every[-1].epochs]  # after the end of training there is no other
                averages, moving, before = None, [], 0
                for one in every:
                    own = of_batch(one.params, ds.x_train[: one.batch_size])
                    averages = _averaged(averages, own, config.momentum ** (one.steps - before))
                    moving.append(f_frozen((one.params, averages)))
                    before = one.steps
                steps = [one.steps for one in every]
                run.add({**row, "steps": steps, "batch": [f(one.params) for one in every], "moving": moving})
                command.say_what_is_left(run, 2 * setting.num_seeds)
        return run


def _averaged(averages: PyTree | None, own: PyTree, kept: float) -> Any:
    """Moving averages after the updates of an epoch, with the statistics at its end; they begin at 0 and 1."""
    if averages is None:
        averages = jax.tree.map_with_path(lambda path, a: jnp.full_like(a, path[-1].key == "var"), own)
    return jax.tree.map(lambda a, b: kept * a + (1 - kept) * b, averages, own)


@report.apart
def figures(rows: list[records.Row]) -> list[report.Section]:
    """What is added to the metric along training, and what the paper's table has."""
    if not rows:
        return []
    lines, ends = [], {}
    for method in ("SB", "LB"):
        own = [row for row in rows if row["method"] == method]
        added = [_added(row) for row in own]
        ends[method] = [values[-1] for values in added]
        curves = [(row["steps"], values) for row, values in zip(own, added, strict=True)]
        lines += plots.seeds(curves, method, method, marker="o" if method == "SB" else "s")
    theirs = paper.TABLE_4.get(rows[0]["network"], paper.TABLE_4["F1"])
    excess = [theirs["LB"][epsilon][0] - theirs["SB"][epsilon][0] for epsilon in (1e-3, 5e-4)]
    most = max(max(row["steps"]) for row in rows)
    for value in excess:
        lines.append(plots.Line([1, most], [value, value], "paper, LB - SB in Table 4", "paper", ":", 1.1))
    updates = [row["steps"][-1] for row in rows if row["method"] == "LB"]
    said = [
        f"At the LB minimum, after {plain(statistics.fmean(updates))} updates, moving averages would add "
        f"{spread(ends['LB'])} to the metric, at the SB minimum {spread(ends['SB'])}, at any epsilon. In Table 4 "
        f"LB is above SB by {plain(excess[0])} at epsilon 1e-3 and by {plain(excess[1])} at 5e-4."
    ]
    passed = [
        stats.at_loss(_added(row), row["steps"], statistics.fmean(excess)) for row in rows if row["method"] == "LB"
    ]
    if passed := [steps for steps in passed if math.isfinite(steps)]:
        said.append(f"On the way it is {plain(statistics.fmean(excess))} for LB after {spread(passed)} updates.")
    cells = [theirs["SB"][epsilon][0] for epsilon in (1e-3, 5e-4)]
    more = all(end > cell for end in ends["SB"] for cell in cells)
    said.append(
        f"The whole metric of SB is {plain(cells[0])} and {plain(cells[1])} in Table 4, "
        + ("less than averages would add: SB's cells were not made so." if more else "and leaves room for that.")
    )
    panel = plots.Panel(
        f"{rows[0]['network']} on {rows[0]['dataset']}", "updates", "100 (f with averages - f) / (1 + f)", lines,
        log_x=True, log_y=True,
    )  # fmt: skip
    caption = "One point for each epoch, up to the minimum. f with batch statistics of each chunk, as everywhere."
    title = "What moving averages in batch norm add to the metric"
    return [report.Section(title, said, figure=plots.panels([panel]), caption=caption, name="averages")]


def _added(row: records.Row) -> Sequence[float]:
    return [100 * (moving - f) / (1 + f) for moving, f in zip(row["moving"], row["batch"], strict=True)]


if __name__ == "__main__":
    command.main("averages", run, figures, CONFIG, __doc__)
