"""Rows -> tables -> Markdown -> the terminal, `report.md`, and one self-contained HTML page.

The page needs no network: everything it shows is inside it.
"""

import base64
import functools
import json
import math
import os
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import markdown_it

from gengap import paper, plots, records
from gengap.records import Row, Run
from gengap.stats import comparable, where

__all__ = [
    "DASH", "Section", "apart", "first_findings", "frame", "html", "markdown", "number", "of_batches", "origins",
    "percent", "plain", "positive", "spread", "terminal", "theirs", "times", "write",
]  # fmt: skip

DASH = "-"
_CSS = """
body { margin: 2rem auto; max-width: 66rem; padding: 0 1rem; color: #1a1a1a; background: #fff;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .8rem;
        font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .4rem; white-space: nowrap; text-align: left; } th { border-bottom: 1px solid #555; }
img { width: 100%; max-width: 56rem; } pre { white-space: pre-wrap; font-size: .8rem; }
li, p { overflow-wrap: break-word; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } img, tr { break-inside: avoid; } }
"""


class Section(NamedTuple):
    """A part of a report.

    Attributes:
      title: title of the section.
      findings: sentences computed from the numbers.
      table: a table of formatted cells.
      figure: a figure.
      caption: what the figure shows.
      name: file name of the figure.
    """

    title: str
    findings: Sequence[str] = ()
    table: Any = None
    figure: Any = None
    caption: str = ""
    name: str = ""


def apart(figures: Callable[[list[Row]], list[Section]]) -> Callable[[list[Row]], list[Section]]:
    """Make `figures`, for comparable rows, draw each group of any rows; the titles name the group."""

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


def terminal(sections: Sequence[Section], width: int = 100, batches: str = "") -> str:
    """The sections as text for a terminal: what SB and LB are, the tables, and the findings."""
    blocks = [_filled(f"{_PAIR}: {batches}", width, "")] * bool(batches)
    for section in sections:
        if section.findings or section.table is not None:
            blocks.append("\n".join(textwrap.wrap(section.title, width)))
        if section.table is not None:
            blocks[-1] += "\n" + section.table.to_string(index=False, line_width=width)
        for sentence in section.findings:
            blocks[-1] += "\n" + _filled(sentence, width)
    return "\n\n".join(blocks) + "\n"


def first_findings(directory: str | os.PathLike, width: int = 100) -> str:
    """The findings of the first section of a report on disk, as text for a terminal."""
    text = (Path(directory) / "report.md").read_text(encoding="utf-8")
    head, _, rest = re.sub(r"\\(.)", r"\1", text).partition("\n## ")
    title, *lines = [*rest.partition("\n## ")[0].splitlines(), ""]
    findings = [line[2:] for line in lines if line.startswith("- ")]
    return terminal([Section(title, findings)], width, head.partition(f"- **{_PAIR}**: ")[2].partition("\n")[0])


def _filled(text: str, width: int, indent: str = "  ") -> str:
    below = indent and 2 * indent
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=below, break_on_hyphens=False)


def markdown(title: str, sections: Sequence[Section], run: Run) -> str:
    """The sections as Markdown; figures are links into `figures/`."""
    lines = [f"# {title}", "", *(f"- **{term}**: {_literal(words)}" for term, words in _terms(run).items()), ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        lines += [*(f"- {_literal(sentence)}" for sentence in section.findings), ""]
        if section.table is not None:
            cells = section.table.map(_literal).rename(columns=_literal)
            lines += [cells.to_markdown(index=False, disable_numparse=True), ""]
        if section.figure is not None:
            lines += [f"![{section.title}](figures/{section.name}.svg)", "", _literal(section.caption), ""]
    if run.config:
        lines += ["## Settings", "", "```json", json.dumps(run.config), "```", ""]
    if run.rows:
        known = origins(run.rows).astype(object).fillna(DASH)
        lines += ["## Provenance", "", known.to_markdown(index=False, disable_numparse=True), ""]
    return "\n".join(lines)


def _terms(run: Run) -> dict[str, str]:
    """What the terms of a report mean, and what was trained, as far as the run says: term -> meaning."""
    in_words = paper.NETWORKS | {"C1-narrow": "C1 with a quarter of its channels and units"}
    networks = [f"{name} is {in_words[name]}" for name in _values(run, "network") if name in in_words]
    known = {
        _PAIR: of_batches(run),
        "Network": f"{'; '.join(networks)}." if networks else "",
        "Sharpness": _of_sharpness(run),
        "Training": _of_training(run.config),
        "Verdicts": _VERDICTS if _values(run, "seed") else "",
        "Digits": _ROUNDING if "digits" in _values(run, "dataset") else "",
    }
    return {term: words for term, words in known.items() if words}


_PAIR = "SB, LB"
_VERDICTS = (
    "a claim holds where the 95 % t interval over n seeds is on its side, and does not hold where it is on the "
    'other. Else, and with two seeds, it is undecided. One seed is no test. "4 of 5" counts the seeds in which '
    "the claim is true."
)
_ROUNDING = (
    "their SB minima depend on rounding. From the same settings one core and two find SB minima that differ in "
    "sharpness by up to a factor of two, and LB minima by 0.5 %. A verdict near the end of its interval can "
    "become undecided."
)


def _values(run: Run, name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in run.rows if name in row))


