"""A function of a pytree as a function of one flat vector: what every measure is computed on.

Here, and nowhere else, arguments and the types of the parameters are checked, and points are cast to what the
network reads.
"""

import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from gengap import program


@dataclass(frozen=True)
class Layout:
    """Where each leaf of a pytree lies in the flat vector; hashable, so that it is static under `jit`."""

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    def unravel(self, flat: Any, dtype: Any = None) -> Any:
        """The pytree of flat vectors [..., n], each leaf in its own type, or all in `dtype`."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1].tolist()
        parts = flat.__array_namespace__().split(flat, ends, axis=-1)
        leaves = [
            part.reshape(*flat.shape[:-1], *shape).astype(dtype or own)
            for part, shape, own in zip(parts, self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.tree, leaves)


class Flat(NamedTuple):
    """A function of a pytree and a point, both flat: `fn(x)` is `fn(params)`, and `layout.unravel(x)` is params.

    x is float32 (float64 where a leaf is).
    """

    fn: Callable[[Float[Array, " n"]], Any]
    x: Float[Array, " n"]
    layout: Layout


def of(fn: Callable[[PyTree], Any], params: PyTree, *, scalar: bool = True) -> Flat:
    """`fn` and `params`, as of `layout_of`, on a flat vector; where `scalar`, `fn` has to return a number.

    >>> f, x, layout = of(lambda p: p["a"] @ p["b"], {"a": jnp.ones(2), "b": jnp.array([1.0, 3.0])})
    >>> x.tolist(), float(f(x)), layout.unravel(2 * x)["b"].tolist()
    ([1.0, 1.0, 1.0, 3.0], 4.0, [2.0, 6.0])
    """
    x, layout = ravel(params)

    def at(x: Array) -> Any:
        out = fn(layout.unravel(x))
        return as_scalar(out, x.dtype) if scalar else out

    return Flat(at, x, layout)


def as_scalar(out: Any, dtype: Any) -> Array:
    """What a loss returned, found to be one floating-point number."""
    single = jax.tree_util.all_leaves([out]) and jnp.shape(out) == ()
    if not single or not jnp.issubdtype(jnp.result_type(out), jnp.floating):
        raise ValueError(f"loss returned {jax.eval_shape(lambda: out)}; it must return a floating-point scalar")
    return jnp.asarray(out, dtype)


def ravel(params: PyTree) -> tuple[Float[Array, " n"], Layout]:
    """A point as a flat vector, float32 (float64 where a leaf is), and its layout."""
    layout = layout_of(params)
    dtype = jnp.float64 if jnp.dtype(jnp.float64) in layout.dtypes else jnp.float32
    return _ravel(jax.tree.leaves(params), dtype), layout


def layout_of(params: PyTree) -> Layout:
    """The layout of a pytree of floating-point arrays; `None` leaves pass.

    Raises:
      ValueError: there is no leaf, or one that is not floating point.
    """
    leaves, tree = jax.tree.flatten_with_path(params)
    if not leaves:
        raise ValueError("params has no leaves; it must be a pytree of floating-point arrays")
    types = [getattr(leaf, "dtype", type(leaf)) for _, leaf in leaves]
    for (path, _), dtype in zip(leaves, types, strict=True):
        if not jnp.issubdtype(dtype, jnp.floating):
            name, of = jax.tree_util.keystr(path) or " itself", getattr(dtype, "__name__", dtype)
            raise ValueError(
                f"params{name} is of type {of}; every leaf must be floating point: split off the others, as with "
                "nnx.split, equinox.partition or hessian.part"
            )
    shapes = tuple(np.shape(leaf) for _, leaf in leaves)
    return Layout(tree, shapes, tuple(map(jax.dtypes.canonicalize_dtype, types)))


def check_alike(*points: PyTree) -> None:
    """Refuse points of different structures or shapes, and those that `layout_of` refuses."""
    first, *others = map(layout_of, points)
    for other in others:
        if other.tree != first.tree:
            raise ValueError(f"the points are pytrees of different structures, {first.tree} and {other.tree}")
        for (path, _), a, b in zip(jax.tree.leaves_with_path(points[0]), first.shapes, other.shapes, strict=True):
            if a != b:
                raise ValueError(
                    f"params{jax.tree_util.keystr(path)} has the shapes {a} and {b}; they must be one"
                )


def check_untraced(name: str, *trees: PyTree) -> None:
    """Refuse a transformation of what decides by numbers how it goes on."""
    if program.is_traced(*trees):
        raise ValueError(f"{name} decides by numbers and cannot be traced; call it outside jit, vmap and grad")


def stacked(arrays: Sequence[Any]) -> Any:
    """Arrays as one, on the host where they are known: nothing to compile, however many."""
    return jnp.stack(arrays) if program.is_traced(*arrays) else np.stack(jax.device_get(arrays))


def keys(key: Any, num_samples: Any, least: int = 2) -> list[Array]:
    """A key for each sample, of which there are to be `least` or more."""
    check_key(key)
    check_counts({"num_samples": num_samples}, least)
    return [jax.random.fold_in(key, i) for i in range(num_samples)]


def check_key(key: Any) -> None:
    """Refuse what is not one typed key, and one whose numbers would depend on how many are drawn side by side."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError(f"key is {key!r}; it must be one key, as from jax.random.key(0)")
    if (kind := str(jax.random.key_impl(key))) not in ("fry", "threefry2x32"):
        raise ValueError(
            f"key is of kind {kind}, whose numbers change with how many are drawn at once; take "
            'jax.random.key(0, impl="threefry2x32")'
        )


