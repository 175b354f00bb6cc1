"""The maximiser of Metric 2.1 over a box, and SciPy's for comparison. Each finds a lower bound of the maximum."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Bool, Float, Int, Key

from gengap import words

__all__ = ["ASCENT_VERSION", "Maximum", "maximise", "scipy_lbfgsb"]

ASCENT_VERSION = 5
"""The version of the maximiser, for the record of a run; the first release had version 1."""

_STALLED = 2  # an ascent stops after this many evaluations in a row without a better value
_SAME = 1e-3  # points closer than this, in units of the radius, count as the same
_SHARE = 0.2  # share of the coordinates that may change sides
_OF_STARTS = 2 / 3  # share of the evaluations for the starts, all together


class Maximum(NamedTuple):
    """What a maximiser found.

    Attributes:
      point: the best point seen, inside the box.
      value: f there, not below f at the centre.
      evaluations: values with gradients spent, without the one at the centre.
      finite: whether f and its gradient were finite wherever they were evaluated.
    """

    point: Float[Array, "*batch p"]
    value: Float[Array, "*batch"]
    evaluations: Int[Array, "*batch"]
    finite: Bool[Array, "*batch"]

    def __repr__(self) -> str:
        return words.in_one_line(self)


class _Evaluated(NamedTuple):
    """A point of the box, with f and its gradient there, in units of the radius."""

    point: Array
    value: Array
    slope: Array


class _State(NamedTuple):
    point: Array  # to evaluate next
    local: _Evaluated  # the best of this ascent
    best: _Evaluated  # the best of all ascents
    stalled: Array  # evaluations in a row without a better one
    share: Array  # of the coordinates that may change sides when another ascent begins
    before: Array  # the best value when this ascent began
    finite: Array
    signs: Array  # which way to go if a derivative is 0


def maximise(
    evaluate: Callable,
    radius: Float[Array, "*batch p"],
    centre: tuple[Float[Array, "*#batch"], Float[Array, "*batch p"]],
    starts: Float[Array, "*batch starts p"],
    key: Key[Array, "*batch"],
    *,
    max_evaluations: int,
) -> Maximum:
    r"""The largest $f(y)$ with $|y_i| \le r_i$ that `max_evaluations` find.

    An ascent steps to the corner that the gradient points to; a coordinate whose derivative changed sign on the
    way goes back to where it vanishes. The starts share two thirds of the evaluations equally; then the best goes
    on. An ascent stops after two evaluations without a better value, or if it would evaluate a point again. Then
    another begins near the best point: of the fifth of the coordinates with the least
    $|r_i\, \partial f / \partial y_i|$ a random half change sides. As long as nothing better is found, the fifth
    becomes two fifths, four fifths, all. Scaling f or the box does not change the steps, in units of the box.

    Args:
      evaluate: `y -> (f(y), its gradient)`; jit it.
      radius: the half-widths r of the box, not negative; with a leading axis, for several ascents side by side.
      centre: f and its gradient at y = 0.
      starts: points of the box, in units of the radius.
      key: random key for the coordinates that change sides, and for directions if a derivative is 0.
      max_evaluations: values with gradients to spend, at least 1.

    >>> def evaluate(y):
    ...     return y @ jnp.array([1.0, -2.0]), jnp.array([1.0, -2.0])
    >>> centre, radius = evaluate(jnp.zeros(2)), jnp.array([1.0, 0.5])
    >>> top = maximise(evaluate, radius, centre, jnp.sign(centre[1])[None], jax.random.key(0), max_evaluations=2)
    >>> float(top.value), top.point.tolist()
    (2.0, [1.0, -0.5])
    """
    each = max(1, int(_OF_STARTS * max_evaluations) // starts.shape[-2])
    state = _begin(radius, *centre, starts, key)
    for i in range(1, max_evaluations + 1):
        state = _advance(state, *evaluate(radius * state.point), radius, starts, key, i, each)
    evaluations = jnp.full(radius.shape[:-1], max_evaluations)
    return Maximum(radius * state.best.point, state.best.value, evaluations, state.finite)


def _side_by_side(step: Callable) -> Callable:
    """`step`, jitted, for one ascent or, if arrays have a leading axis, for several, which share the scalars."""

    @jax.jit
    def one_or_several(*args: Any) -> Any:
        if jax.tree.leaves(args)[0].ndim == 1:
            return step(*args)
        return jax.vmap(step, jax.tree.map(lambda a: 0 if a.ndim else None, args))(*args)

    return one_or_several


@_side_by_side
def _begin(radius: Array, value: Array, slope: Array, starts: Array, key: Array) -> _State:
    signs = jax.random.rademacher(jax.random.fold_in(key, 2**32 - 1), radius.shape, radius.dtype)
    best = _Evaluated(jnp.zeros_like(radius), value, slope * radius)
    share, before = jnp.array(_SHARE, radius.dtype), _lowest(value)
    return _State(starts[0], _nothing(best), best, jnp.array(0), share, before, jnp.isfinite(value), signs)


@_side_by_side
def _advance(
    s: _State, value: Array, slope: Array, radius: Array, starts: Array, key: Array, i: Array, each: Array
) -> _State:
    """Where to evaluate next, after the i-th evaluation, which was at `s.point`."""
    finite = jnp.isfinite(value) & jnp.isfinite(slope).all()
    new = _Evaluated(s.point, jnp.where(finite, value, _lowest(value)), jnp.where(finite, slope * radius, 0))
    better = new.value > s.local.value
    best = _where(new.value > s.best.value, new, s.best)
    point = jnp.where(finite, _next(s.local, new, s.signs), (s.local.point + s.point) / 2)
    seen = _near(point, new.point) | _near(point, s.local.point)
    stalled = jnp.where(seen, _STALLED, jnp.where(better, 0, s.stalled + finite.astype(s.stalled.dtype)))
    local = _where(better, new, s.local)
    s = s._replace(point=point, local=local, best=best, stalled=stalled, finite=s.finite & finite)

    turn, later = i // each, i % each
    start = s._replace(point=starts[turn], local=_nothing(best), stalled=jnp.zeros_like(stalled))
    s = _where((later == 0) & (turn < len(starts)), start, s)
    point = _next(_nothing(best), best, s.signs)
    stalled = jnp.where(_near(point, best.point), _STALLED, 0)
    s = _where((later == 0) & (turn == len(starts)), s._replace(point=point, local=best, stalled=stalled), s)
    data, kind = jax.random.key_data(jax.random.fold_in(key, i)), jax.random.key_impl(key)
    # Under vmap a key would be selected twice, which jax_debug_key_reuse reports as an error.
    beside = lambda: _beside(s, jax.random.wrap_key_data(data, impl=kind))  # noqa: E731
    return jax.lax.cond(s.stalled >= _STALLED, beside, lambda: s)


def _beside(s: _State, key: Array) -> _State:
    """An ascent that begins near the best point."""
    weight = jnp.abs(s.best.slope)
    sample = weight[:: max(1, len(weight) // 2**16)]
    share = jnp.where(s.best.value > s.before, _SHARE, jnp.minimum(2 * s.share, 1)).astype(s.share.dtype)
    # Only of coordinates with a gradient: else the parameters of dead units would fill the fifth.
    most = jnp.nanquantile(jnp.where(sample > 0, sample, jnp.nan), share)
    half = jax.random.bernoulli(key, shape=weight.shape)
    away = jnp.where(s.best.point == 0, 1, -s.best.point)
    point = jnp.where(half & ~(weight > most), away, s.best.point)
    stalled = jnp.zeros_like(s.stalled)
    return s._replace(point=point, local=_nothing(s.best), stalled=stalled, share=share, before=s.best.value)


def _next(before: _Evaluated, here: _Evaluated, signs: Array) -> Array:
    """The corner that the gradient points to, but where a derivative vanishes if it changed sign on the way."""
    way = here.point - before.point
    too_far = (here.slope * way < 0) & (before.slope * way > 0)
    part = before.slope / jnp.where(too_far, before.slope - here.slope, 1)
    corner = jnp.where(here.slope == 0, signs, jnp.sign(here.slope))
    return jnp.where(too_far, before.point + part * way, corner)


def _nothing(like: _Evaluated) -> _Evaluated:
    """The centre of the box with the lowest value, so that any evaluation is better."""
    return _Evaluated(jnp.zeros_like(like.point), _lowest(like.value), jnp.zeros_like(like.slope))


def _lowest(like: Array) -> Array:
    """The lowest finite value; minus infinity would be reported by `jax_debug_infs`."""
    return jnp.full_like(like, jnp.finfo(like.dtype).min)


def _near(a: Array, b: Array) -> Array:
    return jnp.all(jnp.abs(a - b) < _SAME)


def _where(condition: Array, a: Any, b: Any) -> Any:
    return jax.tree.map(partial(jnp.where, condition), a, b)


def scipy_lbfgsb(
    evaluate: Callable,
    radius: Float[Array, " p"],
    start: Float[Array, " p"],
    *,
    max_iterations: int = 10,
    max_evaluations: int = 15000,
    factor: float = 1.0,
    tolerance: float | None = None,
) -> Maximum:
    """The paper's solver (sec. 2.2.2), for comparison: SciPy's L-BFGS-B, on the host.

    The result depends on the scale of f: with SciPy's default tolerances it stops at once if the gradient is below
    1e-5.

    Args:
      evaluate: `y -> (f(y), its gradient)`.
      radius: the half-widths of the box.
      start: a point of the box.
      max_iterations: iterations of L-BFGS-B; the paper uses 10.
      max_evaluations: values with gradients after which no further iteration begins; the default is SciPy's.
      factor: factor by which f is multiplied for SciPy.
      tolerance: tolerance of the value and of the gradient; `None` for SciPy's defaults.
    """
    r = np.asarray(radius, np.float64)
    best, finite = (-np.inf, np.asarray(start)), True

    def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, finite
        y = np.clip(z, -r, r).astype(radius.dtype)
        value, slope = (np.asarray(a, np.float64) for a in evaluate(y))
        finite = finite and bool(np.isfinite(value) and np.isfinite(slope).all())
        if best[0] < value < np.inf:
            best = float(value), y
        return -factor * float(value), -factor * slope

    options: dict[str, float] = {"maxiter": max_iterations, "maxfun": max_evaluations}
    options |= {} if tolerance is None else {"ftol": tolerance, "gtol": tolerance}
    bounds, z = scipy.optimize.Bounds(-r, r), np.asarray(start, np.float64)
    end = scipy.optimize.minimize(negative, z, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return Maximum(jnp.asarray(best[1]), jnp.asarray(best[0]), jnp.asarray(end.nfev), jnp.asarray(finite))
