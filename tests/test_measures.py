"""Each measure against its closed form, and the audit against what theory says of it."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from gengap import kernels, measures, objective, symmetry
from tests.compiled import compiled

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
        lambda x: 0.5 * (x - X) @ H @ (x - X), X, KEY, rho=0.3, adaptive=adaptive, num_samples=400
    )
    exact = 0.09 * np.trace(np.diag(T) @ np.asarray(H) @ np.diag(T)) / 2
    assert abs(found.value - exact) < 4 * found.sem
    assert found.sem < 0.06 * exact


def test_sigma_of_an_error_that_is_a_threshold() -> None:
    """P(|sigma z| > 1) = 0.2 at sigma = 1 / 1.2816, for a mean over 4,000 parameters that is close to it."""

    def error(x):
        return (jnp.abs(x) > 1).astype(x.dtype).mean()

    for dtype in (jnp.float32, jnp.bfloat16):  # noise in bfloat16 has too few values
        found = measures.pac_bayes_sigma(error, jnp.zeros(4000, dtype), KEY, rise=0.2, num_samples=10)
        np.testing.assert_allclose(found, 1 / 1.2816, rtol=0.015)
    with pytest.warns(RuntimeWarning, match="a lower bound"):
        assert measures.pac_bayes_sigma(lambda x: 0 * x[0], X, KEY, largest=2.0) > 1.99


def classifier():
    x = jax.random.normal(jax.random.key(5), (40, 4))
    y = jnp.arange(40) % 3
    W = jax.random.normal(jax.random.key(6), (4, 3))
    b = jnp.array([0.3, 0.0, -0.2])
    return x, y, {"last": {"kernel": W, "bias": b}}


def logits(params, x):
    return x @ params["last"]["kernel"] + params["last"]["bias"][None]


def test_relative_flatness_of_a_last_layer() -> None:
    """The estimate, and the definition summed over the dense Hessian."""
    x, y, params = classifier()
    loss = objective.over_dataset(logits, x, y)
    W = params["last"]["kernel"]
    H = jax.hessian(lambda W: loss({"last": {"kernel": W, "bias": params["last"]["bias"]}}))(W)
    definition = jnp.einsum("is,it,jsjt->", W, W, H)
    found = measures.relative_flatness(loss, params, KEY, layer=("last", "kernel"), num_samples=500)
    assert abs(found.value - definition) < 4 * found.sem
    assert found.sem < 0.05 * definition


def exact_fisher_trace(params, x):
    """mean_i (|x_i|^2 + 1) (1 - |p_i|^2), over kernel and bias."""
    p = np.asarray(jax.nn.softmax(logits(params, x)))
    return ((np.asarray(x) ** 2).sum(1) + 1) @ (1 - (p**2).sum(1)) / len(x)


def test_the_fisher_trace_of_a_linear_classifier() -> None:
    """In chunks of 14, 13 and 13 too, and of logits [N, T, classes], which are N T examples."""
    x, _, params = classifier()
    exact = exact_fisher_trace(params, x)

    def by_position(params, x):
        return logits(params, x.reshape(-1, 4)).reshape(*x.shape[:2], 3)

    for apply, features, chunk in (
        (logits, x, 5000), (logits, x, 15), (by_position, x.reshape(8, 5, 4), 5000)
    ):  # fmt: skip
        found = measures.fisher_trace(apply, params, features, KEY, num_samples=100, chunk=chunk)
        assert abs(found.value - exact) < 4 * found.sem
        assert found.sem < 0.1 * exact
        assert found.gradients == 100
        np.testing.assert_allclose(found.value, exact, rtol=0.2)


def test_the_fisher_trace_scales_images() -> None:
    x, _, params = classifier()
    images = (255 * jax.nn.sigmoid(x)).astype(jnp.uint8)
    found = measures.fisher_trace(logits, params, images, KEY, num_samples=2)
    assert found.value == measures.fisher_trace(logits, params, images / 255, KEY, num_samples=2).value


def test_the_batches_of_the_two_sizes_of_a_noise_scale_are_drawn_apart() -> None:
    """Small batches that were the first examples of the large ones would go with them."""
    seen: dict[int, list[np.ndarray]] = {2: [], 8: []}

    def loss(params: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        jax.debug.callback(lambda y: seen[len(y)].append(np.asarray(y)), y)
        return (x @ params).sum()

    x, y = jnp.ones((1000, 1)), jnp.arange(1000)
    measures.noise_scale(loss, jnp.ones(1), x, y, KEY, small=2, large=8, num_samples=6)
    jax.effects_barrier()
    assert len(seen[2]) >= 6 and not any(set(s[:2]) <= set(b) for s in seen[2] for b in seen[8])


def test_the_noise_scale_has_its_two_parts() -> None:
    """f_i = g_i . x has the gradients g_i: |G|^2 is that of their mean, tr(Sigma) their variance."""
    g = jnp.array([0.3, 0.2, 0.0, 0.1])[None] + jax.random.normal(jax.random.key(7), (500, 4))
    mean, variance = np.asarray(g).mean(0), np.asarray(g).var(0).sum()

    def scale(factor):
        return measures.noise_scale(
            lambda params, x, y: factor * (x @ params).mean(), jnp.zeros(4), g, jnp.zeros(500, int),
            KEY, small=2, large=256, num_samples=500,
        )  # fmt: skip

    found = scale(1)
    np.testing.assert_allclose(found.value, variance / (mean @ mean), rtol=0.06)
    np.testing.assert_allclose(found.square, mean @ mean, rtol=0.03)
    np.testing.assert_allclose(found.trace, variance, rtol=0.06)
    np.testing.assert_allclose(scale(1e-20).value, found.value, rtol=1e-4)


def test_the_distance_is_euclidean() -> None:
    one, other = {"a": jnp.array([3.0]), "b": jnp.zeros(2)}, {"a": jnp.zeros(1), "b": jnp.array([0, 4.0])}
    assert measures.distance(one, other) == 5
    with pytest.raises(ValueError, match="different structures"):
        measures.distance(one, {"a": jnp.zeros(3)})


def mixed(p):
    """Linear with the gradient 1 in ten parameters, and a curved part."""
    return 1 + p["half"].astype(jnp.float32).sum() + p["full"].sum()


MIXED = {"half": jnp.full(5, 2, jnp.bfloat16), "full": jnp.full(5, 2, jnp.float32)}


def test_leaves_of_mixed_types() -> None:
    """Points, steps and noise are float32; what the network reads of a bfloat16 leaf is rounded, once."""
    found = measures.worst_case_linf(mixed, MIXED, KEY, rho=2**-6, adaptive=True)
    np.testing.assert_allclose(found, 2**-6 * 20, rtol=1e-5)
    found = measures.worst_case(mixed, MIXED, KEY, rho=2**-6 * 10**0.5)
    np.testing.assert_allclose(found, 2**-6 * 10, rtol=1e-5)
    for rho in (2**-6, 2**-9):  # 2^-9 a half of what is left between neighbours around 2, and less
        with pytest.warns(RuntimeWarning, match=r"7\d% of a step .* bfloat16, float32"):
            measures.worst_case(mixed, MIXED, KEY, rho=rho)
    found = measures.average_case(mixed, MIXED, KEY, rho=0.1, num_samples=100)
    assert abs(found.value) < 4 * found.sem
    np.testing.assert_allclose(found.sem, 0.1 * (10 / 100) ** 0.5, rtol=0.15)


def test_a_loss_that_is_not_finite_nearby_gives_no_number() -> None:
    """NaN beyond |w| > 1."""
    calls = {
        "worst_case": lambda f: measures.worst_case(f, X, KEY, rho=0.5),
        "worst_case_linf": lambda f: measures.worst_case_linf(f, X, KEY, rho=0.5),
        "average_case": lambda f: measures.average_case(f, X, KEY, rho=0.5).value,
    }
    for name, call in calls.items():
        with pytest.warns(RuntimeWarning, match="not finite"):
            assert jnp.isnan(call(lambda x: jnp.where(jnp.abs(x - X).max() > 0.2, jnp.nan, linear(x)))), name
        with pytest.warns(RuntimeWarning, match="not finite"):
            assert not jnp.isfinite(call(lambda x: jnp.where(jnp.abs(x - X).max() > 0.2, jnp.inf, linear(x)))), (
                name
            )
    with pytest.warns(RuntimeWarning, match="not finite"):
        assert jnp.isnan(measures.pac_bayes_sigma(lambda x: jnp.nan * x[0], X, KEY))


def test_a_look_that_is_not_finite_is_an_error_that_rose() -> None:
    """The largest of ten times 20 normal numbers is about 2.8, so that all are finite up to 1 / 2.8."""

    def error(w):
        return jnp.where(jnp.abs(w).max() > 1, jnp.nan, 0 * w[0])

    noise = jnp.stack([jax.random.normal(jax.random.fold_in(KEY, i), (20,)) for i in range(10)])
    found = measures.pac_bayes_sigma(error, jnp.zeros(20), KEY)
    np.testing.assert_allclose(found, 1 / jnp.abs(noise).max(), rtol=1e-3)


def test_pac_bayes_sigma_compiles_its_error_once() -> None:
    traces = []

    def error(w):
        traces.append(w)
        return (w**2).sum()

    measures.pac_bayes_sigma(error, jnp.zeros(20), KEY, num_samples=2, steps=3)
    assert len(traces) == 1


@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_measures_go_with_the_loss(factor) -> None:
    """A multiple of the loss has the same multiple of each."""
    A = jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 4.0]])
    calls = [
        lambda f: measures.worst_case(f, X, KEY, rho=0.3),
        lambda f: measures.worst_case_linf(f, X, KEY, rho=0.3),
        lambda f: measures.average_case(f, X, KEY, rho=0.3),
    ]
    for call in calls:
        one, other = (call(lambda x, c=c: c * (x @ A @ x)) for c in (1, factor))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert isinstance(a, int) or float(b / factor) == pytest.approx(float(a), rel=1e-4)


def test_what_can_be_traced() -> None:
    """The same numbers under `jit` and `vmap` as in a loop."""
    x, y, params = classifier()
    f = jax.jit(objective.over_dataset(logits, x, y))
    layer = ("last", "kernel")

    def every(params, key):
        return {
            "worst_case": measures.worst_case(f, params, key, max_evaluations=2),
            "worst_case_linf": measures.worst_case_linf(f, params, key, max_evaluations=2),
            "average_case": measures.average_case(f, params, key, rho=0.3, num_samples=2)[:2],
            "pac_bayes_sigma": measures.pac_bayes_sigma(f, params, key, num_samples=1, steps=2),
            "relative_flatness": measures.relative_flatness(f, params, key, layer=layer, num_samples=2)[:2],
            "fisher_trace": measures.fisher_trace(logits, params, x, key, num_samples=2)[:2],
            "noise_scale": measures.noise_scale(batch_loss, params, x, y, key, small=4, large=40, num_samples=1),
            "distance": measures.distance(params, jax.tree.map(jnp.zeros_like, params)),
        }

    def batch_loss(params, x, y):
        return objective.cross_entropy(logits(params, x), y).mean()

    pair = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
    keys = jax.random.split(KEY, 2)
    found = jax.jit(jax.vmap(every))(pair, keys)
    for i in range(2):
        one = every(jax.tree.map(lambda a, i=i: a[i], pair), keys[i])
        for name in one:
            jax.tree.map(
                lambda a, b, name=name, i=i: np.testing.assert_allclose(b[i], a, rtol=2e-4, err_msg=name),
                one[name], found[name],
            )  # fmt: skip


def test_new_parameters_compile_nothing() -> None:
    x, y, params = classifier()
    f = objective.over_dataset(logits, x, y)
    other = jax.tree.map(lambda a: 1.1 * a, params)
    calls = {
        "worst_case": lambda p, key: measures.worst_case(f, p, key),
        "worst_case_linf": lambda p, key: measures.worst_case_linf(f, p, key),
        "average_case": lambda p, key: measures.average_case(f, p, key, num_samples=3),
        "pac_bayes_sigma": lambda p, key: measures.pac_bayes_sigma(f, p, key, num_samples=2, steps=3),
        "relative_flatness": lambda p, key: measures.relative_flatness(f, p, key, layer=("last", "kernel")),
        "fisher_trace": lambda p, key: measures.fisher_trace(logits, p, x, key, num_samples=3, chunk=15),
    }
    for name, call in calls.items():
        first, again = call(params, KEY), call(params, KEY)
        assert jax.tree.leaves(first) == jax.tree.leaves(again), name
        with compiled() as found:
            call(other, jax.random.key(1))
        assert not found, name


def test_bad_arguments_are_named() -> None:
    for measure in (measures.worst_case, measures.worst_case_linf, measures.average_case):
        for rho in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"rho is {rho}; it must be a finite number above 0"):
                measure(linear, X, KEY, rho=rho)
        with pytest.raises(ValueError, match="must return a floating-point scalar"):
            measure(lambda x: x**2, X, KEY)
        with pytest.raises(ValueError, match="is of type int32"):
            measure(lambda x: 1.0 * x.sum(), jnp.arange(3), KEY)
    for measure in (measures.worst_case, measures.worst_case_linf):
        with pytest.raises(ValueError, match="eta is -1"):
            measure(linear, X, KEY, eta=-1.0)
        with pytest.raises(ValueError, match="max_evaluations is 0"):
            measure(linear, X, KEY, max_evaluations=0)
    with pytest.raises(ValueError, match="rise is 0"):
        measures.pac_bayes_sigma(linear, X, KEY, rise=0.0)
    x, y, params = classifier()
    with pytest.raises(ValueError, match=r"must be the path of a leaf: \('last', 'bias'\), \('last', 'kernel'\)"):
        measures.relative_flatness(objective.over_dataset(logits, x, y), params, KEY, layer=("last", "weight"))
    for chunk in (0, -1):
        with pytest.raises(ValueError, match="chunk is"):
            measures.fisher_trace(logits, params, x, KEY, chunk=chunk)
    with pytest.raises(ValueError, match=r"len\(x\) is 0"):
        measures.fisher_trace(logits, params, x[:0], KEY)
    with pytest.raises(ValueError, match="small is 8 and large is 8"):
        measures.noise_scale(lambda p, x, y: p.sum(), X, X[None], jnp.zeros(1, int), KEY, small=8, large=8)


def test_the_audit_finds_what_theory_says() -> None:
    """Adaptive, relative and function-space measures survive a rescaling of layers, the others do not."""
    params, x = rectified_params(), jax.random.normal(jax.random.key(0), (12, 36))
    y = jnp.argmax(rectified(params, x), axis=1)
    f = jax.jit(objective.over_dataset(rectified, x, y))
    layers = symmetry.chain(params)
    order = [jax.random.permutation(KEY, 7), jax.random.permutation(KEY, 6)]
    found = symmetry.audit(
        {
            "loss": lambda p, key: f(p),
            "Fisher trace": lambda p, key: measures.fisher_trace(rectified, p, x, key, num_samples=20),
            "worst case": lambda p, key: measures.worst_case(f, p, key, rho=0.01, max_evaluations=4),
            "worst case, adaptive": lambda p, key: measures.worst_case(
                f, p, key, rho=0.01, adaptive=True, max_evaluations=4
            ),
            "box": lambda p, key: measures.worst_case_linf(f, p, key, adaptive=True, eta=1.0),
            "box, adaptive": lambda p, key: measures.worst_case_linf(f, p, key, adaptive=True),
            "average, adaptive": lambda p, key: measures.average_case(f, p, key, adaptive=True, num_samples=10),
            "relative flatness": lambda p, key: measures.relative_flatness(
                f, p, key, layer=("Dense_2", "kernel"), num_samples=10
            ),
            "length": lambda p, key: optax.tree.norm(p),
            "noise": lambda p, key: jax.random.normal(key),
        },
        {
            "alpha": lambda p: symmetry.rescale(p, layers, [8.0, 4.0]),
            "permutation": lambda p: symmetry.permute(p, layers, order),
        },
        params,
        KEY,
        repeats=2,
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


# Shape of a kernel, rule, and the order of axes in which it is [what a neuron reads, neurons].
KAPPA = {
    "[in, out]": ((3, 4), kernels.last_axis, (0, 1), 3),
    "[out, in]": ((4, 3), kernels.first_axis, (1, 0), 3),
    "[h, w, in, out]": ((1, 2, 2, 4), kernels.last_axis, (0, 1, 2, 3), 4),
    "[out, in, h, w]": ((5, 2, 1, 2), kernels.first_axis, (1, 2, 3, 0), 4),
    "[in, heads, size]": ((3, 2, 4), kernels.named({"kernel": (-2, -1)}), (0, 1, 2), 3),
    "[heads, size, out]": ((2, 2, 5), kernels.named({"kernel": -1}), (0, 1, 2), 4),
    "[heads, in, size]": ((2, 3, 4), kernels.named({"kernel": (0, 2)}), (1, 0, 2), 3),
}


def kappa(w, H, order, reads) -> float:
    """By the definition: the inner product of neurons s and s' times the trace of their block of the Hessian."""
    W = np.asarray(w).transpose(order).reshape(reads, -1)
    where = np.arange(w.size).reshape(w.shape).transpose(order).reshape(reads, -1)
    pairs = itertools.product(range(W.shape[1]), repeat=2)
    return sum(W[:, s] @ W[:, t] * np.trace(np.asarray(H)[np.ix_(where[:, s], where[:, t])]) for s, t in pairs)


