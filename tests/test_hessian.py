"""Hessian measures against dense Hessians, known spectra and closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from gengap import data, flat, hessian, minima, models, objective
from tests.compiled import compiled

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def network():
    """Loss, parameters and Hessian of a network with 8 inputs, 12 hidden units and 4 classes: 160 parameters."""
    x = jax.random.normal(jax.random.key(0), (50, 8))
    y = jax.random.randint(jax.random.key(1), (50,), 0, 4)
    keys = jax.random.split(jax.random.key(2), 2)
    params = {
        "a": jax.random.normal(keys[0], (8, 12)) / 2,
        "b": jnp.zeros(12),
        "c": jax.random.normal(keys[1], (12, 4)) / 2,
        "d": jnp.zeros(4),
    }

    def loss(p):
        logits = jnp.tanh(x @ p["a"] + p["b"][None]) @ p["c"] + p["d"][None]
        return (jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(50), y]).mean()

    flat, tree = ravel_pytree(params)
    dense = jax.jit(jax.hessian(lambda v: loss(tree(v))))(flat)
    return loss, params, np.asarray(dense, np.float64)


def half_square(spectrum, x):
    return 0.5 * jnp.sum(spectrum * x**2)


def quadratic(spectrum):
    """f whose Hessian is this diagonal; of one shape, they compile once."""
    return Partial(half_square, jnp.asarray(spectrum, jnp.float32))


def outermost(spectrum, k, which):
    values = np.sort(np.asarray(spectrum, np.float64))
    high = {"largest": k, "smallest": 0, "both": k - k // 2}[which]
    return np.concatenate([values[::-1][:high], values[: k - high]])


def test_a_product_is_that_of_the_dense_hessian(network) -> None:
    loss, params, dense = network
    flat, tree = ravel_pytree(params)
    v = jax.random.normal(jax.random.key(3), flat.shape)
    np.testing.assert_allclose(ravel_pytree(hessian.product(loss, params, tree(v)))[0], dense @ v, atol=1e-5)


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_eigenpairs_are_those_of_the_dense_hessian(which, network) -> None:
    loss, params, dense = network
    k = 5 if which == "largest" else 2
    found = hessian.eigenpairs(loss, params, KEY, k=k, which=which)
    exact = outermost(np.linalg.eigvalsh(dense), k, which)
    np.testing.assert_allclose(found.values, exact, atol=1e-5 * np.abs(exact).max())
    V = np.stack([ravel_pytree(jax.tree.map(lambda a, i=i: a[i], found.vectors))[0] for i in range(k)])
    np.testing.assert_allclose(V @ V.T, np.eye(k), atol=1e-4)
    residuals = np.linalg.norm(dense @ V.T - V.T * np.asarray(found.values)[None], axis=0)
    np.testing.assert_allclose(found.residuals, residuals, rtol=0.05, atol=2e-6)
    assert found.converged.all()
    assert residuals.max() <= 1e-4 * np.linalg.norm(dense, 2)


SPECTRA = {
    "rank 2": [10, 1] + [0] * 38,
    "identity": [1] * 40,
    "rank 1": [3] + [0] * 39,
    "zero": [0] * 40,
    "copies": [5] * 3 + [4] * 2 + np.linspace(3, -2, 35).tolist(),
    "negative": list(-np.arange(40.0)),
    "nearly alike": [5, 4.9999, 4, *np.linspace(1, -1, 37)],
}


@pytest.mark.parametrize(("which", "factor"), [("largest", 1), ("smallest", 1), ("both", 1e-20)])
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_eigenvalues_are_exact_however_often_they_occur(spectrum, which, factor) -> None:
    spectrum = factor * np.asarray(spectrum, float)
    pairs = hessian.eigenpairs(quadratic(spectrum), jnp.zeros(40), KEY, k=5, which=which)
    scale = np.abs(spectrum).max()
    np.testing.assert_allclose(pairs.values, outermost(spectrum, 5, which), rtol=1e-5, atol=1e-5 * scale)
    assert pairs.converged.all()
    assert (pairs.residuals <= 1e-4 * scale).all()


@pytest.mark.parametrize("seed", range(8))
def test_no_copy_is_left_out(seed) -> None:
    """Rounding brings parts of them into the vectors of one start; here they have to be there in full."""
    rng = np.random.default_rng(seed)
    spectrum = np.exp(3 * rng.normal(size=40))
    spectrum[rng.choice(40, 3, replace=False)] = 0.9 * spectrum.max()
    pairs = hessian.eigenpairs(quadratic(spectrum), jnp.zeros(40), jax.random.key(seed), k=5)
    np.testing.assert_allclose(pairs.values, outermost(spectrum, 5, "largest"), rtol=1e-4)


@pytest.mark.parametrize("n", [1, 10])
def test_as_many_pairs_as_there_are(n) -> None:
    found = hessian.eigenpairs(quadratic(np.ones(n)), jnp.zeros(n), KEY, k=n)
    np.testing.assert_allclose(found.values, np.ones(n), rtol=1e-5)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(n), atol=1e-5)
    assert found.products == 2 * n
    with pytest.raises(ValueError, match=f"k is {n + 1}; it must be at most {n}"):
        hessian.eigenpairs(quadratic(np.ones(n)), jnp.zeros(n), KEY, k=n + 1)


def test_three_examples_of_least_squares() -> None:
    """X^T X / 3 has rank 3."""
    X = jax.random.normal(jax.random.key(5), (3, 100))
    found = hessian.eigenpairs(lambda w: jnp.mean((X @ w - 1) ** 2) / 2, jnp.zeros(100), KEY, k=4)
    exact = np.linalg.svd(np.asarray(X, np.float64))[1] ** 2 / 3
    np.testing.assert_allclose(found.values, [*exact, 0], rtol=1e-5, atol=1e-5 * exact[0])
    assert found.products < 15


def test_a_layer_that_nothing_reads(network) -> None:
    loss, params, dense = network
    found = hessian.eigenpairs(lambda p: loss(p["used"]), {"used": params, "frozen": jnp.ones(40)}, KEY, k=3)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(dense)[::-1][:3], rtol=1e-5)
    np.testing.assert_allclose(found.vectors["frozen"], 0, atol=1e-4)


def test_leaves_whose_joined_names_are_alike_are_told_apart() -> None:
    """A dictionary's key may hold the sign that joins names; a leaf that is held fixed may be a function."""
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(3)}, "relu": jax.nn.relu}

    def loss(p: dict) -> jax.Array:
        assert p["relu"] is jax.nn.relu
        return 5 * (p["a/b"] ** 2).sum() + 10 * (p["a"]["b"] ** 2).sum()

    pairs = hessian.eigenpairs(*flat.part(loss, params, lambda name: name == "a/b"), KEY, k=5)
    np.testing.assert_allclose(pairs.values, [20, 20, 20, 10, 10], rtol=1e-5)
    assert pairs.vectors["relu"] is None and pairs.vectors["a/b"].shape == (5, 2)


