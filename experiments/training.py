"""How experiments train their minima: the settings, which become flags, and what they mean.

Experiments that are given the same settings find each other's minima.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from time import monotonic
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, Key

from gengap import data, methods, minima, models, objective, train
from gengap.data import Dataset
from gengap.models import Model

Network = Literal["f1", "f2", "c1", "c2", "c3", "c4"]


class Training(NamedTuple):
    """What the paper did, as far as it says; the rest as its authors' code did."""

    dataset: str = "digits"
    """"digits", or any TFDS image-classification set"""
    network: Network | None = None
    """by default the paper's for the data set: c1 (and c2) for cifar10, c3 (and c4) for cifar100, else f1"""
    train_size: int | None = None
    """use only the first so many training examples"""
    num_seeds: int = 5
    """starting points; SB and LB share them"""
    seed: int = 0
    """of the random key that everything is drawn from"""
    small_batch: int | float | None = None
    """examples, or with a point (0.05, 1.0) a share of the training set; by default 256, a 45th where less"""
    large_batch: int | float = 0.1
    """examples, or with a point a share of the training set"""
    optimizer: Literal["adam", "sgd", "adagrad"] = "adam"
    """adam has 0.9, 0.999 and 1e-8; sgd has a momentum of 0.9; none has a schedule"""
    learning_rate: float | None = None
    """by default 1e-3 for adam, 0.1 for sgd, 0.01 for adagrad"""
    weight_decay: float = 0.0
    """decoupled from the gradient for adam, as in AdamW; added to it for the others"""
    scaling: Literal["none", "sqrt", "linear"] = "none"
    """how the learning rate grows with the batch, from that of SB"""
    epochs: int = 100
    """the most epochs"""
    patience: int | None = None
    """stop when so many epochs have not improved the training loss; 0: never; by default 10, on the digits 0"""
    tolerance: float = 1e-3
    """the least improvement of the training loss that counts, in nats"""
    target: float | None = None
    """stop after an epoch that ends with f, the mean loss of the training set, below this, in nats; 0: never; by
    default 0, on the digits 0.003"""
    train_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """of matrix products in training; the others are faster on accelerators"""
    chunk: int = 5000
    """examples at once in full-data losses; batch norm takes its statistics over them"""
    clip: float | None = None
    """clip probabilities to [clip, 1 - clip], as Keras does with 1e-7"""


NETWORKS: dict[str, tuple[Network, ...]] = {"cifar10": ("c1", "c2"), "cifar100": ("c3", "c4")}
RATES = {"adam": 1e-3, "sgd": 0.1, "adagrad": 0.01}


def begin(
    training: Training,
    data_dir: str | PathLike | None = None,
    *,
    pair: bool = True,
    all_epochs: bool = False,
) -> tuple[Training, Dataset]:
    """The settings with every default filled in, and the data.

    Args:
      training: the settings.
      data_dir: the TFDS directory, see `data.load`.
      pair: whether SB and LB are trained, so that the one batch must be below the other.
      all_epochs: whether training takes all its epochs, so that no rule may end it before.

    Raises:
      ValueError: a setting out of its range, or data that are not there.
    """
    for name in ("num_seeds", "epochs", "chunk", "train_size"):
        if (value := getattr(training, name)) is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not 0 <= training.seed < 2**32:
        raise ValueError(f"seed is {training.seed}; it must be from 0 to {2**32 - 1}")
    for name in ("tolerance", "target", "learning_rate", "weight_decay", "patience"):
        if (value := getattr(training, name)) is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}; it must be a number from 0 up")
    for name in ("patience", "target"):
        if all_epochs and (value := getattr(training, name)):
            raise ValueError(f"{name} is {value}; it must be 0 here, where training takes all its epochs")
    if training.clip is not None and not 0 < training.clip < 0.5:
        raise ValueError(f"clip is {training.clip}; it must be between 0 and 0.5")
    try:
        ds = data.load(training.dataset, data_dir)
    except ValueError as error:
        raise ValueError(f"dataset: {error}") from None
    if (size := training.train_size) is not None:
        if size > len(ds.x_train):
            raise ValueError(f"train_size is {size}; {ds.name} has {len(ds.x_train)} training examples")
        ds = data.head(ds, size)
    digits, m = training.dataset == "digits", len(ds.x_train)
    default: dict[str, Any] = {
        "small_batch": min(256, max(1, round(m / 45))),
        "learning_rate": RATES[training.optimizer],
        "network": networks(training)[0],
        "patience": 0 if digits or all_epochs else 10,
        "target": 0.003 if digits and not all_epochs else 0.0,
    }
    filled: dict[str, Any] = {n: value for n, value in default.items() if getattr(training, n) is None}
    training = training._replace(**filled)
    sizes = {}
    for name in ("small_batch", "large_batch"):
        try:
            sizes[name] = train.count(getattr(training, name), m)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if pair and sizes["small_batch"] >= sizes["large_batch"]:
        raise ValueError(
            f"small_batch is {sizes['small_batch']} examples and large_batch {sizes['large_batch']} of {m}: "
            f"give a small_batch below that, such as {max(1, sizes['large_batch'] // 4)}"
        )
    return training, ds


