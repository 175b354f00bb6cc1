"""The maximiser of Metric 2.1 over a box, and SciPy's for comparison.

There are many local maxima: what is found is a lower bound of the maximum.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Bool, Float, Int, Key

from gengap import flat

METHOD = 2
"""The version of the maximiser, for the record of a run: 1 was the first release's."""

_STALLED = 2  # looks in a row without a better value, after which an ascent has stopped
_SAME = 1e-3  # of the radius: points nearer than that are one


class Look(NamedTuple):
    """A point of the box, with f and its gradient there, in units of the radius."""

    point: Float[Array, "*batch p"]
    value: Float[Array, "*batch"]
    gradient: Float[Array, "*batch p"]


class Maximum(NamedTuple):
    """What a maximiser found.

    Attributes:
      point: the best point seen, inside the box.
      value: f there, not below f at the centre.
      evaluations: values with gradients that were spent, the one at the centre left out.
      finite: whether f and its gradient were finite wherever they were looked at.
    """

    point: Float[Array, "*batch p"]
    value: Float[Array, "*batch"]
    evaluations: Int[Array, "*batch"]
    finite: Bool[Array, "*batch"]


class _State(NamedTuple):
    point: Array  # to look at next
    local: Look  # the best of this ascent
    best: Look  # of all
    stalled: Array
    stopped: Array
    finite: Array


