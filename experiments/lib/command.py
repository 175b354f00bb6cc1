"""The command line of an experiment: flags from its settings, one sentence for whatever is wrong."""

import contextlib
import inspect
import io
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import tyro

from gengap import hosts, memory, progress, records, report
from gengap.cluster import Cluster

_OUT_OF_MEMORY = (
    "The device is out of memory. --shard divides every batch and chunk over all devices. A smaller --chunk takes "
    "less memory too, but changes f if there is batch norm, which uses the statistics of a chunk. The same "
    "command resumes the run."
)


_DOC = "{doc}"  # stands for the text that help begins with


class Options(NamedTuple):
    """Output, data, and hardware."""

    out: Path | None = None
    """run directory; by default results/EXPERIMENT/SETTINGS, named after the settings that are not the defaults"""
    fresh: bool = False
    """move an earlier run in that directory aside and start over"""
    jobs: int | None = None
    """parallel processes; by default one per GPU, or one without a GPU; on a cluster, the most jobs at once"""
    cluster: Literal["slurm"] | None = None
    """compute each row in a cluster job"""
    partition: str | None = None
    """cluster partition; by default that of the cluster"""
    hours: float | None = None
    """time limit of each cluster job; by default 4"""
    gpus: int | None = None
    """GPUs per cluster job; by default none"""
    shard: bool = False
    """split the examples over all devices, and compute one row at a time"""
    hosts: Literal["auto"] | tuple[str, int, int] | None = None
    """with --shard, run on several machines: start this command on each, with auto on Slurm and TPU pods;
    elsewhere with HOST:PORT of the first machine, their number, and the number of this one, from 0"""
    data_dir: Path | None = None
    """TFDS directory; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets"""


