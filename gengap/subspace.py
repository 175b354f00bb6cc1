"""The subspace that Metric 2.1 looks into: the n x p matrix A, whose columns are directions in parameter space.

A is an operator. Its rows come in tiles, each drawn from a key of its own, and a tile that is not kept is drawn
again whenever it is needed: the same key gives the same A, kept or not. Parameters are flat vectors here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jaxtyping import Array, Float, Key

Columns = Callable[[Key[Array, ""], tuple[int, ...]], Array]
"""A sampler of independent entries: `(key, shape) -> array`, such as `jax.random.normal`."""

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """`jax.random.normal(key, shape)`, the same numbers, with the 20 rounds of its generator unrolled.

    On a CPU, JAX runs these rounds as a loop over arrays, and drawing A takes longer than all the rest of a draw.
    For what this does not cover (other generators than JAX's default, float64) it is `jax.random.normal`.

    Reference: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011 (Threefry-2x32-20).

    >>> bool((normal(jax.random.key(0), (3, 5)) == jax.random.normal(jax.random.key(0), (3, 5))).all())
    True
    """
    size = math.prod(shape)
    covered = jnp.result_type(float) == jnp.float32 and str(jax.random.key_impl(key)) == "threefry2x32"
    if not covered or not jax.config.jax_threefry_partitionable or size >= 2**32:  # type: ignore[attr-defined]
        return jax.random.normal(key, shape)
    a, b = jax.random.key_data(key)
    words = a, b, a ^ b ^ jnp.uint32(_PARITY)
    x0, x1 = jnp.full(size, words[0]), jax.lax.iota(jnp.uint32, size) + words[1]
    for block in range(5):
        for r in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = ((x1 << r) | (x1 >> (32 - r))) ^ x0
        x0, x1 = x0 + words[(block + 1) % 3], x1 + words[(block + 2) % 3] + jnp.uint32(block + 1)
    # 23 bits as the fraction of a float from 1 to 2, spread over (-1, 1)
    unit = jax.lax.bitcast_convert_type(((x0 ^ x1) >> 9) | jnp.uint32(0x3F800000), jnp.float32) - 1
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(least, unit * (1 - least) + least)
    return (np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)).reshape(shape)


_ENTRIES = 2**22  # of one tile


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Subspace:
    """A matrix A of n rows and `dim` columns; see `draw`.

    Attributes:
      key: what its entries are drawn from.
      kept: A transposed, or `None` where tiles are drawn again.
      lengths: what each column is divided by.
      n, dim: rows and columns.
      columns: the sampler of the entries.
    """

    key: Key[Array, ""]
    kept: Float[Array, "p n"] | None
    lengths: Float[Array, " p"]
    n: int = field(metadata={"static": True})
    dim: int = field(metadata={"static": True})
    columns: Columns = field(metadata={"static": True})


def draw(
    key: Key[Array, ""],
    n: int,
    dim: int,
    *,
    columns: Columns = normal,
    normalise: bool = False,
    keep: bool = True,
) -> Subspace:
    """A random A.

    Args:
      key: the same key gives the same A.
      n: parameters.
      dim: p, columns of A.
      columns: `(key, shape) -> array`, the distribution of the entries; called once for each tile of rows,
        with the shape `(dim, rows)`.
      normalise: scale each column to length 1.
      keep: hold A in memory; else its tiles, of at most 2^22 entries, are drawn whenever A is applied.

    >>> A = draw(jax.random.key(0), 7, 5)
    >>> times(A, jnp.ones(5)).shape, transpose_times(A, jnp.ones(7)).shape
    ((7,), (5,))
    """
    shape = (dim, min(max(1, _ENTRIES // dim), n))
    ones = jnp.ones(dim, jax.eval_shape(lambda key: columns(key, shape), key).dtype)
    A = Subspace(key, None, ones, n, dim, columns)
    if keep:
        # One after another into one array: a concatenation would hold A twice.
        kept = _tiles(
            A,
            lambda A, tile, rows: jax.lax.dynamic_update_slice(A, tile, (0, rows)),
            jnp.zeros((dim, n), ones.dtype),
        )
        A = Subspace(key, kept, ones, n, dim, columns)
    if normalise:
        lengths = jnp.sqrt(_tiles(A, lambda sums, tile, _: sums + (tile**2).sum(1), 0 * ones))
        A = Subspace(key, A.kept, lengths, n, dim, columns)
    return A


def times(A: Subspace, y: Float[Array, " p"]) -> Float[Array, " n"]:
    """A y."""
    y = y / A.lengths
    if A.kept is not None:
        return y @ A.kept
    rows, whole, rest = _sizes(A)
    # Without the checkpoint, a derivative by y would keep every tile.
    part = jax.checkpoint(lambda i, y: y @ _tile(A, i, rows))
    parts = jax.lax.map(lambda i: part(i, y), jnp.arange(whole)).ravel()
    return jnp.concatenate([parts, y @ _tile(A, whole, rest)]) if rest else parts


def transpose_times(A: Subspace, g: Float[Array, " n"]) -> Float[Array, " p"]:
    """A^T g."""
    if A.kept is not None:
        return A.kept @ g / A.lengths
    return _tiles(A, lambda y, tile, row: y + tile @ _rows(g, row, tile), jnp.zeros_like(A.lengths)) / A.lengths


def pseudo_inverse_times(A: Subspace, x: Float[Array, " n"]) -> Float[Array, " p"]:
    """A^+ x = (A^T A)^{-1} A^T x, through a Cholesky factor of A^T A and two steps of refinement.

    The columns are scaled to length 1 first. A^T A is accumulated in the same pass over A as A^T x, and each
    refinement takes another: the corrected seminormal equations.

    Returns:
      A^+ x; NaN under `jit` where the columns are linearly dependent to working precision.

    Raises:
      ValueError: they are dependent, and nothing is traced.

    Reference: Björck, "Numerical Methods for Least Squares Problems", 1996, sec. 6.6.5.
    """
    z = _pseudo_inverse_times(A, x)
    if not isinstance(z, jax.core.Tracer) and jnp.isnan(z).any():
        raise ValueError(DEPENDENT)
    return z


DEPENDENT = "the columns of A are linearly dependent to working precision; A^+ x needs independent columns"


@jax.jit
def _pseudo_inverse_times(A: Subspace, x: Float[Array, " n"]) -> Float[Array, " p"]:
    zeros = jnp.zeros_like(A.lengths)

    def products(sums: tuple[Array, Array], tile: Array, row: Array | int) -> tuple[Array, Array]:
        return sums[0] + tile @ tile.T, sums[1] + tile @ _rows(x, row, tile)

    gram, right = _tiles(A, products, (jnp.zeros((A.dim, A.dim), zeros.dtype), zeros))
    lengths = jnp.sqrt(jnp.diag(gram))
    factor = jax.scipy.linalg.cholesky(gram / lengths[None] / lengths[:, None], lower=True)
    # A column that the others leave less than this of is lost in the rounding of the products.
    independent = (jnp.diag(factor) ** 2).min() > 8 * A.dim * jnp.finfo(gram.dtype).eps

    def solve(right: Array) -> Array:
        return jax.scipy.linalg.cho_solve((factor, True), right / lengths) / lengths

    z = solve(right)
    for _ in range(2):

        def residual(sums: Array, tile: Array, row: Array | int) -> Array:
            return sums + tile @ (_rows(x, row, tile) - z @ tile)  # noqa: B023

        z = z + solve(_tiles(A, residual, zeros))
    return jnp.where(independent, z * A.lengths, jnp.nan)


def _tiles(A: Subspace, step: Callable, carry: Any) -> Any:
    """Fold `step(carry, tile [p, rows], first row)` over the tiles of A, without their lengths."""
    rows, whole, rest = _sizes(A)
    carry, _ = jax.lax.scan(lambda c, i: (step(c, _tile(A, i, rows), i * rows), None), carry, jnp.arange(whole))
    return step(carry, _tile(A, whole, rest), whole * rows) if rest else carry


def _sizes(A: Subspace) -> tuple[int, int, int]:
    """Rows of a tile, whole tiles, rows of the rest."""
    rows = min(max(1, _ENTRIES // A.dim), A.n)
    return rows, *divmod(A.n, rows)


def _tile(A: Subspace, i: Array | int, count: int) -> Float[Array, "p rows"]:
    if A.kept is None:
        return A.columns(jax.random.fold_in(A.key, i), (A.dim, count))
    return jax.lax.dynamic_slice(A.kept, (0, i * _sizes(A)[0]), (A.dim, count))


def _rows(x: Array, row: Array | int, tile: Array) -> Array:
    return jax.lax.dynamic_slice(x, (row,), (tile.shape[1],))
