"""What changes a training run: its batches, network, loss, optimiser or batch size, in small pieces that combine.

A piece is a `Method` with one function, which takes what it changes first and returns that changed. So pieces
join: `combine(ghost_batch_norm(32), updates.sam(0.05), updates.warm_up(100))`. One of strength 0 changes nothing.
Here are those for the batch, the network and the loss; `updates` has those for the optimiser, and `growth` those
for the batch size.
"""

import math
import zlib
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Key, PyTree

from gengap import flat, objective, train


def _same(it: Any, *_: Any) -> Any:
    return it


class Method(NamedTuple):
    """What differs from plain training.

    Attributes:
      name: all settings in words, for records.
      batch: `(x, key) -> x`, of the batch [b, ...] after images are scaled to [0, 1].
      network: `apply -> apply`, of `(params, x, key) -> logits [b, classes]` in training. f is without it.
      loss: `examples -> examples`, of `(params, x, y, key) -> (losses [b], logits [b, classes])`. Training
        descends the mean of the losses. It reports the plain loss and accuracy of the logits.
      optimizer: `train.Optimizer -> train.Optimizer`. Beside optax's three arguments its `update` gets `value`,
        `grad` and `value_fn(params)`, of the loss of this step's batch.
      grow: `(batch_size, epoch, noise) -> batch_size` after so many epochs; `noise()` is a `growth.Noise`.
      gradients: evaluations for each update, in units of the plain one.
    """

    name: str
    batch: Callable = _same
    network: Callable = _same
    loss: Callable = _same
    optimizer: Callable = _same
    grow: Callable = _same
    gradients: int = 1


PLAIN = Method("")


def combine(*methods: Method) -> Method:
    """Methods in one: of two that change the same thing, the second takes what the first made of it.

    >>> combine(label_smoothing(0.1), ghost_batch_norm(32)).name
    'label_smoothing(0.1) + ghost_batch_norm(32)'
    """
    pieces = {name: _chain([getattr(one, name) for one in methods]) for name in Method._fields[1:-1]}
    names = " + ".join(one.name for one in methods if one.name)
    return PLAIN._replace(name=names, gradients=math.prod(one.gradients for one in methods), **pieces)


def _chain(functions: list[Callable]) -> Callable:
    steps = [f for f in functions if f is not _same]
    if len(steps) < 2:
        return (steps or [_same])[0]
    return lambda it, *rest: reduce(lambda it, f: f(it, *rest), steps, it)


def own_key(key: Key[Array, ""], word: str) -> Key[Array, ""]:
    """A key for one method, so that two that are combined draw different numbers."""
    return jax.random.fold_in(key, zlib.crc32(word.encode()))


def examples(
    method: Method, apply: Callable, apply_train: Callable | None = None, *, clip: float | None = None
) -> Callable:
    """What a method makes of the loss: `(params, x, y, key) -> (losses [b], logits [b, classes])` of a batch x.

    `apply_train`, `(params, x, key) -> logits`, stands in for `apply` where the network has dropout.
    """
    network = method.network(apply_train or (lambda params, x, key: apply(params, x)))

    def plain(params: PyTree, x: Array, y: Array, key: Key[Array, ""]) -> tuple[Array, Array]:
        logits = objective.fitting(network(params, x, jax.random.clone(key)), len(y))  # one dropout for each batch
        return objective.cross_entropy(logits, y, clip=clip), logits

    changed = method.loss(plain)
    return lambda params, x, y, key: changed(params, method.batch(objective.scale(x), key), y, key)


def batch_loss(
    method: Method, apply: Callable, apply_train: Callable | None = None, *, clip: float | None = None
) -> Callable:
    """For `train.fit`: `(params, x, y, key) -> (loss to descend, (plain loss, accuracy) to report)`."""
    of = examples(method, apply, apply_train, clip=clip)

    def loss(params: PyTree, x: Array, y: Array, key: Key[Array, ""]) -> tuple[Array, tuple[Array, Array]]:
        losses, logits = of(params, x, y, key)
        plain = objective.cross_entropy(logits, y, clip=clip)
        return losses.mean(), (plain.mean(), objective.accuracy(logits, y).mean())

    return loss


