"""The protocol of Tables 2, 3 and 4: train pairs of minima, evaluate them, measure how sharp they are."""

import time
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from gengap import ascent, data, minima, models, objective, records, sharpness, train
from gengap.data import Dataset
from gengap.models import Model


class Protocol(NamedTuple):
    """What the paper did, as far as it says; the rest as its authors' code did."""

    num_seeds: int = 5
    """starting points; SB and LB share them"""
    seed: int = 0
    """of the random key that everything is drawn from"""
    small_batch: float = 256
    """examples, or a fraction of the training set"""
    large_batch: float = 0.1
    """examples, or a fraction of the training set"""
    epochs: int = 100
    """the most epochs of training"""
    patience: int | None = 10
    """stop when this many epochs have not improved the training loss; None: run all epochs"""
    tolerance: float = 1e-3
    """the least improvement of the training loss that counts, in nats"""
    target: float | None = None
    """stop after an epoch with a training loss below this, in nats"""
    epsilons: tuple[float, ...] = (1e-3, 5e-4)
    """sizes of the box of the sharpness metric"""
    dim: int = 100
    """columns of the random matrix A"""
    num_draws: int = 10
    """matrices A for each minimum"""
    max_evaluations: int = 24
    """gradients to spend on each maximum"""
    num_directions: int = 6
    """directions that the ascents in all subspaces begin in, at six gradients each"""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """of matrix products when sharpness is measured; the others are faster on accelerators"""
    chunk: int = 5000
    """examples at once in full-data losses; batch norm takes its statistics over them"""
    clip: float | None = None
    """clip probabilities to [clip, 1 - clip], as Keras does with 1e-7"""
    train_size: int | None = None
    """use only the first so many training examples"""


DIGITS = Protocol(small_batch=32, patience=None, target=0.003, num_draws=1, max_evaluations=12, num_directions=2)
"""What suits the small data set that needs no download; `experiments/digits.py` says why."""


def default(dataset: str) -> Protocol:
    """The settings for a data set unless others are asked for."""
    return DIGITS if dataset == "digits" else Protocol()


CHOICES = {
    "optimizer": "Adam, learning rate 1e-3, 0.9, 0.999, 1e-8, no schedule, the same for SB and LB",
    "starting points": "one per seed, shared by SB and LB; glorot uniform, zero biases",
    "data": "images / 255 and nothing else, no augmentation",
    "f": "mean cross entropy of the training set, from logits",
    "batch norm in f": "statistics of each chunk (batch statistics)",
    "dropout in f": "off",
    "A": "independent random signs, not normalised; full space: the identity",
    "maximiser": f"corner ascent, version {ascent.METHOD}: the best point seen",
}
"""The choices that are not numbers, for a run's record."""


