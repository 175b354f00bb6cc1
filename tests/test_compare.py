"""Two minima of one loss: quadratics, whose numbers are known in closed form."""

import inspect
import subprocess
import sys
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import gengap
from gengap import __main__ as command
from gengap import comparison

KEY = jax.random.key(0)
CURVATURES = {"SB": np.array([1.0, 0.5, 0.25, 0.1]), "LB": np.array([8.0, 4.0, 2.0, 0.1])}
PLACES = {"SB": np.zeros(4), "LB": np.array([3.0, 4.0, 0.0, 0.0])}
METRIC = comparison.Metric(epsilons=(0.05, 0.01), dim=2, num_draws=2, max_evaluations=6, num_directions=1)


def loss(params):
    """1 at two minima, of which the nearer one counts."""
    x = params["x"]
    wells = [jnp.sum(h * (x - PLACES[name]) ** 2) / 2 for name, h in CURVATURES.items()]
    return 1 + jnp.minimum(*wells)


def at(name, shift=0.0):
    return {"x": jnp.asarray(PLACES[name] + shift, jnp.float32)}


@pytest.fixture(scope="module")
def pair():
    minima = {"SB": at("SB"), "LB": at("LB")}
    test = lambda p: (loss(p) + 1, jnp.float32(0.75))  # noqa: E731
    own = {"largest": lambda f, p, key: jnp.max(p["x"]), "worst": gengap.measures.worst_case}
    return gengap.compare(minima, loss, KEY, test=test, start=at("SB"), metric=METRIC, measures=own, progress=None)


def test_every_number_has_its_closed_form(pair):
    frame = pair.frame().set_index("minimum")
    for name, h in CURVATURES.items():
        row = frame.loc[name]
        assert row["train_loss"] == 1 and row["test_loss"] == 2 and row["test_accuracy"] == 0.75
        assert row["gradient_length"] == pytest.approx(0, abs=1e-6)
        assert row["hessian_top"] == pytest.approx(h[0], rel=1e-4)
        assert abs(row["hessian_trace"] - h.sum()) <= 1e-4 + 4 * row["hessian_trace_sem"]
        rise = np.sum(h * (0.05 * (np.abs(PLACES[name]) + 1)) ** 2) / 2
        assert row["sharpness_full_5e-2"] == pytest.approx(100 * rise / 2, rel=1e-3)
        assert row["largest"] == PLACES[name].max()
    assert frame["distance"].tolist() == [0, pytest.approx(5)]
    assert frame.loc["LB", "worst"] == pytest.approx(8 * 0.05**2 / 2, rel=1e-3)  # rho^2 lambda_1 / 2


def test_the_numbers_are_those_of_measure(pair):
    row = comparison.measure(loss, at("LB"), jax.random.fold_in(KEY, 0), METRIC)
    ours = pair.rows[1]
    assert {name: ours[name] for name in row} == row


def test_the_table_has_a_line_for_each_number_and_the_ratio(pair):
    table = pair.table().set_index("")
    assert table.columns.tolist() == ["SB", "LB", "LB / SB"]
    assert table.loc["largest eigenvalue of the Hessian", "LB / SB"] == "× 8"
    assert table.loc["test accuracy"].tolist() == ["0.75", "0.75", "+0"]
    assert " ± " in table.loc["sharpness, random subspaces, epsilon 1e-2 (%)", "SB"]
    assert table.loc["distance from the start"].tolist() == ["0", "5", "+5"]
    assert "largest" in table.index and not [name for name in table.index if "linear" in name or "sem" in name]


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.data = []

    def handle_data(self, data):
        self.data += [data.strip()] * bool(data.strip())


def test_it_prints_and_shows_its_table_and_notes(pair):
    text = repr(pair)
    assert "largest eigenvalue of the Hessian" in text and text.endswith(f"- {pair.notes[-1]}")
    cells = Cells()
    cells.feed(pair._repr_html_())
    assert "× 8" in cells.data and pair.notes[-1] in cells.data


