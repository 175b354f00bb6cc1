"""Pairs of minima: one network trained from one starting point with small batches and with large ones."""

import time
from collections.abc import Callable
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
    if num_seeds < 1:
        raise ValueError(f"num_seeds is {num_seeds}; it must be at least 1")
    for batch_size in (small_batch, large_batch):
        train.count(batch_size, len(ds.x_train))
    seeds = first_seed + jnp.arange(num_seeds)
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.fold_in(key, seed)))(seeds)
    example = objective.scale(ds.x_train[:2])
    x0 = _init(model.init)(keys[:, 0], example)
    loss = objective.batch_loss(model.apply, model.apply_train, clip=clip)
    evaluate = objective.loss_and_accuracy(model.apply, ds.x_test, ds.y_test, chunk=chunk, clip=clip)

    def descend(method: str, batch_size: float) -> Minimum:
        state = train.start(x0, keys[:, 1], optimizer=optimizer)
        checkpoint = _Checkpoint(checkpoints and checkpoints / f"{method}-{first_seed}.npz")
        state, history = checkpoint.load(state)
        state, history = train.fit(
            loss,
            state,
            ds.x_train,
            ds.y_train,
            batch_size=batch_size,
            optimizer=optimizer,
            epochs=epochs,
            patience=patience,
            tolerance=tolerance,
            target=target,
            evaluate=evaluate,
            history=history,
            on_epoch=checkpoint.save_sometimes,
            progress=progress and f"{progress} {method}",
        )
        checkpoint.save(state, history)
        return Minimum(
            params=state.params,
            batch_size=train.count(batch_size, len(ds.x_train)),
            epochs=np.asarray(state.epoch),
            steps=np.asarray(state.step),
            diverged_at=np.asarray(state.diverged_at),
            distance=np.asarray(_distances(state.params, x0)),
            history=history,
        )

    return descend("SB", small_batch), descend("LB", large_batch)


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
