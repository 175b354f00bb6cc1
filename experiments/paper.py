"""The tables and every figure of the paper for one network and data set, in one report.

    make paper
    make paper ARGS="--dataset mnist"

Runs the experiments behind them, in the order in which they use each other's minima, and gathers what they say.
The first table is what the paper claims, and whether it holds here. What has been run before is not run again.
"""

from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from experiments import (
    batch_size,
    causes,
    cifar,
    claims,
    command,
    correlation,
    digits,
    landscape,
    mnist,
    remedies,
    reparametrise,
    tables,
    trajectory,
    warm_start,
)
from experiments.training import Network
from gengap import records, report


class Config(NamedTuple):
    """What the report is about."""

    dataset: str = "digits"
    """"digits", or any TFDS image-classification set"""
    network: Network | None = None
    """by default the paper's for the data set"""
    num_seeds: int | None = None
    """starting points in every part; by default those of each experiment"""
    train_size: int | None = None
    """use only the first so many training examples"""
    epochs: int | None = None
    """the most epochs in every part; by default those of each experiment"""


CONFIG = Config()
TABLES = {"digits": digits, "mnist": mnist, "cifar10": cifar}
FIGURES: dict[str, Any] = {
    "landscape": landscape,
    "batch_size": batch_size,
    "warm_start": warm_start,
    "trajectory": trajectory,
}
BESIDE: dict[str, Any] = {
    "reparametrise": reparametrise,
    "correlation": correlation,
    "causes": causes,
    "remedies": remedies,
}
"""What claims are tested with too, where it has been run; it has figures of its own."""


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
    settings: str = "CONFIG",
) -> records.Run:
    """Run the parts, each in its own directory beside `out`; returns their rows, each with its "part" and "run".

    Args:
      config: the settings.
      out: the directory of the report; `None` keeps nothing on disk.
      fresh: move earlier runs of the parts aside and begin anew.
      data_dir: the TFDS directory.
      settings: the name of the settings that each part begins with.
    """
    changes = {name: value for name, value in config._asdict().items() if value is not None}
    rows, added = [], 0
    for name, part in _parts(config.dataset).items():
        default = getattr(part, settings)
        asked = default._replace(training=default.training._replace(**changes))
        where = records.run_name(command.flat(asked), command.flat(part.CONFIG))
        path = None if out is None else Path(out).parent.parent / name / where
        done = part.run(asked, path, fresh=fresh, data_dir=data_dir)
        rows += claims.gathered(done, where)
        added += done.added
    for name, part in BESIDE.items():
        default = command.flat(part.CONFIG)
        where = records.run_name(default | {"dataset": config.dataset}, default)
        if out is not None and (Path(out).parent.parent / name / where / "config.json").exists():
            rows += claims.gathered(records.read(Path(out).parent.parent / name / where), where)
    return records.Run(None if out is None else Path(out), "paper", config._asdict(), rows, [0.0] * (added + 1))


def figures(rows: list[records.Row]) -> list[report.Section]:
    """The claims of the paper, and what each part draws and says."""
    parts = {row["part"]: [other for other in rows if other["part"] == row["part"]] for row in rows}
    every = {name: part for dataset in TABLES for name, part in _parts(dataset).items()} | {"tables": tables}
    sections = [section for name, own in parts.items() if name in every for section in every[name].figures(own)]
    fig2 = any(section.name.startswith("fig2") for section in sections)
    return [claims.table(rows), *(one for one in sections if not (one.name == "accuracy" and fig2))]


def _parts(dataset: str) -> dict[str, Any]:
    of_tables = TABLES.get(dataset, tables)
    return {of_tables.__name__.rsplit(".", 1)[-1]: of_tables, **FIGURES}


if __name__ == "__main__":
    command.main("paper", run, figures, CONFIG, __doc__)
