"""Paths and planes between minima, and any function of the parameters along them.

A path is a function `alpha -> parameters`, a plane `(s, t) -> parameters`; both are pytrees of the points that
they go through, so that a new pair of minima compiles nothing anew.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key, PyTree

from gengap import loops

_ADAM = optax.adam(1e-3)

Path = Callable[[Float[Array, ""]], PyTree]


def linear(start: PyTree, end: PyTree) -> Path:
    r"""The straight line $\alpha\, x_{end} + (1 - \alpha)\, x_{start}$ of Fig. 3 of Keskar et al. (2016).

    Args:
      start: the parameters at alpha 0, the small-batch minimum in the paper.
      end: those at alpha 1, the large-batch minimum.

    >>> linear({"w": jnp.array([0.0])}, {"w": jnp.array([4.0])})(jnp.float32(0.25))["w"].tolist()
    [1.0]
    """
    _check(start, end)
    return Partial(_linear, start, end)


def curvilinear(start: PyTree, end: PyTree) -> Path:
    r"""The curve $\sin(\alpha\pi/2)\, x_{end} + \cos(\alpha\pi/2)\, x_{start}$ of Fig. 7 (appendix D).

    At alpha -1 it is at $-x_{end}$, at alpha 2 at $-x_{start}$. Arguments as of `linear`.
    """
    _check(start, end)
    return Partial(_curvilinear, start, end)


def bezier(start: PyTree, control: PyTree, end: PyTree) -> Path:
    r"""The quadratic Bézier curve $(1-\alpha)^2 x_{start} + 2\alpha(1-\alpha)\,\theta + \alpha^2 x_{end}$.

    Reference: Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", 2018, eq. 4.
    """
    _check(start, end)
    _check(start, control)
    return Partial(_bezier, start, control, end)


def _linear(a: PyTree, b: PyTree, alpha: Array) -> PyTree:
    return _combine((1 - alpha, alpha), (a, b))


def _curvilinear(a: PyTree, b: PyTree, alpha: Array) -> PyTree:
    # two sines, so that both ends are exact
    quarter = jnp.pi / 2
    return _combine((jnp.sin((1 - alpha) * quarter), jnp.sin(alpha * quarter)), (a, b))


def _bezier(a: PyTree, control: PyTree, b: PyTree, alpha: Array) -> PyTree:
    return _combine(((1 - alpha) ** 2, 2 * alpha * (1 - alpha), alpha**2), (a, control, b))


def _combine(weights: tuple[Any, ...], trees: tuple[PyTree, ...]) -> Any:
    return jax.tree.map(
        lambda *leaves: sum(jnp.asarray(w, a.dtype) * a for w, a in zip(weights, leaves, strict=True)), *trees
    )


def along(fn: Callable[[PyTree], Any], path: Path, alphas: Float[Array, " k"]) -> Any:
    """`fn` at many points of a path, in one compiled program.

    Args:
      fn: `params -> array`, or a pytree of them, such as `objective.loss_and_accuracy(...)`.
      path: from `linear`, `curvilinear`, `bezier`, or any `alpha -> params`.
      alphas: where.

    Returns:
      What `fn` returns, with a leading axis of k.

    >>> path = linear(jnp.array([0.0]), jnp.array([1.0]))
    >>> along(lambda x: x[0] ** 2, path, jnp.array([-1.0, 0.0, 2.0])).tolist()
    [1.0, 0.0, 4.0]
    """
    return _each(loops.as_pytree(fn), loops.as_pytree(path), (jnp.asarray(alphas),))


class Plane(NamedTuple):
    """A plane in the space of parameters: `(s, t) -> origin + s u + t v`."""

    origin: PyTree
    u: PyTree
    v: PyTree

    def __call__(self, s: Float[Array, ""], t: Float[Array, ""]) -> Any:
        """The parameters at the coordinates (s, t)."""
        return _combine((1, s, t), tuple(self))


def through(a: PyTree, b: PyTree, c: PyTree) -> tuple[Plane, Float[Array, "3 2"]]:
    r"""The plane through three points, with orthonormal axes: `a` the origin, `b` on the first axis.

    $\hat u = (b-a)/\|b-a\|$, $\hat v$ the part of $c-a$ orthogonal to it, of length 1, so that distances in the
    plane are Euclidean distances of parameters.

    Returns:
      The plane, and the coordinates of a, b and c in it.

    Raises:
      ValueError: the three lie on one line.

    Reference: Garipov et al. (2018), appendix A.1.
    """
    for other in (b, c):
        _check(a, other)
    u, w = (jax.tree.map(jnp.subtract, other, a) for other in (b, c))
    length = optax.tree.norm(u)
    if not length > 0:
        raise ValueError("a and b are the same point; a plane needs three points that are not on one line")
    u = optax.tree.scale(1 / length, u)
    first = optax.tree.vdot(u, w)
    v = jax.tree.map(lambda w, u: w - first * u, w, u)
    second = optax.tree.norm(v)
    if not second > 1e-4 * optax.tree.norm(w):
        raise ValueError("a, b and c lie on one line; a plane needs three points that do not")
    corners = jnp.array([[0.0, 0.0], [length, 0.0], [first, second]])
    return Plane(a, u, optax.tree.scale(1 / second, v)), corners


def filter_normalised(params: PyTree, key: Key[Array, ""]) -> Any:
    r"""A random direction in which every filter is as long as that of `params`.

    $d_{ij} \leftarrow d_{ij} \|\theta_{ij}\| / \|d_{ij}\|$ with d standard normal. A filter is what feeds one
    unit: the last axis of a kernel counts them. Biases and batch norm's parameters (leaves with fewer than two
    axes) stay where they are, as in the authors' code.

    Reference: Li et al., "Visualizing the Loss Landscape of Neural Nets", 2018, section 4.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def direction(leaf: Array, key: Array) -> Array:
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        d = jax.random.normal(key, leaf.shape, leaf.dtype)
        axes = tuple(range(leaf.ndim - 1))
        size = jnp.sqrt((leaf**2).sum(axes, keepdims=True)), jnp.sqrt((d**2).sum(axes, keepdims=True))
        return d * size[0] / size[1]

    return jax.tree.unflatten(tree, [direction(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])


def over(fn: Callable[[PyTree], Any], plane: Plane, s: Float[Array, " columns"], t: Float[Array, " rows"]) -> Any:
    """`fn` on a grid of a plane, in one compiled program.

    Args:
      fn: `params -> array`, or a pytree of them.
      plane: from `through`, or `Plane(params, u, v)` of two directions.
      s, t: coordinates along the two axes.

    Returns:
      What `fn` returns with leading axes [rows, columns], as a contour plot wants it.
    """
    grid = jnp.meshgrid(jnp.asarray(s), jnp.asarray(t))
    flat = _each(loops.as_pytree(fn), Partial(_at, *plane), tuple(axis.ravel() for axis in grid))
    return jax.tree.map(lambda a: a.reshape(len(t), len(s), *a.shape[1:]), flat)


def _at(origin: PyTree, u: PyTree, v: PyTree, s: Array, t: Array) -> PyTree:
    return Plane(origin, u, v)(s, t)


def connect(
    loss: Callable[[PyTree, Key[Array, ""]], Float[Array, ""]],
    start: PyTree,
    end: PyTree,
    key: Key[Array, ""],
    *,
    steps: int = 500,
    optimizer: optax.GradientTransformation = _ADAM,
) -> Any:
    r"""The control point of a Bézier curve of low loss: minimise $E_{\alpha \sim U(0, 1)} f(\phi_\theta(\alpha))$.

    Each step looks at one alpha, drawn anew. Whether the barrier on the straight line is real shows in
    `along(loss, bezier(start, control, end), alphas)`.

    Args:
      loss: `(params, key) -> scalar`; the key is for a batch, and a loss of the whole data set ignores it.
      start, end: two minima.
      key: of the alphas and the batches.
      steps: of the optimiser.
      optimizer: any optax transformation; Adam at 1e-3 unless given.

    Returns:
      The control point, a pytree as `start`. It begins half-way.

    Reference: Garipov et al. (2018), eq. 2.
    """
    _check(start, end)
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    loss = loops.as_pytree(loss)
    control = _combine((0.5, 0.5), (start, end))
    carry = (control, optimizer.init(control))
    keys = jax.random.split(key, steps)
    if loops.in_python(loss, start, key):
        for step_key in keys:
            carry = _descend(optimizer.update, loss, start, end, carry, step_key)
        return carry[0]
    return _descents(optimizer.update, loss, start, end, carry, keys)[0]


@partial(jax.jit, static_argnums=0)
def _descend(update: Callable, loss: Callable, a: PyTree, b: PyTree, carry: tuple, key: Array) -> tuple:
    control, opt_state = carry
    alpha_key, loss_key = jax.random.split(key)
    alpha = jax.random.uniform(alpha_key)
    gradient = jax.grad(lambda control: loss(_bezier(a, control, b, alpha), loss_key))(control)
    updates, opt_state = update(gradient, opt_state, control)
    return optax.apply_updates(control, updates), opt_state


@partial(jax.jit, static_argnums=0)
def _descents(update: Callable, loss: Callable, a: PyTree, b: PyTree, carry: tuple, keys: Array) -> tuple:
    return jax.lax.scan(lambda carry, key: (_descend(update, loss, a, b, carry, key), None), carry, keys)[0]


class Neighbourhood(NamedTuple):
    """The loss around a point, at one Euclidean distance from it.

    Attributes:
      length: the distance.
      base_loss: at the point itself.
      losses: in random directions.
      highest: in the steepest direction that was found.
    """

    length: Float[Array, ""]
    base_loss: Float[Array, ""]
    losses: Float[Array, " num_directions"]
    highest: Float[Array, ""]

    @property
    def share(self) -> Float[Array, ""]:
        """The mean rise in random directions over the highest rise."""
        return (self.losses - self.base_loss).mean() / (self.highest - self.base_loss)


def neighbourhood(
    loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    key: Key[Array, ""],
    *,
    epsilon: float = 1e-3,
    num_directions: int = 100,
    max_evaluations: int = 12,
) -> Neighbourhood:
    r"""The loss in random directions and in the steepest one, at the distance of the corners of the metric's box.

    The distance is $\epsilon \, \| |x| + 1 \|_2$, half the diagonal of the full-space box (eq. 3 with A = I).
    Where f is quadratic with the same curvature along k of n orthogonal directions and none along the others,
    the mean rise in random directions is k / n of the rise along one of the k. So `share` estimates the share
    of directions along which the loss rises steeply; section 2.2 of the paper has "e.g. 5%" for it, from a
    sampling that it does not describe.

    Args:
      loss: `params -> scalar`.
      params: the point x.
      key: of the directions.
      epsilon: as of the sharpness.
      num_directions: random directions.
      max_evaluations: gradients spent on the steepest one; each step goes to where the gradient points.

    Raises:
      ValueError: an argument out of its range.
    """
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon is {epsilon}; it must be above 0")
    for name, value in (("num_directions", num_directions), ("max_evaluations", max_evaluations)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    loss = loops.as_pytree(loss)
    length = jnp.float32(epsilon) * optax.tree.norm(jax.tree.map(lambda a: jnp.abs(a) + 1, params))
    random_key, key = jax.random.split(key)
    losses = _each(loss, Partial(_toward, params, length), (jax.random.split(random_key, num_directions),))
    step = _direction(params, key)
    highest = jnp.full((), -jnp.inf)
    for _ in range(max_evaluations):
        value, step = _climb(loss, params, length, step)
        highest = jnp.fmax(highest, value)
    return Neighbourhood(length, _look(loss, Partial(_stay), (params,)), losses, jnp.fmax(highest, losses.max()))


def _stay(params: PyTree) -> PyTree:
    return params


def _direction(params: PyTree, key: Array) -> PyTree:
    """A direction drawn uniformly, of length 1."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    normal = [jax.random.normal(key, leaf.shape, leaf.dtype) for leaf, key in zip(leaves, keys, strict=True)]
    return _unit(jax.tree.unflatten(tree, normal))


def _unit(tree: PyTree) -> Any:
    norm = optax.tree.norm(tree)
    return optax.tree.scale(jnp.where(norm > 0, 1 / norm, 0), tree)


def _toward(params: PyTree, length: Array, key: Array) -> PyTree:
    return optax.tree.add_scale(params, length, _direction(params, key))


@jax.jit
def _climb(loss: Callable, params: PyTree, length: Array, step: PyTree) -> tuple[Array, PyTree]:
    value, gradient = jax.value_and_grad(loss)(optax.tree.add_scale(params, length, step))
    return value, _unit(gradient)


def _each(fn: Callable, path: Callable, places: tuple[Array, ...]) -> Any:
    """`fn(path(*place))` for every place: compiled, or one by one where convolutions belong in Python."""
    if loops.in_python(lambda place: fn(path(*place)), loops.row(places, 0)):
        return loops.stack([_look(fn, path, loops.row(places, i)) for i in range(len(places[0]))])
    return _looks(fn, path, places)


@jax.jit
def _look(fn: Callable, path: Callable, place: tuple[PyTree, ...]) -> Any:
    return fn(path(*place))


@jax.jit
def _looks(fn: Callable, path: Callable, places: tuple[Array, ...]) -> Any:
    return jax.lax.map(lambda place: fn(path(*place)), places)


def _check(a: PyTree, b: PyTree) -> None:
    if len({jax.tree.structure(a), jax.tree.structure(b)}) > 1:
        raise ValueError("the two points are pytrees of different structures")
    for (where, leaf), other in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        if jnp.shape(leaf) != jnp.shape(other):
            name = jax.tree_util.keystr(where)
            raise ValueError(f"{name} has the shapes {jnp.shape(leaf)} and {jnp.shape(other)}; they must be one")
