"""Rows -> tables -> Markdown -> the terminal, `report.md`, and one self-contained HTML page.

The page needs no network: what it shows is inside it.
"""

import base64
import functools
import json
import math
import os
import re
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import markdown_it

from gengap import plots, records
from gengap.records import Row, Run
from gengap.stats import comparable

__all__ = [
    "DASH", "Section", "apart", "first_findings", "frame", "html", "markdown", "number", "origins", "percent",
    "plain", "positive", "spread", "terminal", "theirs", "write",
]  # fmt: skip

DASH = "-"
_CSS = """
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1a1a1a; background: #fff;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .85rem;
        font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; white-space: nowrap; text-align: left; } th { border-bottom: 1px solid #555; }
img { width: 100%; max-width: 56rem; } pre { overflow-x: auto; font-size: .8rem; }
li, p { overflow-wrap: break-word; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } img, tr { break-inside: avoid; } }
"""


class Section(NamedTuple):
    """A part of a report.

    Attributes:
      title: of the section.
      findings: sentences, computed from the numbers.
      table: cells that are ready to be shown.
      figure: what is drawn.
      caption: what the figure shows.
      name: of the figure's file.
    """

    title: str
    findings: Sequence[str] = ()
    table: Any = None
    figure: Any = None
    caption: str = ""
    name: str = ""


def apart(figures: Callable[[list[Row]], list[Section]]) -> Callable[[list[Row]], list[Section]]:
    """`figures` of comparable rows, made into one that gives those of each group and says in the titles whose."""

    @functools.wraps(figures)
    def of_each(rows: list[Row]) -> list[Section]:
        groups = comparable(rows)
        if len(groups) < 2:
            return figures(rows)
        return [
            section._replace(
                title=f"{section.title}: {words}",
                name=section.name and f"{section.name}-{re.sub(r'[^a-zA-Z0-9]+', '-', words)}",
            )
            for words, group in groups.items()
            for section in figures(group)
        ]

    return of_each


def terminal(sections: Sequence[Section], width: int = 100) -> str:
    """The sections as text for a terminal: what was found, and the tables."""
    blocks = []
    for section in sections:
        if section.findings or section.table is not None:
            blocks.append("\n".join(textwrap.wrap(section.title, width)))
        if section.table is not None:
            blocks[-1] += "\n" + section.table.to_string(index=False, line_width=width)
        for sentence in section.findings:
            blocks[-1] += "\n" + textwrap.fill(
                sentence, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
    return "\n\n".join(blocks) + "\n"


def first_findings(directory: str | os.PathLike, width: int = 100) -> str:
    """What a report that is on disk says first, for a terminal."""
    text = (Path(directory) / "report.md").read_text(encoding="utf-8")
    title, *lines = [*text.partition("\n## ")[2].partition("\n## ")[0].splitlines(), ""]
    findings = [re.sub(r"\\(.)", r"\1", line[2:]) for line in lines if line.startswith("- ")]
    return terminal([Section(title, findings)], width)


def markdown(title: str, sections: Sequence[Section], run: Run) -> str:
    """The sections as Markdown; figures are links into `figures/`."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        lines += [*(f"- {_literal(sentence)}" for sentence in section.findings), ""]
        if section.table is not None:
            cells = section.table.map(_literal).rename(columns=_literal)
            lines += [cells.to_markdown(index=False, disable_numparse=True), ""]
        if section.figure is not None:
            lines += [f"![{section.title}](figures/{section.name}.svg)", "", _literal(section.caption), ""]
    lines += ["## What was asked", "", "```json", json.dumps(run.config, indent=1), "```", ""]
    if run.rows:
        lines += ["## Where the rows come from", "", origins(run.rows).to_markdown(index=False), ""]
    return "\n".join(lines)


def html(text: str, directory: str | os.PathLike) -> str:
    """One page of Markdown; the figures that it links to below `directory` are put inside."""
    body = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def inside(found: re.Match) -> str:
        content = base64.b64encode((Path(directory) / found[1]).read_bytes()).decode()
        return f'src="data:image/svg+xml;base64,{content}"'

    body = re.sub(r'src="(figures/[^"]+\.svg)"', inside, body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(text.splitlines()[0].lstrip('# '))}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"{body}</body>\n</html>\n"
    )


def write(title: str, sections: Sequence[Section], run: Run, directory: str | os.PathLike) -> Path:
    """Write `report.md`, `report.html` and `figures/*.svg`; returns the path of the page."""
    out = Path(directory)
    for section in sections:
        if section.figure is not None:
            _put(out / "figures" / f"{section.name}.svg", plots.image(section.figure))
    text = markdown(title, sections, run)
    _put(out / "report.md", text.encode())
    return _put(out / "report.html", html(text, out).encode())


def frame(lines: Any) -> Any:
    """A table of a section, a `pandas.DataFrame`."""
    import pandas as pd  # takes as long as JAX to import, for which --help need not wait

    return pd.DataFrame(lines)


def origins(rows: Sequence[Row]) -> Any:
    """Which rows came from which commit, device and versions, and what they took."""
    table = frame([row["origin"] for row in rows])
    keys = [name for name in table.columns if name not in ("date", "seconds")]
    grouped = table.groupby(keys, dropna=False, sort=False)
    return grouped.agg(rows=("date", "size"), last=("date", "max"), seconds=("seconds", "sum")).reset_index()


def number(value: Any) -> float | None:
    """A finite number as a float; `None` for null, text, NaN and infinities."""
    plain_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain_number and math.isfinite(value) else None


def positive(value: Any) -> float | None:
    """A number that a logarithmic axis can show; `None` for any other."""
    finite = number(value)
    return finite if finite is not None and finite > 0 else None


def percent(share: Any) -> float | None:
    """A share in percent; `None` where it is no finite number."""
    value = number(share)
    return None if value is None else 100 * value


def theirs(table: Mapping[str, Any], network: str, side: str, key: Any) -> str:
    """The paper's mean and standard deviation."""
    cell = table.get(network, {}).get(side, {}).get(key)
    return DASH if cell is None else f"{cell[0]:.2f} ± {cell[1]:.2f}"


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, to two digits of a small mean; a single value as it is."""
    if not len(values):
        return DASH
    mean = statistics.fmean(values)
    if len(values) == 1:
        return plain(mean)
    deviation = statistics.stdev(values)
    if 1e-6 < abs(mean) < 0.1:
        digits = 1 - math.floor(math.log10(abs(mean)))
        return f"{mean:.{digits}f} ± {deviation:.{digits}f}"
    if abs(mean) >= 100:
        return f"{mean:.0f} ± {deviation:.0f}"
    return f"{plain(mean)} ± {plain(deviation)}"


def plain(value: float | None) -> str:
    """A number for a table cell: two decimals, or two digits where those would be lost."""
    if value is None or math.isnan(value):
        return DASH
    size = abs(value)
    if size >= 1e6 or 0 < size < 0.005:
        return f"{value:.2g}"
    return f"{value:.0f}" if size >= 100 else f"{value:.2f}"


def _literal(text: Any) -> str:
    """Text in which Markdown sees no markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", str(text))


def _put(path: Path, content: bytes) -> Path:
    records.atomically(path, lambda file: file.write(content))
    return path
