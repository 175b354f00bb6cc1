r"""Maximisers over a box: the largest $f(y)$ with $|y_i| \le r_i$.

Each keeps the best point that it has seen, so that it never returns less than f(start), and works in
coordinates scaled by r and with gradients up to a factor, so that neither the size of the box nor a multiple of
f changes the answer. There are many local maxima: what is found is a lower bound of the maximum.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jaxtyping import Array, Bool, Float, Int, Key

from gengap import loops, secants

SAME = 1e-3  # of the radius: points nearer than that are one
STALLED = 3  # looks in a row without a better value, after which an ascent is over
_LEAST = 0.2  # of the coordinates, of which half change sides when an ascent begins near the best point


class Maximum(NamedTuple):
    """What a maximiser found.

    Attributes:
      point: the best point seen, inside the box.
      value: f there.
      start_value: f(start).
      evaluations: values with gradients that were spent, the one at the start included.
      finite: whether f and its gradient were finite wherever they were looked at.
      ends: the best value of each ascent; NaN where there was nothing left to spend on it.
    """

    point: Float[Array, " p"]
    value: Float[Array, ""]
    start_value: Float[Array, ""]
    evaluations: Int[Array, ""]
    finite: Bool[Array, ""]
    ends: Float[Array, " num_starts"]


class Look(NamedTuple):
    """A point in coordinates scaled by the radius, with f and its gradient in these coordinates."""

    point: Array
    value: Array
    gradient: Array


class Rule(NamedTuple):
    """How an ascent goes on, as pure functions; hashable, since it is static under `jit`.

    Attributes:
      init: `point -> state`, at the start of an ascent.
      step: `(before, look, state) -> (point, state)`: where to look next, given the best look of this ascent
        before the newest one, and the newest.
    """

    init: Callable
    step: Callable


class _State(NamedTuple):
    point: Array  # to look at next
    local: Look  # the best of this ascent
    best: Array  # of all
    value: Array
    history: tuple[Array, Array] | None  # points and gradients [max_evaluations, p]
    inner: Any
    ends: Array
    ascent: Array  # number of this one
    stalled: Array
    evaluations: Array
    finite: Array
    done: Array


def maximise(
    rule: Rule,
    fn: Callable,
    start: Float[Array, " p"],
    radius: Float[Array, " p"],
    key: Key[Array, ""],
    *,
    num_starts: int = 4,
    max_evaluations: int = 12,
    starts: Float[Array, "s p"] | None = None,
    known: tuple[Float[Array, ""], Float[Array, " p"]] | None = None,
) -> Maximum:
    """Ascents by a rule; `corner`, `gradient` and `lbfgs` are this with a rule each.

    An ascent that no longer moves, or that three looks in a row did not improve, makes room for another. In turn
    that begins near the best point seen, on the other side of the box in half of the fifth of the coordinates that
    matters least there (by |r_i df/dy_i|), and at the corner that a quadratic model of all that has been seen
    thinks highest (see `secants.corner`); at a random corner where p is above `secants.LIMIT`. A derivative of
    exactly 0 takes a random sign, so that an ascent from a stationary point moves.

    Args:
      rule: how an ascent goes on.
      fn: `y -> scalar`, differentiable.
      start: a point in the box, which the first ascent begins at.
      radius: the half-widths r of the box, not negative.
      key: of everything random.
      num_starts: the most ascents.
      max_evaluations: values with gradients to spend in all, f(start) included.
      starts: points to look at first, with at most half of what there is to spend; the ascent goes on from the
        best of them.
      known: f(start) and its gradient, where they are known.

    >>> top = corner(lambda y: y @ jnp.array([1.0, -2.0]), jnp.zeros(2), jnp.array([1.0, 0.5]), jax.random.key(0))
    >>> float(top.value), top.point.tolist()
    (2.0, [1.0, -0.5])
    """
    fn = loops.as_pytree(fn)
    value, slope = _value_and_grad(fn, start) if known is None else known
    unit = jnp.where(radius > 0, radius, 1)
    look = Look(start / unit, value, slope * radius)
    first = look.point[None] if starts is None else starts[: max((max_evaluations - 1) // 2, 1)] / unit[None]
    given = 0 if starts is None else len(first)
    ends = jnp.full(max(num_starts, given, 1), jnp.nan, value.dtype)
    inner = rule.init(look.point)
    history = None
    if (size := look.point.size) <= secants.LIMIT:
        rows = jnp.full((max_evaluations, size), jnp.nan, look.point.dtype)
        history = (rows.at[0].set(look.point), rows.at[0].set(look.gradient))
    point = first[0]
    if not given:
        point, inner = rule.step(_nothing_at(look.point, value), _signed(look, jax.random.fold_in(key, 0)), inner)
    count = jnp.ones((), jnp.int32)
    state = _State(
        point=point,
        local=look,
        best=look.point,
        value=value,
        history=history,
        inner=inner,
        ends=ends,
        ascent=jnp.zeros_like(count),
        stalled=jnp.zeros_like(count),
        evaluations=count,
        finite=jnp.isfinite(value) & jnp.isfinite(slope).all(),
        done=~jnp.isfinite(value),
    )
    step = partial(_advance, (rule, given), fn, radius, key, first)
    end = loops.while_loop(lambda s: ~s.done & (s.evaluations < max_evaluations), step, state)
    ends = end.ends.at[end.ascent].set(jnp.fmax(end.ends[end.ascent], end.local.value))
    ends = jnp.where(jnp.isfinite(ends), ends, jnp.nan)
    return Maximum(end.best * radius, end.value, value, end.evaluations, end.finite, ends)


@jax.jit
def _value_and_grad(fn: Callable, y: Array) -> tuple[Array, Array]:
    return jax.value_and_grad(fn)(y)


@partial(jax.jit, static_argnums=0)
def _advance(how: tuple[Rule, int], fn: Callable, radius: Array, key: Array, first: Array, s: _State) -> _State:
    """One look, and where to look next."""
    rule, given = how
    value, slope = jax.value_and_grad(fn)(s.point * radius)
    finite = jnp.isfinite(value) & jnp.isfinite(slope).all()
    key = jax.random.fold_in(key, s.evaluations)
    look = Look(s.point, jnp.where(finite, value, -jnp.inf), jnp.where(finite, slope * radius, 0))
    better = look.value > s.local.value
    best = jnp.where(look.value > s.value, look.point, s.best)
    local = jax.tree.map(partial(jnp.where, better), look, s.local)
    history = None
    if s.history is not None:
        points, slopes = s.history
        history = (points.at[s.evaluations].set(look.point), slopes.at[s.evaluations].set(look.gradient))
    choosing = s.evaluations < given
    # The given starts are looked at first, and the ascent begins at the best look.
    chosen = s.evaluations == given
    newest = jax.tree.map(partial(jnp.where, chosen), local, look)
    before = jax.tree.map(partial(jnp.where, chosen), _nothing_at(local.point, value), s.local)
    point, inner = rule.step(before, _signed(newest, key), s.inner)
    point = jnp.where(finite, point, (s.local.point + s.point) / 2)
    stalled = jnp.where(better | choosing, 0, s.stalled + 1)
    places = jnp.stack([local.point, look.point]) if history is None else history[0]
    seen = jnp.any(jnp.all(jnp.abs(places - point[None]) < SAME, axis=1))
    over = ~choosing & (seen | (stalled >= STALLED))
    ends = s.ends.at[s.ascent].set(jnp.where(choosing, look.value, local.value))
    ascent = jnp.where(choosing, jnp.minimum(s.ascent + 1, given - 1), s.ascent + over)
    again = over & (ascent < len(s.ends))
    afresh = jax.lax.cond(again, partial(_another, history, best, ascent - max(given, 1)), lambda _: s.point, key)
    point = jnp.where(choosing, first[jnp.minimum(s.evaluations, len(first) - 1)], jnp.where(again, afresh, point))
    return _State(
        point=point,
        local=jax.tree.map(partial(jnp.where, again), _nothing_at(point, value), local),
        best=best,
        value=jnp.fmax(look.value, s.value),
        history=history,
        inner=jax.tree.map(partial(jnp.where, again), rule.init(point), inner),
        ends=ends,
        ascent=jnp.minimum(ascent, len(s.ends) - 1),
        stalled=jnp.where(again, 0, stalled),
        evaluations=s.evaluations + 1,
        finite=s.finite & finite,
        done=over & ~again,
    )


def _nothing_at(point: Array, value: Array) -> Look:
    """What any look improves on."""
    return Look(point, jnp.full_like(value, -jnp.inf), jnp.zeros_like(point))


def _signed(look: Look, key: Key[Array, ""]) -> Look:
    """The look with a random sign for every derivative that is exactly 0."""
    g = look.gradient
    tiny = jnp.finfo(g.dtype).tiny * jax.random.rademacher(key, g.shape, g.dtype)
    return look._replace(gradient=jnp.where(g == 0, tiny, g))


def _another(history: tuple[Array, Array] | None, best: Array, number: Array, key: Key[Array, ""]) -> Array:
    """Where another ascent begins."""
    if history is None:
        return jax.random.rademacher(key, best.shape, best.dtype)
    points, slopes = history
    weight = jnp.abs(slopes[jnp.argmax((points == best[None]).all(1))])
    order = jnp.where(weight <= jnp.quantile(weight, _LEAST), jax.random.uniform(key, best.shape), 1)
    away = jnp.where(best == 0, 1, -best)
    near = jnp.where(order <= jnp.quantile(order, _LEAST / 2), away, best)
    return jax.lax.cond(number % 2 == 1, lambda: secants.corner(points, slopes, best, key), lambda: near)


def _no_state(point: Array) -> tuple[()]:
    return ()


def _corner_step(before: Look, look: Look, state: tuple[()]) -> tuple[Array, tuple[()]]:
    way = look.point - before.point
    too_far = (look.gradient * way < 0) & (before.gradient * way > 0)
    share = before.gradient / jnp.where(too_far, before.gradient - look.gradient, 1)
    target = jnp.sign(look.gradient)
    target = jnp.where(look.value > before.value, target, (before.point + target) / 2)
    return jnp.where(too_far, before.point + share * way, target), state


def _momentum_init(point: Array) -> tuple[Array, Array]:
    return point, jnp.full((), 2.0, point.dtype)


def _momentum_step(before: Look, look: Look, state: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
    previous, size = state
    better = look.value > before.value
    here = jax.tree.map(partial(jnp.where, better), look, before)
    previous = jnp.where(better & jnp.isfinite(before.value), before.point, here.point)
    size = jnp.where(better, size, size / 2)
    target = jnp.clip(here.point + size * _direction(here.gradient), -1, 1)
    point = here.point + 0.75 * (target - here.point) + 0.25 * (here.point - previous)
    return jnp.clip(point, -1, 1), (previous, size)


def _direction(g: Array) -> Array:
    """The gradient, of root mean square 1."""
    most = jnp.abs(g).max()
    g = g / jnp.where(most > 0, most, 1)
    return g / jnp.where(most > 0, jnp.sqrt(jnp.mean(g**2)), 1)


_LBFGS = optax.scale_by_lbfgs(memory_size=10)


def _lbfgs_init(point: Array) -> optax.OptState:
    return _LBFGS.init(point)


def _lbfgs_step(before: Look, look: Look, state: optax.OptState) -> tuple[Array, optax.OptState]:
    better = look.value > before.value
    newton, after = _LBFGS.update(-look.gradient, state, look.point)
    uphill = (jnp.vdot(newton, look.gradient) < 0) & jnp.isfinite(before.value) & jnp.isfinite(newton).all()
    step = jnp.where(uphill, -newton, _direction(look.gradient))
    point = optax.projections.projection_box(look.point + step, -1.0, 1.0)
    return (
        jnp.where(better, point, (before.point + look.point) / 2),
        jax.tree.map(partial(jnp.where, better), after, state),
    )


corner = partial(maximise, Rule(_no_state, _corner_step))
r"""Corner ascent: step to where the gradient points, $y \leftarrow r\,\mathrm{sign}(\nabla f(y))$.

