"""Tables beside the paper's with numbers that can be counted, the Markdown and the page made of it."""

import copy
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from gengap import records, report

VOID = {"meta", "img", "br", "hr", "link"}
ORIGIN = {"commit": "abc123", "jax": "0.10.2", "device": "cpu, 2 cores", "date": "2026-11-25", "seconds": 1.5}


def row(network, method, seed, full, draws, *, dataset="mnist", test=0.98, **changed):
    """A row whose sharpness at epsilon 5e-4 is a quarter of that at 1e-3."""
    history = {f"{split}_accuracy": [0.5, 0.9, test] for split in ("train", "test")}
    return {
        "network": network, "dataset": dataset, "method": method, "seed": seed, "batch_size": 256,
        "epochs": 3, "steps": 30, "diverged_at": None, "train_loss": 0.125, "train_accuracy": 0.99,
        "test_loss": 0.5, "test_accuracy": test, "distance": 12.0 if method == "SB" else 4.0, "history": history,
        "epsilons": [1e-3, 5e-4], "dim": 100, "origin": ORIGIN,
        "full": {"value": [full, full / 4], "base_loss": [0.25, 0.25], "finite": [True, True]},
        "random": {
            "value": [draws, [d / 4 for d in draws]],
            "base_loss": [[0.25] * len(draws)] * 2,
            "finite": [[True] * len(draws) for _ in range(2)],
        },
        **changed,
    }  # fmt: skip


@pytest.fixture
def three():
    # means 2 and 200, sample standard deviations 1 and 100; subspaces 0.5 and 5, no spread over seeds
    small = [row("F1", "SB", seed, 1.0 + seed, [0.25, 0.75], test=0.98) for seed in range(3)]
    large = [row("F1", "LB", seed, 100.0 + 100 * seed, [4.0, 6.0], test=0.97) for seed in range(3)]
    return small + large


def run_of(rows):
    return records.Run(None, "toy", {"dim": 100, "clip": None}, rows, [0.0])


def sections(rows):
    return [*report.paper_tables(rows), report.sharpness_figure(rows), report.accuracy_figure(rows)]


def table(rows, title):
    return next(section for section in report.paper_tables(rows) if section.title.startswith(title))


def test_the_tables_give_the_closed_form_beside_the_paper(three):
    full = table(three, "Table 3").table
    assert full.iloc[0].to_dict() == {
        "network": "F1 on mnist", "epsilon": "0.001", "SB, paper": "1.23 ± 0.83", "SB, here": "2.00 ± 1.00",
        "LB, paper": "205.14 ± 69.52", "LB, here": "200 ± 100", "LB / SB": "100", "f, SB": "0.25", "f, LB": "0.25",
        "n": "3",
    }  # fmt: skip
    assert full.iloc[1]["SB, here"] == "0.50 ± 0.25" and full.iloc[1]["epsilon"] == "0.0005"
    random = table(three, "Table 4")
    assert random.table.iloc[0]["LB, paper"] == "9.22 ± 0.56" and random.table.iloc[0]["LB, here"] == "5.00 ± 0.00"
    assert "LB sharper than SB in 3 of 3 seeds (sign test, p = 0.12 one-sided)" in random.findings[0]
    accuracy = table(three, "Table 2").table
    assert accuracy.iloc[1]["SB, here"] == "98.00 ± 0.00" and accuracy.iloc[1]["LB, paper"] == "97.81 ± 0.07"
    assert table(three, "Distance").table.iloc[0]["SB / LB"] == "3.00 ± 0.00"


def test_the_headline_is_computed_and_says_at_which_loss(three):
    for found in three:
        found["full"]["base_loss"] = [0.001, 0.001] if found["method"] == "SB" else [0.02, 0.02]
    assert report.headline(three) == (
        "F1 on mnist: LB minima are 100 times as sharp as SB minima (full space, epsilon 0.001; measured at a "
        "training loss of 0.001 for SB and 0.02 for LB), LB sharper than SB in 3 of 3 seeds (sign test, p = 0.12 "
        "one-sided); the test accuracy of LB is 1.00 points lower, SB higher than LB in 3 of 3 seeds (sign test, "
        "p = 0.12 one-sided)."
    )
    for found in three:
        found["test_accuracy"] = 1 - found["test_accuracy"]
    assert "1.00 points higher, SB higher than LB in 0 of 3" in report.headline(three)


def test_a_diverged_run_is_listed_and_in_no_mean(three):
    three[5] |= {"diverged_at": 17, "train_loss": None, "train_accuracy": None, "test_accuracy": None}
    del three[5]["full"], three[5]["random"]
    first, *rest = report.paper_tables(three)
    assert "Diverged, in no comparison: F1 on mnist, LB, seed 2, at step 17." in first.findings
    assert rest[1].table.iloc[0]["LB, here"] == "150 ± 71"


def test_null_and_zero_values_are_said_not_dropped(three):
    three[0]["full"]["value"] = [None, 0.0]
    full = table(three, "Table 3")
    assert full.table.iloc[0][["SB, here", "LB, here", "n"]].tolist() == ["2.50 ± 0.71", "250 ± 71", "2"]
    assert "F1 on mnist, epsilon 0.001: 1 of 6 met a loss that is not finite, and are in no mean." in full.findings
    assert full.table.iloc[1]["SB, here"] == "0.42 ± 0.38"
    three[0]["random"]["value"][0][1] = None  # one draw of two
    assert "1 of 6 met a loss that is not finite" in " ".join(table(three, "Table 4").findings)


