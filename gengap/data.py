"""Data sets as arrays: a TFDS image-classification set by name, "digits" (needs no download), or your own."""

import os
import zipfile
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, UInt8

from gengap import tfds_sets
from gengap.tfds_sets import prepare

__all__ = ["Dataset", "from_arrays", "head", "load", "prepare", "read_npz", "spread"]

Values = Any  # what NumPy makes an array of: also lists and columns of pandas


class Dataset(NamedTuple):
    """A data set on the default device; uint8 images are 0 to 255, unscaled.

    If `num_classes` is 0, y holds targets of any shape in place of classes, for a network with its own loss.
    """

    x_train: UInt8[Array, "m ..."] | Float32[Array, "m ..."] | Int32[Array, "m ..."]
    y_train: Int32[Array, "m ..."] | Float32[Array, "m ..."]
    x_test: UInt8[Array, "n ..."] | Float32[Array, "n ..."] | Int32[Array, "n ..."]
    y_test: Int32[Array, "n ..."] | Float32[Array, "n ..."]
    num_classes: int
    name: str

    def __repr__(self) -> str:
        """How many examples of what."""
        x, classes = self.x_train, f"{self.num_classes} classes" if self.num_classes else "targets"
        return (
            f"Dataset({self.name}: {len(x)} training and {len(self.x_test)} test examples,"
            f" {x.dtype}{list(x.shape[1:])}, {classes})"
        )


