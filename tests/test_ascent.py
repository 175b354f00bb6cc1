"""Maximisers over a box: closed forms, and what holds for any maximiser."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gengap import ascent

KEY = jax.random.key(0)
RADIUS = jnp.array([0.5, 1.0, 2.0, 0.25, 1.5])


def inside(top, radius):
    return bool(np.all(np.abs(top.point) <= np.asarray(radius) * (1 + 1e-6)))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_a_linear_function_has_its_maximum_at_a_corner(scale):
    g = scale * jnp.array([1.0, -2.0, 0.0, 3.0, -0.5])
    top = ascent.corner(lambda y: 7 * scale + g @ y, RADIUS, KEY)
    assert float(top.value) == pytest.approx(scale * (7 + 0.5 + 2.0 + 0.75 + 0.75), rel=1e-6)
    assert float(top.start_value) == pytest.approx(7 * scale)
    assert bool(top.finite) and inside(top, RADIUS)
    assert np.all((np.sign(g) * top.point == RADIUS)[np.asarray(g) != 0])
    assert float(7 * scale + g @ top.point) == pytest.approx(float(top.value), rel=1e-6)


def test_a_linear_function_takes_two_evaluations():
    top = ascent.corner(lambda y: jnp.sum(RADIUS * y), RADIUS, KEY, max_evaluations=2)
    assert float(top.value) == pytest.approx(float(jnp.sum(RADIUS**2)))
    assert int(top.evaluations) == 2
    assert int(ascent.corner(lambda y: jnp.sum(RADIUS * y), RADIUS, KEY).evaluations) <= 3


@jax.jit
def quadratic(H, g, radius, key, budget=12):
    return ascent.corner(lambda y: 1 + g @ y + y @ H @ y / 2, radius, key, max_evaluations=budget)


@pytest.mark.parametrize("p", [1, 3, 8])
def test_a_convex_quadratic_is_never_above_its_best_corner(p):
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=p)))
    rng = np.random.default_rng(p)
    shares = []
    for _ in range(6):
        B, g, radius = rng.normal(size=(p, p)), rng.normal(size=p), rng.uniform(0.1, 2, p)
        H = B @ B.T
        values = [1 + g @ y + y @ H @ y / 2 for y in corners * radius]
        top = quadratic(*(jnp.asarray(a, jnp.float32) for a in (H, g, radius)), KEY)
        assert 1 <= float(top.value) <= max(values) * (1 + 1e-5)
        y = np.asarray(top.point, np.float64)
        assert float(top.value) == pytest.approx(1 + g @ y + y @ H @ y / 2, rel=1e-4)
        assert inside(top, radius)
        shares.append((float(top.value) - 1) / (max(values) - 1))
    assert np.mean(shares) > 0.6


@pytest.mark.parametrize("centre", [0.0, 0.3])
def test_a_concave_quadratic_never_ends_below_its_start(centre):
    def f(y):
        return -jnp.sum((y - centre) ** 2)

    top = ascent.corner(f, RADIUS, KEY)
    assert float(f(jnp.zeros(5))) == pytest.approx(float(top.start_value))
    assert float(top.start_value) <= float(top.value) <= float(f(jnp.minimum(RADIUS, centre))) + 1e-6
    assert float(f(top.point)) == pytest.approx(float(top.value), abs=1e-6)
    assert inside(top, RADIUS)


def test_an_exact_stationary_point_is_left():
    top = ascent.corner(lambda y: 3 + jnp.sum(y**2), RADIUS, KEY)
    assert float(top.start_value) == 3
    assert float(top.value) == pytest.approx(3 + float(jnp.sum(RADIUS**2)))


def test_a_constant_stays_what_it_is():
    top = ascent.corner(lambda y: 3 + 0 * y.sum(), RADIUS, KEY)
    assert float(top.value) == float(top.start_value) == 3


def test_a_side_without_width_does_not_move():
    top = ascent.corner(lambda y: y.sum() + (y**2).sum(), RADIUS.at[1].set(0.0), KEY)
    assert float(top.point[1]) == 0 and inside(top, RADIUS.at[1].set(0.0))


@pytest.mark.parametrize("beyond", [jnp.inf, jnp.nan])
def test_overflow_inside_the_box_is_told_and_not_taken(beyond):
    def f(y):
        return 1 + jnp.where(y[0] > 0.9, beyond, y[0])

    top = ascent.corner(f, jnp.ones(1), KEY)
    assert not top.finite
    assert 1 <= float(top.value) <= 1.9
    assert float(f(top.point)) == pytest.approx(float(top.value))


def test_a_start_that_is_not_finite_is_told():
    top = ascent.corner(lambda y: jnp.log(-1 - y.sum() ** 2), RADIUS, KEY)
    assert not top.finite and not np.isfinite(top.value)


def bumpy(y):
    return jnp.sum(jnp.sin(3 * y) + 0.3 * jnp.cos(7 * y)) + 0.1 * y @ y


@pytest.mark.parametrize("budget", [2, 7])
def test_no_more_evaluations_than_allowed(budget):
    seen = []

    def f(y):
        jax.debug.callback(lambda: seen.append(1))
        return bumpy(y)

    top = ascent.corner(f, RADIUS, KEY, max_evaluations=budget)
    jax.effects_barrier()
    assert len(seen) == int(top.evaluations) <= budget
    assert inside(top, RADIUS) and float(top.value) >= float(top.start_value)


def test_a_larger_budget_is_never_worse():
    values = [float(ascent.corner(bumpy, RADIUS, KEY, max_evaluations=n).value) for n in (2, 7, 30)]
    assert values == sorted(values)


def test_the_same_key_gives_the_same_point_and_scaling_the_function_scales_the_value():
    one = ascent.corner(lambda y: bumpy(y), RADIUS, KEY)
    again = ascent.corner(lambda y: bumpy(y), RADIUS, KEY)
    larger = ascent.corner(lambda y: 1024 * bumpy(y), RADIUS, KEY)
    np.testing.assert_array_equal(one.point, again.point)
    assert float(larger.value) == pytest.approx(1024 * float(one.value), rel=1e-5)


def test_vmap_equals_a_loop():
    shifts = jnp.array([0.0, 0.4, -1.0])

    def run(shift):
        return ascent.corner(lambda y: bumpy(y + shift), RADIUS, KEY)

    together = jax.vmap(run)(shifts)
    for i, shift in enumerate(shifts):
        alone = run(shift)
        assert float(together.value[i]) == pytest.approx(float(alone.value), rel=1e-5)
        assert int(together.evaluations[i]) == int(alone.evaluations)
