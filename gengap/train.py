"""Training: epochs compiled as one loop over a data set that lives on the device, seeds side by side."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, Key, PyTree, Shaped
from tqdm import tqdm

from gengap import loops

ADAM = optax.adam(1e-3)
"""The optimiser of the authors' code: learning rate 1e-3, 0.9, 0.999, 1e-8, no schedule."""


class TrainState(NamedTuple):
    """Where one training run stands (with a leading axis: several runs).

    Attributes:
      params, opt_state: pytrees of the network and the optimiser.
      key: the run's own key; each epoch's permutation and each step's dropout are folded out of it.
      epoch, step: epochs and steps done.
      diverged_at: the first step whose loss was not finite; -1 while there is none.
    """

    params: PyTree
    opt_state: PyTree
    key: Key[Array, "*seeds"]
    epoch: Int[Array, "*seeds"]
    step: Int[Array, "*seeds"]
    diverged_at: Int[Array, "*seeds"]


Metrics = dict[str, Array]
History = dict[str, Float[np.ndarray, "seeds _"]]
"""Per epoch: "train_loss" and "train_accuracy" as means over the epoch's own batches (as Keras reports
them, and Fig. 2 shows them), "test_loss" and "test_accuracy" at its end. NaN after a run has stopped."""


def start(
    params: PyTree, key: Key[Array, "seeds"], *, optimizer: optax.GradientTransformation = ADAM
) -> TrainState:
    """The state before the first step, for parameters with a leading axis of seeds."""
    seeds = key.shape[0]
    zeros = jnp.zeros(seeds, jnp.int32)
    return TrainState(params, jax.vmap(optimizer.init)(params), key, zeros, zeros, zeros - 1)


def count(batch_size: float, m: int) -> int:
    """A batch size in examples, from a count or a fraction of the `m` examples.

    Raises:
      ValueError: not a whole number from 1 to `m`, nor a fraction between 0 and 1.

    >>> count(256, 60000), count(0.1, 60000)
    (256, 6000)
    """
    size = round(batch_size * m) if 0 < batch_size < 1 else batch_size
    if not (1 <= size <= m and size == int(size)):
        raise ValueError(
            f"batch size {batch_size} is neither a fraction between 0 and 1 nor a whole number from 1 to {m}, "
            "the number of training examples"
        )
    return int(size)


def ceased(losses: Float[np.ndarray, " epochs"], patience: int, tolerance: float) -> bool:
    """Whether the loss has ceased to improve: the last `patience` epochs beat all before by `tolerance` at most.

    >>> ceased(np.array([3.0, 1.0, 1.1, 0.9]), patience=2, tolerance=0.2)
    True
    """
    if len(losses) <= patience:
        return False
    return bool(losses[-patience:].min() >= losses[:-patience].min() - tolerance)


def fit(
    loss: Callable,
    state: TrainState,
    x: Shaped[Array, "m ..."],
    y: Integer[Array, " m"],
    *,
    batch_size: float,
    optimizer: optax.GradientTransformation = ADAM,
    epochs: int = 100,
    patience: int | None = 10,
    tolerance: float = 1e-3,
    target: float | None = None,
    evaluate: Callable | None = None,
    history: History | None = None,
    on_epoch: Callable[[TrainState, History], None] | None = None,
    seeds_at_once: int | None = None,
    progress: str | None = None,
) -> tuple[TrainState, History]:
    r"""Minimise $\frac{1}{|B|}\sum_{i \in B} f_i(x)$ over batches B of one size until it ceases to improve.

    An epoch draws one permutation and takes ceil(m / batch size) steps; the last batch is filled up with
    the first examples of the same permutation, so that the size stays fixed and no example is left out.
    Every seed stops by itself: after `epochs` epochs, when its training loss ceases to improve (`ceased`)
    or reaches `target`, or when it diverges. One that diverges ends with `diverged_at` set and leaves the
    others alone.

    Args:
      loss: `(params, x, y, key) -> (scalar, accuracy)`, such as `objective.batch_loss(...)`.
      state: from `start`, or one to go on from; a leading axis of seeds. It is not modified.
      x, y: the training set.
      batch_size: examples, or a fraction of the training set.
      optimizer: any optax transformation; the same object as given to `start`.
      epochs: the most epochs, counted from the first one ever.
      patience: epochs; `None` runs all `epochs`.
      tolerance: nats.
      target: stop after an epoch with a training loss below it, in nats, as Jiang et al. (2020) do at 0.01.
      evaluate: `params -> (test loss, test accuracy)`, of one seed.
      history: that of `state`, when going on from one.
      on_epoch: called with the state and the history after each epoch.
      seeds_at_once: seeds under one `vmap`, the groups one after another. By default all on an accelerator,
        and one where the network has convolutions (batched kernels make slow grouped ones) or on a CPU.
      progress: what to call the progress bar; `None` shows none.

    Returns:
      The state at the end and the history.
    """
    size = count(batch_size, len(x))
    if epochs < 1 or (patience is not None and patience < 1):
        raise ValueError(f"epochs is {epochs} and patience is {patience}; each must be at least 1")
    history = {name: np.array(values) for name, values in (history or {}).items()}
    state = jax.tree.map(jnp.copy, state)  # the epochs below overwrite their argument
    probe = (jnp.arange(size), state.key[0])
    step = partial(_step, loss, optimizer, x, y)
    convolution = loops.has_convolution(step, loops.row(state, 0), probe)
    on_cpu = jax.default_backend() == "cpu"
    if seeds_at_once is None:
        seeds_at_once = 1 if convolution or on_cpu else len(state.key)
    run = partial(_compiled, loss, optimizer, size, seeds_at_once)
    if convolution and on_cpu:
        run = partial(_stepwise, loss, optimizer, size)
    evaluate = evaluate if evaluate is None else loops.as_pytree(evaluate)
    done = int(state.epoch.max())
    with tqdm(total=epochs, initial=done, desc=progress, disable=progress is None, leave=False) as bar:
        active = _active(state, history, epochs, patience, tolerance, target)
        while active.any():
            columns = np.asarray(state.epoch)
            state, metrics = run(state, active, evaluate, x, y)
            history = {
                name: _write(history.get(name), values, active, columns) for name, values in metrics.items()
            }
            if on_epoch is not None:
                on_epoch(state, history)
            latest = {name: f"{np.mean(np.asarray(values)[active]):.4g}" for name, values in metrics.items()}
            bar.set_postfix(latest, refresh=False)
            bar.update()
            active = _active(state, history, epochs, patience, tolerance, target)
    return state, history


