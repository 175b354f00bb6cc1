"""Changes to plain training: of its batches, network, loss, optimiser or batch size, in pieces that combine.

Each piece is a `Method` with one function, which takes the thing to change as its first argument and returns it
changed. Combine pieces as `combine(ghost_batch_norm(32), sam(0.05), warm_up(100))`. A piece of strength 0 changes
nothing. If several change the optimiser, the first is the innermost.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, PyTree

from gengap import checks, flat, train

__all__ = [
    "PLAIN",
    "Method",
    "adversarial",
    "augmentation",
    "byrd",
    "combine",
    "conservative",
    "doubling",
    "ghost_batch_norm",
    "instead",
    "label_smoothing",
    "matched_noise",
    "optimizer",
    "sam",
    "same_updates",
    "scale_rate",
    "stability",
    "warm_up",
    "weight_averaging",
]  # fmt: skip


def _same(unchanged: Any, *_: Any) -> Any:
    return unchanged


class Method(NamedTuple):
    """What differs from plain training.

    Attributes:
      name: all settings in words, for records.
      batch: `(x, key) -> x`, applied to the batch [b, ...] after images are scaled to [0, 1].
      network: `apply -> apply`, each `(params, x, key) -> logits [b, classes]`, in training only; f ignores it.
      loss: `examples -> examples`, each `(params, x, y, key) -> (losses [b], logits [b, classes])`. Training
        minimises the mean of the losses, and reports the plain loss and the accuracy of the logits.
      optimizer: `train.Optimizer -> train.Optimizer`. Besides optax's three arguments its `update` gets `value`,
        `grad` and `value_fn(params)`, for the loss of this step's batch.
      grow: `(batch_size, epoch, noise) -> batch_size` after an epoch; `noise()` is a `train.GradientNoise`.
      gradients: gradient evaluations per update; plain training has 1.
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
    """One method made of several. If two change the same thing, the second changes the result of the first.

    >>> combine(label_smoothing(0.1), ghost_batch_norm(32)).name
    'label_smoothing(0.1) + ghost_batch_norm(32)'
    """
    pieces = {name: _chain([getattr(method, name) for method in methods]) for name in Method._fields[1:-1]}
    names = " + ".join(method.name for method in methods if method.name)
    return PLAIN._replace(name=names, gradients=math.prod(method.gradients for method in methods), **pieces)


def _chain(functions: list[Callable]) -> Callable:
    changes = [change for change in functions if change is not _same]
    if len(changes) < 2:
        return (changes or [_same])[0]
    return lambda first, *rest: reduce(lambda changed, change: change(changed, *rest), changes, first)


def optimizer(method: Method, plain: Any) -> Any:
    """The optimiser of a method, from a named or any other optax transformation."""
    return method.optimizer(plain if isinstance(plain, train.Optimizer) else train.named("", plain))


def _around(change: Callable) -> Callable:
    """`f -> g`, where g calls `change` with f and then its own arguments."""
    return lambda f: partial(change, f)


# The batch


def augmentation(*, flip: float = 0.5, degrees: float = 10.0, shift: float = 0.2) -> Method:
    """Mirror, rotate and shift each image at random; the defaults are those of appendix E.1.

    Interpolation is bilinear; beyond the edge the nearest pixel is used, as in Keras.

    Args:
      flip: the probability that left and right are exchanged; use 0 for digits: their mirror images are no digits.
      degrees: the largest rotation about the centre, in either direction.
      shift: the largest translation in either direction, as a share of height and of width.
    """
    checks.check_between({"flip": flip, "shift": shift}, 0, 1)
    checks.check_between({"degrees": degrees}, 0, 180)
    move = jax.vmap(partial(_moved, flip, degrees, shift))

    def batch(x: Array, key: Array) -> Array:
        if x.ndim != 4:
            raise ValueError(f"x has the shape {x.shape}; augmentation needs images [b, height, width, channels]")
        return move(x, jax.random.split(flat.key_for(key, "augmentation"), len(x)))

    return Method(f"augmentation(flip={flip}, degrees={degrees}, shift={shift})", batch=batch)


