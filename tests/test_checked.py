"""Under pytest a wrong type or shape is refused, by functions that are defined within functions too."""

import inspect

import jax.numpy as jnp
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Array, Float, TypeCheckError

from gengap import objective, subspace
from tests.checked import checked


def named(name):
    """A function that is defined anew at each call, and answers with what it closed over."""

    @checked
    def inner(count: int, *, scale: float = 1.0) -> str:
        return f"{name} {scale * count}" if count else 0

    return inner


def test_a_function_that_is_defined_again_is_checked_again_and_is_itself():
    functions = [named(name) for name in "abc"]
    assert [inner(2) for inner in functions] == ["a 2.0", "b 2.0", "c 2.0"]
    assert [inner(2, scale=3) for inner in functions] == ["a 6", "b 6", "c 6"]
    for inner in functions:
        assert inner.__name__ == "inner" and inspect.unwrap(inner) is not inner
        for args in ("2",), (2.5,), (0,):  # the last one returns what it must not
            with pytest.raises(BeartypeCallHintViolation):
                inner(*args)


def test_annotations_that_are_others_are_checked_as_they_are():
    def taking(kind):
        @checked
        def inner(x: kind):
            return x

        return inner

    assert taking(int)(1) == 1 and taking(str)("a") == "a"
    for kind, wrong in ((int, "a"), (str, 1)):
        with pytest.raises(BeartypeCallHintViolation):
            taking(kind)(wrong)


def test_shapes_of_one_call_agree():
    @checked
    def summed(a: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
        return a + b if len(a) > 1 else jnp.zeros(3)

    assert summed(jnp.ones(2), jnp.ones(2)).shape == (2,) and summed(jnp.ones(3), jnp.ones(3)).shape == (3,)
    for a, b in ((2, 3), (1, 1)):
        with pytest.raises(TypeCheckError):
            summed(jnp.ones(a), jnp.ones(b))


def test_gengap_is_checked():
    with pytest.raises(TypeCheckError):
        objective.cross_entropy(jnp.ones((2, 3)), jnp.ones(2, int), clip="small")
    with pytest.raises(TypeCheckError):
        objective.cross_entropy(jnp.ones((2, 3)), jnp.ones((2, 3), int))
    with pytest.raises(BeartypeCallHintViolation):
        objective._nats(1, 2)
    with pytest.raises(TypeCheckError):
        subspace.draw(3, 4, 2)
