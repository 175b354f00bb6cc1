"""The parts of Metric 2.1: the box, the function in it, the result. `sharpness` finds the maxima."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from gengap import ascent, checks, flat, program, subspace, words
from gengap.subspace import Subspace

__all__ = [
    "Sharpness", "SubspaceSharpness", "as_params", "begin", "box", "box_of", "checked", "evaluate_at",
    "of_maxima", "restrict",
]  # fmt: skip


class Sharpness(NamedTuple):
    """The metric, and the numbers it was computed from; several epsilons are the first axis.

    Attributes:
      value: phi, in the paper's units (x 100).
      base_loss: f(x), in nats.
      max_loss: f(x + A y*), in nats.
      evaluations: gradients spent on the maximum, without the one at x.
      finite: whether the loss and its gradient were finite wherever they were evaluated.
      shared_evaluations: gradients spent once for all draws of an epsilon; 0 in the full space.
      epsilon: the size of the box.
      step: A y*, from x to the highest point seen: a pytree like params, with the axes of `value` first; `None`
        unless asked for.
    """

    value: Float[Array, "..."]
    base_loss: Float[Array, "..."]
    max_loss: Float[Array, "..."]
    evaluations: Int[Array, "..."]
    finite: Bool[Array, "..."]
    shared_evaluations: Int[Array, "..."]
    epsilon: Float[Array, "..."]
    step: PyTree = None

    def __repr__(self) -> str:
        """The value, its epsilon, and the two losses."""
        if program.is_traced(tuple(self)):
            return words.in_one_line(self)
        value, top, epsilon = self._in_words()
        bound = "" if np.all(self.finite) else "at least "
        losses = f"loss {words.shown(np.ravel(self.base_loss)[0])} -> {words.shown(top)}"
        return f"{type(self).__name__}({bound}{value} at epsilon {words.shown(epsilon)}: {losses})"

    def _in_words(self) -> tuple[str, Any, Any]:
        """The value, the loss at the maximum, and epsilon."""
        return f"{words.shown(self.value)} %", self.max_loss, self.epsilon


class SubspaceSharpness(Sharpness):
    """The metric in several random subspaces; the last axis is that of the draws.

    The ascents of all draws begin in the same directions. If these miss a region of high loss, all draws miss it,
    and the standard error does not show it.
    """

    @property
    def mean(self) -> Float[Array, "..."]:
        """Mean over the draws."""
        return self.value.mean(-1)

    @property
    def sem(self) -> Float[Array | np.ndarray, "..."]:
        """Standard error of the mean over the draws; NaN for a single draw."""
        draws = self.value.shape[-1]
        # NumPy's NaN, because jax_debug_nans would report one of JAX as an error.
        return self.value.std(-1, ddof=1) / np.sqrt(draws) if draws > 1 else np.full(self.value.shape[:-1], np.nan)

    def _in_words(self) -> tuple[str, Any, Any]:
        value = f"{words.shown(self.mean)} ± {words.shown(self.sem)} % in {self.value.shape[-1]} draws"
        return value, self.max_loss.mean(-1), self.epsilon[..., 0]


def restrict(loss: Callable, params: PyTree, A: Subspace | None) -> Callable:
    """`y -> f(x + A y)`, the function that Metric 2.1 maximises; A = I if `A` is `None`."""
    f, x, _ = flat.of(loss, params)
    _check_rows(x, A)

    def at(y: Array) -> Array:
        if jnp.shape(y) != (dim := len(x) if A is None else A.dim,):
            raise ValueError(f"y has the shape {jnp.shape(y)}; it must be ({dim},)")
        with program.precision():
            return f(x + (y if A is None else subspace.times(A, y)))

    return at


def box(params: PyTree, A: Subspace | None, epsilon: Any) -> Float[Array, " p"]:
    """The half-widths of the box, epsilon (|A^+ x| + 1) (eq. 3); A = I if `A` is `None`."""
    x, _ = flat.ravel(params)
    _check_rows(x, A)
    return box_of(x, A, epsilon)


def _check_rows(x: Array, A: Subspace | None) -> None:
    if A is not None and A.n != len(x):
        raise ValueError(f"A has {A.n} rows; it must have {len(x)}, one for each parameter")


@jax.jit
def box_of(x: Array, A: Subspace | None, epsilon: Any) -> Array:
    """`box` of a flat vector."""
    return epsilon * (jnp.abs(x if A is None else subspace.pseudo_inverse_times(A, x)) + 1)


def evaluate_at(f: Callable, x: Array, A: Subspace | None, y: Array) -> tuple[Array, Array]:
    """f and its gradient at y, or at each row of y in its own subspace."""

    def at(A: Subspace | None, y: Array) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(f)(x + (y if A is None else subspace.times(A, y)))
        return value, slope if A is None else subspace.transpose_times(A, slope)

    return at(A, y) if y.ndim == 1 else jax.vmap(at)(A, y)


def as_params(steps: list[Array], layout: flat.Layout, shape: tuple[int, ...]) -> PyTree:
    """Steps as pytrees like params, with leading axes; `None` if there are none."""
    if not steps:
        return None
    vectors = jnp.stack(steps)
    return layout.unravel(vectors.reshape(*shape, vectors.shape[-1]), vectors.dtype)


def begin(
    loss: Callable,
    params: PyTree,
    key: Any,
    epsilon: Any,
    counts: Mapping[str, Any],
    num_directions: Any = 0,
    only: flat.Only | None = None,
) -> tuple[tuple[Array, flat.Layout], Callable, tuple[Array, Array], list[Any]]:
    """Check the arguments. Returns x and its layout, f with its gradient, both at x, and the epsilons."""
    checks.check_key(key)
    checks.check_counts(counts)
    checks.check_counts({"num_directions": num_directions}, 0)
    if program.is_traced(epsilon):
        epsilons = list(jnp.atleast_1d(epsilon))
    else:
        epsilons = np.atleast_1d(epsilon).tolist() or [epsilon]
        for e in epsilons:
            checks.check_positive({"epsilon": e})
    f, x, layout = flat.of(loss, params, only=only)
    evaluate = program.compiled(partial(evaluate_at, f))
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
def of_maxima(
    kind: Callable,
    shape: tuple[int, ...],
    base: Array,
    maxima: list[list[ascent.Maximum]],
    epsilon: Array,
    *counts: Any,
) -> Any:
    """The metric, computed from the maxima of each draw, or group of draws, for each epsilon."""
    values = jnp.column_stack([jnp.stack([top.value for top in group]) for group in maxima]).reshape(shape)
    finite = jnp.column_stack([jnp.stack([top.finite for top in group]) for group in maxima]).reshape(shape)
    base, evaluations, shared = (jnp.full(shape, number) for number in (base, *counts))
    epsilon = jnp.broadcast_to(epsilon.reshape(*epsilon.shape, *[1] * (len(shape) - epsilon.ndim)), shape)
    return kind(100 * (values - base) / (1 + base), base, values, evaluations, finite, shared, epsilon)


def checked(result: Any, step: PyTree = None) -> Any:
    """The result with the step. Warns if values are only lower bounds, or too small for their type."""
    result = result._replace(step=step)
    if program.is_traced(result.value):
        return result
    values, finite, base = np.asarray(result.value), np.asarray(result.finite), np.ravel(result.base_loss)[0]
    if not finite.all():
        lost = f"{np.sum(~finite)} of {finite.size} values are lower bounds only"
        checks.warn(f"the loss was not finite somewhere in the box: {lost}", 4)
    unit = 100 * 8 * jnp.finfo(values.dtype).eps * max(abs(base), 1) / (1 + base)
    if low := np.sum((values < unit) & finite):
        lost = f"{low} of {values.size} values of the sharpness are below {unit:.1g}"
        checks.warn(f"{lost}, which {values.dtype} does not resolve at a loss of {base:.3g}", 4)
    return result
