"""Runs on disk: what survives an interruption, what is refused, and that nothing finished is written to again."""

import datetime
import fcntl
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from gengap import records
from gengap.sharpness import Sharpness
from tests import fake, kills

CONFIG = {"epochs": 3, "epsilons": (1e-3, 5e-4), "target": None}


def row(seed, side="SB", **more):
    return {"network": "F1", "side": side, "seed": seed, **more}


def opened(directory, config=CONFIG, experiment="toy", **how):
    return records.opened(experiment, config, directory, **how)


def bare(rows):
    return [{name: value for name, value in row.items() if name != "origin"} for row in rows]


def rows(directory):
    return bare(records.read(directory).rows)


@pytest.fixture
def done(tmp_path):
    with opened(tmp_path / "run") as run:
        run.add(row(0))
        run.add(row(1))
    return tmp_path / "run"


def content(directory):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(Path(directory).rglob("*"))}


def test_a_run_keeps_its_rows(tmp_path):
    path = tmp_path / "a" / "b"
    with opened(path) as run:
        assert run.rows == [] and not run.has({"network": "F1"}) and run.added == 0
        run.add(row(0, test_loss=0.25))
        run.add(row(1, values=np.arange(3), kernel=jnp.ones(2)))
        assert run.has({"network": "F1", "side": "SB", "seed": 0}) and run.added == 2
        assert not run.has({"network": "F1", "side": "LB"}) and not run.has({"network": "F1", "epoch": 3})
    assert rows(path) == [row(0, test_loss=0.25), row(1, values=[0, 1, 2], kernel=[1.0, 1.0])]
    there = records.read(path)
    assert there.rows == run.rows and there.experiment == "toy"
    assert there.config == {"epochs": 3, "epsilons": [1e-3, 5e-4], "target": None}
    assert there.frame()["seed"].tolist() == [0, 1]


def test_a_row_says_where_it_came_from(done):
    for found in records.read(done).rows:
        origin = found["origin"]
        assert {
            "commit",
            "gengap",
            "jax",
            "jaxlib",
            "flax",
            "optax",
            "numpy",
            "python",
            "device",
            "matmul_precision",
            "date",
        } <= origin.keys()
        assert origin["jax"] and 0 <= origin["seconds"] < 60


def test_a_row_is_dated_when_it_is_finished(monkeypatch):
    clock, today = iter([10.0, 11.5, 14.0]), iter(["2026-01-01T00:00:01+00:00", "2026-01-01T00:00:03+00:00"])
    monkeypatch.setattr(records.time, "monotonic", lambda: next(clock))
    now = SimpleNamespace(now=lambda zone: datetime.datetime.fromisoformat(next(today)))
    monkeypatch.setattr(records.origins, "datetime", SimpleNamespace(datetime=now, UTC=datetime.UTC))
    with opened(None) as run:
        run.add(row(0))
        run.add(row(1))
    origins = [found["origin"] for found in run.rows]
    assert [origin["date"] for origin in origins] == ["2026-01-01T00:00:01+00:00", "2026-01-01T00:00:03+00:00"]
    assert [origin["seconds"] for origin in origins] == [1.5, 2.5]


def test_a_result_is_kept_with_its_fields(tmp_path):
    one = jnp.array([1.0, 2.0])
    with opened(tmp_path) as run:
        run.add(row(0, full=Sharpness(one, one, one, jnp.array([3, 4]), jnp.array([True, False]), 0 * one, one)))
    full = rows(tmp_path)[0]["full"]
    assert full["value"] == [1.0, 2.0] and full["evaluations"] == [3, 4] and full["finite"] == [True, False]


def test_a_run_without_a_directory_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened(None) as run:
        run.add(row(0))
        assert run.store is None and bare(run.rows) == [row(0)]
    assert not list(tmp_path.iterdir())


def test_minima_are_shared_between_experiments(tmp_path):
    for where, store in (("toy/default", "minima"), ("mine", "mine/minima")):
        with opened(tmp_path / where) as run:
            assert run.store == tmp_path / store


def test_values_that_are_not_finite_become_null(tmp_path):
    with opened(tmp_path) as run:
        run.add(row(0, a=math.nan, b=[1.0, math.inf], c={"d": jnp.array([jnp.nan, 2.0])}, e=np.float32("-inf")))
        assert bare(run.rows) == rows(tmp_path) == [row(0, a=None, b=[1.0, None], c={"d": [None, 2.0]}, e=None)]


