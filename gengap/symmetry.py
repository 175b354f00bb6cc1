"""Maps of parameters that leave a rectified network's function as it is, and which measures they change.

Dinh, Pascanu, Bengio and Bengio, "Sharp Minima Can Generalize For Deep Nets", 2017, arXiv:1703.04933: where
$\\phi(\\alpha z) = \\alpha \\phi(z)$ for $\\alpha > 0$, a layer's units can be scaled up and the weights that read
them scaled down. Which leaves those are is said by a list of `Layer`; `chain` makes it for the networks of
`models`. Max pooling commutes with all of it. `sharpened`, `collapsible`, `disjoint` and `audit` decide by values
and cannot be traced; the other maps can.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from gengap import flat

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
        return self.norm or tuple(filter(None, (self.kernel, self.bias)))


def chain(params: Mapping[str, Any]) -> list[Layer]:
    """The layers of a sequential Flax Linen network: Conv_0, Conv_1, ..., then Dense_0, Dense_1, ...

    Batch norms are taken to stand behind the layers in the same order, none behind the last layer.

    Raises:
      ValueError: there are other modules, fewer than two layers, or more batch norms than layers.
    """
    counted = {kind: sum(n.startswith(f"{kind}_") for n in params) for kind in ("Conv", "Dense", "BatchNorm")}
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
      ValueError: another count, a factor that is not above 0, or a leaf that is not floating point.

    Reference: Dinh et al. (2017), Definition 5 and appendix B; with vectors Neyshabur et al. (2015).
    """
    flat.layout_of(params)
    if len(activations) != len(layers) - 1:
        raise ValueError(f"there are {len(activations)} factors; there must be {len(layers) - 1}")
    for layer, after, factor in zip(layers, layers[1:], activations, strict=False):
        a = jnp.asarray(factor, float)
        units = _get(params, layer.kernel).shape[-1]
        if a.shape not in ((), (units,)) or not (flat.is_traced(a) or ((a > 0) & jnp.isfinite(a)).all()):
            raise ValueError(f"a factor is {factor}; it must be above 0, and one number or {units} of them")
        for where in layer.out:
            params = _times(params, where, a, -1)
        params = _times(params, after.kernel, 1 / a, -2)
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
      params, layers: as of `rescale`.
      factors: c, one for each layer with a batch norm.
    """
    flat.layout_of(params)
    normed = [layer for layer in layers if layer.norm is not None]
    if len(factors) != len(normed) or not all(factor > 0 for factor in factors):
        raise ValueError(f"factors is {tuple(factors)}; there must be {len(normed)}, each above 0")
    for layer, c in zip(normed, factors, strict=True):
        for where in filter(None, (layer.kernel, layer.bias)):
            params = _times(params, where, jnp.asarray(c), -1)
    return params


def permute(params: PyTree, layers: Sequence[Layer], orders: Sequence[Int[Array, "_"]]) -> Any:
    """The same function with the units of each hidden layer in another order.

    Args:
      params, layers: as of `rescale`.
      orders: a permutation for each layer but the last.
    """
    flat.layout_of(params)
    if len(orders) != len(layers) - 1:
        raise ValueError(f"there are {len(orders)} orders; there must be {len(layers) - 1}")
    for layer, after, order in zip(layers, layers[1:], orders, strict=False):
        units = _get(params, layer.kernel).shape[-1]
        if not flat.is_traced(order) and sorted(order.tolist()) != list(range(units)):
            raise ValueError(f"an order is {order.tolist()}; it must hold each of {units} units once")
        for where in filter(None, (layer.kernel, layer.bias, *(layer.norm or ()))):
            params = _with(params, where, _get(params, where)[..., order])
        leaf = _get(params, after.kernel)
        blocks = leaf.reshape(*leaf.shape[:-2], -1, units, leaf.shape[-1])
        params = _with(params, after.kernel, blocks[..., order, :].reshape(leaf.shape))
    return params


class Radial(NamedTuple):
    r"""The change of parameters $\eta = (\|\theta - \hat\theta\|^2 + b)^a\, (\theta - \hat\theta)$ of section 5.1.

    With $b > 0$ the Hessian in $\eta$ at $\hat\theta$ is $b^{-2a}$ times that in $\theta$, with a > -1/2 the
    change is invertible: one number makes a minimum as flat or as sharp as one likes. `center` is $\hat\theta$,
    `power` a, `offset` b.
    """

    center: PyTree
    power: float
    offset: float

    def to_eta(self, theta: PyTree) -> Any:
        """The new parameters of a point."""
        flat.layout_of(theta)
        d = jax.tree.map(lambda t, c: _get(t) - _get(c), theta, self.center)
        return optax.tree.scale((optax.tree.norm(d, squared=True) + self.offset) ** self.power, d)

    def to_theta(self, eta: PyTree) -> Any:
        r"""The inverse, by Newton's method for $\log\|\theta - \hat\theta\|$ in 50 steps of at most 2."""
        norm = optax.tree.norm(eta)
        target = jnp.log(jnp.where(norm > 0, norm, 1))

        def step(_: Any, log_r: Array) -> Array:
            square = jnp.exp(2 * log_r)
            slope = 1 + 2 * self.power * square / (square + self.offset)
            error = log_r + self.power * jnp.log(square + self.offset) - target
            return log_r - jnp.clip(error / slope, -2.0, 2.0)

        log_r = jax.lax.fori_loop(0, 50, step, target)
        ratio = jnp.where(norm > 0, jnp.exp(log_r) / jnp.where(norm > 0, norm, 1), 1.0)
        return jax.tree.map(lambda e, c: _with(c, (), _get(c) + ratio * e), eta, self.center)


