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
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gengap import paper, plots, records
from gengap.records import Row, Run
from gengap.statistics import check_comparable, comparable, compare

DASH = "-"
_NAMES = {"mnist": "MNIST", "timit": "TIMIT", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
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
    table: pd.DataFrame | None = None
    figure: Figure | None = None
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
            for words, own in groups.items()
            for section in figures(own)
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
    said = [re.sub(r"\\(.)", r"\1", line[2:]) for line in lines if line.startswith("- ")]
    return terminal([Section(title, said)], width)


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
            _put(out / "figures" / f"{section.name}.svg", plots.image(section.figure, "svg"))
    text = markdown(title, sections, run)
    _put(out / "report.md", text.encode())
    return _put(out / "report.html", html(text, out).encode())


def origins(rows: Sequence[Row]) -> pd.DataFrame:
    """Which rows came from which commit, device and versions, and what they took."""
    found = pd.DataFrame([row["origin"] for row in rows])
    keys = [name for name in found.columns if name not in ("date", "seconds")]
    grouped = found.groupby(keys, dropna=False, sort=False)
    return grouped.agg(rows=("date", "size"), last=("date", "max"), seconds=("seconds", "sum")).reset_index()


def paper_tables(rows: Sequence[Row]) -> list[Section]:
    """The headline and Tables 2, 3 and 4, "paper" beside "here", from rows of `experiments/tables.py`."""
    lost, rows = rows, [row for row in rows if row.get("diverged_at") is None]
    sections = [Section("What came out", [headline(rows), *diverged(lost)])]
    if not rows:
        return sections
    found = sharpness(rows)
    sections.append(_accuracy(rows))
    for space, name in (
        ("full", "Table 3. Sharpness in the full space"),
        ("random", "Table 4. In random subspaces"),
    ):
        if (found["space"] == space).any():
            sections.append(_sharpness(name, found[found["space"] == space]))
    return [*sections, _distance(rows)]


def sharpness(rows: Sequence[Row]) -> pd.DataFrame:
    """One line for each value of the metric, and the loss at x; those of one "of" may be compared.

    In random subspaces the value is the mean over the draws. It is NaN where the loss was not finite somewhere in
    the box, since what was found there is a lower bound only.
    """
    names = ["network", "dataset", "method", "seed", "of", "space", "epsilon", "value", "loss"]
    lines = []
    for row, of in ((row, of) for of, own in comparable(rows).items() for row in own):
        for space in ("full", "random"):
            for i, epsilon in enumerate(row["epsilons"] if row.get(space) else []):
                values, losses, finite = (np.ravel(row[space][n][i]) for n in ("value", "base_loss", "finite"))
                value = float(np.mean(values)) if all(finite) and None not in values else math.nan
                place = [row[name] for name in names[:4]]
                lines.append([*place, of, space, epsilon, value, losses[0]])
    return pd.DataFrame(lines, columns=names)


def sharpness_at(row: Row, epsilon: float) -> float | None:
    """The full-space sharpness of a row; `None` where it is a lower bound."""
    if not row.get("full"):
        return None
    i = row["epsilons"].index(epsilon)
    return number(row["full"]["value"][i]) if row["full"]["finite"][i] else None


def number(value: Any) -> float | None:
    """A finite number as a float; `None` for null, text, NaN and infinities."""
    plain_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain_number and math.isfinite(value) else None


def positive(value: Any) -> float | None:
    """A number that a logarithmic axis can show; `None` for any other."""
    return found if (found := number(value)) is not None and found > 0 else None


def headline(rows: Sequence[Row]) -> str:
    """How sharpness and accuracy of LB compare with those of SB, a sentence for each network."""
    if not rows:
        return "No rows yet."
    found, said = sharpness(rows), []
    largest = found[(found["space"] == "full") & (found["epsilon"] == found["epsilon"].max())]
    for of, own in comparable(rows).items():
        values = largest[largest["of"] == of]
        small, large = by_seed(values, "value").values()
        parts = []
        if small and large and statistics.fmean(small.values()) > 0:
            ratio = statistics.fmean(large.values()) / statistics.fmean(small.values())
            at = [statistics.fmean(losses.values()) for losses in by_seed(values, "loss").values()]
            parts.append(
                f"LB minima are {plain(ratio)} times as sharp as SB minima (full space, epsilon "
                f"{values['epsilon'].iloc[0]:g}; measured at a training loss of {plain(at[0])} for SB and "
                f"{plain(at[1])} for LB), {compare(large, small, 'LB sharper than SB')}"
            )
        small, large = by_seed(pd.DataFrame(own), "test_accuracy").values()
        if shared := [100 * (small[seed] - large[seed]) for seed in small if seed in large]:
            gap = statistics.fmean(shared)
            parts.append(
                f"the test accuracy of LB is {plain(abs(gap))} points {'lower' if gap >= 0 else 'higher'}, "
                f"{compare(small, large, 'SB higher than LB')}"
            )
        said.append(f"{of}: {'; '.join(parts) or 'nothing to compare yet'}.")
    return " ".join(said)


def diverged(rows: Sequence[Row]) -> list[str]:
    """A sentence for each training that diverged. Such rows are in no mean and in no figure."""
    return [
        f"Diverged, in no comparison: {row['network']} on {row['dataset']}, {row['method']}, seed {row['seed']}"
        + (f", begun after epoch {row['epoch']} of SB" if row.get("epoch") else "")
        + f", at step {row['diverged_at']}."
        for row in rows
        if row.get("diverged_at") is not None
    ]


def percent(share: Any) -> float | None:
    """A share in percent; `None` where it is no finite number."""
    value = number(share)
    return None if value is None else 100 * value


def by_seed(frame: pd.DataFrame, column: str) -> dict[str, dict[int, float]]:
    """Of SB and of LB the finite values of a column by seed, of the seeds that both have where there are any."""
    known = frame.dropna(subset=[column])
    check_comparable(known.to_dict("records"))
    found = {m: known[known["method"] == m].set_index("seed")[column].to_dict() for m in ("SB", "LB")}
    shared = found["SB"].keys() & found["LB"].keys()
    return {m: {s: v for s, v in own.items() if s in shared or not shared} for m, own in found.items()}


def sharpness_figure(rows: Sequence[Row]) -> Section:
    """Sharpness of every minimum, a panel for each space and epsilon, beside the paper's."""
    found = sharpness(rows)
    groups = list(found.groupby(["space", "epsilon"], sort=False))
    figure, axes = plots.axes(max(1, len(groups)))
    for ax, ((space, epsilon), group) in zip(axes, groups, strict=False):
        table = paper.TABLE_3 if space == "full" else paper.TABLE_4
        values, known = {}, {}
        for of, own in group.groupby("of", sort=False):
            label = re.sub(" on |, ", "\n", str(of))
            values[label] = {
                m: dict(zip(o["seed"], o["value"], strict=True)) for m, o in own.groupby("method", sort=False)
            }
            columns = table.get(own["network"].iloc[0], {})
            known[label] = {method: columns[method][epsilon] for method in columns if epsilon in columns[method]}
        plots.sharpness(values, paper=known, ax=ax)
        ax.set_title(f"{'full space' if space == 'full' else 'random subspaces'}, epsilon {epsilon:g}")
    words = (
        "Metric 2.1 of every minimum on a logarithmic axis; a line joins the two of a seed. In random subspaces a "
        "point is the mean over the draws. Beside them the paper's mean and standard deviation."
    )
    return Section("Sharpness of every minimum", figure=figure, caption=words, name="sharpness")


def accuracy_figure(rows: Sequence[Row]) -> Section:
    """Accuracy per epoch of every network, the paper's curve beside it where there is one (Fig. 2)."""
    groups = comparable(rows)
    figure, axes = plots.axes(len(groups))
    for ax, (words, own) in zip(axes, groups.items(), strict=True):
        network, dataset, group = own[0]["network"], own[0]["dataset"], pd.DataFrame(own)
        histories = {str(method): of["history"].tolist() for method, of in group.groupby("method", sort=False)}
        digitised = paper.figure("fig2_curves").get(network, {}) if paper.DATASET.get(network) == dataset else {}
        curves = {tuple(name.split("_")): (curve.x, curve.y) for name, curve in digitised.items()}
        plots.accuracy(histories, paper=curves, ax=ax)
        ax.set_title(words)
    words = "Training solid, test dashed; thin lines are seeds, thick ones their mean; dotted: the paper's Fig. 2."
    return Section("Accuracy per epoch (Fig. 2)", figure=figure, caption=words, name="accuracy")


def theirs(table: Mapping[str, Any], network: str, method: str, key: Any) -> str:
    """The paper's mean and standard deviation."""
    found = table.get(network, {}).get(method, {}).get(key)
    return DASH if found is None else f"{found[0]:.2f} ± {found[1]:.2f}"


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


def _accuracy(rows: Sequence[Row]) -> Section:
    lines, said = [], []
    for of, group in comparable(rows).items():
        network, dataset, frame = group[0]["network"], group[0]["dataset"], pd.DataFrame(group)
        for split in ("train", "test"):
            line = {"network": of, "accuracy, %": split}
            values = by_seed(frame, f"{split}_accuracy")
            for method, own in values.items():
                line[f"{method}, paper"] = theirs(paper.TABLE_2, network, method, split)
                line[f"{method}, here"] = spread([100 * share for share in own.values()])
            line["n"] = str(max(map(len, values.values())))
            lines.append(line)
        small, large = by_seed(frame, "test_accuracy").values()
        said.append(f"{of}: {compare(small, large, 'SB tests better than LB')}.")
        if paper.DATASET.get(network, dataset) != dataset.split(":")[0]:
            said.append(f"The paper has {network} on {_NAMES[paper.DATASET[network]]}.")
    return Section("Table 2. Accuracy; mean ± standard deviation over n seeds", said, pd.DataFrame(lines))


def _sharpness(title: str, found: pd.DataFrame) -> Section:
    table = paper.TABLE_3 if found["space"].iloc[0] == "full" else paper.TABLE_4
    lines, said = [], []
    for (of, epsilon), group in found.groupby(["of", "epsilon"], sort=False):
        line, means = {"network": of, "epsilon": f"{epsilon:g}"}, {}
        values = by_seed(group, "value")
        for method, own in values.items():
            line[f"{method}, paper"] = theirs(table, group["network"].iloc[0], method, epsilon)
            line[f"{method}, here"] = spread(list(own.values()))
            means[method] = statistics.fmean(own.values()) if own else math.nan
        line["LB / SB"] = plain(means["LB"] / means["SB"] if means["SB"] else math.nan)
        for method, losses in by_seed(group, "loss").items():
            line[f"f, {method}"] = plain(statistics.fmean(losses.values())) if losses else DASH
        line["n"] = str(max(map(len, values.values())))
        lines.append(line)
        place = f"{of}, epsilon {epsilon:g}"
        said.append(f"{place}: {compare(values['LB'], values['SB'], 'LB sharper than SB')}.")
        if lost := group["value"].isna().sum():
            said.append(f"{place}: {lost} of {len(group)} met a loss that is not finite, and are in no mean.")
    return Section(f"{title}; mean ± standard deviation over n seeds", said, pd.DataFrame(lines))


def _distance(rows: Sequence[Row]) -> Section:
    lines = []
    for of, own in comparable(rows).items():
        small, large = by_seed(pd.DataFrame(own), "distance").values()
        ratios = [small[seed] / large[seed] for seed in small if large.get(seed, 0) > 0]
        cells = [spread(list(small.values())), spread(list(large.values())), spread(ratios), str(len(ratios))]
        names = ("SB", "LB", "SB / LB", "n")
        lines.append({"network": of, **dict(zip(names, cells, strict=True))})
    low, high = paper.DISTANCE_RATIO
    said = [f"The paper gives SB / LB in words only, for no network in particular: {low:g} to {high:g}."]
    return Section("Distance of the minimum from the starting point, Euclidean", said, pd.DataFrame(lines))


def _literal(text: Any) -> str:
    """Text in which Markdown sees no markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", str(text))


def _put(path: Path, content: bytes) -> Path:
    records.atomically(path, lambda file: file.write(content))
    return path
