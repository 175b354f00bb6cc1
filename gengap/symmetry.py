"""Maps of parameters that leave a rectified network's function as it is, and change how sharp it looks.

Dinh, Pascanu, Bengio and Bengio, "Sharp Minima Can Generalize For Deep Nets", 2017, arXiv:1703.04933: where
$\\phi(\\alpha z) = \\alpha \\phi(z)$ for $\\alpha > 0$, a layer's units can be scaled up and the weights that read
them scaled down. Which leaves those are is said by a list of `Layer`; `chain` makes it for the networks of
`models`. Max pooling commutes with all of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

Where = tuple[str, ...]


class Layer(NamedTuple):
    """Where one layer's parameters are in a nested dictionary; the last axis of each counts its units.

    Attributes:
      kernel: the weights, whose axis before the last counts what they read.
      bias: added to what they give; `None` without one.
      norm: scale and bias of a batch norm behind them; `None` without one.
    """

    kernel: Where
    bias: Where | None = None
    norm: tuple[Where, Where] | None = None

    @property
    def out(self) -> tuple[Where, ...]:
        """What multiplies this layer's units: those of the batch norm, else the weights and their biases."""
        if self.norm is not None:
            return self.norm
        return (self.kernel,) if self.bias is None else (self.kernel, self.bias)


def chain(params: Mapping[str, Any]) -> list[Layer]:
    """The layers of a sequential Flax Linen network: Conv_0, Conv_1, ..., then Dense_0, Dense_1, ...

    Batch norms are taken to stand behind the layers in the same order, none behind the last layer.

    Raises:
      ValueError: there are other modules, fewer than two layers, or more batch norms than layers.
    """
    counted = {
        kind: sum(name.startswith(f"{kind}_") for name in params) for kind in ("Conv", "Dense", "BatchNorm")
    }
    names = [f"{kind}_{i}" for kind in ("Conv", "Dense") for i in range(counted[kind])]
    if sum(counted.values()) != len(params) or len(names) < 2 or counted["BatchNorm"] >= len(names):
        raise ValueError(f"params has {', '.join(params)}; it must be a sequence of Conv, Dense and BatchNorm")
    return [
        Layer(
            (name, "kernel"),
            (name, "bias") if "bias" in params[name] else None,
            ((f"BatchNorm_{i}", "scale"), (f"BatchNorm_{i}", "bias")) if i < counted["BatchNorm"] else None,
        )
        for i, name in enumerate(names)
    ]


def rescale(params: PyTree, layers: Sequence[Layer], activations: Sequence[float | Float[Array, "_"]]) -> Any:
    r"""The same function with the activations of each hidden layer k multiplied by $a_k > 0$.

    What makes the units of layer k is multiplied by $a_k$, and what reads them divided by it. Without batch norm
    that is $\theta_k \mapsto \frac{a_k}{a_{k-1}} \theta_k$, $b_k \mapsto a_k b_k$; with it $(\gamma, \beta)_k
    \mapsto a_k (\gamma, \beta)_k$ and $\theta_{k+1} \mapsto a_k^{-1} \theta_{k+1}$. A vector in place of a number
    has a factor for each unit.

    Args:
      params: nested dictionaries of arrays.
      layers: from `chain`.
      activations: one for each layer but the last.

    Raises:
      ValueError: another count, or a factor that is not above 0.

    Reference: Dinh et al. (2017), Definition 5 and appendix B; with vectors Neyshabur et al. (2015).
    """
    factors = _factors(layers, activations)
    for layer, after, a in zip(layers, layers[1:], factors, strict=False):
        for where in layer.out:
            leaf = _get(params, where)
            params = _with(params, where, leaf * _broadcast(a, leaf, -1))
        leaf = _get(params, after.kernel)
        params = _with(params, after.kernel, leaf / _broadcast(a, leaf, -2))
    return params


def alpha_scale(params: PyTree, layers: Sequence[Layer], alphas: Sequence[float]) -> Any:
    r"""$T_\alpha: \theta_k \mapsto \alpha_k \theta_k$ with $\prod_k \alpha_k = 1$ (Definition 5), for K layers.

    Biases are multiplied by $\prod_{l \le k} \alpha_l$ (appendix B). With batch norm a layer's factor goes to the
    scale and bias of the norm behind it, see `rescale`.

    Raises:
      ValueError: another count, a product that is not 1, or a factor that is not above 0.
    """
    if len(alphas) != len(layers) or not math.isclose(math.prod(alphas), 1, rel_tol=1e-6):
        raise ValueError(f"alphas is {tuple(alphas)}; there must be {len(layers)}, and their product must be 1")
    return rescale(params, layers, [math.prod(alphas[: k + 1]) for k in range(len(layers) - 1)])


