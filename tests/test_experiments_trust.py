"""Choices, reparametrisations and the grid at toy size: rows, drawings, and nothing done twice."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import averages, choices, correlation, reparametrise
from gengap import minima, models, report
from tests import toy


def said(sections):
    return " ".join(sentence for section in sections for sentence in section.findings)


def test_the_same_function_is_made_sharper_and_flatter(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "f1", lambda num_classes: models.dense(num_classes, widths=(16, 16)))
    config = reparametrise.SMOKE._replace(training=reparametrise.SMOKE.training._replace(epochs=100))
    run = reparametrise.run(config, tmp_path)
    for row in run.rows[:2]:
        for one in row["maps"]:
            assert one["logits_change"] < 0.02
            assert one["loss"] == pytest.approx(row["maps"][1]["loss"], rel=0.1)
        full = {(one["map"], one["factor"]): one["full"] for one in row["maps"]}
        assert full["behind batch norm", 10.0] > 2 * full["behind batch norm", 1.0]
        assert full["before batch norm", 10.0] < 0.8 * full["before batch norm", 1.0]
    verdicts = {(one["measure"], one["symmetry"]): one["verdict"] for one in run.rows[-1]["audit"]}
    for measure in ("training loss", "worst case l2, adaptive (ASAM)", "worst case l-inf, adaptive"):
        assert verdicts[measure, "alpha-scale"] == "unchanged"
    assert verdicts["relative flatness, last layer", "alpha-scale"] == "unchanged"
    assert verdicts["sharpness, full space", "before batch norm"] == "changed"
    sections = reparametrise.figures(run.rows)
    assert [section.name for section in sections] == ["reparametrised", "audited"]
    assert "Dinh et al. could not show" in said(sections) and "nan" not in said(sections)
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    again = reparametrise.run(config, tmp_path)
    assert again.rows == run.rows and again.added == 0


def test_an_image_of_sharpness_0_is_flatter():
    def maps(*values):
        return [{"factor": f, "full": v, "logits_change": 0.0} for f, v in zip((1.0, 9.0), values, strict=True)]

    runs = [{"seed": 0, "method": method, "maps": own} for method, own in
            (("SB", maps(1.0, 1.0)), ("LB", maps(5.0, 0.0)))]  # fmt: skip
    assert reparametrise._turned(runs, "full") == (1, 1)
    assert reparametrise.values_of(runs[1]["maps"], "full") == (5.0, [5.0, 0.0])


def test_factors_need_the_map_that_changes_nothing(tmp_path):
    with pytest.raises(ValueError, match="one must be 1"):
        reparametrise.run(reparametrise.SMOKE._replace(factors=(0.1, 10.0)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:the error does not rise")
def test_measures_are_ranked_over_a_grid(tmp_path, monkeypatch):
    config = correlation.SMOKE._replace(widths=(4,), batch_sizes=(50, 100), num_seeds=2)
    run = correlation.run(config, tmp_path)
    assert len(run.rows) == 4 and all(len(row["measures"]) == 17 for row in run.rows)
    (section,) = correlation.figures(run.rows)
    assert "4 runs" in section.findings[0]
    assert section.findings[1].startswith("Highest Kendall's tau: ") and " to " not in section.findings[1]
    monkeypatch.setattr(minima, "find", lambda *args, **how: pytest.fail("asked again"))
    assert correlation.run(config, tmp_path).added == 0
    for changes, words in (({"widths": ()}, "every axis"), ({"train_size": 10**6}, "train_size is 1000000")):
        with pytest.raises(ValueError, match=words):
            correlation.run(config._replace(**changes))


def test_choices_are_a_run_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "f1", lambda num_classes: models.dense(num_classes, widths=(16, 16)))
    other = tmp_path / "mnist" / "default"
    other.mkdir(parents=True)
    (other / "rows.jsonl").write_text("someone else's")
    # The target, which the first epoch reaches, ends the training of the pair but not the stages.
    config = choices.SMOKE._replace(stages=(2, 1), training=choices.SMOKE.training._replace(target=10.0))
    run = choices.run(config, tmp_path / "choices" / "default")
    names = [row["choice"] for row in run.rows]
    assert names[0] == "default" and names[-2:] == ["after 1 epochs", "after 2 epochs"] and len(names) == 12
    values = {row["choice"]: np.array([row["SB"], row["LB"]]) for row in run.rows}
    assert all(value.shape == (2, 2, 1) and np.isfinite(value).all() for value in values.values())
    assert (values["N(0, 1)"] != values["default"]).all() and (values["unit columns"] < values["default"]).all()
    assert (values["U(0, 1)"] != values["U(-1, 1)"]).all()
    losses = [row["loss"]["SB"] for row in run.rows[-2:]]
    assert losses[1] < losses[0]
    (section,) = choices.figures(run.rows)
    assert len(section.table) == 13 and section.table.iloc[0]["LB, 0.001"] == "9.22"
    assert "of both" in said([section]) and "nan" not in report.terminal([section])
    assert [path.name for path in other.iterdir()] == ["rows.jsonl"]
    monkeypatch.setattr(minima, "find", lambda *args, **how: pytest.fail("asked again"))
    assert choices.run(config, tmp_path / "choices" / "default").added == 0


def test_a_network_without_batch_norm_has_no_population_statistics(monkeypatch):
    def init(key, x):
        return {"w": np.cos(np.arange(640.0, dtype=np.float32)).reshape(64, 10)}

    monkeypatch.setattr(
        models, "f1", lambda _: models.Model(init, lambda p, x: x.reshape(len(x), -1) @ p["w"], name="linear")
    )
    run = choices.run(choices.SMOKE._replace(epsilons=(1e-3,)))
    assert "population statistics" not in [row["choice"] for row in run.rows]
    assert choices.figures(run.rows)[0].table.columns.tolist()[2:] == ["SB, 0.001", "LB, 0.001"]


def test_moving_averages_forget_their_beginning():
    own = {"BatchNorm_0": {"mean": jnp.array([4.0]), "var": jnp.array([9.0])}}
    first = averages._averaged(None, own, 0.99**3)["BatchNorm_0"]
    np.testing.assert_allclose(first["mean"], 4 * (1 - 0.99**3), rtol=1e-5)
    np.testing.assert_allclose(first["var"], 9 - 8 * 0.99**3, rtol=1e-5)
    then = averages._averaged({"BatchNorm_0": first}, own, 0.99**7)["BatchNorm_0"]
    np.testing.assert_allclose(then["var"], 9 - 8 * 0.99**10, rtol=1e-5)


def test_averages_without_memory_are_batch_statistics(monkeypatch):
    toy.use(monkeypatch)
    monkeypatch.setattr(models, "f1", lambda num_classes: models.dense(num_classes, widths=(8,)))
    setting = averages.SMOKE.training._replace(large_batch=400)  # one chunk, the whole set
    run = averages.run(averages.Config(setting, momentum=0.0))
    small, large = run.rows
    assert large["steps"] == [1, 2] and small["steps"][-1] > 2
    np.testing.assert_allclose(large["moving"], large["batch"], rtol=1e-4)
    kept, own = [], averages._averaged
    monkeypatch.setattr(averages, "_averaged", lambda *args: kept.append(args[2]) or own(*args))
    slow = averages.run(averages.Config(setting, momentum=0.999999)).rows[1]
    assert kept == [0.999999 ** small["steps"][0]] * 2 + [0.999999] * 2  # of the updates in each epoch
    assert abs(slow["moving"][-1] - slow["batch"][-1]) > 0.05
    section = averages.figures(run.rows)[0]
    assert "after 2.00 updates" in section.findings[0] and "9.11" in section.findings[0]
