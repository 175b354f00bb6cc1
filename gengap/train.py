"""Training: a Python loop around one compiled step, with the data on the device. It cannot be traced."""

import numbers
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, Key, PyTree, Shaped

from gengap import checks, flat, objective, placement, program, words
from gengap import progress as shown

__all__ = [
    "ADAM", "GradientNoise", "History", "Optimizer", "TrainState", "adagrad", "adam", "batch_loss", "count",
    "epoch_of", "examples", "fit", "gradient_noise", "growing", "has_plateaued", "lamb", "lars", "named",
    "parameters", "sgd", "start", "training_step",
]  # fmt: skip

History = dict[str, np.ndarray]
"""Per epoch: "train_loss" and "train_accuracy", the means over the epoch's batches (as Keras reports them and
Fig. 2 shows them); "test_loss" and "test_accuracy" at its end; "objective" at its end, if there is a target; and
"batch_size", if that changes."""


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
    """Adam with betas 0.9 and 0.999 and epsilon 1e-8; AdamW if there is weight decay."""
    rule = optax.adamw(learning_rate, weight_decay=weight_decay) if weight_decay else optax.adam(learning_rate)
    return named(f"adam({_settings(learning_rate, weight_decay)})", rule)


def sgd(learning_rate: float, *, momentum: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    """Stochastic gradient descent with heavy-ball momentum; weight decay is added to the gradient."""
    decay, rule = optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum or None)
    return named(f"sgd({_settings(learning_rate, weight_decay)}, momentum={momentum})", optax.chain(decay, rule))


def adagrad(learning_rate: float, *, weight_decay: float = 0.0) -> Optimizer:
    """Adagrad; weight decay is added to the gradient."""
    rule = optax.chain(optax.add_decayed_weights(weight_decay), optax.adagrad(learning_rate))
    return named(f"adagrad({_settings(learning_rate, weight_decay)})", rule)


def lars(learning_rate: float, *, weight_decay: float = 0.0) -> Optimizer:
    """LARS as in optax: momentum 0.9 and a trust ratio for each array (You et al. 2017)."""
    name = f"lars({learning_rate}, weight_decay={weight_decay})"
    return named(name, optax.lars(learning_rate, weight_decay=weight_decay))


def lamb(learning_rate: float, *, weight_decay: float = 0.0) -> Optimizer:
    """LAMB as in optax: Adam with a trust ratio for each array (You et al. 2020)."""
    name = f"lamb({learning_rate}, weight_decay={weight_decay})"
    return named(name, optax.lamb(learning_rate, weight_decay=weight_decay))


def _settings(learning_rate: float, weight_decay: float) -> str:
    return f"{learning_rate}" + (f", weight_decay={weight_decay}" if weight_decay else "")


ADAM = adam()
"""The optimiser of the authors' code: learning rate 1e-3, no schedule."""


class TrainState(NamedTuple):
    """The state of one training run.

    Attributes:
      params, opt_state: pytrees of the network and the optimiser.
      key: the run's own key; each epoch's permutation and each step's dropout are derived from it.
      epoch, step: epochs and steps done.
      diverged_at: the first step whose loss was not finite; -1 if there is none.
    """

    params: PyTree
    opt_state: PyTree
    key: Key[Array, ""]
    epoch: Int[Array, ""]
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]

    def __repr__(self) -> str:
        return words.in_one_line(self)


def start(params: PyTree, key: Key[Array, ""], *, optimizer: Any = ADAM) -> TrainState:
    """The state before the first step."""
    checks.check_key(key)

    def begin(params: PyTree, key: Array) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        return TrainState(params, optimizer.init(params), key, zero, zero, zero - 1)

    return program.compiled(begin)(params, key)


def count(batch_size: float, m: int) -> int:
    """A batch size in examples, given as a number from 1 to `m` or, as a float up to 1.0, as a share of `m`.

    >>> count(256, 60000), count(0.1, 60000), count(1.0, 60000), count(1, 60000)
    (256, 6000, 60000, 1)
    """
    batch_size = batch_size.item() if isinstance(batch_size, jax.Array) and batch_size.ndim == 0 else batch_size
    is_number = isinstance(batch_size, numbers.Real) and not isinstance(batch_size, bool)
    is_share = is_number and not isinstance(batch_size, numbers.Integral) and 0 < batch_size <= 1
    size = round(batch_size * m) if is_share else batch_size
    if not (is_number and 1 <= size <= m and size == int(size)):
        raise ValueError(
            f"batch size {batch_size} is neither a share, up to 1.0, of at least one example, nor a whole "
            f"number from 1 to {m}, the number of training examples"
        )
    return int(size)


