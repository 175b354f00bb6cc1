"""Rows computed in processes on this machine, one for each GPU."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax

from gengap import progress

__all__ = ["computed", "gpus", "settings_of_jax", "take"]

_PASSED_ON = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_platforms",
)
"""Settings of JAX that are passed on to processes that compute rows."""


def computed(
    work: Callable[[Mapping[str, Any]], dict[str, Any]], cells: Sequence[Mapping[str, Any]], count: int
) -> Generator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Yields each cell with `work(cell)` as it is finished; computes in this process if `count` is 1."""
    if count == 1 or len(cells) < 2:
        for cell in cells:
            yield cell, work(cell)
        return
    context = multiprocessing.get_context("spawn")
    devices = context.SimpleQueue()
    for i in range(count):
        devices.put(names[i % len(names)] if (names := gpus()) else None)
    with ProcessPoolExecutor(count, context, _begin, (devices, settings_of_jax())) as pool:
        futures = {pool.submit(work, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            words = "a process that computed rows was killed, perhaps because memory ran out"
            raise ValueError(
                f"{words}; the same command resumes the run, and a smaller jobs needs less memory"
            ) from None
        except BaseException:
            processes = list(pool._processes.values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
            raise


def gpus() -> list[str]:
    """The NVIDIA GPUs of the machine, found without starting JAX, which would take their memory."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device not in ("", "-1")]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def settings_of_jax() -> dict[str, Any]:
    """The settings of JAX that another process has to `take` to compute the same rows."""
    return {name: jax.config.values[name] for name in _PASSED_ON}


def take(settings: Mapping[str, Any]) -> None:
    """Take over settings of JAX."""
    for name, value in settings.items():
        jax.config.update(name, value)


def _begin(devices: Any, settings: Mapping[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if (device := devices.get()) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    take(settings)
    progress.silence()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a checkpoint has what was trained so far
