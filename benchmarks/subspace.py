"""What A costs: drawing it, its products and its box, against `jax.random.normal` and against a gradient's memory.

python -m benchmarks.subspace
python -m benchmarks.subspace --parameters 15000000
"""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import common
from gengap import subspace


def main(parameters: int = 1_090_000, dim: int = 100, rounds: int = 3, normal: bool = True) -> dict[str, Any]:
    """Seconds, and the bytes of A.

    Args:
      parameters: n, rows of A.
      dim: p, its columns.
      rounds: of the timing, whose median is taken.
      normal: whether to draw as many normal numbers too, which takes 4 bytes for each.
    """
    key, y = jax.random.key(0), jnp.ones(dim)
    x = jnp.sin(jnp.arange(float(parameters)))
    draw = partial(subspace.draw, key, parameters, dim)
    A = draw()
    calls: dict[str, Any] = {
        "draw": draw,
        "A y": partial(jax.jit(subspace.times), A, y),
        "A^T g": partial(jax.jit(subspace.transpose_times), A, x),
        "A^+ x": partial(jax.jit(subspace.pseudo_inverse_times), A, x),
    }
    if normal:
        sample = jax.jit(jax.random.normal, static_argnums=1)
        calls["jax.random.normal"] = partial(sample, key, (dim, parameters))
    seconds = {name: one["median"] for name, one in common.in_turn(calls, rounds).items()}
    found = {"machine": common.machine(), "seconds": seconds, "bytes of A": A.tiles.nbytes}
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    common.cli(main)
