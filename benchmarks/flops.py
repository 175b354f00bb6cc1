"""Arithmetic and memory, counted before anything is timed: from the programs and from the shapes.

    python -m benchmarks.flops

For each network: floating-point operations of a forward pass and of a gradient for one example, by XLA's cost
analysis of the program before it is optimised, and by hand (products of the dense layers and convolutions alone,
without those on padding, two operations each; a gradient takes three times a forward pass but for the first
layer's input); those of an epoch of training and of one evaluation of the sharpness, which is a gradient over all
the training set; bytes of A for 100 columns.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gengap import methods, models, train

SHAPES = {"f1": (28, 28, 1), "c1": (32, 32, 3), "c2": (32, 32, 3)}
EXAMPLES = {"f1": 60_000, "c1": 50_000, "c2": 50_000}
DIM = 100


class Count(NamedTuple):
    """Of one network: operations for one example, parameters."""

    forward: float
    gradient: float
    parameters: int


def count(network: str) -> Count:
    """By hand, from the shapes alone, for a network on the data set that the paper has for it."""
    params = _params(network, jnp.zeros((2, *SHAPES[network])))
    products = by_hand(params, SHAPES[network])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Count(2 * sum(products), 2 * (3 * sum(products) - products[0]), parameters)


def lowered(network: str, batch: int = 8) -> tuple[float, float]:
    """Operations of the programs of a forward pass and a gradient, for one example; nothing is compiled."""
    model = getattr(models, network)(10)
    x, y = jnp.zeros((batch, *SHAPES[network])), jnp.zeros(batch, int)
    params = _params(network, x)
    loss = train.batch_loss(methods.PLAIN, model.apply)

    def operations(fn: Callable) -> float:
        program = jax.jit(fn).lower(params, x, y, jax.random.key(0))
        return program.cost_analysis()["flops"] / batch

    return (
        operations(lambda *args: loss(*args)[0]),
        operations(lambda *args: jax.value_and_grad(lambda p: loss(p, *args[1:])[0])(args[0])),
    )


def _params(network: str, x: Any) -> Any:
    return jax.eval_shape(getattr(models, network)(10).init, jax.random.key(0), x)


def by_hand(params: Any, shape: Sequence[int]) -> list[int]:
    """Products of each layer for one example, in order; convolutions have stride 1, and pools halve the image."""
    kernels = {name: layer["kernel"].shape for name, layer in params.items() if "kernel" in layer}
    convolutions = [kernels[f"Conv_{i}"] for i in range(sum(name.startswith("Conv") for name in kernels))]
    dense = [kernels[f"Dense_{i}"] for i in range(sum(name.startswith("Dense") for name in kernels))]
    halved = {2: (1,), 13: (2, 4, 7, 10)}.get(len(convolutions), ())  # before these a pool has halved the image
    side, products = shape[0], []
    for i, kernel in enumerate(convolutions):
        side = -(-side // 2) if i in halved else side
        taps = side * kernel[0] - (kernel[0] ** 2 - 1) // 4  # along an axis, those on padding left out
        products.append(taps**2 * math.prod(kernel[2:]))
    return products + [math.prod(kernel) for kernel in dense]


def main() -> None:
    """Print the counts."""
    for network, m in EXAMPLES.items():
        hand = count(network)
        memory = 4 * DIM * hand.parameters / 1e9
        print(f"{network}: {hand.parameters:,} parameters, A of {DIM} columns {memory:.2f} GB")
        for name, by_xla, products in zip(("forward", "gradient"), lowered(network), hand[:2], strict=True):
            print(f"  {name:9} {by_xla / 1e6:9.2f} MFLOP an example by XLA, {products / 1e6:9.2f} by hand")
        print(f"  an epoch, or an evaluation of the sharpness: {m * hand.gradient / 1e12:.2f} TFLOP")


if __name__ == "__main__":
    main()