@pytest.mark.parametrize("name", KAPPA)
def test_relative_flatness_in_each_layout(name) -> None:
    """f = w^T A w / 2 against the dense Hessian A; A = I at orthogonal rows of W, where one sample is exact."""
    shape, units, order, reads = KAPPA[name]
    keys = jax.random.split(jax.random.key(3), 2)
    w = jax.random.normal(keys[0], shape)
    B = jax.random.normal(keys[1], (w.size, w.size))
    A = B @ B.T / w.size

    def flatness(A, w, num_samples):
        def loss(params):
            return 0.5 * jnp.ravel(params["attention"]["kernel"]) @ A @ jnp.ravel(params["attention"]["kernel"])

        params = {"attention": {"kernel": w, "bias": jnp.ones(2)}}
        return measures.relative_flatness(
            loss, params, KEY, layer=("attention", "kernel"), units=units, num_samples=num_samples
        )

    found, exact = flatness(A, w, 200), kappa(w, A, order, reads)
    assert abs(found.value - exact) < 4 * found.sem
    assert found.sem < 0.1 * exact

    rows = np.zeros((reads, w.size // reads), np.float32)
    rows[np.arange(reads), np.arange(reads)] = 1 + np.arange(reads)
    w = jnp.asarray(rows.reshape([shape[axis] for axis in order]).transpose(np.argsort(order)))
    found, exact = flatness(jnp.eye(w.size), w, 2), reads * (rows**2).sum()
    np.testing.assert_allclose(kappa(w, np.eye(w.size), order, reads), exact, rtol=1e-6)
    np.testing.assert_allclose([found.value, found.sem], [exact, 0], rtol=1e-5, atol=1e-4)


def test_relative_flatness_of_a_stack_is_that_of_one_layer_or_refused() -> None:
    """[layers, in, out], all layers with one input more or less than the others."""
    stack = jax.random.normal(KEY, (3, 2, 4))
    params = {"scan": {"kernel": stack, "bias": jnp.ones((3, 4))}}

    def loss(params):
        return sum(0.5 * (i + 1) * (params["scan"]["kernel"][i] ** 2).sum() for i in range(3))

    at = ("scan", "kernel")
    with pytest.raises(ValueError, match=r"of shape \(3, 2, 4\) may be attention, stacked layers"):
        measures.relative_flatness(loss, params, KEY, layer=at)
    with pytest.raises(ValueError, match=r"layer is \('scan', 'kernel'\), of shape .*: a stack"):
        measures.relative_flatness(loss, params, KEY, layer=at, units=kernels.stacked())
    found = measures.relative_flatness(
        lambda w: loss({"scan": {"kernel": stack.at[1].set(w)}}), stack[1], KEY, layer=(), num_samples=100
    )
    assert abs(found.value - 2 * 2 * (stack[1] ** 2).sum()) < 4 * found.sem


def test_a_layer_is_found_by_its_path() -> None:
    """Not by its joined name: 1 or 2 inputs of 3 neurons that have the length 1, and a Hessian of 1 or 10."""
    params = {"a/w": jnp.eye(1, 3), "a": {"w": jnp.eye(2, 3)}, "list": [jnp.eye(3), {"c": jnp.eye(1, 3)}]}

    def loss(p):
        nested, last = (0.5 * (leaf**2).sum() for leaf in (p["a"]["w"], p["list"][1]["c"]))
        return 0.5 * (p["a/w"] ** 2).sum() + 10 * nested + 100 * last

    for layer, value in {
        ("a/w",): 1,
        ("a", "w"): 10 * 2 * 2,
        ("list", 1, "c"): 100,
        ("list", "1", "c"): 100,
    }.items():
        found = measures.relative_flatness(loss, params, KEY, layer=layer, num_samples=2)
        np.testing.assert_allclose(found.value, value, rtol=1e-5)
    for layer in (("list/1", "c"), ("a",), ("a", "w", "c"), ()):
        with pytest.raises(
            ValueError, match=r"must be the path of a leaf: \('a', 'w'\), \('a/w',\), \('list', '0'\)"
        ):
            measures.relative_flatness(loss, params, KEY, layer=layer)


def test_relative_flatness_of_modules_of_other_libraries() -> None:
    """f = |w|^2 / 2 over all leaves; kappa = (what a neuron reads) |w|^2 of the kernel."""

    def loss(params):
        return 0.5 * sum((leaf**2).sum() for leaf in jax.tree.leaves(params))

    attention = {"bias": None, "(query|key|value)/kernel": (-2, -1), "out/kernel": -1}
    rng = np.random.default_rng(0)

    def drawn(make):
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), jax.eval_shape(make))

    mha = drawn(lambda: nn.MultiHeadDotProductAttention(2).init(KEY, jnp.ones((1, 5, 6)))["params"])
    mlp = drawn(lambda: eqx.filter(eqx.nn.MLP(5, 3, 4, 1, key=KEY), eqx.is_inexact_array))
    linear = drawn(lambda: nnx.split(nnx.Linear(5, 3, rngs=nnx.Rngs(0)), nnx.Param, ...)[1])
    cases = [
        (mha, ("query", "kernel"), kernels.named(attention), mha["query"]["kernel"], 6),
        (mha, ("out", "kernel"), kernels.named(attention), mha["out"]["kernel"], 6),
        (mlp, ("layers", 0, "weight"), kernels.first_axis, mlp.layers[0].weight, 5),
        (linear, ("kernel",), kernels.last_axis, linear["kernel"][...], 5),
        (linear, ("kernel", "value"), kernels.last_axis, linear["kernel"][...], 5),
    ]
    for params, layer, units, w, reads in cases:
        found = measures.relative_flatness(loss, params, KEY, layer=layer, units=units, num_samples=100)
        assert abs(found.value - reads * (w**2).sum()) < 4 * found.sem
        assert found.sem < 0.1 * found.value
    with pytest.raises(ValueError, match=r"params.layers\[0\].weight of shape \(4, 5\) is named as in Equinox"):
        measures.relative_flatness(loss, mlp, KEY, layer=("layers", 0, "weight"))
    with pytest.raises(ValueError, match=r"layer is \('query', 'bias'\), of shape .*: no kernel"):
        measures.relative_flatness(loss, mha, KEY, layer=("query", "bias"), units=kernels.named(attention))
