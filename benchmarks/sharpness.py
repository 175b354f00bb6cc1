"""How high, how many gradients, how fast, how much memory: the maximisers of Metric 2.1 against SciPy's.

    make bench

On small- and large-batch minima of F1 on the digits, three seeds, in the full space and in a random subspace:
every maximiser with 12 gradients, SciPy's L-BFGS-B with the paper's 10 iterations, and SciPy's at convergence
from the best of several starts, with its tolerances at 0 and the loss times 10,000, without which it stops far
below. Then 64 subspaces against a loop of SciPy, the time of a draw over that of its gradients, and the peak
memory of a draw with 15 million parameters. Every result is kept as it comes, and a second call goes on.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from benchmarks import common
from experiments import digits
from gengap import ascent, data, loops, minima, models, objective, records, scout, sharpness, subspace

EPSILONS = (1e-3, 5e-4)
DIM = 100
BUDGETS = (3, 12)
SOLVERS = ("ours", "SciPy")
OURS = {"corner": ascent.corner, "gradient": ascent.gradient, "L-BFGS": ascent.lbfgs}


def main(
    out: Path = Path("results/bench"),
    seeds: int = 3,
    starts: int = 5,
    budget: int = 2000,
    subspaces: int = 64,
    parameters: int = 15_000_000,
    spaces: tuple[str, ...] = ("random", "full"),
    width: int = 512,
    rounds: int = 3,
    images: int = 60_000,
) -> None:
    """Measure what `out` does not hold yet, and print it all.

    Args:
      out: the directory of the results.
      seeds: pairs of minima.
      starts: of SciPy at convergence.
      budget: gradients of SciPy at convergence, all starts together.
      subspaces: draws that are timed against a loop of SciPy.
      parameters: of the draw whose memory is measured.
      spaces: of the comparison with SciPy.
      width: of the network's five layers.
      rounds: of the timing, whose median is taken.
      images: of the size of MNIST's, random ones, on which a draw is timed too.
    """
    if not scout.budget(subspaces, min(BUDGETS)).scouts:
        raise ValueError(f"subspaces is {subspaces}; it must be at least 4, which can pay for a scout")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "bench.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep(name: str, measure: Callable[[], Any]) -> None:
        if name not in found:
            found[name] = measure()
            records.write_json(path, found)
            print(name, file=sys.stderr)

    keep("machine", common.machine)
    ds = data.load("digits")
    model = models.dense(ds.num_classes, widths=(width,) * 5)
    loss = objective.over_dataset(model.apply, ds.x_train, ds.y_train)
    for seed in range(seeds):
        names = [f"{method} {seed}" for method in ("SB", "LB")]
        if seed and all(
            f"{name} {space}, {who}" in found for name in names for space in spaces for who in SOLVERS
        ):
            continue
        for name, minimum in zip(names, _pair(model, ds, seed, out), strict=True):
            params = loops.row(minimum.params, 0)
            if name == "LB 0":
                keep("draw", partial(_draw, loss, params, min(4, subspaces), rounds))
                keep("subspaces", partial(_subspaces, loss, params, subspaces))
            for space in spaces:
                keep(f"{name} {space}, ours", partial(_ours, loss, params, space))
                keep(f"{name} {space}, SciPy", partial(_scipy, loss, params, space, starts, budget))
    x, y = common.examples("f1", images)
    params = model.init(jax.random.key(0), objective.scale(x[:2]))
    keep(f"draw, {images} images", partial(_draw, objective.over_dataset(model.apply, x, y), params, 1, 1))
    keep("memory", partial(_memory, parameters))
    _print(found)


def _pair(model: models.Model, ds: data.Dataset, seed: int, out: Path) -> tuple[minima.Minimum, minima.Minimum]:
    protocol = digits.CONFIG.protocol
    return minima.find_pair(
        model,
        ds,
        jax.random.key(protocol.seed),
        small_batch=protocol.small_batch,
        large_batch=protocol.large_batch,
        num_seeds=1,
        first_seed=seed,
        epochs=protocol.epochs,
        patience=protocol.patience,
        target=protocol.target,
        checkpoints=out / "minima",
    )


def _problem(loss: Callable, params: Any, space: str) -> tuple[Callable, Any]:
    """f(x + A y) of the first draw, and the half-widths of its box for epsilon 1."""
    A = None
    if space == "random":
        n = sum(leaf.size for leaf in jax.tree.leaves(params))
        A = subspace.draw(sharpness.draw_keys(jax.random.key(0), 1)[0], n, DIM)
    return sharpness.restrict(loss, params, A), sharpness.radius(params, A, 1.0)


def _ours(loss: Callable, params: Any, space: str) -> list[dict[str, Any]]:
    """Each maximiser for each epsilon; the corner ascent in the first of ten draws too."""
    rows = []
    for epsilon in EPSILONS:
        for name, maximiser in OURS.items():
            if space == "full":
                s = sharpness.full_space(loss, params, epsilon=epsilon, maximiser=maximiser)
            else:
                s = _measure(loss, params, 1, epsilon, 12, maximiser)
            rows.append(_row(epsilon, name, s.value.ravel()[0], s.evaluations.ravel()[0]))
        if space == "random":
            s = _measure(loss, params, 10, epsilon, 12)
            rows.append(_row(epsilon, "corner, of ten draws", s.value[0], s.evaluations[0]))
    return rows


def _scipy(loss: Callable, params: Any, space: str, starts: int, budget: int) -> list[dict[str, Any]]:
    """SciPy for each epsilon, in the subspace of the first draw."""
    fn, unit = _problem(loss, params, space)
    base = float(loss(params))
    rows = []
    for epsilon in EPSILONS:
        r = epsilon * unit
        for kind, scaled in (("raw", False), ("box", True)):
            top = ascent.scipy_lbfgsb(fn, jnp.zeros_like(r), r, scaled=scaled)
            found = {"10 iterations": (float(top.value), int(top.evaluations))}
            found["converged"] = _converged(fn, r, scaled, starts, budget)
            rows += [
                _row(epsilon, f"SciPy, {name}, {kind}", 100 * (value - base) / (1 + base), evaluations)
                for name, (value, evaluations) in found.items()
            ]
    return rows


def _row(epsilon: float, solver: str, value: Any, evaluations: Any) -> dict[str, Any]:
    return {"epsilon": epsilon, "solver": solver, "value": float(value), "evaluations": int(evaluations)}


def _converged(fn: Callable, radius: Any, scaled: bool, starts: int, budget: int) -> tuple[float, int]:
    """The best of several starts, and the gradients that they took together."""
    high = jax.tree_util.Partial(_times, fn)
    values, spent = [], 0
    for i in range(starts):
        random = jax.random.uniform(jax.random.key(i), radius.shape, radius.dtype, -1.0, 1.0)
        top = ascent.scipy_lbfgsb(
            high,
            radius * random if i else jnp.zeros_like(radius),
            radius,
            max_iterations=budget,
            max_evaluations=budget // starts,
            scaled=scaled,
        )
        values.append(float(top.value) / 1e4)
        spent += int(top.evaluations)
    return max(values), spent


def _times(fn: Callable, y: Any) -> Any:
    return 1e4 * fn(y)


def _draw(loss: Callable, params: Any, draws: int, rounds: int) -> dict[str, float]:
    """Seconds of a draw over those of its gradients, in turn in one process."""
    fn, unit = _problem(loss, params, "random")
    look = jax.jit(lambda fn, y: jax.value_and_grad(fn)(y))
    bare = jax.jit(lambda loss, params: jax.value_and_grad(loss)(params))
    draw = {
        "one": partial(_measure, loss, params, draws, 1e-3, 12),
        "two": partial(_measure, loss, params, draws, EPSILONS, 12),
    }
    gradients = {"in": lambda: look(fn, 1e-4 * unit), "without A": lambda: bare(loss, params)}
    counts = {name: int(call().evaluations.sum()) for name, call in draw.items()}
    seconds = {name: one["median"] for name, one in common.in_turn(draw | gradients, rounds).items()}
    return {
        f"draw / gradients {of} y, {name} epsilon": seconds[name] / counts[name] / seconds[of]
        for name in draw
        for of in gradients
    }


def _subspaces(loss: Callable, params: Any, count: int) -> dict[str, Any]:
    """Our maximiser and SciPy's in turn in every subspace, over one jitted objective; then ours in one call."""
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    epsilon = jnp.float32(1e-3)
    prepare = jax.jit(lambda key: (A := subspace.draw(key, n, DIM), sharpness.radius(params, A, epsilon)))
    keys = sharpness.draw_keys(jax.random.key(0), count)
    looks: dict[int, Any] = {}
    # but for the gradient at x, which the maximisers count
    shares = {budget: scout.budget(count, budget).share - 1 for budget in BUDGETS}
    seconds: dict[Any, float] = {"A": 0.0}
    values: dict[Any, list[tuple[float, int]]] = {}
    for budget in BUDGETS:
        begin, climb = _steps(loss, params, scout.budget(count, budget), budget)
        jax.block_until_ready(climb(*prepare(keys[0]), *begin(epsilon)))  # compiles
        seconds[budget], beginning = common.timed(partial(begin, epsilon))
        looks[budget] = (climb, beginning)
    A, r = prepare(keys[0])
    ascent.scipy_lbfgsb(sharpness.restrict(loss, params, A), jnp.zeros_like(r), r, max_iterations=1)  # compiles
    base = float(loss(params))
    for key in keys:
        elapsed, (A, r) = common.timed(partial(prepare, key))
        seconds["A"] += elapsed
        fn = sharpness.restrict(loss, params, A)
        solvers = {"SciPy": partial(ascent.scipy_lbfgsb, fn, jnp.zeros_like(r), r)}
        solvers |= {budget: partial(climb, A, r, *beginning) for budget, (climb, beginning) in looks.items()}
        for name, solve in solvers.items():
            elapsed, top = common.timed(solve)
            seconds[name] = seconds.get(name, 0) + elapsed
            values.setdefault(name, []).append((float(top.value), int(top.evaluations)))
    found: dict[str, Any] = {"draws": count, "A and its box, seconds": seconds["A"]}
    for name, rows in values.items():
        found[f"corner, {name} gradients" if name in BUDGETS else "SciPy, 10 iterations"] = {
            "seconds without A": seconds[name],
            "mean": 100 * (statistics.mean(value for value, _ in rows) - base) / (1 + base),
            "evaluations": statistics.mean(spent for _, spent in rows) + shares.get(name, 0),
        }
    for budget in BUDGETS:
        measure = partial(_measure, loss, params, count, 1e-3, budget)
        measure()  # compiles
        elapsed, s = common.timed(measure)
        found[f"corner, {budget} gradients"] |= {
            "seconds of one call": elapsed,
            "mean of one call": float(s.mean),
            "times as fast": (seconds["A"] + seconds["SciPy"]) / elapsed,
            "times as fast without A": seconds["SciPy"] / seconds[budget],
        }
    return found


