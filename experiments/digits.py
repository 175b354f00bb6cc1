"""F1 on the digits that scikit-learn carries: the paper's comparison in two minutes, on any machine.

    make exp-digits

Not an experiment of the paper, which has F1 on MNIST. Training stops at a training loss of 0.003 nats, since there
both kinds of minima classify every training image. The rule was chosen among several: where training goes on until
the loss ceases to improve, large batches reach a lower loss and are flatter than small ones in random subspaces.
So compare at the loss in the table. For the sake of time it measures with 12 gradients and one draw of A.
"""

from functools import partial

from experiments import command, tables

CONFIG = tables.CONFIG._replace(num_draws=1, max_evaluations=12, num_directions=2)
SMOKE = tables.SMOKE
run = partial(tables.run, experiment="digits")
figures = tables.figures

if __name__ == "__main__":
    command.main("digits", run, figures, CONFIG, __doc__)
