"""Maps of parameters: the function stays, and the constructions of the theorems do what they promise."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from gengap import models, objective, symmetry


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
    x = jax.random.normal(jax.random.key(0), (12, *shape), dtype)
    params = model.init(jax.random.key(1), x)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.1 * jax.random.normal(k, leaf.shape, dtype) for k, leaf in zip(keys, leaves, strict=True)]
    moved = [leaf.astype(dtype) + z for leaf, z in zip(leaves, noise, strict=True)]
    return model, jax.tree.unflatten(tree, moved), x


def units(params, layers):
    return [params[layer.kernel[0]]["kernel"].shape[-1] for layer in layers[:-1]]


def moves(params):
    layers = symmetry.chain(params)
    n = units(params, layers)
    keys = jax.random.split(jax.random.key(3), len(n))
    vectors = [jnp.exp(jax.random.normal(k, (size,))) for k, size in zip(keys, n, strict=True)]
    alphas = [0.25 * 2.0**k for k in range(len(layers) - 1)]
    found = {
        "alpha": symmetry.alpha_scale(params, layers, [*alphas, 1 / math.prod(alphas)]),
        "neurons": symmetry.rescale(params, layers, vectors),
        "permutation": symmetry.permute(
            params, layers, [jax.random.permutation(k, size) for k, size in zip(keys, n, strict=True)]
        ),
        "many sharp": symmetry.many_sharp(params, layers, 1.5),
        "collapsible": symmetry.collapsible(params, layers, 0.05),
    }
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_in_float32(name) -> None:
    model, params, x = random_network(name)
    before = model.apply(params, x)
    for move, image in moves(params).items():
        assert any(
            jnp.abs(a - b).max() > 0.01 for a, b in zip(*map(jax.tree.leaves, (params, image)), strict=True)
        )
        error = jnp.abs(model.apply(image, x) - before).max() / jnp.abs(before).max()
        assert error < 1e-5, f"{move}: {error}"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_in_float64(name) -> None:
    with jax.enable_x64():
        model, params, x = random_network(name, jnp.float64)
        before = model.apply(params, x)
        assert before.dtype == jnp.float64
        for move, image in moves(params).items():
            error = jnp.abs(model.apply(image, x) - before).max() / jnp.abs(before).max()
            assert error < 1e-12, f"{move}: {error}"


@pytest.mark.parametrize("name", ["F1", "C1"])
def test_weights_before_a_batch_norm_have_no_scale(name) -> None:
    """But for its epsilon: at three times the weights the logits differ by about epsilon, 1e-5."""
    model, params, x = random_network(name)
    layers = symmetry.chain(params)
    count = sum(layer.norm is not None for layer in layers)
    image = symmetry.scale_before_norm(params, layers, [3.0] * count)
    before, after = model.apply(params, x), model.apply(image, x)
    assert jnp.abs(after - before).max() / jnp.abs(before).max() < 1e-3
    assert jnp.allclose(image[layers[0].kernel[0]]["kernel"], 3 * params[layers[0].kernel[0]]["kernel"])


def problem():
    """A small bias-free network at a critical point of its loss, near enough."""
    model, params, x = random_network("bias-free")
    y = jnp.arange(len(x)) % 3
    loss = objective.over_dataset(model.apply, x, y)
    return loss, params, symmetry.chain(params)


def test_the_hessian_goes_as_theorem_3_says() -> None:
    """H(T theta) = D H D with D = diag(1 / a_1, a_1) over the blocks of the two layers scaled."""
    loss, params, layers = problem()
    image = symmetry.rescale(params, layers, [3.0, 1.0])
    H, moved = (
        jax.hessian(lambda v, p=p: loss(ravel_pytree(p)[1](v)))(ravel_pytree(p)[0]) for p in (params, image)
    )
    size = {layer.kernel[0]: params[layer.kernel[0]]["kernel"].size for layer in layers}
    D = jnp.concatenate(
        [jnp.full(size["Dense_0"], 1 / 3), jnp.full(size["Dense_1"], 3.0), jnp.ones(size["Dense_2"])]
    )
    np.testing.assert_allclose(moved, D[:, None] * H * D[None], atol=1e-4 * float(jnp.abs(H).max()))


@pytest.mark.parametrize("bound", [1e3, 1e5])
def test_theorem_4_passes_any_bound(bound) -> None:
    loss, params, layers = problem()
    image, entry = symmetry.sharpened(loss, params, layers, bound)
    H = jax.hessian(lambda v: loss(ravel_pytree(image)[1](v)))(ravel_pytree(image)[0])
    assert jnp.linalg.norm(H, 2) >= 0.99 * entry
    assert entry >= bound
    np.testing.assert_allclose(loss(image), loss(params), rtol=1e-5)


def test_theorem_5_makes_many_eigenvalues_large() -> None:
    loss, params, layers = problem()

    def eigenvalues(p):
        return jnp.linalg.eigvalsh(jax.hessian(lambda v: loss(ravel_pytree(p)[1](v)))(ravel_pytree(p)[0]))

    before = eigenvalues(params)
    rank = int((jnp.abs(before) > 1e-5 * jnp.abs(before).max()).sum())
    last = params[layers[-1].kernel[0]]["kernel"].size
    after = eigenvalues(symmetry.many_sharp(params, layers, 1000.0))
    assert int((jnp.abs(after) > 10 * before.max()).sum()) >= rank - last


@pytest.mark.parametrize("name", ["bias-free", "F1"])
def test_the_box_of_a_collapsible_network_holds_a_constant_function(name) -> None:
    model, params, x = random_network(name)
    layers = symmetry.chain(params)
    epsilon = 1e-3
    image = symmetry.collapsible(params, layers, epsilon)
    silent = image
    for where in layers[0].out:
        leaf = image[where[0]][where[1]]
        assert jnp.all(jnp.abs(leaf) <= epsilon * (jnp.abs(leaf) + 1) * (1 + 1e-6))
        silent = {**silent, where[0]: {**silent[where[0]], where[1]: jnp.zeros_like(leaf)}}
    logits = model.apply(silent, x)
    np.testing.assert_allclose(logits, jnp.broadcast_to(logits[:1], logits.shape), atol=1e-6)


def test_the_images_of_theorem_2_have_disjoint_boxes() -> None:
    _, params, layers = problem()
    radius = 0.01
    alpha = symmetry.disjoint(params, layers, radius)
    sizes = [float(jnp.abs(params["Dense_0"]["kernel"]).max()) * alpha**j for j in range(5)]
    assert all(b - a > 2 * radius for a, b in itertools.pairwise(sizes))
    with pytest.raises(ValueError, match="radius is 100"):
        symmetry.disjoint(params, layers, 100.0)


@pytest.mark.parametrize(("power", "offset"), [(0.5, 1.0), (-0.4, 0.1), (2.0, 0.01), (1.0, 0.0)])
def test_the_radial_change_of_parameters_has_an_inverse(power, offset) -> None:
    center = jnp.array([1.0, -2.0, 0.5])
    change = symmetry.Radial(center, power, offset)
    for scale in (0.01, 1.0, 30.0):
        theta = center + scale * jnp.array([0.3, -0.2, 0.7])
        np.testing.assert_allclose(change.to_theta(change.to_eta(theta)), theta, rtol=2e-5, atol=2e-6)


def test_the_radial_change_makes_a_minimum_as_flat_as_one_likes() -> None:
    """At its center the Hessian is offset^(-2 power) times what it was."""
    center = jnp.array([1.0, -2.0])
    A = jnp.array([[3.0, 1.0], [1.0, 2.0]])
    change = symmetry.Radial(center, 0.5, 100.0)

    def loss(theta):
        return 0.5 * (theta - center) @ A @ (theta - center)

    H = jax.jacfwd(jax.grad(lambda eta: loss(change.to_theta(eta))))(jnp.array([1e-4, 1e-4]))
    np.testing.assert_allclose(H, A / 100, rtol=1e-3)


def test_bad_arguments_are_named() -> None:
    _, params, _ = random_network("biased")
    layers = symmetry.chain(params)
    with pytest.raises(ValueError, match="there must be 2"):
        symmetry.rescale(params, layers, [1.0])
    with pytest.raises(ValueError, match="not above 0"):
        symmetry.rescale(params, layers, [1.0, -1.0])
    with pytest.raises(ValueError, match="product must be 1"):
        symmetry.alpha_scale(params, layers, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="each unit once"):
        symmetry.permute(params, layers, [jnp.zeros(7, int), jnp.arange(6)])
    with pytest.raises(ValueError, match="sequence of Conv"):
        symmetry.chain({"LSTM_0": {}})
    with pytest.raises(ValueError, match="there must be 0"):
        symmetry.scale_before_norm(params, layers, [1.0])
