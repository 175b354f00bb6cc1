"""Paths, planes and neighbourhoods against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from gengap import landscape, models, objective


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
    fn = Partial(square)
    alphas = jnp.arange(3.0)
    landscape.along(fn, landscape.linear(tree(0), tree(1)), alphas)
    before = landscape._looks._cache_size()
    landscape.along(fn, landscape.linear(tree(3), tree(4)), 2 * alphas)
    assert landscape._looks._cache_size() == before


def test_a_network_with_convolutions_has_its_own_loss_at_the_ends() -> None:
    model = models.c1(3)
    x = jax.random.uniform(jax.random.key(0), (12, 8, 8, 1))
    y = jnp.arange(12) % 3
    a, b = (model.init(jax.random.key(seed), x) for seed in (0, 1))
    loss = objective.over_dataset(model.apply, x, y)
    values = landscape.along(loss, landscape.linear(a, b), jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(values[jnp.array([0, 2])], [loss(a), loss(b)], rtol=1e-5)


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
    with pytest.raises(ValueError, match="lie on one line"):
        landscape.through(a, b, landscape.linear(a, b)(jnp.float32(0.3)))
    with pytest.raises(ValueError, match="same point"):
        landscape.through(a, a, b)


def test_a_grid_has_rows_of_t_and_columns_of_s() -> None:
    origin = jax.tree.map(jnp.zeros_like, tree(0))
    u, v = ({"b": jnp.eye(3)[i], "w": jnp.zeros((4, 3))} for i in (0, 1))
    s, t = jnp.array([0.0, 1.0, 2.0]), jnp.array([0.0, 10.0])
    found = landscape.over(square, landscape.Plane(origin, u, v), s, t)
    np.testing.assert_allclose(found, s[None] ** 2 + t[:, None] ** 2)


def test_each_filter_of_a_direction_is_as_long_as_that_of_the_parameters() -> None:
    params = {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 5)), "bias": jnp.ones(5)}
    found = landscape.filter_normalised(params, jax.random.key(1))
    length = jnp.linalg.norm(params["kernel"].reshape(-1, 5), axis=0)
    np.testing.assert_allclose(jnp.linalg.norm(found["kernel"].reshape(-1, 5), axis=0), length, rtol=1e-5)
    assert not found["bias"].any()
    cosine = jnp.vdot(found["kernel"], params["kernel"]) / square(params["kernel"])
    assert abs(cosine) < 0.5


def test_the_curve_that_is_closest_to_a_point_has_its_closed_form() -> None:
    """E |phi - c|^2 over alpha in [0, 1] is least at theta = 5/2 c - 3/4 (a + b)."""
    a, b, c = tree(0), tree(1), tree(2)

    def loss(params, key):
        return square(jax.tree.map(jnp.subtract, params, c))

    schedule = optax.exponential_decay(0.1, 3000, 0.5)
    found = landscape.connect(loss, a, b, jax.random.key(0), steps=30_000, optimizer=optax.sgd(schedule))
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


def test_a_network_with_convolutions_is_connected_too() -> None:
    model = models.c1(3)
    x = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1))
    a, b = (model.init(jax.random.key(seed), x) for seed in (0, 1))
    f = objective.over_dataset(model.apply, x, jnp.arange(6) % 3)
    control = landscape.connect(lambda params, key: f(params), a, b, jax.random.key(0), steps=2)
    half = landscape.linear(a, b)(jnp.float32(0.5))
    moved = max(jnp.abs(m - h).max() for m, h in zip(jax.tree.leaves(control), jax.tree.leaves(half), strict=True))
    assert 1e-4 < moved < 1e-2  # two steps of Adam at 1e-3


@pytest.mark.parametrize("steep", [5, 20, 100])
def test_the_share_of_steep_directions_of_a_quadratic(steep) -> None:
    """f = sum of the first k of n squares: the mean rise on a sphere is k / n of the highest."""
    n = 100
    mask = (jnp.arange(n) < steep).astype(jnp.float32)
    found = landscape.neighbourhood(
        lambda x: 1 + jnp.vdot(mask * x, x), jnp.zeros(n), jax.random.key(0), epsilon=0.1, num_directions=2000
    )
    np.testing.assert_allclose(found.length, 0.1 * np.sqrt(n), rtol=1e-6)
    np.testing.assert_allclose(found.highest, 1 + found.length**2, rtol=1e-5)
    rises = (found.losses - 1) / found.length**2
    error = rises.std() / np.sqrt(2000)
    assert abs(found.share - steep / n) < 4 * error + 1e-4


def test_bad_arguments_are_named() -> None:
    for message, knobs in {
        "epsilon is -1": {"epsilon": -1.0},
        "num_directions is 0": {"num_directions": 0},
        "max_evaluations is 0": {"max_evaluations": 0},
    }.items():
        with pytest.raises(ValueError, match=message):
            landscape.neighbourhood(square, tree(0), jax.random.key(0), **knobs)
    with pytest.raises(ValueError, match="steps is 0"):
        landscape.connect(lambda p, key: square(p), tree(0), tree(1), jax.random.key(0), steps=0)
