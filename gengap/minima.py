"""Minima: one network trained from one starting point with small batches and with large ones.

On disk they are found by what they were trained with: data, starting point, what a step computes, when training
ends. Names are labels. Training looks at its losses to end, so that it cannot be traced.
"""

import hashlib
import inspect
import json
import re
import time
import types
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from gengap import checkpoints, flat, growth, methods, objective, program, train
from gengap.data import Dataset
from gengap.methods import PLAIN, Method
from gengap.models import Model

TRAINING_VERSION = 2
"""With another one, minima on disk are not found again."""
_SECONDS_BETWEEN_CHECKPOINTS = 20.0


class Minimum(NamedTuple):
    """Where the training of one seed ended.

    Attributes:
      params: the parameters.
      batch_size: examples.
      epochs, steps: done.
      diverged_at: the step at which the loss was no longer finite; `None` where it always was.
      distance: from the starting point, Euclidean.
      seconds: that training took, also where it was found on disk.
      history: loss and accuracy per epoch, see `train.History`.
      settings: what it was trained with.
    """

    params: PyTree
    batch_size: int
    epochs: int
    steps: int
    diverged_at: int | None
    distance: float
    seconds: float
    history: train.History
    settings: dict[str, Any]

    def __repr__(self) -> str:
        """What it is and how it ended, in one line."""
        one = self.settings
        loss = self.history["train_loss"][-1] if self.epochs else float("nan")
        return (
            f"Minimum({one['network'] or 'network'} on {one['data']}, batch {self.batch_size}, seed {one['seed']}:"
            f" training loss {loss:.4g} after {self.epochs} epochs, distance {self.distance:.4g})"
        )


def find_pair(
    model: Model,
    ds: Dataset,
    key: Key[Array, ""],
    *,
    small_batch: float = 256,
    large_batch: float = 0.1,
    seed: int = 0,
    optimizer: Any = train.ADAM,
    method: Method = PLAIN,
    epochs: int = 100,
    patience: int | None = 10,
    tolerance: float = 1e-3,
    target: float | None = None,
    clip: float | None = None,
    chunk: int = 5000,
    precision: str | None = None,
    store: str | PathLike | None = None,
    progress: str | None = None,
) -> tuple[Minimum, Minimum]:
    """Train a small-batch (SB) and a large-batch (LB) minimum from one starting point; the rest is as of `find`.

    Args:
      small_batch, large_batch: in examples, or as a share of the training set, see `train.count`.

    Returns:
      The SB and the LB minimum.
    """
    sizes = {"SB": small_batch, "LB": large_batch}
    for size in sizes.values():
        train.count(size, len(ds.x_train))
    how: dict[str, Any] = {"seed": seed, "optimizer": optimizer, "method": method, "epochs": epochs}
    how |= {"patience": patience, "tolerance": tolerance, "target": target}
    how |= {"clip": clip, "chunk": chunk, "precision": precision, "store": store}
    small, large = (
        find(model, ds, key, size, progress=progress and f"{progress}, {name}", **how)
        for name, size in sizes.items()
    )
    return small, large


def find(
    model: Model,
    ds: Dataset,
    key: Key[Array, ""],
    batch_size: float,
    *,
    seed: int = 0,
    start: PyTree | None = None,
    optimizer: Any = train.ADAM,
    method: Method = PLAIN,
    epochs: int = 100,
    patience: int | None = 10,
    tolerance: float = 1e-3,
    target: float | None = None,
    clip: float | None = None,
    chunk: int = 5000,
    precision: str | None = None,
    store: str | PathLike | None = None,
    progress: str | None = None,
) -> Minimum:
    """Train to a minimum with one batch size, or find it in the store.

    Args:
      model, ds: the network and the data set.
      key: of everything random; `seed` is folded into it, so that a seed gives the same minimum whichever others
        are trained.
      batch_size: in examples, or as a share of the training set, see `train.count`.
      seed: number of the starting point, from 0 up.
      start: parameters to begin at, in place of the seed's own starting point.
      optimizer: any optax transformation.
      method: what differs from plain training, see `methods` and `updates`.
      epochs, patience, tolerance: when training stops, see `train.fit`.
      target: stop after an epoch that ends with f, the mean loss over the training set, below this, in nats.
      clip: see `objective.cross_entropy`.
      chunk: examples at once when f and the test set are evaluated.
      precision: of matrix products in training, see `train.fit`.
      store: a directory. A minimum in it that was trained with the same of all the above is returned; a new one is
        written to it, and on the way there, every 20 s, a checkpoint from which a run that was killed goes on. The
        same is what is computed, and the labels; of a method's `grow` it is the code and what that reads.
      progress: what to call the line that shows how far training is; `None` shows none.

    Raises:
      ValueError: a number out of its range, or a file in the store that is damaged or of other settings than its
        name says.
    """
    how: dict[str, Any] = {"seed": seed, "start": start, "optimizer": optimizer, "method": method}
    how |= {"patience": patience, "tolerance": tolerance, "target": target}
    how |= {"clip": clip, "chunk": chunk, "precision": precision, "store": store, "progress": progress}
    return find_along(model, ds, key, batch_size, (epochs,), **how)[0]


