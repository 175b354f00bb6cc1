"""Metric 2.1: closed forms for a linear loss, dense linear algebra for the subspaces, and what is refused."""

import contextlib
import inspect
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from gengap import ascent, progress, sharpness, starts, subspace

KEY = jax.random.key(0)
X = {"a": jnp.array([[1.0, -2.0], [0.5, 0.0]]), "b": jnp.array([3.0, -0.1, 0.7])}
FLAT = np.array([1.0, -2.0, 0.5, 0.0, 3.0, -0.1, 0.7])
G = np.array([0.1, 0.2, -0.3, 0.4, 0.05, -0.6, 0.0])


def linear(params):
    return 2.0 + jnp.concatenate([params["a"].ravel(), params["b"]]) @ jnp.asarray(G, jnp.float32)


# One shape for most calls, since each other one is compiled anew.
DRAWS = {"dim": 3, "epsilon": (0.1, 0.01), "max_evaluations": 12}


def test_every_purpose_has_a_key_of_its_own(monkeypatch):
    """Tiles of A, restarts of the ascents and directions: no two have one key."""
    ascents = []

    def maximise(evaluate, radius, centre, starts, key, *, max_evaluations):
        ascents.append(key)
        return ascent.Maximum(radius, centre[0] + 1, jnp.int32(1), jnp.bool_(True))

    monkeypatch.setattr(sharpness.ascent, "maximise", maximise)
    sharpness.random_subspaces(linear, X, KEY, num_draws=4, **DRAWS | {"epsilon": 0.1})
    assert len(ascents) == 4
    draws = [*sharpness.draw_keys(KEY, 4)]
    used = [*draws, *ascents, *jax.random.split(KEY, 4)[2:]]
    used += [k for draw in draws for k in jax.random.split(draw, 3)]  # of the tiles
    used += [jax.random.fold_in(key, i) for key in ascents for i in range(3)]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in used}) == len(used)


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_a_key_whose_numbers_depend_on_how_many_are_drawn_is_refused(kind):
    with pytest.raises(ValueError, match=f"key is of kind {kind}, whose numbers change with how many"):
        sharpness.random_subspaces(linear, X, jax.random.key(0, impl=kind), dim=2, num_draws=2)


def waves(params):
    return 1 + jnp.sum(jnp.sin(3 * params["a"]) ** 2) + 0.3 * jnp.sum(jnp.cos(4 * params["b"]))


BASE = 2.0 + G @ FLAT


@pytest.mark.parametrize("epsilon", [1e-3, 0.5, (1e-3, 5e-4, 0.1), [0.2]])
def test_full_space_of_a_linear_loss(epsilon):
    s = sharpness.full_space(linear, X, KEY, epsilon=epsilon)
    expected = 100 * np.array(epsilon) * np.sum(np.abs(G) * (np.abs(FLAT) + 1)) / (1 + BASE)
    assert s.value.shape == s.base_loss.shape == s.max_loss.shape == np.shape(epsilon)
    np.testing.assert_allclose(s.value, expected, rtol=2e-3)
    np.testing.assert_allclose(s.base_loss, np.full(np.shape(epsilon), BASE), rtol=1e-6)
    np.testing.assert_allclose(s.max_loss, BASE + expected / 100 * (1 + BASE), rtol=1e-6)
    assert np.all(s.finite) and np.all(s.evaluations == 24)


B = np.random.default_rng(0).normal(size=(3, 7))


def fixed(key, shape):
    assert shape == B.shape
    return jnp.asarray(B, jnp.float32)


def same(key, shape):
    return jnp.ones(shape)


