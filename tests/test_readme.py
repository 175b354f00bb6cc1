"""Every command of the README: that make knows it and its flags are right; where there are data, that it runs."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gengap import cli

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    {
        found[0].split("  #")[0].strip()
        for found in re.finditer(r"(?<=`)make [^`]+(?=`)|^    make .*$", (ROOT / "README.md").read_text(), re.M)
    }
)


def arguments(command: str) -> tuple[list[str], list[str]]:
    """The words of a make command, and the flags in its ARGS."""
    words = shlex.split(command)[1:]
    return words, [flag for word in words if word.startswith("ARGS=") for flag in shlex.split(word[5:])]


def test_the_readme_has_commands() -> None:
    assert {"make exp-digits", "make test", "make exp-mnist", "make exp-cifar"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_make_knows_the_command(command: str) -> None:
    words, _ = arguments(command)
    done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if "exp-" in command and "ARGS" in command])
def test_the_flags_are_known(command: str) -> None:
    words, flags = arguments(command)
    name = next(word.removeprefix("exp-") for word in words if word.startswith("exp-"))
    experiment = importlib.import_module(f"experiments.{name}")
    if "--help" not in flags:
        cli.parse(experiment.CONFIG, experiment.__doc__, flags)


def results(name: str, flags: str, out: Path) -> list[dict]:
    """The rows that an experiment leaves, run as make runs it."""
    command = [sys.executable, "-m", f"experiments.{name}", *shlex.split(flags), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "report.html").exists()
    assert "Table 4" in done.stdout
    return json.loads((out / "summary.json").read_text())["rows"]


@pytest.mark.data
def test_exp_digits_finds_large_batch_minima_sharper_in_every_seed(tmp_path: Path) -> None:
    rows = results("digits", "", tmp_path / "run")
    assert len(rows) == 10
    assert all(row["train_accuracy"] == 1 for row in rows)
    value = {
        (row["method"], row["seed"], entry["space"], entry["epsilon"]): entry[
            "value" if entry["space"] == "full" else "mean"
        ]
        for row in rows
        for entry in row["sharpness"]
    }
    assert len(value) == 40
    small = {key[1:]: v for key, v in value.items() if key[0] == "SB"}
    assert all(value["LB", *key] > v for key, v in small.items())


@pytest.mark.data
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="needs CIFAR-10 in TFDS_DATA_DIR")
def test_exp_cifar_at_reduced_size(tmp_path: Path) -> None:
    command = next(command for command in COMMANDS if "--network c1" in command)
    _, flags = arguments(command)
    rows = results("cifar", shlex.join(flags), tmp_path / "run")
    assert [row["method"] for row in rows] == ["SB", "LB"]
    assert all(len(row["sharpness"]) == 2 for row in rows)
