"""Description length, evidence and free energy against their closed forms, with the errors they state."""

import functools
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import gengap
from gengap import flat, theories
from gengap.comparison import QUICK

KEY = jax.random.key(0)
N = 100
SEEDS = range(20)


def quadratic(h: np.ndarray, base: float = 0.0) -> Callable:
    h = jnp.asarray(h, jnp.float32)
    return lambda x: base + 0.5 * jnp.sum(h * x**2)


def covered(results: list, exact: float) -> None:
    """The mean is right to its own error, and two standard errors hold the truth in 17 to 20 of 20."""
    values, sems = np.array([(r.value, r.sem) for r in results]).T
    assert abs(values.mean() - exact) < 3 * values.std(ddof=1) / len(values) ** 0.5 + 0.01 * abs(exact)
    assert 17 <= (abs(values - exact) < 2 * sems).sum() <= 20


# --- description length


def test_bits_of_a_quadratic() -> None:
    """Two leaves of ranges 4 and 0.5: the rise is sum h_i (range_i 2^-b)^2 / 24."""
    params = {"a": jnp.linspace(-2.0, 2.0, 40), "b": jnp.linspace(0.0, 0.5, 30)}
    h = np.concatenate([np.geomspace(0.1, 10, 40), np.full(30, 3.0)])
    x0 = np.concatenate([params["a"], params["b"]])

    def loss(p):
        x = jnp.concatenate([p["a"], p["b"]])
        return 0.2 + 0.5 * jnp.sum(jnp.asarray(h, jnp.float32) * (x - x0) ** 2)

    squares = np.concatenate([np.full(40, 16.0), np.full(30, 0.25)])
    exact = 0.5 * math.log2((h * squares).sum() / (24 * 0.01))
    found = [theories.description_length(loss, params, jax.random.key(s), examples=N) for s in SEEDS]
    covered(found, exact)
    # N (f + c 4^-b) / ln 2 + n b is least where n = 2 N c 4^-b
    c = (h * squares).sum() / 24
    best = 0.5 * math.log2(2 * N * c / 70)
    least = (N * 0.2 + 70 / 2) / math.log(2) + 70 * best
    totals = np.array([r.total for r in found])
    np.testing.assert_allclose(totals.mean(), least, rtol=0.01)
    np.testing.assert_allclose(np.mean([r.best for r in found]), best, atol=0.15)
    assert np.sqrt(np.mean([r.total_sem**2 for r in found])) < 3 * totals.std(ddof=1) + 1


def test_rounding_takes_a_leaf_of_one_value_as_it_is() -> None:
    with pytest.warns(RuntimeWarning, match="a bound"):
        found = theories.description_length(lambda p: jnp.sum(p**2), jnp.ones(5), KEY, examples=N)
    assert (found.rises == 0).all() and found.value == 1.0


def test_a_loss_too_stiff_for_sixteen_bits_has_a_bound() -> None:
    x = jnp.linspace(-1.0, 1.0, 10)
    with pytest.warns(RuntimeWarning, match="a bound"):
        found = theories.description_length(lambda p: 1e12 * jnp.sum((p - x) ** 2), x, KEY, examples=N)
    assert found.value == 16.0


def test_several_rises_are_those_of_one_each() -> None:
    x = jnp.linspace(-1.0, 1.0, 50)
    several = theories.description_length(lambda p: jnp.sum((p - x) ** 2), x, KEY, examples=N, rise=(1e-3, 0.1))
    for i, rise in enumerate((1e-3, 0.1)):
        one = theories.description_length(lambda p: jnp.sum((p - x) ** 2), x, KEY, examples=N, rise=rise)
        assert (several.value[i], several.sem[i]) == pytest.approx((one.value, one.sem), rel=1e-6)
        assert (several.total, several.gradients) == pytest.approx((one.total, one.gradients))


def test_flatter_is_shorter() -> None:
    x = jnp.linspace(-1.0, 1.0, 50)
    bits = [
        theories.description_length(lambda p: h * jnp.sum((p - x) ** 2), x, KEY, examples=N).value  # noqa: B023
        for h in (1.0, 16.0)
    ]
    np.testing.assert_allclose(bits[1] - bits[0], 2, atol=0.02)  # the same offsets


# --- evidence


