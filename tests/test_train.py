"""Training: closed forms of descent, what an epoch shows of the data, and when a run stops."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from gengap import methods, objective, train


def begin(params, optimizer=train.ADAM, key=0):
    return train.start(params, jax.random.key(key), optimizer=optimizer)


def near(a, b, tolerance=1e-5):
    def check(a, b):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(check, a, b)


def network(params, x):
    return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["v"]


def classes(m=12):
    normal = np.random.default_rng(7).standard_normal
    shapes = {"w": (4, 3), "v": (3, 3)}
    params = {name: jnp.array(normal(shape), jnp.float32) for name, shape in shapes.items()} | {"b": jnp.zeros(3)}
    return params, jnp.array(normal((m, 4)), jnp.float32), jnp.arange(m) % 3


def alone(value):
    """A loss that reports itself, and no accuracy."""
    return value, (value, jnp.zeros(()))


def squares(params, x, y, key):
    return alone(0.5 * ((params[None] - x) ** 2).sum(1).mean())


def test_full_batch_descent_on_a_quadratic_has_its_closed_form():
    x, optimizer = jnp.arange(10.0).reshape(5, 2), optax.sgd(0.25)
    state = begin(jnp.array([9.0, -3.0]), optimizer=optimizer)
    end, history = train.fit(
        squares, state, x, jnp.zeros(5, int), batch_size=5, optimizer=optimizer, epochs=4, patience=None
    )
    mean, away = np.array([4.0, 5.0]), np.array([5.0, -8.0])
    np.testing.assert_allclose(end.params, mean + 0.75**4 * away, rtol=1e-5)
    spread = 0.5 * ((np.asarray(x) - mean) ** 2).sum(1).mean()
    expected = [spread + 0.5 * (0.75**k * away) @ (0.75**k * away) for k in range(4)]
    np.testing.assert_allclose(history["train_loss"], expected, rtol=1e-5)
    assert (int(end.epoch), int(end.step), int(end.diverged_at)) == (4, 4, -1)


def test_the_first_steps_of_adam():
    x = jnp.array([[3.0, -2.0]])
    state = begin(jnp.array([9.0, -9.0]))
    end, _ = train.fit(squares, state, x, jnp.zeros(1, int), batch_size=1, epochs=3, patience=None)
    np.testing.assert_allclose(end.params, [9 - 3e-3, -9 + 3e-3], rtol=1e-6)


def shown(params, x, y, key):
    """Its gradient counts the examples of the batch."""
    return alone((params * x.sum(0)).sum())


MOMENTS = optax.GradientTransformation(
    lambda params: jnp.zeros(()), lambda g, steps, params=None: (g * (10.0**steps), steps + 1)
)


@pytest.mark.parametrize(("m", "size", "steps"), [(6, 2, 3), (7, 3, 3)])
def test_an_epoch_shows_every_example_in_batches_of_one_size(m, size, steps):
    sizes = []

    def loss(params, x, y, key):
        sizes.append(len(x))
        return shown(params, x, y, key)

    optimizer = optax.sgd(-1.0)
    state = begin(jnp.zeros(m), optimizer=optimizer)
    fit = dict(batch_size=size, optimizer=optimizer, patience=None)  # noqa: C408
    once, _ = train.fit(loss, state, jnp.eye(m), jnp.zeros(m, int), epochs=1, **fit)
    seen = np.asarray(once.params)
    assert set(sizes) == {size}
    assert seen.min() == 1 and seen.max() <= 2 and seen.sum() == steps * size
    twice, _ = train.fit(loss, state, jnp.eye(m), jnp.zeros(m, int), epochs=2, **fit)
    assert set(np.asarray(twice.params) - seen) <= {1.0, 2.0}
    assert int(once.step) == steps and int(twice.step) == 2 * steps


def test_each_epoch_and_each_key_has_its_own_order():
    def order(epochs, key=0):
        state = begin(jnp.zeros(6), MOMENTS, key)
        data = jnp.eye(6), jnp.zeros(6, int)
        end, _ = train.fit(shown, state, *data, batch_size=1, optimizer=MOMENTS, epochs=epochs, patience=None)
        return np.log10(np.asarray(end.params, np.float64))

    first = order(1)
    assert np.all(np.sort(first.round(4)) == np.arange(6))
    np.testing.assert_array_equal(first, order(1))
    assert not np.allclose(first, order(1, key=1))
    second = np.log10(10 ** order(2) - 10**first + 1e-9) - 6
    assert np.all(np.sort(second.round(1)) == np.arange(6))
    assert not np.allclose(second, first, atol=0.1)


@pytest.mark.parametrize(
    ("losses", "patience", "tolerance", "expected"),
    [
        ([3.0, 2.0, 1.0], 1, 0.0, False),
        ([3.0, 2.0, 2.0], 1, 0.0, True),
        ([3.0, 2.0, 1.5], 1, 0.5, True),
        ([3.0, 2.0, 1.25], 1, 0.5, False),
        ([1.0, 2.0, 2.0, 0.5], 3, 0.0, False),
        ([1.0, 2.0, 2.0, 1.5], 3, 0.0, True),
        ([1.0, 1.0, 1.0], 3, 0.0, False),
        ([1.0, 1.0, 1.0, 1.0], 3, 0.0, True),
        ([], 1, 0.0, False),
    ],
)
def test_has_plateaued(losses, patience, tolerance, expected):
    assert train.has_plateaued(np.array(losses), patience, tolerance) is expected


# Moves the place in the list by one and leaves the list.
NEXT = optax.chain(optax.masked(optax.sgd(1.0), (True, False)), optax.masked(optax.set_to_zero(), (False, True)))


def scripted(params, x, y, key):
    """Takes the values of a list one after another; params are the place in the list and the list."""
    at, values = params
    return alone(values[lax.stop_gradient(at).astype(int)] - (at - lax.stop_gradient(at)))


def last_taken(params):
    at, values = params
    return values[at.astype(int) - 1]


def follow(values, *, steps=1, **settings):
    state = begin((jnp.zeros(()), jnp.array(values)), NEXT)
    settings = {"patience": None, "batch_size": 1, "optimizer": NEXT, "objective": last_taken, **settings}
    return train.fit(scripted, state, jnp.zeros((steps, 1)), jnp.zeros(steps, int), **settings)


DOWN = [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]
WAVY = [4.0, 3.5, 3.6, 3.5, 3.0, 2.9]


@pytest.mark.parametrize(
    ("settings", "of_down", "of_wavy"),
    [
        ({"epochs": 3}, 3, 3),
        ({"epochs": 6}, 6, 6),
        ({"epochs": 6, "patience": 2, "tolerance": 0.0}, 6, 4),
        ({"epochs": 6, "patience": 2, "tolerance": 1.0}, 6, 3),
        ({"epochs": 6, "target": 2.5}, 4, 6),
        ({"epochs": 6, "target": 3.75}, 3, 2),
        ({"epochs": 6, "target": 2.0}, 5, 6),
    ],
)
def test_training_stops_by_its_rules(settings, of_down, of_wavy):
    for values, epochs in ((DOWN, of_down), (WAVY, of_wavy)):
        end, history = follow(values, **settings)
        assert int(end.epoch) == int(end.step) == epochs == float(end.params[0])
        np.testing.assert_allclose(history["train_loss"], values[:epochs], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_run_that_diverges_ends_after_its_epoch_and_says_at_which_step(bad):
    end, history = follow([5.0, 4.0, bad, bad, 1.0, bad], steps=2, epochs=3)
    assert (int(end.diverged_at), int(end.epoch)) == (2, 2)
    assert history["train_loss"][0] == 4.5 and not np.isfinite(history["train_loss"][1])
    assert len(history["train_loss"]) == 2
    end, history = follow(DOWN, steps=2, epochs=3)
    assert int(end.diverged_at) == -1
    np.testing.assert_allclose(history["train_loss"], [4.5, 2.5, 0.75])


def test_the_target_is_of_the_objective_and_not_of_the_losses_of_the_batches():
    """The batches' loss of an epoch is below the target long before f is, and f is what is asked."""
    end, history = follow([0.1] * 6, epochs=6, target=0.5, objective=lambda p: 3.0 - p[0])
    assert int(end.epoch) == 3 and history["objective"].tolist() == [2.0, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"target is 0\.5; it needs the objective"):
        follow(DOWN, epochs=6, target=0.5, objective=None)


