"""TFDS sets on disk, without TensorFlow: find a set, prepare it if it is missing, read it.

TFDS 4.9 reads array_record sets without TensorFlow. Its builders of MNIST and CIFAR call TensorFlow in a few
places, which `prepare` replaces.
"""

import contextlib
import io
import logging
import os
import re
import sys
import urllib.parse
import warnings
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from textwrap import shorten
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

__all__ = ["prepare", "read"]

Examples = tuple[np.ndarray, np.ndarray]

_PREPARABLE = ("cifar10", "cifar100", "emnist", "fashion_mnist", "kmnist", "mnist")
_NAME = re.compile(r"[A-Za-z]\w*(/[\w.-]+)?(:[\d.*]+)?", re.ASCII)  # set, configuration, version


def read(name: str, data_dir: str | os.PathLike[str] | None = None) -> tuple[str, Examples, Examples, int]:
    """Read a TFDS set, and prepare it first if it is missing; arguments and errors are those of `data.load`.

    Returns:
      The name of the set for messages, the training and the test examples as (x, y), and the number of classes.
    """
    path = prepare(name, data_dir)
    where = f"data set {name!r} in {path}"
    with _quiet():
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(str(path))
        image, label = _supervised_keys(builder, where)
        splits = list(builder.info.splits)
        held_out = "test" if "test" in splits else "validation"
        if "train" not in splits or held_out not in splits:
            raise ValueError(f'{where} needs a split "train" and one "test" or "validation", got {splits}')
        train, test = (_read_split(builder, split, image, label, where) for split in ("train", held_out))
    return where, train, test, builder.info.features[label].num_classes


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Download MNIST, CIFAR or a similar set into `data_dir`, as array_record; do nothing if the set is stored.

    It can prepare mnist, fashion_mnist, kmnist, emnist, cifar10 and cifar100. TFDS's own builder does the work: it
    verifies the checksums, and moves the set into place once it is complete.

    Args:
      name, data_dir: as for `load`.

    Returns:
      The directory that holds the prepared set.

    Raises:
      FileNotFoundError: there is no network, or the download or preparation failed; the next call starts again.
      ValueError: the set is not stored and not one of these, or the stored one is damaged.
    """
    root = _root(data_dir)
    with _quiet():
        if (stored := _stored_path(name, root)) is not None:
            return stored
        import tensorflow_datasets as tfds

        where = f"data set {name!r} is not in {root}"
        if re.split("[/:]", name)[0] not in _PREPARABLE:
            raise ValueError(
                f'{where} and is none of "digits", {", ".join(_PREPARABLE)}: prepare it with TensorFlow, by '
                f"tfds build {name} --data_dir {root} --file_format array_record"
            )
        try:
            builder = tfds.builder(name, data_dir=str(root))
        except Exception as error:
            raise ValueError(f"name {name!r} is refused by TFDS: {shorten(str(error), 300)}") from error
        try:
            _download(builder)
        except Exception as error:
            if _stored_path(name, root) is not None:  # another process was faster
                return Path(builder.data_path)
            reason = f"{type(error).__name__} ({shorten(str(error), 300)})"
            if isinstance(error, OSError) and (request := getattr(error, "request", None)) is not None:
                reason = f"there is no network (no answer from {urllib.parse.urlsplit(request.url).hostname})"
            raise FileNotFoundError(
                f"{where} and preparing it failed, {reason}: run the same once where there is a network, "
                f"or copy a prepared array_record directory to {builder.data_path}, or point --data-dir "
                "or TFDS_DATA_DIR at a directory that holds it"
            ) from error
        return Path(builder.data_path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence TFDS: logs, warnings, and what it prints."""
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the directory of TFDS sets to use; it exists unless it is TFDS's default."""
    if not isinstance(data_dir, str | os.PathLike | None):
        raise ValueError(f"data_dir must be the path of a directory, got {shorten(repr(data_dir), 300)}")
    given = data_dir or os.environ.get("TFDS_DATA_DIR")
    root = Path(os.path.expanduser(given or "~/tensorflow_datasets"))
    if given and not os.path.isdir(root):
        argument = "data_dir" if data_dir else "TFDS_DATA_DIR"
        raise FileNotFoundError(f"{argument} must be an existing directory, {root} is none")
    return root


