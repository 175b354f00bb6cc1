"""The page of the claims, and those of the tables and the landscape, against rows whose verdict is known."""

import pytest

from experiments import landscape, paper
from experiments.lib import claims
from gengap import ascent, records, report
from gengap import paper as keskar


def row(part, side, seed, **values):
    return {"part": part, "network": "F1", "dataset": "digits", "side": side, "seed": seed, **values}


def pair(seed, accuracies, full, random, distances=(2.0, 1.0), history=((0.5, 0.9), (0.5, 0.9))):
    """Rows of the tables for SB and LB."""
    return [
        row(
            "digits",
            side,
            seed,
            test_accuracy=accuracies[i],
            distance=distances[i],
            history={"test_accuracy": history[i]},
            **{f"sharpness_full_{epsilon}": full[i] for epsilon in ("1e-3", "5e-4")},
            **{f"sharpness_random_{epsilon}": random[i] for epsilon in ("1e-3", "5e-4")},
        )
        for i, side in enumerate(("SB", "LB"))
    ]


def table_of(rows):
    return claims.tables(rows, paper.CLAIMS)[0]


def verdicts(rows):
    table = table_of(rows).table
    return dict(zip(table["claim"], table["verdict"], strict=True))


def found(rows, words):
    """The verdict of the claim that begins with these words."""
    return next(verdict for claim, verdict in verdicts(rows).items() if claim.startswith(words))


def seeds(rows, count=3):
    """The rows of seed 0 for each of so many seeds."""
    return [one | {"seed": seed} for seed in range(count) for one in rows]


def line(rows, words):
    (own,) = [own for own in table_of(rows).table.to_dict("records") if own["claim"].startswith(words)]
    return own


def test_claims_of_the_tables_are_tested_over_seeds():
    rows = seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (2.0, 1.0)))
    rows[1] |= {"test_accuracy": 0.95}
    assert found(rows, "SB tests better") == "undecided"
    assert line(rows, "SB tests better")["seeds"] == "n = 3, 2 of 3"
    assert found(rows, "LB is sharper than SB in the full") == "holds"
    assert found(rows, "LB is sharper than SB in random") == "does not hold"
    assert set(verdicts(rows[2:]).values()) == {"undecided", "not tested"}  # two seeds
    assert found(rows, "SB ends farther") == "holds"
    assert found(rows, "LB gets sharper") == "not tested"
    assert table_of(rows).findings[0].startswith("Of 26 claims, ")


def test_a_claim_of_several_epsilons_has_the_verdict_of_the_weakest():
    rows = seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (1.0, 9.0)))
    rows[1]["sharpness_full_5e-4"] = 0.5
    assert found(rows, "LB is sharper than SB in the full") == "undecided"
    assert line(rows, "LB is sharper than SB in the full")["seeds"] == "n = 3, 2 of 3"


def test_each_network_and_each_run_is_tested_for_itself():
    """SB of F1 with LB of C1, or of another run, are no pair, and six seeds of two networks not six of one."""
    rows = seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (1.0, 9.0)))
    other = [one | {"network": "C1", "test_accuracy": 1 - one["test_accuracy"]} for one in rows]
    table = table_of([*rows, *other]).table
    own = table[table["claim"] == "SB tests better than LB"]
    assert own[["of", "seeds", "verdict"]].values.tolist() == [
        ["F1 on digits", "n = 3, 3 of 3", "holds"],
        ["C1 on digits", "n = 3, 0 of 3", "does not hold"],
    ]
    both = claims.side_by_side([*rows, *other], paper.CLAIMS)[1].table.set_index("where").loc["Table 2"]
    assert both[["F1 on digits", "n, F1 on digits"]].tolist() == ["holds: 90.00 | 80.00 %", "3"]
    assert both["C1 on digits"] == "does not hold: 10.00 | 20.00 %"
    for change in ({"network": "C1"}, {"run": "digits/other"}, {"dataset": "mnist"}):
        mixed = [one | (change if one["side"] == "LB" else {}) for one in rows]
        assert "holds" not in set(table_of(mixed).table.query("where == 'Table 2'")["verdict"])


def test_rows_of_two_settings_are_gathered_with_their_runs(tmp_path):
    for name, count in (("a", 2), ("b", 1)):
        with records.opened("digits", {"dataset": "digits", "epochs": name}, tmp_path / name) as run:
            for one in seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (1.0, 9.0)), count):
                run.add(one)
    rows = [one for name in "ab" for one in claims.gathered(records.read(tmp_path / name), name)]
    own = table_of(rows).table.query("where == 'Table 2'")
    assert own["of"].tolist() == ["F1 on digits, digits/a", "F1 on digits, digits/b"]
    assert own["seeds"].tolist() == ["n = 2, 2 of 2", "n = 1"]


def test_data_sets_stand_side_by_side():
    rows = seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (2.0, 1.0)))
    other = [one | {"dataset": "mnist", "test_accuracy": 1 - one["test_accuracy"]} for one in rows]
    ran, section, failing = claims.side_by_side([*rows, *other], paper.CLAIMS)
    assert failing.findings[0] == (
        "F1 on mnist: SB tests better than LB? Here 10.00 | 20.00 %; in the paper 98.03 | 97.81 %."
    )
    assert ran.table["data set"].tolist() == ["digits", "mnist"]
    assert set(ran.table["experiments and their seeds"]) == {"digits: 3"}
    table = section.table.set_index("claim")
    better = table.loc["SB tests better than LB"]
    assert better["F1 on digits"] == "holds: 90.00 | 80.00 %" and better["n, F1 on mnist"] == "3"
    assert better["F1 on mnist"] == "does not hold: 10.00 | 20.00 %"
    assert better["paper, F1 on MNIST"] == "98.03 | 97.81 %"
    assert set(table.loc["LB gets sharper as its loss falls", ["F1 on digits", "F1 on mnist"]]) == {report.DASH}