def find_along(
    model: Model,
    ds: Dataset,
    key: Key[Array, ""],
    batch_size: float,
    epochs: Sequence[int],
    *,
    seed: int = 0,
    start: PyTree | None = None,
    optimizer: Any = train.ADAM,
    method: Method = PLAIN,
    patience: int | None = 10,
    tolerance: float = 1e-3,
    target: float | None = None,
    clip: float | None = None,
    chunk: int = 5000,
    precision: str | None = None,
    store: str | PathLike | None = None,
    progress: str | None = None,
) -> list[Minimum]:
    """What `find` gives for each of `epochs`, in ascending order, from one training run; the rest is as of `find`.

    Where training ends before, the last ones are what it ended at.
    """
    flat.check_untraced("training", key, ds, start, seed)
    flat.check_key(key)
    flat.check_counts({"seed": seed}, least=0)
    flat.check_counts({"chunk": chunk})
    for epoch in epochs:
        flat.check_counts({"epochs": epoch})
    size, epochs = train.count(batch_size, len(ds.x_train)), sorted(int(epoch) for epoch in epochs)
    stop: dict[str, Any] = {"patience": patience, "tolerance": tolerance, "target": target}
    x0, batches_key = _begin(model.init, key, seed, ds.x_train[:2])
    x0 = x0 if start is None else start
    flat.layout_of(x0)
    of_train, of_test = (
        objective.loss_and_accuracy(model.apply, x, y, chunk=int(chunk), clip=clip)
        for x, y in ((ds.x_train, ds.y_train), (ds.x_test, ds.y_test))
    )
    precision = precision or program.asked_precision()
    label, optimizer = getattr(optimizer, "name", ""), methods.optimizer(method, optimizer)
    network: Any = {"apply": model.apply, "apply_train": model.apply_train, "clip": clip}
    loss, state = methods.batch_loss(method, **network), train.start(x0, batches_key, optimizer=optimizer)
    asked = {
        "network": model.name,
        "parameters": sum(np.size(leaf) for leaf in jax.tree.leaves(x0)),
        "data": ds.name,
        "data_sha256": _fingerprint((ds.x_train, ds.y_train, ds.x_test, ds.y_test)),
        "optimizer": label,
        "batch_size": size,
        "key": [str(jax.random.key_impl(key)), *np.ravel(jax.random.key_data(key)).tolist()],
        "seed": seed,
        "start": _fingerprint(state),
        "computation": _computation(loss, optimizer, precision, method.grow, state, (of_train, of_test), size, ds),
        "precision": precision,
        "clip": clip,
        "chunk": chunk,
        **stop,
        "version": TRAINING_VERSION,
        **({} if method == PLAIN else {"changes": method.name}),
    }
    settings = {
        epoch: json.loads(json.dumps({**asked, "epochs": epoch}, default=np.generic.item)) for epoch in epochs
    }
    paths = {} if store is None else {epoch: _path(Path(store), one) for epoch, one in settings.items()}
    found = {e: load(path, like=x0, settings=settings[e]) for e, path in paths.items() if path.exists()}
    if found.keys() == settings.keys():
        return [found[epoch] for epoch in epochs]

    last, history, before = epochs[-1], None, 0.0
    checkpoint = paths[last].with_suffix(".checkpoint.npz") if paths else None
    if checkpoint and checkpoint.exists():
        header, told, leaves = checkpoints.read(checkpoint, settings[last])
        if all(epoch in found or epoch > header["epochs"] for epoch in epochs):
            state, history = checkpoints.as_tree(checkpoint, header, leaves, state), told
            before = header["seconds"]
    began = saved = time.monotonic()

    def keep(epoch: int, state: train.TrainState, history: train.History) -> None:
        params = jax.tree.map(jnp.copy, methods.parameters(state))  # the next step overwrites its argument
        found[epoch] = Minimum(
            params=params,
            batch_size=size,
            epochs=int(state.epoch),
            steps=int(state.step),
            diverged_at=int(state.diverged_at) if state.diverged_at >= 0 else None,
            distance=float(_distance(params, x0)),
            seconds=round(before + time.monotonic() - began, 3),
            history=history,
            settings=settings[epoch],
        )
        if paths:
            rest = found[epoch]._asdict()
            checkpoints.write(paths[epoch], rest.pop("params"), rest.pop("history"), rest)

    def after_epoch(state: train.TrainState, history: train.History) -> None:
        nonlocal saved
        now = time.monotonic()
        if (epoch := int(state.epoch)) in settings and epoch not in found:
            keep(epoch, state, history)
        elif checkpoint and now - saved > _SECONDS_BETWEEN_CHECKPOINTS:
            header = {"settings": settings[last], "epochs": epoch, "seconds": before + now - began}
            checkpoints.write(checkpoint, state, history, header)
            saved = time.monotonic()

    batches: Any = size
    if method.grow is not PLAIN.grow:
        examples = methods.examples(method, **network)
        batches = growth.sizes(method.grow, size, examples, ds.x_train, ds.y_train)
    state, history = train.fit(
        loss,
        state,
        ds.x_train,
        ds.y_train,
        batch_size=batches,
        optimizer=optimizer,
        epochs=last,
        objective=lambda params: of_train(params)[0],
        evaluate=of_test,
        precision=precision,
        history=history,
        on_epoch=after_epoch,
        progress=progress,
        **stop,
    )
    for epoch in epochs:
        if epoch not in found:
            keep(epoch, state, history)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return [found[epoch] for epoch in epochs]


