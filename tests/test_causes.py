"""The factorial of what makes the gap, at toy size, and its effects where they are known."""

import math

import numpy as np
import pytest

from experiments import causes
from gengap import minima, report
from tests import toy


@pytest.fixture(autouse=True)
def small(monkeypatch):
    toy.use(monkeypatch)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        toy.use(patch)
        path = tmp_path_factory.mktemp("causes")
        return path, causes.run(causes.SMOKE, path)


def test_there_is_a_row_for_each_cell_and_each_look(done):
    _, run = done
    cells = {row["method"]: row for row in run.rows if "after" not in row}
    assert set(cells) == {"SB", *causes.CELLS} and len(causes.CELLS) == 16
    assert len(run.rows) == 1 + 16 + 3 * 2
    steps = {name: row["steps"] for name, row in cells.items()}
    assert steps["SB"] == 10 and steps["LB"] == steps["LB + noise + ghosts + rate"] == 3
    assert steps["LB + updates"] == steps["LB + updates + rate"] == 9  # 3 epochs of 3, nearest to 10
    assert all(row["full"]["value"] > 0 and row["random"]["value"] for row in cells.values())


def test_each_factor_changes_what_it_says_and_batch_norm_is_not_in_a_linear_network(done):
    _, run = done
    cells = {row["method"]: row for row in run.rows if "after" not in row}
    base = cells["LB"]
    for factor in ("updates", "noise", "rate"):
        assert cells[f"LB + {factor}"]["distance"] != base["distance"]
    assert cells["LB + ghosts"]["distance"] == pytest.approx(base["distance"], rel=1e-4)
    assert cells["LB + rate"]["distance"] == pytest.approx(base["distance"] * math.sqrt(20 / 6), rel=0.1)  # Adam's


def test_an_escape_begins_at_the_minimum_with_as_many_updates(done, monkeypatch):
    path, _ = done
    begun = {}
    find_along = minima.find_along

    def watched(*args, start=None, **how):
        found = find_along(*args, start=start, **how)
        if start is None:
            begun[how["method"].name, found[-1].batch_size, found[-1].epochs] = found[-1]
        else:
            np.testing.assert_array_equal(start["w"], begun["", 20, 3].params["w"])
            begun["escapes"] = [one.epochs for one in found]
        return found

    monkeypatch.setattr(minima, "find_along", watched)
    causes.run(causes.SMOKE, path / "other")
    assert begun["escapes"] == [3, 7]  # after 1 and 2 epochs of SB, of 10 updates, in epochs of 3


def test_nothing_is_done_twice(done, monkeypatch):
    path, run = done
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    again = causes.run(causes.SMOKE, path)
    assert again.rows == run.rows and again.added == 0


def test_what_is_drawn_and_said(done):
    sections = causes.figures(done[1].rows)
    assert {section.name for section in sections} == {"effects", "", "escape"}
    text = report.terminal(sections, 1000)
    assert "nan" not in text and "The gap: SB tests" in text
    assert all(section.findings for section in sections)


def test_contrasts_of_a_made_response_are_its_coefficients():
    """Of y = 3 u - 2 n + 4 u n with u, n from {0, 1}: 3 + 2, -2 + 2, and half of 4."""
    values = {
        name: 3 * ("updates" in on) - 2 * ("noise" in on) + 4 * ("updates" in on and "noise" in on)
        for name, on in causes.CELLS.items()
    }
    effects = {term: causes.contrast(values, term) for term in causes.TERMS}
    assert effects[("updates",)] == 5 and effects[("noise",)] == 0
    assert effects[("updates", "noise")] == 2
    assert sum(abs(value) for value in effects.values()) == 7


def made(seeds, accuracy, sharpness):
    """Rows whose accuracy and sharpness are functions of the pieces and the seed."""
    return [
        {
            "network": "F1",
            "dataset": "toy",
            "method": name,
            "seed": seed,
            "batch_size": 32,
            "epsilon": 1e-3,
            "steps": 9,
        }
        | {"train_loss": 0.1, "distance": 1.0, "test_accuracy": accuracy(on, seed), "diverged_at": None}
        | {"full": {"value": sharpness(on, seed), "finite": True}, "random": {"value": [1.0], "finite": [True]}}
        for seed in range(seeds)
        for name, on in {"SB": ("SB",), **causes.CELLS}.items()
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
    assert "The gap: SB tests 4.00 points above LB, SB higher than LB in" in first.findings[0]
    assert "rises with updates (+2.00 points" in first.findings[1]
    assert "falls with rate (-" in first.findings[1]
    assert first.findings[2] == (
        "Sharpness in the full space rises with nothing; it falls with ghosts (times 0.32, 0.32 to 0.32), updates "
        "(times 0.50, 0.50 to 0.50)."
    )
    assert "not the same: updates do both" in first.findings[5]
    assert "95 % t intervals" in first.caption
    row = first.table.set_index("effect").loc["ghosts"]
    assert row["log10 sharpness, full"].startswith("-0.50")


@pytest.mark.parametrize(
    ("both", "verb"), [([], "does"), (["noise"], "does"), (["ghosts"], "do"), (["noise", "rate"], "do")]
)
def test_the_verb_agrees(both, verb):
    assert causes._do(both) == verb


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
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"dim": 0}, "dim is 0"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"max_evaluations": 0}, "max_evaluations is 0"),
        ({"num_directions": -1}, "num_directions is -1"),
    ],
)
def test_a_setting_out_of_its_range_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        causes.run(causes.SMOKE._replace(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
