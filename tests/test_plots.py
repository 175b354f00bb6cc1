"""The figures: what is drawn is what was given, axes are readable, and an Axes comes back."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from gengap import plots, sheet

PAIR = {"SB": {0: 1.0, 1: 2.0}, "LB": {0: 100.0, 1: 50.0}}
S, T = np.linspace(-1, 3, 9), np.linspace(-1, 1, 5)
BOWL = S[None] ** 2 + T[:, None] ** 2 + 1e-3
HISTORY = {"train_accuracy": np.array([0.5, 0.75, 1.0]), "test_accuracy": np.array([0.4, 0.6, 0.8])}
EVERY = {
    "path": lambda ax: plots.path([0.0, 0.5, 1.0], [1.0, 2.0, 3.0], ax=ax),
    "plane": lambda ax: plots.plane(S, T, BOWL, points={"SB": (0.0, 0.0)}, ax=ax),
    "sharpness": lambda ax: plots.sharpness({"F1": PAIR}, ax=ax),
    "accuracy": lambda ax: plots.accuracy({"SB": [HISTORY]}, ax=ax),
}


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture(scope="module")
def empty():
    """Axes for what is refused."""
    return Figure().subplots()


def drawn(ax, label):
    """The points of the artist that the legend names so."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line.get_xydata()


def minima(ax, label):
    """The points of all artists that the legend names so."""
    return np.concatenate([line.get_xydata() for line in ax.lines if line.get_label() == label])


def words(legend):
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("name", EVERY)
def test_it_draws_into_the_axes_given_and_into_those_of_pyplot(ax, name):
    assert EVERY[name](ax) is ax and ax.has_data()
    with matplotlib.rc_context({"backend": "agg"}):
        from matplotlib import pyplot

        figure, current = pyplot.subplots()
        try:
            assert EVERY[name](None) is current and current.has_data()
            figure.savefig(io.BytesIO(), dpi=20)
        finally:
            pyplot.close(figure)


def test_a_path_has_the_numbers_given_and_the_mean_of_seeds(ax):
    alphas = [-1.0, 0.0, 1.0, 2.0]
    plots.path(alphas, {"train": [[1, 2, 3, 4], [3, 4, 5, 6]], "test": [9, 8, None, 6]}, ax=ax)
    assert drawn(ax, "train").tolist() == [[-1, 2], [0, 3], [1, 4], [2, 5]]
    np.testing.assert_array_equal(drawn(ax, "test"), [[-1, 9], [0, 8], [1, np.nan], [2, 6]])
    assert [line.get_ydata().tolist() for line in ax.lines[:2]] == [[1, 2, 3, 4], [3, 4, 5, 6]]
    ends = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    assert ends == [[0, 0], [1, 1]]
    assert words(ax.get_legend()) == ["train", "test", "thin: one seed", "thick: mean of 2 seeds"]
    with pytest.raises(ValueError, match="'train' has the shape"):
        plots.path(alphas, {"train": [1, 2, 3]}, ax=ax)


def test_a_line_without_a_name_needs_no_legend(ax):
    assert EVERY["path"](ax).get_legend() is None


def test_the_words_of_a_label_say_how_a_line_looks(ax):
    names = ["SB train", "SB test", "LB train", "one", "two", "paper, F1, train", "paper, LB test"]
    plots.path([0, 1], {name: [0, 1] for name in names}, ax=ax)
    looks = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert looks["SB train"][0] == looks["SB test"][0] != looks["LB train"][0]
    assert [looks[name][1] for name in names[:5]] == ["-", "--", "-", "-", "-"]
    assert all(looks[name][1] != "-" for name in names[5:])
    assert looks["one"][0] != looks["two"][0]
    assert looks["paper, F1, train"][0] == "black"


def test_a_plane_marks_points_and_spans_the_values(ax):
    plots.plane(S, T, BOWL, points={"SB": (0.0, 0.0), "start": (2.0, 0.5)}, ax=ax)
    assert drawn(ax, "SB").tolist() == [[0, 0]] and drawn(ax, "start").tolist() == [[2, 0.5]]
    assert words(ax.get_legend()) == ["SB", "start"]
    filled = ax.collections[0]
    assert filled.levels[0] == pytest.approx(1e-3) and filled.levels[-1] >= BOWL.max()
    assert ax.get_xlim() == (-1, 3) and ax.get_ylim() == (-1, 1)


