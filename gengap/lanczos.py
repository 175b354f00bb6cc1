"""Block Lanczos iterations on a Hessian; `hessian` takes eigenpairs and spectral densities from them."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gengap import checks, program

__all__ = ["Krylov", "combine", "iterate", "product", "ritz", "rule", "tridiagonal"]

Product = Callable[[Any, Any], tuple[Any, Any]]


class Krylov(NamedTuple):
    """An orthonormal basis of a Krylov space, and the Hessian restricted to it.

    Attributes:
      V: the vectors, in the first m rows.
      T: v_i . H v_j for i <= j.
      beyond: the length of the part of H v_j outside the basis.
      exhausted: whether these parts are only rounding.
    """

    V: Float[Array, "rows n"]
    T: Float[np.ndarray, "m m"]
    beyond: Float[np.ndarray, " m"]
    exhausted: bool


def iterate(product: Product, x: Float[Array, " n"], key: Key[Array, ""], num_starts: int = 1) -> Iterator[Krylov]:
    """The Krylov space of random starts, with one more product each time, until it is R^n.

    It holds an eigenvalue as often as it occurs, but at most `num_starts` times. If it is exhausted, another
    random start follows. Each V reuses the memory of the previous one.
    """
    V, T, beyond = jnp.zeros((16, len(x)), x.dtype), np.zeros((0, 0)), np.zeros(0)
    pending: deque[tuple[int, Array]] = deque()
    rounding = 0.0
    while (j := len(T)) < len(x):
        if j < num_starts or not pending:
            v = jax.random.normal(jax.random.fold_in(key, j), x.shape, x.dtype)
            v = _beside(V, _beside(V, v)[1])[1]  # twice, since little of v may be left
        else:
            row, v = pending.popleft()
            if row < j - 1:  # the basis has grown since
                _, v, left = _beside(V, v)
                beyond[row] *= float(left)
            if beyond[row] <= rounding:
                continue
            beyond[row] = 0
        if j == len(V):
            V = jnp.concatenate([V, jnp.zeros_like(V)])
        V = _put(V, j, v)
        scale, w = product(x, v)
        checks.check_untraced("a Lanczos iteration", scale)
        along, direction, length = _beside(V, w)
        T, beyond = np.pad(T, (0, 1)), np.append(beyond, float(scale) * float(length))
        T[:, j] = float(scale) * np.asarray(along, float)[: j + 1]
        rounding = 10 * np.finfo(x.dtype).eps * np.linalg.norm(T, axis=0).max()
        pending.append((j, direction))
        if j + 1 == len(x):
            beyond[:] = 0
        yield Krylov(V, T, beyond, bool((beyond <= rounding).all()))


def ritz(krylov: Krylov) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues of T in rising order, its vectors, and bounds of the residuals of V^T times these; or NaN."""
    values, S = _eigh(krylov.T)
    return values, S, krylov.beyond @ np.abs(S)


def tridiagonal(product: Product, x: Float[Array, " n"], key: Key[Array, ""], num_products: int) -> np.ndarray:
    """The matrix T of the Krylov space of one random start, with at most `num_products` products."""
    for krylov in iterate(product, x, key):
        if krylov.exhausted or len(krylov.T) == num_products:
            break
    return krylov.T


def rule(T: Float[np.ndarray, "m m"]) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights that write v^T g(H) v as a weighted sum of g, for the start v of a Krylov space; or NaN.

    Reference: Golub and Welsch, "Calculation of Gauss Quadrature Rules", 1969.
    """
    values, S = _eigh(T)
    return values, S[0] ** 2


def _eigh(T: Float[np.ndarray, "m m"]) -> tuple[np.ndarray, np.ndarray]:
    if not np.isfinite(T).all():
        return np.full(len(T), np.nan), np.full(T.shape, np.nan)
    return np.linalg.eigh(T, UPLO="U")


def combine(V: Float[Array, "rows n"], weights: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "k n"]:
    """Weighted sums of the first rows, scaled to length 1."""
    padded = np.zeros((len(V), weights.shape[1]), V.dtype)
    padded[: len(weights)] = weights
    return np.asarray(_combined(V, padded))


def product(f: Callable) -> Product:
    """`(x, v) -> ` the largest |entry| of H v, and H v divided by it: squares of small numbers would be 0."""
    return program.compiled(partial(_product, f))


def _product(f: Callable, x: Array, v: Array) -> tuple[Array, Array]:
    w = jax.jvp(jax.grad(f), (x,), (v,))[1]
    scale = jnp.max(jnp.abs(w))
    return scale, w / jnp.where(scale == 0, 1, scale)


@partial(jax.jit, donate_argnums=0)
def _put(V: Array, i: Array, v: Array) -> Array:
    return V.at[i].set(v)


@jax.jit
def _beside(V: Array, w: Array) -> tuple[Array, Array, Array]:
    """The parts of w along the rows of V, the direction of the rest, and the length of the rest."""
    along = jnp.zeros(len(V), V.dtype)
    for _ in range(2):  # the second removes what rounding left
        parts = jnp.dot(V, w, precision="highest")
        along, w = along + parts, w - jnp.dot(parts, V, precision="highest")
    length = jnp.linalg.norm(w)
    return along, w / jnp.where(length == 0, 1, length), length


@jax.jit
def _combined(V: Array, weights: Array) -> Float[Array, "k n"]:
    sums = jnp.dot(weights.T, V, precision="highest")
    return sums / jnp.linalg.norm(sums, axis=1, keepdims=True)
