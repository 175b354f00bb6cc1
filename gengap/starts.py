"""Where the ascents of Metric 2.1 begin: corners of the full space, and directions that all subspaces share."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gengap import subspace

__all__ = ["CLIMB", "directions", "entry_size", "in_full_space"]

CLIMB = 6
"""Evaluations for each direction."""
_OUTSIDE = (2.0, 1.4)  # in the full space, corners of these multiples of the box are evaluated first


@jax.jit
def _useful(value: Array, slope: Array, otherwise: Array) -> Array:
    """A gradient, or `otherwise` if it is 0 or not finite."""
    useful = jnp.isfinite(value) & jnp.isfinite(slope).all() & (slope != 0).any()
    return jnp.where(useful, slope, otherwise)


def in_full_space(evaluate: Callable, radius: Array, slope: Array, max_evaluations: int) -> tuple[Array, int]:
    """The corners at which the ascents in the full space begin, and the evaluations that are left."""
    if max_evaluations < 6:
        return jnp.sign(slope[None]), max_evaluations
    far = slope
    for multiple in _OUTSIDE:
        far = _useful(*evaluate(multiple * radius * jnp.sign(far)), far)
    return jnp.sign(jnp.stack([far, -slope])), max_evaluations - len(_OUTSIDE)


def directions(
    evaluate: Callable, x: Array, slope: Array, key: Array, entry: Any, dim: int, count: int
) -> Float[Array, "starts n"]:
    r"""Directions in which the ascents of all draws begin: the gradient at x, and `count` orthonormal ones.

    Good directions depend on the network and its examples, not on the subspace, so they are found once. The corner
    $r\,\mathrm{sign}(A^T g)$, projected onto g, is a step of length $\rho \approx \epsilon \sigma p \sqrt{2/\pi}$
    for p columns of independent entries of standard deviation sigma. So each direction is the gradient after a few
    steps to $\rho\, g / \|g\|$, made orthogonal to the earlier ones: independent ones could all miss a region of
    high loss. The first step is as long as to a random corner of a subspace, $\epsilon \sigma \sqrt{p n}$.
    """
    near, far = dim * math.sqrt(2 / math.pi), math.sqrt(dim * len(x))
    rows = jnp.zeros((count, len(x)), x.dtype)
    for i, direction in enumerate(jax.random.normal(jax.random.clone(key), rows.shape, x.dtype)):
        direction = _orthogonal(rows, direction)
        for length in (far, *[near] * (CLIMB - 1)):
            gradient = _useful(*evaluate(entry * length * direction), direction)
            direction = _orthogonal(rows, gradient)
        rows = rows.at[i].set(direction)
    return jnp.concatenate([slope[None], rows])


@jax.jit
def _orthogonal(directions: Array, v: Array) -> Array:
    """The part of v that is orthogonal to the directions, scaled to length 1."""
    v = v / jnp.maximum(jnp.max(jnp.abs(v)), jnp.finfo(v.dtype).tiny)
    v = v - directions.T @ (directions @ v)
    return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(v.dtype).tiny)


def entry_size(key: Array, n: int, dim: int, entries: subspace.Entries) -> Any:
    """The root mean square of the entries of A, from a sample of about 65,536 at most."""
    if entries is subspace.signs:
        return 1.0
    return jnp.sqrt(jnp.mean(entries(key, (dim, min(n, -(-65536 // dim)))) ** 2))
