"""TFDS sets on disk, without TensorFlow: which are there, preparing one that is not, reading one.

TFDS 4.9 reads array_record sets without TensorFlow; to prepare MNIST and CIFAR it calls TensorFlow in a few
places, for which `prepare` has stand-ins.
"""

import contextlib
import difflib
import importlib.util
import io
import os
import queue
import re
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import shorten
from types import SimpleNamespace
from typing import Any

import numpy as np

Examples = tuple[np.ndarray, np.ndarray]

_NAME = re.compile(r"[A-Za-z]\w*(/[\w.-]+)?(:[\d.*]+)?", re.ASCII)  # set, configuration, version


def read(name: str, data_dir: str | os.PathLike[str] | None = None) -> tuple[str, Examples, Examples, int]:
    """Read a TFDS set, prepared first where it is missing; arguments and errors are those of `data.load`.

    Returns:
      What the set is called in messages, the training and the test examples as (x, y), the number of classes.
    """
    path = prepare(name, data_dir)
    where = f"data set {name!r} in {path}"
    with _quiet():
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(str(path))
        image, label = _keys(builder, where)
        splits = list(builder.info.splits)
        held_out = "test" if "test" in splits else "validation"
        if "train" not in splits or held_out not in splits:
            raise ValueError(f'{where} needs a split "train" and one "test" or "validation", got {splits}')
        train, test = (_read(builder, split, image, label, where) for split in ("train", held_out))
    return where, train, test, builder.info.features[label].num_classes


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Download a TFDS set into `data_dir` and write it as array_record; do nothing where it is stored.

    TFDS's own builder does the work. Without TensorFlow, the built-in `open` and Pillow's PNG encoder stand in
    for the calls that the MNIST and CIFAR builders make to it; what else one needs is named in the error.

    Args:
      name, data_dir: as for `load`.

    Returns:
      The directory that holds the prepared set.

    Raises:
      FileNotFoundError: no network, or the download or preparation failed; the next call starts again.
      ValueError: no such set, one that is not image classification, or a damaged one in its place.
    """
    root = _root(data_dir)
    with _quiet(), contextlib.ExitStack() as stack:
        if (stored := _stored(name, root)) is not None:
            return Path(stored.data_path)
        where = f"data set {name!r} is not in {root}"
        builder = _builder(name, root)
        _keys(builder, f"data set {name!r}")
        urls = list(builder.url_infos or ["https://storage.googleapis.com"])
        if not _reachable(urls):
            hosts = " or ".join(sorted({urllib.parse.urlsplit(url).hostname or url for url in urls})[:3])
            raise FileNotFoundError(
                f"{where} and cannot be downloaded, there is no network (no answer from {hosts}): run the "
                "same once where there is one, or copy a prepared array_record directory to "
                f"{builder.data_path}, or point --data-dir or TFDS_DATA_DIR at a directory that holds it"
            )
        try:
            if not sys.stderr.isatty():  # progress bars are for people
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            _patch_builder(builder, stack)
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:
            if _stored(name, root) is None:  # else another process was faster
                reason = f"{type(error).__name__}: {shorten(str(error), 300)}"
                if isinstance(error, ImportError | AttributeError):
                    reason = f"its builder needs a package that is missing, such as TensorFlow ({reason})"
                raise FileNotFoundError(f"{where} and preparing it failed: {reason}") from error
        return Path(builder.data_path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's notes to itself: absl's log, warnings, and what it prints."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def _root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the directory of TFDS sets that is meant; it exists unless it is TFDS's default."""
    if not isinstance(data_dir, str | os.PathLike | None):
        raise ValueError(f"data_dir must be the path of a directory, got {shorten(repr(data_dir), 300)}")
    given = data_dir or os.environ.get("TFDS_DATA_DIR")
    root = Path(os.path.expanduser(given or "~/tensorflow_datasets"))
    argument = "data_dir" if data_dir else "TFDS_DATA_DIR"
    if given and not os.path.exists(root):
        raise FileNotFoundError(f"{argument} must be an existing directory, {root} does not exist")
    if root.exists() and not root.is_dir():
        raise ValueError(f"{argument} must be an existing directory, {root} is a file")
    return root


def _stored(name: str, root: Path) -> Any:
    """Return a builder that reads the set from `root`, or None where it is not there."""
    if not isinstance(name, str) or len(name) > 200 or not _NAME.fullmatch(name):  # they become directories
        words = 'name must be "digits" or a TFDS name such as "emnist/letters", or the path of an .npz file'
        raise ValueError(f"{words}, got {shorten(repr(name), 300)}")
    import tensorflow_datasets as tfds

    folder = root / re.split("[/:]", name)[0]
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=str(root))
    except tfds.core.registered.DatasetNotFoundError:
        return None
    except Exception as error:
        raise ValueError(f"data set {name!r} in {folder} is damaged: {shorten(str(error), 300)}") from error
    if not builder.info.available_file_formats() & tfds.core.FileFormat.with_random_access():
        raise ValueError(
            f"data set {name!r} in {builder.data_path} is stored as {builder.info.file_format.value}, which "
            "needs TensorFlow: prepare it again in another directory with gengap.data.prepare, or with TFDS "
            'and file_format="array_record"'
        )
    return builder


