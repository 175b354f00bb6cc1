"""The benchmarks at a size that ends in seconds: that they run, and that what they count is what they say."""

import contextlib
import importlib.util
import json
import time
from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import accelerator, common, first_call, flops, precision, subspace
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


def test_a_share_is_operations_over_seconds_beside_those_of_a_product(small_f1, monkeypatch):
    """With an epoch of 4 s and a product of 2 s."""
    monkeypatch.setattr(models, "c1", models.f1)
    medians = {"product": {"median": 2.0}, "own": {"median": 4.0}}
    monkeypatch.setattr(common, "in_turn", lambda calls, rounds: {name: medians[name] for name in calls})
    size = accelerator.TOY._replace(side=10, train_size=20, batch_size=8)
    one = flops.count("c1")
    assert accelerator.product(size, "float32")["value"] == pytest.approx(2000 / 2 / 1e12)
    epoch = accelerator.training(size, "c1", "float32")
    assert epoch["value"] == pytest.approx(24 * one.gradient / 4 / (2000 / 2))  # the last batch filled up
    look = accelerator.gradient(size, "c1", "float32")
    assert look["value"] == pytest.approx((20 * one.gradient + 4 * 2 * one.parameters) / 4 / (2000 / 2))


@pytest.mark.filterwarnings("ignore")
def test_every_line_of_the_accelerator_is_measured_once(tmp_path, monkeypatch):
    """One precision, one size of the tables; as all networks are one in small, each kind is computed for some."""

    def of_some(kind, networks):
        @wraps(line := getattr(accelerator, kind))
        def measured(size, network, *rest):
            known = {"value": 2, "unit": "given", "network": network.upper()}
            return line(size, network, *rest) if network in networks else known

        monkeypatch.setattr(accelerator, kind, measured)

    def measure():
        accelerator.measure(list(groups), tmp_path, toy=True, retry=False, data_dir=None)
        return accelerator._rows(tmp_path, True)

    monkeypatch.setattr(precision, "PRECISIONS", ("float32",))
    errors = [{"space": s, "precision": "float32", "error of the arithmetic": 1e-6} for s in ("full", "random")]
    monkeypatch.setattr(precision, "main", lambda *_, **how: errors)
    computed = {"training": ["c1"], "gradient": ["c2"], "subspaces": ["f1"], "paper_tables": ["f1", "c1"]}
    for kind, networks in computed.items():
        of_some(kind, networks)
    groups, c1 = accelerator.lines(tmp_path, True, None), models.c1
    groups = {name: own for name, own in groups.items() if "5 seeds" not in name}
    rows = measure()
    assert [row["name"] for row in rows] == [name for own in groups.values() for name in own]
    for row in rows:
        assert row["peak_bytes"] > 0 and {"commit", "device", "jax", "seconds"} <= row["origin"].keys()
        assert row.get("network", "") in row["name"]
        if row["unit"] == "PyTorch is not installed":
            assert row["value"] is None and importlib.util.find_spec("torch") is None
        else:
            assert row["value"] == 1e-6 if row["unit"] == "relative error" else row["value"] > 0
    assert measure() == rows and models.c1 is c1
    table = accelerator.table(groups, rows).splitlines()
    assert len(table) == 2 + len(rows) and "C2 gradient, float32" in "".join(table)


def test_the_accelerator_goes_on_and_says_what_could_not_be_measured(tmp_path, capsys, monkeypatch):
    """Two lines of two groups, of which one fails; the call is interrupted between the groups."""
    calls = []

    def line(name, value):
        calls.append(name)
        return {"value": 1 / value, "unit": "s"}

    def in_this_process(names, seconds, log, **how):
        if calls == ["a"]:
            raise KeyboardInterrupt
        accelerator.measure(names, **how)

    groups = {"A": {"a": partial(line, "a", 4)}, "B": {"b": partial(line, "b", 0), "c": partial(line, "c", 2)}}
    monkeypatch.setattr(accelerator, "lines", lambda *_: groups)
    monkeypatch.setattr(accelerator, "_in_a_process", in_this_process)
    with pytest.raises(KeyboardInterrupt):
        accelerator.main(tmp_path)
    assert "not measured yet" in capsys.readouterr().out and calls == ["a"]
    calls.append("the second call")
    accelerator.main(tmp_path)
    assert calls[2:] == ["b", "c"]
    accelerator.main(tmp_path)
    out = capsys.readouterr().out
    assert calls[2:] == ["b", "c"] and out.count("division by zero") == 2 and "not measured yet" not in out
    accelerator.main(tmp_path, retry=True)
    assert calls[2:] == ["b", "c", "b"]
    with pytest.raises(ValueError, match="--minutes is 0; it must be a finite number above 0"):
        accelerator.main(tmp_path, minutes=0)


def test_a_line_ends_after_its_seconds_and_a_process_with_its_time(tmp_path):
    assert accelerator._measured(partial(time.sleep, 30), 1)["unit"] == "took more than 1 s"
    begun = time.monotonic()
    assert accelerator._in_a_process(["Products"], 0.1, tmp_path / "log", out=tmp_path, toy=True) == 0
    assert time.monotonic() - begun < 25
    assert accelerator._in_a_process(["Products"], 60, tmp_path / "log", out=tmp_path, wrong=True) == 1
    assert "wrong" in (tmp_path / "log").read_text()


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
    monkeypatch.setattr(bench, "DIM", 3)
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

    toy = {"train_size": 32, "batch_size": 16, "chunk": 16, "dim": 2, "draws": 1, "rounds": 1}
    found = pytorch.main(**toy, out=tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == found
    for name in ("an epoch", "sharpness"):
        assert found[name]["JAX / PyTorch"] > 0
    assert found["sharpness"]["mean value"]["SciPy over PyTorch"] >= 0
