"""The landscape between minima at toy size, from its flags to its figures."""

import numpy as np
import pytest

from experiments import landscape
from experiments.lib import settings
from gengap import minima
from tests import toy

DRAWN = ["fig3", "fig7", "connection", "planes", "neighbourhood"]


@pytest.fixture
def small(monkeypatch):
    toy.use(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two pairs."""
    smoke = landscape.SMOKE._replace(training=landscape.SMOKE.training._replace(num_seeds=2))
    with pytest.MonkeyPatch.context() as monkeypatch:
        toy.use(monkeypatch)
        return smoke, landscape.run(smoke, tmp_path_factory.mktemp("run") / "landscape" / "default")


def test_a_run_has_a_row_for_each_pair_and_one_for_the_planes(finished):
    _, run = finished
    assert [(row["of"], row["seed"]) for row in run.rows] == [("pair", 0), ("planes", 0), ("pair", 1)]
    for row in run.rows:
        assert (row["network"], row["dataset"]) == ("F1", "digits")
    first, around_small, around_large = run.rows[1]["planes"]
    assert list(first["points"]) == ["SB", "LB", "SB, seed 1"] and first["points"]["SB"] == [0, 0]
    assert first["points"]["LB"][1] == 0
    assert first["points"]["LB"][0] == pytest.approx(run.rows[0]["distance"]["SB from LB"], rel=1e-4)
    assert (around_small["name"], around_large["name"]) == ("around SB", "around LB")
    for plane in (first, around_small, around_large):
        assert np.shape(plane["loss"]) == (3, 3) and len(plane["s"]) == len(plane["t"]) == 3
    assert around_small["loss"][1][1] == pytest.approx(run.rows[0]["ends"]["SB"]["train"], rel=1e-4)
    for near in run.rows[0]["directions"].values():
        assert len(near["losses"]) == 3 and near["highest"] >= max(near["losses"])


def test_the_ends_of_the_paths_are_the_minima(finished):
    pair = finished[1].rows[0]
    assert pair["alphas"] == pytest.approx([-1, -0.5, 0, 0.5, 1, 1.5, 2])
    for path in ("linear", "curvilinear"):
        for split in ("train", "test"):
            losses = pair[path][f"{split}_loss"]
            assert losses[2] == pytest.approx(pair["ends"]["SB"][split], rel=1e-5)
            assert losses[4] == pytest.approx(pair["ends"]["LB"][split], rel=1e-5)
    for name in ("straight", "curve"):
        losses = pair["connection"][name]["train_loss"]
        ends = pair["ends"]["SB"]["train"], pair["ends"]["LB"]["train"]
        assert (losses[0], losses[-1]) == pytest.approx(ends, rel=1e-5)


def test_every_figure_is_drawn_and_says_what_it_shows(finished):
    sections = landscape.figures(finished[1].rows)
    assert [section.name for section in sections] == DRAWN
    for section in sections:
        assert section.figure is not None and section.caption and section.findings
        assert "nan" not in " ".join(section.findings)
    said = {section.name: " ".join(section.findings) for section in sections}
    assert "in the paper (MNIST) by 0.002 and 1.71" in said["fig3"]
    assert "3 to 10 times, as the paper says" in said["neighbourhood"]


@pytest.mark.parametrize(("name", "path"), [("fig3", "linear"), ("fig7", "curvilinear")])
def test_a_path_is_drawn_over_the_papers_and_no_label_is_in_the_way(finished, name, path):
    rows = finished[1].rows
    (section,) = [section for section in landscape.figures(rows) if section.name == name]
    loss, accuracy = section.figure.axes
    for ax, what, factor in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        lines = {line.get_label(): line for line in ax.lines}
        for split in ("train", "test"):
            both = [row[path][f"{split}_{what}"] for row in rows if row["of"] == "pair"]
            assert lines[split].get_ydata() == pytest.approx(factor * np.mean(both, axis=0))
            assert len(lines[f"paper, F1 on MNIST, {split}"].get_xdata()) > 20
        assert not ax.texts and ax.get_legend() is None
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["-1", "0\nSB", "1\nLB", "2"]
    assert len(section.figure.legends) == 1


def test_planes_share_their_levels_and_mark_the_minima(finished):
    (section,) = [section for section in landscape.figures(finished[1].rows) if section.name == "planes"]
    planes = section.figure.axes[:3]
    assert len({tuple(ax.collections[0].levels) for ax in planes}) == 1
    assert [line.get_label() for line in planes[0].lines] == ["SB", "LB", "SB, seed 1"]
    assert [ax.get_title() for ax in planes] == ["three minima", "around SB", "around LB"]


def test_the_findings_follow_from_the_numbers():
    losses = [4.0, 1.0, 0.5, 2.0, 1.0, 9.0, 17.0]
    alphas = [-1, -0.5, 0, 0.5, 1, 1.5, 2]
    assert landscape._barrier(alphas, losses) == 1.0
    assert landscape.beyond(alphas, losses) == (0.25, 4.0)
    assert landscape._barrier(alphas, [*losses[:3], None, *losses[4:]]) == 0.0


def test_a_single_pair_has_the_plane_through_its_start(finished, small):
    config, run = finished
    alone = config._replace(training=settings.resolved(config.training._replace(num_seeds=1)))
    cell = {"network": "F1", "dataset": "digits", "seed": 0, "of": "planes"}
    row = landscape.row(alone, cell, run.store)
    assert list(row["planes"][0]["points"]) == ["SB", "LB", "start"]
    assert row["planes"][0]["name"] == "two minima, start"


def test_the_minima_of_another_experiment_are_not_trained_again(finished, small, monkeypatch):
    config, run = finished
    training = settings.resolved(config.training)
    begun = []
    monkeypatch.setattr(minima.train, "fit", lambda *args, **rest: begun.append(1) or pytest.fail("trained"))
    settings.pair(training, "F1", 1, run.store)
    with pytest.raises(pytest.fail.Exception, match="trained"):
        settings.pair(training._replace(train_size=410), "F1", 1, run.store)
    assert begun == [1]


def test_a_pair_that_diverged_is_said_and_in_no_figure(finished, small, monkeypatch, tmp_path):
    config, run = finished
    lost = dict.fromkeys(("SB", "LB"), minima.Minimum({}, 1, 1, 1, None, 0.0, 0.0, {}, {}))
    lost["LB"] = lost["LB"]._replace(diverged_at=17)
    with monkeypatch.context() as patch:
        patch.setattr(settings, "pair", lambda *args: lost)
        row = landscape.row(config, {"network": "F1", "of": "pair", "seed": 1}, tmp_path)
    assert row == {"diverged_at": {"LB": 17}}
    first, *others = landscape.figures([*run.rows[:2], run.rows[2] | row])
    assert first.findings == ["Diverged, in no figure: the pair of seed 1 (LB at step 17)."]
    assert [section.name for section in others] == DRAWN
    (alone,) = landscape.figures([run.rows[2] | row])
    assert alone.title == "Minima that were not found"


def test_nothing_is_drawn_of_no_rows():
    assert landscape.figures([]) == []


@pytest.mark.parametrize("name", ["points", "side", "examples", "num_directions", "steps"])
def test_a_setting_out_of_its_range_is_named(small, tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is 1; it must be an integer, 2 or more"):
        landscape.run(landscape.SMOKE._replace(**{name: 1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_training_setting_out_of_its_range_is_named(small, tmp_path):
    wrong = landscape.SMOKE.training._replace(num_seeds=0)
    with pytest.raises(ValueError, match="num_seeds is 0"):
        landscape.run(landscape.SMOKE._replace(training=wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()
