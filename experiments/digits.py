"""F1 on scikit-learn's digits: the paper's comparison in minutes, on any machine.

    make exp-digits

The paper has no such experiment: it trains F1 on MNIST. Training stops at the first epoch that ends with f, the
mean training loss, below 0.003 nats. So SB and LB are compared at about the same f. This rule was chosen among
several. If training goes on until the loss stops improving, large batches reach a lower loss, and are flatter than
small ones in random subspaces. To save time, each sharpness takes 12 gradients, and there is one draw of A.

`mnist`, `cifar` and `timit` are the same experiment with other settings.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from experiments.lib import command, settings, tables
from experiments.lib.settings import Training
from gengap import comparison, minima, records
from gengap.comparison import Metric


class Config(NamedTuple):
    """Pairs of minima, and how their sharpness is measured."""

    training: Training = Training()
    metric: Metric = Metric()


CONFIG = Config(metric=Metric(num_draws=1, max_evaluations=12, num_directions=2))
SMOKE = Config(
    Training(num_seeds=1, epochs=2, train_size=400),
    Metric(dim=5, num_draws=2, max_evaluations=3, num_directions=1),
)
figures, claims = tables.figures, tables.claims


def cells(config: Config) -> list[records.Cell]:
    """One for each network, seed and side."""
    return settings.cells_of(config.training)


def row(config: Config, cell: records.Cell, store: Path) -> records.Row:
    """One minimum: how its training ended, loss and accuracy on both splits, and its sharpness."""
    training, label = config.training, settings.label(config.training, cell)
    ds, model, loss, train, test = settings.problem(training, cell["network"])
    recipe = settings.recipe(training, settings.batch_size(training, cell["side"]))
    key = settings.training_key(training)
    minimum = minima.find(model, ds, key, recipe, seed=cell["seed"], store=store, progress=label)
    key = settings.measure_key(training, cell["seed"])
    measured = comparison.measure(loss, minimum.params, key, config.metric, train=train, test=test, progress=label)
    return minimum.summary() | measured


def run(
    config: Config = CONFIG, out: str | PathLike | None = None, *, name: str = "digits", **options: Any
) -> records.Run:
    """A row for each network, seed and side; the options are those of `records.fill`."""
    config = config._replace(training=settings.resolved(config.training, one_network=False))
    settings.check_metric(config.training, config.metric)

    def seconds(left: Sequence[records.Cell]) -> float:
        epochs, gradients = len(left) * config.training.epochs, len(left) * config.metric.gradients
        return settings.seconds(config.training, gradients=gradients, epochs=epochs)

    return records.fill(name, config, cells(config), row, out, seconds=seconds, **options)


if __name__ == "__main__":
    command.main("digits", run, figures, CONFIG, __doc__)
