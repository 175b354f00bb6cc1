"""Sentences that say what makes a comparison of minima unfair, or one of its numbers unreliable."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gengap.words import shown

__all__ = ["notes"]

Row = Mapping[str, Any]
_UNEQUAL = 1.5  # losses further apart than this factor are not equal
_LINEAR = 0.25  # a point is no minimum if its gradient alone makes more than this share of the sharpness


def notes(rows: Sequence[Row], spaces: Sequence[tuple[str, str, str]], num_draws: int) -> list[str]:
    """The sentences; a share of the gradient is that of the worst seed.

    Args:
      rows: from `comparison.measure`, with the name as "minimum", "seed", and for each epsilon "linear_full_1e-3":
        how far the gradient alone would raise the loss in the box, in percent of 1 + f.
      spaces: for each epsilon its words, and the columns of the full space and of the random subspaces.
      num_draws: matrices A for each minimum.
    """
    names = list(dict.fromkeys(row["minimum"] for row in rows))
    of = {name: [row for row in rows if row["minimum"] == name] for name in names}
    sentences = [*_losses(of), *_no_minimum(of, spaces), *_bounds(of, spaces)]
    if num_draws:
        sentences += [*_random_above_full(of, spaces), *_order(of, spaces)]
    if num_draws == 1:
        sentences.append("Each value in random subspaces comes from a single A: no standard error.")
    if len(of) > 1 and min(map(len, of.values())) < 2:
        sentences.append("There is one seed: nothing says how much of a difference is chance.")
    return sentences


def _mean(rows: Sequence[Row], column: str) -> float:
    """The mean over seeds; NaN if a seed has no value."""
    return float(np.mean([row.get(column, math.nan) for row in rows]))


def _losses(of: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    losses = {name: _mean(rows, "train_loss") for name, rows in of.items()}
    low, high = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
    if losses[high] > _UNEQUAL * max(losses[low], 0):
        yield (
            f"The losses are not equal, {shown(losses[low])} of {low} and {shown(losses[high])} of {high}."
            " Sharpness changes along training: compare minima of one loss, see stats.at_loss."
        )


def _no_minimum(of: Mapping[str, Sequence[Row]], spaces: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    for name, rows in of.items():
        shares = {
            words: max(
                (row.get(f"linear_full_{words}", 0) / row[full] for row in rows if row.get(full)), default=0
            )
            for words, full, _ in spaces
        }
        words = max(shares, key=shares.__getitem__)
        if shares[words] > _LINEAR:
            yield (
                f"{name} is no minimum: its gradient alone makes {100 * shares[words]:.0f} % of the sharpness at"
                f" epsilon {words}."
            )


def _bounds(of: Mapping[str, Sequence[Row]], spaces: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    columns = [column for _, *both in spaces for column in both]
    for name, rows in of.items():
        if not all(math.isfinite(row["train_loss"]) for row in rows):
            yield f"The loss of {name} is not finite: it has no sharpness."
        elif any(math.isnan(row.get(column, 0)) for row in rows for column in columns):
            yield f"The loss of {name} was not finite somewhere in the box: what was found there is a lower bound."


def _random_above_full(of: Mapping[str, Sequence[Row]], spaces: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    for words, full, random in spaces:
        above = [name for name, rows in of.items() if _mean(rows, random) > _mean(rows, full)]
        if above:
            yield (
                f"At epsilon {words} random subspaces are sharper than the full space for {' and '.join(above)}. A"
                " is not normalised, as in the paper: its corners lie farther from x than those of the full space."
            )


def _order(of: Mapping[str, Sequence[Row]], spaces: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    for (words, full, random), (a, b) in itertools.product(spaces, itertools.combinations(of, 2)):
        differences = [_mean(of[a], column) - _mean(of[b], column) for column in (full, random)]
        if differences[0] * differences[1] < 0:
            sharper = (a, b) if differences[0] > 0 else (b, a)
            yield (
                f"At epsilon {words} {sharper[0]} is sharper in the full space, {sharper[1]} in random subspaces:"
                " the two do not agree."
            )
