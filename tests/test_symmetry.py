"""Maps of parameters: the function stays, the theorems do what they promise, the audit says what changed."""

import itertools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from gengap import models, symmetry

KEY = jax.random.key(0)


class Plain(nn.Module):
    """A rectified network without batch norm; the convolution's channels are flattened into the dense layers."""

    use_bias: bool
    conv: bool = False

    @nn.compact
    def __call__(self, x):
        if self.conv:
            x = models.max_pool(nn.relu(nn.Conv(4, (3, 3), use_bias=self.use_bias)(x)), size=2, stride=2)
        x = x.reshape(len(x), -1)
        for width in (7, 6):
            x = nn.relu(nn.Dense(width, use_bias=self.use_bias)(x))
        return nn.Dense(3, use_bias=self.use_bias)(x)


def plain(use_bias: bool, conv: bool = False) -> models.Model:
    network = Plain(use_bias, conv)
    return models.Model(
        lambda key, x: network.init(key, x)["params"], lambda params, x: network.apply({"params": params}, x)
    )


NETWORKS = {
    "bias-free": (plain(False), (6, 6, 1)),
    "biased": (plain(True), (6, 6, 1)),
    "convolution": (plain(True, conv=True), (6, 6, 1)),
    "F1": (models.f1(3), (6, 6, 1)),
    "C1": (models.c1(3), (8, 8, 2)),
}


def random_network(name: str, dtype=jnp.float32):
    """Model, parameters with every leaf at random, inputs."""
    model, shape = NETWORKS[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(12, *shape)), dtype)

    def draw(path, leaf):
        z = rng.normal(size=leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))
        return jnp.asarray(z if leaf.ndim > 1 else 0.1 * z + (path[-1].key == "scale"), dtype)

    return model, jax.tree.map_with_path(draw, jax.eval_shape(model.init, KEY, x)), x


def units(params, layers):
    return [params[layer.kernel[0]]["kernel"].shape[-1] for layer in layers[:-1]]


def moves(params):
    """Images under all maps, those that can be traced from one compiled program."""
    layers = symmetry.chain(params)
    n = units(params, layers)
    rng = np.random.default_rng(3)
    vectors = [jnp.array(np.exp(rng.normal(size=size))) for size in n]
    orders = [jnp.array(rng.permutation(size)) for size in n]
    factors = list(itertools.accumulate([0.25 * 2.0**k for k in range(len(n))], operator.mul))

    @jax.jit
    def images(params, vectors, orders):
        return {
            "layers": symmetry.rescale(params, layers, factors),
            "neurons": symmetry.rescale(params, layers, vectors),
            "permutation": symmetry.permute(params, layers, orders),
        }

    return images(params, vectors, orders)


def check_the_function_stays(name, dtype, tolerance) -> None:
    model, params, x = random_network(name, dtype)
    apply = jax.jit(model.apply)
    before = np.asarray(apply(params, x))
    assert before.dtype == dtype
    for move, image in moves(params).items():
        pairs = list(zip(*map(jax.tree.leaves, (params, image)), strict=True))
        assert all(a.dtype == b.dtype for a, b in pairs)
        assert any(np.abs(np.asarray(a) - np.asarray(b)).max() > 0.01 for a, b in pairs)
        error = np.abs(np.asarray(apply(image, x)) - before).max() / np.abs(before).max()
        assert error < tolerance, f"{move}: {error}"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_in_float32(name) -> None:
    check_the_function_stays(name, jnp.float32, 1e-5)


@pytest.mark.parametrize("name", ["convolution", "F1"])
def test_the_function_stays_in_float64(name) -> None:
    with jax.enable_x64():
        check_the_function_stays(name, jnp.float64, 1e-12)


def test_maps_of_bfloat16_are_computed_in_float32() -> None:
    """The image is that of the parameters in float32, rounded once for each of its two factors."""
    _, params, _ = random_network("biased")
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    layers = symmetry.chain(params)
    found, exact = (symmetry.rescale(p, layers, [1.001, 0.999]) for p in (low, wide))
    for a, b in zip(*map(jax.tree.leaves, (found, exact)), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2**-8)
    same = symmetry.rescale({**low, "Dense_1": wide["Dense_1"]}, layers, [1.001, 1.0])
    np.testing.assert_allclose(same["Dense_1"]["kernel"], wide["Dense_1"]["kernel"] / 1.001, rtol=1e-6)