@pytest.mark.parametrize("keep", [1, 12, -2, -1])
def test_a_last_line_that_was_cut_off_costs_that_row_alone(done, keep):
    first, second = (done / "rows.jsonl").read_text().splitlines(keepends=True)
    (done / "rows.jsonl").write_text(first + second[:keep])
    with opened(done) as run:
        assert [found["seed"] for found in run.rows] == [0]
        run.add(row(2))
        run.add(row(3))
    assert rows(done) == [row(0), row(2), row(3)]


def test_other_settings_are_refused_with_what_changed(done):
    for config, words in (
        ({**CONFIG, "epochs": 4}, "epochs 3, now 4"),
        ({**CONFIG, "epsilons": (1e-3,)}, r"epsilons \[0.001, 0.0005\], now \[0.001\]"),
        ({**CONFIG, "new": 1}, "new None, now 1"),
    ):
        with pytest.raises(ValueError, match=words + ".*--out.*--fresh") as caught, opened(done, config):
            pass
        assert str(done) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="experiment toy, now other"), opened(done, experiment="other"):
        pass
    assert rows(done) == [row(0), row(1)]


def test_fresh_moves_the_earlier_run_aside_and_says_where(tmp_path, capsys):
    path = tmp_path / "run"
    for seed in range(3):
        with opened(path, {**CONFIG, "epochs": seed}, fresh=True) as run:
            assert run.rows == []
            run.add(row(seed))
    assert [rows(tmp_path / name)[0]["seed"] for name in ("run.1", "run.2", "run")] == [0, 1, 2]
    assert capsys.readouterr().err == "".join(f"The earlier run is now in {path}.{i}.\n" for i in (1, 2))


def test_a_run_that_is_resumed_says_how_many_rows_are_there(tmp_path, capsys):
    fake.run(out=tmp_path)
    assert "earlier run" not in capsys.readouterr().err
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:1]))
    fake.run(out=tmp_path)
    assert "1 of 4 rows are there from an earlier run.\n" in capsys.readouterr().err
    fake.run(out=tmp_path)
    assert "earlier run" not in capsys.readouterr().err  # nothing is left


@pytest.mark.parametrize("fresh", [False, True])
def test_two_processes_do_not_share_a_directory(done, fresh):
    with open(done / "config.json") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process") as caught, opened(done, fresh=fresh):
            pass
        assert str(done) in str(caught.value)
    assert [found.name for found in done.parent.iterdir()] == ["run"]


def test_a_run_that_failed_is_not_locked(tmp_path):
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as run:
        run.add(row(0))
        raise KeyboardInterrupt
    with opened(tmp_path) as run:
        assert bare(run.rows) == [row(0)]


def test_looking_at_a_finished_run_writes_nothing(done, monkeypatch):
    before = content(done)
    monkeypatch.setattr(records, "atomically", lambda *args: pytest.fail("it wrote"))
    with opened(done) as run:
        assert run.added == 0
    assert content(done) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_can_be_read(done):
    done.chmod(0o555)
    with opened(done) as run:
        assert len(run.rows) == 2
    done.chmod(0o755)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[1]",
        "{}",
        '{"experiment": "toy"}',
        '{"experiment": "a", "config": 3}',
        b"\xff\xfe",
        b"\0",
        "[" * 100_000,
    ],
    ids=lambda config: str(config)[:20],
)
def test_a_foreign_config_is_named(done, config):
    (done / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
    with pytest.raises(ValueError, match=r"config\.json is not the record of a run") as caught, opened(done):
        pass
    assert "\n" not in str(caught.value)


FOREIGN = ["[1, 2]", '"text"', "{", '{"seed": 0}', b"\xff\xfe", "null", b"\0" * 64, '{"seed": 0}\0', "[" * 100_000]
FOREIGN += ['{"origin": 3}', '{"origin": {}}', '{"origin": {"date": "2026"}}', "1" * 5000]


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: str(line)[:20])
def test_a_foreign_row_is_named_with_its_line(done, line):
    with open(done / "rows.jsonl", "ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3, is not a row") as caught, opened(done):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "rows.jsonl"])
def test_a_damaged_file_is_read_or_named(done, name):
    stored, rng = (done / name).read_bytes(), np.random.default_rng(0)
    damaged = [stored[:i] for i in range(0, len(stored), 10)]
    for i in range(0, len(stored), 3):
        damaged.append(stored[:i] + bytes([stored[i] ^ 1 << rng.integers(8)]) + stored[i + 1 :])
    for content in damaged:
        (done / name).write_bytes(content)
        try:
            assert all({"date", "seconds"} <= found["origin"].keys() for found in records.read(done).rows)
        except ValueError as error:
            assert str(done / name) in str(error) and "\n" not in str(error)


