"""Training: a Python loop around one compiled step, over data that lie on the device. It cannot be traced."""

import numbers
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, Key, PyTree, Shaped

from gengap import flat, program
from gengap import progress as shown

History = dict[str, np.ndarray]
"""Per epoch: "train_loss" and "train_accuracy" as means over the epoch's own batches (as Keras reports
them, and Fig. 2 shows them), "test_loss" and "test_accuracy" at its end, there "objective" too where there is a
target, and "batch_size" where that changes."""


class Optimizer(NamedTuple):
    """An optax transformation with a name, for records; see `named`."""

    init: Callable
    update: Callable
    name: str


def named(name: str, transformation: Any) -> Optimizer:
    """An optax transformation with a name.

    >>> named("lion(1e-4)", optax.lion(1e-4)).name
    'lion(1e-4)'
    """
    return Optimizer(transformation.init, flat.with_extras(transformation), name)


def adam(learning_rate: float = 1e-3, *, weight_decay: float = 0.0) -> Optimizer:
    """Adam with 0.9, 0.999 and 1e-8; with a weight decay AdamW."""
    own = optax.adamw(learning_rate, weight_decay=weight_decay) if weight_decay else optax.adam(learning_rate)
    return named(f"adam({_settings(learning_rate, weight_decay)})", own)


def sgd(learning_rate: float, *, momentum: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    """Stochastic gradient descent with heavy-ball momentum; weight decay is added to the gradient."""
    own = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum or None))
    return named(f"sgd({_settings(learning_rate, weight_decay)}, momentum={momentum})", own)


def adagrad(learning_rate: float, *, weight_decay: float = 0.0) -> Optimizer:
    """Adagrad; weight decay is added to the gradient."""
    own = optax.chain(optax.add_decayed_weights(weight_decay), optax.adagrad(learning_rate))
    return named(f"adagrad({_settings(learning_rate, weight_decay)})", own)


def lars(learning_rate: float, *, weight_decay: float = 0.0) -> Optimizer:
    """LARS, optax's: momentum 0.9 and a trust ratio for each array (You et al. 2017)."""
    own = optax.lars(learning_rate, weight_decay=weight_decay)
    return named(f"lars({learning_rate}, weight_decay={weight_decay})", own)


def lamb(learning_rate: float, *, weight_decay: float = 0.0) -> Optimizer:
    """LAMB, optax's: Adam with a trust ratio for each array (You et al. 2020)."""
    own = optax.lamb(learning_rate, weight_decay=weight_decay)
    return named(f"lamb({learning_rate}, weight_decay={weight_decay})", own)


def _settings(learning_rate: float, weight_decay: float) -> str:
    return f"{learning_rate}" + (f", weight_decay={weight_decay}" if weight_decay else "")


ADAM = adam()
"""The optimiser of the authors' code: learning rate 1e-3, no schedule."""


class TrainState(NamedTuple):
    """Where one training run stands.

    Attributes:
      params, opt_state: pytrees of the network and the optimiser.
      key: the run's own key; each epoch's permutation and each step's dropout are folded out of it.
      epoch, step: epochs and steps done.
      diverged_at: the first step whose loss was not finite; -1 while there is none.
    """

    params: PyTree
    opt_state: PyTree
    key: Key[Array, ""]
    epoch: Int[Array, ""]
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]


def start(params: PyTree, key: Key[Array, ""], *, optimizer: Any = ADAM) -> TrainState:
    """The state before the first step."""
    flat.check_key(key)

    def begin(params: PyTree, key: Array) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        return TrainState(params, optimizer.init(params), key, zero, zero, zero - 1)

    return program.compiled(begin)(params, key)


def count(batch_size: float, m: int) -> int:
    """A batch size in examples, from their number, 1 to `m`, or as a float up to 1.0, all of the `m` examples.

    >>> count(256, 60000), count(0.1, 60000), count(1.0, 60000), count(1, 60000)
    (256, 6000, 60000, 1)
    """
    batch_size = batch_size.item() if isinstance(batch_size, jax.Array) and batch_size.ndim == 0 else batch_size
    is_number = isinstance(batch_size, numbers.Real) and not isinstance(batch_size, bool)
    is_share = is_number and not isinstance(batch_size, numbers.Integral) and 0 < batch_size <= 1
    size = round(batch_size * m) if is_share else batch_size
    if not (is_number and 1 <= size <= m and size == int(size)):
        raise ValueError(
            f"batch size {batch_size} is neither a share, up to 1.0, that is an example or more, nor a whole "
            f"number from 1 to {m}, the number of training examples"
        )
    return int(size)


