"""`measure` puts the numbers of one minimum into a flat row; `compare` says how several minima differ."""

import re
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from gengap import ascent, checks, flat, hessian, measures, origins, program, sharpness, words
from gengap import progress as shown
from gengap.compared import Comparison
from gengap.notes import notes

__all__ = ["QUICK", "Metric", "check_arguments", "check_metric", "column", "compare", "measure"]

_TRACE_SAMPLES = 10
_HESSIAN_GRADIENTS = 2 * _TRACE_SAMPLES + 40  # the largest eigenvalue takes about 20 products
_IN_SUBSPACES = 1.3  # a gradient with its products with A takes this many times as long as one without
_MEASURED = re.compile(
    "minimum|seed|origin|ascent_version|distance|(train|test|gradient|hessian|sharpness|linear)_.*"
)

Evaluation = Callable[[PyTree], Any]
Measure = Callable[[Callable, PyTree, Key[Array, ""]], Any]


class Metric(NamedTuple):
    """How sharpness (Metric 2.1) is measured. The default epsilons and dimension are the paper's."""

    epsilons: tuple[float, ...] = (1e-3, 5e-4)
    """sizes of the box around the minimum"""
    dim: int = 100
    """columns of the random matrix A"""
    num_draws: int = 10
    """number of random matrices A per minimum; 0: the full space only"""
    max_evaluations: int = 24
    """gradients per maximum"""
    num_directions: int = 6
    """extra start directions for the subspace ascents, six gradients each"""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """precision of matrix products in the measurement; a lower one is faster on accelerators"""

    @property
    def gradients(self) -> int:
        """The most gradients that one minimum takes."""
        directions = 6 * self.num_directions if self.num_draws else 0
        return len(self.epsilons) * ((1 + self.num_draws) * self.max_evaluations + directions)


QUICK = Metric(epsilons=(1e-3,), num_draws=3)
"""What `compare` takes by default.

>>> QUICK.gradients, Metric().gradients
(132, 600)
"""


def check_metric(metric: Metric, params: PyTree) -> None:
    """Refuse settings that `measure` would refuse for these parameters, of which only the shapes matter.

    Raises:
      ValueError: a setting is out of range; the message names it.
    """
    checks.check_counts({"dim": metric.dim, "max_evaluations": metric.max_evaluations})
    checks.check_counts({"num_draws": metric.num_draws, "num_directions": metric.num_directions}, least=0)
    distinct = sorted(set(metric.epsilons))
    if not distinct or not all(0 < epsilon < np.inf for epsilon in distinct):
        raise ValueError(f"epsilons is {metric.epsilons}; it must have at least one size, each above 0")
    if len(distinct) < len(metric.epsilons):
        raise ValueError(f"epsilons is {metric.epsilons}; no size may occur twice")
    n = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    if metric.num_draws and metric.dim > n:
        raise ValueError(f"dim is {metric.dim}; it must be from 1 to {n}, the parameters of the network")


def column(space: Literal["full", "random"], epsilon: float) -> str:
    """The column of a sharpness in a row.

    >>> column("full", 1e-3), column("random", 5e-4)
    ('sharpness_full_1e-3', 'sharpness_random_5e-4')
    """
    return f"sharpness_{space}_{np.format_float_scientific(epsilon, trim='-', exp_digits=1)}"


def measure(
    loss: Callable[[PyTree], Any],
    params: PyTree,
    key: Key[Array, ""],
    metric: Metric = Metric(),  # noqa: B008
    *,
    train: Evaluation | None = None,
    test: Evaluation | None = None,
    progress: str | None = "auto",
) -> dict[str, Any]:
    """Loss, accuracy and sharpness of one minimum.

    Args:
      loss: `params -> f`, the mean loss of the training set.
      params: the minimum.
      key: random key for the random matrices and the restarts of the ascents.
      metric: how the sharpness is measured.
      train, test: `params -> (loss, accuracy)` of a split, as `objective.loss_and_accuracy` makes it, or the
        loss alone.
      progress: a name for the progress bars; `None` shows none. "auto" shows them on a terminal after two seconds.

    Returns:
      Columns of a row: `train_loss`, and `train_accuracy`, `test_loss`, `test_accuracy` if a function gives them.
      For each epsilon `sharpness_full_1e-3` and `sharpness_random_1e-3` (the mean over the draws), in percent of
      1 + f. Each has a column `_evaluations`, the gradients spent; random subspaces also have `_sem`, the standard
      error (NaN for one draw), and `_draws`, [num_draws]. A sharpness is NaN if the loss was not finite somewhere
      in the box, because the value found is then only a lower bound. If the loss is not finite at params, the row
      has no sharpness. `ascent_version` is the version of the maximiser.
    """
    row: dict[str, Any] = {}
    for split, evaluate in {"train": train, "test": test}.items():
        if evaluate is not None:
            result = evaluate(params)
            numbers = result if isinstance(result, tuple) else (result,)
            scalars = jax.tree_util.all_leaves(numbers) and all(np.shape(number) == () for number in numbers)
            if len(numbers) > 2 or not scalars:
                raise ValueError(
                    f"{split} returned {words.shown(result)}; it must return a loss, or (loss, accuracy)"
                )
            row |= zip((f"{split}_loss", f"{split}_accuracy"), map(float, numbers), strict=False)
    if train is None:
        row["train_loss"] = float(flat.as_scalar(loss(params), float))
    row["ascent_version"] = ascent.ASCENT_VERSION
    if not np.isfinite(row["train_loss"]):
        return row
    with jax.default_matmul_precision(metric.precision):
        full = sharpness.full_space(
            loss,
            params,
            flat.key_for(key, "full"),
            epsilon=metric.epsilons,
            max_evaluations=metric.max_evaluations,
            progress=shown.part(progress, "full space"),
        )
        row |= _columns("full", metric, full)
        if train is None:
            row["train_loss"] = float(full.base_loss[0])  # exactly the value that the metric used
        if not metric.num_draws:
            return row
        random = sharpness.random_subspaces(
            loss,
            params,
            flat.key_for(key, "random"),
            dim=metric.dim,
            num_draws=metric.num_draws,
            epsilon=metric.epsilons,
            max_evaluations=metric.max_evaluations,
            num_directions=metric.num_directions,
            progress=shown.part(progress, "random subspaces"),
        )
    return row | _columns("random", metric, random)


