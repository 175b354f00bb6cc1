"""Hessian measures against the dense Hessian of a network of some 500 parameters, and against known spectra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from gengap import data, hessian, minima, models, objective


@functools.cache
def network():
    """Loss and parameters of a trained network with 12 inputs, 25 hidden units and 6 classes: 481 parameters."""
    x = jax.random.normal(jax.random.key(0), (200, 12))
    y = jax.random.randint(jax.random.key(1), (200,), 0, 6)
    keys = jax.random.split(jax.random.key(2), 2)
    params = {
        "a": jax.random.normal(keys[0], (12, 25)) / 3,
        "b": jnp.zeros(25),
        "c": jax.random.normal(keys[1], (25, 6)) / 5,
        "d": jnp.zeros(6),
    }

    def apply(p, x):
        return jnp.tanh(x @ p["a"] + p["b"][None]) @ p["c"] + p["d"][None]

    loss = objective.over_dataset(apply, x, y)
    step = jax.jit(lambda p: jax.tree.map(lambda a, g: a - 0.5 * g, p, jax.grad(loss)(p)))
    for _ in range(200):
        params = step(params)
    flat, tree = ravel_pytree(params)
    dense = jax.hessian(lambda v: loss(tree(v)))(flat)
    return loss, params, np.asarray(dense, np.float64)


def quadratic(spectrum):
    """f whose Hessian is a rotation of this spectrum."""
    n = len(spectrum)
    Q = jnp.linalg.qr(jax.random.normal(jax.random.key(9), (n, n)))[0]
    A = (Q * spectrum[None]) @ Q.T
    return lambda x: 0.5 * x @ A @ x


def test_the_network_has_about_500_parameters() -> None:
    assert 450 <= len(network()[2]) <= 550


def test_a_product_is_that_of_the_dense_hessian() -> None:
    loss, params, dense = network()
    flat, tree = ravel_pytree(params)
    v = jax.random.normal(jax.random.key(3), flat.shape)
    np.testing.assert_allclose(ravel_pytree(hessian.product(loss, params, tree(v)))[0], dense @ v, atol=1e-5)


def test_the_top_eigenvalues_are_those_of_the_dense_hessian() -> None:
    loss, params, dense = network()
    top = np.linalg.eigvalsh(dense)[::-1][:5]
    found = hessian.eigenvalues(loss, params, jax.random.key(0), k=5, num_matvecs=60)
    np.testing.assert_allclose(found, top, rtol=1e-4)


@pytest.mark.parametrize("estimate", [hessian.trace, hessian.trace_plus_plus])
def test_a_trace_is_within_its_own_error(estimate) -> None:
    """Three standard errors in 95 of 100 repeats; the mean over all repeats within three of theirs."""
    loss, params, dense = network()
    exact = np.trace(dense)
    found = [estimate(loss, params, jax.random.key(i), num_samples=30) for i in range(100)]
    z = np.array([float((one.value - exact) / one.sem) for one in found])
    assert (np.abs(z) < 3).sum() >= 95
    values = np.array([float(one.value) for one in found])
    assert abs(values.mean() - exact) < 3 * values.std(ddof=1) / 10 + 1e-4 * exact


def test_hutch_plus_plus_is_exact_on_a_low_rank() -> None:
    loss = quadratic(jnp.concatenate([jnp.array([5.0, 3.0, 1.0]), jnp.zeros(97)]))
    found = hessian.trace_plus_plus(loss, jnp.zeros(100), jax.random.key(0), num_samples=15)
    np.testing.assert_allclose(found.value, 9.0, rtol=1e-4)
    assert hessian.trace(loss, jnp.zeros(100), jax.random.key(0), num_samples=15).sem > 100 * found.sem


def test_a_spectral_density_is_within_its_own_error() -> None:
    """Against the same Gaussian around each eigenvalue, as the trace: three standard errors, 95 of 100 repeats."""
    loss, params, dense = network()
    every = np.linalg.eigvalsh(dense)
    within = []
    for i in range(100):
        found = hessian.spectral_density(
            loss, params, jax.random.key(i), num_samples=15, num_matvecs=60, width=0.05
        )
        at = np.asarray(found.eigenvalues, np.float64)
        exact = (np.exp(-0.5 * ((at[:, None] - every[None]) / 0.05) ** 2) / (0.05 * np.sqrt(2 * np.pi))).mean(1)
        error = np.abs(np.asarray(found.density) - exact)
        within.append((error <= 3 * np.asarray(found.sem) + 1e-4 * exact.max()).mean())
        np.testing.assert_allclose(np.trapezoid(np.asarray(found.density), at), 1, rtol=1e-2)
    assert found.gradients == 2 * 60 * 15
    assert (np.array(within) >= 0.9).sum() >= 95
    assert np.mean(within) >= 0.95


@pytest.mark.data
def test_the_hessian_of_f1_on_mnist_against_converged_references() -> None:
    """Top eigenvalue against ARPACK at a tolerance of 1e-7, trace against 300 other products; both within 1 %."""
    ds = data.head(data.load("mnist"), 1000)
    model = models.f1(ds.num_classes)
    key = jax.random.key(0)
    minimum, _ = minima.find_pair(model, ds, key, small_batch=100, large_batch=200, num_seeds=1, epochs=5)
    params = jax.tree.map(lambda a: a[0], minimum.params)
    loss = objective.over_dataset(model.apply, ds.x_train, ds.y_train)
    flat, tree = ravel_pytree(params)
    times = jax.jit(lambda v: ravel_pytree(hessian.product(loss, params, tree(v)))[0])
    operator = scipy.sparse.linalg.LinearOperator(
        (flat.size, flat.size), lambda v: np.asarray(times(jnp.asarray(v.ravel(), jnp.float32)), np.float64)
    )
    start = np.random.default_rng(0).standard_normal(flat.size)
    top = scipy.sparse.linalg.eigsh(operator, k=1, which="LA", v0=start, tol=1e-7, return_eigenvectors=False)[0]
    assert float(hessian.eigenvalues(loss, params, key)[0]) == pytest.approx(top, rel=0.01)
    reference = hessian.trace(loss, params, jax.random.key(1), num_samples=300)
    found = hessian.trace_plus_plus(loss, params, key, num_samples=90)
    assert float(reference.sem / reference.value) < 0.005
    assert float(found.value) == pytest.approx(float(reference.value), rel=0.01)


def test_new_parameters_compile_nothing() -> None:
    loss, params, _ = network()
    hessian.eigenvalues(loss, params, jax.random.key(0), k=1, num_matvecs=5)
    before = hessian._lanczos._cache_size()
    hessian.eigenvalues(loss, jax.tree.map(lambda a: 2 * a, params), jax.random.key(1), k=2, num_matvecs=5)
    assert hessian._lanczos._cache_size() == before


def test_bad_arguments_are_named() -> None:
    loss, params, _ = network()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="k is 0"):
        hessian.eigenvalues(loss, params, key, k=0)
    with pytest.raises(ValueError, match="num_samples is 1"):
        hessian.trace(loss, params, key, num_samples=1)
    with pytest.raises(ValueError, match="num_samples is 5; it must be at least 6"):
        hessian.trace_plus_plus(loss, params, key, num_samples=5)
    with pytest.raises(ValueError, match="points is 1"):
        hessian.spectral_density(loss, params, key, points=1)
