"""F2 on TIMIT: its rows of Tables 2, 3 and 4, on features of your own, since the data are licensed (LDC93S1).

    make exp-timit ARGS="--dataset timit.npz"

The file holds x_train [721329, 360] and x_test [310621, 360] as floats, y_train and y_test with classes 0 to 1972,
and num_classes, 1973. The paper gives these sizes and says that Kaldi made the data. The rest is inferred from the
sizes. The two sets are 70 and 30 % of their sum, so they may be parts of one set.

To make such a file, run Kaldi's recipe egs/timit/s5/run.sh. It trains speaker-adapted triphones (exp/tri3) and
aligns frames to their tied states, which are about as many as the classes; `ali-to-pdf` writes them. Then
steps/nnet/make_fmllr_feats.sh makes 40 features of each frame, and `splice-feats --left-context=4
--right-context=4` joins nine frames to 360 features. Normalise these to mean 0 and variance 1. Read both into
NumPy arrays, for instance with the package kaldiio, and write them with `np.savez`.
"""

from os import PathLike
from typing import Any

from experiments import digits
from experiments.digits import Config
from experiments.lib import command
from experiments.lib.settings import Training
from gengap import records

CONFIG = Config(Training("timit.npz", "f2"))
SMOKE = digits.SMOKE._replace(training=Training("timit.npz", "f2", num_seeds=1, epochs=1, small_batch=4))
figures, claims = digits.figures, digits.claims


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each network, seed and side; the options are those of `records.fill`."""
    return digits.run(config, out, name="timit", **options)


if __name__ == "__main__":
    command.main("timit", run, figures, CONFIG, __doc__)
