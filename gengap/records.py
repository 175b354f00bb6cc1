"""A run on disk: what was asked, and each row as it is finished, with where it came from.

A run is a directory with `config.json`, what was asked, and `rows.jsonl`, a row a line, appended as the run goes
and never rewritten. Nothing is pickled.
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
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

Row = dict[str, Any]


class Run(NamedTuple):
    """A run and its rows.

    Attributes:
      path: its directory; `None` for one that is only returned.
      experiment: its name.
      config: what it was asked.
      rows: finished ones. Each has an "origin": commit, versions, device, the date when it was finished, and
        seconds since the row before.
      begun: when this process began, and when it finished each of its rows, on the clock of `time.monotonic`.
    """

    path: Path | None
    experiment: str
    config: Mapping[str, Any]
    rows: list[Row]
    begun: list[float]

    def has(self, identity: Mapping[str, Any]) -> bool:
        """Whether there is a row with these entries: `run.has({"network": "F1", "method": "SB", "seed": 0})`."""
        asked = _plain(identity)
        return any(all(row.get(name) == value for name, value in asked.items()) for row in self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Record a finished row.

        Raises:
          ValueError: the directory was removed in the meantime.
        """
        now = time.monotonic()
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        origin = {**_origin(), "date": date, "seconds": round(now - self.begun[-1], 3)}
        made = _plain({**row, "origin": origin})
        if self.path is not None:
            self.check_kept()
            path = self.path / "rows.jsonl"
            if not self.added and path.exists():
                os.truncate(path, len(_whole_lines(path)))
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(made, allow_nan=False) + "\n")
        self.begun.append(now)
        self.rows.append(made)

    def check_kept(self) -> None:
        """Refuse to go on where a file of the run is gone from its directory."""
        for name in ("config.json", "rows.jsonl")[: 1 + bool(self.rows)]:
            if self.path is not None and not (self.path / name).exists():
                words = "it was removed or moved while the run wrote to it, and its rows are not saved"
                raise ValueError(f"{self.path / name} is gone: {words}; give the same command again")

    @property
    def added(self) -> int:
        """How many rows this process has added."""
        return len(self.begun) - 1

    @property
    def store(self) -> Path | None:
        """Where its minima are: `<root>/minima` for a run in `<root>/<experiment>/<name>`, else inside it."""
        if self.path is None:
            return None
        shared = self.path.parent.name == self.experiment
        return (self.path.parent.parent if shared else self.path) / "minima"

    def frame(self) -> Any:
        """The rows as a `pandas.DataFrame`, a column for each entry."""
        import pandas as pd  # 0.2 s, which whoever only trains need not wait for

        return pd.DataFrame(self.rows)


@contextmanager
def opened(
    experiment: str, config: Mapping[str, Any], directory: str | os.PathLike | None, *, fresh: bool = False
) -> Iterator[Run]:
    """A new run in `directory`, or the one that is there with the rows that it has finished.

    Args:
      experiment: its name.
      config: everything that the numbers depend on.
      directory: of the run; `None` keeps nothing on disk. One that cannot be written can still be read.
      fresh: move an earlier run aside, to `<directory>.1` and so on, and begin anew.

    Raises:
      ValueError: the directory holds a run of another config or something else, another process writes to it, or
        it was removed in the meantime.
    """
    config = _plain(config)
    if directory is None:
        yield Run(None, experiment, config, [], [time.monotonic()])
        return
    path = Path(directory)
    if fresh and (path / "config.json").exists():
        with _locked(path):
            path.rename(next(aside for i in range(1, 1000) if not (aside := Path(f"{path}.{i}")).exists()))
    if not (path / "config.json").exists():
        write_json(path / "config.json", {"experiment": experiment, "config": config})
    with _locked(path):
        there = read(path)
        _check_same(path, {"experiment": there.experiment, **there.config}, {"experiment": experiment, **config})
        yield there
        there.check_kept()


def read(directory: str | os.PathLike) -> Run:
    """A run that is on disk.

    Raises:
      ValueError: there is none, or a file of it is damaged. It has the file's name.
    """
    path = Path(directory)
    try:
        asked = json.loads((path / "config.json").read_text(encoding="utf-8"))
        config, experiment = dict(asked["config"]), str(asked["experiment"])
    except (OSError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path / 'config.json'} is not the record of a run ({_words(error)})") from None
    return Run(path, experiment, config, _rows(path / "rows.jsonl"), [time.monotonic()])


def run_name(config: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """A directory name that says how `config` differs from `default`: "default" if it does not.

    >>> run_name({"seeds": 2, "network": "c1"}, {"seeds": 5, "network": "c1"})
    'seeds=2'
    """
    changes = [f"{name}={_word(value)}" for name, value in config.items() if value != default.get(name)]
    name = ",".join(changes) or "default"
    if len(name.encode()) > 200:  # file systems count bytes
        start = name.encode()[:180].decode(errors="ignore")
        name = f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def write_json(path: Path, value: Any) -> None:
    """Write JSON under another name, then rename."""
    atomically(path, lambda file: file.write(json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"))


def atomically(path: Path, write: Callable[[Any], Any]) -> None:
    """Have `write(file)` fill a temporary file beside `path`, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path / "config.json", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work on {path}: wait for it, or give another --out") from None
        yield


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(_whole_lines(path).splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}, is not a row ({_words(error)})") from None
        origin = row.get("origin") if isinstance(row, dict) else None
        if not isinstance(origin, dict) or not {"date", "seconds"} <= origin.keys():
            words = "it must be an object with an origin that has a date and seconds"
            raise ValueError(f"{path}, line {number}, is not a row: {words}")
        rows.append(row)
    return rows


def _whole_lines(path: Path) -> bytes:
    """All but a last line that a process was stopped while it wrote."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [f"{n} {old.get(n)}, now {new.get(n)}" for n in {**old, **new} if old.get(n) != new.get(n)]
    if changed:
        raise ValueError(
            f"{path} holds a run with other settings ({'; '.join(changed)}): give another --out, or --fresh to "
            "begin anew"
        )


@cache
def _origin() -> dict[str, Any]:
    device = jax.devices()[0]
    packages = ("gengap", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "commit": _commit(),
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "device": device.device_kind if device.platform != "cpu" else f"cpu, {os.cpu_count()} cores",
        "devices": jax.device_count(),
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


def _plain(value: Any) -> Any:
    """JSON: arrays to lists, numbers that are not finite to null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
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


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
