"""Statistics of the gradients of single examples: the Fisher information, the gradient-noise scale."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax
from jaxtyping import Array, Float, Integer, Key, PyTree

from gengap import loops
from gengap.hessian import Estimate


def fisher_trace(
    logits: Callable[[PyTree], Float[Array, "N classes"]],
    params: PyTree,
    key: Key[Array, ""],
    *,
    num_samples: int = 30,
) -> Estimate:
    r"""The trace of the Fisher information, $\frac1N \sum_i E_{y \sim p_i} \|\nabla \log p_i(y)\|^2$.

    Labels are drawn from the network itself for all N examples at once; N times the squared norm of the gradient
    of their mean has the trace as its mean, since the examples' scores have mean 0 and are independent.

    Args:
      logits: `params -> logits` of a data set.
      params: where.
      key: of the labels.
      num_samples: gradients, at least 2.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 2")
    values = _scores(loops.as_pytree(logits), params, jax.random.split(key, num_samples))
    return Estimate(values.mean(), values.std(ddof=1) / num_samples**0.5, num_samples)


class NoiseScale(NamedTuple):
    r"""The simple noise scale $B = \mathrm{tr}(\Sigma) / |G|^2$ and its two parts, in examples."""

    value: Float[Array, ""]
    trace: Float[Array, ""]
    square: Float[Array, ""]


def noise_scale(
    loss: Callable[[PyTree, Array, Array], Float[Array, ""]],
    params: PyTree,
    x: Float[Array, "N ..."],
    y: Integer[Array, " N"],
    key: Key[Array, ""],
    *,
    small: int = 16,
    large: int = 256,
    num_samples: int = 30,
) -> NoiseScale:
    r"""The gradient-noise scale from gradients of two batch sizes, with unbiased estimators of both parts.

    $|\mathcal G|^2 = \frac{B_b |G_b|^2 - B_s |G_s|^2}{B_b - B_s}$,
    $\mathcal S = \frac{|G_s|^2 - |G_b|^2}{1/B_s - 1/B_b}$; each is averaged before they are divided.

    Args:
      loss: `(params, x, y) -> mean loss` of a batch.
      params: where.
      x, y: the data.
      key: of the batches, drawn with replacement.
      small, large: the two batch sizes.
      num_samples: batches of each size; one gradient each.

    Reference: McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, appendix A.1.
    """
    if not 1 <= small < large:
        raise ValueError(f"small is {small} and large is {large}; it must be 1 <= small < large")
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    keys = jax.random.split(key, 2 * num_samples).reshape(2, num_samples)
    s, b = (
        _squares(loops.as_pytree(loss), params, x, y, k, size)
        for k, size in zip(keys, (small, large), strict=True)
    )
    square = (large * b - small * s) / (large - small)
    trace = (s - b) / (1 / small - 1 / large)
    return NoiseScale(trace / square, trace, square)


@jax.jit
def _scores(logits: Callable, params: PyTree, keys: Array) -> Array:
    p = logits(params)

    def one(key: Array) -> Array:
        labels = jax.random.categorical(key, jax.lax.stop_gradient(p))

        def mean(params: PyTree) -> Array:
            return optax.softmax_cross_entropy_with_integer_labels(logits(params), labels).mean()

        return len(p) * optax.tree.norm(jax.grad(mean)(params), squared=True)

    return jax.lax.map(one, keys)


@partial(jax.jit, static_argnums=5)
def _squares(loss: Callable, params: PyTree, x: Array, y: Array, keys: Array, size: int) -> Array:
    def one(key: Array) -> Array:
        where = jax.random.randint(key, (size,), 0, len(x))
        return optax.tree.norm(jax.grad(loss)(params, x[where], y[where]), squared=True)

    return jax.lax.map(one, keys).mean()