def has_plateaued(losses: Float[np.ndarray, " epochs"], patience: int, tolerance: float) -> bool:
    """Whether the loss has stopped improving: the last `patience` epochs beat all before by at most `tolerance`.

    >>> has_plateaued(np.array([3.0, 1.0, 1.1, 0.9]), patience=2, tolerance=0.2)
    True
    """
    return len(losses) > patience and bool(losses[-patience:].min() >= losses[:-patience].min() - tolerance)


def fit(
    loss: Callable,
    state: TrainState,
    x: Shaped[Array, "m ..."],
    y: Shaped[Array, "m ..."],
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
    progress: str | None = "auto",
) -> tuple[TrainState, History]:
    r"""Minimise $\frac{1}{|B|}\sum_{i \in B} f_i(x)$ over batches B of one size until it stops improving.

    An epoch draws one permutation and takes ceil(m / batch size) steps; the last batch is filled up with the first
    examples of the same permutation, so the size stays fixed and no example is left out. Training stops after
    `epochs` epochs, or when the training loss stops improving (`has_plateaued`) or is not finite, or when the
    objective is below `target`.

    Args:
      loss: `(params, x, y, key) -> (scalar, (loss, accuracy))`, such as `batch_loss(...)`: the scalar is
        minimised; the history and the stopping rules use the pair.
      state: from `start`, or a later one to continue from. It is not modified.
      x, y: the training set.
      batch_size: examples, or a share of the training set, see `count`; or `(state, history) -> examples` of the
        next epoch.
      optimizer: any optax transformation, as given to `start`; it may ask for the loss and for functions of it.
      epochs: the most epochs, counted from the very first one.
      patience, tolerance: epochs and nats, see `has_plateaued`; a patience of `None` turns this rule off.
      target: value of the objective at which to stop, in nats; Jiang et al. (2020) stop at 0.01.
      objective: `params -> f`, the mean over the training set; computed after each epoch if there is a target.
        The batch losses of an epoch cannot replace it: with batch norm they depend more on the batch than on x.
      evaluate: `params -> (test loss, test accuracy)`.
      precision: precision of matrix products in training, such as "float32" or "bfloat16"; by default that of
        `jax.default_matmul_precision` around the call, else "float32".
      history: the history of `state`, to continue from it.
      on_epoch: called with the state and the history after each epoch; copy what you keep of the state.
      progress: a name for the progress bar; `None` shows none. "auto" shows one on a terminal, after two seconds.

    Returns:
      The state at the end and the history.

    Raises:
      ValueError: a number is out of range.
    """
    checks.check_untraced("training", state, x, y)
    size = 0 if callable(batch_size) else count(batch_size, len(x))
    _check_stops(epochs, patience, tolerance, target, objective)
    x, y, state = placement.automatic((jnp.asarray(x), jnp.asarray(y), state))
    state = _copy(state)  # the steps below overwrite it
    history, epoch, diverged_at = dict(history or {}), int(state.epoch), int(state.diverged_at)
    step = training_step(loss, optimizer, precision, placement.rows_of((x, y)))
    end_epoch = program.compiled(partial(_end_epoch, evaluate, None if target is None else objective))
    with shown.line(shown.named(progress, "training"), epochs, "epoch", epoch) as line:
        while epoch < epochs and diverged_at < 0 and not _has_converged(history, patience, tolerance, target):
            size = batch_size(state, history) if callable(batch_size) else size
            batches, sums = epoch_of(len(x), size, state.key, state.epoch)
            for _ in range(-(-len(x) // size)):
                state, sums = step(state, sums, batches, x, y)
            metrics = end_epoch(state.params, sums)
            state = state._replace(epoch=state.epoch + 1)
            metrics, epoch, diverged_at = jax.device_get((metrics, state.epoch, state.diverged_at))
            metrics |= {"batch_size": size} if callable(batch_size) else {}
            history = {name: np.append(history.get(name, ()), value) for name, value in metrics.items()}
            if on_epoch is not None:
                on_epoch(state, history)
            at_most = _may_end_early(history, int(epochs - epoch), patience, tolerance, target)
            line.update(1, {n: float(metrics[n]) for n in sorted(metrics, reverse=True)}, at_most=at_most)
    return state, history


def training_step(loss: Callable, optimizer: Any, precision: str | None, rows: Any = None) -> Callable:
    """`(state, sums, batches, x, y) -> (state, sums)`: a step that overwrites both; `rows` spreads the batch."""
    update = optimizer.update if isinstance(optimizer, Optimizer) else flat.with_extras(optimizer)

    def step(state: TrainState, sums: Any, batches: Any, x: Array, y: Array) -> tuple[TrainState, Any]:
        (at, losses, accuracies), (order, keys) = sums, batches  # steps, losses and accuracies so far
        batch = *placement.spread((x[order[at]], y[order[at]]), rows), keys[at]
        (value, (reported, accuracy)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, *batch)
        extra = {"value": value, "grad": gradient, "value_fn": lambda params: loss(params, *batch)[0]}
        updates, opt_state = update(gradient, state.opt_state, state.params, **extra)
        diverges = (state.diverged_at < 0) & ~jnp.isfinite(value)
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            step=state.step + 1,
            diverged_at=jnp.where(diverges, state.step, state.diverged_at),
        )
        sums = at + 1, (losses + reported).astype(losses.dtype), (accuracies + accuracy).astype(losses.dtype)
        return state, sums

    return program.compiled(step, donate=(0, 1), matmul=precision)


@partial(jax.jit, static_argnums=(0, 1))
def epoch_of(m: int, size: int, key: Array, epoch: Array) -> Any:
    """The examples [steps, size] and the keys of the steps of an epoch; and zeros to start the sums."""
    order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch))
    steps = -(-m // size)
    order = jnp.resize(jax.random.permutation(order_key, m), (steps, size))
    return (order, jax.random.split(step_key, steps)), (jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))