def test_levels_are_half_decades_of_at_most_six_decades_and_can_be_shared(ax):
    assert plots.levels([1e-12, 0.0, -1.0, np.nan], [[5.0]]) == pytest.approx(10 ** np.arange(-5, 1.1, 0.5))
    assert plots.levels([1.0]) == pytest.approx([1, 10**0.5, 10])
    plots.plane(S, T, np.where(BOWL > 5, np.nan, BOWL), at=[1e-4, 1e-2, 1.0], ax=ax)
    assert ax.collections[0].levels.tolist() == [1e-4, 1e-2, 1.0]
    with pytest.raises(ValueError, match="none that is positive"):
        plots.plane(S, T, -BOWL, ax=ax)


def test_sharpness_joins_the_two_of_a_seed_and_has_the_paper_beside(ax):
    plots.sharpness({"F1": PAIR, "C1": PAIR}, paper={"F1": {"SB": (3.0, 5.0)}}, ax=ax)
    joins = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"]
    assert [line.get_ydata().tolist() for line in joins] == 2 * [[1.0, 100.0], [2.0, 50.0]]
    assert minima(ax, "LB, one seed").round().tolist() == [[0, 100], [0, 50], [1, 100], [1, 50]]
    (bar,) = ax.containers
    assert bar.lines[0].get_ydata() == [3.0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["F1", "C1"]
    low, high = ax.get_ylim()
    assert ax.get_yscale() == "log" and 0.1 < low < 1 and 100 < high < 1000
    assert words(ax.get_legend()) == ["SB, one seed", "LB, one seed", "paper, mean ± std"]


def test_what_a_log_axis_cannot_show_stands_at_its_edge(ax):
    values = {"SB": {0: 1.0, 1: 0.0, 2: 4.0}, "LB": {0: None, 1: float("nan"), 2: 8.0, 3: float("inf")}}
    plots.sharpness({"F1": values}, ax=ax)
    for label, count in (("at the edge: 0", 1), ("at the edge: not finite", 3)):
        points = minima(ax, label)
        assert len(points) == count and (points[:, 1] == 0.03).all()
    assert minima(ax, "SB, one seed")[:, 1].tolist() == [1.0, 4.0]
    assert minima(ax, "LB, one seed")[:, 1].tolist() == [8.0]
    assert set(words(ax.get_legend())[-2:]) == {"at the edge: 0", "at the edge: not finite"}


def test_sharpness_that_is_nowhere_finite_has_axes_all_the_same(ax):
    plots.sharpness({"F1": {"SB": {0: None}, "SAM": {0: 0.0}}}, ax=ax)
    assert ax.get_ylim() == pytest.approx((0.1, 9.0))


def test_long_names_of_networks_are_turned(ax):
    plots.sharpness({f"C{k} on cifar100": PAIR for k in range(4)}, ax=ax)
    assert {tick.get_rotation() for tick in ax.get_xticklabels()} == {30.0}
    plots.sharpness({f"C{k}\ncifar100": PAIR for k in range(4)}, ax=ax)
    assert {tick.get_rotation() for tick in ax.get_xticklabels()} == {0.0}


def test_accuracy_is_in_percent_with_the_mean_over_the_epochs_that_all_have(ax):
    shorter = {name: values[:2] - 0.1 for name, values in HISTORY.items()}
    plots.accuracy({"SB": [HISTORY, shorter]}, paper={("SB", "test"): ([1, 2], [60, 80])}, ax=ax)
    assert drawn(ax, "SB train") == pytest.approx(np.array([[1, 45], [2, 70]]))
    assert drawn(ax, "SB test") == pytest.approx(np.array([[1, 35], [2, 55]]))
    assert drawn(ax, "paper, SB test").tolist() == [[1, 60], [2, 80]]
    assert [len(line.get_xdata()) for line in ax.lines] == [3, 2, 2, 3, 2, 2, 2]
    assert words(ax.get_legend()) == [
        "SB train",
        "SB test",
        "paper, SB test",
        "thin: one seed",
        "thick: mean of 2 seeds",
    ]


def test_a_seed_that_diverged_ends_in_a_cross_and_is_in_no_mean(ax):
    lost = {**HISTORY, "train_loss": np.array([1.0, np.nan, np.nan])}
    lost["train_accuracy"] = np.array([0.5, 0.1, np.nan])
    plots.accuracy({"LB": [HISTORY, lost]}, ax=ax)
    assert drawn(ax, "LB train") == pytest.approx(np.array([[1, 50], [2, 75], [3, 100]]))
    crosses = [line.get_xydata().tolist() for line in ax.lines if line.get_label() == "diverged"]
    assert crosses == [[[2, 10]], [[3, pytest.approx(80)]]]
    assert words(ax.get_legend()) == ["LB train", "LB test", "diverged", "every line: one seed"]


def test_the_words_of_a_papers_label_say_how_its_dots_look():
    labels = ["paper, F2, SB train", "paper, F2, SB test", "paper, F2, LB train", "paper, F2"]
    lines = [plots.dotted(([0, 1], [2, 3]), label) for label in labels]
    assert [line.colour for line in lines] == ["paper", "paper", "paper, other", "paper"]
    assert [line.dashes for line in lines] == [(0, (1, 1)), (0, (1, 3)), (0, (1, 1)), (0, (1, 1))]
    assert (lines[0].x, lines[0].y, lines[0].label) == ([0, 1], [2, 3], labels[0])


def test_curves_of_another_network_of_the_paper_are_beside():
    lines = [plots.Line([0], [1], "here"), plots.dotted(([0], [1]), "paper, F2")]
    panel = plots.Panel(
        "F1 on mnist", "x", "y", lines, marks={1.0: "threshold, here", 2.0: "threshold, paper's F2"}
    )
    assert plots.beside_paper(panel, "F2", "F2") == [panel]
    here, there = plots.beside_paper(panel, "F1", "F2")
    assert (here.title, there.title) == ("F1 on mnist", "paper, F2 on TIMIT")
    assert (here.lines, there.lines) == (lines[:1], lines[1:])
    assert (list(here.marks), list(there.marks)) == ([1.0], [2.0])


def test_seeds_with_other_x_have_no_mean():
    lines = plots.seeds([([1, 2], [3, 4]), ([1, 3], [3, 4])], "here", "here")
    assert [line.label for line in lines] == ["here", "here"]
    assert plots.seeds([], "here", "here") == []


def test_a_figure_of_axes_has_one_legend_below_that_names_each_thing_once():
    figure, places = plots.axes(3)
    assert len(places) == len(figure.axes) == 3 and figure.get_figwidth() == 7
    for ax in places[:2]:
        plots.sharpness({"F1": PAIR}, ax=ax)
        assert ax.get_legend() is None
    plots.path([0, 1], {"train": [0, 1]}, ax=places[2])
    (legend,) = figure.legends
    assert words(legend) == ["SB, one seed", "LB, one seed", "train"]
    figure.draw_without_rendering()
    below = min(ax.get_tightbbox().y0 for ax in places)
    assert legend.get_window_extent().y1 <= below + 1


def test_panels_have_the_lines_scales_and_marks_asked_for():
    line = plots.Line([1.0, 10.0], [0.5, None], "here", marker="o")
    first = plots.Panel("title", "x", "y", [line], log_x=True, log_y=True, flip_x=True)
    second = plots.Panel("t", "x", "y", [line], marks={2.0: "threshold,\nhere", 2.1: "threshold, paper"})
    figure = plots.panels([first, second])
    left, right = figure.axes
    np.testing.assert_array_equal(drawn(left, "here"), [[1, 0.5], [10, np.nan]])
    assert left.get_xscale() == left.get_yscale() == "log" and left.xaxis_inverted()
    assert (left.get_title(), left.get_xlabel(), left.get_ylabel()) == ("title", "x", "y")
    assert not right.texts
    assert words(figure.legends[0]) == ["here", "threshold, here", "threshold, paper"]


def test_intervals_are_drawn_in_plain_numbers_or_as_factors():
    values = [(0.1, 0.05, 0.2), (0.5, np.nan, np.nan)]
    panels = {("accuracy", "points"): {"tau": values}, ("sharpness", "times"): {"SB": values[::-1]}}
    figure = plots.intervals(["a", "b"], panels)
    left, right = figure.axes
    assert drawn(left, "tau")[:, 0].tolist() == [0.1, 0.5] and drawn(right, "SB")[:, 0].tolist() == [0.5, 0.1]
    named = [[label.get_text() for label in ax.get_yticklabels()] for ax in (left, right)]
    assert named == [["a", "b"], ["", ""]]
    assert (left.get_xscale(), right.get_xscale()) == ("linear", "log")
    assert [list(ax.lines[-1].get_xdata()) for ax in (left, right)] == [[0, 0], [1, 1]]
    assert [ax.get_title() for ax in (left, right)] == ["accuracy", "sharpness"]
    assert next(line for line in right.lines if line.get_label() == "SB").get_color() == sheet.ROLES["SB"]


def test_the_legend_says_what_is_a_seed_and_what_a_mean():
    figure, (ax,) = plots.axes(1)
    plots.path([0, 1], {"SB train": [[0, 1], [1, 2]], "LB train": [[0, 1], [1, 2], [2, 3]]}, ax=ax)
    assert words(figure.legends[0])[2:] == ["thin: one seed", "thick: mean of 2 to 3 seeds"]
    figure, (ax,) = plots.axes(1)
    plots.path([0, 1], {"SB train": [[0, 1]]}, ax=ax)
    assert words(figure.legends[0]) == ["SB train", "every line: one seed"]
    plots.path([0, 1], {"a": [0, 1]}, ax=(alone := plots.axes(1)[1][0]))
    assert words(alone.figure.legends[0]) == ["a"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.002, 0.02, ["0.002", "0.005", "0.01", "0.02"]),
        (80, 900, ["100", "200", "500"]),
        (0.05, 0.14, ["0.06", "0.08", "0.1"]),
        (0.02, 2, ["0.03", "0.1", "0.3", "1"]),
        (1e-6, 10, ["$10^{-6}$", "$10^{-5}$", "0.0001", "0.001", "0.01", "0.1", "1", "10"]),
    ],
)
def test_the_numbers_of_a_logarithmic_axis_are_plain(ax, low, high, ticks):
    plots.logarithmic(ax, "x", low, high)
    ax.get_figure().draw_without_rendering()
    shown = [label.get_text() for label in ax.get_xticklabels() if low <= label.get_position()[0] <= high]
    assert shown == ticks and not any(label.get_text() for label in ax.get_xticklabels(minor=True))


