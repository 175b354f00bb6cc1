"""Compile a function by what it computes: each call reads its current closure, and equal programs compile once.

`jax.jit` keeps the values that a function read when it was first traced, and compiles two closures of one code
twice. Here each public call traces a function once; the arrays that it closes over become arguments, and the trace
is the key of the compiled program. A program is never differentiated, so it needs no rules for derivatives, which
a trace shows only by name.
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

from gengap import hosts

__all__ = ["asked_precision", "compiled", "fingerprint", "is_traced", "precision", "primitives"]

_MOST = 256  # programs to keep

_programs: dict[Any, tuple[Callable, list[Any]]] = {}


def compiled(fn: Callable, *, donate: Sequence[int] = (), matmul: str | None = None) -> Callable:
    """`fn` as it is now, compiled unless the same computation has been compiled before.

    Args:
      fn: function of pytrees of arrays. It is traced once for each set of argument types and shapes.
      donate: positions of arguments whose memory the result may reuse.
      matmul: precision of matrix products, see `precision`.

    >>> scale = 1.0
    >>> first = compiled(lambda x: scale * x)
    >>> scale = 3.0
    >>> compiled(lambda x: scale * x)(2.0).item()
    6.0
    """
    _check_precision(matmul)
    traced = jax.jit(lambda *args: fn(*args))
    programs: dict[Any, Callable] = {}

    def call(*args: Any) -> Any:
        with precision(matmul):
            if is_traced(args):
                return traced(*args)
            leaves, tree = jax.tree.flatten(args)
            types = tree, *map(jax.typeof, leaves)
            if types not in programs:
                programs[types] = _read(fn, args, donate) or traced
            return programs[types](*args)

    return call


def fingerprint(fn: Callable, *args: Any) -> str:
    """16 digits that identify what a function computes for arguments of these types, with all it closes over.

    Functions that JAX calls back are identified only by their names.
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


def _check_precision(precision: str | None) -> None:
    """Refuse a precision of matrix products that JAX does not know."""
    try:
        with jax.default_matmul_precision(precision):
            pass
    except ValueError:
        known = '"float32", "tensorfloat32", "bfloat16" or another of jax.default_matmul_precision'
        raise ValueError(f"precision is {precision!r}; it must be {known}") from None


def asked_precision() -> str:
    """The precision of matrix products that the caller asked for, else "float32"."""
    return jax.config.jax_default_matmul_precision or "float32"  # type: ignore[attr-defined]


def is_traced(*trees: Any) -> bool:
    """Whether a value is unknown because a JAX transformation traces it."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def primitives(jaxpr: core.Jaxpr) -> Iterator[str]:
    """The names of the primitives of a program and of the programs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in _within(eqn.params):
            yield from primitives(inner)


def _within(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The programs among the parameters of a primitive."""
    values = [value for group in params.values() for value in (group if isinstance(group, tuple) else (group,))]
    programs = [value for value in values if isinstance(value, core.ClosedJaxpr | core.Jaxpr)]
    return [value.jaxpr if isinstance(value, core.ClosedJaxpr) else value for value in programs]


def _trace(fn: Callable, args: Any) -> tuple[core.ClosedJaxpr, Any]:
    """The program of a function, with every array that it closes over as a constant; and its result's tree."""
    tree = None

    def leaves_of(*args: Any) -> list[Any]:  # a new function each time, as JAX remembers traced ones
        nonlocal tree
        leaves, tree = jax.tree.flatten(fn(*args))
        return leaves

    closed = jax.make_jaxpr(leaves_of)(*args)
    if not is_traced(closed.consts):
        closed = jax.make_jaxpr(lambda *leaves: _evaluate(closed, *leaves))(*jax.tree.leaves(args))
    return closed, tree


def _read(fn: Callable, args: Any, donate: Sequence[int]) -> Callable | None:
    """The compiled program for arguments of these types; `None` if it closes over unknown values."""
    closed, tree = _trace(fn, args)
    if is_traced(closed.consts):
        return None
    text, objects = _description(closed.jaxpr)
    key = (text, *map(_identity, objects), tuple(donate), jax.tree.structure(args))
    if key not in _programs:
        jitted = jax.jit(partial(_run, closed.jaxpr), donate_argnums=[1 + i for i in donate])
        _programs[key] = jitted, objects  # keeps the objects alive, so that nothing else gets their id
    program, _ = _programs[key] = _programs.pop(key)  # the least recently used one goes first
    while len(_programs) > _MOST:
        del _programs[next(iter(_programs))]
    consts = [jnp.asarray(value) for value in closed.consts]
    return lambda *args: jax.tree.unflatten(tree, program(consts, *args))


def _identity(it: Any) -> Any:
    """What distinguishes an object: itself, as in JAX, or its address if it cannot be hashed."""
    try:
        hash(it)
    except TypeError:
        return id(it)
    return it


def _run(jaxpr: core.Jaxpr, consts: list[Any], *args: Any) -> list[Any]:
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*jax.tree.leaves(args))


