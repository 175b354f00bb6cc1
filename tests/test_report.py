import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from gengap import report, summaries, tables

VOID = {"meta", "img", "br", "hr", "link"}


def row(network, method, seed, full, draws, *, dataset="mnist", test=0.98, **changed):
    """A row whose sharpness at epsilon 5e-4 is a quarter of that at 1e-3."""
    sharp = []
    for epsilon, share in ((1e-3, 1.0), (5e-4, 0.25)):
        common = {"epsilon": epsilon, "evaluations": 7, "base_loss": 0.25, "finite": True}
        sharp.append({"space": "full", "value": full * share, **common})
        values = [draw * share for draw in draws]
        sharp.append({"space": "random", "dim": 100, "draws": values, "mean": None, "sem": 0.1, **common})
    history = {f"{split}_accuracy": [0.5, 0.9, test] for split in ("train", "test")}
    return {
        "network": network, "dataset": dataset, "method": method, "seed": seed, "batch_size": 256,
        "epochs": 3, "steps": 30, "stopped": "epochs", "diverged_at": None, "train_loss": 0.125,
        "train_accuracy": 0.99, "test_loss": 0.5, "test_accuracy": test,
        "distance": 12.0 if method == "SB" else 4.0, "seconds_training": 1.5, "seconds_sharpness": 2.5,
        "history": history, "sharpness": sharp, **changed,
    }  # fmt: skip


def summary(rows, **more):
    made = {"experiment": "toy", "complete": True, "config": {"dim": 100, "clip": None}, "rows": rows, **more}
    made.setdefault("environment", {"jax": "0.10.2", "commit": "abc123"})
    return made


@pytest.fixture
def three():
    # means 2 and 200, sample standard deviations 1 and 100; subspaces 0.5 and 5, no spread over seeds
    small = [row("F1", "SB", seed, 1.0 + seed, [0.25, 0.75], test=0.98) for seed in range(3)]
    large = [row("F1", "LB", seed, 100.0 + 100 * seed, [4.0, 6.0], test=0.97) for seed in range(3)]
    return summary(small + large)


@pytest.fixture
def undrawn(monkeypatch):
    """Pages whose images are empty, for tests of everything else on them: drawing takes most of the time."""
    monkeypatch.setattr(report.drawing, "image", lambda figure, kind: b"")


def line(text, *words):
    """The first line that holds every word, its runs of spaces made one."""
    lines = [" ".join(found.split()) for found in text.splitlines()]
    return next(found for found in lines if all(word in found for word in words))