def gone(path, lost):
    """Remove a file of a run, or all of it."""
    shutil.rmtree(path) if lost == "." else (path / lost).unlink()


@pytest.mark.parametrize("lost", [".", "config.json", "rows.jsonl"])
def test_a_row_is_not_kept_where_the_run_is_gone(tmp_path, lost):
    path = tmp_path / "run"
    with pytest.raises(ValueError, match=rf"{path}/\S+ is gone: .* its rows are not saved"), opened(path) as run:
        run.add(row(0))
        gone(path, lost)
        try:
            run.add(row(1))
        finally:
            assert bare(run.rows) == [row(0)] and run.added == 1 and not run.has(row(1))
            left = {"config.json", "rows.jsonl"} - {lost} if lost != "." else set()
            assert {found.name for found in tmp_path.rglob("*.json*")} == left


def test_a_run_that_is_gone_at_its_end_is_not_taken_for_kept(tmp_path):
    with pytest.raises(ValueError, match="is gone"), opened(tmp_path / "run") as run:
        run.add(row(0))
        gone(tmp_path / "run", ".")


def test_a_row_that_cannot_be_written_is_not_among_the_rows(tmp_path):
    with opened(tmp_path / "run") as run:
        (tmp_path / "run" / "rows.jsonl").mkdir()
        with pytest.raises(IsADirectoryError):
            run.add(row(0))
        assert run.rows == [] and run.added == 0


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is not the record of a run"):
        records.read(tmp_path)


@pytest.mark.parametrize(("config", "name"), [
    (CONFIG, "default"),
    ({**CONFIG, "epochs": 5}, "epochs=5"),
    ({**CONFIG, "epochs": 5, "target": 0.01}, "epochs=5,target=0.01"),
    ({**CONFIG, "target": 32.0}, "target=32"),
    ({**CONFIG, "epsilons": (0.1, 0.2)}, "epsilons=0.1-0.2"),
    ({**CONFIG, "target": "../a b/c"}, "target=.._a_b_c"),
])  # fmt: skip
def test_a_run_is_named_by_what_differs(config, name):
    assert records.run_name(config, CONFIG) == name


def test_names_are_short_and_different_settings_have_different_names():
    names = {records.run_name({**CONFIG, "target": "x" * 300 + str(i)}, CONFIG) for i in range(3)}
    assert len(names) == 3 and all(len(name) < 250 for name in names)


@pytest.mark.parametrize("sign", ["数", "é", "𝛼", "\udc80"])
@pytest.mark.parametrize("count", [1, 60, 125, 199, 1000])
def test_a_name_of_any_signs_is_a_directory(tmp_path, sign, count):
    """File systems take 255 bytes, not letters."""
    names = {records.run_name({"dataset": sign * count + end}, {}) for end in "ab"}
    with opened(tmp_path / max(names)):
        assert len(names) == 2 and (tmp_path / max(names) / "config.json").exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    records.write_json(path, [1])

    def half(file):
        file.write(b"[2")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        records.atomically(path, half)
    with pytest.raises(ValueError, match="JSON"):
        records.write_json(path, math.nan)
    assert json.loads(path.read_text()) == [1]


ROOT = Path(__file__).parents[1]
FOUR = {"SB0": 1, "LB0": 1, "SB1": 1, "LB1": 1}


def values(run):
    return [(row["side"], row["seed"], row["value"]) for row in run.rows]


def test_each_cell_has_a_row_with_what_was_measured(tmp_path):
    run = fake.run(out=tmp_path / "fake" / "default")
    assert values(run) == [("SB", 0, 10), ("LB", 0, 10), ("SB", 1, 11), ("LB", 1, 11)]
    assert fake.marks(tmp_path / "minima") == FOUR and run.added == 4
    assert run.config == {"base": 10, "num_seeds": 4, "kill": -1, "pause": 0.0}
    frame = run.frame()
    assert frame["value"].tolist() == [10, 10, 11, 11] and frame["history_loss"][0] == [1.0, 0.5]
    assert frame["nothing"].isna().all() and "origin_date" in frame
    assert not any(isinstance(cell, dict) for column in frame for cell in frame[column])