def sharpened(
    loss: Callable, params: PyTree, layers: Sequence[Layer], bound: float, *, layer: int = 0
) -> tuple[Any, Float[Array, ""]]:
    r"""Theorem 4: parameters of the same function whose Hessian has a norm of at least `bound`.

    A positive diagonal entry $\gamma$ of the Hessian in what makes the units of one layer becomes
    $\gamma / a^2$ when they are scaled by $a = \sqrt{\gamma / M}$, and no diagonal entry is above the norm. The
    entry is the one that an estimate of the diagonal from one product has largest (Bekas et al. 2007).

    Args:
      loss: `params -> scalar`.
      params, layers: as of `rescale`.
      bound: M.
      layer: which of the hidden layers to scale down.

    Returns:
      The parameters, and the diagonal entry there, which is a lower bound of the Hessian's norm.

    Raises:
      ValueError: the Hessian has no positive diagonal entry there, or an argument is out of its range.
    """
    if not 0 < bound < math.inf:
        raise ValueError(f"bound is {bound}; it must be above 0")
    loss, where = flat.as_pytree(loss), layers[layer].out[0]
    size = _get(params, where).size
    sign = np.where(np.random.default_rng(0).random(size) < 0.5, -1.0, 1.0)
    guess = int(np.argmax(sign * _curvature(loss, params, where, sign)))
    unit = np.eye(1, size, guess)[0]
    entry = float(_curvature(loss, params, where, unit)[guess])
    if not entry > 0:
        raise ValueError(f"the Hessian has no positive diagonal entry in {'/'.join(where)}; take another layer")
    moved = _scale_down(params, layers, layer, min(1.0, 0.99 * math.sqrt(entry / bound)))
    return moved, _curvature(loss, moved, where, unit)[guess]


@partial(jax.jit, static_argnums=2)
def _curvature(loss: Callable, params: PyTree, where: Where, v: Array) -> Array:
    """The Hessian's block of one leaf, times v."""
    f, x, _ = flat.of(lambda leaf: loss(_with(params, where, leaf)), _get(params, where))
    return jax.jvp(jax.grad(f), (x,), (v.astype(x.dtype),))[1]


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
    largest = _largest(params, layers[layer])
    return _scale_down(params, layers, layer, epsilon / max(largest, epsilon))


def disjoint(params: PyTree, layers: Sequence[Layer], radius: float) -> float:
    r"""Theorem 2: a factor whose powers map boxes of this radius to disjoint ones, in the first layer.

    $\alpha = 2 \frac{\|\theta_1\|_\infty + r}{\|\theta_1\|_\infty - r}$: the images for j = 0, 1, 2, ... are
    infinitely many regions of the same volume and the same loss.
    """
    largest = _largest(params, layers[0])
    if not 0 < radius < largest:
        raise ValueError(f"radius is {radius}; it must be above 0 and below {largest}, the largest parameter")
    return 2 * (largest + radius) / (largest - radius)


class Finding(NamedTuple):
    """What a map of parameters does to a measure.

    Attributes:
      measure, symmetry: their names.
      before, after: the mean of the measure over the keys.
      factor: after / before; NaN where before is 0.
      verdict: "unchanged", "changed", or "not resolved" where the errors would hide a change by a third, or the
        values are not finite.
    """

    measure: str
    symmetry: str
    before: float
    after: float
    factor: float
    verdict: str


