"""Tables 2, 3 and 4 at toy size: what a row holds, that nothing is done twice, and the report of it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cifar, command, digits, mnist, tables, training
from gengap import data, minima, models, objective, report, sharpness

X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
DATA = data.from_arrays(X, np.arange(24) % 3, X + 0.5, np.arange(24) % 3, name="toy")
SMALL = tables.Config(
    training.Training("toy", num_seeds=2, small_batch=4, large_batch=0.5, epochs=2, patience=0),
    dim=3,
    num_draws=2,
    max_evaluations=3,
    num_directions=1,
)
TRAINED = {"batch_size", "epochs", "steps", "diverged_at", "distance", "history"}
MEASURED = {"train_accuracy", "test_accuracy", "train_loss", "test_loss", "epsilons", "dim", "full", "random"}


def init(key, x):
    a, b = jax.random.split(key)
    return {"w": jax.random.normal(a, (x.shape[1], 4)), "v": jax.random.normal(b, (4, 3))}


def apply(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


TINY = models.Model(init, apply, name="tiny")


@pytest.fixture(autouse=True, scope="module")
def toy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name, data_dir=None: DATA)
        patch.setattr(models, "f1", lambda num_classes: TINY)
        yield


def with_training(**changes):
    return SMALL._replace(training=SMALL.training._replace(**changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("done") / "tables" / "default"
    return path, tables.run(SMALL, path)


def test_there_is_a_row_for_each_seed_and_method(done):
    _, run = done
    assert {(r["network"], r["method"], r["seed"]) for r in run.rows} == {
        ("F1", method, seed) for method in ("SB", "LB") for seed in (0, 1)
    }
    for row in run.rows:
        assert row.keys() >= TRAINED | MEASURED and row["origin"]["seconds"] >= 0
        assert row["dataset"] == "toy" and row["epochs"] == 2 and row["diverged_at"] is None
        assert (row["batch_size"], row["steps"]) == ((4, 12) if row["method"] == "SB" else (12, 4))
        assert {name: len(values) for name, values in row["history"].items()} == {
            f"{split}_{what}": 2 for split in ("train", "test") for what in ("loss", "accuracy")
        }
        assert row["epsilons"] == [1e-3, 5e-4] and row["dim"] == 3 and row["maximiser"] >= 2
        assert np.shape(row["full"]["value"]) == (2,) and np.shape(row["random"]["value"]) == (2, 2)
        assert min(row["full"]["value"]) > 0 and all(row["full"]["finite"])
        assert row["random"]["shared_evaluations"] == [[6, 6]] * 2 and row["random"]["evaluations"] == [[3, 3]] * 2


def test_a_row_is_what_the_saved_minimum_gives(done):
    _, run = done
    row = next(r for r in run.rows if (r["method"], r["seed"]) == ("LB", 1))
    (file,) = run.store.glob("tiny-toy-B12-seed1-*")
    params = minima.load(file).params
    for split, x, y in (("train", DATA.x_train, DATA.y_train), ("test", DATA.x_test, DATA.y_test)):
        logits = apply(params, x)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()
        assert row[f"{split}_loss"] == pytest.approx(float(loss), rel=1e-5)
        assert row[f"{split}_accuracy"] == pytest.approx(float((logits.argmax(1) == y).mean()))
    f, key = objective.over_dataset(apply, DATA.x_train, DATA.y_train), jax.random.key(0)
    key = jax.random.fold_in(jax.random.fold_in(key, 2**31), 1)
    full = sharpness.full_space(f, params, key, epsilon=(1e-3, 5e-4), max_evaluations=3)
    assert row["full"]["value"] == pytest.approx(full.value.tolist())
    assert row["history"]["test_loss"][-1] == pytest.approx(row["test_loss"], rel=1e-5)


def bare(rows):
    kept = [{name: value for name, value in row.items() if name not in ("origin", "seconds")} for row in rows]
    return sorted(kept, key=lambda row: (row["method"], row["seed"]))


def counted(monkeypatch):
    calls = []
    fit, measured = minima.train.fit, tables._measured
    monkeypatch.setattr(minima.train, "fit", lambda *a, **k: calls.append("fit") or fit(*a, **k))
    monkeypatch.setattr(tables, "_measured", lambda *a, **k: calls.append("measure") or measured(*a, **k))
    return calls


def test_a_second_call_does_nothing_again(done, monkeypatch):
    path, run = done
    calls = counted(monkeypatch)
    again = tables.run(SMALL, path)
    assert again.rows == run.rows and again.added == 0 and calls == []


def test_a_run_that_was_stopped_after_its_first_row_goes_on_with_the_next(done, monkeypatch, tmp_path):
    measured, finished = tables._measured, []

    def stopped(*args, **how):
        if finished:
            raise KeyboardInterrupt
        finished.append(1)
        return measured(*args, **how)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tables, "_measured", stopped)
        tables.run(SMALL, tmp_path / "tables" / "run")
    (line,) = (tmp_path / "tables" / "run" / "rows.jsonl").read_text().splitlines()
    calls = counted(monkeypatch)
    run = tables.run(SMALL, tmp_path / "tables" / "run")
    assert calls.count("measure") == 3 and run.rows[0] == json.loads(line)
    assert bare(run.rows) == bare(done[1].rows)


def test_more_seeds_take_the_minima_of_fewer(done, monkeypatch):
    path, run = done
    calls = counted(monkeypatch)
    three = tables.run(with_training(num_seeds=3), path.parent / "three")
    assert calls.count("fit") == 2 and calls.count("measure") == 6
    assert bare(row for row in three.rows if row["seed"] < 2) == bare(run.rows)


def test_another_seed_of_the_run_changes_every_number(done):
    other = tables.run(with_training(num_seeds=1, seed=1))
    for a, b in zip(bare(other.rows), bare(done[1].rows)[::2], strict=True):
        assert a["train_loss"] != b["train_loss"] and a["distance"] != b["distance"]


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd"},
        {"optimizer": "adagrad"},
        {"learning_rate": 0.1},
        {"weight_decay": 0.1},
        {"scaling": "sqrt"},
    ],
    ids=str,
)
def test_the_flags_of_the_optimiser_reach_the_training(done, change):
    small, large = tables.run(with_training(num_seeds=1, **change)).rows
    plain = {row["method"]: row for row in done[1].rows if row["seed"] == 0}
    assert large["distance"] != plain["LB"]["distance"]
    assert (small["distance"] != plain["SB"]["distance"]) == (change != {"scaling": "sqrt"})


def test_the_learning_rate_is_scaled_with_the_batch():
    setting, ds = training.begin(SMALL.training._replace(scaling="linear", learning_rate=0.01))
    names = [training.optimizer(setting, ds, size).name for size in training.sizes(setting).values()]
    assert names == ["adam(0.01)", "adam(0.03)"]  # 4 and 12 examples


def test_a_diverged_minimum_has_no_sharpness(monkeypatch, tmp_path):
    find = minima.find

    def diverged(*args, **how):
        found = find(*args, **how)
        if found.batch_size == 4:
            return found
        lost = jax.tree.map(lambda a: a * jnp.nan, found.params)
        history = {name: np.where(np.arange(2), np.nan, rows) for name, rows in found.history.items()}
        return found._replace(params=lost, history=history, diverged_at=3)

    monkeypatch.setattr(minima, "find", diverged)
    run = tables.run(with_training(num_seeds=1), tmp_path / "tables" / "run")
    small, large = run.rows
    assert small["diverged_at"] is None and "full" in small
    assert large["diverged_at"] == 3 and "full" not in large
    assert large["train_loss"] is None and large["history"]["train_loss"][1] is None
    sections = tables.figures(run.rows)
    assert "Diverged, in no comparison: F1 on toy, LB, seed 0, at step 3." in sections[0].findings


def test_only_the_first_training_examples_are_used(monkeypatch):
    seen = []

    def find(model, ds, *args, **how):
        seen.append(ds)
        raise KeyboardInterrupt

    monkeypatch.setattr(minima, "find", find)
    with pytest.raises(KeyboardInterrupt):
        tables.run(with_training(train_size=13))
    assert seen[0].x_train.shape == (13, 5) and seen[0].x_test.shape == (24, 5)


IMPOSSIBLE = [
    {"num_seeds": 0}, {"num_seeds": -1}, {"epochs": 0}, {"patience": -1}, {"small_batch": 0}, {"small_batch": 25},
    {"small_batch": 12}, {"large_batch": 0}, {"large_batch": 25}, {"epsilons": ()}, {"epsilons": (0.0,)},
    {"epsilons": (1e-3, -1.0)}, {"dim": 0}, {"dim": 33}, {"num_draws": 0}, {"max_evaluations": 0}, {"chunk": 0},
    {"clip": 2.0}, {"clip": -1.0}, {"tolerance": float("nan")}, {"target": float("nan")}, {"train_size": 25},
    {"train_size": 0}, {"learning_rate": -1.0}, {"weight_decay": float("inf")}, {"num_directions": -1},
]  # fmt: skip


@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_impossible_settings_are_refused_before_training(monkeypatch, tmp_path, change):
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("training began"))
    own = {name: value for name, value in change.items() if name in SMALL._fields}
    config = SMALL._replace(
        training=SMALL.training._replace(**{n: v for n, v in change.items() if n not in own}), **own
    )
    with pytest.raises(ValueError, match=next(iter(change))) as caught:
        tables.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_long_run_says_how_long_and_which_flags_make_it_small(capsys, monkeypatch):
    setting, ds = training.begin(SMALL.training)
    times = iter([0.0, 1.0, 0.0, 100.0, 0.0, 1e-3])
    monkeypatch.setattr(training, "monotonic", lambda: next(times))
    for _ in range(3):
        training.say_how_long(setting, TINY, ds, gradients=200, epochs=400)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "This takes up to 13 minutes here. Stopped, it goes on where it was."
    assert "22 hours" in second and "--train-size" in second


def test_a_large_training_set_is_timed_by_a_few_examples(capsys, monkeypatch):
    seen = []
    x = np.zeros((2000, 5), np.float32)
    ds = data.from_arrays(x, np.arange(2000) % 3, x, np.arange(2000) % 3, name="large")
    monkeypatch.setattr(training, "monotonic", iter([0.0, 1.0]).__next__)
    model = TINY._replace(apply=lambda params, x: seen.append(len(x)) or apply(params, x))
    training.say_how_long(SMALL.training, model, ds, gradients=100, epochs=0)
    assert set(seen) == {500} and "up to 7 minutes" in capsys.readouterr().err  # 4 s for each gradient


@pytest.mark.parametrize(
    ("dataset", "network", "names"),
    [
        ("cifar10", None, ("c1", "c2")),
        ("cifar100", None, ("c3", "c4")),
        ("mnist", None, ("f1",)),
        ("cifar100", "c4", ("c4",)),
    ],
)
def test_a_data_set_has_the_networks_that_the_paper_has_for_it(dataset, network, names):
    assert training.networks(training.Training(dataset, network)) == names


def test_several_networks_have_rows_each(monkeypatch):
    monkeypatch.setitem(training.NETWORKS, "toy", ("f1", "f2"))
    monkeypatch.setattr(models, "f2", lambda num_classes: TINY._replace(name="other"))
    run = tables.run(with_training(num_seeds=1))
    found = [(row["network"], row["method"]) for row in run.rows]
    assert found == [("F1", "SB"), ("F1", "LB"), ("F2", "SB"), ("F2", "LB")]


def test_the_precision_that_was_asked_for_holds_while_sharpness_is_measured(monkeypatch):
    seen, full_space = [], sharpness.full_space

    def watched(*args, **how):
        seen.append(jax.config.jax_default_matmul_precision)
        return full_space(*args, **how)

    monkeypatch.setattr(sharpness, "full_space", watched)
    tables.run(with_training(num_seeds=1)._replace(precision="bfloat16"))
    assert seen == ["bfloat16", "bfloat16"]


@pytest.mark.parametrize(("size", "batch"), [(24, 1), (1437, 32), (2000, 44), (60_000, 256)])
def test_the_small_batch_fits_a_small_training_set(monkeypatch, size, batch):
    x = np.zeros((size, 1), np.float32)
    ds = data.from_arrays(x, np.arange(size) % 3, x, np.arange(size) % 3, name="any")
    monkeypatch.setattr(data, "load", lambda name, data_dir=None: ds)
    setting, _ = training.begin(training.Training("any"))
    assert setting.small_batch == batch


def test_a_small_batch_above_the_large_one_names_one_that_fits():
    with pytest.raises(ValueError, match=r"small_batch is 12 examples and large_batch 12.*such as 3"):
        training.begin(SMALL.training._replace(small_batch=12))


def test_the_report_has_the_tables_and_the_figures(done):
    sections = tables.figures(done[1].rows)
    titles = [section.title for section in sections]
    for words in ("What came out", "Table 2", "Table 3", "Table 4", "Distance", "Sharpness of every", "Fig. 2"):
        assert any(words in title for title in titles), words
    assert "nan" not in report.terminal(sections)
    assert "LB sharper than SB in" in sections[0].findings[0]


@pytest.mark.parametrize(("experiment", "dataset"), [(digits, "digits"), (mnist, "mnist"), (cifar, "cifar10")])
def test_the_defaults_are_those_of_the_paper(experiment, dataset):
    config = command.flat(experiment.CONFIG)
    paper = {"num_seeds": 5, "large_batch": 0.1, "epochs": 100, "epsilons": (1e-3, 5e-4), "dim": 100, "seed": 0}
    assert paper.items() <= config.items()
    assert config["dataset"] == dataset and config["train_size"] is None
    if experiment is not digits:
        assert (config["num_draws"], config["max_evaluations"], config["num_directions"]) == (10, 24, 6)


@functools.cache
def shapes(make, classes):
    model, x = make(classes), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.eval_shape(model.apply, params, x).shape


def test_networks_have_the_classes_of_their_data_set():
    for name, classes in (("c1", 10), ("c2", 10), ("c3", 100), ("c4", 100)):
        assert shapes(getattr(models, name), classes) == (2, classes)
