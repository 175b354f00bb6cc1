"""Two processes that compute together, over loopback: the numbers of one, and only the first writes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.lib import settings
from gengap import data, hosts
from tests import two_hosts

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each of two processes found, and their directory."""
    directory = tmp_path_factory.mktemp("hosts")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = [sys.executable, "-m", "tests.two_hosts", address, "2"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    running = [
        subprocess.Popen(
            [*script, str(index), str(directory)], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs], directory


def test_two_processes_have_the_numbers_of_one(pair, tmp_path):
    one = two_hosts.measured(two_hosts.dataset(), tmp_path)
    for found in pair[0]:
        assert found["measured"].keys() == one.keys()
        for name, value in one.items():
            np.testing.assert_allclose(found["measured"][name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_first_decides_and_both_have_the_same(pair):
    first, second = pair[0]
    assert first["first"] and not second["first"]
    assert first["measured"] == second["measured"] and first["rows"] == second["rows"]
    assert first["again"] == second["again"] == first["measured"]["history"]


def test_rows_are_those_of_one_process(pair):
    total = float(np.abs(two_hosts.dataset().x_train).sum())
    rows = pair[0][0]["rows"]
    assert [(row["side"], row["seed"], row["value"]) for row in rows] == [
        ("SB", 0, 0), ("LB", 0, 0), ("SB", 1, 1), ("LB", 1, 1),
    ]  # fmt: skip
    assert all(row["devices"] == 2 and row["sum"] == pytest.approx(total, rel=1e-5) for row in rows)


def test_only_the_first_writes(pair):
    directory = pair[1]
    assert len((directory / "run0" / "rows.jsonl").read_text().splitlines()) == 4
    assert len(list((directory / "minima0").iterdir())) == 1
    assert not (directory / "run1").exists() and not (directory / "minima1").exists()


def test_what_the_first_refuses_is_refused_in_both(pair):
    first, second = pair[0]
    assert first["refused"] == second["refused"] and "num_seeds" in first["refused"]


def test_training_examples_must_divide_and_test_examples_may_be_copied(pair):
    for found in pair[0]:
        assert found["uneven"].startswith("train_size is 239") and "such as 238" in found["uneven"]
        assert found["copied"]


def test_one_process_decides_for_itself():
    assert hosts.is_first() and hosts.of_first(lambda: [1, "a"]) == [1, "a"]
    assert hosts.tree_of_first({"a": 1}) == {"a": 1}


def test_where_there_are_no_others_to_join_is_refused():
    with pytest.raises(ValueError, match="hosts"):
        hosts.join()


def test_rows_are_computed_on_one_device_unless_all_are_asked_for(monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 8)
    assert hosts.devices() == 1
    monkeypatch.setenv(hosts.SHARD, "1")
    assert hosts.devices() == 8
    divided = []
    monkeypatch.setattr(data, "spread", lambda ds: divided.append(ds) or ds)
    settings._spread.cache_clear()
    settings.dataset(settings.Training(train_size=80))
    settings._spread.cache_clear()
    assert [len(ds.x_train) for ds in divided] == [80]
