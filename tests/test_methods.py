"""Methods: each update equals its equation, each piece at strength 0 is the plain run, and pieces join."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gengap import checkpoints, data, flat, methods, minima, models, objective, program, progress, train
from gengap.methods import PLAIN, Method, combine

KEY = jax.random.key(5)
RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (24, 5, 4, 2), np.uint8)
DATA = data.from_arrays(IMAGES, np.arange(24) % 3, IMAGES[:9], np.arange(9) % 3, name="images")
MODEL = models.dense(3, widths=(6,))
SGD = train.sgd(0.1, momentum=0.0)
NOISE = train.GradientNoise(variance=jnp.array(3.0), square=jnp.array(4.0))


def find(method=PLAIN, size=12, store=None, progress=None, **settings):
    recipe = {"batch_size": size, "method": method, "epochs": 3, "patience": None, **settings}
    return minima.find(MODEL, DATA, KEY, minima.Recipe(**recipe), store=store, progress=progress)


@pytest.fixture(scope="module")
def plain():
    return find()


# A network that is quick op by op: logits W x less their mean over the batch, as batch norm would take it away.
START = jnp.array(RNG.normal(size=(40, 3)), jnp.float32)


def centred(params, x):
    logits = x.reshape(len(x), -1) @ params
    return logits - logits.mean(0, keepdims=True)


def two_steps(method):
    """The parameters after two steps from START, and the batch size after an epoch with 12."""
    optimizer = methods.optimizer(method, train.ADAM)
    step = train.training_step(train.batch_loss(method, centred), optimizer, None)
    state = train.start(START, KEY, optimizer=optimizer)
    for key in jax.random.split(KEY):
        sums = jnp.zeros((), int), jnp.zeros(()), jnp.zeros(())
        state, _ = step(state, sums, (jnp.arange(12)[None], key[None]), DATA.x_train, DATA.y_train)
    return train.parameters(state), method.grow(12, 1, lambda: NOISE)


@pytest.fixture(scope="module")
def plain_steps():
    with jax.disable_jit():
        return two_steps(PLAIN)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    for name in b.history:
        np.testing.assert_array_equal(a.history[name], b.history[name])
    assert (a.epochs, a.steps, a.distance) == (b.epochs, b.steps, b.distance)


NOTHING = [
    methods.augmentation(flip=0.0, degrees=0.0, shift=0.0),
    methods.ghost_batch_norm(12),
    methods.ghost_batch_norm(100),
    methods.matched_noise(12),
    methods.label_smoothing(0.0),
    methods.adversarial(0.0),
    methods.adversarial(0.3, share=0.0),
    methods.stability(weight=0.0),
    methods.sam(0.0),
    methods.sam(0.0, adaptive=True),
    methods.conservative(0.0, steps=1),
    methods.conservative(steps=1),
    methods.weight_averaging(0.0),
    methods.scale_rate(1.0),
    methods.warm_up(0),
    methods.warm_up(1),
    methods.instead(train.adam()),
    methods.doubling(1, most=12),
    methods.byrd(1e9, most=24),
]


@pytest.mark.parametrize("method", NOTHING, ids=lambda method: method.name)
def test_at_strength_0_a_method_takes_the_plain_steps_bit_for_bit(plain_steps, method):
    with jax.disable_jit():
        assert equal(two_steps(method), plain_steps)


def test_all_of_them_at_strength_0_together_are_the_plain_run(plain, plain_steps):
    """Bit for bit where nothing is fused; XLA may round a fused program otherwise."""
    with jax.disable_jit():
        assert equal(two_steps(combine(*NOTHING)), plain_steps)
    together = find(combine(*NOTHING))
    assert (together.epochs, together.steps) == (plain.epochs, plain.steps)
    for one, other in zip(jax.tree.leaves(together.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    for name, curve in plain.history.items():
        np.testing.assert_allclose(together.history[name], curve, rtol=1e-5)


SOMETHING = [
    methods.augmentation(),
    methods.ghost_batch_norm(4),
    methods.matched_noise(4),
    methods.label_smoothing(),
    methods.adversarial(),
    methods.stability(weight=1.0),
    methods.sam(),
    methods.sam(0.5, adaptive=True),
    methods.conservative(),
    methods.weight_averaging(),
    methods.scale_rate(2.0),
    methods.warm_up(5),
    methods.instead(train.lars(0.1)),
    methods.instead(train.lamb(0.1)),
    methods.doubling(1, most=24),
    methods.byrd(1e-3, most=24),
]


@pytest.mark.parametrize("method", SOMETHING, ids=lambda method: method.name)
def test_a_method_changes_the_steps_or_the_batch_and_does_the_same_twice(plain_steps, method):
    with jax.disable_jit():
        steps = two_steps(method)
        assert not equal(steps, plain_steps)
        assert equal(two_steps(method), steps)


@pytest.mark.parametrize("pieces", [*itertools.pairwise(SOMETHING[:-2]), SOMETHING], ids=len)
def test_pieces_join_in_either_order(pieces):
    for order in (pieces, pieces[::-1]):
        params, _ = jax.eval_shape(lambda order=order: two_steps(combine(*order)))
        assert params.shape == START.shape


def test_sam_with_ghosts_and_warm_up_equals_its_equations_on_one_step():
    """A step is half the rate times the gradient, with ghosts, at x0 + rho g / |g|."""
    rho = 0.1
    method = combine(methods.ghost_batch_norm(12), methods.sam(rho), methods.warm_up(2))
    minimum = find(method, 24, epochs=1, optimizer=SGD)
    start = minima.starting_point(MODEL, DATA, KEY)
    _, batches_key = jax.random.split(jax.random.fold_in(KEY, 0))
    order = jax.random.permutation(jax.random.split(jax.random.fold_in(batches_key, 0))[0], 24)

    def loss(params):
        halves = [order[:12], order[12:]]
        return (
            sum(objective.over_dataset(MODEL.apply, DATA.x_train[h], DATA.y_train[h])(params) for h in halves) / 2
        )

    gradient = jax.jit(jax.grad(loss))
    g = gradient(start)
    raised = jax.tree.map(lambda p, g_: p + rho * g_ / optax.tree.norm(g), start, g)
    slope = gradient(raised)
    for a, b, s in zip(*map(jax.tree.leaves, (minimum.params, start, slope)), strict=True):
        np.testing.assert_allclose(a - b, -0.05 * s, rtol=1e-3, atol=1e-6)


# Updates by hand, on f(x) = c x^2 / 2, whose gradient is c x.
X0, CURVATURE = jnp.array([3.0, -1.0]), jnp.array([1.0, 4.0])


def value_fn(x):
    return 0.5 * (CURVATURE * x**2).sum()


def run(method, plain, steps=1, x=X0):
    optimizer = methods.optimizer(method, plain)
    state, iterates = optimizer.init(x), [x]
    for _ in range(steps):
        g = jax.grad(value_fn)(x)
        extra = {"value": value_fn(x), "grad": g, "value_fn": value_fn}
        moved, state = optimizer.update(g, state, x, **extra)
        x = optax.apply_updates(x, moved)
        iterates.append(x)
    return np.array(iterates), state


def test_sam_takes_the_gradient_of_the_raised_point():
    g = np.array([3.0, -4.0])
    (_, x), _ = run(methods.sam(0.5), SGD)
    np.testing.assert_allclose(x, X0 - 0.1 * CURVATURE * (X0 + 0.5 * g / 5), rtol=1e-6)
    t = np.abs(X0) + 0.01
    (_, x), _ = run(methods.sam(0.5, adaptive=True), SGD)
    raised = X0 + 0.5 * t**2 * g / np.linalg.norm(t * g)
    np.testing.assert_allclose(x, X0 - 0.1 * CURVATURE * raised, rtol=1e-6)


def test_sam_stays_where_the_gradient_is_0():
    (_, x), _ = run(methods.sam(0.5), SGD, x=jnp.zeros(2))
    np.testing.assert_array_equal(x, 0)


def test_conservative_steps_feel_the_proximal_term():
    strength = 0.7
    (_, x), _ = run(methods.conservative(strength, steps=3), SGD)
    y = np.array(X0)
    for _ in range(3):
        y = y - 0.1 * (CURVATURE * y + strength * (y - X0))
    np.testing.assert_allclose(x, y, rtol=1e-6)
    (_, x), _ = run(methods.conservative(0.0, steps=3), train.ADAM)
    np.testing.assert_allclose(x, run(PLAIN, train.ADAM, 3)[0][-1], rtol=1e-6)


def test_many_conservative_steps_reach_the_minimum_of_equation_5():
    strength = 2.0
    (_, x), _ = run(methods.conservative(strength, steps=200), SGD)
    np.testing.assert_allclose(x, strength * X0 / (CURVATURE + strength), rtol=1e-5)


def test_weights_are_averaged_plainly_first_and_then_exponentially():
    iterates, state = run(methods.weight_averaging(0.75), SGD, 6)
    average = iterates[1:5].mean(0)
    for x in iterates[5:]:
        average = 0.75 * average + 0.25 * x
    np.testing.assert_allclose(state.weight_average, average, rtol=1e-6)
    np.testing.assert_array_equal(iterates, run(PLAIN, SGD, 6)[0])


def test_a_minimum_is_the_average_and_its_history_the_plain_one():
    iterates = list(find(size=24, snapshots=(1, 2, 3)).snapshots.values())
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *(minimum.params for minimum in iterates))
    averaged = find(methods.weight_averaging(0.99), size=24)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), averaged.params, mean)
    np.testing.assert_array_equal(averaged.history["train_loss"], iterates[-1].history["train_loss"])


@pytest.mark.parametrize("optimizer", [SGD, train.ADAM, train.sgd(0.1), train.adagrad(0.1), train.lars(0.1)])
def test_the_rate_grows_to_its_full_value(optimizer):
    whole = np.diff(run(PLAIN, optimizer)[0], axis=0)  # of points near 3, which float32 holds to 2e-7
    for method, factor in ((methods.scale_rate(3.0), 3), (methods.warm_up(4), 1 / 4)):
        step = np.diff(run(method, optimizer)[0], axis=0)
        np.testing.assert_allclose(step, factor * whole, rtol=1e-5, atol=5e-7)


def test_warm_up_ends():
    iterates, _ = run(methods.warm_up(4), SGD, 6)
    shares = -np.diff(iterates, axis=0) / (0.1 * np.array(CURVATURE) * iterates[:-1])
    np.testing.assert_allclose(shares[:, 0], [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-4)


def test_trust_ratios_are_those_of_the_papers():
    """LARS: |w| / |g| times g. LAMB: |w| / |u| times u, and Adam's first u is sign g."""
    g, w = np.array(CURVATURE * X0), np.linalg.norm(X0)
    (_, x), _ = run(methods.instead(train.lars(0.1)), SGD)
    np.testing.assert_allclose(x - X0, -0.1 * 1e-3 * w / np.linalg.norm(g) * g, rtol=1e-2)
    (_, x), _ = run(methods.instead(train.lamb(0.1)), SGD)
    np.testing.assert_allclose(x - X0, -0.1 * w / np.sqrt(2) * np.sign(g), rtol=1e-4)


