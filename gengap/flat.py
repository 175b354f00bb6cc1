"""A function of a pytree as a function of one flat vector, the form in which every measure is computed.

Only this module checks the types of the parameters and casts points to the types that the network reads.
"""

import inspect
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr
from jaxtyping import Array, Float, Key, PyTree

from gengap import checks, placement, program

__all__ = [
    "Flat", "Layout", "Only", "as_scalar", "check_alike", "key_for", "layer_of", "layout_of", "names", "of",
    "part", "ravel", "stacked", "unit", "warn_rounded", "with_extras",
]  # fmt: skip


Only = Callable[[str], bool]
"""Whether to take a leaf, by its name such as "Dense_0/kernel"."""


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
        leaves = zip(parts, self.shapes, self.dtypes, strict=True)
        parts = [part.reshape(*flat.shape[:-1], *shape).astype(dtype or kept) for part, shape, kept in leaves]
        return jax.tree.unflatten(self.tree, parts)

    def ranges(self, flat: Float[Array, " n"]) -> Float[Array, " n"]:
        """For each number of a flat vector, the range of its leaf: the largest number minus the smallest."""
        parts = jax.tree.leaves(self.unravel(flat, flat.dtype))
        return jnp.concatenate(
            [jnp.full(part.size, jnp.ptp(part) if part.size else 0.0, flat.dtype) for part in parts]
        )


class Flat(NamedTuple):
    """A function of a pytree and a point, both flat: `fn(x)` is `fn(params)`, and `layout.unravel(x)` is params.

    x is float32 (float64 if a leaf is).
    """

    fn: Callable[[Float[Array, " n"]], Any]
    x: Float[Array, " n"]
    layout: Layout


def of(fn: Callable[[PyTree], Any], params: PyTree, *, scalar: bool = True, only: Only | None = None) -> Flat:
    """`fn` and `params` (see `layout_of`) on a flat vector; if `scalar`, `fn` has to return a number.

    With `only` it is a function of some of the leaves, see `part`.

    >>> f, x, layout = of(lambda p: p["a"] @ p["b"], {"a": jnp.ones(2), "b": jnp.array([1.0, 3.0])})
    >>> x.tolist(), float(f(x)), layout.unravel(2 * x)["b"].tolist()
    ([1.0, 1.0, 1.0, 3.0], 4.0, [2.0, 6.0])
    """
    if only is not None:
        fn, params = part(fn, params, only)
    x, layout = ravel(params)

    def at(x: Array) -> Any:
        out = fn(layout.unravel(x))
        return as_scalar(out, x.dtype) if scalar else out

    return Flat(at, x, layout)


def part(loss: Callable, params: PyTree, only: Only) -> tuple[Callable, PyTree]:
    """The loss as a function of some leaves, and params with `None` for the others, which are held fixed.

    Args:
      loss: `params -> scalar`.
      params: a pytree; leaves that are held fixed may have any type.
      only: whether to take a leaf, by its name such as "Dense_0/kernel".

    Raises:
      ValueError: it takes no leaf.

    >>> params = {"first": {"kernel": jnp.ones(2)}, "last": {"kernel": jnp.ones(3)}}
    >>> loss, last = part(lambda p: p["last"]["kernel"].sum(), params, lambda name: name.startswith("last/"))
    >>> last["first"], float(loss(last))
    ({'kernel': None}, 3.0)
    """
    leaves, tree = jax.tree.flatten(params)
    taken = [leaf if only(name) else None for name, leaf in zip(names(params), leaves, strict=True)]
    if all(leaf is None for leaf in taken):
        raise ValueError(f"only takes none of the leaves {', '.join(names(params))}")

    def loss_of(taken: PyTree) -> Any:
        return loss(jax.tree.map(lambda a, b: b if a is None else a, taken, params, is_leaf=lambda a: a is None))

    return loss_of, jax.tree.unflatten(tree, taken)


def names(params: PyTree) -> list[str]:
    """The name of each leaf, such as "Dense_0/kernel"."""
    return [keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]


def layer_of(name: str) -> str:
    """The layer of a leaf: all but the last part of its name.

    >>> layer_of("Dense_0/kernel"), layer_of("layers/0/kernel/value"), layer_of("kernel")
    ('Dense_0', 'layers/0', 'kernel')
    """
    return name.removesuffix("/value").rpartition("/")[0] or name


