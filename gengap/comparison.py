"""What is measured at a minimum: loss and accuracy on both splits, and the sharpness, in one flat row."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from gengap import ascent, checks, flat, sharpness

__all__ = ["Metric", "check_metric", "column", "measure"]

Evaluation = Callable[[PyTree], tuple[Any, Any]]


class Metric(NamedTuple):
    """How the sharpness of a minimum is measured (Metric 2.1); epsilons and dimension are the paper's."""

    epsilons: tuple[float, ...] = (1e-3, 5e-4)
    """sizes of the box"""
    dim: int = 100
    """columns of the random matrix A"""
    num_draws: int = 10
    """matrices A for each minimum; 0 for the full space alone"""
    max_evaluations: int = 24
    """gradients to spend on each maximum"""
    num_directions: int = 6
    """extra start directions for the subspace ascents, six gradients each"""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """of matrix products when sharpness is measured; the others are faster on accelerators"""

    @property
    def gradients(self) -> int:
        """That are spent on one minimum, at most."""
        directions = 6 * self.num_directions if self.num_draws else 0
        return len(self.epsilons) * ((1 + self.num_draws) * self.max_evaluations + directions)


def check_metric(metric: Metric, params: PyTree) -> None:
    """Refuse settings that `measure` would refuse at such parameters; their shapes are enough.

    Raises:
      ValueError: a setting out of its range, by its name.
    """
    checks.check_counts({"dim": metric.dim, "max_evaluations": metric.max_evaluations})
    checks.check_counts({"num_draws": metric.num_draws, "num_directions": metric.num_directions}, least=0)
    distinct = sorted(set(metric.epsilons))
    if not distinct or not all(0 < epsilon < np.inf for epsilon in distinct):
        raise ValueError(f"epsilons is {metric.epsilons}; each must be above 0, and there must be one")
    if len(distinct) < len(metric.epsilons):
        raise ValueError(f"epsilons is {metric.epsilons}; it has one more than once")
    n = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    if metric.num_draws and metric.dim > n:
        raise ValueError(f"dim is {metric.dim}; it must be from 1 to {n}, the parameters of the network")


def column(space: Literal["full", "random"], epsilon: float) -> str:
    """The name of a sharpness in a row.

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
    progress: str | None = None,
) -> dict[str, Any]:
    """Loss, accuracy and sharpness of one minimum.

    Args:
      loss: `params -> f`, the mean loss of the training set.
      params: the minimum.
      key: of the random matrices and the restarts of the ascents.
      metric: how the sharpness is measured.
      train, test: `params -> (loss, accuracy)` of a split, as `objective.loss_and_accuracy` makes it.
      progress: what to call the line that shows how far it is; `None` shows none.

    Returns:
      Columns of a row. `train_loss`, and `train_accuracy`, `test_loss`, `test_accuracy` where there is a function
      for them. For each epsilon `sharpness_full_1e-3` and `sharpness_random_1e-3`, the mean over the draws, in
      percent of 1 + f. Beside it `_evaluations`, the gradients spent, and in random subspaces `_sem`, the standard
      error (NaN for one draw), and `_draws`, [num_draws]. A sharpness is NaN where the loss was not finite
      somewhere in the box, since what was found there is a lower bound only. There is none where the loss is not
      finite at params. `ascent_version` is that of the maximiser.
    """
    row: dict[str, Any] = {}
    for split, evaluate in {"train": train, "test": test}.items():
        if evaluate is not None:
            row[f"{split}_loss"], row[f"{split}_accuracy"] = map(float, evaluate(params))
    if train is None:
        row["train_loss"] = float(loss(params))
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
            progress=progress and f"{progress}, full space",
        )
        row |= _columns("full", metric, full)
        if train is None:
            row["train_loss"] = float(full.base_loss[0])  # as the metric has it, to the last digit
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
            progress=progress and f"{progress}, random subspaces",
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
