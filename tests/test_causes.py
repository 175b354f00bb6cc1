"""The factorial of what makes the gap: a part of it at toy size, and its effects where they are known."""

import itertools
import math

import numpy as np
import pytest

from experiments import causes
from experiments.lib import settings
from gengap import minima, report
from tests import toy

ALL_CELLS = causes.cells
CONFIG = causes.SMOKE._replace(metric=causes.SMOKE.metric._replace(max_evaluations=2, num_directions=0))


def part(config):
    """SB, LB with each factor by itself, and the escape with noise."""
    names = ("SB", "LB", *(f"LB + {factor}" for factor in causes.FACTORS))
    return [
        cell for cell in ALL_CELLS(config) if causes._name(cell) in (("LB + noise",) if "after" in cell else names)
    ]


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "_loaded", lambda name, *_: toy.load(name))
        patch.setitem(settings.NETWORKS, "F1", toy.linear)
        patch.setattr(causes, "cells", part)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The directory, the run, and the start, the recipe and the minimum of every training."""
    path, trainings, find = tmp_path_factory.mktemp("causes"), [], minima.find

    def watched(model, ds, key, recipe, *, start=None, **options):
        trainings.append((start, recipe, find(model, ds, key, recipe, start=start, **options)))
        return trainings[-1][-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minima, "find", watched)
        patch.setattr(causes, "_metric", lambda config, cell: config.metric._replace(num_draws=0))
        return path, causes.run(CONFIG, path), trainings


def by_name(rows):
    return {causes._name(row): row for row in rows if "after" not in row}


def test_there_is_a_cell_for_each_way_and_each_epoch_of_an_escape():
    config = CONFIG._replace(training=settings.resolved(CONFIG.training, all_epochs=True), escape=(2, 1, 2))
    cells = ALL_CELLS(config)
    assert len(cells) == 1 + 16 + 3 * 2 == len({tuple(cell.items()) for cell in cells})
    assert set(by_name(cells)) == {"SB", *causes.factorial(causes.FACTORS)}
    recipes = {name: causes.recipe(config, cell) for name, cell in by_name(cells).items()}
    assert [recipes[name].batch_size for name in ("SB", "LB", "LB + updates")] == [6, 20, 20]
    epochs = {name: recipe.epochs for name, recipe in recipes.items()}
    assert epochs["SB"] == epochs["LB"] == epochs["LB + noise + ghosts + rate"] == 1
    assert epochs["LB + updates"] == epochs["LB + updates + rate"] == 3  # of 3 updates, nearest to 10
    method = recipes["LB + updates + noise + ghosts + rate"].method
    assert method.name == "matched_noise(6) + ghost_batch_norm(6) + scale_rate(1.82574)"
    escapes = {causes._name(cell): causes.recipe(config, cell) for cell in cells if "after" in cell}
    assert escapes["SB"].snapshots == (1, 2) and escapes["LB"].snapshots == (3, 7)  # 20 updates, in epochs of 3
    assert escapes["LB + noise"].method.name == "matched_noise(6) + warm_up(10)"
    assert {causes._metric(config, cell).num_draws for cell in by_name(cells).values()} == {1}
    assert {causes._metric(config, cell).num_draws for cell in cells if "after" in cell} == {0}


def test_each_factor_changes_what_it_says_and_batch_norm_is_not_in_a_linear_network(done):
    rows = by_name(done[1].rows)
    distances = {name: row["distance"] for name, row in rows.items()}
    for factor in ("updates", "noise", "rate"):
        assert distances[f"LB + {factor}"] != distances["LB"]
    assert distances["LB + ghosts"] == pytest.approx(distances["LB"], rel=1e-4)
    assert distances["LB + rate"] == pytest.approx(distances["LB"] * math.sqrt(20 / 6), rel=0.1)  # Adam's
    assert [rows[name]["steps"] for name in ("LB", "LB + updates")] == [3, 9]
    assert all(row["sharpness_full_1e-3"] > 0 for row in done[1].rows)


def test_an_escape_begins_at_the_minimum_with_as_many_updates(done):
    _, run, trainings = done
    sharp = next(m for begun, r, m in trainings if begun is None and r.epochs == 3 and not r.method.name)
    escapes = [(start, minimum) for start, _, minimum in trainings if start is not None]
    assert len(escapes) == 2
    for start, minimum in escapes:
        np.testing.assert_array_equal(start["w"], sharp.params["w"])
        assert minimum.snapshots.keys() == {3, 7}
    rows = [row for row in run.rows if "after" in row]
    assert [(row["after"], row["epochs"], row["steps"]) for row in rows] == [(1, 3, 9), (2, 7, 21)]
    assert 0 < rows[0]["distance"] != rows[1]["distance"]


def test_nothing_is_done_twice(done, monkeypatch):
    path, run, _ = done
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    again = causes.run(CONFIG, path)
    assert again.rows == run.rows and again.added == 0


def test_contrasts_of_a_made_response_are_its_coefficients():
    """Of y = 3 u - 2 n + 4 u n with u, n from {0, 1}: 3 + 2, -2 + 2, and half of 4."""
    values = {
        name: 3 * ("updates" in on) - 2 * ("noise" in on) + 4 * ("updates" in on and "noise" in on)
        for name, on in causes.factorial(causes.FACTORS).items()
    }
    terms = [*((factor,) for factor in causes.FACTORS), *itertools.combinations(causes.FACTORS, 2)]
    effects = {term: causes.contrast(values, term) for term in terms}
    assert effects[("updates",)] == 5 and effects[("noise",)] == 0
    assert effects[("updates", "noise")] == 2
    assert sum(abs(value) for value in effects.values()) == 7


def test_two_factors_have_four_combinations_and_without_updates_there_is_no_escape():
    two = CONFIG._replace(
        training=settings.resolved(CONFIG.training, all_epochs=True), factors=("noise", "updates")
    )
    names = [causes._name(cell) for cell in ALL_CELLS(two) if "after" not in cell]
    assert names == ["SB", "LB", "LB + updates", "LB + noise", "LB + updates + noise"]
    assert len(ALL_CELLS(two)) == 5 + 3 * 2
    rows = made(
        3, lambda on, seed: 0.5 + 0.02 * ("updates" in on), lambda on, seed: 1.0 + seed, ("updates", "noise")
    )
    effects, table = causes.figures(rows)
    assert effects.findings[2].startswith("Factors that raise test accuracy: updates (+2.00 points")
    assert effects.table["effect"].tolist() == ["updates", "noise", "updates x noise"] and len(table.table) == 5
    without = ALL_CELLS(two._replace(factors=("noise", "rate")))
    assert len(without) == 5 and not any("after" in cell for cell in without)


def made(seeds, accuracy, sharpness, factors=causes.FACTORS):
    """Rows whose accuracy and sharpness are functions of the pieces and the seed."""
    base = {"network": "F1", "dataset": "toy", "batch_size": 32, "steps": 9, "train_loss": 0.1, "distance": 1.0}
    base |= {"diverged_at": None, "sharpness_random_1e-3": 1.0}
    return [
        {**base, **causes._way(name), "begun": "", "seed": seed}
        | {"test_accuracy": accuracy(on, seed), "sharpness_full_1e-3": sharpness(on, seed)}
        for seed in range(seeds)
        for name, on in {"SB": ("SB",), **causes.factorial(factors)}.items()
    ]


def escaped(seeds, distance, sharpness):
    """Rows of escapes whose distance and sharpness are functions of the name and the epoch."""
    base = {"network": "F1", "dataset": "toy", "train_loss": 0.1, "test_accuracy": 0.5, "diverged_at": None}
    return [
        {**base, **causes._way(name), "begun": "from LB + updates", "after": after, "seed": seed}
        | {"steps": 10 * after, "distance": distance(name, after), "sharpness_full_1e-3": sharpness(name, after)}
        for seed in range(seeds)
        for name in causes.ESCAPES
        for after in (4, 1)
    ]


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_sentence_names_the_factors_that_the_numbers_name(seeds):
    def accuracy(on, seed):
        return (
            0.5
            + 0.02 * ("updates" in on)
            - 0.01 * ("rate" in on)
            + 0.04 * ("SB" in on)
            + 0.001 * seed * ("rate" in on)
        )

    def sharpness(on, seed):
        return 10 ** (1 - 0.5 * ("ghosts" in on) - 0.3 * ("updates" in on) - 0.3 * ("noise" in on) * (seed - 1))

    first = causes.figures(made(seeds, accuracy, sharpness))[0]
    assert first.findings[:2] == [
        "SB tests 4.00 points better than LB.",
        f"SB tests better than LB: holds (n = {seeds}, {seeds} of {seeds}).",
    ]
    assert first.findings[2].startswith("Factors that raise test accuracy: updates (+2.00 points")
    assert first.findings[3].startswith("Factors that lower test accuracy: rate (-")
    assert first.findings[4:6] == [
        "No factor raises sharpness in the full space.",
        "Factors that lower sharpness in the full space: ghosts (by a factor of 3.16, 3.16 to 3.16), updates (by "
        "a factor of 2.00, 2.00 to 2.00).",
    ]
    assert "Factors that raise test accuracy and flatten in the full space: updates." in first.findings
    assert "95 % t intervals" in first.caption
    row = first.table.set_index("effect").loc["ghosts"]
    assert row["log10 sharpness, full"].startswith("-0.50")


def test_the_claims_and_what_the_figure_says_of_them():
    rows = made(
        3,
        lambda on, seed: (
            0.8
            + (0.1 + 0.01 * seed) * ("noise" in on)
            + (0.02 + 0.01 * seed) * ("SB" in on)
            - 0.01 * ("updates" in on)
        ),
        lambda on, seed: 9.0 * (1.1 + 0.01 * seed) ** ("noise" in on),
    )
    closed, better, flatter = causes.claims(rows + escaped(3, lambda *_: 1.0, lambda *_: 1.0))
    assert (closed.here, str(closed.verdict)) == ("79.00 | 83.00 %", "does not hold (n = 3, 0 of 3)")
    assert closed.differs.endswith("79.00 | 83.00 %, the training losses 0.10 | 0.10 (LB | SB).")
    assert (better.here, str(better.verdict)) == ("90.00 | 79.00 %", "holds (n = 3, 3 of 3)")
    assert (flatter.here, str(flatter.verdict)) == ("9.99 | 9.00", "does not hold (n = 3, 0 of 3)")
    assert causes.figures(rows)[0].findings[-3:] == [
        "LB with as many updates as SB tests at least as well as SB (LB | SB): 79.00 | 83.00 %, does not hold "
        "(n = 3, 0 of 3).",
        "LB with as many updates as SB tests better with SB's noise than without it (with | without): "
        "90.00 | 79.00 %, holds (n = 3, 3 of 3).",
        "LB with as many updates as SB is flatter with SB's noise than without it (with | without): 9.99 | 9.00, "
        "does not hold (n = 3, 0 of 3).",
    ]
    assert [(claim.here, claim.verdict.word) for claim in causes.claims([])] == [("", "not tested")] * 3


def test_the_end_of_an_escape_is_compared_with_that_of_lb_and_with_its_beginning():
    rows = made(3, lambda on, seed: 0.5, lambda on, seed: 10.0)
    rows += escaped(
        3,
        lambda name, after: {"SB": 3.0, "LB": 1.0, "LB + noise": 2.0}[name] * after,
        lambda name, after: {"SB": 8.0, "LB": 16.0, "LB + noise": 64.0}[name] / after,
    )
    effects, table, escape = causes.figures(rows)
    assert escape.findings == [
        "At the end SB is 3.00 times as far from the start as LB.",
        "SB is farther from the start: holds (n = 3, 3 of 3).",
        "At the end LB is 2.00 times as sharp as SB.",
        "LB is sharper: holds (n = 3, 3 of 3).",
        "SB ends flatter than the LB minimum that it started from: holds (n = 3, 3 of 3).",
        "At the end LB + noise is 2.00 times as far from the start as LB.",
        "LB + noise is farther from the start: holds (n = 3, 3 of 3).",
        "At the end LB + noise is 4.00 times as sharp as LB.",
        "LB + noise is sharper: holds (n = 3, 3 of 3).",
        "LB + noise ends flatter than the LB minimum that it started from: does not hold (n = 3, 0 of 3).",
    ]
    distance, sharpness, *_ = escape.figure.axes
    assert distance.lines[0].get_xdata().tolist() == [10, 40]
    assert sharpness.lines[0].get_xdata().tolist() == [0, 10, 40]
    assert sharpness.lines[0].get_ydata().tolist() == [10, 8, 2]
    assert [section.name for section in (effects, table)] == ["effects", ""]
    assert set(table.table["n"]) == {"3"}
    assert "nan" not in report.terminal([effects, table, escape], 1000)


def test_a_seed_with_a_run_that_diverged_is_in_no_effect():
    rows = made(2, lambda on, seed: 0.5 + 0.1 * seed, lambda on, seed: 1.0)
    rows[3] |= {"diverged_at": 7}
    lost, effects, table = causes.figures(rows)
    assert "at step 7" in lost.findings[0]
    assert set(table.table["n"]) == {"1"} and "nan" not in " ".join(effects.findings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"escape": ()}, "escape is 0"),
        ({"escape": (0, 1)}, "escape is 0"),
        ({"factors": ()}, r"factors is \(\); it needs at least one of updates, noise, ghosts, rate"),
        ({"factors": ("noise", "rate", "noise")}, "factors has noise more than once"),
        ({"epsilons": (0.0,)}, r"epsilons is \(0\.0,\)"),
        ({"dim": 0}, "dim is 0"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"max_evaluations": 0}, "max_evaluations is 0"),
        ({"num_directions": -1}, "num_directions is -1"),
    ],
)
def test_a_setting_out_of_its_range_is_named(tmp_path, changes, message):
    config = (
        CONFIG._replace(**changes)
        if {"escape", "factors"} & changes.keys()
        else CONFIG._replace(metric=CONFIG.metric._replace(**changes))
    )
    with pytest.raises(ValueError, match=message):
        causes.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