def test_only_some_leaves(network) -> None:
    """The diagonal block of these; others may be of any type."""
    loss, params, dense = network
    params = {**params, "steps": 3}

    def loss_of(p):
        return loss({name: p[name] for name in "abcd"})

    part = flat.part(loss_of, params, lambda name: name in ("c", "d"))
    pairs = hessian.eigenpairs(*part, KEY, k=2)
    block = dense[108:, 108:]
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(block)[::-1][:2], rtol=1e-5)
    assert jax.tree.map(jnp.shape, pairs.vectors) == {
        "a": None, "b": None, "c": (2, 12, 4), "d": (2, 4), "steps": None
    }  # fmt: skip
    lengths = sum((pairs.vectors[name] ** 2).reshape(2, -1).sum(1) for name in "cd")
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    trace = hessian.trace(*part, KEY, num_samples=50)
    assert abs(trace.value - np.trace(block)) < 4 * trace.sem
    with pytest.raises(ValueError, match="only takes none of the leaves a, b, c, d, steps"):
        flat.part(loss_of, params, lambda name: False)


def test_leaves_of_mixed_types() -> None:
    """The Hessian of 2 (x.x) + a.a is 4 and 2 whatever the leaves are."""
    params = {"x": jnp.ones(3, jnp.bfloat16), "a": jnp.ones(2, jnp.float32), "b": np.float64(2.0)}

    def loss(p):
        return 2 * jnp.sum(p["x"].astype(jnp.float32) ** 2) + jnp.sum(p["a"] ** 2) + p["b"] ** 2

    found = hessian.eigenpairs(loss, params, KEY, k=6, tolerance=0.01)  # vectors are rounded for bfloat16
    np.testing.assert_allclose(found.values, [4, 4, 4, 2, 2, 2], rtol=2e-3)
    assert found.vectors["x"].dtype == jnp.float32
    assert float(hessian.trace(loss, params, KEY, num_samples=2).value) == 18


def test_what_has_not_converged_says_so() -> None:
    spectrum = np.linspace(1, 2, 100)
    with pytest.warns(RuntimeWarning, match="after 13 products 3 of 3 residuals are above the tolerance"):
        found = hessian.eigenpairs(quadratic(spectrum), jnp.zeros(100), KEY, k=3, max_products=10)
    assert not found.converged.any()
    assert found.products == 13
    # some eigenvalue is as near as the residual
    assert all(np.abs(spectrum - v).min() <= r for v, r in zip(found.values, found.residuals, strict=True))


