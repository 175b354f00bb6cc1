"""What the benchmarks share: data to compute on, and calls timed in turn."""

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array

from benchmarks import flops
from experiments.lib import command
from gengap import data, methods, minima, models, objective, records, train

STORE = Path("results/minima")


def cli(main: Callable[..., Any]) -> None:
    """Run `main` with the flags of its arguments; what is wrong with them is one sentence and exit code 2."""
    command.cache_compilations()
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def pair(
    model: models.Model, ds: data.Dataset, *, seed: int = 0, epochs: int = 100, store: Path = STORE
) -> list[minima.Minimum]:
    """The SB and the LB minimum as the experiments train them; kept in the store and found there."""
    small = minima.Recipe(batch_size=256, epochs=epochs)
    if ds.x_train.shape[1:] == (8, 8, 1):
        small = minima.Recipe(batch_size=32, epochs=epochs, patience=None, target=0.003)
    recipes = small, small._replace(batch_size=0.1)
    return [minima.find(model, ds, jax.random.key(0), recipe, seed=seed, store=store) for recipe in recipes]


def machine() -> dict[str, Any]:
    """What ran it, for the record."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def report(found: dict[str, Any], out: Path | None = None) -> dict[str, Any]:
    """Print what was found and what machine found it as JSON, and write it to a file too where there is one."""
    found = {"machine": machine(), **found}
    print(json.dumps(found, indent=2))
    if out is not None:
        records.write_json(out, found)
    return found


def examples(network: str, count: int) -> tuple[Array, Array]:
    """Random images of the shape that the network takes, uint8, and random labels of ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *flops.SHAPES[network]), dtype=np.uint8)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 10, count).astype(np.int32))


def training(network: str, train_size: int, batch_size: int) -> tuple[Any, ...]:
    """A network, random examples, a state to begin at, and `epoch(state)`, which trains for an epoch."""
    model = getattr(models, network)(10)
    x, y = examples(network, train_size)
    key = jax.random.key(0)
    state = train.start(model.init(key, objective.scale(x[:2])), key)
    loss = train.batch_loss(methods.PLAIN, model.apply, model.apply_train)

    def epoch(state: train.TrainState) -> train.TrainState:
        return train.fit(loss, state, x, y, batch_size=batch_size, epochs=1, patience=None)[0]

    return model, x, y, state, epoch


def peak_bytes() -> int:
    """The most memory that this process has held at once: of its device, or of the machine where that is a CPU."""
    held = jax.devices()[0].memory_stats() or {}
    return held.get("peak_bytes_in_use", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the arrays that `call` returns are there, and these."""
    begin = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - begin, result


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median, least and most seconds of each call, one after another in every round.

    "compile" is what the first call took above the median of the later ones.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            seconds[name].append(timed(call)[0])
    found = {}
    for name, (first, *values) in seconds.items():
        median = statistics.median(values)
        found[name] = {"median": median, "least": min(values), "most": max(values), "compile": first - median}
    return found
