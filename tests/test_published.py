"""What is published is what its rows give, each row from a commit that exists, and the README quotes it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import sharpness as bench
from experiments.lib import claims, published
from gengap import plots, records

ROOT = Path(__file__).parents[1]
RUNS = sorted(path.parent for path in ROOT.glob("published/*/*/config.json"))
README = (ROOT / "README.md").read_text()
SPEED = (ROOT / "docs/speed.md").read_text()


def rows():
    return [json.loads(line) for run in RUNS for line in (run / "rows.jsonl").read_text().splitlines()]


def test_every_row_says_which_commit_computed_it():
    commits = {row["origin"]["commit"] for row in rows()}
    assert commits and not any("dirty" in commit for commit in commits)
    git = ["git", "-C", str(ROOT), "rev-list", "--count", "HEAD"]
    if int(subprocess.run(git, capture_output=True, text=True, check=True).stdout) < 50:
        pytest.skip("a shallow clone does not have the commits")
    for commit in commits:
        known = subprocess.run(["git", "-C", str(ROOT), "merge-base", "--is-ancestor", commit, "HEAD"])
        assert known.returncode == 0, commit
        git = ["git", "-C", str(ROOT), "grep", "-h", "^TRAINING_VERSION = ", commit, "--", "gengap"]
        version = int(subprocess.run(git, capture_output=True, text=True).stdout.partition("= ")[2] or 1)
        of_commit = [row["origin"] for row in rows() if row["origin"]["commit"] == commit]
        assert {origin["training_version"] for origin in of_commit} == {version}, commit


def test_the_reports_are_what_the_rows_give(tmp_path, monkeypatch):
    """All figures are made; three of them are drawn too, since drawing all takes two thirds of the time."""
    draw, drawn = plots.image, []

    def image(figure):
        drawn.append(draw(figure) if len(drawn) < 3 else b"<svg/>")
        return drawn[-1]

    monkeypatch.setattr(plots, "image", image)
    shutil.copytree(ROOT / "published", tmp_path / "published")
    made = [*tmp_path.glob("published/*/*/report.md"), tmp_path / "published/claims.md"]
    reports = [path.relative_to(tmp_path) for path in made]
    for path in reports:
        (tmp_path / path).unlink(missing_ok=True)
    published.main(tmp_path / "published")
    changed = [path for path in reports if (tmp_path / path).read_text() != (ROOT / path).read_text()]
    assert reports and not changed


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parent.name}/{run.name}")
def test_the_rows_of_a_run_have_one_version_of_training_and_of_the_maximiser(run):
    of_run = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    assert len({row["origin"]["training_version"] for row in of_run}) == 1
    assert len({row["ascent_version"] for row in of_run if "ascent_version" in row}) <= 1


def test_no_table_of_claims_has_rows_of_two_versions():
    gathered = [row for run in RUNS for row in claims.gathered(records.read(run), run.name)]
    versions = claims.by_version(gathered)
    for version, of_version in versions.items():
        assert len({row["ascent_version"] for row in of_version if "ascent_version" in row}) <= 1, version
        assert len({row["origin"]["training_version"] for row in of_version}) <= 1, version
    assert (ROOT / "published/claims.md").read_text().count("## The claims") == len(versions)
    for page in ROOT.glob("published/paper/*/report.md"):
        dataset = page.parent.name.removeprefix("dataset=").replace("default", "digits")
        of_page = [row for row in gathered if row["dataset"] == dataset]
        assert page.read_text().count("## The paper's claims") == len(claims.by_version(of_page)), page


def test_every_claim_that_fails_has_its_numbers_and_every_run_its_command():
    text = (ROOT / "published/claims.md").read_text()
    failing = text.partition("## Claims that do not hold")[2].partition("## What was run")[0]
    sentences = [line for line in failing.splitlines() if line.startswith("- ")]
    assert len(sentences) == text.count("does not hold:")
    assert all(re.search(r"\? .*\d", sentence) for sentence in sentences)
    ran = text.partition("## What was run")[2].partition("## Provenance")[0]
    experiments = [run.parent.name.replace("_", r"\_") for run in RUNS]
    assert all(f"make exp-{name} " in ran for name in experiments)


def test_a_run_has_a_line_for_each_commit_device_and_precision():
    origin = {"commit": "a", "training_version": 1, "device": "cpu, 2 cores", "seconds": 1800.0}
    other = origin | {"commit": "b", "device": "GPU"}
    rows = [{"origin": origin, "ascent_version": 3}, {"origin": origin}, {"origin": other, "ascent_version": 4}]
    run = records.Run(None, "causes", {"num_seeds": 2, "epsilons": [0.1, 0.2]}, rows, [])
    command = 'make exp-causes ARGS="--num-seeds 2 --epsilons 0.1 0.2"'
    cells = [
        (line["command"], *list(line.values())[1:]) for line in published._lines(run, "num_seeds=2,epsilons=x")
    ]
    assert cells == [
        (command, 2, "1", "3", "a", "cpu, 2 cores", "float32", "1.00"),
        (command, 1, "1", "4", "b", "GPU", "TF32", "0.50"),
    ]


def numbers(text):
    return set(re.findall(r"(?<![\d.])\d+(?:\.\d+)?(?![\d.])", text))


def test_the_readme_quotes_what_is_published():
    """Every number of its table of C1 is of the run of C1; every one with decimals of the rest is published."""
    (table,) = re.findall(r"^\| C1 on CIFAR-10, five seeds .*?\n\n", README, re.M | re.S)
    of_c1 = ROOT.glob("published/cifar/*/report.md"), ROOT.glob("published/paper/dataset=cifar10/report.md")
    there = "\n".join(path.read_text() for paths in of_c1 for path in paths)
    assert len(numbers(table)) > 15 and numbers(table) - {"1", "5"} <= numbers(there) | {"10"}
    said = README[README.index("- **What causes the gap?**") : README.index("## The experiments")]
    everywhere = "\n".join(path.read_text() for path in ROOT.glob("published/*/*/report.md"))
    assert not {number for number in numbers(said) if "." in number} - numbers(everywhere)


def test_what_is_said_of_speed_is_what_the_bench_measured():
    found = json.loads((ROOT / "published/bench/anytime.json").read_text())

    def shares(cells, method="scheme", epsilon="", gradients=24):
        return bench._shares(found, cells, epsilon)[method][:, bench.BUDGETS.index(gradients)]

    full, random = ", full", ", random"
    narrow, convolutional = "F1, narrow, LB, random", "convolutional, SB, random"
    said = SPEED[SPEED.index("`make bench` measures") : SPEED.index("![Value over the best known")]
    assert re.findall(r"(?<!\d)\.\d+", said) == [
        text.lstrip("0")
        for text in (
            f"{shares(full).mean():.3f}",
            f"{shares(full).min():.2f}",
            f"{shares(full, 'SciPy').mean():.3f}",
            f"{shares(random).mean():.3f}",
            f"{shares(random).min():.2f}",
            f"{shares(random, 'SciPy').mean():.3f}",
            f"{shares(narrow, epsilon=', 0.001').mean():.3f}",
            f"{shares(narrow, epsilon=', 0.001', gradients=48).mean():.3f}",
            f"{shares(narrow, 'APGD', ', 0.001').mean():.3f}",
            f"{shares(convolutional, 'APGD', ', 0.001').mean():.3f}",
            f"{shares(convolutional, epsilon=', 0.001').mean():.3f}",
        )
    ]
