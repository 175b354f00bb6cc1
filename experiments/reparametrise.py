"""Is a measure fooled by reparametrisation? The same function is made to look sharper (Dinh et al. 2017).

    make exp-reparametrise
    make exp-reparametrise ARGS="--dataset mnist"

There are two maps that leave the function as it is. One multiplies the weights before each batch norm by c. The
other multiplies the scale and bias of each batch norm by a, and divides the weights behind them by a. Both are
applied to SB and LB minima, and sharpness is measured in the full space and in random subspaces, for which Dinh et
al. "have not been able to show a similar problem". Then an audit shows which maps leave which measures unchanged.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from experiments.lib import command, settings
from experiments.lib.claims import Claim
from experiments.lib.maps import MAPS, moved
from experiments.lib.settings import Problem, Training
from gengap import data, flat, hessian, measures, objective, plots, records, report, sharpness, stats, symmetry
from gengap.comparison import Metric, measure
from gengap.records import Row
from gengap.report import number, plain, positive

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
    """scale factors of the maps, c and a"""
    metric: Metric = Metric(epsilons=(1e-3,), num_draws=2)
    """Sharpness (Metric 2.1). The report uses the first epsilon."""
    examples: int = 500
    """number of training examples for the audit and the comparison of logits"""
    repeats: int = 3
    """number of random keys per measure in the audit"""


CONFIG = Config()
SMOKE = CONFIG._replace(
    training=Training(num_seeds=1, train_size=400, epochs=2),
    factors=(0.1, 1.0, 10.0),
    metric=Metric(epsilons=(1e-3,), num_draws=1, max_evaluations=3),
    examples=100,
    repeats=2,
)


def cells(config: Config) -> list[records.Cell]:
    """One for each minimum, map and factor, and one for the audit of the first LB minimum."""
    minima = settings.cells_of(config.training)
    images = [{**cell, "map": name, "factor": c} for cell in minima for name in MAPS for c in config.factors]
    return [*images, {**minima[1], "map": "audit"}]


def row(config: Config, cell: records.Cell, store: Path) -> Row:
    """Sharpness of the image of a minimum under a map; or every measure under every map."""
    training, seed = config.training, cell["seed"]
    problem = settings.problem(training, cell["network"])
    params = settings.pair(training, cell["network"], seed, store)[cell["side"]].params
    if cell["map"] == "audit":
        some = data.head(problem.ds, min(config.examples, len(problem.ds.x_train)))
        return {"audit": _audit(config, problem, some, params)}
    image = moved(params, cell["map"], cell["factor"])
    x = objective.scale(problem.ds.x_train[: config.examples])
    before, after = problem.model.apply(params, x), problem.model.apply(image, x)
    change = jnp.abs(after - before).max() / jnp.abs(before).max()
    label, key = settings.label(training, cell), settings.measure_key(training, seed)
    return {"logits_change": change, **measure(problem.loss, image, key, config.metric, progress=label)}


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each minimum, map and factor, and one for the audit; the options are those of `records.fill`."""
    if 1.0 not in config.factors or not all(0 < factor < math.inf for factor in config.factors):
        raise ValueError(f"factors is {config.factors}; each must be above 0, and one must be 1")
    config = config._replace(training=settings.resolved(config.training))
    settings.check_metric(config.training, config.metric)

    def seconds(left: Sequence[records.Cell]) -> float:
        gradients = len(left) * config.metric.gradients
        return settings.seconds(
            config.training, gradients=gradients, epochs=2 * config.training.num_seeds * config.training.epochs
        )

    return records.fill("reparametrise", config, cells(config), row, out, seconds=seconds, **options)


@report.apart
def figures(rows: list[Row]) -> list[report.Section]:
    """Sharpness of one function under maps of its parameters, and the audit."""
    return [section for section in (_reparametrised(rows), _audited(rows)) if section is not None]


