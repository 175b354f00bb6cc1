"""Sharpness in each precision on one minimum, against float64.

    python -m benchmarks.precision
    python -m benchmarks.precision --network c1 --dataset cifar10

The same matrix A in all. Two errors of each precision: that of its arithmetic, against float64 at the very point
that its ascent ended in; and that of the whole, against float64's own ascent, which may end elsewhere.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks import common
from gengap import ascent, data, models, objective, program, records, sharpness, subspace

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


def main(
    network: Literal["f1", "c1", "c2", "c3", "c4"] = "f1",
    dataset: str = "digits",
    side: Literal["SB", "LB"] = "LB",
    examples: int = 1000,
    epsilon: float = 1e-3,
    dim: int = 100,
    epochs: int = 100,
    store: Path = common.STORE,
    data_dir: Path | None = None,
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """Print a line for each precision and space.

    Args:
      network: of the paper.
      dataset: its data set.
      side: which of the two minima of seed 0.
      examples: of the training set, from its beginning.
      epsilon: of the box.
      dim: columns of A.
      epochs: the most of training.
      store: where the minima of the experiments are; one that is not there is trained and kept.
      data_dir: the TFDS directory.
      out: a JSON file to write too.
    """
    model, ds, params = minimum(network, dataset, side, examples, epochs, store, data_dir)
    loss = objective.over_dataset(model.apply, ds.x_train, ds.y_train)
    rows: list[dict[str, Any]] = []
    for space, p in (("full", None), ("random", dim)):
        with jax.enable_x64(True):
            evaluate64, radius64 = problem(*in_float64(model, ds.x_train, ds.y_train, params), p)
            reference, base = _ascend(evaluate64, epsilon * radius64)
        best = phi(float(reference.value), base)
        evaluate, radius = problem(loss, params, p)
        for precision in PRECISIONS:
            top, below = _ascend(partial(evaluate, precision=precision), epsilon * radius)
            value = phi(float(top.value), below)
            with jax.enable_x64(True):
                exact = phi(float(evaluate64(top.point.astype(jnp.float64))[0]), base)
            row = {"space": space, "precision": precision, "value": value, "float64 there": exact, "float64": best}
            rows.append(
                row | {"error of the arithmetic": value / exact - 1, "error of the whole": value / best - 1}
            )
    print(f"{jax.devices()[0].device_kind}, {network} on {len(ds.x_train)} of {dataset}, {side}, loss {base:.6g}")
    for row in rows:
        print("  ".join(f"{name} {v:.6g}" if isinstance(v, float) else str(v) for name, v in row.items()))
    if out is not None:
        records.write_json(out, {"machine": common.machine(), "loss": base, "rows": rows})
    return rows


def in_float64(model: models.Model, x: Array, y: Array, params: Any) -> tuple[Callable, Any]:
    """The loss over these images, and the parameters, in float64."""
    images = np.asarray(objective.scale(x), np.float64)
    loss = objective.over_dataset(model.apply, jnp.asarray(images), y)
    return loss, jax.tree.map(lambda a: a.astype(jnp.float64), params)


def minimum(
    network: str, dataset: str, side: str, examples: int, epochs: int, store: Path, data_dir: Path | None
) -> tuple[models.Model, data.Dataset, Any]:
    """The network, the first examples of the data, and the SB or LB minimum of all of them; see `main`."""
    ds = data.load(dataset, data_dir)
    model = getattr(models, network)(ds.num_classes)
    small, large = common.pair(model, ds, epochs=epochs, store=store)
    return model, data.head(ds, min(examples, len(ds.x_train))), (small if side == "SB" else large).params


def problem(loss: Callable, params: Any, dim: int | None, key: Array | None = None) -> tuple[Callable, Array]:
    """`y -> (f(x + A y), its gradient)`, and the half-widths of its box for epsilon 1."""
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    A = None if dim is None else subspace.draw(jax.random.key(0) if key is None else key, n, dim)
    fn = jax.value_and_grad(sharpness.restrict(loss, params, A))
    evaluations = {name: program.compiled(fn, matmul=name) for name in PRECISIONS}
    return lambda y, precision="float32": evaluations[precision](y), sharpness.box(params, A, 1.0)


def _ascend(evaluate: Callable, radius: Array) -> tuple[ascent.Maximum, float]:
    """The maximum, and f at the centre."""
    centre = evaluate(jnp.zeros_like(radius))
    start = jnp.sign(centre[1])[None]
    return ascent.maximise(evaluate, radius, centre, start, jax.random.key(0), max_evaluations=12), float(
        centre[0]
    )


def phi(top: float, base: float) -> float:
    """Metric 2.1 from f at its maximum and at the centre (eq. 4)."""
    return 100 * (top - base) / (1 + base)


if __name__ == "__main__":
    common.cli(main)
