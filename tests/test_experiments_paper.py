"""One report with the tables and every figure, from the parts at toy size."""

import pytest

from experiments import paper
from gengap import minima, report
from tests import toy


def test_one_report_has_every_figure_of_the_paper(monkeypatch, tmp_path):
    toy.use(monkeypatch)
    out = tmp_path / "paper" / "default"
    config = paper.CONFIG._replace(num_seeds=1, train_size=400)
    run = paper.run(config, out, settings="SMOKE")
    assert {row["part"] for row in run.rows} == {"digits", "landscape", "batch_size", "warm_start", "trajectory"}
    page = report.write("paper", paper.figures(run.rows), run, out).read_text()
    for figure in range(2, 8):
        assert f"(Fig. {figure})" in page, figure
    for words in ("Table 2", "Table 3", "Table 4", "appendix C", "Planes", "connected"):
        assert words in page
    assert len(page) < 1.5e6 and {path.name for path in tmp_path.iterdir()} > {"minima", "digits", "trajectory"}
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    again = paper.run(config, out, settings="SMOKE")
    assert again.added == 0 and again.rows == run.rows
