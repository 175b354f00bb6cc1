"""The networks of Keskar et al. (2016), Table 1 and Appendix B, as pure functions.

Any other network needs only two functions, `Model(init, apply)`; nothing else in `gengap` depends on Flax.
"""

from collections.abc import Callable
from functools import lru_cache, partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, PyTree

from gengap import checks, objective, program

__all__ = ["Model", "c1", "c2", "c3", "c4", "dense", "f1", "f2", "max_pool", "population_statistics"]


class Model(NamedTuple):
    """A network as pure functions of its parameters.

    Attributes:
      init: `(key, x) -> params`, for a batch `x` of which only the shape and the type matter.
      apply: `(params, x) -> logits [batch, classes]`, or the outputs that `loss` takes. Batch norm uses the
        statistics of `x`; no dropout.
      apply_train: `(params, x, key) -> logits`, with dropout; `None` if it is the same as `apply`.
      statistics: `(params, x) -> statistics` of each batch norm on the batch `x`; `None` without batch norm.
      apply_frozen: `(params, statistics, x) -> logits` with these in place of the statistics of `x`.
      name: label of the network, part of what identifies its saved minima; give each network its own.
      loss: `(outputs, y) -> [batch]`, what is minimised, such as the squared error of a regression; `None` for
        cross entropy.
    """

    init: Callable
    apply: Callable
    apply_train: Callable | None = None
    statistics: Callable | None = None
    apply_frozen: Callable | None = None
    name: str = ""
    loss: Callable | None = None

    def __repr__(self) -> str:
        return f"Model({self.name or 'without a name'})"


def f1(num_classes: int = 10) -> Model:
    """F1: five batch-normalised layers of 512 ReLUs (App. B.1); 1,462,794 parameters on MNIST.

    >>> params = f1().init(jax.random.key(0), jnp.zeros((2, 28, 28, 1)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    1462794
    """
    return _model(f"f1(num_classes={num_classes})", _Dense, num_classes, (512,) * 5)


def dense(num_classes: int = 10, *, widths: tuple[int, ...] = (512,) * 5) -> Model:
    """F1 with other widths: batch-normalised layers of ReLUs; images are flattened."""
    widths = tuple(widths)
    checks.check_counts({f"widths[{i}]": width for i, width in enumerate(widths)})
    return _model(f"dense(num_classes={num_classes}, widths={widths})", _Dense, num_classes, widths)


def f2(num_classes: int = 1973) -> Model:
    """F2: seven batch-normalised layers of 512 ReLUs (App. B.2); 2,780,085 parameters on TIMIT (360 features)."""
    return _model(f"f2(num_classes={num_classes})", _Dense, num_classes, (512,) * 7)


def c1(num_classes: int = 10, *, widths: tuple[int, ...] = (64, 64, 384, 192)) -> Model:
    """C1: two 5x5 convolutions and two dense layers (App. B.3); 1,757,834 parameters on CIFAR-10.

    `widths` are the channels of the two convolutions and the units of the two dense layers.

    The paper's "[64,5,5,2]-MaxPool(3)" is, as in the authors' code, a convolution of stride 1 and a 3x3 pool of
    stride 2, both with "same" padding. Dropout keeps half of each dense layer.
    """
    widths = tuple(widths)
    checks.check_counts({f"widths[{i}]": width for i, width in enumerate(widths)})
    if len(widths) != 4:
        raise ValueError(f"widths has {len(widths)} numbers; C1 has two convolutions and two dense layers")
    special = "" if widths == (64, 64, 384, 192) else f", widths={widths}"
    return _model(f"c1(num_classes={num_classes}{special})", _Shallow, num_classes, widths)


def c2(num_classes: int = 10, *, conv_dropout: bool = True) -> Model:
    """C2: a VGG of thirteen 3x3 convolutions and one dense layer (App. B.4); 14,991,946 on CIFAR-10.

    `conv_dropout`, 0.3 and 0.4 between convolutions, is in the authors' code and not in the paper's text.
    """
    return _model(f"c2(num_classes={num_classes}, conv_dropout={conv_dropout})", _Deep, num_classes, conv_dropout)


def c3(num_classes: int = 100) -> Model:
    """C3: C1 for CIFAR-100; 1,775,204 parameters."""
    return c1(num_classes)


def c4(num_classes: int = 100, *, conv_dropout: bool = True) -> Model:
    """C4: C2 for CIFAR-100; 15,038,116 parameters."""
    return c2(num_classes, conv_dropout=conv_dropout)


def population_statistics(model: Model, params: PyTree, x: Array, *, chunk: int = 5000) -> PyTree:
    """The statistics of every batch norm, averaged over chunks of `x` (Wu and Johnson 2021, arXiv:2105.07576).

    Use it as `lambda params, x: model.apply_frozen(params, statistics, x)` in place of an `apply`. uint8 images
    are scaled by 1/255. A last chunk that is shorter than the others is left out.

    Raises:
      ValueError: `model` has no batch norm, or `chunk` is below 1.
    """
    if model.statistics is None:
        raise ValueError("population_statistics: the model has no batch norm (its statistics is None)")
    checks.check_counts({"chunk": chunk, "len(x)": len(x)})
    statistics = program.compiled(model.statistics)
    starts = range(0, max(len(x) - chunk, 0) + 1, chunk)
    of_chunks = [statistics(params, objective.scale(x[i : i + chunk])) for i in starts]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *of_chunks)


def _model(name: str, network: Callable[..., nn.Module], num_classes: Any, *fields: Any) -> Model:
    checks.check_counts({"num_classes": num_classes}, 2)
    return _functions(network(int(num_classes), *fields), name)


