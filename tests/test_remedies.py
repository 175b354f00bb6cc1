"""The remedies at toy size, what is said of known numbers, and F2 on made features of TIMIT's shape."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import remedies, timit
from gengap import data, methods, minima, models, paper, report
from tests import toy


@pytest.fixture
def small(monkeypatch):
    toy.use(monkeypatch)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        toy.use(patch)
        path = tmp_path_factory.mktemp("remedies")
        return path, remedies.run(remedies.SMOKE, path)


def test_there_is_a_row_for_each_remedy_and_side(done):
    _, run = done
    found = {(row["remedy"], row["side"]): row for row in run.rows}
    both = ("plain", "augmentation", "conservative", "SAM", "LAMB")
    expected = {(name, side) for name in both for side in remedies.SIDES}
    expected |= {("matched noise", side) for side in remedies.SIDES[1:]} | {("doubling", "SB")}
    assert set(found) == expected
    steps = [found["plain", side]["steps"] for side in remedies.SIDES]
    assert steps == [20, 6, 21]  # 2 epochs of 10, of 3, and 7 of 3
    assert found["SAM", "LB"]["gradients"] == 2 * 6 and found["conservative", "SB"]["gradients"] == 3 * 20
    assert found["doubling", "SB"]["steps"] == 10 + 5
    plain = found["plain", "LB"]
    for name in (*both[1:], "matched noise"):
        assert found[name, "LB"]["train_loss"] != plain["train_loss"]


def test_nothing_is_done_twice(done, monkeypatch, small):
    path, run = done
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    again = remedies.run(remedies.SMOKE, path)
    assert again.rows == run.rows and again.added == 0


def test_every_remedy_has_a_name_and_is_another_one():
    known = remedies.remedies("cifar10", 32, 400, 4000, 25)
    names = [one.name for sides in known.values() for side, one in sides.items() if side == "LB"]
    assert len(set(names)) == len(names) and len(known) <= 26
    assert known["augmentation"]["LB"].name == methods.augmentation().name
    mirrored = remedies.remedies("mnist", 32, 400, 4000, 25)["augmentation"]["LB"]
    assert mirrored.name == methods.augmentation(flip=0.0).name


def test_what_is_drawn_and_said(done):
    sections = remedies.figures(done[1].rows)
    text = report.terminal(sections, 1000)
    assert sections[0].name == "remedies" and "nan" not in text and "Without a remedy SB tests" in text


def made(accuracy, sharpness, network="C1"):
    rows = []
    for name in ("plain", "augmentation", "SAM"):
        for side in remedies.SIDES:
            row = {
                "network": network,
                "dataset": "cifar10",
                "method": f"{side}, {name}",
                "side": side,
                "remedy": name,
            }
            row |= {"steps": 5, "gradients": 5, "seconds": 1.0, "diverged_at": None, "epsilons": [1e-3]}
            for seed in range(2):
                full = {"value": [sharpness[name, side[:2]]], "finite": [True]}
                rows.append(row | {"seed": seed, "test_accuracy": accuracy[name, side[:2]], "full": full})
    return rows


def test_the_sentences_name_the_best_and_the_table_has_the_papers_rows():
    accuracy = {("plain", "SB"): 0.8, ("augmentation", "SB"): 0.83, ("SAM", "SB"): 0.81}
    accuracy |= {("plain", "LB"): 0.77, ("augmentation", "LB"): 0.79, ("SAM", "LB"): 0.82}
    sharpness = {key: 1000 * (1 - value) for key, value in accuracy.items()}
    scatter, table = remedies.figures(made(accuracy, sharpness))
    assert "SB tests 3.00 points above LB: SB higher than LB in 2 of 2 seeds" in scatter.findings[0]
    assert scatter.findings[1].startswith("LB: best of 3 is SAM with 82.00 ± 0.00 %")
    assert "5.00 ± 0.00 points above plain LB" in scatter.findings[1]
    assert "p =" not in scatter.findings[1] and "chosen on these seeds" in scatter.findings[1]
    assert "rank correlation of -1.00" in scatter.findings[1]
    rows = table.table.set_index(["remedy", "run"])
    mean, std = paper.TABLE_6["C1"]["LB"]["test"]
    assert rows.loc[("augmentation", "LB"), "paper"] == f"{mean:.2f} ± {std:.2f}"
    assert rows.loc[("augmentation", "LB"), "paper, sharpness"] == "231.77 ± 30.50"
    assert rows.loc[("SAM", "LB"), "paper"] == "-" == rows.loc[("augmentation", "SB"), "paper, sharpness"]
    assert rows.loc[("SAM", "LB"), "below plain SB, points"].startswith("-2.00")


def test_a_sharpness_of_0_is_in_the_table_and_not_on_the_logarithmic_axis():
    every = {(name, side): 0.5 for name in ("plain", "augmentation", "SAM") for side in ("SB", "LB")}
    scatter, table = remedies.figures(made(every, every | {("SAM", "LB"): 0.0}))
    assert table.table.set_index(["remedy", "run"]).loc[("SAM", "LB"), "sharpness"] == "0.00 ± 0.00"
    assert "t" not in [
        text.get_text() for ax in scatter.figure.axes for text in ax.texts if text.get_text() == "t"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("sam",)}, "methods has sam; there are: plain, augmentation"),
        ({"max_evaluations": 0}, "max_evaluations is 0"),
        ({"epsilon": -1.0}, "epsilon is -1.0"),
    ],
)
def test_a_setting_out_of_its_range_is_named(tmp_path, small, changes, message):
    with pytest.raises(ValueError, match=message):
        remedies.run(remedies.SMOKE._replace(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def features(path, **more):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(88, 360)).astype(np.float32)
    np.savez(path, x_train=x[:80], y_train=24 * np.arange(80), x_test=x[80:], y_test=np.arange(8), **more)
    return str(path)


def test_f2_on_made_features_of_timits_shape(tmp_path):
    file = features(tmp_path / "timit.npz", num_classes=1973)
    run = timit.run(timit.SMOKE._replace(training=timit.SMOKE.training._replace(dataset=file)), tmp_path / "run")
    assert [(row["network"], row["dataset"], row["method"]) for row in run.rows] == [
        ("F2", "timit", "SB"),
        ("F2", "timit", "LB"),
    ]
    (table,) = [one for one in timit.figures(run.rows) if one.title.startswith("Table 2")]
    assert table.table["SB, paper"].tolist() == ["99.99 ± 0.03", "64.02 ± 0.20"]
    (path,) = run.store.glob("f2-num-classes-1973-timit-B8-*.npz")
    params = minima.load(path).params
    assert sum(leaf.size for leaf in params.values() for leaf in leaf.values()) == 2_780_085
    assert models.f2().name.endswith("1973)")


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
