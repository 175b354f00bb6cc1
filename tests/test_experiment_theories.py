"""The three reasons on pairs: one run at toy size, and what is said of known numbers."""

import pytest

from experiments import theories
from experiments.lib import settings
from gengap import models, report
from tests import toy


def words(sections):
    return " ".join(sentence for section in sections for sentence in section.findings)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "_loaded", toy.load)
        patch.setitem(settings.NETWORKS, "F1", lambda classes: models.dense(classes, widths=(4, 4)))
        config = theories.SMOKE._replace(priors=(0.0, 100.0))
        return theories.run(config, tmp_path_factory.mktemp("theories")).rows


def test_each_minimum_is_measured_in_each_state(rows):
    assert [(row["state"], row["side"]) for row in rows] == [
        (state, side) for state in ("end", "equal loss", *theories.MAPS) for side in ("SB", "LB")
    ]
    ends, (same,) = theories.at_end(rows), [row for row in rows if row.get("same")]
    assert same["state"] == "equal loss"
    assert same["side"] == max(ends, key=lambda row: row["train_loss"])["side"]
    for row in (row for row in rows if row is not same):
        assert set(row["reasons"]) == set(theories.REASONS)
        assert row["reasons"]["evidence"]["100.0"]["prior"] == 100
        assert row["reasons"]["bits"]["0.01"]["gradients"] == 32 and row["sharpness_full_1e-3"] is not None
    other = next(row for row in theories.at_equal_loss(rows) if row["side"] != same["side"])
    end = next(row for row in ends if row["side"] == other["side"])
    highest = max(row["train_loss"] for row in ends)
    assert other["epochs"] <= end["epochs"] and end["train_loss"] <= other["train_loss"] < highest
    for name in theories.MAPS:
        image = next(row for row in rows if row["state"] == name and row["side"] == "SB")
        assert image["train_loss"] == pytest.approx(ends[0]["train_loss"], rel=0.02)


def test_the_rows_of_a_run_are_drawn(rows, tmp_path):
    sections = theories.figures(rows)
    assert [section.name for section in sections] == ["bits", "evidence", "energy", "controls"]
    assert "nan" not in words(sections) and "n = 1" in words(sections)
    assert report.write(
        "theories", sections, theories.records.Run(None, "theories", {}, rows, []), tmp_path
    ).exists()


def made(seed, side, state="end", *, bits, evidence, energy, converged=True, **more):
    reasons = {
        "bits": {"0.01": {"value": bits, "sem": 0.01, "total": 100.0 * bits, "best": 1.0, "bits": [1.0, 2.0, 3.0],
                          "rises": [0.1 * bits, 0.02, 0.005]}},
        "evidence": {"0.0": {"value": -evidence, "sem": 0.01, "determined": 12.0, "negative": 0.25}},
        "energy": {"0.01": {"value": energy, "sem": 0.01, "converged": converged}},
    }  # fmt: skip
    place = {"network": "F1", "dataset": "digits", "side": side, "seed": seed, "state": state}
    return place | {"train_loss": 0.01, "sharpness_full_1e-3": bits, "reasons": reasons} | more


def test_what_is_said_of_known_numbers():
    rows = []
    for seed in range(3):
        noise = 0.01 * seed
        rows.append(made(seed, "SB", bits=2 + noise, evidence=5 + noise, energy=9 + noise))
        rows.append(made(seed, "LB", bits=3.0, evidence=4.0, energy=9.01))
        same = {
            "network": "F1",
            "dataset": "digits",
            "side": "SB",
            "seed": seed,
            "state": "equal loss",
            "same": True,
        }
        rows += [same, made(seed, "LB", "equal loss", bits=1.0, evidence=5.01, energy=10.0)]
    rows.append(made(0, "SB", theories.MAPS[0], bits=2.0, evidence=7.0, energy=9.5, converged=False))
    text = words(theories.figures(rows))
    assert "at the end of training: 2.01 | 3.00 (SB | LB). SB is lower: holds (n = 3, 3 of 3)" in text
    assert "at equal loss: 2.01 | 1.00 (SB | LB). SB is lower: does not hold (n = 3, 0 of 3)" in text
    assert "Negative eigenvalues make up 25.00 %" in text
    assert "1 of 10 free energies have not converged" in text
    same = "leaves the function as it is, and changes"
    assert f'map "{theories.MAPS[0]}" {same}: {theories.REASONS["evidence"]}.' in text
    assert f'map "{theories.MAPS[1]}" {same}: none of these.' in text
    bits, evidence, energy = theories.claims(rows)
    assert [claim.verdict.word for claim in (bits, evidence, energy)] == ["holds", "does not hold", "undecided"]
    assert [claim.verdict.word for claim in theories.claims([])] == ["not tested"] * 3