def main(
    experiment: str,
    run: Callable[..., records.Run],
    figures: Callable[[list[records.Row]], list[report.Section]],
    config: Any,
    doc: str | None,
    args: Sequence[str] | None = None,
    *,
    sets: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Run an experiment from the command line: its tables to standard output, its report to its directory.

    A wrong flag, a value out of its range and missing data end with one sentence on standard error and exit
    code 2; Ctrl-C with one sentence and exit code 130.

    Args:
      experiment: its name.
      run: `(config, out, *, fresh, jobs) -> Run`.
      figures: `rows -> sections` of the report.
      config: the default settings, a NamedTuple of settings and NamedTuples of settings.
      doc: what `--help` says first.
      args: flags; by default those of the process.
      sets: data set -> the default settings that replace `config` if `--dataset` names it.
    """
    cache_compilations()
    said = io.TextIOWrapper(io.BytesIO(), sys.stdout.encoding or "ascii")
    try:
        with contextlib.redirect_stdout(said):
            settings, options, default = _parsed(config, args, sets, experiment)
    finally:
        said.seek(0)
        _say(said.read().replace(" [-h] [OPTIONS]", "").replace(_DOC, _wrapped(doc or "")))
    name = records.run_name(records.settings_of(settings), default)
    out = Path(os.path.expanduser(options.out or Path("results") / experiment / name))

    def work() -> None:
        jobs = _jobs(options)
        _take_devices(options)
        if out.exists() and not out.is_dir():
            raise ValueError(f"out is {out}; it must be a directory")
        if options.data_dir is not None:
            os.environ["TFDS_DATA_DIR"] = str(options.data_dir)  # for the processes of the run too
        _check_devices()
        done = run(settings, out, fresh=options.fresh, jobs=jobs)
        if hosts.is_first():
            _show(experiment, done, figures, out)

    # In a thread of its own, since Ctrl-C waits for a compiled computation to end, which can take minutes.
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(work).result()
        except jax.errors.JaxRuntimeError as error:
            if not memory.ran_out(error):
                raise
            sys.stderr.write(f"{_OUT_OF_MEMORY} ({str(error).splitlines()[0][:200]})\n")
            sys.exit(2)
        except (ValueError, OSError) as error:
            if _is_a_bug(error):
                raise
            message = str(error)
            if isinstance(error, OSError) and error.strerror:
                message = f"{error.filename or out}: {error.strerror}"
            names = [*records.settings_of(settings), *Options._fields]
            sys.stderr.write(f"{_as_flags(' '.join(message.split()), names)}\n")
            sys.exit(2)


def _parsed(
    config: Any, args: Sequence[str] | None, sets: Mapping[str, Any], experiment: str
) -> tuple[Any, Options, dict[str, Any]]:
    """The settings, the options, and the default settings that a run is named by."""
    settings, options = parse(config, args, experiment)
    default = records.settings_of(config)
    if (dataset := str(records.settings_of(settings).get("dataset"))) in sets:
        settings, options = parse(sets[dataset], args, experiment)
        default = records.settings_of(sets[dataset]) | {"dataset": default["dataset"]}
    return settings, options, default


def _jobs(options: Options) -> int | Cluster | None:
    """What computes the rows, as `records.fill` takes it."""
    least = {"jobs": (options.jobs, 1, "at least 1"), "hours": (options.hours, 1 / 60, "at least a minute")}
    for name, (value, bound, words) in (least | {"gpus": (options.gpus, 0, "at least 0")}).items():
        if value is not None and not bound <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be {words}")
    of_cluster = {name: getattr(options, name) for name in ("partition", "hours", "gpus")}
    given = {name: value for name, value in of_cluster.items() if value is not None}
    if options.hosts is not None and (options.cluster is not None or not options.shard):
        raise ValueError(f"hosts is {options.hosts}; it must come with --shard, and without --cluster")
    if options.cluster is None:
        for name, value in given.items():
            raise ValueError(f"{name} is {value}; it must come with --cluster slurm")
        if options.shard and options.jobs not in (None, 1):
            raise ValueError(f"jobs is {options.jobs}; it must be 1 with --shard, since a row takes all devices")
        return 1 if options.shard else options.jobs
    return Cluster(options.cluster, at_once=options.jobs, **given)


def _take_devices(options: Options) -> None:
    """If asked to, join the other processes of the run, and let each row take all devices."""
    if options.hosts is not None:
        hosts.join(*(() if options.hosts == "auto" else options.hosts))
        if not hosts.is_first():
            progress.silence()
    if options.shard:
        os.environ[hosts.SHARD] = "1"  # for the processes of the run too


def _show(experiment: str, run: records.Run, figures: Callable, out: Path) -> None:
    """Print the results; write the report if rows were added or there is none."""
    is_own = (out / "config.json").exists()  # otherwise its rows are those of other runs
    page, width, findings = out / "report.html", shutil.get_terminal_size((100, 0)).columns, ""
    if page.exists() and not run.added:
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):  # it is written again
            findings = report.first_findings(out, width)
    if findings:
        last = max(row["origin"]["date"] for row in run.rows)
        _say(f"{findings}\nNothing was computed: all {len(run.rows)} rows are there, the last from {last}.\n")
    else:
        sections = figures(run.rows)
        _say(report.terminal(sections, width, report.of_batches(run)))
        page = report.write(experiment, sections, run, out)
        if is_own:
            run.check_kept()
    _say(f"\nThe report is in {page}\n")


def _check_devices() -> None:
    try:
        jax.devices()
    except Exception as error:
        platforms = os.environ.get("JAX_PLATFORMS", "not set")
        raise ValueError(
            f"JAX finds no device; JAX_PLATFORMS is {platforms} ({error or type(error).__name__})"
        ) from None


def _say(text: str) -> None:
    """Print, in ASCII if the terminal has only that."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        for sign, plain in {"±": "+-", "×": "x", "·": ".", "é": "e"}.items():
            text = text.replace(sign, plain)
        text = text.encode("ascii", "replace").decode()
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def cache_compilations() -> None:
    """Have JAX keep what it compiles in the user's cache directory, unless it has been told otherwise."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "gengap" / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def parse(config: Any, args: Sequence[str] | None = None, experiment: str | None = None) -> tuple[Any, Options]:
    """Flags over the defaults `config`; a wrong one ends the process with tyro's message and exit code 2."""
    flags: Any = NamedTuple("Flags", [("experiment", type(config)), ("run", Options)])  # type: ignore[misc]
    parsed: Any = tyro.cli(
        flags,
        default=flags(config, Options()),  # type: ignore[call-arg]
        args=args,
        prog=_typed(experiment, sys.argv[1:] if args is None else args),
        description=_DOC,  # tyro would make one line of each paragraph
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return parsed


def _typed(experiment: str | None, args: Sequence[str]) -> str | None:
    """The command that help shows; in an error message " --help" follows it."""
    if experiment is None or not {"-h", "--help"} & set(args):
        python = Path(sys.executable)
        typed = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else "python"
        return experiment and f"{typed} -m experiments.{experiment}"
    return f'make {"" if experiment == "paper" else "exp-"}{experiment} ARGS="..."'


def _wrapped(doc: str) -> str:
    """The paragraphs of a text, wrapped to the terminal; indented ones stay as they are."""
    width = min(shutil.get_terminal_size((80, 0)).columns, 100)
    paragraphs = inspect.cleandoc(doc).split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else textwrap.fill(p, width) for p in paragraphs)


def _as_flags(message: str, settings: Sequence[str]) -> str:
    """A message about arguments as one about the flags that were typed."""
    for name in sorted(settings, key=len, reverse=True):
        message = re.sub(rf"(?<![\w-]){name}(?= (is|has|in|must)\b|:)", _flag(name), message)
        message = message.replace(f" {name} ", f" {_flag(name)} ") if "_" in name else message
    return message


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_a_bug(error: BaseException) -> bool:
    """Whether an error comes from outside this project's own checks, so that its traceback is wanted."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (
        trace is not None
        and "site-packages" in trace.tb_frame.f_code.co_filename
        and isinstance(error, ValueError)
    )
