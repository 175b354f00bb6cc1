"""C1 and C2 on CIFAR-10, C3 and C4 on CIFAR-100: those rows of Tables 2, 3 and 4.

    make exp-cifar
    make exp-cifar ARGS="--dataset cifar100"

The full size needs a GPU or TPU. A small run takes minutes on a CPU:

    make exp-cifar ARGS="--network c1 --num-seeds 1 --epochs 2 --train-size 500 --epsilons 1e-3 --num-draws 1"
"""

from os import PathLike
from typing import Any

from experiments import digits
from experiments.digits import Config
from experiments.lib import command
from experiments.lib.settings import Training
from gengap import records

CONFIG = Config(Training(dataset="cifar10"))
SMOKE = digits.SMOKE._replace(training=Training("cifar10", "c1", train_size=200, num_seeds=1, epochs=1))
figures, claims = digits.figures, digits.claims


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each network, seed and side; the options are those of `records.fill`."""
    return digits.run(config, out, name="cifar", **options)


if __name__ == "__main__":
    command.main("cifar", run, figures, CONFIG, __doc__)
