"""The Hessian of a loss without forming it: eigenvalues, trace, spectral density.

Everything is built on products $H v$ (Pearlmutter 1994), each of which costs about two gradients. The Lanczos
iterations are those of the library matfree, with full reorthogonalisation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree
from matfree import decomp

from gengap import loops


class Estimate(NamedTuple):
    """An estimated number.

    Attributes:
      value: the mean over the samples.
      sem: its standard error.
      gradients: what it cost, in gradients; a product with the Hessian counts as two.
    """

    value: Float[Array, ""]
    sem: Float[Array, ""]
    gradients: int


class Density(NamedTuple):
    """A spectral density, smoothed by a Gaussian.

    Attributes:
      eigenvalues: where it is given.
      density: there; it integrates to 1.
      sem: its standard error over the probes.
      gradients: what it cost, in gradients.
    """

    eigenvalues: Float[Array, " k"]
    density: Float[Array, " k"]
    sem: Float[Array, " k"]
    gradients: int


def product(loss: Callable[[PyTree], Float[Array, ""]], params: PyTree, v: PyTree) -> Any:
    """The Hessian times a vector, a pytree as `params`.

    >>> product(lambda x: x[0] * x[1] ** 2, jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])).tolist()
    [4.0, 2.0]
    """
    return jax.jvp(jax.grad(loss), (params,), (v,))[1]


def eigenvalues(
    loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    key: Key[Array, ""],
    *,
    k: int = 1,
    num_matvecs: int = 50,
) -> Float[Array, " k"]:
    """The k largest eigenvalues of the Hessian, by Lanczos iterations from a random start.

    The largest come out first: with 50 products the top ten of a network are good to float32 where they are
    well apart. More products, more of them.

    Args:
      loss: `params -> scalar`.
      params: where.
      key: of the start.
      k: eigenvalues.
      num_matvecs: products with the Hessian, at two gradients each; at most n.

    Raises:
      ValueError: k or `num_matvecs` out of range.
    """
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    depth = min(num_matvecs, n)
    if not 1 <= k <= depth:
        raise ValueError(f"k is {k}; it must be from 1 to {depth}, num_matvecs or the parameters")
    nodes, _ = _lanczos(loops.as_pytree(loss), params, jax.random.split(key, 1), depth)
    return nodes[0, ::-1][:k]


def trace(
    loss: Callable[[PyTree], Float[Array, ""]], params: PyTree, key: Key[Array, ""], *, num_samples: int = 30
) -> Estimate:
    """The trace of the Hessian by Hutchinson's estimator: the mean of v^T H v over random signs v.

    Args:
      loss: `params -> scalar`.
      params: where.
      key: of the signs.
      num_samples: products with the Hessian, at least 2.
    """
    _at_least("num_samples", num_samples, 2)
    values = _quadratic_forms(loops.as_pytree(loss), params, jax.random.split(key, num_samples))
    return Estimate(values.mean(), values.std(ddof=1) / num_samples**0.5, 2 * num_samples)


def trace_plus_plus(
    loss: Callable[[PyTree], Float[Array, ""]], params: PyTree, key: Key[Array, ""], *, num_samples: int = 30
) -> Estimate:
    """The trace of the Hessian by Hutch++: exact on a random range, Hutchinson on what is left.

    A third of the products each goes to the range, to the trace on it and to the rest; where few eigenvalues
    make up the trace the error is far below Hutchinson's. Needs memory for `num_samples` / 3 copies of params.

    Args:
      loss: `params -> scalar`.
      params: where.
      key: of the random vectors.
      num_samples: products with the Hessian, at least 6.

    Reference: Meyer, Musco, Musco and Woodruff, "Hutch++: Optimal Stochastic Trace Estimation", 2021.
    """
    _at_least("num_samples", num_samples, 6)
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    size = min(num_samples // 3, n)
    value, sem = _hutch_plus_plus(
        loops.as_pytree(loss), params, jax.random.split(key), size, num_samples - 2 * size
    )
    return Estimate(value, sem, 2 * num_samples)


def spectral_density(
    loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    key: Key[Array, ""],
    *,
    num_samples: int = 5,
    num_matvecs: int = 50,
    points: int = 400,
    width: float | None = None,
) -> Density:
    """The density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    Args:
      loss: `params -> scalar`.
      params: where.
      key: of the random starts.
      num_samples: random starts, at least 2.
      num_matvecs: products with the Hessian for each; at most n.
      points: eigenvalues at which to give it, from end to end with a margin of five widths.
      width: standard deviation of the Gaussian; 1 % of the range of the eigenvalues unless given.

    Reference: Ghorbani, Krishnan and Xiao, "An Investigation into Neural Net Optimization via Hessian Eigenvalue
    Density", 2019.
    """
    _at_least("num_samples", num_samples, 2)
    _at_least("points", points, 2)
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    depth = min(num_matvecs, n)
    nodes, weights = _lanczos(loops.as_pytree(loss), params, jax.random.split(key, num_samples), depth)
    low, high = nodes.min(), nodes.max()
    spread = jnp.float32(width) if width is not None else 0.01 * (high - low)
    at = jnp.linspace(low - 5 * spread, high + 5 * spread, points)
    gauss = jnp.exp(-0.5 * ((at[None, None] - nodes[..., None]) / spread) ** 2) / (spread * (2 * jnp.pi) ** 0.5)
    each = (weights[..., None] * gauss).sum(1)
    sem = each.std(0, ddof=1) / num_samples**0.5
    return Density(at, each.mean(0), sem, 2 * depth * num_samples)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")


@partial(jax.jit, static_argnums=3)
def _lanczos(loss: Callable, params: PyTree, keys: Array, depth: int) -> tuple[Array, Array]:
    """Eigenvalues of the tridiagonal matrix of each start, and the weights of a quadrature."""
    flat, tree = ravel_pytree(params)
    iterate = decomp.tridiag_sym(depth, custom_vjp=False)

    def matvec(v: Array) -> Array:
        return ravel_pytree(product(loss, params, tree(v)))[0]

    def one(key: Array) -> tuple[Array, Array]:
        start = jax.random.normal(key, flat.shape, flat.dtype)
        nodes, vectors = jnp.linalg.eigh(iterate(matvec, start / jnp.linalg.norm(start)).J_small)
        return nodes, vectors[0] ** 2

    return jax.lax.map(one, keys)


def _signs(params: PyTree, key: Array) -> PyTree:
    flat, tree = ravel_pytree(params)
    return tree(jax.random.rademacher(key, flat.shape, flat.dtype))


@jax.jit
def _quadratic_forms(loss: Callable, params: PyTree, keys: Array) -> Array:
    def one(key: Array) -> Array:
        v = _signs(params, key)
        return jnp.vdot(ravel_pytree(v)[0], ravel_pytree(product(loss, params, v))[0])

    return jax.lax.map(one, keys)


@partial(jax.jit, static_argnums=(3, 4))
def _hutch_plus_plus(loss: Callable, params: PyTree, keys: Array, size: int, rest: int) -> tuple[Array, Array]:
    flat, tree = ravel_pytree(params)

    def matvec(v: Array) -> Array:
        return ravel_pytree(product(loss, params, tree(v)))[0]

    sketch = jax.random.rademacher(keys[0], (size, flat.size), flat.dtype)
    Q = jnp.linalg.qr(jax.lax.map(matvec, sketch).T)[0]
    on_range = jnp.vdot(Q.T, jax.lax.map(matvec, Q.T))

    def one(key: Array) -> Array:
        v = jax.random.rademacher(key, flat.shape, flat.dtype)
        v -= Q @ (Q.T @ v)
        return jnp.vdot(v, matvec(v))

    left = jax.lax.map(one, jax.random.split(keys[1], rest))
    return on_range + left.mean(), left.std(ddof=1) / rest**0.5