def regression(alpha: float, noise: float = 0.5):
    """Linear regression: -ln p(y | w) / N as a loss, ridge solution, and ln p(y) / N exactly."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 20)) * np.geomspace(0.05, 2, 20)
    y = X @ rng.normal(size=20) + noise * rng.normal(size=N)
    variance = noise**2

    def loss(w):
        residual = jnp.asarray(y, jnp.float32) - jnp.asarray(X, jnp.float32) @ w
        return 0.5 * jnp.mean(residual**2) / variance + 0.5 * math.log(2 * math.pi * variance)

    w = np.linalg.solve(X.T @ X / variance + alpha * np.eye(20), X.T @ y / variance)
    covariance = variance * np.eye(N) + X @ X.T / alpha
    _, logdet = np.linalg.slogdet(covariance)
    exact = -0.5 * (y @ np.linalg.solve(covariance, y) + logdet + N * math.log(2 * math.pi)) / N
    gamma = np.trace(np.linalg.solve(X.T @ X / variance + alpha * np.eye(20), X.T @ X / variance))
    return loss, jnp.asarray(w, jnp.float32), exact, gamma


def test_the_evidence_of_linear_regression() -> None:
    loss, w, exact, gamma = regression(2.0)
    found = [theories.evidence(loss, w, jax.random.key(s), examples=N, prior=2.0) for s in SEEDS]
    covered(found, exact)
    np.testing.assert_allclose(np.mean([r.determined for r in found]), gamma, rtol=0.05)
    assert all(r.value == pytest.approx(r.fit - r.penalty - r.occam) and abs(r.negative) < 1e-6 for r in found)


def test_the_prior_of_most_evidence() -> None:
    """MacKay's fixed point, where also the derivative of the exact evidence is 0."""
    alpha = 1.0
    for _ in range(200):
        _, w, _, gamma = regression(alpha)
        alpha = gamma / float(w @ w)
    loss, w, exact, _ = regression(alpha)
    slope = (regression(alpha * 1.01)[2] - regression(alpha * 0.99)[2]) / (0.02 * alpha)
    assert abs(slope) < 1e-5
    found = [theories.evidence(loss, w, jax.random.key(s), examples=N) for s in SEEDS]
    np.testing.assert_allclose(np.mean([r.prior for r in found]), alpha, rtol=0.1)
    covered(found, exact)


def test_several_priors_are_those_of_one_each() -> None:
    loss, w, _, _ = regression(2.0)
    several = theories.evidence(loss, w, KEY, examples=N, prior=[None, 2.0])
    for i, prior in enumerate((None, 2.0)):
        one = theories.evidence(loss, w, KEY, examples=N, prior=prior)
        assert [values[i] for values in several] == pytest.approx(list(one))


def occam_of(h: np.ndarray, **more) -> tuple[list[theories.Evidence], float]:
    """Of a dense Hessian with these eigenvalues, and exactly."""
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(500, 500)))[0]
    H = jnp.asarray(Q @ np.diag(h) @ Q.T, jnp.float32)
    found = [
        theories.evidence(
            lambda x: 0.5 * x @ H @ x, jnp.ones(500), jax.random.key(s), examples=N, prior=3.0, **more
        )
        for s in SEEDS
    ]
    assert found[0].penalty == pytest.approx(3 * 500 / (2 * N))
    return found, 0.5 * np.log1p(np.maximum(N * h / 3, -0.5)).sum() / N


def test_the_occam_factor_of_a_dense_hessian() -> None:
    found, exact = occam_of(np.geomspace(1e-3, 30, 500))
    covered([r._replace(value=r.occam) for r in found], exact)


@pytest.mark.parametrize("depth", [-0.2, -2.0])  # of N h / alpha; the second is cut at -0.5
def test_negative_curvature_counts_down_to_half_the_precision_of_the_prior(depth) -> None:
    """A tenth of the eigenvalues."""
    h = np.concatenate([np.geomspace(1e-3, 30, 450), np.full(50, depth * 3 / N)])
    found, exact = occam_of(h, num_products=60)
    np.testing.assert_allclose(np.mean([r.occam for r in found]), exact, rtol=0.02)
    negative = -h[450:].sum() / np.abs(h).sum()
    np.testing.assert_allclose(np.mean([r.negative for r in found]), negative, rtol=0.1)


