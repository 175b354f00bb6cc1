"""Runs on disk: what survives an interruption, what is refused, and that nothing finished is written to again."""

import fcntl
import json
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gengap import records
from gengap.sharpness import Sharpness

CONFIG = {"epochs": 3, "epsilons": (1e-3, 5e-4), "target": None}


def row(seed, method="SB", **more):
    return {"network": "F1", "method": method, "seed": seed, **more}


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
        assert run.has({"network": "F1", "method": "SB", "seed": 0}) and run.added == 2
        assert not run.has({"network": "F1", "method": "LB"}) and not run.has({"network": "F1", "epoch": 3})
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


def test_a_result_is_kept_with_its_fields(tmp_path):
    one = jnp.array([1.0, 2.0])
    with opened(tmp_path) as run:
        run.add(row(0, full=Sharpness(one, one, one, jnp.array([3, 4]), jnp.array([True, False]), 0 * one)))
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


def test_fresh_moves_the_earlier_run_aside(tmp_path):
    path = tmp_path / "run"
    for seed in range(3):
        with opened(path, {**CONFIG, "epochs": seed}, fresh=True) as run:
            assert run.rows == []
            run.add(row(seed))
    assert [rows(tmp_path / name)[0]["seed"] for name in ("run.1", "run.2", "run")] == [0, 1, 2]


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
    "config", ["", "[1]", "{}", '{"experiment": "toy"}', '{"experiment": "a", "config": 3}', b"\xff\xfe"]
)
def test_a_foreign_config_is_named(done, config):
    (done / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
    with pytest.raises(ValueError, match=r"config\.json is not the record of a run") as caught, opened(done):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "{", '{"seed": 0}', b"\xff\xfe", "null"])
def test_a_foreign_row_is_named_with_its_line(done, line):
    with open(done / "rows.jsonl", "ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3, is not a row") as caught, opened(done):
        pass
    assert "\n" not in str(caught.value)


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