def test_an_inset_shows_the_test_accuracy_of_later_epochs(ax):
    plots.accuracy({"SB": [HISTORY]}, zoom=True, ax=ax)
    (inset,) = ax.child_axes
    assert [line.get_ydata().tolist() for line in inset.lines] == [pytest.approx([40, 60, 80])]
    assert inset.get_xlim() == (0.75, 3) and "test" in inset.get_title()


def test_accuracy_against_updates_has_a_logarithmic_axis(ax):
    plots.accuracy({"SB": [HISTORY], "LB": [HISTORY]}, updates={"SB": 45, "LB": 10}, ax=ax)
    assert drawn(ax, "SB train")[:, 0].tolist() == [45, 90, 135]
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "updates")


def test_planes_can_share_a_colour_bar():
    figure, places = plots.axes(2)
    for ax, beside in zip(places, ([], places), strict=True):
        plots.plane(S, T, BOWL, at=[0.1, 1, 10], label="loss (nats)", beside=beside, ax=ax)
    assert [ax.get_ylabel() for ax in figure.axes[2:]] == ["loss (nats)"]


@pytest.mark.parametrize("empty_one", ["title", "x_label", "y_label"])
def test_a_panel_without_a_title_or_a_label_is_refused(empty_one):
    panel = plots.Panel("title", "x", "y", [])._replace(**{empty_one: ""})
    with pytest.raises(ValueError, match="it must have all three"):
        plots.panels([panel])