def optimizer(method: Method, plain: Any) -> Any:
    """The optimiser of a method, from a named or any other optax transformation."""
    if method.optimizer is _same:
        return plain
    return method.optimizer(plain if isinstance(plain, train.Optimizer) else train.named("", plain))


def parameters(state: train.TrainState) -> Any:
    """Those that a run has come to: the average where there is one."""
    return optax.tree.get(state.opt_state, "weight_average", state.params)


# The batch


def augmentation(*, flip: float = 0.5, degrees: float = 10.0, shift: float = 0.2) -> Method:
    """Each image by itself mirrored, rotated and shifted at random; appendix E.1 has these defaults.

    Between pixels it is bilinear, beyond the edge the nearest pixel, as in Keras.

    Args:
      flip: the probability that left and right are exchanged; take 0 for digits, whose mirror images are none.
      degrees: the most a rotation turns, about the centre and either way.
      shift: the most a translation moves, as a share of height and of width, either way.
    """
    flat.check_between({"flip": flip, "shift": shift}, 0, 1)
    flat.check_between({"degrees": degrees}, 0, 180)
    move = jax.vmap(partial(_moved, flip, degrees, shift))

    def batch(x: Array, key: Array) -> Array:
        if x.ndim != 4:
            raise ValueError(f"x has the shape {x.shape}; augmentation needs images [b, height, width, channels]")
        return move(x, jax.random.split(own_key(key, "augmentation"), len(x)))

    return Method(f"augmentation(flip={flip}, degrees={degrees}, shift={shift})", batch=batch)


