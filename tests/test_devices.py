"""Eight devices: the numbers of one, and an eighth of the work for each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SHARE = 1.15 / 8


@pytest.fixture(scope="module")
def found():
    script = [sys.executable, "-m", "tests.eight_devices"]
    done = subprocess.run(
        script, cwd=Path(__file__).parents[1], env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", ["Auto", "Explicit"])
def test_measures_of_spread_data_and_parameters_are_those_of_one_device(found, mesh):
    for name, one in found["values"]["one"].items():
        np.testing.assert_allclose(found["values"][mesh][name], one, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("mesh", ["Auto", "Explicit"])
def test_training_on_spread_data_has_the_losses_of_one_device(found, mesh):
    np.testing.assert_allclose(found["trained"][mesh], found["trained"]["one"], rtol=1e-5)


@pytest.mark.parametrize("mesh", ["Auto", "Explicit"])
@pytest.mark.parametrize("chunk", ["800", "80", "77"])
def test_each_device_takes_an_eighth_of_every_chunk(found, mesh, chunk):
    """Of one chunk, of ten, and of eleven that cannot be divided by eight; nothing is gathered."""
    one, eight = found["flops"]["one"][chunk], found["flops"][mesh][chunk]
    assert eight["gathers"] == []
    share = eight["flops"] / one["flops"]
    assert share < (SHARE if chunk != "77" else 0.16)


def test_each_chunk_sums_the_gradient_over_the_devices(found):
    """What docs/scaling.md says of messages: the parameters and the statistics of batch norm, no more."""
    parameters = found["parameters"]
    assert all(parameters < found["flops"]["Auto"][chunk]["reduced"] < 1.1 * parameters for chunk in ("800", "80"))


def test_each_device_takes_an_eighth_of_a_training_step(found):
    """Only where the examples of a batch lie is gathered, not their 48 numbers each."""
    one, eight = found["step"]["one"], found["step"]["eight"]
    assert eight["flops"] < SHARE * one["flops"]
    assert all(size <= 2 * 400 for _, size in eight["gathers"])


@pytest.mark.parametrize("mesh", ["Auto", "Explicit"])
def test_draws_on_several_devices_are_those_of_one(found, mesh):
    np.testing.assert_allclose(found["draws"][mesh], found["draws"]["one"], rtol=1e-5)


def test_each_device_takes_one_of_eight_draws(found):
    one, eight = found["draws"]["step of one"], found["draws"]["step"]
    assert eight["flops"] < SHARE * one["flops"] and eight["gathers"] == []


def test_the_matrix_follows_spread_parameters(found):
    """Its signs are words of 32 bits; no word is gathered, nor as many numbers as it has entries."""
    spread = found["draws"]["spread"]
    assert spread["tiles"][0] == 8
    assert all(kind != "u32" and size < spread["entries"] / 4 for kind, size in spread["gathers"])