def scale_before_norm(params: PyTree, layers: Sequence[Layer], factors: Sequence[float]) -> Any:
    r"""The same function with the weights before each batch norm multiplied: $w \mapsto c\, w$, $b \mapsto c\, b$.

    Exact but for the epsilon that a batch norm adds to the variance: gradients go with $1/c$, curvature with
    $1/c^2$ (Dinh et al. 2017, section 5.1, for weight normalisation).

    Args:
      params: nested dictionaries of arrays.
      layers: from `chain`.
      factors: one for each layer with a batch norm.
    """
    normed = [layer for layer in layers if layer.norm is not None]
    if len(factors) != len(normed) or not all(factor > 0 for factor in factors):
        raise ValueError(f"factors is {tuple(factors)}; there must be {len(normed)}, each above 0")
    for layer, c in zip(normed, factors, strict=True):
        for where in filter(None, (layer.kernel, layer.bias)):
            params = _with(params, where, c * _get(params, where))
    return params


def permute(params: PyTree, layers: Sequence[Layer], orders: Sequence[Int[Array, "_"]]) -> Any:
    """The same function with the units of each hidden layer in another order.

    Args:
      params: nested dictionaries of arrays.
      layers: from `chain`.
      orders: a permutation for each layer but the last.
    """
    if len(orders) != len(layers) - 1:
        raise ValueError(f"there are {len(orders)} orders; there must be {len(layers) - 1}")
    for layer, after, order in zip(layers, layers[1:], orders, strict=False):
        units = len(order)
        if sorted(order.tolist()) != list(range(units)):
            raise ValueError("an order must hold each unit once")
        for where in filter(None, (layer.kernel, layer.bias, *(layer.norm or ()))):
            params = _with(params, where, _get(params, where)[..., order])
        leaf = _get(params, after.kernel)
        blocks = leaf.reshape(*leaf.shape[:-2], -1, units, leaf.shape[-1])
        params = _with(params, after.kernel, blocks[..., order, :].reshape(leaf.shape))
    return params


class Radial(NamedTuple):
    r"""The change of parameters $\eta = (\|\theta - \hat\theta\|^2 + b)^a\, (\theta - \hat\theta)$ of section 5.1.

    With $b > 0$ the Hessian in $\eta$ at $\hat\theta$ is $b^{-2a}$ times that in $\theta$, with a > -1/2 the
    change is invertible: one number makes a minimum as flat or as sharp as one likes.

    Attributes:
      center: the point $\hat\theta$.
      power: a, above -1/2.
      offset: b, not negative.
    """

    center: PyTree
    power: float
    offset: float

    def to_eta(self, theta: PyTree) -> Any:
        """The new parameters of a point."""
        d = jax.tree.map(jnp.subtract, theta, self.center)
        return optax.tree.scale((optax.tree.norm(d, squared=True) + self.offset) ** self.power, d)

    def to_theta(self, eta: PyTree) -> Any:
        r"""The inverse, by Newton's method for $\log\|\theta - \hat\theta\|$ with 50 steps at most."""
        norm = optax.tree.norm(eta)
        target = jnp.log(jnp.where(norm > 0, norm, 1))

        def step(_: Any, log_r: Array) -> Array:
            square = jnp.exp(2 * log_r)
            slope = 1 + 2 * self.power * square / (square + self.offset)
            error = log_r + self.power * jnp.log(square + self.offset) - target
            return log_r - jnp.clip(error / slope, -2.0, 2.0)

        # far from and near to the center the map is a power law, whose inverse is known
        near = target - self.power * math.log(self.offset) if self.offset > 0 else target
        far = target / (1 + 2 * self.power)
        log_r = jax.lax.fori_loop(
            0, 50, step, jnp.minimum(near, far) if self.power > 0 else jnp.maximum(near, far)
        )
        ratio = jnp.where(norm > 0, jnp.exp(log_r) / jnp.where(norm > 0, norm, 1), 1.0)
        return jax.tree.map(lambda e, c: c + ratio * e, eta, self.center)


