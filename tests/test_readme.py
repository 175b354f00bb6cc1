"""Every command of the README: make knows it, and it runs at toy size on a fresh copy and leaves git clean."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gengap
from experiments.lib import command
from gengap import data, models
from gengap.comparison import QUICK, column

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    {
        found[0].split("  #")[0].strip()
        for found in re.finditer(r"(?<=`)make [^`]+(?=`)|^    make .*$", (ROOT / "README.md").read_text(), re.M)
    }
)
RUNS = [one for one in COMMANDS if re.search(r"\b(exp-|paper)", one) and "VENV" not in one and "ACCEL" not in one]


def words(line: str) -> tuple[list[str], list[str]]:
    """The words of a make command, and the flags in its ARGS."""
    found = shlex.split(line)[1:]
    return found, [flag for word in found if word.startswith("ARGS=") for flag in shlex.split(word[5:])]


def experiment(line: str) -> str:
    target = next(word for word in words(line)[0] if word.startswith("exp-") or word == "paper")
    return target.removeprefix("exp-")


def test_the_readme_has_commands() -> None:
    assert {"make exp-digits", "make test", "make exp-mnist", "make exp-cifar", "make paper"} <= set(COMMANDS)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_example_runs_and_shows_what_compare_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer digits, a smaller network and a quick metric."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    code = [line.removeprefix(">>> ") for line in example.splitlines() if line.startswith(">>> ")]
    shown = [line for line in example.splitlines() if re.match(r" *[a-z].*  ", line)]
    digits, compare = data.head(data.load("digits"), 100), gengap.compare
    quick = {"metric": QUICK._replace(dim=2), "progress": None}
    with monkeypatch.context() as patch:
        patch.setattr(data, "load", lambda name: digits)
        patch.setattr(models, "f1", lambda classes: models.dense(classes, widths=(8,)))
        patch.setattr(gengap, "compare", lambda *args, **known: compare(*args, **known | quick))
        names: dict = {}
        exec("\n".join(code[:-1]), names)
        printed = repr(eval(code[-1], names)).splitlines()

    def labels(lines: list[str]) -> list[str]:
        rows = [line.strip() for line in lines if re.match(r" *[a-z].*  ", line)]
        return [re.split(r"  +| (?=\d*\.\d)", line)[0] for line in rows]

    assert labels(printed) == labels(shown) and len(shown) == 8


@pytest.mark.parametrize("line", COMMANDS)
def test_make_knows_the_command(line: str) -> None:
    done = subprocess.run(["make", "--dry-run", *words(line)[0]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", RUNS)
def test_the_flags_are_known(line: str) -> None:
    module = importlib.import_module(f"experiments.{experiment(line)}")
    command.parse(module.CONFIG, words(line)[1])


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "experiments").glob("*.py")])
def test_an_experiment_says_how_it_is_run(name: str) -> None:
    module = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "CONFIG"):
        assert re.search(rf"make exp-{name}|make {name}|-m experiments\.{name}", module.__doc__)


def test_the_readme_says_what_flattens_as_the_factorial_has_it() -> None:
    found = (ROOT / "published/causes/default/report.md").read_text()

    def factors(moves: str, what: str) -> dict[str, str]:
        """Each factor that moves a sharpness and by how much, the strongest first."""
        line = re.search(rf"- Factors that {moves} {what}: (.*)", found)
        assert line
        return dict(re.findall(r"(\w+) \((?:by a factor of )?([-+\d.]+)", line[1]))

    full = factors("lower", "sharpness in the full space")
    random = factors("lower", "sharpness in random subspaces")
    assert list(full)[:3] == ["rate", "noise", "updates"] and list(random) == ["updates", "rate"]
    said = " ".join((ROOT / "README.md").read_text().split())
    assert f"{random['updates']} times in random subspaces and {full['updates']} times in the full space." in said
    assert (
        f"There a higher rate ({full['rate']} times) and noise ({full['noise']} times) flatten more, but both "
        "lower the test accuracy."
    ) in said
    assert {"noise", "rate"} <= factors("lower", "test accuracy").keys()
    noise = factors("raise", "sharpness in random subspaces")["noise"]
    assert f"In random subspaces noise sharpens {noise} times." in said


def results(name: str, flags: str, out: Path) -> list[dict]:
    """The rows that an experiment leaves, run as make runs it."""
    run = [sys.executable, "-m", f"experiments.{name}", *shlex.split(flags), "--out", str(out)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "report.html").exists() and "Table 4" in done.stdout
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


@pytest.mark.data
def test_exp_digits_finds_large_batch_minima_sharper_in_every_seed(tmp_path: Path) -> None:
    """In the full space, at losses below the same target; in random subspaces on average at the larger epsilon."""
    rows = results("digits", "", tmp_path / "run")
    assert len(rows) == 10 and all(row["train_loss"] < 0.003 and row["train_accuracy"] > 0.99 for row in rows)
    values = {
        (space, side): np.array([[r[column(space, e)] for e in (1e-3, 5e-4)] for r in rows if r["side"] == side])
        for space in ("full", "random")
        for side in ("SB", "LB")
    }
    assert values["full", "SB"].shape == (5, 2) and (values["full", "LB"] > values["full", "SB"]).all()
    assert np.log(values["random", "LB"][:, 0]).mean() > np.log(values["random", "SB"][:, 0]).mean()


@pytest.mark.data
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="needs CIFAR-10 in TFDS_DATA_DIR")
def test_exp_cifar_at_reduced_size(tmp_path: Path) -> None:
    small = "--network c1 --num-seeds 1 --train-size 200 --epochs 1 --epsilons 1e-3"
    rows = results("cifar", f"{small} --max-evaluations 3 --num-draws 1 --num-directions 1", tmp_path / "run")
    assert [row["side"] for row in rows] == ["SB", "LB"]
    assert all(row["sharpness_full_1e-3"] > 0 and "sharpness_full_5e-4" not in row for row in rows)


@pytest.mark.data
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="needs MNIST and CIFAR-10 in TFDS_DATA_DIR")
def test_every_command_runs_on_a_fresh_copy_and_leaves_it_clean(tmp_path: Path) -> None:
    """As a new user runs them, but with few examples and no long training."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "gengap")], check=True)
    few = "--train-size 200 --epochs 1 --num-seeds 1"
    small = "--epochs 1 --num-seeds 1 --max-evaluations 2"
    toy = {  # the others take minutes even so, and run at toy size in the tests of experiments
        "digits": f"--train-size 200 {small} --num-draws 1 --num-directions 1",
        "mnist": f"--train-size 200 {small} --num-draws 1 --num-directions 1",
        "cifar": f"--train-size 150 {small} --num-draws 1 --num-directions 1 --network c1",
        "correlation": "--train-size 200 --epochs 1 --num-seeds 1 --examples 50 --widths 4 8 --batch-sizes 50 100",
        "choices": "--train-size 400 --epochs 1 --examples 100 --num-draws 1 --max-evaluations 2 --stages 1",
        "batch_size": f"--train-size 200 {small}",
        "trajectory": f"--train-size 200 {small} --points 2",
        "warm_start": f"--train-size 200 {small} --starts 2",
        "landscape": f"{few} --examples 100 --points 4 --side 3 --num-directions 3 --steps 2",
        "paper": few,
        "averages": few,
    }
    for line in RUNS:
        name = experiment(line)
        if name not in toy or "cifar100" in line:
            continue
        flags = toy[name]
        run = [sys.executable, "-m", f"experiments.{name}", *words(line)[1], *shlex.split(flags)]
        done = subprocess.run(run, cwd=tmp_path / "gengap", capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
        assert "The report is in results/" in done.stdout
    status = ["git", "-C", str(tmp_path / "gengap"), "status", "--porcelain"]
    assert subprocess.run(status, capture_output=True, text=True).stdout == ""
    shutil.rmtree(tmp_path / "gengap")


def test_make_refuses_a_variable_that_it_does_not_know() -> None:
    line = ["make", "--dry-run", "exp-landscape", "DATASET=mnist"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "no variable DATASET" in done.stderr and "ARGS" in done.stderr
