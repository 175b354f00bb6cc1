"""Large batches, sharp minima: train one network to two minima and measure how they differ.

`compare` measures how two trained networks differ. The other names are modules, loaded when they are first used:

>>> import gengap
>>> gengap.sharpness.__name__
'gengap.sharpness'

Reference: Keskar, Mudigere, Nocedal, Smelyanskiy and Tang, "On Large-Batch Training for Deep Learning:
Generalization Gap and Sharp Minima", ICLR 2017, arXiv:1609.04836.
"""

import importlib.util
import sys
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "ascent", "checks", "compare", "comparison", "data", "flat", "hessian", "kernels", "landscape", "measures",
    "methods", "minima", "models", "objective", "paper", "plots", "program", "records", "report", "sharpness",
    "stats", "subspace", "symmetry", "theories", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "compare":
        return importlib.import_module("gengap.comparison").compare
    if name == "plots":
        return _on_use(f"{__name__}.plots")  # so that --help does not wait for Matplotlib
    module = importlib.import_module(f"{__name__}.{name}")
    module.__dir__ = lambda: module.__all__  # type: ignore[method-assign]  # what tab completion offers
    return module


def _on_use(name: str) -> Any:
    """A module that runs when it is first used."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def __dir__() -> list[str]:
    return __all__
