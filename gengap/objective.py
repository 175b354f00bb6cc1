"""The loss: cross entropy, and the mean of a loss over a whole data set, in chunks. All of it can be traced."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial, keystr
from jaxtyping import Array, Float, Integer, Key, PyTree, Shaped

from gengap import checks, chunks, hosts, placement, program

__all__ = [
    "accuracy", "check_logits", "check_no_clip", "cross_entropy", "loss_and_accuracy", "mean_loss", "over_batches",
    "over_dataset", "scale",
]  # fmt: skip

Inputs = Shaped[Array, "m ..."]


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Integer[Array, " b"], *, clip: float | None = None
) -> Float[Array, " b"]:
    """Cross entropy of each example, `-log softmax(logits)[label]`, in nats; small losses stay precise.

    Args:
      logits: unnormalised log probabilities; those of lower precision are converted to float32.
      labels: classes, 0 to classes - 1; the loss of any other label is NaN.
      clip: if given, probabilities are clipped to [clip, 1 - clip]; Keras's 1e-7 caps a loss at 16.118.

    Raises:
      ValueError: logits and labels do not match, or `clip` is not between 0 and 0.5.

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
    # log(1 + small) loses the small part, which at a minimum is nearly all of the loss.
    rest = jnp.where(jax.nn.one_hot(top, logits.shape[1], dtype=bool), 0, jnp.exp(differences - largest)).sum(1)
    loss = jnp.where(label_logit[:, 0] == -jnp.inf, jnp.inf, largest[:, 0] + jnp.log1p(rest))
    return jnp.where(is_label.any(1), loss, jnp.nan)


@_nats.defjvp
def _nats_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    logits, labels = primals
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    others = jnp.where(is_label, 0, jax.nn.softmax(logits))
    # The label's probability minus 1 would lose the small part, as above.
    slope = jnp.where(is_label, -others.sum(1, keepdims=True), others)
    return _nats(logits, labels), (slope * tangents[0]).sum(1)


def accuracy(logits: Float[Array, "b classes"], labels: Integer[Array, " b"]) -> Float[Array, " b"]:
    """1 for each example whose largest logit is that of its label, else 0; NaN if one of its logits is NaN."""
    labels = _check_labels("labels", labels)
    check_logits(logits, len(labels), what="logits are")
    is_correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    return jnp.where(jnp.isnan(logits).any(-1), jnp.nan, is_correct)