def audit(
    measures: Mapping[str, Callable[[PyTree, Key[Array, ""]], Any]],
    symmetries: Mapping[str, Callable[[PyTree], PyTree]],
    params: PyTree,
    key: Key[Array, ""],
    *,
    repeats: int = 3,
    tolerance: float = 0.01,
) -> list[Finding]:
    """Which maps leave which measures unchanged: a finding for each pair, the measures in order.

    Every measure is taken at `params` and at each image of it with the same keys. What counts is the mean of the
    logarithm of after / before (of the difference, where a value is not positive): up to `tolerance` it is
    unchanged; above it is a change if it is above three standard errors, those over the keys and those that the
    measure itself states; else it is unchanged if three standard errors are below a third, and not resolved.

    Args:
      measures: name -> `(params, key) -> number` (what has a `value`, such as an `Estimate`, counts by it).
      symmetries: name -> map of parameters.
      params, key: of the measures.
      repeats: keys, at least 2.
      tolerance: relative; what arithmetic may change.
    """
    if repeats < 2:
        raise ValueError(f"repeats is {repeats}; it must be at least 2")
    keys = jax.random.split(key, repeats)
    images = {name: move(params) for name, move in symmetries.items()}

    def taken(measure: Callable, point: PyTree) -> np.ndarray:  # values, and the standard errors that they state
        values = [measure(point, key) for key in keys]
        return np.array([[float(getattr(v, "value", v)), float(getattr(v, "sem", 0.0))] for v in values])

    found = []
    for name, measure in measures.items():
        before = taken(measure, params)
        for symmetry, image in images.items():
            found.append(_compare(name, symmetry, before, taken(measure, image), tolerance))
    return found


def _compare(name: str, symmetry: str, before: np.ndarray, after: np.ndarray, tolerance: float) -> Finding:
    a, b = before[:, 0], after[:, 0]
    mean_a, mean_b = float(a.mean()), float(b.mean())
    finding = Finding(name, symmetry, mean_a, mean_b, mean_b / mean_a if mean_a else math.nan, "not resolved")
    if not math.isfinite(mean_a) or not math.isfinite(mean_b):
        return finding
    positive = bool((a > 0).all() and (b > 0).all())
    changes, scale = (np.log(b / a), 1.0) if positive else (b - a, max(abs(mean_a), abs(mean_b)))
    relative = [sem and (sem / abs(value) if value else math.inf) for value, sem in (*before, *after)]
    error = math.hypot(changes.std(ddof=1) / math.sqrt(len(a)), scale * math.hypot(*relative) / len(a))
    change = abs(float(changes.mean()))
    if change > tolerance * scale and change > 3 * error:
        return finding._replace(verdict="changed")
    resolved = change <= tolerance * scale or 3 * error <= scale / 3
    return finding._replace(verdict="unchanged" if resolved else "not resolved")


def _scale_down(params: PyTree, layers: Sequence[Layer], layer: int, factor: float) -> Any:
    if not 0 <= layer < len(layers) - 1:
        raise ValueError(f"layer is {layer}; it must be from 0 to {len(layers) - 2}, a hidden layer")
    return rescale(params, layers, [factor if k == layer else 1.0 for k in range(len(layers) - 1)])


def _largest(params: PyTree, layer: Layer) -> float:
    return max(float(jnp.abs(_get(params, where)).max()) for where in layer.out)


def _times(params: PyTree, where: Where, a: Array, axis: int) -> Any:
    """A leaf's units along an axis times a; channels are the fastest part of an axis that was flattened."""
    leaf = _get(params, where)
    if a.ndim:
        shape = [leaf.shape[k] if k == axis else 1 for k in range(-leaf.ndim, 0)]
        a = jnp.tile(a, leaf.shape[axis] // len(a)).reshape(shape)
    return _with(params, where, leaf * a)


def _get(params: Any, where: Where = ()) -> Array:
    """A leaf, in float32 at least."""
    for name in where:
        params = params[name]
    return jnp.asarray(params, jnp.promote_types(jnp.result_type(params), jnp.float32))


def _with(params: Any, where: Where, leaf: Array) -> Any:
    """The parameters with another leaf in one place, in the type of the one that was there."""
    if not where:
        return leaf.astype(jnp.result_type(params))
    return {**params, where[0]: _with(params[where[0]], where[1:], leaf)}
