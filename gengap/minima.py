"""Minima: train one network from one starting point with small batches and with large ones.

On disk a minimum is identified by what it was trained with: data, starting point, what a step computes, when
training stops. Names are only labels. Training decides by its losses when to stop and cannot be traced.
"""

import hashlib
import inspect
import json
import re
import time
import types
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from gengap import checkpoints, checks, flat, methods, objective, origins, program, train
from gengap.data import Dataset
from gengap.methods import PLAIN, Method
from gengap.models import Model

__all__ = ["Minimum", "Recipe", "find", "load", "starting_point"]

_SECONDS_BETWEEN_CHECKPOINTS = 20.0
_CHECKPOINT = ".checkpoint"


class Recipe(NamedTuple):
    """How to train to a minimum, apart from the network, the data, the key and the seed.

    Attributes:
      batch_size: in examples, or as a share of the training set, see `train.count`.
      optimizer: any optax transformation.
      method: what differs from plain training, see `methods`.
      epochs: the most epochs.
      snapshots: epochs after which the minimum so far is also kept, in `Minimum.snapshots`.
      patience, tolerance: when training stops earlier, see `train.fit`.
      target: stop after an epoch that ends with f, the mean loss over the training set, below this, in nats.
      clip: see `objective.cross_entropy`.
      chunk: examples evaluated at once for f and the test set.
      precision: precision of matrix products in training, see `train.fit`.
    """

    batch_size: float = 256
    optimizer: Any = train.ADAM
    method: Method = PLAIN
    epochs: int = 100
    snapshots: tuple[int, ...] = ()
    patience: int | None = 10
    tolerance: float = 1e-3
    target: float | None = None
    clip: float | None = None
    chunk: int = 5000
    precision: str | None = None


class Minimum(NamedTuple):
    """Where the training of one seed ended.

    Attributes:
      params: the parameters.
      batch_size: in examples.
      epochs, steps: how many were done.
      diverged_at: the step at which the loss was no longer finite; `None` if it always was.
      distance: Euclidean distance from the starting point.
      seconds: how long training took, also if the minimum was found on disk.
      history: loss and accuracy per epoch, see `train.History`.
      settings: what it was trained with.
      snapshots: epoch -> the minimum after that epoch, for the epochs in the recipe; the last minimum if training
        ended earlier.
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
    snapshots: dict[int, "Minimum"] = {}  # noqa: RUF012

    def summary(self) -> dict[str, Any]:
        """How training ended, for a row: all but the parameters and the settings."""
        left_out = ("params", "settings", "snapshots")
        return {name: value for name, value in self._asdict().items() if name not in left_out}

    def __repr__(self) -> str:
        """What it is and how it ended, in one line."""
        label = f"{self.settings['network'] or 'network'} on {self.settings['data']}"
        loss = self.history["train_loss"][-1] if self.epochs else np.nan
        return (
            f"Minimum({label}, batch {self.batch_size}, seed {self.settings['seed']}:"
            f" training loss {loss:.4g} after {self.epochs} epochs, distance {self.distance:.4g})"
        )


class _Training(NamedTuple):
    """The parts of one training run.

    Attributes:
      loss, optimizer, state: for `train.fit`.
      of_train, of_test: `params -> (loss, accuracy)`.
      batch_size: in examples.
      batches: the same, or the rule by which it grows.
      precision: precision of matrix products.
    """

    loss: Callable
    optimizer: Any
    state: train.TrainState
    of_train: Callable
    of_test: Callable
    batch_size: int
    batches: int | Callable
    precision: str


def find(
    model: Model,
    ds: Dataset,
    key: Key[Array, ""],
    recipe: Recipe = Recipe(),  # noqa: B008
    *,
    seed: int = 0,
    start: PyTree | None = None,
    store: str | PathLike | None = None,
    progress: str | None = "auto",
) -> Minimum:
    """Train to a minimum, or find it in the store.

    Args:
      model, ds: the network and the data set.
      key: random key; `seed` is folded into it, so a seed gives the same minimum whichever others are trained.
        Two recipes with the same key and seed start from the same point.
      recipe: how it is trained.
      seed: number of the starting point, from 0 up.
      start: parameters to begin at, in place of the seed's own starting point.
      store: a directory. If it holds a minimum trained with the same arguments, that one is returned; a new one is
        written to it. During training a checkpoint is written every 20 s, from which a killed run resumes. The
        same means the same computation and labels; a method's `grow` is compared by its code and what that reads.
        If several processes want one minimum, one trains and the others wait.
      progress: a name for the progress bar; `None` shows none. "auto" shows one on a terminal, after two seconds.

    Raises:
      ValueError: a number is out of range, or a file in the store is damaged or has other settings than its name
        says.
    """
    checks.check_untraced("training", key, ds, start, seed)
    checks.check_key(key)
    checks.check_counts({"seed": seed}, least=0)
    checks.check_counts({"chunk": recipe.chunk, "epochs": recipe.epochs})
    for epoch in recipe.snapshots:
        checks.check_counts({"snapshots": epoch})
        if epoch > recipe.epochs:
            raise ValueError(f"snapshots has {epoch}; it must be at most the {recipe.epochs} epochs of the recipe")
    training = _begun(model, ds, key, recipe, int(seed), start)
    asked = _settings(model, ds, key, recipe, int(seed), training)
    lengths = sorted({*map(int, recipe.snapshots), int(recipe.epochs)})
    settings = {epochs: {**asked, "epochs": epochs} for epochs in lengths}
    if store is None:
        minima = _trained(training, ds, recipe, settings, {}, progress)
    else:
        paths = {epochs: _path(Path(store), settings[epochs]) for epochs in lengths}
        last = paths[lengths[-1]]
        if checkpoints.there(paths) != paths:
            with checkpoints.locked(last):
                _trained(training, ds, recipe, settings, paths, progress)
        minima = {e: load(path, like=training.state.params, settings=settings[e]) for e, path in paths.items()}
    snapshots = {int(epoch): minima[int(epoch)] for epoch in recipe.snapshots}
    return minima[lengths[-1]]._replace(snapshots=snapshots)


def starting_point(model: Model, ds: Dataset, key: Key[Array, ""], seed: int = 0) -> PyTree:
    """The parameters at which the training of a seed begins."""
    checks.check_key(key)
    return _start(model.init, key, seed, ds.x_train[:2])[0]


def load(path: str | PathLike, *, like: PyTree, settings: dict[str, Any] | None = None) -> Minimum:
    """Read a minimum from a file of a store, in the safetensors format.

    Args:
      path: the file.
      like: parameters of the same network, such as those of `starting_point`.
      settings: what it must have been trained with; `None` accepts any.

    Raises:
      ValueError: the file is damaged, holds other parameters than `like`, or was trained with other settings.
    """
    if Path(path).suffix == _CHECKPOINT:
        raise ValueError(f"{path} is a checkpoint of an unfinished training; it must be the file of a minimum")
    header, params = checkpoints.read(Path(path), like, settings)
    return Minimum(params=params, **header)


def _start(init: Callable, key: Array, seed: Any, x: Array) -> tuple[Any, Array]:
    """A seed's starting point, and the key of its batches."""

    def begin(key: Array, seed: Array, x: Array) -> tuple[Any, Array]:
        init_key, batches_key = jax.random.split(jax.random.fold_in(key, seed))
        return init(init_key, objective.scale(x)), batches_key

    return program.compiled(begin)(key, seed, x)