def _audit(config: Config, problem: Problem, some: data.Dataset, params: PyTree) -> list[dict[str, Any]]:
    """Every measure against every map."""
    x, y, apply, chunk = some.x_train, some.y_train, problem.model.apply, config.training.chunk
    epsilon = config.metric.epsilons[0]
    f = objective.over_dataset(apply, x, y, chunk=chunk)
    error = partial(_error, objective.loss_and_accuracy(apply, x, y, chunk=chunk))
    key_for = partial(flat.key_for, settings.measure_key(config.training, 0))
    layers = symmetry.chain(params)
    sizes = [params[layer.kernel[0]]["kernel"].shape[-1] for layer in layers[:-1]]
    order_keys, vector_keys = (jax.random.split(key_for(p), len(sizes)) for p in ("orders", "vectors"))
    orders = [jax.random.permutation(k, n) for k, n in zip(order_keys, sizes, strict=True)]
    vectors = [jnp.exp(jax.random.normal(k, (n,))) for k, n in zip(vector_keys, sizes, strict=True)]
    alphas = [4.0, 0.5, *[1.0] * (len(sizes) - 2)]
    audited: dict[str, Callable] = {
        "training loss": lambda p, k: f(p),
        "sharpness, full space": lambda p, k: sharpness.full_space(f, p, k, epsilon=epsilon).value,
        "sharpness, random subspaces": lambda p, k: (
            sharpness.random_subspaces(f, p, k, epsilon=epsilon, num_draws=1).mean
        ),
        "worst case l2 (SAM)": partial(measures.worst_case, f),
        "worst case l2, adaptive (ASAM)": partial(measures.worst_case, f, rho=0.5, adaptive=True),
        "worst case l-inf": partial(measures.worst_case_linf, f),
        "worst case l-inf, adaptive": partial(measures.worst_case_linf, f, rho=0.01, adaptive=True),
        "average case": partial(measures.average_case, f, num_samples=200),
        "average case, adaptive": partial(measures.average_case, f, rho=0.1, adaptive=True, num_samples=200),
        "Hessian, top eigenvalue": lambda p, k: hessian.eigenpairs(f, p, k).values[0],
        "Hessian, trace": partial(hessian.trace, f, num_samples=20),
        "Fisher trace": lambda p, k: measures.fisher_trace(apply, p, x, k, num_samples=100),
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
        "before batch norm": lambda p: moved(p, MAPS[0], 3.0),
        "permutation": lambda p: symmetry.permute(p, layers, orders),
    }
    verdicts = symmetry.audit(audited, maps, params, key_for("audit"), repeats=config.repeats)
    return [verdict._asdict() for verdict in verdicts]


def _error(loss_and_accuracy: Callable, params: PyTree) -> Array:
    return 1 - loss_and_accuracy(params)[1]


def _reparametrised(rows: list[Row]) -> report.Section | None:
    """Sharpness of one function under maps of its parameters."""
    images = [row for row in rows if row.get("logits_change") is not None]
    if not images:
        return None
    kept = unchanged(images)
    panels = []
    for space, space_words in NAMES.items():
        for name, words in WORDS.items():
            lines = []
            for side in settings.SIDES:
                of_side = [row for row in kept if row["map"] == name and row["side"] == side]
                seeds = sorted({row["seed"] for row in of_side})
                points = [[row for row in of_side if row["seed"] == seed] for seed in seeds]
                curves = [([r["factor"] for r in p], [positive(_sharpness(r, space)) for r in p]) for p in points]
                lines += plots.seeds(curves, side, side, marker="o" if side == "SB" else "s")
            title = f"{space_words}, {stats.where(images[0])}"
            panels.append(plots.Panel(title, words, plots.SHARPNESS, lines, log_x=True, log_y=True))
    findings = [_kept(images, kept)]
    for (space, words), claim in zip(NAMES.items(), claims(rows), strict=True):
        ranges = [(min(values), value, max(values)) for value, values in _minima(kept, space).values()]
        up = [math.exp(stats.log_ratio(high, value)) for _, value, high in ranges]
        down = [math.exp(stats.log_ratio(value, low)) for low, value, _ in ranges]
        turned, pairs = _turned(kept, space)
        findings += [
            f"{words.capitalize()}: at most the maps make the same function {_range(up)} times sharper and "
            f"{_range(down)} times flatter ({len(up)} minima). They make it ten times sharper: {claim.verdict}.",
            f"There, mapping one of the two minima reverses the order of SB and LB in {turned} of {pairs} pairs.",
        ]
    findings += _open_question(kept)
    caption = (
        "Every point on a line is the same function, evaluated on the training set. Above: full space; below: "
        "random subspaces."
    )
    title = "The same function, sharper and flatter (Dinh et al. 2017)"
    return report.Section(title, findings, figure=plots.panels(panels), caption=caption, name="reparametrised")


def claims(rows: list[Row]) -> list[Claim]:
    """Dinh et al.: the same function can be made ten times sharper. Of each seed the lesser factor counts."""
    claims = []
    for space in NAMES:
        minima = _minima(unchanged(rows), space)
        ratios = {place: stats.log_ratio(max(values), value) for place, (value, values) in minima.items()}
        least = [min(ratios[place] for place in ratios if place[0] == seed) for seed in {s for s, _ in ratios}]
        ends = [plain(math.exp(end(ratios.values()))) for end in (min, max)] if ratios else []
        verdict = stats.verdict([ratio - math.log(10) for ratio in least])
        words = f"the same function can be made ten times sharper, {NAMES[space]}"
        here = f"{' to '.join(ends)} times" if ends else ""
        claims.append(Claim("Dinh et al.", words, {}, here, [verdict]))
    return claims