def test_a_batch_size_is_a_count_or_a_share_and_never_both():
    count = inspect.unwrap(train.count)  # without the types that pytest checks
    counts = {1: 1, 10: 10, np.int64(3): 3, 4.0: 4, 0.999: 10, 0.25: 2, np.float32(0.5): 5}
    assert {size: count(size, 10) for size in counts} == counts
    assert count(1.0, 10) == 10  # a float is a share, and 1.0 all
    assert (count(256, 60000), count(0.1, 60000), count(0.1, 721329)) == (256, 6000, 72133)
    assert (count(1, 1), count(5, 5)) == (1, 5)
    for size in (True, False, 0, 0.0, 0.01, 11, 2.5, -1, np.nan, np.inf, -np.inf, np.bool_(True), "4"):
        with pytest.raises(ValueError, match=f"batch size {size} is neither a share.* 10, the number of training"):
            count(size, 10)


ASKING = {
    "sam": optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2),
    "opaque sam": optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
    "schedule-free": optax.contrib.schedule_free_sgd(0.1),
    "d-adaptation": optax.contrib.dadapt_adamw(0.1),
    "prodigy": optax.contrib.prodigy(0.1),
    "momo": optax.contrib.momo(0.1),
    "plateau": optax.contrib.reduce_on_plateau(),
    "value alone": optax.GradientTransformationExtraArgs(
        optax.sgd(0.1).init, lambda g, s, p=None, *, value: (g, s)
    ),
    "nothing": optax.GradientTransformation(optax.sgd(0.1).init, optax.sgd(0.1).update),
    "lbfgs": optax.lbfgs(),
}


