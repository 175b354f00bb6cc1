"""The summary of a run -> plain-text tables, figures, and one self-contained HTML page.

    page = report.write(summary, "results/mnist/1")

Everything here is a function of the summary alone, so the same summary gives the same bytes. What the page
needs is inside it: it loads nothing from the network.
"""

import base64
import json
import os
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gengap import figures as drawing
from gengap import landscape_sections as around
from gengap import measures_sections as trust
from gengap import paper
from gengap import training_sections as training
from gengap.findings import Section
from gengap.summaries import Group, Summary, diverged, groups, measures, number, percent
from gengap.tables import DASH, Table, blanked, headline, lost, plain, spread, tables, unfinished, wrapped
from gengap.tables import text as tables_text

__all__ = ["figures", "html", "sections", "tables", "text", "write"]

_ROW = ("network", "dataset", "method", "seed", "batch_size", "epochs", "steps", "diverged_at",
        "train_loss", "train_accuracy", "test_loss", "test_accuracy", "distance")  # fmt: skip

_CAPTIONS = {
    "accuracy": (
        "Accuracy after each epoch, as the paper's Fig. 2: training solid, test dashed. Thin lines are "
        "seeds; the thick line is their mean over the epochs that all of them have. Thin lines that end in a "
        "cross diverged and are in no mean. Dots, where the paper has a curve: its Fig. 2, digitised."
    ),
    "sharpness": (
        "Sharpness (Metric 2.1) of every seed on a logarithmic axis, SB beside LB; a thin line joins the two "
        "minima of a seed. In random subspaces a point is the mean over the draws of its seed. Beside them "
        "the paper's mean and standard deviation. Zeros and values that are not finite stand at the bottom "
        "edge."
    ),
}

_SECTIONS: dict[str, tuple[Callable[[Sequence[Any]], Section | None], ...]] = {
    "trajectory": (training.accuracy, training.along_training, training.equal_loss, training.speedup),
    "landscape": (around.straight, around.curved, around.connection, around.planes, around.neighbourhood),
    "batch_size": (training.batch_size,),
    "warm_start": (training.warm_start,),
    "reparametrise": (trust.reparametrised, trust.audited),
    "correlation": (trust.correlated,),
}
_ORDER = (
    "sharpness",
    "accuracy",
    "fig2",
    "fig3",
    "fig4",
    "fig5",
    "fig6",
    "equal_loss",
    "neighbourhood",
    "speedup",
    "fig7",
    "connection",
    "planes",
    "reparametrised",
    "audited",
    "correlated",
)

_CSS = """
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1a1a1a; background: #fff;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h1, p, li, td, figcaption { overflow-wrap: break-word; }
.lead { font-size: 1.1rem; } .warn { border-left: 4px solid #e08300; padding-left: .7rem; }
.box { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { border-bottom: 1px solid #555; } th.w, td.w { text-align: left; }
tr.top td { border-top: 1px solid #ccc; } th.long, td.long { text-align: left; }
td.long { white-space: normal; min-width: 12rem; }
.notes { font-size: .9rem; padding-left: 1.2rem; color: #333; }
figure { margin: 1rem 0 2rem; } figure img { width: 100%; min-width: 34rem; max-width: 56rem; }
figcaption { font-size: .9rem; color: #333; }
@media (max-width: 40rem) { body { margin: 1rem auto; } h1 { font-size: 1.3rem; }
  table { font-size: .8rem; } th, td { padding: .15rem .3rem; } }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } .box { overflow: visible; } .wide table { font-size: 5pt; }
  .wide th, .wide td { padding: 0 .15rem; white-space: normal; } }
"""


def sections(summary: Summary) -> list[Section]:
    """The figures of a run with what there is to say of each, in the paper's order.

    Args:
        summary: the summary of a run; or one with "parts", the summaries of several, by name.

    Returns:
        For the runs behind the tables `"accuracy"`, per epoch as in the paper's Fig. 2, and `"sharpness"`, every
        seed beside the paper's mean; for the others the figures of the paper that they are behind. Each only if
        the run has something to draw in it.
    """
    if (parts := summary.get("parts")) is not None:
        found = [section for part in parts.values() for section in sections(part)]
        names = {section.name for section in found}
        kept = [section for section in found if not (section.name == "accuracy" and "fig2" in names)]
        return sorted(kept, key=lambda section: _ORDER.index(section.name))
    rows = summary.get("rows") or []
    if (makers := _SECTIONS.get(str(summary.get("experiment")))) is not None:
        return [made for make in makers if (made := make(rows)) is not None]
    return [
        Section(name, "", figure, f"{_CAPTIONS[name]} {_seen(summary, name)}", [])
        for name, figure in _tables_figures(summary).items()
    ]


def figures(summary: Summary) -> dict[str, drawing.Figure]:
    """The figures of `sections` by name, SB and LB in the same two colours."""
    return {section.name: section.figure for section in sections(summary)}


