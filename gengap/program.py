"""A function compiled by what it computes, so that it is read anew each time it is given, and compiled once.

`jax.jit` keeps what a function read when it was first traced, and compiles two closures of one code twice. Here a
function is traced once by each public call; the arrays that it closes over become arguments, and what is compiled
is found by the trace. A program is never differentiated, so that it needs no rules for that, which a trace shows
by name only.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

__all__ = ["compiled", "fingerprint", "is_traced", "precision", "primitives"]

_MOST = 256  # programs that are kept
_RULES = ("custom_jvp_call", "custom_vjp_call")

_programs: dict[Any, Callable] = {}


def compiled(fn: Callable, *, donate: Sequence[int] = (), matmul: str | None = None) -> Callable:
    """`fn` as it is now, compiled where the same computation has not been compiled before.

    Args:
      fn: of pytrees of arrays. It is traced once for arguments of each type and shape.
      donate: positions of arguments whose memory the result may take.
      matmul: precision of matrix products, see `precision`.

    >>> scale = 1.0
    >>> first = compiled(lambda x: scale * x)
    >>> scale = 3.0
    >>> compiled(lambda x: scale * x)(2.0).item()
    6.0
    """
    check_precision(matmul)
    traced = jax.jit(lambda *args: fn(*args))
    known: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        with precision(matmul):
            if is_traced(args):
                return traced(*args)
            leaves, tree = jax.tree.flatten(args)
            types = tree, *((np.shape(leaf), jax.dtypes.result_type(leaf), _is_weak(leaf)) for leaf in leaves)
            if types not in known:
                known[types] = _read(fn, args, donate)
            found = known[types]
            if found is None:
                return traced(*args)
            program, result = found
            return jax.tree.unflatten(result, program(*args))

    return call


def fingerprint(fn: Callable, *args: Any) -> str:
    """What a function computes of arguments of these types, with all that it closes over, as 16 digits.

    Functions that JAX calls back are known by their names alone.
    """
    closed, _ = _trace(fn, args)
    text, objects = _description(closed.jaxpr)
    digest = hashlib.sha256(text.encode())
    for value in [*closed.consts, *objects]:
        is_array = hasattr(value, "dtype")
        digest.update(_bytes(value) if is_array else getattr(value, "__qualname__", type(value).__name__).encode())
    return digest.hexdigest()[:16]


@contextmanager
def precision(matmul: str | None = None) -> Iterator[None]:
    """Float32 matrix products, unless `matmul` or `jax.default_matmul_precision` around it asks for others."""
    with jax.default_matmul_precision(matmul or asked_precision()):
        yield


def check_precision(precision: str | None) -> None:
    """Refuse what JAX knows no such precision of matrix products of."""
    try:
        with jax.default_matmul_precision(precision):
            pass
    except ValueError:
        some = '"float32", "tensorfloat32", "bfloat16" or another of jax.default_matmul_precision'
        raise ValueError(f"precision is {precision!r}; it must be {some}") from None


def asked_precision() -> str:
    """The precision of matrix products that the caller asked for, else "float32"."""
    return jax.config.jax_default_matmul_precision or "float32"  # type: ignore[attr-defined]


def is_traced(*trees: Any) -> bool:
    """Whether a value is unknown, since a JAX transformation is looking at it."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def primitives(jaxpr: core.Jaxpr) -> Iterator[str]:
    """The names of the primitives of a program, also of those within others."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in _within(eqn.params):
            yield from primitives(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)


def _within(params: dict[str, Any]) -> list[core.ClosedJaxpr | core.Jaxpr]:
    """The programs among the parameters of a primitive."""
    values = [one for value in params.values() for one in (value if isinstance(value, tuple | list) else [value])]
    return [value for value in values if isinstance(value, core.ClosedJaxpr | core.Jaxpr)]


def _is_weak(leaf: Any) -> bool:
    return getattr(leaf, "weak_type", not hasattr(leaf, "dtype"))


def _trace(fn: Callable, args: Any) -> tuple[core.ClosedJaxpr, Any]:
    """The program of a function, every array that it closes over a constant of it; and its result's tree."""
    trees = []

    def leaves_of(*args: Any) -> list[Any]:
        leaves, tree = jax.tree.flatten(fn(*args))
        trees.append(tree)
        return leaves

    closed = jax.make_jaxpr(leaves_of)(*args)
    if not is_traced(closed.consts):
        whole = jax.make_jaxpr(lambda *leaves: _evaluate(closed.jaxpr, closed.consts, leaves))
        closed = whole(*jax.tree.leaves(args))
    return closed, trees[0]


def _read(fn: Callable, args: Any, donate: Sequence[int]) -> tuple[Callable, Any] | None:
    """The program for these arguments, and the structure of its result; `None` where it holds unknown values."""
    closed, tree = _trace(fn, args)
    if is_traced(closed.consts):
        return None
    text, objects = _description(closed.jaxpr)
    key = (text, *map(id, objects), tuple(donate), jax.tree.structure(args))
    program = _programs.pop(key) if key in _programs else _program(closed.jaxpr, donate, objects)
    _programs[key] = program
    while len(_programs) > _MOST:
        del _programs[next(iter(_programs))]
    consts = [jnp.asarray(value) for value in closed.consts]
    return lambda *args: program(consts, *args), tree


