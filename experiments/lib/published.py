"""Write every report below a directory of runs again, from the rows on disk; no row is computed again.

    make published

One report for each run. Below `paper/` there is one for each data set, as `make paper` makes it of all its runs.
`claims.md` has the claims of all data sets side by side.
"""

import importlib
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from experiments import paper
from experiments.lib import claims
from gengap import ascent, origins, records, report

_NOTES = [
    f"Training has version {origins.TRAINING_VERSION} and the maximiser version {ascent.ASCENT_VERSION}.",
    "The rows of one run have one version of each. Those of older versions have not been computed again yet.",
    "Sharpness is measured in float32. The GPU trained some minima in TF32, JAX's default at the time.",
    "Hours are the wall-clock time of the rows, summed, on machines that did other work too.",
]


def _lines(run: records.Run, name: str) -> list[dict[str, Any]]:
    """The command of a run, with a line for each commit and device that computed rows of it."""
    flags = " ".join(_flag(part.partition("=")[0], run.config) for part in name.split(",") if "=" in part)
    lines = []
    for (commit, device, precision), rows in _by_origin(run).items():
        versions = sorted({str(row["ascent_version"]) for row in rows if "ascent_version" in row})
        hours = sum(row["origin"]["seconds"] for row in rows) / 3600
        line = {"command": f"make exp-{run.experiment}" + f' ARGS="{flags}"' * bool(flags), "rows": len(rows)}
        line |= {
            "training": str(claims.training_version(rows[0])),
            "maximiser": ", ".join(versions) or report.DASH,
        }
        line |= {"commit": commit, "device": device, "precision": precision}
        lines.append(line | {"hours": f"{hours:.2f}"})
    return lines


def _flag(name: str, config: Mapping[str, Any]) -> str:
    value = config[name]
    return f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _by_origin(run: records.Run) -> dict[tuple[str, str, str], list[records.Row]]:
    groups: dict[tuple[str, str, str], list[records.Row]] = {}
    for row in run.rows:
        origin = row["origin"]
        usual = "float32" if origin["device"].startswith("cpu") else "TF32"
        precision = run.config.get("train_precision") or origin.get("matmul_precision") or usual
        groups.setdefault((origin["commit"], origin["device"], precision), []).append(row)
    return groups


def main(root: Path = Path("published")) -> None:
    """Write the reports.

    Args:
      root: directory of the runs, each in `<experiment>/<name>/`.
    """
    rows_of: dict[str, list[records.Row]] = {}
    runs = []
    for path in sorted(root.glob("*/*/config.json")):
        run = records.read(path.parent)
        figures = importlib.import_module(f"experiments.{run.experiment}").figures
        report.write(run.experiment, figures(run.rows), run, path.parent)
        runs += _lines(run, path.parent.name)
        rows_of.setdefault(run.config["dataset"], []).extend(claims.gathered(run, path.parent.name))
        sys.stdout.write(f"{path.parent}: {len(run.rows)} rows\n")
    whole = {d: rows for d, rows in sorted(rows_of.items()) if any(row["part"] in paper.TABLES for row in rows)}
    for dataset, rows in whole.items():
        out = root / "paper" / ("default" if dataset == "digits" else f"dataset={dataset}")
        run = records.Run(out, "paper", {"dataset": dataset}, rows, [0.0])
        sys.stdout.write(f"{report.write('paper', paper.figures(rows), run, out)}\n")
    if rows := list(itertools.chain(*whole.values())):
        run = records.Run(root, "paper", {}, rows, [0.0])
        sections = claims.side_by_side(rows, paper.CLAIMS)
        sections.append(report.Section("What was run", _NOTES, report.frame(runs)))
        text = report.markdown("The paper's claims", sections, run)
        (root / "claims.md").write_text(text, encoding="utf-8")
        sys.stdout.write(f"{root / 'claims.md'}\n")


if __name__ == "__main__":
    tyro.cli(main)
