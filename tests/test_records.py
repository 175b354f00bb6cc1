"""Run directories: what survives an interruption, and what is refused."""

import fcntl
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gengap import records

CONFIG = {"epochs": 3, "epsilons": (1e-3, 5e-4), "target": None}


def row(seed, method="SB", **more):
    return {"network": "F1", "method": method, "seed": seed, **more}


def opened(directory, config=CONFIG, experiment="toy", **how):
    return records.opened(experiment, config, directory, **how)


def rows(directory):
    with opened(directory) as run:
        return run.rows


def test_a_run_keeps_its_rows_and_its_summary(tmp_path):
    with opened(tmp_path / "a" / "b") as run:
        assert run.rows == [] and not run.has("F1", "SB", 0)
        run.add(row(0, test_loss=0.25))
        run.log("note", {"text": "not a row"})
        run.add(row(1, values=np.arange(3), kernel=jnp.ones(2)))
        assert run.has("F1", "SB", 0) and not run.has("F1", "LB", 0) and not run.has("F2", "SB", 0)
        summary = run.summary()
    assert records.read(tmp_path / "a" / "b") == json.loads(json.dumps(summary))
    assert summary["complete"] is True and summary["experiment"] == "toy"
    assert summary["rows"] == [row(0, test_loss=0.25), row(1, values=[0, 1, 2], kernel=[1.0, 1.0])]
    assert summary["config"] == {"epochs": 3, "epsilons": [1e-3, 5e-4], "target": None}
    assert {"jax", "python", "device", "commit", "started"} <= summary["environment"].keys()
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config["config"] == summary["config"] and config["experiment"] == "toy" and config["jax"]
    assert rows(tmp_path / "a" / "b") == summary["rows"]


def test_a_run_without_a_directory_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened(None) as run:
        run.add(row(0))
        assert run.file("minima/a.npz") is None
        assert run.summary(complete=False)["rows"] == [row(0)]
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite_become_null(tmp_path):
    with opened(tmp_path) as run:
        run.add(row(0, a=math.nan, b=[1.0, math.inf], c={"d": jnp.array([jnp.nan, 2.0])}, e=np.float32("-inf")))
        run.summary()
    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)["rows"]
    assert found == rows(tmp_path) == [row(0, a=None, b=[1.0, None], c={"d": [None, 2.0]}, e=None)]


@pytest.mark.parametrize("keep", [1, 12, -2, -1])
def test_a_last_line_that_was_cut_off_costs_that_row_alone(tmp_path, keep):
    with opened(tmp_path) as run:
        run.add(row(0))
        run.add(row(1))
    path = tmp_path / "metrics.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:keep])
    with opened(tmp_path) as run:
        left = [0, 1] if keep == -1 else [0]  # only the end of the line is missing
        assert [found["seed"] for found in run.rows] == left
        run.add(row(2))
        run.add(row(3))
    assert [found["seed"] for found in rows(tmp_path)] == [*left, 2, 3]


def test_other_settings_are_refused_with_what_changed(tmp_path):
    with opened(tmp_path) as run:
        run.add(row(0))
    for config, words in (
        ({**CONFIG, "epochs": 4}, "epochs 3, now 4"),
        ({**CONFIG, "epsilons": (1e-3,)}, r"epsilons \[0.001, 0.0005\], now \[0.001\]"),
        ({**CONFIG, "new": 1}, "new None, now 1"),
    ):
        with pytest.raises(ValueError, match=words + ".*--out.*--fresh") as caught, opened(tmp_path, config):
            pass
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="experiment toy, now other"), opened(tmp_path, experiment="other"):
        pass
    assert rows(tmp_path) == [row(0)]


def test_fresh_puts_the_earlier_run_aside(tmp_path):
    path = tmp_path / "run"
    for seed in range(3):
        with opened(path, {**CONFIG, "epochs": seed}, fresh=True) as run:
            assert run.rows == []
            run.add(row(seed))
    seeds = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text())["seed"] for name in ("run.1", "run.2", "run")
    ]
    assert seeds == [0, 1, 2]


@pytest.mark.parametrize("fresh", [False, True])
def test_two_processes_do_not_share_a_directory(tmp_path, fresh):
    path = tmp_path / "run"
    with opened(path) as run:
        run.add(row(0))
    with open(path / "run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process") as caught, opened(path, fresh=fresh):
            pass
        assert str(path) in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["run"]
    assert rows(path) == [row(0)]


def test_a_run_that_failed_is_not_locked(tmp_path):
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as run:
        run.add(row(0))
        raise KeyboardInterrupt
    assert rows(tmp_path) == [row(0)]
    assert not (tmp_path / "summary.json").exists()


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


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        records.read(tmp_path)
    (tmp_path / "summary.json").write_text('{"rows": [')
    with pytest.raises(ValueError, match=r"summary\.json is damaged"):
        records.read(tmp_path)


TREE = {
    "params": [jnp.arange(6.0).reshape(2, 3), {"b": jnp.array(2, jnp.int32)}],
    "key": jax.random.split(jax.random.key(4), 3),
    "flag": jnp.array([True, False]),
}


def equal(a, b):
    def same(u, v):
        assert u.dtype == v.dtype and u.shape == v.shape
        if jax.dtypes.issubdtype(u.dtype, jax.dtypes.prng_key):
            u, v = jax.random.key_data(u), jax.random.key_data(v)
        np.testing.assert_array_equal(u, v)

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(same, a, b)


@pytest.mark.parametrize(
    "tree",
    [TREE, jnp.arange(3.0), (jnp.ones(2), jnp.zeros(())), jax.random.key(1), jax.random.key(1, impl="rbg")],
    ids=["tree", "one array", "tuple", "one key", "a key of another kind"],
)
def test_arrays_survive_the_disk(tmp_path, tree):
    path = tmp_path / "deep" / "a.npz"
    records.save(path, tree)
    equal(records.load(path, tree), tree)
    assert [found.name for found in path.parent.iterdir()] == ["a.npz"]
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_half_precision_survives_the_disk(tmp_path):
    tree = {"a": jnp.arange(3, dtype=jnp.bfloat16)}
    records.save(tmp_path / "a.npz", tree)
    equal(records.load(tmp_path / "a.npz", tree), tree)


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def flip(path):
    content = bytearray(path.read_bytes())
    where = content.index(np.arange(6.0, dtype=np.float32).tobytes())
    content[where] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an archive"),
        lambda path: np.savez(path, other=np.ones(2)),
        lambda path: records.save(path, {**TREE, "flag": jnp.ones(3, bool)}),
        lambda path: np.savez(path, **{name: np.array([{}]) for name in ("['key']", "['flag']")}),
    ],
    ids=["cut", "flipped", "empty", "text", "another", "another shape", "pickled"],
)
def test_a_damaged_file_is_told_by_its_name(tmp_path, damage):
    path = tmp_path / "a.npz"
    records.save(path, TREE)
    damage(path)
    with pytest.raises(ValueError, match=r"a\.npz (is damaged|holds)"):
        records.load(path, TREE)


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
