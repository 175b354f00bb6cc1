"""Training results on disk: the leaves of a pytree and what made them, in a safetensors file."""

import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from gengap import hosts, records

__all__ = ["fingerprint", "locked", "read", "remove", "there", "write"]

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
           "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
           "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool"}  # fmt: skip


def fingerprint(tree: PyTree) -> str:
    """A digest of the leaves of a pytree, with their paths, types and shapes."""
    digest = hashlib.sha256()
    for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(_raw(leaf))
        digest.update(f"{jax.tree_util.keystr(where)} {array.dtype} {array.shape} ".encode())
        digest.update(array.view(np.uint8).data if array.size and array.ndim else array.tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of a file of the store, and hold it."""
    if not hosts.is_first():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    while True:
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not lock.exists() or lock.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # the process that had it has removed it
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def write(path: Path, tree: PyTree, values: dict[str, Any]) -> None:
    """Write the leaves of a pytree, together with values such as the history."""
    if not hosts.is_first():
        return
    kept = [name for name in values if name not in ("params", "snapshots")]
    header = json.dumps({name: values[name] for name in kept}, default=np.ndarray.tolist)
    arrays = _arrays(tree)
    metadata = {"header": header, "sha256": fingerprint({"header": np.array(header), **arrays})}
    content = safetensors.numpy.save(arrays, metadata)
    records.atomically(path, lambda file: file.write(content))


def there(paths: Mapping[int, Path]) -> dict[int, Path]:
    """The files among these that exist."""
    return dict(itertools.compress(paths.items(), hosts.of_first(lambda: [p.exists() for p in paths.values()])))


def remove(path: Path) -> None:
    """Remove a file, if it exists."""
    if hosts.is_first():
        path.unlink(missing_ok=True)


def read(path: Path, like: PyTree, settings: dict[str, Any] | None) -> tuple[dict[str, Any], Any]:
    """The values in a file, and its leaves in the structure of `like`.

    Raises:
      ValueError: the file is missing, damaged, or has other leaves or other settings; `None` accepts any settings.
    """
    arrays = expected = _arrays(like)

    def header_of_file() -> dict[str, Any]:
        nonlocal arrays
        header, arrays = _contents(path, expected, settings)
        return header

    header = hosts.of_first(header_of_file)
    arrays = hosts.tree_of_first({name: arrays[name] for name in expected})
    header["history"] = {name: np.asarray(values, float) for name, values in header["history"].items()}
    leaves, structure = jax.tree.flatten(like)
    ordered = [arrays[name] for name in expected]
    return header, jax.tree.unflatten(structure, map(_typed, leaves, ordered))


def _contents(
    path: Path, expected: dict[str, np.ndarray], settings: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file; refuse types and shapes other than those of `expected`."""
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata()
        arrays = {
            name: np.ndarray(tensor["shape"], jnp.dtype(_DTYPES[tensor["dtype"]]), tensor["data"])
            for name, tensor in safetensors.deserialize(path.read_bytes())
        }
        if metadata["sha256"] != fingerprint({"header": np.array(metadata["header"]), **arrays}):
            raise ValueError("its contents have changed since it was written")
        header = json.loads(metadata["header"])
        stored = dict(header["settings"])
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is no minimum, or damaged: {error}") from None
    if settings is not None and stored != settings:
        names = [name for name in {**stored, **settings} if stored.get(name) != settings.get(name)]
        changes = "; ".join(f"{name} {stored.get(name)}, asked for {settings.get(name)}" for name in names)
        raise ValueError(f"{path} was trained with other settings: {changes}")
    if {n: (a.shape, a.dtype) for n, a in arrays.items()} != {n: (a.shape, a.dtype) for n, a in expected.items()}:
        raise ValueError(f"{path} holds parameters of other names, shapes or types")
    return header, arrays


def _arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves by their paths, such as "Dense_0/kernel"."""
    leaves = jax.tree.leaves_with_path(tree)
    simple = [jax.tree_util.keystr(where, simple=True, separator="/") or "params" for where, _ in leaves]
    full = [jax.tree_util.keystr(where) for where, _ in leaves]
    names = simple if len(set(simple)) == len(leaves) else full
    return {name: np.asarray(_raw(leaf), order="C") for name, (_, leaf) in zip(names, leaves, strict=True)}


def _raw(leaf: Any) -> Any:
    """A leaf as NumPy can store it: the data of a random key, and all of an array divided over processes."""
    is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return hosts.fetched(jax.random.key_data(leaf) if is_key else leaf)


def _typed(like: Any, array: np.ndarray) -> Any:
    stored = jnp.asarray(array)
    return stored if _raw(like) is like else jax.random.wrap_key_data(stored, impl=jax.random.key_impl(like))