def test_the_path_and_the_plane_go_through_the_minima(pair):
    alphas, losses = pair.path
    line = losses["SB to LB"]
    assert line.shape == (1, 25)
    ends = [int(np.flatnonzero(np.isclose(alphas, alpha))[0]) for alpha in (0, 1)]
    np.testing.assert_allclose(line[0, ends], 1, rtol=1e-6)
    half = np.array([-1.5, -2.0, 0, 0])
    assert line[0, 0] == pytest.approx(1 + np.sum(CURVATURES["SB"] * (2 * half) ** 2) / 2, rel=1e-4)
    plane = pair.plane
    assert plane.points["SB"] == (0, 0) and plane.points["LB"] == pytest.approx((5, 0))
    assert plane.loss.shape == (len(plane.t), len(plane.s)) and plane.loss.min() >= 1
    assert "random" in plane.points  # the start is one of the minima


def test_a_start_that_is_no_minimum_spans_the_plane():
    start = {"x": jnp.array([0.0, 0.0, 2.0, 0.0])}
    result = gengap.compare(
        {"a": at("SB"), "b": at("LB")}, loss, KEY, start=start, metric=METRIC, with_hessian=False, progress=None
    )
    assert result.plane.points["start"] == pytest.approx((0, 2))
    assert "hessian_top" not in result.rows[0]


def test_the_page_has_the_table_the_notes_and_three_figures(pair, tmp_path):
    page = pair.report(tmp_path / "page")
    text = page.read_text()
    assert page.name == "report.html" and text.count("data:image/svg+xml") == 3
    assert "Comparison of SB and LB" in text and "largest eigenvalue of the Hessian" in text
    assert (tmp_path / "page/report.md").exists() and len(pair.plot().axes) == 4  # one is a colour bar


def test_seeds_have_means_intervals_and_the_sign_test():
    shifts = (0.0, 0.01, 0.02)
    minima = {name: [at(name, shift) for shift in shifts] for name in CURVATURES}
    metric = METRIC._replace(num_draws=0, epsilons=(0.05,))
    result = gengap.compare(minima, loss, KEY, metric=metric, progress=None)
    assert result.frame()["seed"].tolist() == [0, 1, 2] * 2
    cells = result.table().set_index("").loc["largest eigenvalue of the Hessian"]
    assert cells["LB"].startswith("8 (") and cells["LB / SB"].startswith("× 8 (")
    assert cells["LB / SB"].endswith("larger in 3 of 3 seeds (p = 0.25)")
    assert not [note for note in result.notes if "one seed" in note]
    assert result.path.losses["SB to LB"].shape == (3, 25)


def test_a_minimum_beside_itself_has_a_page_without_a_plane(tmp_path):
    twice = {"a": at("SB"), "b": at("SB")}
    result = gengap.compare(
        twice, loss, KEY, metric=METRIC._replace(num_draws=0), with_hessian=False, progress=None
    )
    with pytest.raises(ValueError, match="a and b are one point; a plane needs two"):
        _ = result.plane
    assert result.report(tmp_path).read_text().count("data:image/svg+xml") == 2


def test_one_minimum_works_too(tmp_path):
    result = gengap.compare({"mine": at("LB")}, loss, KEY, metric=METRIC, progress=None)
    assert result.table().columns.tolist() == ["", "mine"]
    for between in ("path", "plane"):
        with pytest.raises(ValueError, match=f"there is one minimum, mine; a {between} needs two"):
            getattr(result, between)
    assert result.report(tmp_path).read_text().count("data:image/svg+xml") == 1


