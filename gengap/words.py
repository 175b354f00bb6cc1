"""Results in one line, as IPython shows them."""

from typing import Any

import jax
import numpy as np

__all__ = ["in_one_line", "shown"]

_MOST = 6  # up to so many numbers are shown one by one


def shown(value: Any) -> str:
    """A number with four digits; for many numbers the shape and the range; for a pytree how many numbers it has.

    >>> shown(0.123456), shown(np.arange(3) / 3), shown(np.arange(30.0).reshape(3, 10))
    ('0.1235', '[0, 0.3333, 0.6667]', '[3, 10] from 0 to 29')
    >>> shown({"kernel": np.ones((2, 3)), "bias": np.ones(3)})
    '9 numbers in 2 arrays'
    """
    if value is None or isinstance(value, str | bool | int):
        return repr(value)
    if isinstance(value, tuple) and all(isinstance(word, str) for word in value):
        return f"({', '.join(value)})"
    if not (isinstance(value, float) or hasattr(value, "dtype")):
        leaves = jax.tree.leaves(value)
        return f"{sum(map(np.size, leaves))} numbers in {len(leaves)} arrays"
    if isinstance(value, jax.core.Tracer):
        return f"{value.dtype}{list(value.shape)} (traced)"
    if jax.dtypes.issubdtype(getattr(value, "dtype", float), jax.dtypes.extended):
        return "key"
    numbers = np.asarray(value)
    if numbers.ndim == 0:
        return str(numbers) if numbers.dtype == bool else f"{numbers.item():.4g}"
    if numbers.ndim == 1 and len(numbers) <= _MOST:
        return f"[{', '.join(map(shown, numbers))}]"
    if numbers.dtype == bool:
        return f"{list(numbers.shape)}, {numbers.sum()} true"
    ends = f" from {shown(numbers.min())} to {shown(numbers.max())}" if numbers.size else ""
    return f"{list(numbers.shape)}{ends}"


def in_one_line(result: Any) -> str:
    """The name of a result and its fields, like the `__repr__` of a NamedTuple."""
    fields = ", ".join(f"{name}={shown(value)}" for name, value in result._asdict().items())
    return f"{type(result).__name__}({fields})"