def _builder(name: str, root: Path) -> Any:
    """Return the builder that can prepare a set that is not in `root`."""
    import tensorflow_datasets as tfds

    dataset, _, config = name.split(":")[0].partition("/")
    try:
        configs = tfds.builder_cls(dataset).builder_configs
        builder = None if config and config not in configs else tfds.builder(name, data_dir=str(root))
    except tfds.core.registered.DatasetNotFoundError:
        if (folder := root / dataset).exists():
            raise ValueError(f"data set {name!r} in {folder} is damaged: no features.json for it") from None
        known = [*tfds.list_builders(with_community_datasets=False), "digits"]
        near = ", ".join(difflib.get_close_matches(dataset.lower(), known)) or "nothing"
        allowed = f"a data set in {root} or one that TFDS knows"
        raise ValueError(f"name must be {allowed}, got {name!r}; near it is {near}") from None
    except Exception as error:
        raise ValueError(f"name {name!r} is refused by TFDS: {shorten(str(error), 300)}") from error
    if builder is None:
        has = ", ".join(configs) or "none"
        raise ValueError(f"name {name!r} must ask for a configuration of {dataset!r}, which has {has}")
    if builder.data_path.exists():
        raise ValueError(f"data set {name!r} in {builder.data_path} is damaged: no features.json in it")
    return builder


def _keys(builder: Any, where: str) -> tuple[str, str]:
    """The names of the image and of the label that the set is made to be learned with."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    kinds = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {"": features}
    images = [key for key, kind in kinds.items() if type(kind) is tfds.features.Image]
    labels = [key for key, kind in kinds.items() if type(kind) is tfds.features.ClassLabel]
    keys = builder.info.supervised_keys
    if isinstance(keys, tuple) and len(keys) >= 2 and keys[0] in images and keys[1] in labels:
        return keys[0], keys[1]
    if len(images) != 1 or len(labels) != 1:
        found = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in kinds.items())
        raise ValueError(f"{where} is not image classification, an Image and a ClassLabel: it has {found}")
    return images[0], labels[0]


def _read(builder: Any, split: str, image: str, label: str, where: str) -> Examples:
    """Decode a split: uint8 images [m, height, width, channels] and labels [m]."""
    # No threads: most of the time is Python's, not the PNG decoder's, and four took 1.7 times as long.
    try:
        source = builder.as_data_source(split)
        first = source[0][image]
        x, y = np.empty((len(source), *first.shape), first.dtype), np.empty(len(source), np.int64)
        shapes = {first.shape}
        for start in range(0, len(source), 1000):
            rows = slice(start, min(start + 1000, len(source)))
            examples = source.__getitems__(list(range(rows.start, rows.stop)))
            shapes |= {example[image].shape for example in examples}
            if len(shapes) > 1:
                break
            x[rows] = [example[image] for example in examples]
            y[rows] = [example[label] for example in examples]
    except Exception as error:
        raise ValueError(f"{where} is damaged, its split {split!r}: {shorten(str(error), 300)}") from error
    if len(shapes) > 1:
        raise ValueError(f"{where} must hold images of one shape, split {split!r} has {sorted(shapes)[:2]}")
    return x, y


def _reachable(urls: Iterable[str], seconds: float = 2.5) -> bool:
    """Whether a host of `urls`, or the proxy on the way to it, takes a connection within `seconds`."""
    proxies, addresses = urllib.request.getproxies(), set()
    for url in urls:
        at = urllib.parse.urlsplit(url)
        if at.scheme in proxies and not urllib.request.proxy_bypass(at.hostname or ""):
            at = urllib.parse.urlsplit("//" + proxies[at.scheme].split("//")[-1])
        addresses.add((at.hostname, at.port or {"http": 80, "ftp": 21}.get(at.scheme, 443)))
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def connect(address: tuple[str | None, int]) -> None:
        with contextlib.suppress(OSError), socket.create_connection(address, seconds):
            answers.put(True)
        answers.put(False)

    for address in addresses:  # in threads, since looking up a name takes no time-out
        threading.Thread(target=connect, args=(address,), daemon=True).start()
    end = time.monotonic() + seconds
    with contextlib.suppress(queue.Empty):
        return any(answers.get(timeout=max(0.0, end - time.monotonic())) for _ in addresses)
    return False


def _encode_png(self: Any, image: np.ndarray) -> bytes:
    """Stand in for TFDS's `_encode_image`, which calls TensorFlow: uint8 [h, w, c] -> PNG bytes."""
    from PIL import Image

    if self.encoding_format != "png":
        raise ImportError(f"encoding {self.encoding_format} needs TensorFlow")
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="PNG")
    return file.getvalue()


def _patch_builder(builder: Any, stack: contextlib.ExitStack) -> None:
    """Until `stack` closes, give up a download sooner and, without TensorFlow, put stand-ins in its place."""
    from unittest import mock

    from tensorflow_datasets.core.download import downloader, extractor
    from tensorflow_datasets.core.features import image_feature

    stack.enter_context(mock.patch.object(downloader, "MAX_RETRIES", 3))  # of 10, which take minutes
    if importlib.util.find_spec("tensorflow"):
        return
    gfile, compat = SimpleNamespace(GFile=open), SimpleNamespace(as_text=os.fspath)
    stand_in = SimpleNamespace(io=SimpleNamespace(gfile=gfile), compat=compat)
    for module in {sys.modules[cls.__module__] for cls in type(builder).__mro__} | {extractor}:
        if "tf" in vars(module):
            stack.enter_context(mock.patch.object(module, "tf", stand_in))
    stack.enter_context(mock.patch.object(image_feature._ImageEncoder, "_encode_image", _encode_png))
