"""A right number, or none: what users of such software report, each case against its closed form."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from gengap import (
    data,
    hessian,
    landscape,
    measures,
    methods,
    minima,
    models,
    objective,
    sharpness,
    subspace,
    symmetry,
    train,
)

KEY = jax.random.key(0)
LAYERS = [symmetry.Layer(("a",)), symmetry.Layer(("a",))]
FEW = {"dim": 2, "num_draws": 2, "max_evaluations": 3, "num_directions": 1}
G = np.array([3.0, -4.0, 12.0, 2.0, 1.0], np.float32)


def flat(p):
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(p)])


def linear(p):
    return 1 + flat(p) @ G


POINT = {"a": jnp.full((2, 2), 0.01), "b": jnp.full(1, 0.02)}


def bare(function):
    """Without the checks of types that run under pytest alone."""
    return inspect.unwrap(function)


def batched(f):
    return lambda p, x, y: f(p)


# Every public function of a point: name -> (loss, params, key) -> what it gives.
CALLS = {
    "full_space": lambda f, p, k: bare(sharpness.full_space)(f, p, k, max_evaluations=3),
    "random_subspaces": lambda f, p, k: bare(sharpness.random_subspaces)(f, p, k, **FEW),
    "restrict": lambda f, p, k: bare(sharpness.restrict)(f, p, None)(jnp.zeros(5)),
    "box": lambda f, p, k: bare(sharpness.box)(p, None, 1e-3),
    "product": lambda f, p, k: bare(hessian.product)(f, p, p),
    "eigenpairs": lambda f, p, k: bare(hessian.eigenpairs)(f, p, k),
    "trace": lambda f, p, k: bare(hessian.trace)(f, p, k, num_samples=2),
    "density": lambda f, p, k: bare(hessian.density)(f, p, k, num_samples=2, num_products=2),
    "worst_case": lambda f, p, k: bare(measures.worst_case)(f, p, k, max_evaluations=2),
    "worst_case_linf": lambda f, p, k: bare(measures.worst_case_linf)(f, p, k, max_evaluations=2),
    "average_case": lambda f, p, k: bare(measures.average_case)(f, p, k, num_samples=2),
    "pac_bayes_sigma": lambda f, p, k: bare(measures.pac_bayes_sigma)(
        f, p, k, num_samples=2, steps=2, largest=0.1
    ),
    "distance": lambda f, p, k: bare(measures.distance)(p, p),
    "fisher_trace": lambda f, p, k: bare(measures.fisher_trace)(
        lambda p, x: f(p) * jnp.ones((2, 2)), p, jnp.ones((2, 1)), k, num_samples=2
    ),
    "noise_scale": lambda f, p, k: bare(measures.noise_scale)(
        batched(f), p, jnp.ones((2, 1)), jnp.zeros(2, int), k, small=1, large=2, num_samples=1
    ),
    "linear": lambda f, p, k: bare(landscape.along)(f, bare(landscape.linear)(p, p), [0.5]),
    "curvilinear": lambda f, p, k: bare(landscape.along)(f, bare(landscape.curvilinear)(p, p), [0.5]),
    "bezier": lambda f, p, k: bare(landscape.along)(f, bare(landscape.bezier)(p, p, p), [0.5]),
    "over": lambda f, p, k: bare(landscape.over)(f, landscape.Plane(p, p, p), [0.0], [0.0]),
    "through": lambda f, p, k: bare(landscape.through)(p, p, p),
    "filter_normalised": lambda f, p, k: bare(landscape.filter_normalised)(p, k),
    "connect": lambda f, p, k: bare(landscape.connect)(lambda p, k: f(p), p, p, k, steps=1),
    "neighbourhood": lambda f, p, k: bare(landscape.neighbourhood)(f, p, k, num_directions=2, max_evaluations=1),
    "rescale": lambda f, p, k: bare(symmetry.rescale)(p, LAYERS, [1.0]),
}
# What takes a key, besides.
WITH_KEY = {
    "find": lambda f, p, k: bare(minima.find)(MODEL, DATA, k, minima.Recipe(2, epochs=1)),
    "starting_point": lambda f, p, k: bare(minima.starting_point)(MODEL, DATA, k),
    "train.start": lambda f, p, k: bare(train.start)(p, k),
    "audit": lambda f, p, k: bare(symmetry.audit)({}, {}, p, k),
    "draw": lambda f, p, k: bare(subspace.draw)(k, 4, 2),
    "draw_keys": lambda f, p, k: bare(sharpness.draw_keys)(k, 2),
    "over_batches": lambda f, p, k: objective.over_batches(jnp.multiply, jnp.ones((2, 2)), jnp.arange(2))(1.0, k),
    "relative_flatness": lambda f, p, k: bare(measures.relative_flatness)(f, p, k, layer=("a",)),
}
KEYLESS = {
    "restrict",
    "box",
    "product",
    "distance",
    "linear",
    "curvilinear",
    "bezier",
    "over",
    "through",
}
KEYLESS |= {"to_theta", "rescale", "collapsible", "sharpened"}
LOSSLESS = {"box", "distance", "linear", "curvilinear", "bezier", "over", "through", "filter_normalised", "to_eta"}
LOSSLESS |= {"to_theta", "rescale", "collapsible", "fisher_trace"}
MODEL = models.Model(lambda key, x: jnp.ones(2), lambda p, x: x * p[None], name="scale")
DATA = data.from_arrays(*(np.eye(2, dtype=np.float32), np.arange(2)) * 2)

OTHERS = {
    "int32": jnp.ones(1, int),
    "bool": jnp.ones(1, bool),
    "complex64": jnp.ones(1, complex),
    "int": 1,
    "str": "relu",
    r"key<fry>": KEY,  # of dropout, in a state of NNX
    "custom_jvp": jax.nn.relu,  # of an Equinox module
}


@pytest.mark.parametrize("name", CALLS)
def test_a_leaf_that_is_not_floating_point_is_named_with_what_to_do(name):
    for kind, leaf in OTHERS.items():
        with pytest.raises(ValueError, match=rf"params\['b'\] is of type {kind}; .* nnx.split, equinox.partition"):
            CALLS[name](lambda p: 1.0, {"a": jnp.ones((2, 2)), "b": leaf}, KEY)


@pytest.mark.parametrize("name", sorted((CALLS.keys() | WITH_KEY.keys()) - KEYLESS))
def test_a_key_of_the_old_kind_is_refused_everywhere(name):
    for key in (jax.random.PRNGKey(0), 0):
        with pytest.raises(ValueError, match="it must be one key, as from"):
            (CALLS | WITH_KEY)[name](linear, POINT, key)


@pytest.mark.parametrize("name", sorted(CALLS.keys() - LOSSLESS))
def test_a_loss_for_each_example_is_refused(name):
    for loss in (lambda p: jnp.ones(5) * linear(p), lambda p: jnp.ones(1) * linear(p), lambda p: (linear(p), 0)):
        with pytest.raises(ValueError, match=r"loss returned .* must return a floating-point scalar"):
            CALLS[name](loss, POINT, KEY)


def test_a_network_with_other_leaves_is_refused_before_it_is_trained():
    counting = MODEL._replace(init=lambda key, x: {"w": jnp.ones(2), "calls": jnp.zeros((), int)})
    with pytest.raises(ValueError, match=r"params\['calls'\] is of type int32"):
        minima.find(counting, DATA, KEY, minima.Recipe(2, epochs=1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_linear_loss_of_mixed_types_has_its_closed_form(dtype):
    """rho |g|_1, where steps of 1e-3 are 16 times as long as the distance of neighbours in bfloat16 at 0.01."""
    params = {"a": POINT["a"].astype(dtype), "b": POINT["b"]}
    found = measures.worst_case_linf(linear, params, KEY, max_evaluations=2)
    np.testing.assert_allclose(found, 1e-3 * np.abs(G).sum(), rtol=0.03)
    s = sharpness.full_space(linear, params, KEY, max_evaluations=2)
    base = float(linear(params))
    box = 1e-3 * (np.asarray(flat(params)) + 1)
    np.testing.assert_allclose(s.value, 100 * box @ np.abs(G) / (1 + base), rtol=0.03)
    np.testing.assert_allclose(hessian.trace(lambda p: (flat(p) ** 2).sum(), params, KEY, num_samples=2).value, 10)


COARSE = {"a": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.zeros(1)}
FINITE_STEPS = {
    "full_space": CALLS["full_space"],
    "random_subspaces": CALLS["random_subspaces"],
    "worst_case": lambda f, p, k: measures.worst_case(f, p, k, rho=1e-3, max_evaluations=2),
    "worst_case_linf": CALLS["worst_case_linf"],
    "average_case": lambda f, p, k: measures.average_case(f, p, k, rho=1e-3, num_samples=2),
    "pac_bayes_sigma": lambda f, p, k: measures.pac_bayes_sigma(
        lambda p: jnp.abs(p["b"]).sum(), p, k, rise=1e-9, steps=9, num_samples=2
    ),
    "neighbourhood": CALLS["neighbourhood"],
}


@pytest.mark.parametrize("name", FINITE_STEPS)
@pytest.mark.filterwarnings("ignore:.* does not resolve at a loss")
def test_steps_that_the_types_of_the_parameters_lose_are_told(name):
    """Neighbours of 1 in bfloat16 are 2^-7 and 2^-8 away."""
    with pytest.warns(RuntimeWarning, match=r"\d+% of a step .* is lost in rounding to bfloat16, float32"):
        FINITE_STEPS[name](linear, COARSE, KEY)


def test_float32_at_1e5_loses_steps_too():
    with pytest.warns(RuntimeWarning, match="100% of a step of this size is lost in rounding to float32"):
        assert measures.worst_case_linf(lambda x: x.sum() - 1e5, jnp.full(1, 1e5), KEY, max_evaluations=1) == 0


def test_a_frozen_dict_is_a_pytree_as_any():
    frozen = FrozenDict({"a": POINT["a"], "b": FrozenDict({"c": POINT["b"]})})
    found = measures.worst_case_linf(linear, frozen, KEY, max_evaluations=2)
    np.testing.assert_allclose(found, 1e-3 * np.abs(G).sum(), rtol=1e-3)
    assert isinstance(landscape.linear(frozen, frozen)(0.5), FrozenDict)


def test_the_distance_of_float16_does_not_overflow():
    """10,000 steps of 8 are 800 long; their squares add up to ten times the largest number of float16."""
    here = jnp.zeros(10_000, jnp.float16)
    assert minima._distance(here + 8, here) == 800
    assert measures.distance(here + 8, here) == 800


def test_other_shapes_are_refused_where_they_would_broadcast():
    A = subspace.draw(KEY, 4, 2)
    for words, call in {
        "different structures": lambda: hessian.product(linear, POINT, flat(POINT)),
        r"must be \(5,\)": lambda: sharpness.restrict(linear, POINT, None)(jnp.ones(1)),
        "A has 4 rows; it must have 5": lambda: sharpness.restrict(linear, POINT, A),
        "A has 4 rows": lambda: bare(sharpness.box)(POINT, A, 1e-3),
        r"shape \(5,\); it must be one number": lambda: landscape.linear(POINT, POINT)(jnp.ones(5)),
        r"shape \(4, 2\); it must be \(2, 4\)": lambda: subspace.draw(
            KEY, 4, 2, entries=lambda key, shape: jnp.ones(shape[::-1])
        ),
        r"layer is \('b',\), of shape \(1,\)": lambda: measures.relative_flatness(
            linear, POINT, KEY, layer=("b",)
        ),
    }.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_entries_of_whole_numbers_are_numbers():
    """Words of 32 bits would be read as 32 signs each."""
    A = subspace.draw(KEY, 4, 2, entries=lambda key, shape: jnp.full(shape, 3, jnp.uint32))
    np.testing.assert_array_equal(subspace.times(A, jnp.ones(2)), np.full(4, 6))


def fisher(apply):
    return bare(measures.fisher_trace)(apply, jnp.ones(2), jnp.ones((3, 2)), KEY, num_samples=2)


def test_logits_that_do_not_fit_are_refused_in_every_place():
    zeros, labels = jnp.zeros((4, 3)), jnp.zeros(4, int)
    for apply in (lambda p, x: x[:, :1], lambda p, x: x @ p, lambda p, x: x[:1], lambda p, x: (x, x)):
        with pytest.raises(ValueError, match=r"apply returned .* must be \[3, 2 classes or more\]"):
            fisher(apply)
    for function in (objective.cross_entropy, objective.accuracy):
        for bad in (labels[:, None], labels[0], jnp.zeros((4, 3)), jnp.zeros(4)):
            with pytest.raises(ValueError, match=r"labels is .* one whole number for each example"):
                bare(function)(zeros, bad)
        for bad in (zeros[:1], zeros[:, :1], zeros[:, 0], zeros[:, None]):
            with pytest.raises(ValueError, match=r"logits are .* must be"):
                bare(function)(bad, labels)
    for clip in (0, -1.0, 0.5, 2.0, np.nan, "1e-7", True):
        with pytest.raises(ValueError, match=f"clip is {clip!r}"):
            bare(objective.cross_entropy)(zeros, labels, clip=clip)


def test_a_network_that_gives_nan_is_right_nowhere():
    logits = jnp.array([[np.nan, np.nan], [1.0, 0.0], [-np.inf, 0.0]])
    np.testing.assert_array_equal(objective.accuracy(logits, jnp.array([0, 0, 1])), [np.nan, 1, 1])


def test_lists_and_numbers_of_numpy_are_taken():
    f = bare(objective.over_dataset)(lambda p, x: p * x, [[1.0, 0.0], [0.0, 1.0]], [0, 1], chunk=np.int64(1))
    np.testing.assert_allclose(f(1.0), np.log1p(np.exp(-1)), rtol=1e-6)
    network = bare(models.dense)(np.arange(3).max() + 1, widths=[4])
    assert network is models.dense(3, widths=(4,))
    for words, call in {
        "num_classes is 1": lambda: models.c1(1),
        "num_classes is 2.5": lambda: bare(models.f1)(2.5),
        r"widths\[1\] is 0": lambda: models.dense(3, widths=(4, 0)),
        "chunk is 1.5": lambda: bare(objective.over_dataset)(jnp.multiply, jnp.ones((2, 2)), [0, 1], chunk=1.5),
        "rho is True": lambda: measures.worst_case(linear, POINT, KEY, rho=True),
        "width is True": lambda: hessian.density(linear, POINT, KEY, width=True),
        "which is": lambda: bare(hessian.eigenpairs)(linear, POINT, KEY, which=["largest"]),
    }.items():
        with pytest.raises(ValueError, match=words):
            call()
    worst = bare(measures.worst_case)
    one = [float(worst(linear, POINT, KEY, rho=rho)) for rho in (0.5, np.float32(0.5), jnp.float32(0.5))]
    assert one == one[:1] * 3


def test_what_cannot_be_traced_says_so():
    for name, call in {
        "rho": lambda v: bare(measures.worst_case)(linear, POINT, KEY, rho=v),
        "eta": lambda v: bare(measures.worst_case)(linear, POINT, KEY, adaptive=True, eta=v),
        "rise": lambda v: bare(measures.pac_bayes_sigma)(linear, POINT, KEY, rise=v),
        "max_evaluations": lambda v: bare(sharpness.full_space)(linear, POINT, KEY, max_evaluations=v),
        "epsilon": lambda v: bare(landscape.neighbourhood)(linear, POINT, KEY, epsilon=v),
    }.items():
        with pytest.raises(ValueError, match=f"{name} is traced; it must be known outside jit, vmap and grad"):
            jax.vmap(call)(jnp.ones(2))


def test_what_decides_by_numbers_says_so():
    for call in (
        lambda key: minima.find(MODEL, DATA, key, minima.Recipe(2, epochs=1)),
        lambda key: train.fit(len, train.start(jnp.ones(2), key), DATA.x_train, DATA.y_train, batch_size=2),
        lambda key: hessian.eigenpairs(linear, jax.random.normal(key, (5,)), KEY),
        lambda key: symmetry.audit({}, {}, POINT, key),
    ):
        with pytest.raises(ValueError, match="depends on values and cannot be traced; call it outside jit, vmap"):
            jax.eval_shape(call, KEY)


def test_tokens_pass_as_they_are_and_images_are_scaled():
    tokens = np.array([[300, 1], [0, 255]])
    ds = data.from_arrays(tokens, np.arange(2), tokens.astype(np.int16), np.arange(2))
    assert ds.x_train.dtype == ds.x_test.dtype == jnp.int32
    embed = jnp.arange(301.0) / 300
    f = objective.over_dataset(lambda p, x: p[x], ds.x_train, ds.y_train)
    loss = (np.log1p(np.exp(-299 / 300)) + np.log1p(np.exp(-255 / 300))) / 2
    np.testing.assert_allclose(f(embed), loss, rtol=1e-6)
    value, (_, right) = jax.jit(train.batch_loss(methods.PLAIN, lambda p, x: p[x]))(
        embed, ds.x_train, ds.y_train, KEY
    )
    np.testing.assert_allclose([value, right], [loss, 1.0], rtol=1e-6)
    seen = models.Model(len, len, statistics=lambda p, x: x.max())
    images = jnp.array([[0, 51], [255, 0]], jnp.uint8)
    assert models.population_statistics(seen, 0, images) == 1
    assert models.population_statistics(seen, 0, ds.x_train) == 300


def test_a_noise_scale_without_a_signal_is_nan():
    """Gradients of 1 and -1, as often."""
    x, y = jnp.array([[1.0], [-1.0]] * 50), jnp.zeros(100, int)
    with pytest.warns(RuntimeWarning, match="not above 0, and the noise scale NaN"):
        found = measures.noise_scale(
            lambda p, x, y: (x @ p).mean(), jnp.ones(1), x, y, jax.random.key(3), small=1, large=2, num_samples=2
        )
    assert found.square <= 0 and np.isnan(found.value)


def convolutional(params):
    image = jnp.ones((2, 4, 4, 1))
    out = jax.lax.conv_general_dilated(
        image, params["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return 1 + (jnp.tanh(out) ** 2).sum()


def in_loops(jaxpr, inside=False):
    """Whether each convolution of a program lies within a loop that is not unrolled."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            found.append(inside)
        unrolled = eqn.primitive.name == "scan" and eqn.params["unroll"] >= eqn.params["length"]
        loop = inside or (eqn.primitive.name in ("scan", "while") and not unrolled)
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            found += in_loops(inner, loop)
    return found


