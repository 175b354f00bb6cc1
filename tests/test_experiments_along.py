"""Figs 2, 4, 5, 6 and moving averages: what is drawn, said and claimed of rows; one run of each at toy size."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import averages, batch_size, trajectory, warm_start
from experiments.lib import settings
from gengap import comparison, minima, models, paper, report
from tests import toy

EXPERIMENTS = {"trajectory": trajectory, "batch_size": batch_size, "warm_start": warm_start}
IDENTITY = ("network", "dataset", "side", "seed", "epoch", "batch_size")
each = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)


def row(side, seed=0, sharpness=None, **values):
    columns = {} if sharpness is None else {"sharpness_full_1e-3": sharpness, "sharpness_full_5e-4": sharpness}
    return {"network": "F1", "dataset": "digits", "side": side, "seed": seed} | columns | values


def along(side, sharpness, losses=(1.0, 0.1, 0.01)):
    points = enumerate(zip(losses, sharpness, strict=True), 1)
    return [row(side, sharpness=value, epoch=epoch, train_loss=loss) for epoch, (loss, value) in points]


def trained(side, test_accuracies, **values):
    history = {"train_accuracy": [0.5] * len(test_accuracies), "test_accuracy": test_accuracies}
    return row(side, epoch=None, history=history, **values)


def begun(epoch, sharpness, test_accuracy=0.7):
    return row("LB", sharpness=sharpness, epoch=epoch, test_accuracy=test_accuracy)


def seeds(rows):
    return [{**row, "seed": seed} for seed in range(3) for row in rows]


def of_batch_sizes(accuracy):
    return [
        {"network": "F1", "dataset": "digits", "seed": 0, "share": share, "batch_size": round(1000 * share)}
        | {"test_accuracy": accuracy(share) + 1e-3 * (i % 2), "sharpness_full_1e-3": i + 1.0}
        | {"sharpness_full_5e-4": i + 1.0}
        for i, share in enumerate((0.01, 0.02, 0.05, 0.1, 0.2, 0.5))
    ]


ROWS = {
    "trajectory": [
        *along("SB", (30.0, 20.0, 10.0)),
        trained("SB", [0.8, 0.9, 0.7], batch_size=30, epochs=3, steps=60),
        *along("LB", (30.0, 40.0, 50.0), (1.0, 0.3, 0.1)),
        trained("LB", [0.1, None, 0.8], batch_size=300, epochs=3, steps=6),
    ],
    "batch_size": of_batch_sizes(lambda share: 0.9 - 0.5 * max(0, share - 0.05)),
    "warm_start": [trained("SB", [0.5, 0.6, 0.8]), begun(1, 3.0), begun(2, 2.0), begun(3, 1.0)],
}
DRAWN = {"trajectory": ["fig2", "fig6", "equal_loss", "speedup"], "batch_size": ["fig4"], "warm_start": ["fig5"]}


def name_of(experiment):
    return experiment.__name__.rpartition(".")[2]


def words(sections):
    return " ".join(sentence for section in sections for sentence in section.findings)


def verdicts(experiment, rows):
    return [claim.verdict.word for claim in experiment.claims(rows)]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(settings.NETWORKS, "F1", toy.linear)
    monkeypatch.setattr(settings, "_loaded", lambda name, *_: toy.load(name))


@pytest.mark.parametrize(
    ("name", "sizes", "epochs"),
    [
        ("trajectory", [9, 40], 2 * [0, 1, 3, None]),
        ("batch_size", [40, 100], [None, None]),
        ("warm_start", [9, 40, 40], [None, 1, 2]),
    ],
)
def test_a_run_has_its_rows_and_does_nothing_twice(small, tmp_path, monkeypatch, name, sizes, epochs):
    experiment = EXPERIMENTS[name]
    config = experiment.SMOKE._replace(training=experiment.SMOKE.training._replace(train_size=400))
    if experiment is batch_size:
        config = config._replace(batch_sizes=(40, 0.25))
    run = experiment.run(config, tmp_path)
    assert [row.get("epoch") for row in run.rows] == epochs
    assert [row["batch_size"] for row in run.rows if "batch_size" in row] == sizes
    measured = [row for row in run.rows if "train_loss" in row]
    assert all(row["ascent_version"] >= 2 and row["sharpness_full_5e-4"] > 0 for row in measured)
    assert not any(name.startswith("sharpness_random") for row in measured for name in row)
    monkeypatch.setattr(minima.train, "fit", lambda *args, **options: pytest.fail("trained again"))
    again = experiment.run(config, tmp_path)
    assert again.rows == run.rows and again.added == 0
    config = config._replace(training=settings.resolved(config.training, pair=False, all_epochs=True))
    for row in run.rows[-2:]:  # of a run that was killed any row may be the only one that is left
        cell = {name: row[name] for name in IDENTITY if name in row}
        alone = experiment.row(config, cell, run.store)
        np.testing.assert_equal(alone, {name: row[name] for name in alone})


@each
def test_figures_draw_and_say_what_they_should(experiment):
    name = name_of(experiment)
    made = experiment.figures(ROWS[name])
    assert [section.name for section in made] == DRAWN[name]
    assert all(section.findings and "nan" not in words([section]) for section in made)
    text = report.terminal(made, 1000)
    assert all(sentence in text for section in made for sentence in section.findings)
    others = [row | change for change in ({"network": "C1"}, {"run": "other"}) for row in ROWS[name]]
    apart = experiment.figures(ROWS[name] + others)
    assert len(apart) == 3 * len(made) and len({section.name for section in apart}) == len(apart)
    assert [section.title.split(": ")[0] for section in apart] == 3 * [section.title for section in made]
    assert [section.findings for section in apart[: len(made)]] == [section.findings for section in made]


@each
def test_claims_without_rows_are_not_tested(experiment):
    assert experiment.figures([]) == []
    assert all(claim.verdict.word == "not tested" and not claim.here for claim in experiment.claims([]))


@pytest.mark.parametrize(
    ("experiment", "changes", "message"),
    [
        (trajectory, {"points": 1}, "points is 1"),
        (trajectory, {"epochs": -1}, "epochs is -1"),
        (batch_size, {"batch_sizes": (50, 0.25)}, "50 more than once"),
        (batch_size, {"batch_sizes": (1000,)}, "batch_sizes: batch size 1000"),
        (warm_start, {"starts": 1}, "starts is 1; it must be at least 2"),
        (averages, {"momentum": 1.0}, "momentum is 1.0"),
        *((module, {"max_evaluations": 0}, "max_evaluations is 0") for module in EXPERIMENTS.values()),
        *((module, {"patience": 5}, "patience is 5") for module in EXPERIMENTS.values()),
        *((module, {"target": 0.1}, "target is 0.1") for module in EXPERIMENTS.values()),
    ],
)
def test_a_setting_out_of_its_range_is_named(small, tmp_path, experiment, changes, message):
    config = experiment.SMOKE
    for part in ("training", "metric"):
        if hasattr(config, part) and changes.keys() <= set(getattr(config, part)._fields):
            changes = {part: getattr(config, part)._replace(**changes)}
    with pytest.raises(ValueError, match=message):
        experiment.run(config._replace(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:overflow")
def test_large_batches_begun_from_a_training_that_diverged_diverge_too(small):
    config = warm_start.SMOKE._replace(training=warm_start.SMOKE.training._replace(learning_rate=1e38))
    run = warm_start.run(config)
    assert all(row["diverged_at"] is not None and "sharpness_full_1e-3" not in row for row in run.rows)
    (lost,) = warm_start.figures(run.rows)
    assert len(lost.findings) == len(run.rows) == 3
    assert f"LB, seed 0, begun after epoch 2 of SB, at step {run.rows[2]['diverged_at']}." in lost.findings[2]


@each
def test_a_training_that_diverged_is_in_no_figure(experiment):
    rows = ROWS[name_of(experiment)]
    ends = [row for row in rows if row.get("side", "SB") == "SB" and row.get("epoch") is None]
    lost, *made = experiment.figures([row | {"diverged_at": 7} if row in ends else row for row in rows])
    assert len(lost.findings) == len(ends)
    place = "10" if experiment is batch_size else "SB"
    assert lost.findings[0] == f"Diverged, in no comparison: F1 on digits, {place}, seed 0, at step 7."
    assert [section.name for section in made] == (
        ["fig2", "fig6", "equal_loss"] if experiment is trajectory else []
    )
    assert "nan" not in words(made)
    if experiment is trajectory:
        assert "SB tests better: not tested." in made[0].findings[0]


def test_the_rows_of_a_training_are_of_its_epochs(small, monkeypatch):
    """Where it begins, where it stands after each epoch, and its end; LB begins where SB stood."""
    begun, recipes = [], []

    def find(model, ds, key, recipe, *, start=None, **options):
        begun.append(start)
        recipes.append(recipe)
        snapshots = {epoch: SimpleNamespace(params=f"epoch {epoch}") for epoch in recipe.snapshots}
        return SimpleNamespace(params="end", snapshots=snapshots, summary=lambda: {"params": "summary"})

    monkeypatch.setattr(settings, "seconds", lambda *args, **options: 0.0)
    monkeypatch.setattr(minima, "find", find)
    monkeypatch.setattr(minima, "starting_point", lambda *args: 0.5)
    monkeypatch.setattr(comparison, "measure", lambda loss, params, *args, **options: {"params": params})
    run = trajectory.run(trajectory.SMOKE)
    assert [row["params"] for row in run.rows] == 2 * [0.5, "epoch 1", "epoch 3", "summary"]
    assert [recipe.batch_size for recipe in recipes] == 4 * [9] + 4 * [0.1]
    begun.clear(), recipes.clear()
    run = warm_start.run(warm_start.SMOKE)
    assert [(row["side"], row.get("epoch"), row["params"]) for row in run.rows] == [
        ("SB", None, "summary"), ("LB", 1, "end"), ("LB", 2, "end")
    ]  # fmt: skip
    assert begun == [None, None, "epoch 1", None, "epoch 2"]
    assert [(recipe.batch_size, recipe.snapshots) for recipe in recipes[-2:]] == [(9, (1, 2)), (0.1, ())]


def test_a_curve_along_training_is_of_one_network():
    rows = ROWS["trajectory"]
    with pytest.raises(ValueError, match="cannot be compared"):
        trajectory.claims(rows + [row | {"network": "C1"} for row in rows])


def test_claims_along_training():
    assert verdicts(trajectory, seeds(ROWS["trajectory"])) == ["holds", "holds", "holds"]
    assert verdicts(trajectory, ROWS["trajectory"]) == ["no test", "no test", "no test"]  # one seed
    other = along("SB", (10.0, 50.0, 90.0)) + along("LB", (30.0, 20.0, 10.0))
    assert verdicts(trajectory, seeds(other)) == ["does not hold", "does not hold", "does not hold"]
    assert trajectory.claims(seeds(other))[0].differs == (
        "LB's sharpness is 30.00 % after the first epoch, at a training loss of 1.00, and 10.00 % at the end, at "
        "0.01 (means). In the paper F2's rises from 28 to 961 %."
    )
    not_finite = along("SB", (30.0, 20.0, 10.0), (None, None, None)) + along("LB", (30.0, 20.0, 10.0))
    assert verdicts(trajectory, not_finite) == ["no test", "not tested", "not tested"]


def test_a_loss_and_a_sharpness_of_0_count():
    rows = seeds(along("LB", (0.0, 40.0, 50.0), (1.0, 0.3, 0.0)) + along("SB", (0.0, 40.0, 50.0)))
    assert [claim.here for claim in trajectory.claims(rows)][:2] == 2 * ["rank correlation 1.00"]


def test_sharpness_is_compared_at_one_loss():
    """SB 100 to 1 and LB 200 to 2 on straight lines in both logarithms: twice as sharp at every loss."""
    rows = along("SB", (100.0, 10.0, 1.0)) + along("LB", (200.0, 20.0, 2.0))
    rows = [row("SB", sharpness=9e9, epoch=0, train_loss=2.0), *rows]  # the starting point is not among them
    assert trajectory.log_ratios(rows, 1e-3, 0.05)[0] == pytest.approx(np.log(2))
    assert trajectory.log_ratios(rows, 5e-4, 1.5) == {}
    *_, at_lowest = trajectory.claims(rows)
    assert at_lowest.here == "LB is 2.00 times as sharp as SB"
    (section,) = trajectory.equal_loss_figure(rows, at_lowest)
    assert "at a training loss of 0.32: LB is 2.00 times as sharp" in section.findings[0]


def test_claims_of_batch_sizes():
    rows = ROWS["batch_size"]
    assert verdicts(batch_size, rows) == ["no test", "no test"]  # one seed
    assert verdicts(batch_size, seeds(rows)) == ["holds", "holds"]
    assert verdicts(batch_size, seeds(of_batch_sizes(lambda share: 0.9)))[0] == "does not hold"
    (section,) = batch_size.figures(rows[::-1])
    assert "Test accuracy begins to fall at " in section.findings[0] and "does not fall" not in words([section])


def test_claims_of_warm_starts():
    rows = ROWS["warm_start"]
    assert verdicts(warm_start, seeds(rows)) == ["holds", "holds"]  # 0.2, 0.1 and -0.1 above
    assert verdicts(warm_start, rows) == ["no test", "no test"]
    assert warm_start.claims(rows)[0].here == "63.33 | 70.00 %"
    assert "in 2 of 3 starts" in words(warm_start.figures(rows))
    not_finite = [trained("SB", [None, 0.8]), row("LB", epoch=1, test_accuracy=0.7)]
    assert verdicts(warm_start, not_finite) == ["not tested", "not tested"]


def test_large_batches_pay_below_the_efficiency_of_appendix_c():
    """LB takes three epochs of 2 steps to the 0.8 that both reach, SB one of 20: 6 / 20, and 30 / (300 * 0.3)."""
    rows = ROWS["trajectory"]
    (section,) = trajectory.speedup_figure(rows)
    takes, faster = section.findings
    assert takes.startswith("SB takes 3.33 times the iterations of LB") and "30 (SB) and 300 (LB)" in takes
    assert faster.endswith("efficiency below 0.33.")
    (drawn,) = [line for line in section.figure.axes[0].lines if len(line.get_xdata()) > 2]
    at = dict(zip(np.round(drawn.get_xdata(), 2), drawn.get_ydata(), strict=True))
    assert at[0.2] == pytest.approx(0.5)  # the paper's example: a tenth of the batch, an efficiency of 0.2
    assert trajectory.speedup_figure([rows[3], rows[-1] | {"history": {"test_accuracy": [None]}}]) == []


def test_the_fall_from_the_peak_has_the_rule_of_the_claim():
    """C1's own curves in the paper: 0.46 for LB, where the last epoch alone is 0.61 below the peak."""
    curves = paper.figure("fig2_curves")["C1"]
    rows = [
        trained(side, [share / 100 for share in curves[f"{side}_test"].y], network="C1") for side in ("SB", "LB")
    ]
    (section,) = trajectory.accuracy_figure(rows)
    assert section.findings[1].endswith("points (SB) and 0.46 points (LB).")
    assert section.findings[2].endswith("and 0.46 points.")
    (section,) = trajectory.accuracy_figure([one | {"dataset": "mine"} for one in rows])
    assert "paper" not in " ".join(section.findings)


