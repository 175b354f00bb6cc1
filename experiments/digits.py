"""F1 on the digits that scikit-learn carries: the paper's comparison in minutes, on any machine.

    make exp-digits

Not an experiment of the paper, which has F1 on MNIST. Training stops after an epoch that ends with f, the mean
loss of the training set, below 0.003 nats, so that SB and LB are measured at about the same f. The rule was chosen
among several: where training goes on until the loss ceases to improve, large batches reach a lower loss and are
flatter than small ones in random subspaces. For the sake of time it measures with 12 gradients and one draw of A.
"""

from functools import partial

from experiments import command, tables

CONFIG = tables.CONFIG._replace(num_draws=1, max_evaluations=12, num_directions=2)
SMOKE = tables.SMOKE
run = partial(tables.run, experiment="digits")
figures = tables.figures

if __name__ == "__main__":
    command.main("digits", run, figures, CONFIG, __doc__)
