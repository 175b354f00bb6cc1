"""The tables and every figure of the paper for one network and data set, in one report.

    make paper
    make paper ARGS="--dataset mnist"

It runs the experiments behind them, in an order that lets them share minima, and gathers their results. The first
table lists the paper's claims and whether each holds here. What has been run before is not run again.
"""

from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from experiments import (
    batch_size,
    causes,
    cifar,
    correlation,
    digits,
    landscape,
    mnist,
    remedies,
    reparametrise,
    theories,
    timit,
    trajectory,
    warm_start,
)
from experiments.lib import claims, command
from experiments.lib.settings import Network
from gengap import records, report
from gengap.cluster import Cluster


class Config(NamedTuple):
    """Settings of every part."""

    dataset: str = "digits"
    """"digits", any image-classification set of TFDS, or an .npz file"""
    network: Network | None = None
    """network; by default the paper's for the data set"""
    num_seeds: int | None = None
    """number of starting points in every part; by default that of each experiment"""
    train_size: int | None = None
    """number of training examples, the first ones; by default all"""
    epochs: int | None = None
    """maximum number of epochs in every part; by default that of each experiment"""


CONFIG = Config()
TABLES: dict[str, Any] = {"digits": digits, "mnist": mnist, "cifar": cifar, "timit": timit}
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
    "theories": theories,
}
"""Experiments whose claims are tested too if they have been run; their figures are in their own reports."""
CLAIMS: dict[tuple[str, ...], claims.Tests] = {
    tuple(TABLES): digits.claims,
    ("landscape",): landscape.claims,
    ("trajectory",): trajectory.claims,
    ("batch_size",): batch_size.claims,
    ("warm_start",): warm_start.claims,
    ("causes",): causes.claims,
    ("remedies",): remedies.claims,
    ("reparametrise",): reparametrise.claims,
    ("correlation",): correlation.claims,
    ("theories",): theories.claims,
}
"""In the order of the paper."""


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    jobs: int | Cluster | None = None,
    settings: str = "CONFIG",
) -> records.Run:
    """Run the parts, each in its own directory beside `out`; returns their rows, each with its "part" and "run".

    Args:
      config: the settings.
      out: the directory of the report; `None` keeps nothing on disk.
      fresh, jobs: as in `records.fill`.
      settings: the name of the settings that each part starts from.
    """
    changes = {name: value for name, value in config._asdict().items() if value is not None}
    rows, added = [], 0
    for name, part in _parts(config.dataset).items():
        default = getattr(part, settings)
        asked = default._replace(training=default.training._replace(**changes))
        where = records.run_name(records.settings_of(asked), records.settings_of(part.CONFIG))
        path = None if out is None else Path(out).parent.parent / name / where
        part_run = part.run(asked, path, fresh=fresh, jobs=jobs)
        rows += claims.gathered(part_run, where)
        added += part_run.added
    for name, part in BESIDE.items():
        default = records.settings_of(part.CONFIG)
        where = records.run_name(default | {"dataset": config.dataset}, default)
        if out is not None and (Path(out).parent.parent / name / where / "config.json").exists():
            rows += claims.gathered(records.read(Path(out).parent.parent / name / where), where)
    return records.Run(None if out is None else Path(out), "paper", config._asdict(), rows, [0.0] * (added + 1))


def figures(rows: list[records.Row]) -> list[report.Section]:
    """The claims of the paper, and the sections of each part."""
    parts: dict[str, ModuleType] = TABLES | FIGURES
    rows_of = {
        name: [row for row in rows if row["part"] == name] for name in dict.fromkeys(r["part"] for r in rows)
    }
    sections = [
        section for name, of_part in rows_of.items() if name in parts for section in parts[name].figures(of_part)
    ]
    fig2 = any(section.name.startswith("fig2") for section in sections)
    kept = [section for section in sections if not (section.name == "accuracy" and fig2)]
    return [*claims.tables(rows, CLAIMS), *kept]


def _parts(dataset: str) -> dict[str, Any]:
    name = dataset if dataset in TABLES else "cifar"
    return {name: TABLES[name], **FIGURES}


if __name__ == "__main__":
    command.main("paper", run, figures, CONFIG, __doc__)