def examples(
    method: Any, apply: Callable, apply_train: Callable | None = None, *, clip: Any = None, loss: Any = None
) -> Callable:
    """The loss as a method changes it: `(params, x, y, key) -> (losses [b], outputs)` of a batch x.

    `apply_train`, `(params, x, key) -> outputs`, replaces `apply` if the network has dropout; `loss`,
    `(outputs, y) -> [b]`, replaces cross entropy.
    """
    network = method.network(apply_train or (lambda params, x, key: apply(params, x)))
    of_outputs = _loss_of_outputs(loss, clip)

    def plain(params: PyTree, x: Array, y: Array, key: Key[Array, ""]) -> tuple[Array, Array]:
        outputs = network(params, x, jax.random.clone(key))  # the same dropout for a batch
        return of_outputs(outputs, y), outputs

    changed = method.loss(plain)
    return lambda params, x, y, key: changed(params, method.batch(objective.scale(x), key), y, key)


def batch_loss(
    method: Any, apply: Callable, apply_train: Callable | None = None, *, clip: Any = None, loss: Any = None
) -> Callable:
    """For `fit`: `(params, x, y, key) -> (mean loss to descend, (plain loss, accuracy) to report)`.

    Arguments as in `examples`; with a `loss` the accuracy is NaN.
    """
    losses_and_outputs = examples(method, apply, apply_train, clip=clip, loss=loss)
    of_outputs = _loss_of_outputs(loss, clip)

    def mean(params: PyTree, x: Array, y: Array, key: Key[Array, ""]) -> tuple[Array, tuple[Array, Array]]:
        losses, outputs = losses_and_outputs(params, x, y, key)
        right = jnp.full((), jnp.nan) if loss else objective.accuracy(outputs, y).mean()
        return losses.mean(), (of_outputs(outputs, y).mean(), right)

    return mean


def _loss_of_outputs(loss: Callable | None, clip: float | None) -> Callable:
    """`(outputs, y) -> [b]`: the network's own loss, or cross entropy."""
    if loss is not None:
        return objective.check_no_clip(loss, clip)

    def cross_entropy(logits: Array, y: Array) -> Array:
        return objective.cross_entropy(objective.check_logits(logits, len(y)), y, clip=clip)

    return cross_entropy


def parameters(state: TrainState) -> Any:
    """The parameters that a run has reached: the average of the iterates if it keeps one."""
    return optax.tree.get(state.opt_state, "weight_average", state.params)