def test_each_version_has_a_table_of_its_own():
    """Landscapes have no maximiser: they stand beside the sharpness that has their version of training."""
    new = [
        one | {"ascent_version": ascent.ASCENT_VERSION}
        for one in seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (2.0, 1.0)))
    ]
    old = [one | {"origin": {"training_version": 1}, "run": "digits/old", "test_accuracy": 0.5} for one in new]
    plain = [{name: one[name] for name in one if name != "ascent_version"} for one in old]
    rows = [*new, *[one | {"ascent_version": 3} for one in old], *[one | {"network": "C1"} for one in plain]]
    versions = claims.by_version(rows)
    assert {name: len(of) for name, of in versions.items()} == {"": 6, "training 1, maximiser 3": 12}
    first, second = claims.tables(rows, paper.CLAIMS)
    assert "older" not in first.title and second.title.endswith(", by older code: training 1, maximiser 3")
    assert len(first.table) == 26 and report.DASH not in set(second.table["of"])
    assert line(rows, "SB tests better")["of"] == "F1 on digits"
    _, present, older, failing = claims.side_by_side(rows, paper.CLAIMS)
    better = "SB tests better than LB"
    assert present.table.set_index("claim").loc[better, "F1 on digits"] == "holds: 90.00 | 80.00 %"
    assert "C1 on digits" not in present.table
    assert older.table.set_index("claim").loc[better, "F1 on digits"].startswith("undecided: 50.00 | 50.00 %")
    assert older.table.set_index("claim").loc[better, "n, C1 on digits"] == "3"
    assert any(sentence.startswith("F1 on digits (training 1, maximiser 3): ") for sentence in failing.findings)


def test_the_papers_numbers_are_those_of_the_network_and_none_beside_other_data():
    rows = seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (2.0, 1.0)))
    assert line(rows, "SB tests better")["paper"] == "98.03 | 97.81 %"
    assert line([one | {"network": "C1"} for one in rows], "SB tests better")["paper"] == "80.04 | 77.26 %"
    assert line([one | {"dataset": "mine"} for one in rows], "SB tests better")["paper"] == report.DASH


def test_a_value_that_is_a_lower_bound_tests_nothing():
    rows = pair(0, (0.9, 0.8), (1.0, 9.0), (1.0, 9.0))
    rows[1] |= dict.fromkeys(("sharpness_full_1e-3", "sharpness_full_5e-4", "sharpness_random_1e-3"))
    assert found(rows, "LB is sharper than SB in the full") == "not tested"
    assert found(seeds(rows), "LB is sharper than SB in random") == "holds"  # at the other epsilon
    rows[0]["diverged_at"] = 3
    assert found(rows, "SB tests better") == "not tested" and found(seeds(rows), "LB does not overfit") == "holds"


@pytest.mark.parametrize(("last", "verdict"), [(0.9, "holds"), (0.88, "does not hold")])
def test_overfitting_is_a_fall_from_the_peak(last, verdict):
    history = ([0.9], [0.5, 0.9, *[last] * 5])
    rows = seeds(pair(0, (0.9, 0.8), (1, 9), (1, 9), history=history))
    assert found(rows, "LB does not overfit") == verdict
    if verdict == "does not hold":
        sentence = claims.side_by_side(rows, paper.CLAIMS)[2].findings[0]
        assert (
            "LB's test accuracy peaks after 2.00 ± 0.00 of 7 epochs, and ends 2.00 ± 0.00 points lower" in sentence
        )
    history[1][2] = None
    assert found(rows, "LB does not overfit") == verdict


def test_the_papers_own_curve_does_not_overfit():
    y = [share / 100 for share in keskar.figure("fig2_curves")["C1"]["LB_test"].y]
    rows = seeds(pair(0, (0.9, 0.8), (1, 9), (1, 9), history=(y, y)))
    assert found(rows, "LB does not overfit") == "holds" and "0.46 points" in line(rows, "LB does not")["here"]


def test_claims_of_paths_and_directions():
    line = {"train_loss": [1.0, 0.0, 0.0, 4.0]}
    near = {"LB": {"mean_over_highest": 0.01}}
    pair = {"of": "pair", "alphas": [-1, 0, 1, 2], "linear": line, "directions": near}
    rows = seeds([row("landscape", None, 0, **pair)])
    assert found(rows, "the loss rises more") == found(rows, "LB is steep") == "holds"
    line["train_loss"][3] = near["LB"]["mean_over_highest"] = None
    assert [claim.verdict.word for claim in landscape.claims(rows)] == ["not tested"] * 2


@pytest.mark.parametrize("part", paper.CLAIMS.values(), ids=map("-".join, paper.CLAIMS))
def test_a_claim_without_rows_is_not_tested(part):
    assert [(claim.here, claim.verdict.word) for claim in part([])] == [("", "not tested")] * len(part([]))


def test_the_table_is_part_of_a_report():
    text = report.terminal([table_of(pair(0, (0.9, 0.8), (1.0, 9.0), (1.0, 9.0)))])
    assert "The paper's claims, F1 on digits" in text and "90.00 | 80.00 %" in text
