r"""Sharpness, Metric 2.1 of Keskar et al. (2016): how far the loss rises within a small box around a minimum.

$$\phi_{x,f}(\epsilon, A) = \frac{(\max_{y \in C_\epsilon} f(x + A y)) - f(x)}{1 + f(x)} \times 100, \qquad
C_\epsilon = \{ z \in R^p : |z_i| \le \epsilon (|(A^+ x)_i| + 1) \}$$ (eqs. 3 and 4).

The loss is a function of the parameters alone. Every value is a lower bound of the maximum in the definition. All
functions can be traced by params, key, the data of a loss and epsilon; the Python loops unroll, and no warning is
given then: look at `finite`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from gengap import ascent, flat, program, subspace
from gengap import progress as shown
from gengap.subspace import Subspace

_OUTSIDE = (2.0, 1.4)  # multiples of the box at whose corners the full space is looked at first
_CLIMB = 6  # looks for a direction


class Sharpness(NamedTuple):
    """The metric with what it was computed from; several epsilons are the first axis.

    Attributes:
      value: phi, in the paper's units (x 100).
      base_loss: f(x), in nats.
      max_loss: f(x + A y*), in nats.
      evaluations: gradients spent on the maximum, the one at x left out.
      finite: whether the loss and its gradient were finite wherever they were looked at.
      shared_evaluations: gradients spent once for all draws of an epsilon; 0 in the full space.
    """

    value: Float[Array, "..."]
    base_loss: Float[Array, "..."]
    max_loss: Float[Array, "..."]
    evaluations: Int[Array, "..."]
    finite: Bool[Array, "..."]
    shared_evaluations: Int[Array, "..."]


class SubspaceSharpness(Sharpness):
    """The metric in several random subspaces; the last axis counts the draws.

    The draws share the directions that their ascents begin in. Where these miss a basin, all draws do, and no
    standard error shows it.
    """

    @property
    def mean(self) -> Float[Array, "..."]:
        """Mean over the draws."""
        return self.value.mean(-1)

    @property
    def sem(self) -> Float[Array | np.ndarray, "..."]:
        """Standard error of the mean over the draws; NaN for a single draw."""
        draws = self.value.shape[-1]
        # Of NumPy: jax_debug_nans would take it for a mistake.
        return self.value.std(-1, ddof=1) / np.sqrt(draws) if draws > 1 else np.full(self.value.shape[:-1], np.nan)


def full_space(
    loss: Callable,
    params: PyTree,
    key: Key[Array, ""],
    *,
    epsilon: float | Sequence[float] = 1e-3,
    max_evaluations: int = 24,
    progress: str | None = None,
) -> Sharpness:
    """Metric 2.1 with A = I (Table 3).

    Two ascents begin in the box: at the corner that the gradient points to after looks at the corners of boxes of
    2 and 1.4 times the size, and at the corner opposite to the gradient at x. See `ascent.maximise`.

    Args:
      loss, params, epsilon, progress: as of `random_subspaces`.
      key: of the coordinates that change sides when an ascent begins again.
      max_evaluations: gradients for each epsilon; below 6 a single ascent begins where the gradient at x points.

    Returns:
      Scalars, or `[epsilons]`.

    >>> s = full_space(lambda x: x @ x, jnp.array([0.0, 1.0]), jax.random.key(0), epsilon=0.5)
    >>> float(s.max_loss)  # (0.5, 2.0) or (-0.5, 2.0): 0.25 + 4
    4.25
    """
    look, point, base, slope, epsilons = _begin(loss, params, key, epsilon, {"max_evaluations": max_evaluations})
    (x, layout), tops, outside = point, [], _OUTSIDE if max_evaluations >= 6 else ()
    with shown.line(progress, len(epsilons) * max_evaluations, "gradient") as line:
        look = line.counting(partial(look, x, None))
        for e in epsilons:
            r, far = box(x, None, e), slope
            flat.tell_rounded(layout, x, r)
            for multiple in outside:
                far = _useful(*look(multiple * r * jnp.sign(far)), far)
            starts = jnp.sign(jnp.stack([far, -slope] if outside else [slope]))
            looks = max_evaluations - len(outside)
            tops.append(ascent.maximise(look, r, (base, slope), starts, key, max_looks=looks))
    return _checked(Sharpness(*_metric(base, [tops], np.shape(epsilon), max_evaluations, 0)))


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
    subspaces. The ascents of every draw begin at the corner that the gradient at x points to, and at those of
    some directions that are found in the full space once for a minimum. A draw depends on its key and on them
    alone: more draws leave the first ones as they are.

    Args:
      loss: `params -> scalar`, in nats.
      params: x, floating-point leaves, n in all.
      key: of the draws and the directions.
      dim: p, columns of A, 1 to n.
      num_draws: matrices A.
      epsilon: one size of the box, or several; the result then has an axis of them.
      max_evaluations: gradients for each draw and epsilon.
      num_directions: besides the gradient at x, at six gradients each, for each epsilon.
      entries: sampler of the entries of A, see `subspace.draw`.
      draws_at_once: under one `vmap`; more fill an accelerator that the gradient of one point does not.
      progress: what to call the line that shows how far it is; `None` shows none.

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
    counts |= {"draws_at_once": draws_at_once}
    look, point, base, slope, epsilons = _begin(loss, params, key, epsilon, counts, num_directions)
    x, layout = point
    if dim > len(x):
        raise ValueError(f"dim is {dim}; it must be from 1 to {len(x)}, the number of parameters")
    count = min(num_directions, len(x))
    of_draws, of_ascents, of_directions, of_size = jax.random.split(key, 4)
    keys, ascent_keys = _keys(of_draws, num_draws), _keys(of_ascents, num_draws)
    tops, draw = [], program.compiled(partial(_draw, len(x), dim, entries))
    total = len(epsilons) * (_CLIMB * count + num_draws * max_evaluations)
    with shown.line(progress, total, "gradient") as line:
        in_full, size = line.counting(partial(look, x, None)), _size(of_size, len(x), dim, entries)
        for e in epsilons:  # a corner is that far from x along each parameter
            flat.tell_rounded(layout, x, e * size * math.sqrt(dim) * jnp.ones_like(x))
        ways = [_directions(in_full, x, slope, of_directions, e * size, dim, count) for e in epsilons]
        for i in range(0, num_draws, draws_at_once):
            which = i if draws_at_once == 1 else slice(i, i + draws_at_once)
            A, unit, in_A, corners = draw(keys[which], x, slope, ways)
            of_group = ascent_keys[which]
            in_A_look = line.counting(partial(look, x, A), min(draws_at_once, num_draws - i))
            tops.append(
                [
                    ascent.maximise(in_A_look, e * unit, (base, in_A), starts, of_group, max_looks=max_evaluations)
                    for e, starts in zip(epsilons, corners, strict=True)
                ]
            )
    shape = (*np.shape(epsilon), num_draws)
    return _checked(SubspaceSharpness(*_metric(base, tops, shape, max_evaluations, _CLIMB * count)))


def draw_keys(key: Key[Array, ""], num_draws: int) -> Key[Array, " draws"]:
    """The keys of the matrices that `random_subspaces` draws: `subspace.draw(draw_keys(key, 10)[3], n, 100)`."""
    flat.check_key(key)
    return _keys(jax.random.split(key, 4)[0], num_draws)


@partial(jax.jit, static_argnums=1)
def _keys(key: Array, count: int) -> Array:
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))


def restrict(loss: Callable, params: PyTree, A: Subspace | None) -> Callable:
    """`y -> f(x + A y)`, the function that Metric 2.1 maximises; A = I where `A` is `None`."""
    f, x, _ = flat.of(loss, params)
    _check_rows(x, A)

    def at(y: Array) -> Array:
        if jnp.shape(y) != (dim := len(x) if A is None else A.dim,):
            raise ValueError(f"y has the shape {jnp.shape(y)}; it must be ({dim},)")
        with program.precision():
            return f(x + (y if A is None else subspace.times(A, y)))

    return at


def box(params: PyTree, A: Subspace | None, epsilon: Any) -> Float[Array, " p"]:
    """The half-widths of the box, epsilon (|A^+ x| + 1) (eq. 3); A = I where `A` is `None`."""
    x, _ = flat.ravel(params)
    _check_rows(x, A)
    return _box(x, A, epsilon)


def _check_rows(x: Array, A: Subspace | None) -> None:
    if A is not None and A.n != len(x):
        raise ValueError(f"A has {A.n} rows; it must have {len(x)}, one for each parameter")


@jax.jit
def _box(x: Array, A: Subspace | None, epsilon: Any) -> Array:
    return epsilon * (jnp.abs(x if A is None else subspace.pseudo_inverse_times(A, x)) + 1)


def _look(f: Callable, x: Array, A: Subspace | None, y: Array) -> tuple[Array, Array]:
    """The value and the gradient at y, or at each row of y in its own subspace."""

    def one(A: Subspace | None, y: Array) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(f)(x + (y if A is None else subspace.times(A, y)))
        return value, slope if A is None else subspace.transpose_times(A, slope)

    return one(A, y) if y.ndim == 1 else jax.vmap(one)(A, y)


@jax.jit
def _useful(value: Array, slope: Array, otherwise: Array) -> Array:
    """A gradient, unless it is not finite or 0."""
    useful = jnp.isfinite(value) & jnp.isfinite(slope).all() & (slope != 0).any()
    return jnp.where(useful, slope, otherwise)


def _draw(
    n: int, dim: int, entries: subspace.Entries, keys: Array, x: Array, slope: Array, ways: list[Array]
) -> tuple[Subspace, Array, Array, list[Array]]:
    """A, its box for epsilon 1, the gradient at x in it, and the corners that `ways` point to; or several."""

    def one(key: Array) -> tuple[Subspace, Array, Array, list[Array]]:
        A = subspace.draw(key, n, dim, entries=entries)
        into = partial(subspace.transpose_times, A)
        return A, _box(x, A, 1.0), into(slope), [jnp.sign(jax.vmap(into)(way)) for way in ways]

    return jax.vmap(one)(keys) if keys.ndim else one(keys)


def _directions(
    look: Callable, x: Array, slope: Array, key: Array, entry: Any, dim: int, count: int
) -> Float[Array, "starts n"]:
    r"""Directions in which the ascents of all draws begin: the gradient at x and others, which are orthonormal.

    Which examples a step pushes over belongs to the network and not to the subspace. The corner
    $r\,\mathrm{sign}(A^T g)$, seen along g, is a step of length $\rho \approx \epsilon \sigma p \sqrt{2/\pi}$ for
    p columns of independent entries of standard deviation sigma. So each of those is the gradient after a few
    steps to $\rho\, g / \|g\|$, orthogonal to those before it: independent ones can all miss a basin. The first
    look is as far away as a random corner of a subspace, $\epsilon \sigma \sqrt{p n}$.
    """
    near, far = dim * math.sqrt(2 / math.pi), math.sqrt(dim * len(x))
    found = jnp.zeros((count, len(x)), x.dtype)
    for i, way in enumerate(jax.random.normal(jax.random.clone(key), found.shape, x.dtype)):
        way = _orthogonal(found, way)
        for length in (far, *[near] * (_CLIMB - 1)):
            way = _orthogonal(found, _useful(*look(entry * length * way), way))
        found = found.at[i].set(way)
    return jnp.concatenate([slope[None], found])


@jax.jit
def _orthogonal(found: Array, way: Array) -> Array:
    """The part of a direction that is orthogonal to those found, of length 1."""
    way = way / jnp.maximum(jnp.max(jnp.abs(way)), jnp.finfo(way.dtype).tiny)
    way = way - found.T @ (found @ way)
    return way / jnp.maximum(jnp.linalg.norm(way), jnp.finfo(way.dtype).tiny)


def _size(key: Array, n: int, dim: int, entries: subspace.Entries) -> Any:
    """The root mean square of the entries of A, from a sample of at most some 65,536."""
    if entries is subspace.signs:
        return 1.0
    return jnp.sqrt(jnp.mean(entries(key, (dim, min(n, -(-65536 // dim)))) ** 2))


def _begin(
    loss: Callable, params: PyTree, key: Any, epsilon: Any, counts: dict[str, Any], num_directions: Any = 0
) -> tuple[Callable, tuple[Array, flat.Layout], Array, Array, list[Any]]:
    """Check the arguments; what evaluates f and its gradient, x and its layout, both at x, and the epsilons."""
    flat.check_key(key)
    flat.check_counts(counts)
    flat.check_counts({"num_directions": num_directions}, 0)
    if program.is_traced(epsilon):
        epsilons = list(jnp.atleast_1d(epsilon))
    else:
        epsilons = np.atleast_1d(epsilon).tolist() or [epsilon]
        for e in epsilons:
            flat.check_positive({"epsilon": e})
    f, x, layout = flat.of(loss, params)
    look = program.compiled(partial(_look, f))
    base, slope = look(x, None, jnp.zeros_like(x))
    if not program.is_traced(base):
        if not -1 < base < math.inf:
            raise ValueError(
                f"loss(params) is {base}; it must be finite and, as the metric divides by 1 + f, above -1"
            )
        if base < 0:
            flat.warn(f"loss(params) is {base:.3g}, below 0: the metric divides by 1 + f", 4)
    return look, (x, layout), base, slope, epsilons


@partial(jax.jit, static_argnums=2)
def _metric(
    base: Array, tops: list[list[ascent.Maximum]], shape: tuple[int, ...], spent: Any, shared: Any
) -> tuple:
    """The fields of `Sharpness`, from the maxima of each group of draws for each epsilon."""

    def joined(name: str) -> Array:
        groups = [jnp.stack([jnp.atleast_1d(getattr(top, name)) for top in group]) for group in tops]
        return jnp.concatenate(groups, axis=1).reshape(shape)

    top = joined("value")
    base, spent, shared = (jnp.full(shape, number) for number in (base, spent, shared))
    return 100 * (top - base) / (1 + base), base, top, spent, joined("finite"), shared


def _checked(found: Any) -> Any:
    """Tell what the numbers cannot."""
    if program.is_traced(found.value):
        return found
    values, finite, base = np.asarray(found.value), np.asarray(found.finite), np.ravel(found.base_loss)[0]
    if not finite.all():
        lost = f"{np.sum(~finite)} of {finite.size} values are lower bounds only"
        flat.warn(f"the loss was not finite somewhere in the box: {lost}", 4)
    unit = 100 * 8 * jnp.finfo(values.dtype).eps * max(abs(base), 1) / (1 + base)
    if low := np.sum((values < unit) & finite):
        lost = f"{low} of {values.size} values of the sharpness are below {unit:.1g}"
        flat.warn(f"{lost}, which {values.dtype} does not resolve at a loss of {base:.3g}", 4)
    return found
