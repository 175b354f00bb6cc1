"""Tables beside the paper's with numbers that can be counted, the Markdown and the page made of it."""

import copy
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from experiments.lib import tables
from gengap import records, report
from tests.tables_rows import ORIGIN, pairs

VOID = {"meta", "img", "br", "hr", "link"}


def run_of(rows):
    return records.Run(None, "toy", {"dim": 100, "clip": None}, rows, [0.0])


@pytest.fixture
def three():
    return pairs()


sections = tables.figures


def test_figures_that_are_apart_say_whose_they_are(three):
    @report.apart
    def figures(rows):
        return [report.Section("T", [str(len(rows))], name="t"), report.Section("U")]

    assert figures(three) == [report.Section("T", ["6"], name="t"), report.Section("U")]
    made = figures([one | {"network": "F1" if one["side"] == "SB" else "C1"} for one in three])
    assert [(one.title, one.name) for one in made] == [
        ("T: F1 on mnist", "t-F1-on-mnist"), ("U: F1 on mnist", ""),
        ("T: C1 on mnist", "t-C1-on-mnist"), ("U: C1 on mnist", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_terminal_gets_lines_of_its_width(three, width):
    text = report.terminal(sections(three), width, report.of_batches(run_of(three)))
    assert " ".join(text.split()).startswith(
        "SB, LB: minima that training with small and with large batches finds"
    )
    assert max(map(len, text.splitlines())) <= width
    assert "LB, here" in text and "Results: F1 on mnist" in text


def test_a_report_on_disk_says_first_what_the_terminal_got(three, tmp_path):
    run, made = run_of(three), sections(three)
    report.write("toy", made, run, tmp_path)
    first = report.terminal([section._replace(table=None) for section in made[:1]], 80, report.of_batches(run))
    assert report.first_findings(tmp_path, 80) == first and first.startswith("SB, LB: minima that training")


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
    for words in ("Table 3", "SB, LB", "Settings", "Provenance", "abc123"):
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


def test_a_commit_that_looks_like_a_number_is_shown_as_it_is(three, tmp_path):
    rows = [row | {"origin": row["origin"] | {"commit": "1234567890e1"}} for row in three]
    report.write("toy", sections(rows), run_of(rows), tmp_path)
    assert "1234567890e1" in (tmp_path / "report.md").read_text()


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
    assert found["seconds"].tolist() == [4, 2] and found["last"][0] == "2026-11-25"


def test_the_report_opens_no_plotting_backend():
    code = "import sys; from gengap import report; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
