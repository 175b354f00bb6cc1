r"""Sharpness, Metric 2.1 of Keskar et al. (2016): how far the loss rises within a small box around a minimum.

$$\phi_{x,f}(\epsilon, A) = \frac{(\max_{y \in C_\epsilon} f(x + A y)) - f(x)}{1 + f(x)} \times 100, \qquad
C_\epsilon = \{ z \in R^p : |z_i| \le \epsilon (|(A^+ x)_i| + 1) \}$$ (eqs. 3 and 4).

The functions take the loss as a function of the parameters alone, and know neither networks nor data. Every value
is a lower bound of the maximum in the definition.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import tqdm
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from gengap import ascent, flat, subspace
from gengap.subspace import Subspace

_OUTSIDE = (2.0, 1.4)  # multiples of the box at whose corners the full space is looked at first
_CLIMB = 6  # looks for a direction


class Sharpness(NamedTuple):
    """The metric with what it was computed from: scalars, or an axis of the epsilons.

    Attributes:
      value: phi, in the paper's units (x 100).
      base_loss: f(x), in nats.
      max_loss: f(x + A y*), in nats.
      evaluations: gradients spent on the maximum, the one at x left out.
      finite: whether the loss and its gradient were finite wherever they were looked at.
    """

    value: Float[Array, "..."]
    base_loss: Float[Array, "..."]
    max_loss: Float[Array, "..."]
    evaluations: Int[Array, "..."]
    finite: Bool[Array, "..."]


class SubspaceSharpness(NamedTuple):
    """The metric in several random subspaces: the last axis counts the draws, one before it the epsilons.

    Attributes:
      value, base_loss, max_loss, evaluations, finite: as of `Sharpness`.
      shared_evaluations: gradients spent once for all draws of an epsilon, on their directions.
    """

    value: Float[Array, "... draws"]
    base_loss: Float[Array, "... draws"]
    max_loss: Float[Array, "... draws"]
    evaluations: Int[Array, "... draws"]
    finite: Bool[Array, "... draws"]
    shared_evaluations: Int[Array, "... draws"]

    @property
    def mean(self) -> Float[Array, "..."]:
        """Mean over the draws."""
        return self.value.mean(-1)

    @property
    def sem(self) -> Float[Array, "..."]:
        """Standard error of the mean over the draws; NaN for a single draw.

        The draws share the directions that their ascents begin in. Where these miss a basin, all draws do, and no
        standard error shows it.
        """
        draws = self.value.shape[-1]
        return self.value.std(-1, ddof=1) / np.sqrt(draws) if draws > 1 else jnp.full_like(self.mean, jnp.nan)

    def interval(self, level: float = 0.95) -> Float[np.ndarray, "... 2"]:
        """Bootstrap interval of the mean over the draws (BCa); NaN below five. What `sem` says holds here too."""
        values = np.asarray(self.value, np.float64)
        if values.shape[-1] < 5:
            return np.full((*values.shape[:-1], 2), np.nan)
        if np.all(values == values[..., :1]):
            return np.stack([values[..., 0]] * 2, -1)
        rng = np.random.default_rng(0)
        found = scipy.stats.bootstrap((values,), np.mean, axis=-1, confidence_level=level, rng=rng)
        return np.stack([found.confidence_interval.low, found.confidence_interval.high], -1)


def full_space(
    loss: Callable,
    params: PyTree,
    key: Key[Array, ""],
    *,
    epsilon: float | Sequence[float] = 1e-3,
    max_evaluations: int = 24,
) -> Sharpness:
    """Metric 2.1 with A = I (Table 3).

    Two ascents begin in the box: at the corner that the gradient points to after looks at the corners of boxes of
    2 and 1.4 times the size, and at the corner opposite to the gradient at x. See `ascent.maximise`.

    Args:
      loss: `params -> scalar`, in nats.
      params: x, floating-point leaves.
      key: of the coordinates that change sides when an ascent begins again.
      epsilon: one size of the box, or several; the result then has an axis of them.
      max_evaluations: gradients for each epsilon; below 6 a single ascent begins where the gradient at x points.

    Returns:
      Scalars, or one of each per epsilon.

    Raises:
      ValueError: an argument is out of its range, or f(x) is not finite or not above -1.

    >>> s = full_space(lambda x: x @ x, jnp.array([0.0, 1.0]), jax.random.key(0), epsilon=0.5)
    >>> float(s.max_loss)  # (0.5, 2.0) or (-0.5, 2.0): 0.25 + 4
    4.25
    """
    _check(key, epsilon, {"max_evaluations": max_evaluations})
    f, x, _ = flat.of(loss, params)
    centre = _at_minimum(f, x)
    outside = _OUTSIDE if max_evaluations >= 6 else ()
    tops = []
    for e in _each(epsilon):
        r = _radius(x, None, e)
        far = centre[1]
        for multiple in outside:
            far = _look_outside(f, x, multiple, r, far)
        starts = _two_corners(far, centre[1])[: 1 + bool(outside)]
        looks = max_evaluations - len(outside)
        tops.append([ascent.maximise(partial(_look, f, x, None), r, centre, starts, key, max_looks=looks)])
    found = Sharpness(**_metric(centre[0], tops, np.shape(epsilon), len(outside)))
    _warn(found)
    return found


def random_subspaces(
    loss: Callable,
    params: PyTree,
    key: Key[Array, ""],
    *,
    dim: int = 100,
    num_draws: int = 10,
    epsilon: float | Sequence[float] = 1e-3,
    max_evaluations: int = 24,
    num_directions: int = 6,
    entries: subspace.Entries = subspace.signs,
    draws_at_once: int = 1,
    progress: str | None = None,
) -> SubspaceSharpness:
    """Metric 2.1 in random subspaces (Table 4): draws of A, each from a key of its own.

    The paper leaves the distribution of A open; here its entries are random signs. All epsilons look into the same
    subspaces. The ascents of every draw begin at the corners that a few directions point to, which were found in
    the full space once for a minimum (see `directions`). A draw depends on its key and on them alone, so that more
    draws leave the first ones as they are.

    Args:
      loss: `params -> scalar`, in nats.
      params: x, floating-point leaves, n in all.
      key: of the draws and the directions.
      dim: p, columns of A, 1 to n.
      num_draws: matrices A.
      epsilon: one size of the box, or several; the result then has an axis of them.
      max_evaluations: gradients for each draw and epsilon.
      num_directions: at six gradients each, for each epsilon; with 0 an ascent begins where the gradient at x
        points.
      entries: sampler of the entries of A, see `subspace.draw`.
      draws_at_once: under one `vmap`; more fill an accelerator that the gradient of one point does not.
      progress: what to call a progress bar of the draws; `None` shows none.

    Returns:
      Arrays `[num_draws]`, or `[epsilons, num_draws]`.

    Raises:
      ValueError: an argument is out of its range, or f(x) is not finite or not above -1.

    >>> x = jnp.arange(9.0)
    >>> s = random_subspaces(lambda x: x.sum(), x, jax.random.key(0), dim=2, num_draws=3)
    >>> s.value.shape, s.mean.shape, int(s.evaluations[0]), int(s.shared_evaluations[0])
    ((3,), (), 24, 36)
    """
    counts = {"dim": dim, "num_draws": num_draws, "max_evaluations": max_evaluations}
    _check(key, epsilon, counts | {"draws_at_once": draws_at_once})
    flat.check_counts({"num_directions": num_directions}, 0)
    f, x, _ = flat.of(loss, params)
    if dim > len(x):
        raise ValueError(f"dim is {dim}; it must be from 1 to {len(x)}, the number of parameters")
    base, slope = _at_minimum(f, x)
    count = min(num_directions, len(x))
    entry = 1.0 if entries is subspace.signs else _root_mean_square(key, len(x), dim, entries)
    ways = [_directions(f, x, slope, key, e * entry, dim, count) for e in _each(epsilon)]
    tops: list[list[ascent.Maximum]] = [[] for _ in ways]
    keys = draw_keys(key, num_draws)
    with tqdm.tqdm(total=num_draws, desc=progress, unit="draw", disable=progress is None) as bar:
        for i in range(0, num_draws, draws_at_once):
            group = keys[i] if draws_at_once == 1 else keys[i : i + draws_at_once]
            A, unit, in_A = _draw((len(x), dim, entries), group, x, slope)
            look = partial(_look, f, x, A)
            for e, way, top in zip(_each(epsilon), ways, tops, strict=True):
                starts = _corners(A, way, e * unit)
                top.append(ascent.maximise(look, e * unit, (base, in_A), starts, group, max_looks=max_evaluations))
            bar.update(min(draws_at_once, num_draws - i))
    shape = (*np.shape(epsilon), num_draws)
    found = SubspaceSharpness(**_metric(base, tops, shape), shared_evaluations=jnp.full(shape, _CLIMB * count))
    _warn(found)
    return found


@partial(jax.jit, static_argnums=1)
def draw_keys(key: Key[Array, ""], num_draws: int) -> Key[Array, " draws"]:
    """The keys of the matrices that `random_subspaces` draws: `subspace.draw(draw_keys(key, 10)[3], n, 100)`."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_draws))


