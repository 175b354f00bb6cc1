"""Figs 2, 4, 5 and 6 at toy size: what is drawn and said, and that nothing is done twice."""

import shutil

import numpy as np
import pytest

from experiments import batch_size, trajectory, warm_start
from gengap import minima, paper, records, report
from tests import toy

EXPERIMENTS = {
    "trajectory": (trajectory, ["fig2", "fig6", "speedup"]),
    "batch_size": (batch_size, ["fig4"]),
    "warm_start": (warm_start, ["fig5"]),
}
each = pytest.mark.parametrize("name", EXPERIMENTS)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    toy.use(monkeypatch)


@each
def test_the_experiment_behind_a_figure_draws_it(tmp_path, monkeypatch, name):
    experiment, drawn = EXPERIMENTS[name]
    run = experiment.run(experiment.SMOKE, tmp_path)
    made = experiment.figures(run.rows)
    assert set(drawn) <= {section.name for section in made}
    assert all(section.findings and "nan" not in " ".join(section.findings) for section in made)
    text = report.terminal(made, 1000)
    assert all(found in text for section in made for found in section.findings)
    assert all(row["maximiser"] >= 2 for row in run.rows if "full" in row)
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    again = experiment.run(experiment.SMOKE, tmp_path)
    assert again.rows == run.rows and again.added == 0


@each
def test_a_run_that_was_killed_ends_as_it_would_have(tmp_path, monkeypatch, name):
    experiment, _ = EXPERIMENTS[name]
    whole = experiment.run(experiment.SMOKE, tmp_path / "whole")
    add = records.Run.add
    with monkeypatch.context() as patch:
        for _ in whole.rows:
            left = [1]

            def dies(run, row, left=left):
                if not left:
                    raise KeyboardInterrupt
                left.pop()
                add(run, row)

            patch.setattr(records.Run, "add", dies)
            try:
                experiment.run(experiment.SMOKE, tmp_path / "killed")
            except KeyboardInterrupt:
                continue
    again = experiment.run(experiment.SMOKE, tmp_path / "killed")

    def bare(rows):
        return [{entry: value for entry, value in row.items() if entry != "origin"} for row in rows]

    assert bare(again.rows) == bare(whole.rows)