def _moved(flip: float, degrees: float, shift: float, x: Array, key: Array) -> Array:
    u = jax.random.uniform(key, (4,))
    angle, size = jnp.deg2rad(degrees) * (2 * u[1] - 1), jnp.array(x.shape[:2], x.dtype)
    pixels = jnp.stack(jnp.meshgrid(*map(jnp.arange, x.shape[:2]), indexing="ij")).astype(x.dtype)
    centre = ((size - 1) / 2)[:, None, None]
    down, right = pixels - centre - (shift * size * (2 * u[2:] - 1))[:, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source = jnp.stack([cos * down - sin * right, sin * down + cos * right]) + centre
    mirrored = jnp.where(u[0] < flip, x[:, ::-1], x)
    sample = partial(map_coordinates, coordinates=list(source), order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(mirrored)


# The network


def ghost_batch_norm(size: int) -> Method:
    """Batch-norm statistics over groups of about `size` examples of each batch (Hoffer et al. 2017).

    Group sizes differ by at most 1: 400 examples with a size of 32 make four groups of 34 and eight of 33. A size
    of the batch or more is plain batch norm. It works for any network whose examples interact only in batch norm.
    """
    checks.check_counts({"size": size})

    def grouped(apply: Callable, params: PyTree, x: Array, key: Array) -> Array:
        groups = max(1, round(len(x) / size))
        if groups == 1:
            return apply(params, x, key)
        short, longer = divmod(len(x), groups)
        keys, end, logits = jax.random.split(key, groups), longer * (short + 1), []
        for rows, row_keys, n in ((x[:end], keys[:longer], short + 1), (x[end:], keys[longer:], short)):
            if len(rows):
                apply_each = jax.vmap(apply, in_axes=(None, 0, 0))
                logits.append(apply_each(params, rows.reshape(-1, n, *x.shape[1:]), row_keys))
        return jnp.concatenate([group.reshape(-1, group.shape[-1]) for group in logits])

    return Method(f"ghost_batch_norm({size})", network=_around(grouped))


# The loss


def matched_noise(small_batch: int) -> Method:
    r"""Weights that give the gradient of a batch of B the covariance of a batch of `small_batch`, $B_S$.

    $\frac1B \sum_i w_i \nabla f_i$ with $w_i = 1 + s (z_i - \bar z)$, $z_i \sim N(0, 1)$, $s^2 = B / B_S - 1$ has
    the mean g, the batch's gradient, and the covariance $\frac{s^2}{B} \Sigma = (\frac{1}{B_S} - \frac1B) \Sigma$,
    where $\Sigma$ is the covariance of the examples in the batch. Without $\bar z$ there would be an extra
    $\frac{s^2}{B} g g^T$, which scales the whole gradient at random. It takes one backward pass.

    Raises:
      ValueError: `small_batch` is below 1 or, when training begins, above the batch size.
    """
    checks.check_counts({"small_batch": small_batch})

    def noisy(examples: Callable, params: PyTree, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
        if small_batch > len(x):
            raise ValueError(f"small_batch is {small_batch}; it must be at most {len(x)}, the batch")
        losses, logits = examples(params, x, y, key)
        z = jax.random.normal(flat.key_for(key, "matched_noise"), losses.shape, losses.dtype)
        return losses * (1 + math.sqrt(len(x) / small_batch - 1) * (z - z.mean())), logits

    return Method(f"matched_noise({small_batch})", loss=_around(noisy))


def label_smoothing(amount: float = 0.1) -> Method:
    r"""$(1 - a) f_i - \frac aK \sum_k \log p_k$: the amount a is spread over all classes (Szegedy 2016)."""
    checks.check_between({"amount": amount}, 0, 1)

    def smooth(examples: Callable, params: PyTree, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
        losses, logits = examples(params, x, y, key)
        return (1 - amount) * losses - amount * jax.nn.log_softmax(logits).mean(1), logits

    return Method(f"label_smoothing({amount})", loss=_around(smooth) if amount else _same)


def adversarial(epsilon: float = 0.03, *, share: float = 0.5) -> Method:
    r"""Training on FGSM's examples: $(1 - c) f_i(x) + c f_i(x + \epsilon\, \mathrm{sign} \nabla_x f(x))$.

    Args:
      epsilon: how far each input moves, for images from 0 to 1.
      share: c, the weight of the moved examples.

    Reference: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015.
    """
    checks.check_between({"epsilon": epsilon}, 0)
    checks.check_between({"share": share}, 0, 1)

    def both(examples: Callable, params: PyTree, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
        slope = jax.grad(lambda x: examples(params, x, y, key)[0].sum())(x)
        moved = jax.lax.stop_gradient(x + epsilon * jnp.sign(slope))
        losses, logits = examples(params, x, y, key)
        return (1 - share) * losses + share * examples(params, moved, y, key)[0], logits

    name = f"adversarial({epsilon}, share={share})"
    return Method(name, loss=_around(both), gradients=3) if epsilon and share else Method(name)


def stability(sigma: float = 0.04, *, weight: float = 0.01) -> Method:
    r"""$f_i(x) - \alpha \sum_k p_k(x) \log p_k(x + \sigma z)$: a noisy input should give the same output.

    Args:
      sigma: standard deviation of the normal noise, for images from 0 to 1.
      weight: alpha.

    Reference: Zheng et al., "Improving the Robustness of Deep Neural Networks via Stability Training", 2016.
    """
    checks.check_between({"sigma": sigma, "weight": weight}, 0)

    def stable(examples: Callable, params: PyTree, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
        noise = sigma * jax.random.normal(flat.key_for(key, "stability"), x.shape, x.dtype)
        losses, logits = examples(params, x, y, key)
        noisy = jax.nn.log_softmax(examples(params, x + noise, y, key)[1])
        return losses - weight * (jax.nn.softmax(logits) * noisy).sum(1), logits

    name = f"stability({sigma}, weight={weight})"
    return Method(name, loss=_around(stable), gradients=2) if weight else Method(name)


# The optimiser


def _updating(update: Callable) -> Callable:
    return lambda inner: inner._replace(update=partial(update, inner))


def sam(rho: float = 0.05, *, adaptive: bool = False) -> Method:
    r"""SAM: the gradient at $x + \rho\, T^2 g / \|T g\|$, where g is the gradient at x.

    T is 1, or for ASAM (`adaptive`) $|x_j| + 0.01$ for every parameter; the 0.01 is that of its authors' code.

    References: Foret et al. 2021 (arXiv:2010.01412); Kwon et al. 2021 (arXiv:2102.11600), who use a rho of 0.5.
    """
    checks.check_between({"rho": rho}, 0)

    def update(inner: train.Optimizer, gradient: PyTree, state: Any, params: PyTree, **extra: Any) -> Any:
        scale = jax.tree.map(lambda p: jnp.abs(p) + 0.01 if adaptive else jnp.ones_like(p), params)
        length = optax.tree.norm(jax.tree.map(jnp.multiply, scale, gradient))
        step = jnp.where(length > 0, rho / jnp.where(length > 0, length, 1), 0)
        climb = jax.tree.map(lambda t, g: step * t**2 * g, scale, gradient)
        raised = jax.grad(extra["value_fn"])(optax.apply_updates(params, climb))
        return inner.update(raised, state, params, **extra)

    return Method(f"{'asam' if adaptive else 'sam'}({rho})", optimizer=_updating(update), gradients=2)


def conservative(strength: float = 1e-3, *, steps: int = 3) -> Method:
    r"""$x_{k+1} = \arg\min_x f_B(x) + \frac\lambda2 \|x - x_k\|^2$ (eq. 5), by a few steps of the optimiser.

    The state of the optimiser, such as Adam's moments, is kept from batch to batch; the paper does not say. One
    step is plain training, because the proximal term is 0 at x_k. Three steps at strength 0 are the control.

    Args:
      strength: lambda.
      steps: steps of the optimiser, each with a gradient; the paper takes 3.

    Reference: appendix E.2, after Li et al. 2014.
    """
    checks.check_between({"strength": strength}, 0)
    checks.check_counts({"steps": steps})

    def update(inner: train.Optimizer, gradient: PyTree, state: Any, params: PyTree, **extra: Any) -> Any:
        moved, state = inner.update(gradient, state, params, **extra)
        for _ in range(steps - 1):
            x = optax.apply_updates(params, moved)
            slope = jax.tree.map(lambda g, d: g + strength * d, jax.grad(extra["value_fn"])(x), moved)
            step, state = inner.update(slope, state, x, **extra)
            moved = jax.tree.map(jnp.add, moved, step)
        return moved, state

    return Method(f"conservative({strength}, steps={steps})", optimizer=_updating(update), gradients=steps)


class _Averaged(NamedTuple):
    inner: Any
    weight_average: Any
    steps: Array


def weight_averaging(decay: float = 0.99) -> Method:
    """The minimum is an average of the iterates (`optax.incremental_update`); training and its history are plain.

    It is the plain mean of the first 1 / (1 - decay) iterates, then an exponential one (Polyak and Juditsky 1992).
    Put it last in `combine`: the average does not see changes of the step by later pieces.
    """
    checks.check_between({"decay": decay}, 0, 1)

    def change(inner: train.Optimizer) -> train.Optimizer:
        def init(params: PyTree) -> _Averaged:
            return _Averaged(inner.init(params), params, jnp.zeros((), jnp.int32))

        def update(gradient: PyTree, state: _Averaged, params: PyTree, **extra: Any) -> Any:
            moved, inner_state = inner.update(gradient, state.inner, params, **extra)
            share, x = jnp.maximum(1 - decay, 1 / (state.steps + 1)), optax.apply_updates(params, moved)
            average = optax.incremental_update(x, state.weight_average, share)
            return moved, _Averaged(inner_state, average, state.steps + 1)

        return inner._replace(init=init, update=update)

    return Method(f"weight_averaging({decay})", optimizer=change)


def _scaled(name: str, scaling: Any) -> Method:
    def change(inner: train.Optimizer) -> train.Optimizer:
        before = optax.GradientTransformationExtraArgs(inner.init, inner.update)
        return train.named(inner.name, optax.chain(before, scaling))

    return Method(name, optimizer=change)


def scale_rate(factor: float) -> Method:
    """The learning rate times a factor: B_L / B_S is linear scaling, its square root is sqrt scaling."""
    checks.check_between({"factor": factor}, 0)
    return _scaled(f"scale_rate({factor:.6g})", optax.scale(factor))


def warm_up(steps: int) -> Method:
    """The learning rate grows linearly over the first steps: update t, from 0, is scaled by (t + 1) / steps."""
    checks.check_counts({"steps": steps}, least=0)
    return _scaled(f"warm_up({steps})", optax.scale_by_schedule(lambda t: jnp.minimum(1, (t + 1) / max(steps, 1))))


def instead(other: train.Optimizer) -> Method:
    """Another optimiser, such as `instead(train.lamb(0.01))` or `instead(train.adam(1e-3, weight_decay=0.1))`."""
    return Method(other.name, optimizer=lambda inner: other)


# The batch size


def same_updates(epochs: int, small_batch: int, batch: int, m: int) -> int:
    """The epochs in which a batch makes as many updates as `small_batch` does in `epochs` (Hoffer et al. 2017).

    Args:
      epochs: epochs of the small batch.
      small_batch, batch: batch sizes, in examples.
      m: examples in an epoch, whose last batch is filled up.

    >>> same_updates(25, 32, 400, 4000)  # 25 epochs of 125 updates, and of 10
    312
    """
    checks.check_counts({"epochs": epochs, "small_batch": small_batch, "batch": batch, "m": m})
    return max(1, round(epochs * -(-m // small_batch) / -(-m // batch)))


def doubling(every: int, *, most: int) -> Method:
    """The batch doubles after a fixed number of epochs, up to `most` examples (Smith et al. 2018)."""
    checks.check_counts({"every": every, "most": most})

    def grow(size: int, epoch: int, noise: Callable[[], train.GradientNoise]) -> int:
        return max(size, min(2 * size, most)) if epoch % every == 0 else size

    return Method(f"doubling({every}, most={most})", grow=grow)


def byrd(theta: float = 0.5, *, most: int) -> Method:
    r"""If the gradient g is noisy, $\mathrm{tr}\,\Sigma / B > \theta^2 |g|^2$, B grows until the two are equal.

    The test is made after each epoch, on a batch of the current size. The batch grows to at most `most` examples.

    Reference: Byrd, Chin, Nocedal and Wu, "Sample size selection in optimization methods for machine learning",
    Mathematical Programming 134, 2012.
    """
    checks.check_positive({"theta": theta})
    checks.check_counts({"most": most})

    def grow(size: int, epoch: int, noise: Callable[[], train.GradientNoise]) -> int:
        measured = noise()
        wanted = size * float(measured.variance) / (theta**2 * max(float(measured.square), 1e-30))
        return max(size, min(math.ceil(wanted), most)) if math.isfinite(wanted) else size

    return Method(f"byrd({theta}, most={most})", grow=grow)