@pytest.mark.parametrize("name", ASKING)
def test_optimisers_take_of_the_extra_arguments_those_they_know(name):
    """A step op by op, for an optimiser with a name and for one without."""
    ends, (params, x, y) = [], classes()
    for optimizer in (ASKING[name], train.named("named", ASKING[name])):
        with jax.disable_jit():
            state, sums = begin(params, optimizer), (jnp.zeros((), int), jnp.zeros(()), jnp.zeros(()))
            batches = jnp.arange(5)[None], jax.random.split(jax.random.key(1), 1)
            ends.append(train.training_step(CLASSES, optimizer, None)(state, sums, batches, x, y))
    (end, (at, losses, _)), other = ends
    assert np.isfinite(losses) and int(at) == int(end.step) == 1
    near(other[0].params, end.params, 0)


@pytest.mark.parametrize("name", ["tolerance", "target"])
def test_a_stop_that_could_never_come_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is nan"):
        run(begin(classes()[0]), **{name: np.nan})


CLASSES = train.batch_loss(methods.PLAIN, network)


def run(state, epochs=2, **settings):
    _, x, y = classes()
    return train.fit(CLASSES, state, x, y, epochs=epochs, **{"batch_size": 5, "patience": None, **settings})


@pytest.fixture(scope="module")
def begun_and_trained():
    state = begin(classes()[0])
    return state, run(state)


def test_the_host_waits_once_an_epoch(begun_and_trained, monkeypatch):
    fetched, get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(1) or get(tree))
    run(begun_and_trained[0], epochs=3)
    assert len(fetched) == 3


def test_the_same_key_gives_the_same_numbers_and_the_state_is_not_consumed(begun_and_trained):
    state, first = begun_and_trained
    near(run(state), first, 0)
    assert int(state.step) == 0 and not np.any(np.asarray(state.params["b"]))
    other = run(begin(classes()[0], key=1))
    assert not np.allclose(other[0].params["w"], first[0].params["w"])


def test_going_on_equals_one_run(begun_and_trained):
    state, (end, history) = begun_and_trained
    first = run(state, epochs=1)
    near(run(first[0], history=first[1]), (end, history), 0)
    near(run(end, history=history), (end, history), 0)


def test_a_second_epoch_and_a_second_fit_compile_nothing(caplog):
    params, x, y = classes()
    test = objective.loss_and_accuracy(network, x, y)
    other = objective.loss_and_accuracy(network, -x, y)
    new = begin(jax.tree.map(lambda a: 2 * a, params), key=5)
    run(begin(params), epochs=1, evaluate=test)
    with jax.log_compiles():
        run(new, epochs=3, evaluate=other)
        assert not [r for r in caplog.records if "XLA compilation" in r.getMessage()]


