"""A training on disk: a pytree, its history and what made it, in an .npz without pickles."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gengap import records
from gengap.data import read_npz
from gengap.train import History


def write(path: Path, tree: PyTree, history: History, header: dict[str, Any]) -> None:
    """Write a pytree of arrays and keys, the history, and a header of plain values with its "settings"."""
    leaves = jax.tree.leaves_with_path(tree)
    arrays = {f"leaf {i}": np.asarray(raw(leaf)) for i, (_, leaf) in enumerate(leaves)}
    types = [str(array.dtype) for array in arrays.values()]
    header = {**header, "where": [_names(where) for where, _ in leaves], "types": types}
    arrays |= {f"history {name}": values for name, values in history.items()}
    text = np.array(json.dumps(header))
    records.atomically(path, lambda file: np.savez(file, header=text, **arrays))  # type: ignore[arg-type]


def read(path: Path, settings: dict[str, Any] | None) -> tuple[dict[str, Any], History, list[np.ndarray]]:
    """The header, the history and the leaves of a file.

    Raises:
      ValueError: the file is not there, damaged, or of other settings; `None` takes any.
    """
    try:
        arrays = read_npz(path)
        header = json.loads(str(arrays["header"]))
        # bfloat16 and its like are unknown to NumPy, which reads them back as raw bytes
        leaves = [arrays[f"leaf {i}"].view(jnp.dtype(dtype)) for i, dtype in enumerate(header["types"])]
        history = {n.removeprefix("history "): values for n, values in arrays.items() if n.startswith("history ")}
        there = dict(header["settings"])
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no minimum, or damaged: {error}") from None
    if settings is not None and there != settings:
        names = [name for name in {**there, **settings} if there.get(name) != settings.get(name)]
        changes = "; ".join(f"{name} {there.get(name)}, asked for {settings.get(name)}" for name in names)
        raise ValueError(f"{path} was trained with other settings: {changes}")
    return header, history, leaves


def as_tree(path: Path, header: dict[str, Any], leaves: list[np.ndarray], like: PyTree | None) -> Any:
    """The leaves in the structure of `like`, or in the nested dicts that they lay in."""
    if like is not None:
        entries, structure = jax.tree.flatten_with_path(like)
        here = [(_names(where), raw(leaf).shape) for where, leaf in entries]
        if here != [(where, leaf.shape) for where, leaf in zip(header["where"], leaves, strict=True)]:
            raise ValueError(f"{path} holds parameters of other names or shapes")
        typed = [_typed(own, leaf) for (_, own), leaf in zip(entries, leaves, strict=True)]
        return jax.tree.unflatten(structure, typed)
    tree: dict[str, Any] = {}
    for where, leaf in zip(header["where"], leaves, strict=True):
        if not where or not all(isinstance(name, str) for name in where):
            raise ValueError(f"{path} holds no dict of arrays: give the parameters of the network as `like`")
        inner = tree
        for name in where[:-1]:
            inner = inner.setdefault(name, {})
        inner[where[-1]] = jnp.asarray(leaf)
    return tree


def _names(where: Any) -> list[Any]:
    """A path into a pytree for JSON: the keys of dicts, and other entries each in a list."""
    keys = [(entry, getattr(entry, "key", None)) for entry in where]
    return [key if isinstance(key, str) else [str(entry)] for entry, key in keys]


def raw(leaf: Any) -> Any:
    """What NumPy can keep of a leaf: the data of a random key."""
    is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _typed(like: Any, leaf: np.ndarray) -> Any:
    array = jnp.asarray(leaf)
    return array if raw(like) is like else jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
