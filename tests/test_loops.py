"""Loops: JAX's own numbers, whether they run compiled or in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gengap import loops


def smooth(x):
    return lax.conv_general_dilated(x[None, None], jnp.full((1, 1, 3, 3), 0.2), (1, 1), "SAME")[0, 0]


def mix(x):
    return jnp.tanh(x @ x.T)


X = jnp.linspace(-1.0, 1.0, 36).reshape(6, 6)
XS = {"a": jnp.linspace(0.0, 1.0, 5 * 36).reshape(5, 6, 6), "b": jnp.arange(5.0)}


@pytest.fixture(params=[smooth, mix], ids=["convolution", "dense"])
def fn(request):
    return request.param


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6), a, b)


def adder(fn):
    def step(carry, xs):
        carry = fn(carry + xs["a"]) * xs["b"]
        return carry, {"sum": carry.sum(), "first": carry[0]}

    return step


@pytest.mark.parametrize(
    "wrap",
    [
        lambda fn: fn,
        jax.jit,
        lambda fn: jax.grad(lambda x: fn(x).sum()),
        lambda fn: lambda x: lax.scan(lambda c, _: (fn(c), None), x, length=2)[0],
        lambda fn: jax.checkpoint(fn),
    ],
    ids=["plain", "jit", "grad", "scan", "checkpoint"],
)
def test_a_convolution_is_seen_wherever_it_hides(wrap):
    assert loops.has_convolution(wrap(smooth), X)
    assert not loops.has_convolution(wrap(mix), X)


def test_loops_run_in_python_for_convolutions_on_the_cpu_only(monkeypatch):
    assert loops.in_python(smooth, X) and not loops.in_python(mix, X)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not loops.in_python(smooth, X)


def test_scan_equals_lax_scan(fn):
    same(loops.scan(adder(fn), X, XS), lax.scan(adder(fn), X, XS))


def test_scan_without_outputs(fn):
    def step(carry, x):
        return fn(carry) + x, None

    carry, outputs = loops.scan(step, X, jnp.arange(3.0))
    assert outputs is None
    same(carry, lax.scan(step, X, jnp.arange(3.0))[0])


@pytest.mark.parametrize(
    "transform",
    [
        jax.jit,
        lambda f: lambda x: jax.vmap(f)(jnp.stack([x, 2 * x])),
        lambda f: jax.grad(lambda x: jnp.sum(f(x)[0] ** 2)),
    ],
    ids=["jit", "vmap", "grad"],
)
def test_scan_under_a_transformation(fn, transform):
    ours = transform(lambda x: loops.scan(adder(fn), x, XS))(X)
    same(ours, transform(lambda x: lax.scan(adder(fn), x, XS))(X))


def test_a_traced_scan_is_unrolled_for_a_convolution_alone():
    def primitives(fn):
        jaxpr = jax.make_jaxpr(lambda x: loops.scan(adder(fn), x, XS))(X)
        return [equation.primitive.name for equation in jaxpr.eqns]

    assert "scan" not in primitives(smooth)
    assert "scan" in primitives(mix)


def count_to(limit):
    return lambda state: state[0] < limit


def counter(fn):
    return lambda state: (state[0] + 1, fn(state[1]) + 1)


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_while_loop_equals_lax_while_loop(fn, limit):
    state = (jnp.array(0), X)
    same(
        loops.while_loop(count_to(limit), counter(fn), state), lax.while_loop(count_to(limit), counter(fn), state)
    )


def test_while_loop_under_jit_and_vmap(fn):
    def run(x):
        return loops.while_loop(lambda s: (s[0] < 5) & (s[1].sum() < 40), counter(fn), (jnp.array(0), x))

    one, two = run(X), run(X + 1)
    assert int(one[0]) != int(two[0])
    same(jax.jit(run)(X), one)
    same(jax.vmap(run)(jnp.stack([X, X + 1])), loops.stack([one, two]))


def test_while_loop_around_a_closure_that_is_traced(fn):
    def run(x):
        return loops.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, fn(s[1] + x)), (jnp.array(0), X))

    same(jax.vmap(run)(jnp.stack([X, X + 1])), loops.stack([run(X), run(X + 1)]))


@pytest.mark.parametrize("at_once", [1, 2, 4, 5, 9])
def test_each_equals_vmap(fn, at_once):
    def one(xs):
        return {"y": fn(xs["a"]) * xs["b"], "b": xs["b"]}

    same(loops.each(one, XS, at_once=at_once), jax.vmap(one)(XS))


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_each_under_jit(fn, at_once):
    ours = jax.jit(lambda xs: loops.each(lambda x: fn(x["a"]).sum(), xs, at_once=at_once))(XS)
    same(ours, jax.vmap(lambda x: fn(x["a"]).sum())(XS))


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_each_holds_no_more_at_once_than_it_is_told(at_once):
    jaxpr = jax.make_jaxpr(lambda xs: loops.each(jnp.sin, xs, at_once=at_once))(XS["a"]).jaxpr
    bodies = [jaxpr, *(body.jaxpr for e in jaxpr.eqns if (body := e.params.get("jaxpr")) is not None)]
    sizes = [e.outvars[0].aval.size for body in bodies for e in body.eqns if e.primitive.name == "sin"]
    assert max(sizes) == at_once * 36


def test_traced_sees_tracers_only():
    seen = []
    jax.jit(lambda x: seen.append(loops.traced({"a": x, "b": X})))(X)
    assert seen == [True]
    assert not loops.traced({"a": X, "b": 1.0})


def test_row_and_stack_are_inverse():
    same(loops.stack([loops.row(XS, i) for i in range(5)]), XS)
    assert float(loops.row(XS, 3)["b"]) == 3.0


@pytest.mark.parametrize(("rows", "at_once"), [(1, 1), (3, 1), (1, 4)])
def test_one_row_at_a_time_is_no_vmap(rows, at_once):
    @jax.custom_batching.custom_vmap
    def double(x):
        return 2 * x

    @double.def_vmap
    def batched(size, in_batched, x):
        raise AssertionError("a vmap")

    xs = jnp.arange(1.0, rows + 1)
    np.testing.assert_array_equal(jax.jit(lambda xs: loops.each(double, xs, at_once=at_once))(xs), 2 * xs)