def _active(
    state: TrainState,
    history: History,
    epochs: int,
    patience: int | None,
    tolerance: float,
    target: float | None,
) -> np.ndarray:
    done, diverged = np.asarray(state.epoch), np.asarray(state.diverged_at) >= 0
    stopped = (done >= epochs) | diverged
    for i, losses in enumerate(history.get("train_loss", [])):
        stopped[i] |= patience is not None and ceased(losses[: done[i]], patience, tolerance)
        stopped[i] |= target is not None and losses[done[i] - 1] < target
    return ~stopped


def _write(rows: np.ndarray | None, values: Array, active: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A history with the values of the active seeds in these columns; NaN where nothing is known."""
    seeds, old = len(active), 0 if rows is None else rows.shape[1]
    new = np.full((seeds, max(old, int(columns[active].max()) + 1)), np.nan)
    if rows is not None:
        new[:, :old] = rows
    new[active, columns[active]] = np.asarray(values)[active]
    return new


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def _compiled(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    size: int,
    at_once: int,
    state: TrainState,
    active: Array,
    evaluate: Callable | None,
    x: Array,
    y: Array,
) -> tuple[TrainState, Metrics]:
    """One epoch of every active seed as one program."""
    epoch = partial(_epoch, loss, optimizer, size, evaluate, x, y)
    like = jax.eval_shape(epoch, loops.row(state, 0))[1]
    idle = jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), like)

    def one(args: tuple[TrainState, Array]) -> tuple[TrainState, Metrics]:
        return jax.lax.cond(args[1], epoch, lambda state: (state, idle), args[0])

    return loops.each(one, (state, active), at_once=at_once)


def _stepwise(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    size: int,
    state: TrainState,
    active: np.ndarray,
    evaluate: Callable | None,
    x: Array,
    y: Array,
) -> tuple[TrainState, Metrics]:
    """The same with a compiled step and its loops in Python."""
    states = [loops.row(state, i) for i in range(len(active))]
    metrics: dict[int, Metrics] = {}
    for i in map(int, np.flatnonzero(active)):
        states[i], metrics[i] = _epoch(loss, optimizer, size, evaluate, x, y, states[i])
    idle = jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), next(iter(metrics.values())))
    return loops.stack(states), loops.stack([metrics.get(i, idle) for i in range(len(active))])


def _epoch(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    size: int,
    evaluate: Callable | None,
    x: Array,
    y: Array,
    state: TrainState,
) -> tuple[TrainState, Metrics]:
    """One epoch of one seed."""
    m = len(x)
    order_key, step_key = jax.random.split(jax.random.fold_in(state.key, state.epoch))
    steps = -(-m // size)
    order = jax.random.permutation(order_key, m)
    batches = jnp.resize(order, (steps, size))
    step = partial(_step, loss, optimizer, x, y)
    state, (losses, accuracies) = loops.scan(step, state, (batches, jax.random.split(step_key, steps)))
    metrics = {"train_loss": losses.mean(), "train_accuracy": accuracies.mean()}
    if evaluate is not None:
        metrics["test_loss"], metrics["test_accuracy"] = evaluate(state.params)
    return state._replace(epoch=state.epoch + 1), metrics


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _step(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    x: Array,
    y: Array,
    state: TrainState,
    batch: tuple[Int[Array, " b"], Key[Array, ""]],
) -> tuple[TrainState, tuple[Float[Array, ""], Float[Array, ""]]]:
    indices, key = batch
    gradient_of = jax.value_and_grad(loss, has_aux=True)
    (value, accuracy), gradient = gradient_of(state.params, x[indices], y[indices], key)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    lost = (state.diverged_at < 0) & ~jnp.isfinite(value)
    return TrainState(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        key=state.key,
        epoch=state.epoch,
        step=state.step + 1,
        diverged_at=jnp.where(lost, state.step, state.diverged_at),
    ), (value, accuracy)
