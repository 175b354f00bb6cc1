"""Types and shapes are checked at every call of a function of gengap, for less than the hook of jaxtyping takes.

The hook compiles a checker for each function at each definition, and begins a context of shapes at each call. With
functions within functions, which are defined at each call of the outer one, tracing took three times as long. Here
a function without shapes in its annotations has no context, and one that is defined again has its checker already.
"""

import functools
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import beartype
import jaxtyping

# The numeric tower lets an int stand where a float is asked for, as it may everywhere else.
_of_types = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
_of_shapes = functools.partial(jaxtyping.jaxtyped, typechecker=_of_types)
_checkers: dict[types.CodeType, tuple[dict[str, Any], Any]] = {}


def install() -> None:
    """Check gengap's functions from here on. A module that is in sys.modules already escapes this."""
    jaxtyping.jaxtyped = lambda *, typechecker: checked  # what the hook decorates every function with
    jaxtyping.install_import_hook("gengap", "beartype.beartype")


def checked(fn: Any) -> Any:
    """A function or class whose calls are checked."""
    if not isinstance(fn, types.FunctionType):
        return _of_shapes(fn)
    if any(_has_shape(part) for hint in fn.__annotations__.values() for part in _parts(hint)):
        return _of_shapes(fn)
    hints, checker = _checkers.get(fn.__code__, (None, None))
    if hints != fn.__annotations__:
        checker = _of_types(fn)
        _checkers[fn.__code__] = fn.__annotations__, None if checker is fn else checker
        return checker
    return fn if checker is None else _rebound(checker, fn)


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for inner in typing.get_args(hint):
        for part in inner if isinstance(inner, list) else [inner]:
            yield from _parts(part)


def _has_shape(hint: Any) -> bool:
    """Whether jaxtyping checks it; what is not evaluated yet may be so."""
    return isinstance(hint, str) or any(
        of.startswith("jaxtyping") for of in (type(hint).__module__, getattr(hint, "__module__", None) or "")
    )


def _rebound(checker: Any, fn: Callable) -> Any:
    """A checker of beartype for another function of the same code."""
    again = types.FunctionType(
        checker.__code__, checker.__globals__, fn.__name__, checker.__defaults__, checker.__closure__
    )
    again.__kwdefaults__ = {**checker.__kwdefaults__, "__beartype_func": fn}
    return functools.update_wrapper(again, fn)
