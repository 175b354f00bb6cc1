"""The remedies at toy size, what is said of known numbers, and F2 on made features of TIMIT's shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import remedies, timit
from experiments.lib import settings
from experiments.lib.settings import Training
from gengap import data, methods, minima, paper, report
from tests import tables_rows, toy

ALL_CELLS = remedies.cells
TRAINED = {"plain": ("SB", "LB", "LB, updates of SB"), "SAM": ("LB",), "doubling": ("SB",)}


def way(row):
    return remedies.RUNS[row["side"], row["budget"]]


def use(patch):
    """A part of the cells at toy size."""
    patch.setattr(settings, "_loaded", lambda name, *_: toy.load(name))
    patch.setitem(settings.NETWORKS, "F1", toy.linear)
    kept = [(remedy, name) for remedy, names in TRAINED.items() for name in names]
    part = lambda config: [cell for cell in ALL_CELLS(config) if (cell["remedy"], way(cell)) in kept]  # noqa: E731
    patch.setattr(remedies, "cells", part)


@pytest.fixture
def small(monkeypatch):
    use(monkeypatch)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        use(patch)
        path = tmp_path_factory.mktemp("remedies")
        return path, remedies.run(remedies.SMOKE, path)


def test_there_is_a_cell_for_each_remedy_and_side(small):
    training = settings.resolved(remedies.SMOKE.training, all_epochs=True)
    config = remedies.SMOKE._replace(training=training, methods=(*remedies.SMOKE.methods, "plain"))
    cells = ALL_CELLS(config)
    names = [(cell["remedy"], way(cell)) for cell in cells]
    both = ("plain", "augmentation", "conservative", "SAM", "LAMB")
    expected = {(name, run) for name in both for run in remedies.RUNS.values()}
    expected |= {("matched noise", "LB"), ("matched noise", "LB, updates of SB"), ("doubling", "SB")}
    assert set(names) == expected and len(names) == len(expected)
    recipes = {way(cell): remedies.recipe(config, cell) for cell in cells if cell["remedy"] == "matched noise"}
    assert [recipe.epochs for recipe in recipes.values()] == [2, 7]
    assert {(recipe.batch_size, recipe.method.name) for recipe in recipes.values()} == {(20, "matched_noise(6)")}


def test_a_row_says_what_training_took(done):
    rows = {(row["remedy"], way(row)): row for row in done[1].rows}
    steps = {name: row["steps"] for name, row in rows.items()}
    assert [steps["plain", run] for run in remedies.RUNS.values()] == [
        20,
        6,
        21,
    ]  # 2 epochs of 10, of 3, and 7 of 3
    assert steps["doubling", "SB"] == 10 + 5
    sam, plain = rows["SAM", "LB"], rows["plain", "LB"]
    assert (sam["changes"], sam["gradients"], plain["gradients"]) == ("sam(0.05)", 2 * 6, 6)
    assert sam["train_loss"] != plain["train_loss"] and sam["seconds"] > 0
    assert all(row["sharpness_full_1e-3"] > 0 for row in rows.values())


def test_nothing_is_done_twice(done, monkeypatch, small):
    path, run = done
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    again = remedies.run(remedies.SMOKE, path)
    assert again.rows == run.rows and again.added == 0


def test_every_remedy_has_a_name_and_is_another_one(small):
    known = remedies.remedies(Training("cifar10", "f1", small_batch=32))
    names = [method.name for sides in known.values() for side, method in sides.items() if side == "LB"]
    assert len(set(names)) == len(names) and len(known) <= 26
    assert (known["SAM"]["LB"].gradients, known["conservative"]["SB"].gradients) == (2, 3)
    assert known["augmentation"]["LB"].name == methods.augmentation().name
    plain = remedies.remedies(Training("mnist", "f1", small_batch=32))
    assert plain["augmentation"]["LB"].name == methods.augmentation(flip=0.0).name


def made(accuracy, sharpness, network="C1", seeds=2):
    """Rows whose accuracy and sharpness are those of (remedy, side)."""
    base = {"network": network, "dataset": "cifar10", "steps": 5, "gradients": 5, "seconds": 1.0}
    return [
        {**base, "remedy": name, "side": side, "budget": budget, "seed": seed, "diverged_at": None}
        | {"test_accuracy": accuracy[name, side], "sharpness_full_1e-3": sharpness[name, side]}
        for name in dict.fromkeys(name for name, _ in accuracy)
        for side, budget in remedies.RUNS
        for seed in range(seeds)
    ]


def test_the_sentences_name_the_best_and_the_table_has_the_papers_rows():
    accuracy = {("plain", "SB"): 0.8, ("augmentation", "SB"): 0.83, ("SAM", "SB"): 0.81}
    accuracy |= {("plain", "LB"): 0.77, ("augmentation", "LB"): 0.79, ("SAM", "LB"): 0.82}
    sharpness = {key: 1000 * (1 - value) for key, value in accuracy.items()}
    scatter, table = remedies.figures(made(accuracy, sharpness))
    gap, verdict, best, rank, *_, claim = scatter.findings
    assert gap == "Without a remedy, SB tests 3.00 points better than LB."
    assert verdict == "Without a remedy, SB tests better than LB: undecided (n = 2, 2 of 2)."
    assert best.startswith("Of 3 ways to train LB with as many epochs as SB, SAM tests best: 82.00 ± 0.00 %")
    assert "5.00 ± 0.00 points above plain LB" in best and "chosen on these seeds" in best and "p =" not in best
    assert rank.endswith("test accuracy and sharpness is -1.00.")
    assert claim == (
        "LB tests better with augmentation than without it (with | without): 79.00 | 77.00 %, undecided (n = 2, 2 "
        "of 2)."
    )
    rows = table.table.set_index(["remedy", "run"])
    mean, std = paper.TABLE_6["C1"]["LB"]["test"]
    assert rows.loc[("augmentation", "LB"), "paper (CIFAR-10)"] == f"{mean:.2f} ± {std:.2f}"
    assert rows.loc[("augmentation", "LB"), "sharpness, paper (CIFAR-10)"] == "231.77 ± 30.50"
    assert rows.loc[("SAM", "LB"), "paper (CIFAR-10)"] == "-"
    assert rows.loc[("SAM", "LB"), "below plain SB, points"].startswith("-2.00")
    assert "nan" not in report.terminal([scatter, table], 1000)


def test_a_sharpness_of_0_is_in_the_table_and_not_on_the_logarithmic_axis():
    every = {(name, side): 0.5 for name in ("plain", "augmentation", "SAM") for side in ("SB", "LB")}
    scatter, table = remedies.figures(made(every, every | {("SAM", "LB"): 0.0}))
    assert table.table.set_index(["remedy", "run"]).loc[("SAM", "LB"), "sharpness"] == "0.00 ± 0.00"
    accuracy, sharpness = scatter.figure.axes
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    (large,) = [line for line in sharpness.lines if line.get_label() == "LB"]
    assert sorted(names) == ["SAM", "augmentation", "plain"] and sharpness.get_xscale() == "log"
    assert [name for name, x in zip(names, large.get_xdata(), strict=True) if np.isnan(x)] == ["SAM"]


def test_the_claims():
    values = {("plain", "SB"): (0.9, 5.0), ("plain", "LB"): (0.8, 90.0), ("augmentation", "LB"): (0.85, 50.0)}
    values |= {("conservative", "LB"): (0.75, 40.0)}
    values |= {(name, "SB"): (0.1, 1.0) for name in ("augmentation", "conservative")}
    accuracy, sharpness = ({key: both[i] for key, both in values.items()} for i in (0, 1))
    rows = made(accuracy, sharpness, seeds=4)
    for row in rows:
        row["test_accuracy"] += 0.001 * row["seed"] * (row["remedy"] != "plain")
        row["sharpness_full_1e-3"] *= 1 + 0.1 * row["seed"] * (row["remedy"] != "plain")
        if row["budget"] == "updates":
            row |= {"test_accuracy": 0.0, "sharpness_full_1e-3": 0.0}  # are in no claim
    augmented, conservative, sharper = remedies.claims(rows)
    assert (augmented.here, augmented.verdict.word) == ("85.15 | 80.00 %", "holds")
    assert (conservative.here, conservative.verdict.word) == ("75.15 | 80.00 %", "does not hold")
    assert (sharper.here, sharper.verdict.word) == ("5.00 | 46.00", "holds")
    assert [(claim.here, claim.verdict.word) for claim in remedies.claims([])] == [("", "not tested")] * 3


def test_a_value_of_0_is_no_missing_value():
    key = ("plain", "LB"), ("conservative", "LB"), ("plain", "SB"), ("conservative", "SB")
    rows = made(dict.fromkeys(key, 0.5), dict.fromkeys(key, 9.0), seeds=4)
    for row in rows:
        if row["remedy"] == "plain":
            row["sharpness_full_1e-3"] = 0.0 if row["seed"] else 1.0
        if row["remedy"] == "plain" and row["side"] == "LB":
            row["test_accuracy"] = 0.0 if row["seed"] else 0.1
    _, conservative, sharper = remedies.claims(rows)
    assert conservative.verdict.tally == "n = 4, 4 of 4"
    assert str(sharper.verdict) == "undecided (n = 4, 4 of 4)"  # the logarithm of 0 has no interval


@pytest.mark.parametrize(
    ("changes", "metric", "message"),
    [
        ({"methods": ("sam",)}, {}, "methods has sam; there are: plain, augmentation"),
        ({}, {"max_evaluations": 0}, "max_evaluations is 0"),
        ({}, {"epsilons": (-1.0,)}, r"epsilons is \(-1\.0,\)"),
    ],
)
def test_a_setting_out_of_its_range_is_named(tmp_path, small, changes, metric, message):
    config = remedies.SMOKE._replace(metric=remedies.SMOKE.metric._replace(**metric), **changes)
    with pytest.raises(ValueError, match=message):
        remedies.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def features(path, **more):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(88, 360)).astype(np.float32)
    np.savez(path, x_train=x[:80], y_train=24 * np.arange(80), x_test=x[80:], y_test=np.arange(8), **more)
    return str(path)


def test_f2_is_made_for_features_of_timits_shape(tmp_path, monkeypatch):
    file = features(tmp_path / "timit.npz", num_classes=1973)
    monkeypatch.setattr(settings, "_loaded", lambda name, *_: data.load(name))
    training = settings.resolved(timit.SMOKE.training._replace(dataset=file))
    assert [(cell["network"], cell["dataset"], cell["side"]) for cell in settings.cells_of(training)] == [
        ("F2", "timit", "SB"),
        ("F2", "timit", "LB"),
    ]
    ds, model, loss, *_ = settings.problem(training, "F2")
    params = model.init(jax.random.key(0), ds.x_train[:2])
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_780_085 and model.name.endswith("1973)")
    assert 7 < loss(params) < 9  # ln 1973 = 7.59 for a guess
    rows = [tables_rows.row("F2", side, 0, 1.0, [1.0], dataset="timit") for side in ("SB", "LB")]
    (table,) = [section for section in timit.figures(rows) if section.title.startswith("Table 2")]
    assert table.table["SB, paper (TIMIT)"].tolist() == ["99.99 ± 0.03", "64.02 ± 0.20"]


def test_a_file_of_arrays_is_a_data_set(tmp_path):
    ds = data.load(features(tmp_path / "mine.npz"))
    assert (ds.name, ds.num_classes, ds.x_train.shape, ds.x_test.shape) == ("mine", 1897, (80, 360), (8, 360))
    assert ds.x_train.dtype == jnp.float32 and ds.y_train[2] == 48
    with pytest.raises(FileNotFoundError):
        data.load(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match=r"text\.npz is no \.npz file"):
        data.load(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "half.npz", x_train=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"half\.npz has no y_train, x_test, y_test"):
        data.load(str(tmp_path / "half.npz"))
    with pytest.raises(ValueError, match=r"few\.npz cannot be used: y_train must be labels below"):
        data.load(features(tmp_path / "few.npz", num_classes=3))
