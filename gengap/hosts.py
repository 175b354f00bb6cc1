"""Several processes that compute one run together, each with devices of its own: what the first one decides.

Each of them runs the same program on arrays that are divided over the devices of all (`jax.distributed`). What
depends on a file or a clock is decided by the first, and told to the others, and the first alone writes.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["SHARD", "devices", "fetched", "is_first", "join", "of_first", "tree_of_first"]

SHARD = "GENGAP_SHARD"
"""A variable of the environment: where it is set, the examples of a row are divided over all devices."""


def devices() -> int:
    """On how many devices a row is computed."""
    return jax.device_count() if os.environ.get(SHARD) else 1


def join(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Become one of several processes; before anything is computed.

    Args:
      address: host and port of the first; by default, as the others, found on Slurm, a TPU pod, Open MPI or
        Kubernetes.
      count: of processes.
      index: of this one, from 0.

    Raises:
      ValueError: there are no others here, or the first does not answer.
    """
    try:
        jax.distributed.initialize(address, count, index)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"hosts: the processes do not find each other ({str(error) or type(error)})") from None


def is_first() -> bool:
    """Whether this process decides and writes; a single one does."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def of_first(fn: Callable[[], Any]) -> Any:
    """What a function returns in the first process, JSON, in all of them; and what it refuses."""
    if not _several():
        return fn()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": fn()}
        except (ValueError, OSError) as error:
            answer = {"refused": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    told = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    answer = json.loads(np.asarray(told, np.uint8).tobytes())
    if "refused" in answer:
        raise ValueError(answer["refused"])
    return answer["value"]


def tree_of_first(tree: Any) -> Any:
    """The arrays of the first process, in all of them; all have to give a tree of the same types and shapes."""
    return multihost_utils.broadcast_one_to_all(tree) if _several() else tree


def fetched(array: Any) -> Any:
    """An array as this process can read it, from all where it is divided over them."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


def _several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1