def test_a_lower_bound_is_in_no_mean(three):
    three[0]["full"]["finite"][0] = False
    three[1]["random"]["finite"][1][1] = False
    assert table(three, "Table 3").table["SB, here"].tolist() == ["2.50 ± 0.71", "0.50 ± 0.25"]
    found = report.sharpness(three)
    lost = found[found["value"].isna()]
    assert lost[["seed", "space", "epsilon"]].values.tolist() == [[0, "full", 1e-3], [1, "random", 5e-4]]
    assert report.sharpness_at(three[0], 1e-3) is None and report.sharpness_at(three[0], 5e-4) == 0.25


def test_networks_and_runs_are_never_one_curve_or_pair(three):
    other = [one | {"run": "mnist/other", "test_accuracy": 0.5} for one in three]
    both = [one | {"run": "mnist/default"} for one in three] + other
    for title, lines in (("Table 2", 4), ("Table 3", 4), ("Distance", 2)):
        found = table(both, title).table
        assert len(found) == lines and set(found["n"]) == {"3"}
        assert set(found["network"]) == {"F1 on mnist, mnist/default", "F1 on mnist, mnist/other"}
    assert len(report.accuracy_figure(both).figure.axes) == 2
    labels = report.sharpness_figure(both).figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["F1\nmnist\nmnist/default", "F1\nmnist\nmnist/other"]
    small = [one | {"network": "F1" if one["method"] == "SB" else "C1"} for one in three]
    with pytest.raises(ValueError, match="rows of F1 on mnist and of C1 on mnist; they cannot be compared"):
        report.by_seed(pd.DataFrame(small), "test_accuracy")


def test_figures_that_are_apart_say_whose_they_are(three):
    @report.apart
    def figures(rows):
        return [report.Section("T", [str(len(rows))], name="t"), report.Section("U")]

    assert figures(three) == [report.Section("T", ["6"], name="t"), report.Section("U")]
    made = figures([one | {"network": "F1" if one["method"] == "SB" else "C1"} for one in three])
    assert [(one.title, one.name) for one in made] == [
        ("T: F1 on mnist", "t-F1-on-mnist"), ("U: F1 on mnist", ""),
        ("T: C1 on mnist", "t-C1-on-mnist"), ("U: C1 on mnist", ""),
    ]  # fmt: skip


def test_one_seed_has_no_deviation():
    assert table([row("F1", "SB", 0, 1.0, [0.5])], "Table 3").table.iloc[0]["SB, here"] == "1.00"


def test_small_batches_only():
    rows = [row("F1", "SB", 0, 1.0, [0.5])]
    assert "nothing to compare yet" in report.headline(rows)
    assert table(rows, "Table 3").table.iloc[0]["LB, here"] == "-"
    assert report.terminal(sections(rows))


def test_another_data_set_is_labelled_and_another_network_has_a_dash():
    rows = [row("F1", "SB", 0, 1.0, [0.5], dataset="digits"), row("dense", "SB", 0, 1.0, [0.5])]
    assert table(rows, "Table 3").table["SB, paper"].tolist()[::2] == ["1.23 ± 0.83", "-"]
    assert table(rows, "Table 2").findings[1:2] == ["The paper has F1 on MNIST."]


def test_no_rows_are_said():
    assert report.headline([]) == "No rows yet."
    assert "No rows yet." in report.terminal(report.paper_tables([]))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_terminal_gets_lines_of_its_width(three, width):
    text = report.terminal(sections(three), width)
    assert max(map(len, text.splitlines())) <= width
    assert "LB, here" in text and "What came out" in text


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
        if tag not in VOID:  # markdown-it writes <img />
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)


def parsed(page):
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_self_contained_and_balanced(three, tmp_path):
    page = report.write("toy", sections(three), run_of(three), tmp_path)
    text = page.read_text()
    found = parsed(text)
    assert found.links and all(link.startswith("data:image/svg+xml;base64,") for link in found.links)
    assert "http" not in re.sub(r'src="[^"]*"', "", text)
    for words in ("Table 3", "What was asked", "Where the rows come from", "abc123"):
        assert any(words in data for data in found.data), words
    assert found.tags.count("table") == 5 and found.tags.count("img") == 2


def test_the_markdown_has_tables_and_links_that_exist(three, tmp_path):
    report.write("toy", sections(three), run_of(three), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# toy\n")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines) and "| F1 on mnist | 0.001" in text
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(links) == 2 and all((tmp_path / link).exists() for link in links)


def test_text_from_the_records_is_not_markup(tmp_path):
    nasty = "<script>alert(1)</script> | *a* [b](c) `d`"
    found = report.Section("T", [nasty], pd.DataFrame({"x|y": [nasty]}))
    made = parsed(report.write("toy", [found], run_of([]), tmp_path).read_text())
    assert not {"script", "em", "a"} & set(made.tags) and made.tags.count("td") <= 6
    assert [data for data in made.data if data == nasty] == [nasty, nasty]


def test_write_gives_the_same_bytes_twice_and_leaves_the_rows_alone(three, tmp_path):
    before = copy.deepcopy(three)
    pages = [report.write("toy", sections(three), run_of(three), tmp_path / name) for name in "ab"]
    assert three == before
    first, second = ({p.name: p.read_bytes() for p in sorted(page.parent.rglob("*.*"))} for page in pages)
    assert first == second and {"report.html", "report.md", "sharpness.svg", "accuracy.svg"} <= first.keys()


def test_origins_are_counted():
    rows = [{"origin": ORIGIN}, {"origin": {**ORIGIN, "seconds": 2.0}}, {"origin": {**ORIGIN, "commit": "def"}}]
    found = report.origins(rows)
    assert found["commit"].tolist() == ["abc123", "def"] and found["rows"].tolist() == [2, 1]
    assert found["seconds"].tolist() == [3.5, 1.5]


def test_the_report_opens_no_plotting_backend():
    code = "import sys; from gengap import report; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