def text(summary: Summary) -> str:
    """What a run found as plain text: the tables as "paper | here", and what the figures say."""
    tabled = _tabled(summary)
    blocks = [tables_text(tabled)] if tabled is not None else []
    for section in sections(summary):
        if section.findings:
            found = [line for item in section.findings for line in wrapped(item, "  ")]
            blocks.append("\n".join([section.title, *found]) + "\n")
    return "\n".join(blocks)


def _tabled(summary: Summary) -> Summary | None:
    """The run whose rows belong into Tables 2 to 4."""
    every = [summary] if summary.get("parts") is None else list(summary["parts"].values())
    return next((one for one in every if str(one.get("experiment")) not in _SECTIONS), None)


def _tables_figures(summary: Summary) -> dict[str, drawing.Figure]:
    every = groups(summary)
    drawn = {}
    if panels := [panel for group in every if (panel := _curves(group)).kept or panel.diverged]:
        drawn["accuracy"] = drawing.accuracy(panels)
    points = {}
    for measure in measures(summary):
        points[measure.where, f"epsilon {measure.epsilon:g}"] = [
            drawing.Points(
                _label(group, bool(measure.table)),
                {
                    method: {
                        seed: None if diverged(row) else measure.value(row)
                        for seed, row in seeds.items()
                        if diverged(row) or measure.find(row)
                    }
                    for method, seeds in group.methods.items()
                },
                {
                    method: found
                    for method in group.methods
                    if (found := group.paper(measure.table, method, measure.epsilon))
                },
            )
            for group in every
        ]
    if points:
        drawn["sharpness"] = drawing.sharpness(points)
    return drawn


def html(summary: Summary) -> str:
    """One page with everything a run found, the paper's numbers beside its own; it needs no network.

    If the summary has `"choices"`, a list of `{"choice", "note", "SB": {epsilon: values}, "LB": ...}`, they
    become a table, with the paragraphs of `"choices_note"` below it.

    Args:
        summary: the summary of a run.

    Returns:
        The page, figures inside. Text that comes from the records is escaped.
    """
    return _page(summary, [(section, drawing.image(section.figure, "svg")) for section in sections(summary)])


def write(summary: Summary, directory: str | os.PathLike[str]) -> Path:
    """Write `report.html`, and each figure as SVG and as PNG in `figures/`.

    Each file is written under a temporary name and renamed, so a reader never sees half of one.

    Args:
        summary: the summary of a run.
        directory: where to; made if it is not there.

    Returns:
        The path of the page.
    """
    out = Path(directory)
    vector = []
    for section in sections(summary):
        vector.append((section, drawing.image(section.figure, "svg")))
        _put(out / "figures" / f"{section.name}.svg", vector[-1][1])
        _put(out / "figures" / f"{section.name}.png", drawing.image(section.figure, "png"))
    return _put(out / "report.html", _page(summary, vector).encode())


def _put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    return temporary.replace(path)


def _curves(group: Group) -> drawing.Curves:
    kept: dict[tuple[str, str], list[Sequence[float | None]]] = {}
    away: dict[tuple[str, str], list[Sequence[float | None]]] = {}
    for method, seeds in group.methods.items():
        for row in seeds.values():
            history = row.get("history") or {}
            for split in ("train", "test"):
                if shares := [number(share) for share in history.get(f"{split}_accuracy") or []]:
                    side = away if diverged(row) else kept
                    percents = [None if share is None else 100 * share for share in shares]
                    side.setdefault((method, split), []).append(percents)
    theirs = {} if group.elsewhere else paper.figure("fig2_curves").get(group.network, {})
    digitised = {
        (method, split): (curve.x, curve.y)
        for name, curve in theirs.items()
        for method, split in [name.split("_")]
        if method in group.methods
    }
    return drawing.Curves(str(group), kept, away, digitised)


def _label(group: Group, compared: bool) -> str:
    lines = [group.network, group.dataset]
    return "\n".join([*lines, f"paper: {group.elsewhere}"] if compared and group.elsewhere else lines)


