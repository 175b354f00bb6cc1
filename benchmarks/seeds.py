"""Seeds one after another, or side by side under one `vmap`?

    python -m benchmarks.seeds
    python -m benchmarks.seeds --network c1 --train-size 50000 --batch-sizes 256 5000

Epochs of training on random images, compilation apart, in turn; prints the ratio of the medians.
"""

from functools import partial
from typing import Any, Literal

import jax

from benchmarks import common
from gengap import models, objective, train


def main(
    network: Literal["f1", "c1", "c2"] = "f1",
    train_size: int = 2048,
    batch_sizes: tuple[int, ...] = (32, 256),
    seeds: int = 5,
    rounds: int = 5,
) -> dict[int, float]:
    """Print seconds under one `vmap` over seconds one by one, for each batch size.

    Args:
      network: of the paper.
      train_size: training examples.
      batch_sizes: of training.
      seeds: starting points.
      rounds: of the timing, whose median is taken.
    """
    model = getattr(models, network)(10)
    x, y = common.examples(network, train_size)
    keys = jax.random.split(jax.random.key(0), seeds)
    states = [train.start(model.init(key, objective.scale(x[:2])), key) for key in keys]
    loss = objective.batch_loss(model.apply, model.apply_train)
    ratios = {}
    for size in batch_sizes:
        how: dict[str, Any] = {"batch_size": size, "epochs": 1, "patience": None}

        def one_by_one(how: dict[str, Any]) -> Any:
            return [train.fit(loss, state, x, y, **how)[0] for state in states]

        together = partial(train.fit_side_by_side, loss, states, x, y, **how)
        found = common.in_turn({"one": partial(one_by_one, how), "all": together}, rounds)
        ratios[size] = found["all"]["median"] / found["one"]["median"]
        print(f"{jax.devices()[0].device_kind}, {network}, batch {size}: vmap / one by one = {ratios[size]:.2f}")
    return ratios


if __name__ == "__main__":
    common.cli(main)
