"""Paths and planes between minima, and any function of the parameters along them.

A path is a function `alpha -> params`, a plane `(s, t) -> params`. Both are pytrees of the points that define
them, so another pair of minima needs no new compilation. Points are computed in float32 (float64 if the parameters
are) and get the types of the first point. Points, keys and coordinates can be traced in all functions. Points of
different shapes and leaves that are not floating point are refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PyTree

from gengap import checks, flat, kernels, placement, program, words
from gengap import progress as shown

__all__ = [
    "Neighbourhood", "Path", "Plane", "along", "bezier", "connect", "curvilinear", "filter_normalised",
    "linear", "neighbourhood", "over", "through",
]  # fmt: skip

_ADAM = optax.adam(1e-3)

Path = Callable[[Any], PyTree]
Numbers = ArrayLike | Sequence[float]


def linear(start: PyTree, end: PyTree) -> Path:
    r"""The straight line $\alpha\, x_{end} + (1 - \alpha)\, x_{start}$ of Fig. 3 of Keskar et al. (2016).

    In the paper the small-batch minimum is the start, at alpha 0, and the large-batch minimum the end, at alpha 1.

    >>> linear({"w": jnp.array([0.0])}, {"w": jnp.array([4.0])})(0.25)["w"].tolist()
    [1.0]
    """
    return _path("linear", start, end)


def curvilinear(start: PyTree, end: PyTree) -> Path:
    r"""The curve $\sin(\alpha\pi/2)\, x_{end} + \cos(\alpha\pi/2)\, x_{start}$ of Fig. 7 (appendix D).

    At alpha -1 it is $-x_{end}$, at alpha 2 it is $-x_{start}$.
    """
    return _path("curvilinear", start, end)


def bezier(start: PyTree, control: PyTree, end: PyTree) -> Path:
    r"""The quadratic Bézier curve $(1-\alpha)^2 x_{start} + 2\alpha(1-\alpha)\,\theta + \alpha^2 x_{end}$.

    Reference: Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", 2018, eq. 4.
    """
    return _path("bezier", start, control, end)


_WEIGHTS = {
    "linear": lambda alpha: (1 - alpha, alpha),
    "curvilinear": lambda alpha: tuple(jnp.sin(a * jnp.pi / 2) for a in (1 - alpha, alpha)),  # exact at both ends
    "bezier": lambda alpha: ((1 - alpha) ** 2, 2 * alpha * (1 - alpha), alpha**2),
}


@partial(jax.tree_util.register_dataclass, data_fields=["points"], meta_fields=["kind"])
@dataclass(frozen=True, eq=False, repr=False)
class _Curve:
    """A path, as a pytree of its points."""

    kind: str
    points: tuple[PyTree, ...]

    def __call__(self, alpha: Any) -> Any:
        return _at(self.kind, self.points, alpha)

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(map(words.shown, self.points))})"


def _path(kind: str, *points: PyTree) -> Path:
    flat.check_alike(*points)
    return _Curve(kind, placement.automatic(points))


@jax.jit(static_argnums=0)
def _at(kind: str, points: tuple, alpha: Array) -> Any:
    return _combined(_WEIGHTS[kind](alpha), points)


def _combined(weights: tuple[ArrayLike, ...], points: tuple[PyTree, ...], *, wide: bool = False) -> Any:
    """A weighted sum of points, in the types of the first one, or if `wide` in the type of the sum."""
    for shape in map(jnp.shape, weights):
        if shape != ():
            raise ValueError(f"a path is taken at the shape {shape}; it must be one number, see `along`")
    vectors, layouts = zip(*map(flat.ravel, points), strict=True)
    total = sum(jnp.asarray(w, x.dtype) * x for w, x in zip(weights, vectors, strict=True))
    return layouts[0].unravel(total, vectors[0].dtype if wide else None)


def along(fn: Callable[[PyTree], Any], path: Path, alphas: Numbers, *, progress: str | None = "auto") -> Any:
    """`fn` at many points of a path, with one compiled program.

    Args:
      fn: `params -> array`, or a pytree of them, such as `objective.loss_and_accuracy(...)`.
      path: from `linear`, `curvilinear`, `bezier`, or any `alpha -> params`.
      alphas: [k], the points; at least one.
      progress: as in `sharpness.full_space`.

    Returns:
      What `fn` returns, with a leading axis of k.

    >>> path = linear(jnp.array([0.0]), jnp.array([1.0]))
    >>> along(lambda x: x[0] ** 2, path, [-1.0, 0.0, 2.0]).tolist()
    [1.0, 0.0, 4.0]
    """
    evaluate = program.compiled(lambda alpha: fn(path(alpha)))
    return _stacked(shown.each(evaluate, [*checks.numbers_of("alphas", alphas)], progress, "path", "point"))


class Plane(NamedTuple):
    """A plane in the space of parameters: `(s, t) -> origin + s u + t v`."""

    origin: PyTree
    u: PyTree
    v: PyTree

    def __repr__(self) -> str:
        return words.in_one_line(self)

    def __call__(self, s: Any, t: Any) -> Any:
        """The parameters at the coordinates (s, t)."""
        return _combined((1, s, t), tuple(self))


def through(a: PyTree, b: PyTree, c: PyTree) -> tuple[Plane, Float[Array, "3 2"]]:
    r"""The plane through three points, with orthonormal axes: `a` the origin, `b` on the first axis.

    $\hat u = (b-a)/\|b-a\|$, $\hat v$ the part of $c-a$ orthogonal to it, of length 1: distances are Euclidean.

    Returns:
      The plane, its axes float32 (float64 if the parameters are), and the coordinates of a, b and c in it.

    Raises:
      ValueError: the three lie on one line (NaN under `jit`).

    Reference: Garipov et al. (2018), appendix A.1.
    """
    flat.check_alike(a, b, c)
    u, v, corners, sine = _axes(a, b, c)
    if not program.is_traced(sine) and not sine > 1e-4:
        raise ValueError("a, b and c lie on one line, or two of them are the same point; they must span a plane")
    return Plane(a, u, v), corners


@jax.jit
def _axes(a: PyTree, b: PyTree, c: PyTree) -> tuple[PyTree, PyTree, Array, Array]:
    """u, v, the coordinates of the points, and the sine of the angle at a."""
    (x, layout), (y, _), (z, _) = map(flat.ravel, (a, b, c))
    length = jnp.linalg.norm(y - x)
    u = (y - x) / length
    first = u @ (z - x)
    v = z - x - first * u
    second = jnp.linalg.norm(v)
    corners = jnp.array([[0.0, 0.0], [length, 0.0], [first, second]])
    u, v = (layout.unravel(axis, x.dtype) for axis in (u, v / second))
    return u, v, corners, second / jnp.linalg.norm(z - x)


def filter_normalised(params: PyTree, key: Key[Array, ""], *, units: kernels.Units = kernels.last_axis) -> Any:
    r"""A random direction in which every filter has the norm that it has in `params`.

    $d_{ij} \leftarrow d_{ij} \|\theta_{ij}\| / \|d_{ij}\|$ with d standard normal. A filter is the weights that
    feed one unit. The direction is 0 for biases and the parameters of norms, as in the authors' code.

    Args:
      params: the parameters.
      key: random key for the direction.
      units: which axes of a leaf count units, and which leaves are not kernels; `kernels` has rules for Flax,
        Haiku and bare JAX (the default), Equinox and PyTorch, attention, and stacked layers.

    Raises:
      ValueError: a leaf does not fit `units`.

    Reference: Li et al., "Visualizing the Loss Landscape of Neural Nets", 2018, section 4.

    >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.ones(2)}
    >>> direction = filter_normalised(params, jax.random.key(0))
    >>> jnp.linalg.norm(direction["kernel"], axis=0).round(3).tolist(), direction["bias"].tolist()
    ([5.0, 2.0], [0.0, 0.0])
    """
    checks.check_key(key)
    x, layout = flat.ravel(params)
    kept = tuple(kernel and kernel.units + kernel.layers for kernel in kernels.of(params, units))
    return _filtered(layout.unravel(x, x.dtype), key, kept)


@partial(jax.jit, static_argnums=2)
def _filtered(params: PyTree, key: Array, kept: tuple[tuple[int, ...] | None, ...]) -> Any:
    """A direction; `kept` are the axes of each leaf that count its filters, `None` for a leaf that stays."""

    def scaled(leaf: Array, d: Array, kept: tuple[int, ...] | None) -> Array:
        if kept is None:
            return jnp.zeros_like(d)
        axes = tuple(axis for axis in range(leaf.ndim) if axis not in kept)
        return d * jnp.sqrt((leaf**2).sum(axes, keepdims=True) / (d**2).sum(axes, keepdims=True))

    leaves, tree = jax.tree.flatten(params)
    directions = jax.tree.leaves(optax.tree.random_like(key, params))
    return jax.tree.unflatten(tree, map(scaled, leaves, directions, kept))


def over(
    fn: Callable[[PyTree], Any], plane: Plane, s: Numbers, t: Numbers, *, progress: str | None = "auto"
) -> Any:
    """`fn` on a grid of a plane, with one compiled program.

    Args:
      fn: `params -> array`, or a pytree of them.
      plane: from `through`, or `Plane(params, u, v)` of two directions.
      s, t: [columns] and [rows], coordinates along the two axes.
      progress: as in `along`.

    Returns:
      What `fn` returns, with leading axes [rows, columns], ready for a contour plot.
    """
    flat.check_alike(*plane)
    evaluate = program.compiled(lambda at: fn(plane(*at)))
    columns, rows = checks.numbers_of("s", s), checks.numbers_of("t", t)
    points = [(x, y) for y in rows for x in columns]
    values, width = shown.each(evaluate, points, progress, "plane", "point"), len(columns)
    return _stacked([_stacked(values[i : i + width]) for i in range(0, len(values), width)])


def connect(
    loss: Callable[[PyTree, Key[Array, ""]], Float[Array, ""]],
    start: PyTree,
    end: PyTree,
    key: Key[Array, ""],
    *,
    steps: int = 500,
    optimizer: optax.GradientTransformation = _ADAM,
    progress: str | None = "auto",
) -> Any:
    r"""The control point of a Bézier curve of low loss: minimise $E_{\alpha \sim U(0, 1)} f(\phi_\theta(\alpha))$.

    It begins half-way, and each step draws one alpha. `along(loss, bezier(start, control, end), alphas)` shows
    whether the barrier on the straight line can be avoided.

    Args:
      loss: `(params, key) -> scalar`; the key draws a batch, and a loss of the whole data set ignores it.
      start, end: two minima.
      key: random key for the alphas and the batches.
      steps: steps of the optimiser, at least 1.
      optimizer: any optax transformation; by default Adam with a learning rate of 1e-3.
      progress: as in `along`.

    Returns:
      The control point, a pytree like `start` but float32 (float64 if `start` is).

    Reference: Garipov et al. (2018), eq. 2.
    """
    flat.check_alike(start, end)
    checks.check_key(key)
    checks.check_counts({"steps": steps})
    state = program.compiled(partial(_half_way, optimizer))(start, end)
    descend = program.compiled(partial(_descend, optimizer, loss), donate=(1,))
    with shown.of_measure(progress, "curve", steps, "step") as line:
        descend = line.counting(descend)
        for step in range(steps):
            state = descend((start, end), state, jax.random.fold_in(key, step))
    return state[0]


def _half_way(optimizer: optax.GradientTransformation, a: PyTree, b: PyTree) -> tuple:
    control = _combined((0.5, 0.5), (a, b), wide=True)
    return control, optimizer.init(control)


def _descend(optimizer: Any, loss: Callable, ends: tuple, state: tuple, key: Array) -> tuple:
    control, opt_state = state
    alpha_key, loss_key = jax.random.split(key)
    weights = _WEIGHTS["bezier"](jax.random.uniform(alpha_key))

    def f(control: PyTree) -> Array:
        return flat.as_scalar(loss(_combined(weights, (ends[0], control, ends[1])), loss_key), float)

    value, gradient = jax.value_and_grad(f)(control)
    update = flat.with_extras(optimizer)
    updates, opt_state = update(gradient, opt_state, control, value=value, grad=gradient, value_fn=f)
    return optax.apply_updates(control, updates), opt_state


class Neighbourhood(NamedTuple):
    """The loss around a point, at one Euclidean distance from it.

    Attributes:
      length: the distance.
      base_loss: the loss at the point itself.
      losses: the loss in random directions.
      highest: the highest loss seen, in these and on an ascent; NaN, with a RuntimeWarning, if a loss was NaN.
    """

    length: Float[Array, "*b"]
    base_loss: Float[Array, "*b"]
    losses: Float[Array, "*b num_directions"]
    highest: Float[Array, "*b"]

    def __repr__(self) -> str:
        return words.in_one_line(self)

    @property
    def share(self) -> Float[Array | np.ndarray, "*b"]:
        """The share of the random directions along which the loss rises by more than twice the median rise.

        NaN unless the median is above 0. In many dimensions the share can be 0 although a few directions are
        steep, because every random direction is a mixture of all.
        """
        xp = jnp if program.is_traced(self) else np
        rises = self.losses - self.base_loss[..., None]
        median = xp.median(rises, axis=-1, keepdims=True)
        return xp.where(median[..., 0] > 0, (rises > 2 * median).mean(-1), xp.nan)

    @property
    def mean_over_highest(self) -> Float[Array | np.ndarray, "*b"]:
        r"""The mean rise in random directions over the highest rise; NaN unless that is finite and above 0.

        If f is quadratic with its minimum here, it estimates $\mathrm{tr} H / (n \lambda_{max})$. This is k / n if
        the curvature is the same along k of n orthogonal directions and 0 along the others.
        """
        xp = jnp if program.is_traced(self) else np
        highest = self.highest - self.base_loss
        known = (highest > 0) & xp.isfinite(highest)
        return xp.where(known, (self.losses.mean(-1) - self.base_loss) / xp.where(known, highest, 1), xp.nan)


def neighbourhood(
    loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    key: Key[Array, ""],
    *,
    epsilon: float = 1e-3,
    num_directions: int = 100,
    max_evaluations: int = 12,
    progress: str | None = "auto",
) -> Neighbourhood:
    r"""The loss in random directions and in the steepest one, at the distance of the corners of the metric's box.

    The distance is $\epsilon \, \| |x| + 1 \|_2$, half the diagonal of the full-space box (eq. 3 with A = I).
    Section 2.2 of the paper reports a steep rise "only along a small dimensional subspace (e.g. 5% of the whole
    space)", from sampling that it does not describe. For a quadratic f `mean_over_highest` estimates that share.

    Args:
      loss: `params -> scalar`.
      params: the point x.
      key: random key for the directions; the first ones do not depend on how many there are.
      epsilon: as in the sharpness.
      num_directions: number of random directions.
      max_evaluations: gradients spent on the steepest direction; each step goes to where the gradient points.
      progress: as in `along`.
    """
    checks.check_positive({"epsilon": epsilon})
    checks.check_counts({"num_directions": num_directions, "max_evaluations": max_evaluations})
    checks.check_key(key)
    f, x, layout = flat.of(loss, params)
    directions_key, climb_key = jax.random.split(key)
    length, step = _length(x, epsilon), _direction(x, climb_key)
    flat.warn_rounded(layout, x, length * step)
    evaluate = program.compiled(lambda x, length, key: f(x + length * _direction(x, key)))
    base = evaluate(x, jnp.zeros_like(length), jax.random.clone(directions_key))
    in_direction = lambda i: evaluate(x, length, jax.random.fold_in(directions_key, i))  # noqa: E731
    losses = shown.each(in_direction, range(num_directions), progress, "neighbourhood", "direction")
    climb = program.compiled(partial(_climb, f), donate=(2,))
    for _ in range(max_evaluations):
        value, step = climb(x, length, step)
        losses.append(value)
    values = _stacked(losses)
    return Neighbourhood(length, base, values[:num_directions], checks.warn_not_finite(values.max()))


@jax.jit
def _length(x: Array, epsilon: Array) -> Array:
    return epsilon * jnp.linalg.norm(jnp.abs(x) + 1)


@jax.jit
def _direction(x: Array, key: Array) -> Array:
    return flat.unit(jax.random.normal(key, x.shape, x.dtype))[1]


def _climb(f: Callable, x: Array, length: Array, step: Array) -> tuple[Array, Array]:
    value, gradient = jax.value_and_grad(f)(x + length * step)
    return value, flat.unit(gradient)[1]


def _stacked(results: list[PyTree]) -> Any:
    return jax.tree.map(lambda *leaves: jax.device_put(flat.stacked(leaves)), *results)
