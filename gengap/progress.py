"""Progress on stderr: one line on a terminal that vanishes at the end, elsewhere a plain line once a minute."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import jax
from tqdm import tqdm

__all__ = ["Line", "in_words", "line", "say", "silence"]

_SECONDS_BETWEEN_LINES = 60.0
_silent = False


class Line:
    """What `line` gives."""

    def __init__(self, words: str | None, total: int, unit: str, done: int, shows_rest: bool) -> None:
        words = None if _silent else words
        self._words, self._total, self._unit, self._shows_rest = words, total, unit, shows_rest
        self._before = self._done = done
        self._began = self._told = time.monotonic()
        self._plain = bool(words) and not sys.stderr.isatty()
        no_bar = not words or self._plain
        layout = f"{{desc}}: {unit} {{n_fmt}} of {{total_fmt}}{{postfix}}" if shows_rest else None
        self._bar = tqdm(
            None, words, total, leave=False, unit=unit, initial=done, disable=no_bar, bar_format=layout
        )
        self.close = self._bar.close

    def update(self, done: int = 1, values: Mapping[str, float] | None = None, words: str = "") -> None:
        """Count work that is finished, and show values, the most important one first, or words."""
        self._done += done
        if not self._words:
            return
        now = time.monotonic()
        pace = (now - self._began) / max(1, self._done - self._before)
        shown = {name: f"{float(value):.3g}" for name, value in (values or {}).items()}
        if self._shows_rest:
            facts = [f"about {in_words(pace * (self._total - self._done))} left", *([words] if words else [])]
            self._bar.set_postfix_str(", ".join(facts), refresh=False)
        else:
            facts = [*(f"{name} {value}" for name, value in shown.items()), f"{pace:.2g} s per {self._unit}"]
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(done)
        if self._plain and now - self._told >= _SECONDS_BETWEEN_LINES:
            sys.stderr.write(f"{self._words}: {self._unit} {self._done} of {self._total}, {', '.join(facts)}\n")
            self._told = now

    def counting(self, work: Callable, units: int = 1) -> Callable:
        """`work` whose every call is waited for and counted; where nothing is shown, as it is."""

        def counted(*args: Any) -> Any:
            result = jax.block_until_ready(work(*args))
            self.update(units)
            return result

        return counted if self._words else work


def line(words: str | None, total: int, unit: str, done: int = 0, *, shows_rest: bool = False) -> closing[Line]:
    """A line that says how far some work is.

    Args:
      words: what the work is called; `None` shows nothing.
      total: units of the whole work.
      unit: what is counted, such as "epoch".
      done: units that were done before.
      shows_rest: tell how long the rest will take, in place of the pace.

    >>> with line(None, 2, "epoch") as shown:
    ...     shown.update(1, {"train_loss": 0.5})
    """
    return closing(Line(words, total, unit, done, shows_rest))


def say(words: str) -> None:
    """A sentence on stderr, unless nothing is to be shown."""
    if not _silent:
        tqdm.write(words, file=sys.stderr)  # above a line that is shown


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
