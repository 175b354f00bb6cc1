"""The objective: cross entropy against NumPy, and its mean over chunks against the plain mean."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gengap import methods, objective, train

CAP = -np.log(1e-7)
# Tests spend their time in compiling. Without LLVM's optimisations that takes a third.
fast_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
cross_entropy = fast_jit(objective.cross_entropy)


def reference(logits, labels):
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    return np.log(np.exp(logits - top).sum(-1)) + top[:, 0] - logits[np.arange(len(labels)), labels]


def test_cross_entropy_equals_numpy():
    logits = np.random.default_rng(0).normal(0, 5, (50, 7)).astype(np.float32)
    labels = np.arange(50) % 7
    np.testing.assert_allclose(cross_entropy(logits, labels), reference(logits, labels), rtol=1e-5, atol=1e-6)


def test_a_small_rise_of_a_small_mean_is_resolved():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (60000, 10)) + 14 * np.eye(10)[np.arange(60000) % 10]
    y = np.arange(60000, dtype=np.int32) % 10

    def means(z):
        d = z.astype(np.float64) - z[np.arange(len(y)), y, None].astype(np.float64)
        return np.log(np.exp(d).sum(1)).mean()

    f = objective.over_dataset(lambda scale, x: scale * x, jnp.asarray(z, jnp.float32), jnp.asarray(y))
    one, other = jnp.float32(1), jnp.float32(0.9999)
    exact = [means(np.float64(s) * z.astype(np.float32)) for s in (one, other)]
    assert 1e-4 < exact[0] < 1e-2 and 1e-7 < exact[1] - exact[0] < 1e-5
    assert float(f(one)) == pytest.approx(exact[0], rel=1e-6)
    # Logits are rounded to float32, and a loss is off by as much of itself as its logits are off.
    few_bits = 2 * np.finfo(np.float32).eps * np.abs(z).max() * exact[0]
    assert few_bits < 0.01 * (exact[1] - exact[0])
    assert float(f(other)) - float(f(one)) == pytest.approx(exact[1] - exact[0], abs=few_bits)


@pytest.mark.parametrize("chunk", [50, 60_000])
def test_sums_are_of_float32_whatever_the_logits(chunk):
    y = jnp.zeros(60_000, int)
    dtypes = [jnp.bfloat16, jnp.float16]
    means = [
        objective.over_dataset(lambda p, x: x * p[None], jnp.ones((60_000, 1), dtype), y, chunk=chunk)
        for dtype in dtypes
    ]
    points = [jnp.zeros(10, dtype) for dtype in dtypes]
    for dtype, (value, slope) in zip(
        dtypes, fast_jit(lambda fs, ps: [*map(both, fs, ps)])(means, points), strict=True
    ):
        assert value.dtype == jnp.float32 and float(value) == pytest.approx(np.log(10), rel=1e-4)
        assert slope.dtype == dtype
        # Within a chunk the network's own derivative sums in its own precision.
        np.testing.assert_allclose(np.asarray(slope, np.float32), [-0.9] + [0.1] * 9, rtol=5e-2)


def test_labels_of_probability_zero_have_an_infinite_loss_and_the_gradient_of_optax():
    logits = jnp.array([[-np.inf, 1.0, 1.0], [-np.inf, 1.0, 2.0], [2e38, -2e38, 0.0], [0.0, 90.0, -90.0]])
    labels = jnp.array([0, 1, 1, 1])
    np.testing.assert_allclose(cross_entropy(logits, labels), [np.inf, np.log1p(np.e), np.inf, 0.0], rtol=1e-6)

    def gradient(loss):
        rows = jax.vmap(jax.grad(lambda row, label: loss(row[None], label[None])[0]))
        return fast_jit(rows)(logits, labels)

    theirs = gradient(optax.softmax_cross_entropy_with_integer_labels)
    np.testing.assert_allclose(gradient(objective.cross_entropy), theirs, atol=1e-6)


def test_the_gradient_of_a_small_loss_is_resolved():
    gradient = fast_jit(jax.grad(lambda row: objective.cross_entropy(row[None], jnp.array([0]))[0]))(
        jnp.array([20.0, 0.0])
    )
    np.testing.assert_allclose(gradient, [-1 / (1 + np.exp(20.0)), 1 / (1 + np.exp(20.0))], rtol=1e-5)


@pytest.mark.parametrize("label", [-1, 3])
def test_the_loss_of_a_label_out_of_range_is_nan(label):
    assert np.isnan(cross_entropy(jnp.zeros((1, 3)), jnp.array([label]))[0])


MAKERS = [objective.over_dataset, objective.loss_and_accuracy, objective.over_batches]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("apply", "y", "words"),
    [
        (lambda p, x: x, [0, -1, 1], "y has a label -1"),
        (lambda p, x: x, [0, 3, 1], "y has a label 3; apply returned 3 logits"),
        (lambda p, x: x[:, :1], [0, 0, 0], "2 classes or more"),
        (lambda p, x: x[:, 0], [0, 1, 2], r"apply returned \(\d+,\)"),
        (lambda p, x: x[:, None], [0, 1, 2], r"apply returned \(\d+, 1, 3\)"),
        (lambda p, x: (x, x), [0, 1, 2], "apply returned <class 'tuple'>"),
    ],
)
def test_labels_and_logits_that_do_not_fit_are_named(make, apply, y, words):
    def call():
        f = make(apply, jnp.ones((3, 3)), jnp.array(y))
        return f(jnp.ones(()), jax.random.key(0)) if make is objective.over_batches else f(jnp.ones(()))

    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("y", [np.eye(3), np.array([0.0, 1.0, 2.0], np.float32)], ids=["one-hot", "floats"])
@pytest.mark.parametrize("make", MAKERS)
def test_labels_that_are_no_classes_are_refused(make, y):
    with pytest.raises(ValueError, match="one whole number for each example"):
        inspect.unwrap(make)(lambda p, x: x, jnp.ones((3, 3)), y)


def convolution(p, x):
    return jax.lax.conv(x, p, (1, 1), "VALID").reshape(len(x), -1)[:, :2]


@pytest.mark.parametrize("chunk", [5000, 3, 2], ids=lambda chunk: f"chunk {chunk}")
def test_no_chunk_of_a_convolution_is_in_a_loop_on_a_cpu(chunk):
    """XLA:CPU runs a convolution many times slower there; one chunk, and chunks of unequal sizes."""
    x, y, p = jnp.ones((7, 4, 4, 1)), jnp.zeros(7, int), jnp.ones((4, 4, 2, 1))
    f = objective.over_dataset(convolution, x, y, chunk=chunk)
    for of in (
        f,
        jax.value_and_grad(f),
        lambda p: jax.jvp(jax.grad(f), (p,), (p,)),
        objective.loss_and_accuracy(convolution, x, y, chunk=chunk),
    ):
        text = jax.jit(of).lower(p).as_text()
        assert "stablehlo.while" not in text and "convolution" in text


def test_chunks_of_what_convolves_nothing_are_a_loop():
    x, y = jnp.ones((6, 4)), jnp.zeros(6, int)
    f = objective.over_dataset(lambda p, x: x * p[None], x, y, chunk=2)
    assert "stablehlo.while" in jax.jit(f).lower(jnp.ones(4)).as_text()


@pytest.mark.parametrize(
    ("classes", "dtypes"), [(300, (jnp.uint8, jnp.int8)), (70_000, (jnp.uint16, jnp.int16, jnp.uint32))]
)
def test_labels_of_any_width_count_all_classes(classes, dtypes):
    """A label's own type holds fewer classes than there are logits."""
    logits = jnp.array(np.random.default_rng(0).standard_normal((5, classes)) * 3, jnp.float32)
    labels = np.array([0, 1, 5, 100, 127])
    exact = reference(logits, labels)
    loss_of_batch = train.batch_loss(methods.PLAIN, lambda p, x: p * x)

    @fast_jit
    def losses(logits, narrow, f):
        right = objective.accuracy(logits.at[:, 0].set(99.0), narrow)
        batch = loss_of_batch(1.0, logits, narrow, jax.random.key(0))[0]
        return objective.cross_entropy(logits, narrow), right, f(1.0), batch

    for dtype in dtypes:
        narrow = jnp.asarray(labels, dtype)
        f = objective.over_dataset(lambda p, x: p * x, logits, narrow)
        each, right, *means = losses(logits, narrow, f)
        np.testing.assert_allclose(each, exact, rtol=1e-5)
        assert right.tolist() == [1, 0, 0, 0, 0]
        np.testing.assert_allclose(means, exact.mean(), rtol=1e-5)