def test_history_has_the_test_set_at_the_end_of_each_epoch(begun_and_trained):
    _, x, y = classes()
    test = objective.loss_and_accuracy(network, 2 * x, y)
    end, history = run(begun_and_trained[0], evaluate=test)
    loss, accuracy = test(end.params)
    assert history["test_loss"][-1] == pytest.approx(float(loss), rel=1e-5)
    assert history["test_accuracy"][-1] == pytest.approx(float(accuracy))
    assert sorted(history) == ["test_accuracy", "test_loss", "train_accuracy", "train_loss"]
    assert history["test_loss"].shape == (2,)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.exponential_decay(0.05, 5, 0.9))),
        optax.inject_hyperparams(optax.adagrad)(learning_rate=0.3),
        optax.chain(optax.adam(0.05), optax.contrib.reduce_on_plateau(patience=4)),
        optax.polyak_sgd(),
        train.named("line search", optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(4))),
        train.sgd(0.1),
        train.adagrad(0.3),
    ],
    ids=["momentum", "chain", "hyperparameters", "plateau", "polyak", "line search", "sgd", "adagrad"],
)
def test_any_optax_transformation(optimizer):
    state = begin(classes()[0], optimizer=optimizer)
    end, history = run(state, epochs=12, optimizer=optimizer)
    assert history["train_loss"][-1] < 0.8 * history["train_loss"][0]
    assert int(end.step) == 36


def test_one_gradient_step_of_polyak_has_its_closed_form():
    optimizer = optax.polyak_sgd(max_learning_rate=100.0)
    state = begin(jnp.array([4.0, 3.0]), optimizer=optimizer)
    end, _ = train.fit(
        squares, state, jnp.zeros((1, 2)), jnp.zeros(1, int), batch_size=1, optimizer=optimizer, epochs=1
    )
    np.testing.assert_allclose(end.params, [2.0, 1.5], rtol=1e-5)  # f / |g|^2 = 1/2


def test_named_optimisers_say_their_settings():
    assert train.adam(0.5).name == "adam(0.5)" and train.ADAM.name == "adam(0.001)"
    assert train.sgd(0.1).name == "sgd(0.1, momentum=0.9)" and train.sgd(0.1, momentum=0.5) != train.sgd(0.1)
    assert train.adagrad(0.123456789).name == "adagrad(0.123456789)"


def test_dropout_has_a_new_key_at_each_step():
    keys = []

    def loss(params, x, y, key):
        jax.debug.callback(lambda data: keys.append(tuple(map(int, data))), jax.random.key_data(key))
        return alone(jnp.sum(params**2))

    train.fit(loss, begin(jnp.ones(2)), *classes()[1:], batch_size=4, epochs=2, patience=None)
    jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 2 * 3


def test_on_epoch_is_told_each_state():
    seen = []
    run(begin(classes()[0]), on_epoch=lambda state, history: seen.append((int(state.epoch), len(history))))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("setting", [{"epochs": 0}, {"epochs": 1.5}, {"patience": 0}, {"batch_size": 13}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=str(next(iter(setting.values())))):
        inspect.unwrap(train.fit)(
            CLASSES, begin(classes()[0]), *classes()[1:], **{"epochs": 2, "batch_size": 5, **setting}
        )


def test_weight_decay_shrinks_the_parameters_where_the_gradient_is_0():
    params = jnp.array([2.0, -4.0])
    for optimizer, step in (
        (train.adam(0.1, weight_decay=0.5), 0.1 * 0.5 * params),
        (train.sgd(0.1, weight_decay=0.5), 0.1 * 0.5 * params),
        (train.adagrad(0.1, weight_decay=0.5), 0.1 * (0.5 * params) / jnp.sqrt(0.1 + (0.5 * params) ** 2)),
        (train.adam(0.1), 0 * params),
    ):
        updates, _ = optimizer.update(0 * params, optimizer.init(params), params)
        np.testing.assert_allclose(updates, -step, rtol=1e-5, err_msg=optimizer.name)
