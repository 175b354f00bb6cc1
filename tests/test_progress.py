"""Progress: a line that vanishes on a terminal, a plain one once a minute elsewhere, and nothing unasked."""

import sys

import pytest

from gengap import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_once_a_minute(clock, capsys):
    with progress.line("F1 seed 2 of 5, LB", 100, "epoch", done=9) as line:
        for seconds in (30, 29, 1, 59, 1):
            clock[0] += seconds
            line.update(1, {"train_loss": 0.03125, "test_loss": 1})
    assert capsys.readouterr() == (
        "",
        "F1 seed 2 of 5, LB: epoch 12 of 100, train_loss 0.0312, test_loss 1, 20 s per epoch\n"
        "F1 seed 2 of 5, LB: epoch 14 of 100, train_loss 0.0312, test_loss 1, 24 s per epoch\n",
    )


def test_short_work_says_nothing(clock, capsys):
    with progress.line("F1", 2, "draw") as line:
        clock[0] += 59
        line.update(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_unasked(clock, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress.line(None, 2, "draw") as line:
        clock[0] += 300
        line.update(1, {"value": 1.0})
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_one_line_that_vanishes_with_the_first_value_first(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(KeyboardInterrupt), progress.line("F1", 3, "epoch", done=1) as line:
        line.update(1, {"train_loss": 0.25, "accuracy": 0.5})
        line._bar.refresh()
        raise KeyboardInterrupt
    out, shown = capsys.readouterr()
    assert out == "" and "\n" not in shown
    assert "F1:  67%" in shown and "2/3" in shown and "train_loss=0.25, accuracy=0.5" in shown
    assert shown.rsplit("\r", 2)[1].strip() == "" and shown.endswith("\r")


def test_nothing_done_yet_has_a_pace(clock, capsys):
    with progress.line("F1", 3, "row", shows_rest=True) as line:
        clock[0] += 60
        line.update(0, words="SB")
    assert capsys.readouterr().err == "F1: row 0 of 3, about 3 min left, SB\n"
