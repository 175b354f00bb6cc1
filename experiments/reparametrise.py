"""The same function made to look sharper and flatter (Dinh et al. 2017), and what each measure makes of it.

    make exp-reparametrise
    make exp-reparametrise ARGS="--dataset mnist"

On SB and LB minima, those of `make exp-digits` where they are there: the weights before each batch norm are
multiplied by c, or the scale and bias of each batch norm by a and the weights behind them divided by it. Neither
changes the function. Sharpness is measured in the full space and in random subspaces, for which Dinh et al.
"have not been able to show a similar problem". Then the audit: which maps leave which measures unchanged.
"""

import math
from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from gengap import cli, data, hessian, measures, objective, protocol, records, sharpness, symmetry


class Config(NamedTuple):
    """Sharpness under maps that leave the function unchanged."""

    network: protocol.Network = "f1"
    """which of the paper's networks"""
    dataset: str = "digits"
    """"digits", or any TFDS image-classification set"""
    num_seeds: int = 2
    """pairs of minima"""
    train_size: int | None = None
    """use only the first so many training examples"""
    factors: tuple[float, ...] = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    """c and a"""
    epsilon: float = 1e-3
    """of the sharpness"""
    num_draws: int = 2
    """matrices A"""
    examples: int = 500
    """training examples for the audit, and on which logits are compared"""
    repeats: int = 3
    """keys for each measure in the audit"""


CONFIG = Config()
SMOKE = CONFIG._replace(
    num_seeds=1, train_size=400, factors=(0.1, 1.0, 10.0), num_draws=1, examples=100, repeats=2
)
MAPS = ("before batch norm", "behind batch norm")


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> dict[str, Any]:
    """Measure and record; returns the summary, which is also in the run directory `out`."""
    if 1.0 not in config.factors or not all(0 < factor < math.inf for factor in config.factors):
        raise ValueError(f"factors is {config.factors}; each must be above 0, and one must be 1")
    at, store = protocol.setting(config, data_dir), protocol.store(out, "reparametrise")
    with records.opened("reparametrise", at.protocol._asdict() | config._asdict(), out, fresh=fresh) as run:
        for seed in range(config.num_seeds):
            if all(run.has(at.name, method, seed) for method in ("SB", "LB")) and (
                seed or run.has(at.name, "audit", 0)
            ):
                continue
            found = protocol.pair(at, seed, store)
            pair = {method: one.params for method, one in zip(("SB", "LB"), found, strict=True)}
            key = jax.random.fold_in(jax.random.key(at.protocol.seed), seed)
            row = {"network": at.name, "dataset": at.ds.name, "seed": seed}
            for method, params in pair.items():
                if not run.has(at.name, method, seed):
                    run.add(row | {"method": method, "maps": _curves(config, at, params, key)})
            if seed == 0 and not run.has(at.name, "audit", 0):
                run.add(row | {"method": "audit", "audit": _audit(config, at, pair["LB"], key)})
        return run.summary()


def _moved(params: PyTree, name: str, factor: float) -> PyTree:
    """The same function: what is before, or what is behind, each batch norm scaled."""
    layers = symmetry.chain(params)
    if name == MAPS[0]:
        return symmetry.scale_before_norm(
            params, layers, [factor] * sum(layer.norm is not None for layer in layers)
        )
    return symmetry.rescale(params, layers, [factor] * (len(layers) - 1))


def _curves(config: Config, at: protocol.Setting, params: PyTree, key: Array) -> list[dict[str, Any]]:
    """Sharpness of the images under each map."""
    f = objective.over_dataset(at.model.apply, at.ds.x_train, at.ds.y_train, chunk=at.protocol.chunk)
    how: Any = {"epsilon": config.epsilon, "max_evaluations": at.protocol.max_evaluations}
    logits = partial(_logits, at.model.apply, at.ds.x_train[: config.examples])
    own = logits(params)
    found = []
    for name in MAPS:
        for factor in config.factors:
            image = _moved(params, name, factor)
            change = jnp.abs(logits(image) - own).max() / jnp.abs(own).max()
            full = sharpness.full_space(f, image, key, **how)
            random = sharpness.random_subspaces(f, image, key, num_draws=config.num_draws, **how)
            found.append(
                {
                    "map": name,
                    "factor": factor,
                    "logits_change": change,
                    "loss": full.base_loss,
                    "full": full.value,
                    "random": random.mean,
                    "draws": random.value,
                }
            )
    return found