@pytest.mark.parametrize("label", [np.int64(2**32), np.int64(-(2**32)), np.uint64(2**32), np.uint64(2**63)])
def test_a_label_beyond_32_bits_is_no_small_class(label):
    with pytest.raises(ValueError, match="y has a label"):
        inspect.unwrap(objective.over_dataset)(lambda p, x: x * p, jnp.ones((1, 3)), np.array([label]))(1.0)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("x", [{"a": np.ones((3, 2))}, (np.ones((3, 2)),) * 3, [[1.0], [1.0, 2.0]], "words"])
def test_inputs_that_are_no_array_are_named(make, x):
    with pytest.raises(ValueError, match=r"x is of type .*; it must be one array"):
        inspect.unwrap(make)(lambda p, x: x, x, np.zeros(3, int))


def test_cross_entropy_of_huge_logits_is_finite_and_exact():
    logits, labels = jnp.array([[1e4, 0.0], [-1e4, 1e4], [3e4, 0.0]]), jnp.array([1, 1, 0])
    np.testing.assert_array_equal(cross_entropy(logits, labels), [1e4, 0.0, 0.0])


@fast_jit
@jax.value_and_grad
def clipped(logits):
    return objective.cross_entropy(logits[None], jnp.array([1]), clip=1e-7).sum()


