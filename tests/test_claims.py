"""The paper's claims against rows whose verdict is known."""

import pytest

from experiments import claims
from gengap import paper, records, report


def row(part, method, seed, **values):
    return {"part": part, "network": "F1", "dataset": "digits", "method": method, "seed": seed, **values}


def pair(seed, accuracies, full, random, distances=(2.0, 1.0), history=((0.5, 0.9), (0.5, 0.9))):
    """Rows of the tables for SB and LB."""
    return [
        row(
            "digits",
            method,
            seed,
            test_accuracy=accuracies[i],
            distance=distances[i],
            history={"test_accuracy": history[i]},
            epsilons=[1e-3, 5e-4],
            full={"value": [full[i]] * 2, "base_loss": [0.1] * 2, "finite": [True] * 2},
            random={"value": [[random[i]] * 3] * 2, "base_loss": [[0.1] * 3] * 2, "finite": [[True] * 3] * 2},
        )
        for i, method in enumerate(("SB", "LB"))
    ]


def verdicts(rows):
    table = claims.table(rows).table
    return dict(zip(table["claim"], table[""], strict=True))


def found(rows, words):
    """The verdict of the claim that begins with these words."""
    return next(verdict for claim, verdict in verdicts(rows).items() if claim.startswith(words))


def seeds(rows, count=3):
    """The rows of seed 0 for each of so many seeds."""
    return [one | {"seed": seed} for seed in range(count) for one in rows]


def line(rows, words):
    (own,) = [own for own in claims.table(rows).table.to_dict("records") if own["claim"].startswith(words)]
    return own


def test_claims_of_the_tables_are_tested_over_seeds():
    rows = seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (2.0, 1.0)))
    rows[1] |= {"test_accuracy": 0.95}
    assert found(rows, "SB tests better") == "undecided"
    assert line(rows, "SB tests better")["seeds"] == "n = 3, 2 of 3"
    assert found(rows, "LB is sharper, full") == "holds"
    assert found(rows, "LB is sharper, random") == "does not hold"
    assert set(verdicts(rows[2:]).values()) == {"undecided", "not tested"}  # two seeds
    assert found(rows, "SB ends farther") == "holds"
    assert found(rows, "LB gets sharper") == "not tested"
    assert claims.table(rows).findings[0].startswith(f"Of {len(claims.CLAIMS)} claims, ")


def test_a_claim_of_several_epsilons_has_the_verdict_of_the_weakest():
    rows = seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (1.0, 9.0)))
    rows[1]["full"] = {"value": [9.0, 0.5], "base_loss": [0.1] * 2, "finite": [True] * 2}
    assert found(rows, "LB is sharper, full") == "undecided"
    assert line(rows, "LB is sharper, full")["seeds"] == "n = 3, 2 of 3"


def test_each_network_and_each_run_is_tested_for_itself():
    """SB of F1 with LB of C1, or of another run, are no pair, and six seeds of two networks not six of one."""
    rows = seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (1.0, 9.0)))
    other = [one | {"network": "C1", "test_accuracy": 1 - one["test_accuracy"]} for one in rows]
    table = claims.table([*rows, *other]).table
    own = table[table["claim"] == "SB tests better than LB"]
    assert own[["of", "seeds", ""]].values.tolist() == [
        ["F1 on digits", "n = 3, 3 of 3", "holds"],
        ["C1 on digits", "n = 3, 0 of 3", "does not hold"],
    ]
    (cell,) = claims.side_by_side([[*rows, *other]]).table.query("paper == 'Table 2'").iloc[:, -1]
    assert cell.startswith("F1 on digits: holds (90.00 % | 80.00 %; n = 3, 3 of 3); C1 on digits: does not hold")
    for change in ({"network": "C1"}, {"run": "digits/other"}, {"dataset": "mnist"}):
        mixed = [one | (change if one["method"] == "LB" else {}) for one in rows]
        assert "holds" not in set(claims.table(mixed).table.query("paper == 'Table 2'")[""])


def test_rows_of_two_settings_are_gathered_with_their_runs(tmp_path):
    for name, count in (("a", 2), ("b", 1)):
        with records.opened("digits", {"dataset": "digits", "epochs": name}, tmp_path / name) as run:
            for one in seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (1.0, 9.0)), count):
                run.add(one)
    rows = [one for name in "ab" for one in claims.gathered(records.read(tmp_path / name), name)]
    own = claims.table(rows).table.query("paper == 'Table 2'")
    assert own["of"].tolist() == ["F1 on digits, digits/a", "F1 on digits, digits/b"]
    assert own["seeds"].tolist() == ["n = 2, 2 of 2", "n = 1, 1 of 1"]


