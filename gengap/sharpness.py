r"""Sharpness, Metric 2.1 of Keskar et al. (2016): how far the loss rises within a small box around a minimum.

$$\phi_{x,f}(\epsilon, A) = \frac{(\max_{y \in C_\epsilon} f(x + A y)) - f(x)}{1 + f(x)} \times 100, \qquad
C_\epsilon = \{ z \in R^p : |z_i| \le \epsilon (|(A^+ x)_i| + 1) \}$$ (eqs. 3 and 4).

The loss is a function of the parameters alone. Every value is a lower bound of the maximum in the definition.
Params, key, the data of a loss and epsilon can be traced, in all functions. The Python loops then unroll, and no
warning is given: look at `finite`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Key, PyTree

from gengap import ascent, checks, flat, memory, metric, placement, program, starts, subspace, words
from gengap import progress as shown
from gengap.metric import Sharpness, SubspaceSharpness, box, restrict
from gengap.subspace import Subspace

__all__ = [
    "LayerSharpness", "Sharpness", "SubspaceSharpness", "box", "by_layer", "draw_keys", "full_space",
    "random_subspaces", "restrict",
]  # fmt: skip


def full_space(
    loss: Callable,
    params: PyTree,
    key: Key[Array, ""],
    *,
    epsilon: float | Sequence[float] = 1e-3,
    max_evaluations: int = 24,
    only: flat.Only | None = None,
    with_step: bool = False,
    progress: str | None = "auto",
) -> Sharpness:
    r"""Metric 2.1 with A = I (Table 3), in percent of 1 + f(x):

    $$\phi = 100\, \frac{\max_{|y_i| \le \epsilon (|x_i| + 1)} f(x + y) - f(x)}{1 + f(x)}$$

    Two ascents begin at corners of the box. For the first, the gradient is followed to a corner of the box of
    twice the size, then of 1.4 times the size; the gradient there chooses the corner. The second begins at the
    corner opposite to the gradient at x. See `ascent.maximise`.

    Args:
      loss, params, epsilon, only, with_step, progress: as in `random_subspaces`.
      key: random key for the coordinates that change sides when an ascent restarts.
      max_evaluations: gradients for each epsilon; below 6 there is one ascent, from the corner that the gradient
        at x points to.

    Returns:
      A `Sharpness` of scalars, or of `[epsilons]`: `value` is phi, a lower bound of the maximum in the definition;
      `base_loss` f(x) and `max_loss` f(x + y*), in nats; `evaluations`, the gradients spent; `finite`, whether f
      was finite wherever it was evaluated; `epsilon`; and `step`, y*, if asked for.

    Raises:
      ValueError: an argument is out of range, or f(x) is not finite or not above -1.

    >>> s = full_space(lambda x: x @ x, jnp.array([0.0, 1.0]), jax.random.key(0), epsilon=0.5)
    >>> s  # f is highest at (0.5, 2.0) and (-0.5, 2.0): 0.25 + 4
    Sharpness(162.5 % at epsilon 0.5: loss 1 -> 4.25)
    """
    counts = {"max_evaluations": max_evaluations}
    (x, layout), evaluate, (base, slope), epsilons = metric.begin(loss, params, key, epsilon, counts, only=only)
    maxima, steps = [], []
    total = len(epsilons) * max_evaluations
    with shown.of_measure(progress, "full space", total) as line:
        evaluate = line.counting(partial(evaluate, x, None))
        for e in epsilons:
            radius = box(x, None, e)
            flat.warn_rounded(layout, x, radius)
            maxima.append(_full_maximum(evaluate, radius, (base, slope), key, max_evaluations))
            steps += [maxima[-1].point] * with_step
    step = metric.as_params(steps, layout, np.shape(epsilon))
    return metric.checked(
        metric.of_maxima(
            Sharpness, np.shape(epsilon), base, [maxima], jnp.asarray(epsilon, x.dtype), max_evaluations, 0
        ),
        step,
    )


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
    draws_at_once: int | None = None,
    only: flat.Only | None = None,
    with_step: bool = False,
    progress: str | None = "auto",
) -> SubspaceSharpness:
    r"""Metric 2.1 in random subspaces (Table 4), in percent of 1 + f(x), for several draws of A.

    The paper does not give the distribution of A; here its entries are random signs. All epsilons use the same
    subspaces. The ascents of every draw begin at the corner that the gradient at x points to, and at the corners
    of a few directions that are found once per minimum, in the full space. A draw depends only on these directions
    and on its own key, so more draws do not change the first ones.

    As in the paper A is not normalised: each parameter of a corner is about $\epsilon \sqrt{p}$ from x, farther
    than in the full space if |x| is below $\sqrt{p} - 1$. So the value can be above that of the full space.

    Args:
      loss: `params -> scalar`, in nats.
      params: x, floating-point leaves, n in all.
      key: random key for the draws and the directions.
      dim: p, columns of A, 1 to n.
      num_draws: matrices A.
      epsilon: one size of the box, or several; the result then has an axis for them.
      max_evaluations: gradients for each draw and epsilon.
      num_directions: start directions besides the gradient at x; each costs six gradients for each epsilon.
      entries: sampler of the entries of A, see `subspace.draw`.
      draws_at_once: draws under one `vmap`; by default all on an accelerator, and one on a CPU. If memory runs
        out, the number is halved. If params and the data of the loss are copied to all devices of a mesh, the
        draws are shared among the devices, by default at least one for each.
      only: which leaves to move, by their name such as "Dense_0/kernel"; the others stay, and have no rows in A.
      with_step: also return the steps A y*, each a pytree like params, for each draw and epsilon.
      progress: a name for the progress bar; `None` shows none. "auto" shows one with the name of the measure, on a
        terminal, after two seconds.

    Returns:
      A `SubspaceSharpness` of `[num_draws]`, or `[epsilons, num_draws]`: `mean` and `sem` over the draws, and the
      fields of `full_space` for each draw. `shared_evaluations` are the gradients spent on the directions.

    Raises:
      ValueError: an argument is out of range, or f(x) is not finite or not above -1.

    >>> x = jnp.arange(9.0)
    >>> s = random_subspaces(lambda x: x.sum(), x, jax.random.key(0), dim=2, num_draws=3)
    >>> s.value.shape, s.mean.shape, int(s.evaluations[0]), int(s.shared_evaluations[0])
    ((3,), (), 24, 36)
    """
    counts = {"dim": dim, "num_draws": num_draws, "max_evaluations": max_evaluations}
    counts |= {"draws_at_once": 1 if draws_at_once is None else draws_at_once}
    (x, layout), evaluate, centre, epsilons = metric.begin(
        loss, params, key, epsilon, counts, num_directions, only=only
    )
    if dim > len(x):
        raise ValueError(f"dim is {dim}; it must be from 1 to {len(x)}, the number of parameters")
    num_directions = min(num_directions, len(x))
    draws_key, ascents_key, directions_key, entries_key = jax.random.split(key, 4)
    draws, ascents = _keys(draws_key, num_draws), _keys(ascents_key, num_draws)
    tiles, over = placement.parameters_of(params), placement.draws_of(loss, params)
    draw, least = program.compiled(partial(_draw, len(x), dim, entries, tiles)), over.mesh.size if over else 1
    draws_at_once = draws_at_once or (num_draws if placement.on_accelerator(x) else least)
    total = len(epsilons) * (starts.CLIMB * num_directions + num_draws * max_evaluations)
    with shown.of_measure(progress, "random subspaces", total) as line:
        in_full = line.counting(partial(evaluate, x, None))
        entry = starts.entry_size(entries_key, len(x), dim, entries)
        for e in epsilons:  # a corner is that far from x along each parameter
            flat.warn_rounded(layout, x, e * entry * math.sqrt(dim) * jnp.ones_like(x))
        directions = [
            starts.directions(in_full, x, centre[1], directions_key, e * entry, dim, num_directions)
            for e in epsilons
        ]

        def of_group(first: int, count: int) -> tuple[list[ascent.Maximum], Array | None]:
            group = first if count == 1 else slice(first, first + count)
            keys = draws[group], ascents[group]
            if over is not None and count % least == 0:
                keys = jax.device_put(keys, over)
            A, unit, slope, corners = draw(keys[0], x, centre[1], directions)
            in_A = line.counting(partial(evaluate, x, A), count)
            climb = partial(ascent.maximise, in_A, centre=(centre[0], slope), max_evaluations=max_evaluations)
            pairs = zip(epsilons, corners, strict=True)
            tops = [climb(radius=e * unit, starts=of_e, key=keys[1]) for e, of_e in pairs]
            return tops, _step(A, jnp.stack([top.point for top in tops])) if with_step else None

        groups = memory.in_groups(of_group, num_draws, draws_at_once, least=least, kind=(len(x), dim))
    maxima, steps = zip(*groups, strict=True)
    shape, shared = (*np.shape(epsilon), num_draws), starts.CLIMB * num_directions
    step = metric.as_params([jnp.concatenate(steps, 1)] if with_step else [], layout, shape)
    return metric.checked(
        metric.of_maxima(
            SubspaceSharpness,
            shape,
            centre[0],
            list(maxima),
            jnp.asarray(epsilon, x.dtype),
            max_evaluations,
            shared,
        ),
        step,
    )


class LayerSharpness(NamedTuple):
    """Metric 2.1 in the full space, one layer at a time; several epsilons are the first axis.

    Attributes:
      layers: their names.
      alone: phi if one layer may move within its box and the others stay.
      without: phi if one layer stays and the others may move.
      full: phi if all layers may move.
      finite: whether the loss was finite wherever it was evaluated.
      evaluations: total number of gradients spent.
    """

    layers: tuple[str, ...]
    alone: Float[Array, "... layers"]
    without: Float[Array, "... layers"]
    full: Float[Array, "..."]
    finite: Bool[Array, "..."]
    evaluations: int

    @property
    def unexplained(self) -> Float[Array, "..."]:
        """The share of phi that no single layer explains: 1 - the sum of `alone` / `full`.

        It is 0 if the loss is a sum of functions of one layer each, near 1 if the loss rises only when layers move
        together, and below 0 if each of several layers alone raises the loss as far as all do together.
        """
        return 1 - self.alone.sum(-1) / self.full

    def __repr__(self) -> str:
        """The full sharpness, and the layers, the sharpest first."""
        if np.ndim(self.full):
            return words.in_one_line(self)
        order = sorted(zip(self.layers, self.alone.tolist(), strict=True), key=lambda pair: -pair[1])
        alone = ", ".join(f"{layer} {value:.4g}" for layer, value in order[:5]) + ", ..." * (len(order) > 5)
        unexplained = f"{100 * float(self.unexplained):.3g} %"
        return f"LayerSharpness({words.shown(self.full)} %; alone: {alone}; unexplained {unexplained})"


def by_layer(
    loss: Callable,
    params: PyTree,
    key: Key[Array, ""],
    *,
    epsilon: float | Sequence[float] = 1e-3,
    max_evaluations: int = 24,
    layer_of: Callable[[str], str] = flat.layer_of,
    progress: str | None = "auto",
) -> LayerSharpness:
    """Metric 2.1 in the full space if only one layer may move, and if all layers but one may move.

    Args:
      loss, params, key, epsilon, max_evaluations, progress: as in `full_space`. L layers cost as much as 2 L + 1
        calls of it.
      layer_of: name of a leaf -> its layer; by default "Dense_0/kernel" belongs to "Dense_0".

    Returns:
      Arrays `[layers]`, or `[epsilons, layers]`.

    >>> params = {"a": {"w": jnp.array(1.0)}, "b": {"w": jnp.array(0.0)}}
    >>> s = by_layer(lambda p: 3 * p["a"]["w"] + p["b"]["w"], params, jax.random.key(0), epsilon=0.1)
    >>> s.layers, [round(float(value), 3) for value in s.alone], abs(round(float(s.unexplained), 3))
    (('a', 'b'), [15.0, 2.5], 0.0)
    """
    counts = {"max_evaluations": max_evaluations}
    (x, layout), evaluate, (base, slope), epsilons = metric.begin(loss, params, key, epsilon, counts)
    leaves = [layer_of(name) for name in flat.names(params)]
    layers = tuple(dict.fromkeys(leaves))
    number = np.repeat([layers.index(layer) for layer in leaves], [math.prod(shape) for shape in layout.shapes])
    alone, without = ([is_open(number, i) for i in range(len(layers))] for is_open in (np.equal, np.not_equal))
    masks = [*alone, *without, np.ones_like(number, bool)]
    maxima: list[list[ascent.Maximum]] = [[] for _ in masks]
    evaluations = len(epsilons) * len(masks) * max_evaluations
    with shown.of_measure(progress, "by layer", evaluations) as line:
        evaluate = line.counting(partial(evaluate, x, None))
        for e in epsilons:
            radius = box(x, None, e)
            flat.warn_rounded(layout, x, radius)
            for tops, mask in zip(maxima, masks, strict=True):
                tops.append(_full_maximum(evaluate, radius * mask, (base, slope), key, max_evaluations))
    shape = (*np.shape(epsilon), len(masks))
    result = metric.of_maxima(Sharpness, shape, base, maxima, jnp.asarray(epsilon, x.dtype), max_evaluations, 0)
    whole, finite = jax.tree.map(lambda field: field[..., -1], result), result.finite.all(-1)
    metric.checked(whole._replace(finite=finite))
    of_alone, of_without = jnp.split(result.value[..., :-1], 2, -1)
    return LayerSharpness(layers, of_alone, of_without, whole.value, finite, evaluations)


def draw_keys(key: Key[Array, ""], num_draws: int) -> Key[Array, " draws"]:
    """The keys of the matrices that `random_subspaces` draws: `subspace.draw(draw_keys(key, 10)[3], n, 100)`."""
    checks.check_key(key)
    return _keys(jax.random.split(key, 4)[0], num_draws)


@partial(jax.jit, static_argnums=1)
def _keys(key: Array, count: int) -> Array:
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))


def _draw(
    n: int,
    dim: int,
    entries: subspace.Entries,
    tiles: NamedSharding | None,
    keys: Array,
    x: Array,
    slope: Array,
    directions: list[Array],
) -> tuple[Subspace, Array, Array, list[Array]]:
    """A, its box for epsilon 1, the gradient at x in it, and the corners of `directions`; or one of each a key."""

    def draw(key: Array) -> tuple[Subspace, Array, Array, list[Array]]:
        A = subspace.draw(key, n, dim, entries=entries, spread=tiles)
        into = partial(subspace.transpose_times, A)
        return A, metric.box_of(x, A, 1.0), into(slope), [jnp.sign(jax.vmap(into)(rows)) for rows in directions]

    return jax.vmap(draw)(keys) if keys.ndim else draw(keys)


def _full_maximum(
    evaluate: Callable, radius: Array, centre: tuple[Array, Array], key: Array, max_evaluations: int
) -> ascent.Maximum:
    corners, left = starts.in_full_space(evaluate, radius, centre[1], max_evaluations)
    return ascent.maximise(evaluate, radius, centre, corners, key, max_evaluations=left)


@jax.jit
def _step(A: Subspace, points: Float[Array, "epsilons *draws p"]) -> Float[Array, "epsilons draws n"]:
    """A y for each y, each draw with its own A."""
    if points.ndim == 2:
        return jax.vmap(partial(subspace.times, A))(points)[:, None]
    return jax.vmap(jax.vmap(subspace.times), (None, 0))(A, points)
