"""What is minimised: cross entropy, and its mean over a whole data set, in chunks. All of it can be traced."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer, Key, PyTree, Shaped

from gengap import flat, program

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
    labels = _classes("labels", labels)
    fitting(logits, len(labels), what="logits are")
    if clip is not None:
        flat.check_positive({"clip": clip})
        if not clip < 0.5:
            raise ValueError(f"clip is {clip}; it must be below 0.5")
    loss = _nats(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels)
    return loss if clip is None else jnp.clip(loss, -jnp.log1p(-clip), -jnp.log(clip))


@jax.custom_jvp
def _nats(logits: Array, labels: Array) -> Array:
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    own = jnp.where(is_label, logits, 0).sum(1, keepdims=True)
    above = jnp.where(is_label, 0, logits - own)
    top = jnp.argmax(above, axis=1)
    most = jnp.take_along_axis(above, top[:, None], axis=1)
    # log(1 + small) loses what is small, and at a minimum nearly all of the loss is.
    rest = jnp.where(jax.nn.one_hot(top, logits.shape[1], dtype=bool), 0, jnp.exp(above - most)).sum(1)
    loss = jnp.where(own[:, 0] == -jnp.inf, jnp.inf, most[:, 0] + jnp.log1p(rest))
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
    labels = _classes("labels", labels)
    fitting(logits, len(labels), what="logits are")
    right = (logits.argmax(-1) == labels).astype(jnp.float32)
    return jnp.where(jnp.isnan(logits).any(-1), jnp.nan, right)


def scale(x: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """uint8 images to [0, 1] by a factor of 1/255; features and tokens of other types as they are."""
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def over_dataset(
    apply: Callable, x: Inputs, y: Integer[Array, " m"], *, chunk: int = 5000, clip: float | None = None
) -> Callable[[PyTree], Array]:
    r"""The objective $f(x) = \frac{1}{M} \sum_i f_i(x)$ (eq. 1) as a function of the parameters alone.

    The data are taken in as few chunks of at most `chunk` examples as possible, whose sizes differ by one at most,
    so that each example counts once and batch norm never sees a short remainder. The gradient is summed in the
    same pass as the value, in float32, and costs the memory of one chunk's: on a CPU 8 GB for C1
    and 15 GB for C2 with 5000, on a GPU up to 18 GB for C1. `jax.checkpoint` saves a tenth of that on a CPU at
    most, since XLA computes nothing again there.

    Args:
      apply: `(params, x) -> logits [b, classes]`.
      x, y: images (uint8, scaled by 1/255), features or tokens (any other type, as they are), and their classes.
      chunk: the most examples at once; with batch statistics f depends on it. The paper's code used 5000.
      clip: see `cross_entropy`.

    Returns:
      `params -> scalar`, differentiable any number of times, a pytree of its data: handed to a jitted function as
      an argument it compiles once for all data of one shape and one greatest label. Called by itself it reads
      `apply` anew, which takes as long as tracing it: jit it where it is called often.

    Raises:
      ValueError: `chunk` below 1, `x` and `y` of different lengths or empty, labels or logits that do not fit.
    """
    return Partial(_mean, *_checked(_How(apply, chunk, clip), x, y))


def loss_and_accuracy(
    apply: Callable, x: Inputs, y: Integer[Array, " m"], *, chunk: int = 5000, clip: float | None = None
) -> Callable[[PyTree], tuple[Array, Array]]:
    """`params -> (mean loss in nats, accuracy from 0 to 1)` over a data set; else as `over_dataset`."""
    return Partial(_means, *_checked(_How(apply, chunk, clip), x, y))


def over_batches(
    apply: Callable, x: Inputs, y: Integer[Array, " m"], *, size: int = 256, clip: float | None = None
) -> Callable[[PyTree, Key[Array, ""]], Array]:
    """`(params, key) -> mean loss` of a batch of `size` that the key draws with replacement, without dropout.

    Its mean over keys is f (eq. 1) where the network looks at each example by itself. Else as `over_dataset`.
    """
    return Partial(_batch_loss, *_checked(_How(apply, size, clip), x, y, "size"))


# How a loss is computed; static under `jit`. The greatest label is -1 where it is not known yet.
@jax.tree_util.register_static
@dataclass(frozen=True)
class _How:
    apply: Callable
    chunk: Any  # also of NumPy
    clip: float | None
    greatest: int = -1


def _checked(how: _How, x: Any, y: Any, name: str = "chunk") -> tuple[_How, Any, Any]:
    """With the greatest label, once the data are found to be in order."""
    flat.check_counts({name: how.chunk})
    how = replace(how, chunk=int(how.chunk))
    x, y = flat.as_array("x", x), flat.as_array("y", y)
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x has {len(x)} examples and y has {len(y)}; they must be as many, and at least one")
    y = _classes("y", y)
    if isinstance(y, jax.core.Tracer):
        return how, x, y
    labels = jax.device_get(y)
    if labels.min() < 0:
        raise ValueError(f"y has a label {labels.min()}; labels must be from 0 up")
    return replace(how, greatest=int(labels.max())), jnp.asarray(x), jnp.asarray(y)


def _classes(name: str, y: Any) -> Any:
    """Labels in a type in which all classes can be counted, or a sentence."""
    if jnp.ndim(y) != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        found = f"{y.dtype}{list(jnp.shape(y))}"
        raise ValueError(f"{name} is {found}; it must be one whole number for each example, its class")
    if isinstance(y, np.ndarray) and y.dtype.itemsize == 8:  # in 32 bits 2^32 would be class 0
        y = np.clip(y, -1 if np.issubdtype(y.dtype, np.signedinteger) else 0, 2**31 - 1)
    return y.astype(jax.dtypes.canonicalize_dtype(np.int64))  # as of argmax


def fitting(
    logits: Any, rows: int, greatest: int = -1, *, ndim: int | None = 2, what: str = "apply returned"
) -> Array:
    """Logits [rows, ..., classes] of so many axes, found to fit so many rows and the greatest label."""
    shape = getattr(logits, "shape", type(logits))
    if not isinstance(shape, tuple) or not 2 <= len(shape) <= (ndim or 99) or shape[0] != rows or shape[-1] < 2:
        raise ValueError(f"{what} {shape}; logits must be [{rows}, 2 classes or more]")
    if greatest >= shape[1]:
        raise ValueError(f"y has a label {greatest}; apply returned {shape[1]} logits, of labels from 0 up")
    return logits


def _sums(how: _How, params: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
    """The sums of loss and accuracy over some examples."""
    logits = fitting(how.apply(params, scale(x)), len(y), how.greatest)
    return cross_entropy(logits, y, clip=how.clip).sum(), accuracy(logits, y).sum()


def _batch_loss(how: _How, x: Array, y: Array, params: PyTree, key: Any) -> Array:
    flat.check_key(key)

    def of_batch(x: Array, y: Array, params: PyTree, key: Array) -> Array:
        where = jax.random.randint(key, (how.chunk,), 0, len(x))
        return _sums(how, params, x[where], y[where])[0] / how.chunk

    return program.compiled(of_batch)(x, y, params, key)


def _means(how: _How, x: Array, y: Array, params: PyTree) -> tuple[Array, Array]:
    loss, correct = _total(partial(_sums, how), x, y, params, how.chunk)
    return loss / len(x), correct / len(x)


# Differentiating the loop over chunks itself would keep the activations of every chunk.
@jax.custom_jvp
def _mean(how: _How, x: Array, y: Array, params: PyTree) -> Array:
    return _means(how, x, y, params)[0]


@partial(_mean.defjvp, symbolic_zeros=True)
def _mean_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (how, x, y, params), (_, dx, _, direction) = primals, tangents
    if not isinstance(dx, SymbolicZero):
        raise NotImplementedError("over_dataset is differentiated with respect to the parameters only")
    with_gradient = jax.value_and_grad(partial(_sums, how), has_aux=True)
    (value, _), gradient = _total(with_gradient, x, y, params, how.chunk)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    slopes = [jnp.vdot(g, d) / len(x) for g, d in pairs if not isinstance(d, SymbolicZero)]
    return value / len(x), sum(slopes, jnp.zeros_like(value))


def _total(fn: Callable, x: Array, y: Array, params: PyTree, chunk: int) -> Any:
    """Sum of `fn(params, x_chunk, y_chunk)` over chunks of at most `chunk` examples, in float32 at least."""
    size, longer = divmod(len(x), -(-len(x) // chunk))
    middle = longer * (size + 1)

    def add(total: Any, terms: Any) -> Any:
        return jax.tree.map(lambda s, one: s + one.astype(s.dtype), total, terms)

    def summed(x: Array, y: Array, params: PyTree) -> Any:
        found, like = jax.make_jaxpr(fn, return_shape=True)(params, x[:size], y[:size])
        # XLA:CPU runs a convolution many times slower in a loop than outside (jax 0.10.2).
        in_python = jax.default_backend() == "cpu" and "conv_general_dilated" in program.primitives(found.jaxpr)
        of_leaves = core.jaxpr_as_fun(found)  # tracing a network again takes as long as the first time

        def one(params: PyTree, x: Array, y: Array) -> Any:
            same = len(x) == size
            leaves = of_leaves(*jax.tree.leaves((params, x, y))) if same else jax.tree.leaves(fn(params, x, y))
            return jax.tree.unflatten(jax.tree.structure(like), leaves)

        total = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), like)
        for begin, end, length in ((0, middle, size + 1), (middle, len(x), size)):
            if in_python or end - begin == length:
                for i in range(begin, end, length):
                    total = add(total, one(params, x[i : i + length], y[i : i + length]))
            elif end > begin:
                chunks = [a[begin:end].reshape(-1, length, *a.shape[1:]) for a in (x, y)]
                total, _ = jax.lax.scan(lambda total, xy: (add(total, one(params, *xy)), None), total, chunks)
        return total

    return program.compiled(summed)(x, y, params)
