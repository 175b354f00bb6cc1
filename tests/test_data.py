"""Data sets: what is read is what was written, and every failure is one sentence."""

import contextlib
import functools
import gzip
import http.server
import inspect
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import requests

from gengap import data, tfds_sets

tfds = pytest.importorskip("tensorflow_datasets")
Image, Label = tfds.features.Image, tfds.features.ClassLabel


def images(rows, shape=(4, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), np.uint8)


def arrays(m=6, n=3):
    y = np.arange(m + n) % 3
    return [images(m), y[:m], images(n, seed=1), y[m:]]


def fails(error, text, function, *args, **kwargs):
    """Assert that a call raises `error` with one line that matches `text`; return the line."""
    with pytest.raises(error, match=text) as caught:
        function(*args, **kwargs)
    assert type(caught.value) is error
    line = str(caught.value)
    assert line == " ".join(line.split()) and len(line) < 700
    return line


def write(root, name, splits, features=None, supervised=("image", "label"), version="1.0.0"):
    """Write a TFDS set of `splits`, {split: examples}, with a builder that TFDS does not know."""
    from PIL import Image as Pillow

    features = features or {"image": Image(), "label": Label(num_classes=4)}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            table = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=table, supervised_keys=supervised)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            for i, example in enumerate(examples):
                picture = {k: Pillow.fromarray(v) for k, v in example.items() if isinstance(v, np.ndarray)}
                yield i, example | picture

    Builder.name = name
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Builder(data_dir=str(root)).download_and_prepare(file_format="array_record")
    return root / name / version


