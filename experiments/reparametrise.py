"""The same function made to look sharper and flatter (Dinh et al. 2017), and what each measure makes of it.

    make exp-reparametrise
    make exp-reparametrise ARGS="--dataset mnist"

On SB and LB minima: the weights before each batch norm are multiplied by c, or the scale and bias of each batch
norm by a and the weights behind them divided by it. Neither changes the function. Sharpness is measured in the
full space and in random subspaces, for which Dinh et al. "have not been able to show a similar problem". Then the
audit: which maps leave which measures unchanged.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from experiments import command, training
from experiments.training import Training
from gengap import ascent, data, hessian, measures, objective, plots, records, report, sharpness, symmetry
from gengap import statistics as stats
from gengap.report import number, positive

MAPS = ("before batch norm", "behind batch norm")
WORDS = {
    "before batch norm": "weights before batch norm times c",
    "behind batch norm": "batch norm times a, next weights by 1 / a",
}
SAME = 0.01
NAMES = {"full": "full space", "random": "random subspaces"}


class Config(NamedTuple):
    """Sharpness under maps that leave the function unchanged."""

    training: Training = Training(num_seeds=2)
    factors: tuple[float, ...] = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    """c and a"""
    epsilon: float = 1e-3
    """of the sharpness"""
    max_evaluations: int = 24
    """gradients to spend on each maximum"""
    num_draws: int = 2
    """matrices A"""
    examples: int = 500
    """training examples for the audit, and on which logits are compared"""
    repeats: int = 3
    """keys for each measure in the audit"""


CONFIG = Config()
SMOKE = CONFIG._replace(
    training=Training(num_seeds=1, train_size=400, epochs=2),
    factors=(0.1, 1.0, 10.0),
    max_evaluations=3,
    num_draws=1,
    examples=100,
    repeats=2,
)


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> records.Run:
    """Measure and record: a row for each minimum, and one for the audit, of the first LB minimum."""
    if 1.0 not in config.factors or not all(0 < factor < math.inf for factor in config.factors):
        raise ValueError(f"factors is {config.factors}; each must be above 0, and one must be 1")
    setting, ds = training.begin(config.training, data_dir)
    model = training.model(setting, ds)
    loss = training.loss(setting, model, ds)
    logits = partial(_logits, model.apply, ds.x_train[: config.examples])
    audit = training.row(setting, ds, "audit", 0)
    rows = 2 * setting.num_seeds + 1
    asked = command.flat(config._replace(training=setting))
    with records.opened("reparametrise", asked, out, fresh=fresh) as run:
        for seed in range(setting.num_seeds):
            done = all(run.has(training.row(setting, ds, method, seed)) for method in ("SB", "LB"))
            if done and (seed or run.has(audit)):
                continue
            pair = training.pair(setting, model, ds, seed, run.store)
            for method, minimum in pair.items():
                row = training.row(setting, ds, method, seed)
                if not run.has(row):
                    maps = _curves(config, setting, loss, logits, minimum.params, seed)
                    run.add({**row, "maps": maps, "maximiser": ascent.ASCENT_VERSION})
                    command.say_what_is_left(run, rows)
            if seed == 0 and not run.has(audit):
                some = data.head(ds, min(config.examples, len(ds.x_train)))
                found = _audit(config, setting, model, some, pair["LB"].params)
                run.add({**audit, "audit": found, "maximiser": ascent.ASCENT_VERSION})
        return run


@report.apart
def figures(rows: list[records.Row]) -> list[report.Section]:
    """Sharpness of one function under maps of its parameters, and the audit."""
    return [section for section in (_reparametrised(rows), _audited(rows)) if section is not None]


def _moved(params: PyTree, name: str, factor: float) -> PyTree:
    """The same function: what is before, or what is behind, each batch norm scaled."""
    layers = symmetry.chain(params)
    if name == MAPS[0]:
        return symmetry.scale_before_norm(
            params, layers, [factor] * sum(layer.norm is not None for layer in layers)
        )
    return symmetry.rescale(params, layers, [factor] * (len(layers) - 1))


def _curves(
    config: Config, setting: Training, f: Callable, logits: Callable, params: PyTree, seed: int
) -> list[dict[str, Any]]:
    """Sharpness of the images under each map."""
    how: Any = {"epsilon": config.epsilon, "max_evaluations": config.max_evaluations}
    of_full, of_random = (training.key_of(setting, seed, space) for space in ("full", "random"))
    own = logits(params)
    found = []
    for name in MAPS:
        for factor in config.factors:
            image = _moved(params, name, factor)
            change = jnp.abs(logits(image) - own).max() / jnp.abs(own).max()
            full = sharpness.full_space(f, image, of_full, **how)
            random = sharpness.random_subspaces(f, image, of_random, num_draws=config.num_draws, **how)
            found.append(
                {
                    "map": name,
                    "factor": factor,
                    "logits_change": change,
                    "loss": full.base_loss,
                    "full": full.value,
                    "random": random.mean,
                    "draws": random.value,
                }
            )
    return found


def _audit(
    config: Config, setting: Training, model: Any, some: data.Dataset, params: PyTree
) -> list[dict[str, Any]]:
    """Every measure against every map."""
    x, y = some.x_train, some.y_train
    f = objective.over_dataset(model.apply, x, y, chunk=setting.chunk)
    both = objective.loss_and_accuracy(model.apply, x, y, chunk=setting.chunk)
    layers = symmetry.chain(params)
    sizes = [params[layer.kernel[0]]["kernel"].shape[-1] for layer in layers[:-1]]
    of_orders, of_vectors = (
        jax.random.split(training.key_of(setting, 0, p), len(sizes)) for p in ("orders", "vectors")
    )
    orders = [jax.random.permutation(k, n) for k, n in zip(of_orders, sizes, strict=True)]
    vectors = [jnp.exp(jax.random.normal(k, (n,))) for k, n in zip(of_vectors, sizes, strict=True)]
    alphas = [4.0, 0.5, *[1.0] * (len(sizes) - 2)]
    error = partial(_error, both)
    every: dict[str, Callable] = {
        "training loss": lambda p, k: f(p),
        "sharpness, full space": lambda p, k: sharpness.full_space(f, p, k, epsilon=config.epsilon).value,
        "sharpness, random subspaces": lambda p, k: (
            sharpness.random_subspaces(f, p, k, epsilon=config.epsilon, num_draws=1).mean
        ),
        "worst case l2 (SAM)": partial(measures.worst_case, f),
        "worst case l2, adaptive (ASAM)": partial(measures.worst_case, f, rho=0.5, adaptive=True),
        "worst case l-inf": partial(measures.worst_case_linf, f),
        "worst case l-inf, adaptive": partial(measures.worst_case_linf, f, rho=0.01, adaptive=True),
        "average case": partial(measures.average_case, f, num_samples=200),
        "average case, adaptive": partial(measures.average_case, f, rho=0.1, adaptive=True, num_samples=200),
        "Hessian, top eigenvalue": lambda p, k: hessian.eigenpairs(f, p, k).values[0],
        "Hessian, trace": partial(hessian.trace, f, num_samples=20),
        "Fisher trace": lambda p, k: measures.fisher_trace(model.apply, p, x, k, num_samples=100),
        "relative flatness, last layer": lambda p, k: measures.relative_flatness(
            f, p, k, layer=layers[-1].kernel, num_samples=200
        ),
        "PAC-Bayes 1 / sigma^2": lambda p, k: measures.pac_bayes_sigma(error, p, k, steps=10) ** -2,
        "PAC-Bayes 1 / sigma^2, adaptive": lambda p, k: (
            measures.pac_bayes_sigma(error, p, k, adaptive=True, steps=10) ** -2
        ),
        "length of the parameters": lambda p, k: optax.tree.norm(p),
    }
    maps = {
        "alpha-scale": lambda p: symmetry.rescale(p, layers, np.cumprod(alphas).tolist()),
        "per neuron": lambda p: symmetry.rescale(p, layers, vectors),
        "before batch norm": lambda p: _moved(p, MAPS[0], 3.0),
        "permutation": lambda p: symmetry.permute(p, layers, orders),
    }
    key = training.key_of(setting, 0, "audit")
    return [one._asdict() for one in symmetry.audit(every, maps, params, key, repeats=config.repeats)]


def _error(loss_and_accuracy: Callable, params: PyTree) -> Array:
    return 1 - loss_and_accuracy(params)[1]


def _logits(apply: Callable, x: Array, params: PyTree) -> Array:
    return apply(params, objective.scale(x))


def _reparametrised(rows: Sequence[records.Row]) -> report.Section | None:
    """Sharpness of one function under maps of its parameters."""
    runs = [row for row in rows if row.get("maps")]
    if not runs:
        return None
    said = [_kept(runs)]
    runs = [{**row, "maps": unchanged(row["maps"])} for row in runs]
    panels = []
    for space, space_words in NAMES.items():
        for name, words in WORDS.items():
            lines = []
            for method in ("SB", "LB"):
                curves = []
                for row in [r for r in runs if r["method"] == method]:
                    points = [one for one in row["maps"] if one["map"] == name]
                    curves.append(([one["factor"] for one in points], [positive(one[space]) for one in points]))
                lines += plots.seeds(curves, method, method, marker="o" if method == "SB" else "s")
            panels.append(plots.Panel(space_words, words, "sharpness (% of 1 + f)", lines, log_x=True, log_y=True))
    for space, words in NAMES.items():
        up, down = [], []
        for row in runs:
            own, values = values_of(row["maps"], space)
            if own is not None:
                up.append(math.exp(stats.log_ratio(max(values), own)))
                down.append(math.exp(stats.log_ratio(own, min(values))))
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
    return report.Section(title, said, figure=plots.panels(panels), caption=caption, name="reparametrised")


def _audited(rows: Sequence[records.Row]) -> report.Section | None:
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
    return report.Section(
        "Which measures survive which maps", said, figure=figure, caption=caption, name="audited"
    )


def _range(values: Sequence[float]) -> str:
    return f"{_round(min(values))} to {_round(max(values))}" if values else "-"


def _round(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def unchanged(maps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The images whose logits stay the same."""
    return [one for one in maps if (change := number(one["logits_change"])) is not None and change <= SAME]


