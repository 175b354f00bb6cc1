"""What A costs: seconds to draw and to apply it, against `jax.random.normal`, and memory.

    python -m benchmarks.subspace
    python -m benchmarks.subspace --parameters 15000000 --no-normal

Memory is what XLA allots to A, to temporaries and to the result; the result of A y is the point of a look.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import common
from gengap import subspace


def main(parameters: int = 1_090_000, dim: int = 100, rounds: int = 3, normal: bool = True) -> dict[str, Any]:
    """Seconds and bytes, as JSON.

    Args:
      parameters: n, rows of A.
      dim: p, its columns.
      rounds: of the timing, whose median is taken.
      normal: whether to draw as many normal numbers too, which takes 4 bytes for each.
    """
    key, y = jax.random.key(0), jnp.ones(dim)
    x = jnp.sin(jnp.arange(float(parameters)))
    draw = jax.jit(subspace.draw, static_argnums=(1, 2)).lower(key, parameters, dim).compile()
    A = draw(key)
    calls = {"draw": partial(draw, key)}
    products = {
        "A y": (subspace.times, y),
        "A^T g": (subspace.transpose_times, x),
        "A^+ x": (subspace.pseudo_inverse_times, x),
    }
    for name, (product, by) in products.items():

        def call(tiles: jax.Array, by: jax.Array, product: Callable = product) -> jax.Array:
            return product(replace(A, tiles=tiles), by)

        calls[name] = partial(jax.jit(call).lower(A.tiles, by).compile(), A.tiles, by)
    memory = {}
    for name, call in calls.items():
        used = call.func.memory_analysis()
        held = 0 if name == "draw" else A.tiles.nbytes
        memory[name] = held + used.temp_size_in_bytes + used.output_size_in_bytes
    if normal:
        sample = jax.jit(jax.random.normal, static_argnums=1)
        calls["jax.random.normal"] = partial(sample, key, (dim, parameters))
    seconds = {name: one["median"] for name, one in common.in_turn(calls, rounds).items()}
    return common.report({"seconds": seconds, "bytes of A": A.tiles.nbytes, "bytes": memory})


if __name__ == "__main__":
    common.cli(main)