@pytest.mark.parametrize("name", ["F1", "C1"])
def test_weights_before_a_batch_norm_have_no_scale(name) -> None:
    """But for its epsilon: at three times the weights the logits differ by about epsilon, 1e-5."""
    model, params, x = random_network(name)
    layers = symmetry.chain(params)
    count = sum(layer.norm is not None for layer in layers)
    image = symmetry.scale_before_norm(params, layers, [3.0] * count)
    apply = jax.jit(model.apply)
    before, after = apply(params, x), apply(image, x)
    assert jnp.abs(after - before).max() / jnp.abs(before).max() < 1e-3
    assert jnp.allclose(image[layers[0].kernel[0]]["kernel"], 3 * params[layers[0].kernel[0]]["kernel"])


@pytest.fixture(scope="module")
def problem():
    """The Hessian of a small bias-free network's loss, as a function of params; its params, and its layers."""
    model, params, x = random_network("bias-free")
    labels = jnp.arange(len(x)) % 3

    def loss(p):
        return -jax.nn.log_softmax(model.apply(p, x))[jnp.arange(len(x)), labels].mean()

    @jax.jit
    def dense_hessian(params):
        flat, tree = ravel_pytree(params)
        return jax.hessian(lambda v: loss(tree(v)))(flat)

    return dense_hessian, params, symmetry.chain(params)


def test_the_hessian_goes_as_theorem_3_says(problem) -> None:
    """H(T theta) = D H D with D = diag(1 / a_1, a_1) over the blocks of the two layers scaled."""
    dense_hessian, params, layers = problem
    image = symmetry.rescale(params, layers, [3.0, 1.0])
    H, moved = dense_hessian(params), dense_hessian(image)
    size = {layer.kernel[0]: params[layer.kernel[0]]["kernel"].size for layer in layers}
    D = jnp.concatenate(
        [jnp.full(size["Dense_0"], 1 / 3), jnp.full(size["Dense_1"], 3.0), jnp.ones(size["Dense_2"])]
    )
    np.testing.assert_allclose(moved, D[:, None] * H * D[None], atol=1e-4 * float(jnp.abs(H).max()))


def test_theorem_5_makes_many_eigenvalues_large(problem) -> None:
    dense_hessian, params, layers = problem
    image = symmetry.rescale(params, layers, [1e-3, 1e-6])
    before, after = (np.linalg.eigvalsh(dense_hessian(p)) for p in (params, image))
    rank = (np.abs(before) > 1e-5 * np.abs(before).max()).sum()
    last = params[layers[-1].kernel[0]]["kernel"].size
    assert (np.abs(after) > 10 * before.max()).sum() >= rank - last


def test_bad_arguments_are_named() -> None:
    _, params, _ = random_network("biased")
    layers = symmetry.chain(params)
    with pytest.raises(ValueError, match="there must be 2"):
        symmetry.rescale(params, layers, [1.0])
    for factor in (-1.0, 0.0, math.inf, math.nan, jnp.ones(3)):
        with pytest.raises(ValueError, match="must be above 0, and one number or 6"):
            symmetry.rescale(params, layers, [1.0, factor])
    for order in (jnp.zeros(7, int), jnp.arange(6)):
        with pytest.raises(ValueError, match="each of 7 units once"):
            symmetry.permute(params, layers, [order, jnp.arange(6)])
    with pytest.raises(ValueError, match="there must be 2"):
        symmetry.permute(params, layers, [])
    with pytest.raises(ValueError, match="sequence of Conv"):
        symmetry.chain({"LSTM_0": {}})
    with pytest.raises(ValueError, match="there must be 0"):
        symmetry.scale_before_norm(params, layers, [1.0])


def test_leaves_that_are_not_floating_point_are_named() -> None:
    _, params, _ = random_network("biased")
    layers = symmetry.chain(params)
    bad = params | {"Dense_2": params["Dense_2"] | {"bias": jnp.zeros(3, int)}}
    for use in (
        lambda: symmetry.rescale(bad, layers, [1.0, 2.0]),
        lambda: symmetry.scale_before_norm(bad, layers, []),
        lambda: symmetry.permute(bad, layers, [jnp.arange(7), jnp.arange(6)]),
    ):
        with pytest.raises(ValueError, match=r"\['Dense_2'\]\['bias'\] is of type int32"):
            use()


class Estimate(NamedTuple):
    value: jax.Array
    sem: jax.Array


