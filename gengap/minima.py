"""Pairs of minima: one network trained from one starting point with small batches and with large ones."""

import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from gengap import objective, records, train
from gengap.data import Dataset
from gengap.models import Model

_SECONDS_BETWEEN_CHECKPOINTS = 20.0


class Minimum(NamedTuple):
    """Where training ended, for one or more seeds.

    Attributes:
      params: the parameters, with a leading axis of seeds.
      batch_size: examples.
      epochs, steps: done by each seed.
      diverged_at: the step at which the loss of a seed was no longer finite; -1 where it always was.
      distance: from the starting point, Euclidean.
      history: loss and accuracy per epoch, see `train.History`.
    """

    params: PyTree[Float[Array, "seeds ..."]]
    batch_size: int
    epochs: Int[np.ndarray, " seeds"]
    steps: Int[np.ndarray, " seeds"]
    diverged_at: Int[np.ndarray, " seeds"]
    distance: Float[np.ndarray, " seeds"]
    history: train.History


def find_pair(
    model: Model,
    ds: Dataset,
    key: Key[Array, ""],
    *,
    small_batch: float = 256,
    large_batch: float = 0.1,
    num_seeds: int = 5,
    first_seed: int = 0,
    optimizer: optax.GradientTransformation = train.ADAM,
    epochs: int = 100,
    patience: int | None = 10,
    tolerance: float = 1e-3,
    target: float | None = None,
    clip: float | None = None,
    chunk: int = 5000,
    checkpoints: Path | None = None,
    progress: str | None = None,
) -> tuple[Minimum, Minimum]:
    """Train small-batch (SB) and large-batch (LB) minima, both from the same starting point in each seed.

    Args:
      model: the network.
      ds: the data set.
      key: of everything random; each seed folds its number into it, so that a seed gives the same minima
        whichever others are trained beside it.
      small_batch, large_batch: in examples, or as a fraction of the training set.
      num_seeds: starting points.
      first_seed: the number of the first of them.
      optimizer: any optax transformation, the same for both.
      epochs, patience, tolerance, target: when training stops, see `train.fit`.
      clip: see `objective.cross_entropy`.
      chunk: examples at once when the test set is evaluated.
      checkpoints: a directory to which both runs are saved as they go, and from which they go on.
      progress: what to call the progress bars; `None` shows none.

    Returns:
      The SB and the LB minima.
    """
    for batch_size in (small_batch, large_batch):
        train.count(batch_size, len(ds.x_train))
    small, large = (
        find(
            model,
            ds,
            key,
            batch_size,
            num_seeds=num_seeds,
            first_seed=first_seed,
            optimizer=optimizer,
            epochs=epochs,
            patience=patience,
            tolerance=tolerance,
            target=target,
            clip=clip,
            chunk=chunk,
            checkpoint=checkpoints and checkpoints / f"{method}-{first_seed}.npz",
            progress=progress and f"{progress} {method}",
        )
        for method, batch_size in (("SB", small_batch), ("LB", large_batch))
    )
    return small, large


def find(
    model: Model,
    ds: Dataset,
    key: Key[Array, ""],
    batch_size: float,
    *,
    num_seeds: int = 5,
    first_seed: int = 0,
    start: PyTree[Float[Array, "seeds ..."]] | None = None,
    optimizer: optax.GradientTransformation = train.ADAM,
    epochs: int = 100,
    patience: int | None = 10,
    tolerance: float = 1e-3,
    target: float | None = None,
    clip: float | None = None,
    chunk: int = 5000,
    checkpoint: Path | None = None,
    on_epoch: Callable[[train.TrainState, train.History], None] | None = None,
    progress: str | None = None,
) -> Minimum:
    """Train to a minimum with one batch size; arguments as of `find_pair`, but for these.

    Args:
      batch_size: in examples, or as a fraction of the training set.
      start: where to begin, in place of each seed's own starting point; with a leading axis of seeds.
      checkpoint: a file to which the run is saved as it goes, and from which it goes on.
      on_epoch: called with the state and the history after each epoch.
    """
    if num_seeds < 1:
        raise ValueError(f"num_seeds is {num_seeds}; it must be at least 1")
    x0 = starting_points(model, ds, key, num_seeds=num_seeds, first_seed=first_seed) if start is None else start
    state = train.start(x0, _keys(key, num_seeds, first_seed)[:, 1], optimizer=optimizer)
    kept = _Checkpoint(checkpoint)
    state, history = kept.load(state)

    def after_epoch(state: train.TrainState, history: train.History) -> None:
        if on_epoch is not None:
            on_epoch(state, history)
        kept.save_sometimes(state, history)

    state, history = train.fit(
        objective.batch_loss(model.apply, model.apply_train, clip=clip),
        state,
        ds.x_train,
        ds.y_train,
        batch_size=batch_size,
        optimizer=optimizer,
        epochs=epochs,
        patience=patience,
        tolerance=tolerance,
        target=target,
        evaluate=objective.loss_and_accuracy(model.apply, ds.x_test, ds.y_test, chunk=chunk, clip=clip),
        history=history,
        on_epoch=after_epoch,
        progress=progress,
    )
    kept.save(state, history)
    return Minimum(
        params=state.params,
        batch_size=train.count(batch_size, len(ds.x_train)),
        epochs=np.asarray(state.epoch),
        steps=np.asarray(state.step),
        diverged_at=np.asarray(state.diverged_at),
        distance=np.asarray(_distances(state.params, x0)),
        history=history,
    )


