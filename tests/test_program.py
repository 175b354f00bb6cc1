"""What is compiled: a function is read at each call, and compiled once for what it computes."""

import gc
import os
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gengap import data as data_sets
from gengap import hessian, landscape, measures, minima, models, objective, program, sharpness, subspace, train
from tests.compiled import compiled

KEY = jax.random.key(0)
X0 = jnp.linspace(0.5, 1.5, 10)


class Scale:
    """What a user changes between two calls."""

    value = 1.0


def square(scale):
    return lambda p: 0.5 * (scale.value * jax.nn.relu(p) ** 2).sum()


# Each is proportional to the scale that its loss reads, or nearly so for the metric, which divides by 1 + f.
MEASURES = {
    "trace": lambda f: hessian.trace(f, X0, KEY, num_samples=2).value,
    "eigenpairs": lambda f: hessian.eigenpairs(f, X0, KEY).values[0],
    "density": lambda f: hessian.density(f, X0, KEY, num_samples=2, num_products=2).eigenvalues[-1],
    "product": lambda f: hessian.product(f, X0, X0).sum(),
    "worst_case": lambda f: measures.worst_case(f, X0, KEY, max_evaluations=2),
    "worst_case_linf": lambda f: measures.worst_case_linf(f, X0, KEY, max_evaluations=2),
    "average_case": lambda f: measures.average_case(f, X0, KEY, num_samples=2).value,
    "relative_flatness": lambda f: (
        measures.relative_flatness(
            lambda p: f(p["w"].ravel()), {"w": X0.reshape(5, 2)}, KEY, layer=("w",), num_samples=2
        ).value
    ),
    "full_space": lambda f: sharpness.full_space(f, X0, KEY, max_evaluations=6).max_loss,
    "random_subspaces": lambda f: sharpness.random_subspaces(
        f, X0, KEY, dim=2, num_draws=2, num_directions=1, max_evaluations=3
    ).max_loss.sum(),
    "restrict": lambda f: sharpness.restrict(f, X0, None)(X0),
    "along": lambda f: landscape.along(f, landscape.linear(X0, 2 * X0), [0.5])[0],
    "over": lambda f: landscape.over(f, landscape.Plane(X0, X0, X0), [0.5], [0.5])[0, 0],
    "neighbourhood": lambda f: landscape.neighbourhood(f, X0, KEY, num_directions=1, max_evaluations=1).highest,
    "noise_scale": lambda f: jnp.sqrt(
        measures.noise_scale(
            lambda p, x, y: f(p * x.mean()),
            X0,
            X0[:, None],
            jnp.zeros(10, int),
            KEY,
            small=1,
            large=9,
            num_samples=4,
        ).square
    ),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_loss_is_read_at_each_call_and_compiled_once_for_all_data_of_one_shape(name):
    scale = Scale()
    scale.value = jnp.ones(10)
    loss = square(scale)
    first = float(MEASURES[name](loss))
    scale.value = 100 * jnp.ones(10)
    for again in (loss, square(scale), jax.jit(square(scale))):
        with compiled() as programs:
            assert float(MEASURES[name](again)) == pytest.approx(100 * first, rel=1e-3)
        # A restriction is a function of the user's: nothing here compiles it.
        assert not programs or name == "restrict"


def test_networks_samplers_paths_and_errors_are_read_at_each_call():
    scale = Scale()

    def apply(params, x):
        return scale.value * x @ params

    def entries(key, shape):
        return jnp.full(shape, scale.value)

    x, y, p = jnp.eye(4), jnp.arange(4) % 3, jnp.ones((4, 3)).at[0, 0].set(2.0)
    f, pair = objective.over_dataset(apply, x, y), objective.loss_and_accuracy(apply, x, y)
    batch = objective.over_batches(apply, x, y, size=4)
    read = {
        "full_space": lambda: (
            sharpness.full_space(lambda p: scale.value * (p**2).sum(), p, KEY, max_evaluations=1).max_loss
        ),
        "over_dataset": lambda: f(p),
        "its gradient": lambda: jax.grad(f)(p),
        "loss_and_accuracy": lambda: pair(p)[0],
        "over_batches": lambda: batch(p, KEY),
        "fisher_trace": lambda: measures.fisher_trace(apply, p, x, KEY, num_samples=2).value,
        "draw": lambda: subspace.times(subspace.draw(KEY, 4, 2, entries=entries), jnp.ones(2)),
        "population_statistics": lambda: models.population_statistics(
            models.Model(len, apply, statistics=apply), p, x
        ),
        "along": lambda: landscape.along(jnp.sum, lambda alpha: scale.value * alpha * p, [1.0]),
        "pac_bayes_sigma": lambda: measures.pac_bayes_sigma(
            lambda p: scale.value * (p**2).sum(), 0 * p, KEY, steps=4, num_samples=2, largest=1.0
        ),
        "connect": lambda: landscape.connect(
            lambda p, key: f(p), p, 2 * p, KEY, steps=1, optimizer=optax.sgd(1.0)
        ),
        "find": lambda: minima.find(MODEL._replace(apply=apply), DATA, KEY, RECIPE).params,
        "start": lambda: minima.starting_point(
            models.Model(lambda k, x: jnp.full(2, scale.value), apply), DATA, KEY
        ),
    }
    first = {name: np.asarray(call()) for name, call in read.items()}
    scale.value = 3.0
    for name, call in read.items():
        again = np.asarray(call())
        assert not np.allclose(again, first[name], rtol=1e-3), name


MODEL = models.Model(lambda key, x: jnp.ones((2, 2)), lambda p, x: x @ p, name="linear")
RECIPE = minima.Recipe(2, epochs=1, optimizer=train.sgd(0.1))
DATA = data_sets.from_arrays(*(np.eye(2, dtype=np.float32), np.arange(2)) * 2)


def in_scan(f):
    return lambda p: jax.lax.scan(lambda c, i: (c + f(i * p), c), jnp.zeros(()), jnp.arange(1.0, 3.0))[0]


def in_cond(f):
    return lambda p: jax.lax.cond(p.sum() > 0, f, lambda p: p.sum(), p)


def in_while(f):
    step = lambda c: (c[0] + 1, c[1] + jax.lax.stop_gradient(f(c[1]) * 1e-3))  # noqa: E731
    return lambda p: (p * jax.lax.while_loop(lambda c: c[0] < 2, step, (0, jax.lax.stop_gradient(p)))[1]).sum()


@pytest.mark.parametrize("within", [in_scan, in_cond, in_while, lambda f: in_cond(in_scan(f))])
def test_jitted_functions_within_loops_and_branches_close_over_arrays_as_others_do(within):
    seen, values = [], []
    for data in (jnp.linspace(1, 2, 10), jnp.linspace(3, 6, 10)):
        inner = jax.jit(lambda p, data=data: jnp.sin(p * data).sum())
        f = within(inner)
        with compiled() as programs:
            values.append(float(sharpness.full_space(f, X0, KEY, max_evaluations=2).base_loss))
        assert values[-1] == pytest.approx(float(jax.jit(f)(X0)), rel=1e-5)
        seen.append(weakref.ref(data))
    assert values[0] != values[1] and not programs
    del data, inner, f
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


def test_training_on_other_data_and_with_another_closure_compiles_nothing():
    def fit(data):
        loss = lambda p, x, y, key: ((p - data.mean()) ** 2, (p, p))  # noqa: E731
        state = train.start(jnp.float32(1), KEY, optimizer=optax.sgd(0.1))
        return train.fit(loss, state, data, jnp.zeros(4, int), batch_size=2, optimizer=optax.sgd(0.1), epochs=2)

    fit(jnp.ones((4, 1)))
    with compiled() as programs:
        end, _ = fit(jnp.zeros((4, 1)))
    assert float(end.params) == pytest.approx(0.8**4) and not programs


def test_a_rule_for_derivatives_is_its_own_though_it_has_the_name_of_another():
    def ruled(factor):
        @jax.custom_jvp
        def same(x):
            return x

        same.defjvp(lambda primals, tangents: (primals[0], factor * tangents[0]))
        return lambda p: same(p).sum()

    slopes = [
        float(measures.worst_case(ruled(k), jnp.zeros(1), KEY, rho=1.0, max_evaluations=2)) for k in (1.0, -1.0)
    ]
    np.testing.assert_allclose(slopes, [1.0, 0.0], atol=1e-6)


def test_no_data_are_kept_because_a_function_that_read_them_was_compiled():
    seen = []
    for i in range(3):
        data = jnp.full(1000, float(i))
        seen.append(weakref.ref(data))
        hessian.trace(lambda p, data=data: (jax.nn.relu(p * data.sum()) ** 2).sum(), X0, KEY, num_samples=2)
        f = objective.over_dataset(lambda p, x, data=data: x @ p + data.sum(), jnp.eye(3), jnp.arange(3))
        sharpness.full_space(f, jnp.ones((3, 3)), KEY, max_evaluations=2)
    del data, f
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3


def test_a_scalar_that_is_another_is_another_computation_and_arrays_are_not():
    of = [program.fingerprint(lambda x, c=c: c * x, jnp.ones(2)) for c in (1.0, 2.0, 1.0)]
    assert of[0] == of[2] != of[1]
    of = [
        program.fingerprint(lambda x, c=c: c * x, jnp.ones(2)) for c in (jnp.ones(2), 2 * jnp.ones(2), jnp.ones(2))
    ]
    assert of[0] == of[2] != of[1]
    assert program.fingerprint(jnp.sin, X0) != program.fingerprint(jnp.cos, X0)
    assert program.fingerprint(jnp.sin, X0) != program.fingerprint(jnp.sin, X0[:3])


def test_under_transformations_a_compiled_function_is_the_function():
    def f(s, x):
        return program.compiled(lambda x: jnp.sin(s * x) ** 2)(x)

    plain = lambda s, x: jnp.sin(s * x) ** 2  # noqa: E731
    s = jnp.array([0.3, 0.7])
    np.testing.assert_allclose(jax.vmap(f, (0, None))(s, 2.0), jax.vmap(plain, (0, None))(s, 2.0), rtol=1e-6)
    for of in (jax.grad, lambda f: jax.grad(f, argnums=1), lambda f: jax.grad(jax.grad(f)), jax.jit):
        np.testing.assert_allclose(of(f)(0.3, 2.0), of(plain)(0.3, 2.0), rtol=1e-6)


def test_donated_arguments_are_taken_and_others_left():
    step = program.compiled(lambda a, b: (a + b, b), donate=(0,))
    a, b = jnp.ones(3), jnp.ones(3)
    step(a, b)
    assert a.is_deleted() and not b.is_deleted()


def dots(fn, *args):
    """The precision of the matrix products of a program."""
    return {
        str(eqn.params["precision"])
        for eqn in _every(jax.make_jaxpr(fn)(*args).jaxpr)
        if "dot" in str(eqn.primitive)
    }


def _every(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _every(inner)


def test_losses_and_measures_have_one_precision_and_training_its_own():
    x, y, p = jnp.eye(4), jnp.arange(4) % 3, jnp.ones((4, 3))
    losses = {
        "over_dataset": objective.over_dataset(lambda p, x: x @ p, x, y),
        "loss_and_accuracy": objective.loss_and_accuracy(lambda p, x: x @ p, x, y),
        "over_batches": lambda p: objective.over_batches(lambda p, x: x @ p, x, y, size=2)(p, KEY),
        "full_space": lambda p: sharpness.full_space(losses["over_dataset"], p, KEY, max_evaluations=1).value,
        "trace": lambda p: hessian.trace(losses["over_dataset"], p, KEY, num_samples=2).value,
        "along": lambda p: landscape.along(losses["over_dataset"], landscape.linear(p, p), [0.0]),
    }
    for name, loss in losses.items():
        assert dots(loss, p) == {"(Precision.HIGHEST, Precision.HIGHEST)"}, name
        with jax.default_matmul_precision("bfloat16"):
            assert dots(loss, p) != {"(Precision.HIGHEST, Precision.HIGHEST)"}, name
    loss = lambda p, x, y, key: ((x @ p).sum(), (0.0, 0.0))  # noqa: E731
    state = train.start(p, KEY)
    for asked, found in (("float32", True), (None, True), ("bfloat16", False)):
        step = train.training_step(loss, train.ADAM, asked)
        args = state, *train.epoch_of(4, 2, KEY, jnp.int32(0))[::-1], x, y
        assert ("HIGHEST" in "".join(dots(step, *args))) == found


def test_a_mesh_of_other_devices_is_another_computation():
    code = """
import jax, jax.numpy as jnp, numpy as np
from gengap import hessian
P, X0, K = jax.sharding.PartitionSpec("x"), jnp.ones(4), jax.random.key(0)
for devices in (jax.devices()[:1], jax.devices()[1:]):
    s = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), ("x",)), P)
    loss = lambda p: (jax.lax.with_sharding_constraint(p, s) ** 2).sum()
    assert hessian.trace(loss, jax.device_put(X0, s), K, num_samples=2).value == 8
"""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
