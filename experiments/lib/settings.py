"""The settings that experiments share, which become flags, and what is made of them.

Experiments with the same settings use each other's minima.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, Key

from gengap import comparison, data, hosts, minima, models, objective, program, train
from gengap.data import Dataset
from gengap.models import Model
from gengap.records import Cell

Network = Literal["f1", "f2", "c1", "c2", "c3", "c4", "c1-narrow"]
NETWORKS: dict[str, Callable[..., Model]] = {
    "F1": models.f1,
    "F2": models.f2,
    "C1": models.c1,
    "C2": models.c2,
    "C3": models.c3,
    "C4": models.c4,
    "C1-narrow": partial(models.c1, widths=(16, 16, 96, 48)),
}
SIDES = ("SB", "LB")
_OF_DATASET: dict[str, tuple[Network, ...]] = {"cifar10": ("c1", "c2"), "cifar100": ("c3", "c4")}  # Table 1
_RATES = {"adam": 1e-3, "sgd": 0.1, "adagrad": 0.01}


class Training(NamedTuple):
    """Training. The defaults follow the paper, or its authors' code where the paper is silent."""

    dataset: str = "digits"
    """"digits", any image-classification set of TFDS, or an .npz file"""
    network: Network | None = None
    """by default the paper's for the data set: c1 (and c2) for cifar10, c3 (and c4) for cifar100, else f1;
    c1-narrow: c1 with a quarter of its channels and units"""
    train_size: int | None = None
    """number of training examples, the first ones; by default all"""
    num_seeds: int = 5
    """number of starting points, shared by SB and LB"""
    seed: int = 0
    """random seed"""
    small_batch: int | float | None = None
    """batch size of SB: examples, or a fraction of the training set (0.05, 1.0); by default 1/45, at most 256"""
    large_batch: int | float = 0.1
    """batch size of LB: examples, or a fraction of the training set"""
    optimizer: Literal["adam", "sgd", "adagrad"] = "adam"
    """adam (beta 0.9 and 0.999, epsilon 1e-8), sgd (momentum 0.9) or adagrad; without a schedule"""
    learning_rate: float | None = None
    """learning rate; by default 1e-3 for adam, 0.1 for sgd, 0.01 for adagrad"""
    weight_decay: float = 0.0
    """decoupled weight decay for adam (AdamW), L2 regularisation for sgd and adagrad"""
    scaling: Literal["none", "sqrt", "linear"] = "none"
    """scaling of the learning rate with the batch size, relative to SB"""
    epochs: int = 100
    """maximum number of epochs"""
    patience: int | None = None
    """stop after N epochs without improvement of the training loss; 0: never; by default 10, for digits 0"""
    tolerance: float = 1e-3
    """smallest decrease of the training loss that counts as improvement, in nats"""
    target: float | None = None
    """stop after an epoch with a training loss below this, in nats; 0: never; by default 0, for digits 0.003"""
    train_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """precision of matrix products in training; less is faster on accelerators"""
    chunk: int = 5000
    """examples per chunk of a full-data loss; batch norm uses the statistics of a chunk"""
    clip: float | None = None
    """clip probabilities to [clip, 1 - clip], as Keras does with 1e-7"""


class Problem(NamedTuple):
    """A network on a data set.

    Attributes:
      ds, model: the two.
      loss: `params -> f`, the mean cross entropy of the training set.
      train, test: `params -> (loss, accuracy)` of a split.
    """

    ds: Dataset
    model: Model
    loss: Any
    train: Any
    test: Any


def problem(training: Training, network: str | Model | None = None) -> Problem:
    """What the settings train: a network, by default their first, on their data set, and its losses."""
    ds = dataset(training)
    model = network if isinstance(network, Model) else NETWORKS[network or networks(training)[0]](ds.num_classes)
    evaluate = partial(objective.loss_and_accuracy, model.apply, chunk=training.chunk, clip=training.clip)
    return Problem(
        ds=ds,
        model=model,
        loss=loss_over(training, model, ds),
        train=evaluate(ds.x_train, ds.y_train),
        test=evaluate(ds.x_test, ds.y_test),
    )


def loss_over(training: Training, model: Model, ds: Dataset) -> Any:
    """`params -> f`, the mean cross entropy of the training examples of a data set."""
    return objective.over_dataset(model.apply, ds.x_train, ds.y_train, chunk=training.chunk, clip=training.clip)


