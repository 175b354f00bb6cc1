r"""Maximisers over a box: the largest $f(y)$ with $|y_i| \le r_i$.

A maximiser keeps the best point that it has seen, so that it never returns less than f(0). What it finds is
a lower bound of the maximum.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from gengap import loops


class Maximum(NamedTuple):
    """What a maximiser found.

    Attributes:
      point: the best point seen, inside the box.
      value: f there.
      start_value: f(0).
      evaluations: values with gradients that were spent.
      finite: whether f was finite wherever it was looked at.
    """

    point: Float[Array, " p"]
    value: Float[Array, ""]
    start_value: Float[Array, ""]
    evaluations: Int[Array, ""]
    finite: Bool[Array, ""]


class _State(NamedTuple):
    point: Array  # to look at next
    start_value: Array
    best: Array
    value: Array  # at best
    gradient: Array  # at best
    damping: Array
    evaluations: Array
    finite: Array
    done: Array


def corner(
    fn: Callable,
    radius: Float[Array, " p"],
    key: Key[Array, ""],
    *,
    start: tuple[Float[Array, ""], Float[Array, " p"]] | None = None,
    max_evaluations: int = 12,
) -> Maximum:
    r"""Corner ascent: step to where the gradient points, $y \leftarrow r\,\mathrm{sign}(\nabla f(y))$.

    A step that does not improve on the best point seen is halved, twice at most; a corner that points at
    itself, or a step that has been halved in vain, ends the ascent. A component of the gradient that is
    exactly 0 takes a random sign, so that an ascent from a stationary point moves.

    Args:
      fn: `y -> scalar`, differentiable.
      radius: the half-widths r of the box, not negative.
      key: of the random signs.
      start: f(0) and its gradient, where they are known.
      max_evaluations: values with gradients to spend in all, f(0) included.

    >>> top = corner(lambda y: y @ jnp.array([1.0, -2.0]), jnp.array([1.0, 0.5]), jax.random.key(0))
    >>> float(top.value), int(top.evaluations)
    (2.0, 2)
    """
    zeros = jnp.zeros_like(radius)
    nothing = jnp.full((), -jnp.inf, radius.dtype)
    state = _State(
        point=zeros,
        start_value=nothing,
        best=zeros,
        value=nothing,
        gradient=zeros,
        damping=jnp.ones_like(nothing),
        evaluations=jnp.zeros((), jnp.int32),
        finite=jnp.ones((), bool),
        done=jnp.zeros((), bool),
    )
    fn = loops.as_pytree(fn)
    if start is not None:
        state = _move(radius, key, state, *start)
    step = partial(_corner_step, fn, radius, key)
    end = loops.while_loop(lambda s: ~s.done & (s.evaluations < max_evaluations), step, state)
    return Maximum(end.best, end.value, end.start_value, end.evaluations, end.finite)


@jax.jit
def _corner_step(fn: Callable, radius: Array, key: Array, s: _State) -> _State:
    return _move(radius, key, s, *jax.value_and_grad(fn)(s.point))


def _move(radius: Array, key: Array, s: _State, value: Array, gradient: Array) -> _State:
    """The state after a look at its point."""
    first = s.evaluations == 0
    better = (jnp.isfinite(value) & (value > s.value)) | first
    best, gradient = jnp.where(better, s.point, s.best), jnp.where(better, gradient, s.gradient)
    damping = jnp.where(better, 1.0, s.damping / 2)
    random = jax.random.rademacher(jax.random.fold_in(key, s.evaluations), radius.shape, radius.dtype)
    target = radius * jnp.where(gradient == 0, random, jnp.sign(gradient))
    point = best + damping * (target - best)
    return _State(
        point=point,
        start_value=jnp.where(first, value, s.start_value),
        best=best,
        value=jnp.where(better, value, s.value),
        gradient=gradient,
        damping=damping,
        evaluations=s.evaluations + 1,
        finite=s.finite & jnp.isfinite(value),
        done=(damping < 1 / 4) | jnp.all(point == best),
    )