def _steps(loss: Callable, params: Any, spend: scout.Budget, budget: int) -> tuple[Callable, Callable]:
    """What all draws share, and the ascent in one of them, each compiled."""

    @jax.jit
    def begin(epsilon: Any) -> tuple[Any, Any, Any]:
        value, slope = jax.value_and_grad(loss)(params)
        slope, _ = ravel_pytree(slope)
        fn, key = sharpness.restrict(loss, params, None), jax.random.key(1)
        return value, slope, scout.directions(fn, slope, key, dim=DIM, entry=1.0, epsilon=epsilon, spend=spend)

    @jax.jit
    def climb(A: Any, r: Any, value: Any, slope: Any, directions: Any) -> ascent.Maximum:
        return ascent.corner(
            sharpness.restrict(loss, params, A),
            jnp.zeros_like(r),
            r,
            jax.random.key(2),
            max_evaluations=1 + budget - spend.share,
            starts=jnp.stack([r * jnp.sign(subspace.transpose_times(A, d)) for d in directions]),
            known=(value, subspace.transpose_times(A, slope)),
        )

    return begin, climb


def _measure(
    loss: Callable,
    params: Any,
    draws: int,
    epsilon: Any,
    evaluations: int,
    maximiser: Callable = ascent.corner,
) -> sharpness.Sharpness:
    return sharpness.random_subspaces(
        loss,
        params,
        jax.random.key(0),
        dim=DIM,
        num_draws=draws,
        epsilon=epsilon,
        max_evaluations=evaluations,
        maximiser=maximiser,
    )