@pytest.mark.parametrize(
    ("logits", "loss", "slope"),
    [
        ([100.0, 0.0], CAP, 0.0),
        ([16.2, 0.0], CAP, 0.0),
        ([2.0, 0.0], np.log1p(np.exp(2.0)), 1 / (1 + np.exp(-2.0))),
        ([0.0, 100.0], 1e-7, 0.0),
    ],
)
def test_clipping_caps_the_loss_and_its_gradient(logits, loss, slope):
    value, gradient = clipped(jnp.array(logits))
    assert float(value) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(gradient, [slope, -slope], rtol=1e-5)
    assert round(CAP, 3) == 16.118


def test_accuracy_counts_the_largest_logit():
    logits = jnp.array([[0.0, 1.0, -1.0], [2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    assert objective.accuracy(logits, jnp.array([1, 2, 2])).tolist() == [1.0, 0.0, 1.0]


def test_images_are_scaled_and_features_are_not():
    scaled = objective.scale(jnp.array([[0, 51, 255]], jnp.uint8))
    np.testing.assert_allclose(scaled, [[0, 0.2, 1]], rtol=1e-6)
    assert objective.scale(jnp.array([[0.0, 51.0]])).tolist() == [[0.0, 51.0]]


def network(params, x, xp=jnp):
    h = xp.tanh(x @ params["w"])
    return (h - h.mean(0, keepdims=True)) @ params["v"]  # the value depends on the chunk, as with batch norm


def problem(m=10, dtype=jnp.float32):
    normal = np.random.default_rng(3).standard_normal
    params = {"w": jnp.array(normal((3, 4)), dtype), "v": jnp.array(normal((4, 3)), dtype)}
    return params, jnp.array(normal((m, 3)), dtype), jnp.arange(m) % 3


def plain(params, x, y, chunk):
    """The same mean without loops; the chunks of m examples are those of `array_split`."""
    count = -(-len(x) // chunk)
    parts = zip(jnp.array_split(x, count), jnp.array_split(y, count), strict=True)
    losses = [-jnp.take_along_axis(jax.nn.log_softmax(network(params, x)), y[:, None], 1).sum() for x, y in parts]
    return sum(losses) / len(x)


def in_numpy(params, x, y, chunk):
    """The mean loss and the accuracy; the chunks of m examples are those of `array_split`."""
    params = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    parts = np.array_split(np.asarray(x, np.float64), -(-len(x) // chunk))
    logits = np.concatenate([network(params, part, np) for part in parts])
    return reference(logits, np.asarray(y)).mean(), (logits.argmax(-1) == y).mean()


def both(f, p):
    return jax.value_and_grad(f)(p)


GRADIENT = fast_jit(both)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_the_mean_is_over_chunks_of_almost_one_size(chunk):
    params, x, y = problem()
    sizes = {len(part) for part in np.array_split(np.arange(10), -(-10 // chunk))}
    assert max(sizes) <= chunk and max(sizes) - min(sizes) <= 1
    value = float(fast_jit(objective.over_dataset(network, x, y, chunk=chunk))(params))
    mean, right = in_numpy(params, x, y, chunk)
    assert value == pytest.approx(mean, rel=1e-5)
    loss, accuracy = objective.loss_and_accuracy(network, x, y, chunk=chunk)(params)
    assert float(loss) == pytest.approx(value, rel=1e-6)
    assert float(accuracy) == pytest.approx(right)


def test_every_example_counts_once():
    x = jnp.eye(11)
    f = objective.over_dataset(lambda p, x: jnp.stack([x @ p, 0 * (x @ p)], -1), x, jnp.zeros(11, int), chunk=4)
    np.testing.assert_allclose(fast_jit(jax.grad(f))(jnp.zeros(11)), np.full(11, -0.5 / 11), rtol=1e-6)


def test_derivatives_equal_those_of_the_plain_mean_and_are_linear_in_the_direction():
    with jax.enable_x64(True):
        params, x, y = problem(dtype=jnp.float64)
        v = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), params)
        f = objective.over_dataset(network, x, y, chunk=4)

        def curvature(f, p, v):
            return jax.jvp(jax.grad(f), (p,), (v,))[1]

        @fast_jit
        def ours(p, v):
            def slope(p):
                return jax.jvp(f, (p,), (v,))[1]

            return *jax.value_and_grad(f)(p), curvature(f, p, v), jax.grad(slope)(p), slope(p)

        @fast_jit
        def expected(p, v):
            def mean(p):
                return plain(p, x, y, 4)

            value, gradient = jax.value_and_grad(mean)(p)
            product = curvature(mean, p, v)
            return value, gradient, product, product, sum(jnp.vdot(gradient[k], v[k]) for k in v)

        def close(a, b, rtol=1e-9):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), a, b)

        once = ours(params, v)
        close(once, expected(params, v))
        thousands = ours(params, jax.tree.map(lambda a: 4096 * a, v))
        close(thousands[2:], jax.tree.map(lambda a: 4096 * a, once[2:]))


def test_clipping_reaches_the_mean():
    apply = lambda p, x: jnp.stack([p * x[:, 0], 0 * x[:, 0]], -1)  # noqa: E731
    x, y = jnp.array([[1.0], [50.0]]), jnp.array([1, 1])
    f = objective.over_dataset(apply, x, y, chunk=1, clip=1e-7)
    p = jnp.array(1.0)
    value, slope = fast_jit(jax.value_and_grad(f))(p)
    assert float(value) == pytest.approx((np.log1p(np.e) + CAP) / 2, rel=1e-5)
    assert float(slope) == pytest.approx(0.5 / (1 + np.exp(-1)), rel=1e-5)
    assert float(objective.loss_and_accuracy(apply, x, y, clip=1e-7)(p)[0]) == pytest.approx(float(value))


def test_vmap_over_parameters_equals_a_loop():
    params, x, y = problem()
    mean = objective.over_dataset(network, x, y, chunk=4)
    several = jax.tree.map(lambda a: np.stack([a, 2 * a, a + 1]), params)
    together = fast_jit(jax.vmap(partial(both, mean)))(several)
    for i in range(3):
        alone = GRADIENT(mean, jax.tree.map(lambda a, i=i: a[i], several))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), together, alone)


def counted(caplog):
    return [record for record in caplog.records if "XLA compilation" in record.getMessage()]


def test_new_parameters_and_new_data_compile_nothing(caplog):
    params, x, y = problem()
    doubled, negative, other = jax.tree.map(lambda a: 2 * a, params), -x, y[::-1]
    pair = objective.loss_and_accuracy(network, x, y, chunk=4)
    GRADIENT(objective.over_dataset(network, x, y, chunk=4), params), pair(params)
    with jax.log_compiles():
        f = objective.over_dataset(network, negative, other, chunk=4)
        value, _ = GRADIENT(f, doubled)
        loss, _ = objective.loss_and_accuracy(network, negative, other, chunk=4)(doubled)
        assert not counted(caplog)
        jax.jit(lambda a: a + 3)(x)
        assert counted(caplog)
    assert float(value) == pytest.approx(in_numpy(doubled, negative, other, 4)[0], rel=1e-5)
    assert float(loss) == pytest.approx(float(value), rel=1e-6)


def test_outside_jit_a_second_call_compiles_nothing(caplog):
    params, x, y = problem()
    doubled = jax.tree.map(lambda a: 2 * a, params)
    f = objective.over_dataset(network, x, y, chunk=4)
    f(params), jax.grad(f)(params)
    with jax.log_compiles():
        f(doubled), jax.grad(f)(doubled)
        assert not counted(caplog)


@pytest.mark.parametrize("make", [objective.over_dataset, objective.loss_and_accuracy])
@pytest.mark.parametrize(
    ("rows", "labels", "chunk", "words"),
    [(4, 4, 0, "chunk is 0"), (4, 4, -5, "chunk is -5"), (4, 3, 2, "4 examples.*3"), (0, 0, 2, "0 examples")],
)
def test_bad_arguments_are_refused(make, rows, labels, chunk, words):
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(make)(network, jnp.zeros((rows, 3)), jnp.zeros(labels, int), chunk=chunk)


def test_images_are_scaled_in_every_loss():
    x, y = jnp.array([[0, 255], [51, 102]], jnp.uint8), jnp.array([0, 1])
    apply = lambda p, x: p * x  # noqa: E731
    expected = reference(2.0 * np.asarray(x) / 255, np.asarray(y)).mean()
    p = jnp.array(2.0)
    assert float(objective.over_dataset(apply, x, y)(p)) == pytest.approx(expected, rel=1e-6)
    assert float(objective.loss_and_accuracy(apply, x, y)(p)[0]) == pytest.approx(expected, rel=1e-6)
    _, (loss, accuracy) = fast_jit(train.batch_loss(methods.PLAIN, apply))(p, x, y, jax.random.key(0))
    assert float(loss) == pytest.approx(expected, rel=1e-6) and float(accuracy) == 0.5


def test_batches_are_an_unbiased_estimate_of_the_whole() -> None:
    normal = np.random.default_rng(0).standard_normal
    x, y = jnp.array(normal((50, 4)), jnp.float32), jnp.arange(50) % 3
    params = jnp.array(normal((4, 3)), jnp.float32)

    def apply(w, x):
        return x @ w

    loss = objective.over_batches(apply, x, y, size=8)
    values = fast_jit(jax.vmap(lambda key: loss(params, key)))(jax.random.split(jax.random.key(2), 4000))
    whole = objective.over_dataset(apply, x, y)(params)
    assert abs(values.mean() - whole) < 4 * values.std() / 4000**0.5
    assert values.std() > 0.01
    with pytest.raises(ValueError, match="size is 0"):
        objective.over_batches(apply, x, y, size=0)


def test_labels_of_every_type_pass_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.uint8, jnp.int8, jnp.uint16, jnp.int32, jnp.uint32):
            loss = objective.over_dataset(lambda p, x: x @ p, jnp.eye(3), jnp.arange(3, dtype=dtype))
            assert np.isfinite(loss(jnp.eye(3)))
