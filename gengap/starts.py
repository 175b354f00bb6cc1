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
"""evaluations for a direction"""
_OUTSIDE = (2.0, 1.4)  # multiples of the box at whose corners the full space is evaluated first


@jax.jit
def _useful(value: Array, slope: Array, otherwise: Array) -> Array:
    """A gradient, unless it is not finite or 0."""
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
    r"""Directions in which the ascents of all draws begin: the gradient at x and others, which are orthonormal.

    Which examples a step pushes over belongs to the network and not to the subspace. The corner
    $r\,\mathrm{sign}(A^T g)$, seen along g, is a step of length $\rho \approx \epsilon \sigma p \sqrt{2/\pi}$ for
    p columns of independent entries of standard deviation sigma. So each of those is the gradient after a few
    steps to $\rho\, g / \|g\|$, orthogonal to those before it: independent ones can all miss a basin. The first
    step is as long as to a random corner of a subspace, $\epsilon \sigma \sqrt{p n}$.
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
    """The part of v that is orthogonal to the directions, of length 1."""
    v = v / jnp.maximum(jnp.max(jnp.abs(v)), jnp.finfo(v.dtype).tiny)
    v = v - directions.T @ (directions @ v)
    return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(v.dtype).tiny)


def entry_size(key: Array, n: int, dim: int, entries: subspace.Entries) -> Any:
    """The root mean square of the entries of A, from a sample of at most some 65,536."""
    if entries is subspace.signs:
        return 1.0
    return jnp.sqrt(jnp.mean(entries(key, (dim, min(n, -(-65536 // dim)))) ** 2))