@pytest.mark.parametrize(("entries", "A"), [(fixed, B.T), (same, np.ones((7, 3)))], ids=["fixed", "dependent"])
def test_random_subspaces_of_a_linear_loss(entries, A):
    """Dependent columns have the box of the pseudo-inverse."""
    epsilons = np.array([0.1, 0.01])
    radius = epsilons[:, None] * (np.abs(np.linalg.pinv(A) @ FLAT) + 1)
    rise = (radius * np.abs(A.T @ G)).sum(1)
    s = sharpness.random_subspaces(linear, X, KEY, entries=entries, num_draws=2, **DRAWS)
    assert s.value.shape == s.max_loss.shape == (2, 2)
    np.testing.assert_allclose(s.value, np.stack([100 * rise / (1 + BASE)] * 2, 1), rtol=2e-3)
    np.testing.assert_allclose(s.mean, 100 * rise / (1 + BASE), rtol=2e-3)
    np.testing.assert_allclose(s.sem, [0.0, 0.0], atol=1e-5)


def test_columns_of_signs_have_their_closed_form():
    centre = jax.tree.map(jnp.zeros_like, X)
    s = sharpness.random_subspaces(linear, centre, KEY, num_draws=3, **DRAWS)
    for key, value in zip(sharpness.draw_keys(KEY, 3), s.value[0], strict=True):
        A = np.asarray(subspace.signs(key, (3, 7)))
        assert float(value) == pytest.approx(100 * 0.1 * np.abs(A @ G).sum() / 3, rel=1e-3)


def drawn_with(values):
    ones = jnp.ones_like(values)
    return sharpness.SubspaceSharpness(values, ones, ones, ones.astype(int), ones > 0, ones.astype(int), ones)


def test_no_standard_error_of_one_draw_and_no_mean_over_the_epsilons():
    one = drawn_with(jnp.full((2, 1), 3.0))
    assert one.mean.tolist() == [3.0, 3.0] and np.isnan(one.sem).tolist() == [True, True]
    two = drawn_with(jnp.array([[162.0, 163.0], [22.0, 23.0]]))
    assert two.mean.tolist() == [162.5, 22.5] and two.sem.tolist() == pytest.approx([0.5, 0.5])
    assert not hasattr(sharpness.Sharpness, "mean")


def draw(key=KEY, num_draws=4, **arguments):
    return sharpness.random_subspaces(waves, X, key, num_draws=num_draws, **DRAWS | arguments)


@pytest.fixture(scope="module")
def drawn():
    return draw()


def near(a, b, tolerance=1e-4):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance), a, b)


def test_the_same_key_gives_the_same_numbers(drawn):
    near(draw(), drawn, 0)
    assert not np.any(draw(jax.random.key(1)).value == drawn.value)
    assert len(set(np.asarray(drawn.value[0]).tolist())) == 4


def test_all_epsilons_look_into_the_same_subspaces(drawn):
    alone = draw(epsilon=0.01)
    assert alone.value.shape == (4,)
    near(alone, jax.tree.map(lambda a: a[1], drawn))


def test_values_are_what_the_metric_says(drawn):
    base = float(waves(X))
    np.testing.assert_allclose(drawn.base_loss, np.full((2, 4), base), rtol=1e-6)
    np.testing.assert_allclose(drawn.value, 100 * (drawn.max_loss - base) / (1 + base), rtol=1e-3, atol=1e-3)
    assert np.all(drawn.value > 0) and np.all(drawn.value[0] > drawn.value[1])
    assert np.all(drawn.evaluations == 12)


@pytest.mark.parametrize("budget", [3, 12])
def test_the_gradients_that_are_counted_are_those_that_are_computed(budget, counted):
    loss, spent = counted
    how = {"epsilon": (0.1, 0.01), "max_evaluations": budget}
    full = sharpness.full_space(loss, X, KEY, **how)
    assert full.evaluations.tolist() == [budget] * 2 and spent() == 1 + 2 * budget
    s = sharpness.random_subspaces(loss, X, KEY, num_draws=4, **DRAWS | how)
    assert s.evaluations.tolist() == [[budget] * 4] * 2 and s.shared_evaluations.tolist() == [[36] * 4] * 2
    assert spent() == 1 + 2 * (36 + 4 * budget)


