"""The command line: one sentence and exit code 2 for whatever is wrong, and nothing trained before it."""

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import pytest

from experiments import digits
from experiments.lib import command
from experiments.lib.command import cache_compilations
from gengap import hosts, minima, records, report

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


def drawn(rows):
    return [report.Section("What came out", [f"{len(rows)} rows."]), report.Section("More", ["More was found."])]


def toy(args, run=unused):
    command.main("toy", run, drawn, Toy(), "What a toy does.", args)


@pytest.fixture(autouse=True)
def uncached(monkeypatch):
    monkeypatch.setattr(command, "cache_compilations", lambda: None)


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

    def run(config, out, *, fresh, jobs):
        given.append((config, out, fresh, jobs))
        with records.opened("toy", {}, out) as made:
            if not made.rows:
                made.add({"seed": 0})
        return made

    flags = ["--epochs", "5", "--epsilons", "0.1", "--fresh"]
    toy(flags, run)
    out = Path("results/toy/epochs=5,epsilons=0.1")
    assert given == [(Toy(inner=Inner(5, (0.1,))), out, True, None)]
    said = capsys.readouterr().out
    assert (out / "report.html").exists() and str(out / "report.html") in said
    assert "1 rows." in said and "More was found." in said
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    toy(flags[:-1], run)
    said = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "Nothing was computed: all 1 rows are there, the last from 20" in said and "More" not in said
    monkeypatch.setenv("TFDS_DATA_DIR", "before")
    toy(["--out", "elsewhere", "--data-dir", "sets", "--jobs", "3"], run)
    assert given[2] == (Toy(), Path("elsewhere"), False, 3) and os.environ["TFDS_DATA_DIR"] == "sets"


def test_where_memory_runs_out_one_sentence_says_what_helps(tmp_path, capsys):
    def run(*args, **known):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 GiB.")

    line = ends(capsys, 2, toy, ["--out", str(tmp_path / "run")], run)
    assert "--chunk" in line and "--shard" in line and "9 GiB" in line

    def broken(*args, **known):
        raise jax.errors.JaxRuntimeError("INTERNAL: of another kind")

    with pytest.raises(jax.errors.JaxRuntimeError, match="another kind"):
        toy(["--out", str(tmp_path / "run")], broken)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hosts", "auto"], "--hosts is auto; it must come with --shard"),
        (["--hosts", "auto", "--shard", "--cluster", "slurm"], "--hosts is auto; it must come with --shard"),
        (["--shard", "--jobs", "2"], "--jobs is 2; it must be 1 with --shard"),
        (["--shard", "--hosts", "auto"], "--hosts: the processes do not find each other"),
    ],
)
def test_a_row_on_all_devices_is_refused_where_that_cannot_be(tmp_path, capsys, flags, words):
    assert ends(capsys, 2, toy, [*flags, "--out", str(tmp_path / "run")]).startswith(words)


def test_with_shard_rows_are_computed_one_by_one_on_all_devices(monkeypatch, tmp_path):
    monkeypatch.delenv(hosts.SHARD, raising=False)
    monkeypatch.setattr(hosts, "devices", lambda: 8 if os.environ.get(hosts.SHARD) else 1)
    given = []

    def run(config, out, *, fresh, jobs):
        given.append((jobs, hosts.devices()))
        return records.Run(out, "toy", {}, [{"seed": 0}], [0.0])

    monkeypatch.setattr(command, "_show", lambda *args: None)
    monkeypatch.setenv(hosts.SHARD, "")  # so that it is put back after the test
    toy(["--out", str(tmp_path / "run")], run)
    toy(["--shard", "--out", str(tmp_path / "run")], run)
    assert given == [(None, 1), (1, 8)]


def test_a_terminal_that_has_only_ascii_gets_ascii(monkeypatch):
    class Ascii(io.StringIO):
        encoding = "ascii"

    monkeypatch.setattr(command.sys, "stdout", out := Ascii())
    command._say("1.00 ± 0.10, × 3 é…")
    assert out.getvalue() == "1.00 +- 0.10, x 3 e?"