def restrict(loss: Callable, params: PyTree, A: Subspace | None) -> Partial:
    """`y -> f(x + A y)`, the function that Metric 2.1 maximises; A = I where `A` is `None`."""
    f, x, _ = flat.of(loss, params)
    return Partial(_at, f, x, A)


def box(params: PyTree, A: Subspace | None, epsilon: float) -> Float[Array, " p"]:
    """The half-widths of the box, epsilon (|A^+ x| + 1) (eq. 3); A = I where `A` is `None`."""
    return _radius(flat.of(len, params, scalar=False).x, A, epsilon)


def _at(f: Callable, x: Array, A: Subspace | None, y: Array) -> Array:
    return f(x + (y if A is None else subspace.times(A, y)))


@jax.jit
def _look(f: Callable, x: Array, A: Subspace | None, y: Array) -> tuple[Array, Array]:
    """The value and the gradient at y, or at each row of y in its own subspace."""

    def one(A: Subspace | None, y: Array) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(f)(x + (y if A is None else subspace.times(A, y)))
        return value, slope if A is None else subspace.transpose_times(A, slope)

    return one(A, y) if y.ndim == 1 else jax.vmap(one)(A, y)


def _at_minimum(f: Callable, x: Array) -> tuple[Array, Array]:
    base, slope = _look(f, x, None, jnp.zeros_like(x))
    if not flat.is_traced(base):
        if not np.isfinite(base):
            raise ValueError(f"loss(params) is {float(base)}; it must be finite")
        if base <= -1:
            raise ValueError(f"loss(params) is {float(base)}; the metric divides by 1 + f, so it must be above -1")
        if base < 0:
            warnings.warn(
                f"loss(params) is {float(base):.3g}, below 0: the metric divides by 1 + f",
                RuntimeWarning,
                stacklevel=3,
            )
    return base, slope


