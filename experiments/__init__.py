"""One file an experiment; `python -m experiments.NAME --help`."""

import os
import signal
import sys
from typing import Any


def _stop(*_: Any) -> None:
    sys.stderr.write("\nStopped. The same command resumes the run.\n")
    sys.stderr.flush()
    os._exit(130)  # every file is complete at any moment


# `python -m experiments.digits`, which imports for seconds from here on
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)