def scale(x: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """uint8 images times 1/255, so in [0, 1]; features and tokens of other types unchanged."""
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def mean_loss(
    per_example: Callable[[PyTree, Any], Array], data: PyTree, *, chunk: int = 5000, weights: Any = None
) -> Callable[[PyTree], Array]:
    r"""The objective $f(x) = \frac{1}{M} \sum_i f_i(x)$ (eq. 1) as a function of the parameters alone.

    The data are cut into as few chunks of at most `chunk` examples as possible, whose sizes differ by at most one:
    each example counts once, and batch norm sees no short remainder. The gradient is summed in the same pass, in
    float32, and takes the memory of one chunk: with 5000, 8 GB for C1 and 15 GB for C2 on a CPU, 18 GB for C1 on a
    GPU. On a CPU `jax.checkpoint` saves at most a tenth of that, because XLA recomputes nothing there.

    Args:
      per_example: `(params, batch) -> [b]`, the loss of each example of a batch, in nats or any other unit. A
        batch has the structure of `data`, with b examples.
      data: a pytree of arrays whose leading axis is that of the M examples: `(x, y)`, or a dictionary with a mask.
        A NumPy array, such as a memory map, stays on the host, and its chunks are sent to the device one by one;
        use `jnp.asarray` if it fits on the device.
      chunk: the most examples at once; f depends on it if examples interact, as in batch norm. The paper's code
        used 5000.
      weights: [M], not negative: f is then $\sum_i w_i f_i / \sum_i w_i$; use 0 for padding.

    Returns:
      `params -> scalar`, differentiable any number of times. It is a pytree of its data: as the argument of a
      jitted function it compiles once for all data of one shape. A plain call traces `per_example` each time, so
      jit it if you call it often.

    Raises:
      ValueError: `chunk` is below 1, arrays are empty or of different lengths, weights are negative or all 0, or
        the losses are not [b].

    >>> def per_example(w, batch):
    ...     return (batch["x"] @ w - batch["y"]) ** 2
    >>> f = mean_loss(per_example, {"x": jnp.eye(2), "y": jnp.array([1.0, 3.0])})
    >>> f, float(f(jnp.zeros(2))), jax.grad(f)(jnp.zeros(2)).tolist()
    (mean_loss(per_example, 2 examples), 5.0, [-1.0, -3.0])
    """
    checks.check_counts({"chunk": chunk})
    weights = None if weights is None else checks.as_array("weights", weights)
    return _over(_mean, per_example, data, int(chunk), weights)


def over_dataset(
    apply: Callable, x: Inputs, y: Integer[Array, " m"], *, chunk: int = 5000, clip: float | None = None
) -> Callable[[PyTree], Array]:
    """`mean_loss` of the cross entropy of a network's logits.

    Args:
      apply: `(params, x) -> logits [b, classes]`.
      x, y: images (uint8, scaled by 1/255), features or tokens (any other type, unchanged), and their classes.
      chunk: see `mean_loss`.
      clip: see `cross_entropy`.

    Raises:
      ValueError: as in `mean_loss`; or labels are not classes, or labels or logits do not match.
    """
    checks.check_counts({"chunk": chunk})
    return _over(_mean, *_labelled(apply, x, y, clip), int(chunk))


def loss_and_accuracy(
    apply: Callable,
    x: Inputs,
    y: Shaped[Array, "m ..."],
    *,
    chunk: int = 5000,
    clip: float | None = None,
    loss: Callable | None = None,
) -> Callable[[PyTree], tuple[Array, Array]]:
    """`params -> (mean loss in nats, accuracy from 0 to 1)` over a data set; otherwise like `over_dataset`.

    `loss`, `(outputs, y) -> [b]`, replaces cross entropy; the accuracy is then NaN.
    """
    checks.check_counts({"chunk": chunk})
    if loss is not None:
        mean = mean_loss(_OfOutputs(apply, check_no_clip(loss, clip)), (x, y), chunk=chunk)
        return Partial(lambda mean, params: (mean(params), jnp.nan), mean)
    per_example, data = _labelled(apply, x, y, clip)
    return _over(_means, replace(per_example, counts_right=True), data, int(chunk))


def over_batches(
    apply: Callable, x: Inputs, y: Integer[Array, " m"], *, size: int = 256, clip: float | None = None
) -> Callable[[PyTree, Key[Array, ""]], Array]:
    """`(params, key) -> mean loss` of a batch of `size` that the key draws with replacement, without dropout.

    Its mean over keys is f (eq. 1) if the network treats each example by itself. Otherwise like `over_dataset`.
    """
    checks.check_counts({"size": size})
    per_example, data = _labelled(apply, x, y, clip)
    return _over(_batch_loss, per_example, jax.tree.map(jnp.asarray, data), int(size))


@dataclass(frozen=True, repr=False)
class _CrossEntropy:
    """The loss of each example, and with `counts_right` whether the network is right."""

    apply: Callable
    clip: float | None
    largest_label: int  # -1 if it is not known
    counts_right: bool = False

    def __call__(self, params: PyTree, batch: tuple[Array, Array]) -> Any:
        x, y = batch
        logits = check_logits(self.apply(params, scale(x)), len(y), self.largest_label)
        losses = cross_entropy(logits, y, clip=self.clip)
        return (losses, accuracy(logits, y)) if self.counts_right else losses

    def __repr__(self) -> str:
        return "cross entropy"


@dataclass(frozen=True, repr=False)
class _OfOutputs:
    """The loss of each example, for a network with its own loss."""

    apply: Callable
    loss: Callable

    def __call__(self, params: PyTree, batch: tuple[Array, Array]) -> Any:
        x, y = batch
        return self.loss(self.apply(params, scale(x)), y)

    def __repr__(self) -> str:
        return _name(self.loss)


def _name(fn: Callable) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


def check_no_clip(loss: Callable, clip: float | None) -> Callable:
    """The network's own loss; refuse a clip, which only cross entropy has."""
    if clip is not None:
        raise ValueError(f"clip is {clip}, which only cross entropy uses; the network has its own loss")
    return loss


def _labelled(apply: Callable, x: Any, y: Any, clip: float | None) -> tuple[_CrossEntropy, tuple[Any, Array]]:
    """The loss of examples with classes, and the data; the labels are checked unless they are traced."""
    y = _check_labels("y", checks.as_array("y", y))
    x = x if isinstance(x, np.ndarray) else jnp.asarray(checks.as_array("x", x))
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x has {len(x)} examples and y has {len(y)}; the numbers must be equal and above 0")
    if isinstance(y, jax.core.Tracer):
        return _CrossEntropy(apply, clip, -1), (x, y)
    labels = jax.device_get(hosts.fetched(y))
    if labels.min() < 0:
        raise ValueError(f"y has a label {labels.min()}; labels must be from 0 up")
    return _CrossEntropy(apply, clip, int(labels.max())), (x, jnp.asarray(y))


def _check_labels(name: str, y: Any) -> Any:
    """Labels in a type that holds all classes; refuse anything but one integer for each example."""
    if jnp.ndim(y) != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        type_and_shape = f"{y.dtype}{list(jnp.shape(y))}"
        raise ValueError(
            f"{name} is {type_and_shape}; it must be one whole number for each example, its class. For "
            "other targets see objective.mean_loss, and models.Model(loss=...) to train"
        )
    if isinstance(y, np.ndarray) and y.dtype.itemsize == 8:  # in 32 bits 2^32 would be class 0
        y = np.clip(y, -1 if np.issubdtype(y.dtype, np.signedinteger) else 0, 2**31 - 1)
    return y.astype(jax.dtypes.canonicalize_dtype(np.int64))  # the type of argmax


def check_logits(
    logits: Any, rows: int, largest_label: int = -1, *, ndim: int | None = 2, what: str = "apply returned"
) -> Array:
    """Return logits [rows, ..., classes] with `ndim` axes (any number if None); refuse others."""
    shape = getattr(logits, "shape", type(logits))
    if not isinstance(shape, tuple) or not 2 <= len(shape) <= (ndim or 99) or shape[0] != rows or shape[-1] < 2:
        raise ValueError(f"{what} {shape}; logits must be [{rows}, 2 classes or more]")
    if largest_label >= shape[1]:
        raise ValueError(f"y has a label {largest_label}; apply returned {shape[1]} logits, for labels from 0 up")
    return logits


@jax.tree_util.register_static
class _How(NamedTuple):
    """How a mean is computed; static under `jit`."""

    per_example: Callable
    chunk: int
    examples: int
    tree: Any  # of the data and the weights
    host: chunks.Host | None


@partial(jax.tree_util.register_dataclass, data_fields=["leaves", "total"], meta_fields=["fn", "how"])
@dataclass(frozen=True, eq=False, repr=False)
class _Over:
    """A function of the parameters over data."""

    fn: Callable
    how: _How
    leaves: Any  # of data and weights; None for those on the host
    total: Any  # sum of the weights, if there are any

    def __call__(self, *args: Any) -> Any:
        total = self.how.examples if self.total is None else self.total
        return placement.called(partial(self.fn, self.how), self.leaves, total, *args)

    def __repr__(self) -> str:
        name = {_mean: "mean_loss", _means: "loss_and_accuracy", _batch_loss: "over_batches"}[self.fn]
        what = self.how.per_example
        words = [repr(what) if isinstance(what, _CrossEntropy | _OfOutputs) else _name(what)]
        parts = 1 if self.fn is _batch_loss else -(-self.how.examples // self.how.chunk)
        words += [f"{self.how.examples} examples", *[f"{parts} chunks"] * (parts > 1)]
        return f"{name}({', '.join(words)}{', on the host' * (self.how.host is not None)})"


def _over(fn: Callable, per_example: Callable, data: PyTree, chunk: int, weights: Any = None) -> _Over:
    paths, tree = jax.tree.flatten_with_path((data, weights))
    leaves = [leaf for _, leaf in paths]
    count = _check_examples([(keystr(path[1:]), leaf) for path, leaf in paths], weights is not None)
    host = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray)}
    device: list[Any] = [
        None if i in host else jnp.asarray(placement.automatic(leaf)) for i, leaf in enumerate(leaves)
    ]
    total = None
    if weights is not None:
        dtype = jax.dtypes.canonicalize_dtype(jnp.promote_types(weights.dtype, jnp.float32))
        total = jnp.asarray(placement.automatic(weights).sum(dtype=dtype))
    if fn is not _batch_loss and (spread := placement.rows_of(device)) is not None:
        ends = chunks.ends(count, chunk)
        device = [None if leaf is None else placement.in_chunks(leaf, ends, spread) for leaf in device]
    return _Over(fn, _How(per_example, chunk, count, tree, chunks.Host(host) if host else None), device, total)