@pytest.fixture(scope="module")
def counted():
    """A loss, and how often it was computed since the last call."""
    calls = []

    def loss(params):
        jax.debug.callback(lambda: calls.append(0))
        return waves(params)

    def spent():
        jax.effects_barrier()
        count = len(calls)
        calls.clear()
        return count

    return loss, spent


def test_more_draws_leave_the_first_ones_as_they_are(drawn):
    np.testing.assert_array_equal(draw(num_draws=2).value, drawn.value[:, :2])


def test_directions_are_the_gradient_and_orthonormal_ones_that_lead_to_the_highest_corners():
    f, x = jax.value_and_grad(lambda x: 1 + jnp.cosh(3 * x[0]) + 0.1 * x[1]), jnp.zeros(20)
    directions = starts.directions(jax.jit(f), x, jnp.ones(20), KEY, 0.3, 3, 4)
    np.testing.assert_array_equal(directions[0], jnp.ones(20))
    np.testing.assert_allclose(directions[1:3] @ directions[1:3].T, np.eye(2), atol=1e-5)
    assert abs(float(directions[1, 0])) > 0.9


def measures(loss):
    def full(params):
        return sharpness.full_space(loss, params, KEY, epsilon=0.1, max_evaluations=3)

    def random(params):
        how = DRAWS | {"epsilon": 0.1, "num_directions": 0, "max_evaluations": 2}
        return sharpness.random_subspaces(loss, params, KEY, num_draws=1, **how)

    return full, random


@pytest.mark.filterwarnings("ignore:.* does not resolve at a loss")
@pytest.mark.parametrize("which", [0, 1], ids=["full", "random"])
def test_vmap_over_parameters_and_jit_equal_a_loop(which):
    measure = measures(waves)[which]
    several = jax.tree.map(lambda a: jnp.stack([a, a + 0.3]), X)
    together = jax.jit(jax.vmap(measure))(several)
    for i in range(2):
        near(jax.tree.map(lambda a, i=i: a[i], together), measure(jax.tree.map(lambda a, i=i: a[i], several)))


def test_vmap_over_the_data_of_a_loss_equals_a_loop():
    def measure(shift):
        loss = Partial(lambda s, p: waves(jax.tree.map(lambda a: a + s, p)), shift)
        return sharpness.full_space(loss, X, KEY, max_evaluations=2)

    shifts = jnp.array([0.0, 0.2])
    near(jax.vmap(measure)(shifts), jax.tree.map(lambda *a: jnp.stack(a), *map(measure, shifts)))


def loss_of(data, params):
    return 1 + jnp.sum(jnp.sin(params["a"] * data.sum())) + params["b"].sum() ** 2


@pytest.mark.parametrize("kind", ["full", "random"])
def test_a_second_call_compiles_nothing(caplog, kind):
    other = jax.tree.map(lambda a: 2 * a, X)
    keys = [jax.random.key(5), jax.random.key(6)]
    data = [jnp.arange(3.0), jnp.arange(3.0) + 1]

    def call(i, params, epsilon):
        loss = Partial(loss_of, data[i])
        if kind == "full":
            return sharpness.full_space(loss, params, keys[i], epsilon=epsilon)
        return sharpness.random_subspaces(loss, params, keys[i], num_draws=2, **DRAWS | {"epsilon": epsilon}).mean

    call(0, X, (0.1, 0.2))
    with jax.log_compiles():
        call(1, other, (0.3, 0.01))
        assert not [r for r in caplog.records if "XLA compilation" in r.getMessage()]


