"""The quadratic model from a few gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gengap import secants

KEY = jax.random.key(0)
P = 10
CORNERS = 2.0 * ((np.arange(2**P)[:, None] >> np.arange(P)) & 1) - 1
corner = jax.jit(secants.corner)


def problem(seed, rank, looks=6):
    """A convex quadratic of low rank, and points inside the box with its gradients."""
    rng = np.random.default_rng(seed)
    B, g = rng.normal(size=(rank, P)) * np.logspace(0, -1, rank)[:, None], rng.normal(size=P)
    points = rng.uniform(-0.9, 0.9, (looks, P))
    values = CORNERS @ g + ((CORNERS @ B.T) ** 2).sum(1) / 2
    return jnp.float32(points), jnp.float32(g + points @ B.T @ B), values


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_best_corner_of_a_quadratic_whose_span_was_seen_is_found(rank):
    for seed in range(10):
        points, gradients, values = problem(seed, rank)
        for best in points[:2]:
            np.testing.assert_array_equal(corner(points, gradients, best, KEY), CORNERS[values.argmax()])


def test_the_second_best_corner_follows_where_the_best_was_seen():
    points, gradients, values = problem(0, 1)
    order = np.argsort(-values)
    top = jnp.float32(CORNERS[order[0]])
    # Of rank one: the gradient at the corner is g plus a multiple of the difference of any two.
    way = gradients[1] - gradients[0]
    share = (top - points[0]) @ way / ((points[1] - points[0]) @ way)
    there = gradients[0] + share * way
    found = corner(jnp.concatenate([points, top[None]]), jnp.concatenate([gradients, there[None]]), top, KEY)
    index = np.flatnonzero((np.asarray(found) == CORNERS).all(1))[0]
    assert index in order[1:20]


@pytest.mark.parametrize("missing", range(8))
def test_the_only_corner_that_is_left_is_found(missing):
    signs = jnp.float32(CORNERS[:8, :3])
    seen = jnp.delete(signs, missing, axis=0)
    weight = jnp.array([3.0, -2.0, 1.0])
    for at in (0, 6):
        found = corner(seen, 0 * seen + weight[None], seen[at], KEY)
        np.testing.assert_array_equal(found, signs[missing])


def test_a_corner_among_the_points_is_never_returned():
    for i in range(30):
        key, other = jax.random.split(jax.random.key(i))
        points = jax.random.rademacher(key, (6, 4), jnp.float32)
        found = corner(points, jax.random.normal(other, (6, 4)), points[2], KEY)
        assert set(np.unique(found)) <= {-1.0, 1.0}
        assert not np.any(np.all(np.asarray(found) == np.asarray(points), axis=1))


def test_rows_with_a_nan_are_not_looked_at():
    points, gradients, values = problem(3, 3)
    nothing = jnp.full((2, P), jnp.nan)
    found = corner(jnp.concatenate([nothing, points]), jnp.concatenate([nothing, gradients]), points[0], KEY)
    np.testing.assert_array_equal(found, CORNERS[values.argmax()])
    half = corner(jnp.concatenate([points, points[:2] + 1]), jnp.concatenate([gradients, nothing]), points[0], KEY)
    np.testing.assert_array_equal(half, found)


def test_one_point_gives_the_corner_that_its_gradient_points_to():
    g = jnp.array([1.0, -2.0, 0.5])
    points = jnp.full((4, 3), jnp.nan).at[0].set(0.0)
    np.testing.assert_array_equal(corner(points, points.at[0].set(g), jnp.zeros(3), KEY), jnp.sign(g))


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 100.0, 1e12])
def test_the_scale_of_the_gradients_does_not_matter(scale):
    for seed in range(5):
        points, gradients, _ = problem(seed, 4)
        np.testing.assert_array_equal(
            corner(points, scale * gradients, points[0], KEY), corner(points, gradients, points[0], KEY)
        )


def test_negative_curvature_is_left_out():
    points = jax.random.uniform(KEY, (6, P), minval=-1.0)
    g = jnp.arange(P) - 4.5
    found = corner(points, g[None] - 3 * points, points[0], KEY)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, jnp.sign(g - 3 * points[0]))
