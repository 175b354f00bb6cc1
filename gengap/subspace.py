"""The subspace that Metric 2.1 looks into: the n x p matrix A, whose columns are directions in parameter space.

A is kept as its transpose, one row for each of the p columns. Parameters are flat vectors of length n here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jaxtyping import Array, Float, Key

Columns = Callable[[Key[Array, ""], tuple[int, ...]], Array]
"""A sampler of independent entries: `(key, shape) -> array`, such as `jax.random.normal`."""


def draw(
    key: Key[Array, ""], n: int, dim: int, *, columns: Columns = jax.random.normal, normalise: bool = False
) -> Float[Array, "p n"]:
    """A random A, transposed.

    Args:
      key: the same key gives the same A.
      n: parameters.
      dim: p, columns of A.
      columns: `(key, shape) -> array`, the distribution of the entries.
      normalise: scale each column to length 1.

    >>> draw(jax.random.key(0), 7, 5).shape
    (5, 7)
    """
    A = columns(key, (dim, n))
    return A / jnp.linalg.norm(A, axis=1, keepdims=True) if normalise else A


def times(A: Float[Array, "p n"], y: Float[Array, " p"]) -> Float[Array, " n"]:
    """A y."""
    return y @ A


def pseudo_inverse_times(A: Float[Array, "p n"], x: Float[Array, " n"]) -> Float[Array, " p"]:
    """A^+ x = (A^T A)^{-1} A^T x, through a Cholesky factor of A^T A."""
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(A @ A.T), A @ x)
