"""Every published figure is read without its report, and no caption speaks of what its figure lacks."""

import importlib
import re
from pathlib import Path

import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.contour import QuadContourSet
from matplotlib.ticker import FixedLocator

from gengap import plots, records, sheet

ROOT = Path(__file__).parents[1]
RUNS = sorted(path.parent for path in ROOT.glob("published/*/*/config.json"))


def each(figure):
    """All Axes of a figure, insets too."""
    return [ax for outer in figure.axes for ax in (outer, *outer.child_axes)]


def lines(figure):
    return [line for ax in each(figure) for line in ax.lines]


def legend(figure):
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def first_dash(line):
    """Of a dashed line, in widths of it; 0 for a solid one."""
    return (line._unscaled_dash_pattern[1] or [0])[0]


def has_colour(role):
    return lambda figure, rows: any(to_hex(line.get_color()) == sheet.ROLES[role] for line in lines(figure))


def draws(rows):
    """The most subspaces that a sharpness of the rows is a mean over."""
    return max((len(v) for row in rows for name, v in row.items() if name.endswith("_draws")), default=0)


# What a caption says -> whether the figure has it.
NEEDS = {
    r"dotted": lambda figure, rows: any(0 < first_dash(line) < 2 for line in lines(figure)),
    r"dashed": lambda figure, rows: any(first_dash(line) > 2 for line in lines(figure)),
    r"solid": lambda figure, rows: any(line.get_linestyle() == "-" for line in lines(figure)),
    r"dotted.*paper|paper.*dotted": lambda figure, rows: any("paper" in words for words in legend(figure)),
    r"\bthin\b|\bthick\b": lambda figure, rows: "thin: one seed" in legend(figure),
    r"\binset": lambda figure, rows: any(ax.child_axes for ax in figure.axes),
    r"mean over the draws": lambda figure, rows: draws(rows) > 1,
    r"\bletters?\b": lambda figure, rows: any(ax.texts for ax in each(figure)),
    r"\bbars?\b": lambda figure, rows: any(
        isinstance(c, LineCollection) and c.get_segments() for ax in each(figure) for c in ax.collections
    ),
    r"\bmarkers?\b": lambda figure, rows: any(line.get_marker() not in ("None", "") for line in lines(figure)),
    r"\bpanels\b": lambda figure, rows: len(figure.axes) > 1,
    r"\bshades?\b": lambda figure, rows: any(
        isinstance(c, QuadContourSet) for ax in each(figure) for c in ax.collections
    ),
    r"\bdots?\b": lambda figure, rows: any(line.get_marker() == "." for line in lines(figure)),
    r"\bblue\b": has_colour("SB"),
    r"\borange\b": has_colour("LB"),
    r"\bpurple\b": has_colour("other"),
    r"falls to the right": lambda figure, rows: all(ax.xaxis_inverted() for ax in figure.axes),
}


def lacks(caption, figure, rows=()):
    """The words of a caption that its figure has nothing for."""
    return [words for words, has in NEEDS.items() if re.search(words, caption, re.I) and not has(figure, rows)]


def faults(figure):
    """What keeps a figure from being read by itself."""
    found = []
    for k, ax in enumerate(figure.axes):
        is_bar = ax.get_label() == "<colorbar>"
        if not (ax.get_title() or is_bar):
            found.append(f"panel {k} has no title")
        for axis in (ax.xaxis, ax.yaxis):
            is_words = isinstance(axis.get_major_locator(), FixedLocator)
            if not (axis.get_label_text() or is_words or (is_bar and axis is ax.xaxis)):
                found.append(f"the {axis.axis_name} axis of panel {k} has no label")
        for label in (ax.get_xlabel(), ax.get_ylabel()):
            if re.match(r".*(loss|accuracy|sharpness|entropy)", label) and "(" not in label:
                found.append(f"{label!r} has no unit")
        for axis in (ax.xaxis, ax.yaxis):
            shown = [tick.get_text() for tick in axis.get_ticklabels(which="both")]
            found += [f"the number {text!r}" for text in shown if re.search(r"^[\d.]+e[-+]?\d|\\times", text)]
        found += [
            f"a line of panel {k} is not in the legend"
            for line in ax.lines
            if line.get_label().startswith("_")
            and not (getattr(line, "gengap_seeds", 0) == 1 and "thin: one seed" in legend(figure))
            and len(line.get_xdata()) > 2
        ]
    return found


def published():
    for path in RUNS:
        run = records.read(path)
        for section in importlib.import_module(f"experiments.{run.experiment}").figures(run.rows):
            if section.figure is not None:
                yield f"{path.parent.name}/{path.name}/{section.name}", section, run.rows


def test_every_published_figure_is_read_by_itself_and_its_caption_fits():
    checked, wrong = 0, {}
    for name, section, rows in published():
        found = [*faults(section.figure), *lacks(section.caption, section.figure, rows)]
        wrong |= {name: found} if found else {}
        checked += 1
    assert checked > 30
    assert not wrong, wrong


def figure_of(*drawn):
    return plots.panels([plots.Panel("title", "epoch", "accuracy (%)", list(drawn))])


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Training is solid, test dashed.", "dashed"),
        ("Dotted: the paper.", "dotted"),
        ("Thin lines are seeds.", r"\bthin\b|\bthick\b"),
        ("An inset shows the end.", r"\binset"),
        ("A point is the mean over the draws.", "mean over the draws"),
        ("A letter is a remedy.", r"\bletters?\b"),
        ("Bars are intervals.", r"\bbars?\b"),
        ("Both panels.", r"\bpanels\b"),
        ("Purple: LB with noise.", r"\bpurple\b"),
        ("The loss falls to the right.", "falls to the right"),
    ],
)
def test_a_caption_that_speaks_of_what_is_not_there_is_found(caption, words):
    rows = [{"sharpness_random_1e-3_draws": [1.0]}]
    assert words in lacks(caption, figure_of(plots.Line([0, 1], [1, 2], "SB", "SB")), rows)


def test_a_caption_of_what_is_there_is_not():
    drawn = plots.seeds([([0, 1], [1, 2]), ([0, 1], [2, 3])], "SB test", "SB", "--")
    figure = figure_of(*drawn, plots.dotted(([0, 1], [1, 2]), "paper, SB"))
    assert not lacks("Test is dashed, thin a seed, the paper's curve dotted, SB blue.", figure)


def test_a_figure_that_needs_its_report_is_found():
    figure, (ax,) = plots.axes(1)
    ax.plot([0, 1, 2], [3e-3, 4e-3, 9e-3])
    ax.set(yscale="log", ylabel="training loss")
    found = " ".join(faults(figure))
    for words in ("no title", "x axis of panel 0 has no label", "no unit", "the number", "not in the legend"):
        assert words in found