def test_the_defaults_are_the_config_that_is_handed_in():
    config = Toy("b", Inner(7))
    assert command.parse(config, [])[0] == config
    assert command.parse(config, ["--epochs", "8"])[0] == Toy("b", Inner(8))


def test_another_flag_with_the_name_of_a_data_set_is_not_meant(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = []

    def run(config, out, **how):
        given.append(config)
        raise ValueError("enough")

    with pytest.raises(SystemExit):
        command.main("toy", run, drawn, Toy(), "", ["--out", "b"], sets={"b": Toy("b", Inner(5))})
    assert given == [Toy()]


@pytest.mark.parametrize("flags", [["--dataset", "b"], ["--dataset=b", "--epochs", "9"]])
def test_a_data_set_has_defaults_of_its_own(monkeypatch, tmp_path, flags):
    monkeypatch.chdir(tmp_path)
    given = []

    def run(config, out, *, fresh, jobs):
        given.append((config, out))
        raise ValueError("enough")

    with pytest.raises(SystemExit):
        command.main("toy", run, drawn, Toy(), "", flags, sets={"b": Toy("b", Inner(5))})
    epochs, name = (9, "dataset=b,epochs=9") if "9" in flags else (5, "dataset=b")
    assert given == [(Toy("b", Inner(epochs)), Path(f"results/toy/{name}"))]


def test_the_settings_are_one_dictionary():
    assert records.settings_of(Toy()) == {"dataset": "a", "epochs": 3, "epsilons": (1e-3, 5e-4)}


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
def test_a_wrong_flag_is_named(capsys, args, word):
    with pytest.raises(SystemExit) as end:
        toy(args)
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    assert word in "".join(printed.err.split()) and "--help" in printed.err and "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("typed", "meant"), [("--epoch", "--epochs"), ("--epsilon", "--epsilons"), ("--data-di", "--data-dir")]
)
def test_a_misspelt_flag_gets_the_near_one(capsys, typed, meant):
    with pytest.raises(SystemExit):
        toy([typed, "3"])
    assert f"{meant} " in capsys.readouterr().err


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as end:
        toy(["--help"])
    said = capsys.readouterr()
    assert not end.value.code and said.err == ""
    for words in ("What a toy does.", "--epochs", "--dataset", "--out", "--fresh", "--data-dir"):
        assert words in said.out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_the_command_of_make(capsys, flag):
    with pytest.raises(SystemExit):
        toy([flag])
    assert capsys.readouterr().out.splitlines()[0] == 'usage: make exp-toy ARGS="..."'


def test_a_wrong_flag_names_a_help_that_runs_where_it_was_typed(monkeypatch, capsys, tmp_path):
    for python, typed in (
        (tmp_path / ".venv/bin/python", ".venv/bin/python"),
        (Path("/usr/bin/python"), "python"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "executable", str(python))
        with pytest.raises(SystemExit):
            toy(["--sedes", "3"])
        assert f"{typed} -m experiments.toy --help" in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_paragraphs_of_help_fit_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    doc = 'A first line that is long.\n\n    make exp-toy ARGS="--epochs 5"\n\nA second.'
    assert command._wrapped(doc).splitlines() == [
        "A first line that is", "long.", "", '    make exp-toy ARGS="--epochs 5"', "", "A second.",
    ]  # fmt: skip


def test_help_may_lose_its_reader(tmp_path):
    line = f"{sys.executable} -m experiments.digits --help | head -3"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("usage: make exp-digits ARGS=")


def test_help_imports_nothing_that_draws():
    code = "import sys; import experiments.digits, experiments.paper; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not {"matplotlib", "pandas", "scipy.stats"} & set(done.stdout.split())


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
        (OSError(28, "No space left on device", "results/toy/default"), 2),
    ],
)
def test_what_is_wrong_with_the_world_is_one_sentence(capsys, error, code):
    line = ends(capsys, code, toy, [], raising(error))
    words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.errno else str(error)
    assert line == " ".join(words.split()) + "\n"


def test_a_full_disk_is_named(capsys):
    assert "results/toy/default: No space" in ends(capsys, 2, toy, [], raising(OSError(28, "No space")))


