"""The subspace operator against a dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gengap import subspace

KEY = jax.random.key(0)
X = jnp.cos(jnp.arange(60.0))


@pytest.mark.parametrize(("dim", "normalise"), [(1, False), (7, True), (40, False), (60, False)])
def test_pseudo_inverse_equals_numpy(dim, normalise):
    A = subspace.draw(KEY, 60, dim, normalise=normalise)
    expected = np.linalg.pinv(np.asarray(A, np.float64).T) @ np.asarray(X, np.float64)
    tolerance = 1e-4 if dim < 60 else 3e-2  # a square matrix is nearly singular, and squared in A^T A
    np.testing.assert_allclose(
        subspace.pseudo_inverse_times(A, X), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
    )


def test_pseudo_inverse_undoes_times():
    A, y = subspace.draw(KEY, 60, 9), jnp.arange(9.0) - 4
    np.testing.assert_allclose(subspace.pseudo_inverse_times(A, subspace.times(A, y)), y, atol=1e-4)


def test_times_is_the_sum_of_scaled_columns():
    A = subspace.draw(KEY, 6, 2)
    np.testing.assert_allclose(subspace.times(A, jnp.array([2.0, -3.0])), 2 * A[0] - 3 * A[1], rtol=1e-5)


def test_entries_are_standard_normal():
    A = np.asarray(subspace.draw(KEY, 400, 50))
    assert abs(A.mean()) < 4 / np.sqrt(A.size)
    assert abs(A.var() - 1) < 4 * np.sqrt(2 / A.size)
    assert abs((A**4).mean() - 3) < 4 * np.sqrt(96 / A.size)
    assert abs(np.corrcoef(A).ravel()).max(where=~np.eye(50, dtype=bool).ravel(), initial=0) < 5 / np.sqrt(400)


def test_columns_are_what_is_asked_for():
    A = subspace.draw(KEY, 5, 3, columns=lambda key, shape: jnp.arange(float(np.prod(shape))).reshape(shape))
    np.testing.assert_array_equal(A, np.arange(15.0).reshape(3, 5))


def test_normalised_columns_have_length_one_and_the_same_direction():
    plain, unit = (subspace.draw(KEY, 60, 9, normalise=normalise) for normalise in (False, True))
    np.testing.assert_allclose(jnp.linalg.norm(unit, axis=1), np.ones(9), rtol=1e-6)
    np.testing.assert_allclose(unit * jnp.linalg.norm(plain, axis=1, keepdims=True), plain, rtol=1e-5)


def test_the_same_key_gives_the_same_matrix():
    A = subspace.draw(KEY, 6, 4)
    np.testing.assert_array_equal(A, subspace.draw(jax.random.key(0), 6, 4))
    assert not np.any(subspace.draw(jax.random.key(1), 6, 4) == A)