def dataset(training: Training) -> Dataset:
    """The data set, cut to the training examples that were asked for.

    Raises:
      ValueError: there is no such data set, or it is smaller than what was asked for.
    """
    path = Path(training.dataset)
    version = path.stat().st_mtime_ns if path.suffix == ".npz" and path.exists() else None
    where = training.dataset, os.environ.get("TFDS_DATA_DIR"), version
    try:
        ds = _loaded(*where)
    except ValueError as error:
        raise ValueError(f"dataset: {error}") from None
    size = training.train_size
    if size is not None and size > len(ds.x_train):
        raise ValueError(f"train_size is {size}; {ds.name} has {len(ds.x_train)} training examples")
    if hosts.devices() > 1:
        return _spread(*where, size)
    return ds if size is None else data.head(ds, size)


@lru_cache(maxsize=1)
def _spread(name: str, data_dir: str | None, version: int | None, size: int | None) -> Dataset:
    ds = _loaded(name, data_dir, version)
    return data.spread(ds if size is None else data.head(ds, size))


@lru_cache(maxsize=1)
def _loaded(name: str, data_dir: str | None, version: int | None) -> Dataset:
    return data.load(name, data_dir)


def networks(training: Training) -> tuple[str, ...]:
    """The network that was asked for, or those that the paper has for the data set, as in its tables: "F1"."""
    names = (training.network,) if training.network else _OF_DATASET.get(training.dataset, ("f1",))
    return tuple(name.capitalize() for name in names)


def resolved(
    training: Training, *, pair: bool = True, all_epochs: bool = False, one_network: bool = True
) -> Training:
    """The settings with every default filled in.

    Args:
      training: the settings.
      pair: whether both SB and LB are trained; the batch of SB must then be smaller.
      all_epochs: whether training takes all its epochs; then no rule may stop it early.
      one_network: whether only the first of the paper's networks for the data set is trained.

    Raises:
      ValueError: a setting is out of its range, or the data are missing.
    """
    _check_numbers(training, all_epochs)
    m, digits = len(dataset(training).x_train), training.dataset == "digits"
    of_dataset = _OF_DATASET.get(training.dataset, ("f1",))
    defaults: dict[str, Any] = {
        "network": of_dataset[0] if one_network or len(of_dataset) == 1 else None,
        "small_batch": min(256, max(1, round(m / 45))),
        "learning_rate": _RATES[training.optimizer],
        "patience": 0 if digits or all_epochs else 10,
        "target": 0.003 if digits and not all_epochs else 0.0,
    }
    training = training._replace(
        **{name: value for name, value in defaults.items() if getattr(training, name) is None}
    )
    small, large = (counts({name: (getattr(training, name),)}, m)[0] for name in ("small_batch", "large_batch"))
    if pair and small >= large:
        raise ValueError(
            f"small_batch is {small} examples and large_batch {large} of {m}: give a small_batch below that, "
            f"such as {max(1, large // 4)}"
        )
    return training


def _check_numbers(training: Training, all_epochs: bool) -> None:
    settings = training._asdict()
    for name in ("num_seeds", "epochs", "chunk", "train_size"):
        if settings[name] is not None and settings[name] < 1:
            raise ValueError(f"{name} is {settings[name]}; it must be at least 1")
    if not 0 <= training.seed < 2**32:
        raise ValueError(f"seed is {training.seed}; it must be from 0 to {2**32 - 1}")
    for name in ("tolerance", "target", "learning_rate", "weight_decay", "patience"):
        if settings[name] is not None and not 0 <= settings[name] < float("inf"):
            raise ValueError(f"{name} is {settings[name]}; it must be a number from 0 up")
    for name in ("patience", "target"):
        if all_epochs and settings[name]:
            raise ValueError(f"{name} is {settings[name]}; it must be 0 here: training takes all its epochs")
    if training.clip is not None and not 0 < training.clip < 0.5:
        raise ValueError(f"clip is {training.clip}; it must be between 0 and 0.5")


def counts(sizes: Mapping[str, Sequence[float]], m: int) -> list[int]:
    """The batch sizes of a setting, given by its name, in examples; fractions are of `m`."""
    for name, values in sizes.items():
        try:
            return [train.count(value, m) for value in values]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return []


