"""Which axes of a parameter count units: the layouts of network libraries, and how to describe others.

A rule is a function `(path, shape) -> axes` that says which axes of a leaf count its units, or `None` if it is not
a kernel. `landscape.filter_normalised` and `measures.relative_flatness` take a rule as `units`:

- Flax, Haiku and bare JAX: `last_axis`, the default.
- Equinox and PyTorch: `first_axis`.
- Attention in Flax: `named({"bias": None, "(query|key|value)/kernel": (-2, -1), "out/kernel": -1})`.
- Layers stacked by `nn.scan`: `stacked()`, or `named({"^ScanBlock_0/": stacked()})` for a part of the network.
- A convolution in one dimension, [width, in, units]: `named({"Conv_0/kernel": -1})`.

A leaf that a rule cannot classify is refused; the message names its path.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, keystr
from jaxtyping import Array, Float, Key, PyTree

__all__ = ["Axes", "Kernel", "Units", "alone", "first_axis", "last_axis", "named", "of", "outer_signs", "stacked"]

Path = tuple[Any, ...]  # keys of jax.tree_util
Shape = tuple[int, ...]


class Kernel(NamedTuple):
    """Which axes of a leaf count units, and which count stacked layers; the other axes count inputs.

    Axes below 0 are counted from the end.
    """

    units: tuple[int, ...]
    layers: tuple[int, ...] = ()


Axes = Kernel | tuple[int, ...] | int | None
Units = Callable[[Path, Shape], Axes]

# Also after a prefix, as in in_proj_bias, and before a suffix, as in bias_ih.
_BIAS_OR_SCALE = re.compile(r"(.*_)?(b\d*|bias(es)?\d*(_\w+)?|beta|gamma|offset|scale|shift)", re.IGNORECASE)
# The end of an attribute, or of a dotted key, as keystr writes it.
_DOT_WEIGHT = re.compile(r"\.[^.]*weight[^.]*$")
_ATTENTION = {"query", "key", "value"}


def last_axis(path: Path, shape: Shape) -> Axes:
    """The layout of Flax, Haiku and bare JAX: [in, units] and [height, width, in, units].

    A leaf with fewer than two axes is not a kernel. Neither is one with the shape [1, ..., 1, units] and the name
    of a bias or scale: b, b1, bias, bias_1, beta, gamma, offset, scale or shift, also after "_".

    Raises:
      ValueError: the leaf may be something else.

        - It has such a name but another shape, like the biases of attention and of stacked layers.
        - It has neither two nor four axes, or it has four and belongs to a query, key or value.
        - It is an attribute or a dotted key that is named weight, as in Equinox and PyTorch.
    """
    if _is_no_kernel(path, shape, -1):
        return None
    if _DOT_WEIGHT.search(keystr(_without_value(path)[-1:])):
        reason = "is named as in Equinox and PyTorch, whose first axis counts units"
        raise _refusal(path, shape, reason, "units=kernels.first_axis")
    if len(shape) == 2 or (len(shape) == 4 and not _ATTENTION & {*_names(path)}):
        return -1
    raise _refusal(path, shape, "may be attention, stacked layers or a convolution")


def first_axis(path: Path, shape: Shape) -> Axes:
    """The layout of Equinox and PyTorch: [units, in] and [units, in, ...].

    A leaf with fewer than two axes is not a kernel. Neither is one with the shape [units, 1, ..., 1] and the name
    of a bias or scale (see `last_axis`), such as a convolution's bias in Equinox. PyTorch's transposed
    convolutions need `named`: they are [in, units, ...].

    Raises:
      ValueError: the leaf has such a name but another shape, like the biases of stacked layers.
    """
    return None if _is_no_kernel(path, shape, 0) else 0


def named(axes: Mapping[str, Axes | Units], otherwise: Units = last_axis) -> Units:
    """A rule by the names of leaves, such as "encoder/query/kernel".

    Args:
      axes: regular expression -> the axes that count units, `None` for no kernel, or another rule. The first
        expression that matches anywhere in a name counts.
      otherwise: the rule for a leaf whose name matches none.

    >>> attention = named({"bias": None, "(query|key|value)/kernel": (-2, -1), "out/kernel": -1})
    >>> of({"query": {"kernel": np.ones((8, 2, 3)), "bias": np.ones((2, 3))}}, attention)  # bias, kernel
    [None, Kernel(units=(1, 2), layers=())]
    """

    def rule(path: Path, shape: Shape) -> Axes:
        name = "/".join(_names(path))
        choice = next((choice for pattern, choice in axes.items() if re.search(pattern, name)), otherwise)
        return choice(path, shape) if callable(choice) else choice

    return rule


def stacked(units: Units = last_axis) -> Units:
    """A rule for layers that are stacked along the first axis, as by `nn.scan` and `jax.vmap`.

    Args:
      units: the rule for one layer.

    Raises:
      ValueError: `units` refuses one of the layers, or a leaf with two axes does not have the name of a bias or
        scale and may be a kernel that is not stacked.

    >>> of({"kernel": np.ones((6, 4, 3)), "bias": np.ones((6, 3))}, stacked())  # bias, kernel
    [None, Kernel(units=(2,), layers=(0,))]
    """

    def rule(path: Path, shape: Shape) -> Axes:
        if len(shape) == 2 and not _has_name_of_bias_or_scale(path):
            raise _refusal(path, shape, "may be a kernel that is not stacked")
        try:
            kernel = _kernel(path, shape[1:], units)
        except ValueError as error:
            raise ValueError(f"in each of {shape[0]} stacked layers {error}") from None
        if kernel is None:
            return None
        return Kernel(tuple(axis + 1 for axis in kernel.units), (0, *(axis + 1 for axis in kernel.layers)))

    return rule


def of(params: PyTree, units: Units) -> list[Kernel | None]:
    """What a rule says of each leaf, with axes from 0 up.

    Raises:
      ValueError: a leaf does not fit the rule, or has no axis left for the inputs of the units.

    >>> of({"w": np.ones((4, 3)), "b": np.ones(3)}, last_axis)  # b, w
    [None, Kernel(units=(1,), layers=())]
    """
    return [_kernel(path, np.shape(leaf), units) for path, leaf in jax.tree.leaves_with_path(params)]


def alone(
    loss: Callable, params: PyTree, layer: Sequence[str | int], units: Units
) -> tuple[Callable, dict[str, Any], Kernel | None]:
    """The loss as a function of one leaf, the others held fixed; this leaf by its name; what a rule says of it.

    Args:
      loss: `params -> scalar`.
      params: a pytree; leaves that are held fixed may have any type.
      layer: the path of the leaf, key by key; the "value" at the end of every NNX path may be left out.
      units: the rule.

    Raises:
      ValueError: no leaf has this path, or the leaf does not fit the rule.
    """
    leaves, tree = jax.tree.flatten(params)
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    wanted = [str(key) for key in layer]
    i = next((i for i, path in enumerate(paths) if wanted in (_keys(path), _keys(_without_value(path)))), None)
    if i is None:
        known = ", ".join(str(tuple(_keys(_without_value(path)))) for path in paths)
        raise ValueError(f"layer is {tuple(layer)}; it must be the path of a leaf: {known}")

    def at_leaf(leaf: dict[str, Any]) -> Any:
        return loss(jax.tree.unflatten(tree, [*leaves[:i], *leaf.values(), *leaves[i + 1 :]]))

    return at_leaf, {"/".join(wanted): leaves[i]}, _kernel(paths[i], np.shape(leaves[i]), units)


@partial(jax.jit, static_argnums=(2, 3))
def outer_signs(w: Float[Array, " n"], key: Key[Array, ""], shape: Shape, units: tuple[int, ...]) -> Array:
    r"""$z \otimes W^\top r$ for random signs z and r, in the layout of a kernel w; W has its units as columns."""
    last = tuple(range(-len(units), 0))
    kernel = jnp.moveaxis(w.reshape(shape), units, last)
    W = kernel.reshape(-1, math.prod(shape[axis] for axis in units))
    z, r = jax.random.rademacher(key, (2, len(W)), w.dtype)
    v = jnp.outer(z, jnp.dot(r, W, precision="highest"))
    return jnp.moveaxis(v.reshape(kernel.shape), last, units).ravel()


def _kernel(path: Path, shape: Shape, units: Units) -> Kernel | None:
    axes, ndim = units(path, shape), len(shape)
    if axes is None:
        return None
    kernel = axes if isinstance(axes, Kernel) else Kernel((axes,) if isinstance(axes, int) else tuple(axes))
    both = kernel.units + kernel.layers
    distinct = {axis % ndim for axis in both if -ndim <= axis < ndim}
    if not kernel.units or len(distinct) < len(both) or len(both) >= ndim:
        raise _refusal(path, shape, f"does not fit the axes {both} for units and one more for what they read")
    return Kernel(*(tuple(axis % ndim for axis in axes) for axes in kernel))


def _is_no_kernel(path: Path, shape: Shape, units: int) -> bool:
    if len(shape) < 2:
        return True
    if not _has_name_of_bias_or_scale(path):
        return False
    if shape[units] != math.prod(shape):
        raise _refusal(path, shape, "has the name of a bias or scale, and not the shape of one")
    return True


def _has_name_of_bias_or_scale(path: Path) -> bool:
    return any(_BIAS_OR_SCALE.fullmatch(name) for name in _names(path)[-1:])


def _refusal(path: Path, shape: Shape, reason: str, ready: str = "units=kernels.stacked()") -> ValueError:
    return ValueError(
        f"params{keystr(path)} of shape {shape} {reason}; pass {ready}, or units=kernels.named("
        f"{{{'/'.join(_names(path))!r}: axes}}) with the axes that count units, None for no kernel"
    )


def _without_value(path: Path) -> Path:
    """A path without the `.value` at the end of NNX paths."""
    return path[:-1] if len(path) > 1 and path[-1] == GetAttrKey("value") else path


def _keys(path: Path) -> list[str]:
    return [keystr((key,), simple=True) for key in path]


def _names(path: Path) -> list[str]:
    """The keys of a path; those of flattened dictionaries, such as "Dense_0/kernel" and "0.weight", are split."""
    return [name for key in _keys(_without_value(path)) for name in re.split(r"[/.]", key)]