def _columns(space: Literal["full", "random"], metric: Metric, result: sharpness.Sharpness) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for i, epsilon in enumerate(metric.epsilons):
        name, draws = column(space, epsilon), np.atleast_1d(np.asarray(result.value[i], float))
        columns[name] = float(draws.mean()) if np.all(result.finite[i]) else np.nan
        columns[f"{name}_evaluations"] = int(np.sum(result.evaluations[i]))
        if space == "random":
            columns[f"{name}_sem"] = float(draws.std(ddof=1) / np.sqrt(len(draws))) if len(draws) > 1 else np.nan
            columns[f"{name}_draws"] = draws.tolist()
    return columns


def compare(
    minima: Mapping[str, PyTree],
    loss: Callable[[PyTree], Any],
    key: Key[Array, ""],
    *,
    test: Evaluation | None = None,
    start: PyTree | None = None,
    metric: Metric = QUICK,
    measures: Mapping[str, Measure] = MappingProxyType({}),
    with_hessian: bool = True,
    progress: str | None = "auto",
) -> Comparison:
    """Measure how two or more minima of one loss differ; one call for networks that are already trained.

    It first says how long it will take. Besides the numbers of `measure` each minimum has the norm of its
    gradient, the largest eigenvalue of the Hessian (the error is the residual), the trace, and the distance from
    `start`.

    Args:
      minima: name -> parameters, or a list of the parameters of several seeds, in the order of the seeds.
      loss: `params -> f`, the mean loss of the training set.
      key: random key. All minima of one seed are measured in the same random subspaces.
      test: `params -> test loss`, or `-> (test loss, test accuracy)`.
      start: where training began.
      metric: how sharpness is measured; by default with one epsilon and three draws. `Metric()` has the paper's
        two epsilons, and ten draws.
      measures: name -> `(loss, params, key) -> number`, or a result with `value` and `sem`: further measures, such
        as `gengap.measures.worst_case`.
      with_hessian: whether to measure the eigenvalue and the trace; the loss must then have second derivatives.
      progress: a name for the progress bars; `None` shows none. "auto" shows them on a terminal after two seconds.

    Raises:
      ValueError: the points have different shapes, a list may be one minimum or several seeds, or a number is out
        of range.

    >>> import jax.numpy as jnp
    >>> sharp, flat_one = jnp.array([0.1, 0.0]), jnp.array([0.0, 0.1])
    >>> result = compare({"flat": flat_one, "sharp": sharp}, lambda x: 9 * x[0] ** 2 + x[1] ** 2,
    ...                  jax.random.key(0), metric=QUICK._replace(dim=2), progress=None)
    >>> result.frame()["hessian_top"].round(3).tolist(), result.notes[0][:29]
    ([18.0, 18.0], 'The losses are not equal, 0.0')
    """
    checks.check_key(key)
    points = check_arguments(minima, loss, metric, start, measures)
    given = [params for seeds in points.values() for params in seeds]
    progress = shown.named(progress, "compare")
    if progress is not None:
        _say_how_long(loss, given[0], len(given), metric, with_hessian, progress)
    rows = []
    for i, (name, seed, params) in enumerate(
        (n, k, p) for n, seeds in points.items() for k, p in enumerate(seeds)
    ):
        began, of_seed = time.monotonic(), jax.random.fold_in(key, seed)
        label = progress and f"{progress}: {name}, {i + 1} of {len(given)}"
        own = _own(measures, loss, params, of_seed)  # first, so that an error in them shows at once
        row = measure(loss, params, of_seed, metric, test=test, progress=label)
        row |= _beside(loss, params, of_seed, start, metric, with_hessian, label) | own
        rows.append({"minimum": name, "seed": seed, **row, "origin": origins.dated(time.monotonic() - began)})
    sizes = [column("full", epsilon).rpartition("_")[2] for epsilon in metric.epsilons]
    spaces = [(size, f"sharpness_full_{size}", f"sharpness_random_{size}") for size in sizes]
    settings = {"parameters": sum(np.size(leaf) for leaf in jax.tree.leaves(given[0])), "metric": metric._asdict()}
    return Comparison(rows, notes(rows, spaces, metric.num_draws), points, loss, start, settings)