# The loss. A linear network without batch norm: logits W x.
W = jnp.array(RNG.normal(size=(4, 3)), jnp.float32)
X = jnp.array(RNG.normal(size=(6, 4)), jnp.float32)
Y = jnp.arange(6) % 3


def linear(params, x):
    return x @ params


def losses(method, params=W, x=X, key=KEY):
    return train.examples(method, linear)(params, x, Y, key)[0]


def cross_entropies(params=W, x=X):
    return -jax.nn.log_softmax(linear(params, x))


IS_LABEL = jax.nn.one_hot(Y, 3)


def test_smoothed_labels_share_with_all_classes():
    target = 0.7 * IS_LABEL + 0.1
    expected = (target * cross_entropies()).sum(1)
    np.testing.assert_allclose(losses(methods.label_smoothing(0.3)), expected, rtol=1e-5)


def test_fgsm_moves_each_input_along_the_sign_of_its_gradient():
    slope = (jax.nn.softmax(X @ W) - IS_LABEL) @ W.T
    moved = X + 0.2 * jnp.sign(slope)
    expected = (0.75 * cross_entropies() + 0.25 * cross_entropies(x=moved)) * IS_LABEL
    method = methods.adversarial(0.2, share=0.25)
    np.testing.assert_allclose(losses(method), expected.sum(1), rtol=1e-5)
    gradient = jax.grad(lambda w: losses(method, w).mean())(W)
    by_hand = sum(
        share * (x.T @ (jax.nn.softmax(x @ W) - IS_LABEL)) / 6 for share, x in ((0.75, X), (0.25, moved))
    )  # the moved inputs are constants
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-6)


