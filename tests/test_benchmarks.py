"""The benchmarks at a size that ends in seconds: that they run, and that what they count is what they say."""

import contextlib
import importlib.util
import json

import jax
import numpy as np
import optax
import pytest

from benchmarks import common, flops, precision, rates, seeds
from benchmarks import sharpness as bench
from gengap import models, objective


def test_calls_are_timed_in_turn_and_the_first_round_apart():
    order = []
    found = common.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert all(one["least"] <= one["median"] <= one["most"] for one in found.values())


@pytest.mark.filterwarnings("ignore:.*does not resolve")
def test_rates_are_operations_over_seconds(tmp_path, capsys):
    found = rates.main(
        "c1", train_size=20, batch_size=8, chunk=8, dim=2, side=64, rounds=1, out=tmp_path / "r.json"
    )
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(capsys.readouterr().out) == found
    gradient = flops.count("c1").gradient
    assert found["epoch"]["TFLOP"] == pytest.approx(24 * gradient / 1e12)  # three batches, the last one filled up
    most = 12 * (20 * gradient + 4 * 2 * 1_757_834) / 1e12
    assert most / 6 <= found["draw"]["TFLOP"] <= most
    for name in ("product", "epoch", "draw"):
        one = found[name]
        assert one["TFLOP/s"] == pytest.approx(one["TFLOP"] / one["seconds"]["median"])


def test_seeds_gives_a_ratio_for_each_batch_size(capsys):
    ratios = seeds.main(train_size=64, batch_sizes=(16, 32), seeds=2, rounds=1)
    assert list(ratios) == [16, 32] and all(ratio > 0 for ratio in ratios.values())
    assert capsys.readouterr().out.count("vmap / one by one") == 2


def test_precisions_are_held_against_float64(tmp_path):
    rows = precision.main(examples=100, dim=3, epochs=1, out=tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["rows"] == rows
    assert [row["space"] for row in rows] == ["full"] * 3 + ["random"] * 3
    assert all(abs(row["error of the arithmetic"]) < 1e-3 for row in rows)
    for space in ("full", "random"):  # a CPU computes all of them as float32
        assert len({row["value"] for row in rows if row["space"] == space}) == 1
    assert not jax.config.jax_enable_x64


def test_bench_measures_every_solver_and_goes_on(tmp_path, capsys):
    toy = {"seeds": 1, "starts": 1, "budget": 4, "subspaces": 4, "parameters": 1000, "width": 8, "rounds": 1}
    bench.main(tmp_path, **toy, images=16, spaces=("random",))
    first = json.loads((tmp_path / "bench.json").read_text())
    cells = {f"{name} 0 random, {who}" for name in ("SB", "LB") for who in ("ours", "SciPy")}
    assert set(first) == cells | {"machine", "draw", "subspaces", "draw, 16 images", "memory"}
    for name in cells:
        assert len(first[name]) == 8 and all(np.isfinite(row["value"]) for row in first[name])
    assert all(row["evaluations"] <= 12 for row in first["LB 0 random, ours"])
    assert first["subspaces"]["SciPy, 10 iterations"]["evaluations"] >= 2
    assert first["subspaces"]["corner, 3 gradients"]["evaluations"] <= 3
    assert "over SciPy at convergence" in capsys.readouterr().out
    bench.main(tmp_path, **toy, images=16, spaces=("random", "full"))
    second = json.loads((tmp_path / "bench.json").read_text())
    assert second.items() > first.items() and "SB 0 full, ours" in second


def test_bench_refuses_subspaces_that_cannot_pay_for_a_scout(tmp_path):
    with pytest.raises(ValueError, match="at least 4"):
        bench.main(tmp_path, subspaces=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is no dependency")
def test_pytorch_computes_the_same_network_and_gradient():
    import torch

    from benchmarks import pytorch

    x, y = common.examples("c1", 16)
    model = models.c1()
    params = model.init(jax.random.key(0), objective.scale(x))
    with jax.enable_x64(True):
        loss, params = precision.in_float64(model, x, y, params)
        expected, gradient = jax.value_and_grad(loss)(params)
        network = pytorch.c1(params)
        assert next(network.parameters()).dtype == torch.float64
        images = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
        labels = torch.tensor(np.asarray(y)).long()
        value, slope = pytorch.torch_loss(network, images, labels, 16, contextlib.nullcontext)
        # The images of the one are float32 / 255, of the other float64.
        assert value == pytest.approx(float(expected), rel=1e-7)
        assert float(slope.norm()) == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is no dependency")
def test_pytorch_is_timed_beside_jax(tmp_path):
    from benchmarks import pytorch

    toy = {"train_size": 32, "batch_size": 16, "chunk": 16, "seeds": (1, 2), "dim": 2, "draws": 1, "rounds": 1}
    found = pytorch.main(**toy, out=tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == found
    for name in ("an epoch, 1 seeds", "an epoch, 2 seeds", "sharpness"):
        assert found[name]["JAX / PyTorch"] > 0
    assert found["sharpness"]["mean value"]["SciPy over PyTorch"] >= 0