def tables(
    experiment: str,
    networks: Mapping[str, Model],
    ds: Dataset,
    protocol: Protocol,
    out: str | PathLike | None = None,
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """A row for each network, seed and batch size, as a run in the directory `out`.

    A row holds how the training ended, loss and accuracy on both splits (in chunks, without dropout), the
    history per epoch, the distance from the starting point and the sharpness. What an earlier call with the
    same `out` has finished is not done again.

    Args:
      experiment: its name, for the record.
      networks: name, as in the paper's tables, to network.
      ds: the data set.
      protocol: the settings.
      out: the run directory; `None` keeps nothing on disk.
      fresh: put an earlier run aside and begin anew.

    Returns:
      The summary.

    Raises:
      ValueError: a setting out of its range, or `out` holds a run with other settings.
    """
    if protocol.train_size is not None:
        ds = data.head(ds, protocol.train_size)
    check(protocol, ds, networks)
    asked = {"dataset": ds.name, **protocol._asdict(), **CHOICES}
    with records.opened(experiment, asked, out, fresh=fresh) as run:
        for name, model in networks.items():
            for seed in range(protocol.num_seeds):
                if not all(run.has(name, method, seed) for method in ("SB", "LB")):
                    _pair(name, model, ds, protocol, run, seed)
        return run.summary()


Network = Literal["f1", "f2", "c1", "c2", "c3", "c4"]


class Setting(NamedTuple):
    """What an experiment with one network works on."""

    name: str
    """of the network, as in the paper's tables"""
    model: Model
    ds: Dataset
    protocol: Protocol


def setting(
    config: Any, data_dir: str | PathLike | None, *, epochs: int | None = None, pair: bool = True
) -> Setting:
    """The network, the data set and the settings that an experiment's config asks for.

    Args:
      config: with the fields `network`, one of the paper's; `dataset`, "digits" or any TFDS image-classification
        set; `num_seeds`, starting points; `train_size`, to use only the first so many training examples.
      data_dir: the TFDS directory, see `data.load`.
      epochs: how long to train, whatever the loss; `None` trains until the default of the data set says stop.
      pair: whether SB and LB are trained, so that the one batch must be below the other.

    Raises:
      ValueError: a setting out of its range, or data that are not there.
    """
    ds = data.load(config.dataset, data_dir)
    protocol = default(config.dataset)._replace(num_seeds=config.num_seeds, train_size=config.train_size)
    if config.train_size is not None:
        ds = data.head(ds, config.train_size)
    if epochs is not None:
        protocol = protocol._replace(epochs=epochs, patience=None, target=None)
    model = getattr(models, config.network)(ds.num_classes)
    name = config.network.upper()
    check(protocol, ds, {name: model}, pair=pair)
    return Setting(name, model, ds, protocol)


def tables_run(dataset: str) -> str:
    """The directory below `results/` of the run behind the tables that a data set has by default.

    >>> tables_run("digits"), tables_run("cifar100")
    ('digits/default', 'cifar/dataset=cifar100')
    """
    own = {"digits": "digits", "mnist": "mnist", "cifar10": "cifar"}
    if dataset in own:
        return f"{own[dataset]}/default"
    return f"{'cifar' if dataset == 'cifar100' else 'mnist'}/dataset={dataset}"


def store(out: str | PathLike | None, experiment: str) -> Path | None:
    """Where a run keeps its minima: with those of all experiments where `out` is `<root>/<experiment>/<run>`.

    >>> store("results/digits/default", "digits"), store("mine", "digits"), store(None, "digits")
    (PosixPath('results/minima'), PosixPath('mine/minima'), None)
    """
    if out is None:
        return None
    path = Path(out)
    return (path.parent.parent if path.parent.name == experiment else path) / "minima"


def pair(at: Setting, seed: int, store: Path | None) -> tuple[minima.Minimum, minima.Minimum]:
    """The SB and the LB minimum of one seed."""
    protocol = at.protocol
    return minima.find_pair(
        at.model,
        at.ds,
        jax.random.key(protocol.seed),
        small_batch=protocol.small_batch,
        large_batch=protocol.large_batch,
        seed=seed,
        epochs=protocol.epochs,
        patience=protocol.patience,
        tolerance=protocol.tolerance,
        target=protocol.target,
        clip=protocol.clip,
        chunk=protocol.chunk,
        store=store,
        progress=f"{at.name} seed {seed}",
    )


def check(protocol: Protocol, ds: Dataset, networks: Mapping[str, Model], *, pair: bool = True) -> None:
    """Refuse, before training, a setting out of its range or, with `pair`, a small batch not below the large."""
    for name in ("num_seeds", "epochs", "patience", "dim", "num_draws", "max_evaluations", "chunk"):
        if (value := getattr(protocol, name)) is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not protocol.epsilons or not all(0 < epsilon < np.inf for epsilon in protocol.epsilons):
        raise ValueError(f"epsilons is {protocol.epsilons}; each must be above 0, and there must be one")
    for name in ("tolerance", "target"):
        if (value := getattr(protocol, name)) is not None and not 0 <= value < np.inf:
            raise ValueError(f"{name} is {value}; it must be a number from 0 up")
    for network, model in networks.items():
        shapes = jax.eval_shape(model.init, jax.random.key(0), objective.scale(ds.x_train[:2]))
        n = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        if protocol.dim > n:
            raise ValueError(f"dim is {protocol.dim}; it must be from 1 to {n}, the parameters of {network}")
    if protocol.clip is not None and not 0 < protocol.clip < 0.5:
        raise ValueError(f"clip is {protocol.clip}; it must be between 0 and 0.5")
    for name in ("small_batch", "large_batch"):
        try:
            train.count(getattr(protocol, name), len(ds.x_train))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    small, large = (train.count(size, len(ds.x_train)) for size in (protocol.small_batch, protocol.large_batch))
    if pair and small >= large:
        raise ValueError(
            f"the small batch has {small} examples and the large one {large} of {len(ds.x_train)}; "
            "choose a smaller small_batch, a larger large_batch or a larger train_size"
        )


def _pair(name: str, model: Model, ds: Dataset, protocol: Protocol, run: records.Run, seed: int) -> None:
    key = jax.random.key(protocol.seed)
    begin = time.monotonic()
    both = pair(Setting(name, model, ds, protocol), seed, store(run.path, run.experiment))
    seconds = time.monotonic() - begin
    for method, found in zip(("SB", "LB"), both, strict=True):
        if run.has(name, method, seed):
            continue
        row = {
            "network": name,
            "dataset": ds.name,
            "method": method,
            "seed": seed,
            "batch_size": found.batch_size,
            "epochs": found.epochs,
            "steps": found.steps,
            "diverged_at": found.diverged_at,
            "distance": found.distance,
            "seconds_training_pair": seconds,
            "history": found.history,
        }
        bar = f"{name} {method} seed {seed}"
        run.add(row | measure(model, ds, found.params, _measure_key(key, seed), protocol, progress=bar))


def _measure_key(key: Key[Array, ""], seed: int) -> Key[Array, ""]:
    # not fold_in(key, seed), which find_pair splits for the starting point and the batches
    return jax.random.fold_in(jax.random.fold_in(key, 2**31), seed)


def measure(
    model: Model,
    ds: Dataset,
    params: PyTree,
    key: Key[Array, ""],
    protocol: Protocol,
    *,
    subspaces: bool = True,
    progress: str | None = None,
) -> records.Row:
    """Loss, accuracy and sharpness of one minimum, as the entries of a row.

    Args:
      model, ds: the network and its data.
      params: the minimum.
      key: of the matrices A.
      protocol: the settings.
      subspaces: measure in random subspaces too, not in the full space only.
      progress: names a bar of the draws.

    A minimum whose loss is not finite gets none of the sharpness.
    """
    begin = time.monotonic()
    row: records.Row = {"sharpness": []}
    chunk, clip = protocol.chunk, protocol.clip
    for split, x, y in (("train", ds.x_train, ds.y_train), ("test", ds.x_test, ds.y_test)):
        loss, accuracy = objective.loss_and_accuracy(model.apply, x, y, chunk=chunk, clip=clip)(params)
        row |= {f"{split}_loss": float(loss), f"{split}_accuracy": float(accuracy)}
    if not np.isfinite(row["train_loss"]):
        return row
    f = objective.over_dataset(model.apply, ds.x_train, ds.y_train, chunk=chunk, clip=clip)
    how: Any = {"epsilon": protocol.epsilons, "max_evaluations": protocol.max_evaluations}
    with jax.default_matmul_precision(protocol.precision):
        full = sharpness.full_space(f, params, key, **how)
    for i, epsilon in enumerate(protocol.epsilons):
        row["sharpness"].append({"space": "full", "epsilon": epsilon, **_entry(full, i)})
    if not subspaces:
        return row
    words = progress and f"{progress}, subspaces"
    how |= {"dim": protocol.dim, "num_draws": protocol.num_draws, "progress": words}
    how |= {"num_directions": protocol.num_directions}
    with jax.default_matmul_precision(protocol.precision):
        random = sharpness.random_subspaces(f, params, key, **how)
    interval = random.interval()
    for i, epsilon in enumerate(protocol.epsilons):
        entry = _entry(random, i)
        draws = {
            "draws": entry.pop("value"),
            "mean": random.mean[i],
            "sem": random.sem[i],
            "interval": interval[i],
        }
        row["sharpness"].append({"space": "random", "dim": protocol.dim, "epsilon": epsilon, **draws, **entry})
    return row | {"seconds_sharpness": time.monotonic() - begin}


def _entry(found: sharpness.Sharpness | sharpness.SubspaceSharpness, i: int) -> dict[str, Any]:
    """One epsilon's result: scalars for the full space, a list of values and totals for the draws."""
    one = {name: np.asarray(values)[i] for name, values in found._asdict().items()}
    return one | {
        "base_loss": one["base_loss"].reshape(-1)[0],
        "max_loss": one["max_loss"].max(),
        "evaluations": one["evaluations"].sum(),
        "finite": one["finite"].all(),
    }
