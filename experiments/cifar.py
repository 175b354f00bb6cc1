"""C1 and C2 on CIFAR-10, C3 and C4 on CIFAR-100: those rows of Tables 2, 3 and 4.

    make exp-cifar
    make exp-cifar ARGS="--dataset cifar100"

At full size for a GPU or TPU. On a CPU a smaller one ends in minutes:

    make exp-cifar ARGS="--network c1 --num-seeds 1 --epochs 2 --train-size 500 --epsilons 1e-3 --num-draws 1"
"""

from functools import partial

from experiments import command, tables
from experiments.training import Training

CONFIG = tables.CONFIG._replace(training=Training(dataset="cifar10"))
SMOKE = tables.SMOKE._replace(training=Training("cifar10", "c1", train_size=200, num_seeds=1, epochs=1))
run = partial(tables.run, experiment="cifar")
figures = tables.figures

if __name__ == "__main__":
    command.main("cifar", run, figures, CONFIG, __doc__)
