"""The maximiser over a box: closed forms, and what holds for any function."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from gengap import ascent

KEY = jax.random.key(0)
P = 16
RADIUS = jnp.zeros(P).at[:5].set(jnp.array([0.5, 1.0, 2.0, 0.25, 1.5]))
SEEN = []


@jax.jit
def _evaluate(fn, y):
    return jax.value_and_grad(fn)(y)


def run(fn, radius=RADIUS, key=KEY, max_evaluations=24, starts=None):
    """From the corner that the gradient at the centre points to, and from the opposite one."""
    fn = fn if isinstance(fn, Partial) else Partial(fn)
    centre = _evaluate(fn, jnp.zeros_like(radius))
    seen_points()
    if starts is None:
        starts = jnp.stack([jnp.sign(centre[1]), -jnp.sign(centre[1])])
    return ascent.maximise(partial(_evaluate, fn), radius, centre, starts, key, max_evaluations=max_evaluations)


def seen_points():
    jax.effects_barrier()
    seen, SEEN[:] = list(SEEN), []
    return seen


def _quadratic(c, g, H, y):
    return c + g @ y + y @ H @ y / 2


def quadratic(c=0.0, g=(), H=((0.0,),)):
    g, H = np.asarray(g), np.asarray(H)
    g, H = np.pad(g, (0, P - len(g))), np.pad(H, (0, P - len(H)))
    return Partial(_quadratic, *(jnp.asarray(a, jnp.float32) for a in (c, g, H)))


def _bumpy(factor, unit, shift, y):
    jax.debug.callback(lambda y: SEEN.append(np.asarray(y)), y)
    y = y / unit + shift
    return factor * (5 + jnp.sum(jnp.sin(3 * y) + 0.3 * jnp.cos(7 * y)) + 0.1 * y @ y + 0.2 * jnp.sin(y.sum()))


def bumpy(factor=1.0, unit=1.0, shift=0.0):
    return Partial(_bumpy, *(jnp.float32(a) for a in (factor, unit, shift)))


def check(top, fn, radius=RADIUS):
    """What holds for any result: inside the box, and the value is the one of the point."""
    assert np.all(np.abs(top.point) <= np.asarray(radius) * (1 + 1e-6))
    assert float(top.value) >= float(fn(jnp.zeros_like(radius)))
    assert float(fn(top.point)) == pytest.approx(float(top.value), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("max_evaluations", [1, 24])
def test_a_linear_function_has_its_maximum_at_a_corner(scale, max_evaluations):
    g = scale * np.array([1.0, -2.0, 0.0, 3.0, -0.5])
    fn = quadratic(7 * scale, g)
    top = run(fn, max_evaluations=max_evaluations)
    assert float(top.value) == pytest.approx(scale * (7 + 0.5 + 2.0 + 0.75 + 0.75), rel=1e-6)
    assert bool(top.finite) and int(top.evaluations) == max_evaluations
    np.testing.assert_array_equal((np.sign(g) * top.point[:5])[g != 0], RADIUS[:5][g != 0])
    check(top, fn)


def _counted(y):
    jax.debug.callback(lambda y: SEEN.append(np.asarray(y)), y)
    return jnp.arange(1.0, 21.0) @ y


def test_an_ascent_that_stopped_begins_beside_the_best_point_where_it_matters_least():
    run(_counted, jnp.ones(20), max_evaluations=12, starts=jnp.ones((1, 20)))
    seen = seen_points()
    assert len(seen) == 12 and (seen[0] == 1).all()
    beside = [np.flatnonzero(y != 1) for y in seen[1:] if (y != 1).any()]
    # A fifth of the twenty coordinates is the first four. The ascent goes straight back from each such point, and
    # since that finds nothing better, two fifths may change sides, four fifths, and then all.
    assert len(beside) >= 5 and beside[0].max() < 4 and beside[1].max() < 8 and beside[2].max() < 16
    assert beside[1].max() >= 4 and beside[3].max() >= 16 and len({tuple(where) for where in beside}) > 4


def test_each_start_has_its_share_and_the_best_goes_on():
    starts = jnp.array([[1.0, 1.0], [-1.0, 1.0]])
    slopes = {1.0: 1.0, -1.0: 2.0}

    def saddle(y):
        jax.debug.callback(lambda y: SEEN.append(np.asarray(y)), y)
        return jnp.where(y[0] > 0, slopes[1.0], slopes[-1.0]) * jnp.abs(y[0]) + 1e-3 * y[1]

    top = run(saddle, jnp.ones(2), max_evaluations=9, starts=starts)
    seen = seen_points()
    np.testing.assert_array_equal([seen[0], seen[3]], starts)  # two thirds of nine evaluations, three each
    assert seen[6][0] < 0 and float(top.value) == pytest.approx(2.001)


@jax.jit
@jax.vmap
def _quadratics(g, H, y):
    return jax.value_and_grad(_quadratic, 3)(0.0, g, H, y)


def side_by_side(g, H, radius, seeds, max_evaluations=24):
    """As `run`, of twenty quadratics at once."""
    g, H, radius = (jnp.asarray(a, jnp.float32) for a in (g, H, radius))
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    centre = _quadratics(g, H, jnp.zeros_like(radius))
    starts = jnp.sign(jnp.stack([centre[1], -centre[1]], 1))
    evaluate = partial(_quadratics, g, H)
    return ascent.maximise(evaluate, radius, centre, starts, keys, max_evaluations=max_evaluations)


def problems():
    """Convex quadratics with spectra over six decades, and the value of the best corner of each."""
    for k in range(100):
        rng = np.random.default_rng(k)
        p = int(rng.integers(2, 17)) if k % 2 else 12
        Q, _ = np.linalg.qr(rng.normal(size=(p, p)))
        spectrum = 10.0 ** rng.uniform(-6, 0, p) if k % 4 < 2 else np.logspace(0, -6, p)
        H, g, r = (Q * spectrum) @ Q.T, rng.normal(size=p) * [0, 0.1, 1, 0.01][k // 25], rng.uniform(0.2, 2, p)
        corners = (2.0 * ((np.arange(2**p)[:, None] >> np.arange(p)) & 1) - 1) * r
        best = (corners @ g + ((corners @ H) * corners).sum(1) / 2).max()
        yield *(np.pad(a, (0, P - p)) for a in (g, H, r)), best


def test_more_gradients_find_the_best_corner_of_a_convex_quadratic():
    """While a new beginning finds nothing better, more coordinates change sides, in the end all."""
    linear, quadratic, best = [], [], []
    for p in (3, 6, 9, 12):
        rng = np.random.default_rng(p)
        B, g = rng.normal(size=(p, p)), 0.3 * rng.normal(size=p)
        corners = np.array(list(itertools.product([-1.0, 1.0], repeat=p)))
        linear.append(np.pad(g, (0, P - p)))
        quadratic.append(np.pad(B @ B.T, (0, P - p)))
        best.append((corners @ g + ((corners @ B @ B.T) * corners).sum(1) / 2).max())
    rows = np.repeat(np.arange(4), 5)
    radius = np.abs(np.array(linear)) > 0  # the coordinates of each, without the padding
    reached = {}
    for count in (24, 100, 400):
        top = side_by_side(np.array(linear)[rows], np.array(quadratic)[rows], radius[rows], [*range(5)] * 4, count)
        reached[count] = np.sum(np.asarray(top.value) > np.array(best)[rows] * (1 - 1e-4))
    assert reached[24] <= reached[100] <= reached[400] == 20 and reached[100] >= 17


def test_most_convex_quadratics_end_at_their_best_corner_and_none_above():
    linear, quadratic, radius, best = (np.array(parts) for parts in zip(*problems(), strict=True))
    shares = []
    for i in range(0, 100, 20):
        rows = slice(i, i + 20)
        top = side_by_side(linear[rows], quadratic[rows], radius[rows], range(i, i + 20))
        assert np.all(top.finite)
        shares.extend(np.asarray(top.value) / best[rows])
    assert len(shares) == 100 and min(shares) >= 0 and max(shares) <= 1 + 1e-5
    assert np.sum(np.array(shares) > 0.999) >= 80


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_maximum_inside_the_box_is_found(scale):
    weight = scale * np.array([1.0, 30.0, 0.1, 5.0, 2.0])
    centre = np.array([0.3, -0.2, 1.1, 0.05, -3.0])
    fn = quadratic(0, weight * centre, -np.diag(weight))
    y = np.clip(centre, -RADIUS[:5], RADIUS[:5])
    best = np.sum(weight * (centre * y - y**2 / 2))
    top = run(fn)
    check(top, fn)
    assert 0.99 * best < float(top.value) <= best * (1 + 1e-5)


@pytest.mark.parametrize("centre", [0.0, 0.1])
def test_a_concave_quadratic_never_ends_below_its_centre_nor_above_its_maximum(centre):
    fn = quadratic(3, [2 * centre] * 5, -2 * np.eye(5))
    top = run(fn)
    assert 3 <= float(top.value) <= 3 + 5 * centre**2 + 1e-6


def steep_beyond(limit, beyond, slope, y):
    over = jnp.sum(jnp.maximum(jnp.abs(y) - limit, 0) ** 2)
    return 1 + slope * y[0] + jnp.where(y[0] > beyond[0], beyond[1], over)


def test_a_region_that_is_flat_around_the_centre_is_left_or_kept():
    for limit in (0.4, 5.0):
        fn = Partial(steep_beyond, jnp.float32(limit), jnp.full(2, 100.0), jnp.float32(0))
        top = run(fn)
        check(top, fn)
        assert bool(top.finite) and np.isfinite(top.point).all()
        assert (float(top.value) > 1) == (limit < 1)


@pytest.mark.parametrize("beyond", [jnp.inf, -jnp.inf, jnp.nan])
def test_overflow_inside_the_box_is_told_and_not_taken(beyond):
    fn = Partial(steep_beyond, jnp.float32(5), jnp.array([0.45, beyond]), jnp.float32(1))
    top = run(fn)
    assert not top.finite
    assert 1.2 < float(top.value) <= 1.45
    check(top, fn)


@pytest.mark.parametrize("factor", [2.0**10, 2.0**-10])
def test_a_multiple_of_the_function_has_its_maximum_at_the_same_point(factor):
    one, more = run(bumpy()), run(bumpy(factor))
    np.testing.assert_array_equal(more.point, one.point)
    assert float(more.value) == factor * float(one.value)


def test_scaling_the_box_scales_the_point():
    one, four = run(bumpy()), run(bumpy(unit=4.0), radius=4 * RADIUS)
    np.testing.assert_array_equal(four.point, 4 * one.point)


def test_nothing_ends_below_the_centre_and_every_gradient_is_counted():
    for i in range(10):
        top = run(bumpy(shift=i), key=jax.random.key(i), max_evaluations=12)
        assert len(seen_points()) == int(top.evaluations) == 12
        check(top, bumpy(shift=i))
        assert bool(top.finite)


def test_ascents_side_by_side_are_those_one_by_one():
    shifts, keys = jnp.resize(jnp.array([0.0, 0.4, -1.0]), 20), jax.random.split(KEY, 20)
    rows = [_evaluate(bumpy(shift=s), jnp.zeros(P)) for s in shifts]
    centre = tuple(jnp.stack(parts) for parts in zip(*rows, strict=True))
    evaluate = jax.jit(lambda y: jax.vmap(lambda s, y: _evaluate(_at(s), y))(shifts, y))
    starts = jnp.sign(centre[1])[:, None]
    together = ascent.maximise(evaluate, jnp.stack([RADIUS] * 20), centre, starts, keys, max_evaluations=12)
    for i, shift in enumerate(shifts[:3]):
        alone = run(bumpy(shift=shift), key=keys[i], max_evaluations=12, starts=starts[i])
        assert float(together.value[i]) == pytest.approx(float(alone.value), rel=1e-5)


def _at(shift):
    return Partial(_bumpy, jnp.float32(1), jnp.float32(1), shift)


def test_the_same_key_gives_the_same_point_and_jit_changes_nothing():
    one, again = (run(bumpy(), key=jax.random.key(3), max_evaluations=6) for _ in range(2))
    np.testing.assert_array_equal(one.point, again.point)
    traced = jax.jit(lambda fn: run_quietly(fn, jax.random.key(3)))(bumpy())
    np.testing.assert_allclose(traced.point, one.point, rtol=1e-5, atol=1e-5)


def run_quietly(fn, key):
    centre = jax.value_and_grad(fn)(jnp.zeros(P))
    starts = jnp.stack([jnp.sign(centre[1]), -jnp.sign(centre[1])])
    return ascent.maximise(jax.value_and_grad(fn), RADIUS, centre, starts, key, max_evaluations=6)


def test_a_second_call_with_other_data_compiles_nothing(caplog):
    run(bumpy())
    data = bumpy(2.0, 3.0, 1.0), RADIUS * 1.5, jax.random.key(9)
    with jax.log_compiles():
        run(*data)
        assert not [r for r in caplog.records if "XLA compilation" in r.getMessage()]


G = jnp.array([1.0, -2.0, 0.5])
R = jnp.array([0.5, 1.0, 2.0])


def scipy(fn, start=(0.0, 0.0, 0.0), radius=R, **how):
    return ascent.scipy_lbfgsb(jax.value_and_grad(fn), radius, jnp.array(start), **how)


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_scipy_finds_the_corner_of_a_linear_function(factor):
    top = scipy(lambda y: 4 + G @ y, factor=factor)
    np.testing.assert_array_equal(top.point, jnp.sign(G) * R)
    assert float(top.value) == pytest.approx(4 + 3.5) and bool(top.finite)


def test_scipy_stays_where_the_gradient_is_tiny_unless_f_is_multiplied_or_the_tolerance_is_0():
    for how, moves in (({}, False), ({"tolerance": 0.0}, True), ({"factor": 1e4}, True)):
        top = scipy(lambda y: 1e-7 * jnp.sum(y**2 + y), **how)
        assert np.any(top.point != 0) == moves
        assert (int(top.evaluations) > 1) == moves
        assert (float(top.value) > 0) == moves


def test_scipy_counts_its_evaluations_and_stops_after_its_iterations():
    def valley(y):
        jax.debug.callback(lambda: SEEN.append(0))
        return -100.0 * (y[1] - y[0] ** 2) ** 2 - (1 - y[0]) ** 2

    found = []
    for iterations in (1, 3, 10, 50):
        seen_points()
        how = {"max_iterations": iterations, "tolerance": 0.0}
        found.append(scipy(valley, (-1.2, 1.0), jnp.array([2.0, 2.0]), **how))
        assert len(seen_points()) == int(found[-1].evaluations)
    evaluations, values = [int(top.evaluations) for top in found], [float(top.value) for top in found]
    assert evaluations == sorted(set(evaluations)) and values == sorted(values)
    assert evaluations[0] <= 5 and values[-1] > -1e-3


def test_scipy_begins_no_iteration_after_its_evaluations():
    top = scipy(lambda y: jnp.cos(y).sum(), (1.0, 1.0, 1.0), R + 1, max_evaluations=1, max_iterations=50)
    assert int(top.evaluations) <= 3


@pytest.mark.parametrize("beyond", [jnp.inf, jnp.nan])
def test_scipy_tells_what_is_not_finite(beyond):
    top = scipy(Partial(steep_beyond, jnp.float32(5), jnp.array([0.3, beyond]), jnp.float32(1)))
    assert not top.finite