def examples(rows, **kwargs):
    return [{"image": x, "label": i % 3} for i, x in enumerate(images(rows, **kwargs))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    write(root, "tiny", {"train": examples(7), "test": examples(4, seed=1)})
    return root


@pytest.fixture
def copy(tiny, tmp_path):
    """A directory of TFDS sets to spoil, and the directory in it of the set "tiny"."""
    shutil.copytree(tiny, tmp_path / "tfds")
    return tmp_path / "tfds", tmp_path / "tfds/tiny/1.0.0"


@pytest.fixture
def offline(monkeypatch):
    """No network, on any machine: the way out is a proxy that is not there."""
    for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(key, "http://127.0.0.1:9")
    for key in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(key, raising=False)


def test_a_new_process_is_light_and_quiet_and_refuses_what_names_nothing(tiny, offline):
    """Also without the checks of types that run under pytest alone."""
    code = f"""
import sys, warnings
from pathlib import Path
warnings.simplefilter("error")
import gengap.data as data, numpy as np
from jax._src import xla_bridge
assert not xla_bridge._backends
print({{"tensorflow_datasets", "sklearn", "PIL", "absl", "requests"}} & set(sys.modules))
print(len(data.load("tiny", {str(tiny)!r}).x_train))
print(data.load(Path("digits")).name)
for arguments in (
    ("mnist", {str(tiny)!r}),
    *((name,) for name in (None, 3, b"digits", ["digits"], np.zeros(9999))),
    *(("mnist", data_dir) for data_dir in (3, [b"x"])),
):
    try:
        data.load(*arguments)
    except (FileNotFoundError, ValueError) as error:
        print(error)
"""
    root = Path(inspect.getfile(data)).parents[1]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert (run.stderr, run.returncode) == ("", 0)
    lines = run.stdout.splitlines()
    assert lines[:3] == ["set()", "7", "digits"] and len(lines) == 11
    assert lines[3].startswith(f"data set 'mnist' is not in {tiny}")
    assert all(line.startswith('name must be "digits" or') for line in lines[4:9])
    assert all(line.startswith("data_dir must be the path of a directory, got") for line in lines[9:])


def test_digits():
    ds = data.load("digits")
    assert ds.x_train.shape == (1437, 8, 8, 1) and ds.x_test.shape == (360, 8, 8, 1)
    assert ds.x_train.dtype == jnp.uint8 and ds.y_train.dtype == ds.y_test.dtype == jnp.int32
    assert (ds.num_classes, ds.name) == (10, "digits") and isinstance(ds.x_train, jax.Array)
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    every = np.concatenate([ds.x_train, ds.x_test]).reshape(-1, 64)
    assert sorted(map(bytes, every)) == sorted(map(bytes, np.rint(x * 255 / 16).astype(np.uint8)))
    np.testing.assert_array_less(abs(np.bincount(ds.y_train) - 0.8 * np.bincount(y)), 1)
    assert list(ds.y_train[:8]) == [3, 9, 1, 3, 1, 9, 4, 4]  # the split never changes
    assert bytes(np.unique(every)) == bytes(round(v * 255 / 16) for v in range(17))


def test_from_arrays_keeps_what_it_is_given():
    x_train, y_train, x_test, y_test = arrays()
    ds = data.from_arrays(x_train, y_train.astype(np.uint8), jnp.asarray(x_test), y_test.astype(np.int64))
    assert ds.num_classes == 3 and ds.name == "arrays" and ds.y_train.dtype == ds.y_test.dtype == jnp.int32
    np.testing.assert_array_equal(ds.x_train, x_train)
    np.testing.assert_array_equal(ds.y_test, y_test)
    kept = x_train.copy()
    x_train[:] = 0
    np.testing.assert_array_equal(ds.x_train, kept)
    assert data.from_arrays(*arrays(), num_classes=7, name="mine")[4:] == (7, "mine")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
def test_from_arrays_makes_float32_of_floating_features(dtype):
    x = np.array([[0.5, -2], [3, 1e3]]).astype(dtype)
    y = np.array([0, 1])
    ds = data.from_arrays(x, y, x, y)
    assert ds.x_train.dtype == jnp.float32
    np.testing.assert_array_equal(ds.x_train, x.astype(np.float32))


def change(**changes):
    given = dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays(), strict=True))
    return given | {k: f(given[k]) if callable(f) else f for k, f in changes.items()}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"y_train": lambda y: y[:-1]}, r"y_train must have shape \(6,\), .* got \(5,\)"),
        ({"y_test": lambda y: y[:, None]}, r"y_test must have shape \(3,\), .* got \(3, 1\)"),
        (
            {"x_train": lambda x: x[:0], "y_train": lambda y: y[:0]},
            r"x_train must .* an example .* got \(0, 4, 5, 3\)",
        ),
        ({"x_test": lambda x: x[:, :0]}, r"x_test must .* a feature at least, got \(3, 0, 5, 3\)"),
        ({"x_train": lambda x: x[:, 0, 0, 0]}, r"x_train must be \[m, \.\.\.\] .* got \(6,\)"),
        (
            {"x_test": lambda x: x[..., :1]},
            r"x_test must have x_train's dtype and shape, .*\(4, 5, 3\) a row, got uint8, \(4, 5, 1\)",
        ),
        (
            {"x_test": lambda x: x.astype(float)},
            "x_test must have x_train's dtype and shape, uint8, .* got float32",
        ),
        ({"x_train": lambda x: x.astype(int)}, "x_test must have x_train's dtype and shape, int32, .* got uint8"),
        ({"x_train": lambda x: x.astype(int) + 2**31}, "x_train must be within int32, got 2147483648 to"),
        ({"x_test": lambda x: x > 9}, "x_test must be uint8 images, floating features or integers, .* bool"),
        ({"y_train": lambda y: y.astype(float)}, "y_train must be integers, got dtype float64"),
        ({"y_train": lambda y: y > 0}, "y_train must be integers, got dtype bool"),
        ({"y_test": lambda y: y - 1}, "y_test must be labels from 0 up, got -1"),
        ({"num_classes": 2}, "y_train must be labels below num_classes = 2, got 2"),
        (
            {"y_train": lambda y: y * 0, "num_classes": 2},
            "y_test must be labels below num_classes = 2, got 2",
        ),
        ({"y_test": lambda y: y.astype(np.uint64) + 2**40}, "num_classes must be .* got 1099511627779"),
        ({"num_classes": -1}, "num_classes must be an integer from 1 .* got -1"),
        ({"num_classes": True}, "num_classes must be an integer from 1 .* got True"),
    ],
)
def test_from_arrays_refuses(changes, text):
    fails(ValueError, text, data.from_arrays, **change(**changes))


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_from_arrays_refuses_what_is_not_finite(value):
    x = np.zeros((3, 2))
    x[1, 1] = value
    y = np.zeros(3, int)
    text = "x_train must be finite in float32, got (nan|-?inf)"
    fails(ValueError, text, data.from_arrays, x, y, x[:1], y[:1])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_of_arrays_is_what_was_saved_or_refused(tmp_path, save):
    path = tmp_path / "mine.npz"
    save(path, **change(num_classes=4))
    ds = data.load(path)
    assert ds[4:] == (4, "mine") and data.load(str(path))[4:] == ds[4:]
    stored, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    damaged = [stored[:i] for i in range(0, len(stored), 40)]
    # half of the places are in the table of contents at the end
    for i in [*rng.integers(0, len(stored), 100), *range(len(stored) - 200, len(stored), 2)]:
        damaged.append(stored[:i] + bytes([stored[i] ^ 1 << rng.integers(8)]) + stored[i + 1 :])
    for content in damaged:
        path.write_bytes(content)
        try:
            found = data.load(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, found[:5], ds[:5])
    assert refused > 100