def filling(rows=2, before=lambda row, out: None):
    """A run that records so many rows, with something that happens before each."""

    def run(config, out, *, fresh, jobs):
        with records.opened("toy", {}, out) as made:
            for seed in range(len(made.rows), rows):
                before(seed, out)
                made.add({"seed": seed})
        return made

    return run


@pytest.mark.parametrize("lost", [".", "config.json", "rows.jsonl"])
def test_a_run_that_is_removed_while_it_goes_on_is_one_sentence(tmp_path, capsys, lost):
    out = tmp_path / "run"

    def remove(seed, out):
        if seed == 1:
            shutil.rmtree(out) if lost == "." else (out / lost).unlink()

    line = ends(capsys, 2, toy, ["--out", str(out)], filling(before=remove))
    assert line.startswith(f"{out}/") and "is gone: it was removed or moved while the run wrote to it" in line
    assert "its rows are not saved" in line
    toy(
        ["--out", str(out), *["--fresh"] * (lost == "rows.jsonl")], filling()
    )  # the same command goes on from there
    assert f"The report is in {out}" in capsys.readouterr().out
    assert [row["seed"] for row in records.read(out).rows][-1] == 1


def test_a_run_that_is_removed_while_its_report_is_written_is_one_sentence(monkeypatch, tmp_path, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(report, "markdown", lambda *args: shutil.rmtree(out) or "# toy")
    with pytest.raises(SystemExit) as end:
        toy(["--out", str(out)], filling())
    said = capsys.readouterr()
    assert end.value.code == 2 and "2 rows." in said.out and "The report is in" not in said.out
    assert said.err.count("\n") == 1 and "its rows are not saved" in said.err


def test_rows_that_are_kept_elsewhere_need_no_run_of_their_own(tmp_path, capsys):
    """As those of `experiments.paper`."""
    out = tmp_path / "run"
    toy(["--out", str(out)], lambda *args, **how: records.Run(out, "toy", {}, [], [0.0, 1.0]))
    assert f"The report is in {out}" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_report_that_is_damaged_is_written_again(tmp_path, capsys, content):
    out, run = tmp_path / "run", filling()
    toy(["--out", str(out)], run)
    whole = (out / "report.md").read_bytes()
    (out / "report.md").unlink() if content is None else (out / "report.md").write_bytes(content)
    toy(["--out", str(out)], run)
    assert (out / "report.md").read_bytes() == whole and "More was found." in capsys.readouterr().out


def test_one_seed_is_no_test():
    every = records.read(ROOT / "published/digits/default").rows
    first = [row for row in every if row["seed"] == 0]
    several, alone = (" ".join(report.terminal(digits.figures(rows), 10_000).split()) for rows in (every, first))
    assert "holds (n = 5, 5 of 5)" in several
    assert "LB is sharper than SB: no test" in alone and "no test (n = 1)" in alone
    assert "holds" not in alone and "of 1" not in alone


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("VEVN=x", "(did you mean VENV?)"), ("pyhton=x", "(did you mean PYTHON?)"), ("epochs=3", "")],
)
def test_make_names_the_variables_that_there_are(typed, meant):
    make = ["make", "--dry-run", typed, "exp-digits"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    name, words = typed.split("=")[0], f"only PYTHON VENV ACCELERATOR ARGS {meant}".strip()
    assert done.returncode == 2 and f"There is no variable {name} here, {words}; flags" in done.stderr


@pytest.mark.parametrize("seconds", [0.3, 1.0, 6.0])
def test_an_interruption_is_one_sentence(tmp_path, seconds):
    """Also while the process imports."""
    run = [sys.executable, "-m", "experiments.digits"]
    quiet = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background work ignores it
    try:
        with subprocess.Popen(run, cwd=tmp_path, env=quiet, stderr=subprocess.PIPE, text=True) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=60)[1]
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 130 and said.endswith("resumes the run.\n") and "Traceback" not in said


