"""Every report below a directory of runs again, from the rows that are there; nothing is computed anew.

    make published

One report for each run, and below `paper/` one for each data set, as `make paper` makes it of all its runs.
"""

import importlib
import sys
from pathlib import Path

import tyro

from experiments import claims, paper
from gengap import records, report


def main(root: Path = Path("published")) -> None:
    """Write the reports.

    Args:
      root: where the runs are, each in `<experiment>/<name>/`.
    """
    gathered: dict[str, list[records.Row]] = {}
    for path in sorted(root.glob("*/*/config.json")):
        run = records.read(path.parent)
        figures = importlib.import_module(f"experiments.{run.experiment}").figures
        report.write(run.experiment, figures(run.rows), run, path.parent)
        own = gathered.setdefault(run.config["dataset"], [])
        own += [{**row, "part": run.experiment} for row in run.rows]
        sys.stdout.write(f"{path.parent}: {len(run.rows)} rows\n")
    for dataset, rows in gathered.items():
        if not any(row["part"] in claims.TABLES for row in rows):
            continue
        out = root / "paper" / ("default" if dataset == "digits" else f"dataset={dataset}")
        run = records.Run(out, "paper", {"dataset": dataset}, rows, [0.0])
        sys.stdout.write(f"{report.write('paper', paper.figures(rows), run, out)}\n")


if __name__ == "__main__":
    tyro.cli(main)