def test_the_evidence_of_a_spectrum_as_networks_have_it() -> None:
    """A few stiff directions, and twenty thousand of hardly any curvature, up or down."""
    rng = np.random.default_rng(0)
    h = np.concatenate([np.geomspace(1e-2, 1, 50), rng.normal(0, 1e-4, 20_000), np.full(50, -5e-3)])
    scale = jnp.asarray(h, jnp.float32)
    f = lambda x: 0.5 * jnp.sum(scale * x**2)  # noqa: E731
    found = theories.evidence(f, jnp.ones(len(h)), KEY, examples=N, prior=3.0)
    ratios = np.maximum(N * h / 3, -0.5)
    exact = 0.5 * np.log1p(ratios).sum() / N
    assert found.converged and abs(found.occam - exact) < 3 * found.sem < 0.3 * exact
    assert found.determined == pytest.approx((1 - 1 / (1 + ratios)).sum(), rel=0.2)
    with pytest.warns(RuntimeWarning, match="last quarter of the products moves the evidence by"):
        found = theories.evidence(f, jnp.ones(len(h)), KEY, examples=N, prior=0.01)
    assert not found.converged  # alpha / N is below what the products resolve


def test_no_curvature_has_no_best_prior() -> None:
    with pytest.warns(RuntimeWarning, match="nan"):
        found = theories.evidence(lambda x: 0.0 * x.sum() + 1, jnp.ones(5), KEY, examples=N)
    assert math.isnan(found.value)


# --- free energy


FEW_STIFF = np.concatenate([[100.0, 50.0, 20.0, 10.0, 5.0], np.full(99_995, 1e-4)])
"""N width^2 h of each direction."""


@pytest.mark.filterwarnings("ignore:the free energy has not")
def test_the_free_energy_of_a_quadratic() -> None:
    """1/2 sum ln(1 + N width^2 h_i)."""
    stiffness = np.geomspace(0.1, 100, 10)
    f, exact = quadratic(stiffness / (N * 0.1**2), 0.5), 0.5 * np.log1p(stiffness).sum()
    found = [
        theories.free_energy(f, jnp.zeros(10), jax.random.key(s), width=0.1, examples=N, num_steps=200)
        for s in SEEDS
    ]
    assert sum(r.converged for r in found) >= 18
    assert all(r.down < r.value < r.up for r in found)
    covered(found, exact)


def test_the_free_energy_in_a_hundred_thousand_dimensions() -> None:
    f, exact = quadratic(FEW_STIFF / (N * 0.1**2)), 0.5 * np.log1p(FEW_STIFF).sum()
    found = theories.free_energy(
        f, jnp.zeros(len(FEW_STIFF)), KEY, width=0.1, examples=N, num_chains=4, num_steps=150
    )
    assert found.converged and abs(found.value - exact) < 3 * found.sem < 3


@pytest.mark.filterwarnings("ignore:the free energy has not")
def test_a_mean_of_exponentials_is_wrong_where_the_free_energy_is_right() -> None:
    """Of 24.9 nats as many draws as the chains take miss many times their own spread."""
    h = np.geomspace(1, 100, 20)
    f, exact = quadratic(h / (N * 0.1**2)), 0.5 * np.log1p(h).sum()
    found = theories.free_energy(f, jnp.zeros(20), KEY, width=0.1, examples=N, num_steps=800)
    energies = N * np.asarray(jax.vmap(f)(0.1 * jax.random.normal(KEY, (2 * found.gradients, 20))))
    plain = math.log(len(energies)) - np.logaddexp.reduce(-energies)
    assert abs(found.value - exact) < 3 * found.sem < 6
    assert plain - exact > 5


def test_the_free_energy_of_a_quartic() -> None:
    """In one dimension, by quadrature."""
    width, c = 0.5, 3.0

    def density(d: float) -> float:
        return math.exp(-N * c * d**4 - d * d / (2 * width**2)) / (width * math.sqrt(2 * math.pi))

    exact = -math.log(integrate.quad(density, -3, 3)[0])
    found = [
        theories.free_energy(
            lambda x: c * jnp.sum(x**4), jnp.zeros(1), jax.random.key(s), width=width, examples=N, num_steps=60
        )
        for s in SEEDS
    ]
    covered(found, exact)