def test_nothing_is_computed_twice(tmp_path):
    out = tmp_path / "fake" / "default"
    first = fake.run(out=out)
    again = fake.run(out=out)
    assert again.rows == first.rows and again.added == 0 and fake.marks(tmp_path / "minima") == FOUR
    assert values(fake.run(out=None)) == values(first) and fake.marks(tmp_path / "minima") == FOUR


@pytest.mark.parametrize("rows_before", [0, 1, 3])
def test_a_run_that_was_interrupted_resumes(tmp_path, monkeypatch, rows_before):
    out, add = tmp_path / "fake" / "default", records.Run.add

    def interrupted(run, row):
        if run.added == rows_before:
            raise KeyboardInterrupt
        add(run, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(records.Run, "add", interrupted)
        fake.run(out=out)
    run = fake.run(out=out)
    assert run.added == 4 - rows_before and values(run) == values(fake.run())


def test_several_processes_compute_the_same_rows(tmp_path):
    run = fake.run(out=tmp_path / "fake" / "default", jobs=2)
    assert values(run) == values(fake.run()) and fake.marks(tmp_path / "minima") == FOUR
    assert all(row["origin"]["commit"] == run.rows[0]["origin"]["commit"] for row in run.rows)
    with pytest.raises(ValueError, match="base is -1; it must be at least 0"):
        fake.run(fake.Config(fake.Numbers(-1)), jobs=2)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_process_that_is_killed_costs_its_row_alone(tmp_path, jobs):
    out = tmp_path / "fake" / "run"
    command = [sys.executable, "-m", "tests.fake", "--kill", "1", "--jobs", str(jobs), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert killed.returncode != 0
    assert (tmp_path / "minima" / "killed").exists()  # else it would kill this process
    if jobs == 1:
        resumed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert resumed.returncode == 0 and "4 rows." in resumed.stdout, resumed.stderr
    else:
        fake.run(fake.Config(kill=1), out)
    run = records.read(out)
    assert sorted(values(run)) == sorted(values(fake.run()))
    again = {name for name, count in fake.marks(tmp_path / "minima").items() if count > 1}
    assert {"SB1"} <= again <= ({"SB1", "LB1"} if jobs == 2 else {"SB1"})
    if jobs == 2:
        assert "a process that computed rows was killed" in killed.stderr and "Traceback" not in killed.stderr


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_run_that_is_killed_at_random_moments_ends_in_the_rows_of_none(tmp_path, jobs):
    """Of a toy `make paper` `python -m tests.kills` does the same."""
    out = tmp_path / "fake" / "run"
    command = [sys.executable, "-m", "tests.fake", "--num-seeds", "20", "--pause", "0.2", "--out", str(out)]
    count, code, errors = kills.killed_and_resumed([*command, "--jobs", str(jobs)], 3, 6.0, random.Random(jobs))
    assert count > 0 and code == 0, errors
    expected = values(fake.run(fake.CONFIG._replace(num_seeds=20)))
    assert sorted(values(records.read(out))) == sorted(expected)


def test_a_disk_that_is_full_loses_no_row_that_was_written(tmp_path):
    """Here a limit of the size of a file; the last row is cut off in its middle."""
    command = f"ulimit -f 1; exec {sys.executable} -m tests.fake --out {tmp_path}/fake/run"
    full = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert full.returncode == 2 and full.stderr.endswith("File too large\n") and "Traceback" not in full.stderr
    rows = (tmp_path / "fake" / "run" / "rows.jsonl").read_text()
    assert len(rows) == 1024 and not rows.endswith("\n")
    run = fake.run(out=tmp_path / "fake" / "run")
    assert values(run) == values(fake.run()) and run.added == 4 - rows.count("\n")


def test_a_long_run_says_first_how_long_it_takes(capsys):
    fake.run(seconds=lambda cells: 195 * len(cells))
    fake.run(seconds=lambda cells: 10.0)
    fake.run(seconds=lambda cells: 3600 * len(cells) / 2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "This takes up to 13 minutes here. Stop it at any time: the same command resumes it."
    assert "2 hours" in second and "--train-size" in second


def test_the_rows_are_counted_while_they_are_computed(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(records.progress.time, "monotonic", lambda: now[0])

    def slow(config, cell, store):
        now[0] += 90
        return {"value": 1}

    records.fill("fake", fake.CONFIG, fake.cells(fake.CONFIG), slow)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fake: row 2 of 4, about 4 min left" and len(lines) == 4
