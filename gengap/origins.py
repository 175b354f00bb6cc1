"""The origin of a row: commit, versions, device, date."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jax

from gengap import hosts

__all__ = ["TRAINING_VERSION", "dated"]

TRAINING_VERSION = 2
"""The version of training. If it changes, minima already on disk are not found again."""


def dated(seconds: float) -> dict[str, Any]:
    """The origin of a row that is finished now and took `seconds`."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {**_origin(), "date": date, "seconds": round(seconds, 3)}


@cache
def _origin() -> dict[str, Any]:
    device = jax.devices()[0]
    packages = ("gengap", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "commit": _commit(),
        "training_version": TRAINING_VERSION,
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "device": device.device_kind if device.platform != "cpu" else f"cpu, {os.cpu_count()} cores",
        "devices": hosts.devices(),
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
