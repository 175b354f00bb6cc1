"""Pairs of minima: one starting point, found by what they were trained with, and checkpoints."""

import functools
import inspect
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from gengap import checkpoints, data, methods, minima, models, train

KEY = jax.random.key(3)


def init(key, x):
    a, b = jax.random.split(key)
    return {"w": jax.random.normal(a, (x.shape[1], 4)), "v": jax.random.normal(b, (4, 3))}


def apply(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def apply_train(params, x, key):
    return apply(params, x * (2.0 * jax.random.bernoulli(key, 0.5, x.shape)))


MODEL = models.Model(init, apply, apply_train, name="two layers")
X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
DATA = data.from_arrays(X, np.arange(24) % 3, X[:9] + 0.1, np.arange(9) % 3)


def find(store=None, *, model=MODEL, ds=DATA, key=KEY, seed=0, start=None, **recipe):
    asked = minima.Recipe(**{"batch_size": 4, "epochs": 3, "patience": None, **recipe})
    unchecked = inspect.unwrap(minima.find)  # as outside of tests
    return unchecked(model, ds, key, asked, seed=seed, start=start, store=store)


def pair(**recipe):
    return [find(batch_size=size, **recipe) for size in (4, 0.5)]


@functools.cache
def beginning():
    return minima.starting_point(MODEL, DATA, KEY)


def load(path):
    return minima.load(path, like=beginning())


def spy(monkeypatch):
    """The epochs that training begins at from here on."""
    begun, fit = [], train.fit
    monkeypatch.setattr(
        minima.train,
        "fit",
        lambda loss, state, *args, **how: begun.append(int(state.epoch)) or fit(loss, state, *args, **how),
    )
    return begun


STILL = train.named("still", optax.sgd(0.0))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def same(a, b):
    equal(a.params, b.params)
    equal(a.history, b.history)
    assert a[1:6] == b[1:6] and a.settings == b.settings


@pytest.fixture(scope="module")
def uninterrupted():
    return pair()


def test_both_minima_start_from_one_point():
    small, large = pair(optimizer=STILL, epochs=1)
    equal(small.params, large.params)
    equal(small.params, minima.starting_point(MODEL, DATA, KEY))
    assert small.distance == large.distance == 0
    assert not np.allclose(small.params["w"], minima.starting_point(MODEL, DATA, KEY, 1)["w"])


def test_a_minimum_says_how_it_was_found(uninterrupted):
    small, large = uninterrupted
    assert (small.batch_size, small.steps, small.epochs, small.diverged_at) == (4, 18, 3, None)
    assert (large.batch_size, large.steps, large.epochs, large.diverged_at) == (12, 6, 3, None)
    assert {name: rows.shape for name, rows in large.history.items()} == {
        f"{split}_{what}": (3,) for split in ("train", "test") for what in ("loss", "accuracy")
    }
    start = minima.starting_point(MODEL, DATA, KEY)
    for found in uninterrupted:
        squares = [((found.params[name] - start[name]) ** 2).sum() for name in ("w", "v")]
        assert found.distance == pytest.approx(float(np.sqrt(sum(squares))), rel=1e-5)
        assert found.distance > 1e-3
    assert repr(small).startswith("Minimum(two layers on arrays, batch 4, seed 0: training loss ")
    assert len(repr(small)) < 150


def test_a_seed_has_its_own_numbers_and_keeps_them(uninterrupted):
    other = find(seed=1)
    assert not np.allclose(other.params["w"], uninterrupted[0].params["w"])
    same(find(seed=1), other)
    same(find(), uninterrupted[0])


def test_a_minimum_is_found_by_what_it_was_trained_with(uninterrupted, monkeypatch, tmp_path):
    first = pair(store=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and all(
        re.fullmatch(r"two-layers-arrays-B(4|12)-seed0-\w{12}.safetensors", n) for n in names
    )
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    for a, b, c in zip(first, pair(store=tmp_path), uninterrupted, strict=True):
        same(a, b)
        same(a, c)
    loaded = load(next(tmp_path.glob("*B4-*")))
    same(loaded, uninterrupted[0])
    assert loaded.settings["optimizer"] == "adam(0.001)" and loaded.settings["batch_size"] == 4
    stored = safetensors.numpy.load_file(next(tmp_path.glob("*B4-*")))
    assert {name: array.shape for name, array in stored.items()} == {"w": (5, 4), "v": (4, 3)}
    np.testing.assert_array_equal(stored["w"], loaded.params["w"])


OTHER = data.from_arrays(X + 1e-6, np.arange(24) % 3, X[:9] + 0.1, np.arange(9) % 3)


@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 12},
        {"seed": 1},
        {"key": jax.random.key(4)},
        {"ds": OTHER},
        {"model": MODEL._replace(name="another")},
        {"optimizer": train.adam(1e-2)},
        {"epochs": 2},
        {"patience": 2},
        {"tolerance": 0.5, "patience": 2},
        {"target": 0.1},
        {"clip": 1e-7},
        {"start": jax.tree.map(lambda a: 2 * a, minima.starting_point(MODEL, DATA, KEY))},
    ],
    ids=lambda how: next(iter(how)),
)
def test_anything_else_is_trained_anew(monkeypatch, tmp_path, how):
    find(tmp_path, epochs=1)
    begun = spy(monkeypatch)
    find(tmp_path, **{"epochs": 1, **how})
    assert begun == [0]