def maximise(
    look: Callable,
    radius: Float[Array, "*batch p"],
    centre: tuple[Float[Array, "*#batch"], Float[Array, "*batch p"]],
    starts: Float[Array, "starts *batch p"],
    key: Key[Array, "*batch"],
    *,
    max_looks: int,
    share: float = 2 / 3,
) -> Maximum:
    r"""The largest $f(y)$ with $|y_i| \le r_i$ that so many looks find.

    From each start, step to the corner that the gradient points to; a coordinate whose derivative changed sign on
    the way goes back to where it vanishes. The starts have an equal number of looks each, and the best goes on.
    When an ascent stops, another begins beside the best point: half of the fifth of the coordinates with the least
    $|r_i\, \partial f / \partial y_i|$ change sides. An ascent has stopped after two looks without a better value,
    or where it would look at a point again.

    Neither a multiple of f nor the size of the box changes the course. Several ascents run side by side where the
    arrays have leading axes.

    Args:
      look: `y -> (f(y), its gradient)`; jit it.
      radius: the half-widths r of the box, not negative.
      centre: f and its gradient at y = 0.
      starts: points of the box, in units of the radius.
      key: of the coordinates that change sides, and of the direction where a derivative is 0.
      max_looks: values with gradients to spend, at least 1.
      share: of the looks that the starts have together.

    >>> def look(y):
    ...     return y @ jnp.array([1.0, -2.0]), jnp.array([1.0, -2.0])
    >>> centre, radius = look(jnp.zeros(2)), jnp.array([1.0, 0.5])
    >>> top = maximise(look, radius, centre, jnp.sign(centre[1])[None], jax.random.key(0), max_looks=2)
    >>> float(top.value), top.point.tolist()
    (2.0, [1.0, -0.5])
    """
    each = max(1, int(share * max_looks) // len(starts))
    signs, state = _begin(radius, centre, key)
    for i in range(max_looks):
        number, first = divmod(i, each)
        if number < len(starts) and not first:
            state = _begin_at(state, starts, number)
        elif i == each * len(starts):
            state = _go_on(state, signs)
        if flat.is_traced(state) or bool(state.stopped.any()):
            state = _begin_beside(state, key, i)
        state = _advance(state, *look(radius * state.point), radius, signs)
    batch = radius.shape[:-1]
    return Maximum(radius * state.best.point, state.best.value, jnp.full(batch, max_looks), state.finite)


@jax.jit
def _begin(radius: Array, centre: tuple[Array, Array], key: Array) -> tuple[Array, _State]:
    value, slope = centre
    signs = _random(partial(jax.random.rademacher, shape=radius.shape[-1:], dtype=radius.dtype), key, 2**32 - 1)
    best = Look(jnp.zeros_like(radius), jnp.broadcast_to(value, radius.shape[:-1]), slope * radius)
    none = jnp.zeros(radius.shape[:-1], int)
    return signs, _State(best.point, _nothing(best), best, none, none > 0, jnp.isfinite(best.value))


@jax.jit
def _begin_at(s: _State, starts: Array, number: Any) -> _State:
    return _restarted(s, starts[number], jnp.ones_like(s.stopped))


@jax.jit
def _begin_beside(s: _State, key: Array, i: Any) -> _State:
    """An ascent that has stopped begins again beside the best point."""
    weight = jnp.abs(s.best.gradient)
    sample = weight[..., :: max(1, weight.shape[-1] // 2**16)]
    # Of those that matter at all: the parameters of dead units would fill the fifth.
    fifth = jnp.nanquantile(jnp.where(sample > 0, sample, jnp.nan), 0.2, axis=-1, keepdims=True)
    half = _random(partial(jax.random.bernoulli, shape=weight.shape[-1:]), key, i)
    away = jnp.where(s.best.point == 0, 1, -s.best.point)
    return _restarted(s, jnp.where(half & ~(weight > fifth), away, s.best.point), s.stopped)


@jax.jit
def _go_on(s: _State, signs: Array) -> _State:
    """The best ascent goes on."""
    point = _next(_nothing(s.best), s.best, signs)
    return s._replace(point=point, local=s.best, stalled=0 * s.stalled, stopped=_near(point, s.best.point))


@jax.jit
def _advance(s: _State, value: Array, slope: Array, radius: Array, signs: Array) -> _State:
    """Where to look next, after a look at `s.point`."""
    finite = jnp.isfinite(value) & jnp.isfinite(slope).all(-1)
    new = Look(s.point, jnp.where(finite, value, -jnp.inf), jnp.where(finite[..., None], slope * radius, 0))
    better = new.value > s.local.value
    point = jnp.where(finite[..., None], _next(s.local, new, signs), (s.local.point + s.point) / 2)
    stalled = jnp.where(better, 0, s.stalled + finite)
    seen = _near(point, new.point) | _near(point, s.local.point)
    return _State(
        point=point,
        local=_where(better, new, s.local),
        best=_where(new.value > s.best.value, new, s.best),
        stalled=stalled,
        stopped=seen | (stalled >= _STALLED),
        finite=s.finite & finite,
    )


def _next(before: Look, look: Look, signs: Array) -> Array:
    """The corner that the gradient points to, or where a derivative vanishes that changed sign on the way."""
    way = look.point - before.point
    too_far = (look.gradient * way < 0) & (before.gradient * way > 0)
    part = before.gradient / jnp.where(too_far, before.gradient - look.gradient, 1)
    corner = jnp.where(look.gradient == 0, signs, jnp.sign(look.gradient))
    return jnp.where(too_far, before.point + part * way, corner)


def _random(sample: Callable, keys: Array, i: Any) -> Array:
    """The i-th sample of each key, the same however many keys there are."""

    def draw(key: Array) -> Array:
        return sample(jax.random.fold_in(key, i))

    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    return draw(keys)


def _restarted(s: _State, point: Array, where: Array) -> _State:
    return s._replace(
        point=jnp.where(where[..., None], point, s.point),
        local=_where(where, _nothing(s.best), s.local),
        stalled=jnp.where(where, 0, s.stalled),
        stopped=s.stopped & ~where,
    )


def _nothing(like: Look) -> Look:
    """At the centre of the box, and what any look improves on."""
    return Look(jnp.zeros_like(like.point), jnp.full_like(like.value, -jnp.inf), jnp.zeros_like(like.gradient))


def _where(which: Array, a: Look, b: Look) -> Look:
    return jax.tree.map(lambda u, v: jnp.where(jnp.expand_dims(which, range(which.ndim, u.ndim)), u, v), a, b)


def _near(a: Array, b: Array) -> Array:
    return jnp.all(jnp.abs(a - b) < _SAME, axis=-1)


def scipy_lbfgsb(
    look: Callable,
    radius: Float[Array, " p"],
    start: Float[Array, " p"],
    *,
    max_iterations: int = 10,
    max_evaluations: int = 15000,
    factor: float = 1.0,
    tolerance: float | None = None,
) -> Maximum:
    """The paper's solver (sec. 2.2.2), for comparison: SciPy's L-BFGS-B, on the host.

    What it finds depends on the scale of f: with SciPy's own tolerances it ends at once where the gradient is
    below 1e-5.

    Args:
      look: `y -> (f(y), its gradient)`.
      radius: the half-widths of the box.
      start: a point of the box.
      max_iterations: of L-BFGS-B; the paper has 10.
      max_evaluations: values with gradients after which no further iteration begins; SciPy's default.
      factor: what f is multiplied by for SciPy.
      tolerance: of the value and of the gradient; `None` for SciPy's own.
    """
    r = np.asarray(radius, np.float64)
    best, finite = (np.asarray(start), -np.inf), True

    def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, finite
        y = np.clip(z, -r, r).astype(radius.dtype)
        value, slope = (np.asarray(a, np.float64) for a in look(y))
        finite = finite and bool(np.isfinite(value) and np.all(np.isfinite(slope)))
        if value > best[1]:
            best = y, float(value)
        return -factor * float(value), -factor * slope

    options = {"maxiter": max_iterations, "maxfun": max_evaluations}
    end = scipy.optimize.minimize(
        negative,
        np.asarray(start, np.float64),
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(-r, r),
        options=options if tolerance is None else {**options, "ftol": tolerance, "gtol": tolerance},
    )
    return Maximum(jnp.asarray(best[0]), jnp.asarray(best[1]), jnp.asarray(end.nfev), jnp.asarray(finite))
