"""One report of the tables and every figure of the paper, from the runs that `make paper` makes.

    make paper DATASET=digits
    make paper DATASET=mnist

Nothing is trained or measured here: read are the summaries of the experiments with this data set, at their
default settings. `make paper` runs them first, in the order in which they use each other's minima, and comes
to `make exp-paper` at the end.
"""

from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from gengap import cli, protocol, records


class Config(NamedTuple):
    """The runs to report on."""

    network: protocol.Network = "f1"
    """which of the paper's networks the figures are of"""
    dataset: str = "digits"
    """the data set"""


CONFIG = Config()
SMOKE = CONFIG
FIGURES = ("landscape", "batch_size", "warm_start", "trajectory")


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> dict[str, Any]:
    """Returns the summaries of all parts as one, which is also written to the directory `out`.

    The parts are beside `out`: `<results>/landscape/...` for `<results>/paper/...`.
    """
    results = Path("results") if out is None else Path(out).resolve().parent.parent
    name = records.run_name(config._asdict(), CONFIG._asdict())
    paths = {"tables": results / protocol.tables_run(config.dataset)}
    paths |= {figure: results / figure / name for figure in FIGURES}
    parts = {}
    for part, path in paths.items():
        if not (path / "summary.json").exists():
            raise ValueError(
                f"{path} has no summary.json yet: `make paper DATASET={config.dataset}` runs all parts"
            )
        parts[part] = records.read(path)
    summary = {
        "experiment": f"paper, {config.network.upper()} on {config.dataset}",
        "complete": all(part["complete"] for part in parts.values()),
        "environment": parts["tables"]["environment"],
        "parts": parts,
    }
    if out is not None:
        records.write_json(Path(out) / "summary.json", summary)
    return summary


if __name__ == "__main__":
    cli.main("paper", run, CONFIG, __doc__)
