"""Checks of arguments, with the messages of the errors; and warnings."""

import math
import numbers
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from gengap import program

__all__ = [
    "as_array", "check_between", "check_counts", "check_key", "check_positive", "check_untraced",
    "numbers_of", "sample_keys", "warn", "warn_not_finite",
]  # fmt: skip


def check_counts(counts: Mapping[str, Any], least: int = 1) -> None:
    """Refuse what is not an integer of at least `least`; the message names it."""
    for name, number in counts.items():
        _check_known(name, number)
        if isinstance(number, bool) or not isinstance(number, numbers.Integral) or number < least:
            raise ValueError(f"{name} is {number!r}; it must be an integer, {least} or more")


def check_positive(values: Mapping[str, Any]) -> None:
    """Refuse what is not a finite number above 0; the message names it."""
    for name, value in values.items():
        if not 0 < _number(name, value) < math.inf:
            raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")


def check_between(values: Mapping[str, Any], low: float, high: float = math.inf) -> None:
    """Refuse what is not a finite number from `low` to `high`; the message names it."""
    for name, value in values.items():
        if not low <= _number(name, value) <= high or value == math.inf:
            bounds = f"from {low} up" if high == math.inf else f"from {low} to {high}"
            raise ValueError(f"{name} is {value!r}; it must be a number {bounds}")


def check_key(key: Any) -> None:
    """Refuse what is not one typed key, and a kind of key whose numbers depend on how many are drawn at once."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError(f"key is {key!r}; it must be one key, as from jax.random.key(0)")
    if (kind := str(jax.random.key_impl(key))) not in ("fry", "threefry2x32"):
        raise ValueError(
            f"key is of kind {kind}, whose numbers change with how many are drawn at once; take "
            'jax.random.key(0, impl="threefry2x32")'
        )


def check_untraced(name: str, *trees: PyTree) -> None:
    """Refuse traced arguments of a function whose course depends on values."""
    if program.is_traced(*trees):
        raise ValueError(f"{name} depends on values and cannot be traced; call it outside jit, vmap and grad")


def as_array(name: str, value: Any) -> Any:
    """An array, or a list of numbers made into one."""
    pair = isinstance(value, tuple) and any(hasattr(part, "shape") for part in value)
    try:
        array = value if hasattr(value, "dtype") else None if pair else np.asarray(value)
    except ValueError:  # rows of several lengths
        array = None
    if array is None or array.dtype.kind in "OUS" or array.ndim == 0:
        raise ValueError(f"{name} is of type {type(value).__name__}; it must be one array, each row an example")
    return array


def numbers_of(name: str, values: Any) -> Any:
    """A list of at least one number, as an array of floats."""
    array = jnp.asarray(values, float) if program.is_traced(values) else np.asarray(values, float)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} has the shape {array.shape}; it must be a list of at least one number")
    return array


def sample_keys(key: Any, num_samples: Any, least: int = 2) -> list[Array]:
    """A key for each sample; refuse fewer than `least` samples."""
    check_key(key)
    check_counts({"num_samples": num_samples}, least)
    return [jax.random.fold_in(key, i) for i in range(num_samples)]


def warn_not_finite(value: Float[Array, ""], level: int = 4) -> Float[Array, ""]:
    """The value of a measure; gives a RuntimeWarning if it is not finite."""
    if not program.is_traced(value) and not np.isfinite(value):
        warn(f"the value is {value}: the loss was not finite where it was evaluated", level)
    return value


def warn(what: str, level: int = 3) -> None:
    """Give a RuntimeWarning at the call of a measure, `level` calls up."""
    warnings.warn(what, RuntimeWarning, stacklevel=level)


def _number(name: str, value: Any) -> float:
    """A number of Python, NumPy or JAX as a float; NaN for anything else."""
    _check_known(name, value)
    number = value.item() if isinstance(value, jax.Array) and value.ndim == 0 else value
    return float(number) if isinstance(number, numbers.Real) and not isinstance(number, bool) else math.nan


def _check_known(name: str, value: Any) -> None:
    if program.is_traced(value):
        raise ValueError(f"{name} is traced; it must be known outside jit, vmap and grad")