def test_a_file_under_another_name_is_refused_with_the_differences(tmp_path):
    find(tmp_path, epochs=1)
    (path,) = tmp_path.iterdir()
    find(tmp_path, epochs=1, batch_size=12)
    other = next(tmp_path.glob("*B12-*"))
    path.rename(other)
    with pytest.raises(ValueError, match="other settings: batch_size 4, asked for 12"):
        find(tmp_path, epochs=1, batch_size=12)


def test_a_damaged_file_is_refused(tmp_path):
    find(tmp_path, epochs=1)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"B4-seed0-\w+\.safetensors is no minimum, or damaged"):
        find(tmp_path, epochs=1)
    with pytest.raises(ValueError, match="nothing"):
        load(tmp_path / "nothing.safetensors")


def test_minima_without_names_are_kept_and_found(monkeypatch, tmp_path):
    how = {"model": MODEL._replace(name=""), "optimizer": optax.sgd(0.1), "epochs": 1}
    first = find(tmp_path, **how)
    begun = spy(monkeypatch)
    same(find(tmp_path, **how), first)
    assert begun == []


def test_a_minimum_on_disk_is_what_was_written_or_refused(tmp_path):
    found = find(tmp_path, epochs=1)
    (path,) = tmp_path.iterdir()
    stored, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    damaged = [stored[:i] for i in range(0, len(stored), 200)]
    for i in [*rng.integers(0, len(stored), 100), *range(len(stored) - 300, len(stored), 3)]:
        damaged.append(stored[:i] + bytes([stored[i] ^ 1 << rng.integers(8)]) + stored[i + 1 :])
    for content in damaged:
        path.write_bytes(content)
        try:
            same(load(path), found)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"header": "no JSON"},
        {"header": "[1]"},
        {"header": '{"settings": 3}'},
        {"header": '{"settings": {}}', "sha256": "0"},
    ],
)
def test_a_file_of_something_else_is_no_minimum(tmp_path, metadata):
    safetensors.numpy.save_file({"w": np.zeros(3)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(ValueError, match=r"other\.safetensors is no minimum, or damaged"):
        load(tmp_path / "other.safetensors")


def grows_by(factor):
    return methods.Method("grows", grow=lambda size, epoch, noise: factor * size)


def scaled(network, k):
    return lambda *args: jax.tree.map(lambda a: k * a, network(*args))


def steps(k):
    return optax.sgd(optax.piecewise_constant_schedule(0.1, {1: k}))


def weighted(k):
    return methods.Method("mine", loss=lambda of: lambda *args: (k * of(*args)[0], of(*args)[1]))


SAME_NAMES = {
    "optimizer": lambda k: {"optimizer": train.named("lion", optax.lion(k * 1e-3))},
    "schedule": lambda k: {"optimizer": train.named("", steps(k))},
    "apply": lambda k: {"model": MODEL._replace(apply_train=None, apply=scaled(apply, k))},
    "apply, for the test set alone": lambda k: {"model": MODEL._replace(apply=scaled(apply, k))},
    "apply_train": lambda k: {"model": MODEL._replace(apply_train=scaled(apply_train, k))},
    "init": lambda k: {"model": MODEL._replace(init=scaled(init, k))},
    "table": lambda k: {"model": MODEL._replace(apply=lambda p, x: apply(p, x) + k * jnp.ones((1, 3)))},
    "loss": lambda k: {"method": weighted(k)},
    "grow": lambda k: {"method": grows_by(round(k)), "epochs": 2},
    "precision": lambda k: {"precision": "float32" if k == 1 else "bfloat16"},
}


FACTOR = 2


class Grower:
    def __init__(self, factor):
        self.factor = factor

    def grow(self, size, epoch, noise, *, by=1):
        return size * self.factor * by

    def __call__(self, size, epoch, noise):
        return self.grow(size, epoch, noise)


def by_a_keyword(factor):
    def grow(size, epoch, noise, *, by=factor):
        return size * by

    return grow


def by_a_table(table):
    return lambda size, epoch, noise: int(size * table.sum())


def by_a_jitted(f):
    return lambda size, epoch, noise: int(f(size))


def by_a_global(size, epoch, noise):
    return size * FACTOR


GROWERS = {
    "closure": lambda k: grows_by(k).grow,
    "bound method": lambda k: Grower(k).grow,
    "object": Grower,
    "keyword": by_a_keyword,
    "partial": lambda k: functools.partial(Grower.grow, Grower(2), by=k),
    "large array": lambda k: by_a_table(np.arange(3000) == 1500 + k),
    "array of JAX": lambda k: by_a_table(jnp.full(2, k)),
    "combined": lambda k: methods.combine(methods.byrd(most=4 * k), methods.doubling(2, most=4 * k)).grow,
    "jitted": lambda k: by_a_jitted(jax.jit(lambda x: x * k)),
}


@pytest.mark.parametrize("name", GROWERS)
def test_what_makes_a_batch_grow_is_known_by_what_it_does(name):
    one, again, other = (minima._code(GROWERS[name](k)) for k in (2, 2, 3))
    assert one == again != other and " at 0x" not in one


def test_a_global_that_makes_a_batch_grow_is_read(monkeypatch):
    before = minima._code(by_a_global)
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert minima._code(by_a_global) != before


def test_another_process_finds_the_same_minimum(tmp_path):
    code = """
import sys
import jax, numpy as np
from gengap import data, methods, minima, models
x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
ds = data.from_arrays(x, np.arange(8) % 2, x, np.arange(8) % 2)
grow = methods.doubling(1, most=4)._replace(grow=lambda size, epoch, noise: 2 * size if epoch in {1, 2} else size)
method = methods.combine(methods.ghost_batch_norm(2), methods.sam(), methods.byrd(most=4), grow)
model = models.dense(2, widths=[3])
recipe = minima.Recipe(batch_size=2, method=method, epochs=1)
found = minima.find(model, ds, jax.random.key(0), recipe, store=sys.argv[1])
print(found.settings["computation"])
"""
    said = []
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        run = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(run, cwd=Path(__file__).parents[1], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", SAME_NAMES)
def test_another_computation_under_the_same_name_is_another_minimum(monkeypatch, tmp_path, name):
    one, other = SAME_NAMES[name](1.0), SAME_NAMES[name](3.0)
    first = find(tmp_path, **{"epochs": 1, **one})
    begun = spy(monkeypatch)
    find(tmp_path, **{"epochs": 1, **other})
    assert begun == [0]
    same(find(tmp_path, **{"epochs": 1, **one}), first)
    assert begun == [0]


def test_the_precision_around_the_call_is_that_of_training(monkeypatch, tmp_path):
    find(tmp_path, epochs=1)
    begun = spy(monkeypatch)
    with jax.default_matmul_precision("bfloat16"):
        assert find(tmp_path, epochs=1).settings["precision"] == "bfloat16"
    assert find(tmp_path, epochs=1).settings["precision"] == "float32"
    assert begun == [0]
    with pytest.raises(ValueError, match="precision is 'float3'; it must be"):
        find(precision="float3")


def test_the_seconds_of_a_minimum_are_those_of_its_training(monkeypatch, tmp_path):
    clock = iter(range(0, 10_000, 7))
    monkeypatch.setattr(minima.time, "monotonic", lambda: float(next(clock)))
    first = find(tmp_path, epochs=2)
    assert first.seconds >= 7 and find(tmp_path, epochs=2).seconds == first.seconds


def test_a_checkpoint_is_no_minimum(monkeypatch, tmp_path):
    monkeypatch.setattr(minima, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    monkeypatch.setattr(minima.Path, "unlink", lambda *args, **how: None)
    find(tmp_path, epochs=3)
    with pytest.raises(ValueError, match="is a checkpoint of an unfinished training"):
        load(next(tmp_path.glob("*.checkpoint")))


NOISY = train.named("noisy", optax.noisy_sgd(0.1, key=jax.random.key(2)))


@pytest.mark.parametrize("optimizer", [train.ADAM, NOISY], ids=["adam", "noise"])
@pytest.mark.parametrize("writes", [1, 2, 3, 4])
def test_an_interrupted_run_goes_on_to_the_same_minimum(monkeypatch, tmp_path, writes, optimizer):
    monkeypatch.setattr(minima, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    whole = find(optimizer=optimizer, epochs=4)
    write, done = checkpoints.write, []

    def interrupted(*args):
        write(*args)
        done.append(1)
        if len(done) == writes:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "write", interrupted)
        find(tmp_path, optimizer=optimizer, epochs=4)
    begun = spy(monkeypatch)
    same(find(tmp_path, optimizer=optimizer, epochs=4), whole)
    assert begun == [writes] or writes == 4
    assert writes == 4 or len(list(tmp_path.iterdir())) == 1


def test_a_write_that_was_stopped_leaves_the_last_one(monkeypatch, tmp_path):
    def half(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        atomically = checkpoints.records.atomically
        patch.setattr(checkpoints.records, "atomically", lambda path, write: atomically(path, half))
        find(tmp_path)
    same(find(tmp_path), find())


def test_a_training_has_the_minima_of_shorter_ones(monkeypatch, tmp_path):
    alone = {epochs: find(epochs=epochs) for epochs in (1, 3)}
    for store in (None, tmp_path):
        minimum = find(store, epochs=3, snapshots=(1, 3))
        same(minimum, alone[3])
        assert minimum.snapshots.keys() == {1, 3}
        for epochs, snapshot in minimum.snapshots.items():
            same(snapshot, alone[epochs])
    monkeypatch.setattr(minima.train, "fit", lambda *args, **rest: pytest.fail("trained again"))
    same(find(tmp_path, epochs=1), alone[1])
    assert find(tmp_path, epochs=3).snapshots == {}
    with pytest.raises(ValueError, match="snapshots has 4; it must be at most the 3 epochs"):
        find(epochs=3, snapshots=(4,))


def test_a_run_that_ends_early_gives_its_end_for_later_snapshots():
    minimum = find(epochs=3, snapshots=(1, 2), patience=1, tolerance=9.0)
    assert [snapshot.epochs for snapshot in minimum.snapshots.values()] == [1, 2] and minimum.epochs == 2
    equal(minimum.snapshots[2].params, minimum.params)


def interrupt(monkeypatch, tmp_path, lengths, writes):
    """Training to several lengths is stopped at a write, one of which follows each epoch."""
    monkeypatch.setattr(minima, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    write, done = checkpoints.write, []

    def stop(*args):
        done.append(1)
        if len(done) == writes:
            raise KeyboardInterrupt
        write(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "write", stop)
        along(lengths, tmp_path)


def along(lengths, store):
    return find(store, epochs=lengths[-1], snapshots=lengths).snapshots.values()


def test_several_lengths_go_on_after_an_interruption(monkeypatch, tmp_path):
    interrupt(monkeypatch, tmp_path, (1, 2, 5), writes=4)
    begun = spy(monkeypatch)
    found = along((1, 2, 5), tmp_path)
    assert begun == [3]
    for one, e in zip(found, (1, 2, 5), strict=True):
        same(one, find(epochs=e))


def test_a_checkpoint_that_is_past_a_length_that_is_gone_is_not_gone_on_from(monkeypatch, tmp_path):
    interrupt(monkeypatch, tmp_path, (2, 5), writes=4)
    (short,) = (path for path in tmp_path.iterdir() if "checkpoint" not in path.name)
    short.unlink()
    for one, e in zip(along((2, 5), tmp_path), (2, 5), strict=True):
        same(one, find(epochs=e))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"epochs": 0}, "epochs is 0"),
        ({"snapshots": (0,)}, "snapshots is 0"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"key": jax.random.PRNGKey(0)}, "must be one key, as from jax.random.key"),
    ],
)
def test_what_is_no_number_of_epochs_no_seed_or_no_key_is_refused(monkeypatch, how, words):
    monkeypatch.setattr(minima.train, "fit", lambda *args, **rest: pytest.fail("training began"))
    with pytest.raises(ValueError, match=words):
        find(**how)


def test_numbers_of_numpy_are_as_good(tmp_path):
    first = find(tmp_path, epochs=1)
    again = find(tmp_path, seed=np.int32(0), chunk=np.int64(5000), tolerance=np.float64(1e-3), epochs=np.int64(1))
    same(again, first)
    assert len(list(tmp_path.iterdir())) == 1


def test_parameters_that_are_no_dicts_and_of_low_precision_are_kept(tmp_path):
    def init(key, x):
        return (jax.random.normal(key, (5, 3), jnp.bfloat16), [jnp.zeros(3)])

    model = models.Model(init, lambda p, x: x @ p[0] + p[1][0][None], name="tuple")
    first, again = (find(tmp_path, model=model) for _ in range(2))
    same(first, again)
    assert again.params[0].dtype == jnp.bfloat16
    (path,) = tmp_path.iterdir()
    same(minima.load(path, like=first.params), first)
    for other in (first.params[0], jax.tree.map(lambda a: a.astype(jnp.float16), first.params)):
        with pytest.raises(ValueError, match="other names, shapes or types"):
            minima.load(path, like=other)


def test_labels_that_the_network_has_no_logits_for_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("training began"))
    ds = data.from_arrays(X, np.arange(24) % 4, X, np.arange(24) % 4)
    with pytest.raises(ValueError, match="y has a label 3; apply returned 3 logits"):
        find(ds=ds)


