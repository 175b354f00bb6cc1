"""The largest eigenvalues of the Hessian of F1 on 512 digits: how exact, how many products, how many CPU seconds.

    python -m benchmarks.hessian

Against ARPACK in float64. In turn in one process: `hessian.eigenpairs`, and the power iteration with deflation of
PyHessian over the same products (at most 100 for each eigenvalue, until it changes by less than 1e-3).
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from benchmarks import common
from gengap import data, flat, hessian, models, objective, program, records


def main(
    width: int = 512, examples: int = 512, steps: int = 30, k: int = 5, rounds: int = 3, out: Path | None = None
) -> dict[str, Any]:
    """Print errors, products and CPU seconds as JSON.

    Args:
      width: of the five layers.
      examples: of the digits.
      steps: of Adam on all examples, before.
      k: eigenvalues.
      rounds: of each; the first compiles.
      out: a JSON file to write too.
    """
    ds = data.head(data.load("digits"), examples)
    model = models.dense(ds.num_classes, widths=(width,) * 5)
    loss = objective.over_dataset(model.apply, ds.x_train, ds.y_train)
    params = _trained(loss, model.init(jax.random.key(0), objective.scale(ds.x_train[:2])), steps)
    exact = _arpack(model.apply, params, np.asarray(ds.x_train), np.asarray(ds.y_train), k)
    methods = {"eigenpairs": partial(_ours, loss, params, k), "power iteration": partial(_power, loss, params, k)}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for i in range(rounds):
        for name, method in methods.items():
            begin = time.process_time()
            values, products = method(jax.random.key(i))
            seconds = time.process_time() - begin
            error = float(np.max(np.abs(values / exact - 1)))
            rows[name].append({"products": products, "relative error": error, "CPU seconds": seconds})
    result = {"machine": common.machine(), "loss": float(loss(params)), "exact": exact.tolist()} | rows
    print(json.dumps(result, indent=2))
    if out is not None:
        records.write_json(out, result)
    return result


def _trained(loss: Callable, params: Any, steps: int) -> Any:
    optimiser = optax.adam(1e-3)
    state = optimiser.init(params)

    @jax.jit
    def step(loss: Callable, params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(loss, params, state)
    return params


def _arpack(apply: Callable, params: Any, images: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    with jax.enable_x64(True):
        flat_params, tree = ravel_pytree(jax.tree.map(lambda a: np.asarray(a, np.float64), params))

        def f(x: Any, images: Any, labels: Any) -> Any:
            log_p = jax.nn.log_softmax(apply(tree(x), images))
            return -jnp.take_along_axis(log_p, labels[:, None], 1).mean()

        times = jax.jit(lambda x, v, *ds: jax.jvp(jax.grad(lambda x: f(x, *ds)), (x,), (v,))[1])
        ds = jnp.asarray(images / 255.0), jnp.asarray(labels)
        operator = scipy.sparse.linalg.LinearOperator(
            (flat_params.size,) * 2,
            lambda v: np.asarray(times(flat_params, jnp.asarray(v.ravel()), *ds)),
            dtype=float,
        )
        start = np.random.default_rng(0).standard_normal(flat_params.size)
        values = scipy.sparse.linalg.eigsh(operator, k, which="LA", v0=start, tol=1e-9, return_eigenvectors=False)
    return np.sort(values)[::-1]


def _ours(loss: Callable, params: Any, k: int, key: Any) -> tuple[np.ndarray, int]:
    pairs = hessian.eigenpairs(loss, params, key, k=k)
    return np.asarray(pairs.values, float), pairs.products


def _power(loss: Callable, params: Any, k: int, key: Any) -> tuple[np.ndarray, int]:
    f, x, _ = flat.of(loss, params)
    vectors, values, products, iterate = jnp.zeros((k, x.size)), [], 0, program.compiled(partial(_iterate, f))
    for i in range(k):
        v, before = jax.random.normal(jax.random.fold_in(key, i), x.shape), np.inf
        for _ in range(100):
            v, value = iterate(x, vectors, v)
            products += 1
            if abs(before - value) < 1e-3 * (abs(before) + 1e-6):
                break
            before = float(value)
        vectors = vectors.at[i].set(v)
        values.append(before)
    return np.asarray(values), products


def _iterate(f: Callable, x: Any, vectors: Any, v: Any) -> tuple[Any, Any]:
    v -= vectors.T @ (vectors @ v)
    v /= jnp.linalg.norm(v)
    w = jax.jvp(jax.grad(f), (x,), (v,))[1]
    return w / jnp.linalg.norm(w), v @ w


if __name__ == "__main__":
    common.cli(main)