def starting_point(model: Model, ds: Dataset, key: Key[Array, ""], seed: int = 0) -> Any:
    """The parameters at which the training of a seed begins."""
    flat.check_key(key)
    return _begin(model.init, key, seed, ds.x_train[:2])[0]


def load(path: str | PathLike, *, like: PyTree | None = None, settings: dict[str, Any] | None = None) -> Minimum:
    """Read a minimum from a file of a store.

    Args:
      path: the file.
      like: parameters of the same network, where these are no dicts of arrays.
      settings: what it must have been trained with; `None` takes any.

    Raises:
      ValueError: the file is damaged, holds other parameters than `like`, or was trained with other settings.
    """
    header, history, leaves = checkpoints.read(Path(path), settings)
    if "batch_size" not in header:
        raise ValueError(f"{path} is of a training that has not ended; it must be the file of a minimum")
    params = checkpoints.as_tree(Path(path), header, leaves, like)
    header = {"seconds": float("nan"), **header}  # files of the first version have none
    rest = {name: header[name] for name in Minimum._fields if name not in ("params", "history")}
    return Minimum(params=params, history=history, **rest)


def _begin(init: Callable, key: Array, seed: Any, x: Array) -> tuple[Any, Array]:
    """A seed's starting point, and the key of its batches."""

    def begin(key: Array, seed: Array, x: Array) -> tuple[Any, Array]:
        of_start, of_batches = jax.random.split(jax.random.fold_in(key, seed))
        return init(of_start, objective.scale(x)), of_batches

    return program.compiled(begin)(key, seed, x)


def _computation(
    loss: Callable, optimizer: Any, precision: str, grow: Callable, state: Any, ends: Any, size: int, ds: Dataset
) -> str:
    """What a step, and the losses that training is followed by, compute."""
    batches, sums = train.epoch_of(len(ds.x_train), size, state.key, state.epoch)
    step = program.fingerprint(
        train.training_step(loss, optimizer, precision), state, sums, batches, ds.x_train, ds.y_train
    )
    followed = program.fingerprint(lambda ends, params: [end(params) for end in ends], ends, state.params)
    return f"{step} {followed} {hashlib.sha256(_code(grow).encode()).hexdigest()[:16]}"


def _code(it: Any, inside: tuple[int, ...] = ()) -> str:
    """What a function of Python's does, and what it reads, in words that are the same in every process."""
    if id(it) in inside or isinstance(it, types.ModuleType):
        return ""
    of = partial(_code, inside=(*inside, id(it)))
    if hasattr(it, "dtype"):
        return _fingerprint(it)
    if isinstance(it, partial):
        return of((it.func, it.args, it.keywords))
    if isinstance(it, types.MethodType):
        return of((it.__func__, it.__self__))
    if isinstance(it, list | tuple):
        return f"({', '.join(map(of, it))})"
    if isinstance(it, set | frozenset):
        return f"({', '.join(sorted(map(of, it)))})"
    if isinstance(it, dict):
        return of(sorted(it.items(), key=repr))
    if isinstance(it, types.CodeType):
        return of((it.co_code.hex(), it.co_names, it.co_consts))
    it = inspect.unwrap(it) if callable(it) else it
    if isinstance(it, types.FunctionType):
        read = [it.__globals__.get(name) for name in it.__code__.co_names]
        closed = [cell.cell_contents for cell in it.__closure__ or ()]
        return of((it.__code__, it.__defaults__, it.__kwdefaults__, closed, read))
    if isinstance(it, type) or " at 0x" not in repr(it):
        return repr(it)
    called = inspect.getattr_static(type(it), "__call__", None)
    return f"{type(it).__qualname__} {of((getattr(it, '__dict__', {}), called))}"


@jax.jit
def _distance(a: PyTree, b: PyTree) -> Array:
    return flat.unit(flat.ravel(a)[0] - flat.ravel(b)[0])[0]


def _fingerprint(tree: PyTree) -> str:
    digest = hashlib.sha256()
    for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(checkpoints.raw(leaf))
        digest.update(f"{jax.tree_util.keystr(where)} {array.dtype} {array.shape} ".encode())
        digest.update(array.view(np.uint8).data if array.size and array.ndim else array.tobytes())
    return digest.hexdigest()[:16]


def _path(store: Path, settings: dict[str, Any]) -> Path:
    """Where a minimum is kept."""
    words = f"{settings['network']} {settings['data']} B{settings['batch_size']} seed{settings['seed']}"
    short = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return store / f"{re.sub('[^A-Za-z0-9]+', '-', words)[:80].strip('-')}-{short}.npz"
