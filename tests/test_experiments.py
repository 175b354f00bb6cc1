"""Each experiment at toy size, from its flags to its report."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    batch_size,
    cifar,
    correlation,
    digits,
    landscape,
    mnist,
    paper,
    reparametrise,
    trajectory,
    warm_start,
)
from gengap import cli, data, minima, models, records, report

EXPERIMENTS = {"cifar": cifar, "digits": digits, "mnist": mnist}
FIGURES = {
    "landscape": (landscape, ["fig3", "fig7", "connection", "planes", "neighbourhood"]),
    "trajectory": (trajectory, ["fig2", "fig6", "speedup"]),
    "batch_size": (batch_size, ["fig4"]),
    "warm_start": (warm_start, ["fig5"]),
}
SHAPES = {"cifar10": (32, 32, 3), "cifar100": (32, 32, 3), "mnist": (28, 28, 1), "digits": (8, 8, 1)}


def synthetic(name, data_dir=None):
    rng = np.random.default_rng(0)
    classes = 100 if name == "cifar100" else 10
    size = 200 if "cifar" in name else 3000
    images = rng.integers(0, 256, (2 * size, *SHAPES[name]), np.uint8)
    labels = np.arange(2 * size) % classes
    return data.from_arrays(
        images[:size], labels[:size], images[size:], labels[size:], num_classes=classes, name=name
    )


@functools.cache
def tiny(num_classes):
    def init(key, x):
        waves = jnp.cos(jnp.arange(float(x[0].size * num_classes)))
        return {"w": 0.01 * waves.reshape(-1, num_classes), "b": jnp.zeros(num_classes)}

    def apply(params, x):
        return x.reshape(len(x), -1) @ params["w"] + params["b"][None]

    return models.Model(init, apply, name="tiny")


@pytest.fixture
def small(monkeypatch):
    """Synthetic data of the right shapes, and one linear layer for every network."""
    monkeypatch.setattr(data, "load", synthetic)
    monkeypatch.setattr(models, "f1", tiny)
    for networks in cifar.NETWORKS.values():
        for name in networks:
            monkeypatch.setitem(networks, name, tiny)


def check(summary, experiment, networks, dataset, settings):
    assert summary["experiment"] == experiment and summary["complete"] is True
    assert [(r["network"], r["method"], r["seed"]) for r in summary["rows"]] == [
        (network, method, 0) for network in networks for method in ("SB", "LB")
    ]
    for row in summary["rows"]:
        assert row["dataset"] == dataset and row["epochs"] == settings.epochs
        assert isinstance(row["batch_size"], int)
        for name in ("train_accuracy", "test_accuracy"):
            assert 0 <= row[name] <= 1
        assert row["train_loss"] > 0 and row["test_loss"] > 0
        full = [entry for entry in row["sharpness"] if entry["space"] == "full"]
        random = [entry for entry in row["sharpness"] if entry["space"] == "random"]
        assert [entry["epsilon"] for entry in full] == [entry["epsilon"] for entry in random] == [1e-3, 5e-4]
        for entry in full:
            assert entry["value"] >= 0 and 2 <= entry["evaluations"] <= settings.max_evaluations
        for entry in random:
            assert entry["dim"] == settings.dim and len(entry["draws"]) == settings.num_draws
            assert all(value >= 0 for value in entry["draws"])


@pytest.mark.parametrize("name", ["cifar", "mnist"])
def test_smoke(small, tmp_path, monkeypatch, name):
    experiment = EXPERIMENTS[name]
    summary = experiment.run(experiment.SMOKE, tmp_path)
    dataset = experiment.SMOKE.dataset
    network = "C1" if name == "cifar" else "F1"
    check(summary, name, [network], dataset, experiment.SMOKE.protocol)
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert {"config.json", "metrics.jsonl"} <= {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    again = experiment.run(experiment.SMOKE, tmp_path)
    assert again["rows"] == summary["rows"]


def test_the_digits_with_the_network_of_the_paper():
    size = {"train_size": 360, "small_batch": 36, "large_batch": 72}  # 360 is the test set too
    protocol = digits.SMOKE.protocol._replace(epochs=1, num_draws=1, max_evaluations=2, **size)
    summary = digits.run(digits.SMOKE._replace(protocol=protocol))
    check(summary, "digits", ["F1"], "digits", protocol)
    assert [row["batch_size"] for row in summary["rows"]] == [36, 72]
    assert all(row["test_accuracy"] > 0.2 for row in summary["rows"])


def test_the_command_writes_the_report(small, tmp_path, capsys):
    flags = "--num-seeds 1 --epochs 2 --train-size 3000 --num-draws 2 --dim 5 --max-evaluations 3 --out"
    cli.main("mnist", mnist.run, mnist.CONFIG, "", [*flags.split(), str(tmp_path)])
    said = capsys.readouterr()
    assert "Table 4" in said.out and "F1 on mnist" in said.out
    assert "Table 4" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["config"]["dim"] == 5


@pytest.mark.parametrize(
    ("dataset", "network", "names"),
    [("cifar10", None, ["C1", "C2"]), ("cifar100", None, ["C3", "C4"]), ("cifar100", "c4", ["C4"])],
)
def test_cifar_has_the_networks_of_each_data_set(small, monkeypatch, dataset, network, names):
    given = []
    monkeypatch.setattr(cifar, "tables", lambda *args, **how: given.append(args) or {})
    cifar.run(cifar.SMOKE._replace(dataset=dataset, network=network))
    experiment, networks, ds, *_ = given[0]
    assert (experiment, list(networks), ds.name) == ("cifar", names, dataset)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_defaults_are_those_of_the_paper(name):
    config = cli.flat(EXPERIMENTS[name].CONFIG)
    paper = {"num_seeds": 5, "large_batch": 0.1, "epochs": 100, "epsilons": (1e-3, 5e-4), "dim": 100}
    assert paper.items() <= config.items()
    assert config["train_size"] is None
    if name != "digits":
        assert config["small_batch"] == 256


def test_networks_have_the_classes_of_their_data_set():
    for dataset, networks in cifar.NETWORKS.items():
        classes = int(dataset.removeprefix("cifar"))
        for make in networks.values():
            model, x = make(classes), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
            params = jax.eval_shape(model.init, jax.random.key(0), x)
            assert jax.eval_shape(model.apply, params, x).shape == (2, classes)


def timeless(rows):
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


@pytest.mark.parametrize("name", FIGURES)
def test_the_experiment_behind_a_figure_draws_it(small, tmp_path, monkeypatch, name):
    experiment, drawn = FIGURES[name]
    summary = experiment.run(experiment.SMOKE, tmp_path)
    assert summary["experiment"] == name and summary["complete"] is True
    made = report.sections(summary)
    assert set(drawn) <= {section.name for section in made}
    assert all(section.findings and "nan" not in " ".join(section.findings) for section in made)
    assert all(
        found in report.text(summary).replace("\n    ", " ") for section in made for found in section.findings
    )
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    assert experiment.run(experiment.SMOKE, tmp_path)["rows"] == summary["rows"]


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_that_was_killed_ends_as_it_would_have(small, tmp_path, monkeypatch, name):
    experiment, _ = FIGURES[name]
    whole = experiment.run(experiment.SMOKE, tmp_path / "whole")
    add, left = records.Run.add, 1

    def dies(run, row):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        add(run, row)

    monkeypatch.setattr(records.Run, "add", dies)
    for _ in range(len(whole["rows"])):
        left = 1
        try:
            experiment.run(experiment.SMOKE, tmp_path / "killed")
        except KeyboardInterrupt:
            continue
    monkeypatch.undo()
    monkeypatch.setattr(data, "load", synthetic)
    monkeypatch.setattr(models, "f1", tiny)
    again = experiment.run(experiment.SMOKE, tmp_path / "killed")
    assert timeless(again["rows"]) == timeless(whole["rows"])


def test_the_same_function_is_made_sharper_and_flatter(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "f1", lambda num_classes: models.dense(num_classes, widths=(16, 16)))
    summary = reparametrise.run(reparametrise.SMOKE, tmp_path)
    for row in summary["rows"][:2]:
        for one in row["maps"]:
            assert one["logits_change"] < 0.02
            assert one["loss"] == pytest.approx(row["maps"][1]["loss"], rel=0.1)
        full = {(one["map"], one["factor"]): one["full"] for one in row["maps"]}
        assert full["behind batch norm", 10.0] > 2 * full["behind batch norm", 1.0]
        assert full["before batch norm", 10.0] < 0.8 * full["before batch norm", 1.0]
    verdicts = {(one["measure"], one["symmetry"]): one["verdict"] for one in summary["rows"][-1]["audit"]}
    for measure in ("training loss", "worst case l2, adaptive (ASAM)", "worst case l-inf, adaptive"):
        assert verdicts[measure, "alpha-scale"] == "unchanged"
    assert verdicts["relative flatness, last layer", "alpha-scale"] == "unchanged"
    assert verdicts["sharpness, full space", "before batch norm"] == "changed"
    sections = report.sections(summary)
    assert [section.name for section in sections] == ["reparametrised", "audited"]
    assert "Dinh et al. could not show" in report.text(summary)
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    assert reparametrise.run(reparametrise.SMOKE, tmp_path)["rows"] == summary["rows"]


@pytest.mark.filterwarnings("ignore:the error does not rise")
def test_measures_are_ranked_over_a_grid(tmp_path):
    config = correlation.SMOKE._replace(widths=(4,), batch_sizes=(50, 100), num_seeds=2)
    summary = correlation.run(config, tmp_path)
    assert len(summary["rows"]) == 4
    assert all(len(row["measures"]) == 17 for row in summary["rows"])
    (section,) = report.sections(summary)
    assert "4 runs" in section.findings[0]
    with pytest.raises(ValueError, match="every axis"):
        correlation.run(config._replace(widths=()))


def test_the_ends_of_the_paths_are_the_minima(small):
    pair = landscape.run(landscape.SMOKE)["rows"][0]
    assert pair["alphas"][2:5:2] == [0, 1]
    for path in ("linear", "curvilinear"):
        for split in ("train", "test"):
            losses = pair[path][f"{split}_loss"]
            assert losses[2] == pytest.approx(pair["ends"]["SB"][split], rel=1e-5)
            assert losses[4] == pytest.approx(pair["ends"]["LB"][split], rel=1e-5)


def test_the_landscape_takes_the_minima_of_an_earlier_run(small, tmp_path, monkeypatch):
    tabled = digits.CONFIG._replace(protocol=digits.CONFIG.protocol._replace(num_seeds=1, train_size=400, dim=3))
    digits.run(tabled, tmp_path / "digits" / "default")
    monkeypatch.setattr(minima.train, "fit", lambda *args, **how: pytest.fail("trained again"))
    landscape.run(landscape.SMOKE, tmp_path / "landscape" / "default")
    other = landscape.SMOKE._replace(train_size=410)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        landscape.run(other, tmp_path / "landscape" / "other")


def test_one_report_has_every_figure_of_the_paper(small, tmp_path):
    with pytest.raises(ValueError, match="make paper DATASET=digits"):
        paper.run(paper.CONFIG, tmp_path / "paper" / "default")
    digits.run(digits.SMOKE, tmp_path / "digits" / "default")
    for name, (experiment, _) in FIGURES.items():
        experiment.run(experiment.SMOKE, tmp_path / name / "default")
    out = tmp_path / "paper" / "default"
    summary = paper.run(paper.CONFIG, out)
    page = report.write(summary, out).read_text()
    for figure in range(2, 8):
        assert f"(Fig. {figure})" in page
    for words in ("Table 2", "Table 3", "Table 4", "appendix C", "section 2", "Planes", "connected"):
        assert words in page
    assert records.read(out)["parts"].keys() == {"tables", *FIGURES}


@pytest.mark.parametrize(
    ("experiment", "wrong", "message"),
    [
        (landscape, {"points": 1}, "points is 1"),
        (landscape, {"num_seeds": 0}, "num_seeds is 0"),
        (trajectory, {"points": 1}, "points is 1"),
        (trajectory, {"epochs": -1}, "epochs is -1"),
        (batch_size, {"batch_sizes": (50, 0.25)}, "50 more than once"),
        (batch_size, {"batch_sizes": (1000,)}, "batch size 1000"),
        (reparametrise, {"factors": (0.1, 10.0)}, "one must be 1"),
        (warm_start, {"starts": 5}, "starts is 5; it must be from 2 to 2"),
    ],
)
def test_a_setting_out_of_its_range_is_named(small, tmp_path, experiment, wrong, message):
    with pytest.raises(ValueError, match=message):
        experiment.run(experiment.SMOKE._replace(**wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [*EXPERIMENTS, *FIGURES, "paper", "choices", "reparametrise", "correlation"])
def test_an_experiment_says_how_it_is_run(name):
    module = importlib.import_module(f"experiments.{name}")
    assert f"make exp-{name}" in module.__doc__
