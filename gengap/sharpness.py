"""Sharpness, Metric 2.1 of Keskar et al. (2016): how far the loss rises within a small box around a minimum.

The definition is that of `metric`. The functions take the loss as a function of the parameters alone, and know
neither networks nor data. Every value is a lower bound on the maximum in the definition.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from gengap import ascent, loops, scout, subspace
from gengap.metric import Sharpness, radius, restrict


class _How(NamedTuple):
    """What is static when a measurement is compiled."""

    dim: int | None = None  # None: the full space
    columns: subspace.Columns = subspace.normal
    normalise: bool = False
    keep: bool = True
    maximiser: Callable = ascent.corner
    num_starts: int = 4
    max_evaluations: int = 12  # of a draw, its share included
    begin: Callable | None = None  # (how, fn, x, slope, key, epsilon) -> [starts, n]
    share: int = 1  # of the gradient at x and those that `begin` spends, for one draw
    spend: scout.Budget | None = None  # of the scouts
    at_once: int = 1
    precision: str = "float32"


def full_space(
    loss: Callable,
    params: PyTree[Float[Array, "..."]],
    *,
    epsilon: float | Sequence[float] = 1e-3,
    num_starts: int = 4,
    max_evaluations: int = 12,
    maximiser: Callable = ascent.corner,
    precision: str = "float32",
) -> Sharpness:
    """Metric 2.1 with A = I (Table 3).

    Four of the gradients are spent at corners of larger boxes, and the ascent begins at the corner that the
    last of them points to (see `scout.outside`); where there are fewer than eight to spend, it begins at x.

    Args:
      loss: `params -> scalar`, in nats.
      params: x, floating-point leaves.
      epsilon: one size of the box, or several; the result then has a leading axis.
      num_starts: the most ascents for each epsilon; the first begins at x, the others when it has ended.
      max_evaluations: gradients to spend for each epsilon, all ascents together.
      maximiser: `ascent.corner`, `ascent.gradient`, `ascent.lbfgs`, or one of the same signature.
      precision: of matrix products, for `jax.default_matmul_precision`; "tensorfloat32" and "bfloat16" are
        faster on accelerators and change the value.

    Returns:
      Scalars, or one of each per epsilon.

    Raises:
      ValueError: an argument is out of its range, or f(x) is not finite.

    >>> s = full_space(lambda x: x @ x, jnp.array([0.0, 1.0]), epsilon=0.5)
    >>> float(s.max_loss)  # (0.5, 2.0) or (-0.5, 2.0): 0.25 + 4
    4.25
    """
    _check(loss, params, epsilon, num_starts, max_evaluations, precision)
    looks = len(scout.OUTSIDE) if max_evaluations >= 2 * len(scout.OUTSIDE) else 0
    how = _How(
        maximiser=maximiser,
        num_starts=num_starts,
        max_evaluations=max_evaluations,
        begin=_outside if looks else None,
        share=1 + looks,
        precision=precision,
    )
    found = _measure(how, loss, params, jax.random.key(0), 1, epsilon)
    return jax.tree.map(lambda a: a[0] if np.ndim(epsilon) else a[0, 0], found)


def random_subspaces(
    loss: Callable,
    params: PyTree[Float[Array, "..."]],
    key: Key[Array, ""],
    *,
    dim: int = 100,
    num_draws: int = 10,
    epsilon: float | Sequence[float] = 1e-3,
    num_starts: int = 4,
    max_evaluations: int = 12,
    maximiser: Callable = ascent.corner,
    columns: subspace.Columns = subspace.normal,
    normalise: bool = False,
    draws_at_once: int | None = None,
    precision: str = "float32",
    progress: str | None = None,
) -> Sharpness:
    """Metric 2.1 in random subspaces (Table 4): draws of A, each from a key of its own.

    All epsilons look into the same subspaces. The paper leaves the distribution of A open; see
    `subspace.draw` for `columns` and `normalise`. Before the draws a few ascents look for directions in
    the full space along which the loss rises; every draw begins at the corners that they point to
    (see `scout`), and its share of the gradients that this took, and of the one at x, is part of its evaluations.

    Args:
      loss: `params -> scalar`, in nats.
      params: x, floating-point leaves, n in all.
      key: of the draws.
      dim: p, columns of A, 1 to n.
      num_draws: matrices A.
      epsilon: one size of the box, or several; the result then has a leading axis.
      num_starts: the most ascents in each draw.
      max_evaluations: gradients to spend for each draw and epsilon, all ascents together.
      maximiser: see `full_space`.
      columns: sampler of the entries of A.
      normalise: scale the columns of A to length 1.
      draws_at_once: draws under one `vmap`; `None` takes one on a CPU or with convolutions, and else as many
        as have their A kept within a twentieth of the memory, 16 at most. A is kept where it fits in there,
        and drawn again whenever it is applied where it does not.
      precision: see `full_space`.
      progress: what to call a progress bar; `None` shows none, and compiles all draws into one program.

    Returns:
      Arrays `[num_draws]`, or `[epsilons, num_draws]`.

    Raises:
      ValueError: an argument is out of its range, f(x) is not finite, or A has dependent columns.
    """
    _check(loss, params, epsilon, num_starts, max_evaluations, precision)
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    if not 1 <= dim <= n:
        raise ValueError(f"dim is {dim}; it must be from 1 to {n}, the number of parameters")
    for name, number in (("num_draws", num_draws), ("draws_at_once", draws_at_once)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError(f"key is {key!r}; it must be one key, as from jax.random.key(0)")
    fitting = _memory() // 20 // (dim * n * 4)
    if draws_at_once is None:
        slow = jax.default_backend() == "cpu" or loops.has_convolution(loss, params)
        draws_at_once = 1 if slow else min(max(fitting, 1), num_draws, 16)
    spend = scout.budget(num_draws, max_evaluations)
    how = _How(
        dim=dim,
        columns=columns,
        normalise=normalise,
        keep=draws_at_once <= fitting,
        maximiser=maximiser,
        num_starts=num_starts,
        max_evaluations=max_evaluations,
        begin=_scouts if spend.scouts else None,
        share=spend.share,
        spend=spend,
        at_once=draws_at_once,
        precision=precision,
    )
    found = _measure(how, loss, params, key, num_draws, epsilon, progress)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1) if np.ndim(epsilon) else a[:, 0], found)


def draw_keys(key: Key[Array, ""], num_draws: int) -> Key[Array, " draws"]:
    """The keys of the matrices that `random_subspaces` draws: `subspace.draw(draw_keys(key, 10)[3], n, 100)`."""
    return _draw_keys(key, num_draws)[:, 0]


def _draw_keys(key: Key[Array, ""], num_draws: int) -> Key[Array, "draws 2"]:
    """Of A, and of what is random in the ascents."""
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(jnp.arange(num_draws))


def _measure(
    how: _How,
    loss: Callable,
    params: PyTree,
    key: Key[Array, ""],
    num_draws: int,
    epsilon: float | Sequence[float],
    progress: str | None = None,
) -> Sharpness:
    """[draws, epsilons]"""
    loss = loops.as_pytree(loss)
    epsilons = jnp.atleast_1d(jnp.asarray(epsilon, jnp.result_type(*jax.tree.leaves(params))))
    keys = _draw_keys(key, num_draws)
    step_by_step = not loops.traced((loss, params)) and loops.in_python(loss, params)
    prepare, draws = (_prepare, _draws) if step_by_step else (_compiled_prepare, _compiled_draws)
    with jax.default_matmul_precision(how.precision):
        ready = prepare(how, loss, params, jax.random.fold_in(key, 2**32 - 1), epsilons)
        base = ready[0][0]
        if not loops.traced(base) and not np.isfinite(base):
            raise ValueError(f"loss(params) is {float(base)}; it must be finite")
        size = num_draws if progress is None else how.at_once
        groups = [keys[i : i + size] for i in range(0, num_draws, size)]
        bar = tqdm.tqdm(groups, desc=progress, unit="draw", unit_scale=size, disable=progress is None)
        found = [draws(how, loss, params, ready, group, epsilons) for group in bar]
    found = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
    if not loops.traced(found):
        _judge(found, how)
    return found


def _judge(found: Sharpness, how: _How) -> None:
    """Tell what the numbers cannot."""
    values, base = np.asarray(found.value), np.asarray(found.base_loss)
    if np.isnan(values).any():
        raise ValueError(subspace.DEPENDENT)
    unit = 100 * 8 * jnp.finfo(values.dtype).eps * np.maximum(np.abs(base), 1) / (1 + base)
    if low := int(np.sum((values < unit) & np.asarray(found.finite))):
        warnings.warn(
            f"{low} of {values.size} values of the sharpness are below {unit.max():.1g}, "
            f"which {values.dtype} does not resolve at a loss of {base.flat[0]:.3g}",
            RuntimeWarning,
            stacklevel=4,
        )


def _prepare(
    how: _How, loss: Callable, x: PyTree, key: Key[Array, ""], epsilons: Float[Array, " epsilons"]
) -> tuple[tuple[Array, Array], Array | None]:
    """f(x), its gradient [n], and the directions in which the draws begin [epsilons, starts, n]."""
    value, slope = _value_and_grad(loss, x)
    slope, _ = ravel_pytree(slope)
    if how.begin is None:
        return (value, slope), None
    fn = restrict(loss, x, None)
    return (value, slope), loops.each(partial(how.begin, how, fn, x, slope, key), epsilons, at_once=1)


def _outside(how: _How, fn: Callable, x: PyTree, slope: Array, key: Key[Array, ""], epsilon: Array) -> Array:
    return scout.outside(fn, slope, radius(x, None, epsilon), key)[None]


def _scouts(how: _How, fn: Callable, x: PyTree, slope: Array, key: Key[Array, ""], epsilon: Array) -> Array:
    assert how.dim is not None and how.spend is not None
    entry = 1 / np.sqrt(slope.size) if how.normalise else scout.length(key, how.columns, slope.size, how.dim)
    return scout.directions(fn, slope, key, dim=how.dim, entry=entry, epsilon=epsilon, spend=how.spend)


@jax.jit
def _value_and_grad(loss: Callable, x: PyTree) -> tuple[Array, PyTree]:
    return jax.value_and_grad(loss)(x)


def _draws(
    how: _How,
    loss: Callable,
    x: PyTree,
    ready: tuple[tuple[Array, Array], Array | None],
    keys: Key[Array, "draws 2"],
    epsilons: Float[Array, " epsilons"],
) -> Sharpness:
    """[draws, epsilons]"""
    return loops.each(lambda key: _draw(how, loss, x, ready, key, epsilons), keys, at_once=how.at_once)


_compiled_prepare = jax.jit(_prepare, static_argnums=0)
_compiled_draws = jax.jit(_draws, static_argnums=0)


def _draw(
    how: _How,
    loss: Callable,
    x: PyTree,
    ready: tuple[tuple[Array, Array], Array | None],
    keys: Key[Array, "2"],
    epsilons: Float[Array, " epsilons"],
) -> Sharpness:
    """One draw of A, and in its subspace the ascents for each epsilon."""
    draw_key, ascent_key = keys
    (value, slope), directions = ready
    A = None
    if how.dim is not None:
        A = subspace.draw(
            draw_key, slope.size, how.dim, columns=how.columns, normalise=how.normalise, keep=how.keep
        )
        slope = subspace.transpose_times(A, slope)
    unit = radius(x, A, 1.0)
    fn = restrict(loss, x, A)

    def maximise(epsilon: Float[Array, ""], directions: Array | None) -> Sharpness:
        r = epsilon * unit
        starts = None
        if directions is not None:
            starts = jnp.stack(
                [r * jnp.sign(d if A is None else subspace.transpose_times(A, d)) for d in directions]
            )
        found = how.maximiser(
            fn,
            jnp.zeros_like(r),
            r,
            ascent_key,
            num_starts=how.num_starts,
            max_evaluations=1 + how.max_evaluations - how.share,
            starts=starts,
            known=(value, slope),
        )
        phi = 100 * (jnp.stack([found.value, *found.ends]) - value) / (1 + value)
        phi = jnp.where(jnp.isfinite(unit).all(), phi, jnp.nan)
        spent = found.evaluations - 1 + how.share
        return Sharpness(phi[0], value, found.value, spent, found.finite, phi[1:])

    return loops.each(lambda both: maximise(*both), (epsilons, directions))


def _memory() -> int:
    """Bytes that the default device has."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check(
    loss: Callable, params: PyTree, epsilon: Any, num_starts: int, max_evaluations: int, precision: str
) -> None:
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError("params has no leaves; it must be a pytree of floating-point arrays")
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"params has a leaf of type {jnp.result_type(leaf)}; all must be floating point")
    if not loops.traced(epsilon) and not (
        np.size(epsilon) and np.all((np.asarray(epsilon) > 0) & np.isfinite(epsilon))
    ):
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 and finite")
    for name, number, least in (("num_starts", num_starts, 1), ("max_evaluations", max_evaluations, 2)):
        if number < least:
            raise ValueError(f"{name} is {number}; it must be at least {least}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    shape = jax.eval_shape(loss, params)
    if getattr(shape, "shape", None) != ():
        raise ValueError(f"loss returned {shape}; it must return a scalar")


PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
"""Of matrix products; on a CPU all are computed as float32."""
