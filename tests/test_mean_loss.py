"""The mean of any loss over any data: least squares in closed form, weights, arrays on the host."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gengap import data, hessian, minima, models, objective, sharpness

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((11, 3)).astype(np.float32), RNG.standard_normal(11).astype(np.float32)
W = np.array([0.5, -1.0, 2.0], np.float32)
GRADIENT = 2 / 11 * X.T @ (X @ W - Y)


def square(w, batch):
    return (batch["x"] @ w - batch["y"]) ** 2


def on_device(**changed):
    return jax.tree.map(jnp.asarray, {"x": X, "y": Y} | changed)


@pytest.mark.parametrize("chunk", [11, 4, 1])
@pytest.mark.parametrize("place", [jnp.asarray, np.asarray], ids=["device", "host"])
def test_least_squares_has_its_closed_form(place, chunk):
    f = objective.mean_loss(square, {"x": place(X), "y": place(Y)}, chunk=chunk)
    assert float(f(jnp.array(W))) == pytest.approx(np.mean((X @ W - Y) ** 2), rel=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(f))(jnp.array(W)), GRADIENT, rtol=1e-5, atol=1e-6)
    v = jnp.array([1.0, 0.0, -2.0])
    np.testing.assert_allclose(hessian.product(f, jnp.array(W), v), 2 / 11 * X.T @ (X @ v), rtol=1e-5)
    several = jax.jit(jax.vmap(jax.grad(f)))(jnp.stack([jnp.array(W), jnp.zeros(3)]))
    np.testing.assert_allclose(several, [GRADIENT, -2 / 11 * X.T @ Y], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", [jnp.asarray, np.asarray], ids=["device", "host"])
def test_examples_of_weight_0_are_padding_and_others_count_as_often(place):
    padded = {"x": place(np.pad(X, ((0, 5), (0, 0)))), "y": place(np.pad(Y, (0, 5)))}
    mask = place(np.arange(16) < 11)
    plain = jax.value_and_grad(objective.mean_loss(square, on_device()))(jnp.array(W))
    masked = jax.value_and_grad(objective.mean_loss(square, padded, weights=mask, chunk=5))(jnp.array(W))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), masked, plain)
    twice = np.where(np.arange(11) < 4, 2, 1)
    listed = objective.mean_loss(square, on_device(), weights=twice.tolist())
    f = objective.mean_loss(square, on_device(), weights=place(twice))
    assert float(listed(jnp.array(W))) == float(f(jnp.array(W)))
    again = objective.mean_loss(square, {"x": np.concatenate([X, X[:4]]), "y": np.concatenate([Y, Y[:4]])})
    assert float(f(jnp.array(W))) == pytest.approx(float(again(jnp.array(W))), rel=1e-5)


def test_arrays_on_the_host_give_the_same_numbers_to_every_measure(tmp_path):
    np.save(tmp_path / "x.npy", X)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    losses = [
        objective.mean_loss(square, {"x": x, "y": jnp.asarray(Y)}, chunk=4),
        objective.mean_loss(square, on_device(), chunk=4),
    ]
    for measure in (sharpness.full_space, lambda f, w, key: hessian.trace(f, w, key, num_samples=2)):
        a, b = (jax.tree.leaves(measure(f, jnp.array(W), KEY)) for f in losses)
        np.testing.assert_array_equal(a[0], b[0])


def convolved(p, batch):
    x, y = batch
    logits = jax.lax.conv(x, p, (1, 1), "VALID").reshape(len(x), -1)[:, :2]
    return objective.cross_entropy(logits, y)


def test_a_convolution_over_chunks_from_the_host():
    x, y = RNG.standard_normal((7, 1, 4, 4)).astype(np.float32), np.arange(7) % 2
    p = jnp.asarray(RNG.standard_normal((2, 1, 4, 4)), jnp.float32)
    values = [
        jax.value_and_grad(objective.mean_loss(convolved, (place(x), place(y)), chunk=3))(p)
        for place in (np.asarray, jnp.asarray)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *values)


def test_other_data_on_the_host_compile_nothing_and_none_are_kept(caplog):
    def loss(sign):
        return objective.mean_loss(square, {"x": sign * X, "y": Y.copy()}, chunk=4)

    first = float(sharpness.full_space(loss(1), jnp.array(W), KEY, max_evaluations=6).value)
    with jax.log_compiles():
        other = loss(-1)
        value = float(sharpness.full_space(other, jnp.array(W), KEY, max_evaluations=6).value)
        assert not [record for record in caplog.records if "XLA compilation" in record.getMessage()]
    assert value != pytest.approx(first, rel=1e-3)
    host = weakref.ref(other.how.host)
    del other
    gc.collect()
    assert host() is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"data": {"x": X, "y": Y[:3]}}, r"there are data\['x'\] 11, data\['y'\] 3"),
        ({"data": {"x": X[:0], "y": Y[:0]}}, r"at least one; there are data\['x'\] 0"),
        ({"data": {}}, "there are no array"),
        ({"data": {"x": X, "y": 1.0}}, r"data\['y'\] is of type float; it must be an array"),
        ({"chunk": 0}, "chunk is 0"),
        ({"weights": Y[:3]}, "weights 3"),
        ({"weights": "some"}, "weights is of type str"),
        ({"weights": -np.abs(Y)}, "weights must be one finite number from 0 up"),
        ({"weights": np.zeros(11)}, "and one above 0"),
        ({"weights": np.ones((11, 2))}, "weights must be one finite number"),
    ],
)
def test_bad_data_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        objective.mean_loss(square, **({"data": {"x": X, "y": Y}} | arguments))


@pytest.mark.parametrize(
    ("per_example", "words"),
    [
        (
            lambda w, batch: square(w, batch).mean(),
            r"per_example returned float32\[\]; it must return float\[11\]",
        ),
        (lambda w, batch: square(w, batch)[:, None], r"float32\[11, 1\]; it must return float\[11\]"),
        (lambda w, batch: square(w, batch) > 1, r"bool\[11\]; it must return float\[11\]"),
    ],
)
def test_a_loss_that_is_not_one_for_each_example_is_named(per_example, words):
    with pytest.raises(ValueError, match=words):
        objective.mean_loss(per_example, on_device())(jnp.array(W))


def test_data_are_no_variable():
    f = objective.mean_loss(square, on_device())
    with pytest.raises(NotImplementedError, match="with respect to the parameters only"):
        jax.grad(lambda f: f(jnp.array(W)), allow_int=True)(f)


def test_a_loss_says_in_one_line_what_it_is():
    f = objective.mean_loss(square, {"x": X, "y": jnp.asarray(Y)}, chunk=4)
    assert repr(f) == "mean_loss(square, 11 examples, 3 chunks, on the host)"
    labels = jnp.zeros(11, int)
    for make in (objective.over_dataset, objective.loss_and_accuracy, objective.over_batches):
        name = "mean_loss" if make is objective.over_dataset else make.__name__
        assert repr(make(lambda p, x: x @ p, jnp.asarray(X), labels)) == f"{name}(cross entropy, 11 examples)"


LINE = models.Model(
    init=lambda key, x: {"w": jnp.array(W)},
    apply=lambda params, x: x @ params["w"],
    name="line",
    loss=lambda outputs, y: (outputs - y) ** 2,
)
POINTS = data.from_arrays(X, Y, X[:5], Y[:5], num_classes=0, name="points")


def test_a_regression_is_trained_by_the_steps_of_its_own_loss(tmp_path):
    recipe = minima.Recipe(batch_size=1.0, optimizer=optax.sgd(0.1), epochs=2, patience=None)
    minimum = minima.find(LINE, POINTS, KEY, recipe, store=tmp_path)
    w = W - 0.1 * GRADIENT
    np.testing.assert_allclose(minimum.history["train_loss"][0], np.mean((X @ W - Y) ** 2), rtol=1e-5)
    expected = w - 0.1 * 2 / 11 * X.T @ (X @ w - Y)
    np.testing.assert_allclose(minimum.params["w"], expected, rtol=1e-5)
    assert minimum.history["test_loss"][-1] == pytest.approx(np.mean((X[:5] @ expected - Y[:5]) ** 2), rel=1e-4)
    assert np.isnan([minimum.history[f"{split}_accuracy"] for split in ("train", "test")]).all()
    again = minima.find(LINE, POINTS, KEY, recipe, store=tmp_path)
    np.testing.assert_array_equal(again.params["w"], minimum.params["w"])
    assert again.seconds == minimum.seconds


def test_a_language_model_is_trained_on_tokens():
    """Of bigrams: the loss of the best one is the entropy of what follows, 0 here."""
    tokens = (np.arange(8)[:, None] + np.arange(6)) % 4
    ds = data.from_arrays(tokens[:, :-1], tokens[:, 1:], tokens[:2, :-1], tokens[:2, 1:], num_classes=0)

    def loss(logits, y):
        return objective.cross_entropy(logits.reshape(-1, 4), y.ravel()).reshape(y.shape).mean(1)

    model = models.Model(lambda key, x: jnp.zeros((4, 4)), lambda p, x: p[x], name="bigrams", loss=loss)
    minimum = minima.find(model, ds, KEY, minima.Recipe(1.0, optax.sgd(4.0), epochs=60, patience=None))
    assert minimum.history["train_loss"][0] == pytest.approx(np.log(4), rel=1e-5)
    assert minimum.history["test_loss"][-1] < 0.1
    assert (minimum.params.argmax(1) == np.array([1, 2, 3, 0])).all()


def test_what_does_not_go_with_a_loss_of_its_own_is_refused():
    with pytest.raises(ValueError, match="clip is 1e-07, which only cross entropy uses"):
        minima.find(LINE, POINTS, KEY, minima.Recipe(1.0, clip=1e-7, epochs=1))
    with pytest.raises(ValueError, match=r"see objective.mean_loss, and models.Model\(loss=...\)"):
        minima.find(LINE._replace(loss=None), POINTS, KEY, minima.Recipe(1.0, epochs=1))
    with pytest.raises(ValueError, match="give num_classes=0 for targets"):
        data.from_arrays(X, Y, X[:5], Y[:5])
    with pytest.raises(ValueError, match=r"y_test must have 5 rows, a target for each example, got shape \(4,\)"):
        data.from_arrays(X, Y, X[:5], Y[:4], num_classes=0)
