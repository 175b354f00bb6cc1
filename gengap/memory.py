"""Do work in groups that are as large as the memory of a device allows."""

from collections.abc import Callable
from typing import Any

import jax

from gengap import progress

__all__ = ["in_groups", "ran_out"]

_fitted: dict[Any, int] = {}


def in_groups(work: Callable[[int, int], Any], total: int, at_once: int, *, least: int, kind: Any) -> list[Any]:
    """`work(first, count)` for groups of `total` items; if memory runs out, groups become half as large.

    Args:
      work: returns arrays.
      total: number of items.
      at_once: size of a group to begin with.
      least: smallest size of a group; after memory ran out, sizes are multiples of it.
      kind: work of the same kind begins with the size that fitted before; a change is reported once.
    """
    begun, too_many, results = 0, 0, []
    while begun < total:
        count = min(at_once, _fitted.get(kind, at_once), total - begun)
        try:
            results.append(jax.block_until_ready(work(begun, count)))
        except jax.errors.JaxRuntimeError as error:
            if count <= least or not ran_out(error):
                raise
            too_many = too_many or count
            _fitted[kind] = max(least, count // 2 // least * least)
        else:
            if too_many:
                words = f"Memory does not hold {too_many} draws at once; {count} are taken"
                progress.say(f"{words}. The numbers stay the same.")
            begun, too_many = begun + count, 0
    return results


def ran_out(error: BaseException) -> bool:
    """Whether an error says that the memory of a device ran out."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