def test_what_has_not_converged_says_so() -> None:
    f = quadratic(np.geomspace(1, 1e5, 50) / (N * 0.01))
    with pytest.warns(RuntimeWarning, match="not converged"):
        found = theories.free_energy(f, jnp.zeros(50), KEY, width=0.1, examples=N, num_chains=3, num_steps=50)
    assert not found.converged and found.up - found.down > 6


@pytest.mark.filterwarnings("ignore:the free energy has not")
def test_a_loss_that_is_not_finite_far_away_is_a_wall() -> None:
    """f is infinite beyond one width: -ln P(|d| < width) = -ln 0.6827."""
    found = [
        theories.free_energy(
            lambda x: jnp.where(jnp.abs(x).max() > 0.1, jnp.nan, 0.0), jnp.zeros(1), jax.random.key(s),
            width=0.1, examples=N, num_chains=20, num_steps=10,
        )
        for s in range(3)
    ]  # fmt: skip
    np.testing.assert_allclose(np.mean([r.value for r in found]), -math.log(0.6827), atol=0.15)


MEASURES = {
    "description_length": lambda f, **more: theories.description_length(f, jnp.arange(3.0), KEY, **more),
    "evidence": lambda f, **more: theories.evidence(f, jnp.arange(3.0), KEY, **more),
    "free_energy": lambda f, **more: theories.free_energy(f, jnp.arange(3.0), KEY, **{"width": 0.1, **more}),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_where_the_loss_is_not_finite_there_is_no_number(measure) -> None:
    with pytest.warns(RuntimeWarning, match="not finite"):
        found = measure(lambda x: jnp.nan * x.sum(), examples=N)
    assert math.isnan(found.value) and "nan" in repr(found)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_arguments_are_refused_by_name(measure) -> None:
    with pytest.raises(ValueError, match="examples is 0"):
        measure(lambda x: x @ x, examples=0)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda c: measure(lambda x: c * (x @ x), examples=N).value)(1.0)


def test_other_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="width is -1"):
        MEASURES["free_energy"](lambda x: x @ x, examples=N, width=-1.0)
    with pytest.raises(ValueError, match="num_steps is 5"):
        MEASURES["free_energy"](lambda x: x @ x, examples=N, num_steps=5)
    for prior in (0.0, [0.0, 1.0], []):
        with pytest.raises(ValueError, match="prior is"):
            MEASURES["evidence"](lambda x: x @ x, examples=N, prior=prior)
    for rise in (0.0, [0.0, 1.0], []):
        with pytest.raises(ValueError, match="rise is"):
            MEASURES["description_length"](lambda x: x @ x, examples=N, rise=rise)


def test_only_some_leaves() -> None:
    params = {"a": jnp.arange(3.0), "b": jnp.ones(2)}
    known = {"examples": N, "only": lambda name: name == "a"}
    alone = MEASURES["description_length"](lambda a: 0.1 * a @ a, examples=N)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = theories.description_length(
            lambda p: 0.1 * p["a"] @ p["a"] + 0 * p["b"].sum(), params, KEY, **known
        )
    assert both.value == pytest.approx(alone.value)
    assert theories.evidence(lambda p: p["a"] @ p["a"], params, KEY, prior=1.0, **known).penalty == pytest.approx(
        5 / (2 * N)
    )


def test_compare_takes_them_as_measures() -> None:
    measures = {
        "bits": functools.partial(theories.description_length, examples=N),
        "evidence": functools.partial(theories.evidence, examples=N),
        "free energy": functools.partial(theories.free_energy, examples=N, width=1e-4, num_chains=3, num_steps=20),
    }
    minima = {name: jnp.array([0.0, 1.0, value]) for name, value in (("flat", 0.0), ("sharp", 0.5))}

    def loss(x):
        return 10 * x @ x

    compared = gengap.compare(minima, loss, KEY, measures=measures, metric=QUICK._replace(dim=2), progress=None)
    of_bits = flat.key_for(jax.random.fold_in(KEY, 0), "bits")
    exact = [theories.description_length(loss, x, of_bits, examples=N).value for x in minima.values()]
    frame = compared.frame()
    assert frame["bits"].tolist() == pytest.approx(exact) and (frame["free energy_sem"] > 0).all()
    assert "± " in repr(compared) and "evidence" in repr(compared)