@pytest.mark.parametrize("loss", [lambda x: jnp.sum(jnp.sqrt(x)), lambda x: jnp.nan * x @ x], ids=["inf", "nan"])
def test_a_hessian_that_is_not_finite(loss) -> None:
    x = jnp.zeros(4)
    with pytest.warns(RuntimeWarning, match="the Hessian is not finite"):
        found = hessian.eigenpairs(loss, x, KEY, k=2)
    assert np.isnan(found.values).all() and np.isnan(found.residuals).all() and not found.converged.any()
    with pytest.warns(RuntimeWarning, match="the Hessian is not finite"):
        assert np.isnan(hessian.density(loss, x, KEY, num_samples=2, num_products=3).density).all()
    with pytest.warns(RuntimeWarning, match="not finite"):
        assert not np.isfinite(hessian.trace(loss, x, KEY, num_samples=2).value)


def test_a_trace_is_within_its_own_error(network) -> None:
    """Three standard errors in 95 of 100 repeats; the mean over all repeats within three of theirs."""
    loss, params, dense = network
    exact = np.trace(dense)
    keys = jax.random.split(jax.random.key(4), 100)
    traces = jax.jit(jax.vmap(lambda key: hessian.trace(loss, params, key, num_samples=10)[:2]))(keys)
    values, sem = map(np.asarray, traces)
    assert (np.abs(values - exact) < 3 * sem).sum() >= 95
    assert abs(values.mean() - exact) < 3 * values.std(ddof=1) / 10 + 1e-4 * exact
    assert hessian.trace(loss, params, KEY, num_samples=3).gradients == 6


def test_a_trace_goes_with_the_loss() -> None:
    spectrum = np.linspace(1, 2, 100)
    A = 1e-20 * (np.diag(spectrum) + 0.1)
    loss = Partial(lambda A, x: 0.5 * x @ A @ x, jnp.asarray(A, jnp.float32))
    found = hessian.trace(loss, jnp.zeros(100), KEY)
    assert abs(found.value / np.trace(A) - 1) < 4 * found.sem / np.trace(A)
    assert 0 < found.sem < 0.1 * np.trace(A)


def test_a_density_is_within_its_own_error(network) -> None:
    """Against the same Gaussian around each eigenvalue, as the trace: three standard errors, 5 of 6 repeats."""
    loss, params, dense = network
    spectrum = np.linalg.eigvalsh(dense)
    within = []
    for i in range(6):
        found = hessian.density(loss, params, jax.random.key(i), num_samples=20, num_products=20, width=0.1)
        at = np.asarray(found.eigenvalues, np.float64)
        exact = (np.exp(-0.5 * ((at[:, None] - spectrum[None]) / 0.1) ** 2) / (0.1 * np.sqrt(2 * np.pi))).mean(1)
        error = np.abs(np.asarray(found.density) - exact)
        within.append((error <= 3 * np.asarray(found.sem) + 1e-3 * exact.max()).mean())
        np.testing.assert_allclose(np.trapezoid(np.asarray(found.density), at), 1, rtol=1e-2)
    assert found.gradients == 2 * 20 * 20
    assert (np.array(within) >= 0.9).sum() >= 5
    assert np.mean(within) >= 0.95


@pytest.mark.parametrize("factor", [1, 1e-20])
@pytest.mark.parametrize(
    ("spectrum", "num_samples"), [([2], 2), ([3] * 10, 2), ([0] * 10, 2), ([1] + [0] * 9, 200)], ids=str
)
def test_a_density_where_a_start_is_exhausted(spectrum, num_samples, factor) -> None:
    """It integrates to 1, with the mean of the spectrum; at least 0.1 % wide."""
    spectrum = factor * np.asarray(spectrum, float)
    n = len(spectrum)
    found = hessian.density(quadratic(spectrum), jnp.zeros(n), KEY, num_samples=num_samples)
    at, density = (np.asarray(a, np.float64) for a in (found.eigenvalues, found.density))
    np.testing.assert_allclose(np.trapezoid(density, at), 1, rtol=1e-3)
    mean = np.trapezoid(at * density, at)
    np.testing.assert_allclose(mean, spectrum.mean(), atol=0.04 * max(spectrum.max(), 0.01))
    assert found.gradients <= 2 * 2 * num_samples