def values_of(maps: Sequence[dict[str, Any]], space: str) -> tuple[float | None, list[float]]:
    """The sharpness of a minimum, and that of it and of its images, where they are finite."""
    values = [value for one in maps if (value := number(one[space])) is not None]
    return next((number(one[space]) for one in maps if one["factor"] == 1), None), values


def _kept(runs: Sequence[records.Row]) -> str:
    every = [one for row in runs for one in row["maps"]]
    kept = unchanged(every)
    largest = max(one["logits_change"] for one in kept)
    return (
        f"In {len(kept)} of {len(every)} images the logits stay the same to {largest:.1g} of the largest. In "
        "the others small weights meet the epsilon in a batch norm's variance and the logits change by more than "
        f"{SAME:g}; those are left out."
    )


def _turned(runs: Sequence[records.Row], space: str) -> tuple[int, int]:
    """Pairs whose order can be turned round by mapping one of the two, and all pairs."""
    turned = pairs = 0
    for seed in {row["seed"] for row in runs}:
        both = [values_of(row["maps"], space) for row in runs if row["seed"] == seed]
        known = sorted((own, values) for own, values in both if own is not None)
        if len(known) == 2:
            (low, of_low), (high, of_high) = known
            pairs += 1
            turned += max(of_low) > high or min(of_high) < low
    return turned, pairs