def test_stability_is_the_cross_entropy_of_the_answers_to_an_input_and_to_a_noisy_one():
    noise = 0.3 * jax.random.normal(flat.key_for(KEY, "stability"), X.shape)
    plain = (cross_entropies() * IS_LABEL).sum(1)
    apart = (jax.nn.softmax(X @ W) * cross_entropies(x=X + noise)).sum(1)
    np.testing.assert_allclose(losses(methods.stability(0.3, weight=0.4)), plain + 0.4 * apart, rtol=1e-5)


def test_what_is_reported_is_the_plain_loss():
    loss = train.batch_loss(methods.label_smoothing(0.5), linear)
    descended, (reported, accuracy) = loss(W, X, Y, KEY)
    plain, (_, of_plain) = train.batch_loss(PLAIN, linear)(W, X, Y, KEY)
    assert float(reported) == float(plain) != float(descended)
    assert float(accuracy) == float(of_plain)


def gradients(params=W, x=X, y=Y):
    """[examples, parameters], one example at a time."""
    of_example = jax.grad(lambda w, x, y: objective.cross_entropy(linear(w, x[None]), y[None])[0])
    return np.stack([np.ravel(of_example(params, a, b)) for a, b in zip(x, y, strict=True)])


def test_matched_noise_has_the_covariance_of_a_small_batch():
    """Of 6 examples, 2 at a time: covariance (1/2 - 1/6) Sigma, and the mean is the gradient of the batch."""
    of_weights = methods.matched_noise(2).loss(lambda params, x, y, key: (jnp.ones(6), x))
    draws = 200_000
    w = jax.vmap(lambda key: of_weights(W, X, Y, key)[0])(jax.random.split(KEY, draws))
    g = gradients()
    centred = g - g.mean(0)
    noise = np.asarray(w, np.float64) @ g / 6 - g.mean(0)
    expected = (1 / 2 - 1 / 6) * centred.T @ centred / 6
    error = np.abs(expected).max() * 5 / math.sqrt(draws)  # five standard errors, about
    np.testing.assert_allclose(noise.mean(0), 0, atol=5 * math.sqrt(expected.max() / draws))
    np.testing.assert_allclose(noise.T @ noise / draws, expected, atol=2 * error)
    # Uncentred weights would add (s^2 / B) g g^T, s^2 = 6 / 2 - 1, which this tells apart.
    assert np.abs(2 / 6 * np.outer(g.mean(0), g.mean(0))).max() > 4 * error


