"""What sharpness is compared with: other measures of a minimum, and which maps of parameters leave each as it is.

Each takes a loss (or the logits) as a function of the parameters, and the parameters. Its cost is given in
gradients of that loss. Those of the Hessian are in `hessian`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key, PyTree

from gengap import ascent, loops
from gengap.gradients import NoiseScale, fisher_trace, noise_scale
from gengap.hessian import Estimate, product

__all__ = [
    "Estimate",
    "Loss",
    "NoiseScale",
    "average_case",
    "distance",
    "fisher_trace",
    "m_sharpness",
    "noise_scale",
    "pac_bayes_sigma",
    "path_norm",
    "relative_flatness",
    "relative_flatness_last",
    "worst_case",
    "worst_case_linf",
]

Loss = Callable[[PyTree], Float[Array, ""]]


def worst_case(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    eta: float = 0.0,
    max_evaluations: int = 12,
) -> Float[Array, ""]:
    r"""$\max_{\|T^{-1}\delta\|_2 \le \rho} f(x + \delta) - f(x)$, with T = I, or |x| + eta where adaptive.

    Each step goes to where the gradient points, $\delta = \rho\, T^2 \nabla f / \|T \nabla f\|_2$; the best point
    seen counts. With `max_evaluations=2` it is the one step of SAM and ASAM.

    Args:
      loss: `params -> scalar`.
      params: the point x.
      key: of the direction taken where the gradient is 0.
      rho: the radius.
      adaptive: measure relative to the size of each parameter.
      eta: added to that size; 0.01 in ASAM's code. The measure is invariant to rescaling with 0 only.
      max_evaluations: gradients.

    Reference: Foret et al., "Sharpness-Aware Minimization", 2021; Kwon et al., "ASAM", 2021, eq. 3.
    """
    _positive(rho=rho, max_evaluations=max_evaluations)
    return _worst(
        loops.as_pytree(loss), params, key, jnp.float32(rho), jnp.float32(eta), adaptive, max_evaluations
    )


def worst_case_linf(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    rho: float = 1e-3,
    adaptive: bool = False,
    eta: float = 0.0,
    max_evaluations: int = 12,
) -> Float[Array, ""]:
    r"""$\max_{\|T^{-1}\delta\|_\infty \le \rho} f(x + \delta) - f(x)$ by the corner ascent of `ascent`.

    Keskar's full-space sharpness without its denominator is this, adaptive and with eta = 1. Arguments as of
    `worst_case`.

    Reference: Andriushchenko et al., "A Modern Look at the Relationship between Sharpness and Generalization",
    2023, eq. 1 with p = infinity.
    """
    _positive(rho=rho, max_evaluations=max_evaluations)
    flat, tree = ravel_pytree(params)
    radius = rho * (jnp.abs(flat) + eta if adaptive else jnp.ones_like(flat))
    shifted = Partial(_shifted, loops.as_pytree(loss), flat, Partial(tree))
    top = ascent.corner(shifted, jnp.zeros_like(flat), radius, key, max_evaluations=max_evaluations)
    return top.value - top.start_value


def average_case(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    rho: float = 0.01,
    adaptive: bool = False,
    num_samples: int = 30,
) -> Estimate:
    r"""$E\, f(x + \delta) - f(x)$ for $\delta \sim N(0, \rho^2 T^2)$, with T = I, or |x| where adaptive.

    Args:
      loss: `params -> scalar`.
      params: the point x.
      key: of the perturbations.
      rho: their standard deviation.
      adaptive: relative to the size of each parameter.
      num_samples: perturbations, at least 2; half a gradient each.

    Reference: Andriushchenko et al. (2023), eq. 1.
    """
    _positive(rho=rho)
    if num_samples < 2:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 2")
    keys = jax.random.split(key, num_samples)
    rises = _rises(loops.as_pytree(loss), params, keys, jnp.float32(rho), adaptive)
    return Estimate(rises.mean(), rises.std(ddof=1) / num_samples**0.5, num_samples)


def m_sharpness(
    losses: Sequence[Loss],
    params: PyTree,
    key: Key[Array, ""],
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    max_evaluations: int = 2,
) -> Float[Array, ""]:
    """The mean of `worst_case` over losses of m examples each, every one with a perturbation of its own.

    Reference: Foret et al. (2021), section 4.2.
    """
    if not losses:
        raise ValueError("losses is empty; there must be one for each m examples")
    values = [
        worst_case(loss, params, key, rho=rho, adaptive=adaptive, max_evaluations=max_evaluations)
        for loss in losses
    ]
    return jnp.stack(values).mean()


def pac_bayes_sigma(
    error: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    rise: float = 0.1,
    adaptive: bool = False,
    num_samples: int = 10,
    steps: int = 15,
    largest: float = 2.0,
) -> Float[Array, ""]:
    r"""The $\sigma$ at which $N(0, \sigma^2)$ on the parameters raises the mean error by `rise`, by bisection.

    Flat minima bear a large one; the measure of Jiang et al. is $1/\sigma^2$. Adaptive, the standard deviation of
    each parameter is $\sigma |x_i|$.

    Args:
      error: `params -> share of examples that are wrong`.
      params: the point x.
      key: of the perturbations, the same for every sigma.
      rise: of the error.
      adaptive: relative to the size of each parameter.
      num_samples: perturbations for each sigma.
      steps: of the bisection.
      largest: where it begins; returned where even it does not raise the error enough.

    Reference: Jiang et al., "Fantastic Generalization Measures and Where to Find Them", 2020, appendix.
    """
    _positive(rise=rise, num_samples=num_samples, steps=steps, largest=largest)
    error = loops.as_pytree(error)
    keys = jax.random.split(key, num_samples)
    low, high = 0.0, largest
    for _ in range(steps):
        middle = (low + high) / 2
        if float(_rises(error, params, keys, jnp.float32(middle), adaptive).mean()) > rise:
            high = middle
        else:
            low = middle
    return jnp.float32((low + high) / 2)


def relative_flatness(
    loss: Loss, params: PyTree, key: Key[Array, ""], *, layer: Sequence[str], num_samples: int = 10
) -> Estimate:
    r"""$\kappa = \sum_{s,s'} \langle w_s, w_{s'} \rangle\, \mathrm{Tr} H_{s,s'}$ over one layer's neurons s.

    $w_s$ are the columns of the kernel $W \in R^{d \times m}$. With random signs $z, r \in R^d$ it is the mean of
    $v^\top H v$ over $v = z \otimes W^\top r$, since $E\, W^\top r r^\top W = W^\top W$. Each sample costs one
    product with the Hessian, two gradients.

    Args:
      loss: `params -> scalar`.
      params: nested dictionaries.
      key: of the signs.
      layer: the path of the kernel [..., d, m], such as ("Dense_5", "kernel").
      num_samples: products, at least 2.

    Reference: Petzka et al., "Relative Flatness and Generalization", 2021, definition 3.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 2")
    values = _relative(loops.as_pytree(loss), params, jax.random.split(key, num_samples), tuple(layer))
    return Estimate(values.mean(), values.std(ddof=1) / num_samples**0.5, 2 * num_samples)


def relative_flatness_last(
    features: Float[Array, "N d"], kernel: Float[Array, "d m"], bias: Float[Array, " m"] | None = None
) -> Float[Array, ""]:
    r"""Relative flatness of a last layer under mean cross entropy, in closed form.

    $\kappa = \frac1N \sum_i \|\phi_i\|^2\, \mathrm{Tr}(W^\top W (\mathrm{diag}(p_i) - p_i p_i^\top))$.

    Args:
      features: what the layer reads, phi.
      kernel, bias: of the layer; logits are `features @ kernel + bias`.
    """
    logits = features @ kernel + (0 if bias is None else bias[None])
    p = jax.nn.softmax(logits)
    gram = kernel.T @ kernel
    spread = p @ jnp.diag(gram) - jnp.einsum("im,mk,ik->i", p, gram, p)
    return ((features**2).sum(1) * spread).mean()


def path_norm(apply: Callable, params: PyTree, example: Float[Array, "1 ..."]) -> Float[Array, ""]:
    r"""$\sqrt{\sum_{paths} \prod w^2}$: the root of the summed outputs for an input of ones and squared weights.

    For a rectified network without batch norm; one of batch norm has to be folded into the weights before it.

    Args:
      apply: `(params, x) -> outputs`.
      params: where.
      example: one input, of which only the shape matters.

    Reference: Neyshabur et al., "Path-SGD", 2015.
    """
    squared = jax.tree.map(lambda leaf: leaf**2, params)
    return jnp.sqrt(apply(squared, jnp.ones_like(example)).sum())


def distance(params: PyTree, start: PyTree) -> Float[Array, ""]:
    """The Euclidean distance from another point, such as where training began."""
    return optax.tree.norm(jax.tree.map(jnp.subtract, params, start))


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be above 0")


def _shifted(loss: Callable, flat: Array, tree: Callable, y: Array) -> Array:
    return loss(tree(flat + y))


def _sizes(params: PyTree, eta: Any, adaptive: bool) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.abs(leaf) + eta if adaptive else jnp.ones_like(leaf), params)


