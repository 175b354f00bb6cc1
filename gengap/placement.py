"""Arrays on a mesh of devices: arrays that are divided over it stay divided, and so does the work on them.

Inside this package a mesh has automatic axes, along which XLA divides the work. Arrays on a mesh of explicit axes,
the default of `jax.make_mesh`, are moved to a mesh of the same devices with automatic axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from gengap import program

__all__ = [
    "Chunks",
    "automatic",
    "called",
    "draws_of",
    "in_chunks",
    "on_accelerator",
    "parameters_of",
    "rows_of",
    "spread",
]


def automatic(tree: PyTree) -> Any:
    """The same arrays, with those on a mesh of explicit axes moved to one of automatic axes."""
    return jax.tree.map(lambda leaf: _on_axes(leaf, AxisType.Auto), tree)


def called(fn: Callable, arrays: PyTree, *args: Any) -> Any:
    """`fn(arrays, *args)`, where results are scalars; `args` may be on a mesh of explicit axes, also if traced."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(args) if program.is_traced(leaf)]
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return fn(arrays, *automatic(args))
    with jax.ensure_compile_time_eval():
        arrays = jax.tree.map(lambda leaf: _on_axes(leaf, AxisType.Explicit), arrays)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.sharding.auto_axes(fn, out_sharding=PartitionSpec())(arrays, *args)


def _on_axes(leaf: Any, kind: AxisType) -> Any:
    sharding = _sharding(leaf)
    if sharding is None or {kind} == set(sharding.mesh.axis_types):
        return leaf
    return jax.device_put(leaf, NamedSharding(_mesh(sharding.mesh, kind), sharding.spec))


def _mesh(mesh: Any, kind: AxisType) -> Mesh:
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(kind,) * len(mesh.axis_names))


def rows_of(arrays: Sequence[Any]) -> NamedSharding | None:
    """How the rows of arrays are spread over several devices; `None` if they are not, or if it is not known."""
    for array in arrays:
        sharding = _sharding(array)
        if sharding is not None and sharding.spec and sharding.spec[0] is not None:
            rows = NamedSharding(_mesh(sharding.mesh, AxisType.Auto), PartitionSpec(sharding.spec[0]))
            if rows.num_devices > 1:
                return rows
    return None


def parameters_of(params: PyTree) -> NamedSharding | None:
    """All devices of the mesh that parameters are divided over, for rows; `None` if they are not divided."""
    divided = [s for s in map(_sharding, jax.tree.leaves(params)) if s is not None and not s.is_fully_replicated]
    return _all_of(divided[0].mesh) if divided else None


def draws_of(loss: Callable, params: PyTree) -> NamedSharding | None:
    """All devices of the mesh that parameters are copied to, for draws; `None` if they or the data are divided."""
    known = [s for s in map(_sharding, jax.tree.leaves(params)) if s is not None and s.num_devices > 1]
    if not known:
        return None
    held = [s for s in map(_sharding, jax.make_jaxpr(loss)(params).consts) if s is not None]
    return _all_of(known[0].mesh) if all(s.is_fully_replicated for s in [*known, *held]) else None


def on_accelerator(array: Array) -> bool:
    """Whether an array is on a GPU, a TPU or the like; false for a traced one."""
    return not program.is_traced(array) and next(iter(array.devices())).platform != "cpu"


def _sharding(leaf: Any) -> NamedSharding | None:
    """How an array is placed on a mesh; `None` if it is traced or on no mesh."""
    sharding = None if program.is_traced(leaf) else getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def _all_of(mesh: Any) -> NamedSharding:
    return NamedSharding(_mesh(mesh, AxisType.Auto), PartitionSpec(mesh.axis_names))


def spread(arrays: PyTree, rows: NamedSharding | None) -> Any:
    """Arrays with their rows spread as `rows` says; unchanged if it is `None`."""
    return arrays if rows is None else jax.lax.with_sharding_constraint(arrays, rows)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chunks:
    """Rows in chunks, each of which is divided over the devices.

    Attributes:
      groups: [chunks, rows, ...] for each of two chunk lengths, padded to a multiple of the number of devices.
      rows: how the rows of a chunk are spread.
    """

    groups: tuple[Array, ...]
    rows: NamedSharding = field(metadata={"static": True})

    def cut(self, chunk: Array, length: int) -> Array:
        """A chunk without its padding."""
        return spread(chunk[:length], self.rows)


def in_chunks(array: Array, ends: Sequence[tuple[int, int, int]], rows: NamedSharding) -> Chunks:
    """An array in groups of chunks; `ends` has for each group its begin, its end and the length of its chunks."""
    count = rows.mesh.size
    groups = []
    for begin, end, length in ends:
        group = array[begin:end].reshape(-1, length, *array.shape[1:])
        padding = [(0, 0), (0, -length % count), *[(0, 0)] * (array.ndim - 1)]
        spec = PartitionSpec(None, *rows.spec)
        groups.append(jax.device_put(jnp.pad(group, padding), NamedSharding(rows.mesh, spec)))
    return Chunks(tuple(groups), rows)