def history(*shares):
    return {"train_accuracy": np.array(shares, float), "test_accuracy": np.array(shares, float) / 2}


NAN, MOST, LEAST = float("nan"), 1.7e308, 5e-324
# Nothing of these may be refused, nor warned of.
DRAWN = {
    "a path of one point": lambda ax: plots.path([0.5], {"a": [[1.0], [2.0]]}, ax=ax),
    "a path of one number": lambda ax: plots.path(0.5, 1.0, ax=ax),
    "a path that is lost": lambda ax: plots.path(
        [0, 1], {"a": [[np.inf, 1], [-np.inf, 2]], "b": [None, NAN]}, ax=ax
    ),
    "a long path": lambda ax: plots.path([-MOST, MOST], [[MOST, -MOST], [MOST, 1]], ax=ax),
    "a high plane": lambda ax: plots.plane(S, T, BOWL * 1e307, ax=ax),
    "a wide plane": lambda ax: plots.plane(S * 5e307, T, BOWL, ax=ax),
    "a plane with holes": lambda ax: plots.plane(S, T, np.where(BOWL > 2, np.inf, BOWL), ax=ax),
    "a flat plane": lambda ax: plots.plane(S, T, np.ones_like(BOWL), ax=ax),
    "sharp": lambda ax: plots.sharpness({"F1": {"SB": {0: MOST}, "LB": {0: 1.0, 1: 1e308}}}, ax=ax),
    "sharp and flat": lambda ax: plots.sharpness({"F1": {"SB": {0: LEAST}, "LB": {0: MOST, 1: 1e-200}}}, ax=ax),
    "a network without seeds": lambda ax: plots.sharpness({"F1": {}, "C1": {"SB": {}, "LB": {0: 1.0}}}, ax=ax),
    "the paper's 0": lambda ax: plots.sharpness({"F1": {"SB": {0: 1}}}, paper={"F1": {"SB": (0, NAN)}}, ax=ax),
    "a seed without epochs": lambda ax: plots.accuracy(
        {"SB": [history(), {}, history(0.1, 0.2)], "LB": []}, ax=ax
    ),
    "one epoch": lambda ax: plots.accuracy({"SB": [history(0.1), history(0.2)]}, ax=ax),
    "one seed": lambda ax: plots.accuracy({"SB": history(0.1, 0.2)}, ax=ax),
    "a seed that was lost at once": lambda ax: plots.accuracy({"SB": [history(NAN, NAN)]}, ax=ax),
    "great accuracy": lambda ax: plots.accuracy({"SB": [history(MOST), history(MOST)]}, ax=ax),
    "the paper alone": lambda ax: plots.accuracy({}, paper={("SB", "test"): ([1, 2], [3, 4])}, ax=ax),
    "no lines": lambda ax: plots.panels([plots.Panel("t", "x", "y", [], log_x=True, log_y=True, flip_x=True)]),
    "nothing above 0": lambda ax: log_log([0, -1], [0, NAN]),
    "long lines": lambda ax: log_log([LEAST, 1, MOST], [1, LEAST, MOST]),
    "one point": lambda ax: log_log([MOST], [MOST]),
    "an empty line": lambda ax: log_log([], []),
    "intervals of five": lambda ax: plots.intervals(
        ["a"], {("x", "y"): {name: [(0, -MOST, NAN)] for name in "abcde"}}
    ),
    "no series": lambda ax: plots.intervals(["a"], {("x", "y"): {}}),
}


