"""The Hessian of a loss without forming it: eigenpairs, trace, spectral density.

Everything is built on products $H v$ (Pearlmutter 1994), each of which costs about two gradients. `eigenpairs`,
`density` and `explain` decide by values when to stop and cannot be traced; `product` and `trace` can.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from gengap import checks, flat, lanczos, program, words
from gengap import progress as shown

__all__ = [
    "Density", "Eigenpairs", "Estimate", "Explanation", "Loss", "density", "eigenpairs", "estimate", "explain",
    "product", "quadratic_form", "trace",
]  # fmt: skip

Loss = Callable[[PyTree], Float[Array, ""]]


class Eigenpairs(NamedTuple):
    r"""Eigenvalues of a Hessian and their vectors.

    Attributes:
      values: the outermost first; with both ends, the largest before the smallest.
      vectors: unit vectors, a pytree like params with a leading axis of k, in float32 or wider.
      residuals: $\|H v - \lambda v\|$, from an extra product. H has an eigenvalue at most that far from the value.
      converged: whether the residual is within the tolerance and no eigenvalue further out is missing.
      products: products with the Hessian, two gradients each.
    """

    values: Float[Array, " k"]
    vectors: Any
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    products: int

    def __repr__(self) -> str:
        return words.in_one_line(self)


class Estimate(NamedTuple):
    """The mean of samples, its standard error, and what they cost in gradients (a product counts as two)."""

    value: Float[Array, ""]
    sem: Float[Array, ""]
    gradients: int

    def __repr__(self) -> str:
        return f"Estimate({words.shown(self.value)} ± {words.shown(self.sem)}, {self.gradients} gradients)"


class Density(NamedTuple):
    """A spectral density that integrates to 1, with its standard error and what it cost in gradients."""

    eigenvalues: Float[Array, " points"]
    density: Float[Array, " points"]
    sem: Float[Array, " points"]
    gradients: int

    def __repr__(self) -> str:
        return words.in_one_line(self)


class Explanation(NamedTuple):
    r"""A step s from x, such as the one to the maximum of Metric 2.1, compared with the Hessian's eigenvectors v.

    Attributes:
      sharpness: $100\,(f(x + s) - f(x)) / (1 + f(x))$, as in the metric.
      linear: the part of it that the gradient predicts, $100\, g^\top s / (1 + f(x))$.
      quadratic: the part that the Hessian predicts, $50\, s^\top H s / (1 + f(x))$.
      of_eigenvectors: the part of that from each of the top k, $50\, \lambda_i (v_i^\top s)^2 / (1 + f(x))$.
      share: the share of the squared length of s along each of them.
      eigenvalues: their eigenvalues, the largest first.
    """

    sharpness: Float[Array, ""]
    linear: Float[Array, ""]
    quadratic: Float[Array, ""]
    of_eigenvectors: Float[Array, " k"]
    share: Float[Array, " k"]
    eigenvalues: Float[Array, " k"]

    def __repr__(self) -> str:
        """The rise of the loss, and how much of it the Hessian and its top eigenvectors predict."""
        numbers = self.sharpness, self.linear + self.quadratic, self.of_eigenvectors.sum(), 100 * self.share.sum()
        whole, predicted, top, share = map(words.shown, numbers)
        return (
            f"Explanation({whole} %: gradient and Hessian at x predict {predicted} %,"
            f" the top {len(self.share)} eigenvectors {top} %, with {share} % of the step)"
        )


def product(loss: Loss, params: PyTree, v: PyTree) -> Any:
    """The Hessian times a vector, both pytrees like params; in float32 or wider.

    >>> product(lambda x: x[0] * x[1] ** 2, jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])).tolist()
    [4.0, 2.0]
    """
    flat.check_alike(params, v)
    f, x, layout = flat.of(loss, params)
    scale, w = lanczos.product(f)(x, flat.ravel(v)[0])
    return layout.unravel(scale * w, x.dtype)


def eigenpairs(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    k: int = 1,
    which: Literal["largest", "smallest", "both"] = "largest",
    tolerance: float = 1e-4,
    max_products: int = 300,
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> Eigenpairs:
    r"""The k outermost eigenvalues of the Hessian and their vectors, by Lanczos iterations from random starts.

    With k starts the Krylov space holds an eigenvalue of multiplicity m up to min(k, m) times. If the space is
    exhausted, another random start enlarges it; once it is R^n, every pair is exact. The basis takes the memory of
    one params for each product.

    Args:
      loss, params: `params -> scalar`, and the point.
      key: random key for the starts.
      k: number of pairs, from 1 to the number of parameters.
      which: the largest, the smallest (most negative), or both: half of k each, one more of the largest for odd k.
      tolerance: of a residual r, relative to the largest absolute eigenvalue. The error of the value is at most r,
        and at most r^2 / d if the others are at a distance d. Float32 does not resolve r below about 1e-6.
      max_products: products with the Hessian; a RuntimeWarning says if some pairs have not converged by then.
      only: which leaves to take, by their name such as "Dense_0/kernel": their block of the Hessian.
      progress: as in `sharpness.full_space`.

    Returns:
      k pairs; NaN, with a RuntimeWarning, if the Hessian is not finite.

    Raises:
      ValueError: an argument is out of range or traced.

    Reference: Parlett, "The Symmetric Eigenvalue Problem", 1998, ch. 13.

    >>> pairs = eigenpairs(lambda x: x[0] ** 2 - x[1] ** 2, jnp.zeros(2), jax.random.key(0), which="both", k=2)
    >>> [round(value, 4) for value in pairs.values.tolist()], pairs.converged.tolist(), pairs.products
    ([2.0, -2.0], [True, True], 4)
    """
    f, x, layout = flat.of(loss, params, only=only)
    checks.check_key(key)
    checks.check_counts({"k": k, "max_products": max_products})
    checks.check_positive({"tolerance": tolerance})
    if k > (most := min(len(x), max_products)):
        raise ValueError(f"k is {k}; it must be at most {most}, the parameters or max_products")
    highest = {"largest": k, "smallest": 0, "both": k - k // 2}
    if which not in [*highest]:
        raise ValueError(f"which is {which!r}; it must be 'largest', 'smallest' or 'both'")
    times, high = lanczos.product(f), highest[which]
    with shown.of_measure(progress, "Hessian eigenvalues", min(len(x), max_products), "product") as line:
        rows, slack, steps, complete = _outermost(times, x, key, high, k - high, tolerance, max_products, line)
    values, residuals = np.array([_quotient(v, *times(x, v)) for v in rows], x.dtype).T
    within = residuals <= slack
    if not np.isfinite(residuals).all():
        checks.warn("the Hessian is not finite, and its eigenvalues are NaN")
    elif not (complete and within.all()):
        more = "" if complete else ", and an eigenvalue further out may be left"
        checks.warn(f"after {steps + k} products {np.sum(~within)} of {k} residuals are above the tolerance{more}")
    vectors = jax.tree.map(jnp.array, layout.unravel(rows, x.dtype))
    return Eigenpairs(jnp.array(values), vectors, jnp.array(residuals), jnp.array(within & complete), steps + k)


def trace(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    num_samples: int = 30,
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> Estimate:
    """The trace of the Hessian by Hutchinson's estimator: the mean of v^T H v over random signs v.

    Args:
      loss: `params -> scalar`.
      params: the point.
      key: random key for the signs.
      num_samples: products with the Hessian, at least 2.
      only, progress: as in `eigenpairs`.

    >>> float(trace(lambda x: 2 * x @ x, jnp.zeros(3), jax.random.key(0), num_samples=2).value)
    12.0
    """
    keys = checks.sample_keys(key, num_samples)
    f, x, _ = flat.of(loss, params, only=only)
    form = quadratic_form(f)
    of_signs = lambda key: form(x, jax.random.rademacher(key, x.shape, x.dtype))  # noqa: E731
    return estimate(shown.each(of_signs, keys, progress, "Hessian trace", "product"), 2 * num_samples)


def density(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    num_samples: int = 5,
    num_products: int = 50,
    points: int = 400,
    width: float | None = None,
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> Density:
    """The density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    Args:
      loss: `params -> scalar`.
      params: the point.
      key: random key for the starts.
      num_samples: random starts, at least 2.
      num_products: products with the Hessian for each start; fewer if its Krylov space is exhausted.
      points: number of eigenvalues at which to give the density, over their range with a margin of five widths.
      width: standard deviation of the Gaussian; by default 1 % of the range of the eigenvalues, but at least 0.1 %
        of the largest absolute one.
      only, progress: as in `eigenpairs`.

    Returns:
      The density; NaN, with a RuntimeWarning, if the Hessian is not finite.

    Raises:
      ValueError: an argument is out of range or traced.

    Reference: Ghorbani, Krishnan and Xiao, "An Investigation into Neural Net Optimization via Hessian Eigenvalue
    Density", 2019.
    """
    keys = checks.sample_keys(key, num_samples)
    checks.check_counts({"points": points}, 2)
    checks.check_counts({"num_products": num_products})
    if width is not None:
        checks.check_positive({"width": width})
    f, x, _ = flat.of(loss, params, only=only)
    times = lanczos.product(f)
    of_start = lambda key: lanczos.rule(lanczos.tridiagonal(times, x, key, num_products))  # noqa: E731
    spectra = shown.each(of_start, keys, progress, "Hessian density", "start")
    products = sum(len(values) for values, _ in spectra)
    nodes = np.concatenate([values for values, _ in spectra])
    low, high = nodes.min(), nodes.max()
    sigma = width or max(0.01 * (high - low), 1e-3 * np.abs(nodes).max()) or 1.0
    at = np.linspace(low - 5 * sigma, high + 5 * sigma, points)
    samples = np.stack([np.exp(-0.5 * ((at[:, None] - v[None]) / sigma) ** 2) @ weights for v, weights in spectra])
    samples /= sigma * math.sqrt(2 * math.pi)
    if not np.isfinite(samples).all():
        checks.warn("the Hessian is not finite, and its density is NaN")
    mean, sem = samples.mean(0), samples.std(0, ddof=1) / math.sqrt(num_samples)
    return Density(jnp.array(at, x.dtype), jnp.array(mean, x.dtype), jnp.array(sem, x.dtype), 2 * products)


def explain(
    loss: Loss,
    params: PyTree,
    step: PyTree,
    key: Key[Array, ""],
    *,
    k: int = 5,
    tolerance: float = 1e-4,
    max_products: int = 300,
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> Explanation:
    """How much of a step lies along the top eigenvectors of the Hessian, and how much of the rise they predict.

    If `of_eigenvectors[0]` is near `sharpness`, the largest eigenvalue can replace the metric at this minimum. If
    even `linear + quadratic` is far from it, no number of the Hessian at x can.

    Args:
      loss, params: f and x.
      step: s, a pytree like params, such as `sharpness.full_space(..., with_step=True).step`.
      key, k, tolerance, max_products, progress: as in `eigenpairs`.
      only: the same as for the step.

    >>> f, x = lambda x: x[0] ** 2 + 3 * x[1] ** 2, jnp.zeros(2)
    >>> explain(f, x, jnp.array([0.1, 0.1]), jax.random.key(0), k=1)
    Explanation(4 %: gradient and Hessian at x predict 4 %, the top 1 eigenvectors 3 %, with 50 % of the step)
    """
    how: dict[str, Any] = {"max_products": max_products, "only": only, "progress": progress}
    pairs = eigenpairs(loss, params, key, k=k, tolerance=tolerance, **how)
    f, x, layout = flat.of(loss, params, only=only)
    s, other = flat.ravel(step)
    if (other.tree, other.shapes) != (layout.tree, layout.shapes):
        raise ValueError("step is not like params: it must be one step, a pytree of the same structure and shapes")
    scale, product = lanczos.product(f)(x, s)
    base, slope = program.compiled(jax.value_and_grad(f))(x)
    top = program.compiled(f)(x + s)
    unit = 100 / (1 + base)
    along = jnp.stack([jnp.vdot(v, s) for v in _rows(pairs.vectors)])
    return Explanation(
        unit * (top - base),
        unit * jnp.vdot(slope, s),
        unit * scale * jnp.vdot(s, product) / 2,
        unit * pairs.values * along**2 / 2,
        along**2 / jnp.vdot(s, s),
        pairs.values,
    )


def _rows(vectors: PyTree) -> Float[Array, "k n"]:
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(vectors)], 1)


def quadratic_form(f: Callable) -> Callable[[Array, Array], Array]:
    """`(x, v) -> v^T H v`."""
    times = lanczos.product(f)
    return lambda x, v: _quotient(v, *times(x, v))[0]


def estimate(samples: Sequence[Array], gradients: int) -> Estimate:
    """The mean of samples and its error; a RuntimeWarning if the mean is not finite."""
    values = flat.stacked(samples)
    xp = values.__array_namespace__()
    with np.errstate(invalid="ignore"):
        scale = xp.max(xp.abs(values))
        sem = scale * xp.std(values / xp.where(scale == 0, 1, scale), ddof=1) / len(values) ** 0.5
    return Estimate(checks.warn_not_finite(jnp.asarray(xp.mean(values)), 5), jnp.asarray(sem), gradients)


def _outermost(
    times: Callable,
    x: Array,
    key: Array,
    high: int,
    low: int,
    tolerance: float,
    max_products: int,
    line: shown.Line,
) -> tuple[np.ndarray, float, int, bool]:
    """Vectors of the outermost eigenvalues, the residual allowed, the products taken, and whether they suffice."""
    wanted = [*range(-1, -1 - high, -1), *range(low)]
    for krylov in lanczos.iterate(times, x, key, max(high, low)):
        size = len(krylov.T)
        line.update(at_most=True)
        last = size in (max_products, len(x))
        if last or (size >= high + low and size % (1 + size // 50) == 0):  # `eigh` may cost more than a product
            values, S, bounds = lanczos.ritz(krylov)
            slack = tolerance * np.abs(values).max()
            complete = bool((bounds[wanted] <= slack).all())
            if last or complete or np.isnan(slack):
                break
    return lanczos.combine(krylov.V, S[:, wanted]), slack, size, complete


@jax.jit
def _quotient(v: Array, scale: Array, w: Array) -> Float[Array, "2"]:
    """The Rayleigh quotient of a unit vector v, given H v, and its residual."""
    value = jnp.vdot(v, w, precision="highest")
    return scale * jnp.stack([value, jnp.linalg.norm(w - value * v)])
