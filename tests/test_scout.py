"""Directions that the full space shows to all subspaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from gengap import scout

KEY = jax.random.key(0)
N = 200
SPEND = scout.Budget(radii=2, scouts=4, looks=3, share=3)
V, W = jnp.eye(N)[3], -jnp.eye(N)[7]


@pytest.mark.parametrize(
    ("draws", "evaluations", "expected"),
    [
        (10, 12, (2, 2, 6, 3)),
        (64, 4, (1, 4, 6, 1)),
        (1, 12, (2, 1, 3, 7)),
        (1, 6, (0, 0, 0, 1)),
        (1, 11, (0, 0, 0, 1)),
        (2, 6, (1, 1, 6, 4)),
        (2, 5, (0, 0, 0, 1)),
        (6, 3, (1, 1, 6, 2)),
        (6, 2, (0, 0, 0, 1)),
        (1, 100, (2, 2, 6, 25)),
        (1000, 100, (2, 4, 6, 1)),
    ],
)
def test_scouts_are_paid_for_by_the_draws(draws, evaluations, expected):
    assert scout.budget(draws, evaluations) == expected


def test_scouts_never_take_more_than_half_and_are_paid_in_full_with_the_gradient_at_x():
    for draws in range(1, 40):
        for evaluations in range(2, 60):
            radii, scouts, looks, share = scout.budget(draws, evaluations)
            assert 0 <= scouts <= 4 and 1 <= share <= min(evaluations // 2 + 1, evaluations - 1)
            price = 1 + scouts * looks * radii
            assert price <= share * draws < price + draws


@pytest.mark.parametrize(("columns", "root"), [(jax.random.normal, 1.0), (jax.random.uniform, 3**-0.5)])
@pytest.mark.parametrize("dim", [1, 100])
def test_length_is_the_root_mean_square_of_the_entries(columns, root, dim):
    assert float(scout.length(KEY, columns, 100_000, dim)) == pytest.approx(root, rel=0.02)


@jax.jit
def directions(fn, slope, key, epsilon):
    return scout.directions(fn, slope, key, dim=10, entry=1.0, epsilon=epsilon, spend=SPEND)


def groups(directions, steepness, step):
    """A loss for each group of examples, which rises once the step goes far enough in its direction."""
    return jnp.mean(jax.nn.softplus(steepness * (directions @ step - 1)))


def cosines(found, v):
    return np.asarray(found @ v / jnp.linalg.norm(found, axis=-1))


def test_the_direction_along_which_the_loss_rises_is_found():
    others = 0.2 * jax.random.normal(KEY, (20, N)) / jnp.sqrt(N)
    fn = Partial(groups, jnp.concatenate([V[None], others]), jnp.full(21, 5.0))
    found = jax.vmap(lambda key: directions(fn, V, key, 0.5))(jax.random.split(KEY, 5))
    assert found.shape == (5, len(scout.RADII), N)
    assert cosines(found, V).min() > 0.9


def test_the_steeper_of_two_groups_is_found_for_most_keys():
    fn = Partial(groups, jnp.stack([V, W]), jnp.array([4.0, 3.0]))
    found = jax.vmap(lambda key: directions(fn, W, key, 0.5))(jax.random.split(KEY, 20))
    assert np.mean(cosines(found, V) > np.abs(cosines(found, W))) > 0.75


def test_more_scouts_find_a_higher_one():
    fn = Partial(groups, jnp.stack([V, W]), jnp.array([4.0, 3.0]))

    def hits(number):
        def one(key):
            how = {"dim": 10, "entry": 1.0, "epsilon": jnp.float32(0.5)}
            return scout.directions(fn, W, key, spend=SPEND._replace(scouts=number), **how)

        found = jax.jit(jax.vmap(one))(jax.random.split(KEY, 40))
        return np.mean(cosines(found, V) > cosines(found, W))

    assert hits(1) < hits(4)


def beyond(value, step):
    return value * jnp.sum(step**2)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_loss_that_is_not_finite_leaves_the_slope(value):
    found = directions(Partial(beyond, jnp.float32(value)), V + W, KEY, 0.5)
    np.testing.assert_array_equal(found, jnp.stack([V + W] * len(scout.RADII)))


def bounded(limit, step):
    return jnp.where(step @ step < limit**2, 1 + step @ V, jnp.nan)


def test_a_radius_at_which_the_loss_is_not_finite_leaves_only_its_own_slope():
    """The scouts step to 0.1 * 10 * sqrt(2 / pi) = 0.8 and to 1.2."""
    found = directions(Partial(bounded, jnp.float32(1.0)), W, jax.random.key(1), 0.1 / jnp.sqrt(N / 10.0))
    np.testing.assert_allclose(cosines(found, V), [1, 1], rtol=1e-6)
    found = directions(Partial(bounded, jnp.float32(0.0)), W, KEY, 0.1)
    np.testing.assert_array_equal(found, jnp.stack([W, W]))


def test_the_same_key_gives_the_same_directions():
    fn = Partial(groups, jnp.stack([V, W]), jnp.array([4.0, 3.0]))
    np.testing.assert_array_equal(directions(fn, V, KEY, 0.5), directions(fn, V, jax.random.key(0), 0.5))


def test_from_outside_the_box_the_higher_corner_is_seen():
    fn = Partial(lambda step: jnp.sum(0.3 * step**3 - 0.1 * step))
    slope = jax.grad(fn)(jnp.zeros(2))
    g = scout.outside(fn, slope, jnp.ones(2), KEY)
    assert float(fn(jnp.sign(g))) == pytest.approx(0.4) and float(fn(jnp.sign(slope))) == pytest.approx(-0.4)


def test_what_is_not_finite_outside_the_box_changes_nothing():
    slope = jnp.array([1.0, -2.0])
    fn = Partial(lambda step: jnp.where(jnp.abs(step).max() > 1, jnp.nan, 1.0) * step.sum())
    g = scout.outside(fn, slope, jnp.ones(2), KEY)
    np.testing.assert_array_equal(g, slope)


def test_where_the_loss_is_flat_around_x_the_looks_outside_leave_it():
    fn = Partial(lambda step: jnp.maximum(jnp.abs(step).max() - 1.5, 0.0))
    g = scout.outside(fn, jnp.zeros(2), jnp.ones(2), KEY)
    assert jnp.abs(g).max() > 0


def test_scouts_take_the_gradients_that_they_are_given():
    seen = []

    def rise(step):
        jax.debug.callback(lambda value: seen.append(float(value)), step @ V)
        return step @ V

    spend = scout.Budget(radii=1, scouts=2, looks=5, share=1)
    how = {"dim": 10, "entry": 1.0, "epsilon": jnp.float32(0.5), "spend": spend}
    found = jax.jit(lambda key: scout.directions(Partial(rise), W, key, **how))(KEY)
    jax.effects_barrier()
    assert len(seen) == 2 * 5 and found.shape == (1, N)
    np.testing.assert_allclose(cosines(found, V), [1.0], rtol=1e-6)
