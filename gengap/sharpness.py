r"""Sharpness, Metric 2.1 of Keskar et al. (2016): how far the loss rises within a small box around a minimum.

$$\phi_{x,f}(\epsilon, A) = \frac{(\max_{y \in C_\epsilon} f(x + A y)) - f(x)}{1 + f(x)} \times 100, \qquad
C_\epsilon = \{ z \in R^p : |z_i| \le \epsilon (|(A^+ x)_i| + 1) \}$$ (eqs. 3 and 4).

The loss is a function of the parameters alone. Every value is a lower bound of the maximum in the definition. All
functions can be traced by params, key, the data of a loss and epsilon; the Python loops unroll, and no warning is
given then: look at `finite`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from gengap import ascent, checks, flat, program, subspace
from gengap import progress as shown
from gengap.subspace import Subspace

__all__ = ["Sharpness", "SubspaceSharpness", "box", "draw_keys", "full_space", "random_subspaces", "restrict"]

_OUTSIDE = (2.0, 1.4)  # multiples of the box at whose corners the full space is evaluated first
_CLIMB = 6  # evaluations for a direction


class Sharpness(NamedTuple):
    """The metric with what it was computed from; several epsilons are the first axis.

    Attributes:
      value: phi, in the paper's units (x 100).
      base_loss: f(x), in nats.
      max_loss: f(x + A y*), in nats.
      evaluations: gradients spent on the maximum, the one at x left out.
      finite: whether the loss and its gradient were finite wherever they were evaluated.
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

    Two ascents begin in the box: at the corner that the gradient points to after evaluations at the corners of
    boxes of 2 and 1.4 times the size, and at the corner opposite to the gradient at x. See `ascent.maximise`.

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
    counts = {"max_evaluations": max_evaluations}
    (x, layout), evaluate, (base, slope), epsilons = _begin(loss, params, key, epsilon, counts)
    maxima = []
    with shown.line(progress, len(epsilons) * max_evaluations, "gradient") as line:
        evaluate = line.counting(partial(evaluate, x, None))
        for e in epsilons:
            radius = box(x, None, e)
            flat.warn_rounded(layout, x, radius)
            starts, left = _full_starts(evaluate, radius, slope, max_evaluations)
            top = ascent.maximise(evaluate, radius, (base, slope), starts, key, max_evaluations=left)
            maxima.append(top)
    return _checked(_metric(Sharpness, np.shape(epsilon), base, [maxima], max_evaluations, 0))


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
    (x, layout), evaluate, centre, epsilons = _begin(loss, params, key, epsilon, counts, num_directions)
    if dim > len(x):
        raise ValueError(f"dim is {dim}; it must be from 1 to {len(x)}, the number of parameters")
    num_directions = min(num_directions, len(x))
    draws_key, ascents_key, directions_key, entries_key = jax.random.split(key, 4)
    draws, ascents = _keys(draws_key, num_draws), _keys(ascents_key, num_draws)
    draw, maxima = program.compiled(partial(_draw, len(x), dim, entries)), []
    total = len(epsilons) * (_CLIMB * num_directions + num_draws * max_evaluations)
    with shown.line(progress, total, "gradient") as line:
        in_full, entry = line.counting(partial(evaluate, x, None)), _entry(entries_key, len(x), dim, entries)
        for e in epsilons:  # a corner is that far from x along each parameter
            flat.warn_rounded(layout, x, e * entry * math.sqrt(dim) * jnp.ones_like(x))
        directions = [
            _directions(in_full, x, centre[1], directions_key, e * entry, dim, num_directions) for e in epsilons
        ]
        for i in range(0, num_draws, draws_at_once):
            count = min(draws_at_once, num_draws - i)
            group = i if count == 1 else slice(i, i + count)
            A, unit, slope, starts = draw(draws[group], x, centre[1], directions)
            in_A = line.counting(partial(evaluate, x, A), count)
            climb = partial(ascent.maximise, in_A, centre=(centre[0], slope), max_evaluations=max_evaluations)
            pairs = zip(epsilons, starts, strict=True)
            maxima.append([climb(radius=e * unit, starts=corners, key=ascents[group]) for e, corners in pairs])
    shape, shared = (*np.shape(epsilon), num_draws), _CLIMB * num_directions
    return _checked(_metric(SubspaceSharpness, shape, centre[0], maxima, max_evaluations, shared))


def draw_keys(key: Key[Array, ""], num_draws: int) -> Key[Array, " draws"]:
    """The keys of the matrices that `random_subspaces` draws: `subspace.draw(draw_keys(key, 10)[3], n, 100)`."""
    checks.check_key(key)
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


def _evaluate(f: Callable, x: Array, A: Subspace | None, y: Array) -> tuple[Array, Array]:
    """f and its gradient at y, or at each row of y in its own subspace."""

    def at(A: Subspace | None, y: Array) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(f)(x + (y if A is None else subspace.times(A, y)))
        return value, slope if A is None else subspace.transpose_times(A, slope)

    return at(A, y) if y.ndim == 1 else jax.vmap(at)(A, y)


@jax.jit
def _useful(value: Array, slope: Array, otherwise: Array) -> Array:
    """A gradient, unless it is not finite or 0."""
    useful = jnp.isfinite(value) & jnp.isfinite(slope).all() & (slope != 0).any()
    return jnp.where(useful, slope, otherwise)


def _full_starts(evaluate: Callable, radius: Array, slope: Array, max_evaluations: int) -> tuple[Array, int]:
    """The corners at which the ascents in the full space begin, and the evaluations that are left."""
    if max_evaluations < 6:
        return jnp.sign(slope[None]), max_evaluations
    far = slope
    for multiple in _OUTSIDE:
        far = _useful(*evaluate(multiple * radius * jnp.sign(far)), far)
    return jnp.sign(jnp.stack([far, -slope])), max_evaluations - len(_OUTSIDE)


