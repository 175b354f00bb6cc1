"""F1 on MNIST: its rows of Tables 2, 3 and 4.

make exp-mnist
"""

from os import PathLike
from typing import Any

from experiments import digits
from experiments.digits import Config
from experiments.lib import command
from experiments.lib.settings import Training
from gengap import records

CONFIG = Config(Training(dataset="mnist"))
SMOKE = digits.SMOKE._replace(training=digits.SMOKE.training._replace(dataset="mnist"))
figures, claims = digits.figures, digits.claims


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each network, seed and side; the options are those of `records.fill`."""
    return digits.run(config, out, name="mnist", **options)


if __name__ == "__main__":
    command.main("mnist", run, figures, CONFIG, __doc__)