def test_an_array_that_ends_too_early_is_held_to_its_checksum(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **change())
    path.write_bytes(path.read_bytes().replace(b"'<i8'", b"'<i4'"))  # half of the bytes of each label
    fails(ValueError, r"mine\.npz is no .npz file of arrays, or damaged: .* checksum", data.load, path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_classes": 3.7}, "num_classes must be an integer from 1 to 2147483647, got 3.7"),
        ({"num_classes": True}, "num_classes must be an integer .*, got True"),
        ({"num_classes": [3]}, r"num_classes must be an integer .*, got \[3\]"),
        ({"num_classes": np.arange(10_000)}, r"num_classes must be an integer .*, got \[0, 1, 2, .* \[\.\.\.\]"),
        ({"num_classes": "3"}, "num_classes must be an integer .*, got '3'"),
        ({"num_classes": np.array(None)}, "is no .npz file of arrays, or damaged: Object arrays"),
        ({"y_train": np.array([None] * 6)}, "is no .npz file of arrays, or damaged: Object arrays"),
        ({"x_train": 3}, r"x_train must be \[m, \.\.\.\] .* got \(\)"),
        ({"y_test": 3}, r"y_test must have shape \(3,\), .* got \(\)"),
        ({"x_test": ["a", "b"]}, "x_test must be uint8 images, floating features or integers, got dtype <U1"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, changes, text):
    np.savez(tmp_path / "mine.npz", **change(**changes))
    line = fails(ValueError, text, data.load, tmp_path / "mine.npz")
    assert str(tmp_path / "mine.npz") in line


def test_what_is_no_archive_is_named(tmp_path):
    path = tmp_path / "mine.npz"
    with pytest.raises(FileNotFoundError, match=str(path)):
        data.load(path)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    fails(ValueError, f"{path} is no .npz file of arrays, or damaged", data.load, path)
    path.unlink()
    path.mkdir()
    fails(ValueError, f"{path} is no .npz file of arrays, or damaged: .*directory", data.load, path)
    with zipfile.ZipFile(tmp_path / "words.npz", "w") as file:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            file.writestr(name, "words")
    fails(ValueError, r"words\.npz cannot be used: x_train must be", data.load, tmp_path / "words.npz")


INTEGERS = {
    "list": [0, 2, 1],
    "range": range(3),
    "object": np.array([0, 2, 1], object),
    "Int64": pd.Series([0, 2, 1], dtype="Int64"),
    "array": pd.array([0, 2, 1]),
    "index": pd.Index([0, 2, 1], dtype="UInt8"),
    "category": pd.Series([0, 2, 1], dtype="category"),
    "category of Int64": pd.Series([0, 2, 1], dtype="Int64").astype("category"),
    "rows": pd.Series([0, 2, 1], index=[7, 8, 9]),
}


@pytest.mark.parametrize("kind", INTEGERS)
def test_labels_may_be_any_integers(kind):
    x, y = images(3), INTEGERS[kind]
    ds = data.from_arrays(x, y, x, y)
    assert ds.num_classes == 3 and ds.y_train.tolist() == ds.y_test.tolist() == list(y)


@pytest.mark.parametrize(
    ("y", "text"),
    [
        (pd.Series([0, 1, None], dtype="Int64"), "must be integers, got dtype .*, such as (nan|<NA>)"),
        (np.array([0, 1, pd.NA], object), "must be integers, got dtype object, such as <NA>"),
        (pd.Series([0, 1, None], dtype="category"), "must be integers, got dtype float64, such as nan"),
        (pd.Series(["a", "b", "c"]), "must be integers, got dtype object, such as 'a'"),
        (pd.Series(["a", "b", "c"], dtype="category"), "must be integers, got dtype object, such as 'a'"),
        (["cat", "dog", "cow"], "must be integers, got dtype <U3, such as 'cat'"),
        (np.array([0, 1, True], object), "must be integers, got dtype object, such as True"),
        ([True, False, True], "must be integers, got dtype bool, such as True"),
        ([0, 1.5, 1], "must be integers, got dtype float64, such as 1.5"),
        ([0, None, 1], "must be integers, got dtype object, such as None"),
        ([0, 2**70, 1], "num_classes must be an integer from 1"),
        ([[0], [1, 2], 1], "must be an array: .* inhomogeneous shape"),
        (jax.random.split(jax.random.key(0), 3), "must be an array: JAX array with PRNGKey dtype"),
        ({0, 1, 2}, r"must have shape \(3,\), a label for each example, got \(\)"),
        (pd.DataFrame({"y": [0, 1, 2]}), r"must have shape \(3,\), .* got \(3, 1\)"),
    ],
)
def test_labels_that_are_no_integers_are_named(y, text):
    x = images(3)
    fails(ValueError, text if "num_classes" in text else f"y_train {text}", data.from_arrays, x, y, x, [0, 1, 2])
    fails(ValueError, text if "num_classes" in text else f"y_test {text}", data.from_arrays, x, [0, 1, 2], x, y)


def test_head():
    ds = data.from_arrays(*arrays())
    few = data.head(ds, 2)
    np.testing.assert_array_equal(few.x_train, ds.x_train[:2])
    np.testing.assert_array_equal(few.y_train, ds.y_train[:2])
    assert few[2:] == ds[2:] and len(data.head(ds, 6).x_train) == 6


@pytest.mark.parametrize("size", [0, 7, -1, True])
def test_head_refuses(size):
    text = f"size must be an integer from 1 to 6, the examples of 'arrays', got {size}"
    fails(ValueError, text, data.head, data.from_arrays(*arrays()), size)


def test_reads_what_was_written(tiny, monkeypatch, capfd):
    ds = data.load("tiny", tiny)
    assert ds.x_train.dtype == jnp.uint8 and ds.y_train.dtype == jnp.int32 and ds[4:] == (4, "tiny")
    for split, x, y in (("train", ds.x_train, ds.y_train), ("test", ds.x_test, ds.y_test)):
        stored = tfds.builder_from_directory(str(tiny / "tiny/1.0.0")).as_data_source(split)
        np.testing.assert_array_equal(x, [example["image"] for example in stored])
        np.testing.assert_array_equal(y, [example["label"] for example in stored])
    written = sorted((bytes(x), i % 3) for i, x in enumerate(images(7)))
    assert sorted(zip(map(bytes, np.asarray(ds.x_train)), map(int, ds.y_train), strict=True)) == written
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
    np.testing.assert_array_equal(data.load("tiny:1.0.0").x_test, ds.x_test)
    assert data.prepare("tiny") == tiny / "tiny/1.0.0"
    assert capfd.readouterr() == ("", "")


def test_newest_version_or_the_one_asked_for(tmp_path):
    for version, rows in (("1.9.0", 3), ("1.10.0", 4)):
        write(tmp_path, "old_and_new", {"train": examples(rows), "test": examples(1)}, version=version)
    assert len(data.load("old_and_new", tmp_path).x_train) == 4
    assert len(data.load("old_and_new:1.9.0", tmp_path).x_train) == 3


def test_supervised_label_and_validation_split(tmp_path):
    def two(rows):
        return [{"image": x, "fine": i % 3, "coarse": 0} for i, x in enumerate(images(rows))]

    kinds = {"image": Image(shape=(4, 5, 3)), "fine": Label(num_classes=3), "coarse": Label(num_classes=2)}
    write(tmp_path, "two_labels", {"train": two(3), "validation": two(2)}, kinds, ("image", "fine"))
    ds = data.load("two_labels", tmp_path)
    assert ds.num_classes == 3 and sorted(ds.y_train.tolist()) == [0, 1, 2] and len(ds.x_test) == 2
    write(tmp_path, "ambiguous", {"train": two(3), "test": two(2)}, kinds, None)
    fails(ValueError, "ambiguous.* not image classification.* fine", data.load, "ambiguous", tmp_path)


def test_refuses_sets_of_another_kind(tmp_path):
    plain = {"train": [{"image": x} for x in images(2)], "test": [{"image": x} for x in images(2)]}
    path = write(tmp_path, "unlabelled", plain, {"image": Image()}, None)
    text = f"{path} is not image classification.* it has image \\(Image\\)"
    fails(ValueError, text, data.load, "unlabelled", tmp_path)
    path = write(tmp_path, "only_train", {"train": examples(2)})
    fails(ValueError, rf"{path} needs a split .* got \['train'\]", data.load, "only_train", tmp_path)
    mixed = [*examples(2), *examples(1, shape=(6, 5, 3))]
    path = write(tmp_path, "mixed", {"train": mixed, "test": examples(2)})
    text = rf"{path} must hold images of one shape, .*\(4, 5, 3\), \(6, 5, 3\)"
    fails(ValueError, text, data.load, "mixed", tmp_path)
    hidden = [{"image": x, "label": -1} for x in images(2)]
    path = write(tmp_path, "hidden", {"train": examples(3), "test": hidden})
    fails(ValueError, f"{path} cannot be used: y_test .* got -1", data.load, "hidden", tmp_path)


def spoil_shard(path, change):
    shard = next(path.glob("*train*"))
    stored = shard.read_bytes()
    shard.unlink()
    if change is not None:
        shard.write_bytes(change(stored))


def spoil_image(path):
    """A set whose one PNG is not one, and whose files are sound."""
    root = path.parents[1]
    shutil.rmtree(path.parent)
    sound = io.BytesIO()
    np.save(sound, np.zeros(3))
    broken = [{"image": sound, "label": 0}]
    write(root, "tiny", {"train": broken, "test": broken})


DAMAGE = {
    "truncated": lambda path: spoil_shard(path, lambda stored: stored[: len(stored) // 2]),
    "a byte": lambda path: spoil_shard(path, lambda stored: stored.replace(b"IHDR", b"IHDr", 1)),
    "empty": lambda path: spoil_shard(path, lambda _: b""),
    "no shard": lambda path: spoil_shard(path, None),
    "no info": lambda path: (path / "dataset_info.json").unlink(),
    "bad info": lambda path: (path / "dataset_info.json").write_text("{"),
    "bad features": lambda path: (path / "features.json").write_text('{"a": 1'),
    "no features": lambda path: (path / "features.json").unlink(),
    "image": spoil_image,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_names_a_damaged_set(copy, damage, offline, capfd):
    root, path = copy
    DAMAGE[damage](path)
    capfd.readouterr()
    line = fails(ValueError, "data set 'tiny' in .* is damaged", data.load, "tiny", root)
    assert str(path.parent) in line
    assert capfd.readouterr() == ("", "")


def test_a_set_is_what_was_written_or_refused(copy, offline):
    root, path = copy
    ds, rng, refused = data.load("tiny", root), np.random.default_rng(0), 0
    for shard in path.glob("*array_record*"):
        stored = shard.read_bytes()
        for i in rng.choice(np.flatnonzero(np.frombuffer(stored, np.uint8)), 40):
            shard.write_bytes(stored[:i] + bytes([stored[i] ^ 1 << rng.integers(8)]) + stored[i + 1 :])
            try:
                found = data.load("tiny", root)
            except ValueError as error:
                assert str(path.parent) in str(error) and "\n" not in str(error)
                refused += 1
            else:
                jax.tree.map(np.testing.assert_array_equal, found[:5], ds[:5])
        shard.write_bytes(stored)
    assert refused > 40


def test_names_a_damaged_set_that_tfds_knows(copy, offline):
    root, path = copy
    (known := root / "mnist/3.0.1").parent.mkdir()
    path.rename(known)
    info = known / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"name": "mnist", "version": "3.0.1"}))
    (known / "features.json").unlink()
    fails(ValueError, f"'mnist' in {known} is damaged: no features.json", data.load, "mnist", root)


def test_refuses_tfrecord(copy, capfd):
    root, path = copy
    info = path / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    for shard in path.glob("*array_record*"):
        shard.rename(path / shard.name.replace("array_record", "tfrecord"))
    text = f"{path} is damaged, or not stored as array_record, .* file format FileFormat.TFRECORD is not supported"
    fails(ValueError, text, data.load, "tiny", root)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["", "x y", "../mnist", "huggingface:mnist", "mnist/", "a" * 300, "a数据"])
