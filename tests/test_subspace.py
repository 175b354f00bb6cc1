"""The subspace operator against a dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gengap import subspace

KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles faster than the default
N = 60
X = jnp.cos(jnp.arange(float(N)))


@pytest.fixture(params=[20, 16], ids=["whole tiles", "a rest"])
def tiles(request, monkeypatch):
    """Rows in a tile of 7 columns: 20, or 16 with 12 left over."""
    monkeypatch.setattr(subspace, "_ENTRIES", 7 * request.param + 3)
    subspace._pseudo_inverse_times.clear_cache()
    yield
    subspace._pseudo_inverse_times.clear_cache()


def dense(A):
    """[n, p], entry for entry: the other products are with zeros."""
    return np.asarray(jax.jit(jax.vmap(lambda e: subspace.times(A, e)))(jnp.eye(A.dim))).T


def near_inverse(A, x, tolerance):
    expected = np.linalg.lstsq(dense(A).astype(np.float64), np.asarray(x, np.float64))[0]
    found = subspace.pseudo_inverse_times(A, x)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("keep", [True, False])
def test_products_equal_numpy(tiles, keep, normalise):
    A = subspace.draw(KEY, N, 7, keep=keep, normalise=normalise)
    assert (A.kept is not None) == keep
    M, y = dense(A).astype(np.float64), jnp.arange(7.0) - 3
    np.testing.assert_allclose(subspace.times(A, y), M @ np.asarray(y), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(subspace.transpose_times(A, X), M.T @ np.asarray(X), rtol=1e-5, atol=1e-5)
    near_inverse(A, X, 1e-5)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_kept_matrix_is_the_one_that_is_drawn_again(tiles, normalise):
    kept, drawn = (subspace.draw(KEY, N, 7, keep=keep, normalise=normalise) for keep in (True, False))
    assert kept.kept.shape == (7, N) and drawn.kept is None
    # The lengths of the columns are summed in another order.
    np.testing.assert_allclose(dense(kept), dense(drawn), rtol=3e-7 if normalise else 0)
    assert len(np.unique(dense(kept))) == 7 * N


@pytest.mark.parametrize("keep", [True, False])
def test_transposition_moves_the_matrix_to_the_other_side(tiles, keep):
    A = subspace.draw(KEY, N, 7, keep=keep)
    y, g = jnp.sin(jnp.arange(7.0)), X**2
    assert float(subspace.times(A, y) @ g) == pytest.approx(float(y @ subspace.transpose_times(A, g)), rel=1e-5)


@pytest.mark.parametrize("keep", [True, False])
def test_normalised_columns_have_length_one_and_the_same_direction(tiles, keep):
    plain, unit = (dense(subspace.draw(KEY, N, 7, keep=keep, normalise=normalise)) for normalise in (False, True))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=0), np.ones(7), rtol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(plain, axis=0), plain, rtol=1e-5)


@pytest.mark.parametrize(("dim", "tolerance"), [(1, 1e-5), (7, 1e-5), (40, 1e-4)])
def test_pseudo_inverse_equals_numpy(dim, tolerance):
    near_inverse(subspace.draw(KEY, N, dim), X, tolerance)


def test_pseudo_inverse_undoes_times():
    A, y = subspace.draw(KEY, N, 9), jnp.arange(9.0) - 4
    np.testing.assert_allclose(subspace.pseudo_inverse_times(A, subspace.times(A, y)), y, atol=1e-5)


def test_pseudo_inverse_does_not_depend_on_the_length_of_the_columns():
    def columns(key, shape):
        return jax.random.normal(key, shape) * 10 ** jnp.linspace(-3, 3, shape[0])[:, None]

    A = subspace.draw(KEY, N, 7, columns=columns)
    expected = np.linalg.lstsq(dense(A).astype(np.float64), np.asarray(X, np.float64))[0]
    np.testing.assert_allclose(subspace.pseudo_inverse_times(A, X), expected, rtol=1e-3)


def alike(noise):
    def columns(key, shape):
        A, other = jax.random.normal(key, (2, *shape))
        return A.at[1].set(A[0] + noise * other[1])

    return columns


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("keep", [True, False])
def test_nearly_dependent_columns_cost_little_accuracy(keep, normalise):
    near_inverse(
        subspace.draw(KEY, 500, 7, columns=alike(0.02), keep=keep, normalise=normalise), jnp.arange(500.0), 1e-3
    )


@pytest.mark.parametrize("keep", [True, False])
def test_dependent_columns_are_an_error_or_nan_under_jit(keep):
    A = subspace.draw(KEY, N, 7, columns=alike(0.0), keep=keep)
    with pytest.raises(ValueError, match="dependent"):
        subspace.pseudo_inverse_times(A, X)
    assert np.isnan(jax.jit(subspace.pseudo_inverse_times)(A, X)).all()


def test_entries_are_standard_normal(tiles):
    A = dense(subspace.draw(KEY, 4000, 7))
    assert abs(A.mean()) < 4 / np.sqrt(A.size)
    assert abs(A.var() - 1) < 4 * np.sqrt(2 / A.size)
    assert abs((A**4).mean() - 3) < 4 * np.sqrt(96 / A.size)
    assert np.abs(np.corrcoef(A.T) - np.eye(7)).max() < 5 / np.sqrt(4000)


def test_columns_are_what_is_asked_for():
    A = subspace.draw(KEY, 5, 3, columns=lambda key, shape: jnp.arange(float(np.prod(shape))).reshape(shape))
    np.testing.assert_array_equal(dense(A), np.arange(15.0).reshape(3, 5).T)


@pytest.mark.parametrize("keep", [True, False])
def test_the_sampler_is_called_for_each_tile_with_a_key_of_its_own(tiles, keep):
    signs = dense(
        subspace.draw(KEY, N, 7, columns=lambda k, s: jax.random.rademacher(k, s, jnp.float32), keep=keep)
    )
    assert set(np.unique(signs)) == {-1.0, 1.0}
    uniform = dense(subspace.draw(KEY, N, 7, columns=jax.random.uniform, keep=keep))
    assert 0 <= uniform.min() < 0.1 and 0.9 < uniform.max() < 1
    assert len(np.unique(uniform)) == 7 * N


def test_the_same_key_gives_the_same_matrix():
    A = dense(subspace.draw(KEY, 6, 4))
    np.testing.assert_array_equal(A, dense(subspace.draw(jax.random.key(0, impl="unsafe_rbg"), 6, 4)))
    assert not np.any(dense(subspace.draw(jax.random.key(1, impl="unsafe_rbg"), 6, 4)) == A)


@pytest.mark.parametrize("keep", [True, False])
def test_vmap_over_keys_equals_a_loop(keep):
    def products(key):
        A = subspace.draw(key, N, 7, keep=keep, normalise=True)
        y = subspace.pseudo_inverse_times(A, X)
        return y, subspace.times(A, y), subspace.transpose_times(A, X)

    keys = jax.random.split(jax.random.key(0), 3)
    together, alone = jax.vmap(products)(keys), jax.jit(products)
    for i, key in enumerate(keys):
        for some, one in zip(together, alone(key), strict=True):
            np.testing.assert_allclose(some[i], one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (3, 7), (100, 4321)])
@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5])
def test_normal_is_that_of_jax(shape, seed):
    key = jax.random.fold_in(jax.random.key(seed), 3)
    np.testing.assert_array_equal(
        jax.jit(subspace.normal, static_argnums=1)(key, shape), jax.random.normal(key, shape)
    )
    other = jax.random.key(seed, impl="rbg")
    np.testing.assert_array_equal(subspace.normal(other, shape), jax.random.normal(other, shape))


def test_normal_is_that_of_jax_in_float64_too():
    with jax.enable_x64(True):
        drawn = subspace.normal(jax.random.key(0), (3, 5))
        assert drawn.dtype == jnp.float64
        np.testing.assert_array_equal(drawn, jax.random.normal(jax.random.key(0), (3, 5)))
