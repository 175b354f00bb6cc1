"""Every report below a directory of runs again, from the rows that are there; nothing is computed anew.

    make published

One report for each run. Below `paper/` there is one for each data set, as `make paper` makes it of all its runs,
and one with the claims of all data sets side by side.
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
        own += claims.gathered(run, path.parent.name)
        sys.stdout.write(f"{path.parent}: {len(run.rows)} rows\n")
    whole = {d: rows for d, rows in gathered.items() if any(row["part"] in claims.TABLES for row in rows)}
    for dataset, rows in sorted(whole.items()):
        out = root / "paper" / ("default" if dataset == "digits" else f"dataset={dataset}")
        run = records.Run(out, "paper", {"dataset": dataset}, rows, [0.0])
        sys.stdout.write(f"{report.write('paper', paper.figures(rows), run, out)}\n")
    if whole:
        out, section = (
            root / "paper" / "side_by_side",
            claims.side_by_side(whole[dataset] for dataset in sorted(whole)),
        )
        run = records.Run(
            out, "paper", {"dataset": list(whole)}, [row for rows in whole.values() for row in rows], [0.0]
        )
        sys.stdout.write(f"{report.write('paper', [section], run, out)}\n")


if __name__ == "__main__":
    tyro.cli(main)