def networks(training: Training) -> tuple[Network, ...]:
    """The network that was asked for, or those that the paper has for the data set."""
    return (training.network,) if training.network else NETWORKS.get(training.dataset, ("f1",))


def model(training: Training, ds: Dataset) -> Model:
    """The network for the classes of the data."""
    return getattr(models, networks(training)[0])(ds.num_classes)


def row(training: Training, ds: Dataset, method: str, seed: int) -> dict[str, Any]:
    """What a row is found by."""
    return {"network": network_name(training), "dataset": ds.name, "method": method, "seed": seed}


def network_name(training: Training) -> str:
    """Of the network, as in the paper's tables."""
    return networks(training)[0].upper()


def loss(training: Training, model: Model, ds: Dataset) -> Any:
    """f, the mean cross entropy of the training set, as a function of the parameters."""
    return objective.over_dataset(model.apply, ds.x_train, ds.y_train, chunk=training.chunk, clip=training.clip)


def say_how_long(training: Training, model: Model, ds: Dataset, gradients: float, epochs: float) -> None:
    """Say how long a run will take at most, where that is some minutes, from one timed gradient of a few examples.

    Args:
      training, model, ds: the settings, the network and the data.
      gradients: of the whole training set that the run will take.
      epochs: of training that it will take; an epoch costs some 1.5 gradients.
    """
    some = data.head(ds, min(500, len(ds.x_train)))
    params = minima.starting_point(model, ds, jax.random.key(training.seed))
    gradient = jax.jit(jax.grad(loss(training, model, some)))
    jax.block_until_ready(gradient(params))
    begun = monotonic()
    jax.block_until_ready(gradient(params))
    each = (monotonic() - begun) * len(ds.x_train) / len(some.x_train)
    minutes = each * (gradients + 1.5 * epochs) / 60
    if minutes < 5:
        return
    time = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
    small = "; --train-size, --epochs, --num-seeds, --num-draws, --max-evaluations make it smaller"
    sys.stderr.write(
        f"This takes up to {time} here{small if minutes > 60 else ''}. Stopped, it goes on where it was.\n"
    )


def evaluate(training: Training, model: Model, ds: Dataset) -> dict[str, Any]:
    """`params -> (loss, accuracy)` on the training set and on the test set."""
    on = partial(objective.loss_and_accuracy, model.apply, chunk=training.chunk, clip=training.clip)
    return {"train": on(ds.x_train, ds.y_train), "test": on(ds.x_test, ds.y_test)}


def optimizer(training: Training, ds: Dataset, batch_size: float) -> train.Optimizer:
    """The optimiser for a batch size."""
    rate = RATES[training.optimizer] if training.learning_rate is None else training.learning_rate
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[training.scaling]
    m = len(ds.x_train)
    if power and training.small_batch is not None:
        rate *= (train.count(batch_size, m) / train.count(training.small_batch, m)) ** power
    return getattr(train, training.optimizer)(rate, weight_decay=training.weight_decay)


def how(training: Training, ds: Dataset, batch_size: float, seed: int, store: Path | None) -> dict[str, Any]:
    """The keyword arguments of `minima.find` and `minima.find_along`, all but the epochs."""
    return {
        "seed": seed,
        "optimizer": optimizer(training, ds, batch_size),
        "patience": training.patience or None,
        "tolerance": training.tolerance,
        "target": training.target or None,
        "clip": training.clip,
        "chunk": training.chunk,
        "precision": training.train_precision,
        "store": store,
    }


def key_of(training: Training, seed: int, purpose: str) -> Key[Array, ""]:
    """The key of what is measured at the minima of a seed: one for each purpose, and none that training has."""
    of_measures = jax.random.fold_in(jax.random.key(training.seed), 2**31)
    return methods.own_key(jax.random.fold_in(of_measures, seed), purpose)


def check_distinct(settings: Mapping[str, Sequence[Any]]) -> None:
    """Refuse, by its name, a list that has something twice."""
    for name, values in settings.items():
        if repeated := {value for value in values if list(values).count(value) > 1}:
            raise ValueError(f"{name} has {', '.join(map(str, sorted(repeated)))} more than once")


def pair(
    training: Training, model: Model, ds: Dataset, seed: int, store: Path | None
) -> dict[Literal["SB", "LB"], minima.Minimum]:
    """The small-batch and the large-batch minimum of a seed."""
    key = jax.random.key(training.seed)
    return {
        method: minima.find(
            *(model, ds, key, size),
            epochs=training.epochs,
            progress=f"{network_name(training)} seed {seed + 1} of {training.num_seeds}, {method}",
            **how(training, ds, size, seed, store),
        )
        for method, size in sizes(training).items()
    }


def sizes(training: Training) -> dict[Literal["SB", "LB"], float]:
    """The batch sizes of the two methods, in examples or as shares."""
    assert training.small_batch is not None
    return {"SB": training.small_batch, "LB": training.large_batch}
