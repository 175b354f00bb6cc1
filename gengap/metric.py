r"""Metric 2.1 of Keskar et al. (2016) as it is defined: the function, the box, and what is kept of a maximum.

$$\phi_{x,f}(\epsilon, A) = \frac{(\max_{y \in C_\epsilon} f(x + A y)) - f(x)}{1 + f(x)} \times 100, \qquad
C_\epsilon = \{ z \in R^p : |z_i| \le \epsilon (|(A^+ x)_i| + 1) \}$$ (eqs. 3 and 4).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, PyTree

from gengap import loops, subspace
from gengap.subspace import Subspace


class Sharpness(NamedTuple):
    """The metric with what it was computed from; leading axes are those of epsilon, then of the draws.

    Attributes:
      value: phi, in the paper's units (x 100).
      base_loss: f(x), in nats.
      max_loss: f(x + A y*), in nats.
      evaluations: gradients spent, with the draw's share of those that all draws share, such as the one at x.
      finite: whether the loss was finite wherever it was looked at.
      ends: phi at the end of each ascent; NaN for one that there was nothing left to spend on.
    """

    value: Float[Array, "..."]
    base_loss: Float[Array, "..."]
    max_loss: Float[Array, "..."]
    evaluations: Int[Array, "..."]
    finite: Bool[Array, "..."]
    ends: Float[Array, "... starts"]

    @property
    def mean(self) -> Float[Array, "..."]:
        """Mean over the draws."""
        return self.value.mean(-1)

    @property
    def sem(self) -> Float[Array, "..."]:
        """Standard error of the mean over the draws; NaN for a single draw."""
        draws = self.value.shape[-1]
        return self.value.std(-1, ddof=1) / jnp.sqrt(draws) if draws > 1 else jnp.full_like(self.mean, jnp.nan)

    def interval(self, level: float = 0.95) -> Float[np.ndarray, "... 2"]:
        """Bootstrap interval of the mean over the draws (bias-corrected, accelerated); NaN for a single draw."""
        values = np.asarray(self.value, np.float64)
        if values.shape[-1] < 2:
            return np.full((*values.shape[:-1], 2), np.nan)
        if np.all(values == values[..., :1]):
            return np.stack([values[..., 0]] * 2, -1)
        found = scipy.stats.bootstrap(
            (values,), np.mean, axis=-1, confidence_level=level, rng=np.random.default_rng(0)
        )
        return np.stack([found.confidence_interval.low, found.confidence_interval.high], -1)


def restrict(loss: Callable, params: PyTree[Float[Array, "..."]], A: Subspace | None) -> Partial:
    """`y -> f(x + A y)`, the function that Metric 2.1 maximises; A = I where `A` is `None`."""
    return Partial(_at, loops.as_pytree(loss), params, A)


def radius(params: PyTree[Float[Array, "..."]], A: Subspace | None, epsilon: float | Array) -> Float[Array, " p"]:
    """The half-widths of the box, epsilon (|A^+ x| + 1) (eq. 3); A = I where `A` is `None`."""
    x, _ = ravel_pytree(params)
    return epsilon * (jnp.abs(x if A is None else subspace.pseudo_inverse_times(A, x)) + 1)


def _at(loss: Callable, x: PyTree, A: Subspace | None, y: Array) -> Float[Array, ""]:
    """f(x + A y)"""
    leaves, tree = jax.tree.flatten(x)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    steps = jnp.split(y if A is None else subspace.times(A, y), ends)
    return loss(jax.tree.unflatten(tree, [a + s.reshape(a.shape) for a, s in zip(leaves, steps, strict=True)]))
