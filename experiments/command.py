"""The command line of an experiment: flags from its settings, one sentence for whatever is wrong."""

import contextlib
import difflib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import dropwhile, takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import tyro

from gengap import records, report


class Options(NamedTuple):
    """Where a run goes and where its data come from."""

    out: Path | None = None
    """run directory; by default results/<experiment>/<what differs from the default settings>"""
    fresh: bool = False
    """move an earlier run in that directory aside and begin anew"""
    data_dir: Path | None = None
    """TFDS directory; by default TFDS_DATA_DIR, then ~/tensorflow_datasets"""


def main(
    experiment: str,
    run: Callable,
    figures: Callable,
    config: Any,
    doc: str,
    args: Sequence[str] | None = None,
    *,
    sets: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Run an experiment from the command line: its tables to standard output, its report to its directory.

    A wrong flag, a value out of its range and missing data end with one sentence on standard error and exit
    code 2; Ctrl-C with one sentence and exit code 130.

    Args:
      experiment: its name.
      run: `(config, out, *, fresh, data_dir) -> Run`.
      figures: `rows -> sections` of the report.
      config: the default settings, a NamedTuple of settings and NamedTuples of settings.
      doc: what `--help` says first.
      args: flags; by default those of the process.
      sets: data set -> the default settings that `--dataset` with its name takes in place of `config`.
    """
    cache_compilations()
    out = Path("results")

    def work() -> None:
        nonlocal out
        settings, options = parse(config, doc, args)
        dataset = flat(settings).get("dataset", "")
        default = flat(config)
        if dataset in sets:
            settings, options = parse(sets[dataset], doc, args)
            default = flat(sets[dataset]) | {"dataset": default["dataset"]}
        _check_devices()
        out = options.out or out / experiment / records.run_name(flat(settings), default)
        out = Path(os.path.expanduser(out))  # which leaves a user that is not known alone
        if out.exists() and not out.is_dir():
            raise ValueError(f"out is {out}; it must be a directory")
        done = run(settings, out, fresh=options.fresh, data_dir=options.data_dir)
        is_own = (out / "config.json").exists()  # else its rows are those of other runs
        page = out / "report.html"
        width = shutil.get_terminal_size((100, 0)).columns
        findings = ""
        if page.exists() and not done.added:
            with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):  # it is written again
                findings = report.first_findings(out, width)
        if findings:
            last = max(row["origin"]["date"] for row in done.rows)
            _say(findings)
            _say(f"\nNothing was computed: all {len(done.rows)} rows are there, the last from {last}.\n")
        else:
            sections = figures(done.rows)
            _say(report.terminal(sections, width))
            page = report.write(experiment, sections, done, out)
            if is_own:
                done.check_kept()
        _say(f"\nThe report is in {page}\n")

    # In a thread of its own, since Ctrl-C waits for a compiled computation to end, which can take minutes.
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(work).result()
        except (ValueError, OSError) as error:
            if _is_a_bug(error):
                raise
            said = str(error)
            if isinstance(error, OSError) and error.strerror:
                said = f"{error.filename or out}: {error.strerror}"
            sys.stderr.write(f"{_as_flags(' '.join(said.split()), [*flat(config), *Options._fields])}\n")
            sys.exit(2)


def _check_devices() -> None:
    try:
        jax.devices()
    except Exception as error:
        said = f"JAX finds no device where JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', 'not set')}"
        raise ValueError(f"{said} ({error or type(error).__name__})") from None


def _say(text: str) -> None:
    """Print, in ASCII where the terminal has only that."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        for sign, plain in {"±": "+-", "×": "x", "·": ".", "é": "e"}.items():
            text = text.replace(sign, plain)
        text = text.encode("ascii", "replace").decode()
    sys.stdout.write(text)


def cache_compilations() -> None:
    """Have JAX keep what it compiles in the user's cache directory, unless it has been told otherwise."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "gengap" / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def parse(config: Any, doc: str, args: Sequence[str] | None = None) -> tuple[Any, Options]:
    """Flags over the defaults `config`; what is wrong with them is a ValueError of one sentence."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            flags: Any = NamedTuple("Flags", [("experiment", type(config)), ("run", Options)])  # type: ignore[misc]
            found: Any = tyro.cli(
                flags,
                default=flags(config, Options()),  # type: ignore[call-arg]
                args=args,
                description=doc,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
            return found
    except SystemExit as end:
        if not end.code:
            raise
    lines = [line.strip(" │╭╮╰╯─|") for line in said.getvalue().splitlines()]
    lines = ["" if set(line) <= {"-"} else line for line in lines]
    body = list(dropwhile(lambda line: not line, lines[1:]))  # below the title of tyro's box
    sentence = " ".join(takewhile(bool, body))
    known = [_flag(name) for name in (*flat(config), *Options._fields)]
    near = [
        n
        for word in re.findall(r"--[\w-]+", sentence)
        for n in difflib.get_close_matches(word, known, 1)
        if word not in known
    ]
    raise ValueError(f"{sentence} ({f'did you mean {near[0]}? ' if near else ''}--help lists the flags)")


def flat(config: Any) -> dict[str, Any]:
    """The settings of a config with those of the NamedTuples in it, as one dictionary."""
    settings: dict[str, Any] = {}
    for name, value in config._asdict().items():
        settings |= flat(value) if hasattr(value, "_asdict") else {name: value}
    return settings


def say_what_is_left(run: records.Run, rows: int) -> None:
    """Say how many of its rows a run has, and how long the others will take where that is more than a minute."""
    if run.added and (left := rows - len(run.rows)) > 0:
        minutes = left * (run.begun[-1] - run.begun[0]) / run.added / 60
        if minutes > 1:
            sys.stderr.write(f"{len(run.rows)} of {rows} rows are done; about {minutes:.0f} min left.\n")


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
