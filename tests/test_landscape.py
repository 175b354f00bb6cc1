"""Paths, planes and neighbourhoods against their closed forms."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.tree_util import Partial

from gengap import kernels, landscape, models, objective
from tests.compiled import compiled

KEY = jax.random.key(0)


def tree(seed: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 2)
    return {"b": jax.random.normal(keys[0], (3,)), "w": jax.random.normal(keys[1], (4, 3))}


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def square(params) -> jax.Array:
    return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))


PATHS = {
    "linear": landscape.linear,
    "curvilinear": landscape.curvilinear,
    "bezier": lambda a, b: landscape.bezier(a, tree(2), b),
}


@pytest.mark.parametrize("make", PATHS.values(), ids=PATHS)
def test_the_ends_of_a_path_are_its_points(make) -> None:
    path = make(tree(0), tree(1))
    assert same(path(jnp.float32(0)), tree(0))
    assert same(path(jnp.float32(1)), tree(1))


def test_the_linear_path_is_that_of_figure_3() -> None:
    a, b, alpha = tree(0), tree(1), jnp.float32(-0.375)
    found = landscape.linear(a, b)(alpha)
    for name in a:
        np.testing.assert_allclose(found[name], alpha * b[name] + (1 - alpha) * a[name], rtol=1e-6)


def test_the_curve_is_that_of_figure_7() -> None:
    a, b = tree(0), tree(1)
    path = landscape.curvilinear(a, b)
    for alpha in (-1.0, 0.4, 2.0):
        found = path(jnp.float32(alpha))
        for name in a:
            theirs = np.sin(alpha * np.pi / 2) * np.asarray(b[name]) + np.cos(alpha * np.pi / 2) * np.asarray(
                a[name]
            )
            np.testing.assert_allclose(found[name], theirs, atol=1e-6)


def test_a_quadratic_along_a_line_is_a_parabola() -> None:
    a, b = tree(0), tree(1)
    alphas = jnp.linspace(-1, 2, 25)
    cross = sum(float(jnp.vdot(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    t = np.asarray(alphas, np.float64)
    expected = t**2 * float(square(b)) + (1 - t) ** 2 * float(square(a)) + 2 * t * (1 - t) * cross
    np.testing.assert_allclose(
        landscape.along(square, landscape.linear(a, b), alphas), expected, rtol=1e-5, atol=1e-5
    )


def test_several_values_come_back_with_a_leading_axis() -> None:
    values = landscape.along(lambda p: (square(p), p["b"]), landscape.linear(tree(0), tree(1)), jnp.arange(5.0))
    assert values[0].shape == (5,) and values[1].shape == (5, 3)


def test_new_points_compile_nothing() -> None:
    points = [tree(seed) for seed in range(4)]
    scales = jnp.float32(2), jnp.float32(3)
    fn = Partial(lambda scale, params: scale * square(params), scales[0])
    with compiled() as first:
        landscape.along(fn, landscape.linear(*points[:2]), np.arange(3.0))
    assert len(first) == 1
    with compiled() as second:
        path = landscape.linear(*points[2:])
        values = landscape.along(Partial(fn.func, scales[1]), path, [0.0, -1.0, 1.0, 5.0])
    assert second == []
    np.testing.assert_allclose(values[0], 3 * square(points[2]), rtol=1e-6)


def test_along_under_vmap_and_jit_is_a_loop() -> None:
    others = [tree(seed) for seed in (1, 2, 3)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *others)

    def curve(end, alphas):
        return landscape.along(square, landscape.curvilinear(tree(0), end), alphas)

    alphas = jnp.array([-0.5, 0.25, 2.0])
    found = jax.jit(jax.vmap(curve, in_axes=(0, None)))(together, alphas)
    np.testing.assert_allclose(found, jnp.stack([curve(end, alphas) for end in others]), rtol=1e-5)


@pytest.mark.parametrize("alphas", [[], 0.5, np.zeros((1, 2)), jnp.zeros(0)], ids=str)
def test_alphas_must_be_a_list_of_numbers(alphas) -> None:
    with pytest.raises(ValueError, match="alphas has the shape"):
        landscape.along(square, landscape.linear(tree(0), tree(1)), alphas)
    plane = landscape.Plane(tree(0), tree(1), tree(2))
    for name, places in (("s", (alphas, [0.0])), ("t", ([0.0], alphas))):
        with pytest.raises(ValueError, match=f"{name} has the shape"):
            landscape.over(square, plane, *places)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_leaves_that_are_not_floating_point_are_named(dtype) -> None:
    good, bad = tree(0), tree(1) | {"b": jnp.zeros(3, dtype)}
    for use in (
        lambda: landscape.linear(bad, bad),
        lambda: landscape.curvilinear(good, bad),
        lambda: landscape.bezier(good, bad, good),
        lambda: landscape.through(good, good, bad),
        lambda: landscape.over(square, landscape.Plane(good, bad, good), [0.0], [0.0]),
        lambda: landscape.filter_normalised(bad, KEY),
        lambda: landscape.connect(lambda p, key: square(p), good, bad, KEY),
        lambda: landscape.neighbourhood(square, bad, KEY),
    ):
        with pytest.raises(ValueError, match=rf"\['b'\] is of type {jnp.dtype(dtype)}"):
            use()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_point_of_low_precision_is_computed_in_float32_and_cast_once(dtype) -> None:
    low = [jax.tree.map(lambda leaf: (100 * leaf).astype(dtype), tree(seed)) for seed in range(3)]
    wide = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), point) for point in low]
    plane, corners = landscape.through(*low)
    same_plane, same_corners = landscape.through(*wide)
    np.testing.assert_array_equal(corners, same_corners)
    pairs = [(make(*low[:2]), make(*wide[:2])) for make in (landscape.linear, landscape.curvilinear)]
    pairs.append((landscape.bezier(low[0], wide[2], low[1]), landscape.bezier(wide[0], wide[2], wide[1])))
    pairs.append((lambda alpha: plane(alpha, -alpha), lambda alpha: same_plane(alpha, -alpha)))
    for path, exact in pairs:
        found = path(jnp.float32(0.3))
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
        assert same(found, jax.tree.map(lambda leaf: leaf.astype(dtype), exact(jnp.float32(0.3))))


def test_a_path_of_float64_is_computed_in_float64() -> None:
    with jax.enable_x64():
        a, b = ({"w": np.array([1.0, 1 + 1e-12]) * k, "h": np.ones(2, np.float16)} for k in (1, 3))
        found = landscape.linear(a, b)(np.float64(0.25))
        np.testing.assert_allclose(found["w"], a["w"] * 1.5, rtol=1e-15)
        assert found["h"].dtype == jnp.float16
        assert landscape.along(lambda p: p["w"][1], landscape.linear(a, b), [0.1])[0] == 1.2 * (1 + 1e-12)


def test_python_numbers_and_numpy_arrays_are_leaves() -> None:
    a, b = {"x": 1.0, "y": np.ones(2, np.float32)}, {"x": 3.0, "y": np.zeros(2, np.float32)}
    values = landscape.along(lambda p: p["x"] + p["y"].sum(), landscape.linear(a, b), [0, 0.5, 1])
    np.testing.assert_allclose(values, [3, 3, 3])


def test_a_network_has_its_own_loss_at_the_ends_and_is_connected() -> None:
    model = models.dense(3, widths=(4,))
    x, y = jax.random.uniform(KEY, (12, 8)), jnp.arange(12) % 3
    shapes, rng = jax.eval_shape(model.init, KEY, x), np.random.default_rng(0)
    a, b = (jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes) for _ in range(2))
    both = objective.loss_and_accuracy(model.apply, x, y)
    losses, accuracies = landscape.along(both, landscape.linear(a, b), [0.0, 0.5, 1.0])
    for i, point in ((0, a), (2, b)):
        np.testing.assert_allclose((losses[i], accuracies[i]), both(point), rtol=1e-5)
    f = objective.over_dataset(model.apply, x, y)
    control = landscape.connect(lambda params, key: f(params), a, b, KEY, steps=20, optimizer=optax.adam(0.1))
    alphas = np.linspace(0, 1, 11)
    straight, curve = (
        landscape.along(both, path, alphas)[0].mean()
        for path in (landscape.linear(a, b), landscape.bezier(a, control, b))
    )
    assert curve < straight


def test_points_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"b.*\(3,\) and \(2,\)"):
        landscape.linear(tree(0), tree(1) | {"b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="different structures"):
        landscape.linear(tree(0), [1.0])


def test_a_plane_goes_through_its_three_points() -> None:
    points = [tree(seed) for seed in range(3)]
    plane, places = landscape.through(*points)
    np.testing.assert_allclose(square(plane.u), 1, rtol=1e-5)
    np.testing.assert_allclose(square(plane.v), 1, rtol=1e-5)
    np.testing.assert_allclose(optax.tree.vdot(plane.u, plane.v), 0, atol=1e-6)
    for point, (s, t) in zip(points, places, strict=True):
        found = plane(s, t)
        for name in point:
            np.testing.assert_allclose(found[name], point[name], atol=1e-5)


def test_three_points_on_a_line_make_no_plane() -> None:
    a, b = tree(0), tree(1)
    for points in ((a, b, landscape.linear(a, b)(0.3)), (a, a, b), (a, b, a), (a, b, b)):
        with pytest.raises(ValueError, match="lie on one line"):
            landscape.through(*points)


def test_a_plane_under_jit_is_the_same() -> None:
    points = [tree(seed) for seed in range(3)]
    plane, corners = landscape.through(*points)
    again, same_corners = jax.jit(landscape.through)(*points)
    np.testing.assert_allclose(same_corners, corners, rtol=1e-6)
    np.testing.assert_allclose(again.v["w"], plane.v["w"], rtol=1e-5, atol=1e-6)


def test_a_grid_has_rows_of_t_and_columns_of_s() -> None:
    origin = jax.tree.map(jnp.zeros_like, tree(0))
    u, v = ({"b": jnp.eye(3)[i], "w": jnp.zeros((4, 3))} for i in (0, 1))
    s, t = jnp.array([0.0, 1.0, 2.0]), jnp.array([0.0, 10.0])
    found = landscape.over(square, landscape.Plane(origin, u, v), s, t)
    np.testing.assert_allclose(found, s[None] ** 2 + t[:, None] ** 2)
    with compiled() as again:
        landscape.over(square, landscape.Plane(tree(0), v, u), [1.0, 3.0], [0.0, 2.0, 4.0])
    assert again == []


def test_each_filter_of_a_direction_is_as_long_as_that_of_the_parameters() -> None:
    """Heads, stacked layers, and the first axis for units."""
    rng = np.random.default_rng(0)
    shapes = {"first": (4, 3), "query": (6, 2, 3), "stack": (3, 4, 5)}
    filters = {"first": (1,), "query": (0,), "stack": (1,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    units = kernels.named({"first": kernels.first_axis, "query": (-2, -1), "stack": kernels.stacked()})
    found = landscape.filter_normalised(params, jax.random.key(1), units=units)
    for name, direction in found.items():
        lengths = [np.sqrt((np.asarray(leaf) ** 2).sum(filters[name])) for leaf in (direction, params[name])]
        np.testing.assert_allclose(*lengths, rtol=1e-5, err_msg=name)
    assert abs(np.vdot(found["query"], params["query"]) / square(params["query"])) < 0.5


def test_the_curve_that_is_closest_to_a_point_has_its_closed_form() -> None:
    """E |phi - c|^2 over alpha in [0, 1] is least at theta = 5/2 c - 3/4 (a + b)."""
    a, b, c = tree(0), tree(1), tree(2)

    def loss(params, key):
        return square(jax.tree.map(jnp.subtract, params, c))

    optimizer = optax.sgd(lambda step: 3.75 / (step + 20))  # E's second derivative is 8 / 15
    found = landscape.connect(loss, a, b, jax.random.key(0), steps=3000, optimizer=optimizer)
    theta = jax.tree.map(lambda a, b, c: 2.5 * c - 0.75 * (a + b), a, b, c)
    error = optax.tree.norm(optax.tree.sub(found, theta)) / optax.tree.norm(theta)
    assert error < 0.01


def test_a_curve_goes_round_a_barrier() -> None:
    """In a valley along the circle |x| = 1 the straight line rises to (1 - 1/2)^2, a Bézier curve hardly."""
    a, b = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])

    def loss(x):
        return (jnp.vdot(x, x) - 1) ** 2

    alphas = jnp.linspace(0, 1, 41)
    straight = landscape.along(loss, landscape.linear(a, b), alphas).max()
    control = landscape.connect(lambda x, key: loss(x), a, b, jax.random.key(0), optimizer=optax.adam(1e-2))
    curved = landscape.along(loss, landscape.bezier(a, control, b), alphas).max()
    np.testing.assert_allclose(straight, 0.25, rtol=1e-5)
    assert curved < 0.02


def test_a_connection_compiles_once_and_starts_half_way() -> None:
    """Two steps of Adam at 1e-3 go no farther than 2e-3; bfloat16 points have a float32 control point."""
    a, b = (jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree(seed)) for seed in range(2))
    loss = Partial(lambda scale, params, key: scale * square(params), jnp.float32(1))
    found = landscape.connect(loss, a, b, KEY, steps=2)
    for name in a:
        moved = jnp.abs(found[name] - (a[name].astype(jnp.float32) + b[name]) / 2).max()
        assert found[name].dtype == jnp.float32 and 1e-3 < moved <= 2.01e-3
    with compiled() as again:
        landscape.connect(Partial(loss.func, jnp.float32(2)), b, a, jax.random.key(1), steps=3)
    assert again == []


@pytest.mark.parametrize(
    "optimizer",
    [optax.polyak_sgd(), optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), optax.lbfgs()],
    ids=["polyak_sgd", "reduce_on_plateau", "lbfgs"],
)
def test_a_connection_takes_optimisers_that_look_at_the_value(optimizer) -> None:
    """All of them find that phi = 0 is reached where 0 = (1 - t)^2 a + 2 t (1 - t) theta + t^2 b on average."""
    a = {"w": jnp.array([1.0, 2.0])}
    control = landscape.connect(lambda p, key: square(p), a, a, KEY, steps=60, optimizer=optimizer)
    alphas = np.linspace(0, 1, 21)
    straight, curve = (
        landscape.along(square, landscape.bezier(a, point, a), alphas).mean() for point in (a, control)
    )
    assert curve < 0.5 * straight


def test_the_steepest_direction_of_a_linear_loss_is_its_gradient() -> None:
    slope = jnp.cos(jnp.arange(50.0))
    x = jnp.linspace(-1, 1, 50)
    found = landscape.neighbourhood(lambda x: slope @ x, x, KEY, num_directions=3, max_evaluations=2)
    np.testing.assert_allclose(found.length, 1e-3 * np.linalg.norm(np.abs(x) + 1), rtol=1e-6)
    rise = found.length * jnp.linalg.norm(slope)
    np.testing.assert_allclose(found.highest - found.base_loss, rise, rtol=1e-3)
    assert (jnp.abs(found.losses - found.base_loss) < rise).all()


@pytest.mark.parametrize("steep", [5, 20, 100])
def test_the_mean_over_the_highest_rise_of_a_quadratic(steep) -> None:
    """f = sum of the first k of n squares: the mean rise on a sphere is k / n of the highest."""
    n, count = 100, 200
    f = Partial(lambda mask, x: 1 + jnp.vdot(mask * x, x), (jnp.arange(n) < steep).astype(jnp.float32))
    found = landscape.neighbourhood(f, jnp.zeros(n), KEY, epsilon=0.1, num_directions=count)
    np.testing.assert_allclose(found.length, 0.1 * np.sqrt(n), rtol=1e-6)
    assert found.base_loss == 1
    np.testing.assert_allclose(found.highest, 1 + found.length**2, rtol=1e-5)
    rises = (found.losses - 1) / found.length**2
    error = rises.std() / np.sqrt(count)
    assert abs(found.mean_over_highest - steep / n) < 4 * error + 1e-4


def test_the_share_of_directions_that_rise_by_more_than_twice_the_median() -> None:
    """f = x_1^2 in three dimensions: u_1 is uniform on [-1, 1], so that the share is 1 - sqrt(2) / 2."""
    count = 1000
    found = landscape.neighbourhood(lambda x: x[0] ** 2, jnp.zeros(3), KEY, num_directions=count, epsilon=1.0)
    exact = 1 - np.sqrt(0.5)
    assert abs(found.share - exact) < 4 * np.sqrt(exact * (1 - exact) / count)
    np.testing.assert_allclose(found.mean_over_highest, 1 / 3, atol=4 * np.sqrt(4 / 45 / count))
    assert found.losses.std() > 0.1


def test_the_share_is_of_directions_and_the_other_ratio_is_not() -> None:
    """Made-up rises: 2 of 10 above twice the median; the mean rise is 2.8 of 14."""
    losses = 1 + jnp.array([1.0, 1, 1, 1, 1, 1, 2, 2, 8, 10])
    found = landscape.Neighbourhood(jnp.float32(1), jnp.float32(1), losses, jnp.float32(15))
    np.testing.assert_allclose([found.share, found.mean_over_highest], [0.2, 0.2], rtol=1e-6)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), found._replace(highest=jnp.float32(29)))
    np.testing.assert_allclose(both.share, [0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(both.mean_over_highest, [0.1, 0.1], rtol=1e-6)


def test_a_neighbourhood_that_cannot_be_read_is_nan() -> None:
    flat = landscape.neighbourhood(lambda x: 0 * x.sum(), jnp.ones(3), KEY, num_directions=3)
    assert jnp.isnan(flat.share) and jnp.isnan(flat.mean_over_highest)
    with pytest.warns(RuntimeWarning, match="the loss was not finite where it was evaluated"):
        broken = landscape.neighbourhood(lambda x: jnp.sqrt(x.sum() - 3), jnp.ones(3), KEY, num_directions=20)
    assert jnp.isnan(broken.highest) and jnp.isnan(broken.mean_over_highest)
    steep = flat._replace(highest=jnp.float32(jnp.inf))
    assert jnp.isnan(steep.mean_over_highest)


def test_a_neighbourhood_of_a_tiny_loss_is_that_of_the_loss() -> None:
    def f(scale, x):
        return scale * (x[0] ** 2 + 0.1 * x[1] ** 2)

    small, one = (
        landscape.neighbourhood(Partial(f, jnp.float32(scale)), jnp.zeros(3), KEY, num_directions=5)
        for scale in (1e-25, 1.0)
    )
    np.testing.assert_allclose(1e25 * small.highest, one.highest, rtol=1e-5)


def test_a_neighbourhood_compiles_once_and_its_first_directions_stay() -> None:
    f = Partial(lambda center, p: square(jax.tree.map(jnp.subtract, p, center)), tree(1))
    how = {"num_directions": 3, "max_evaluations": 2}
    few = landscape.neighbourhood(f, tree(0), KEY, **how)
    with compiled() as again:
        landscape.neighbourhood(Partial(f.func, tree(2)), tree(1), jax.random.key(1), epsilon=1e-2, **how)
    assert again == []
    more = landscape.neighbourhood(f, tree(0), KEY, **how | {"num_directions": 5})
    np.testing.assert_array_equal(more.losses[:3], few.losses)


def test_neighbourhoods_under_vmap_are_those_of_a_loop() -> None:
    keys = jax.random.split(KEY, 2)

    def near(key):
        return landscape.neighbourhood(square, tree(0), key, num_directions=2, max_evaluations=2)

    found = jax.vmap(near)(keys)
    for i in range(2):
        one = near(keys[i])
        for a, b in zip((*found, found.share), (*one, one.share), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5)


def test_bad_arguments_are_named() -> None:
    for message, knobs in {
        "epsilon is -1": {"epsilon": -1.0},
        "num_directions is 0": {"num_directions": 0},
        "epsilon is inf": {"epsilon": float("inf")},
        "max_evaluations is 0": {"max_evaluations": 0},
    }.items():
        with pytest.raises(ValueError, match=message):
            landscape.neighbourhood(square, tree(0), jax.random.key(0), **knobs)
    with pytest.raises(ValueError, match="steps is 0"):
        landscape.connect(lambda p, key: square(p), tree(0), tree(1), jax.random.key(0), steps=0)


ATTENTION = {"bias": None, "(query|key|value)/kernel": (-2, -1), "out/kernel": -1}


class Scanned(nn.Module):
    """Three layers with a scale, biases and, where asked for, attention; and a head that is not stacked."""

    attention: bool = False

    @nn.compact
    def __call__(self, x):
        def layer(block, x, _):
            x = nn.LayerNorm()(nn.Dense(6)(x))
            return (nn.MultiHeadDotProductAttention(num_heads=2)(x) if self.attention else x), None

        scan = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(self, x, None)
        return nn.Dense(4)(x)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2)(nn.Dense(6)(x))


def linen(network: nn.Module, *shape: int):
    return ones(lambda: network.init(KEY, jnp.ones(shape))["params"])


def equinox(make):
    return ones(lambda: eqx.filter(make(), eqx.is_inexact_array))


def ones(make):
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), jax.eval_shape(make))


def haiku_convolutions():
    def network(x):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), True)
        return hk.Linear(3)(hk.Flatten()(x))

    return ones(lambda: hk.transform_with_state(network).init(KEY, jnp.ones((2, 4, 4, 2)))[0])


class Convolutions(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self):
        self.conv = eqx.nn.Conv2d(3, 2, 3, key=KEY)
        self.norm = eqx.nn.LayerNorm(4)
        self.mlp = eqx.nn.MLP(4, 3, 5, 2, key=KEY)


# name -> (params, rule, {a part of the leaf's path: axes of one filter}); every other leaf has to stay.
LAYOUTS = {
    "Linen attention": (
        lambda: linen(Plain(), 1, 5, 8),
        kernels.named(ATTENTION),
        {"Dense_0']['kernel": (0,), "y']['kernel": (0,), "value']['kernel": (0,), "out']['kernel": (0, 1)},
    ),
    "NNX attention": (
        lambda: ones(lambda: nnx.split(nnx.MultiHeadAttention(2, 8, 6, rngs=nnx.Rngs(0)), nnx.Param, ...)[1]),
        kernels.named(ATTENTION),
        {"y']['kernel": (0,), "value']['kernel": (0,), "out']['kernel": (0, 1)},
    ),
    "nn.scan": (
        lambda: linen(Scanned(), 1, 6)["Dense_0"],
        kernels.stacked(),
        {"kernel": (1,)},
    ),
    "nn.scan and a head": (
        lambda: linen(Scanned(attention=True), 1, 5, 6),
        kernels.named({"^(Dense_0|LayerNorm|Multi)": kernels.stacked(kernels.named(ATTENTION))}),
        {
            "Dense_0']['kernel": (1,),
            "y']['kernel": (1,),
            "value']['kernel": (1,),
            "out']['kernel": (1, 2),
            "Dense_1']['kernel": (0,),
        },
    ),
    "Equinox": (
        lambda: equinox(Convolutions),
        kernels.first_axis,
        {"conv.weight": (1, 2, 3), "mlp.layers[0].weight": (1,), "[1].weight": (1,), "[2].weight": (1,)},
    ),
    "stacked Equinox": (
        lambda: equinox(
            lambda: eqx.filter_vmap(lambda key: eqx.nn.MLP(4, 3, 5, 1, key=key))(jax.random.split(KEY, 6))
        ),
        kernels.stacked(kernels.first_axis),
        {"weight": (2,)},
    ),
    "Haiku": (haiku_convolutions, kernels.last_axis, {"conv2_d']['w": (0, 1, 2), "linear']['w": (0,)}),
    "bare JAX": (
        lambda: {"in": jnp.ones((4, 3)), "b1": jnp.ones((1, 3)), "out": jnp.ones((3, 2)), "offset": jnp.ones(())},
        kernels.last_axis,
        {"'in'": (0,), "'out'": (0,)},
    ),
    "flattened names": (
        lambda: {"a/kernel": jnp.ones((4, 3)), "a/bias": jnp.ones((1, 3)), "weight": jnp.ones((3, 2))},
        kernels.last_axis,
        {"a/kernel": (0,), "weight": (0,)},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_axes_of_one_filter_in_each_layout(name) -> None:
    make, units, filters = LAYOUTS[name]
    params, kernel_axes = make(), set()
    rules = kernels.of(params, units)
    for (path, leaf), kernel in zip(jax.tree.leaves_with_path(params), rules, strict=True):
        text = jax.tree_util.keystr(path)
        expected = next((axes for part, axes in filters.items() if part in text), None)
        if kernel is not None:
            kept = kernel.units + kernel.layers
            kernel = tuple(axis for axis in range(leaf.ndim) if axis not in kept)
            kernel_axes |= {kernel}
        assert kernel == expected, text
    assert kernel_axes == {*filters.values()}


@pytest.mark.parametrize("model", [models.f1(3), models.c1(3)], ids=["F1", "C1"])
def test_the_kernels_of_the_papers_networks_have_more_than_one_axis(model) -> None:
    shapes = jax.eval_shape(model.init, KEY, jnp.ones((2, 8, 8, 2)))
    for leaf, kernel in zip(jax.tree.leaves(shapes), kernels.of(shapes, kernels.last_axis), strict=True):
        assert kernel == (kernels.Kernel((leaf.ndim - 1,)) if leaf.ndim > 1 else None)


def test_the_direction_is_what_it_was_and_compiles_once() -> None:
    """Bit for bit, as of the rule by the number of axes alone."""

    @jax.jit
    def before(params, key):
        def scaled(leaf, d):
            axes = tuple(range(leaf.ndim - 1))
            ratio = jnp.sqrt((leaf**2).sum(axes, keepdims=True) / (d**2).sum(axes, keepdims=True))
            return ratio * d if leaf.ndim > 1 else jnp.zeros_like(d)

        return jax.tree.map(scaled, params, optax.tree.random_like(key, params))

    rng = np.random.default_rng(0)
    shapes = {"bias": (4,), "conv": (3, 3, 2, 4), "dense": (16, 3)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = landscape.filter_normalised(params, KEY)
    assert same(found, before(params, KEY))
    assert not found["bias"].any() and found["conv"].any() and found["dense"].any()
    other = {name: 2 * leaf for name, leaf in params.items()}
    with compiled() as again:
        landscape.filter_normalised(other, KEY, units=kernels.named({"conv": 3, "dense": (1,)}))
    assert again == []


@pytest.mark.parametrize(
    ("params", "units", "words"),
    [
        (lambda: linen(Plain(), 1, 5, 8), kernels.last_axis, r"\['key'\]\['bias'\] of shape \(2, 3\) has"),
        (
            lambda: {"query": {"kernel": jnp.ones((8, 2, 3))}},
            kernels.last_axis,
            r"\['query'\]\['kernel'\] of shape \(8, 2, 3\) may be attention.* units=kernels.stacked\(\), or "
            r"units=kernels.named\({'query/kernel': axes}\)",
        ),
        (lambda: {"value/w": jnp.ones((3, 8, 2, 3))}, kernels.last_axis, r"\(3, 8, 2, 3\) may be attention"),
        (lambda: linen(Scanned(), 1, 6), kernels.last_axis, r"\['bias'\] of shape \(3, 6\) has the name"),
        (lambda: linen(Scanned(), 1, 6), kernels.stacked(), r"\['Dense_1'\]\['kernel'\] .* is not stacked"),
        (
            lambda: {"q": {"kernel": jnp.ones((3, 8, 2, 3))}},
            kernels.stacked(),
            r"each of 3 stacked layers params\['q'\]\['kernel'\] of shape \(8, 2, 3\) may be attention",
        ),
        (lambda: equinox(Convolutions), kernels.last_axis, r"params.conv.weight .*first_axis"),
        (lambda: {"0.weight": jnp.ones((4, 3))}, kernels.last_axis, r"\['0.weight'\] .* in Equinox and PyTorch"),
        (lambda: {"scale": jnp.ones((3, 4))}, kernels.first_axis, r"\['scale'\] of shape \(3, 4\)"),
        (lambda: {"a": jnp.ones((4, 3)), "b": jnp.ones((3, 1))}, kernels.last_axis, r"\['b'\] of shape \(3, 1\)"),
        (lambda: {"a": jnp.ones((2, 3))}, kernels.named({"a": (0, 1)}), r"\['a'\] .* not fit the axes \(0, 1\)"),
        (lambda: {"a": jnp.ones((2, 3))}, kernels.named({"a": 2}), r"does not fit the axes \(2,\)"),
        (lambda: {"a": jnp.ones((2, 3, 4))}, kernels.named({"a": (-1, 2)}), r"does not fit the axes \(-1, 2\)"),
        (lambda: {"a": jnp.ones((2, 3))}, kernels.named({"a": ()}), r"does not fit the axes \(\)"),
        (lambda: jnp.ones((2, 3, 4)), kernels.last_axis, r"params of shape \(2, 3, 4\) may be"),
    ],
)  # fmt: skip
def test_a_leaf_that_fits_no_layout_is_refused_by_its_path(params, units, words) -> None:
    with pytest.raises(ValueError, match=words):
        landscape.filter_normalised(params(), KEY, units=units)


def test_what_a_refusal_says_to_pass_is_a_rule() -> None:
    """A convolution in one dimension, and a rule that is a function of one's own."""
    params = {"Conv_0": {"kernel": jnp.ones((3, 2, 5)), "bias": jnp.ones(5)}}
    for units in (kernels.named({"Conv_0/kernel": -1}), lambda path, shape: (2,) if len(shape) > 1 else None):
        assert kernels.of(params, units) == [None, kernels.Kernel((2,))]
