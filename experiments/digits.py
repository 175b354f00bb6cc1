"""F1 on the digits that scikit-learn carries: the paper's comparison in minutes, on any machine.

    make exp-digits

Not an experiment of the paper, which has F1 on MNIST.
"""

from os import PathLike
from typing import Any, NamedTuple

from gengap import cli, data, models, records, report
from gengap.protocol import Protocol, tables


class Config(NamedTuple):
    """F1 on the digits."""

    dataset: str = "digits"
    """"digits", or any TFDS image-classification set"""
    protocol: Protocol = Protocol(small_batch=16, num_draws=3)


CONFIG = Config()
SMOKE = CONFIG._replace(
    protocol=CONFIG.protocol._replace(num_seeds=1, epochs=2, train_size=200, dim=5, num_draws=2, max_evaluations=3)
)


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> dict[str, Any]:
    """Train, measure and record; returns the summary, and writes it and the report to `out`."""
    ds = data.load(config.dataset, data_dir)
    with records.opened("digits", cli.flat(config), out, fresh=fresh) as log:
        tables({"F1": models.f1(ds.num_classes)}, ds, config.protocol, log)
        summary = log.summary()
    if out is not None:
        report.write(summary, out)
    return summary


if __name__ == "__main__":
    cli.main("digits", run, CONFIG, __doc__)
