"""Networks: the paper's sizes, its initialisation, and batch norm and dropout computed by hand."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gengap import models

KEY = jax.random.key(0)
# Tests spend their time in compiling. Without LLVM's optimisations that takes a third.
fast_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(*shape, seed=0):
    return jnp.array(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@cache
def shapes(model, shape):
    return jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((2, *shape), jnp.float32))


@pytest.mark.parametrize(
    ("model", "shape", "classes", "size"),
    [
        (models.f1(), (28, 28, 1), 10, 1_462_794),
        (models.f2(), (360,), 1973, 2_780_085),
        (models.c1(), (32, 32, 3), 10, 1_757_834),
        (models.c2(), (32, 32, 3), 10, 14_991_946),
        (models.c3(), (32, 32, 3), 100, 1_775_204),
        (models.c4(), (32, 32, 3), 100, 15_038_116),
    ],
    ids=["f1", "f2", "c1", "c2", "c3", "c4"],
)
def test_sizes_of_table_1(model, shape, classes, size):
    params = shapes(model, shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    logits = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((3, *shape), jnp.float32))
    assert logits.shape == (3, classes)


def named(params, name):
    return {jax.tree_util.keystr(w): v for w, v in jax.tree_util.tree_leaves_with_path(params) if name in str(w)}


@pytest.fixture(scope="module")
def dense():
    model = models.dense(3, widths=(256, 256))
    x = 1e-3 * normal(6, 2, 2, 1)  # variances near epsilon, so that it is seen
    return model, fast_jit(model.init)(jax.random.key(1), x), x


@pytest.fixture(scope="module")
def shallow():
    model = models.c1(num_classes=192)
    x = normal(4, 4, 4, 3)
    return model, fast_jit(model.init)(jax.random.key(1), x), x


@pytest.mark.parametrize("network", ["dense", "shallow"])
def test_initialisation_is_glorot_uniform(network, request):
    _, params, _ = request.getfixturevalue(network)
    kernels = named(params, "kernel")
    assert len(kernels) == {"dense": 3, "shallow": 5}[network]
    for kernel in map(np.asarray, kernels.values()):
        *field, fan_in, fan_out = kernel.shape
        bound = np.sqrt(6 / ((fan_in + fan_out) * np.prod(field)))
        assert bound * 0.98 < np.abs(kernel).max() <= bound
        deviation = 4 * bound / np.sqrt(kernel.size)
        assert abs(kernel.mean()) < deviation
        assert abs(kernel.std() - bound / np.sqrt(3)) < deviation
    for name, value in (("bias", 0.0), ("scale", 1.0)):
        found = named(params, name)
        assert found and all(np.all(leaf == value) for leaf in found.values())


def by_hand(params, x, statistics=None):
    h, used = np.asarray(x, np.float64).reshape(len(x), -1), {}
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for i in range(2):
        h = h @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"]
        name = f"BatchNorm_{i}"
        batch = {"mean": h.mean(0), "var": h.var(0)}
        used[name] = s = jax.tree.map(np.asarray, statistics[name]) if statistics else batch
        h = (h - s["mean"]) / np.sqrt(s["var"] + 1e-5) * params[name]["scale"] + params[name]["bias"]
        h = np.maximum(h, 0)
    return h @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"], used


def near(a, b, tolerance=2e-4):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance), a, b)


def test_batch_norm_takes_the_statistics_of_the_batch(dense):
    model, params, x = dense
    params = jax.tree.map(
        lambda a: np.asarray(a) + 0.1 * np.cos(np.arange(a.size, dtype=a.dtype)).reshape(a.shape), params
    )
    logits, statistics = by_hand(params, x)
    near(fast_jit(model.apply)(params, x), logits, 5e-3)
    near(fast_jit(model.statistics)(params, x), statistics, 5e-3)
    alone = fast_jit(model.apply)(params, x[:3])
    near(alone, by_hand(params, x[:3])[0], 5e-3)
    assert not np.allclose(alone, logits[:3], atol=1e-2)


def test_frozen_statistics_stand_in_for_those_of_the_batch(dense):
    model, params, x = dense
    statistics, frozen = fast_jit(model.statistics)(params, x), fast_jit(model.apply_frozen)
    near(frozen(params, statistics, x), fast_jit(model.apply)(params, x))
    shifted = jax.tree.map(lambda a: a + 0.5, statistics)
    near(frozen(params, shifted, x[:2]), by_hand(params, x[:2], shifted)[0])


@pytest.mark.parametrize(
    ("chunk", "parts"),
    [(2, [(0, 2), (2, 4), (4, 6)]), (4, [(0, 4)]), (100, [(0, 6)])],
)
def test_population_statistics_are_means_over_chunks(dense, chunk, parts):
    model, params, x = dense
    each = [by_hand(params, x[i:j])[1] for i, j in parts]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *each)
    near(models.population_statistics(model, params, x, chunk=chunk), expected)


def test_population_statistics_scale_images_as_every_loss_does(dense):
    model, params, _ = dense
    images = jnp.array(np.random.default_rng(0).integers(0, 256, (6, 2, 2, 1), np.uint8))
    scaled = images.astype(np.float32) / 255
    expected = fast_jit(model.statistics)(params, scaled)
    near(models.population_statistics(model, params, images), expected, 1e-5)


def test_networks_have_names_that_tell_them_apart():
    made = [models.f1(), models.f1(3), models.f2(), models.dense(widths=(4,)), models.dense(widths=(5,))]
    made += [models.c1(), models.c1(widths=(2, 2, 4, 4)), models.c2(), models.c2(conv_dropout=False), models.c4()]
    assert len({model.name for model in made}) == len(made) and all(model.name for model in made)
    assert models.c3(7) is models.c1(7) is models.c1(7, widths=(64, 64, 384, 192))
    assert models.c1().name == "c1(num_classes=10)"
    for conv_dropout in (True, False):
        assert models.c4(7, conv_dropout=conv_dropout) is models.c2(7, conv_dropout=conv_dropout)


@pytest.mark.parametrize("network", [models.c1, models.c2, models.c3, models.c4])
@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 64), (64,), (), (2, 8, 8, 1, 1)])
def test_convolutions_take_images_with_channels(network, shape):
    model, words = network(3), r"must be \[b, height, width, channels\]: x\[\.\.\., None\] .* gray images"
    with pytest.raises(ValueError, match=rf"x has the shape \({', ?'.join(map(str, shape))},?\); it {words}"):
        model.init(KEY, jnp.zeros(shape))
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(model.apply, shapes(model, (8, 8, 1)), jnp.zeros(shape))


def test_widths_of_c1():
    with pytest.raises(ValueError, match="widths has 3 numbers; C1 has two convolutions and two dense layers"):
        models.c1(widths=(1, 2, 3))
    with pytest.raises(ValueError, match=r"widths\[2\] is 0"):
        models.c1(widths=(1, 2, 0, 4))
    kernels = named(shapes(models.c1(3, widths=(2, 4, 5, 6)), (8, 8, 1)), "kernel")
    assert [kernel.shape for kernel in kernels.values()] == [
        (5, 5, 1, 2), (5, 5, 2, 4), (16, 5), (5, 6), (6, 3),
    ]  # fmt: skip


def test_population_statistics_need_batch_norm():
    with pytest.raises(ValueError, match="no batch norm"):
        models.population_statistics(models.Model(lambda key, x: {}, lambda params, x: x), {}, jnp.ones((2, 2)))


def test_dropout_keeps_half_and_doubles_it_in_training_only(shallow):
    model, params, x = shallow
    params = {name: dict(leaves) for name, leaves in params.items()}
    last = max(name for name in params if name.startswith("BatchNorm"))
    params[last] = {"scale": jnp.zeros(192), "bias": jnp.ones(192)}  # every unit of the last layer is 1
    params["Dense_2"] = {"kernel": jnp.eye(192), "bias": jnp.zeros(192)}
    run = fast_jit(lambda params, x, key: (model.apply(params, x), model.apply_train(params, x, key)))
    plain, logits = run(params, x, KEY)
    assert np.all(plain == 1)
    assert set(np.unique(logits)) == {0.0, 2.0}
    assert abs(float((logits > 0).mean()) - 0.5) < 4 * 0.5 / np.sqrt(logits.size)
    assert np.all(run(params, x, KEY)[1] == logits)
    assert not np.all(run(params, x, jax.random.key(1))[1] == logits)


DENSE, CONVOLUTIONS = [0.5, 0.5], [0.3] + [0.4] * 7


@pytest.mark.parametrize(
    ("model", "rates"),
    [
        (models.f1(), []),
        (models.c1(), DENSE),
        (models.c2(), CONVOLUTIONS + DENSE),
        (models.c2(conv_dropout=False), DENSE),
    ],
    ids=["f1", "c1", "c2", "c2 without"],
)
def test_dropout_rates(model, rates):
    found = {True: [], False: []}

    def watch(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            found[context.module.deterministic].append(context.module.rate)
        return call(*args, **kwargs)

    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params = shapes(model, (32, 32, 3))
    with nn.intercept_methods(watch):
        # through new functions, since JAX remembers what it has traced
        jax.eval_shape(lambda *args: model.apply_train(*args), params, x, KEY)
        assert found == {False: rates, True: []}
        jax.eval_shape(lambda *args: model.apply(*args), params, x)
    assert found == {False: rates, True: rates}


def test_c2_has_the_stacks_of_the_appendix():
    params = shapes(models.c2(), (32, 32, 3))
    kernels = [params[f"Conv_{i}"]["kernel"].shape for i in range(13)]
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert kernels == [(3, 3, a, b) for a, b in zip([3, *widths], widths, strict=False)]
    assert params["Dense_0"]["kernel"].shape == (512, 512)


POOLS = [
    ((2, 5, 7, 2), 3, 2),
    ((1, 4, 4, 1), 3, 2),
    ((1, 8, 8, 2), 2, 2),
    ((1, 7, 7, 1), 2, 2),
    ((1, 9, 4, 1), 2, 3),
    ((1, 5, 6, 1), 4, 1),
]


def test_max_pool_equals_flax_with_its_gradient():
    def ours(x, size, stride):
        return models.max_pool(x, size=size, stride=stride)

    def flax(x, size, stride):
        return nn.max_pool(x, (size, size), (stride, stride), "SAME")

    def value_and_gradient(pool, x, size, stride):
        return pool(x, size, stride), jax.grad(lambda x: jnp.sum(jnp.sin(pool(x, size, stride))))(x)

    @fast_jit
    def all_pools(inputs):
        return [
            [value_and_gradient(pool, x, *sizes) for pool in (ours, flax)]
            for x, (_, *sizes) in zip(inputs, POOLS, strict=True)
        ]

    rng = np.random.default_rng(0)
    inputs = [rng.permutation(np.arange(np.prod(s), dtype=np.float32)).reshape(s) - 20 for s, _, _ in POOLS]
    for (a, da), (b, db) in all_pools(inputs):
        assert a.shape == b.shape and np.all(a == b)
        near(da, db, 1e-6)


@pytest.mark.parametrize(
    ("shape", "kernel", "how"),
    [
        ((300, 8, 8, 2), (3, 3, 2, 3), {}),
        ((3, 9, 7, 1), (4, 2, 1, 2), {"window_strides": (2, 3), "padding": "VALID"}),
        ((2, 9, 9, 2), (3, 3, 2, 2), {"rhs_dilation": (2, 2)}),
    ],
    ids=["same", "strides", "dilated"],
)
def test_a_convolution_equals_jax_with_its_derivatives(shape, kernel, how):
    x, k, dx, dk = (normal(*s, seed=i) for i, s in enumerate([shape, kernel] * 2))
    how = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **how}

    def derivatives(convolve):
        def f(x, k):
            return jnp.sum(jnp.sin(convolve(x, k, **how)))

        gradient = jax.grad(f, argnums=(0, 1))
        return f(x, k), *gradient(x, k), jax.jvp(gradient, (x, k), (dx, dk))[1]

    ours, jaxs = fast_jit(lambda: [derivatives(c) for c in (models._convolution, jax.lax.conv_general_dilated)])()
    for mine, theirs in zip(*(jax.tree.leaves(one) for one in (ours, jaxs)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))