def as_scalar(out: Any, dtype: Any) -> Array:
    """What a loss returned; refuse anything but one floating-point number."""
    single = jax.tree_util.all_leaves([out]) and jnp.shape(out) == ()
    if not single or not jnp.issubdtype(jnp.result_type(out), jnp.floating):
        raise ValueError(f"loss returned {jax.eval_shape(lambda: out)}; it must return a floating-point scalar")
    return jnp.asarray(out, dtype)


def ravel(params: PyTree) -> tuple[Float[Array, " n"], Layout]:
    """A point as a flat vector, float32 (float64 if a leaf is), and its layout."""
    layout = layout_of(params)
    dtype = jnp.float64 if jnp.dtype(jnp.float64) in layout.dtypes else jnp.float32
    return _ravel(jax.tree.leaves(placement.automatic(params)), dtype), layout


def layout_of(params: PyTree) -> Layout:
    """The layout of a pytree of floating-point arrays; `None` in place of leaves is allowed.

    Raises:
      ValueError: there is no leaf, or a leaf is not floating point.
    """
    leaves, tree = jax.tree.flatten_with_path(params)
    if not leaves:
        raise ValueError("params has no leaves; it must be a pytree of floating-point arrays")
    types = [getattr(leaf, "dtype", type(leaf)) for _, leaf in leaves]
    for (path, _), dtype in zip(leaves, types, strict=True):
        if not jnp.issubdtype(dtype, jnp.floating):
            name, kind = jax.tree_util.keystr(path) or " itself", getattr(dtype, "__name__", dtype)
            raise ValueError(
                f"params{name} is of type {kind}; every leaf must be floating point: split off the others, as "
                "with nnx.split, equinox.partition or flat.part"
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
                name = jax.tree_util.keystr(path)
                raise ValueError(f"params{name} has the shapes {a} and {b}; they must be equal")


def stacked(arrays: Sequence[Any]) -> Any:
    """Arrays stacked into one; known values on the host, so that any number of them compiles nothing."""
    return jnp.stack(arrays) if program.is_traced(*arrays) else np.stack(jax.device_get(arrays))


def warn_rounded(layout: Layout, x: Float[Array, " n"], step: Float[Array, " n"]) -> None:
    """Warn if more than a tenth of a step from x is lost when its end is cast to the types of the network."""
    if not program.is_traced(x, step) and (lost := float(_lost(layout, x, step))) > 0.1:
        types = ", ".join(sorted({str(jnp.dtype(dtype)) for dtype in layout.dtypes}))
        checks.warn(
            f"{lost:.0%} of a step of this size is lost in rounding to {types}; take params of a wider type", 4
        )


def with_extras(transformation: Any) -> Callable:
    """The update of an optax transformation, which gets those of `value`, `grad` and `value_fn` that it accepts.

    If it asks for `grad_fn`, as `optax.contrib.sam` does, it gets the gradient of `value_fn`.
    """
    update = optax.with_extra_args_support(transformation).update
    parameters = inspect.signature(update).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def with_known(gradient: PyTree, state: Any, params: PyTree, **extra: Any) -> Any:
        if not takes_all:
            slope = jax.grad(extra["value_fn"])
            extra["grad_fn"] = lambda params, *_: slope(params)
            extra = {name: extra[name] for name in extra.keys() & parameters.keys()}
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes types
            return update(gradient, state, params, **extra)

    return with_known


def key_for(key: Key[Array, ""], purpose: str) -> Key[Array, ""]:
    """A key for one purpose; keys for different purposes give different numbers."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


@jax.jit
def unit(v: Float[Array, " n"]) -> tuple[Array, Array]:
    """The length of a vector and its direction, also if squares would underflow; the direction of 0 is 0."""
    top = jnp.max(jnp.abs(v))
    v = v / jnp.where(top == 0, 1, top)
    length = jnp.linalg.norm(v)
    return top * length, v / jnp.where(length == 0, 1, length)


@jax.jit(static_argnums=0)
def _lost(layout: Layout, x: Array, step: Array) -> Array:
    """The share of a step that rounding hides from the network, by length."""
    read = _ravel(jax.tree.leaves(layout.unravel(x + step)), x.dtype) - x
    length = unit(step)[0]
    return unit(read - step)[0] / jnp.where(length == 0, 1, length)


@jax.jit(static_argnums=1)
def _ravel(leaves: list[Any], dtype: Any) -> Array:
    return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in leaves])