def _open_question(runs: Sequence[records.Row]) -> str:
    """What the numbers say of the question that Dinh et al. left open."""
    changed = factors = 0
    ratios = []
    for row in runs:
        maps = [one for one in row["maps"] if number(one["random"]) is not None]
        if (own := next((one for one in maps if one["factor"] == 1), None)) is None:
            continue
        largest = max(maps, key=lambda one: one["random"])
        ratios.append(math.exp(stats.log_ratio(largest["random"], own["random"])))
        for a, b in zip(own["draws"], largest["draws"], strict=True):
            factors += 1
            changed += b > 10 * a
    return (
        "Dinh et al. could not show the problem for random subspaces. Here, at each minimum, the map that raises "
        f"the mean over the draws of A most raises it by factors of {_range(ratios)} ({len(ratios)} minima). "
        f"Under that map the same draw of A finds the same function more than ten times as sharp in {changed} of "
        f"{factors} draws. The map was chosen by these draws, so this is what was seen, not a test."
    )


def _cell(verdict: str, factor: float | None) -> str:
    if verdict == "unchanged":
        return "·"
    if verdict == "not resolved" or factor is None:
        return "?"
    return f"× {factor:.2g}" if factor < 1000 else f"× {factor:.0e}"


if __name__ == "__main__":
    command.main("reparametrise", run, figures, CONFIG, __doc__)
