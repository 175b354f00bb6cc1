"""The benchmarks at a size that ends in seconds: that they run, and that what they count is what they say."""

import contextlib
import importlib.util
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import common, first_call, flops, precision, rates, seeds, subspace
from benchmarks import sharpness as bench
from gengap import data, models, objective, train


@pytest.fixture
def small_f1(monkeypatch):
    """F1 with one layer of eight, since the real one takes seconds to compile."""
    monkeypatch.setattr(models, "f1", partial(models.dense, widths=(8,)))


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """What `first_call` works on, in a store with its minima."""
    path = tmp_path_factory.mktemp("minima") / "problem.npz"
    first_call._prepare(path, (8,), 40, path.parent)
    return path


def test_calls_are_timed_in_turn_and_the_first_round_apart():
    order = []
    found = common.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert all(one["least"] <= one["median"] <= one["most"] for one in found.values())


@pytest.mark.filterwarnings("ignore:.*does not resolve")
def test_rates_are_operations_over_seconds(small_f1, tmp_path, capsys):
    toy = {"train_size": 20, "batch_size": 8, "chunk": 8, "dim": 2, "side": 64, "rounds": 1}
    found = rates.main("f1", **toy, out=tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(capsys.readouterr().out) == found
    one = flops.count("f1")
    assert found["epoch"]["TFLOP"] == pytest.approx(24 * one.gradient / 1e12)  # the last batch filled up
    most = 12 * (20 * one.gradient + 4 * 2 * one.parameters) / 1e12
    assert most / 6 <= found["draw"]["TFLOP"] <= most
    for name in ("product", "epoch", "draw"):
        row = found[name]
        assert row["TFLOP/s"] == pytest.approx(row["TFLOP"] / row["seconds"]["median"])


def test_seeds_gives_a_ratio_for_each_batch_size(small_f1, capsys):
    ratios = seeds.main(train_size=64, batch_sizes=(16, 32), seeds=2, rounds=1)
    assert list(ratios) == [16, 32] and all(ratio > 0 for ratio in ratios.values())
    assert capsys.readouterr().out.count("vmap / one by one") == 2


def test_precisions_are_held_against_float64(problem, small_f1, tmp_path, monkeypatch):
    digits = data.head(data.load("digits"), 40)
    monkeypatch.setattr(data, "load", lambda *_: digits)
    monkeypatch.setattr(precision, "PRECISIONS", ("float32", "bfloat16"))
    monkeypatch.setattr(train, "fit", None)  # the minimum is in the store
    rows = precision.main(dim=3, store=problem.parent, out=tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["rows"] == rows
    assert [(row["space"], row["precision"]) for row in rows] == [
        (space, name) for space in ("full", "random") for name in ("float32", "bfloat16")
    ]
    assert all(abs(row["error of the arithmetic"]) < 1e-3 for row in rows)
    for space in ("full", "random"):  # a CPU computes all of them as float32
        assert len({row["value"] for row in rows if row["space"] == space}) == 1
    assert not jax.config.jax_enable_x64


def test_bench_measures_every_method_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "EPSILONS", (1e-3,))
    toy = {"width": 16, "images": 40, "ascents": 1, "starts": 1, "budgets": (1, 6)}
    out = tmp_path / "bench"
    bench.main(out, ("without batch norm",), draws=1, **toy)
    first = json.loads((out / "anytime.json").read_text())
    assert len(first) == 1 + 2 * 2
    for name, cell in first.items():
        if name != "machine":
            assert set(cell) == {"best known", *bench.METHODS}
            shares = np.array([cell[method] for method in bench.METHODS]) / cell["best known"]
            assert np.all(shares <= 1) and np.all(shares >= 0) and np.all(np.isfinite(shares))
    assert "value over the best known, random subspaces, 2 cells" in capsys.readouterr().out
    assert "</svg>" in (out / "anytime.svg").read_text()
    bench.main(out, ("without batch norm",), draws=2, **toy)
    second = json.loads((out / "anytime.json").read_text())
    assert second.items() > first.items() and len(second) == 1 + 2 * 3


def test_the_cost_of_a_subspace_is_timed(capsys):
    found = subspace.main(parameters=100, dim=2, rounds=1)
    assert set(found["seconds"]) == {"draw", "A y", "A^T g", "A^+ x", "jax.random.normal"}
    assert min(found["bytes"].values()) >= found["bytes of A"]
    assert found["bytes of A"] == 2 * 4 * 4 and json.loads(capsys.readouterr().out) == found


def test_a_process_tells_what_its_first_sharpness_took(problem, capsys):
    spent = first_call._process("gradient", problem, {})
    assert 0 < spent["imports"] < spent["to the value"]
    first_call.gengap(str(problem))
    found = json.loads(capsys.readouterr().out)
    assert found["value"] > 0 and found["second call"] > 0


def test_other_maximisers_find_the_corner_of_a_linear_function():
    g, r = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.5, 1.0, 2.0])
    look = jax.jit(jax.value_and_grad(lambda y: 4 + g @ y))
    for maximise in (bench.apgd, bench.sign_ascent):
        assert maximise(look, r, look(jnp.zeros(3)), 10) == pytest.approx(4 + 3.5)


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
def test_a_process_of_pytorch_has_the_same_loss(problem, capsys):
    first_call.gengap(str(problem))
    first_call.pytorch(str(problem))
    ours, theirs = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert theirs["value"] > 0


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is no dependency")
def test_pytorch_is_timed_beside_jax(tmp_path):
    from benchmarks import pytorch

    toy = {"train_size": 32, "batch_size": 16, "chunk": 16, "seeds": (1, 2), "dim": 2, "draws": 1, "rounds": 1}
    found = pytorch.main(**toy, out=tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == found
    for name in ("an epoch, 1 seeds", "an epoch, 2 seeds", "sharpness"):
        assert found[name]["JAX / PyTorch"] > 0
    assert found["sharpness"]["mean value"]["SciPy over PyTorch"] >= 0
