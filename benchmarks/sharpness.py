"""How high a maximiser of Metric 2.1 gets with so many gradients: the anytime curve, against others.

    make bench

Value over the best known against 3 to 48 gradients, in the full space and in random subspaces, for the scheme of
`gengap.ascent`, APGD (Croce and Hein 2020), projected sign ascent, and SciPy's L-BFGS-B with the loss as it is and
times 10,000. The minima are small- and large-batch ones of four networks on 512 digits; nothing was tuned on them.
"Best known" is the best over 40 ascents of 48 gradients from as many starts, and SciPy from five: a converged
SciPy is no yardstick, since it is often in a low basin. Every cell is kept as it comes, and a second call goes on.
Prints tables, and draws `anytime.svg` beside the numbers.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import common
from gengap import (
    ascent,
    data,
    flat,
    metric,
    models,
    objective,
    plots,
    program,
    records,
    sharpness,
    starts,
    subspace,
)

EPSILONS = (1e-3, 5e-4)
BUDGETS = (3, 6, 12, 24, 48)
METHODS = ("scheme", "APGD", "sign ascent", "SciPy", "SciPy, loss times 1e4")
NAMES = dict(zip(METHODS, ("gengap", *METHODS[1:-1], "SciPy, loss × 10 000"), strict=True))
COLOURS = ("#333333", "#7a5195", "#5a9e6f", "#b5651d", "#999999")
SPACES = {"full": "full space", "random": "random subspaces"}
DIM = 100
KEY = jax.random.key(0)


class Plain(nn.Module):
    """Three layers of ReLUs without batch norm."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(len(x), -1)
        for _ in range(3):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


class Convolutional(nn.Module):
    """Two 3x3 convolutions with batch norm and pooling, and one dense layer."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for channels in (self.width, 2 * self.width):
            x = nn.BatchNorm(use_running_average=False)(nn.Conv(channels, (3, 3))(x))
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


@lru_cache  # what was compiled for a model is found by its functions
def _own(network: Any) -> models.Model:
    def init(key: Array, x: Array) -> Any:
        return network.init(key, x)["params"]

    def apply(params: Any, x: Array) -> Any:
        return network.apply({"params": params}, x, mutable=["batch_stats"])[0]

    return models.Model(init, apply, name=f"{type(network).__name__} {network.width}")


NETWORKS: dict[str, Callable[[int], models.Model]] = {
    "F1, narrow": lambda width: models.dense(10, widths=(width // 2,) * 5),
    "F1": lambda width: models.dense(10, widths=(width,) * 5),
    "without batch norm": lambda width: _own(Plain(width)),
    "convolutional": lambda width: _own(Convolutional(width // 16)),
}


def main(
    out: Path = Path("results/bench"),
    networks: tuple[str, ...] = tuple(NETWORKS),
    seed: int = 12,
    width: int = 128,
    images: int = 512,
    draws: int = 10,
    ascents: int = 40,
    starts: int = 5,
    budgets: tuple[int, ...] = BUDGETS,
) -> None:
    """Measure what `out` does not hold yet, and print the table.

    Args:
      out: the directory of the results.
      networks: on which.
      seed: of the minima.
      width: of F1's layers.
      images: digits, from the first.
      draws: subspaces of each minimum.
      ascents: behind the best known value, besides SciPy's.
      starts: of SciPy behind the best known value.
      budgets: gradients, the one at x left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "anytime.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machine": common.machine()}
    ds = data.head(data.load("digits"), images)
    work = [(network, method) for network in networks for method in ("SB", "LB")]
    with tqdm(total=len(work) * len(EPSILONS) * (draws + 1), unit="cell") as bar:
        for network in networks:
            model = NETWORKS[network](width)
            pair = common.pair(model, ds, seed=seed, store=out.parent / "minima")
            loss = objective.over_dataset(model.apply, ds.x_train, ds.y_train)
            for method, minimum in zip(("SB", "LB"), pair, strict=True):
                for name, cell in _cells(loss, minimum.params, draws, ascents, starts, budgets):
                    name = f"{network}, {method}, {name}"
                    if name not in found:
                        found[name] = cell()
                        records.write_json(path, found)
                    bar.update()
    _print(found, budgets)
    (out / "anytime.svg").write_bytes(plots.image(_draw(found, budgets)))