@pytest.mark.data
def test_the_hessian_of_f1_on_mnist_against_converged_references() -> None:
    """Top eigenvalue against ARPACK at a tolerance of 1e-7, trace against 300 other products; both within 1 %."""
    ds = data.head(data.load("mnist"), 1000)
    model = models.f1(ds.num_classes)
    minimum = minima.find(model, ds, KEY, minima.Recipe(batch_size=100, epochs=5))
    params = minimum.params
    loss = objective.over_dataset(model.apply, ds.x_train, ds.y_train)
    flat, tree = ravel_pytree(params)
    times = jax.jit(lambda v: ravel_pytree(hessian.product(loss, params, tree(v)))[0])
    operator = scipy.sparse.linalg.LinearOperator(
        (flat.size, flat.size), lambda v: np.asarray(times(jnp.asarray(v.ravel(), jnp.float32)), np.float64)
    )
    start = np.random.default_rng(0).standard_normal(flat.size)
    top = scipy.sparse.linalg.eigsh(operator, k=1, which="LA", v0=start, tol=1e-7, return_eigenvectors=False)[0]
    assert float(hessian.eigenpairs(loss, params, KEY).values[0]) == pytest.approx(top, rel=1e-5)
    reference = hessian.trace(loss, params, jax.random.key(1), num_samples=300)
    found = hessian.trace(loss, params, KEY, num_samples=90)
    assert float(reference.sem / reference.value) < 0.005
    assert float(found.value) == pytest.approx(float(reference.value), rel=0.02)


def test_the_same_key_gives_the_same_numbers() -> None:
    f, x = Partial(lambda s, x: half_square(s, x) + x.sum() ** 2, jnp.linspace(0, 3, 10) ** 3), jnp.zeros(10)
    for measure in (hessian.eigenpairs, hessian.trace, partial(hessian.density, num_samples=2, num_products=3)):
        first, again, other = (measure(f, x, jax.random.key(seed)) for seed in (1, 1, 2))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.array_equal(first[1], other[1])


def test_new_parameters_compile_nothing(network) -> None:
    loss, params, _ = network
    other = jax.tree.map(lambda a: 1.1 * a, params)
    v = jax.tree.map(jnp.ones_like, params)
    calls = [
        lambda p, key: hessian.product(loss, p, v),
        lambda p, key: hessian.eigenpairs(loss, p, key, k=2, tolerance=0.01),
        lambda p, key: hessian.trace(loss, p, key, num_samples=3),
        lambda p, key: hessian.density(loss, p, key, num_samples=2, num_products=5),
    ]
    for call in calls:
        call(params, KEY)
        with compiled() as found:
            call(other, jax.random.key(1))
        assert not found


def test_what_can_be_traced() -> None:
    """A trace gives the same under `vmap` as in a loop; what looks at its numbers says so."""
    spectra = jnp.stack([jnp.linspace(0, 3, 10) ** 3, jnp.ones(10)])
    keys = jax.random.split(KEY, 2)
    x = jnp.zeros(10)

    def trace(spectrum, key):
        return hessian.trace(
            Partial(lambda s, x: jnp.sum(s * x**2) + x[0] * x[1], spectrum), x, key, num_samples=4
        )

    found = jax.jit(jax.vmap(trace))(spectra, keys)
    for i in range(2):
        one = trace(spectra[i], keys[i])
        np.testing.assert_allclose([found.value[i], found.sem[i]], [one.value, one.sem], rtol=1e-5, atol=1e-5)
    for measure in (hessian.eigenpairs, hessian.density):
        with pytest.raises(ValueError, match="call it outside jit, vmap and grad"):
            jax.vmap(lambda s, measure=measure: measure(Partial(half_square, s), x, KEY)[0])(spectra)


def test_a_bug_of_the_loss_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="bias"):
        hessian.eigenpairs(lambda p: p["bias"].sum(), {"kernel": jnp.ones(3)}, KEY)


def test_bad_arguments_are_named() -> None:
    f, x = quadratic(np.ones(100)), jnp.zeros(100)
    with pytest.raises(ValueError, match="k is 0"):
        hessian.eigenpairs(f, x, KEY, k=0)
    with pytest.raises(ValueError, match="k is 5; it must be at most 4"):
        hessian.eigenpairs(f, x, KEY, k=5, max_products=4)
    for tolerance in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="tolerance is"):
            hessian.eigenpairs(f, x, KEY, tolerance=tolerance)
    with pytest.raises(ValueError, match="num_samples is 1"):
        hessian.trace(f, x, KEY, num_samples=1)
    with pytest.raises(ValueError, match="points is 1"):
        hessian.density(f, x, KEY, points=1)
    with pytest.raises(ValueError, match="num_products is 0"):
        hessian.density(f, x, KEY, num_products=0)
    for width in (0.0, -1.0):
        with pytest.raises(ValueError, match="width is"):
            hessian.density(f, x, KEY, width=width)
    with pytest.raises(ValueError, match=r"params\['steps'\] is of type int"):
        hessian.trace(lambda p: p["x"] @ p["x"], {"x": x, "steps": jnp.zeros(2, int)}, KEY)
    with pytest.raises(ValueError, match="must return a floating-point scalar"):
        hessian.eigenpairs(lambda x: x**2, x, KEY)