def test_a_device_that_is_not_there_is_one_sentence(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cuda"}
    run = [sys.executable, "-m", "experiments.digits"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cuda" in done.stderr


def test_the_directory_of_a_user_is_meant_by_its_short_name(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = []

    def run(config, out, **how):
        given.append(out)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        toy(["--out=~/x"], run)
    assert given == [tmp_path / "x"]


def test_a_user_that_is_not_known_is_a_directory_like_another(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    toy(["--out=~nobody_of_this_name/x"], filling())
    assert (tmp_path / "~nobody_of_this_name" / "x" / "report.html").exists()


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        toy([], raising(ZeroDivisionError()))
    with pytest.raises(ValueError, match="broadcast"):  # from NumPy itself
        toy([], lambda *args, **how: np.broadcast_arrays(np.ones(2), np.ones(3)))


def test_an_error_names_the_flag_that_was_typed(capsys):
    line = ends(capsys, 2, toy, [], raising(ValueError("epochs is 0; it must be at least 1")))
    assert line == "--epochs is 0; it must be at least 1\n"


@pytest.mark.parametrize(
    ("name", "value", "where", "seconds"),
    [
        ("XDG_CACHE_HOME", "cache", "cache/gengap/xla", 0.0),
        ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "2", "home/.cache/gengap/xla", 2.0),
    ],
)
def test_what_is_compiled_is_kept_where_the_user_keeps_such_things(
    monkeypatch, tmp_path, name, value, where, seconds
):
    for other in [n for n in os.environ if n == "XDG_CACHE_HOME" or n.startswith("JAX_PERSISTENT")]:
        monkeypatch.delenv(other)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(name, value if value.isdigit() else str(tmp_path / value))
    options = {"jax_compilation_cache_dir": None, "jax_persistent_cache_min_compile_time_secs": 2.0}
    before = {option: getattr(jax.config, option) for option in options}
    try:
        for option, beginning in options.items():
            jax.config.update(option, beginning)
        cache_compilations()
        assert [getattr(jax.config, option) for option in options] == [str(tmp_path / where), seconds]
    finally:
        for option, was in before.items():
            jax.config.update(option, was)


def test_what_is_compiled_is_kept_where_jax_was_told_to(tmp_path):
    code = """
import jax
from experiments.lib import command
command.cache_compilations()
print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
"""
    plain = {n: v for n, v in os.environ.items() if n != "XDG_CACHE_HOME" and not n.startswith("JAX_")}
    environment = {**plain, "HOME": str(tmp_path / "home"), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "own"), "0.0"], done.stderr


def started(*args, **rest):
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
    "--num-draws -1",
    "--jobs 0",
    "--hours 0 --cluster slurm",
    "--hours nan --cluster slurm",
    "--gpus -1 --cluster slurm",
    "--partition main",
    "--max-evaluations 0",
    "--chunk 0",
    "--patience -1",
    "--clip 2",
    "--learning-rate -1",
    "--weight-decay -1",
    "--num-seeds 1.5",
    "--seed -1",
    "--seed 1180591620717411303424",
    "--optimizer lbfgs",
    "--dataset nothing-of-this-name",
]


@pytest.mark.parametrize("flags", IMPOSSIBLE)
def test_impossible_values_are_refused_before_training_and_leave_nothing(capsys, monkeypatch, tmp_path, flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minima.train, "fit", started)
    args = [*flags.split(), "--data-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        command.main("digits", digits.run, digits.figures, digits.CONFIG, "", args)
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == "" and "Traceback" not in printed.err
    assert len(printed.err) > 20 and flags.split()[0] in printed.err
    assert not list(tmp_path.iterdir())


def test_a_run_directory_that_is_a_file_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(minima.train, "fit", started)
    (tmp_path / "file").write_text("")
    args = ["--out", str(tmp_path / "file")]
    assert f"--out is {tmp_path / 'file'}" in ends(
        capsys, 2, command.main, "digits", digits.run, digits.figures, digits.CONFIG, "", args
    )


def test_a_process_with_a_wrong_flag_has_no_traceback(tmp_path):
    command = [sys.executable, "-m", "experiments.digits", "--nope"]
    environment = {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "COLUMNS": "40", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert "--nope" in done.stderr and "Traceback" not in done.stderr
