"""Sharpness in each precision on one minimum, against float64.

    python -m benchmarks.precision
    python -m benchmarks.precision --network c1 --dataset cifar10 --run results/cifar/default

The same matrix A in all. Two errors of each precision: that of its arithmetic, against float64 at the very point
that its ascent ended in; and that of the whole, against float64's own ascent, which may end elsewhere.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks import common
from experiments import digits
from gengap import ascent, data, minima, models, objective, records, sharpness, subspace


def main(
    network: Literal["f1", "c1", "c2", "c3", "c4"] = "f1",
    dataset: str = "digits",
    run: Path | None = None,
    method: Literal["SB", "LB"] = "LB",
    examples: int = 1000,
    epsilon: float = 1e-3,
    dim: int = 100,
    epochs: int | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """Print a line for each precision and space.

    Args:
      network: of the paper.
      dataset: its data set.
      run: the run directory whose minimum of seed 0 is taken; by default one is trained.
      method: which of the two minima.
      examples: of the training set, from its beginning.
      epsilon: of the box.
      dim: columns of A.
      epochs: of training where there is no run; by default those of `make exp-digits`.
      data_dir: the TFDS directory.
      out: a JSON file to write too.
    """
    ds = data.load(dataset, data_dir)
    model = getattr(models, network)(ds.num_classes)
    params = _minimum(model, ds, network.upper(), run, method, epochs)
    ds = data.head(ds, min(examples, len(ds.x_train)))
    rows: list[dict[str, Any]] = []
    for space, p in (("full", None), ("random", dim)):
        with jax.enable_x64(True):
            loss64, params64 = in_float64(model, ds.x_train, ds.y_train, params)
            fn64, radius64 = _problem(loss64, params64, p)
            reference = _ascend(fn64, epsilon * radius64)
            base = float(loss64(params64))
        best = _phi(float(reference.value), base)
        for precision in ("float32", "tensorfloat32", "bfloat16"):
            with jax.default_matmul_precision(precision):
                loss = objective.over_dataset(model.apply, ds.x_train, ds.y_train)
                fn, radius = _problem(loss, params, p)
                found = _ascend(fn, epsilon * radius)
            with jax.enable_x64(True):
                there = _phi(float(fn64(found.point.astype(jnp.float64))), base)
            value = _phi(float(found.value), float(fn(jnp.zeros_like(radius))))
            row = {"space": space, "precision": precision, "value": value, "float64 there": there, "float64": best}
            rows.append(
                row | {"error of the arithmetic": value / there - 1, "error of the whole": value / best - 1}
            )
    print(
        f"{jax.devices()[0].device_kind}, {network} on {len(ds.x_train)} of {dataset}, {method}, loss {base:.6g}"
    )
    for row in rows:
        print("  ".join(f"{name} {v:.6g}" if isinstance(v, float) else str(v) for name, v in row.items()))
    if out is not None:
        records.write_json(out, {"machine": common.machine(), "loss": base, "rows": rows})
    return rows


def _minimum(
    model: models.Model, ds: data.Dataset, name: str, run: Path | None, method: str, epochs: int | None
) -> Any:
    protocol = digits.CONFIG.protocol
    key = jax.random.key(protocol.seed)
    if run is not None:
        return records.load(run / f"minima/{name}-{method}-0.npz", minima.starting_point(model, ds, key))
    small, large = minima.find_pair(
        model,
        ds,
        key,
        small_batch=protocol.small_batch,
        large_batch=protocol.large_batch,
        epochs=epochs or protocol.epochs,
        patience=protocol.patience,
        target=protocol.target,
    )
    return (small if method == "SB" else large).params


def in_float64(model: models.Model, x: Array, y: Array, params: Any) -> tuple[Callable, Any]:
    """The loss over these images, and the parameters, in float64."""
    images = np.asarray(objective.scale(x), np.float64)
    loss = objective.over_dataset(model.apply, jnp.asarray(images), y)
    return loss, jax.tree.map(lambda a: a.astype(jnp.float64), params)


def _problem(loss: Callable, params: Any, dim: int | None) -> tuple[Callable, Any]:
    """f(x + A y), and the half-widths of its box for epsilon 1."""
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    A = None if dim is None else subspace.draw(jax.random.key(0), n, dim)
    return sharpness.restrict(loss, params, A), sharpness.box(params, A, 1.0)


def _ascend(fn: Callable, radius: Array) -> ascent.Maximum:
    look = jax.jit(jax.value_and_grad(fn))
    centre = look(jnp.zeros_like(radius))
    return ascent.maximise(look, radius, centre, jnp.sign(centre[1])[None], jax.random.key(0), max_looks=12)


def _phi(top: float, base: float) -> float:
    return 100 * (top - base) / (1 + base)


if __name__ == "__main__":
    common.cli(main)
