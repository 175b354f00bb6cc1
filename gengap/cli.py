"""The command line of an experiment: flags from its config, one sentence for whatever is wrong."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from gengap import records, report


class Options(NamedTuple):
    """Where a run goes and where its data come from."""

    out: Path | None = None
    """run directory; by default results/<experiment>/<what differs from the default settings>"""
    fresh: bool = False
    """put an earlier run in that directory aside and begin anew"""
    data_dir: Path | None = None
    """TFDS directory; by default TFDS_DATA_DIR, then ~/tensorflow_datasets"""


def main(experiment: str, run: Callable, config: Any, doc: str, args: Sequence[str] | None = None) -> None:
    """Run an experiment from the command line: its tables to standard output, its report to its directory.

    A wrong flag, a value out of its range and missing data end with one sentence on standard error and exit
    code 2; Ctrl-C with one sentence and exit code 130.

    Args:
      experiment: its name.
      run: `(config, out, *, fresh, data_dir) -> summary`.
      config: the default settings, a NamedTuple of settings and NamedTuples of settings.
      doc: what `--help` says first.
      args: flags; by default those of the process.
    """

    def work() -> str:
        settings, options = parse(config, doc, args)
        default = Path("results") / experiment / records.run_name(flat(settings), flat(config))
        out = options.out or default
        summary = run(settings, out, fresh=options.fresh, data_dir=options.data_dir)
        return f"{report.text(summary)}\nThe report is in {report.write(summary, out)}\n"

    # In a thread of its own, since Ctrl-C waits for a compiled computation to end, which can take minutes.
    with ThreadPoolExecutor(1) as pool:
        try:
            sys.stdout.write(pool.submit(work).result())
        except (ValueError, OSError) as error:
            sys.stderr.write(f"{' '.join(str(error).split())}\n")
            sys.exit(2)
        except KeyboardInterrupt:
            sys.stderr.write("\nStopped; the same command goes on from here.\n")
            sys.stderr.flush()
            os._exit(130)  # every file is complete at any moment


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
    raise ValueError(f"{sentence} (--help lists the flags)")


def flat(config: Any) -> dict[str, Any]:
    """The settings of a config with those of the NamedTuples in it, as one dictionary."""
    settings: dict[str, Any] = {}
    for name, value in config._asdict().items():
        settings |= flat(value) if hasattr(value, "_asdict") else {name: value}
    return settings