@jax.jit
def _radius(x: Array, A: Subspace | None, epsilon: Any) -> Array:
    return epsilon * (jnp.abs(x if A is None else subspace.pseudo_inverse_times(A, x)) + 1)


@jax.jit
def _look_outside(f: Callable, x: Array, multiple: Any, r: Array, slope: Array) -> Array:
    """The gradient at the corner of a larger box that a gradient points to; that one where it tells nothing."""
    return _useful_gradient(f, x + multiple * r * jnp.sign(slope), slope)


@jax.jit
def _two_corners(far: Array, slope: Array) -> Float[Array, "2 n"]:
    return jnp.stack([jnp.sign(far), -jnp.sign(slope)])


def _directions(
    f: Callable, x: Array, slope: Array, key: Array, entry: Any, dim: int, count: int
) -> Float[Array, "directions n"]:
    r"""Directions in the full space in which the ascents of all draws begin, orthonormal.

    Which examples a step pushes over belongs to the network and not to the subspace. The corner
    $r\,\mathrm{sign}(A^T g)$, seen along g, is a step of length $\rho \approx \epsilon \sigma p \sqrt{2/\pi}$ for
    p columns of independent entries of standard deviation sigma. So a direction is the gradient after a few steps
    to $\rho\, g / \|g\|$, orthogonal to the directions before it: independent ones can all miss a basin. The first
    look is as far away as a random corner of a subspace, $\epsilon \sigma \sqrt{p n}$.
    """
    if not count:
        return slope[None]
    ways = _normal(key, count, x)
    near, far = dim * math.sqrt(2 / math.pi), math.sqrt(dim * len(x))
    for i in range(count):
        for length in (far, *[near] * (_CLIMB - 1)):
            ways = _climb(f, x, ways, i, entry * length)
    return ways


@partial(jax.jit, static_argnums=1)
def _normal(key: Array, count: int, x: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(key, 2**32 - 1), (count, len(x)), x.dtype)


@jax.jit
def _climb(f: Callable, x: Array, ways: Array, i: Any, length: Any) -> Array:
    before = jnp.where(jnp.arange(len(ways))[:, None] < i, ways, 0)
    way = _orthogonal(before, ways[i])
    return ways.at[i].set(_orthogonal(before, _useful_gradient(f, x + length * way, way)))


