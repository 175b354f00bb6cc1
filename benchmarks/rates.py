"""What share of the device's own rate of matrix products training and sharpness reach.

    python -m benchmarks.rates --network c1 --precision tensorfloat32

Times, in turn in one process: a product of two square matrices, an epoch of training, and a draw of the
sharpness. Operations are those of `benchmarks.flops`; the images are random, since values do not change the time.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from benchmarks import common, flops
from gengap import models, objective, sharpness, train


def main(
    network: Literal["f1", "c1", "c2"] = "c1",
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32",
    train_size: int = 50_000,
    batch_size: int = 256,
    chunk: int = 5000,
    dim: int = flops.DIM,
    side: int = 8192,
    rounds: int = 3,
    out: Path | None = None,
) -> dict[str, Any]:
    """Print rates as JSON.

    Args:
      network: of the paper.
      precision: of matrix products in all three.
      train_size: training examples.
      batch_size: of training.
      chunk: examples at once in the sharpness.
      dim: columns of A.
      side: of the square matrices.
      rounds: of the timing, whose median is taken.
      out: a JSON file to write too.
    """
    model = getattr(models, network)(10)
    x, y = common.examples(network, train_size)
    key = jax.random.key(0)
    params = model.init(key, objective.scale(x[:2]))
    state = train.start(params, key)
    loss = objective.batch_loss(model.apply, model.apply_train)
    f = objective.over_dataset(model.apply, x, y, chunk=chunk)
    a, b = jax.random.normal(key, (2, side, side))
    multiply = jax.jit(jnp.matmul, static_argnames="precision")

    def epoch() -> Any:
        with jax.default_matmul_precision(precision):
            return train.fit(loss, state, x, y, batch_size=batch_size, epochs=1, patience=None)[0]

    def draw() -> sharpness.SubspaceSharpness:
        how = {"dim": dim, "num_draws": 1, "max_evaluations": 12, "num_directions": 0}
        with jax.default_matmul_precision(precision):
            return sharpness.random_subspaces(f, params, key, **how)

    one = flops.count(network)
    steps = -(-train_size // batch_size)
    operations = {
        "product": 2 * side**3,
        "epoch": steps * batch_size * one.gradient,
        "draw": int(draw().evaluations.sum()) * (train_size * one.gradient + 4 * dim * one.parameters),
    }
    calls = {"product": partial(multiply, a, b, precision=precision), "epoch": epoch, "draw": draw}
    found: dict[str, Any] = {
        "network": network,
        "precision": precision,
        "train_size": train_size,
        "batch_size": batch_size,
        "side": side,
    }
    for name, seconds in common.in_turn(calls, rounds).items():
        rate = operations[name] / seconds["median"] / 1e12
        found[name] = {"seconds": seconds, "TFLOP": operations[name] / 1e12, "TFLOP/s": rate}
        found[name]["share of the product's rate"] = rate / found["product"]["TFLOP/s"]
    return common.report(found, out)


if __name__ == "__main__":
    common.cli(main)
