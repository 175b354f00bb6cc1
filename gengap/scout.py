r"""Directions in the full space from which the ascents in all random subspaces begin.

The loss rises most where it pushes some group of examples over, and which group that is belongs to the network
and not to the subspace: a corner that the gradient at a good point of one subspace points to is a good start in
another. In place of another subspace the scouts climb in what it looks like from the full space: a step
$r\,\mathrm{sign}(A^T g)$, seen along $g$, has the length $\sum_i r_i |(A^T g)_i| / \|g\|$, about
$\epsilon p \sigma \sqrt{2/\pi}$ for p columns of independent entries of standard deviation $\sigma$. So a scout
steps to $\rho\, g / \|g\|$, again and again, with that $\rho$; no A is needed for it.

In the full space the ascent itself begins better from outside the box: far away another group of examples
dominates than close to x, and the corner that it points to is the higher one.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gengap import loops

RADII = (1.0, 1.5)
"""The radii at which scouts climb, as multiples of the one above; the best of each is a start."""

_FEWEST_LOOKS, _MOST_LOOKS = 3, 6
_MOST_SCOUTS = 4


class Budget(NamedTuple):
    """What the scouts of all draws may spend.

    Attributes:
      radii: the first of `RADII`, as many as the draws have gradients to look at their ends.
      scouts: at each radius.
      looks: gradients of each.
      share: gradients that each draw pays, of these and the one at x.
    """

    radii: int
    scouts: int
    looks: int
    share: int


def budget(num_draws: int, max_evaluations: int) -> Budget:
    """Scouts for so many draws, paid with a quarter of what these may spend together.

    It goes into longer scouts first, then into more of them. A few draws pay up to half; where that does not buy
    three gradients at each radius, or leaves a draw none of its own, there is no scout. The draws pay in whole
    gradients, so that what is rounded up is not spent at all.

    >>> tuple(budget(num_draws=10, max_evaluations=12)), tuple(budget(1, 12)), tuple(budget(64, 4))
    ((2, 2, 6, 3), (2, 1, 3, 7), (1, 4, 6, 1))
    """
    radii = len(RADII) if max_evaluations >= 4 * len(RADII) else 1
    total = max(num_draws * max_evaluations // 4, len(RADII) * _FEWEST_LOOKS)
    looks = min(total // radii, _MOST_LOOKS)
    scouts = min(total // (radii * looks), _MOST_SCOUTS)
    share = -(-(1 + scouts * looks * radii) // num_draws)
    affordable = share <= min(max_evaluations // 2 + 1, max_evaluations - 1)
    return Budget(radii, scouts, looks, share) if affordable else Budget(0, 0, 0, 1)


OUTSIDE = (2.0, 1.6, 1.3, 1.1)
"""Multiples of the box at whose corners `outside` looks in turn; chosen on the minima of `make bench`."""


def outside(fn: Callable, slope: Float[Array, " n"], radius: Float[Array, " n"], key: Key[Array, ""]) -> Array:
    """The gradient at the end of a few corner steps in boxes larger than the one of the metric.

    A look that is not finite, or where the loss is flat, changes nothing.

    Args:
      fn: `step -> f(x + step)`.
      slope: gradient of f at x.
      radius: half-widths of the box.
      key: of the signs where a derivative is exactly 0.
    """
    random = jax.random.rademacher(key, slope.shape, slope.dtype)
    g = slope
    for multiple in OUTSIDE:
        value, seen = _look(fn, multiple * radius * jnp.where(g == 0, random, jnp.sign(g)))
        g = jnp.where(jnp.isfinite(value) & (seen != 0).any(), seen, g)
    return g


def length(key: Key[Array, ""], columns: Callable, n: int, dim: int) -> Float[Array, ""]:
    """Root mean square of the entries of A, from a sample of at most some 65,536."""
    return jnp.sqrt(jnp.mean(columns(key, (dim, min(n, -(-65536 // dim)))) ** 2))


def directions(
    fn: Callable,
    slope: Float[Array, " n"],
    key: Key[Array, ""],
    *,
    dim: int | None,
    entry: float | Float[Array, ""],
    epsilon: Float[Array, ""],
    spend: Budget,
) -> Float[Array, "radii n"]:
    """The gradient at the end of the best scout, for each radius.

    A scout begins with the gradient at a random corner of a subspace, seen from the full space: a normal
    vector of standard deviation epsilon sigma sqrt(p).

    Args:
      fn: `step -> f(x + step)`.
      slope: gradient of f at x; what a scout that meets nothing finite leaves.
      key: of the random corners.
      dim: p.
      entry: sigma, root mean square of the entries of A.
      epsilon: of the box.
      spend: how many scouts there are, and how long.
    """
    wide = epsilon * entry
    radius = wide * (dim or 1) * np.sqrt(2 / np.pi)

    def climb(best: tuple[Array, Array], which: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        multiple, key = which
        _, g = _look(fn, multiple * wide * np.sqrt(dim or 1) * jax.random.normal(key, slope.shape, slope.dtype))
        value = jnp.full_like(wide, -jnp.inf)
        for _ in range(spend.looks - 1):
            value, g = _look(fn, multiple * radius * _unit(g))
        better = value > best[0]
        return jax.tree.map(partial(jnp.where, better), (value, g), best), None

    def at_radius(both: tuple[Array, Array]) -> Array:
        multiple, keys = both
        nothing = (jnp.full_like(wide, -jnp.inf), slope)
        multiples = jnp.broadcast_to(multiple, keys.shape)
        return loops.scan(climb, nothing, (multiples, keys))[0][1]

    keys = jax.random.split(key, (spend.radii, spend.scouts))
    return loops.each(at_radius, (jnp.asarray(RADII[: spend.radii], wide.dtype), keys), at_once=1)


@jax.jit
def _look(fn: Callable, step: Array) -> tuple[Array, Array]:
    """f and its gradient; minus infinity where they are not finite."""
    value, g = jax.value_and_grad(fn)(step)
    finite = jnp.isfinite(value) & jnp.isfinite(g).all()
    return jnp.where(finite, value, -jnp.inf), jnp.where(finite, g, 0)


def _unit(g: Array) -> Array:
    length = jnp.linalg.norm(g)
    return g / jnp.where(length > 0, length, 1)