def test_matched_noise_is_one_backward_pass_of_weighted_examples():
    key = jax.random.key(9)
    weights = methods.matched_noise(2).loss(lambda params, x, y, key: (jnp.ones(6), x))(W, X, Y, key)[0]
    gradient = jax.grad(lambda w: losses(methods.matched_noise(2), w, key=key).mean())(W)
    np.testing.assert_allclose(np.ravel(gradient), weights @ gradients() / 6, rtol=1e-4, atol=1e-6)
    assert float(weights.mean()) == pytest.approx(1, abs=1e-6)


def test_the_noise_of_a_gradient_is_that_of_its_examples():
    g = gradients()
    noise = train.gradient_noise(train.examples(PLAIN, linear), W, X, Y, KEY, draws=20_000)
    assert float(noise.square) == pytest.approx((g.mean(0) ** 2).sum(), rel=1e-4)
    assert float(noise.variance) == pytest.approx(np.trace(np.cov(g.T)) / 6, rel=0.03)
    with pytest.raises(ValueError, match="x has 1 example"):
        train.gradient_noise(train.examples(PLAIN, linear), W, X[:1], Y[:1], KEY)


# The network


def test_groups_are_as_equal_as_they_can_be_and_keep_their_order():
    shapes = []

    def apply(params, x, key):
        shapes.append(x.shape)
        return x - x.mean(0, keepdims=True)

    x = jnp.array(RNG.normal(size=(400, 2)), jnp.float32)
    out = methods.ghost_batch_norm(32).network(apply)(None, x, KEY)
    assert shapes == [(34, 2), (33, 2)]
    ends = np.cumsum([0] + [34] * 4 + [33] * 8)
    expected = np.concatenate([x[a:b] - x[a:b].mean(0, keepdims=True) for a, b in itertools.pairwise(ends)])
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_each_group_has_its_own_dropout():
    def apply(params, x, key):
        return 1.0 * jax.random.bernoulli(key, 0.5, x.shape)

    out = methods.ghost_batch_norm(50).network(apply)(None, jnp.zeros((100, 3)), KEY)
    assert not np.array_equal(out[:50], out[50:])


# The batch


def moved(x, key=KEY, *, flip=0.0, degrees=0.0, shift=0.0):
    method = methods.augmentation(flip=flip, degrees=degrees, shift=shift)
    return jax.jit(method.batch)(jnp.asarray(x, jnp.float32), key)


