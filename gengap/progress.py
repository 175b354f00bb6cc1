"""Progress on stderr: on a terminal one line, removed at the end; elsewhere a plain line once a minute."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import jax
from tqdm import tqdm
from tqdm.std import Bar

from gengap import program

__all__ = ["Line", "each", "in_words", "line", "named", "of_measure", "part", "say", "silence"]

_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BEFORE_A_BAR = 2.0
_BAR = 10  # characters
_silent = False
_open: list["Line"] = []


class Line:
    """The progress of some work; see `line`."""

    def __init__(self, words: str | None, total: int, unit: str, done: int, outer: bool, at_once: int) -> None:
        self._words = None if _silent else words
        self._total, self._unit, self._outer, self._at_once = total, unit, outer, at_once
        self._before = self._done = done
        self._began = self._told = self._updated = time.monotonic()
        self._values: Mapping[str, float] = {}
        self._how, self._is_first = "about", True
        self._plain = bool(self._words) and not _is_terminal()
        self._bar = _Bar(self, not self._words or self._plain)
        if self._words:
            _open.append(self)

    def update(self, done: int = 1, values: Mapping[str, float] | None = None, *, at_most: bool = False) -> None:
        """Count finished work, and show values, the most important first.

        Args:
          done: units finished since the last call.
          values: name -> number.
          at_most: whether the work may end before all units are done.
        """
        self._done += done
        if not self._words:
            return
        now = self._updated = time.monotonic()
        if self._is_first and not self._outer:
            self._began, self._before = now, self._done  # the first unit waits for the compiler
        self._is_first = False
        self._values, self._how = values or {}, "at most" if at_most else "about"
        if self._bar.update(done) and _open[0] is not self:
            _open[0]._bar.refresh()  # so that its time left is updated
        if self._plain and now - self._told >= _SECONDS_BETWEEN_LINES:
            sys.stderr.write(
                f"{self._words}: {', '.join([self._count(), *self._rest(), *self._values_in_words()])}\n"
            )
            self._told = now

    def counting(self, work: Callable, units: int = 1) -> Callable:
        """`work`, but each call waits for its result and is counted; `work` itself if nothing is shown."""

        def counted(*args: Any) -> Any:
            result = work(*args)
            if not program.is_traced(result):
                jax.block_until_ready(result)
                self.update(units)
            return result

        return counted if self._words else work

    def close(self) -> None:
        self._bar.close()
        if self in _open:
            _open.remove(self)

    def fitting(self, width: int, charset: str) -> str:
        """The longest text that fits into a line of the terminal; parts that do not fit are left out entirely."""
        count, rest, values = self._count(), self._rest(), self._values_in_words()
        share = min(1.0, self._done / max(1, self._total))
        drawn = "" if self._outer else f"|{Bar(share, _BAR, charset)}| "
        lines = [count, f"{self._words}: {count}", f"{self._words}: {', '.join([count, *rest])}"]
        facts = [", ".join([count, *rest, *values[:k]]) for k in range(len(values) + 1)]
        lines += [f"{self._words}: {drawn}{some}" for some in facts]
        return next((text for text in reversed(lines) if len(text) <= width), "")

    def _count(self) -> str:
        return f"{self._unit} {min(self._done + self._outer, self._total)} of {self._total}"

    def _rest(self) -> list[str]:
        done = self._done - self._before
        of_one = (self._updated - self._began) / max(1, -(-done // self._at_once))
        seconds = of_one * (self._total - self._done) / self._at_once - (time.monotonic() - self._updated)
        return [f"{self._how} {in_words(seconds)} left"] if done and seconds >= 1 else []

    def _values_in_words(self) -> list[str]:
        return [f"{name} {float(value):.3g}" for name, value in self._values.items()]


class _Bar(tqdm):
    """tqdm with the text of a line."""

    def __init__(self, of: Line, disable: bool) -> None:
        self._of = of
        delay = 0.0 if of._outer else _SECONDS_BEFORE_A_BAR
        super().__init__(total=of._total, leave=False, disable=disable, delay=delay, miniters=1, nrows=20)

    def __str__(self) -> str:
        return self._of.fitting(_columns() - 1, Bar.ASCII if self.ascii else Bar.UTF)


def _is_terminal() -> bool:
    return bool(getattr(sys.stderr, "isatty", bool)())


def _columns() -> int:
    """The columns of the terminal; some terminals report 0."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, OSError, ValueError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


def line(
    words: str | None, total: int, unit: str, done: int = 0, *, outer: bool = False, at_once: int = 1
) -> closing[Line]:
    """A line that shows how far some work is and how long the rest will take.

    Args:
      words: name of the work; `None` shows nothing.
      total: units of the whole work.
      unit: what is counted, such as "epoch".
      done: units that were done before.
      outer: whether other lines are shown below it. An outer line counts the unit in progress and is shown at
        once; others appear after two seconds.
      at_once: units worked on at the same time.

    >>> with line(None, 2, "epoch") as shown:
    ...     shown.update(1, {"train_loss": 0.5})
    """
    return closing(Line(words, total, unit, done, outer, at_once))


def named(progress: str | None, measure: str) -> str | None:
    """The name of a measure's line: for "auto" `measure`, on a terminal that shows no other line, or `None`."""
    if progress != "auto":
        return progress
    return measure if _is_terminal() and not _open else None


def of_measure(progress: str | None, measure: str, total: int, unit: str = "gradient") -> closing[Line]:
    """The line of a measure; `progress` is what the user passed."""
    return line(named(progress, measure), total, unit)


def each(
    work: Callable, items: Sequence[Any], progress: str | None, measure: str, unit: str = "sample"
) -> list[Any]:
    """`work(item)` for each item, with the line of a measure.

    >>> each(abs, [-1, 2], None, "sizes")
    [1, 2]
    """
    with of_measure(progress, measure, len(items), unit) as shown:
        return [*map(shown.counting(work), items)]


def part(progress: str | None, words: str) -> str | None:
    """The `progress` of a part of some work.

    >>> part("compare", "full space"), part("auto", "full space"), part(None, "full space")
    ('compare, full space', 'auto', None)
    """
    return progress if progress in (None, "auto") else f"{progress}, {words}"


def say(words: str) -> None:
    """Write a sentence to stderr, unless this process is silenced."""
    if not _silent:
        tqdm.write(words, file=sys.stderr)  # above a progress line


def silence() -> None:
    """Show nothing in this process from now on."""
    global _silent
    _silent = True


def in_words(seconds: float) -> str:
    """A time, rounded.

    >>> in_words(12.3), in_words(600), in_words(10000)
    ('12 s', '10 min', '2.8 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