class Iterates:
    """The parameters after some of the epochs of a training run: pass `keep` as `on_epoch` to `find`.

    They are kept in memory, or as files in a directory, where those of an earlier run that was stopped are
    found again.

    Args:
      epochs: which to keep.
      directory: where to; `None` keeps them in memory.
    """

    def __init__(self, epochs: Iterable[int], directory: Path | None = None) -> None:
        self.epochs, self.directory = set(epochs), directory
        self.memory: dict[int, PyTree] = {}

    def keep(self, state: train.TrainState, history: train.History) -> None:
        """Keep the parameters if this epoch is one of those asked for."""
        epoch = int(state.epoch.max())
        if epoch not in self.epochs:
            return
        if self.directory is None:
            self.memory[epoch] = jax.tree.map(jnp.copy, state.params)  # the next epoch overwrites its argument
        else:
            records.save(self.directory / f"{epoch}.npz", state.params)

    def at(self, epoch: int, like: PyTree) -> Any:
        """The parameters after an epoch, with a leading axis of seeds.

        Raises:
          ValueError: that epoch was not reached or not asked for.
        """
        if self.directory is None:
            if epoch not in self.memory:
                raise ValueError(f"epoch is {epoch}; there are {sorted(self.memory)}")
            return self.memory[epoch]
        return records.load(self.directory / f"{epoch}.npz", like)


def starting_points(
    model: Model, ds: Dataset, key: Key[Array, ""], *, num_seeds: int = 1, first_seed: int = 0
) -> Any:
    """The parameters that each seed's training begins at, with a leading axis of seeds."""
    return _init(model.init)(_keys(key, num_seeds, first_seed)[:, 0], objective.scale(ds.x_train[:2]))


def _keys(key: Key[Array, ""], num_seeds: int, first_seed: int) -> Key[Array, "seeds 2"]:
    """For each seed the key of its starting point and that of its batches."""
    seeds = first_seed + jnp.arange(num_seeds)
    return jax.vmap(lambda seed: jax.random.split(jax.random.fold_in(key, seed)))(seeds)


@lru_cache(maxsize=64)
def _init(init: Callable) -> Callable:
    return jax.jit(jax.vmap(init, in_axes=(0, None)))


@jax.jit
@jax.vmap
def _distances(a: PyTree, b: PyTree) -> Float[Array, ""]:
    return optax.tree.norm(jax.tree.map(jnp.subtract, a, b))


class _Checkpoint:
    """A training run on disk: its state and its history."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.saved = path, time.monotonic()

    def save(self, state: train.TrainState, history: train.History) -> None:
        if self.path is not None:
            records.save(self.path, {"state": state, "history": history})
            self.saved = time.monotonic()

    def save_sometimes(self, state: train.TrainState, history: train.History) -> None:
        if time.monotonic() - self.saved > _SECONDS_BETWEEN_CHECKPOINTS:
            self.save(state, history)

    def load(self, like: train.TrainState) -> tuple[Any, Any]:
        if self.path is None or not self.path.exists():
            return like, None
        state = records.load(self.path, {"state": like})["state"]
        blank = np.zeros((len(state.epoch), int(state.epoch.max())))
        names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        history = records.load(self.path, {"history": dict.fromkeys(names, blank)})["history"]
        return state, {name: np.asarray(values) for name, values in history.items()}