def test_the_restriction_to_a_subspace_is_the_function_that_is_maximised(drawn):
    key = sharpness.draw_keys(KEY, 4)[3]
    A = subspace.draw(key, 7, 3)
    fn, box = sharpness.restrict(waves, X, A), sharpness.box(X, A, 0.1)
    dense = np.asarray(subspace.signs(key, (3, 7)), np.float64).T
    np.testing.assert_allclose(box, 0.1 * (np.abs(np.linalg.pinv(dense) @ FLAT) + 1), rtol=1e-4)
    np.testing.assert_allclose(sharpness.box(X, None, 0.1), 0.1 * (np.abs(FLAT) + 1), rtol=1e-5)
    y = 0.3 * box
    assert float(fn(y)) == pytest.approx(float(waves(unflat(FLAT + dense @ np.asarray(y)))), rel=1e-5)
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=3))) * np.asarray(box)
    assert float(drawn.max_loss[0, 3]) >= 0.99 * max(float(fn(jnp.asarray(corner))) for corner in corners)


def unflat(x):
    return {"a": jnp.asarray(x[:4], jnp.float32).reshape(2, 2), "b": jnp.asarray(x[4:], jnp.float32)}


def test_progress_changes_nothing(drawn, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "_SECONDS_BEFORE_A_BAR", 0.0)
    near(draw(progress="waves"), drawn)
    assert "waves" in capsys.readouterr().err


@pytest.mark.parametrize("at_once", [1, 2])
def test_progress_counts_every_gradient_and_draws_at_once_change_nothing(drawn, monkeypatch, at_once):
    totals, done = [], []
    begin, count = progress.line, progress.Line.update
    monkeypatch.setattr(
        progress, "line", lambda words, total, unit: totals.append(total) or begin(words, total, unit)
    )
    monkeypatch.setattr(progress.Line, "update", lambda line, units=1: done.append(units) or count(line, units))
    if at_once == 1:
        full = sharpness.full_space(waves, X, KEY, epsilon=(0.1, 0.01), max_evaluations=7, progress="waves")
        assert totals == [sum(done)] == [full.evaluations.sum()]
        totals.clear()
        done.clear()
    s = draw(num_draws=3, draws_at_once=at_once, progress="waves")
    near(s, jax.tree.map(lambda a: a[:, :3], drawn))
    assert totals == [sum(done)] == [s.evaluations.sum() + s.shared_evaluations[:, 0].sum()]


@pytest.mark.parametrize("asked", [None, "tensorfloat32", "bfloat16"])
def test_matrix_products_are_float32_unless_others_are_asked_for(asked):
    seen = []

    def loss(x):
        seen.append(jax.config.jax_default_matmul_precision)
        return jnp.nan + x @ x

    context = jax.default_matmul_precision(asked) if asked else contextlib.nullcontext()
    with context, pytest.raises(ValueError, match="is nan"):  # after the first gradient
        sharpness.full_space(loss, jnp.ones(3), KEY)
    assert set(seen) == {asked or "float32"}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_points_of_low_precision_parameters_are_computed_in_float32(dtype):
    seen = []

    def loss(params):
        seen.append({leaf.dtype for leaf in jax.tree.leaves(params)})
        return linear(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))

    low = {**X, "a": X["a"].astype(dtype)}
    s = sharpness.full_space(loss, low, KEY, epsilon=0.5, max_evaluations=1)
    assert s.value.dtype == jnp.float32 and all(
        types == {jnp.dtype(dtype), jnp.dtype("float32")} for types in seen
    )
    exact = sharpness.full_space(linear, X, KEY, epsilon=0.5, max_evaluations=1)
    assert float(s.value) == pytest.approx(float(exact.value), rel=2e-2)


def test_float32_parameters_stay_so_in_x64_mode():
    def few(params):
        return sharpness.random_subspaces(linear, params, KEY, num_draws=1, **DRAWS)

    with jax.enable_x64(True):
        assert jax.eval_shape(few, X).value.dtype == jnp.float32
        d = sharpness.full_space(lambda x: 1 + (x**2).sum(), jnp.ones(9), KEY, epsilon=0.1, max_evaluations=1)
        assert d.value.dtype == jnp.float64
        assert float(d.value) == pytest.approx(100 * 9 * (1.2**2 - 1) / 11, rel=1e-12)


