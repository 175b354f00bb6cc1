"""Rows computed by jobs on a cluster, one job for each row, through submitit.

Jobs outlive the process that collects their rows. What submitit needs to find them again is in a folder of the
run, which is removed when all rows are collected. A later process takes the rows of jobs that have ended, waits
for jobs that are queued or running, and submits the rest.
"""

import contextlib
import importlib
import io
import logging
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gengap import processes, progress

__all__ = ["Cluster", "computed"]

_SECONDS_BETWEEN_QUESTIONS = 10.0
_SECONDS_FOR_A_RESULT = 15.0
"""How long a file written by another machine may take to appear on this one."""


class Cluster(NamedTuple):
    """Where jobs are submitted, and what each of them requests.

    Attributes:
      name: "slurm", or "local" for processes on this machine.
      partition: partition of the cluster; by default the cluster's own default.
      hours: the time limit of a job.
      gpus: GPUs for each job; by default none is requested.
      at_once: the most jobs that run at the same time.
    """

    name: str = "slurm"
    partition: str | None = None
    hours: float = 4.0
    gpus: int | None = None
    at_once: int | None = None


def computed(
    work: Callable[[Mapping[str, Any]], dict[str, Any]],
    cells: Sequence[Mapping[str, Any]],
    cluster: Cluster,
    folder: Path,
) -> Generator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Yields each cell with `work(cell)`, as jobs finish.

    A job that fails or is cancelled is reported on stderr; the others go on.

    Args:
      work: computes a row; a job must be able to import what it uses.
      cells: what to compute, one for each row.
      cluster: where to submit the jobs.
      folder: folder for submitit's files, on a file system that the machines of the cluster share.

    Raises:
      ValueError: submitit is missing, the cluster takes no jobs, or all jobs have ended and some have no row.
    """
    if cells:
        jobs, missing = _jobs(work, cells, cluster, folder), 0
        seen_to_end: dict[str, float] = {}
        while jobs:
            for job, cell in [pair for pair in jobs.items() if pair[0].done()]:
                waited = time.monotonic() - seen_to_end.setdefault(job.job_id, time.monotonic())
                if _has_row(job):
                    yield cell, job.result()
                    job.paths.submitted_pickle.unlink()
                elif job.paths.result_pickle.exists() or waited > _SECONDS_FOR_A_RESULT:
                    progress.say(_end_in_words(job, cell))
                    missing += 1
                else:
                    continue
                del jobs[job]
            time.sleep(1 if jobs else 0)
        if missing:
            words = "rows are missing: look at the logs; the same command submits them again"
            raise ValueError(f"{missing} of {len(cells)} {words}")
    shutil.rmtree(folder, ignore_errors=True)


def _jobs(work: Callable, cells: Sequence, cluster: Cluster, folder: Path) -> dict[Any, Mapping[str, Any]]:
    """A job for each cell: an earlier one that has its row or may still compute it, or a new one."""
    submitit = _submitit(cluster.name)
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster.name)
    except RuntimeError:
        words = "on this machine there is no srun: run the command on a machine of the cluster"
        raise ValueError(f"cluster is {cluster.name}, but {words}") from None
    executor.update_parameters(
        name="gengap",
        timeout_min=math.ceil(60 * cluster.hours),
        gpus_per_node=cluster.gpus,
        slurm_partition=cluster.partition,
        slurm_array_parallelism=cluster.at_once,
    )
    jobs: dict[Any, Mapping[str, Any]] = {}
    job_class = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[cluster.name]
    names = sorted(path.name.removesuffix("_submitted.pkl") for path in folder.glob("*_submitted.pkl"))
    for job in [job_class(folder, name) for name in names]:  # all of them first, so that squeue is asked only once
        cell = job.submission().args[0]
        if cell in cells and cell not in jobs.values() and (_has_row(job) or not job.done()):
            jobs[job] = cell
        else:
            job.paths.submitted_pickle.unlink()  # if it is still in the queue, it will end without work
    new = [cell for cell in cells if cell not in jobs.values()]
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch(allow_implicit_submissions=True):
            in_job = partial(_in_job, work, processes.settings_of_jax())
            submitted = [executor.submit(in_job, cell) for cell in new]
    except RuntimeError as error:
        asked = {"partition": cluster.partition, "hours": cluster.hours, "gpus": cluster.gpus}
        words = ", ".join(f"{name} is {value}" for name, value in asked.items() if value is not None)
        raise ValueError(f"{cluster.name} takes no job whose {words} ({' '.join(str(error).split())})") from None
    jobs |= dict(zip(submitted, new, strict=True))
    numbers = " ".join(sorted({job.job_id.split("_")[0] for job in jobs}))
    progress.say(
        f"Jobs on the cluster: {len(jobs)}, new ones: {len(new)}, logs: {folder}. They go on if this command is "
        f"stopped: the same command then collects their rows, and scancel {numbers} cancels them."
    )
    return jobs


def _submitit(name: str) -> Any:
    try:
        submitit = importlib.import_module("submitit")
    except ImportError:
        words = "needs submitit: install it with pip install submitit, or gengap with its extra, gengap[cluster]"
        raise ValueError(f"cluster is {name}, which {words}") from None
    logging.getLogger("submitit").setLevel(logging.ERROR)
    submitit.SlurmJob.watcher = _Queue()
    return submitit


def _in_job(work: Callable, settings: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores SIGTERM, with which scancel would take 30 s
    processes.take(settings)
    return work(cell)


def _has_row(job: Any) -> bool:
    return job.paths.result_pickle.exists() and job.exception() is None


def _end_in_words(job: Any, cell: Mapping[str, Any]) -> str:
    reason = "was cancelled, killed or out of time"
    if job.paths.result_pickle.exists():
        trace = str(job.exception()).split(f"\n{'-' * 22}\n")[1]
        reason = f"failed ({trace.splitlines()[-1]})"
    log = f"its log is {job.paths.stderr}" if job.paths.stderr.exists() else "it had not begun, so there is no log"
    return f"Job {job.job_id} ({', '.join(map(str, cell.values()))}) {reason}; {log}."


class _Queue:
    """Tells submitit which jobs have ended: those that squeue does not list. sacct would need a database."""

    def __init__(self) -> None:
        self._asked = -math.inf
        self._listed: set[str] | None = None

    def register_job(self, job_id: str) -> None:
        self._asked = -math.inf  # the last answer may be older than the job

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        if time.monotonic() - self._asked > _SECONDS_BETWEEN_QUESTIONS:
            command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
            answer = subprocess.run(command, capture_output=True, text=True)
            self._listed = None if answer.returncode else set(answer.stdout.split())
            self._asked = time.monotonic()
        return self._listed is not None and job_id not in self._listed