def test_data_sets_stand_side_by_side():
    rows = seeds(pair(0, (0.9, 0.8), (1.0, 9.0), (2.0, 1.0)))
    other = [one | {"dataset": "mnist", "test_accuracy": 1 - one["test_accuracy"]} for one in rows]
    table = claims.side_by_side([rows, other]).table.set_index("claim")
    assert table.loc["SB tests better than LB", "F1 on digits"] == "holds (90.00 % | 80.00 %; n = 3, 3 of 3)"
    assert (
        table.loc["SB tests better than LB", "F1 on mnist"] == "does not hold (10.00 % | 20.00 %; n = 3, 0 of 3)"
    )
    assert set(table.loc["LB gets sharper as its loss falls", ["F1 on digits", "F1 on mnist"]]) == {report.DASH}


def test_a_value_that_is_a_lower_bound_tests_nothing():
    rows = pair(0, (0.9, 0.8), (1.0, 9.0), (1.0, 9.0))
    rows[1]["full"]["finite"] = rows[1]["random"]["finite"][0] = [False] * 2
    assert found(rows, "LB is sharper, full") == "not tested"
    assert found(seeds(rows), "LB is sharper, random") == "holds"  # at the other epsilon
    rows[0]["diverged_at"] = 3
    assert found(rows, "SB tests better") == "not tested" and found(seeds(rows), "LB does not overfit") == "holds"


@pytest.mark.parametrize(("last", "verdict"), [(0.9, "holds"), (0.88, "does not hold")])
def test_overfitting_is_a_fall_from_the_peak(last, verdict):
    history = ([0.9], [0.5, 0.9, *[last] * 5])
    assert found(seeds(pair(0, (0.9, 0.8), (1, 9), (1, 9), history=history)), "LB does not overfit") == verdict


def test_the_papers_own_curve_does_not_overfit():
    y = [share / 100 for share in paper.figure("fig2_curves")["C1"]["LB_test"].y]
    rows = seeds(pair(0, (0.9, 0.8), (1, 9), (1, 9), history=(y, y)))
    assert found(rows, "LB does not overfit") == "holds" and "0.46 points" in line(rows, "LB does not")["here"]


def along(method, seed, sharpness, losses=(1.0, 0.1, 0.01)):
    return [
        row("trajectory", method, seed, epoch=i + 1, train_loss=loss, epsilons=[1e-3, 5e-4],
            full={"value": [value] * 2, "finite": [True] * 2})
        for i, (loss, value) in enumerate(zip(losses, sharpness, strict=True))
    ]  # fmt: skip


def test_claims_along_training():
    rows = seeds(along("SB", 0, (30.0, 20.0, 10.0)) + along("LB", 0, (30.0, 40.0, 50.0), (1.0, 0.3, 0.1)))
    assert found(rows, "LB gets sharper") == found(rows, "SB gets flatter") == "holds"
    assert found(rows, "LB is sharper at the lowest") == "holds"
    rows = seeds(along("SB", 0, (10.0, 50.0, 90.0)) + along("LB", 0, (30.0, 20.0, 10.0)))
    assert found(rows, "LB gets sharper") == found(rows, "SB gets flatter") == "does not hold"
    assert found(rows, "LB is sharper at the lowest") == "does not hold"


def test_a_loss_and_a_sharpness_of_0_count():
    rows = seeds(along("LB", 0, (0.0, 40.0, 50.0), (1.0, 0.3, 0.0)) + along("SB", 0, (0.0, 40.0, 50.0)))
    assert line(rows, "LB gets sharper")["here"] == "rank correlation 1.00"
    assert line(rows, "SB gets flatter")["here"] == "rank correlation 1.00"