def of_batches(run: Run) -> str:
    """What SB and LB are, with their batch sizes for each network and data set."""
    sizes = []
    for words, rows in _grouped(run.rows, where).items():
        of_side = _grouped(
            (row for row in rows if row.get("batch_size") and row.get("side")), lambda row: row["side"]
        )
        counts = [" or ".join(map(str, dict.fromkeys(row["batch_size"] for row in of))) for of in of_side.values()]
        if counts:
            sizes.append(f"{words}: {' and '.join(counts)} examples")
    if not sizes and "small_batch" in run.config:
        sizes = [" and ".join(_size(run.config[f"{side}_batch"]) for side in ("small", "large"))]
    if not sizes:
        return ""
    text = "minima that training with small and with large batches finds, from the same starting points"
    return f"{text} ({'; '.join(sizes)}). Where nothing else is said, a pair of numbers is SB | LB."


def _grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _size(batch: float) -> str:
    return f"{batch} examples" if isinstance(batch, int) else f"{100 * batch:g} % of the training set"


def _of_sharpness(run: Run) -> str:
    """What sharpness and epsilon are, if the run has them."""
    columns = [
        name.split("_") for row in run.rows for name in row if re.fullmatch(r"sharpness_\w+_[\d.]+e-\d+", name)
    ]
    epsilons, spaces = dict.fromkeys(float(c[-1]) for c in columns), {column[1] for column in columns}
    if not epsilons:
        return ""
    text = (
        "Metric 2.1 of Keskar et al. (2016): the most by which the training loss f rises in a box around a "
        "minimum x, as 100 (max f - f) / (1 + f). The box reaches epsilon (|x_i| + 1) to each side along each "
        "parameter x_i. "
        f"Epsilon is {' or '.join(f'{epsilon:g}' for epsilon in epsilons)}."
    )
    dim = f"{run.config['dim']} " if "dim" in run.config else ""
    return f"{text} In random subspaces the box lies along {dim}random directions." if "random" in spaces else text


def _of_training(config: Mapping[str, Any]) -> str:
    """How the networks were trained, in words."""
    if "optimizer" not in config or "learning_rate" not in config:
        return ""
    names = {"adam": "Adam", "sgd": "SGD with a momentum of 0.9", "adagrad": "Adagrad"}
    parts = [f"{names[config['optimizer']]} with a learning rate of {config['learning_rate']:g}"]
    at_most = "at most " if config["patience"] or config["target"] else ""
    parts.append(f"{at_most}{config['epochs']} epochs")
    if config["patience"]:
        parts.append(f"until the training loss has not improved for {config['patience']} epochs")
    if config["target"]:
        parts.append(f"until the training loss is below {config['target']:g} nats")
    seeds = config["num_seeds"]
    return f"{', '.join(parts)}; {seeds} seed{'s' * (seeds != 1)}."


def html(text: str, directory: str | os.PathLike) -> str:
    """Markdown as one HTML page, with the figures below `directory` that it links to embedded."""
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
    import pandas as pd  # here, so that --help does not wait: it takes as long to import as JAX

    return pd.DataFrame(lines)


def origins(rows: Sequence[Row]) -> Any:
    """How many rows came from each commit, device and set of versions, and how long they took."""
    table = frame([row["origin"] for row in rows])
    keys = [name for name in table.columns if name not in ("date", "seconds")]
    grouped = table.groupby(keys, dropna=False, sort=False)
    found = grouped.agg(rows=("date", "size"), last=("date", "max"), seconds=("seconds", "sum")).reset_index()
    found["last"] = found["last"].str[:16].str.replace("T", " ")  # UTC
    return found.assign(seconds=found["seconds"].round().astype(int))


def number(value: Any) -> float | None:
    """A finite number as a float; `None` for null, text, NaN and infinities."""
    plain_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain_number and math.isfinite(value) else None


def positive(value: Any) -> float | None:
    """A number that a logarithmic axis can show; `None` for any other."""
    finite = number(value)
    return finite if finite is not None and finite > 0 else None


def percent(share: Any) -> float | None:
    """A share in percent; `None` if it is not a finite number."""
    value = number(share)
    return None if value is None else 100 * value


def theirs(table: Mapping[str, Any], network: str, side: str, key: Any) -> str:
    """The paper's mean and standard deviation."""
    cell = table.get(network, {}).get(side, {}).get(key)
    return DASH if cell is None else f"{cell[0]:.2f} ± {cell[1]:.2f}"


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, with two digits of a small mean; a single value alone."""
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


def times(ratio: float, first: str, second: str) -> tuple[str, str, str]:
    """A ratio of two things as the larger one, how many times the smaller it is, and the smaller one.

    >>> times(0.25, "SB", "LB")
    ('LB', '4.00', 'SB')
    """
    return (second, plain(1 / ratio), first) if 0 < ratio < 1 else (first, plain(ratio), second)


def plain(value: float | None) -> str:
    """A number for a table cell: with two decimals, or two significant digits if it is tiny or huge."""
    if value is None or math.isnan(value):
        return DASH
    size = abs(value)
    if size >= 1e6 or 0 < size < 0.005:
        return f"{value:.2g}"
    return f"{value:.0f}" if size >= 100 else f"{value:.2f}"


def _literal(text: Any) -> str:
    """Text with the markup of Markdown escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", str(text))


def _put(path: Path, content: bytes) -> Path:
    records.atomically(path, lambda file: file.write(content))
    return path