def _draw(
    n: int, dim: int, entries: subspace.Entries, keys: Array, x: Array, slope: Array, directions: list[Array]
) -> tuple[Subspace, Array, Array, list[Array]]:
    """A, its box for epsilon 1, the gradient at x in it, and the corners of `directions`; or several of them."""

    def draw(key: Array) -> tuple[Subspace, Array, Array, list[Array]]:
        A = subspace.draw(key, n, dim, entries=entries)
        into = partial(subspace.transpose_times, A)
        return A, _box(x, A, 1.0), into(slope), [jnp.sign(jax.vmap(into)(rows)) for rows in directions]

    return jax.vmap(draw)(keys) if keys.ndim else draw(keys)


def _directions(
    evaluate: Callable, x: Array, slope: Array, key: Array, entry: Any, dim: int, count: int
) -> Float[Array, "starts n"]:
    r"""Directions in which the ascents of all draws begin: the gradient at x and others, which are orthonormal.

    Which examples a step pushes over belongs to the network and not to the subspace. The corner
    $r\,\mathrm{sign}(A^T g)$, seen along g, is a step of length $\rho \approx \epsilon \sigma p \sqrt{2/\pi}$ for
    p columns of independent entries of standard deviation sigma. So each of those is the gradient after a few
    steps to $\rho\, g / \|g\|$, orthogonal to those before it: independent ones can all miss a basin. The first
    step is as long as to a random corner of a subspace, $\epsilon \sigma \sqrt{p n}$.
    """
    near, far = dim * math.sqrt(2 / math.pi), math.sqrt(dim * len(x))
    directions = jnp.zeros((count, len(x)), x.dtype)
    for i, direction in enumerate(jax.random.normal(jax.random.clone(key), directions.shape, x.dtype)):
        direction = _orthogonal(directions, direction)
        for length in (far, *[near] * (_CLIMB - 1)):
            gradient = _useful(*evaluate(entry * length * direction), direction)
            direction = _orthogonal(directions, gradient)
        directions = directions.at[i].set(direction)
    return jnp.concatenate([slope[None], directions])


@jax.jit
def _orthogonal(directions: Array, v: Array) -> Array:
    """The part of v that is orthogonal to the directions, of length 1."""
    v = v / jnp.maximum(jnp.max(jnp.abs(v)), jnp.finfo(v.dtype).tiny)
    v = v - directions.T @ (directions @ v)
    return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(v.dtype).tiny)


def _entry(key: Array, n: int, dim: int, entries: subspace.Entries) -> Any:
    """The root mean square of the entries of A, from a sample of at most some 65,536."""
    if entries is subspace.signs:
        return 1.0
    return jnp.sqrt(jnp.mean(entries(key, (dim, min(n, -(-65536 // dim)))) ** 2))


def _begin(
    loss: Callable, params: PyTree, key: Any, epsilon: Any, counts: Mapping[str, Any], num_directions: Any = 0
) -> tuple[tuple[Array, flat.Layout], Callable, tuple[Array, Array], list[Any]]:
    """Check the arguments; x and its layout, what evaluates f and its gradient, both at x, and the epsilons."""
    checks.check_key(key)
    checks.check_counts(counts)
    checks.check_counts({"num_directions": num_directions}, 0)
    if program.is_traced(epsilon):
        epsilons = list(jnp.atleast_1d(epsilon))
    else:
        epsilons = np.atleast_1d(epsilon).tolist() or [epsilon]
        for e in epsilons:
            checks.check_positive({"epsilon": e})
    f, x, layout = flat.of(loss, params)
    evaluate = program.compiled(partial(_evaluate, f))
    base, slope = evaluate(x, None, jnp.zeros_like(x))
    if not program.is_traced(base):
        if not -1 < base < math.inf:
            raise ValueError(
                f"loss(params) is {base}; it must be finite and, as the metric divides by 1 + f, above -1"
            )
        if base < 0:
            checks.warn(f"loss(params) is {base:.3g}, below 0: the metric divides by 1 + f", 4)
    return (x, layout), evaluate, (base, slope), epsilons


@jax.jit(static_argnums=(0, 1))
def _metric(
    kind: Callable, shape: tuple[int, ...], base: Array, maxima: list[list[ascent.Maximum]], *counts: Any
) -> Any:
    """The metric from the maxima of each draw, or group of draws, for each epsilon."""
    values = jnp.column_stack([jnp.stack([top.value for top in group]) for group in maxima]).reshape(shape)
    finite = jnp.column_stack([jnp.stack([top.finite for top in group]) for group in maxima]).reshape(shape)
    base, evaluations, shared = (jnp.full(shape, number) for number in (base, *counts))
    return kind(100 * (values - base) / (1 + base), base, values, evaluations, finite, shared)


def _checked(measured: Any) -> Any:
    """Warn of what the numbers do not show."""
    if program.is_traced(measured.value):
        return measured
    values, finite, base = np.asarray(measured.value), np.asarray(measured.finite), np.ravel(measured.base_loss)[0]
    if not finite.all():
        lost = f"{np.sum(~finite)} of {finite.size} values are lower bounds only"
        checks.warn(f"the loss was not finite somewhere in the box: {lost}", 4)
    unit = 100 * 8 * jnp.finfo(values.dtype).eps * max(abs(base), 1) / (1 + base)
    if low := np.sum((values < unit) & finite):
        lost = f"{low} of {values.size} values of the sharpness are below {unit:.1g}"
        checks.warn(f"{lost}, which {values.dtype} does not resolve at a loss of {base:.3g}", 4)
    return measured