def check_arguments(
    minima: Mapping[str, PyTree], loss: Callable, metric: Metric, start: PyTree, measures: Mapping[str, Measure]
) -> dict[str, list[PyTree]]:
    """The seeds of each minimum. Refuses what `compare` would, except for errors inside the given functions."""
    points = _seeds(minima, loss)
    given = [params for seeds in points.values() for params in seeds]
    flat.check_alike(*given, *([] if start is None else [start]))
    check_metric(metric, given[0])
    if taken := [name for name in measures if _MEASURED.fullmatch(name)]:
        raise ValueError(f"measures has {', '.join(taken)}, which is measured anyway; give yours another name")
    return points


def _seeds(minima: Mapping[str, PyTree], loss: Callable) -> dict[str, list[PyTree]]:
    """The seeds of each minimum. A list holds seeds if the loss accepts each of its entries."""
    if not isinstance(minima, Mapping) or not minima:
        raise ValueError(f"minima is {words.shown(minima)}; it must be a dictionary, name -> parameters")

    def is_taken(params: PyTree) -> bool:
        try:
            jax.eval_shape(loss, params)
        except Exception:
            return False
        return True

    points = {}
    for name, value in minima.items():
        if not isinstance(value, list) or not value:
            points[str(name)] = [value]
            continue
        as_one, as_seeds = is_taken(value), all(map(is_taken, value))
        if as_one and as_seeds:
            raise ValueError(f"minima[{name!r}] may be one minimum or several seeds; give [params] for one")
        points[str(name)] = [value] if as_one else value
    return points


def _say_how_long(
    loss: Callable, params: PyTree, count: int, metric: Metric, with_hessian: bool, progress: str
) -> None:
    f, x, _ = flat.of(loss, params)
    gradient = program.compiled(jax.value_and_grad(f))
    jax.block_until_ready(gradient(x))
    began = time.monotonic()
    jax.block_until_ready(gradient(x))
    gradients = count * (metric.gradients + with_hessian * _HESSIAN_GRADIENTS)
    seconds = _IN_SUBSPACES * gradients * (time.monotonic() - began)
    shown.say(f"{progress}: about {gradients} gradients, {shown.in_words(seconds)} without compilation")


def _beside(
    loss: Callable,
    params: PyTree,
    key: Array,
    start: PyTree,
    metric: Metric,
    with_hessian: bool,
    progress: str | None,
) -> dict[str, Any]:
    """What `compare` measures at a minimum in addition to `measure`."""
    f, x, _ = flat.of(loss, params)
    value, slope = program.compiled(jax.value_and_grad(f))(x)
    row: dict[str, Any] = {"gradient_length": float(flat.unit(slope)[0])}
    for epsilon in metric.epsilons:
        rise = jnp.abs(slope) @ sharpness.box(params, None, epsilon)
        row[column("full", epsilon).replace("sharpness", "linear")] = float(100 * rise / (1 + value))
    if with_hessian and np.isfinite(value):
        of_top, of_trace = (shown.part(progress, part) for part in ("Hessian eigenvalue", "Hessian trace"))
        top = hessian.eigenpairs(loss, params, flat.key_for(key, "hessian"), progress=of_top)
        trace_key = flat.key_for(key, "trace")
        trace = hessian.trace(loss, params, trace_key, num_samples=_TRACE_SAMPLES, progress=of_trace)
        row |= {"hessian_top": float(top.values[0]), "hessian_top_sem": float(top.residuals[0])}
        row |= {"hessian_trace": float(trace.value), "hessian_trace_sem": float(trace.sem)}
    if start is not None:
        row["distance"] = float(measures.distance(params, start))
    return row


def _own(measures: Mapping[str, Measure], loss: Callable, params: PyTree, key: Array) -> dict[str, Any]:
    """The caller's own measures."""
    row: dict[str, Any] = {}
    for name, fn in measures.items():
        result = fn(loss, params, flat.key_for(key, name))
        row[name] = float(np.mean(np.asarray(getattr(result, "value", result))))
        if hasattr(result, "sem"):
            row[f"{name}_sem"] = float(np.mean(np.asarray(result.sem)))
    return row
