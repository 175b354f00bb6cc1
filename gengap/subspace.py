"""The subspace that Metric 2.1 searches: the n x p matrix A, whose columns are directions in parameter space.

A is an operator on flat vectors, stored in tiles of rows. Random signs, the default, are stored as bits: 188 MB
for 15 million parameters and 100 columns, where floats would take 6 GB. A tile becomes floats when it is used. All
functions can be traced.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Key, UInt32

from gengap import checks, placement, program

__all__ = ["Entries", "Subspace", "draw", "pseudo_inverse_times", "signs", "times", "transpose_times"]

Entries = Callable[[Key[Array, ""], tuple[int, int]], Array]
"""A sampler of the entries of A: `(key, (p, n)) -> array [p, n]`, such as `jax.random.normal`."""

_ROWS = 2**14  # rows of a tile, which with 100 columns fits into a processor's cache
_dot = partial(jnp.dot, precision="highest")


def signs(key: Key[Array, ""], shape: tuple[int, int]) -> Float[Array, "p n"]:
    """Independent random signs, each 1 or -1 with equal probability.

    >>> sorted(set(signs(jax.random.key(0), (3, 40)).ravel().tolist()))
    [-1.0, 1.0]
    """
    tiles = _tiles_of_signs(key, *shape)
    return _floats(tiles.swapaxes(0, 1).reshape(shape[0], -1), float)[:, : shape[1]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Subspace:
    """A matrix A of n rows and `dim` columns; see `draw`.

    Attributes:
      tiles: A transposed, padded and cut along n: floats, or 32 signs to a word.
      n, dim: rows and columns.
      spread: how the tiles are divided over a mesh of devices, the same number on each; `None` on one device.
    """

    tiles: Float[Array, "*draws tiles p rows"] | UInt32[Array, "*draws tiles p words"]
    n: int = field(metadata={"static": True})
    dim: int = field(metadata={"static": True})
    spread: NamedSharding | None = field(default=None, metadata={"static": True})

    def __repr__(self) -> str:
        kind = "signs" if self.tiles.dtype == jnp.uint32 else str(self.tiles.dtype)
        return f"Subspace({self.n} x {self.dim} {kind})"


def draw(
    key: Key[Array, ""], n: int, dim: int, *, entries: Entries = signs, spread: NamedSharding | None = None
) -> Subspace:
    """A random A. The same key gives the same A.

    Args:
      key: random key for the entries.
      n: rows, one for each parameter.
      dim: p, the columns.
      entries: sampler of the entries. Only `signs` are stored as bits; floats from others must fit in memory.
      spread: how to divide the tiles of A over a mesh of devices, such as `placement.parameters_of(params)`.

    Raises:
      ValueError: a count is below 1, or the entries have another shape than [p, n].

    >>> A = draw(jax.random.key(0), 7, 5)
    >>> times(A, jnp.ones(5)).shape, transpose_times(A, jnp.ones(7)).shape
    ((7,), (5,))
    """
    checks.check_key(key)
    checks.check_counts({"n": n, "dim": dim})
    return program.compiled(partial(_draw, n, dim, entries, spread))(key)


def _draw(n: int, dim: int, entries: Entries, spread: NamedSharding | None, key: Array) -> Subspace:
    if entries is signs:
        return Subspace(_tiles_of_signs(key, dim, n, spread), n, dim, spread)
    count = -(-n // _ROWS)
    rows, width = entries(key, (dim, n)), -(-n // count)
    if jnp.shape(rows) != (dim, n):
        raise ValueError(f"entries returned the shape {jnp.shape(rows)}; it must be {(dim, n)}")
    rows = rows if jnp.issubdtype(rows.dtype, jnp.floating) else rows.astype(float)
    count += -count % _devices(spread)
    rows = jnp.pad(rows, ((0, 0), (0, count * width - n)))
    tiles = rows.reshape(dim, count, width).swapaxes(0, 1)
    return Subspace(placement.spread(tiles, spread), n, dim, spread)


def _devices(spread: NamedSharding | None) -> int:
    return 1 if spread is None else spread.mesh.size


def _side_by_side(A: Subspace, tiles: Array) -> Array:
    """Tiles, or arrays with a row for each tile, as [tiles of a device, devices, ...]."""
    parts = tiles.reshape(_devices(A.spread), -1, *tiles.shape[1:])
    return placement.spread(parts, A.spread).swapaxes(0, 1)


def times(A: Subspace, y: Float[Array, " p"]) -> Float[Array, " n"]:
    """A y."""

    @jax.checkpoint  # else a derivative with respect to y would keep every tile as floats
    def part(y: Array, tile: Array) -> Array:
        return _dot(y, _floats(tile, y.dtype))

    if A.spread is None:
        return jax.lax.map(partial(part, y), A.tiles).ravel()[: A.n]
    parts = jax.lax.map(jax.vmap(partial(part, y)), _side_by_side(A, A.tiles))
    return parts.swapaxes(0, 1).ravel()[: A.n]


def transpose_times(A: Subspace, g: Float[Array, " n"]) -> Float[Array, " p"]:
    """A^T g."""
    return _sum(A, g, _dot, jnp.zeros(A.dim, g.dtype))


def pseudo_inverse_times(A: Subspace, x: Float[Array, " n"]) -> Float[Array, " p"]:
    """A^+ x, from the eigenvectors of A^T A and two steps of refinement: the corrected seminormal equations.

    The columns are scaled to length 1 first. If they are linearly dependent to working precision, the result is
    the least-squares solution that is shortest in the scaled coordinates.

    Reference: Björck, "Numerical Methods for Least Squares Problems", 1996, sec. 6.6.5.
    """
    gram = _sum(A, x, lambda tile, part: _dot(tile, tile.T), jnp.zeros((A.dim, A.dim), x.dtype))
    lengths = jnp.sqrt(jnp.diag(gram))
    lengths = jnp.where(lengths > 0, lengths, 1)
    eigenvalues, V = jnp.linalg.eigh(gram / lengths[None] / lengths[:, None])
    # An eigenvalue below this is lost in the rounding of the products.
    kept = eigenvalues > 8 * A.dim * jnp.finfo(gram.dtype).eps
    inverse = jnp.where(kept, 1 / jnp.where(kept, eigenvalues, 1), 0)
    z = jnp.zeros(A.dim, x.dtype)
    for _ in range(3):
        rest = transpose_times(A, x - times(A, z)) / lengths
        z = z + _dot(V, inverse * _dot(V.T, rest)) / lengths
    return z


def _sum(A: Subspace, x: Array, term: Callable, start: Array) -> Array:
    """The sum of `term(tile [p, rows], the tile's part of x)` over the tiles, with padding rows set to 0."""
    rows = A.tiles.shape[2] * (32 if A.tiles.dtype == jnp.uint32 else 1)

    parts = jnp.pad(x, (0, len(A.tiles) * rows - A.n)).reshape(-1, rows)
    inside = jnp.pad(jnp.ones_like(x), (0, len(A.tiles) * rows - A.n)).reshape(-1, rows)

    def add(total: Array, terms: tuple[Array, Array, Array]) -> tuple[Array, None]:
        tile, part, inside = terms
        return total + term(_floats(tile, x.dtype) * inside[None], part), None

    if A.spread is None:
        return jax.lax.scan(add, start, (A.tiles, parts, inside))[0]
    starts = placement.spread(jnp.zeros((A.spread.mesh.size, *start.shape), start.dtype), A.spread)
    terms = jax.tree.map(partial(_side_by_side, A), (A.tiles, parts, inside))
    return jax.lax.scan(jax.vmap(add), starts, terms)[0].sum(0)


def _tiles_of_signs(
    key: Array, dim: int, n: int, spread: NamedSharding | None = None
) -> UInt32[Array, "tiles p words"]:
    """32 signs to a word, drawn tile by tile, because drawing all at once would take twice the memory."""
    count = -(-n // _ROWS)
    words = -(-n // (32 * count))
    kind = jax.random.key_impl(key)

    def draw(data: Array) -> Array:
        return jax.random.bits(jax.random.wrap_key_data(data, impl=kind), (dim, words), jnp.uint32)

    # Pass the data of the keys: under vmap jax_debug_key_reuse reports a loop over keys as an error.
    keys = jax.random.key_data(jax.random.split(key, count))
    if spread is None:
        return jax.lax.map(draw, keys)
    keys = jnp.pad(keys, ((0, -count % spread.mesh.size), (0, 0))).reshape(spread.mesh.size, -1, keys.shape[-1])
    tiles = jax.lax.map(jax.vmap(draw), keys.swapaxes(0, 1)).swapaxes(0, 1)
    return placement.spread(tiles, spread).reshape(-1, dim, words)


def _floats(tile: Array, dtype: Any) -> Float[Array, "p rows"]:
    if tile.dtype != jnp.uint32:
        return tile.astype(dtype)
    bits = (tile[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None]) & 1
    return (2 * bits.astype(dtype) - 1).reshape(len(tile), -1)