def _stored_path(name: str, root: Path) -> Path | None:
    """Return the directory in `root` of a set that can be read without TensorFlow; None if there is none."""
    if not isinstance(name, str) or len(name) > 200 or not _NAME.fullmatch(name):  # they become directories
        words = 'name must be "digits" or a TFDS name such as "emnist/letters", or the path of an .npz file'
        raise ValueError(f"{words}, got {shorten(repr(name), 300)}")
    import tensorflow_datasets as tfds

    dataset, _, version = name.partition(":")
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=str(root))
    except tfds.core.registered.DatasetNotFoundError:
        for path in (root / dataset).glob(version or "[0-9]*.*.*"):
            if not (path / "features.json").exists():
                raise ValueError(f"data set {name!r} in {path} is damaged: no features.json in it") from None
        return None
    except Exception as error:
        where = f"data set {name!r} in {root / dataset}"
        raise ValueError(f"{where} is damaged: {shorten(str(error), 300)}") from error
    return Path(builder.data_path)


def _download(builder: Any) -> None:
    """Download a set and write it, with replacements for TFDS's calls of TensorFlow."""
    import requests
    from PIL import Image
    from tensorflow_datasets.core.download import downloader, extractor
    from tensorflow_datasets.core.features import image_feature

    def encode_image(encoder: Any, image: np.ndarray) -> bytes:
        """uint8 [height, width, channels] -> PNG."""
        return encoder._encode_pil_image(Image.fromarray(image.squeeze()))

    requests.head(next(iter(builder.url_infos)), timeout=5)  # fails before anything is written
    gfile, compat = SimpleNamespace(GFile=open), SimpleNamespace(as_text=os.fspath)
    tensorflow = SimpleNamespace(io=SimpleNamespace(gfile=gfile), compat=compat)
    get = partialmethod(requests.Session.get, timeout=(5, 60))  # seconds to connect, seconds without a byte
    with contextlib.ExitStack() as stack:
        if not sys.stderr.isatty():  # progress bars are for people
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        for target, attribute, value in (
            (sys.modules[type(builder).__module__], "tf", tensorflow),
            (extractor, "tf", tensorflow),
            (image_feature._ImageEncoder, "_encode_image", encode_image),
            (downloader, "MAX_RETRIES", 2),  # instead of 10, which take minutes
            (requests.Session, "get", get),
        ):
            stack.enter_context(mock.patch.object(target, attribute, value))
        builder.download_and_prepare(file_format="array_record")


def _supervised_keys(builder: Any, where: str) -> tuple[str, str]:
    """Return the names of the image and the label that the set declares as supervised keys."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    kinds = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {"": features}
    keys = builder.info.supervised_keys
    image, label = keys[:2] if isinstance(keys, tuple) else ("image", "label")
    if type(kinds.get(image)) is tfds.features.Image and type(kinds.get(label)) is tfds.features.ClassLabel:
        return image, label
    types = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in kinds.items())
    raise ValueError(f"{where} is not image classification, from an Image to a ClassLabel: it has {types}")


def _read_split(builder: Any, split: str, image: str, label: str, where: str) -> Examples:
    """Decode a split: uint8 images [m, height, width, channels] and labels [m]."""
    # No threads: Python, not the PNG decoder, takes most of the time, and four threads took 1.7 times as long.
    try:
        source = builder.as_data_source(split)
        examples = source.__getitems__(list(range(len(source))))
        images, labels = [example[image] for example in examples], [example[label] for example in examples]
    except Exception as error:
        what = f"is damaged, or not stored as array_record, its split {split!r}"
        raise ValueError(f"{where} {what}: {shorten(str(error), 300)}") from error
    shapes = {x.shape for x in images}
    if len(shapes) != 1:
        raise ValueError(f"{where} must hold images of one shape, split {split!r} has {sorted(shapes)[:2]}")
    return np.stack(images), np.array(labels, np.int64)