def _cells(loss: Callable, params: Any, draws: int, *how: Any) -> Any:
    """Each space and epsilon with what measures it."""
    f, x, _ = flat.of(loss, params)
    evaluate = program.compiled(partial(metric.evaluate_at, f))
    in_full = partial(evaluate, x, None)
    base, slope = in_full(jnp.zeros_like(x))

    @lru_cache
    def directions(epsilon: float) -> Array:
        return starts.directions(in_full, x, slope, KEY, epsilon, DIM, 6)

    for epsilon in EPSILONS:

        def full(epsilon: float = epsilon) -> Any:
            radius = sharpness.box(x, None, epsilon)
            begin = partial(starts.in_full_space, in_full, radius, slope)
            return _cell(evaluate, x, None, (base, slope), epsilon, begin, *how)

        def drawn(i: int, epsilon: float = epsilon) -> Any:
            A = subspace.draw(sharpness.draw_keys(KEY, draws)[i], len(x), DIM)
            centre = base, subspace.transpose_times(A, slope)
            corners = jnp.sign(jax.vmap(partial(subspace.transpose_times, A))(directions(epsilon)))
            return _cell(evaluate, x, A, centre, epsilon, lambda n: (corners, n), *how, i)

        yield f"full, {epsilon}", full
        for i in range(draws):
            yield f"random {i}, {epsilon}", partial(drawn, i)


def _cell(
    evaluate: Callable,
    x: Array,
    A: Any,
    centre: tuple[Array, Array],
    epsilon: float,
    begin: Callable[[int], tuple[Array, int]],
    ascents: int,
    starts: int,
    budgets: Sequence[int],
    draw: int = 0,
) -> dict[str, Any]:
    """Every method at every budget, and the best known value, as sharpness."""
    r = sharpness.box(x, A, epsilon)
    evaluate, key = partial(evaluate, x, A), jax.random.fold_in(jax.random.split(KEY, 4)[1], draw)
    values: dict[str, list[float]] = {method: [] for method in METHODS}
    for budget in budgets:
        corners, left = begin(budget)
        top = ascent.maximise(evaluate, r, centre, corners, key, max_evaluations=left)
        values["scheme"].append(float(top.value))
        values["APGD"].append(apgd(evaluate, r, centre, budget))
        values["sign ascent"].append(sign_ascent(evaluate, r, centre, budget))
    for method, factor in (("SciPy", 1.0), ("SciPy, loss times 1e4", 1e4)):
        seen = _record(evaluate, r, jnp.zeros_like(r), max(budgets), factor)
        values[method] = [max(seen[:budget], default=float(centre[0])) for budget in budgets]
    random = jax.random.rademacher(jax.random.key(7), (ascents, *r.shape), r.dtype)
    tops = [
        float(ascent.maximise(evaluate, r, centre, start[None], jax.random.key(i), max_evaluations=48).value)
        for i, start in enumerate(random)
    ]
    for i in range(starts):
        box = jax.random.uniform(jax.random.key(i), r.shape, r.dtype, -1.0, 1.0)
        tops.append(max(_record(evaluate, r, r * box * (i > 0), 200, 1e4)))
    best = max(tops + [value for row in values.values() for value in row])
    phi = partial(_phi, base=float(centre[0]))
    return {"best known": phi(best), **{method: list(map(phi, row)) for method, row in values.items()}}


def _record(evaluate: Callable, r: Array, start: Array, most: int, factor: float) -> list[float]:
    """The values that SciPy sees."""
    seen: list[float] = []

    def recorded(y: Any) -> tuple[Array, Array]:
        value, slope = evaluate(jnp.asarray(y))
        seen.append(float(value))
        return value, slope

    ascent.scipy_lbfgsb(recorded, r, start, max_iterations=most, max_evaluations=most, factor=factor)
    return seen


