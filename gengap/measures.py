"""Other measures of a minimum, to compare sharpness with. Those of the Hessian alone are in `hessian`.

Each takes a loss f (or a network) and params, the point x. Params, key and data can be traced; a number such as
rho cannot. A value is NaN if f was not finite; `pac_bayes_sigma` counts an error that is not finite as a rise.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Key, PyTree, Shaped

from gengap import ascent, checks, flat, kernels, objective, program, words
from gengap import progress as shown
from gengap.hessian import Estimate, Loss, estimate, quadratic_form

__all__ = [
    "NoiseScale", "average_case", "distance", "fisher_trace", "noise_scale", "pac_bayes_sigma",
    "relative_flatness", "worst_case", "worst_case_linf",
]  # fmt: skip


def worst_case(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    eta: float = 0.0,
    max_evaluations: int = 12,
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> Float[Array, ""]:
    r"""$\max_{\|T^{-1}\delta\|_2 \le \rho} f(x + \delta) - f(x)$, with T = I, or |x| + eta if `adaptive`.

    Each step goes to where the gradient points, $\delta = \rho\, T^2 \nabla f / \|T \nabla f\|_2$. The highest
    value counts. With `max_evaluations=2` it is the one step of SAM and ASAM.

    Args:
      loss, params: f and x.
      key: random key for the direction to take if the gradient is 0.
      rho: the radius.
      adaptive: measure relative to the size of each parameter.
      eta: added to that size; 0.01 in ASAM's code. The measure is invariant to rescaling only if eta is 0.
      max_evaluations: gradients, including the one at x.
      only: which leaves to move, by their name such as "Dense_0/kernel"; the others stay.
      progress: as in `sharpness.full_space`.

    Reference: Foret et al., "Sharpness-Aware Minimization", 2021; Kwon et al., "ASAM", 2021, eq. 3.

    >>> float(worst_case(lambda x: 3 * x[0] + 4 * x[1], jnp.zeros(2), jax.random.key(0), rho=0.1))
    0.5
    """
    evaluate, x, layout = _prepared(loss, params, key, rho, eta, max_evaluations, only)
    delta, values = jnp.zeros_like(x), []
    with shown.of_measure(progress, "worst case", max_evaluations) as line:
        evaluate = line.counting(evaluate)
        for i in range(max_evaluations):
            value, gradient = evaluate(x, delta)
            delta = _ascended(x, gradient, jax.random.fold_in(key, i), rho, eta, adaptive)
            values.append(value)
    flat.warn_rounded(layout, x, delta)
    return checks.warn_not_finite(_rise(values))


def worst_case_linf(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    rho: float = 1e-3,
    adaptive: bool = False,
    eta: float = 0.0,
    max_evaluations: int = 12,
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> Float[Array, ""]:
    r"""$\max_{\|T^{-1}\delta\|_\infty \le \rho} f(x + \delta) - f(x)$ by `ascent.maximise`.

    With `adaptive` and eta = 1 it is Keskar's full-space sharpness without the denominator. The arguments are
    those of `worst_case`, but `max_evaluations` does not include the gradient at x.

    Reference: Andriushchenko et al., "A Modern Look at the Relationship between Sharpness and Generalization",
    2023, eq. 1 with p = infinity.
    """
    evaluate, x, layout = _prepared(loss, params, key, rho, eta, max_evaluations, only)
    value, gradient = evaluate(x, jnp.zeros_like(x))
    radius, sign = rho * _scale(x, eta, adaptive), jnp.sign(gradient)
    flat.warn_rounded(layout, x, radius)
    corners = jnp.stack([sign, -sign])
    with shown.of_measure(progress, "worst case, box", max_evaluations) as line:
        at_x = line.counting(partial(evaluate, x))
        top = ascent.maximise(at_x, radius, (value, gradient), corners, key, max_evaluations=max_evaluations)
    return checks.warn_not_finite(_rise([value, jnp.where(top.finite, top.value, jnp.nan)]))


def average_case(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    rho: float = 0.01,
    adaptive: bool = False,
    num_samples: int = 30,
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> Estimate:
    r"""$E\, f(x + \delta) - f(x)$ for $\delta \sim N(0, \rho^2 T^2)$, with T = I, or |x| if `adaptive`.

    Args:
      loss, params, adaptive, only, progress: as in `worst_case`.
      key: random key for the perturbations.
      rho: their standard deviation.
      num_samples: perturbations, at least 2; each costs half a gradient.

    Reference: Andriushchenko et al. (2023), eq. 1.
    """
    keys = checks.sample_keys(key, num_samples)
    checks.check_positive({"rho": rho})
    f, x, layout = flat.of(loss, params, only=only)
    flat.warn_rounded(layout, x, rho * _scale(x, 0.0, adaptive))
    noisy = program.compiled(partial(_noisy, f, adaptive))
    base = noisy(x, jax.random.clone(key), jnp.zeros_like(rho, x.dtype))
    rise = lambda key: noisy(x, key, jnp.asarray(rho, x.dtype)) - base  # noqa: E731
    return estimate(shown.each(rise, keys, progress, "average case"), -(-num_samples // 2))


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
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> Float[Array, ""]:
    r"""The $\sigma$ at which $N(0, \sigma^2 T^2)$ on the parameters raises the mean error by `rise`, by bisection.

    T = I, or |x| if `adaptive`. Flat minima have a large sigma; the measure of Jiang et al. is $1/\sigma^2$.

    Args:
      error: `params -> share of examples that are wrong`.
      params, adaptive, only, progress: as in `worst_case`.
      key: random key for the perturbations, which are the same for every sigma.
      rise: how far the error rises.
      num_samples: perturbations for each sigma.
      steps: steps of the bisection.
      largest: the upper end of the search; a RuntimeWarning says if the error does not rise enough below it.

    Reference: Jiang et al., "Fantastic Generalization Measures and Where to Find Them", 2020, appendix.
    """
    keys = checks.sample_keys(key, num_samples, least=1)
    checks.check_counts({"steps": steps})
    checks.check_positive({"rise": rise, "largest": largest})
    f, x, layout = flat.of(error, params, only=only)
    low, sigma, high = ends = [jnp.array(np.asarray(end, x.dtype)) for end in (0, largest / 2, largest)]
    noisy = program.compiled(partial(_noisy, f, adaptive))
    base = noisy(x, jax.random.clone(key), low)  # not 0.0, which would be compiled for itself
    with shown.of_measure(progress, "PAC-Bayes sigma", steps * num_samples, "sample") as line:
        noisy = line.counting(noisy)
        for _ in range(steps):
            errors = [noisy(x, jax.random.clone(key), sigma) for key in keys]
            low, sigma, high = _halved(low, sigma, high, errors, base, rise)
    flat.warn_rounded(layout, x, sigma * _scale(x, 0.0, adaptive))
    if not program.is_traced(high) and float(high) == float(ends[-1]):
        checks.warn(f"the error does not rise by {rise} up to sigma = {largest}; the value is a lower bound")
    return checks.warn_not_finite(sigma)


def relative_flatness(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    layer: Sequence[str | int],
    units: kernels.Units = kernels.last_axis,
    num_samples: int = 10,
    progress: str | None = "auto",
) -> Estimate:
    r"""$\kappa = \sum_{s,s'} \langle w_s, w_{s'} \rangle\, \mathrm{Tr} H_{s,s'}$ over one layer's neurons s.

    $w_s$ are the columns of the kernel $W \in R^{d \times m}$, with m neurons that read d numbers each. For random
    signs $z, r \in R^d$ it is the mean of $v^\top H v$ over $v = z \otimes W^\top r$, because
    $E\, W^\top r r^\top W = W^\top W$.

    Args:
      loss, params, progress: as in `worst_case`.
      key: random key for the signs.
      layer: the path of the kernel, key by key: ("Dense_5", "kernel"), ("layers", 0, "weight"), () for an array.
      units: which axes of the kernel count neurons, as in `landscape.filter_normalised`; see `kernels`.
      num_samples: products with the Hessian, at least 2; two gradients each.

    Raises:
      ValueError: no leaf has this path, or it is not the kernel of one layer. For stacked layers take
        `params=stack[i]`, `layer=()`, and a loss that puts its argument back by `stack.at[i].set`.

    Reference: Petzka et al., "Relative Flatness and Generalization", 2021, definition 3.
    """
    keys = checks.sample_keys(key, num_samples)
    f, leaf, kernel = kernels.alone(loss, params, layer, units)
    f, w, layout = flat.of(f, leaf)
    shape = layout.shapes[0]
    if kernel is None or kernel.layers:
        reason = "no kernel, says units" if kernel is None else "a stack; take one layer as params, and layer=()"
        raise ValueError(f"layer is {tuple(layer)}, of shape {shape}: {reason}")
    form = quadratic_form(f)
    of_signs = lambda key: form(w, kernels.outer_signs(w, key, shape, kernel.units))  # noqa: E731
    return estimate(shown.each(of_signs, keys, progress, "relative flatness", "product"), 2 * num_samples)


def distance(params: PyTree, start: PyTree) -> Float[Array, ""]:
    """The Euclidean distance from another point, such as where training began."""
    flat.check_alike(params, start)
    return checks.warn_not_finite(flat.unit(flat.ravel(params)[0] - flat.ravel(start)[0])[0])


def fisher_trace(
    apply: Callable,
    params: PyTree,
    x: Shaped[Array, "N ..."],
    key: Key[Array, ""],
    *,
    num_samples: int = 30,
    chunk: int = 5000,
    progress: str | None = "auto",
) -> Estimate:
    r"""The trace of the Fisher information, $\frac1N \sum_i E_{y \sim p_i} \|\nabla \log p_i(y)\|^2$.

    Each sample draws labels for all N examples from the network; $\|\sum_i \nabla \log p_i(y_i)\|^2 / N$ has the
    trace as its mean, because the scores of the examples are independent with mean 0.

    Args:
      apply: `(params, x) -> logits [N, ..., classes]`; each position before the classes is an example.
      params: its parameters.
      x: images (uint8, scaled by 1/255) or features.
      key: random key for the labels.
      num_samples: gradients, at least 2.
      chunk: the most rows of x at once.
      progress: as in `worst_case`.
    """
    keys, x = checks.sample_keys(key, num_samples), checks.as_array("x", x)
    checks.check_counts({"chunk": chunk, "len(x)": len(x)})
    ends = np.linspace(0, len(x), -(-len(x) // chunk) + 1).astype(int)
    v, layout = flat.ravel(params)
    score = program.compiled(partial(_score, apply, layout), donate=(0,))

    def of_labels(key: Array) -> Array:
        total, count = jnp.zeros_like(v), jnp.zeros((), int)
        for j, (begin, end) in enumerate(itertools.pairwise(ends)):
            total, count = score(total, count, x[begin:end], v, jax.random.fold_in(key, j))
        return flat.unit(total)[0] ** 2 / count.astype(v.dtype)

    return estimate(shown.each(of_labels, keys, progress, "Fisher trace", "gradient"), num_samples)


class NoiseScale(NamedTuple):
    r"""The simple noise scale $B = \mathrm{tr}(\Sigma) / |G|^2$ and its two parts, in examples."""

    value: Float[Array, ""]
    trace: Float[Array, ""]
    square: Float[Array, ""]

    def __repr__(self) -> str:
        return words.in_one_line(self)


def noise_scale(
    loss: Callable[[PyTree, Array, Array], Float[Array, ""]],
    params: PyTree,
    x: Shaped[Array, "N ..."],
    y: Integer[Array, " N"],
    key: Key[Array, ""],
    *,
    small: int = 16,
    large: int = 256,
    num_samples: int = 30,
    progress: str | None = "auto",
) -> NoiseScale:
    r"""The gradient noise scale from gradients of two batch sizes, with unbiased estimators of both parts.

    $|\mathcal G|^2 = \frac{B_b |G_b|^2 - B_s |G_s|^2}{B_b - B_s}$,
    $\mathcal S = \frac{|G_s|^2 - |G_b|^2}{1/B_s - 1/B_b}$; both are averaged before the division.

    Args:
      loss: `(params, x, y) -> mean loss` of a batch.
      params: the point.
      x, y: the data, from which batches are drawn with replacement.
      key: random key for the batches.
      small, large: the two batch sizes.
      num_samples: batches of each size; one gradient each.
      progress: as in `worst_case`.

    Returns:
      The scale and its parts; the scale is NaN, with a RuntimeWarning, if the estimate of the square is not
      above 0.

    Reference: McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, appendix A.1.
    """
    checks.check_key(key)
    checks.check_counts({"small": small, "large": large, "num_samples": num_samples})
    x, y = checks.as_array("x", x), checks.as_array("y", y)
    if small >= large:
        raise ValueError(f"small is {small} and large is {large}; small must be below large")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x has {len(x)} examples and y has {len(y)}; the numbers must be equal and above 0")
    flat.layout_of(params)
    lengths_of = [program.compiled(partial(_gradient_length, loss, size)) for size in (small, large)]
    keys = [checks.sample_keys(size_key, num_samples, least=1) for size_key in jax.random.split(key)]
    batches = [(i, batch_key) for i in (0, 1) for batch_key in keys[i]]
    of_batch = lambda batch: lengths_of[batch[0]](params, x, y, batch[1])  # noqa: E731
    lengths = flat.stacked(shown.each(of_batch, batches, progress, "noise scale", "gradient"))
    top = lengths.max()  # squares of small numbers would be 0
    of_small, of_large = ((lengths / (top + (top == 0))) ** 2).reshape(2, num_samples).mean(1)
    square = (large * of_large - small * of_small) / (large - small)
    trace = (of_small - of_large) / (1 / small - 1 / large)
    xp = lengths.__array_namespace__()
    value = trace / xp.where(square > 0, square, xp.nan)
    if not program.is_traced(square) and not square > 0:
        checks.warn(f"|G|^2 is {square:.3g}, not above 0, and the noise scale NaN; more samples may resolve it")
    return NoiseScale(jnp.asarray(value), jnp.asarray(top**2 * trace), jnp.asarray(top**2 * square))


def _prepared(
    loss: Loss, params: PyTree, key: object, rho: object, eta: object, max_evaluations: object, only: Any
) -> tuple[Callable, Array, flat.Layout]:
    """Check the arguments. Returns `(x, delta) -> (f, its gradient)` at x + delta, x and its layout."""
    checks.check_key(key)
    checks.check_counts({"max_evaluations": max_evaluations})
    checks.check_positive({"rho": rho})
    checks.check_between({"eta": eta}, 0)
    f, x, layout = flat.of(loss, params, only=only)
    return program.compiled(lambda x, delta: jax.value_and_grad(f)(x + delta)), x, layout


def _scale(x: Array, eta: ArrayLike, adaptive: bool) -> Array:
    """The diagonal of T."""
    return jnp.abs(x) + eta if adaptive else jnp.ones_like(x)


@partial(jax.jit, static_argnames="adaptive")
def _ascended(x: Array, gradient: Array, key: Array, rho: Array, eta: Array, adaptive: bool) -> Array:
    """The delta of length rho that the gradient points to; a random one if the gradient is 0."""
    T = _scale(x, eta, adaptive)
    direction = T * gradient
    direction = jax.lax.cond(direction.any(), lambda: direction, partial(jax.random.normal, key, x.shape, x.dtype))
    return rho * T * flat.unit(direction)[1]


@jax.jit
def _rise(values: list[Array]) -> Array:
    """How far the highest value is above the first; NaN if one of them is not finite."""
    stack = jnp.stack(values)
    return jnp.where(jnp.isfinite(stack).all(), stack.max() - stack[0], jnp.nan)


def _noisy(f: Callable, adaptive: bool, x: Array, key: Array, rho: Array) -> Array:
    return f(x + rho * _scale(x, 0.0, adaptive) * jax.random.normal(key, x.shape, x.dtype))


@jax.jit
def _halved(
    low: Array, sigma: Array, high: Array, errors: list[Array], base: Array, rise: Array
) -> tuple[Array, Array, Array]:
    """The half of an interval at whose upper end the error rose; NaN if it is not finite at x."""
    mean = jnp.stack(errors).mean()
    rose = ~jnp.isfinite(mean) | (mean - base > rise)
    low, high = jnp.where(rose, low, sigma), jnp.where(rose, sigma, high)
    return low, jnp.where(jnp.isfinite(base), (low + high) / 2, jnp.nan), high


def _score(
    apply: Callable, layout: flat.Layout, total: Array, count: Array, x: Array, v: Array, key: Array
) -> tuple[Array, Array]:
    """The totals plus the gradient of the log probabilities of drawn labels, and the number of labels."""

    def log_probability(v: Array) -> tuple[Array, int]:
        logits = objective.check_logits(apply(layout.unravel(v), objective.scale(x)), len(x), ndim=None)
        p = jax.nn.log_softmax(logits.astype(v.dtype))
        labels = jax.random.categorical(key, jax.lax.stop_gradient(p))
        return jnp.take_along_axis(p, labels[..., None], -1).sum(), labels.size

    gradient, size = jax.grad(log_probability, has_aux=True)(v)
    return total + gradient, count + size


def _gradient_length(loss: Callable, size: int, params: PyTree, x: Array, y: Array, key: Array) -> Array:
    """The norm of the gradient of a batch."""
    rows = jax.random.randint(key, (size,), 0, len(x))
    f, v, _ = flat.of(lambda params: loss(params, x[rows], y[rows]), params)
    return flat.unit(jax.grad(f)(v))[0]
