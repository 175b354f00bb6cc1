"""One report of several experiments: which parts it runs, and what it makes of their rows."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import digits, paper
from experiments.lib import claims
from gengap import records, report

ROOT = Path(__file__).parents[1]


def part(name, begun):
    """An experiment that leaves a row with what it was asked."""

    def row(config, cell, store):
        begun.append(name)
        return {"dataset": config.training.dataset, "train_size": config.training.train_size}

    def run(config, out=None, **options):
        return records.fill(
            name, config, [{"seed": s} for s in range(config.training.num_seeds)], row, out, **options
        )

    def figures(rows):
        return [report.Section(name, [f"{len(rows)} rows"], name=name)]

    return SimpleNamespace(CONFIG=digits.CONFIG, SMOKE=digits.SMOKE, run=run, figures=figures)


@pytest.fixture
def begun(monkeypatch):
    """The parts that compute a row, in order."""
    begun = []
    monkeypatch.setattr(paper, "CLAIMS", {})
    for group in (paper.TABLES, paper.FIGURES):
        for name in group:
            monkeypatch.setitem(group, name, part(name, begun))
    return begun


def test_the_parts_are_run_with_the_settings_of_the_report_and_once(begun, tmp_path):
    config, out = paper.CONFIG._replace(num_seeds=2, train_size=40), tmp_path / "paper" / "default"
    run = paper.run(config, out, settings="SMOKE")
    parts = ["digits", "landscape", "batch_size", "warm_start", "trajectory"]
    assert [row["part"] for row in run.rows] == [name for name in parts for _ in range(2)] and run.added == 10
    assert {row["train_size"] for row in run.rows} == {40}
    assert all(row["run"].startswith(f"{row['part']}/train_size=40,num_seeds=2") for row in run.rows)
    first, *others = paper.figures(run.rows)
    assert first.title.startswith("The paper's claims") and [section.title for section in others] == parts
    assert (tmp_path / "digits").is_dir() and begun == [name for name in parts for _ in range(2)]
    again = paper.run(config, out, settings="SMOKE")
    assert again.added == 0 and again.rows == run.rows and len(begun) == 10


@pytest.mark.parametrize(
    ("dataset", "first"), [("mnist", "mnist"), ("cifar100", "cifar"), ("svhn_cropped", "cifar")]
)
def test_a_data_set_has_its_own_tables(begun, dataset, first):
    run = paper.run(paper.CONFIG._replace(dataset=dataset, num_seeds=1))
    assert begun[0] == first and {row["dataset"] for row in run.rows} == {dataset}


def test_one_report_has_every_figure_of_the_paper():
    text = (ROOT / "published/paper/default/report.md").read_text()
    for words in ("Table 2", "Table 3", "Table 4", "appendix C", "Planes", "connected"):
        assert words in text
    assert all(f"(Fig. {figure})" in text for figure in range(2, 8))
    assert len(claims.tables([], paper.CLAIMS)[0].table) == 26
