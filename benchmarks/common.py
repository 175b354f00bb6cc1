"""What the benchmarks share: data to compute on, and calls timed in turn."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array

from benchmarks import flops


def cli(main: Callable[..., Any]) -> None:
    """Run `main` with the flags of its arguments; what is wrong with them is one sentence and exit code 2."""
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def machine() -> dict[str, Any]:
    """What ran it, for the record."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def examples(network: str, count: int) -> tuple[Array, Array]:
    """Random images of the shape that the network takes, uint8, and random labels of ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *flops.SHAPES[network]), dtype=np.uint8)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 10, count).astype(np.int32))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the arrays that `call` returns are there, and these."""
    begin = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - begin, result


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median, least and most seconds of each call, one after another in every round, and those of the first round.

    The first round compiles, and is none of the others.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            seconds[name].append(timed(call)[0])
    return {
        name: {
            "median": statistics.median(values[1:]),
            "least": min(values[1:]),
            "most": max(values[1:]),
            "first": values[0],
        }
        for name, values in seconds.items()
    }
