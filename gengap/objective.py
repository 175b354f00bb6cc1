"""What is minimised: cross entropy, and its mean over a whole data set, in chunks. All of it can be traced."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer, Key, PyTree, Shaped

from gengap import checks, program

__all__ = [
    "accuracy", "check_logits", "cross_entropy", "loss_and_accuracy", "over_batches", "over_dataset", "scale",
]  # fmt: skip

Inputs = Shaped[Array, "m ..."]


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Integer[Array, " b"], *, clip: float | None = None
) -> Float[Array, " b"]:
    """Cross entropy of each example, `-log softmax(logits)[label]`, in nats, to a relative precision.

    Args:
      logits: unnormalised log probabilities; of lower precision than float32 they are computed in that.
      labels: classes, 0 to classes - 1; the loss of any other label is NaN.
      clip: if given, probabilities are clipped to [clip, 1 - clip]; Keras's 1e-7 caps a loss at 16.118.

    Raises:
      ValueError: logits and labels do not fit, or `clip` is not between 0 and 0.5.

    >>> float(cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0])  # log 4
    1.3862943649291992
    """
    labels = _check_labels("labels", labels)
    check_logits(logits, len(labels), what="logits are")
    if clip is not None:
        checks.check_positive({"clip": clip})
        if not clip < 0.5:
            raise ValueError(f"clip is {clip}; it must be below 0.5")
    loss = _nats(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels)
    return loss if clip is None else jnp.clip(loss, -jnp.log1p(-clip), -jnp.log(clip))


@jax.custom_jvp
def _nats(logits: Array, labels: Array) -> Array:
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    label_logit = jnp.where(is_label, logits, 0).sum(1, keepdims=True)
    differences = jnp.where(is_label, 0, logits - label_logit)
    top = jnp.argmax(differences, axis=1)
    largest = jnp.take_along_axis(differences, top[:, None], axis=1)
    # log(1 + small) loses what is small, and at a minimum nearly all of the loss is.
    rest = jnp.where(jax.nn.one_hot(top, logits.shape[1], dtype=bool), 0, jnp.exp(differences - largest)).sum(1)
    loss = jnp.where(label_logit[:, 0] == -jnp.inf, jnp.inf, largest[:, 0] + jnp.log1p(rest))
    return jnp.where(is_label.any(1), loss, jnp.nan)


@_nats.defjvp
def _nats_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    logits, labels = primals
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    others = jnp.where(is_label, 0, jax.nn.softmax(logits))
    # The label's probability minus 1 would lose what is small, as above.
    slope = jnp.where(is_label, -others.sum(1, keepdims=True), others)
    return _nats(logits, labels), (slope * tangents[0]).sum(1)


def accuracy(logits: Float[Array, "b classes"], labels: Integer[Array, " b"]) -> Float[Array, " b"]:
    """1 for each example whose largest logit is its label's, else 0; NaN where a logit is."""
    labels = _check_labels("labels", labels)
    check_logits(logits, len(labels), what="logits are")
    is_correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    return jnp.where(jnp.isnan(logits).any(-1), jnp.nan, is_correct)