def log_log(x, y):
    return plots.panels([plots.Panel("t", "x", "y", [plots.Line(x, y, "a")], log_x=True, log_y=True, flip_x=True)])


@pytest.mark.parametrize("name", DRAWN)
def test_whatever_can_be_drawn_is_drawn_without_a_warning(ax, name):
    drawing = DRAWN[name](ax)
    figure = drawing if isinstance(drawing, Figure) else ax.get_figure()
    figure.set_layout_engine("none")  # which would draw the text twice more
    figure.savefig(target := io.BytesIO(), dpi=20)
    assert len(target.getvalue()) > 500
    assert all(np.isfinite([*ax.get_xlim(), *ax.get_ylim()]).all() for ax in figure.axes)


def test_letters_that_no_font_has_are_drawn_without_a_warning():
    figure = plots.panels([plots.Panel("数据", "x", "y", [plots.Line([1], [1], "数")])])
    assert len(plots.image(figure)) > 1000


REFUSED = {
    r"alphas has the shape \(0,\); it must be \(1 or more,\)": lambda ax: plots.path([], [], ax=ax),
    r"alphas has the shape \(1, 2\)": lambda ax: plots.path([[0, 1]], [0, 1], ax=ax),
    "curves is empty": lambda ax: plots.path([0, 1], {}, ax=ax),
    r"curves 'a' has the shape \(0, 2\); it must be \(1 or more, 2\)": lambda ax: plots.path(
        [0, 1], {"a": np.zeros((0, 2))}, ax=ax
    ),
    "curves 'a' must be numbers: .* 'x'": lambda ax: plots.path([0, 1], {"a": ["x", "y"]}, ax=ax),
    "values has none that is positive and finite": lambda ax: plots.levels(),
    r"values has the shape \(0,\)": lambda ax: plots.levels([]),
    "s and t have 1 and 5 numbers; two of each": lambda ax: plots.plane([0.0], T, BOWL[:, :1], ax=ax),
    "s and t have 9 and 1 numbers; two of each": lambda ax: plots.plane(S, [0.0], BOWL[:1], ax=ax),
    "s and t have 9 and 5 numbers; two of each": lambda ax: plots.plane(0 * S, T, BOWL, ax=ax),
    r"values has the shape \(9, 5\); it must be \(5, 9\)": lambda ax: plots.plane(S, T, BOWL.T, ax=ax),
    r"s has the shape \(0,\)": lambda ax: plots.plane([], [], np.zeros((0, 0)), ax=ax),
    r"at is \[1.0\]; it must be two levels or more": lambda ax: plots.plane(S, T, BOWL, at=[1.0], ax=ax),
    r"at is \[0, 1\]; .* from above 0 upwards": lambda ax: plots.plane(S, T, BOWL, at=[0, 1], ax=ax),
    "values 'F1' must be numbers: int too large": lambda ax: plots.sharpness({"F1": {"SB": {0: 10**400}}}, ax=ax),
    "values must be network -> side -> seed -> value": lambda ax: plots.sharpness({}, ax=ax),
    "values must be network -> side -> seed": lambda ax: plots.sharpness({"F1": {"SB": {}}}, ax=ax),
    "values must be network -> side": lambda ax: plots.sharpness({"SB": {0: 1.0}}, ax=ax),
    "histories has no epoch of any seed: ": lambda ax: plots.accuracy({}, ax=ax),
    "histories has no epoch of any seed:": lambda ax: plots.accuracy({"SB": []}, ax=ax),
    "histories has no epoch of any seed": lambda ax: plots.accuracy({"SB": [history(), {}]}, ax=ax),
    "the number of panels is 0; it must be 1 or more": lambda ax: plots.panels([]),
    "the number of panels is 0; it must be 1": lambda ax: plots.intervals(["a"], {}),
    r"panels 'x' has the shape \(1, 0\); it must be \(1 or more, 3\)": lambda ax: plots.intervals(
        [], {("x", "y"): {"s": []}}
    ),
    r"panels 'x' has the shape \(1, 3\); it must be \(2, 3\)": lambda ax: plots.intervals(
        ["a", "b"], {("x", "y"): {"s": [(0, 0, 1)]}}
    ),
    r"line 'a' has the shape \(2,\); it must be \(1,\)": lambda ax: log_log([1], [1, 2]),
    r"curve 'a' has the shape \(1,\); it must be \(2,\)": lambda ax: plots.seeds([([1, 2], [1])], "a", "here"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_drawn_is_refused_by_its_name(empty, words):
    with pytest.raises(ValueError, match=words) as caught:
        REFUSED[words](empty)
    assert "\n" not in str(caught.value)


def test_seeds_of_one_point_are_dots_and_those_without_any_left_out():
    lines = plots.seeds([([0.5], [1.0]), ([0.5], [MOST]), ([], [])], "a", "here")
    assert [(line.marker, line.y.tolist()) for line in lines] == [(".", [1.0]), (".", [1e250]), (".", [5e249])]


def test_an_axis_with_nothing_above_0_stays_linear():
    (ax,) = log_log([0, -1], [1, NAN]).axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log") and ax.xaxis_inverted()


def test_the_same_figure_gives_the_same_bytes():
    images = []
    for _ in range(2):
        figure, (ax,) = plots.axes(1)
        plots.path([0, 1], {"SB": [0, 1]}, ax=ax).set_title("a title")
        images.append(plots.image(figure))
    assert images[0] == images[1] and images[0].startswith(b"<?xml") and b"a title" in images[0]
    assert ax.title.get_fontsize() == 9


def test_importing_it_loads_no_plotting_backend():
    code = "import sys, gengap.plots; sys.exit(bool({'matplotlib.pyplot', 'jax'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