class Balanced(HTMLParser):
    """Collects tags and raises where an end tag does not close the last open one."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.data, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)


def parsed(page):
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_text_gives_the_closed_form_beside_the_paper(three):
    text = report.text(three)
    full = text[text.index("Table 3") : text.index("Table 4")]
    assert line(full, "0.001", "SB") == "F1 on mnist 0.001 SB 1.23 ± 0.83 2.00 ± 1.00 3 0.25 99.00"
    assert line(full, "205.14") == "LB 205.14 ± 69.52 200.00 ± 100.00 3 0.25 99.00"
    assert line(full, "LB / SB") == "LB / SB 167 100"
    assert line(full, "0.0005 SB") == "0.0005 SB 0.61 ± 0.27 0.50 ± 0.25 3 0.25 99.00"
    assert "epsilon 0.001: LB sharper than SB in 3 of 3 seeds (sign test, p = 0.12 one-sided)" in full
    random = text[text.index("Table 4") :]
    assert line(random, "9.22") == "LB 9.22 ± 0.56 5.00 ± 0.00 3 0.25 99.00"
    accuracy = text[text.index("Table 2") : text.index("Table 3")]
    assert line(accuracy, "SB - LB") == "SB - LB 0.22 1.00 ± 0.00 3"
    assert line(text, "SB / LB") == "SB / LB 3.00 ± 0.00 3"
    assert text.rstrip().endswith("No run diverged.")


def test_the_headline_is_computed(three):
    assert tables.headline(three) == (
        "F1 on mnist: LB minima are 100 times as sharp as SB minima (full space, epsilon 0.001; paper: 167), "
        "LB sharper than SB in 3 of 3 seeds (sign test, p = 0.12 one-sided); "
        "the test accuracy of LB is 1.00 points lower (paper: 0.22 lower), "
        "SB higher than LB in 3 of 3 seeds (sign test, p = 0.12 one-sided)."
    )
    for found in three["rows"]:
        found["test_accuracy"] = 1 - found["test_accuracy"]
    assert "1.00 points higher (paper: 0.22 lower), SB higher than LB in 0 of 3" in tables.headline(three)


@pytest.mark.parametrize(
    ("wins", "pairs", "expected"), [(5, 5, 1 / 32), (4, 5, 6 / 32), (0, 5, 1.0), (1, 1, 0.5), (0, 0, 1.0)]
)
def test_sign_test(wins, pairs, expected):
    assert summaries.sign_test(wins, pairs) == expected


def test_sign_test_refuses_more_wins_than_pairs():
    with pytest.raises(ValueError, match=r"wins is 6.*pairs, 5"):
        summaries.sign_test(6, 5)


def test_compare_pairs_by_seed_and_leaves_ties_out():
    high, low = {0: 2.0, 1: 2.0, 2: 1.0, 7: 9.0}, {2: 3.0, 1: 2.0, 0: 1.0, 8: 0.0}
    expected = "a over b in 1 of 2 seeds, 1 tied and left out (sign test, p = 0.75 one-sided)"
    assert summaries.compare(high, low, "a over b") == expected


def test_a_diverged_run_is_listed_and_in_no_mean(three, undrawn):
    three["rows"][5].update(diverged_at=17, train_loss=None, train_accuracy=None, test_accuracy=None)
    text = report.text(three)
    assert "Diverged, in no mean: F1 on mnist, LB, seed 2, at step 17." in text
    # the value 300 is still in the record; the mean is that of 100 and 200
    assert line(text, "205.14") == "LB 205.14 ± 69.52 150.00 ± 70.71 2 0.25 99.00"
    assert "LB sharper than SB in 2 of 2 seeds (sign test, p = 0.25 one-sided)" in text
    page = report.html(three)
    assert "seed 2, at step 17" in page
    assert page.count("<td>30</td>") == 6  # every run stays in the table of runs, by its steps


def test_null_and_zero_values_are_said_not_dropped(three):
    three["rows"][0]["sharpness"][0]["value"] = None
    three["rows"][1]["sharpness"][1]["draws"][0] = None
    three["rows"][2]["sharpness"][0]["value"] = 0.0
    three["rows"][3]["sharpness"][0].update(finite=False)
    three["rows"][4]["history"]["test_accuracy"][1] = None
    text = report.text(three)
    assert "F1 on mnist, epsilon 0.001, SB: no finite value for seed 0." in text
    assert "F1 on mnist, epsilon 0.001, SB: no finite value for seed 1." in text
    assert "F1 on mnist, epsilon 0.001, LB: no finite value for seed 0." in text
    assert line(text, "1.23") == "F1 on mnist 0.001 SB 1.23 ± 0.83 1.00 ± 1.41 2 0.25 99.00"
    labels = {item.get_text() for item in report.figures(three)["sharpness"].legends[0].get_texts()}
    assert {"at the edge: 0", "at the edge: not finite or diverged"} <= labels


def test_one_seed_has_no_deviation():
    one = summary([row("F1", "SB", 0, 1.0, [0.5]), row("F1", "LB", 0, 100.0, [5.0])])
    text = report.text(one)
    assert line(text, "205.14") == "LB 205.14 ± 69.52 100.00 ± - 1 0.25 99.00"
    assert "in 1 of 1 seeds (sign test, p = 0.5 one-sided)" in text


def test_an_unfinished_run_with_small_batches_only(undrawn):
    part = summary([row("C1", "SB", 0, 30.0, [2.0], dataset="cifar10")], complete=False)
    text = report.text(part)
    assert text.startswith("This run is not complete: 1 rows so far.")
    assert "LB sharper than SB: no seed has both." in text
    parsed(report.html(part))


@pytest.mark.parametrize("empty", [{}, {"rows": []}, {"rows": [], "complete": True, "config": None}])
def test_no_rows(empty):
    assert "No rows yet." in report.text(empty)
    assert report.figures(empty) == {}
    parsed(report.html(empty))


def test_rows_without_sharpness_or_history():
    bare = {"network": "F1", "dataset": "mnist", "method": "SB", "seed": 0}
    assert "Table 3" not in report.text(summary([bare]))
    assert report.figures(summary([bare])) == {}
    parsed(report.html(summary([bare])))


def test_another_data_set_is_labelled_and_another_network_has_a_dash():
    values = {"F1": 100.0, "mlp": 7.0}
    rows = [row(network, "LB", 0, full, [5.0], dataset="digits") for network, full in values.items()]
    text = report.text(summary(rows))
    assert line(text, "205.14") == "F1 on digits 0.001 LB 205.14 ± 69.52 (MNIST) 100.00 ± - 1 0.25 99.00"
    assert line(text, "mlp on digits 0.001") == "mlp on digits 0.001 LB - 7.00 ± - 1 0.25 99.00"
    ticks = report.figures(summary(rows))["sharpness"].axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["F1\ndigits\npaper: MNIST", "mlp\ndigits"]


def test_a_dimension_that_the_paper_lacks_is_not_compared():
    rows = [row("F1", "SB", 0, 1.0, [0.5])]
    rows[0]["sharpness"].append({"space": "random", "dim": 10, "epsilon": 1e-3, "draws": [0.25, 0.5]})
    text = report.text(summary(rows))
    ten = text[text.index("subspaces, dim 10,") : text.index("subspaces, dim 100,")]
    assert line(ten, "0.001", "SB") == "F1 on mnist 0.001 SB - 0.38 ± - 1 0.12 99.00"


def test_three_networks_and_more_share_a_sentence():
    rows = [
        row(network, method, 0, value, [1.0], dataset=dataset, test=test)
        for network, dataset in (("F1", "mnist"), ("C1", "cifar10"), ("C3", "cifar100"), ("C4", "cifar100"))
        for method, value, test in (("SB", 2.0, 0.9), ("LB", 60.0 if network != "C4" else 1.0, 0.8))
    ]
    said = tables.headline(summary(rows))
    assert said.startswith("4 networks; mean sharpness of LB (full space, epsilon 0.001) is 0.5 to 30 times")
    assert "larger in 3 of 4; mean test accuracy of LB is 10.00 to 10.00 points below SB's" in said


def test_a_run_that_is_there_twice_is_refused(three):
    three["rows"].append(three["rows"][0])
    with pytest.raises(ValueError, match="F1 on mnist, SB, seed 0 twice"):
        report.text(three)


def test_text_is_at_most_100_columns_wide():
    name = "a_network_with_a_very_long_name_" * 3
    rows = [row(name, method, seed, 12345.0, [9999.0]) for method in ("SB", "LB") for seed in (0, 1)]
    rows += [row("C3", "SB", 0, 30.0, [2.0], dataset="cifar10_corrupted/brightness_5")]
    assert max(map(len, report.text(summary(rows)).splitlines())) <= 100


def test_other_methods_have_their_own_lines_and_no_paper_column(three, undrawn):
    three["rows"] += [row("F1", "SAM", seed, 5.0, [1.0]) for seed in range(3)]
    assert line(report.text(three), "SAM", "5.00") == "SAM - 5.00 ± 0.00 3 0.25 99.00"
    parsed(report.html(three))


def test_the_page_is_self_contained_and_balanced(three):
    page = report.html(three)
    parser = parsed(page)
    assert len(parser.links) == 2
    assert all(link.startswith("data:image/svg+xml;base64,") for link in parser.links)
    assert not re.search(r"https?://|url\(|@import|<script|<link", page)
    assert len(set(re.findall(r'\bid="([^"]*)"', page))) == page.count(' id="')
    words = " ".join(parser.data)
    titles = ("Table 2", "Table 3", "Table 4", "Distance of the minimum", "Every run")
    assert all(expected in words for expected in (*titles, "205.14 ± 69.52", "abc123"))


def test_text_from_the_records_is_escaped(three, undrawn):
    bad = '<script>alert("x")</script>'
    for found in three["rows"]:
        found.update(network=bad, stopped=bad, dataset=bad, method=found["method"] + bad)
    three.update(experiment=bad, config={bad: bad}, environment={bad: [bad]}, choices_note=bad)
    three["choices"] = [{"choice": bad, "note": bad, "SB": {bad: [1.0]}, "LB": {}}]
    page = report.html(three)
    assert "<script" not in page
    assert "script" not in parsed(page).tags
    assert "&lt;script&gt;" in page


def test_choices_become_a_table(three, undrawn):
    three["choices"] = [
        {"choice": "unit", "note": "length 1", "SB": {"0.001": [1.0, 3.0]}, "LB": {"0.001": [4.0, None, 8.0]}}
    ]
    three["choices_note"] = ["First paragraph.", "Second paragraph."]
    page = report.html(three)
    found = next(found for found in page.splitlines() if "<td" in found and "unit" in found)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", found)
    assert cells == ["unit", "length 1", "0.001", "2.00 ± 1.41", "2", "6.00 ± 2.83", "2 of 3"]
    assert "<p>First paragraph.</p>\n<p>Second paragraph.</p>" in page


def test_figure_2_is_drawn_only_where_the_paper_has_it():
    rows = [row("C1", "SB", 0, 30.0, [2.0], dataset=dataset) for dataset in ("cifar10", "digits")]
    here, elsewhere = report.figures(summary(rows))["accuracy"].axes
    assert [len(axes.lines) for axes in (here, elsewhere)] == [4, 2]
    assert [len(found.get_xdata()) for found in here.lines] == [99, 99, 3, 3]


def test_the_mean_curve_spans_the_epochs_that_all_seeds_have(three):
    three["rows"] = three["rows"][:2]
    three["rows"][1]["history"] = {"train_accuracy": [0.7, 1.0]}
    first, second, mean, *_ = report.figures(three)["accuracy"].axes[0].lines
    assert [len(found.get_xdata()) for found in (first, second, mean)] == [3, 2, 2]
    assert mean.get_ydata() == pytest.approx([60.0, 95.0])


def test_write_gives_the_same_bytes_twice_and_leaves_the_summary_alone(three, tmp_path):
    before = copy.deepcopy(three)
    page = report.write(three, tmp_path / "a")
    assert page == tmp_path / "a" / "report.html"
    report.write(json.loads(json.dumps(three)), tmp_path / "b")
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    names = sorted(path.relative_to(tmp_path / "a").as_posix() for path in files)
    images = [f"figures/{name}.{kind}" for name in ("accuracy", "sharpness") for kind in ("png", "svg")]
    assert names == [*images, "report.html"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert page.read_text(encoding="utf-8") == report.html(three)
    assert three == before


def test_the_report_opens_no_plotting_backend():
    code = "import sys, gengap.report; sys.exit(bool({'matplotlib.pyplot', 'jax'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