def test_an_impossible_batch_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(minima.train, "fit", lambda *args, **rest: pytest.fail("training began"))
    with pytest.raises(ValueError, match="batch size 25"):
        find(batch_size=25)


def test_images_reach_the_network_scaled():
    seen = []

    def init(key, x):
        seen.append(x.dtype)
        return {"a": jnp.ones(())}

    def apply(params, x):
        seen.append(x.dtype)
        return params["a"] * x.reshape(len(x), -1)

    images = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 1), np.uint8)
    ds = data.from_arrays(images, np.arange(8) % 4, images, np.arange(8) % 4)
    find(model=models.Model(init, apply), ds=ds, batch_size=2, epochs=1)
    assert set(seen) == {np.dtype("float32")}


def test_names_that_would_be_one_in_a_file_are_told_apart(tmp_path):
    tree = {"a/b": jnp.zeros(2), "a": {"b": jnp.ones(3)}}
    checkpoints.write(tmp_path / "x", tree, {"settings": {}, "history": {}})
    equal(checkpoints.read(tmp_path / "x", tree, None)[1], tree)


def test_of_several_processes_that_want_a_minimum_one_trains(monkeypatch, tmp_path):
    """The second waits for the lock of the first, and finds the minimum then."""
    trained, fit = [], train.fit
    waiting = threading.Event()

    def slow(*args, **rest):
        trained.append(1)
        waiting.wait(30)
        return fit(*args, **rest)

    monkeypatch.setattr(minima.train, "fit", slow)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(find, tmp_path, epochs=1) for _ in range(2)]
        while not trained:
            time.sleep(0.01)
        time.sleep(0.2)
        waiting.set()
        first, second = (one.result() for one in both)
    same(first, second)
    assert trained == [1] and [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