def _evaluate(closed: core.ClosedJaxpr, *args: Any) -> list[Any]:
    """Evaluate a program, with calls of jitted functions and of functions with derivative rules inlined."""
    variables = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
    values = dict(zip(variables, [*closed.consts, *args], strict=True))

    def read(atoms: Sequence[Any]) -> list[Any]:
        return [atom.val if isinstance(atom, core.Literal) else values[atom] for atom in atoms]

    for eqn in closed.jaxpr.eqns:
        name, inputs, inner = eqn.primitive.name, read(eqn.invars), _inlined(eqn)
        with eqn.ctx.manager:
            if inner is not None:
                outputs = _evaluate(inner, *inputs)
            elif name in _LOOPS and _closes_over_arrays(eqn.params):
                outputs = _LOOPS[name](eqn.params, inputs)
            else:
                outputs = _bind(eqn, inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return read(closed.jaxpr.outvars)


def _inlined(eqn: Any) -> Any:
    """The program to inline: of a function with a derivative rule, or of a jitted one without device placement."""
    if eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
        return eqn.params["call_jaxpr"]
    if eqn.primitive.name not in ("jit", "pjit"):
        return None
    options = [eqn.params[name] for name in ("in_shardings", "out_shardings", "in_layouts", "out_layouts")]
    unplaced = all(
        place is None or "Unspecified" in type(place).__name__ for places in options for place in places
    )
    return eqn.params["jaxpr"] if unplaced and not eqn.params["compiler_options_kvs"] else None


def _bind(eqn: Any, inputs: list[Any]) -> Any:
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a tuple before jax 0.10
    outputs = eqn.primitive.bind(*functions, *inputs, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def _closes_over_arrays(params: dict[str, Any]) -> bool:
    """Whether a function within a program, such as a jitted one in the body of a scan, closes over arrays."""
    return any(
        inner.constvars or any(_closes_over_arrays(eqn.params) for eqn in inner.eqns) for inner in _within(params)
    )


def _cond(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    branches = [partial(_evaluate, branch) for branch in params["branches"]]
    return jax.lax.switch(inputs[0], branches, *inputs[1:])


def _scan(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    count = params["num_carry"]
    body = partial(_evaluate, params["jaxpr"], *inputs[: params["num_consts"]])
    rest = inputs[params["num_consts"] :]

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = body(*carry, *x)
        return outputs[:count], outputs[count:]

    length, reverse, unroll = params["length"], params["reverse"], params["unroll"]
    carry, outputs = jax.lax.scan(step, rest[:count], rest[count:], length, reverse, unroll)
    return [*carry, *outputs]


def _while(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    goes_on = partial(_evaluate, params["cond_jaxpr"], *inputs[:first])
    body = partial(_evaluate, params["body_jaxpr"], *inputs[first:last])
    return jax.lax.while_loop(lambda values: goes_on(*values)[0], lambda values: body(*values), inputs[last:])


_LOOPS = {"cond": _cond, "scan": _scan, "while": _while}


def _description(jaxpr: core.Jaxpr) -> tuple[str, list[Any]]:
    """A text that is the same for the same computation, and the objects that have to be compared by identity."""
    objects: list[Any] = []
    digests: dict[int, str] = {}

    def digest(jaxpr: core.Jaxpr) -> str:
        if id(jaxpr) not in digests:
            digests[id(jaxpr)] = hashlib.sha256("\n".join(lines(jaxpr)).encode()).hexdigest()
        return digests[id(jaxpr)]

    def lines(jaxpr: core.Jaxpr) -> Iterator[str]:
        numbers = {var: i for i, var in enumerate([*jaxpr.constvars, *jaxpr.invars])}
        yield " ".join(repr(var.aval) for var in numbers)
        yield str(len(jaxpr.constvars))

        def words(atoms: Sequence[Any]) -> str:
            return " ".join(
                f"{atom.aval!r}{_bytes(atom.val).hex()}" if isinstance(atom, core.Literal) else str(numbers[atom])
                for atom in atoms
            )

        for eqn in jaxpr.eqns:
            inputs, types = words(eqn.invars), " ".join(repr(var.aval) for var in eqn.outvars)
            numbers |= {var: len(numbers) + i for i, var in enumerate(eqn.outvars)}
            params = " ".join(f"{name}={word(value)}" for name, value in eqn.params.items() if tells(eqn, name))
            yield f"{eqn.primitive.name} {inputs} {types} {params} {eqn.ctx!r}"
        yield words(jaxpr.outvars)

    def tells(eqn: Any, name: str) -> bool:
        """Whether a parameter is part of the computation: names are not, nor are rules for derivatives."""
        value, rules = eqn.params[name], eqn.primitive.name.startswith("custom_")
        return name != "name" and not (rules and (callable(value) or "Wrapped" in type(value).__name__))

    def word(value: Any) -> str:
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            objects.extend(getattr(value, "consts", ()))
            return digest(value.jaxpr if isinstance(value, core.ClosedJaxpr) else value)
        if type(value) in (tuple, list):
            return f"({', '.join(map(word, value))})"
        if isinstance(value, dict):
            return word([*value.items()])
        if isinstance(value, np.ndarray | jax.Array):
            return f"{value.dtype}{value.shape}{_bytes(value).hex()}"
        text = repr(value)
        if (callable(value) and not isinstance(value, type)) or " at 0x" in text:
            objects.append(value)
            return type(value).__name__
        mesh = getattr(value, "mesh", value)
        if isinstance(mesh, jax.sharding.Mesh) and not mesh.empty:  # its repr does not name the devices
            text += f" on {[device.id for device in mesh.devices.flat]}"
        return text

    return digest(jaxpr), objects


def _bytes(value: Any) -> bytes:
    is_key = hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    array = np.asarray(hosts.fetched(jax.random.key_data(value) if is_key else value))
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()
