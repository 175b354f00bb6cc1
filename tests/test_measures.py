"""Each measure against its closed form, and the audit against what theory says of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gengap import measures, objective, symmetry

KEY = jax.random.key(0)


def rectified(params, x):
    """Three layers with biases: 36 inputs, 7 and 6 hidden units, 3 classes."""
    for name in ("Dense_0", "Dense_1"):
        x = jnp.maximum(x @ params[name]["kernel"] + params[name]["bias"][None], 0)
    return x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"][None]


def rectified_params():
    shapes = [(36, 7), (7, 6), (6, 3)]
    keys = jax.random.split(jax.random.key(2), 3)
    return {
        f"Dense_{i}": {"kernel": jax.random.normal(k, shape) / shape[0] ** 0.5, "bias": 0.1 * jnp.ones(shape[1])}
        for i, (k, shape) in enumerate(zip(keys, shapes, strict=True))
    }


def linear(x):
    return 1.0 + jnp.vdot(jnp.array([3.0, -4.0, 12.0]), x)


X = jnp.array([1.0, -2.0, 0.5])
G = np.array([3.0, -4.0, 12.0])


def test_the_worst_case_of_a_linear_loss() -> None:
    """rho |g|_2, and adaptive rho | |x| g |_2."""
    np.testing.assert_allclose(measures.worst_case(linear, X, KEY, rho=0.1), 0.1 * 13, rtol=1e-5)
    scaled = np.linalg.norm((np.abs(X) + 0.5) * G)
    found = measures.worst_case(linear, X, KEY, rho=0.1, adaptive=True, eta=0.5)
    np.testing.assert_allclose(found, 0.1 * scaled, rtol=1e-5)


def test_the_worst_case_of_a_quadratic_is_its_top_eigenvalue() -> None:
    """rho^2 lambda / 2 at a minimum, where the gradient is 0 and the first step is at random."""
    A = jnp.diag(jnp.array([1.0, 2.0, 9.0]))
    found = measures.worst_case(lambda x: 0.5 * x @ A @ x, jnp.zeros(3), KEY, rho=0.2, max_evaluations=20)
    np.testing.assert_allclose(found, 0.02 * 9, rtol=1e-4)


def test_the_worst_case_in_a_box_of_a_linear_loss() -> None:
    """rho |g|_1, and adaptive rho sum |x_i g_i|."""
    np.testing.assert_allclose(measures.worst_case_linf(linear, X, KEY, rho=0.1), 0.1 * 19, rtol=1e-5)
    found = measures.worst_case_linf(linear, X, KEY, rho=0.1, adaptive=True)
    np.testing.assert_allclose(found, 0.1 * np.abs(np.asarray(X) * G).sum(), rtol=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_average_case_of_a_quadratic_is_a_trace(adaptive) -> None:
    """rho^2 tr(T H T) / 2."""
    H = jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 4.0]])
    T = np.abs(X) if adaptive else np.ones(3)
    found = measures.average_case(
        lambda x: 0.5 * (x - X) @ H @ (x - X), X, KEY, rho=0.3, adaptive=adaptive, num_samples=4000
    )
    exact = 0.09 * np.trace(np.diag(T) @ np.asarray(H) @ np.diag(T)) / 2
    assert abs(found.value - exact) < 4 * found.sem
    assert found.sem < 0.05 * exact


def test_m_sharpness_is_the_mean_over_the_parts() -> None:
    losses = [lambda x: linear(x), lambda x: -2 * linear(x)]
    np.testing.assert_allclose(measures.m_sharpness(losses, X, KEY, rho=0.1), 0.1 * (13 + 26) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="losses is empty"):
        measures.m_sharpness([], X, KEY)


def test_sigma_of_an_error_that_is_a_threshold() -> None:
    """P(|sigma z| > 1) = 0.2 at sigma = 1 / 1.2816, for a mean over 4,000 parameters that is close to it."""

    def error(x):
        return (jnp.abs(x) > 1).mean()

    found = measures.pac_bayes_sigma(error, jnp.zeros(4000), KEY, rise=0.2, num_samples=20)
    np.testing.assert_allclose(found, 1 / 1.2816, rtol=0.01)
    assert measures.pac_bayes_sigma(lambda x: jnp.float32(0), X, KEY, largest=2.0) > 1.99


def classifier():
    x = jax.random.normal(jax.random.key(5), (40, 4))
    y = jnp.arange(40) % 3
    W = jax.random.normal(jax.random.key(6), (4, 3))
    b = jnp.array([0.3, 0.0, -0.2])
    return x, y, {"last": {"kernel": W, "bias": b}}


def logits(params, x):
    return x @ params["last"]["kernel"] + params["last"]["bias"][None]


def test_relative_flatness_of_a_last_layer() -> None:
    """The estimate, the closed form, and the definition summed over the dense Hessian."""
    x, y, params = classifier()
    loss = objective.over_dataset(logits, x, y)
    W = params["last"]["kernel"]
    closed = measures.relative_flatness_last(x, W, params["last"]["bias"])
    H = jax.hessian(lambda W: loss({"last": {"kernel": W, "bias": params["last"]["bias"]}}))(W)
    definition = jnp.einsum("is,it,jsjt->", W, W, H)
    np.testing.assert_allclose(closed, definition, rtol=1e-5)
    found = measures.relative_flatness(loss, params, KEY, layer=("last", "kernel"), num_samples=4000)
    assert abs(found.value - closed) < 4 * found.sem
    assert found.sem < 0.05 * closed


def test_the_fisher_trace_of_a_linear_classifier() -> None:
    """mean_i (|x_i|^2 + 1) (1 - |p_i|^2), over kernel and bias."""
    x, _, params = classifier()
    p = np.asarray(jax.nn.softmax(logits(params, x)))
    exact = ((np.asarray(x) ** 2).sum(1) + 1) @ (1 - (p**2).sum(1)) / len(x)
    found = measures.fisher_trace(lambda q: logits(q, x), params, KEY, num_samples=2000)
    assert abs(found.value - exact) < 4 * found.sem
    assert found.sem < 0.05 * exact


def test_the_noise_scale_has_its_two_parts() -> None:
    """f_i = g_i . x has the gradients g_i: |G|^2 is that of their mean, tr(Sigma) their variance."""
    g = jnp.array([1.0, 2.0, 0.0, 0.5])[None] + jax.random.normal(jax.random.key(7), (500, 4))
    found = measures.noise_scale(
        lambda params, x, y: (x @ params).mean(), jnp.zeros(4), g, jnp.zeros(500, int), KEY,
        small=4, large=64, num_samples=20_000,
    )  # fmt: skip
    mean, variance = np.asarray(g).mean(0), np.asarray(g).var(0).sum()
    np.testing.assert_allclose(found.square, mean @ mean, rtol=0.03)
    np.testing.assert_allclose(found.trace, variance, rtol=0.03)
    np.testing.assert_allclose(found.value, variance / (mean @ mean), rtol=0.05)


def test_the_path_norm_of_two_layers() -> None:
    A, B = jnp.array([[1.0, -2.0], [0.5, 3.0]]), jnp.array([[2.0], [-1.0]])
    found = measures.path_norm(lambda p, x: jnp.maximum(x @ p[0], 0) @ p[1], (A, B), jnp.zeros((1, 2)))
    paths = [(A[i, j] * B[j, 0]) ** 2 for i in range(2) for j in range(2)]
    np.testing.assert_allclose(found, math.sqrt(sum(map(float, paths))), rtol=1e-6)


def test_the_distance_is_euclidean() -> None:
    assert (
        measures.distance(
            {"a": jnp.array([3.0]), "b": jnp.zeros(2)}, {"a": jnp.zeros(1), "b": jnp.array([0, 4.0])}
        )
        == 5
    )


def test_bad_arguments_are_named() -> None:
    for measure in (measures.worst_case, measures.worst_case_linf, measures.average_case):
        with pytest.raises(ValueError, match="rho is 0"):
            measure(linear, X, KEY, rho=0.0)
    with pytest.raises(ValueError, match="small is 8 and large is 8"):
        measures.noise_scale(lambda p, x, y: p.sum(), X, X[None], jnp.zeros(1, int), KEY, small=8, large=8)
    with pytest.raises(ValueError, match="repeats is 1"):
        symmetry.audit({}, {}, X, KEY, repeats=1)


def test_the_audit_finds_what_theory_says() -> None:
    """Adaptive, relative and function-space measures survive a rescaling of layers, the others do not."""
    params, x = rectified_params(), jax.random.normal(jax.random.key(0), (12, 36))
    y = jnp.argmax(rectified(params, x), axis=1)
    f = objective.over_dataset(rectified, x, y)
    layers = symmetry.chain(params)
    order = [jax.random.permutation(KEY, 7), jax.random.permutation(KEY, 6)]
    found = symmetry.audit(
        {
            "loss": lambda p, key: f(p),
            "Fisher trace": lambda p, key: measures.fisher_trace(
                lambda q: rectified(q, x), p, key, num_samples=200
            ),
            "worst case": lambda p, key: measures.worst_case(f, p, key, rho=0.01),
            "worst case, adaptive": lambda p, key: measures.worst_case(f, p, key, rho=0.01, adaptive=True),
            "box": lambda p, key: measures.worst_case_linf(f, p, key, adaptive=True, eta=1.0),
            "box, adaptive": lambda p, key: measures.worst_case_linf(f, p, key, adaptive=True),
            "average, adaptive": lambda p, key: measures.average_case(f, p, key, adaptive=True, num_samples=200),
            "relative flatness": lambda p, key: measures.relative_flatness(
                f, p, key, layer=("Dense_2", "kernel"), num_samples=50
            ),
            "length": lambda p, key: optax.tree.norm(p),
            "noise": lambda p, key: jax.random.normal(key),
        },
        {
            "alpha": lambda p: symmetry.alpha_scale(p, layers, [8.0, 0.5, 0.25]),
            "permutation": lambda p: symmetry.permute(p, layers, order),
        },
        params,
        KEY,
    )
    verdicts = {(one.measure, one.symmetry): one.verdict for one in found}
    invariant = {
        "loss", "worst case, adaptive", "box, adaptive", "average, adaptive", "relative flatness",
    }  # fmt: skip
    for name in invariant:
        assert verdicts[name, "alpha"] == "unchanged", name
    for name in ("worst case", "box", "length", "Fisher trace"):
        assert verdicts[name, "alpha"] == "changed", name
    for name in ("loss", "worst case", "worst case, adaptive", "length", "Fisher trace"):
        assert verdicts[name, "permutation"] == "unchanged", name
    assert verdicts["noise", "alpha"] == "unchanged"  # the same keys


def test_the_audit_says_what_it_cannot_resolve() -> None:
    def noisy(p, key):
        return jax.random.normal(jax.random.fold_in(key, int(p.sum())))

    found = symmetry.audit(
        {"noise": noisy, "nothing": lambda p, key: jnp.nan},
        {"add": lambda p: p + 1},
        jnp.zeros(3),
        KEY,
        repeats=10,
    )
    assert [one.verdict for one in found] == ["not resolved", "not resolved"]