def test_refuses_what_is_no_name(name, tmp_path):
    said = repr(name) if len(name) < 300 else r"\[\.\.\.\]"
    fails(
        ValueError,
        f'name must be "digits" or .* or the path of an .npz file, got {said}',
        data.load,
        name,
        tmp_path,
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "Digits",
            "'Digits' is not in .* none of \"digits\", cifar10, .*, mnist: .* tfds build Digits --data_dir",
        ),
        ("svhn_cropped:3.1.0", "prepare it with TensorFlow, by tfds build svhn_cropped:3.1.0 --data_dir /"),
        ("emnist/letter", "'emnist/letter' is refused by TFDS: .* letter not found"),
        ("mnist/letters", "'mnist/letters' is refused by TFDS: .* letters not found"),
        ("mnist:9.9.9", "'mnist:9.9.9' is refused by TFDS: .* only: 3"),
    ],
)
def test_refuses_unknown_names(name, text, tmp_path, offline, capfd):
    fails(ValueError, text, data.load, name, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_data_dir(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for none in (tmp_path / "no", tmp_path / "file", "~nobody_of_this_name/sets", "a" * 300, "a\0b"):
        line = fails(
            FileNotFoundError, "data_dir must be an existing directory, .* is none", data.load, "mnist", none
        )
        assert Path(none).name in line
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no"))
    fails(FileNotFoundError, "TFDS_DATA_DIR must be an existing directory", data.prepare, "mnist")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tfds_sets._root(None) == tmp_path / "tensorflow_datasets"


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("mnist", "storage.googleapis.com"),
        ("cifar10", "www.cs.toronto.edu"),
        ("emnist/letters", "biometrics.nist.gov"),
    ],
)
def test_missing_set_without_network(name, host, tmp_path, offline, capfd):
    begin = time.monotonic()
    text = rf"{name}' is not in {tmp_path} .*there is no network \(no answer from {host}\)"
    line = fails(FileNotFoundError, text, data.load, name, tmp_path)
    assert time.monotonic() - begin < 5
    assert str(tmp_path / name) in line and "--data-dir or TFDS_DATA_DIR" in line
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_a_host_that_never_answers_is_given_up(tmp_path, monkeypatch):
    timeouts = []

    def request(session, method, url, *, timeout, **kwargs):
        timeouts.append(timeout)
        if method == "GET":
            raise requests.ReadTimeout("timed out", request=requests.Request(method, url))

    monkeypatch.setattr(requests.Session, "request", request)
    fails(FileNotFoundError, r"no network \(no answer from www.cs.toronto.edu\)", data.load, "cifar10", tmp_path)
    assert timeouts == [5, (5, 60)]


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def copyfile(self, source, outputfile):
        stored = source.read()
        outputfile.write(stored[: int(len(stored) * self.server.share)])  # the rest is never sent


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of tiny MNIST and CIFAR-10 archives, to which TFDS's own builders are sent."""
    from tensorflow_datasets.image_classification import cifar, mnist

    root = tmp_path / "site"
    root.mkdir()
    for prefix, rows in (("train", 12), ("t10k", 5)):
        x = images(rows, (28, 28))
        for kind, header, body in (
            ("images-idx3", struct.pack(">4i", 2051, rows, 28, 28), x.tobytes()),
            ("labels-idx1", struct.pack(">2i", 2049, rows), bytes(range(10)) * 2),
        ):
            packed = gzip.compress(header + body[: rows if "labels" in kind else None])
            (root / f"{prefix}-{kind}-ubyte.gz").write_bytes(packed)
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin", "batches.meta.txt"]
    with tarfile.open(root / "cifar.tar.gz", "w:gz") as archive:
        for k, file in enumerate(names):
            row = bytes([k]) + images(1, (3072,), seed=k).tobytes()
            content = "\n".join(f"class{i}" for i in range(10)).encode() if file.endswith("txt") else row
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root))
    server.share = 1.0
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    monkeypatch.setattr(mnist.MNIST, "URL", url)
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 12)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 5)
    info = cifar.Cifar10(data_dir=str(tmp_path))._cifar_info._replace(url=url + "cifar.tar.gz")
    monkeypatch.setattr(cifar.Cifar10, "_cifar_info", info)
    yield server
    server.shutdown()
    server.server_close()


