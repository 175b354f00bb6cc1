"""Maximisers over a box: closed forms, and what holds for any maximiser."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from gengap import ascent

KEY = jax.random.key(0)
P = 16
START = jnp.zeros(P)
RADIUS = jnp.zeros(P).at[:5].set(jnp.array([0.5, 1.0, 2.0, 0.25, 1.5]))
MAXIMISERS = ("corner", "gradient", "lbfgs")
any_maximiser = pytest.mark.parametrize("how", MAXIMISERS)


@partial(jax.jit, static_argnames=("how", "num_starts", "max_evaluations"))
def run(how, fn, start=START, radius=RADIUS, key=KEY, num_starts=4, max_evaluations=12, **more):
    """One program for all the data of a function: every test pads to 16 coordinates."""
    maximise = getattr(ascent, how)
    return maximise(fn, start, radius, key, num_starts=num_starts, max_evaluations=max_evaluations, **more)


def _quadratic(c, g, H, y):
    return c + g @ y + y @ H @ y / 2


def quadratic(c=0.0, g=(), H=((0.0,),)):
    g, H = np.asarray(g), np.asarray(H)
    g, H = np.pad(g, (0, P - len(g))), np.pad(H, (0, P - len(H)))
    return Partial(_quadratic, *(jnp.asarray(a, jnp.float32) for a in (c, g, H)))


SEEN = []


def _bumpy(factor, unit, shift, y):
    jax.debug.callback(lambda y: SEEN.append(np.asarray(y)), y)
    y = y / unit + shift
    return factor * (5 + jnp.sum(jnp.sin(3 * y) + 0.3 * jnp.cos(7 * y)) + 0.1 * y @ y + 0.2 * jnp.sin(y.sum()))


def bumpy(factor=1.0, unit=1.0, shift=0.0):
    return Partial(_bumpy, *(jnp.float32(a) for a in (factor, unit, shift)))


def looks():
    jax.effects_barrier()
    seen, SEEN[:] = list(SEEN), []
    return seen


def check(top, fn, radius=RADIUS):
    """What holds for any result: inside the box, and the value is the one of the point."""
    assert np.all(np.abs(top.point) <= np.asarray(radius) * (1 + 1e-6))
    assert float(top.value) >= float(top.start_value)
    assert float(fn(top.point)) == pytest.approx(float(top.value), rel=1e-4)
    assert float(jnp.nanmax(top.ends)) == float(top.value)


@any_maximiser
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_linear_function_has_its_maximum_at_a_corner(how, scale):
    g = scale * np.array([1.0, -2.0, 0.0, 3.0, -0.5])
    top = run(how, quadratic(7 * scale, g))
    assert float(top.value) == pytest.approx(scale * (7 + 0.5 + 2.0 + 0.75 + 0.75), rel=1e-6)
    assert float(top.start_value) == pytest.approx(7 * scale)
    assert bool(top.finite)
    np.testing.assert_array_equal((np.sign(g) * top.point[:5])[g != 0], RADIUS[:5][g != 0])
    check(top, quadratic(7 * scale, g))


def test_a_linear_function_takes_two_evaluations():
    top = run("corner", quadratic(0, RADIUS), max_evaluations=2)
    assert float(top.value) == pytest.approx(float(jnp.sum(RADIUS**2)))
    assert int(top.evaluations) == 2


def test_another_ascent_begins_near_the_best_point_where_it_matters_least():
    looks = []

    def fn(y):
        jax.debug.callback(lambda y: looks.append(np.asarray(y)), y)
        return jnp.arange(1.0, 21.0) @ y

    ascent.corner(fn, jnp.zeros(20), jnp.ones(20), jax.random.key(0), max_evaluations=3)
    jax.effects_barrier()
    [near] = [y for y in looks if y.any() and not (y == 1).all()]
    [elsewhere] = np.nonzero(near == -1)
    assert len(looks) == 3 and len(elsewhere) == 2 and elsewhere.max() < 4


def test_a_start_that_nothing_improved_on_is_not_looked_at_again():
    looks = []

    def fn(y):
        jax.debug.callback(lambda y: looks.append(np.asarray(y)), y)
        return -jnp.sum(jnp.abs(y))

    ascent.corner(fn, jnp.zeros(20), jnp.ones(20), jax.random.key(0), max_evaluations=12)
    jax.effects_barrier()
    assert len(looks) > 4 and sum(not y.any() for y in looks) == 1


def problems():
    """Convex quadratics with spectra over six decades, and the value of the best corner of each."""
    for k in range(100):
        rng = np.random.default_rng(k)
        p = int(rng.integers(2, 17))
        Q, _ = np.linalg.qr(rng.normal(size=(p, p)))
        spectrum = 10.0 ** rng.uniform(-6, 0, p) if k % 2 else np.logspace(0, -6, p)
        H, g, r = (Q * spectrum) @ Q.T, rng.normal(size=p) * [0, 0.1, 1, 0.01][k % 4], rng.uniform(0.2, 2, p)
        corners = (2.0 * ((np.arange(2**p)[:, None] >> np.arange(p)) & 1) - 1) * r
        best = (corners @ g + ((corners @ H) * corners).sum(1) / 2).max()
        yield quadratic(0, g, H), jnp.float32(np.pad(r, (0, P - p))), best


@pytest.fixture(scope="module")
def convex():
    return list(problems())


@pytest.mark.parametrize(
    ("how", "num_starts", "max_evaluations", "least"),
    [
        ("corner", 4, 12, 80),
        ("corner", 8, 100, 95),
        ("gradient", 8, 100, 90),
        ("lbfgs", 8, 100, 90),
    ],
)
def test_most_convex_quadratics_end_at_their_best_corner_and_none_above(
    convex, how, num_starts, max_evaluations, least
):
    shares = []
    for i, (fn, radius, best) in enumerate(convex):
        key = jax.random.key(i)
        top = run(how, fn, radius=radius, key=key, num_starts=num_starts, max_evaluations=max_evaluations)
        assert top.finite and 0 <= float(top.value) <= best * (1 + 1e-5)
        assert int(top.evaluations) <= max_evaluations and len(top.ends) == num_starts
        shares.append(float(top.value) / best)
    assert sum(share > 0.999 for share in shares) >= least


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_maximum_inside_the_box_is_found(scale):
    weight = scale * np.array([1.0, 30.0, 0.1, 5.0, 2.0])
    centre = np.array([0.3, -0.2, 1.1, 0.05, -3.0])
    fn = quadratic(0, weight * centre, -np.diag(weight))
    y = np.clip(centre, -RADIUS[:5], RADIUS[:5])
    best = np.sum(weight * (centre * y - y**2 / 2))
    top = run("corner", fn, max_evaluations=40)
    check(top, fn)
    assert 0.99 * best < float(top.value) <= best * (1 + 1e-5)


@any_maximiser
@pytest.mark.parametrize("centre", [0.0, 0.1])
def test_a_concave_quadratic_never_ends_below_its_start_nor_above_its_maximum(how, centre):
    fn = quadratic(3, [2 * centre] * 5, -2 * np.eye(5))
    top = run(how, fn)
    check(top, fn)
    assert bool(top.finite) and float(top.value) <= 3 + 5 * centre**2 + 1e-6


@any_maximiser
def test_an_exact_stationary_point_is_left(how):
    top = run(how, quadratic(3, (), 2 * np.eye(5)))
    assert float(top.start_value) == 3
    assert float(top.value) == pytest.approx(3 + float(jnp.sum(RADIUS**2)))


@any_maximiser
def test_a_constant_stays_what_it_is(how):
    top = run(how, quadratic(3))
    assert float(top.value) == float(top.start_value) == 3
    assert bool(top.finite) and np.isfinite(top.point).all()


def steep_beyond(limit, beyond, slope, y):
    over = jnp.sum(jnp.maximum(jnp.abs(y) - limit, 0) ** 2)
    return 1 + slope * y[0] + jnp.where(y[0] > beyond[0], beyond[1], over)


@any_maximiser
def test_a_region_that_is_flat_around_the_start_is_left_or_kept(how):
    for limit in (0.4, 5.0):
        fn = Partial(steep_beyond, jnp.float32(limit), jnp.full(2, 100.0), jnp.float32(0))
        top = run(how, fn)
        check(top, fn)
        assert bool(top.finite) and np.isfinite(top.point).all()
        assert (float(top.value) > 1) == (limit < 1)


@any_maximiser
@pytest.mark.parametrize("beyond", [jnp.inf, -jnp.inf, jnp.nan])
def test_overflow_inside_the_box_is_told_and_not_taken(how, beyond):
    fn = Partial(steep_beyond, jnp.float32(5), jnp.array([0.45, beyond]), jnp.float32(1))
    top = run(how, fn)
    assert not top.finite
    assert 1.2 < float(top.value) <= 1.45
    check(top, fn)


@any_maximiser
@pytest.mark.parametrize("beyond", [jnp.inf, jnp.nan])
def test_a_start_that_is_not_finite_is_told(how, beyond):
    fn = Partial(steep_beyond, jnp.float32(5), jnp.array([-0.1, beyond]), jnp.float32(1))
    top = run(how, fn)
    assert not top.finite and not np.isfinite(top.value) and not np.isfinite(top.start_value)
    assert int(top.evaluations) == 1
    np.testing.assert_array_equal(top.point, START)


def humps(y):
    """Highest inside, and at either of two corners the gradient points to the other."""
    jax.debug.callback(lambda y: SEEN.append(np.asarray(y)), y)
    return jnp.sum(jnp.cos(2.5 * y[:3] - 0.3)) + 0.1 * jnp.sin(y[0] * y[1])


def test_two_corners_that_point_to_each_other_are_both_left():
    ones = START.at[:3].set(1.0)
    corners = [-ones, ones]
    for one, other in (corners, corners[::-1]):
        np.testing.assert_array_equal(jnp.sign(jax.grad(humps)(one)), other)
        looks()
        top = run("corner", Partial(humps), one, ones, num_starts=1, max_evaluations=20)
        points = looks()
        assert len({y.tobytes() for y in points}) == len(points) == int(top.evaluations) < 20
        check(top, humps, ones)
        assert float(top.value) > 2.97 > max(map(float, map(humps, corners)))


@any_maximiser
def test_a_multiple_of_the_function_has_its_maximum_at_the_same_point(how):
    one = run(how, bumpy())
    for factor in (2.0**10, 2.0**-10):
        more = run(how, bumpy(factor))
        np.testing.assert_array_equal(more.point, one.point)
        assert float(more.value) == factor * float(one.value)
    for factor in (100, 1e-3):
        more = run(how, bumpy(factor))
        np.testing.assert_allclose(more.point, one.point, rtol=1e-3, atol=1e-3)
        assert float(more.value) == pytest.approx(factor * float(one.value), rel=1e-5)


@any_maximiser
def test_scaling_the_box_scales_the_point(how):
    one = run(how, bumpy())
    four = run(how, bumpy(unit=4.0), radius=4 * RADIUS)
    np.testing.assert_array_equal(four.point, 4 * one.point)
    for unit in (1e-3, 1e3):
        other = run(how, bumpy(unit=unit), radius=unit * RADIUS)
        np.testing.assert_allclose(other.point / unit, one.point, rtol=1e-3, atol=1e-3)
        assert int(other.evaluations) == int(one.evaluations)


@any_maximiser
def test_nothing_ends_below_where_it_began(how):
    for i in range(20):
        key = jax.random.key(i)
        start = RADIUS * jax.random.uniform(key, (P,), minval=-1.0)
        top = run(how, bumpy(shift=i), start, key=key)
        check(top, bumpy(shift=i))
        assert float(top.start_value) == pytest.approx(float(bumpy(shift=i)(start)), rel=1e-6)
        assert bool(top.finite) and top.ends.shape == (4,)
        assert not np.isnan(top.ends[0])


@any_maximiser
@pytest.mark.parametrize("budget", [1, 12])
def test_no_more_evaluations_than_asked(how, budget):
    for shift in (0.0, 1.0):
        looks()
        top = run(how, bumpy(shift=shift), max_evaluations=budget)
        assert len(looks()) == int(top.evaluations) <= budget


@pytest.mark.parametrize("budget", range(2, 7))
def test_an_ascent_without_a_look_ends_in_nan(budget):
    top = run("corner", quadratic(0, RADIUS), max_evaluations=budget)
    assert int(top.evaluations) == budget
    assert np.isfinite(top.ends[0])
    assert np.all(np.isnan(top.ends) | np.isfinite(top.ends)), top.ends
    assert np.isfinite(top.ends).sum() <= budget - 1


def test_a_larger_budget_is_never_worse():
    values = [float(run("corner", bumpy(), max_evaluations=n).value) for n in (1, 12, 40)]
    assert values == sorted(values)


@any_maximiser
def test_a_known_start_saves_one_look(how):
    fn = bumpy(shift=0.3)
    expected = run(how, fn)
    known = jax.value_and_grad(fn)(START)
    looks()
    top = run(how, fn, known=known)
    assert len(looks()) == int(top.evaluations) - 1 == int(expected.evaluations) - 1
    np.testing.assert_allclose(top.point, expected.point, rtol=1e-5, atol=1e-5)


def test_the_ascent_goes_on_from_the_best_of_several_starts():
    fn = bumpy()
    for i in range(5):
        starts = RADIUS[None] * jax.random.uniform(jax.random.key(i), (3, P), minval=-1.0)
        values = [float(fn(y)) for y in (START, *starts)]
        best = (START, *starts)[int(np.argmax(values))]
        looks()
        top = run("corner", fn, starts=starts)
        points = looks()
        assert len(points) == int(top.evaluations)
        np.testing.assert_allclose(points[:4], [START, *starts], rtol=1e-6)
        np.testing.assert_allclose(points[4], RADIUS * jnp.sign(jax.grad(fn)(best)), rtol=1e-6)
        np.testing.assert_allclose(top.ends[:2], values[1:3], rtol=1e-5)
        assert float(top.value) >= max(values) * (1 - 1e-6)
        check(top, fn)


def test_more_starts_than_evaluations_are_cut_off():
    starts = RADIUS[None] * jax.random.uniform(KEY, (3, P), minval=-1.0)
    looks()
    top = run("corner", bumpy(), starts=starts, max_evaluations=3)
    assert len(looks()) == int(top.evaluations) == 3
    check(top, bumpy())


@any_maximiser
def test_vmap_equals_a_loop(how):
    shifts = jnp.array([0.0, 0.4, -1.0])
    together = jax.vmap(lambda shift: run(how, Partial(_bumpy, jnp.float32(1), jnp.float32(1), shift)))(shifts)
    for i, shift in enumerate(shifts):
        alone = run(how, bumpy(shift=shift))
        assert float(together.value[i]) == pytest.approx(float(alone.value), rel=1e-5)
        assert int(together.evaluations[i]) == int(alone.evaluations)


@any_maximiser
def test_the_same_key_gives_the_same_point(how):
    one, again = (run(how, bumpy(), key=jax.random.key(3)) for _ in range(2))
    np.testing.assert_array_equal(one.point, again.point)


@any_maximiser
def test_a_second_call_with_other_data_compiles_nothing(how, caplog):
    run(how, bumpy(), START, RADIUS, KEY)
    data = bumpy(2.0, 3.0, 1.0), START + RADIUS / 2, RADIUS * 1.5, jax.random.key(9)
    with jax.log_compiles():
        run(how, *data)
        assert not [r for r in caplog.records if "XLA compilation" in r.getMessage()]


G = jnp.array([1.0, -2.0, 0.5])
R = jnp.array([0.5, 1.0, 2.0])


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_scipy_finds_the_corner_of_a_linear_function(scaled, scale):
    top = ascent.scipy_lbfgsb(lambda y: scale * (4 + G @ y), jnp.zeros(3), R, scaled=scaled)
    np.testing.assert_array_equal(top.point, jnp.sign(G) * R)
    assert float(top.value) == pytest.approx(scale * (4 + 3.5)) and bool(top.finite)


def test_scipy_with_its_own_tolerance_stays_where_the_gradient_is_tiny():
    for tolerance, moves in ((None, False), (0.0, True)):
        top = ascent.scipy_lbfgsb(lambda y: 1e-7 * jnp.sum(y**2 + y), jnp.zeros(3), R, tolerance=tolerance)
        assert np.any(top.point != 0) == moves
        assert (int(top.evaluations) > 1) == moves
        assert (float(top.value) > 0) == moves


@pytest.mark.parametrize("scaled", [False, True])
def test_scipy_counts_its_evaluations_and_stops_after_its_iterations(scaled):
    def valley(y):
        jax.debug.callback(lambda: SEEN.append(0))
        return -100.0 * (y[1] - y[0] ** 2) ** 2 - (1 - y[0]) ** 2

    start, radius, found = jnp.array([-1.2, 1.0]), jnp.array([2.0, 2.0]), []
    for iterations in (1, 3, 10, 50):
        looks()
        found.append(ascent.scipy_lbfgsb(valley, start, radius, max_iterations=iterations, scaled=scaled))
        assert len(looks()) == int(found[-1].evaluations)
        assert float(found[-1].value) >= float(found[-1].start_value)
        assert float(found[-1].start_value) == pytest.approx(float(valley(start)), rel=1e-5)
    evaluations, values = ([float(top[i]) for top in found] for i in (3, 1))
    assert evaluations == sorted(set(evaluations)) and values == sorted(values)
    assert evaluations[0] <= 5 and values[-1] > -1e-3


def test_scipy_begins_no_iteration_after_its_evaluations():
    top = ascent.scipy_lbfgsb(lambda y: jnp.cos(y).sum(), jnp.ones(3), R + 1, max_evaluations=1, max_iterations=50)
    assert int(top.evaluations) <= 3


def test_scipy_never_ends_below_its_start():
    for i in range(5):
        start = R * jax.random.uniform(jax.random.key(i), (3,), minval=-1.0)
        top = ascent.scipy_lbfgsb(lambda y: jnp.sin(9 * y).sum(), start, R, max_iterations=2)
        assert float(top.value) >= float(top.start_value)
        assert float(jnp.sin(9 * top.point).sum()) == pytest.approx(float(top.value), abs=1e-5)
        assert np.all(np.abs(top.point) <= R)


@pytest.mark.parametrize("beyond", [jnp.inf, jnp.nan])
def test_scipy_tells_what_is_not_finite(beyond):
    fn = Partial(steep_beyond, jnp.float32(5), jnp.array([0.3, beyond]), jnp.float32(1))
    top = ascent.scipy_lbfgsb(fn, jnp.zeros(3), R)
    assert not top.finite and float(top.start_value) == 1
    start = ascent.scipy_lbfgsb(fn, jnp.full(3, 0.4), R)
    assert not start.finite


def test_half_of_the_gradients_stay_for_the_climb():
    starts = jnp.array([[-0.5], [0.5]])
    top = ascent.corner(jnp.sum, jnp.zeros(1), jnp.ones(1), KEY, max_evaluations=3, starts=starts)
    assert float(top.value) == 1.0 and int(top.evaluations) == 3
