"""F1 on MNIST: that row of Tables 2, 3 and 4.

make exp-mnist
"""

from functools import partial

from experiments import command, tables
from experiments.training import Training

CONFIG = tables.CONFIG._replace(training=Training(dataset="mnist"))
SMOKE = tables.SMOKE._replace(training=tables.SMOKE.training._replace(dataset="mnist"))
run = partial(tables.run, experiment="mnist")
figures = tables.figures

if __name__ == "__main__":
    command.main("mnist", run, figures, CONFIG, __doc__)