def test_prepares_mnist(site, tmp_path, capfd):
    ds = data.load("mnist", tmp_path)
    assert ds.x_train.shape == (12, 28, 28, 1) and ds.num_classes == 10 and len(ds.x_test) == 5
    written = sorted((bytes(x), i % 10) for i, x in enumerate(images(12, (28, 28))))
    assert sorted(zip(map(bytes, np.asarray(ds.x_train)), map(int, ds.y_train), strict=True)) == written
    site.shutdown()
    assert data.prepare("mnist", tmp_path) == tmp_path / "mnist/3.0.1"
    assert capfd.readouterr() == ("", "")


def test_prepares_cifar10(site, tmp_path):
    ds = data.load("cifar10", tmp_path)
    assert ds.x_train.shape == (5, 32, 32, 3) and ds.x_test.shape == (1, 32, 32, 3)
    for x, k in zip([*ds.x_train, *ds.x_test], [*map(int, ds.y_train), int(ds.y_test[0])], strict=True):
        np.testing.assert_array_equal(x, images(1, (3, 32, 32), seed=k)[0].transpose(1, 2, 0))


def test_broken_download_leaves_nothing_in_the_way(site, tmp_path, capfd):
    site.share = 0.5
    text = f"'mnist' is not in {tmp_path} and preparing it failed, [A-Z]"
    fails(FileNotFoundError, text, data.load, "mnist", tmp_path)
    assert capfd.readouterr() == ("", "")
    site.share = 1.0
    assert len(data.load("mnist", tmp_path).x_train) == 12


