"""Large batches, sharp minima: train one network to two minima and measure how they differ.

The names are modules, loaded when they are first used:

>>> import gengap
>>> gengap.sharpness.__name__
'gengap.sharpness'

Reference: Keskar, Mudigere, Nocedal, Smelyanskiy and Tang, "On Large-Batch Training for Deep Learning:
Generalization Gap and Sharp Minima", ICLR 2017, arXiv:1609.04836.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

__all__ = [
    "ascent",
    "data",
    "findings",
    "flat",
    "hessian",
    "landscape",
    "measures",
    "minima",
    "models",
    "objective",
    "paper",
    "protocol",
    "records",
    "report",
    "sharpness",
    "statistics",
    "subspace",
    "symmetry",
    "train",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