def verdicts(measures, symmetries, params, **how) -> dict[tuple[str, str], str]:
    found = symmetry.audit(measures, symmetries, params, KEY, **how)
    return {(one.measure, one.symmetry): one.verdict for one in found}


def test_the_audit_finds_what_theory_says() -> None:
    """f = (uv - 1)^2 / 2 has the Hessian (v, u) (v, u)^T at uv = 1; (u, v) -> (a u, v / a) leaves f as it is."""
    measures = {
        "loss": lambda p, key: 0.5 * (p["u"] * p["v"] - 1) ** 2 + 1,
        "trace": lambda p, key: p["u"] ** 2 + p["v"] ** 2,
        "relative trace": lambda p, key: 2 * (p["u"] * p["v"]) ** 2,
        "noise": lambda p, key: jax.random.normal(key),  # the same keys
        "difference": lambda p, key: p["u"] - 5,
        "sure": lambda p, key: Estimate(p["u"], 0.01 * p["u"]),
        "unsure": lambda p, key: Estimate(p["u"], p["u"]),
    }
    found = symmetry.audit(
        measures,
        {"scale": lambda p: {"u": 2 * p["u"], "v": p["v"] / 2}, "nothing": lambda p: p},
        {"u": jnp.float32(1), "v": jnp.float32(1)},
        KEY,
    )
    assert [one.measure for one in found[::2]] == list(measures)
    scaled = {one.measure: (one.verdict, one.factor) for one in found if one.symmetry == "scale"}
    assert scaled["loss"] == ("unchanged", 1)
    assert scaled["trace"] == ("changed", 2.125)
    assert scaled["relative trace"] == ("unchanged", 1)
    assert scaled["noise"] == ("unchanged", 1)
    assert scaled["difference"] == ("changed", 0.75)
    assert scaled["sure"] == ("changed", 2)
    assert scaled["unsure"] == ("not resolved", 2)
    assert all(one.verdict == "unchanged" for one in found if one.symmetry == "nothing")


def test_the_audit_says_what_it_cannot_resolve() -> None:
    def noisy(p, key):
        return jax.random.normal(jax.random.fold_in(key, p[0].astype(int)))

    found = verdicts(
        {
            "noise": noisy,
            "nothing": lambda p, key: jnp.nan,
            "quiet": lambda p, key: jnp.exp(0.05 * noisy(p, key)),  # errors of some 2 % hide no change by a third
            "zero": lambda p, key: 0.0,
        },
        {"add": lambda p: p + 1},
        jnp.zeros(3),
        repeats=10,
    )
    assert list(found.values()) == ["not resolved", "not resolved", "unchanged", "unchanged"]
    with pytest.raises(ValueError, match="repeats is 1"):
        symmetry.audit({}, {}, jnp.zeros(3), KEY, repeats=1)


def test_shapes_that_do_not_fit_the_layout_are_refused() -> None:
    def network(*shapes):
        return {f"Dense_{i}": {"kernel": jnp.ones(shape)} for i, shape in enumerate(shapes)}

    _, biased, _ = random_network("biased")
    transposed = {name: {"kernel": leaves["kernel"].T, "bias": leaves["bias"]} for name, leaves in biased.items()}
    layers = symmetry.chain(biased)
    for use in (
        lambda params, layers: symmetry.rescale(params, layers, [2.0] * (len(layers) - 1)),
        lambda params, layers: symmetry.permute(params, layers, [jnp.arange(0)] * (len(layers) - 1)),
        lambda params, layers: symmetry.scale_before_norm(params, layers, []),
    ):
        with pytest.raises(ValueError, match=r"\('Dense_0', 'bias'\) has the shape \(7,\); the units .* are 36"):
            use(transposed, layers)
        for shapes, words in {
            ((36, 7), (6, 7)): r"\(6, 7\) and reads 6; before it are 7 units",  # [out, in] behind it
            ((3, 3, 2, 3), (3, 3, 1, 6)): r"\(3, 3, 1, 6\) and reads 1; before it are 3 units",  # in groups
            ((4, 3), (3,)): r"has the shape \(3,\); it must be a kernel",
        }.items():
            params = network(*shapes)
            with pytest.raises(ValueError, match=words):
                use(params, symmetry.chain(params))
        heads = network((4, 2, 3), (2, 3, 4))
        heads["Dense_0"]["bias"] = jnp.ones((2, 3))
        with pytest.raises(ValueError, match=r"\('Dense_0', 'bias'\) has the shape \(2, 3\)"):
            use(heads, symmetry.chain(heads))
