"""Pairs of minima: one starting point, checkpoints, and seeds that do not depend on each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gengap import data, minima, models, records

KEY = jax.random.key(3)


def init(key, x):
    a, b = jax.random.split(key)
    return {"w": jax.random.normal(a, (x.shape[1], 4)), "v": jax.random.normal(b, (4, 3))}


def apply(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def apply_train(params, x, key):
    return apply(params, x * (2.0 * jax.random.bernoulli(key, 0.5, x.shape)))


MODEL = models.Model(init, apply, apply_train)
X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
DATA = data.from_arrays(X, np.arange(24) % 3, X[:9] + 0.1, np.arange(9) % 3)


def pair(**how):
    how = {"small_batch": 4, "large_batch": 0.5, "num_seeds": 2, "epochs": 3, "patience": None, **how}
    return minima.find_pair(MODEL, DATA, KEY, **how)


STILL = optax.sgd(0.0)


def equal(a, b, tolerance=0.0):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance), a, b)


@pytest.fixture(scope="module")
def uninterrupted():
    return pair()


def test_both_minima_start_from_one_point():
    small, large = pair(optimizer=STILL, epochs=1)
    equal(small.params, large.params)
    assert small.distance.tolist() == large.distance.tolist() == [0.0, 0.0]
    assert not np.allclose(small.params["w"][0], small.params["w"][1])


def test_a_minimum_says_how_it_was_found(uninterrupted):
    small, large = uninterrupted
    assert (small.batch_size, large.batch_size) == (4, 12)
    assert small.steps.tolist() == [18, 18] and large.steps.tolist() == [6, 6]
    assert small.epochs.tolist() == large.epochs.tolist() == [3, 3]
    assert small.diverged_at.tolist() == [-1, -1]
    assert {name: rows.shape for name, rows in large.history.items()} == {
        f"{split}_{what}": (2, 3) for split in ("train", "test") for what in ("loss", "accuracy")
    }
    start, _ = pair(optimizer=STILL, epochs=1)
    for found in uninterrupted:
        squares = [((found.params[name] - start.params[name]) ** 2).sum((1, 2)) for name in ("w", "v")]
        np.testing.assert_allclose(found.distance, np.sqrt(sum(squares)), rtol=1e-5)
        assert found.distance.min() > 1e-3


def test_seeds_alone_equal_seeds_together(uninterrupted):
    alone = pair(num_seeds=1, first_seed=1)
    for one, both in zip(alone, uninterrupted, strict=True):
        equal(one.params, jax.tree.map(lambda a: a[1:], both.params), 1e-5)
        equal(one.history, {name: rows[1:] for name, rows in both.history.items()}, 1e-5)


@pytest.mark.parametrize("saves", [1, 3, 4, 6])
def test_an_interrupted_run_goes_on_to_the_same_minima(uninterrupted, monkeypatch, tmp_path, saves):
    monkeypatch.setattr(minima, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    save, done = records.save, []

    def interrupted(path, tree):
        save(path, tree)
        done.append(path)
        if len(done) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(records, "save", interrupted)
        pair(checkpoints=tmp_path)
    resumed = pair(checkpoints=tmp_path)
    equal(resumed, uninterrupted)
    equal(pair(checkpoints=tmp_path), uninterrupted)


def test_an_interruption_before_the_first_checkpoint_loses_nothing(uninterrupted, monkeypatch, tmp_path):
    def interrupted(path, tree):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(records, "save", interrupted)
        pair(checkpoints=tmp_path)
    equal(pair(checkpoints=tmp_path), uninterrupted)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    records.save(tmp_path / "SB-0.npz", {"state": {"params": jnp.ones(3)}})
    with pytest.raises(ValueError, match=r"SB-0\.npz"):
        pair(checkpoints=tmp_path)


def test_an_impossible_large_batch_is_refused_before_the_small_one_is_trained(monkeypatch):
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("training began"))
    with pytest.raises(ValueError, match="batch size 25"):
        pair(large_batch=25)


@pytest.mark.parametrize("seeds", [0, -1])
def test_no_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match="num_seeds"):
        pair(num_seeds=seeds)


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
    minima.find_pair(models.Model(init, apply), ds, KEY, small_batch=2, large_batch=4, num_seeds=1, epochs=1)
    assert set(seen) == {np.dtype("float32")}
