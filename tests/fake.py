"""An experiment without a network: for what every run does, whatever its rows are."""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from gengap import records, report


class Numbers(NamedTuple):
    base: int = 10
    """what is added"""


class Config(NamedTuple):
    """Squares of numbers."""

    numbers: Numbers = Numbers()
    num_seeds: int = 4
    """rows"""
    kill: int = -1
    """the row at which the process is killed, the first time"""
    pause: float = 0.0
    """seconds that a row takes"""


CONFIG = Config()


def cells(config):
    return [{"side": side, "seed": seed} for seed in range(config.num_seeds // 2) for side in ("SB", "LB")]


def row(config, cell, store):
    """One row, which leaves a mark where its minimum would be; `-1` is no seed that is computed."""
    store.mkdir(parents=True, exist_ok=True)
    with open(store / f"{cell['side']}{cell['seed']}", "a") as mark:
        mark.write("computed\n")
    if cell["seed"] == config.kill and not (store / "killed").exists():
        (store / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.numbers.base < 0:
        raise ValueError(f"base is {config.numbers.base}; it must be at least 0")
    time.sleep(config.pause)
    value = config.numbers.base + cell["seed"] ** 2
    return {"value": value, "history": {"loss": [1.0, 0.5]}, "nothing": float("nan")}


def marks(store):
    """How often each row was computed."""
    return {
        path.name: path.read_text().count("computed") for path in sorted(Path(store).iterdir()) if path.is_file()
    }


def run(config=CONFIG, out=None, **options):
    return records.fill("fake", config, cells(config), row, out, **options)


def figures(rows):
    return [report.Section("What came out", [f"{len(rows)} rows."])]


if __name__ == "__main__":
    from experiments.lib import command

    command.main("fake", run, figures, CONFIG, __doc__)
