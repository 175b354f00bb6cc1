"""The loss between SB and LB minima: Figs 3 and 7, planes, a path of low loss, distances, steep directions.

    make exp-landscape
    make exp-landscape ARGS="--network c1 --dataset cifar10"

The minima are those of `make exp-digits` (exp-mnist, exp-cifar) where these have been trained, else they are
trained first. The straight line and the curve have 25 points on [-1, 2], as in the paper. Beyond
it: the plane through three minima, a plane of two filter-normalised directions around each minimum (Li et al.
2018), and a Bézier curve of low loss between the two minima (Garipov et al. 2018).
"""

from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from gengap import cli, data, landscape, minima, objective, protocol, records


class Config(NamedTuple):
    """The loss between the minima of one network."""

    network: protocol.Network = "f1"
    """which of the paper's networks"""
    dataset: str = "digits"
    """"digits", or any TFDS image-classification set"""
    num_seeds: int = 3
    """pairs of minima"""
    train_size: int | None = None
    """use only the first so many training examples"""
    points: int = 25
    """alphas on [-1, 2]"""
    side: int = 21
    """points along each side of a plane"""
    examples: int = 5_000
    """training examples for the planes and the random directions"""
    num_directions: int = 100
    """random directions around each minimum"""
    steps: int = 500
    """of Adam, with batches of 256, for the curve of low loss"""


CONFIG = Config()
SMOKE = CONFIG._replace(num_seeds=1, train_size=400, points=7, side=3, num_directions=3, steps=2)


def run(
    config: Config = CONFIG,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
    data_dir: str | PathLike | None = None,
) -> dict[str, Any]:
    """Measure and record; returns the summary, which is also in the run directory `out`."""
    for name in ("points", "side", "examples", "num_directions", "steps"):
        if getattr(config, name) < 2:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 2")
    at, store = protocol.setting(config, data_dir), protocol.store(out, "landscape")
    with records.opened("landscape", at.protocol._asdict() | config._asdict(), out, fresh=fresh) as run:
        for seed in range(config.num_seeds):
            if run.has(at.name, "pair", seed) and (seed or run.has(at.name, "planes", 0)):
                continue
            small, large = (found.params for found in protocol.pair(at, seed, store))
            key = jax.random.fold_in(jax.random.key(at.protocol.seed), seed)
            row = {"network": at.name, "dataset": at.ds.name, "seed": seed}
            if not run.has(at.name, "pair", seed):
                run.add(row | {"method": "pair", **_pair(config, at, small, large, seed, key)})
            if seed == 0 and not run.has(at.name, "planes", 0):
                other = "SB, seed 1" if config.num_seeds > 1 else "start"
                third = protocol.pair(at, 1, store)[0].params if config.num_seeds > 1 else _start(at, 0)
                planes = _planes(config, at, {"SB": small, "LB": large, other: third}, key)
                run.add(row | {"method": "planes", "planes": planes})
        return run.summary()


def _pair(
    config: Config, at: protocol.Setting, small: PyTree, large: PyTree, seed: int, key: Array
) -> dict[str, Any]:
    """Everything about one pair of minima but the planes."""
    both = {
        "train": objective.loss_and_accuracy(
            at.model.apply, at.ds.x_train, at.ds.y_train, chunk=at.protocol.chunk
        ),
        "test": objective.loss_and_accuracy(at.model.apply, at.ds.x_test, at.ds.y_test, chunk=at.protocol.chunk),
    }
    ends = {"SB": small, "LB": large}
    alphas = jnp.asarray(np.linspace(-1, 2, config.points), jnp.float32)
    row: dict[str, Any] = {"alphas": alphas, "linear": {}, "curvilinear": {}, "ends": {}}
    for name, path in (
        ("linear", landscape.linear(small, large)),
        ("curvilinear", landscape.curvilinear(small, large)),
    ):
        for split, evaluate in both.items():
            loss, accuracy = landscape.along(evaluate, path, alphas)
            row[name] |= {f"{split}_loss": loss, f"{split}_accuracy": accuracy}
    for method, params in ends.items():
        row["ends"][method] = {split: evaluate(params)[0] for split, evaluate in both.items()}
    start = _start(at, seed)
    places = {"SB from start": (small, start), "LB from start": (large, start), "SB from LB": (small, large)}
    row["distance"] = {name: optax.tree.norm(optax.tree.sub(*points)) for name, points in places.items()}
    row["directions"] = {method: _directions(config, at, params, key) for method, params in ends.items()}
    return row | {"connection": _connection(config, at, small, large, both, key)}


def _start(at: protocol.Setting, seed: int) -> PyTree:
    key = jax.random.key(at.protocol.seed)
    return minima.starting_point(at.model, at.ds, key, seed)


def _some(config: Config, at: protocol.Setting) -> Any:
    """f over the first `examples` training examples."""
    some = data.head(at.ds, min(config.examples, len(at.ds.x_train)))
    return objective.over_dataset(at.model.apply, some.x_train, some.y_train, chunk=at.protocol.chunk)


def _directions(config: Config, at: protocol.Setting, params: PyTree, key: Array) -> dict[str, Any]:
    found = landscape.neighbourhood(
        _some(config, at), params, jax.random.fold_in(key, 1), num_directions=config.num_directions
    )
    return {**found._asdict(), "share": found.share}


def _connection(
    config: Config, at: protocol.Setting, small: PyTree, large: PyTree, both: Any, key: Array
) -> dict[str, Any]:
    """Loss and accuracy along the straight line and along a Bézier curve that was trained to be low."""
    loss = objective.over_batches(at.model.apply, at.ds.x_train, at.ds.y_train)
    control = landscape.connect(loss, small, large, jax.random.fold_in(key, 2), steps=config.steps)
    alphas = jnp.asarray(np.linspace(0, 1, config.points), jnp.float32)
    row: dict[str, Any] = {"alphas": alphas}
    for name, path in (
        ("straight", landscape.linear(small, large)),
        ("curve", landscape.bezier(small, control, large)),
    ):
        row[name] = {}
        for split, evaluate in both.items():
            losses, accuracy = landscape.along(evaluate, path, alphas)
            row[name] |= {f"{split}_loss": losses, f"{split}_accuracy": accuracy}
    return row


def _planes(config: Config, at: protocol.Setting, points: dict[str, PyTree], key: Array) -> list[dict[str, Any]]:
    """f on the plane through three points, and on one of two filter-normalised directions around each minimum."""
    f = _some(config, at)
    plane, corners = landscape.through(*points.values())
    low, high = np.asarray(corners.min(0)), np.asarray(corners.max(0))
    margin = 0.25 * (high - low).max()
    s, t = (jnp.linspace(a - margin, b + margin, config.side) for a, b in zip(low, high, strict=True))
    planes = [
        {
            "name": "three minima" if config.num_seeds > 1 else "two minima, start",
            "s": s,
            "t": t,
            "loss": landscape.over(f, plane, s, t),
            "points": dict(zip(points, corners, strict=True)),
        }
    ]
    for method in ("SB", "LB"):
        u, v = (landscape.filter_normalised(points[method], jax.random.fold_in(key, i)) for i in (3, 4))
        s = t = jnp.linspace(-1.0, 1.0, config.side)
        around = landscape.Plane(points[method], u, v)
        planes.append(
            {
                "name": f"around {method}",
                "s": s,
                "t": t,
                "loss": landscape.over(f, around, s, t),
                "points": {method: [0.0, 0.0]},
            }
        )
    return planes


if __name__ == "__main__":
    cli.main("landscape", run, CONFIG, __doc__)