def _begun(model: Model, ds: Dataset, key: Array, recipe: Recipe, seed: int, start: PyTree | None) -> _Training:
    """The training run of a recipe, before its first step."""
    batch_size = train.count(recipe.batch_size, len(ds.x_train))
    own_start, batches_key = _start(model.init, key, seed, ds.x_train[:2])
    flat.layout_of(x0 := own_start if start is None else start)
    clip, loss = recipe.clip, model.loss
    evaluate = partial(objective.loss_and_accuracy, model.apply, chunk=int(recipe.chunk), clip=clip, loss=loss)
    of_train, of_test = evaluate(ds.x_train, ds.y_train), evaluate(ds.x_test, ds.y_test)
    optimizer = methods.optimizer(recipe.method, recipe.optimizer)
    batches: int | Callable = batch_size
    if recipe.method.grow is not PLAIN.grow:
        examples = train.examples(recipe.method, model.apply, model.apply_train, clip=clip, loss=loss)
        batches = train.growing(recipe.method.grow, batch_size, examples, ds.x_train, ds.y_train)
    return _Training(
        loss=train.batch_loss(recipe.method, model.apply, model.apply_train, clip=clip, loss=loss),
        optimizer=optimizer,
        state=train.start(x0, batches_key, optimizer=optimizer),
        of_train=of_train,
        of_test=of_test,
        batch_size=batch_size,
        batches=batches,
        precision=recipe.precision or program.asked_precision(),
    )


def _settings(
    model: Model, ds: Dataset, key: Array, recipe: Recipe, seed: int, training: _Training
) -> dict[str, Any]:
    """What identifies a minimum on disk, apart from its epochs."""
    settings = {
        "network": model.name,
        "parameters": sum(np.size(leaf) for leaf in jax.tree.leaves(training.state.params)),
        "data": ds.name,
        "data_sha256": checkpoints.fingerprint((ds.x_train, ds.y_train, ds.x_test, ds.y_test)),
        "optimizer": getattr(recipe.optimizer, "name", ""),
        "batch_size": training.batch_size,
        "key": [str(jax.random.key_impl(key)), *np.ravel(jax.random.key_data(key)).tolist()],
        "seed": seed,
        "start": checkpoints.fingerprint(training.state),
        "computation": _computation(training, recipe.method.grow, ds),
        "precision": training.precision,
        "clip": recipe.clip,
        "chunk": recipe.chunk,
        "patience": recipe.patience,
        "tolerance": recipe.tolerance,
        "target": recipe.target,
        "version": origins.TRAINING_VERSION,
        **({} if recipe.method == PLAIN else {"changes": recipe.method.name}),
    }
    return json.loads(json.dumps(settings, default=np.generic.item))


