"""What is minimised: cross entropy, and its mean over a whole data set, in chunks."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer, Key, PyTree, Shaped


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Integer[Array, " b"], *, clip: float | None = None
) -> Float[Array, " b"]:
    """Cross entropy of each example, `-log softmax(logits)[label]`, in nats, to a relative precision.

    Args:
      logits: unnormalised log probabilities; of lower precision than float32 they are computed in that.
      labels: classes, 0 to classes - 1; the loss of any other label is NaN.
      clip: if given, probabilities are clipped to [clip, 1 - clip]; 1e-7 is what Keras does, so that
        no example has a loss above 16.118 and one beyond it has no gradient.

    >>> float(cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0])  # log 4
    1.3862943649291992
    """
    loss = _nats(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels)
    return loss if clip is None else jnp.clip(loss, -jnp.log1p(-clip), -jnp.log(clip))


def _is_label(logits: Array, labels: Array) -> Array:
    return labels[:, None] == jnp.arange(logits.shape[1])[None]


@jax.custom_jvp
def _nats(logits: Array, labels: Array) -> Array:
    is_label = _is_label(logits, labels)
    own = jnp.where(is_label, logits, 0).sum(1, keepdims=True)
    above = jnp.where(is_label, 0, logits - own)
    top = jnp.argmax(above, axis=1, keepdims=True)
    most = jnp.take_along_axis(above, top, axis=1)
    # log(1 + small) loses what is small, and at a minimum nearly all of the loss is.
    rest = jnp.where(jnp.arange(logits.shape[1])[None] == top, 0, jnp.exp(above - most)).sum(1)
    loss = jnp.where(own[:, 0] == -jnp.inf, jnp.inf, most[:, 0] + jnp.log1p(rest))
    return jnp.where(is_label.any(1), loss, jnp.nan)


@_nats.defjvp
def _nats_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    logits, labels = primals
    is_label = _is_label(logits, labels)
    others = jnp.where(is_label, 0, jax.nn.softmax(logits))
    # The label's probability minus 1 would lose what is small, as above.
    slope = jnp.where(is_label, -others.sum(1, keepdims=True), others)
    return _nats(logits, labels), (slope * tangents[0]).sum(1)


def accuracy(logits: Float[Array, "b classes"], labels: Integer[Array, " b"]) -> Float[Array, " b"]:
    """1 for each example whose largest logit is its label's, else 0."""
    return (logits.argmax(-1) == labels).astype(jnp.float32)


def scale(x: Shaped[Array, "b ..."]) -> Float[Array, "b ..."]:
    """uint8 images to [0, 1] by a factor of 1/255; floating-point features as they are."""
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


@lru_cache(maxsize=64)
def batch_loss(apply: Callable, apply_train: Callable | None = None, *, clip: float | None = None) -> Callable:
    """The loss that training descends: `(params, x, y, key) -> (mean loss, mean accuracy)`.

    Args:
      apply: `(params, x) -> logits [b, classes]`.
      apply_train: `(params, x, key) -> logits`, used in its place where the network has dropout.
      clip: see `cross_entropy`.
    """

    def loss(params: PyTree, x: Array, y: Array, key: Key[Array, ""]) -> tuple[Array, Array]:
        x = scale(x)
        logits = _checked(apply(params, x) if apply_train is None else apply_train(params, x, key), y)
        return cross_entropy(logits, y, clip=clip).mean(), accuracy(logits, y).mean()

    return loss


def over_dataset(
    apply: Callable,
    x: Shaped[Array, "m ..."],
    y: Integer[Array, " m"],
    *,
    chunk: int = 5000,
    clip: float | None = None,
) -> Callable[[PyTree], Array]:
    r"""The objective $f(x) = \frac{1}{M} \sum_i f_i(x)$ (eq. 1) as a function of the parameters alone.

    The data are taken in as few chunks of at most `chunk` examples as possible, all of one size or sizes
    that differ by one, so that each example counts once and batch norm never sees a short remainder.
    A gradient costs the memory of one chunk's: it is accumulated in the same pass as the value, in float32.

    Args:
      apply: `(params, x) -> logits [b, classes]`.
      x: images (uint8, scaled by 1/255) or features (floating point).
      y: classes.
      chunk: the most examples at once; with batch statistics f depends on it. The paper's code used 5000.
      clip: see `cross_entropy`.

    Returns:
      `params -> scalar`, differentiable any number of times, a pytree of its data: handed to a jitted
      function as an argument it compiles once for all data of one shape and one greatest label.

    Raises:
      ValueError: `chunk` below 1, no examples, `x` and `y` of different lengths, or a label below 0; when it is
        called, logits of another shape or fewer of them than labels.
    """
    return Partial(_mean_loss(apply, chunk, clip, _greatest(x, y, chunk)), x, y)


def loss_and_accuracy(
    apply: Callable,
    x: Shaped[Array, "m ..."],
    y: Integer[Array, " m"],
    *,
    chunk: int = 5000,
    clip: float | None = None,
) -> Callable[[PyTree], tuple[Array, Array]]:
    """`params -> (mean loss in nats, accuracy from 0 to 1)` over a data set, in chunks as `over_dataset`."""
    return Partial(_mean_loss_and_accuracy(apply, chunk, clip, _greatest(x, y, chunk)), x, y)