def _orthogonal(found: Array, way: Array) -> Array:
    """The part of a direction that is orthogonal to those found, of length 1."""
    way = way / jnp.maximum(jnp.max(jnp.abs(way)), jnp.finfo(way.dtype).tiny)
    way = way - found.T @ (found @ way)
    return way / jnp.maximum(jnp.linalg.norm(way), jnp.finfo(way.dtype).tiny)


def _useful_gradient(f: Callable, x: Array, otherwise: Array) -> Array:
    """The gradient at x, unless it is not finite or 0."""
    value, slope = jax.value_and_grad(f)(x)
    useful = jnp.isfinite(value) & jnp.isfinite(slope).all() & (slope != 0).any()
    return jnp.where(useful, slope, otherwise)


def _root_mean_square(key: Array, n: int, dim: int, entries: subspace.Entries) -> Array:
    """Of the entries of A, from a sample of at most some 65,536."""
    return jnp.sqrt(jnp.mean(entries(key, (dim, min(n, -(-65536 // dim)))) ** 2))


@partial(jax.jit, static_argnums=0)
def _draw(how: tuple, keys: Array, x: Array, slope: Array) -> tuple[Subspace, Array, Array]:
    """A, its box for epsilon 1 and the gradient at x in it, for a key or several."""
    n, dim, entries = how

    def one(key: Array) -> tuple[Subspace, Array, Array]:
        A = subspace.draw(key, n, dim, entries=entries)
        return A, _radius(x, A, 1.0), subspace.transpose_times(A, slope)

    return jax.vmap(one)(keys) if keys.ndim else one(keys)


@jax.jit
def _corners(A: Subspace, ways: Float[Array, "starts n"], radius: Array) -> Float[Array, "starts *draws p"]:
    """The corners that directions point to in a subspace, or in several."""
    into = jax.vmap(subspace.transpose_times, (None, 0))
    return jnp.sign(into(A, ways) if radius.ndim == 1 else jax.vmap(into, (0, None), out_axes=1)(A, ways))


def _each(epsilon: Any) -> list[Any]:
    return list(jnp.atleast_1d(epsilon)) if flat.is_traced(epsilon) else np.atleast_1d(epsilon).tolist()


@partial(jax.jit, static_argnums=2)
def _metric(base: Array, tops: list[list[ascent.Maximum]], shape: tuple[int, ...], outside: Any = 0) -> Any:
    """The fields of `Sharpness`."""

    def joined(of: Callable) -> Array:
        return jnp.concatenate([jnp.atleast_1d(of(top)) for row in tops for top in row]).reshape(shape)

    top = joined(lambda top: top.value)
    return {
        "value": 100 * (top - base) / (1 + base),
        "base_loss": jnp.full(shape, base),
        "max_loss": top,
        "evaluations": joined(lambda top: top.evaluations) + outside,
        "finite": joined(lambda top: top.finite),
    }


def _warn(found: Sharpness | SubspaceSharpness) -> None:
    """Tell what the numbers cannot."""
    if flat.is_traced(found.value):
        return
    values, base = np.asarray(found.value), float(np.ravel(found.base_loss)[0])
    if np.isnan(values).any():
        raise ValueError(
            "the columns of A are linearly dependent to working precision; A^+ x needs independent ones"
        )
    if lost := int(np.sum(~np.asarray(found.finite))):
        warnings.warn(
            f"the loss was not finite somewhere in the box: {lost} of {values.size} values are lower bounds only",
            RuntimeWarning,
            stacklevel=3,
        )
    unit = 100 * 8 * jnp.finfo(values.dtype).eps * max(abs(base), 1) / (1 + base)
    if low := int(np.sum((values < unit) & np.asarray(found.finite))):
        warnings.warn(
            f"{low} of {values.size} values of the sharpness are below {unit:.1g}, "
            f"which {values.dtype} does not resolve at a loss of {base:.3g}",
            RuntimeWarning,
            stacklevel=3,
        )


def _check(key: Any, epsilon: Any, counts: dict[str, int]) -> None:
    flat.check_key(key)
    flat.check_counts(counts)
    if not flat.is_traced(epsilon) and not (
        np.size(epsilon) and np.ndim(epsilon) < 2 and np.all((np.asarray(epsilon) > 0) & np.isfinite(epsilon))
    ):
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 and finite")