def test_killed_preparation_does_not_stand_in_the_way(site, tmp_path):
    left = tmp_path / "mnist/incomplete.ABCDEF_3.0.1"
    left.mkdir(parents=True)
    (left / "mnist-train.array_record-00000-of-00001").write_bytes(b"half")
    assert len(data.load("mnist", tmp_path).x_train) == 12


def test_another_process_may_be_faster(site, tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import mnist

    def beaten(self, **kwargs):
        tfds.core.DatasetBuilder.download_and_prepare(self, **kwargs)
        raise OSError("Directory not empty")

    monkeypatch.setattr(mnist.MNIST, "download_and_prepare", beaten)
    assert data.prepare("mnist", tmp_path) == tmp_path / "mnist/3.0.1"
    assert len(data.load("mnist", tmp_path).x_train) == 12


def test_refused_download(site, tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import mnist

    monkeypatch.setattr(mnist.MNIST, "URL", mnist.MNIST.URL + "no/such/folder/")
    fails(FileNotFoundError, "preparing it failed, DownloadError .*404", data.load, "mnist", tmp_path)
    monkeypatch.setattr(mnist.MNIST, "URL", "http://127.0.0.1:9/")
    begin = time.monotonic()
    fails(FileNotFoundError, r"no network \(no answer from 127.0.0.1\)", data.load, "mnist", tmp_path)
    assert time.monotonic() - begin < 10


def test_builder_that_needs_tensorflow(site, tmp_path, monkeypatch):
    def missing(self, dl_manager):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    from tensorflow_datasets.image_classification import mnist

    monkeypatch.setattr(mnist.MNIST, "_split_generators", missing)
    text = r"preparing it failed, ModuleNotFoundError \(No module named 'tensorflow'\)"
    fails(FileNotFoundError, text, data.load, "mnist", tmp_path)


REAL = Path(os.environ.get("TFDS_DATA_DIR", "/nonexistent"))
real = pytest.mark.skipif(
    not (REAL / "mnist").is_dir() or not (REAL / "cifar10").is_dir(),
    reason="TFDS_DATA_DIR names no directory with mnist and cifar10",
)


@pytest.mark.data
@real
def test_real_mnist():
    ds = data.load("mnist")
    assert ds.x_train.shape == (60000, 28, 28, 1) and ds.x_test.shape == (10000, 28, 28, 1)
    assert ds.x_train.dtype == jnp.uint8 and ds.num_classes == 10
    assert ds.y_train[:8].tolist() == [4, 1, 0, 7, 8, 1, 2, 7]
    assert ds.y_test[:8].tolist() == [2, 0, 4, 8, 7, 6, 0, 6]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(ds.y_train).tolist() == counts
    assert round(float(np.mean(ds.x_train)) / 255, 4) == 0.1307


@pytest.mark.data
@real
def test_real_cifar10():
    ds = data.load("cifar10")
    assert ds.x_train.shape == (50000, 32, 32, 3) and ds.x_test.shape == (10000, 32, 32, 3)
    assert ds.x_train.dtype == jnp.uint8 and ds.num_classes == 10
    assert ds.y_train[:8].tolist() == [7, 8, 4, 4, 6, 5, 2, 9]
    assert np.bincount(ds.y_train).tolist() == [5000] * 10
    assert np.bincount(ds.y_test).tolist() == [1000] * 10
    means = np.mean(ds.x_train, axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)