class GradientNoise(NamedTuple):
    """For the gradient g of one batch: the trace of its covariance, Sigma / B, and |g|^2."""

    variance: Array
    square: Array


def gradient_noise(
    examples: Callable,
    params: PyTree,
    x: Shaped[Array, "b ..."],
    y: Integer[Array, " b"],
    key: Key[Array, ""],
    *,
    draws: int = 16,
) -> GradientNoise:
    r"""How noisy the gradient of a batch is, from one forward pass and `draws` + 1 backward passes.

    $\frac1B \sum_i (z_i - \bar z) \nabla f_i$ with $z_i \sim N(0, 1)$ has the mean square
    $\frac{B-1}{B} \mathrm{tr}\, \Sigma / B$, with $\Sigma$ the unbiased covariance of the examples.

    Args:
      examples: `(params, x, y, key) -> (losses [b], logits)`, as from `examples`.
      params: the point.
      x, y: the batch, of two examples or more.
      key: random key for z and the network.
      draws: sets of z; the variance has a relative error of about sqrt(2 / draws) if one direction dominates.
    """
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} example; the noise of a gradient needs two or more")

    def noise(params: PyTree, x: Array, y: Array, key: Array) -> GradientNoise:
        losses, pull = jax.vjp(lambda p: examples(p, x, y, key)[0], params)
        z = jax.random.normal(flat.key_for(key, "gradient_noise"), (draws, len(x)), losses.dtype)

        def square(weights: Array) -> Array:
            return optax.tree.norm(pull(weights / len(x))[0], squared=True)

        spread = jax.vmap(square)(z - z.mean(1, keepdims=True))
        return GradientNoise(spread.mean() * len(x) / (len(x) - 1), square(jnp.ones_like(losses)))

    return program.compiled(noise)(params, x, y, key)


def growing(grow: Callable, first: int, examples: Callable, x: Array, y: Array) -> Callable:
    """For `fit`: `(state, history) -> batch size` of an epoch; it begins at `first`, and `grow` changes it."""

    def batch_size(state: TrainState, history: History) -> int:
        if "batch_size" not in history:
            return first
        done, last = len(history["batch_size"]), int(history["batch_size"][-1])

        def noise() -> GradientNoise:
            key = flat.key_for(jax.random.fold_in(state.key, state.epoch), "grow")
            order_key, noise_key = jax.random.split(key)
            batch = jax.random.permutation(order_key, len(x))[:last]
            return gradient_noise(examples, state.params, x[batch], y[batch], noise_key)

        return min(grow(last, done, noise), len(x))

    return batch_size


_copy = jax.jit(partial(jax.tree.map, jnp.copy))


def _end_epoch(evaluate: Any, objective: Any, params: PyTree, sums: Any) -> dict[str, Array]:
    at, losses, accuracies = sums
    steps = at.astype(losses.dtype)
    metrics = {"train_loss": losses / steps, "train_accuracy": accuracies / steps}
    if evaluate is not None:
        metrics["test_loss"], metrics["test_accuracy"] = evaluate(params)
    if objective is not None:
        metrics["objective"] = objective(params)
    return metrics


def _check_stops(epochs: Any, patience: Any, tolerance: Any, target: Any, objective: Any) -> None:
    checks.check_counts({"epochs": epochs, "patience": 1 if patience is None else patience})
    checks.check_between({"tolerance": tolerance, "target": 0 if target is None else target}, 0)
    if target is not None and objective is None:
        raise ValueError(f"target is {target}; it needs the objective, params -> f, which has to fall below it")


def _may_end_early(history: History, left: int, patience: Any, tolerance: float, target: float | None) -> bool:
    """Whether a stopping rule may end training before the last epoch."""
    if_no_better = np.append(history["train_loss"], np.full(max(0, left - 1), np.inf))
    return target is not None or _has_converged({"train_loss": if_no_better}, patience, tolerance, None)


def _has_converged(history: History, patience: int | None, tolerance: float, target: float | None) -> bool:
    losses, objectives = (history.get(name, np.empty(0)) for name in ("train_loss", "objective"))
    if patience is not None and has_plateaued(losses, patience, tolerance):
        return True
    return target is not None and len(objectives) > 0 and bool(objectives[-1] < target)