def load(name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set by name, as stored, in the stored order.

    "digits" is the 8x8 set in scikit-learn: its values 0 to 16 become round(x * 255 / 16), and 80 % of each class
    (1437 images in all) are for training, split with a fixed seed. A name that ends in .npz is a file of your own
    arrays. Every other name is a TFDS image-classification set, read without TensorFlow: the newest version in
    `data_dir`, which must be stored as array_record. MNIST, CIFAR and similar sets are downloaded if missing (see
    `prepare`). x_test is the split "test", or "validation" if there is no "test".

    Args:
      name: "digits", a TFDS name such as "mnist", "cifar10", "emnist/letters", "mnist:3.0.1", or the path of an
        .npz with x_train, y_train, x_test and y_test as in `from_arrays`, and optionally num_classes.
      data_dir: an existing TFDS directory; by default TFDS_DATA_DIR, then ~/tensorflow_datasets.

    Returns:
      The data set; images are uint8 [m, height, width, channels].

    Raises:
      FileNotFoundError: the set or `data_dir` is missing, and the download failed.
      ValueError: the set does not exist, is damaged, can only be prepared or read with TensorFlow, or is not image
        classification with images of one shape.

    >>> ds = load("digits")
    >>> ds.x_train.shape, ds.x_test.shape, ds.num_classes
    ((1437, 8, 8, 1), (360, 8, 8, 1), 10)
    """
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    if str(name) == "digits":
        return _digits()
    if str(name).endswith(".npz"):
        return _from_file(Path(name))
    where, train, test, num_classes = tfds_sets.read(name, data_dir)
    return _from_stored(where, (*train, *test), num_classes, name)


def from_arrays(
    x_train: Values,
    y_train: Values,
    x_test: Values,
    y_test: Values,
    *,
    num_classes: int | None = None,
    name: str = "arrays",
) -> Dataset:
    """Make a data set from your own arrays, checked and copied.

    Args:
      x_train, x_test: uint8 images [m, ...], scaled by 1/255 when used; or floating-point features, which become
        float32; or tokens of any other integer type, which become int32. Features and tokens are not scaled: give
        tokens below 256 as int32, not as uint8.
      y_train, y_test: integer labels [m], 0 to num_classes - 1; also lists and columns of pandas.
      num_classes: by default the largest label of both splits + 1. With 0, y_train and y_test are
        targets, numbers or tokens [m, ...], for a network with its own loss (`models.Model(loss=...)`).
      name: what the data set is called in records.

    Raises:
      ValueError: an array has another dtype or shape, is empty or not finite, or a label is out of range.

    >>> x = np.zeros((3, 2), np.float32)
    >>> ds = from_arrays(x, np.arange(3), x[:1], np.array([1]))
    >>> ds.num_classes, ds.y_train
    (3, Array([0, 1, 2], dtype=int32))
    """
    train, test = _features("x_train", x_train), _features("x_test", x_test)
    if (test.dtype, test.shape[1:]) != (train.dtype, train.shape[1:]):
        expected, given = (f"{x.dtype}, {x.shape[1:]} a row" for x in (train, test))
        raise ValueError(f"x_test must have x_train's dtype and shape, {expected}, got {given}")
    if num_classes == 0 and num_classes is not False:
        of_train, of_test = _targets("y_train", y_train, len(train)), _targets("y_test", y_test, len(test))
        return Dataset(jnp.asarray(train), jnp.asarray(of_train), jnp.asarray(test), jnp.asarray(of_test), 0, name)
    labels = {"y_train": _labels("y_train", y_train, len(train)), "y_test": _labels("y_test", y_test, len(test))}
    if num_classes is None:
        num_classes = max(int(y.max()) for y in labels.values()) + 1
    _check_integer("num_classes", num_classes)
    for argument, y in labels.items():
        if y.max() >= num_classes:
            raise ValueError(f"{argument} must be labels below num_classes = {num_classes}, got {y.max()}")
    labels_train, labels_test = (jnp.asarray(y, jnp.int32) for y in labels.values())
    return Dataset(jnp.asarray(train), labels_train, jnp.asarray(test), labels_test, int(num_classes), name)


def head(ds: Dataset, size: int) -> Dataset:
    """Keep the first `size` training examples, 1 to all of them, and all test examples."""
    _check_integer("size", size, len(ds.x_train), f", the examples of {ds.name!r}")
    return ds._replace(x_train=ds.x_train[:size], y_train=ds.y_train[:size])


def spread(ds: Dataset) -> Dataset:
    """The data set with its examples divided over all devices, including those of other processes.

    Each process needs the whole data set, and sends its devices their share. Test examples that cannot be divided
    evenly are copied to every device.

    Raises:
      ValueError: the number of training examples is not a multiple of the number of devices.
    """
    mesh = Mesh(jax.devices(), ("data",), axis_types=(AxisType.Auto,))
    if rest := len(ds.x_train) % mesh.size:
        raise ValueError(
            f"train_size is {len(ds.x_train)}; {mesh.size} devices can only share a multiple of {mesh.size}, such "
            f"as {len(ds.x_train) - rest}"
        )

    def placed(array: Array) -> Array:
        values = np.asarray(array)
        rows = PartitionSpec() if len(values) % mesh.size else PartitionSpec("data")
        return jax.make_array_from_callback(values.shape, NamedSharding(mesh, rows), values.__getitem__)

    return Dataset(
        placed(ds.x_train), placed(ds.y_train), placed(ds.x_test), placed(ds.y_test), ds.num_classes, ds.name
    )


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every array of an .npz file, verified by its checksums.

    Raises:
      FileNotFoundError: the file is missing.
      ValueError: the file is damaged. The message does not name it; the caller does.
    """
    try:
        with open(path, "rb") as opened, zipfile.ZipFile(opened) as stored:
            # NumPy reads only as far as an array's header says, so it may stop before it checks the checksum.
            if (name := stored.testzip()) is not None:
                raise ValueError(f"{name} does not match its checksum")
            opened.seek(-12 - len(stored.comment), os.SEEK_END)
            count = int.from_bytes(opened.read(2), "little")  # zipfile does not check it
            if count != min(len(stored.filelist), 2**16 - 1):
                raise ValueError("it holds more or fewer arrays than it says")
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # any of zipfile, zlib and NumPy
        raise ValueError(_short(error)) from None


def _check_integer(argument: str, value: Any, largest: int = 2**31 - 1, why: str = "") -> None:
    if not _is_integer(value) or not 1 <= value <= largest:
        raise ValueError(f"{argument} must be an integer from 1 to {largest}{why}, got {_short(repr(value))}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _short(words: object) -> str:
    return shorten(str(words), 300)


def _from_file(path: Path) -> Dataset:
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        arrays = read_npz(path)
    except ValueError as error:
        raise ValueError(f"{path} is no .npz file of arrays, or damaged: {error}") from None
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{path} has no {', '.join(missing)}; it must have {', '.join(names)}")
    num_classes = arrays["num_classes"].tolist() if "num_classes" in arrays else None
    return _from_stored(str(path), [arrays[name] for name in names], num_classes, path.stem)


def _from_stored(where: str, arrays: Sequence[np.ndarray], num_classes: Any, name: str) -> Dataset:
    try:
        if num_classes:
            _check_integer("num_classes", num_classes)
        return from_arrays(*arrays, num_classes=num_classes, name=name)
    except ValueError as error:
        raise ValueError(f"{where} cannot be used: {error}") from None


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = np.rint(x * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    return from_arrays(x_train, y_train, x_test, y_test, num_classes=10, name="digits")


def _array(argument: str, values: Values) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} must be an array: {_short(error)}") from None


def _features(argument: str, values: Values) -> np.ndarray:
    x = _array(argument, values)
    is_whole = np.issubdtype(x.dtype, np.integer)
    if not is_whole and not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{argument} must be uint8 images, floating features or integers, got dtype {x.dtype}")
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"{argument} must be [m, ...] with an example and a feature at least, got {x.shape}")
    if is_whole:
        if x.min() < -(2**31) or x.max() >= 2**31:
            raise ValueError(f"{argument} must be within int32, got {x.min()} to {x.max()}")
        return x if x.dtype == np.uint8 else x.astype(np.int32)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"{argument} must be finite in float32, got {x[~np.isfinite(x)][0]}")
    return x


def _targets(argument: str, values: Values, rows: int) -> np.ndarray:
    y = _array(argument, values)
    if y.ndim == 0 or len(y) != rows:
        raise ValueError(f"{argument} must have {rows} rows, a target for each example, got shape {y.shape}")
    targets = _features(argument, y.reshape(rows, -1)).reshape(y.shape)
    return targets.astype(np.int32) if targets.dtype == np.uint8 else targets


def _labels(argument: str, values: Values, rows: int) -> np.ndarray:
    y = _array(argument, values)
    if y.shape != (rows,):
        raise ValueError(f"{argument} must have shape ({rows},), a label for each example, got {y.shape}")
    if y.dtype == object and all(map(_is_integer, y)):
        y = np.array([int(v) for v in y])  # Int64 of pandas 2
    elif not np.issubdtype(y.dtype, np.integer):
        entries = y.tolist()
        odd = (v for v in entries if not (_is_integer(v) or (isinstance(v, float) and v.is_integer())))
        example = _short(repr(next(odd, entries[0])))
        raise ValueError(
            f"{argument} must be integers, got dtype {y.dtype}, such as {example}; give num_classes=0 for targets "
            "that are not classes, and the network its own loss"
        )
    if y.min() < 0:
        raise ValueError(f"{argument} must be labels from 0 up, got {y.min()}")
    return y