def test_a_flip_exchanges_left_and_right_of_about_as_many_as_asked():
    x = RNG.normal(size=(200, 3, 5, 2)).astype(np.float32)
    np.testing.assert_array_equal(moved(x, flip=1.0), x[:, :, ::-1])
    half = np.asarray(moved(x, flip=0.5))
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(half, x, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(half, x, strict=True)]
    assert 70 < sum(mirrored) < 130 and sum(kept) + sum(mirrored) == 200


def centres(x):
    """Of mass, [b, 2]: row and column."""
    x = np.asarray(x)[..., 0]
    total = x.sum((1, 2))
    return (
        np.stack([(x.sum(2) * np.arange(x.shape[1])).sum(1), (x.sum(1) * np.arange(x.shape[2])).sum(1)], 1)
        / total[:, None]
    )


def blobs(b=300, height=41, width=61, at=(0.0, 0.0)):
    row, column = np.arange(height) - height // 2 - at[0], np.arange(width) - width // 2 - at[1]
    blob = np.exp(-(row[:, None] ** 2 + column**2) / 8)
    return np.tile(blob[None, :, :, None], (b, 1, 1, 1))


def test_a_shift_moves_each_image_by_its_own_share_of_height_and_of_width():
    away = centres(moved(blobs(), shift=0.2)) - [20, 30]
    assert (np.abs(away).max(0) < [8.3, 12.3]).all() and (np.abs(away).max(0) > [7.5, 11.3]).all()
    np.testing.assert_allclose(away.std(0), np.array([8.2, 12.2]) / math.sqrt(3), rtol=0.1)  # a uniform one's
    assert abs(np.corrcoef(away.T)[0, 1]) < 0.2


def test_a_rotation_turns_about_the_centre_by_at_most_its_degrees():
    turned = centres(moved(blobs(at=(0.0, 15.0)), degrees=10.0)) - [20, 30]
    np.testing.assert_allclose(np.hypot(*turned.T), 15, atol=0.1)
    angles = np.degrees(np.arctan2(turned[:, 0], turned[:, 1]))
    assert 9.5 < np.abs(angles).max() < 10.1 and angles.min() < -9 and angles.max() > 9
    assert angles.std() == pytest.approx(10 / math.sqrt(3), rel=0.1)


def test_beyond_the_edge_is_the_nearest_pixel():
    x = np.full((20, 6, 6, 1), 3.0)
    np.testing.assert_allclose(moved(x, degrees=10.0, shift=0.2), 3, rtol=1e-6)


def test_augmentation_leaves_the_labels_and_needs_images():
    seen = []
    watch = Method(
        "watch", loss=lambda examples: lambda p, x, y, k: (seen.append((x, y)), examples(p, x, y, k))[1]
    )
    apply = lambda params, x: x.reshape(len(x), -1)[:, :3]  # noqa: E731
    train.examples(combine(methods.augmentation(), watch), apply)(None, DATA.x_train, DATA.y_train, KEY)
    ((x, y),) = seen
    np.testing.assert_array_equal(y, DATA.y_train)
    assert x.shape == DATA.x_train.shape and x.min() >= 0 and x.max() <= 1
    with pytest.raises(ValueError, match=r"x has the shape \(6, 4\)"):
        losses(methods.augmentation())


# The batch size


