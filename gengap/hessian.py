"""The Hessian of a loss without forming it: eigenpairs, trace, spectral density.

Everything is built on products $H v$ (Pearlmutter 1994), each of which costs about two gradients. `eigenpairs` and
`density` look at numbers to end, so that they cannot be traced; `product`, `part` and `trace` can.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr
from jaxtyping import Array, Bool, Float, Key, PyTree

from gengap import flat, lanczos

Loss = Callable[[PyTree], Float[Array, ""]]
Only = Callable[[str], bool] | None


class Eigenpairs(NamedTuple):
    r"""Eigenvalues of a Hessian and their vectors.

    Attributes:
      values: the outermost first; of both ends, the largest before the smallest.
      vectors: as params with a leading axis, of length 1, in float32 or wider; 0 where a leaf is held fixed, and
        a leaf that is a function as it is.
      residuals: $\|H v - \lambda v\|$, from a product of its own. An eigenvalue is that near.
      converged: whether the residual is within the tolerance and no eigenvalue further out is left.
      products: with the Hessian, at two gradients each.
    """

    values: Float[Array, " k"]
    vectors: Any
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    products: int


class Estimate(NamedTuple):
    """The mean of samples, its standard error, and what they cost in gradients (a product counts as two)."""

    value: Float[Array, ""]
    sem: Float[Array, ""]
    gradients: int


class Density(NamedTuple):
    """A spectral density that integrates to 1, with its standard error and what it cost in gradients."""

    eigenvalues: Float[Array, " points"]
    density: Float[Array, " points"]
    sem: Float[Array, " points"]
    gradients: int


def product(loss: Loss, params: PyTree, v: PyTree) -> Any:
    """The Hessian times a vector, a pytree as params; in float32 or wider.

    >>> product(lambda x: x[0] * x[1] ** 2, jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])).tolist()
    [4.0, 2.0]
    """
    flat.check_alike(params, v)
    f, x, layout = flat.of(loss, params)
    scale, w = lanczos.product(f)(x, flat.ravel(v)[0])
    return layout.unravel(scale * w, x.dtype)


def part(loss: Loss, params: PyTree, only: Only) -> tuple[Loss, PyTree]:
    """The loss as a function of some leaves, the others held fixed, and these leaves by path; for any measure.

    Args:
      loss: `params -> scalar`.
      params: a pytree; what is held fixed may be of any type.
      only: whether to take a leaf, by its name such as "Dense_0/kernel"; `None` takes params as they are.

    Raises:
      ValueError: it takes no leaf.

    >>> params = {"first": {"kernel": jnp.ones(2)}, "last": {"kernel": jnp.ones(3)}}
    >>> loss, last = part(lambda p: p["last"]["kernel"].sum(), params, lambda name: name.startswith("last/"))
    >>> list(last), float(loss(last))
    (["['last']['kernel']"], 3.0)
    """
    if only is None:
        return loss, params
    leaves = jax.tree.leaves_with_path(params)
    taken = {keystr(path): leaf for path, leaf in leaves if only(keystr(path, simple=True, separator="/"))}
    if not taken:
        names = ", ".join(keystr(path, simple=True, separator="/") for path, _ in leaves)
        raise ValueError(f"only takes none of the leaves {names}")
    return lambda taken: loss(
        jax.tree.map_with_path(lambda path, leaf: taken.get(keystr(path), leaf), params)
    ), taken


def eigenpairs(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    k: int = 1,
    which: Literal["largest", "smallest", "both"] = "largest",
    tolerance: float = 1e-4,
    max_products: int = 300,
    only: Only = None,
) -> Eigenpairs:
    r"""The k outermost eigenvalues of the Hessian and their vectors, by Lanczos iterations from random starts.

    The Krylov space of a start holds each eigenvalue once, however often it occurs. So when k residuals are within
    the tolerance, another start follows, orthogonal to all vectors before, until an eigenvalue beyond the k-th
    would have shown with a probability of 0.999 (for k = 1 one start does). In the end they may span R^n, and
    every pair is exact. The basis takes the memory of one params for each product.

    Args:
      loss: `params -> scalar`.
      params: where.
      key: of the starts.
      k: pairs, from 1 to the number of parameters.
      which: the largest, the smallest (most negative), or both: half of k each, an odd one to the largest.
      tolerance: of a residual r, relative to the largest absolute eigenvalue. The value is good to r, and to
        r^2 / d where the others are at a distance d. Float32 resolves no r below some 1e-6.
      max_products: with the Hessian; what has not converged by then says so, with a RuntimeWarning.
      only: the leaves to take, the others held fixed; see `part`.

    Returns:
      k pairs; NaN, with a RuntimeWarning, if the Hessian is not finite.

    Raises:
      ValueError: an argument is out of its range or traced.

    Reference: Parlett, "The Symmetric Eigenvalue Problem", 1998, ch. 13; van Dorsselaer, Hochstenbach and van der
    Vorst, "Computing Probabilistic Bounds for Extreme Eigenvalues of Symmetric Matrices with the Lanczos Method",
    2000.

    >>> found = eigenpairs(lambda x: x[0] ** 2 - x[1] ** 2, jnp.zeros(2), jax.random.key(0), which="both", k=2)
    >>> [round(value, 4) for value in found.values.tolist()], found.converged.tolist(), found.products
    ([2.0, -2.0], [True, True], 4)
    """
    f, x, layout = flat.of(*part(loss, params, only))
    flat.check_key(key)
    flat.check_counts({"k": k, "max_products": max_products})
    flat.check_positive({"tolerance": tolerance})
    if k > (most := min(len(x), max_products)):
        raise ValueError(f"k is {k}; it must be at most {most}, the parameters or max_products")
    ends = {"largest": (k, 0), "smallest": (0, k), "both": (k - k // 2, k // 2)}
    if which not in [*ends]:
        raise ValueError(f"which is {which!r}; it must be 'largest', 'smallest' or 'both'")
    times = lanczos.product(f)
    basis, goes_on = lanczos.Lanczos(times, x, key), True
    while goes_on and len(basis.T) < max_products:
        basis.step()
        goes_on = basis.goes_on(*ends[which], tolerance)
    values, S, _ = basis.ritz()
    weights = np.zeros((len(basis.V), k), x.dtype)
    weights[: len(basis.T)] = S[:, lanczos.outermost(values, *ends[which])]
    vectors = np.asarray(_combined(basis.V, weights))
    found, residuals = np.array([_quotient(v, *times(x, v)) for v in vectors], x.dtype).T
    close = residuals <= tolerance * np.abs(values).max()
    products = len(basis.T) + k
    if not np.isfinite(residuals).all():
        flat.warn("the Hessian is not finite, and its eigenvalues are NaN")
    elif goes_on or not close.all():
        more = ", and an eigenvalue further out may be left" if goes_on else ""
        flat.warn(f"after {products} products {np.sum(~close)} of {k} residuals are above the tolerance{more}")
    tree = layout.unravel(vectors, x.dtype)
    if only is not None:
        taken = tree

        def whole(path: Any, leaf: Any) -> Any:
            fixed = leaf if callable(leaf) else np.zeros((k, *np.shape(leaf)), x.dtype)
            return taken.get(keystr(path), fixed)

        tree = jax.tree.map_with_path(whole, params)
    tree = jax.tree.map(lambda leaf: leaf if callable(leaf) else jnp.array(leaf), tree)
    return Eigenpairs(jnp.array(found), tree, jnp.array(residuals), jnp.array(close & (not goes_on)), products)


def trace(loss: Loss, params: PyTree, key: Key[Array, ""], *, num_samples: int = 30) -> Estimate:
    """The trace of the Hessian by Hutchinson's estimator: the mean of v^T H v over random signs v.

    Args:
      loss: `params -> scalar`.
      params: where.
      key: of the signs.
      num_samples: products with the Hessian, at least 2.

    >>> float(trace(lambda x: 2 * x @ x, jnp.zeros(3), jax.random.key(0), num_samples=2).value)
    12.0
    """
    keys = flat.keys(key, num_samples)
    f, x, _ = flat.of(loss, params)
    form = quadratic_form(f)
    signs = (jax.random.rademacher(key, x.shape, x.dtype) for key in keys)
    return estimate([form(x, v) for v in signs], 2 * num_samples)


def density(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    num_samples: int = 5,
    num_products: int = 50,
    points: int = 400,
    width: float | None = None,
) -> Density:
    """The density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    Args:
      loss: `params -> scalar`.
      params: where.
      key: of the random starts.
      num_samples: random starts, at least 2.
      num_products: with the Hessian, for each; fewer where a Krylov space is exhausted.
      points: eigenvalues at which to give it, from end to end with a margin of five widths.
      width: standard deviation of the Gaussian; 1 % of the range of the eigenvalues unless given, but at least
        0.1 % of the largest absolute one.

    Returns:
      The density; NaN, with a RuntimeWarning, if the Hessian is not finite.

    Raises:
      ValueError: an argument is out of its range or traced.

    Reference: Ghorbani, Krishnan and Xiao, "An Investigation into Neural Net Optimization via Hessian Eigenvalue
    Density", 2019.
    """
    keys = flat.keys(key, num_samples)
    flat.check_counts({"points": points}, 2)
    flat.check_counts({"num_products": num_products})
    if width is not None:
        flat.check_positive({"width": width})
    f, x, _ = flat.of(loss, params)
    found, products, times = [], 0, lanczos.product(f)
    for basis in (lanczos.Lanczos(times, x, key) for key in keys):
        while basis.v is not None and len(basis.T) < num_products:
            basis.step()
        found.append(basis.ritz())
        products += len(basis.T)
    nodes = np.concatenate([values for values, _, _ in found])
    low, high = nodes.min(), nodes.max()
    spread = width or max(0.01 * (high - low), 1e-3 * np.abs(nodes).max()) or 1.0
    at = np.linspace(low - 5 * spread, high + 5 * spread, points)
    each = np.stack([np.exp(-0.5 * ((at[:, None] - v[None]) / spread) ** 2) @ S[0] ** 2 for v, S, _ in found])
    each /= spread * math.sqrt(2 * math.pi)
    if not np.isfinite(each).all():
        flat.warn("the Hessian is not finite, and its density is NaN")
    mean, sem = each.mean(0), each.std(0, ddof=1) / math.sqrt(num_samples)
    return Density(jnp.array(at, x.dtype), jnp.array(mean, x.dtype), jnp.array(sem, x.dtype), 2 * products)


def quadratic_form(f: Callable) -> Callable[[Array, Array], Array]:
    """`(x, v) -> v^T H v`."""
    times = lanczos.product(f)
    return lambda x, v: _quotient(v, *times(x, v))[0]


def estimate(samples: Sequence[Array], gradients: int) -> Estimate:
    """Their mean; a RuntimeWarning if it is not finite."""
    values = flat.stacked(samples)
    xp = values.__array_namespace__()
    with np.errstate(invalid="ignore"):
        scale = xp.max(xp.abs(values))
        sem = scale * xp.std(values / xp.where(scale == 0, 1, scale), ddof=1) / len(values) ** 0.5
    return Estimate(flat.said(jnp.asarray(xp.mean(values)), 5), jnp.asarray(sem), gradients)


@jax.jit
def _quotient(v: Array, scale: Array, w: Array) -> Float[Array, "2"]:
    """The Rayleigh quotient of a v of length 1 from H v, and its residual."""
    value = jnp.vdot(v, w, precision="highest")
    return scale * jnp.stack([value, jnp.linalg.norm(w - value * v)])


@jax.jit
def _combined(V: Array, weights: Array) -> Float[Array, "k n"]:
    """Sums of rows, of length 1."""
    sums = jnp.dot(weights.T, V, precision="highest")
    return sums / jnp.linalg.norm(sums, axis=1, keepdims=True)
