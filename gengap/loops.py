"""The loop around a step: compiled by default, in Python where XLA:CPU would run it many times slower.

On the CPU backend a convolution inside `lax.scan` or `lax.while_loop` leaves the fast path and runs many
times slower than the same convolution outside of one (jax 0.10.2). Where a step holds a convolution and
the backend is the CPU, these functions loop in Python around the compiled step instead: same numbers, same
signatures. Everywhere else they are JAX's own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import PyTree


def has_convolution(fn: Callable, *args: PyTree) -> bool:
    """Whether `fn(*args)` computes a convolution."""
    return "conv_general_dilated[" in str(jax.make_jaxpr(fn)(*args))


def in_python(fn: Callable, *args: PyTree) -> bool:
    """Whether a loop around `fn(*args)` is to run in Python: a convolution, on the CPU backend."""
    return jax.default_backend() == "cpu" and has_convolution(fn, *args)


def traced(tree: PyTree) -> bool:
    """Whether the values of `tree` are unknown because a JAX transformation is looking at them."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def row(tree: PyTree, i: int) -> Any:
    """Entry `i` along the leading axis of every leaf."""
    return jax.tree.map(lambda a: a[i], tree)


def stack(rows: list[Any]) -> Any:
    """The inverse of `row`: one tree with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def as_pytree(fn: Callable) -> Partial:
    """`fn` as an argument for a jitted function: what a `Partial` holds stays data, the rest is static.

    `Partial(fn)` of a `Partial` would make all of it static, and compile again for every data set.
    """
    return fn if isinstance(fn, Partial) else Partial(fn)


def scan(step: Callable, carry: PyTree, xs: PyTree) -> tuple[Any, Any]:
    """`lax.scan(step, carry, xs)`; unrolled where the loop belongs in Python and is being traced."""
    if not in_python(step, carry, row(xs, 0)):
        return lax.scan(step, carry, xs)
    rows = []
    for i in range(len(jax.tree.leaves(xs)[0])):
        carry, out = step(carry, row(xs, i))
        rows.append(out)
    return carry, stack(rows)


def while_loop(keep_going: Callable, step: Callable, state: PyTree) -> Any:
    """`lax.while_loop(keep_going, step, state)`; in Python where that is faster and nothing is traced."""
    if not traced(state) and in_python(step, state):
        while not traced(state):  # which it becomes by a step that closes over something traced
            if not keep_going(state):
                return state
            state = step(state)
    return lax.while_loop(keep_going, step, state)


def each(fn: Callable, xs: PyTree, *, at_once: int = 1) -> Any:
    """`vmap(fn)(xs)`, computed in groups of `at_once`, one group after another; a row by itself without `vmap`."""
    if not traced(xs) and in_python(fn, row(xs, 0)):
        return stack([fn(row(xs, i)) for i in range(len(jax.tree.leaves(xs)[0]))])
    rows = len(jax.tree.leaves(xs)[0])
    if rows == 1 or at_once == 1:
        return lax.map(fn, xs)
    return jax.vmap(fn)(xs) if rows <= at_once else lax.map(fn, xs, batch_size=at_once)
