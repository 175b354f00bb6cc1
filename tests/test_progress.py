"""Progress: a line that vanishes on a terminal, a plain one once a minute elsewhere, and nothing unasked."""

import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gengap import hessian, landscape, measures, processes, progress, sharpness, theories, train
from tests import fake


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    """Standard error becomes a terminal of so many columns."""

    def of(columns):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns + 1))  # the last one stays free

    return of


def last_shown(capsys):
    """The text of the last line that was drawn, and nothing below it."""
    return capsys.readouterr().err.split("\r")[-1].rstrip()


def test_without_a_terminal_there_is_a_line_once_a_minute(clock, capsys):
    with progress.line("F1 seed 2 of 5, LB", 100, "epoch", done=9) as line:
        for seconds in (30, 29, 1, 59, 1):
            clock[0] += seconds
            line.update(1, {"train_loss": 0.03125, "test_loss": 1}, at_most=True)
    assert capsys.readouterr() == (
        "",
        "F1 seed 2 of 5, LB: epoch 12 of 100, at most 22 min left, train_loss 0.0312, test_loss 1\n"
        "F1 seed 2 of 5, LB: epoch 14 of 100, at most 32 min left, train_loss 0.0312, test_loss 1\n",
    )


def test_short_work_says_nothing(clock, capsys):
    with progress.line("F1", 2, "draw") as line:
        clock[0] += 59
        line.update(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_nothing_is_shown_unasked(clock, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with progress.line(None, 2, "draw") as line:
        clock[0] += 300
        line.update(1, {"value": 1.0})
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_one_line_that_vanishes(clock, capsys, terminal):
    terminal(80)
    with pytest.raises(KeyboardInterrupt), progress.line("F1", 4, "epoch", done=1) as line:
        clock[0] += 90
        line.update()  # with the compiler, which says nothing of the others
        clock[0] += 5
        line.update(1, {"train_loss": 0.25, "accuracy": 0.5})
        raise KeyboardInterrupt
    out, shown = capsys.readouterr()
    assert out == "" and "\n" not in shown
    assert "| epoch 3 of 4, about 5 s left, train_loss 0.25, accuracy 0.5" in shown
    assert shown.rsplit("\r", 2)[1].strip() == "" and shown.endswith("\r")


def test_a_bar_appears_after_two_seconds(clock, capsys, terminal):
    terminal(80)
    with progress.line("full space", 30, "gradient") as line:
        for _ in range(19):
            clock[0] += 0.1
            line.update()
    assert capsys.readouterr().err == ""
    with progress.line("full space", 30, "gradient") as line:
        for _ in range(21):
            clock[0] += 0.1
            line.update()
        assert last_shown(capsys).startswith("full space: |")


def test_nothing_is_cut_and_a_bar_is_never_short(clock, capsys, terminal):
    words, facts = "F1 seed 2 of 5, LB", ["epoch 10 of 100", "about 45 s left", "train_loss 0.0312", "test_loss 1"]
    for columns in range(1, 130):
        terminal(columns)
        with progress.line(words, 100, "epoch") as line:
            clock[0] += 5
            line.update(5)
            clock[0] += 2.5
            line.update(5, {"train_loss": 0.03125, "test_loss": 1.0})
            shown = last_shown(capsys)
        name, bar, said = re.fullmatch(rf"({words}: )?(\|.{{10}}\| )?(.*)", shown).groups()
        assert said == ", ".join(facts[: said.count(", ") + 1] if shown else [])
        assert len(shown) <= columns and bool(shown) == (columns >= len(facts[0]))
        assert bool(name) == (columns >= len(f"{words}: {facts[0]}"))
        assert bool(bar) == (columns >= len(f"{words}: |{10 * ' '}| {facts[0]}, {facts[1]}"))


def test_the_outer_line_counts_the_row_that_is_under_way_and_its_time_runs_on(clock, capsys, terminal):
    terminal(80)
    with progress.line("digits", 10, "row", outer=True) as rows:
        assert last_shown(capsys) == "digits: row 1 of 10"
        clock[0] += 60
        rows.update()
        clock[0] += 60
        rows.update()
        assert last_shown(capsys) == "digits: row 3 of 10, about 8 min left"
        with progress.line("F1, SB", 10, "epoch") as epochs:
            clock[0] += 30
            epochs.update()
            shown = capsys.readouterr().err
        assert "F1, SB: |" in shown and "digits: row 3 of 10, about 8 min left" in shown
        clock[0] += 30 * 8
        assert rows.fitting(80, " #") == "digits: row 3 of 10, about 4 min left"
        clock[0] += 60 * 8
        assert rows.fitting(80, " #") == "digits: row 3 of 10"


def test_the_time_left_knows_how_many_rows_are_computed_at_the_same_time(clock):
    with progress.line("mnist", 10, "row", 2, outer=True, at_once=4) as rows:
        clock[0] += 600
        rows.update()  # three others are nearly done
        assert rows.fitting(80, " #") == "mnist: row 4 of 10, about 18 min left"
        rows.update(3)
        assert rows.fitting(80, " #") == "mnist: row 7 of 10, about 10 min left"
        clock[0] += 600
        rows.update(3)
        assert rows.fitting(80, " #") == "mnist: row 10 of 10, about 2 min left"


def test_a_line_without_a_finished_unit_has_no_time_left(clock, capsys):
    with progress.line("F1", 3, "row", outer=True) as line:
        clock[0] += 60
        line.update(0)
    assert capsys.readouterr().err == "F1: row 1 of 3\n"


# Measures


def slowly(clock):
    """A loss that takes a second of the clock at each gradient."""

    def loss(x):
        jax.debug.callback(lambda: clock.__setitem__(0, clock[0] + 1.0))
        return 1 + jnp.sum(x**2)

    return loss


KEY = jax.random.key(0)
PATH = landscape.linear(jnp.zeros(3), jnp.ones(3))
PLANE = landscape.Plane(jnp.ones(3), jnp.eye(3)[0], jnp.eye(3)[1])
FEW = {"num_draws": 1, "dim": 2, "max_evaluations": 6, "num_directions": 1}
MEASURES = {
    "full space": lambda f, **how: sharpness.full_space(f, jnp.ones(3), KEY, max_evaluations=6, **how),
    "random subspaces": lambda f, **how: sharpness.random_subspaces(f, jnp.ones(3), KEY, **FEW, **how),
    "by layer": lambda f, **how: sharpness.by_layer(
        lambda p: f(p["a"]), {"a": jnp.ones(3)}, KEY, max_evaluations=6, **how
    ),
    "Hessian eigenvalues": lambda f, **how: hessian.eigenpairs(f, jnp.ones(3), KEY, k=3, **how),
    "Hessian trace": lambda f, **how: hessian.trace(f, jnp.ones(3), KEY, **how),
    "Hessian density": lambda f, **how: hessian.density(f, jnp.ones(3), KEY, num_products=1, **how),
    "path": lambda f, **how: landscape.along(f, PATH, [0.0, 1.0, 2.0, 3.0], **how),
    "plane": lambda f, **how: landscape.over(f, PLANE, [0.0, 1.0], [0.0, 2.0], **how),
    "curve": lambda f, **how: landscape.connect(lambda x, _: f(x), *PATH.points, KEY, steps=4, **how),
    "neighbourhood": lambda f, **how: landscape.neighbourhood(f, jnp.ones(3), KEY, **how),
    "worst case": lambda f, **how: measures.worst_case(f, jnp.ones(3), KEY, **how),
    "worst case, box": lambda f, **how: measures.worst_case_linf(f, jnp.ones(3), KEY, **how),
    "average case": lambda f, **how: measures.average_case(f, jnp.ones(3), KEY, **how),
    "PAC-Bayes sigma": lambda f, **how: measures.pac_bayes_sigma(f, jnp.ones(3), KEY, **how),
    "relative flatness": lambda f, **how: measures.relative_flatness(
        lambda w: f(w.sum(1)), jnp.ones((3, 1)), KEY, layer=(), **how
    ),
    "Fisher trace": lambda f, **how: measures.fisher_trace(
        lambda x, rows: f(x) * rows, jnp.ones(3), jnp.ones((4, 2)), KEY, **how
    ),
    "noise scale": lambda f, **how: measures.noise_scale(
        lambda x, rows, _: f(x) * rows.mean(), jnp.ones(3), jnp.ones((4, 2)), jnp.ones(4, int), KEY, **how
    ),
    "description length": lambda f, **how: theories.description_length(
        f, jnp.ones(3), KEY, examples=9, rise=0.1, **how
    ),
    "evidence": lambda f, **how: theories.evidence(f, jnp.ones(3), KEY, examples=9, **how),
    "free energy": lambda f, **how: theories.free_energy(
        f, jnp.ones(3), KEY, width=0.1, examples=9, num_steps=10, **how
    ),
}


@pytest.mark.filterwarnings("ignore")  # of so few samples
@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_shows_a_bar_with_its_name_on_a_terminal(clock, capsys, monkeypatch, name):
    slow, measure = slowly(clock), MEASURES[name]
    measure(slow)
    assert capsys.readouterr() == ("", "")  # no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    measure(slow)
    assert f"{name}: |" in capsys.readouterr().err
    measure(slow, progress=None)
    assert capsys.readouterr() == ("", "")
    measure(lambda x: 1 + jnp.sum(x**2))
    assert capsys.readouterr() == ("", "")  # no second passed
    with progress.line("digits", 10, "row", outer=True):
        capsys.readouterr()
        measure(slow)
        assert name not in capsys.readouterr().err


@pytest.mark.parametrize("measure", [partial(sharpness.full_space, max_evaluations=6), hessian.trace])
def test_a_measure_that_is_traced_shows_nothing(capsys, terminal, monkeypatch, measure):
    terminal(80)
    monkeypatch.setattr(progress, "_SECONDS_BEFORE_A_BAR", 0.01)
    jax.jit(lambda x: measure(lambda x: 1 + x @ x, x, KEY).value)(jnp.ones(3))
    assert capsys.readouterr() == ("", "")


# The time left of a training


@pytest.mark.parametrize(
    ("losses", "left", "patience", "target", "may_end"),
    [
        ([3.0, 2.0], 5, None, None, False),
        ([3.0, 2.0], 5, None, 0.1, True),
        ([3.0, 2.0], 5, 3, None, True),
        ([3.0, 2.0], 3, 3, None, False),  # the fifth epoch is the first that can end it, and the last
        ([3.0, 2.0, 2.0, 2.0], 1, 3, None, False),
        ([3.0, 2.0, 2.0], 2, 3, None, False),
        ([3.0, 2.0, 2.0], 3, 3, None, True),
        ([3.0], 0, 3, None, False),
    ],
)
def test_a_training_may_end_early_until_no_rule_can_end_it(losses, left, patience, target, may_end):
    found = train._may_end_early({"train_loss": np.array(losses)}, left, patience, 1e-3, target)
    assert found == may_end


@pytest.mark.parametrize(("jobs", "at_once"), [(None, 1), (2, 2), (9, 4)])
def test_a_run_tells_its_line_how_many_rows_are_computed_at_the_same_time(monkeypatch, jobs, at_once):
    told, line = [], progress.line
    monkeypatch.setattr(processes, "computed", lambda work, cells, count: ((c, {}) for c in cells))
    monkeypatch.setattr(progress, "line", lambda *of, **how: told.append(how) or line(*of, **how))
    fake.run(jobs=jobs)
    assert [how["at_once"] for how in told] == [at_once]


def test_the_rows_of_a_run_are_the_outer_line(capsys, terminal):
    terminal(80)
    fake.run()
    shown = capsys.readouterr().err
    assert "row 1 of 4" in shown and shown.endswith("\r")
