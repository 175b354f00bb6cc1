"""Tables beside the paper's with numbers that can be counted."""

import pytest

from experiments.lib import rows, tables
from gengap import report
from tests.tables_rows import pairs, row


@pytest.fixture
def three():
    return pairs()


def table(rows, title):
    return next(section for section in tables.figures(rows) if section.title.startswith(title))


def test_the_tables_give_the_closed_form_beside_the_paper(three):
    full = table(three, "Table 3").table
    assert full.iloc[0].to_dict() == {
        "network": "F1 on mnist", "epsilon": "0.001", "SB, paper (MNIST)": "1.23 ± 0.83",
        "SB, here": "2.00 ± 1.00", "LB, paper (MNIST)": "205.14 ± 69.52", "LB, here": "200 ± 100",
        "larger / smaller": "LB / SB = 100", "training loss": "0.25 | 0.25",
        "LB is sharper": "holds (n = 3, 3 of 3)",
    }  # fmt: skip
    assert full.iloc[1]["SB, here"] == "0.50 ± 0.25" and full.iloc[1]["epsilon"] == "0.0005"
    random = table(three, "Table 4")
    assert (
        random.table.iloc[0]["LB, paper (MNIST)"] == "9.22 ± 0.56"
        and random.table.iloc[0]["LB, here"] == "5.00 ± 0.00"
    )
    accuracy = table(three, "Table 2").table
    assert (
        accuracy.iloc[1]["SB, here"] == "98.00 ± 0.00" and accuracy.iloc[1]["LB, paper (MNIST)"] == "97.81 ± 0.07"
    )
    assert table(three, "Euclidean").table.iloc[0]["larger / smaller"] == "SB / LB = 3.00 ± 0.00"


def test_the_headline_is_computed_and_says_at_which_loss(three):
    for found in three:
        found["train_loss"] = 0.001 if found["side"] == "SB" else 0.02
    assert tables.headline(three) == [
        "LB minima are 100 times as sharp as SB minima (full space, epsilon 0.001).",
        "LB is sharper than SB: holds (n = 3, 3 of 3).",
        "Their training losses are 0.001 (SB) and 0.02 (LB).",
        "SB tests 1.00 points better than LB.",
        "SB tests better than LB: holds (n = 3, 3 of 3).",
    ]
    other = [one | {"network": "C1"} for one in three]
    assert tables.headline(three + other)[5].startswith("C1 on mnist: LB minima are 100 times as sharp")


def test_a_ratio_below_one_is_turned_round(three):
    for found in three:
        found["side"] = "LB" if found["side"] == "SB" else "SB"
        found["test_accuracy"] += 1e-4 * found["seed"] * (found["side"] == "LB")
    assert tables.headline(three)[:4] == [
        "SB minima are 100 times as sharp as LB minima (full space, epsilon 0.001).",
        "LB is sharper than SB: does not hold (n = 3, 0 of 3).",
        "Their training losses are 0.25 (SB) and 0.25 (LB).",
        "LB tests 1.01 points better than SB.",
    ]
    assert table(three, "Table 3").table.iloc[0]["larger / smaller"] == "SB / LB = 100"
    assert table(three, "Euclidean").table.iloc[0]["larger / smaller"] == "LB / SB = 3.00 ± 0.00"


def test_a_diverged_run_is_listed_and_in_no_mean(three):
    three[5] |= {"diverged_at": 17, "train_loss": None, "train_accuracy": None, "test_accuracy": None}
    three[5] = {name: value for name, value in three[5].items() if not name.startswith("sharpness")}
    first, *rest = tables.figures(three)
    assert "Diverged, in no comparison: F1 on mnist, LB, seed 2, at step 17." in first.findings
    assert rest[1].table.iloc[0]["LB, here"] == "150 ± 71"


def test_null_and_zero_values_are_said_not_dropped(three):
    three[0] |= {"sharpness_full_1e-3": None, "sharpness_full_5e-4": 0.0}
    full = table(three, "Table 3")
    numbers = ["SB, here", "LB, here", "LB is sharper"]
    assert full.table.iloc[0][numbers].tolist() == ["2.50 ± 0.71", "250 ± 71", "undecided (n = 2, 2 of 2)"]
    assert "F1 on mnist, epsilon 0.001: 1 of 6 met a loss that is not finite, and are in no mean." in full.findings
    assert full.table.iloc[1]["SB, here"] == "0.42 ± 0.38"
    three[0]["sharpness_random_1e-3"] = None
    assert "1 of 6 met a loss that is not finite" in " ".join(table(three, "Table 4").findings)


def test_networks_and_runs_are_never_one_curve_or_pair(three):
    other = [one | {"run": "mnist/other", "test_accuracy": 0.5} for one in three]
    both = [one | {"run": "mnist/default"} for one in three] + other
    for title, lines in (("Table 2", 4), ("Table 3", 4), ("Euclidean", 2)):
        found = table(both, title).table
        counts = found["LB is sharper"].str[7:12] if title == "Table 3" else "n = " + found["n"]
        assert len(found) == lines and set(counts) == {"n = 3"}
        assert set(found["network"]) == {"F1 on mnist, mnist/default", "F1 on mnist, mnist/other"}
    assert len(tables.accuracy_figure(both).figure.axes) == 2
    labels = tables.sharpness_figure(both).figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["F1\nmnist\nmnist/default", "F1\nmnist\nmnist/other"]
    small = [one | {"network": "F1" if one["side"] == "SB" else "C1"} for one in three]
    with pytest.raises(ValueError, match="rows of F1 on mnist and of C1 on mnist; they cannot be compared"):
        rows.of_side(small, "test_accuracy")


def test_one_seed_has_no_deviation():
    assert table([row("F1", "SB", 0, 1.0, [0.5])], "Table 3").table.iloc[0]["SB, here"] == "1.00"


def test_small_batches_only():
    rows = [row("F1", "SB", 0, 1.0, [0.5])]
    assert tables.headline(rows) == ["There is nothing to compare yet."]
    assert table(rows, "Table 3").table.iloc[0]["LB, here"] == "-"
    assert report.terminal(tables.figures(rows))


def test_the_papers_numbers_stand_beside_its_networks_and_no_data_of_ones_own():
    rows = [row("F1", "SB", 0, 1.0, [0.5], dataset="digits"), row("dense", "SB", 0, 1.0, [0.5])]
    assert table(rows, "Table 3").table["SB, paper (MNIST)"].tolist()[::2] == ["1.23 ± 0.83", "-"]
    sections = tables.figures([one | {"dataset": "mine"} for one in pairs()])
    assert not [
        words
        for section in sections[:5]
        if section.table is not None
        for words in section.table
        if "paper" in words
    ]
    assert not [words for section in sections[:5] for words in section.findings if "paper" in words]


def test_no_rows_are_said():
    assert tables.headline([]) == ["No rows yet."]
    assert "No rows yet." in report.terminal(tables.figures([]))
