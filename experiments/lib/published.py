"""Write every report below a directory of runs again, from the rows on disk; no row is computed again.

    make published

One report for each run. Below `paper/` there is one for each data set, as `make paper` makes it of all its runs.
`claims.md` has the claims of all data sets side by side.
"""

import importlib
import itertools
import sys
from pathlib import Path

import tyro

from experiments import paper
from experiments.lib import claims
from gengap import records, report


def main(root: Path = Path("published")) -> None:
    """Write the reports.

    Args:
      root: directory of the runs, each in `<experiment>/<name>/`.
    """
    rows_of: dict[str, list[records.Row]] = {}
    for path in sorted(root.glob("*/*/config.json")):
        run = records.read(path.parent)
        figures = importlib.import_module(f"experiments.{run.experiment}").figures
        report.write(run.experiment, figures(run.rows), run, path.parent)
        rows_of.setdefault(run.config["dataset"], []).extend(claims.gathered(run, path.parent.name))
        sys.stdout.write(f"{path.parent}: {len(run.rows)} rows\n")
    whole = {d: rows for d, rows in sorted(rows_of.items()) if any(row["part"] in paper.TABLES for row in rows)}
    for dataset, rows in whole.items():
        out = root / "paper" / ("default" if dataset == "digits" else f"dataset={dataset}")
        run = records.Run(out, "paper", {"dataset": dataset}, rows, [0.0])
        sys.stdout.write(f"{report.write('paper', paper.figures(rows), run, out)}\n")
    if rows := list(itertools.chain(*whole.values())):
        run = records.Run(root, "paper", {}, rows, [0.0])
        text = report.markdown("The paper's claims", claims.side_by_side(rows, paper.CLAIMS), run)
        (root / "claims.md").write_text(text, encoding="utf-8")
        sys.stdout.write(f"{root / 'claims.md'}\n")


if __name__ == "__main__":
    tyro.cli(main)