def _trained(
    training: _Training,
    ds: Dataset,
    recipe: Recipe,
    settings: dict[int, dict[str, Any]],
    paths: dict[int, Path],
    progress: str | None,
) -> dict[int, Minimum]:
    """The minimum at each of some epochs, written to `paths` if given. Those on disk are not trained again."""
    x0, last = training.state.params, max(settings)
    minima = {e: load(path, like=x0, settings=settings[e]) for e, path in checkpoints.there(paths).items()}
    if minima.keys() == settings.keys():
        return minima
    checkpoint = paths[last].with_suffix(_CHECKPOINT) if paths else None
    state, history, seconds_before = training.state, None, 0.0
    if checkpoint and checkpoints.there({last: checkpoint}):
        header, resumed = checkpoints.read(checkpoint, state, settings[last])
        if all(epoch in minima or epoch > header["epochs"] for epoch in settings):
            state, history, seconds_before = resumed, header["history"], header["seconds"]
    began = saved = time.monotonic()

    def keep(epoch: int, state: train.TrainState, history: train.History) -> None:
        seconds = round(seconds_before + time.monotonic() - began, 3)
        minima[epoch] = _minimum(training, state, history, seconds, settings[epoch])
        if paths:
            checkpoints.write(paths[epoch], minima[epoch].params, minima[epoch]._asdict())

    def after_epoch(state: train.TrainState, history: train.History) -> None:
        nonlocal saved
        now, epoch = time.monotonic(), int(state.epoch)
        if epoch in settings and epoch not in minima:
            keep(epoch, state, history)
        elif checkpoint and now - saved > _SECONDS_BETWEEN_CHECKPOINTS:
            seconds = seconds_before + now - began
            header = {"settings": settings[last], "epochs": epoch, "seconds": seconds, "history": history}
            checkpoints.write(checkpoint, state, header)
            saved = time.monotonic()

    state, history = train.fit(
        training.loss,
        state,
        ds.x_train,
        ds.y_train,
        batch_size=training.batches,
        optimizer=training.optimizer,
        epochs=last,
        patience=recipe.patience,
        tolerance=recipe.tolerance,
        target=recipe.target,
        objective=lambda params: training.of_train(params)[0],
        evaluate=training.of_test,
        precision=training.precision,
        history=history,
        on_epoch=after_epoch,
        progress=progress,
    )
    for epoch in settings.keys() - minima.keys():
        keep(epoch, state, history)
    if checkpoint:
        checkpoints.remove(checkpoint)
    return minima


def _minimum(
    training: _Training, state: train.TrainState, history: train.History, seconds: float, settings: dict[str, Any]
) -> Minimum:
    """The minimum that training has reached."""
    params = jax.tree.map(jnp.copy, train.parameters(state))  # the next step overwrites its argument
    return Minimum(
        params=params,
        batch_size=training.batch_size,
        epochs=int(state.epoch),
        steps=int(state.step),
        diverged_at=int(state.diverged_at) if state.diverged_at >= 0 else None,
        distance=float(_distance(params, training.state.params)),
        seconds=seconds,
        history=history,
        settings=settings,
    )


@jax.jit
def _distance(a: PyTree, b: PyTree) -> Array:
    return flat.unit(flat.ravel(a)[0] - flat.ravel(b)[0])[0]


def _computation(training: _Training, grow: Callable, ds: Dataset) -> str:
    """A digest of what a training step, the losses evaluated after it, and the `grow` of a method compute."""
    state, m = training.state, len(ds.x_train)
    batches, sums = train.epoch_of(m, training.batch_size, state.key, state.epoch)
    step = train.training_step(training.loss, training.optimizer, training.precision)
    step_print = program.fingerprint(step, state, sums, batches, ds.x_train, ds.y_train)
    ends = training.of_train, training.of_test
    ends_print = program.fingerprint(lambda ends, params: [end(params) for end in ends], ends, state.params)
    return f"{step_print} {ends_print} {hashlib.sha256(_code(grow).encode()).hexdigest()[:16]}"


def _code(it: Any, inside: tuple[int, ...] = ()) -> str:
    """What a Python function does, and what it reads, as a text that is the same in every process."""
    if id(it) in inside or isinstance(it, types.ModuleType):
        return ""
    of = partial(_code, inside=(*inside, id(it)))
    if hasattr(it, "dtype"):
        return checkpoints.fingerprint(it)
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


def _path(store: Path, settings: dict[str, Any]) -> Path:
    """The file of a minimum."""
    words = f"{settings['network']} {settings['data']} B{settings['batch_size']} seed{settings['seed']}"
    short = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return store / f"{re.sub('[^A-Za-z0-9]+', '-', words)[:80].strip('-')}-{short}.safetensors"