def test_a_list_is_of_seeds_where_the_loss_takes_what_is_in_it():
    layers = [jnp.ones((3, 2)), jnp.ones(2)]
    metric = METRIC._replace(num_draws=0)
    of_layers = lambda p: 1 + jnp.sum((jnp.ones(3) @ p[0] + p[1] - 4) ** 2)  # noqa: E731
    one = gengap.compare({"net": layers}, of_layers, KEY, metric=metric, with_hessian=False, progress=None)
    two = gengap.compare(
        {"net": [layers, layers]}, of_layers, KEY, metric=metric, with_hessian=False, progress=None
    )
    assert [len(result.rows) for result in (one, two)] == [1, 2]
    with pytest.raises(ValueError, match=r"minima\['net'\] may be one minimum or several seeds; give \[params\]"):
        gengap.compare({"net": [jnp.ones(3), jnp.ones(3)]}, lambda p: jnp.sum(p[0] ** 2), KEY, progress=None)


def unused(loss, params, key):
    """A measure whose name is refused before anything is measured."""
    raise AssertionError


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"minima": {}}, "minima is .*; it must be a dictionary, name -> parameters"),
        ({"minima": {"a": at("SB"), "b": {"x": jnp.zeros(3)}}}, r"params\['x'\] has the shapes"),
        ({"start": {"y": jnp.zeros(4)}}, "different structures"),
        ({"metric": METRIC._replace(dim=9)}, "dim is 9; it must be from 1 to 4"),
        ({"measures": {"train_loss": unused}}, "measures has train_loss, which is measured anyway"),
        ({"measures": {"hessian_top": unused}}, "measures has hessian_top, which is measured anyway"),
        (
            {"test": lambda p: {"loss": 1.0, "accuracy": 0.5}},
            r"test returned .*must return a loss, or \(loss, acc",
        ),
        ({"test": lambda p: jnp.ones(3)}, "test returned .*it must return a loss"),
        ({"test": lambda p: (1.0, 0.5, 2.0)}, "test returned .*it must return a loss"),
        ({"loss": lambda p: p["x"]}, r"loss returned .*it must return a floating-point scalar"),
        ({"key": 3}, "key is 3; it must be one key"),
    ],
)
def test_what_cannot_be_compared_is_named(changed, words):
    arguments = {
        "minima": {"SB": at("SB")},
        "loss": loss,
        "key": KEY,
        "metric": METRIC,
        "progress": None,
    } | changed
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(gengap.compare)(**arguments)


def test_a_bug_in_the_loss_keeps_its_traceback():
    def broken(params):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gengap.compare({"a": at("SB")}, broken, KEY, metric=METRIC, progress=None)


def row(minimum, *, loss=0.1, full=10.0, random=1.0, linear=0.0, seed=0):
    return {
        "minimum": minimum, "seed": seed, "train_loss": loss, "sharpness_full_1e-3": full,
        "sharpness_random_1e-3": random, "linear_full_1e-3": linear,
    }  # fmt: skip


SPACES = [("1e-3", "sharpness_full_1e-3", "sharpness_random_1e-3")]


@pytest.mark.parametrize(
    ("rows", "num_draws", "words"),
    [
        ([row("a", loss=0.1), row("b", loss=0.2)], 3, "losses are not equal, 0.1 of a and 0.2 of b"),
        ([row("a"), row("b", linear=3.0)], 3, "b is no minimum: its gradient alone makes 30 %"),
        ([row("a"), row("b", full=np.nan)], 3, "loss of b was not finite .* lower bound"),
        (
            [row("a", random=20.0), row("b", random=5.0)],
            3,
            "sharper than the full space for a. A is not normalised",
        ),
        ([row("a"), row("b", full=20.0, random=0.5)], 3, "b is sharper in the full space, a in random subspaces"),
        ([row("a"), row("b")], 1, "from a single A"),
        ([row("a"), row("b")], 3, "one seed"),
    ],
)
def test_a_note_says_what_is_weak(rows, num_draws, words):
    fair = [row(name, seed=seed) for name in "ab" for seed in range(3)]
    assert comparison.notes(fair, SPACES, 3) == []
    sentences = comparison.notes(
        [*rows, *(dict(r, seed=1) for r in rows if "one seed" not in words)], SPACES, num_draws
    )
    assert len([sentence for sentence in sentences if pd.Series(sentence).str.contains(words)[0]]) == 1
    assert len(sentences) == 1


