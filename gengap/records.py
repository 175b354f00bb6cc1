"""Run directories: what a run was asked, each row as it is finished, and a summary at its end.

A run is `<root>/<experiment>/<run>/` with `config.json`, `metrics.jsonl` (appended as the run goes, never
rewritten), `minima/*.npz`, and `summary.json` once it is complete. Nothing is pickled; a file is written
under another name and then renamed.
"""

import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

Row = dict[str, Any]


class Run(NamedTuple):
    """One run: its directory, or `None` for one that is only returned, what it was asked, and its rows."""

    path: Path | None
    experiment: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: list[Row]

    def has(self, network: str, method: str, seed: int, epoch: int | None = None) -> bool:
        """Whether this row is finished."""
        asked = (network, method, seed, epoch)
        return any(asked == (row["network"], row["method"], row["seed"], row.get("epoch")) for row in self.rows)

    def add(self, row: Row) -> None:
        """Record a finished row."""
        row = _plain(row)
        self.log("row", row)
        self.rows.append(row)

    def log(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        if self.path is not None:
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"kind": kind, **_plain(entry)}, allow_nan=False) + "\n")

    def summary(self, *, complete: bool = True) -> dict[str, Any]:
        """The summary of the rows so far; also written to `summary.json`."""
        summary = {
            "experiment": self.experiment,
            "complete": complete,
            "config": _plain(self.config),
            "environment": _plain(self.environment),
            "rows": self.rows,
        }
        if self.path is not None:
            write_json(self.path / "summary.json", summary)
        return summary

    def file(self, name: str) -> Path | None:
        """Where in the run directory to keep `name`."""
        if self.path is None:
            return None
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        return self.path / name


@contextmanager
def opened(
    experiment: str, config: Mapping[str, Any], directory: str | os.PathLike | None, *, fresh: bool = False
) -> Iterator[Run]:
    """A new run in `directory`, or the one that is there with the rows it has finished.

    Args:
      experiment: its name.
      config: everything that the numbers depend on.
      directory: the run directory; `None` keeps nothing on disk.
      fresh: put an earlier run aside, as `<directory>.1` and so on, and begin anew.

    Raises:
      ValueError: the directory holds a run of another config, or another process is writing to it.
    """
    config = _plain(config)
    if directory is None:
        yield Run(None, experiment, config, environment(), [])
        return
    path = Path(directory)
    if fresh and path.exists():
        with _locked(path):
            path.rename(next(aside for i in range(1, 1000) if not (aside := Path(f"{path}.{i}")).exists()))
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        run = Run(path, experiment, config, environment(), _rows(path / "metrics.jsonl"))
        _check_config(path, experiment, config)
        write_json(path / "config.json", {"experiment": experiment, "config": config, **run.environment})
        _end_last_line(path / "metrics.jsonl")
        yield run


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path / "run.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work on {path}: wait for it, or give another --out") from None
        yield


def _end_last_line(path: Path) -> None:
    """Close a line that a stopped process left open, so that the next one begins anew."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with open(path, "ab") as file:
            file.write(b"\n")


def read(directory: str | os.PathLike) -> dict[str, Any]:
    """The summary of a run: `summary.json`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it cannot be read.
    """
    path = Path(directory) / "summary.json"
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def run_name(config: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """A directory name that says how `config` differs from `default`: "default" if it does not.

    >>> run_name({"seeds": 2, "network": "c1"}, {"seeds": 5, "network": "c1"})
    'seeds=2'
    """
    changes = [f"{name}={_word(value)}" for name, value in config.items() if value != default.get(name)]
    name = ",".join(changes) or "default"
    if len(name) > 200:
        name = f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def environment() -> dict[str, Any]:
    """Versions, device and commit, for the record."""
    device = jax.devices()[0]
    packages = ("gengap", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "device": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "cpu_count": os.cpu_count(),
        "commit": _commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON under another name, then rename."""
    atomically(path, lambda file: file.write(json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"))


def save(path: Path, tree: PyTree) -> None:
    """Write the leaves of a pytree of arrays to one `.npz`, named by their paths in the tree.

    Typed random keys are written as their raw data.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(where): np.asarray(_raw(leaf)) for where, leaf in leaves}
    atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def load(path: Path, like: PyTree) -> Any:
    """Read what `save` wrote, into a tree of the same structure and shapes as `like`.

    Raises:
      ValueError: the file is damaged or holds another tree.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    try:
        with open(path, "rb") as opened_file, np.load(opened_file, allow_pickle=False) as file:
            arrays = [file[jax.tree_util.keystr(where)] for where, _ in leaves]
    except (KeyError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or holds something else: {error}") from None
    for (where, leaf), array in zip(leaves, arrays, strict=True):
        if _raw(leaf).shape != array.shape:
            name = jax.tree_util.keystr(where)
            raise ValueError(f"{path} holds {name} of shape {array.shape}; it must be {_raw(leaf).shape}")
    typed = [_typed(leaf, array) for (_, leaf), array in zip(leaves, arrays, strict=True)]
    return jax.tree.unflatten(tree, typed)


def atomically(path: Path, write: Callable[[Any], Any]) -> None:
    """Have `write(file)` fill a temporary file beside `path`, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _typed(like: Any, array: np.ndarray) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=jax.random.key_impl(like))
    # bfloat16 and its like are unknown to numpy, which reads them back as raw bytes
    return jax.numpy.asarray(array.view(like.dtype) if array.dtype.kind == "V" else array)


def _rows(path: Path) -> list[Row]:
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the process was stopped while it wrote this line
            continue
        if entry.pop("kind", None) == "row":
            rows.append(entry)
    return rows


def _check_config(path: Path, experiment: str, config: Mapping[str, Any]) -> None:
    if not (path / "config.json").exists():
        return
    there = json.loads((path / "config.json").read_text())
    old = {"experiment": there.get("experiment"), **there.get("config", {})}
    new = {"experiment": experiment, **config}
    changed = [
        f"{name} {old.get(name)}, now {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)
    ]
    if changed:
        raise ValueError(
            f"{path} holds a run with other settings ({'; '.join(changed)}): give another --out, or --fresh to "
            "begin anew"
        )


def _plain(value: Any) -> Any:
    """JSON: arrays to lists, numbers that are not finite to null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _word(value: Any) -> str:
    entries = value if isinstance(value, list | tuple) else [value]
    text = "-".join(str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in entries)
    return "".join(c if c.isalnum() or c in "._+-" else "_" for c in text)


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
