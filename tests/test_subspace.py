"""The subspace operator against a dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gengap import subspace

KEY = jax.random.key(0)
N = 150
X = jnp.cos(jnp.arange(float(N)))

times = jax.jit(subspace.times)
transpose_times = jax.jit(subspace.transpose_times)
pseudo_inverse_times = jax.jit(subspace.pseudo_inverse_times)


@pytest.fixture(params=[2**14, 60], ids=["one tile", "several, the last one padded"])
def tiles(request, monkeypatch):
    """Rows in a tile."""
    monkeypatch.setattr(subspace, "_ROWS", request.param)
    jax.clear_caches()
    yield
    jax.clear_caches()


def dense(A):
    """[n, p], entry for entry: the other products are with zeros."""
    return np.asarray(jax.jit(jax.vmap(lambda e: subspace.times(A, e)))(jnp.eye(A.dim))).T


def near_inverse(A, x, tolerance):
    expected = np.linalg.lstsq(dense(A).astype(np.float64), np.asarray(x, np.float64))[0]
    found = pseudo_inverse_times(A, x)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("entries", [subspace.signs, jax.random.normal])
def test_products_equal_numpy(tiles, entries):
    A = subspace.draw(KEY, N, 7, entries=entries)
    M, y = dense(A).astype(np.float64), jnp.arange(7.0) - 3
    np.testing.assert_array_equal(M, np.asarray(entries(KEY, (7, N))).T)
    np.testing.assert_allclose(times(A, y), M @ np.asarray(y), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(transpose_times(A, X), M.T @ np.asarray(X), rtol=1e-5, atol=1e-5)
    near_inverse(A, X, 1e-5)


def test_a_gradient_by_y_is_the_transpose(tiles):
    A = subspace.draw(KEY, N, 7)
    slope = jax.jit(jax.grad(lambda y: jnp.vdot(subspace.times(A, y), X)))(jnp.ones(7))
    np.testing.assert_allclose(slope, transpose_times(A, X), rtol=1e-5, atol=1e-5)


def test_signs_are_held_as_bits():
    A = subspace.draw(KEY, 100_000, 9)
    assert A.tiles.dtype == jnp.uint32 and A.tiles.nbytes < 1.01 * 9 * 100_000 / 8
    assert subspace.draw(KEY, 100, 9, entries=jax.random.normal).tiles.dtype == jnp.float32


def test_signs_are_independent_and_as_often_1_as_minus_1():
    A = dense(subspace.draw(KEY, 4000, 7))
    assert set(np.unique(A)) == {-1.0, 1.0}
    assert abs(A.mean()) < 4 / np.sqrt(A.size)
    assert np.abs(np.corrcoef(A.T) - np.eye(7)).max() < 5 / np.sqrt(4000)


def test_the_same_key_gives_the_same_matrix_under_vmap_too():
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(lambda key: subspace.draw(key, N, 7))(keys)
    for i, key in enumerate(keys):
        np.testing.assert_array_equal(together.tiles[i], subspace.draw(key, N, 7).tiles)
    assert not np.array_equal(together.tiles[0], together.tiles[1])


@pytest.mark.parametrize(("dim", "tolerance"), [(1, 1e-5), (7, 1e-5), (60, 1e-4)])
def test_pseudo_inverse_equals_numpy(dim, tolerance):
    near_inverse(subspace.draw(KEY, N, dim), X, tolerance)


def test_pseudo_inverse_undoes_times():
    A, y = subspace.draw(KEY, N, 9), jnp.arange(9.0) - 4
    np.testing.assert_allclose(pseudo_inverse_times(A, times(A, y)), y, atol=1e-5)


def test_pseudo_inverse_does_not_depend_on_the_length_of_the_columns():
    def entries(key, shape):
        return jax.random.normal(key, shape) * 10 ** jnp.linspace(-3, 3, shape[0])[:, None]

    A = subspace.draw(KEY, N, 7, entries=entries)
    expected = np.linalg.lstsq(dense(A).astype(np.float64), np.asarray(X, np.float64))[0]
    np.testing.assert_allclose(pseudo_inverse_times(A, X), expected, rtol=1e-3)


def alike(noise):
    def entries(key, shape):
        A, other = jax.random.normal(key, (2, *shape))
        return A.at[1].set(A[0] + noise * other[1])

    return entries


def test_nearly_dependent_columns_cost_little_accuracy():
    near_inverse(subspace.draw(KEY, 500, 7, entries=alike(0.02)), jnp.arange(500.0), 1e-3)


def test_dependent_columns_have_the_shortest_solution():
    near_inverse(subspace.draw(KEY, N, 7, entries=alike(0.0)), X, 1e-4)


def test_as_many_columns_as_rows_have_their_inverse_whether_or_not_they_are_dependent():
    for i in range(12):
        A = subspace.draw(jax.random.key(i), 7, 7)
        found = pseudo_inverse_times(A, X[:7])
        np.testing.assert_allclose(found, np.linalg.pinv(dense(A), rcond=1e-4) @ X[:7], rtol=1e-3, atol=1e-3)


def test_the_tiles_of_signs_are_independent():
    """Were they drawn from one key, a step in the first tile would be repeated in all the others."""
    n = 3 * subspace._ROWS
    tiles = np.asarray(subspace.signs(jax.random.key(0), (2, n))).reshape(2, 3, -1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.mean(tiles[:, a] * tiles[:, b])) < 5 / np.sqrt(2 * n / 3)


def test_draws_side_by_side_use_each_key_once():
    with jax.debug_key_reuse(True):
        several = jax.vmap(lambda key: subspace.draw(key, 40, 3))(jax.random.split(jax.random.key(0), 2))
    one = subspace.draw(jax.random.split(jax.random.key(0), 2)[1], 40, 3)
    np.testing.assert_array_equal(several.tiles[1], one.tiles)