def test_a_growing_batch_is_in_the_history_and_is_shown_as_it_grows(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    minimum = find(methods.doubling(2, most=10), 3, epochs=6, progress="F1, SB")
    assert minimum.history["batch_size"].tolist() == [3, 3, 6, 6, 10, 10]
    assert minimum.steps == 8 + 8 + 4 + 4 + 3 + 3 and len(minimum.history["train_loss"]) == 6
    lines = capsys.readouterr().err.splitlines()
    shown = [re.match(r"F1, SB: epoch (\d) of 6, .*batch_size (\d+)", line).groups() for line in lines]
    assert shown == [("1", "3"), ("2", "3"), ("3", "6"), ("4", "6"), ("5", "10"), ("6", "10")]
    stopped = find(methods.doubling(1, most=24), 3, epochs=9, target=100.0)
    assert stopped.epochs == 1 and stopped.history["batch_size"].tolist() == [3]


def test_byrds_test_grows_to_where_noise_and_gradient_are_equal():
    grow = methods.byrd(0.5, most=50).grow
    assert grow(10, 1, lambda: NOISE) == 30  # tr Sigma / B = 3 at B = 10, and theta^2 |g|^2 = 1
    assert grow(20, 1, lambda: NOISE) == 50
    assert methods.byrd(1.0, most=50).grow(10, 1, lambda: NOISE) == 10
    assert grow(60, 1, lambda: NOISE) == 60
    assert grow(10, 1, lambda: train.GradientNoise(jnp.array(jnp.nan), jnp.array(1.0))) == 10


def test_a_growing_run_that_was_killed_goes_on_as_it_would_have(tmp_path, monkeypatch):
    method = combine(methods.byrd(0.9, most=20), methods.ghost_batch_norm(4), methods.weight_averaging(0.5))
    whole = find(method, 4)
    assert len(set(whole.history["batch_size"].tolist())) > 1
    monkeypatch.setattr(minima, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    write, writes = checkpoints.write, []

    def dies(*args):
        write(*args)
        writes.append(1)
        if len(writes) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "write", dies)
        find(method, 4, store=tmp_path)
    again = find(method, 4, store=tmp_path)
    same(again, whole)
    (file,) = tmp_path.glob("*.safetensors")
    same(minima.load(file, like=whole.params, settings=again.settings), whole)


# Names and arguments


def test_a_method_is_part_of_the_settings_and_plain_ones_are_as_they_always_were(tmp_path, plain):
    assert "changes" not in plain.settings
    minimum = find(store=tmp_path)
    same(find(combine(PLAIN), store=tmp_path), minimum)
    smooth = find(methods.label_smoothing(), store=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 and smooth.distance != minimum.distance
    assert smooth.settings["changes"] == "label_smoothing(0.1)"


def test_methods_without_names_are_told_apart():
    def computation(shift):
        method = Method("", batch=lambda x, key: shift - x)
        return program.fingerprint(train.batch_loss(method, linear), W, X, Y, KEY)

    assert computation(1.0) == computation(1.0) != computation(2.0)


def test_names_say_every_setting():
    every = [*NOTHING, *SOMETHING]
    assert len({method.name for method in every}) == len(set(every))
    assert combine(methods.sam(0.05), methods.conservative()).gradients == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods.augmentation(flip=1.5), "flip is 1.5; it must be a number from 0 to 1"),
        (lambda: methods.augmentation(degrees=-1.0), "degrees is -1.0"),
        (lambda: methods.augmentation(shift=math.nan), "shift is nan"),
        (lambda: methods.ghost_batch_norm(0), "size is 0"),
        (lambda: methods.matched_noise(0), "small_batch is 0"),
        (lambda: find(methods.matched_noise(13)), "small_batch is 13; it must be at most 12, the batch"),
        (lambda: methods.label_smoothing(-0.1), "amount is -0.1"),
        (lambda: methods.adversarial(-1.0), "epsilon is -1.0; it must be a number from 0 up"),
        (lambda: methods.adversarial(share=2.0), "share is 2.0"),
        (lambda: methods.stability(-1.0), "sigma is -1.0"),
        (lambda: methods.sam(math.inf), "rho is inf"),
        (lambda: methods.conservative(-1.0), "strength is -1.0"),
        (lambda: methods.conservative(steps=0), "steps is 0"),
        (lambda: methods.weight_averaging(1.1), "decay is 1.1"),
        (lambda: methods.scale_rate(-1.0), "factor is -1.0"),
        (lambda: methods.warm_up(-1), "steps is -1"),
        (lambda: methods.doubling(0, most=2), "every is 0"),
        (lambda: methods.byrd(0.0, most=2), "theta is 0.0"),
    ],
)
def test_an_argument_out_of_its_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_method_of_ones_own(plain):
    """The ten lines of the README."""

    def focal(examples):
        def loss(params, x, y, key):
            losses, logits = examples(params, x, y, key)
            return (1 - jnp.exp(-losses)) ** 2 * losses, logits

        return loss

    method = combine(Method("focal(2)", loss=focal), methods.ghost_batch_norm(4))
    expected = (1 - jnp.exp(-losses(PLAIN))) ** 2 * losses(PLAIN)
    np.testing.assert_allclose(losses(method), expected, rtol=1e-6)
    minimum = find(method)
    assert minimum.settings["changes"] == "focal(2) + ghost_batch_norm(4)"
    assert minimum.distance != plain.distance


def test_every_ghost_batch_has_a_key_of_its_own():
    def apply(params, x, key):
        return jnp.broadcast_to(jax.random.normal(key), (len(x), 2))

    ghosts = methods.ghost_batch_norm(3).network(apply)
    assert len(set(ghosts({}, jnp.zeros((10, 1)), KEY)[:, 0].tolist())) == 3  # of four, three and three examples