def _memory(n: int) -> dict[str, float]:
    """Gigabytes at the peak of one draw above those of the bare gradient, in a process of its own."""
    code = f"from benchmarks import sharpness; sharpness.peak({n})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def peak(n: int) -> None:
    """Print the peak memory of a gradient and of a draw with n parameters, on a Linux host, in gigabytes."""

    def most() -> float:
        # not getrusage, whose maximum is that of the parent process where that was larger
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e6

    def loss(x: Any) -> Any:
        return 1 + jnp.mean(jnp.sin(3 * x) ** 2)

    x = jnp.sin(jnp.arange(n, dtype=jnp.float32))
    jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(x))
    bare = most()
    jax.block_until_ready(_measure(loss, x, 1, 1e-3, 3))
    print(json.dumps({"parameters": n, "gradient": bare, "draw": most(), "A": 4e-9 * n * DIM}))


def _print(found: dict[str, Any]) -> None:
    for name, rows in found.items():
        if name.split()[0] not in ("SB", "LB"):
            print(name, json.dumps(rows, indent=2))
    cells: dict[tuple[str, float], dict[str, Any]] = {}
    for name, rows in found.items():
        if name.split()[0] in ("SB", "LB"):
            for row in rows:
                cells.setdefault((name.split(",")[0], row["epsilon"]), {})[row["solver"]] = row
    ratios: dict[str, list[float]] = {}
    for (name, epsilon), row in sorted(cells.items()):
        best = max(one["value"] for solver, one in row.items() if "converged" in solver)
        print(f"\n{name}, epsilon {epsilon}")
        for solver, one in row.items():
            print(f"  {solver:28} {one['value']:10.4f} {one['evaluations']:5d} {one['value'] / best:7.3f}")
            ratios.setdefault(f"{name.split()[2]}, {solver}", []).append(one["value"] / best)
    print("\nover SciPy at convergence: mean, least, cells at 0.999 or above")
    for solver, values in sorted(ratios.items()):
        reached = sum(value >= 0.999 for value in values)
        print(f"  {solver:36} {statistics.mean(values):7.3f} {min(values):7.3f} {reached:3d} of {len(values)}")


if __name__ == "__main__":
    common.cli(main)