def has_plateaued(losses: Float[np.ndarray, " epochs"], patience: int, tolerance: float) -> bool:
    """Whether the loss has ceased to improve: the last `patience` epochs beat all before by `tolerance` at most.

    >>> has_plateaued(np.array([3.0, 1.0, 1.1, 0.9]), patience=2, tolerance=0.2)
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
    batch_size: float | Callable[[TrainState, History], int],
    optimizer: Any = ADAM,
    epochs: int = 100,
    patience: int | None = 10,
    tolerance: float = 1e-3,
    target: float | None = None,
    objective: Callable | None = None,
    evaluate: Callable | None = None,
    precision: str | None = None,
    history: History | None = None,
    on_epoch: Callable[[TrainState, History], None] | None = None,
    progress: str | None = None,
) -> tuple[TrainState, History]:
    r"""Minimise $\frac{1}{|B|}\sum_{i \in B} f_i(x)$ over batches B of one size until it ceases to improve.

    An epoch draws one permutation and takes ceil(m / batch size) steps; the last batch is filled up with the first
    examples of the same permutation, so that the size stays fixed and no example is left out. Training stops
    after `epochs` epochs, when the training loss ceases to improve (`has_plateaued`) or is not finite, or when the
    objective is below `target`.

    Args:
      loss: `(params, x, y, key) -> (scalar, (loss, accuracy))`, such as `methods.batch_loss(...)`: what is
        descended, and what history and the rules for the end see.
      state: from `start`, or one to go on from. It is not modified.
      x, y: the training set.
      batch_size: examples, or a share of the training set, see `count`; or the examples of the next epoch from the
        state and the history.
      optimizer: any optax transformation, as given to `start`; it may ask for the loss and for functions of it.
      epochs: the most epochs, counted from the first one ever.
      patience, tolerance: epochs and nats, see `has_plateaued`; with a patience of `None` it is not asked.
      target: of the objective, in nats; Jiang et al. (2020) stop at 0.01.
      objective: `params -> f`, the mean over the training set; asked for after each epoch where there is a target.
        The losses of an epoch's own batches would not do: with batch norm they say more of the batch than of x.
      evaluate: `params -> (test loss, test accuracy)`.
      precision: of matrix products in training, such as "float32" or "bfloat16"; by default what
        `jax.default_matmul_precision` says around the call, else "float32".
      history: that of `state`, when going on from one.
      on_epoch: called with the state and the history after each epoch; copy of the state what is to be kept.
      progress: what to call the line that shows how far it is; `None` shows none.

    Returns:
      The state at the end and the history.

    Raises:
      ValueError: a number out of its range.
    """
    how = {"batch_size": batch_size, "optimizer": optimizer, "epochs": epochs, "patience": patience}
    how |= {"tolerance": tolerance, "target": target, "evaluate": evaluate, "progress": progress}
    how |= {"objective": objective, "precision": precision}
    return fit_side_by_side(loss, [state], x, y, histories=[history or {}], on_epoch=on_epoch, **how)[0]


def fit_side_by_side(
    loss: Callable,
    states: Sequence[TrainState],
    x: Shaped[Array, "m ..."],
    y: Integer[Array, " m"],
    *,
    batch_size: float | Callable[[TrainState, History], int],
    optimizer: Any = ADAM,
    epochs: int = 100,
    patience: int | None = 10,
    tolerance: float = 1e-3,
    target: float | None = None,
    objective: Callable | None = None,
    evaluate: Callable | None = None,
    precision: str | None = None,
    histories: Sequence[History] = (),
    on_epoch: Callable[[TrainState, History], None] | None = None,
    progress: str | None = None,
) -> list[tuple[TrainState, History]]:
    """Several runs under one `vmap` of the step; one that stops leaves the others to go on. Arguments as of `fit`.

    Worth it on an accelerator that one run does not fill.
    """
    flat.check_untraced("training", states, x, y)
    if callable(batch_size) and len(states) > 1:
        raise ValueError("batch_size is a function; of runs side by side it must be a number")
    size = 0 if callable(batch_size) else count(batch_size, len(x))
    flat.check_counts({"epochs": epochs, "patience": 1 if patience is None else patience})
    flat.check_between({"tolerance": tolerance, "target": 0 if target is None else target}, 0)
    if target is not None and objective is None:
        raise ValueError(f"target is {target}; it needs the objective, params -> f, that is to fall below it")
    x, y = jnp.asarray(x), jnp.asarray(y)
    told = [dict(history) for history in histories] or [{} for _ in states]
    now = [_copy(state) for state in states]  # the steps below overwrite their argument
    done = [(int(state.epoch), int(state.diverged_at)) for state in now]
    several = partial(jax.vmap, in_axes=(0, 0, 0, None, None))
    step = training_step(loss, optimizer, precision), training_step(loss, optimizer, precision, several)
    measured = {"test": evaluate} | ({} if target is None else {"objective": objective})
    end_epoch = program.compiled(partial(_end_epoch, measured))
    end_epochs = program.compiled(jax.vmap(partial(_end_epoch, measured)))

    def goes_on(i: int) -> bool:
        epoch, diverged_at = done[i]
        losses, objectives = (told[i].get(name, np.empty(0)) for name in ("train_loss", "objective"))
        plateau = patience is not None and has_plateaued(losses, patience, tolerance)
        reached = target is not None and len(objectives) > 0 and objectives[-1] < target
        return not (epoch >= epochs or diverged_at >= 0 or plateau or reached)

    with shown.line(progress, epochs, "epoch", min(done)[0]) as line:
        while active := [i for i in range(len(now)) if goes_on(i)]:
            side_by_side = len(active) > 1
            size = batch_size(now[0], told[0]) if callable(batch_size) else size
            state = _stack([now[i] for i in active]) if side_by_side else now[active[0]]
            batches, sums = epoch_of(len(x), size, state.key, state.epoch)
            for _ in range(-(-len(x) // size)):
                state, sums = step[side_by_side](state, sums, batches, x, y)
            metrics = (end_epochs if side_by_side else end_epoch)(state.params, sums)
            state = state._replace(epoch=state.epoch + 1)
            metrics, ended, diverged = jax.device_get((metrics, state.epoch, state.diverged_at))
            for k, i in enumerate(active):
                now[i] = _row(state, k) if side_by_side else state
                values, epoch, diverged_at = (
                    _row((metrics, ended, diverged), k) if side_by_side else (metrics, ended, diverged)
                )
                done[i] = int(epoch), int(diverged_at)
                values |= {"batch_size": size} if callable(batch_size) else {}
                told[i] = {name: np.append(told[i].get(name, ()), value) for name, value in values.items()}
                if on_epoch is not None:
                    on_epoch(now[i], told[i])
            line.update(1, {name: float(np.mean(metrics[name])) for name in sorted(metrics, reverse=True)})
    return list(zip(now, told, strict=True))


def training_step(
    loss: Callable, optimizer: Any, precision: str | None, several: Callable = lambda f: f
) -> Callable:
    """`(state, sums, batches, x, y) -> (state, sums)`, one step; both are overwritten."""
    return program.compiled(several(partial(_step, loss, optimizer)), donate=(0, 1), matmul=precision)


@jax.jit
def _copy(tree: PyTree) -> Any:
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _row(tree: PyTree, i: int) -> Any:
    def row(a: Any) -> Any:
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            return a[i]
        # jax_debug_key_reuse takes a second slice of keys for a mistake.
        return jax.random.wrap_key_data(jax.random.key_data(a)[i], impl=jax.random.key_impl(a))

    return jax.tree.map(row, tree)


@partial(jax.jit, static_argnums=(0, 1))
def epoch_of(m: int, size: int, key: Array, epoch: Array) -> Any:
    """Of an epoch, or one of several runs: examples [steps, size] and keys of its steps; and zeros to sum in."""

    def begin(key: Array, epoch: Array) -> Any:
        order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch))
        steps = -(-m // size)
        order = jnp.resize(jax.random.permutation(order_key, m), (steps, size))
        return (order, jax.random.split(step_key, steps)), (jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

    return (jax.vmap(begin) if key.ndim else begin)(key, epoch)


def _step(
    loss: Callable, optimizer: Any, state: TrainState, sums: Any, batches: Any, x: Array, y: Array
) -> tuple[TrainState, Any]:
    """One step, and the number of steps, the losses and the accuracies of the epoch so far."""
    (at, losses, accuracies), (order, keys) = sums, batches
    batch = x[order[at]], y[order[at]], keys[at]
    (value, (reported, accuracy)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, *batch)
    extra = {"value": value, "grad": gradient, "value_fn": lambda params: loss(params, *batch)[0]}
    update = optimizer.update if isinstance(optimizer, Optimizer) else flat.with_extras(optimizer)
    updates, opt_state = update(gradient, state.opt_state, state.params, **extra)
    lost = (state.diverged_at < 0) & ~jnp.isfinite(value)
    new = state._replace(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        step=state.step + 1,
        diverged_at=jnp.where(lost, state.step, state.diverged_at),
    )
    return new, (at + 1, (losses + reported).astype(losses.dtype), (accuracies + accuracy).astype(losses.dtype))


def _end_epoch(measured: dict[str, Callable | None], params: PyTree, sums: Any) -> dict[str, Array]:
    at, losses, accuracies = sums
    steps = at.astype(losses.dtype)
    metrics = {"train_loss": losses / steps, "train_accuracy": accuracies / steps}
    if (evaluate := measured["test"]) is not None:
        metrics["test_loss"], metrics["test_accuracy"] = evaluate(params)
    if (objective := measured.get("objective")) is not None:
        metrics["objective"] = objective(params)
    return metrics
