"""Methods that let the batch grow while training goes on, and the noise of a gradient, by which they may do it."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Integer, Key, PyTree, Shaped

from gengap import flat, program, train
from gengap.methods import Method, own_key


def same_updates(epochs: int, small_batch: int, batch: int, m: int) -> int:
    """The epochs in which a batch makes as many updates as `small_batch` does in `epochs` (Hoffer et al. 2017).

    Args:
      epochs: of the small batch.
      small_batch, batch: examples.
      m: examples in an epoch, whose last batch is filled up.

    >>> same_updates(25, 32, 400, 4000)  # 25 epochs of 125 updates, and of 10
    312
    """
    flat.check_counts({"epochs": epochs, "small_batch": small_batch, "batch": batch, "m": m})
    return max(1, round(epochs * -(-m // small_batch) / -(-m // batch)))


class Noise(NamedTuple):
    """Of the gradient g of one batch: the trace of its covariance, Sigma / B, and |g|^2."""

    variance: Array
    square: Array


def doubling(every: int, *, most: int) -> Method:
    """The batch doubles after every so many epochs, up to `most` examples (Smith et al. 2018)."""
    flat.check_counts({"every": every, "most": most})

    def grow(size: int, epoch: int, noise: Callable[[], Noise]) -> int:
        return max(size, min(2 * size, most)) if epoch % every == 0 else size

    return Method(f"doubling({every}, most={most})", grow=grow)


def byrd(theta: float = 0.5, *, most: int) -> Method:
    r"""A batch with $\mathrm{tr}\,\Sigma / B > \theta^2 |g|^2$, a noisy gradient g, grows to where they are equal.

    The test is made after each epoch, on a batch of the present size. `most` examples are the end of it.

    Reference: Byrd, Chin, Nocedal and Wu, "Sample size selection in optimization methods for machine learning",
    Mathematical Programming 134, 2012.
    """
    flat.check_positive({"theta": theta})
    flat.check_counts({"most": most})

    def grow(size: int, epoch: int, noise: Callable[[], Noise]) -> int:
        found = noise()
        wanted = size * float(found.variance) / (theta**2 * max(float(found.square), 1e-30))
        return max(size, min(math.ceil(wanted), most)) if math.isfinite(wanted) else size

    return Method(f"byrd({theta}, most={most})", grow=grow)


def gradient_noise(
    examples: Callable,
    params: PyTree,
    x: Shaped[Array, "b ..."],
    y: Integer[Array, " b"],
    key: Key[Array, ""],
    *,
    draws: int = 16,
) -> Noise:
    r"""How noisy the gradient of a batch is, from one forward pass and `draws` + 1 backward passes.

    $\frac1B \sum_i (z_i - \bar z) \nabla f_i$ with $z_i \sim N(0, 1)$ has the mean square
    $\frac{B-1}{B} \mathrm{tr}\, \Sigma / B$, with $\Sigma$ the unbiased covariance of the examples.

    Args:
      examples: `(params, x, y, key) -> (losses [b], logits)`, as from `examples`.
      params: where.
      x, y: the batch, of two examples or more.
      key: of z and of the network.
      draws: sets of z; the variance has a relative error of about sqrt(2 / draws) where one direction dominates.
    """
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} example; the noise of a gradient shows between two or more")
    return program.compiled(partial(_noise, examples, draws))(params, x, y, key)


def _noise(examples: Callable, draws: int, params: PyTree, x: Array, y: Array, key: Array) -> Noise:
    losses, pull = jax.vjp(lambda p: examples(p, x, y, key)[0], params)
    z = jax.random.normal(own_key(key, "gradient_noise"), (draws, len(x)), losses.dtype)

    def square(weights: Array) -> Array:
        return optax.tree.norm(pull(weights / len(x))[0], squared=True)

    spread = jax.vmap(square)(z - z.mean(1, keepdims=True))
    return Noise(spread.mean() * len(x) / (len(x) - 1), square(jnp.ones_like(losses)))


def sizes(
    grow: Callable, first: int, examples: Callable, x: Array, y: Array
) -> Callable[[train.TrainState, train.History], int]:
    """The batch size of each epoch, from the first one, for `train.fit`."""

    def size(state: train.TrainState, history: train.History) -> int:
        done = history.get("batch_size", np.empty(0))
        if not len(done):
            return first
        last = int(done[-1])

        def noise() -> Noise:
            order, own = jax.random.split(own_key(jax.random.fold_in(state.key, state.epoch), "grow"))
            batch = jax.random.permutation(order, len(x))[:last]
            return gradient_noise(examples, state.params, x[batch], y[batch], own)

        return min(grow(last, len(done), noise), len(x))

    return size
