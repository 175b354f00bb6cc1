"""The protocol on a tiny network: what a row holds, and that nothing is done twice."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gengap import data, minima, models, objective, protocol, sharpness

X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
DATA = data.from_arrays(X, np.arange(24) % 3, X + 0.5, np.arange(24) % 3, name="toy")
SMALL = protocol.Protocol(
    num_seeds=2, small_batch=4, large_batch=0.5, epochs=2, patience=None, dim=3, num_draws=2, max_evaluations=3
)
ROW = {
    *("network", "dataset", "method", "seed", "batch_size", "epochs", "steps", "diverged_at", "distance"),
    *("train_accuracy", "test_accuracy", "train_loss", "test_loss", "sharpness", "history"),
}


def init(key, x):
    a, b = jax.random.split(key)
    return {"w": jax.random.normal(a, (x.shape[1], 4)), "v": jax.random.normal(b, (4, 3))}


def apply(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


TINY = models.Model(init, apply, name="tiny")


def fill(directory, settings=SMALL):
    return protocol.tables("toy", {"tiny": TINY}, DATA, settings, directory)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("done") / "toy" / "default"
    return path, fill(path)


def test_there_is_a_row_for_each_seed_and_method(done):
    _, summary = done
    assert {(r["network"], r["method"], r["seed"]) for r in summary["rows"]} == {
        ("tiny", method, seed) for method in ("SB", "LB") for seed in (0, 1)
    }
    for row in summary["rows"]:
        assert row.keys() >= ROW
        assert row["dataset"] == "toy" and row["epochs"] == 2 and row["diverged_at"] is None
        assert (row["batch_size"], row["steps"]) == ((4, 12) if row["method"] == "SB" else (12, 4))
        assert {name: len(values) for name, values in row["history"].items()} == {
            f"{split}_{what}": 2 for split in ("train", "test") for what in ("loss", "accuracy")
        }
        spaces = [(entry["space"], entry["epsilon"]) for entry in row["sharpness"]]
        assert sorted(spaces) == [("full", 5e-4), ("full", 1e-3), ("random", 5e-4), ("random", 1e-3)]
        for entry in row["sharpness"]:
            assert entry["finite"] is True and entry["evaluations"] >= 2
            if entry["space"] == "random":
                assert entry["dim"] == 3 and len(entry["draws"]) == 2
                assert entry["mean"] == pytest.approx(np.mean(entry["draws"]))
            else:
                assert entry["value"] > 0


def test_a_row_is_what_the_saved_minimum_gives(done):
    path, summary = done
    row = next(r for r in summary["rows"] if (r["method"], r["seed"]) == ("LB", 1))
    (file,) = protocol.store(path, "toy").glob("tiny-toy-B12-seed1-*")
    params = minima.load(file).params
    for split, x, y in (("train", DATA.x_train, DATA.y_train), ("test", DATA.x_test, DATA.y_test)):
        logits = apply(params, x)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()
        assert row[f"{split}_loss"] == pytest.approx(float(loss), rel=1e-5)
        assert row[f"{split}_accuracy"] == pytest.approx(float((logits.argmax(1) == y).mean()))
    f, key = objective.over_dataset(apply, DATA.x_train, DATA.y_train), protocol._measure_key(jax.random.key(0), 1)
    full = sharpness.full_space(f, params, key, epsilon=(1e-3, 5e-4), max_evaluations=3)
    assert [e["value"] for e in row["sharpness"] if e["space"] == "full"] == pytest.approx(full.value.tolist())
    assert row["history"]["test_loss"][-1] == pytest.approx(row["test_loss"], rel=1e-5)


def test_the_summary_on_disk_has_the_schema(done):
    path, summary = done
    there = json.loads((path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert there == json.loads(json.dumps(summary))
    assert there["experiment"] == "toy" and there["complete"] is True and len(there["rows"]) == 4


def without_times(rows):
    plain = [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]
    return sorted(plain, key=lambda row: (row["method"], row["seed"]))


def counted(monkeypatch):
    calls = []
    fit, measure = minima.train.fit, protocol.measure
    monkeypatch.setattr(minima.train, "fit", lambda *a, **k: calls.append("fit") or fit(*a, **k))
    monkeypatch.setattr(protocol, "measure", lambda *a, **k: calls.append("measure") or measure(*a, **k))
    return calls


def test_a_second_call_does_nothing_again(done, monkeypatch):
    path, summary = done
    calls = counted(monkeypatch)
    assert fill(path)["rows"] == summary["rows"]
    assert calls == []


def test_a_run_that_was_stopped_after_its_first_row_goes_on_with_the_next(done, monkeypatch, tmp_path):
    measure, measured = protocol.measure, []

    def stopped(*args, **how):
        if measured:
            raise KeyboardInterrupt
        measured.append(1)
        return measure(*args, **how)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(protocol, "measure", stopped)
        fill(tmp_path / "toy" / "run")
    (line,) = (tmp_path / "toy" / "run" / "metrics.jsonl").read_text().splitlines()
    calls = counted(monkeypatch)
    summary = fill(tmp_path / "toy" / "run")
    assert calls.count("measure") == 3
    assert {"kind": "row", **summary["rows"][0]} == json.loads(line)
    assert without_times(summary["rows"]) == without_times(done[1]["rows"])


def test_a_seed_has_the_same_row_whichever_others_there_are(done):
    one = fill(None, SMALL._replace(num_seeds=1))["rows"]
    assert without_times(one) == [row for row in without_times(done[1]["rows"]) if row["seed"] == 0]


def test_more_seeds_take_the_minima_of_fewer(done, monkeypatch):
    path, summary = done
    calls = counted(monkeypatch)
    rows = fill(path.parent / "three", SMALL._replace(num_seeds=3))["rows"]
    assert calls.count("fit") == 2 and calls.count("measure") == 6
    assert without_times(rows[:4]) == without_times(summary["rows"])


def test_another_seed_of_the_run_changes_every_number(done):
    other = fill(None, SMALL._replace(num_seeds=1, seed=1))["rows"]
    for a, b in zip(without_times(other), without_times(done[1]["rows"])[::2], strict=True):
        assert a["train_loss"] != b["train_loss"] and a["distance"] != b["distance"]


def test_a_diverged_minimum_has_no_sharpness(monkeypatch, tmp_path):
    find_pair = minima.find_pair

    def diverged(*args, **how):
        small, large = find_pair(*args, **how)
        lost = jax.tree.map(lambda a: a * jnp.nan, large.params)
        history = {name: np.where(np.arange(2), np.nan, rows) for name, rows in large.history.items()}
        return small, large._replace(params=lost, history=history, diverged_at=3)

    monkeypatch.setattr(minima, "find_pair", diverged)
    small, large = fill(tmp_path / "toy" / "run", SMALL._replace(num_seeds=1))["rows"]
    assert small["diverged_at"] is None and len(small["sharpness"]) == 4
    assert large["diverged_at"] == 3 and large["sharpness"] == []
    assert large["train_loss"] is None and large["history"]["train_loss"][1] is None
    json.loads((tmp_path / "toy" / "run" / "summary.json").read_text(), parse_constant=pytest.fail)


def test_only_the_first_training_examples_are_used(monkeypatch):
    seen = []

    def find_pair(model, ds, *args, **how):
        seen.append(ds)
        raise KeyboardInterrupt

    monkeypatch.setattr(minima, "find_pair", find_pair)
    with pytest.raises(KeyboardInterrupt):
        fill(None, SMALL._replace(train_size=13))
    assert seen[0].x_train.shape == (13, 5) and seen[0].x_test.shape == (24, 5)


IMPOSSIBLE = [
    {"num_seeds": 0},
    {"num_seeds": -1},
    {"epochs": 0},
    {"patience": 0},
    {"small_batch": 0},
    {"small_batch": 25},
    {"small_batch": 12},
    {"large_batch": 0},
    {"large_batch": 25},
    {"epsilons": ()},
    {"epsilons": (0.0,)},
    {"epsilons": (1e-3, -1.0)},
    {"dim": 0},
    {"dim": 33},
    {"num_draws": 0},
    {"max_evaluations": 0},
    {"chunk": 0},
    {"clip": 2.0},
    {"clip": -1.0},
    {"tolerance": float("nan")},
    {"target": float("nan")},
    {"train_size": 25},
    {"train_size": 0},
]


@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_impossible_settings_are_refused_before_training(monkeypatch, tmp_path, change):
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("training began"))
    with pytest.raises(ValueError) as caught:
        fill(tmp_path / "run", SMALL._replace(**change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