def batch_size(training: Training, side: str) -> int | float:
    """The batch size of SB or of LB, as the settings have it."""
    assert training.small_batch is not None
    return training.small_batch if side == "SB" else training.large_batch


def sizes(training: Training) -> tuple[int, int, int]:
    """The batches of SB and of LB, and the training set, in examples."""
    m = len(dataset(training).x_train)
    small, large = (train.count(batch_size(training, side), m) for side in SIDES)
    return small, large, m


def recipe(training: Training, batch_size: float) -> minima.Recipe:
    """How the settings train with a batch size."""
    rate, power = training.learning_rate, {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[training.scaling]
    assert rate is not None and training.small_batch is not None
    if power:
        small, _, m = sizes(training)
        rate *= (train.count(batch_size, m) / small) ** power
    make: Any = {"adam": train.adam, "sgd": train.sgd, "adagrad": train.adagrad}[training.optimizer]
    return minima.Recipe(
        batch_size=batch_size,
        optimizer=make(rate, weight_decay=training.weight_decay),
        epochs=training.epochs,
        patience=training.patience or None,
        tolerance=training.tolerance,
        target=training.target or None,
        clip=training.clip,
        chunk=training.chunk,
        precision=training.train_precision,
    )


def pair(training: Training, network: str, seed: int, store: Path) -> dict[str, minima.Minimum]:
    """The small-batch and the large-batch minimum of a seed."""
    ds, model, *_ = problem(training, network)
    return {
        side: minima.find(
            model,
            ds,
            training_key(training),
            recipe(training, batch_size(training, side)),
            seed=seed,
            store=store,
            progress=f"{network} seed {seed + 1} of {training.num_seeds}, {side}",
        )
        for side in SIDES
    }


def cells_of(training: Training, sides: Sequence[str] = SIDES) -> list[Cell]:
    """A cell for each network, seed and side."""
    name = dataset(training).name
    return [
        {"network": network, "dataset": name, "side": side, "seed": seed}
        for network in networks(training)
        for seed in range(training.num_seeds)
        for side in sides
    ]


def label(training: Training, cell: Cell) -> str:
    """The name of a cell in the progress bar: "F1 seed 1 of 5, SB"."""
    named = ("network", "dataset", "seed")
    rest = [str(value) for name, value in cell.items() if name not in named and value != ""]
    return ", ".join([f"{cell['network']} seed {cell['seed'] + 1} of {training.num_seeds}", *rest])


def training_key(training: Training) -> Key[Array, ""]:
    """The key that starting points and batches are drawn from."""
    return jax.random.key(training.seed)


def measure_key(training: Training, seed: int) -> Key[Array, ""]:
    """The key for what is measured at the minima of a seed; nothing in training uses it."""
    return jax.random.fold_in(jax.random.fold_in(training_key(training), 2**31), seed)


def check_metric(training: Training, metric: comparison.Metric) -> None:
    """Refuse, before anything is trained, what `measure` would refuse after it."""
    for network in networks(training):
        ds, model, *_ = problem(training, network)
        start = jax.eval_shape(lambda: minima.starting_point(model, ds, jax.random.key(0)))  # noqa: B023
        comparison.check_metric(metric, start)


def check_distinct(settings: Mapping[str, Sequence[Any]]) -> None:
    """Refuse, by its name, a list with repeated values."""
    for name, values in settings.items():
        if repeated := {value for value in values if list(values).count(value) > 1}:
            raise ValueError(f"{name} has {', '.join(map(str, sorted(repeated)))} more than once")


def seconds(training: Training, *, gradients: float, epochs: float) -> float:
    """An upper bound on the seconds of some work here, from one timed gradient of a few examples.

    Args:
      training: the settings.
      gradients: of the whole training set.
      epochs: of training, each some 1.5 gradients.
    """
    ds, model, *_ = problem(training)
    some = data.head(ds, min(500, len(ds.x_train)))
    gradient = program.compiled(jax.grad(loss_over(training, model, some)))
    params = model.init(training_key(training), objective.scale(some.x_train[:2]))
    jax.block_until_ready(gradient(params))
    began = monotonic()
    jax.block_until_ready(gradient(params))
    each = (monotonic() - began) * len(ds.x_train) / len(some.x_train)
    return each * (gradients + 1.5 * epochs) / hosts.devices()