@partial(jax.jit, static_argnums=(5, 6))
def _worst(
    loss: Callable, params: PyTree, key: Array, rho: Array, eta: Array, adaptive: bool, evaluations: int
) -> Array:
    T = _sizes(params, eta, adaptive)
    flat, tree = ravel_pytree(params)
    random = tree(jax.random.normal(key, flat.shape, flat.dtype))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        best, delta = carry
        value, gradient = jax.value_and_grad(loss)(jax.tree.map(jnp.add, params, delta))
        scaled = jax.tree.map(jnp.multiply, T, gradient)
        norm = optax.tree.norm(scaled)
        scaled = jax.tree.map(lambda s, r: jnp.where(norm > 0, s, r), scaled, random)
        length = rho / optax.tree.norm(scaled)
        delta = jax.tree.map(lambda t, s: length * t * s, T, scaled)
        return (jnp.fmax(best, value), delta), None

    base = loss(params)
    (best, _), _ = jax.lax.scan(step, (base, jax.tree.map(jnp.zeros_like, params)), length=evaluations)
    return best - base


@partial(jax.jit, static_argnums=4)
def _rises(loss: Callable, params: PyTree, keys: Array, rho: Array, adaptive: bool) -> Array:
    T = _sizes(params, 0.0, adaptive)
    flat, tree = ravel_pytree(params)

    def one(key: Array) -> Array:
        noise = tree(jax.random.normal(key, flat.shape, flat.dtype))
        return loss(jax.tree.map(lambda a, t, z: a + rho * t * z, params, T, noise))

    return jax.lax.map(one, keys) - loss(params)


@partial(jax.jit, static_argnums=3)
def _relative(loss: Callable, params: PyTree, keys: Array, layer: tuple[str, ...]) -> Array:
    kernel = params
    for name in layer:
        kernel = kernel[name]
    W = kernel.reshape(-1, kernel.shape[-1])

    def only(tree: Any, path: tuple[str, ...], value: Array) -> Any:
        if not path:
            return value
        zeros = jax.tree.map(jnp.zeros_like, {k: v for k, v in tree.items() if k != path[0]})
        return {**zeros, path[0]: only(tree[path[0]], path[1:], value)}

    def one(key: Array) -> Array:
        rows, inputs = jax.random.split(key)
        c = jax.random.rademacher(rows, (W.shape[0],), W.dtype) @ W
        v = (jax.random.rademacher(inputs, (W.shape[0],), W.dtype)[:, None] * c[None]).reshape(kernel.shape)
        moved = product(loss, params, only(params, layer, v))
        for name in layer:
            moved = moved[name]
        return jnp.vdot(v, moved)

    return jax.lax.map(one, keys)
