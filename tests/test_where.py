"""Where a sharpness lies: its layers, its step, the eigenvectors; and some leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gengap import data, flat, hessian, landscape, measures, models, objective, sharpness, subspace, train

KEY = jax.random.key(0)
PARAMS = {"a": {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}, "c": {"w": jnp.array([3.0])}}
RADIUS = {
    name: 0.1 * (1 + np.abs(np.concatenate([*map(np.ravel, jax.tree.leaves(PARAMS[name]))]))) for name in PARAMS
}
H = {"a": np.array([1.0, 4.0, 2.0]), "c": np.array([8.0])}  # of b, w and w, in the order of the leaves


def apart(params):
    """A sum of functions of one layer each, that are lowest at PARAMS: 1 there."""
    shifts = jax.tree.map(jnp.subtract, params, PARAMS)
    return 1 + sum(jnp.sum(h * jnp.concatenate(jax.tree.leaves(shifts[name])) ** 2) / 2 for name, h in H.items())


def together(params):
    """What rises only where both layers move."""
    shifts = jax.tree.map(jnp.subtract, params, PARAMS)
    return 1 + shifts["a"]["b"][0] * shifts["c"]["w"][0]


PHI = {name: 100 * np.sum(H[name] * RADIUS[name] ** 2) / 2 / 2 for name in H}


def test_layers_of_a_sum_are_the_parts_of_the_whole():
    result = sharpness.by_layer(apart, PARAMS, KEY, epsilon=(0.1, 0.05))
    assert result.layers == ("a", "c")
    np.testing.assert_allclose(result.alone[0], [PHI["a"], PHI["c"]], rtol=1e-5)
    np.testing.assert_allclose(result.without[0], [PHI["c"], PHI["a"]], rtol=1e-5)
    np.testing.assert_allclose(result.full[0], PHI["a"] + PHI["c"], rtol=1e-5)
    np.testing.assert_allclose(result.alone[1], result.alone[0] / 4, rtol=1e-5)
    np.testing.assert_allclose(result.unexplained, 0, atol=1e-5)
    assert result.finite.all() and result.evaluations == 2 * 5 * 24


def test_no_layer_explains_what_rises_where_both_move():
    result = sharpness.by_layer(together, PARAMS, KEY, epsilon=0.1)
    np.testing.assert_allclose(result.alone, 0, atol=1e-4)
    assert float(result.full) == pytest.approx(100 * RADIUS["a"][0] * RADIUS["c"][0] / 2, rel=1e-5)
    assert float(result.unexplained) == pytest.approx(1, abs=1e-3)


def test_a_layer_where_the_loss_is_not_finite_is_told():
    def cliff(params):
        return apart(params) + jnp.where(params["c"]["w"][0] > 3.01, jnp.inf, 0.0)

    with pytest.warns(RuntimeWarning, match="lower bounds only"):
        result = sharpness.by_layer(cliff, PARAMS, KEY, epsilon=0.1, max_evaluations=6)
    assert not result.finite and repr(result).startswith("LayerSharpness(")


def test_the_whole_of_the_layers_is_that_of_the_full_space():
    ds, model = data.head(data.load("digits"), 100), models.dense(10, widths=(8, 8))
    params = model.init(KEY, ds.x_train[:2] / 255)
    loss = objective.over_dataset(model.apply, ds.x_train, ds.y_train)
    result = sharpness.by_layer(loss, params, KEY, max_evaluations=8)
    assert set(result.layers) == set(params)
    full = sharpness.full_space(loss, params, KEY, max_evaluations=8)
    assert float(result.full) == pytest.approx(float(full.value), rel=1e-6)
    assert (result.alone <= result.full).all() and (result.alone > 0).any()
    named = sharpness.by_layer(
        loss, params, KEY, max_evaluations=6, layer_of=lambda name: "kernels" if "kernel" in name else "others"
    )
    assert set(named.layers) == {"kernels", "others"}


def test_the_step_leads_to_the_highest_point():
    result = sharpness.full_space(apart, PARAMS, KEY, epsilon=(0.1, 0.05), with_step=True)
    for i, epsilon in enumerate((0.1, 0.05)):
        step = jax.tree.map(lambda leaf, i=i: leaf[i], result.step)
        jax.tree.map(
            lambda s, x, e=epsilon: np.testing.assert_allclose(np.abs(s), e * (1 + np.abs(x)), rtol=1e-5),
            step,
            PARAMS,
        )
        top = apart(jax.tree.map(jnp.add, PARAMS, step))
        assert float(top) == pytest.approx(float(result.max_loss[i]), rel=1e-6)
    assert sharpness.full_space(apart, PARAMS, KEY, max_evaluations=2).step is None


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_steps_in_random_subspaces_lie_in_them(at_once):
    result = sharpness.random_subspaces(
        apart, PARAMS, KEY, dim=2, num_draws=3, epsilon=(0.1, 0.05), max_evaluations=4, num_directions=0,
        draws_at_once=at_once, with_step=True,
    )  # fmt: skip
    for i, draw in np.ndindex(2, 3):
        step = jax.tree.map(lambda leaf, at=(i, draw): leaf[at], result.step)
        top = apart(jax.tree.map(jnp.add, PARAMS, step))
        assert float(top) == pytest.approx(float(result.max_loss[i, draw]), rel=1e-6)
        A = subspace.draw(sharpness.draw_keys(KEY, 3)[draw], 4, 2)
        s, _ = flat.ravel(step)
        inside = subspace.times(A, subspace.pseudo_inverse_times(A, s))
        np.testing.assert_allclose(inside, s, atol=1e-5)


def test_a_quadratic_is_explained_by_its_hessian():
    step = sharpness.full_space(apart, PARAMS, KEY, epsilon=0.1, with_step=True).step
    result = hessian.explain(apart, PARAMS, step, KEY, k=2)
    assert float(result.sharpness) == pytest.approx(PHI["a"] + PHI["c"], rel=1e-5)
    assert float(result.quadratic) == pytest.approx(float(result.sharpness), rel=1e-4)
    assert float(result.linear) == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(result.eigenvalues, [8, 4], rtol=1e-4)
    np.testing.assert_allclose(result.of_eigenvectors, [PHI["c"], 100 * 4 * RADIUS["a"][1] ** 2 / 4], rtol=1e-3)
    square = sum(np.sum(r**2) for r in RADIUS.values())
    np.testing.assert_allclose(
        result.share, [RADIUS["c"][0] ** 2 / square, RADIUS["a"][1] ** 2 / square], rtol=1e-3
    )


def test_what_a_hessian_does_not_see_is_not_explained():
    """Of a fourth power and a slope the Hessian at 0 predicts nothing, the gradient the slope."""
    loss = lambda x: jnp.sum(x**4) + 0.1 * x[0] + 0.5e-3 * x[1] ** 2  # noqa: E731
    result = hessian.explain(loss, jnp.zeros(2), jnp.array([1.0, 1.0]), KEY, k=1)
    assert float(result.sharpness) == pytest.approx(100 * 2.1005, rel=1e-4)
    assert float(result.linear) == pytest.approx(10, rel=1e-4)
    assert float(result.quadratic) == pytest.approx(0.05, rel=1e-2)
    with pytest.raises(ValueError, match="step is not like params"):
        hessian.explain(loss, jnp.zeros(2), jnp.zeros((3, 2)), KEY, k=1)


ONLY_C = lambda name: name.startswith("c/")  # noqa: E731


def test_only_some_leaves_are_a_function_of_these():
    loss, part = flat.part(apart, PARAMS, ONLY_C)
    radius = RADIUS["c"][0]
    assert float(sharpness.full_space(apart, PARAMS, KEY, epsilon=0.1, only=ONLY_C).value) == pytest.approx(
        PHI["c"], rel=1e-5
    )
    worst = 8 * 0.4**2 / 2
    assert float(measures.worst_case(apart, PARAMS, KEY, rho=0.4, only=ONLY_C)) == pytest.approx(worst, rel=1e-4)
    assert float(measures.worst_case_linf(apart, PARAMS, KEY, rho=0.4, only=ONLY_C)) == pytest.approx(
        worst, rel=1e-4
    )
    assert float(hessian.trace(apart, PARAMS, KEY, num_samples=2, only=ONLY_C).value) == pytest.approx(8, rel=1e-4)
    top = hessian.eigenpairs(apart, PARAMS, KEY, only=ONLY_C)
    assert float(top.values[0]) == pytest.approx(8, rel=1e-4) and top.vectors["a"]["w"] is None
    spectrum = hessian.density(apart, PARAMS, KEY, num_samples=2, only=ONLY_C)
    assert float(spectrum.eigenvalues[jnp.argmax(spectrum.density)]) == pytest.approx(8, rel=0.02)
    average = measures.average_case(apart, PARAMS, KEY, rho=0.1, num_samples=4, only=ONLY_C)
    same = measures.average_case(loss, part, KEY, rho=0.1, num_samples=4)
    assert float(average.value) == float(same.value) > 0
    sigma = measures.pac_bayes_sigma(lambda p: apart(p) - 1, PARAMS, KEY, only=ONLY_C)
    assert float(sigma) == float(measures.pac_bayes_sigma(lambda p: loss(p) - 1, part, KEY))
    random = sharpness.random_subspaces(apart, PARAMS, KEY, dim=1, num_draws=2, epsilon=0.1, only=ONLY_C)
    # One column of one sign: y is in a box of epsilon (|x| + 1) too.
    np.testing.assert_allclose(random.value, 100 * 8 * radius**2 / 4, rtol=1e-5)
    with pytest.raises(ValueError, match="only takes none of the leaves a/b, a/w, c/w"):
        sharpness.full_space(apart, PARAMS, KEY, only=lambda name: False)


def test_results_are_shown_in_one_line():
    ds, model = data.head(data.load("digits"), 100), models.dense(10, widths=(8,))
    params = model.init(KEY, ds.x_train[:2] / 255)
    few = {"max_evaluations": 2, "epsilon": (0.1, 0.05)}
    results = [
        ds, model, objective.over_dataset(model.apply, ds.x_train, ds.y_train),
        landscape.linear(params, params), landscape.Plane(params, params, params), train.start(params, KEY),
        subspace.draw(KEY, 7, 5), hessian.eigenpairs(apart, PARAMS, KEY), hessian.trace(apart, PARAMS, KEY),
        hessian.density(apart, PARAMS, KEY), sharpness.full_space(apart, PARAMS, KEY, **few),
        sharpness.random_subspaces(apart, PARAMS, KEY, dim=2, num_directions=0, num_draws=2, **few),
        sharpness.by_layer(apart, PARAMS, KEY, **few), landscape.neighbourhood(apart, PARAMS, KEY),
        hessian.explain(apart, PARAMS, PARAMS, KEY, k=1),
    ]  # fmt: skip
    for result in results:
        assert "\n" not in repr(result) and len(repr(result)) < 300, repr(result)
    assert repr(ds) == "Dataset(digits: 100 training and 360 test examples, uint8[8, 8, 1], 10 classes)"
    assert repr(model) == "Model(dense(num_classes=10, widths=(8,)))"
    assert repr(results[3]) == "linear(762 numbers in 6 arrays, 762 numbers in 6 arrays)" or "linear(" in repr(
        results[3]
    )
    one = sharpness.full_space(lambda x: 1 + x @ x, jnp.zeros(2), KEY, epsilon=0.1)
    assert repr(one) == "Sharpness(1 % at epsilon 0.1: loss 1 -> 1.02)"
    shown = []
    jax.jit(
        lambda x: shown.append(repr(sharpness.full_space(lambda x: 1 + x @ x, x, KEY, max_evaluations=1))) or x
    )(jnp.zeros(2))
    assert "(traced)" in shown[0]