@lru_cache(maxsize=64)
def _functions(network: nn.Module, name: str) -> Model:
    def run(params: PyTree, x: Array, key: Array | None = None, statistics: PyTree = None) -> tuple[Array, PyTree]:
        frozen, rngs = statistics is not None, None if key is None else {"dropout": key}
        variables = {"params": params, "batch_stats": statistics} if frozen else {"params": params}
        return network.apply(variables, x, key is not None, frozen, rngs=rngs, mutable=["batch_stats"])

    return Model(
        init=lambda key, x: network.init(key, x)["params"],
        apply=lambda params, x: run(params, x)[0],
        apply_train=lambda params, x, key: run(params, x, key)[0],
        statistics=lambda params, x: run(params, x)[1]["batch_stats"],
        apply_frozen=lambda params, statistics, x: run(params, x, statistics=statistics)[0],
        name=name,
    )


def _norm_relu(x: Array, frozen: bool) -> Array:
    # momentum=0 makes Flax's running average the statistics of the batch itself
    norm = nn.BatchNorm(use_running_average=frozen, momentum=0.0, epsilon=1e-5, use_fast_variance=False)
    return nn.relu(norm(x))


def _convolution(
    x: Array, kernel: Array, window_strides: Any, padding: Any, *, dimension_numbers: Any, **options: Any
) -> Array:
    """`lax.conv_general_dilated` for `_conv`, with derivatives that are fast on XLA:CPU; elsewhere JAX's own.

    XLA:CPU is fast for the layout NHWC, HWIO -> NHWC, which the transposes of the tangents below have. It converts
    others to it, but not in a loop. The derivative with respect to the kernel is one inner product over batch and
    image, which is slow if long, so the batch is cut. A gradient of C1 over 500 images takes one core 1.4 s, in a
    loop or not; with JAX's own derivative it takes 1.9 s outside a loop.
    """

    def convolve(x: Array, kernel: Array, form: Any = dimension_numbers) -> Array:
        return lax.conv_general_dilated(x, kernel, window_strides, padding, dimension_numbers=form, **options)

    if jax.default_backend() != "cpu":
        return convolve(x, kernel)
    # Parts of 16,384 positions are long enough; at most 16 parts, because each is compiled separately.
    size = max(-(-(2**14) // (x.shape[1] * x.shape[2])), -(-len(x) // 16))
    f = jax.custom_jvp(lambda x, kernel: convolve(x, kernel))

    @f.defjvp
    def f_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        (x, kernel), (dx, dkernel) = primals, tangents
        by_x = convolve(dx, kernel.swapaxes(2, 3), ("NHWC", "HWOI", "NHWC"))
        flipped = dkernel.transpose(2, 0, 1, 3)
        parts = [x[i : i + size].transpose(3, 1, 2, 0) for i in range(0, len(x), size)]
        parts = [convolve(part, flipped, ("CHWN", "IHWO", "HWNC")) for part in parts]
        by_kernel = jnp.concatenate(parts, axis=2).transpose(2, 0, 1, 3)
        return convolve(x, kernel), by_x + by_kernel

    return f(x, kernel)


def max_pool(x: Float[Array, "b h w c"], *, size: int, stride: int) -> Float[Array, "b h2 w2 c"]:
    """Max pooling with "same" padding; inputs equal to the maximum of a window share its gradient.

    On one core a gradient of C1 takes two thirds of the time that it takes with `nn.max_pool`.

    >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), size=2, stride=2).item()
    3.0
    """
    pads = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
    for axis, pad in zip((1, 2), pads, strict=True):
        x = jnp.pad(x, [pad if i == axis else (0, 0) for i in range(4)], constant_values=-jnp.inf)
        last = x.shape[axis] - size + 1
        x = reduce(jnp.maximum, [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(size)])
    return x


def _check_images(x: Array) -> None:
    if x.ndim != 4:
        remedy = "x[..., None] adds the channel of gray images, and models.dense takes features of any shape"
        raise ValueError(f"x has the shape {x.shape}; it must be [b, height, width, channels]: {remedy}")


_linear = partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())
_conv = partial(nn.Conv, kernel_init=nn.initializers.glorot_uniform(), conv_general_dilated=_convolution)


class _Dense(nn.Module):
    num_classes: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, train: bool = False, frozen: bool = False) -> Array:
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = _norm_relu(_linear(width)(x), frozen)
        return _linear(self.num_classes)(x)


class _Shallow(nn.Module):
    num_classes: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, train: bool = False, frozen: bool = False) -> Array:
        _check_images(x)
        for channels in self.widths[:2]:
            x = max_pool(_norm_relu(_conv(channels, (5, 5))(x), frozen), size=3, stride=2)
        x = x.reshape(len(x), -1)
        for width in self.widths[2:]:
            x = nn.Dropout(0.5, deterministic=not train)(_norm_relu(_linear(width)(x), frozen))
        return _linear(self.num_classes)(x)


class _Deep(nn.Module):
    num_classes: int
    conv_dropout: bool

    @nn.compact
    def __call__(self, x: Array, train: bool = False, frozen: bool = False) -> Array:
        _check_images(x)
        for features, depth, rate in ((64, 2, 0.3), (128, 2, 0.4), (256, 3, 0.4), (512, 3, 0.4), (512, 3, 0.4)):
            for i in range(depth):
                x = _norm_relu(_conv(features, (3, 3))(x), frozen)
                if self.conv_dropout and i < depth - 1:
                    x = nn.Dropout(rate, deterministic=not train)(x)
            x = max_pool(x, size=2, stride=2)
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        x = nn.Dropout(0.5, deterministic=not train)(_norm_relu(_linear(512)(x), frozen))
        return _linear(self.num_classes)(x)
