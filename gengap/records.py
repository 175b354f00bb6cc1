"""A run on disk: cells -> rows. Each row is saved when it is finished, with its origin.

A run is a directory with `config.json`, the settings, and `rows.jsonl`, one row a line. Rows are appended and
never rewritten.
"""

import fcntl
import hashlib
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gengap import cluster, hosts, origins, processes, progress

__all__ = ["Cell", "Row", "Run", "atomically", "fill", "opened", "read", "run_name", "settings_of", "write_json"]

Row = dict[str, Any]
Cell = Mapping[str, Any]


class Run(NamedTuple):
    """A run and its rows.

    Attributes:
      path: its directory; `None` for a run that is not kept on disk.
      experiment: its name.
      config: its settings.
      rows: the finished rows. Each has an "origin": commit, versions, device, the date when it was finished, and
        the seconds it took, or else the seconds since the row before.
      begun: when this process began, and when it finished each of its rows, on the clock of `time.monotonic`.
    """

    path: Path | None
    experiment: str
    config: Mapping[str, Any]
    rows: list[Row]
    begun: list[float]

    def __repr__(self) -> str:
        return f"Run({self.experiment}: {len(self.rows)} rows{f' in {self.path}' if self.path else ''})"

    def has(self, identity: Mapping[str, Any]) -> bool:
        """Whether there is a row with these entries: `run.has({"network": "F1", "side": "SB", "seed": 0})`."""
        asked = _plain(identity)
        return any(all(row.get(name) == value for name, value in asked.items()) for row in self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Record a finished row.

        Raises:
          ValueError: the directory was removed meanwhile.
        """
        now = time.monotonic()
        made = _plain({"origin": origins.dated(now - self.begun[-1]), **row})
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
        """Refuse to go on if a file of the run is gone from its directory."""
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
        """The rows as a `pandas.DataFrame`, a column for each number, such as `sharpness_full_1e-3`."""
        import pandas as pd  # here, since it takes 0.2 s and training does not need it

        return pd.json_normalize(self.rows, sep="_")


def fill(
    name: str,
    config: Any,
    cells: Sequence[Cell],
    row: Callable[[Any, Cell, Path], Mapping[str, Any]],
    out: str | os.PathLike | None = None,
    *,
    fresh: bool = False,
    jobs: int | cluster.Cluster | None = None,
    seconds: Callable[[Sequence[Cell]], float] | None = None,
) -> Run:
    """The rows of an experiment: those on disk are read, the others are computed.

    Args:
      name: name of the experiment.
      config: its settings, a NamedTuple of settings and NamedTuples of settings.
      cells: what to compute, one for each row: network, side, seed and so on.
      row: `(config, cell, store) -> what was measured`; `store` is the directory of the minima. It must depend
        only on its arguments and be importable, because another process may compute it.
      out: the run directory; `None` keeps nothing on disk.
      fresh: move an earlier run in that directory aside and start over.
      jobs: processes that compute rows, by default one for each GPU of the machine, or one if there is none; or a
        cluster, where each row is a job.
      seconds: the most seconds that some cells take; shown before the first one begins.

    Returns:
      The run, its rows in the order of the cells.

    Raises:
      ValueError: the directory holds a run with another config or something else, another process writes to it, or
        jobs on the cluster ended without a row; the rows of the others are kept.
    """
    settings, jobs = settings_of(config), jobs or max(1, len(processes.gpus()))
    with ExitStack() as stack:
        run = Run(None, name, settings, [], [time.monotonic()])

        def begin() -> list[bool]:
            nonlocal run
            run = stack.enter_context(opened(name, settings, out, fresh=fresh))
            return [not run.has(cell) for cell in cells]

        is_left = hosts.of_first(begin)
        left = list(itertools.compress(cells, is_left))
        store = stack.enter_context(_store(run))
        work = partial(_row, row, config, store)
        at_once = min(jobs if isinstance(jobs, int) else jobs.at_once or len(left), len(left)) or 1
        if not isinstance(jobs, int):
            if run.path is None:
                raise ValueError("out must be a directory that the machines of the cluster share")
            rows = cluster.computed(work, left, jobs, run.path / "jobs")
        else:
            if left and len(left) < len(cells):
                progress.say(f"{len(cells) - len(left)} of {len(cells)} rows are there from an earlier run.")
            if left and seconds is not None:
                _say_how_long(seconds(left) / at_once)
            rows = processes.computed(work, left, jobs)
        done = len(cells) - len(left)
        with (
            progress.line(name, len(cells), "row", done, outer=True, at_once=at_once) as line,
            closing(rows) as computed,
        ):
            for cell, entries in computed:
                run.add({**cell, **entries})
                line.update()
        order = [_plain(cell) for cell in cells]
        run.rows.sort(key=lambda r: next((i for i, c in enumerate(order) if c.items() <= r.items()), len(order)))
        return run._replace(rows=hosts.of_first(lambda: run.rows))


@contextmanager
def opened(
    experiment: str, config: Mapping[str, Any], directory: str | os.PathLike | None, *, fresh: bool = False
) -> Iterator[Run]:
    """A new run in `directory`, or the existing one with its finished rows.

    Args:
      experiment: its name.
      config: everything that the numbers depend on.
      directory: the directory of the run; `None` keeps nothing on disk. A read-only one can still be read.
      fresh: move an earlier run aside, to `<directory>.1` and so on, and start over.

    Raises:
      ValueError: the directory holds a run with another config or something else, another process writes to it, or
        it was removed meanwhile.
    """
    config = _plain(config)
    if directory is None:
        yield Run(None, experiment, config, [], [time.monotonic()])
        return
    path = Path(directory)
    if fresh and (path / "config.json").exists():
        with _locked(path):
            aside = next(to for i in range(1, 1000) if not (to := Path(f"{path}.{i}")).exists())
            path.rename(aside)
            progress.say(f"The earlier run is now in {aside}.")
    if not (path / "config.json").exists():
        write_json(path / "config.json", {"experiment": experiment, "config": config})
    with _locked(path):
        run = read(path)
        _check_same(path, {"experiment": run.experiment, **run.config}, {"experiment": experiment, **config})
        yield run
        run.check_kept()


def read(directory: str | os.PathLike) -> Run:
    """Read a run from disk.

    Raises:
      ValueError: there is no run, or one of its files is damaged; the message names the file.
    """
    path = Path(directory)
    try:
        asked = json.loads((path / "config.json").read_text(encoding="utf-8"))
        config, experiment = dict(asked["config"]), str(asked["experiment"])
    except (OSError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path / 'config.json'} is not the record of a run ({_words(error)})") from None
    return Run(path, experiment, config, _rows(path / "rows.jsonl"), [time.monotonic()])


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a config and of the NamedTuples in it, as one dictionary."""
    settings: dict[str, Any] = {}
    for name, value in config._asdict().items():
        settings |= settings_of(value) if hasattr(value, "_asdict") else {name: value}
    return settings


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
    """Write JSON to a temporary file, then rename it."""
    atomically(path, lambda file: file.write(json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"))


def atomically(path: Path, write: Callable[[Any], Any]) -> None:
    """Fill a temporary file beside `path` by `write(file)`, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)


@contextmanager
def _store(run: Run) -> Iterator[Path]:
    if run.store is not None:
        yield run.store
        return
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def _say_how_long(seconds: float) -> None:
    if seconds < 60:
        return
    time_left = f"{-(-seconds // 60):.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"
    smaller = "; --train-size, --epochs, --num-seeds, --num-draws, --max-evaluations make it shorter"
    progress.say(
        f"This takes up to {time_left} here{smaller if seconds > 3600 else ''}. Stop it at any time: the same "
        "command resumes it."
    )


def _row(row: Callable, config: Any, store: Path, cell: Cell) -> Row:
    began = time.monotonic()
    entries = _plain(row(config, cell, store))
    return {**entries, "origin": origins.dated(time.monotonic() - began)}


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
    """The complete lines, without a last one whose writing was interrupted."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [f"{n} {old.get(n)}, now {new.get(n)}" for n in {**old, **new} if old.get(n) != new.get(n)]
    if changed:
        raise ValueError(
            f"{path} holds a run with other settings ({'; '.join(changed)}): give another --out, or --fresh to "
            "start over"
        )


def _plain(value: Any) -> Any:
    """A value for JSON: arrays become lists, numbers that are not finite become null."""
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
