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
    "flat",
    "growth",
    "hessian",
    "kernels",
    "landscape",
    "measures",
    "methods",
    "minima",
    "models",
    "objective",
    "paper",
    "plots",
    "program",
    "records",
    "report",
    "sharpness",
    "statistics",
    "subspace",
    "symmetry",
    "train",
    "updates",
]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{name}")
    # Tab completion offers what the module defines, and not what it imports.
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", module.__name__) == module.__name__]
    public = [n for n in own if not n.startswith("_") and not isinstance(getattr(module, n), ModuleType)]
    module.__dir__ = lambda: sorted(public)  # type: ignore[method-assign]
    return module


def __dir__() -> list[str]:
    return __all__