LOOPED = ["full_space", "random_subspaces", "product", "trace", "worst_case", "worst_case_linf", "average_case"]
LOOPED += ["pac_bayes_sigma", "fisher_trace", "noise_scale", "linear", "over", "connect", "neighbourhood"]


def test_no_measure_has_a_convolution_in_a_loop():
    """XLA:CPU runs it many times slower there."""
    params = {"k": jnp.ones((3, 3, 1, 1))}
    for name in LOOPED:
        steps = jax.make_jaxpr(lambda p, name=name: jax.tree.leaves(CALLS[name](convolutional, p, KEY)))
        found = in_loops(steps(params).jaxpr)
        assert found and not any(found), name
    looped = jax.make_jaxpr(lambda k: jax.lax.map(lambda s: convolutional({"k": s * k}), jnp.ones(2)))
    assert in_loops(looped(params["k"]).jaxpr) == [True]


PIPELINE = """
import jax, jax.numpy as jnp, numpy as np
from gengap import data, hessian, landscape, measures, methods, minima, models, objective, sharpness
rng, keys = np.random.default_rng(0), iter(jax.random.split(jax.random.key(0), 20))
x, y = rng.integers(0, 256, (20, 4), np.uint8), np.arange(20) % 3
ds = data.from_arrays(x, y, x, y)
model = models.dense(3, widths=[4])
changes = methods.combine(methods.ghost_batch_norm(2), methods.adversarial(), methods.sam())
p = minima.find(model, ds, next(keys), minima.Recipe(10, method=changes, epochs=1, target=1e-9)).params
f = objective.over_dataset(model.apply, ds.x_train, ds.y_train)
s = sharpness.full_space(f, p, next(keys), max_evaluations=12)
r = sharpness.random_subspaces(f, p, next(keys), dim=3, num_draws=1, num_directions=1, max_evaluations=8)
out = [s.value, r.value, hessian.trace(f, p, next(keys), num_samples=2).value]
out += [measures.worst_case(f, p, next(keys), max_evaluations=2)]
out += [measures.worst_case_linf(f, p, next(keys), max_evaluations=8)]
assert np.isnan(r.sem)
r = sharpness.random_subspaces(
    f, p, next(keys), dim=3, num_draws=2, draws_at_once=2, num_directions=1, entries=jax.random.normal
)
measures.average_case(f, p, next(keys), num_samples=2)
measures.pac_bayes_sigma(lambda p: f(p), p, next(keys), num_samples=2, steps=2, rise=1e-3)
measures.fisher_trace(model.apply, p, ds.x_train, next(keys), num_samples=2)
landscape.connect(objective.over_batches(model.apply, ds.x_train, ds.y_train), p, p, next(keys), steps=2)
near = landscape.neighbourhood(lambda p: 0 * f(p), p, next(keys), num_directions=3, max_evaluations=1)
assert np.isnan(near.share) and np.isnan(near.mean_over_highest)
assert all(a.dtype == jnp.float32 and np.isfinite(a).all() and (a > 0).any() for a in out), out
"""


MODES = [
    {"JAX_DEBUG_NANS": "1", "JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    {
        "JAX_DEBUG_INFS": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_DEBUG_KEY_REUSE": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    },
]


@pytest.mark.parametrize("modes", MODES, ids=["nans, x64", "infs, strict, keys"])
def test_the_whole_way_in_other_modes_of_jax(modes):
    """Fillers of our own are no NaN and no infinity, and 64 bits leave float32 parameters alone."""
    run = [sys.executable, "-c", PIPELINE]
    env = {**os.environ, **modes}
    done = subprocess.run(run, cwd=Path(__file__).parents[1], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
