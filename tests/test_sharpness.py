"""Metric 2.1: closed forms for a linear loss, dense linear algebra for the subspaces, and what is refused."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial

from gengap import ascent, loops, sharpness, subspace

KEY = jax.random.key(0)
X = {"a": jnp.array([[1.0, -2.0], [0.5, 0.0]]), "b": jnp.array([3.0, -0.1, 0.7])}
FLAT = np.array([1.0, -2.0, 0.5, 0.0, 3.0, -0.1, 0.7])
G = np.array([0.1, 0.2, -0.3, 0.4, 0.05, -0.6, 0.0])


def linear(params):
    return 2.0 + jnp.concatenate([params["a"].ravel(), params["b"]]) @ jnp.asarray(G, jnp.float32)


def waves(params):
    return 1 + jnp.sum(jnp.sin(3 * params["a"]) ** 2) + 0.3 * jnp.sum(jnp.cos(4 * params["b"]))


BASE = 2.0 + G @ FLAT


@pytest.mark.parametrize("epsilon", [1e-3, 0.5, (1e-3, 5e-4, 0.1), [0.2]])
def test_full_space_of_a_linear_loss(epsilon):
    s = sharpness.full_space(linear, X, epsilon=epsilon)
    expected = 100 * np.array(epsilon) * np.sum(np.abs(G) * (np.abs(FLAT) + 1)) / (1 + BASE)
    assert s.value.shape == s.base_loss.shape == s.max_loss.shape == np.shape(epsilon)
    np.testing.assert_allclose(s.value, expected, rtol=2e-3)
    np.testing.assert_allclose(s.base_loss, np.full(np.shape(epsilon), BASE), rtol=1e-6)
    np.testing.assert_allclose(s.max_loss, BASE + expected / 100 * (1 + BASE), rtol=1e-6)
    assert np.all(s.finite) and np.all(s.evaluations >= 2)


B = np.random.default_rng(0).normal(size=(3, 7))


def fixed(key, shape):
    assert shape == B.shape
    return jnp.asarray(B, jnp.float32)


@pytest.mark.parametrize("normalise", [False, True])
def test_random_subspaces_of_a_linear_loss(normalise):
    A = (B / np.linalg.norm(B, axis=1, keepdims=True) if normalise else B).T
    epsilons = np.array([0.1, 0.01])
    radius = epsilons[:, None] * (np.abs(np.linalg.pinv(A) @ FLAT) + 1)
    rise = (radius * np.abs(A.T @ G)).sum(1)
    s = sharpness.random_subspaces(
        linear, X, KEY, dim=3, num_draws=2, epsilon=(0.1, 0.01), columns=fixed, normalise=normalise
    )
    assert s.value.shape == s.max_loss.shape == (2, 2)
    np.testing.assert_allclose(s.value, np.stack([100 * rise / (1 + BASE)] * 2, 1), rtol=2e-3)
    np.testing.assert_allclose(s.mean, 100 * rise / (1 + BASE), rtol=2e-3)
    np.testing.assert_allclose(s.sem, [0.0, 0.0], atol=1e-5)


def test_columns_are_standard_normal():
    centre = jax.tree.map(jnp.zeros_like, X)
    s = sharpness.random_subspaces(linear, centre, KEY, dim=5, num_draws=400, epsilon=0.1)
    draws = 100 * 0.1 / 3 * np.linalg.norm(G) * np.sqrt(2 / np.pi) * 5  # 5 values of |N(0, |g|^2)|
    assert float(s.mean) == pytest.approx(draws, rel=4 * 0.76 / np.sqrt(5 * 400))
    assert float(s.value.std()) == pytest.approx(draws * np.sqrt(np.pi / 2 - 1) / np.sqrt(5), rel=0.2)
    assert float(s.sem) == pytest.approx(float(np.std(s.value, ddof=1)) / 20, rel=1e-3)


def test_no_standard_error_of_one_draw():
    s = sharpness.Sharpness(
        *[jnp.full((2, 1), 3.0)] * 3, jnp.ones((2, 1), int), jnp.ones((2, 1), bool), jnp.ones((2, 1, 4))
    )
    assert s.mean.tolist() == [3.0, 3.0] and np.isnan(s.sem).tolist() == [True, True]


@pytest.fixture(scope="module")
def drawn():
    return sharpness.random_subspaces(waves, X, KEY, dim=3, num_draws=5, epsilon=(0.1, 0.01))


def near(a, b, tolerance=1e-4):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance), a, b)


def test_the_same_key_gives_the_same_numbers(drawn):
    again = sharpness.random_subspaces(waves, X, KEY, dim=3, num_draws=5, epsilon=(0.1, 0.01))
    near(again, drawn, 0)
    other = sharpness.random_subspaces(waves, X, jax.random.key(1), dim=3, num_draws=5, epsilon=(0.1, 0.01))
    assert not np.any(other.value == drawn.value)
    assert len(set(np.asarray(drawn.value[0]).tolist())) == 5


def test_all_epsilons_look_into_the_same_subspaces(drawn):
    alone = sharpness.random_subspaces(waves, X, KEY, dim=3, num_draws=5, epsilon=0.01)
    assert alone.value.shape == (5,)
    near(alone, jax.tree.map(lambda a: a[1], drawn))


@pytest.mark.parametrize("at_once", [2])
def test_draws_at_once_changes_nothing(drawn, at_once):
    s = sharpness.random_subspaces(waves, X, KEY, dim=3, num_draws=5, epsilon=(0.1, 0.01), draws_at_once=at_once)
    near(s, drawn)


def test_values_are_what_the_metric_says(drawn):
    base = float(waves(X))
    np.testing.assert_allclose(drawn.base_loss, np.full((2, 5), base), rtol=1e-6)
    np.testing.assert_allclose(drawn.value, 100 * (drawn.max_loss - base) / (1 + base), rtol=1e-3, atol=1e-3)
    assert np.all(drawn.value > 0) and np.all(drawn.value[0] > drawn.value[1])
    assert np.all(drawn.evaluations <= 12)


@pytest.mark.parametrize(("draws", "budget"), [(None, 5), (None, 12), (1, 12), (10, 12), (7, 6)])
def test_the_gradients_that_are_counted_are_those_that_are_computed(draws, budget):
    calls = itertools.count()

    def counted(params):
        jax.debug.callback(lambda: next(calls))
        return waves(params)

    how = {"epsilon": 0.1, "max_evaluations": budget}
    if draws is None:
        s = sharpness.full_space(counted, X, **how)
    else:
        s = sharpness.random_subspaces(counted, X, KEY, dim=3, num_draws=draws, **how)
    jax.effects_barrier()
    unspent = int(s.evaluations.sum()) - next(calls)
    assert s.evaluations.max() == budget and 0 <= unspent < (draws or 1)


@pytest.mark.parametrize("draws", [1, 6, 10])
def test_the_fewest_gradients_of_a_draw_find_the_maximum_of_a_linear_loss(draws):
    few, many = (
        sharpness.random_subspaces(linear, X, KEY, dim=3, num_draws=draws, epsilon=0.1, max_evaluations=most)
        for most in (2, 12)
    )
    assert np.all(few.evaluations <= 2) and np.all(many.value > 0)
    np.testing.assert_allclose(few.value, many.value, rtol=1e-4)


def measures(loss):
    def full(params):
        return sharpness.full_space(loss, params, epsilon=0.1)

    def random(params):
        return sharpness.random_subspaces(loss, params, KEY, dim=2, num_draws=2, epsilon=(0.1, 0.01))

    return full, random


def picture(params):
    x = jnp.cos(jnp.arange(16.0)).reshape(1, 1, 4, 4)
    kernel = params["a"][None, None] + params["b"][0]
    return jnp.mean(jnp.tanh(lax.conv_general_dilated(x, kernel, (1, 1), "SAME") - params["b"][1]) ** 2)


@pytest.mark.parametrize(("loss", "which"), [(waves, 1), (picture, 0)], ids=["random", "full, convolution"])
def test_vmap_over_parameters_equals_a_loop(loss, which):
    measure = measures(loss)[which]
    several = jax.tree.map(lambda a: jnp.stack([a, a + 0.3]), X)
    together = jax.vmap(measure)(several)
    for i in range(2):
        near(jax.tree.map(lambda a, i=i: a[i], together), measure(jax.tree.map(lambda a, i=i: a[i], several)))


def test_a_convolution_on_the_cpu_gives_the_numbers_of_the_compiled_loop():
    full, random = (measure(X) for measure in measures(picture))
    compiled = [jax.jit(measure)(X) for measure in measures(picture)]
    assert loops.in_python(picture, X)
    near([full, random], compiled)


def test_vmap_over_the_data_of_a_loss_equals_a_loop():
    def measure(shift):
        return sharpness.full_space(Partial(lambda s, p: picture(jax.tree.map(lambda a: a + s, p)), shift), X)

    shifts = jnp.array([0.0, 0.2])
    near(jax.vmap(measure)(shifts), jax.tree.map(lambda *a: jnp.stack(a), *map(measure, shifts)))


def test_jit_from_outside_gives_the_same_numbers(drawn):
    def measure(params, key):
        return sharpness.random_subspaces(waves, params, key, dim=3, num_draws=5, epsilon=(0.1, 0.01))

    near(jax.jit(measure)(X, KEY), drawn)


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
            return sharpness.full_space(loss, params, epsilon=epsilon)
        return sharpness.random_subspaces(loss, params, keys[i], dim=2, num_draws=3, epsilon=epsilon).mean

    call(0, X, (0.1, 0.2))
    with jax.log_compiles():
        call(1, other, (0.3, 0.01))
        assert not [r for r in caplog.records if "XLA compilation" in r.getMessage()]


def test_the_restriction_to_a_subspace_is_the_function_that_is_maximised(drawn):
    A = subspace.draw(sharpness.draw_keys(KEY, 5)[3], 7, 3)
    fn, radius = sharpness.restrict(waves, X, A), sharpness.radius(X, A, 0.1)
    dense = np.asarray(A.kept, np.float64).T
    np.testing.assert_allclose(radius, 0.1 * (np.abs(np.linalg.pinv(dense) @ FLAT) + 1), rtol=1e-4)
    y = 0.3 * radius
    assert float(fn(y)) == pytest.approx(float(waves(unflat(FLAT + dense @ np.asarray(y)))), rel=1e-5)
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=3))) * np.asarray(radius)
    assert float(drawn.max_loss[0, 3]) >= 0.99 * max(float(fn(jnp.asarray(corner))) for corner in corners)


def unflat(x):
    return {"a": jnp.asarray(x[:4], jnp.float32).reshape(2, 2), "b": jnp.asarray(x[4:], jnp.float32)}


def test_what_does_not_fit_is_drawn_again_and_gives_the_same_numbers(drawn, monkeypatch):
    monkeypatch.setattr(sharpness, "_memory", lambda: 0)
    near(sharpness.random_subspaces(waves, X, KEY, dim=3, num_draws=5, epsilon=(0.1, 0.01)), drawn)


def test_progress_changes_nothing(drawn, capsys):
    s = sharpness.random_subspaces(waves, X, KEY, dim=3, num_draws=5, epsilon=(0.1, 0.01), progress="waves")
    near(s, drawn)
    assert "waves" in capsys.readouterr().err


@pytest.mark.parametrize("precision", sharpness.PRECISIONS)
def test_precision_reaches_the_matrix_products(precision):
    seen = []

    def loss(x):
        seen.append(jax.config.jax_default_matmul_precision)
        return 1 + x @ x

    sharpness.full_space(loss, jnp.ones(3), epsilon=0.1, precision=precision)
    assert precision in seen


def test_the_bootstrap_interval_covers_the_mean_of_normal_draws_as_often_as_it_says():
    values = np.random.default_rng(0).normal(3, 1, (200, 12))
    rest = [jnp.ones_like(values)] * 4
    interval = sharpness.Sharpness(jnp.asarray(values), *rest, jnp.ones((200, 12, 4))).interval(0.9)
    assert interval.shape == (200, 2)
    covered = np.mean((interval[:, 0] < 3) & (interval[:, 1] > 3))
    assert 0.8 < covered < 0.95  # of 12 draws a bootstrap covers a little less than its level


def test_no_interval_of_one_draw_and_none_around_equal_ones():
    def interval(values):
        return sharpness.Sharpness(jnp.asarray(values), *[jnp.ones(len(values))] * 5).interval()

    assert np.isnan(interval([3.0])).all()
    np.testing.assert_array_equal(interval([3.0, 3.0]), [3.0, 3.0])


def test_a_rise_that_the_arithmetic_does_not_resolve_is_told():
    with pytest.warns(RuntimeWarning, match="2 of 2 values .* float32 does not resolve"):
        sharpness.full_space(lambda x: 1 + 1e-9 * x.sum(), jnp.ones(3), epsilon=(0.1, 0.01))


@pytest.mark.parametrize("start", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_at_x_is_an_error(start):
    with pytest.raises(ValueError, match=r"loss\(params\) is (nan|inf)"):
        sharpness.random_subspaces(lambda x: x.sum() + start, jnp.ones(3), KEY, dim=2, num_draws=2)


def test_dependent_columns_are_an_error():
    def same(key, shape):
        return jnp.ones(shape)

    with pytest.raises(ValueError, match="dependent"):
        sharpness.random_subspaces(linear, X, KEY, dim=2, num_draws=2, columns=same)


def test_an_overflow_in_one_draw_leaves_the_others_unharmed():
    def walled(x):
        return 1 + x.sum() + jnp.where(x[0] > 1.2, jnp.inf, 0)

    s = sharpness.random_subspaces(walled, jnp.ones(9), KEY, dim=3, num_draws=12, epsilon=0.1)
    assert np.isfinite(s.value).all() and 0 < np.sum(s.finite) < 12
    free = sharpness.random_subspaces(lambda x: 1 + x.sum(), jnp.ones(9), KEY, dim=3, num_draws=12, epsilon=0.1)
    np.testing.assert_allclose(s.value[s.finite], free.value[s.finite], rtol=1e-4)


@pytest.mark.parametrize("maximiser", [ascent.gradient, ascent.lbfgs])
def test_any_maximiser_of_the_same_signature_serves(maximiser):
    s = sharpness.full_space(linear, X, epsilon=0.1, maximiser=maximiser, max_evaluations=50)
    np.testing.assert_allclose(s.value, 10 * np.sum(np.abs(G) * (np.abs(FLAT) + 1)) / (1 + BASE), rtol=2e-3)


def test_an_overflow_is_told():
    def steep(params):
        return jnp.exp(1e3 * jnp.abs(params["b"][0] - 3)) - 1

    s = sharpness.full_space(steep, X, epsilon=1.0)
    assert not s.finite


NAN = float("nan")
BAD = [
    ({"epsilon": 0.0}, "epsilon"),
    ({"epsilon": -1e-3}, "epsilon"),
    ({"epsilon": NAN}, "epsilon"),
    ({"epsilon": float("inf")}, "epsilon"),
    ({"epsilon": ()}, "epsilon"),
    ({"epsilon": (1e-3, 0.0)}, "epsilon"),
    ({"max_evaluations": 1}, "max_evaluations"),
    ({"num_starts": 0}, "num_starts"),
    ({"precision": "float8"}, "precision"),
    ({"params": {"a": jnp.arange(3), "b": jnp.ones(2)}}, "int32"),
    ({"params": {}}, "no leaves"),
    ({"loss": lambda params: params["b"]}, "scalar"),
    ({"loss": lambda params: (params["b"].sum(), 0.0)}, "scalar"),
]
BAD_DRAWS = [
    ({"dim": 0}, "dim is 0"),
    ({"dim": 8}, "dim is 8.* 7"),
    ({"num_draws": 0}, "num_draws"),
    ({"draws_at_once": 0}, "draws_at_once"),
    ({"key": jnp.zeros(2, jnp.uint32)}, "key"),
    ({"key": 0}, "key"),
    ({"key": jax.random.split(KEY, 2)}, "key"),
]


def refused(monkeypatch, call, how, words, **arguments):
    monkeypatch.setattr(sharpness, "_measure", lambda *args, **how: pytest.fail("it was computed"))
    arguments = {"loss": linear, "params": X, **arguments, **how}
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(call)(**arguments)


@pytest.mark.parametrize(("how", "words"), BAD)
def test_full_space_refuses(monkeypatch, how, words):
    refused(monkeypatch, sharpness.full_space, how, words)


@pytest.mark.parametrize(("how", "words"), BAD + BAD_DRAWS)
def test_random_subspaces_refuses(monkeypatch, how, words):
    refused(monkeypatch, sharpness.random_subspaces, how, words, key=KEY, dim=2)