def sharpened(
    loss: Callable, params: PyTree, layers: Sequence[Layer], bound: float, *, layer: int = 0
) -> tuple[Any, Float[Array, ""]]:
    r"""Theorem 4: parameters of the same function whose Hessian has a norm of at least `bound`.

    A positive diagonal entry $\gamma$ of the Hessian in what makes the units of one layer becomes
    $\gamma / a^2$ when they are scaled by $a = \sqrt{\gamma / M}$, and no diagonal entry is above the norm. The
    entry is that of the coordinate where the gradient of $v^\top H v$'s diagonal is estimated largest.

    Args:
      loss: `params -> scalar`.
      params: a minimum.
      layers: from `chain`.
      bound: M.
      layer: which of the hidden layers to scale down.

    Returns:
      The parameters, and the diagonal entry there, which is a lower bound of the Hessian's norm.

    Raises:
      ValueError: the Hessian has no positive diagonal entry there.
    """
    where = layers[layer].out[0]
    leaf = _get(params, where)
    sign = jax.random.rademacher(jax.random.key(0), leaf.shape, leaf.dtype)
    zero = jax.tree.map(jnp.zeros_like, params)

    def curvature(point: PyTree, direction: Array) -> Array:
        tangent = _with(zero, where, direction)
        product = jax.jvp(jax.grad(loss), (point,), (tangent,))[1]
        return _get(product, where)

    guess = jnp.argmax(sign * curvature(params, sign))  # Bekas et al. (2007): an estimate of the diagonal
    unit = jnp.zeros(leaf.size, leaf.dtype).at[guess].set(1).reshape(leaf.shape)
    entry = jnp.vdot(unit, curvature(params, unit))
    if not entry > 0:
        raise ValueError(f"the Hessian has no positive diagonal entry in {'/'.join(where)}; take another layer")
    factors = [1.0] * (len(layers) - 1)
    factors[layer] = min(1.0, 0.99 * math.sqrt(float(entry) / bound))
    moved = rescale(params, layers, factors)
    return moved, jnp.vdot(unit, curvature(moved, unit))


def many_sharp(params: PyTree, layers: Sequence[Layer], beta: float) -> Any:
    r"""Theorem 5: the map $\alpha_k = \beta^{-1}$ for k < K, $\alpha_K = \beta^{K-1}$.

    It multiplies the Hessian's blocks of all layers but the last by $\beta^2$ or more, so that with a rank of r
    at least $r - \min_k n_k$ eigenvalues pass any bound as $\beta$ grows.
    """
    K = len(layers)
    return alpha_scale(params, layers, [1 / beta] * (K - 1) + [beta ** (K - 1)])


def collapsible(params: PyTree, layers: Sequence[Layer], epsilon: float, *, layer: int = 0) -> Any:
    r"""Section 4.3: parameters of the same function whose box of half-width epsilon holds a constant function.

    What makes the units of one layer is scaled down until all of it is within epsilon of 0. Where it is 0 the
    layer is silent, so that the full-space sharpness is at least that of a constant function's loss.
    """
    largest = max(float(jnp.abs(_get(params, where)).max()) for where in layers[layer].out)
    factors = [1.0] * (len(layers) - 1)
    factors[layer] = min(1.0, epsilon / largest) if largest > 0 else 1.0
    return rescale(params, layers, factors)


def disjoint(params: PyTree, layers: Sequence[Layer], radius: float) -> float:
    r"""Theorem 2: a factor whose powers map boxes of this radius to disjoint ones, in the first layer.

    $\alpha = 2 \frac{\|\theta_1\|_\infty + r}{\|\theta_1\|_\infty - r}$: the images for j = 0, 1, 2, ... are
    infinitely many regions of the same volume and the same loss.
    """
    largest = max(float(jnp.abs(_get(params, where)).max()) for where in layers[0].out)
    if not 0 < radius < largest:
        raise ValueError(f"radius is {radius}; it must be above 0 and below {largest}, the largest parameter")
    return 2 * (largest + radius) / (largest - radius)


def _factors(layers: Sequence[Layer], activations: Sequence[Any]) -> list[Array]:
    if len(activations) != len(layers) - 1:
        raise ValueError(
            f"there are {len(activations)} factors; there must be {len(layers) - 1}, one a hidden layer"
        )
    factors = [jnp.asarray(a, float) for a in activations]
    if not all(bool(jnp.all((a > 0) & jnp.isfinite(a))) for a in factors):
        raise ValueError("a factor is not above 0")
    return factors


def _broadcast(a: Array, leaf: Array, axis: int) -> Array:
    """Factors of units along an axis of a leaf; channels are the fastest part of an axis that was flattened."""
    a = a.astype(leaf.dtype)
    if a.ndim == 0:
        return a
    shape = [1] * leaf.ndim
    shape[axis] = leaf.shape[axis]
    return jnp.tile(a, leaf.shape[axis] // len(a)).reshape(shape)


def _get(params: Any, where: Where) -> Array:
    for name in where:
        params = params[name]
    return params


def _with(params: Any, where: Where, leaf: Array) -> Any:
    """The parameters with another leaf in one place."""
    if not where:
        return leaf
    return {**params, where[0]: _with(params[where[0]], where[1:], leaf)}
