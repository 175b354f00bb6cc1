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
    flags = os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        script, cwd=Path(__file__).parents[1], env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
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


def test_each_device_takes_an_eighth_of_a_training_step(found):
    """Only where the examples of a batch lie is gathered, not their 48 numbers each."""
    one, eight = found["step"]["one"], found["step"]["eight"]
    assert eight["flops"] < SHARE * one["flops"]
    assert all(size <= 2 * 400 for size in eight["gathers"])
