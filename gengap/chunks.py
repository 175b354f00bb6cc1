"""A sum over data in chunks, for arrays on the device or on the host, from which chunks are sent."""

import itertools
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gengap import placement, program

__all__ = ["Host", "ends", "total"]

_living: WeakValueDictionary[int, "Host"] = WeakValueDictionary()
_numbers = itertools.count()


class Host:
    """Arrays that stay on the host. Compiled programs ask for their rows by a number, and keep none alive."""

    def __init__(self, arrays: dict[int, np.ndarray]) -> None:
        self.arrays, self.number = arrays, next(_numbers)
        _living[self.number] = self

    def rows(self, begin: Any, length: int) -> Any:
        """`length` examples of each array from `begin`, sent to the device when the program reaches them."""
        types = {
            i: jax.ShapeDtypeStruct((length, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype))
            for i, a in self.arrays.items()
        }
        number, ends = jnp.array([self.number]), jnp.array([begin, begin + length])
        return jax.pure_callback(_rows_on_host, types, number, ends, vmap_method="sequential")


def _rows_on_host(number: Any, ends: Any) -> dict[int, np.ndarray]:
    (number,), (begin, end) = np.asarray(number).tolist(), np.asarray(ends).tolist()
    host = _living.get(number)
    if host is None:
        raise RuntimeError("the data of a loss are gone: keep the loss as long as what was compiled from it")
    return {
        i: np.asarray(a[begin:end]).astype(jax.dtypes.canonicalize_dtype(a.dtype)) for i, a in host.arrays.items()
    }


def ends(count: int, chunk: int) -> list[tuple[int, int, int]]:
    """For each of two chunk lengths: begin, end, length. The chunks are as few and as equal as possible."""
    size, longer = divmod(count, -(-count // chunk))
    middle = longer * (size + 1)
    return [(0, middle, size + 1), (middle, count, size)]


def total(fn: Callable, params: PyTree, leaves: list[Any], host: Host | None, *, count: int, chunk: int) -> Any:
    """Sum of `fn(params, leaves of a chunk)` over chunks of almost equal size, in float32 or wider.

    Args:
      fn: returns a pytree of arrays.
      params: its first argument.
      leaves: arrays of `count` examples, or `placement.Chunks` of them; `None` in place of those on the host.
      host: the arrays on the host, by their position among the leaves.
      count: number of examples.
      chunk: the most examples at once.
    """

    def add(sums: Any, terms: Any) -> Any:
        return jax.tree.map(lambda sum, term: sum + term.astype(sum.dtype), sums, terms)

    def with_host(rows: list[Any], begin: Any, length: int) -> list[Any]:
        fetched = host.rows(begin, length) if host else {}
        return [fetched.get(i, row) for i, row in enumerate(rows)]

    def summed(leaves: list[Any], params: PyTree) -> Any:
        of_chunk = jax.jit(fn, inline=True)  # tracing a network again takes as long as the first time

        def grouped(leaf: Any, group: int) -> Any:
            begin, end, length = ends(count, chunk)[group]
            if isinstance(leaf, placement.Chunks):
                return leaf.groups[group]
            return None if leaf is None else leaf[begin:end].reshape(-1, length, *leaf.shape[1:])

        def cut(parts: list[Any], begin: Any, length: int) -> list[Any]:
            pairs = zip(leaves, parts, strict=True)
            rows = [leaf.cut(part, length) if isinstance(leaf, placement.Chunks) else part for leaf, part in pairs]
            return with_host(rows, begin, length)

        def rows(group: int, i: int) -> list[Any]:
            begin, _, length = ends(count, chunk)[group]
            parts = [None if leaf is None else grouped(leaf, group)[i] for leaf in leaves]
            return cut(parts, begin + i * length, length)

        traced, shapes = jax.make_jaxpr(of_chunk, return_shape=True)(params, rows(1, 0))
        # XLA:CPU runs a convolution many times slower in a loop than outside (jax 0.10.2).
        in_python = jax.default_backend() == "cpu" and "conv_general_dilated" in program.primitives(traced.jaxpr)
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)
        for group, (begin, end, length) in enumerate(ends(count, chunk)):
            if in_python or end - begin == length:
                for i in range((end - begin) // length):
                    sums = add(sums, of_chunk(params, rows(group, i)))
            elif end > begin:

                def add_chunk(sums: Any, chunk: Any, length: int = length) -> tuple[Any, None]:
                    parts, begin = chunk
                    return add(sums, of_chunk(params, cut(parts, begin, length))), None

                parts = [grouped(leaf, group) for leaf in leaves]
                sums, _ = jax.lax.scan(add_chunk, sums, (parts, jnp.arange(begin, end, length)))
        return sums

    return program.compiled(summed)(leaves, params)