def test_a_gradient_that_is_all_of_the_rise_is_no_minimum():
    slope = jnp.array([1.0, -2.0])
    result = gengap.compare({"here": jnp.zeros(2)}, lambda x: 1 + slope @ x, KEY, metric=METRIC, progress=None)
    assert result.rows[0]["linear_full_1e-2"] == pytest.approx(result.rows[0]["sharpness_full_1e-2"], rel=1e-4)
    assert "gradient alone makes 100 %" in result.notes[0]


def test_it_says_first_how_long_it_takes(capsys, monkeypatch):
    said = "compare: about 72 gradients, 0 s without compilation"
    metric = METRIC._replace(num_draws=0)
    gengap.compare({"a": at("SB")}, loss, KEY, metric=metric)
    assert capsys.readouterr().err == ""
    gengap.compare({"a": at("SB")}, loss, KEY, metric=metric, progress="compare")
    assert capsys.readouterr().err.splitlines()[0] == said
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    gengap.compare({"a": at("SB")}, loss, KEY, metric=metric)
    assert said in capsys.readouterr().err


MODEL = """
import jax.numpy as jnp
from helper_of_mine import loss
minima = {"one": jnp.zeros(3), "two": jnp.ones(3)}
"""


@pytest.fixture
def model(tmp_path):
    (tmp_path / "helper_of_mine.py").write_text("def loss(x):\n    return 1 + x @ x * (x - 1) @ (x - 1)\n")
    (tmp_path / "my_model.py").write_text(MODEL)
    return tmp_path / "my_model.py"


def test_from_the_shell(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    flags = ["--num-draws", "1", "--dim", "2", "--max-evaluations", "6", "--epsilons", "1e-2"]
    command.main(["compare", str(model), "--out", str(tmp_path / "page"), *flags])
    out = capsys.readouterr().out
    assert "sharpness, full space, epsilon 1e-2 (%)" in out
    assert out.splitlines()[-1] == str(tmp_path / "page/report.html") and (tmp_path / "page/report.html").exists()


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("minima = 3", [], "does not define loss"),
        (None, [], "is no file"),
        (MODEL, ["--dim", "9"], "dim is 9; it must be from 1 to 3"),
        (MODEL, ["--epsilons", "-1"], "each above 0"),
        (MODEL, ["--nonsense", "1"], "unrecognized arguments"),
        (MODEL, ["--out", "/dev/null"], "must be a directory"),
    ],
)
def test_bad_input_from_the_shell_is_one_sentence(model, text, flags, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    model.write_text(text) if text else model.unlink()
    with pytest.raises(SystemExit) as error:
        command.main(["compare", str(model), "--out", str(model.parent / "page"), *flags])
    assert error.value.code == 2 and words in capsys.readouterr().err


def test_the_module_runs():
    done = subprocess.run([sys.executable, "-m", "gengap", "compare", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "minima" in done.stdout


def test_a_loss_that_is_not_finite_is_said_and_the_others_are_measured():
    endless = lambda x: jnp.where(x[0] > 0, jnp.inf, 1 + x @ x)  # noqa: E731
    minima = {"fine": -jnp.ones(3), "lost": jnp.ones(3)}
    result = gengap.compare(minima, endless, KEY, metric=METRIC._replace(num_draws=0), progress=None)
    assert "The loss of lost is not finite: it has no sharpness." in result.notes
    assert "sharpness_full_1e-2" not in result.rows[1] and result.rows[0]["hessian_top"] == pytest.approx(
        2, rel=1e-3
    )
    assert "nan" in result.table().set_index("").loc["sharpness, full space, epsilon 1e-2 (%)", "lost"]