def test_the_paper_is_in_a_panel_of_its_own_where_it_has_another_network():
    (section,) = trajectory.accuracy_figure(ROWS["trajectory"])
    ours, theirs = section.figure.axes
    assert (ours.get_title(), theirs.get_title()) == ("F1 on digits", "paper, F2 on TIMIT")
    curve = paper.figure("fig2_curves")["F2"]["SB_test"]
    assert any(np.array_equal(line.get_ydata(), curve.y) for line in theirs.lines)


def test_moving_averages_forget_their_beginning():
    own = {"BatchNorm_0": {"mean": jnp.array([4.0]), "var": jnp.array([9.0])}}
    first = averages.averaged(None, own, 0.99**3)["BatchNorm_0"]
    np.testing.assert_allclose(first["mean"], 4 * (1 - 0.99**3), rtol=1e-5)
    np.testing.assert_allclose(first["var"], 9 - 8 * 0.99**3, rtol=1e-5)
    then = averages.averaged({"BatchNorm_0": first}, own, 0.99**7)["BatchNorm_0"]
    np.testing.assert_allclose(then["var"], 9 - 8 * 0.99**10, rtol=1e-5)


def test_averages_without_memory_are_batch_statistics(small, monkeypatch, tmp_path):
    """SB is given averages that hardly leave 0 and 1, LB the statistics of its batch, which is the whole set."""
    monkeypatch.setitem(settings.NETWORKS, "F1", lambda classes: models.dense(classes, widths=(8,)))
    kept, averaged = [], averages.averaged

    def recorded(averages, own, share):
        kept.append(share)
        return averaged(averages, own, share) if len(kept) <= 2 else own

    monkeypatch.setattr(averages, "averaged", recorded)
    training = averages.SMOKE.training._replace(large_batch=400)  # one chunk, the whole set
    run = averages.run(averages.Config(training, momentum=0.999999), tmp_path)
    small, large = run.rows
    assert large["steps"] == [1, 2] and small["steps"][-1] > 2
    assert kept == [0.999999 ** small["steps"][0]] * 2 + [0.999999] * 2  # of the updates in each epoch
    np.testing.assert_allclose(large["moving"], large["batch"], rtol=1e-4)
    assert abs(small["moving"][-1] - small["batch"][-1]) > 0.05
    assert not run.store.exists()
    (section,) = averages.figures(run.rows)
    assert "after 2.00 updates" in section.findings[0] and "9.11" in " ".join(section.findings)
    lost, *made = averages.figures([small, large | {"diverged_at": 3}])
    assert "LB, seed 0, at step 3." in lost.findings[0] and not made
    assert averages.claims(run.rows) == []