def _page(summary: Summary, images: Sequence[tuple[Section, bytes]]) -> str:
    name = str(summary.get("experiment") or "run")
    title = f"{name}: small batch (SB) against large batch (LB)"
    tabled = _tabled(summary)
    parts = summary.get("parts") or {"": summary}
    made = tables(tabled) if tabled is not None else []
    body = [f"<h1>{escape(title)}</h1>"]
    body += [f'<p class="warn">{escape(line)}</p>' for part in parts.values() for line in unfinished(part)]
    body += [f'<p class="lead">{escape(headline(tabled))}</p>'] if tabled is not None else []
    body += [_table(table) for table in made if not table.title.startswith("Distance")]
    body += ["<h2>Figures</h2>"] if images and not images[0][0].title else []
    body += [_figure(*image) for image in images]
    body += [_table(table) for table in made if table.title.startswith("Distance")]
    body += _choices(tabled) if tabled is not None else []
    for name, part in parts.items():
        body.append(_pairs(f"The choices under which it was measured{name and f': {name}'}", part.get("config")))
    body += [_pairs("Versions and machine", summary.get("environment"))]
    body += ["<h2>Runs that diverged</h2>", _items(lost(tabled)), _rows(tabled)] if tabled is not None else []
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _table(table: Table, long: Iterable[str] = (), wide: bool = False) -> str:
    words = [' class="w"' if i < table.labels else "" for i in range(len(table.columns))]
    words = [' class="long"' if c in set(long) else w for c, w in zip(table.columns, words, strict=True)]
    head = "".join(f"<th{w}>{escape(cell)}</th>" for cell, w in zip(table.columns, words, strict=True))
    lines = []
    for row in blanked(table):
        cells = "".join(f"<td{w}>{escape(cell)}</td>" for cell, w in zip(row, words, strict=True))
        top = ' class="top"' if row[0] else ""
        lines.append(f"<tr{top}>{cells}</tr>")
    first, _, rest = table.title.partition("; ")
    return (
        f"<h2>{escape(first)}</h2>\n"
        + (f"<p>{escape(rest[0].upper() + rest[1:])}.</p>\n" if rest else "")
        + f'<div class="box{" wide" if wide else ""}"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f"\n</tbody></table></div>\n{_items(table.notes)}"
    )


def _items(notes: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">\n{items}\n</ul>' if notes else ""


def _figure(section: Section, content: bytes) -> str:
    # an <img>, not inline <svg>: the ids inside two inline images would clash
    data = base64.b64encode(content).decode()
    return (
        (f"<h2>{escape(section.title)}</h2>\n" if section.title else "")
        + f'<figure><div class="box"><img alt="{escape(section.name)} of SB and LB" '
        f'src="data:image/svg+xml;base64,{data}"></div>\n'
        f"<figcaption>{escape(section.caption)}</figcaption></figure>\n{_items(section.findings)}"
    )


def _seen(summary: Summary, name: str) -> str:
    every = groups(summary)
    if name == "accuracy":
        ends = [
            f"{group}: test accuracy at the end "
            + ", ".join(
                f"{spread(list(group.values(method, percent('test_accuracy')).values()))} % ({method})"
                for method in group.methods
            )
            for group in every
        ]
        return f"{'; '.join(ends)}."
    counts = []
    for measure in measures(summary):
        pairs = [gap for group in every for gap in group.differences(measure.value)]
        counts.append(f"{sum(gap < 0 for gap in pairs)} of {len(pairs)} pairs ({measure})")
    return f"LB lies above SB in {', '.join(counts)}; the sign tests are below Tables 3 and 4."


def _pairs(title: str, values: Any) -> str:
    if not values:
        return ""
    rows: list[tuple[str, ...]] = [
        (str(key), item if isinstance(item, str) else json.dumps(item)) for key, item in values.items()
    ]
    return _table(Table(title, ("name", "value"), rows, [], 1), long=["value"])


def _choices(summary: Summary) -> list[str]:
    rows = []
    for item in summary.get("choices") or []:
        sides = [item.get(method) or {} for method in ("SB", "LB")]
        for epsilon in dict.fromkeys([*sides[0], *sides[1]]):
            cells = []
            for side in sides:
                values = side.get(epsilon) or []
                finite = [value for value in map(number, values) if value is not None]
                missing = f" of {len(values)}" if len(finite) < len(values) else ""
                cells += [spread(finite), f"{len(finite)}{missing}"]
            rows.append((str(item.get("choice", "")), str(item.get("note", "")), str(epsilon), *cells))
    if not rows:
        return []
    notes = summary.get("choices_note") or []
    columns = ("choice", "note", "epsilon", "SB", "n", "LB", "n")
    title = "Choice against value; sharpness in units of 1/100, mean ± sample std over n draws"
    paragraphs = [notes] if isinstance(notes, str) else notes
    return [
        _table(Table(title, columns, rows, [], 3), long=["note"]),
        *(f"<p>{escape(str(paragraph))}</p>" for paragraph in paragraphs),
    ]


def _rows(summary: Summary) -> str:
    found = measures(summary)
    rows = []
    for row in summary.get("rows") or []:
        cells = [_cell(row.get(key)) for key in _ROW]
        for measure in found:
            record = measure.find(row)
            error = f" ± {plain(number(record.get('sem')))}" if record.get("space") == "random" else ""
            cells.append(plain(measure.value(row)) + error if record else DASH)
        rows.append(tuple(cells))
    heads = tuple(key.replace("_", " ") for key in _ROW) + tuple(str(measure) for measure in found)
    title = "Every run; accuracies are shares, ± in subspaces is the standard error over the draws"
    return _table(Table(title, heads, rows, [], 1), wide=True) if rows else ""


def _cell(value: Any) -> str:
    if value is None:
        return DASH
    return f"{value:.6g}" if isinstance(value, float) else str(value)