It is the conditional-gradient step, which ends at a corner where f is convex. A coordinate that went too far, so
that its derivative changed sign on the way, goes back to where the derivative vanishes by linear interpolation;
after a step that did not improve, the rest goes half-way only.
"""

gradient = partial(maximise, Rule(_momentum_init, _momentum_step))
"""Projected gradient ascent with momentum 0.75 and a step that halves whenever it did not improve.

Reference: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", 2020 (Auto-PGD), which halves its step at checkpoints; here every look is one.
"""

lbfgs = partial(maximise, Rule(_lbfgs_init, _lbfgs_step))
"""Projected L-BFGS: optax's two-loop recursion, clipped to the box, halved whenever it did not improve."""


def scipy_lbfgsb(
    fn: Callable,
    start: Float[Array, " p"],
    radius: Float[Array, " p"],
    *,
    max_iterations: int = 10,
    max_evaluations: int = 15000,
    scaled: bool = False,
    tolerance: float | None = 0.0,
) -> Maximum:
    """The paper's solver (sec. 2.2.2), for comparison: SciPy's L-BFGS-B.

    It runs on the host, so that it cannot be traced, and what it finds depends on the scale of f.

    Args:
      fn: `y -> scalar`, differentiable.
      start: a point in the box.
      radius: the half-widths of the box.
      max_iterations: of L-BFGS-B; the paper has 10.
      max_evaluations: values with gradients after which no further iteration begins; SciPy's default.
      scaled: hand y / radius to SciPy in place of y.
      tolerance: of the value and of the gradient; `None` for SciPy's own, with which it ends at once where
        the gradient is below 1e-5.
    """
    fn = loops.as_pytree(fn)
    r = np.asarray(radius, np.float64)
    unit = np.where(r > 0, r, 1) if scaled else np.ones_like(r)
    points, values = [np.asarray(start)], []
    finite = True
    tolerances = {} if tolerance is None else {"ftol": tolerance, "gtol": tolerance}

    def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal finite
        y = np.clip(z * unit, -r, r).astype(start.dtype)
        value, slope = (np.asarray(a, np.float64) for a in _value_and_grad(fn, y))
        finite = finite and bool(np.isfinite(value) and np.all(np.isfinite(slope)))
        values.append(float(value))
        if values[-1] >= np.fmax.reduce(values):
            points[0] = y
        return -float(value), -slope * unit

    end = scipy.optimize.minimize(
        negative,
        np.asarray(start, np.float64) / unit,
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(-r / unit, r / unit),
        options={"maxiter": max_iterations, "maxfun": max_evaluations} | tolerances,
    )
    top = float(np.fmax.reduce(values))
    return Maximum(*(jnp.asarray(a) for a in (points[0], top, values[0], end.nfev, finite, [top])))