@pytest.mark.parametrize(
    ("experiment", "changes", "message"),
    [
        (trajectory, {"points": 1}, "points is 1"),
        (trajectory, {"epochs": -1}, "epochs is -1"),
        (batch_size, {"batch_sizes": (50, 0.25)}, "50 more than once"),
        (batch_size, {"batch_sizes": (1000,)}, "batch_sizes: batch size 1000"),
        (warm_start, {"starts": 1}, "starts is 1; it must be at least 2"),
        *((module, {"max_evaluations": 0}, "max_evaluations is 0") for module, _ in EXPERIMENTS.values()),
        *((module, {"patience": 5}, "patience is 5") for module, _ in EXPERIMENTS.values()),
        *((module, {"target": 0.1}, "target is 0.1") for module, _ in EXPERIMENTS.values()),
    ],
)
def test_a_setting_out_of_its_range_is_named(tmp_path, experiment, changes, message):
    config = experiment.SMOKE
    own = {name: value for name, value in changes.items() if name in config._fields}
    config = config._replace(
        training=config.training._replace(**{n: v for n, v in changes.items() if n not in own})
    )
    with pytest.raises(ValueError, match=message):
        experiment.run(config._replace(**own), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:overflow")
@each
def test_training_that_diverges_is_said_and_not_done_again(tmp_path, monkeypatch, name):
    experiment, _ = EXPERIMENTS[name]
    config = experiment.SMOKE._replace(training=experiment.SMOKE.training._replace(learning_rate=1e38))
    run = experiment.run(config, tmp_path)
    lost = [row for row in run.rows if row.get("diverged_at") is not None]
    assert lost
    first, *made = experiment.figures(run.rows)
    assert len(first.findings) == len(lost) and f"at step {lost[0]['diverged_at']}." in first.findings[0]
    assert not {section.name for section in made} & {"fig2", "fig4", "fig5", "speedup"}
    assert "nan" not in " ".join(said for section in made for said in section.findings)
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    shutil.rmtree(run.store)
    again = experiment.run(config, tmp_path)
    assert again.rows == run.rows and again.added == 0


def test_a_method_that_diverged_is_in_no_figure_and_the_other_is():
    whole = trajectory.run(trajectory.SMOKE).rows
    rows = [row | {"diverged_at": 7} if row["method"] == "SB" and row.get("history") else row for row in whole]
    lost, fig2, *others = trajectory.figures(rows)
    words = "Diverged, in no comparison: F1 on digits, SB, seed 0, at step 7."
    assert lost.findings == [words]
    assert fig2.name == "fig2" and "SB higher than LB: not tested." in fig2.findings[0]
    assert "speedup" not in {section.name for section in others}
    assert "nan" not in " ".join(said for section in (fig2, *others) for said in section.findings)


@pytest.mark.parametrize("change", [{"network": "C1"}, {"run": "other"}])
@each
def test_rows_of_two_networks_or_runs_are_two_figures(name, change):
    experiment, _ = EXPERIMENTS[name]
    rows = experiment.run(experiment.SMOKE).rows
    alone = experiment.figures(rows)
    made = experiment.figures(rows + [row | change for row in rows])
    assert len(made) == 2 * len(alone) and len({section.name for section in made}) == len(made)
    assert [section.title.split(": ")[0] for section in made] == 2 * [section.title for section in alone]
    half = len(alone)
    assert [section.findings for section in made[:half]] == [section.findings for section in alone]


def test_a_curve_along_training_is_of_one_network():
    rows = trajectory.run(trajectory.SMOKE).rows
    with pytest.raises(ValueError, match="cannot be compared"):
        trajectory.points_along(rows + [row | {"network": "C1"} for row in rows])


def test_large_batches_pay_below_the_efficiency_of_appendix_c() -> None:
    """LB takes three epochs of 2 steps to the 0.8 that both reach, SB one of 20: 6 / 20, and 30 / (300 * 0.3)."""
    runs = [("SB", 30, 20, [0.8, 0.9, 0.7]), ("LB", 300, 2, [0.1, None, 0.8])]
    rows = [
        {"method": method, "seed": 0, "epochs": 3, "steps": 3 * steps, "batch_size": batch_size}
        | {"history": {"test_accuracy": accuracies}}
        for method, batch_size, steps, accuracies in runs
    ]
    section = trajectory._speedup(rows)
    assert section is not None
    (said,) = section.findings
    assert "LB (300) takes 0.30 times the iterations of SB (30)" in said
    assert "efficiency below 0.33." in said
    (drawn,) = [line for line in section.figure.axes[0].lines if len(line.get_xdata()) > 2]
    at = dict(zip(np.round(drawn.get_xdata(), 2), drawn.get_ydata(), strict=True))
    assert at[0.2] == pytest.approx(0.5)  # the paper's example: a tenth of the batch, an efficiency of 0.2
    assert trajectory._speedup([rows[0], rows[1] | {"history": {"test_accuracy": [None]}}]) is None


def test_the_fall_from_the_peak_has_the_rule_of_the_claim():
    """C1's own curves in the paper: 0.46 for LB, where the last epoch alone is 0.61 below the peak."""
    curves = paper.figure("fig2_curves")["C1"]
    rows = [
        {"network": "C1", "dataset": "cifar10", "method": method, "seed": 0}
        | {"history": {"test_accuracy": [share / 100 for share in curves[f"{method}_test"].y]}}
        for method in ("SB", "LB")
    ]
    section = trajectory._accuracy(rows)
    assert section is not None
    fall = section.findings[1]
    ours, theirs = fall.split(", in the paper by ")
    assert ours.endswith(f"falls by {theirs.split(' and ')[0]} points (SB) and 0.46 (LB)") and theirs.endswith(
        "0.46."
    )


def test_all_large_batches_begin_where_the_small_one_was(monkeypatch):
    begun, iterates, find_along = [], [], minima.find_along

    def remembered(*args, **how):
        iterates.extend(found := find_along(*args, **how))
        return found

    monkeypatch.setattr(minima, "find_along", remembered)
    monkeypatch.setattr(minima, "find", lambda *args, start, **how: begun.append(start) or iterates[-1])
    run = warm_start.run(warm_start.SMOKE)
    assert (
        [row["epoch"] for row in run.rows if row["method"] == "LB"] == [one.epochs for one in iterates] == [1, 2]
    )
    for start, one in zip(begun, iterates, strict=True):
        assert all((start[name] == one.params[name]).all() for name in one.params)


def test_the_paper_is_in_a_panel_of_its_own_where_it_has_another_network():
    run = trajectory.run(trajectory.SMOKE)
    fig2 = trajectory.figures(run.rows)[0].figure
    titles = [ax.get_title() for ax in fig2.axes]
    assert titles == ["F1 on digits", "paper, F2 on TIMIT"]
    curve = paper.figure("fig2_curves")["F2"]["SB_test"]
    assert any(np.array_equal(line.get_ydata(), curve.y) for line in fig2.axes[1].lines)
