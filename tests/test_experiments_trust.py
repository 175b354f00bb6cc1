"""Choices, reparametrisations and the grid: what their rows hold, and what is drawn and said of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import choices, correlation, reparametrise
from experiments.lib import settings
from gengap import data, minima, models, report, symmetry
from tests import toy


def words(sections):
    return " ".join(sentence for section in sections for sentence in section.findings)


def image(side, name, factor, full, random=1.0, *, change=0.0, seed=0):
    draws = {"sharpness_random_1e-3_draws": [random, random]}
    place = {"network": "F1", "dataset": "digits", "side": side, "seed": seed, "map": name, "factor": factor}
    return {
        **place,
        "logits_change": change,
        "sharpness_full_1e-3": full,
        "sharpness_random_1e-3": random,
        **draws,
    }


def test_the_same_function_is_made_sharper_and_flatter(monkeypatch):
    model = models.dense(10, widths=(6, 6))
    ds = toy.load("digits")
    params = minima.starting_point(model, ds, jax.random.key(0))
    logits = {f: model.apply(reparametrise.moved(params, n, f), ds.x_test[:50] / 255) for f in (1.0, 3.0)
              for n in reparametrise.MAPS[:1]}  # fmt: skip
    np.testing.assert_allclose(logits[3.0], logits[1.0], atol=1e-2)
    problem = settings.Problem(ds, model, None, None, None)
    some = data.head(ds, 60)
    config = reparametrise.SMOKE._replace(training=reparametrise.SMOKE.training._replace(chunk=60), repeats=2)
    audit, names = symmetry.audit, []

    def of_three(measures, maps, *args, **rest):
        names.extend(measures)
        kept = ("training loss", "relative flatness, last layer", "sharpness, full space")
        maps = {name: maps[name] for name in ("alpha-scale", "before batch norm")}
        return audit({name: measures[name] for name in kept}, maps, *args, **rest)

    monkeypatch.setattr(symmetry, "audit", of_three)
    entries = reparametrise._audit(config, problem, some, params)
    verdicts = {(entry["measure"], entry["symmetry"]): entry["verdict"] for entry in entries}
    assert len(names) == 16 and verdicts["training loss", "alpha-scale"] == "unchanged"
    assert verdicts["relative flatness, last layer", "alpha-scale"] == "unchanged"
    assert verdicts["sharpness, full space", "before batch norm"] == "changed"


def test_maps_are_drawn_and_their_sharpness_compared():
    rows = [image(side, name, factor, value * factor, factor) for side, value in (("SB", 1.0), ("LB", 2.0))
            for name in reparametrise.MAPS for factor in (0.5, 1.0, 20.0)]  # fmt: skip
    rows.append(image("SB", reparametrise.MAPS[0], 99.0, 1e6, change=0.5))
    verdict = {"measure": "trace", "symmetry": "alpha-scale", "verdict": "changed", "factor": 2.0}
    rows.append(
        {"network": "F1", "dataset": "digits", "side": "LB", "seed": 0, "map": "audit", "audit": [verdict]}
    )
    sections = reparametrise.figures(rows)
    assert [section.name for section in sections] == ["reparametrised", "audited"]
    text = words(sections)
    assert "At 12 of 13 mapped minima the logits change by at most" in text and "nan" not in text
    assert "20 to 20 times sharper and 2 to 2 times flatter (2 minima)" in text
    assert (
        "reverses the order of SB and LB in 1 of 1 pairs" in text and "ten times as sharp in 4 of 4 draws" in text
    )
    full = reparametrise.claims(rows)[0]
    assert full.here == "20.00 to 20.00 times" and full.verdict.word == "no test"
    assert reparametrise.claims([])[1].verdict.word == "not tested"


def test_an_image_of_sharpness_0_is_flatter():
    name = reparametrise.MAPS[0]
    rows = [image(side, name, f, v) for side, values in (("SB", (1.0, 1.0)), ("LB", (5.0, 0.0)))
            for f, v in zip((1.0, 9.0), values, strict=True)]  # fmt: skip
    assert reparametrise._turned(rows, "full") == (1, 1)
    assert reparametrise._minima(rows, "full")[0, "LB"] == (5.0, [5.0, 0.0])


def test_factors_need_the_map_that_changes_nothing(tmp_path):
    with pytest.raises(ValueError, match="one must be 1"):
        reparametrise.run(reparametrise.SMOKE._replace(factors=(0.1, 10.0)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:the error does not rise", "ignore:the free energy", "ignore:no number of bits")
def test_a_run_of_the_grid_has_every_measure(tmp_path):
    config = correlation.SMOKE._replace(widths=(4,), batch_sizes=(50,), train_size=60, examples=20)
    (row,) = correlation.run(config, tmp_path).rows
    assert len(row["measures"]) == 20 and all(np.isfinite(value) for value in row["measures"].values())
    assert row["width"] == 4 and row["train_accuracy"] >= 0 and row["diverged_at"] is None
    for changes, name in (({"widths": ()}, "every axis"), ({"train_size": 10**6}, "train_size is 1000000")):
        with pytest.raises(ValueError, match=name):
            correlation.run(config._replace(**changes))


def test_measures_are_ranked_over_a_grid():
    rows = [
        {"network": "dense", "dataset": "digits", "width": 4, "batch_size": size, "learning_rate": rate,
         "seed": seed, "weight_decay": 0.0, "train_accuracy": 1.0, "test_accuracy": 1 - size * rate,
         "diverged_at": None, "measures": {"sharpness, full space, 1e-3": size * rate, "b": -size * rate}}
        for size in (50, 100) for rate in (1e-3, 2e-3, 4e-3) for seed in (0, 1)
    ]  # fmt: skip
    (section,) = correlation.figures(rows)
    assert section.findings[0].endswith("points over 12 runs.") and section.name == "correlated"
    assert (
        section.findings[1] == "The measure with the highest Kendall's tau, 1.00, is: sharpness, full space, 1e-3."
    )
    assert section.findings[2].endswith("above 0 for: sharpness, full space, 1e-3.")
    assert section.findings[3] == "It is below 0 for: b."
    (claim,) = correlation.claims(rows)
    assert claim.verdict == ("holds", 6, 0, 0) and claim.here.startswith("tau 1.00 (")


def test_choices_are_measured_at_the_minima_and_at_the_stages(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.NETWORKS, "F1", lambda num_classes: models.dense(num_classes, widths=(8,)))
    monkeypatch.setattr(
        choices, "NOTES", dict.fromkeys(("default", "N(0, 1)", "population statistics"), "entries")
    )
    # The target, which the first epoch reaches, ends the training of the pair but not the stages.
    config = choices.SMOKE._replace(stages=(2, 1), training=choices.SMOKE.training._replace(target=10.0))
    config = config._replace(metric=config.metric._replace(dim=3, num_directions=1))
    run = choices.run(config, tmp_path / "choices" / "default")
    names = [row["choice"] for row in run.rows[::2]]
    assert names == ["default", "N(0, 1)", "population statistics", "after 1 epochs", "after 2 epochs"]
    values = {row["choice"]: row["sharpness_random_1e-3"] for row in run.rows[::2]}
    assert np.isfinite(list(values.values())).all() and len(set(values.values())) == 4
    assert values["default"] == values["after 1 epochs"]
    assert run.rows[-2]["train_loss"] < run.rows[-4]["train_loss"]
    (section,) = choices.figures(run.rows)
    assert len(section.table) == 6 and section.table.iloc[0]["LB, 0.001"] == "9.22"
    assert "of the paper's SB and LB" in words([section]) and "nan" not in report.terminal([section])


@pytest.mark.parametrize(
    ("entries", "least", "most"), [(choices._symmetric, -1, 1), (choices._unit, -1, 1)], ids=["symmetric", "unit"]
)
def test_entries_of_A_are_what_they_are_called(entries, least, most):
    A = entries(jax.random.key(0), (3, 4000))
    assert A.min() >= least and A.max() <= most
    if entries is choices._unit:
        np.testing.assert_allclose(jnp.linalg.norm(A, axis=1), 1, rtol=1e-5)
    else:
        assert abs(A.mean()) < 0.03 and abs((A**2).mean() - 1 / 3) < 0.02


def test_every_choice_is_a_measurement():
    ds = data.head(toy.load("digits"), 50)
    model = models.dense(10, widths=(4,))
    config = choices.SMOKE._replace(metric=choices.SMOKE.metric._replace(dim=2))
    assert choices._choices(config, model, ds).keys() == choices.NOTES.keys()
    params = minima.starting_point(model, ds, jax.random.key(0))
    scipy = choices._choices(config, model, ds)["SciPy"](params)
    assert np.shape(scipy) == (2, 1) and np.min(scipy) > 0


def test_a_network_without_batch_norm_has_no_population_statistics(monkeypatch):
    monkeypatch.setitem(settings.NETWORKS, "F1", toy.linear)
    names = {cell["choice"] for cell in choices.cells(choices.SMOKE)}
    assert "population statistics" not in names and "default" in names