def as_array(name: str, value: Any) -> Any:
    """One array, or a list of numbers as one."""
    pair = isinstance(value, tuple) and any(hasattr(part, "shape") for part in value)
    try:
        array = value if hasattr(value, "dtype") else None if pair else np.asarray(value)
    except ValueError:  # rows of several lengths
        array = None
    if array is None or array.dtype.kind in "OUS" or array.ndim == 0:
        raise ValueError(f"{name} is of type {type(value).__name__}; it must be one array, with an example a row")
    return array


def check_counts(counts: Mapping[str, Any], least: int = 1) -> None:
    """Refuse, by its name, what is not an integer from `least` up."""
    for name, number in counts.items():
        _check_known(name, number)
        if isinstance(number, bool) or not isinstance(number, numbers.Integral) or number < least:
            raise ValueError(f"{name} is {number!r}; it must be an integer, {least} or more")


def check_positive(values: Mapping[str, Any]) -> None:
    """Refuse, by its name, what is not a finite number above 0."""
    for name, value in values.items():
        if not 0 < _number(name, value) < math.inf:
            raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")


def check_between(values: Mapping[str, Any], low: float, high: float = math.inf) -> None:
    """Refuse, by its name, what is not a finite number from `low` to `high`."""
    for name, value in values.items():
        if not low <= _number(name, value) <= high or value == math.inf:
            where = f"from {low} up" if high == math.inf else f"from {low} to {high}"
            raise ValueError(f"{name} is {value!r}; it must be a number {where}")


def _number(name: str, value: Any) -> float:
    """A number, also of NumPy or JAX; NaN for what is none."""
    _check_known(name, value)
    number = value.item() if isinstance(value, jax.Array) and value.ndim == 0 else value
    return float(number) if isinstance(number, numbers.Real) and not isinstance(number, bool) else math.nan


def _check_known(name: str, value: Any) -> None:
    if program.is_traced(value):
        raise ValueError(f"{name} is traced; it must be known outside jit, vmap and grad")


def said(value: Float[Array, ""], level: int = 4) -> Float[Array, ""]:
    """The value of a measure; a RuntimeWarning if it is not finite."""
    if not program.is_traced(value) and not np.isfinite(value):
        warn(f"the value is {value}: the loss was not finite where it was looked at", level)
    return value


def tell_rounded(layout: Layout, x: Float[Array, " n"], step: Float[Array, " n"]) -> None:
    """A RuntimeWarning where a tenth of a step from x is lost when its end is cast to what the network reads."""
    if not program.is_traced(x, step) and (lost := float(_lost(layout, x, step))) > 0.1:
        types = ", ".join(sorted({str(jnp.dtype(dtype)) for dtype in layout.dtypes}))
        warn(f"{lost:.0%} of a step of this size is lost in rounding to {types}; take params of a wider type", 4)


def warn(what: str, level: int = 3) -> None:
    """A RuntimeWarning where a measure is called, so many calls up."""
    warnings.warn(what, RuntimeWarning, stacklevel=level)


def with_extras(transformation: Any) -> Callable:
    """The update of an optax transformation: of `value`, `grad` and `value_fn` it takes those that it knows.

    One that asks for `grad_fn`, as `optax.contrib.sam` does, gets the gradient of `value_fn`.
    """
    update = optax.with_extra_args_support(transformation).update
    known = inspect.signature(update).parameters.values()
    names, takes_all = {p.name for p in known}, any(p.kind is p.VAR_KEYWORD for p in known)

    def with_known(gradient: PyTree, state: Any, params: PyTree, **extra: Any) -> Any:
        if not takes_all:
            slope = jax.grad(extra["value_fn"])
            extra["grad_fn"] = lambda params, *_: slope(params)
            extra = {name: extra[name] for name in extra.keys() & names}
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes types
            return update(gradient, state, params, **extra)

    return with_known


@jax.jit
def unit(v: Float[Array, " n"]) -> tuple[Array, Array]:
    """The length of a vector and its direction, also where squares would be 0; that of 0 is 0."""
    top = jnp.max(jnp.abs(v))
    v = v / jnp.where(top == 0, 1, top)
    length = jnp.linalg.norm(v)
    return top * length, v / jnp.where(length == 0, 1, length)


@jax.jit(static_argnums=0)
def _lost(layout: Layout, x: Array, step: Array) -> Array:
    """The part of a step that the network does not see, by its length."""
    read = _ravel(jax.tree.leaves(layout.unravel(x + step)), x.dtype) - x
    length = unit(step)[0]
    return unit(read - step)[0] / jnp.where(length == 0, 1, length)


@jax.jit(static_argnums=1)
def _ravel(leaves: list[Any], dtype: Any) -> Array:
    return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in leaves])
