"""Progress on stderr: one line on a terminal that vanishes at the end, elsewhere a plain line once a minute."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import jax
from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 60.0


class Line:
    """What `line` gives."""

    def __init__(self, words: str | None, total: int, unit: str, done: int) -> None:
        self._words, self._total, self._unit = words, total, unit
        self._before = self._done = done
        self._began = self._told = time.monotonic()
        self._plain = bool(words) and not sys.stderr.isatty()
        no_bar = not words or self._plain
        self._bar = tqdm(None, words, total, leave=False, unit=unit, initial=done, disable=no_bar)
        self.close = self._bar.close

    def update(self, done: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Count work that is finished, and show values, the most important one first."""
        self._done += done
        shown = {name: f"{float(value):.3g}" for name, value in (values or {}).items()}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(done)
        now = time.monotonic()
        if self._plain and now - self._told >= _SECONDS_BETWEEN_LINES:
            pace = (now - self._began) / (self._done - self._before)
            facts = [*(f"{name} {value}" for name, value in shown.items()), f"{pace:.2g} s per {self._unit}"]
            sys.stderr.write(f"{self._words}: {self._unit} {self._done} of {self._total}, {', '.join(facts)}\n")
            self._told = now

    def counting(self, work: Callable, units: int = 1) -> Callable:
        """`work` whose every call is waited for and counted; where nothing is shown, as it is."""

        def counted(*args: Any) -> Any:
            found = jax.block_until_ready(work(*args))
            self.update(units)
            return found

        return counted if self._words else work


def line(words: str | None, total: int, unit: str, done: int = 0) -> closing[Line]:
    """A line that says how far some work is.

    Args:
      words: what the work is called; `None` shows nothing.
      total: units of the whole work.
      unit: what is counted, such as "epoch".
      done: units that were done before.

    >>> with line(None, 2, "epoch") as shown:
    ...     shown.update(1, {"train_loss": 0.5})
    """
    return closing(Line(words, total, unit, done))