def _moved(flip: float, degrees: float, shift: float, x: Array, key: Array) -> Array:
    u = jax.random.uniform(key, (4,))
    angle, size = jnp.deg2rad(degrees) * (2 * u[1] - 1), jnp.array(x.shape[:2], x.dtype)
    place = jnp.stack(jnp.meshgrid(*map(jnp.arange, x.shape[:2]), indexing="ij")).astype(x.dtype)
    centre = ((size - 1) / 2)[:, None, None]
    down, right = place - centre - (shift * size * (2 * u[2:] - 1))[:, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source = jnp.stack([cos * down - sin * right, sin * down + cos * right]) + centre
    mirrored = jnp.where(u[0] < flip, x[:, ::-1], x)
    sample = partial(map_coordinates, coordinates=list(source), order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(mirrored)


# The network


def ghost_batch_norm(size: int) -> Method:
    """Batch-norm statistics over groups of about `size` examples of each batch (Hoffer et al. 2017).

    The groups are as equal as can be: 400 examples with a size of 32 are four groups of 34 and eight of 33. A size
    of the batch or more is batch norm itself. It wraps any network whose examples meet through batch norm alone.
    """
    flat.check_counts({"size": size})

    def network(apply: Callable) -> Callable:
        def grouped(params: PyTree, x: Array, key: Array) -> Array:
            groups = max(1, round(len(x) / size))
            if groups == 1:
                return apply(params, x, key)
            short, longer = divmod(len(x), groups)
            keys, end, logits = jax.random.split(key, groups), longer * (short + 1), []
            parts = (x[:end], keys[:longer], short + 1), (x[end:], keys[longer:], short)
            for part, own, n in parts:
                if len(part):
                    of_groups = jax.vmap(apply, in_axes=(None, 0, 0))
                    logits.append(of_groups(params, part.reshape(-1, n, *x.shape[1:]), own))
            return jnp.concatenate([one.reshape(-1, one.shape[-1]) for one in logits])

        return grouped

    return Method(f"ghost_batch_norm({size})", network=network)


# The loss


def matched_noise(small_batch: int) -> Method:
    r"""Weights that give the gradient of a batch of B the covariance of one of `small_batch`, $B_S$.

    $\frac1B \sum_i w_i \nabla f_i$ with $w_i = 1 + s (z_i - \bar z)$, $z_i \sim N(0, 1)$, $s^2 = B / B_S - 1$ has
    the mean g, the batch's gradient, and the covariance $\frac{s^2}{B} \Sigma = (\frac{1}{B_S} - \frac1B) \Sigma$,
    where $\Sigma$ is that of the examples in the batch. Without $\bar z$ there would be $\frac{s^2}{B} g g^T$ on
    top, which scales the whole gradient at random. One backward pass.

    Raises:
      ValueError: `small_batch` below 1; when training begins, one above the batch.
    """
    flat.check_counts({"small_batch": small_batch})

    def loss(examples: Callable) -> Callable:
        def noisy(params: PyTree, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
            if small_batch > len(x):
                raise ValueError(f"small_batch is {small_batch}; it must be at most {len(x)}, the batch")
            losses, logits = examples(params, x, y, key)
            z = jax.random.normal(own_key(key, "matched_noise"), losses.shape, losses.dtype)
            return losses * (1 + math.sqrt(len(x) / small_batch - 1) * (z - z.mean())), logits

        return noisy

    return Method(f"matched_noise({small_batch})", loss=loss)


def label_smoothing(amount: float = 0.1) -> Method:
    r"""$(1 - a) f_i - \frac aK \sum_k \log p_k$: a label shares the amount a with all classes (Szegedy 2016)."""
    flat.check_between({"amount": amount}, 0, 1)

    def loss(examples: Callable) -> Callable:
        def smooth(params: PyTree, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
            losses, logits = examples(params, x, y, key)
            return (1 - amount) * losses - amount * jax.nn.log_softmax(logits).mean(1), logits

        return smooth

    return Method(f"label_smoothing({amount})", loss=loss if amount else _same)


def adversarial(epsilon: float = 0.03, *, share: float = 0.5) -> Method:
    r"""Training on FGSM's examples: $(1 - c) f_i(x) + c f_i(x + \epsilon\, \mathrm{sign} \nabla_x f(x))$.

    Args:
      epsilon: how far each input moves, where images are 0 to 1.
      share: c, of the moved examples.

    Reference: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015.
    """
    flat.check_between({"epsilon": epsilon}, 0)
    flat.check_between({"share": share}, 0, 1)

    def loss(examples: Callable) -> Callable:
        def both(params: PyTree, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
            slope = jax.grad(lambda x: examples(params, x, y, key)[0].sum())(x)
            moved = jax.lax.stop_gradient(x + epsilon * jnp.sign(slope))
            losses, logits = examples(params, x, y, key)
            return (1 - share) * losses + share * examples(params, moved, y, key)[0], logits

        return both

    name = f"adversarial({epsilon}, share={share})"
    return Method(name, loss=loss, gradients=3) if epsilon and share else Method(name)


def stability(sigma: float = 0.04, *, weight: float = 0.01) -> Method:
    r"""$f_i(x) - \alpha \sum_k p_k(x) \log p_k(x + \sigma z)$: the same answer for a noisy input.

    Args:
      sigma: standard deviation of the normal noise, where images are 0 to 1.
      weight: alpha.

    Reference: Zheng et al., "Improving the Robustness of Deep Neural Networks via Stability Training", 2016.
    """
    flat.check_between({"sigma": sigma, "weight": weight}, 0)

    def loss(examples: Callable) -> Callable:
        def stable(params: PyTree, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
            noise = sigma * jax.random.normal(own_key(key, "stability"), x.shape, x.dtype)
            losses, logits = examples(params, x, y, key)
            other = jax.nn.log_softmax(examples(params, x + noise, y, key)[1])
            return losses - weight * (jax.nn.softmax(logits) * other).sum(1), logits

        return stable

    name = f"stability({sigma}, weight={weight})"
    return Method(name, loss=loss, gradients=2) if weight else Method(name)