def tiny(params):
    return 1 + 1e-9 * params["b"].sum()


def test_a_rise_that_the_arithmetic_does_not_resolve_is_told():
    with pytest.warns(RuntimeWarning, match="2 of 2 values .* float32 does not resolve"):
        sharpness.full_space(tiny, X, KEY, epsilon=(0.1, 0.01), max_evaluations=3)


@pytest.mark.parametrize(("start", "words"), [(jnp.nan, "is nan"), (jnp.inf, "is inf"), (-9.0, "above -1")])
def test_a_loss_that_has_no_metric_is_an_error(start, words):
    with pytest.raises(ValueError, match=words):
        sharpness.random_subspaces(lambda x: x.sum() + start, jnp.ones(3), KEY, dim=2, num_draws=2)


def below(params):
    return params["b"].sum() - 4


def test_a_loss_below_0_is_told():
    with pytest.warns(RuntimeWarning, match="below 0"):
        sharpness.full_space(below, X, KEY, epsilon=0.1, max_evaluations=1)


def test_an_overflow_in_one_draw_is_told_and_leaves_the_others_unharmed():
    def walled(params):
        return linear(params) + jnp.where(params["b"][0] > 3.2, jnp.inf, 0)

    how = DRAWS | {"num_directions": 0, "epsilon": 0.1, "max_evaluations": 2}
    with pytest.warns(RuntimeWarning, match="of 12 values are lower bounds"):
        s = sharpness.random_subspaces(walled, X, KEY, num_draws=12, **how)
    assert np.isfinite(s.value).all() and 0 < np.sum(s.finite) < 12
    free = sharpness.random_subspaces(linear, X, KEY, num_draws=12, **how)
    np.testing.assert_allclose(s.value[s.finite], free.value[s.finite], rtol=1e-4)


NAN = float("nan")
BAD = [
    ({"epsilon": 0.0}, "epsilon"),
    ({"epsilon": -1e-3}, "epsilon"),
    ({"epsilon": NAN}, "epsilon"),
    ({"epsilon": float("inf")}, "epsilon"),
    ({"epsilon": ()}, "epsilon"),
    ({"epsilon": (1e-3, 0.0)}, "epsilon"),
    ({"max_evaluations": 0}, "max_evaluations"),
    ({"params": {"a": jnp.arange(3), "b": jnp.ones(2)}}, r"params\['a'\] is of type int32"),
    ({"params": {"a": jnp.ones(3), "b": jnp.ones(2, complex)}}, r"params\['b'\] is of type complex64"),
    ({"params": {}}, "no leaves"),
    ({"loss": lambda params: params["b"]}, "scalar"),
    ({"loss": lambda params: (params["b"].sum(), 0.0)}, "scalar"),
    ({"key": jnp.zeros(2, jnp.uint32)}, "key"),
    ({"key": 0}, "key"),
    ({"key": jax.random.split(KEY, 2)}, "key"),
]
BAD_DRAWS = [
    ({"dim": 0}, "dim is 0"),
    ({"dim": 8}, "dim is 8.* 7"),
    ({"num_draws": 0}, "num_draws"),
    ({"draws_at_once": 0}, "draws_at_once"),
]


def refused(call, how, words, **arguments):
    arguments = {"loss": linear, "params": X, "key": KEY, **arguments, **how}
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(call)(**arguments)


@pytest.mark.parametrize(("how", "words"), BAD)
def test_full_space_refuses(how, words):
    refused(sharpness.full_space, how, words)


@pytest.mark.parametrize(("how", "words"), BAD + BAD_DRAWS)
def test_random_subspaces_refuses(how, words):
    refused(sharpness.random_subspaces, how, words, **({} if "dim" in how else {"dim": 2}))