def _audited(rows: Sequence[Row]) -> report.Section | None:
    """Which maps leave which measures unchanged."""
    verdicts = next((row["audit"] for row in rows if row.get("audit")), None)
    if not verdicts:
        return None
    measures = list(dict.fromkeys(entry["measure"] for entry in verdicts))
    maps = list(dict.fromkeys(entry["symmetry"] for entry in verdicts))
    cells = {
        (entry["measure"], entry["symmetry"]): (entry["verdict"], number(entry["factor"])) for entry in verdicts
    }
    table = {"measure": measures} | {s: [_cell(*cells[m, s]) for m in measures] for s in maps}
    invariant = [m for m in measures if all(cells[m, s][0] == "unchanged" for s in maps)]
    moved = [m for m in measures if any(cells[m, s][0] == "changed" for s in maps)]
    findings = [
        f"All maps leave these unchanged: {'; '.join(invariant) or 'none'}.",
        f"At least one map changes these: {'; '.join(moved) or 'none'}.",
    ]
    title = "Which maps change which measures, and by what factor, though the function stays the same"
    return report.Section(title, findings, report.frame(table), name="audited")


def _range(values: Sequence[float]) -> str:
    return f"{_round(min(values))} to {_round(max(values))}" if values else "-"


def _round(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def unchanged(rows: Sequence[Row]) -> list[Row]:
    """The mapped minima whose logits stay the same."""
    return [row for row in rows if (change := number(row.get("logits_change"))) is not None and change <= SAME]


def _sharpness(row: Row, space: str) -> float | None:
    """At the one epsilon of the row."""
    name = next((name for name in row if name.startswith(f"sharpness_{space}_")), "")
    return number(row.get(name))


def _minima(rows: Sequence[Row], space: str) -> dict[tuple[int, str], tuple[float, list[float]]]:
    """By seed and side, the sharpness of each minimum, and the finite ones of all that it is mapped to."""
    minima = {}
    for place in dict.fromkeys((row["seed"], row["side"]) for row in rows):
        images = [row for row in rows if (row["seed"], row["side"]) == place]
        values = [value for row in images if (value := _sharpness(row, space)) is not None]
        value = next((_sharpness(row, space) for row in images if row["factor"] == 1), None)
        if value is not None:
            minima[place] = value, values
    return minima


def _kept(images: Sequence[Row], kept: Sequence[Row]) -> str:
    largest = max(row["logits_change"] for row in kept)
    return (
        f"At {len(kept)} of {len(images)} mapped minima the logits change by at most {largest:.1g} of the "
        f"largest. The others are left out: the logits change by more than {SAME:g}, because the epsilon that "
        "batch norm adds to the variance matters if weights are small."
    )


def _turned(rows: Sequence[Row], space: str) -> tuple[int, int]:
    """How many pairs have an order that mapping one of the two can reverse, and the number of all pairs."""
    turned = pairs = 0
    minima = _minima(rows, space)
    for seed in {seed for seed, _ in minima}:
        of_seed = sorted(values for (s, _), values in minima.items() if s == seed)
        if len(of_seed) == 2:
            (low, of_low), (high, of_high) = of_seed
            pairs += 1
            turned += max(of_low) > high or min(of_high) < low
    return turned, pairs


def _open_question(rows: Sequence[Row]) -> list[str]:
    """What the numbers say about the question that Dinh et al. left open."""
    changed = draws = 0
    ratios = []
    for place in dict.fromkeys((row["seed"], row["side"]) for row in rows):
        images = [row for row in rows if (row["seed"], row["side"]) == place]
        known = [(value, row) for row in images if (value := _sharpness(row, "random")) is not None]
        same = next(((value, row) for value, row in known if row["factor"] == 1), None)
        if same is None:
            continue
        largest = max(known, key=lambda image: image[0])
        ratios.append(math.exp(stats.log_ratio(largest[0], same[0])))
        for a, b in zip(_draws(same[1]), _draws(largest[1]), strict=True):
            draws += 1
            changed += b > 10 * a
    return [
        "Dinh et al. could not show this for random subspaces.",
        "Here the map that raises the mean over the draws of A most raises it by a factor of "
        f"{_range(ratios)} ({len(ratios)} minima).",
        f"Under that map the same function is more than ten times as sharp in {changed} of {draws} draws. The map "
        "was chosen on these draws, so they do not test it.",
    ]


def _draws(row: Row) -> list[float]:
    return next(row[name] for name in row if name.startswith("sharpness_random_") and name.endswith("_draws"))


def _cell(verdict: str, factor: float | None) -> str:
    if verdict == "unchanged":
        return "unchanged"
    if verdict == "not resolved" or factor is None:
        return "not resolved"
    return f"× {factor:.2g}" if factor < 1000 else f"× {factor:.0e}"


if __name__ == "__main__":
    command.main("reparametrise", run, figures, CONFIG, __doc__)
