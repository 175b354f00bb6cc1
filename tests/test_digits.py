"""The tables' experiment at toy size: what a row holds, what its settings mean and which are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cifar, digits, mnist
from experiments.lib import settings
from gengap import comparison, data, minima, models, objective, records, sharpness

X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
DATA = data.from_arrays(X, np.arange(24) % 3, X + 0.5, np.arange(24) % 3, name="toy")
SMALL = digits.Config(
    settings.Training("toy", num_seeds=2, small_batch=4, large_batch=0.5, epochs=2, patience=0),
    comparison.Metric(dim=3, num_draws=2, max_evaluations=3, num_directions=1),
)
EPSILONS = "1e-3", "5e-4"


def init(key, x):
    a, b = jax.random.split(key)
    return {"w": jax.random.normal(a, (x.shape[1], 4)), "v": jax.random.normal(b, (4, 3))}


def apply(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


TINY = models.Model(init, apply, name="tiny")


@pytest.fixture(autouse=True, scope="module")
def toy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "_loaded", lambda *args: DATA)
        patch.setitem(settings.NETWORKS, "F1", lambda num_classes: TINY)
        yield


def with_training(**changes):
    return SMALL._replace(training=SMALL.training._replace(**changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return digits.run(SMALL, tmp_path_factory.mktemp("done") / "digits" / "default")


def row_of(run, side, seed):
    return next(row for row in run.rows if (row["side"], row["seed"]) == (side, seed))


def test_there_is_a_row_for_each_seed_and_side(done):
    places = [("F1", side, seed) for seed in (0, 1) for side in ("SB", "LB")]
    assert [(row["network"], row["side"], row["seed"]) for row in done.rows] == places
    for row in done.rows:
        assert row["dataset"] == "toy" and row["epochs"] == 2 and row["diverged_at"] is None
        assert (row["batch_size"], row["steps"]) == ((4, 12) if row["side"] == "SB" else (12, 4))
        assert {name: len(values) for name, values in row["history"].items()} == {
            f"{split}_{what}": 2 for split in ("train", "test") for what in ("loss", "accuracy")
        }
        assert row["ascent_version"] >= 5 and row["distance"] > 0 and row["origin"]["seconds"] >= 0
        for epsilon in EPSILONS:
            draws = row[f"sharpness_random_{epsilon}_draws"]
            assert row[f"sharpness_full_{epsilon}"] > 0 and len(draws) == 2
            assert row[f"sharpness_random_{epsilon}"] == pytest.approx(np.mean(draws))
            assert row[f"sharpness_random_{epsilon}_sem"] == pytest.approx(abs(draws[0] - draws[1]) / 2)
            assert row[f"sharpness_full_{epsilon}_evaluations"] == 3
            assert row[f"sharpness_random_{epsilon}_evaluations"] == 6


def test_a_row_is_what_the_saved_minimum_gives(done):
    row = row_of(done, "LB", 1)
    (file,) = done.store.glob("tiny-toy-B12-seed1-*")
    params = minima.load(file, like=minima.starting_point(TINY, DATA, jax.random.key(0))).params
    for split, x, y in (("train", DATA.x_train, DATA.y_train), ("test", DATA.x_test, DATA.y_test)):
        logits = apply(params, x)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()
        assert row[f"{split}_loss"] == pytest.approx(float(loss), rel=1e-5)
        assert row[f"{split}_accuracy"] == pytest.approx(float((logits.argmax(1) == y).mean()))
    f, key = objective.over_dataset(apply, DATA.x_train, DATA.y_train), jax.random.key(0)
    key = jax.random.fold_in(jax.random.fold_in(key, 2**31), 1)
    full = sharpness.full_space(f, params, key, epsilon=(1e-3, 5e-4), max_evaluations=3)
    assert [row[f"sharpness_full_{epsilon}"] for epsilon in EPSILONS] == pytest.approx(full.value.tolist())
    assert row["history"]["test_loss"][-1] == pytest.approx(row["test_loss"], rel=1e-5)


def bare(rows):
    return [{name: row[name] for name in row if name not in ("origin", "seconds")} for row in rows]


def test_more_seeds_take_the_minima_of_fewer(done, monkeypatch):
    trained, fit = [], minima.train.fit
    monkeypatch.setattr(minima.train, "fit", lambda *args, **rest: trained.append(1) or fit(*args, **rest))
    three = digits.run(with_training(num_seeds=3), done.path.parent / "three")
    assert len(trained) == 2 and bare(three.rows[:4]) == bare(done.rows)


def trained_distances(**changes):
    """How far SB and LB of seed 0 end from their start, without a look at their sharpness."""
    training = settings.resolved(with_training(**changes).training)
    recipes = [settings.recipe(training, settings.batch_size(training, side)) for side in ("SB", "LB")]
    return [minima.find(TINY, DATA, settings.training_key(training), recipe).distance for recipe in recipes]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"optimizer": "sgd"},
        {"optimizer": "adagrad"},
        {"learning_rate": 0.1},
        {"weight_decay": 0.1},
        {"scaling": "sqrt"},
    ],
    ids=str,
)
def test_the_flags_of_training_reach_it(done, change):
    small, large = trained_distances(**change)
    assert large != row_of(done, "LB", 0)["distance"]
    assert (small != row_of(done, "SB", 0)["distance"]) == (change != {"scaling": "sqrt"})


def test_the_learning_rate_is_scaled_with_the_batch():
    training = settings.resolved(SMALL.training._replace(scaling="linear", learning_rate=0.01))
    recipes = [settings.recipe(training, settings.batch_size(training, side)) for side in ("SB", "LB")]
    assert [recipe.optimizer.name for recipe in recipes] == ["adam(0.01)", "adam(0.03)"]  # 4 and 12 examples


def test_a_minimum_whose_loss_is_not_finite_has_no_sharpness():
    lost = jax.tree.map(lambda a: a * jnp.nan, minima.starting_point(TINY, DATA, jax.random.key(0)))
    problem = settings.problem(SMALL.training)
    row = comparison.measure(problem.loss, lost, jax.random.key(0), SMALL.metric, train=problem.train)
    assert np.isnan(row["train_loss"]) and not [name for name in row if name.startswith("sharpness")]


def test_a_lower_bound_is_no_sharpness():
    def loss(params):
        return jnp.where(params["a"].sum() > 1.5, jnp.inf, (params["a"] ** 2).sum())

    metric = comparison.Metric(epsilons=(1.0, 0.1), num_draws=0, max_evaluations=6)
    with pytest.warns(RuntimeWarning, match="not finite"):
        row = comparison.measure(loss, {"a": jnp.ones(1)}, jax.random.key(0), metric)
    assert np.isnan(row["sharpness_full_1e+0"]) and row["sharpness_full_1e-1"] == pytest.approx(22.0, rel=1e-5)


def test_only_the_first_training_examples_are_used():
    ds = settings.dataset(SMALL.training._replace(train_size=13))
    assert ds.x_train.shape == (13, 5) and ds.x_test.shape == (24, 5)


IMPOSSIBLE = [
    {"num_seeds": 0}, {"num_seeds": -1}, {"epochs": 0}, {"patience": -1}, {"small_batch": 0}, {"small_batch": 25},
    {"small_batch": 12}, {"large_batch": 0}, {"large_batch": 25}, {"epsilons": ()}, {"epsilons": (0.0,)},
    {"epsilons": (1e-3, -1.0)}, {"epsilons": (1e-3, 1e-3)}, {"dim": 0}, {"dim": 33}, {"num_draws": -1},
    {"max_evaluations": 0}, {"chunk": 0}, {"clip": 2.0}, {"clip": -1.0}, {"tolerance": float("nan")},
    {"target": float("nan")}, {"train_size": 25}, {"train_size": 0}, {"learning_rate": -1.0},
    {"weight_decay": float("inf")}, {"num_directions": -1},
]  # fmt: skip


@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_impossible_settings_are_refused_before_training(monkeypatch, tmp_path, change):
    monkeypatch.setattr(minima.train, "fit", lambda *args, **rest: pytest.fail("training began"))
    of_metric = change.keys() & SMALL.metric._asdict().keys()
    config = SMALL._replace(metric=SMALL.metric._replace(**change)) if of_metric else with_training(**change)
    with pytest.raises(ValueError, match=next(iter(change))) as caught:
        digits.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_time_is_that_of_a_gradient_of_a_few_examples(monkeypatch):
    seen = []
    x = np.zeros((2000, 5), np.float32)
    ds = data.from_arrays(x, np.arange(2000) % 3, x, np.arange(2000) % 3, name="large")
    model = TINY._replace(apply=lambda params, x: seen.append(len(x)) or apply(params, x))
    monkeypatch.setattr(settings, "_loaded", lambda *args: ds)
    monkeypatch.setitem(settings.NETWORKS, "F1", lambda num_classes: model)
    monkeypatch.setattr(settings, "monotonic", iter([0.0, 1.0]).__next__)
    seconds = settings.seconds(SMALL.training, gradients=100, epochs=50)
    assert seconds == 4 * (100 + 1.5 * 50) and set(seen) == {500}  # 4 s for each gradient


@pytest.mark.parametrize(
    ("dataset", "network", "names"),
    [
        ("cifar10", None, ("C1", "C2")),
        ("cifar100", None, ("C3", "C4")),
        ("mnist", None, ("F1",)),
        ("cifar100", "c4", ("C4",)),
    ],
)
def test_a_data_set_has_the_networks_that_the_paper_has_for_it(dataset, network, names):
    training = settings.Training(dataset, network, num_seeds=1)
    assert settings.networks(training) == names
    cells = settings.cells_of(training)
    assert [(cell["network"], cell["side"]) for cell in cells] == [(n, s) for n in names for s in ("SB", "LB")]


def test_the_precision_that_was_asked_for_holds_while_sharpness_is_measured(monkeypatch):
    seen = []

    def watched(*args, **rest):
        seen.append(jax.config.jax_default_matmul_precision)
        raise KeyboardInterrupt

    monkeypatch.setattr(sharpness, "full_space", watched)
    metric = comparison.Metric(precision="bfloat16")
    with pytest.raises(KeyboardInterrupt):
        comparison.measure(lambda p: jnp.sum(p["a"] ** 2), {"a": jnp.ones(2)}, jax.random.key(0), metric)
    assert seen == ["bfloat16"]


@pytest.mark.parametrize(("size", "batch"), [(24, 1), (1437, 32), (2000, 44), (60_000, 256)])
def test_the_small_batch_fits_a_small_training_set(monkeypatch, size, batch):
    x = np.zeros((size, 1), np.float32)
    ds = data.from_arrays(x, np.arange(size) % 3, x, np.arange(size) % 3, name="any")
    monkeypatch.setattr(settings, "_loaded", lambda *args: ds)
    assert settings.resolved(settings.Training("any")).small_batch == batch


def test_a_small_batch_above_the_large_one_names_one_that_fits():
    with pytest.raises(ValueError, match=r"small_batch is 12 examples and large_batch 12.*such as 3"):
        settings.resolved(SMALL.training._replace(small_batch=12))


@pytest.mark.parametrize(("experiment", "dataset"), [(digits, "digits"), (mnist, "mnist"), (cifar, "cifar10")])
def test_the_defaults_are_those_of_the_paper(experiment, dataset):
    config = records.settings_of(experiment.CONFIG)
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
    for name, classes in (("C1", 10), ("C2", 10), ("C3", 100), ("C4", 100)):
        assert shapes(settings.NETWORKS[name], classes) == (2, classes)