def apgd(evaluate: Callable, r: Array, centre: tuple[Array, Array], budget: int) -> float:
    """Auto-PGD for an l-infinity ball, from its centre (Croce and Hein 2020, algorithm 1)."""
    r, slope = np.asarray(r), np.asarray(centre[1])
    before = here = best_point = np.zeros_like(r)
    value = best = float(centre[0])
    step, alpha, rises = 2.0, 1.0, 0
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    checkpoints = {math.ceil(share * budget) for share in shares[1:]}
    best_slope, last, last_best, last_step = slope, 0, best, step
    for i in range(1, budget + 1):
        z = np.clip(here + step * np.sign(slope), -1, 1)
        there = np.clip(here + alpha * (z - here) + (1 - alpha) * (here - before), -1, 1)
        before, here, alpha, old = here, there, 0.75, value
        found, slope = (np.asarray(a) for a in evaluate(jnp.asarray(r * here)))
        value, rises = float(found), rises + (float(found) > old)
        if value > best:
            best, best_point, best_slope = value, here, slope
        if i in checkpoints:
            if rises < 0.75 * (i - last) or (step == last_step and best == last_best):
                step, here, before, slope, value = step / 2, best_point, best_point, best_slope, best
            else:
                last_step = step
            last, last_best, rises = i, best, 0
    return best


def sign_ascent(evaluate: Callable, r: Array, centre: tuple[Array, Array], budget: int) -> float:
    """Projected sign ascent from the centre, with steps of 2.5 / budget (Madry et al. 2018)."""
    here, slope, best = jnp.zeros_like(r), centre[1], float(centre[0])
    for _ in range(budget):
        here = jnp.clip(here + 2.5 / budget * jnp.sign(slope), -1, 1)
        value, slope = evaluate(r * here)
        best = max(best, float(value))
    return best


def _phi(top: float, base: float) -> float:
    return 100 * (top - base) / (1 + base)


def _shares(found: dict[str, Any], *words: str) -> dict[str, np.ndarray]:
    """Method -> values over the best known, `[cells, budgets]`, of cells with all these words in their name."""
    cells = [cell for name, cell in found.items() if all(word in name for word in words)]
    return {m: np.array([cell[m] for cell in cells]) / [[cell["best known"]] for cell in cells] for m in METHODS}


def _print(found: dict[str, Any], budgets: Sequence[int]) -> None:
    for space, title in SPACES.items():
        shares = _shares(found, f", {space}")
        count = len(shares["scheme"])
        print(f"\nvalue over the best known, {title}, {count} cells: mean (least) with {budgets} gradients")
        for method, rows in shares.items():
            columns = zip(rows.mean(0), rows.min(0), strict=True)
            print(f"  {method:22}" + "".join(f"  {mean:.3f} ({least:.2f})" for mean, least in columns))
    print("\nmean over the draws of a minimum, scheme | APGD")
    drawn = [name.rsplit(", ", 2) for name in found if ", random" in name]
    for minimum, epsilon in dict.fromkeys((minimum, epsilon) for minimum, _, epsilon in drawn):
        shares = _shares(found, f"{minimum}, random", f", {epsilon}")
        columns = zip(shares["scheme"].mean(0), shares["APGD"].mean(0), strict=True)
        print(f"  {minimum + ', ' + epsilon:34}" + "".join(f"  {ours:.3f} | {apgd:.3f}" for ours, apgd in columns))


def _draw(found: dict[str, Any], budgets: Sequence[int]) -> Figure:
    """Means over the cells above, the least of them below; the markers of each method stand a little aside."""
    panels = []
    for words, reduced in (("mean", np.mean), ("least", np.min)):
        for space, title in SPACES.items():
            lines = []
            for k, (method, rows) in enumerate(_shares(found, f", {space}").items()):
                x = np.array(budgets) * 1.04 ** (k - 2)
                lines.append(plots.Line(x, reduced(rows, axis=0), NAMES[method], COLOURS[k], marker="^vDPX"[k]))
            title = f"{title}, {words} of {len(rows)} cells"
            label = "value over the best known\nhigher is better"
            panels.append(plots.Panel(title, "gradients", label, lines, log_x=True))
    figure = plots.panels(panels)
    for ax in figure.axes:
        ax.set_xticks(budgets, map(str, budgets))
        ax.set_ylim(0, 1.04)
    return figure


if __name__ == "__main__":
    common.cli(main)