def over_batches(
    apply: Callable,
    x: Shaped[Array, "m ..."],
    y: Integer[Array, " m"],
    *,
    size: int = 256,
    clip: float | None = None,
) -> Callable[[PyTree, Key[Array, ""]], Array]:
    """`(params, key) -> mean loss` of a batch that the key draws with replacement, without dropout.

    Its mean over keys is f (eq. 1) for a network that looks at each example by itself; batch norm takes its
    statistics over the batch. A pytree of its data, and with the same errors, as `over_dataset`.
    """
    return Partial(_batch(apply, size, clip, _greatest(x, y, size, "size")), x, y)


def _greatest(x: Any, y: Any, chunk: int, name: str = "chunk") -> int:
    """The greatest label, once the data are found to be in order; -1 where the labels are not known yet."""
    if chunk < 1:
        raise ValueError(f"{name} is {chunk}; it must be at least 1")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x has {len(x)} examples and y has {len(y)}; they must be as many, and at least one")
    if y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y is {y.dtype}{list(y.shape)}; it must be one whole number for each example, its class")
    if isinstance(y, jax.core.Tracer):
        return -1
    labels = jax.device_get(y)
    if labels.min() < 0:
        raise ValueError(f"y has a label {labels.min()}; labels must be from 0 up")
    return int(labels.max())


def _checked(logits: Any, y: Array, greatest: int = -1) -> Array:
    """Logits that fit the labels."""
    shape = getattr(logits, "shape", type(logits))
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != len(y) or shape[1] < 2:
        raise ValueError(f"apply returned {shape}; it must return logits [{len(y)}, 2 classes or more]")
    if greatest >= shape[1]:
        raise ValueError(
            f"y has a label {greatest}; apply returned {shape[1]} logits, for labels from 0 to {shape[1] - 1}"
        )
    return logits


@lru_cache(maxsize=64)
def _batch(apply: Callable, size: int, clip: float | None, greatest: int) -> Callable:
    def f(x: Array, y: Array, params: PyTree, key: Array) -> Array:
        where = jax.random.randint(key, (size,), 0, len(x))
        logits = _checked(apply(params, scale(x[where])), y[where], greatest)
        return cross_entropy(logits, y[where], clip=clip).mean()

    return f


@lru_cache(maxsize=64)
def _mean_loss_and_accuracy(apply: Callable, chunk: int, clip: float | None, greatest: int) -> Callable:
    def means(x: Array, y: Array, params: PyTree) -> Any:
        def sums(x: Array, y: Array) -> tuple[Array, Array]:
            logits = _checked(apply(params, scale(x)), y, greatest)
            return cross_entropy(logits, y, clip=clip).sum(), accuracy(logits, y).sum()

        return jax.tree.map(lambda s: s / len(x), _total(sums, apply, params, x, y, chunk))

    return jax.jit(means)


@lru_cache(maxsize=64)
def _mean_loss(apply: Callable, chunk: int, clip: float | None, greatest: int) -> Callable:
    def chunk_loss(params: PyTree, x: Array, y: Array) -> Array:
        return cross_entropy(_checked(apply(params, scale(x)), y, greatest), y, clip=clip).sum()

    # Differentiating the scan itself would keep the activations of every chunk.
    @jax.custom_jvp
    def f(params: PyTree, x: Array, y: Array) -> Array:
        return _total(lambda x, y: chunk_loss(params, x, y), apply, params, x, y, chunk) / len(x)

    def f_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        params, x, y = primals
        direction, dx, _ = tangents
        if not _is_zero(dx):
            raise NotImplementedError("over_dataset is differentiated with respect to the parameters only")
        gradient_of = jax.value_and_grad(chunk_loss)
        value, gradient = _total(lambda x, y: gradient_of(params, x, y), apply, params, x, y, chunk)
        slope = jnp.zeros_like(value)
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction, is_leaf=_is_zero), strict=True):
            slope += 0 if _is_zero(d) else jnp.vdot(g, d) / len(x)
        return value / len(x), slope

    f.defjvp(f_jvp, symbolic_zeros=True)
    return jax.jit(lambda x, y, params: f(params, x, y))


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _total(fn: Callable, apply: Callable, params: PyTree, x: Array, y: Array, chunk: int) -> Any:
    """Sum of the pytree `fn(x_chunk, y_chunk)` over chunks of at most `chunk` examples, in float32 at least."""
    count = -(-len(x) // chunk)
    size, longer = divmod(len(x), count)
    leaves, tree = jax.tree.flatten((params, x[:size]))
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    unroll = count > 1 and jax.default_backend() == "cpu" and _has_convolution(apply, tree, shapes)

    def add(sums: Any, xy: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda s, one: s + one.astype(s.dtype), sums, fn(*xy)), None

    like = jax.eval_shape(fn, x[:size], y[:size])
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), like)
    middle = longer * (size + 1)
    for begin, end, length in ((0, middle, size + 1), (middle, len(x), size)):
        if end > begin:
            chunks = [a[begin:end].reshape(-1, length, *a.shape[1:]) for a in (x, y)]
            total, _ = lax.scan(add, total, chunks, unroll=unroll)
    return total


@lru_cache(maxsize=64)
def _has_convolution(apply: Callable, tree: Any, shapes: tuple[Any, ...]) -> bool:
    """Whether the network holds one: XLA:CPU runs it many times slower in a loop than outside (jax 0.10.2)."""
    params, x = tree.unflatten(shapes)
    return "conv_general_dilated[" in str(jax.make_jaxpr(lambda p, x: apply(p, scale(x)))(params, x))