def test_claims_of_batch_sizes_and_warm_starts():
    sizes = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    rows = [
        row("batch_size", "any", 0, share=share, test_accuracy=0.9 - 0.5 * max(0, share - 0.05) + 1e-3 * (i % 2),
            epsilons=[1e-3, 5e-4], full={"value": [i + 1.0] * 2, "finite": [True] * 2})
        for i, share in enumerate(sizes)
    ]  # fmt: skip
    assert found(rows, "beyond a batch size") == found(rows, "sharpness rises") == "undecided"  # one seed
    rows = seeds(rows)
    assert found(rows, "beyond a batch size") == found(rows, "sharpness rises") == "holds"
    flat = [{**one, "test_accuracy": 0.9 + 1e-3 * (i % 2)} for i, one in enumerate(rows)]
    assert found(flat, "beyond a batch size") == "does not hold"
    base = row("warm_start", "SB", 0, history={"test_accuracy": [0.5, 0.6, 0.8]})
    starts = [
        row("warm_start", "LB", 0, epoch=epoch, test_accuracy=0.7, epsilons=[1e-3, 5e-4],
            full={"value": [4.0 - epoch] * 2, "finite": [True] * 2})
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    rows = seeds([base, *starts])
    assert found(rows, "LB begun from") == "holds"  # 0.2, 0.1 and -0.1 above
    assert line(rows, "LB begun from")["here"] == "63.33 % | 70.00 %"
    assert found(rows, "the later LB begins") == "holds"
    assert found([base, *starts], "the later LB begins") == "undecided"


def test_claims_of_paths_directions_and_maps():
    line = {"train_loss": [1.0, 0.0, 0.0, 4.0]}
    near = {"LB": {"mean_over_highest": 0.01}}
    rows = seeds([row("landscape", "pair", 0, alphas=[-1, 0, 1, 2], linear=line, directions=near)])
    assert found(rows, "the loss rises more") == found(rows, "LB is steep") == "holds"
    maps = [
        {"factor": factor, "full": full, "random": random, "logits_change": change}
        for factor, full, random, change in ((1.0, 2.0, 1.0, 0), (9.0, 30.0, 5.0, 1e-5), (99.0, 1e4, 1e4, 1.0))
    ]
    rows = seeds([row("reparametrise", "SB", 0, maps=maps)])
    ten_times = "the same function can be made ten times sharper"
    assert found(rows, f"{ten_times}, full space") == "holds"
    assert found(rows, f"{ten_times}, random subspaces") == "does not hold"


def test_what_is_not_finite_tests_nothing():
    line = {"train_loss": [1.0, 0.0, 0.0, None]}
    near = {"LB": {"mean_over_highest": None}}
    rows = [row("landscape", "pair", 0, alphas=[-1, 0, 1, 2], linear=line, directions=near)]
    maps = [{"factor": factor, "full": 1.0, "random": 1.0, "logits_change": None} for factor in (1.0, 9.0)]
    rows += [row("reparametrise", "SB", 0, maps=maps)]
    rows += [row("warm_start", "SB", 0, history={"test_accuracy": [None, 0.8]})]
    rows += [row("warm_start", "LB", 0, epoch=1, test_accuracy=0.7)]
    rows += along("SB", 0, (30.0, 20.0, 10.0), (None, None, None)) + along("LB", 0, (30.0, 20.0, 10.0))
    tested = {claim: verdict for claim, verdict in verdicts(rows).items() if verdict != "not tested"}
    assert tested == {"LB gets sharper as its loss falls": "undecided"}


def trained(part, method, accuracy, value, seed=0):
    full = {"value": value, "finite": True}
    return row(part, method, seed, test_accuracy=accuracy, epsilon=1e-3, full=full)


def test_claims_of_causes_and_remedies():
    rows = seeds(
        [
            trained("causes", "LB + updates", 0.8, 9.0),
            trained("causes", "LB + updates + noise", 0.9, 10.0),
            trained("remedies", "SB, plain", 0.9, 5.0),
            trained("remedies", "LB, plain", 0.8, 90.0),
            trained("remedies", "LB, augmentation", 0.85, 50.0),
            trained("remedies", "LB, conservative", 0.75, 40.0),
        ]
    )
    assert (
        found(rows, "with SB's noise and as many updates LB tests") == "holds"
        and found(rows, "with SB's noise and as many updates LB is flatter") == "does not hold"
    )
    assert found(rows, "with augmentation") == "holds"
    assert found(rows, "with conservative training LB tests") == "does not hold"
    assert found(rows, "with conservative training LB is still") == "holds"


def test_a_value_of_0_is_no_missing_value():
    rows = [
        trained("remedies", method, accuracy, value, seed)
        for seed in range(4)
        for method, accuracy, value in (("LB, plain", 0.0 if seed else 0.1, 0.0 if seed else 9.0),
                                        ("LB, conservative", 0.5, 9.0), ("SB, plain", 0.5, 0.0 if seed else 1.0))
    ]  # fmt: skip
    assert line(rows, "with conservative training LB tests")["seeds"] == "n = 4, 4 of 4"
    sharper = line(rows, "with conservative training LB is still")
    assert (sharper["seeds"], sharper[""]) == ("n = 4, 4 of 4", "undecided")  # the logarithm of 0 has no interval


def test_a_grid_with_too_few_runs_tests_nothing():
    runs = [
        row("correlation", f"width {i}", 0, train_accuracy=1.0, test_accuracy=1 - 0.01 * (i + 2 * (i % 3)),
            setting={"width": i}, measures={"sharpness, full space, 1e-3": float(i)})
        for i in range(8)
    ]  # fmt: skip
    assert found(runs[:2], "sharpness goes with") == "not tested"
    assert found(runs, "sharpness goes with") == "holds"
    turned = [{**one, "test_accuracy": 2 - one["test_accuracy"]} for one in runs]
    assert found(turned, "sharpness goes with") == "does not hold"
    assert found([{**one, "test_accuracy": 0.9} for one in runs], "sharpness goes with") == "not tested"


def test_the_table_is_part_of_a_report():
    text = report.terminal([claims.table(pair(0, (0.9, 0.8), (1.0, 9.0), (1.0, 9.0)))])
    assert "The paper's claims, F1 on digits" in text and "90.00 % | 80.00 %" in text
