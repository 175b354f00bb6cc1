"""Several processes that compute one run together, each with its own devices.

All run the same program on arrays that are divided over all devices (`jax.distributed`). The first process decides
what depends on a file or a clock and tells the others. Only the first writes.
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
"""An environment variable: if it is set, the examples of a row are divided over all devices."""


def devices() -> int:
    """The number of devices that compute one row."""
    return jax.device_count() if os.environ.get(SHARD) else 1


def join(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Become one of several processes; call it before anything is computed.

    Args:
      address: host and port of the first process. All three arguments are found automatically on Slurm, a TPU pod,
        Open MPI or Kubernetes.
      count: number of processes.
      index: index of this process, from 0.

    Raises:
      ValueError: there are no other processes, or the first does not answer.
    """
    try:
        jax.distributed.initialize(address, count, index)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"hosts: the processes do not find each other ({str(error) or type(error)})") from None


def is_first() -> bool:
    """Whether this process is the one that decides and writes; a single process is."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def of_first(fn: Callable[[], Any]) -> Any:
    """Call `fn` in the first process only; its result, which must fit into JSON, or its error goes to all."""
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
    """The arrays of the first process, in all processes; all must pass a tree of the same types and shapes."""
    return multihost_utils.broadcast_one_to_all(tree) if _several() else tree


def fetched(array: Any) -> Any:
    """An array that this process can read; one that is divided over processes is gathered from all."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


def _several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1
