"""C1 and C2 on CIFAR-10, C3 and C4 on CIFAR-100: those rows of Tables 2, 3 and 4.

    make exp-cifar
    make exp-cifar ARGS="--dataset cifar100"

At full size for a GPU or TPU. On a CPU a smaller one ends in minutes:

    make exp-cifar ARGS="--network c1 --num-seeds 1 --epochs 2 --train-size 500 --small-batch 16 \\
        --epsilons 1e-3 --num-draws 1 --max-evaluations 12 --num-directions 2"
"""

from os import PathLike
from typing import Any, Literal, NamedTuple

from gengap import cli, data, models
from gengap.protocol import Protocol, tables


class Config(NamedTuple):
    """C1 and C2 on CIFAR-10, C3 and C4 on CIFAR-100."""

    dataset: Literal["cifar10", "cifar100"] = "cifar10"
    """the data set"""
    network: Literal["c1", "c2", "c3", "c4"] | None = None
    """only this network; by default both that the paper has for the data set"""
    protocol: Protocol = Protocol()


CONFIG = Config()
SMOKE = CONFIG._replace(
    network="c1",
    protocol=CONFIG.protocol._replace(
        num_seeds=1, epochs=1, train_size=200, small_batch=10, dim=3, num_draws=2, max_evaluations=3
    ),
)

NETWORKS = {
    "cifar10": {"c1": models.c1, "c2": models.c2},
    "cifar100": {"c3": models.c3, "c4": models.c4},
}


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> dict[str, Any]:
    """Train, measure and record; returns the summary, which is also in the run directory `out`."""
    networks = NETWORKS[config.dataset]
    if config.network is not None and config.network not in networks:
        raise ValueError(
            f"--network {config.network} is not for {config.dataset}; there are {', '.join(networks)}"
        )
    wanted = [config.network] if config.network else list(networks)
    ds = data.load(config.dataset, data_dir)
    return tables(
        "cifar",
        {name.upper(): networks[name](ds.num_classes) for name in wanted},
        ds,
        config.protocol,
        out,
        fresh=fresh,
    )


if __name__ == "__main__":
    cli.main("cifar", run, CONFIG, __doc__)