def _audit(config: Config, at: protocol.Setting, params: PyTree, key: Array) -> list[dict[str, Any]]:
    """Every measure against every map."""
    some = data.head(at.ds, min(config.examples, len(at.ds.x_train)))
    x, y = some.x_train, some.y_train
    f = objective.over_dataset(at.model.apply, x, y, chunk=at.protocol.chunk)
    both = objective.loss_and_accuracy(at.model.apply, x, y, chunk=at.protocol.chunk)
    layers = symmetry.chain(params)
    sizes = [params[layer.kernel[0]]["kernel"].shape[-1] for layer in layers[:-1]]
    keys = jax.random.split(key, len(sizes))
    orders = [jax.random.permutation(k, n) for k, n in zip(keys, sizes, strict=True)]
    vectors = [jnp.exp(jax.random.normal(k, (n,))) for k, n in zip(keys, sizes, strict=True)]
    alphas = [4.0, 0.5, *[1.0] * (len(sizes) - 2)]
    error = Partial(_error, both)
    every: dict[str, Callable] = {
        "training loss": lambda p, k: f(p),
        "sharpness, full space": lambda p, k: sharpness.full_space(f, p, k, epsilon=config.epsilon).value,
        "sharpness, random subspaces": lambda p, k: (
            sharpness.random_subspaces(f, p, k, epsilon=config.epsilon, num_draws=1).mean
        ),
        "worst case l2 (SAM)": partial(measures.worst_case, f),
        "worst case l2, adaptive (ASAM)": partial(measures.worst_case, f, rho=0.5, adaptive=True),
        "worst case l-inf": partial(measures.worst_case_linf, f),
        "worst case l-inf, adaptive": partial(measures.worst_case_linf, f, rho=0.01, adaptive=True),
        "average case": partial(measures.average_case, f, num_samples=200),
        "average case, adaptive": partial(measures.average_case, f, rho=0.1, adaptive=True, num_samples=200),
        "Hessian, top eigenvalue": lambda p, k: hessian.eigenpairs(f, p, k).values[0],
        "Hessian, trace": partial(hessian.trace, f, num_samples=20),
        "Fisher trace": lambda p, k: measures.fisher_trace(at.model.apply, p, x, k, num_samples=100),
        "relative flatness, last layer": lambda p, k: measures.relative_flatness(
            f, p, k, layer=layers[-1].kernel, num_samples=200
        ),
        "PAC-Bayes 1 / sigma^2": lambda p, k: measures.pac_bayes_sigma(error, p, k, steps=10) ** -2,
        "PAC-Bayes 1 / sigma^2, adaptive": lambda p, k: (
            measures.pac_bayes_sigma(error, p, k, adaptive=True, steps=10) ** -2
        ),
        "length of the parameters": lambda p, k: optax.tree.norm(p),
    }
    maps = {
        "alpha-scale": lambda p: symmetry.rescale(p, layers, np.cumprod(alphas).tolist()),
        "per neuron": lambda p: symmetry.rescale(p, layers, vectors),
        "before batch norm": lambda p: _moved(p, MAPS[0], 3.0),
        "permutation": lambda p: symmetry.permute(p, layers, orders),
    }
    return [one._asdict() for one in symmetry.audit(every, maps, params, key, repeats=config.repeats)]


def _error(loss_and_accuracy: Callable, params: PyTree) -> Array:
    return 1 - loss_and_accuracy(params)[1]


def _logits(apply: Callable, x: Array, params: PyTree) -> Array:
    return apply(params, objective.scale(x))


if __name__ == "__main__":
    cli.main("reparametrise", run, CONFIG, __doc__)