def _program(jaxpr: core.Jaxpr, donate: Sequence[int], objects: list[Any]) -> Callable:
    def run(consts: list[Any], *args: Any) -> Any:
        return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*jax.tree.leaves(args))

    run.objects = objects  # type: ignore[attr-defined]  # while they live, nothing else has their id
    return jax.jit(run, donate_argnums=[1 + i for i in donate])


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """A program with calls of jitted functions, and of those with rules for derivatives, written out."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inputs, params = [read(atom) for atom in eqn.invars], eqn.params
        inner = params["call_jaxpr"] if eqn.primitive.name in _RULES else _plain_jit(eqn)
        loop = _LOOPS.get(eqn.primitive.name) if _closes_over_arrays(params) else None
        with eqn.ctx.manager:
            if inner is not None:
                out = _evaluate(inner.jaxpr, inner.consts, inputs)
            elif loop is not None:
                out = loop(params, inputs)
            else:
                bound = eqn.primitive.get_bind_params(params)
                functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a tuple before jax 0.10
                out = eqn.primitive.bind(*functions, *inputs, **params)
        values.update(zip(eqn.outvars, out if inner or eqn.primitive.multiple_results else [out], strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _closes_over_arrays(params: dict[str, Any]) -> bool:
    """Whether a function within a program, such as a jitted one in the body of a scan, closes over arrays."""
    programs = _within(params)
    if any(getattr(inner, "consts", ()) for inner in programs):
        return True
    return any(_closes_over_arrays(eqn.params) for inner in programs for eqn in inner.eqns)


def _cond(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    branches = [partial(_evaluate_closed, branch) for branch in params["branches"]]
    return jax.lax.switch(inputs[0], branches, *inputs[1:])


def _scan(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        out = _evaluate_closed(params["jaxpr"], *inputs[:first], *carry, *x)
        return out[: last - first], out[last - first :]

    how = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, out = jax.lax.scan(body, inputs[first:last], inputs[last:], **how)
    return [*carry, *out]


def _while(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]

    def goes_on(values: list[Any]) -> Any:
        return _evaluate_closed(params["cond_jaxpr"], *inputs[:first], *values)[0]

    def body(values: list[Any]) -> list[Any]:
        return _evaluate_closed(params["body_jaxpr"], *inputs[first:last], *values)

    return jax.lax.while_loop(goes_on, body, inputs[last:])


def _evaluate_closed(closed: core.ClosedJaxpr, *args: Any) -> list[Any]:
    return _evaluate(closed.jaxpr, closed.consts, args)


_LOOPS = {"cond": _cond, "scan": _scan, "while": _while}


def _plain_jit(eqn: Any) -> Any:
    """The program of a jitted function that places nothing on devices."""
    if eqn.primitive.name not in ("jit", "pjit"):
        return None
    placed = [eqn.params[name] for name in ("in_shardings", "out_shardings", "in_layouts", "out_layouts")]
    unplaced = all(one is None or "Unspecified" in type(one).__name__ for group in placed for one in group)
    return eqn.params["jaxpr"] if unplaced and not eqn.params["compiler_options_kvs"] else None


def _description(jaxpr: core.Jaxpr) -> tuple[str, list[Any]]:
    """A program in words that are the same for the same computation, and what has to be told apart by identity."""
    objects: list[Any] = []
    known: dict[int, str] = {}

    def whole(jaxpr: core.Jaxpr) -> str:
        numbers = {var: i for i, var in enumerate([*jaxpr.constvars, *jaxpr.invars])}
        lines = [" ".join(repr(var.aval) for var in numbers), str(len(jaxpr.constvars))]

        def atom(it: Any) -> str:
            return f"{it.aval!r}{_bytes(it.val).hex()}" if isinstance(it, core.Literal) else str(numbers[it])

        for eqn in jaxpr.eqns:
            inputs = " ".join(map(atom, eqn.invars))
            for var in eqn.outvars:
                numbers[var] = len(numbers)
            outputs = " ".join(repr(var.aval) for var in eqn.outvars)
            rules = eqn.primitive.name.startswith("custom_")
            params = [
                f"{name}={word(value)}"
                for name, value in eqn.params.items()
                if name != "name" and not (rules and (callable(value) or "Wrapped" in type(value).__name__))
            ]
            lines.append(f"{eqn.primitive.name} {inputs} {outputs} {' '.join(params)} {eqn.ctx!r}")
        return "\n".join([*lines, " ".join(map(atom, jaxpr.outvars))])

    def word(value: Any) -> str:
        if isinstance(value, core.ClosedJaxpr):
            objects.extend(value.consts)
            value = value.jaxpr
        if isinstance(value, core.Jaxpr):
            if id(value) not in known:
                known[id(value)] = hashlib.sha256(whole(value).encode()).hexdigest()
            return known[id(value)]
        if isinstance(value, tuple | list) and type(value) in (tuple, list):
            return f"({', '.join(map(word, value))})"
        if isinstance(value, dict):
            return word([*value.items()])
        if isinstance(value, np.ndarray | jax.Array):
            return f"{value.dtype}{value.shape}{_bytes(value).hex()}"
        text = repr(value)
        mesh = getattr(value, "mesh", value)
        if isinstance(mesh, jax.sharding.Mesh) and not mesh.empty:  # its words do not tell the devices
            text += f" on {[device.id for device in mesh.devices.flat]}"
        if (callable(value) and not isinstance(value, type)) or " at 0x" in text:
            objects.append(value)
            return type(value).__name__
        return text

    return hashlib.sha256(whole(jaxpr).encode()).hexdigest(), objects


def _bytes(value: Any) -> bytes:
    is_key = hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(value) if is_key else value)
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()