def scale(x: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """uint8 images to [0, 1] by a factor of 1/255; features and tokens of other types as they are."""
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def over_dataset(
    apply: Callable, x: Inputs, y: Integer[Array, " m"], *, chunk: int = 5000, clip: float | None = None
) -> Callable[[PyTree], Array]:
    r"""The objective $f(x) = \frac{1}{M} \sum_i f_i(x)$ (eq. 1) as a function of the parameters alone.

    The data are cut into as few chunks of at most `chunk` examples as possible, whose sizes differ by one at most:
    each example counts once, and batch norm sees no short remainder. The gradient is summed in the same pass, in
    float32, and takes the memory of one chunk: with 5000, 8 GB for C1 and 15 GB for C2 on a CPU, 18 GB for C1 on a
    GPU. `jax.checkpoint` saves a tenth of it on a CPU at most, where XLA computes nothing again.

    Args:
      apply: `(params, x) -> logits [b, classes]`.
      x, y: images (uint8, scaled by 1/255), features or tokens (any other type, as they are), and their classes.
      chunk: the most examples at once; with batch statistics f depends on it. The paper's code used 5000.
      clip: see `cross_entropy`.

    Returns:
      `params -> scalar`, differentiable any number of times. It is a pytree of its data: as the argument of a
      jitted function it compiles once for all data of one shape and one largest label. Called by itself it traces
      `apply` each time: jit it where it is called often.

    Raises:
      ValueError: `chunk` below 1, `x` and `y` of different lengths or empty, labels or logits that do not fit.
    """
    checks.check_counts({"chunk": chunk})
    return Partial(_mean, *_loss_and_data(apply, x, y, chunk, clip))


def loss_and_accuracy(
    apply: Callable, x: Inputs, y: Integer[Array, " m"], *, chunk: int = 5000, clip: float | None = None
) -> Callable[[PyTree], tuple[Array, Array]]:
    """`params -> (mean loss in nats, accuracy from 0 to 1)` over a data set; else as `over_dataset`."""
    checks.check_counts({"chunk": chunk})
    return Partial(_means, *_loss_and_data(apply, x, y, chunk, clip))


def over_batches(
    apply: Callable, x: Inputs, y: Integer[Array, " m"], *, size: int = 256, clip: float | None = None
) -> Callable[[PyTree, Key[Array, ""]], Array]:
    """`(params, key) -> mean loss` of a batch of `size` that the key draws with replacement, without dropout.

    Its mean over keys is f (eq. 1) where the network looks at each example by itself. Else as `over_dataset`.
    """
    checks.check_counts({"size": size})
    return Partial(_batch_loss, *_loss_and_data(apply, x, y, size, clip))


@jax.tree_util.register_static
class _Loss(NamedTuple):
    """How a loss is computed; static under `jit`."""

    apply: Callable
    chunk: int
    clip: float | None
    largest_label: int  # -1 where it is not known


def _loss_and_data(apply: Callable, x: Any, y: Any, chunk: Any, clip: float | None) -> tuple[_Loss, Array, Array]:
    """Refuse data that do not fit each other; the labels are looked at unless they are traced."""
    x, y = checks.as_array("x", x), checks.as_array("y", y)
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x has {len(x)} examples and y has {len(y)}; they must be as many, and at least one")
    y = _check_labels("y", y)
    if isinstance(y, jax.core.Tracer):
        return _Loss(apply, int(chunk), clip, -1), x, y
    labels = jax.device_get(y)
    if labels.min() < 0:
        raise ValueError(f"y has a label {labels.min()}; labels must be from 0 up")
    return _Loss(apply, int(chunk), clip, int(labels.max())), jnp.asarray(x), jnp.asarray(y)


def _check_labels(name: str, y: Any) -> Any:
    """Labels of a type that can count all classes; refuse what is not one integer for each example."""
    if jnp.ndim(y) != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        type_and_shape = f"{y.dtype}{list(jnp.shape(y))}"
        raise ValueError(f"{name} is {type_and_shape}; it must be one whole number for each example, its class")
    if isinstance(y, np.ndarray) and y.dtype.itemsize == 8:  # in 32 bits 2^32 would be class 0
        y = np.clip(y, -1 if np.issubdtype(y.dtype, np.signedinteger) else 0, 2**31 - 1)
    return y.astype(jax.dtypes.canonicalize_dtype(np.int64))  # as of argmax


def check_logits(
    logits: Any, rows: int, largest_label: int = -1, *, ndim: int | None = 2, what: str = "apply returned"
) -> Array:
    """Return logits [rows, ..., classes] of `ndim` axes (any number if None); refuse what does not fit."""
    shape = getattr(logits, "shape", type(logits))
    if not isinstance(shape, tuple) or not 2 <= len(shape) <= (ndim or 99) or shape[0] != rows or shape[-1] < 2:
        raise ValueError(f"{what} {shape}; logits must be [{rows}, 2 classes or more]")
    if largest_label >= shape[1]:
        raise ValueError(f"y has a label {largest_label}; apply returned {shape[1]} logits, of labels from 0 up")
    return logits


def _sums(loss: _Loss, params: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
    """The sums of loss and accuracy over some examples."""
    logits = check_logits(loss.apply(params, scale(x)), len(y), loss.largest_label)
    return cross_entropy(logits, y, clip=loss.clip).sum(), accuracy(logits, y).sum()


def _batch_loss(loss: _Loss, x: Array, y: Array, params: PyTree, key: Any) -> Array:
    checks.check_key(key)

    def mean_of_batch(x: Array, y: Array, params: PyTree, key: Array) -> Array:
        rows = jax.random.randint(key, (loss.chunk,), 0, len(x))
        return _sums(loss, params, x[rows], y[rows])[0] / loss.chunk

    return program.compiled(mean_of_batch)(x, y, params, key)


def _means(loss: _Loss, x: Array, y: Array, params: PyTree) -> tuple[Array, Array]:
    sum_of_losses, correct = _total(partial(_sums, loss), x, y, params, loss.chunk)
    return sum_of_losses / len(x), correct / len(x)


# Differentiating the loop over chunks itself would keep the activations of every chunk.
@jax.custom_jvp
def _mean(loss: _Loss, x: Array, y: Array, params: PyTree) -> Array:
    return _means(loss, x, y, params)[0]


@partial(_mean.defjvp, symbolic_zeros=True)
def _mean_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (loss, x, y, params), (_, dx, _, direction) = primals, tangents
    if not isinstance(dx, SymbolicZero):
        raise NotImplementedError("over_dataset is differentiated with respect to the parameters only")
    with_gradient = jax.value_and_grad(partial(_sums, loss), has_aux=True)
    (value, _), gradient = _total(with_gradient, x, y, params, loss.chunk)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    slopes = [jnp.vdot(g, d) / len(x) for g, d in pairs if not isinstance(d, SymbolicZero)]
    return value / len(x), sum(slopes, jnp.zeros_like(value))


def _total(fn: Callable, x: Array, y: Array, params: PyTree, chunk: int) -> Any:
    """Sum of `fn(params, x_chunk, y_chunk)` over chunks of at most `chunk` examples, in float32 at least."""
    size, longer = divmod(len(x), -(-len(x) // chunk))
    middle = longer * (size + 1)

    def add(total: Any, terms: Any) -> Any:
        return jax.tree.map(lambda total, term: total + term.astype(total.dtype), total, terms)

    def summed(x: Array, y: Array, params: PyTree) -> Any:
        of_chunk = jax.jit(fn, inline=True)  # tracing a network again takes as long as the first time
        traced, shapes = jax.make_jaxpr(of_chunk, return_shape=True)(params, x[:size], y[:size])
        # XLA:CPU runs a convolution many times slower in a loop than outside (jax 0.10.2).
        in_python = jax.default_backend() == "cpu" and "conv_general_dilated" in program.primitives(traced.jaxpr)
        total = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)
        for begin, end, length in ((0, middle, size + 1), (middle, len(x), size)):
            if in_python or end - begin == length:
                for i in range(begin, end, length):
                    total = add(total, of_chunk(params, x[i : i + length], y[i : i + length]))
            elif end > begin:
                chunks = [a[begin:end].reshape(-1, length, *a.shape[1:]) for a in (x, y)]
                total, _ = jax.lax.scan(lambda total, xy: (add(total, of_chunk(params, *xy)), None), total, chunks)
        return total

    return program.compiled(summed)(x, y, params)
