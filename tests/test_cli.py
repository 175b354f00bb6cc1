"""The command line: one sentence and exit code 2 for whatever is wrong, and nothing trained before it."""

import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from experiments import cifar, digits
from gengap import cli, minima

ROOT = Path(__file__).parents[1]


class Inner(NamedTuple):
    epochs: int = 3
    """epochs"""
    epsilons: tuple[float, ...] = (1e-3, 5e-4)
    """sizes"""


class Toy(NamedTuple):
    """A toy."""

    dataset: Literal["a", "b"] = "a"
    """which"""
    inner: Inner = Inner()


def unused(*args, **how):
    pytest.fail("it ran")


def toy(args, run=unused):
    cli.main("toy", run, Toy(), "What a toy does.", args)


def ends(capsys, code, call, *args):
    """Assert that a call ends with `code` and one line on standard error; return the line."""
    with pytest.raises(SystemExit) as end:
        call(*args)
    said = capsys.readouterr()
    assert end.value.code == code
    assert said.out == ""
    line = said.err.removeprefix("\n") if code == 130 else said.err  # the first ends the line with the ^C
    assert line.endswith("\n") and line.count("\n") == 1 and "Traceback" not in line
    return line


def test_flags_reach_the_run_and_its_report_the_directory(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    given = []

    def run(*args, **how):
        given.append((args, how))
        return {"experiment": "toy", "complete": True, "rows": []}

    toy(["--epochs", "5", "--epsilons", "0.1", "--fresh"], run)
    ((config, out), how) = given[0]
    assert config == Toy(inner=Inner(5, (0.1,)))
    assert out == Path("results/toy/epochs=5,epsilons=0.1")
    assert how == {"fresh": True, "data_dir": None}
    assert (out / "report.html").exists() and str(out / "report.html") in capsys.readouterr().out
    toy(["--out", "elsewhere", "--data-dir", "sets"], run)
    assert given[1] == ((Toy(), Path("elsewhere")), {"fresh": False, "data_dir": Path("sets")})


def test_the_defaults_are_the_config_that_is_handed_in():
    config = Toy("b", Inner(7))
    assert cli.parse(config, "", [])[0] == config
    assert cli.parse(config, "", ["--epochs", "8"])[0] == Toy("b", Inner(8))


def test_flat_joins_the_settings():
    assert cli.flat(Toy()) == {"dataset": "a", "epochs": 3, "epsilons": (1e-3, 5e-4)}


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--nope"], "--nope"),
        (["--epochs", "five"], "--epochs"),
        (["--epochs"], "--epochs"),
        (["--dataset", "c"], "--dataset"),
        (["stray"], "stray"),
        (["--epoch", "3"], "--epoch"),
        (["--a-very-long-flag-that-does-not-fit-into-a-narrow-box-of-eighty-columns", "3"], "eighty-columns"),
    ],
)
def test_a_wrong_flag_is_one_sentence(capsys, args, word):
    line = ends(capsys, 2, toy, args)
    assert word in line and "--help" in line
    assert not set(line) & set("│╭╰─")


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as end:
        toy(["--help"])
    said = capsys.readouterr()
    assert not end.value.code and said.err == ""
    for words in ("What a toy does.", "--epochs", "--dataset", "--out", "--fresh", "--data-dir"):
        assert words in said.out


def raising(error):
    def run(*args, **how):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("dim is 0;\n  it must be more"), 2),
        (FileNotFoundError("no data set\nhere"), 2),
        (PermissionError(13, "Permission denied", "/data"), 2),
        (NotADirectoryError(20, "Not a directory", "a/b"), 2),
    ],
)
def test_what_is_wrong_with_the_world_is_one_sentence(capsys, error, code):
    line = ends(capsys, code, toy, [], raising(error))
    assert all(word in line for word in str(error).split())


def test_an_interruption_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(cli.os, "_exit", sys.exit)
    assert "goes on" in ends(capsys, 130, toy, [], raising(KeyboardInterrupt()))


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        toy([], raising(ZeroDivisionError()))


def started(*args):
    pytest.fail("training began")


IMPOSSIBLE = [
    "--num-seeds 0",
    "--epochs 0",
    "--epsilons 0",
    "--epsilons nan",
    "--epsilons",
    "--train-size 10000000",
    "--small-batch 0",
    "--small-batch nan",
    "--small-batch inf",
    "--large-batch 0",
    "--large-batch 2000",
    "--dim 0",
    "--dim 100000000",
    "--num-draws 0",
    "--max-evaluations 0",
    "--chunk 0",
    "--patience 0",
    "--clip 2",
    "--dataset nothing-of-this-name",
]


@pytest.mark.parametrize("flags", IMPOSSIBLE)
def test_impossible_values_are_refused_before_training_and_leave_nothing(capsys, monkeypatch, tmp_path, flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minima.train, "_step", started)
    args = [*flags.split(), "--data-dir", str(tmp_path)]
    line = ends(capsys, 2, cli.main, "digits", digits.run, digits.CONFIG, "", args)
    assert len(line) > 20
    assert not list(tmp_path.iterdir())


def test_a_network_of_another_data_set_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = ["--network", "c3", "--dataset", "cifar10"]
    line = ends(capsys, 2, cli.main, "cifar", cifar.run, cifar.CONFIG, "", args)
    assert "c3" in line and "cifar10" in line and "c1, c2" in line
    assert not list(tmp_path.iterdir())


def test_a_run_directory_that_is_a_file_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(minima.train, "_step", started)
    (tmp_path / "file").write_text("")
    args = ["--out", str(tmp_path / "file")]
    assert str(tmp_path / "file") in ends(capsys, 2, cli.main, "digits", digits.run, digits.CONFIG, "", args)


def test_a_process_ends_with_one_line(tmp_path):
    command = [sys.executable, "-m", "experiments.digits", "--nope"]
    environment = {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "COLUMNS": "40", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "--nope" in done.stderr and "Traceback" not in done.stderr
