"""One of two processes that compute together, each with a device; run by `test_hosts`.

python -m tests.two_hosts HOST:PORT COUNT INDEX DIRECTORY
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gengap import data, hosts, measures, minima, models, objective, records, sharpness, train
from tests import fake

MODEL = models.dense(10, widths=(16,))
FEW = {"dim": 10, "num_draws": 2, "max_evaluations": 4, "num_directions": 1}
RECIPE = minima.Recipe(batch_size=40, epochs=2, optimizer=train.sgd(0.1), patience=None, chunk=100)


def dataset():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 20)).astype(np.float32), rng.integers(0, 10, 300)
    return data.from_arrays(x[:240], y[:240], x[240:], y[240:], num_classes=10)


def odd_test():
    """A test set that two devices cannot divide."""
    ds = dataset()
    return {"x_test": ds.x_test[:59], "y_test": ds.y_test[:59]}


def measured(ds, store):
    """Everything of a minimum that two processes and one have to agree on."""
    key = jax.random.key(0)
    minimum = minima.find(MODEL, ds, key, RECIPE, store=store)
    f = objective.over_dataset(MODEL.apply, ds.x_train, ds.y_train, chunk=100)
    p = minimum.params
    return {
        "history": minimum.history["train_loss"].tolist(),
        "test": minimum.history["test_accuracy"].tolist(),
        "distance": minimum.distance,
        "full": float(sharpness.full_space(f, p, key, max_evaluations=6).max_loss),
        "random": np.asarray(sharpness.random_subspaces(f, p, key, **FEW).max_loss).tolist(),
        "average": float(f(p) + measures.average_case(f, p, key, num_samples=2).value),
    }


def row(config, cell, store):
    """Of `tests.fake` and a sum over the devices of all processes."""
    ds = data.spread(dataset())
    return {"value": cell["seed"] ** 2, "sum": float(jnp.abs(ds.x_train).sum()), "devices": jax.device_count()}


def main(address, count, index, directory):
    hosts.join(address, int(count), int(index))
    out = Path(directory)
    ds = data.spread(dataset())
    found = {"first": hosts.is_first(), "measured": measured(ds, out / f"minima{index}")}
    again = minima.find(MODEL, ds, jax.random.key(0), RECIPE, store=out / f"minima{index}")
    found["again"] = again.history["train_loss"].tolist()
    # Each has a directory of its own, as machines without a shared disk.
    cells = [{"side": side, "seed": seed} for seed in range(2) for side in ("SB", "LB")]
    run = records.fill("fake", fake.CONFIG, cells, row, out / f"run{index}", jobs=1)
    found["rows"] = [{name: r[name] for name in ("side", "seed", "value", "sum", "devices")} for r in run.rows]
    try:
        records.fill("fake", fake.CONFIG._replace(num_seeds=1), cells, row, out / "run0", jobs=1)
    except ValueError as error:
        found["refused"] = str(error)
    try:
        data.spread(data.head(dataset(), 239))
    except ValueError as error:
        found["uneven"] = str(error)
    found["copied"] = data.spread(dataset()._replace(**odd_test())).x_test.is_fully_replicated
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