def _check_examples(leaves: list[tuple[str, Any]], weighted: bool) -> int:
    """The number of examples, which all arrays must have."""
    lengths = {}
    for i, (name, leaf) in enumerate(leaves):
        name = "weights" if weighted and i == len(leaves) - 1 else f"data{name}"
        if not hasattr(leaf, "dtype") or np.ndim(leaf) == 0:
            raise ValueError(f"{name} is of type {type(leaf).__name__}; it must be an array, each row an example")
        lengths[name] = len(leaf)
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        words = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no array"
        raise ValueError(f"data must be arrays with equal numbers of examples, at least one; there are {words}")
    weights = leaves[-1][1]
    if weighted and not program.is_traced(weights):
        w = jax.device_get(weights)
        if w.ndim != 1 or not (np.isfinite(w) & (w >= 0)).all() or not w.any():
            raise ValueError("weights must be one finite number from 0 up for each example, and one above 0")
    return next(iter(lengths.values()))


def _sums(how: _How, params: PyTree, leaves: list[Any]) -> Any:
    """The sum over some examples of what is computed for each."""
    batch, weights = jax.tree.unflatten(how.tree, leaves)
    size = len(leaves[0])

    def sum_of(losses: Any) -> Array:
        if jnp.shape(losses) != (size,) or not jnp.issubdtype(jnp.result_type(losses), jnp.floating):
            given = f"{jnp.result_type(losses)}{list(jnp.shape(losses))}"
            raise ValueError(f"per_example returned {given}; it must return float[{size}], one for each example")
        losses = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
        return (losses if weights is None else losses * weights.astype(losses.dtype)).sum()

    result = how.per_example(params, batch)
    return tuple(map(sum_of, result)) if isinstance(result, tuple) else sum_of(result)


