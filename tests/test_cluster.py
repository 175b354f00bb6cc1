"""Rows computed by jobs of a cluster: processes of submitit's local executor, and a Slurm where one is up."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import submitit

from experiments.lib import command
from gengap import cluster, records
from gengap.cluster import Cluster
from tests import fake

ROOT = Path(__file__).parents[1]
LOCAL = Cluster("local")
SLURM = shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0
HALF = """
import time
from tests import fake

def row(config, cell, store):
    found = fake.row(config, cell, store)
    while cell["seed"] == 1 and not (store / "go").exists():
        time.sleep(0.05)
    return found
"""
"""Rows of the second seed wait for a file. In a script they are pickled by value, as in an experiment."""


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(cluster, "_SECONDS_FOR_A_RESULT", 0.5)


def values(run):
    return [(row["side"], row["seed"], row["value"], row["history"], row["nothing"]) for row in run.rows]


def filled(row, out, jobs):
    return records.fill("fake", fake.CONFIG, fake.cells(fake.CONFIG), row, out, jobs=jobs)


def program(directory, name, lines):
    """An executable in place of one of Slurm's."""
    (directory / name).write_text(f"#!/bin/sh\n{lines}\n")
    (directory / name).chmod(0o755)


def test_jobs_compute_the_rows_of_one_process_and_one_that_fails_costs_its_row_alone(tmp_path, capfd):
    good = tmp_path / "good"

    def row(config, cell, store):
        if not good.exists() and cell == {"side": "SB", "seed": 1}:
            raise ValueError("this one is wrong")
        if not good.exists() and cell == {"side": "LB", "seed": 0}:
            os.kill(os.getpid(), 9)
        return fake.row(config, cell, store)

    out = tmp_path / "fake" / "run"
    with pytest.raises(ValueError, match=r"2 of 4 rows are missing: .* the same command submits them again"):
        filled(row, out, LOCAL)
    said = capfd.readouterr().err.splitlines()
    raised = next(line for line in said if "(SB, 1) failed (ValueError: this one is wrong); its log is" in line)
    killed = next(line for line in said if "(LB, 0) was cancelled, killed or out of time; its log is" in line)
    assert len(said) == 3 and all(Path(line.split("its log is ")[1][:-1]).exists() for line in (raised, killed))
    assert len(records.read(out).rows) == 2
    good.touch()
    run = filled(row, out, LOCAL)
    assert values(run) == values(fake.run()) and run.added == 2
    assert all(row["origin"]["seconds"] < 10 and row["origin"]["jax"] for row in run.rows)
    assert {path.name for path in out.iterdir()} == {"config.json", "rows.jsonl"}
    assert set(fake.marks(tmp_path / "minima").values()) == {1}


def test_a_collector_that_is_killed_loses_no_job(tmp_path, monkeypatch):
    out, script = tmp_path / "fake" / "run", tmp_path / "half.py"
    call = f"records.fill('fake', fake.CONFIG, fake.cells(fake.CONFIG), row, {str(out)!r}, jobs=Cluster('local'))"
    script.write_text(f"{HALF}\nfrom gengap import records\nfrom gengap.cluster import Cluster\n{call}")
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, script], cwd=ROOT, stdout=quiet, stderr=quiet) as collector:
        give_up = time.monotonic() + 100
        while not (out / "rows.jsonl").exists() or len(records.read(out).rows) < 2:
            assert collector.poll() is None and time.monotonic() < give_up
            time.sleep(0.1)
        collector.kill()
    assert [row["seed"] for row in records.read(out).rows] == [0, 0]
    # As squeue does, which lists also the jobs that another process submitted.
    monkeypatch.setattr(submitit.LocalJob, "done", lambda job, *_: job.paths.result_pickle.exists())
    store = tmp_path / "minima"
    threading.Timer(1.0, (store / "go").touch).start()
    run = filled(fake.row, out, LOCAL)
    (store / "go").unlink()
    assert run.added == 2 and values(run) == values(fake.run()) and not (out / "jobs").exists()
    assert set(fake.marks(store).values()) == {1}


def test_without_submitit_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setattr(command, "cache_compilations", lambda: None)
    flags = ["--cluster", "slurm", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        command.main("fake", fake.run, fake.figures, fake.CONFIG, "", flags)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert said.startswith("--cluster is slurm, which needs submitit: install it with pip install submitit")


def test_flags_say_where_jobs_go():
    given = ["--cluster", "slurm", "--partition", "long", "--hours", "2.5", "--gpus", "1", "--jobs", "8"]
    options = command.parse(fake.CONFIG, given)[1]
    assert command._jobs(options) == Cluster("slurm", partition="long", hours=2.5, gpus=1, at_once=8)
    assert command._jobs(command.parse(fake.CONFIG, ["--cluster", "slurm"])[1]) == Cluster()
    assert command._jobs(command.parse(fake.CONFIG, ["--jobs", "3"])[1]) == 3


def test_a_run_that_is_not_on_disk_has_no_jobs():
    with pytest.raises(ValueError, match="out must be a directory"):
        fake.run(jobs=LOCAL)


def test_a_cluster_that_takes_no_job_is_one_sentence(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="cluster is slurm, but on this machine there is no srun"):
        fake.run(out=tmp_path / "run", jobs=Cluster())
    program(tmp_path, "srun", "")
    program(tmp_path, "sbatch", 'echo "sbatch: error: invalid partition" >&2; exit 1')
    words = r"slurm takes no job whose partition is none, hours is 4.0 \(sbatch: error: invalid partition\)"
    with pytest.raises(ValueError, match=words):
        fake.run(out=tmp_path / "run", jobs=Cluster(partition="none"))
    assert capfd.readouterr() == ("", "")


def test_squeue_says_which_jobs_have_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "squeue", "echo 7_0; echo 8; echo >>asked")
    monkeypatch.chdir(tmp_path)
    queue = cluster._Queue()
    assert [queue.is_done(job) for job in ("7_0", "7_1", "8", "9")] == [False, True, False, True]
    assert (tmp_path / "asked").read_text() == "\n"
    program(tmp_path, "squeue", "exit 1")
    assert queue.is_done("9")
    queue.register_job("10")
    assert not queue.is_done("9") and not queue.is_done("10")


@pytest.mark.skipif(not SLURM, reason="no Slurm is up")
def test_a_job_that_is_cancelled_on_slurm_is_submitted_again(tmp_path, capfd):
    cancelled = tmp_path / "cancelled"

    def row(config, cell, store):
        if not cancelled.exists() and cell == {"side": "LB", "seed": 0}:
            cancelled.touch()
            subprocess.run(["scancel", f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"])
            time.sleep(100)
        return fake.row(config, cell, store)

    out = tmp_path / "fake" / "run"
    with pytest.raises(ValueError, match="1 of 4 rows are missing"):
        filled(row, out, Cluster(hours=0.1))
    said = capfd.readouterr().err
    assert "(LB, 0) was cancelled, killed or out of time; its log is" in said and "sacct" not in said
    run = filled(row, out, Cluster(hours=0.1))
    assert values(run) == values(fake.run()) and run.added == 1
    assert set(fake.marks(tmp_path / "minima").values()) == {1}