def test_a_free_energy_that_has_not_converged_is_compared_by_the_bound_that_weakens_the_claim():
    rows, bounds = [], {"up": 3.0, "down": 0.5}
    for seed in range(3):
        rows.append(made(seed, "SB", bits=1.0, evidence=1.0, energy=0.1 + 0.01 * seed))
        rows.append(made(seed, "LB", bits=1.0, evidence=1.0, energy=2.0, converged=False))
        rows[-1]["reasons"]["energy"]["0.01"] |= bounds
    *_, energy = theories.claims(rows)
    assert (energy.here, str(energy.verdict)) == ("0.11 | at least 0.50 at 0.01", "holds (n = 3, 3 of 3)")
    rows[0]["reasons"]["energy"]["0.01"] |= bounds | {"converged": False}
    assert theories.compared(rows[0], "energy", "0.01") == 3.0
    text = words(theories.figures(rows))
    assert "4 of 6 free energies have not converged. In their place stands a bound" in text
    assert "Width 0.01, at the end of training: at most 1.08 | at least 0.50 (SB | LB)." in text


def test_a_claim_that_fails_says_the_parts_of_the_evidence_and_how_training_ended():
    rows = []
    for seed in range(3):
        for side, loss in (("SB", 0.2), ("LB", 0.1)):
            more = {"train_loss": loss, "test_accuracy": 0.9 - loss + 0.01 * seed}
            rows.append(
                made(seed, side, bits=1.0, evidence=1.0, energy=(side == "LB") - 0.5 + 0.01 * seed, **more)
            )
            parts = {"value": -2.0, "sem": 0.1, "penalty": 7 * loss, "occam": 3 * loss, "negative": 0.0}
            rows[-1]["reasons"]["evidence"]["100.0"] = parts | {"converged": side == "SB"}
    bits, evidence, _ = theories.claims(rows)
    ends = (
        "the losses are 0.20 | 0.10, the test accuracies 71.00 | 81.00 % (SB | LB). SB tests better: does not hold"
    )
    assert ends in bits.differs and ends in evidence.differs
    assert "the penalty on |x| is 1.40 | 0.70, the Occam factor - (SB | LB)" in evidence.differs
    energy = next(section for section in theories.figures(rows) if section.name == "energy")
    assert (
        energy.figure.axes[0].get_yscale() == "linear" and "All free energies have converged." in energy.findings
    )


def test_what_has_not_converged_counts_nowhere():
    row = made(0, "SB", bits=1.0, evidence=1.0, energy=1.0, converged=False)
    known = {"value": -2.0, "occam": 0.5, "converged": True}
    row["reasons"]["evidence"] = {"0.0": known, "100.0": known, "1000.0": known | {"converged": False}}
    assert theories._at_priors(row, "value") == ([100.0], [2.0])
    assert theories._at_priors(row, "occam") == ([100.0], [0.5])
    row["reasons"]["energy"]["0.01"] |= {"up": 3.0, "down": 0.5}
    assert theories.value(row, "energy", "0.01") is None and theories.value(row, "bits", "0.01") == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rises": ()}, "rises is"), ({"rises": (0.0,)}, "rises is"), ({"priors": (-1.0,)}, "priors is"),
        ({"widths": (0.1, 0.1)}, "widths has 0.1 more than once"), ({"num_samples": 1}, "num_samples is 1"),
        ({"num_steps": 9}, "num_steps is 9"), ({"examples": 0}, "examples is 0"), ({"factor": 0.0}, "factor is 0"),
    ],
)  # fmt: skip
def test_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        theories.run(theories.SMOKE._replace(**changes))