def _batch_loss(how: _How, leaves: Any, total: Any, params: PyTree, key: Any) -> Array:
    checks.check_key(key)

    def mean_of_batch(leaves: Any, params: PyTree, key: Array) -> Array:
        rows = jax.random.randint(key, (how.chunk,), 0, how.examples)
        return _sums(how, params, [leaf[rows] for leaf in leaves]) / how.chunk

    return program.compiled(mean_of_batch)(leaves, params, key)


def _means(how: _How, leaves: Any, total: Any, params: PyTree) -> Any:
    return jax.tree.map(lambda sum: sum / total, _total(partial(_sums, how), how, leaves, params))


# Differentiating the loop over chunks itself would keep the activations of every chunk.
@jax.custom_jvp
def _mean(how: _How, leaves: Any, total: Any, params: PyTree) -> Array:
    return _means(how, leaves, total, params)


@partial(_mean.defjvp, symbolic_zeros=True)
def _mean_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (how, leaves, total, params), (*of_data, direction) = primals, tangents
    if not all(isinstance(t, SymbolicZero) for t in jax.tree.leaves(of_data[1])):
        raise NotImplementedError("a mean over data is differentiated with respect to the parameters only")
    value, gradient = _total(jax.value_and_grad(partial(_sums, how)), how, leaves, params)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    slopes = [jnp.vdot(g, d) / total for g, d in pairs if not isinstance(d, SymbolicZero)]
    return value / total, sum(slopes, jnp.zeros_like(value))


def _total(fn: Callable, how: _How, leaves: list[Any], params: PyTree) -> Any:
    return chunks.total(fn, params, leaves, how.host, count=how.examples, chunk=how.chunk)
