r"""Metric 2.1 of Keskar et al. (2016): how far the loss rises within a small box around a minimum.

$$\phi_{x,f}(\epsilon, A) = \frac{(\max_{y \in C_\epsilon} f(x + A y)) - f(x)}{1 + f(x)} \times 100, \qquad
C_\epsilon = \{ z \in R^p : |z_i| \le \epsilon (|(A^+ x)_i| + 1) \}$$ (eqs. 3 and 4).

The functions take the loss as a function of the parameters alone, and know neither networks nor data. Every
value is a lower bound on the maximum in the definition.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from gengap import ascent, loops, subspace


class Sharpness(NamedTuple):
    """The metric with what it was computed from; leading axes are those of epsilon, then of the draws.

    Attributes:
      value: phi, in the paper's units (x 100).
      base_loss: f(x), in nats.
      max_loss: f(x + A y*), in nats.
      evaluations: gradients spent, the one at x included, which all ascents share.
      finite: whether the loss was finite wherever it was looked at.
    """

    value: Float[Array, "..."]
    base_loss: Float[Array, "..."]
    max_loss: Float[Array, "..."]
    evaluations: Int[Array, "..."]
    finite: Bool[Array, "..."]

    @property
    def mean(self) -> Float[Array, "..."]:
        """Mean over the draws."""
        return self.value.mean(-1)

    @property
    def sem(self) -> Float[Array, "..."]:
        """Standard error of the mean over the draws; NaN for a single draw."""
        draws = self.value.shape[-1]
        return self.value.std(-1, ddof=1) / jnp.sqrt(draws) if draws > 1 else jnp.full_like(self.mean, jnp.nan)


def full_space(
    loss: Callable,
    params: PyTree[Float[Array, "..."]],
    *,
    epsilon: float | Sequence[float] = 1e-3,
    max_evaluations: int = 12,
) -> Sharpness:
    """Metric 2.1 with A = I (Table 3).

    Args:
      loss: `params -> scalar`, in nats.
      params: x, floating-point leaves.
      epsilon: one size of the box, or several; the result then has a leading axis.
      max_evaluations: gradients to spend for each epsilon.

    Returns:
      Scalars, or one of each per epsilon.

    Raises:
      ValueError: an argument is out of its range.

    >>> s = full_space(lambda x: x @ x, jnp.array([0.0, 1.0]), epsilon=0.5)
    >>> float(s.max_loss)  # (0.5, 2.0) or (-0.5, 2.0): 0.25 + 4
    4.25
    """
    _check(loss, params, epsilon, max_evaluations)
    found = _all_draws(
        None, max_evaluations, 1, loops.as_pytree(loss), params, jax.random.key(0)[None], _array(epsilon, params)
    )
    return jax.tree.map(lambda a: a[0] if np.ndim(epsilon) else a[0, 0], found)


def random_subspaces(
    loss: Callable,
    params: PyTree[Float[Array, "..."]],
    key: Key[Array, ""],
    *,
    dim: int = 100,
    num_draws: int = 10,
    epsilon: float | Sequence[float] = 1e-3,
    max_evaluations: int = 12,
    columns: subspace.Columns = jax.random.normal,
    normalise: bool = False,
    draws_at_once: int = 1,
) -> Sharpness:
    """Metric 2.1 in random subspaces (Table 4): one draw of A for each of `num_draws` keys.

    All epsilons look into the same subspaces. The paper leaves the distribution of A open; see
    `subspace.draw` for `columns` and `normalise`.

    Args:
      loss: `params -> scalar`, in nats.
      params: x, floating-point leaves, n in all.
      key: of the draws.
      dim: p, columns of A, 1 to n.
      num_draws: matrices A.
      epsilon: one size of the box, or several; the result then has a leading axis.
      max_evaluations: gradients to spend for each draw and epsilon.
      columns: sampler of the entries of A.
      normalise: scale the columns of A to length 1.
      draws_at_once: draws under one `vmap`; each takes `dim` times the memory of the parameters.

    Returns:
      Arrays `[num_draws]`, or `[epsilons, num_draws]`.

    Raises:
      ValueError: an argument is out of its range.
    """
    _check(loss, params, epsilon, max_evaluations)
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    if not 1 <= dim <= n:
        raise ValueError(f"dim is {dim}; it must be from 1 to {n}, the number of parameters")
    for name, number in (("num_draws", num_draws), ("draws_at_once", draws_at_once)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError(f"key is {key!r}; it must be one key, as from jax.random.key(0)")
    space = _Space(dim, columns, normalise)
    keys = jax.random.split(key, num_draws)
    found = _all_draws(
        space, max_evaluations, draws_at_once, loops.as_pytree(loss), params, keys, _array(epsilon, params)
    )
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1) if np.ndim(epsilon) else a[:, 0], found)


class _Space(NamedTuple):
    dim: int
    columns: subspace.Columns
    normalise: bool


def _all_draws(space: _Space | None, max_evaluations: int, at_once: int, *args: Any) -> Sharpness:
    loss, params, _, _ = args
    if not loops.traced((loss, params)) and loops.in_python(loss, params):
        return _draws(space, max_evaluations, at_once, *args)
    return _compiled_draws(space, max_evaluations, at_once, *args)


def _draws(
    space: _Space | None,
    max_evaluations: int,
    at_once: int,
    loss: Callable,
    params: PyTree,
    keys: Key[Array, " draws"],
    epsilons: Float[Array, " epsilons"],
) -> Sharpness:
    """[draws, epsilons]"""
    start = _value_and_grad(loss, params)
    return loops.each(
        lambda key: _draw(space, max_evaluations, loss, params, start, key, epsilons), keys, at_once=at_once
    )


@jax.jit
def _value_and_grad(loss: Callable, x: PyTree) -> tuple[Array, PyTree]:
    return jax.value_and_grad(loss)(x)


_compiled_draws = jax.jit(_draws, static_argnums=(0, 1, 2))


def _draw(
    space: _Space | None,
    max_evaluations: int,
    loss: Callable,
    x: PyTree,
    start: tuple[Array, PyTree],
    key: Key[Array, ""],
    epsilons: Float[Array, " epsilons"],
) -> Sharpness:
    """One draw of A, and in its subspace one ascent for each epsilon, from f(x) and its gradient `start`."""
    draw_key, ascent_key = jax.random.split(key)
    flat, _ = ravel_pytree(x)
    value, (gradient, _) = start[0], ravel_pytree(start[1])
    if space is None:
        A, z, slope = None, flat, gradient
    else:
        A = subspace.draw(draw_key, flat.size, space.dim, columns=space.columns, normalise=space.normalise)
        z, slope = subspace.pseudo_inverse_times(A, flat), A @ gradient

    def maximise(epsilon: Float[Array, ""]) -> Sharpness:
        radius = epsilon * (jnp.abs(z) + 1)
        found = ascent.corner(
            Partial(_at, loss, x, A),
            radius,
            ascent_key,
            start=(value, slope),
            max_evaluations=max_evaluations,
        )
        phi = 100 * (found.value - found.start_value) / (1 + found.start_value)
        return Sharpness(phi, found.start_value, found.value, found.evaluations, found.finite)

    return loops.each(maximise, epsilons)


def _at(loss: Callable, x: PyTree, A: Array | None, y: Array) -> Float[Array, ""]:
    """f(x + A y)"""
    leaves, tree = jax.tree.flatten(x)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    steps = jnp.split(y if A is None else subspace.times(A, y), ends)
    return loss(jax.tree.unflatten(tree, [a + s.reshape(a.shape) for a, s in zip(leaves, steps, strict=True)]))


def _array(epsilon: float | Sequence[float], params: PyTree) -> Float[Array, " epsilons"]:
    return jnp.atleast_1d(jnp.asarray(epsilon, jnp.result_type(*jax.tree.leaves(params))))


def _check(loss: Callable, params: PyTree, epsilon: Any, max_evaluations: int) -> None:
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError("params has no leaves; it must be a pytree of floating-point arrays")
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"params has a leaf of type {jnp.result_type(leaf)}; all must be floating point")
    if not loops.traced(epsilon) and not (
        np.size(epsilon) and np.all((np.asarray(epsilon) > 0) & np.isfinite(epsilon))
    ):
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 and finite")
    if max_evaluations < 2:
        raise ValueError(f"max_evaluations is {max_evaluations}; it must be at least 2")
    shape = jax.eval_shape(loss, params)
    if getattr(shape, "shape", None) != ():
        raise ValueError(f"loss returned {shape}; it must return a scalar")
