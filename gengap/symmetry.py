"""Maps of parameters that do not change the function of a ReLU network, and which measures they change.

Dinh, Pascanu, Bengio and Bengio, "Sharp Minima Can Generalize For Deep Nets", 2017, arXiv:1703.04933: if
$\\phi(\\alpha z) = \\alpha \\phi(z)$ for $\\alpha > 0$, a layer's units can be scaled up and the weights that read
them scaled down. Max pooling commutes with that. Parameters are nested dictionaries of floating-point arrays; a
list of `Layer` says which array is what. `chain` makes that list for the networks of `models`. The maps can be
traced; `audit` decides by values and cannot.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from gengap import checks, flat, program

__all__ = ["Finding", "Layer", "audit", "chain", "permute", "rescale", "scale_before_norm"]

Where = tuple[str, ...]


class Layer(NamedTuple):
    """Where one layer's parameters are in a nested dictionary; the last axis of each is that of the units.

    Another layout, such as [units, in] in PyTorch, has to be transposed first. Shapes that do not fit are refused,
    but a square kernel always fits.

    Attributes:
      kernel: the weights; the axis before the last is that of the inputs.
      bias: the bias; `None` without one.
      norm: scale and bias of the batch norm after the layer; `None` without one.
    """

    kernel: Where
    bias: Where | None = None
    norm: tuple[Where, Where] | None = None

    @property
    def linear(self) -> tuple[Where, ...]:
        """The weights and, if there is one, the bias."""
        return (self.kernel, self.bias) if self.bias else (self.kernel,)

    @property
    def out(self) -> tuple[Where, ...]:
        """The parameters that scale this layer's units: those of the batch norm, else the weights and the bias."""
        return self.norm or self.linear


def chain(params: Mapping[str, Any]) -> list[Layer]:
    """The layers of a sequential Flax Linen network: Conv_0, Conv_1, ..., then Dense_0, Dense_1, ...

    Batch norms are assumed to follow the layers in the same order, with none after the last layer.

    Raises:
      ValueError: there are other modules, fewer than two layers, or more batch norms than layers.
    """
    counted = {kind: sum(n.startswith(f"{kind}_") for n in params) for kind in ("Conv", "Dense", "BatchNorm")}
    names = [f"{kind}_{i}" for kind in ("Conv", "Dense") for i in range(counted[kind])]
    if sum(counted.values()) != len(params) or len(names) < 2 or counted["BatchNorm"] >= len(names):
        raise ValueError(f"params has {', '.join(params)}; it must be a sequence of Conv, Dense and BatchNorm")
    layers = [Layer((name, "kernel"), (name, "bias") if "bias" in params[name] else None) for name in names]
    norms = [((f"BatchNorm_{i}", "scale"), (f"BatchNorm_{i}", "bias")) for i in range(counted["BatchNorm"])]
    return [layer._replace(norm=norm) for layer, norm in itertools.zip_longest(layers, norms)]


def rescale(params: PyTree, layers: Sequence[Layer], activations: Sequence[float | Float[Array, "_"]]) -> Any:
    r"""The same function with the activations of each hidden layer k multiplied by $a_k > 0$.

    The parameters that scale the units of layer k are multiplied by $a_k$, and the weights that read them divided
    by it. Without batch norm that is $\theta_k \mapsto \frac{a_k}{a_{k-1}} \theta_k$, $b_k \mapsto a_k b_k$; with
    it $(\gamma, \beta)_k \mapsto a_k (\gamma, \beta)_k$ and $\theta_{k+1} \mapsto a_k^{-1} \theta_{k+1}$.

    Args:
      params, layers: the network.
      activations: for each layer but the last a number, or a vector with a factor for each unit.

    Raises:
      ValueError: the wrong number of factors, a factor not above 0, or shapes that do not fit `Layer`.

    Reference: Dinh et al. (2017), Definition 5 and appendix B; with vectors Neyshabur et al. (2015).
    """
    _check(params, layers, activations, len(layers) - 1)
    for layer, after, factor in zip(layers, layers[1:], activations, strict=False):
        a = jnp.asarray(factor, float)
        units = _shape(params, layer.kernel)[-1]
        if a.shape not in ((), (units,)) or not (program.is_traced(a) or ((a > 0) & jnp.isfinite(a)).all()):
            raise ValueError(f"a factor is {factor}; it must be above 0, and one number or {units} of them")
        a = a.reshape(1, -1, 1)
        params = _moved(params, layer.out, after, partial(jnp.multiply, a), partial(jnp.multiply, 1 / a))
    return params


def scale_before_norm(params: PyTree, layers: Sequence[Layer], factors: Sequence[float]) -> Any:
    r"""The same function with the layer before each batch norm multiplied: $w \mapsto c\, w$, $b \mapsto c\, b$.

    Exact except for the epsilon that batch norm adds to the variance. Gradients scale as $1/c$, curvature as
    $1/c^2$ (section 5.1, for weight normalisation). `factors` has a c for each layer with a batch norm.
    """
    normed = [layer for layer in layers if layer.norm is not None]
    _check(params, layers, factors, len(normed))
    for layer, c in zip(normed, factors, strict=True):
        if not c > 0:
            raise ValueError(f"a factor is {c}; it must be above 0")
        for where in layer.linear:
            params = _changed(params, where, partial(jnp.multiply, c))
    return params


def permute(params: PyTree, layers: Sequence[Layer], orders: Sequence[Int[Array, "_"]]) -> Any:
    """The same function with the units of each hidden layer in another order, a permutation of their indices."""
    _check(params, layers, orders, len(layers) - 1)
    for layer, after, order in zip(layers, layers[1:], orders, strict=False):
        units = _shape(params, layer.kernel)[-1]
        if not program.is_traced(order) and sorted(order.tolist()) != list(range(units)):
            raise ValueError(f"an order is {order.tolist()}; it must hold each of {units} units once")
        in_order = partial(jnp.take, indices=order, axis=1)
        params = _moved(params, (*layer.linear, *(layer.norm or ())), after, in_order, in_order)
    return params


class Finding(NamedTuple):
    """What a map of parameters does to a measure.

    Attributes:
      measure, symmetry: their names.
      before, after: the mean of the measure over the keys.
      factor: after / before; NaN if before is 0.
      verdict: "unchanged", "changed", or "not resolved" if the errors could hide a change of a third, or if values
        are not finite.
    """

    measure: str
    symmetry: str
    before: float
    after: float
    factor: float
    verdict: str


def audit(
    measures: Mapping[str, Callable[[PyTree, Key[Array, ""]], Any]],
    symmetries: Mapping[str, Callable[[PyTree], PyTree]],
    params: PyTree,
    key: Key[Array, ""],
    *,
    repeats: int = 3,
    tolerance: float = 0.01,
) -> list[Finding]:
    """Which maps leave which measures unchanged: a finding for each pair, the measures in order.

    Every measure is computed at `params` and at each image of it, with the same keys. The change is the mean of
    log(after / before), or of the difference if a value is not positive. Up to `tolerance` it is "unchanged".
    Above, it is "changed" if it exceeds three standard errors, over the keys and as stated by the measure; else
    "unchanged" if three standard errors are at most a third, otherwise "not resolved".

    Args:
      measures: name -> `(params, key) -> number`, or a result with `value`, such as an `Estimate`.
      symmetries: name -> map of parameters.
      params, key: given to the measures.
      repeats: keys, at least 2.
      tolerance: relative change that rounding may cause.
    """
    checks.check_untraced("audit", params, key)
    checks.check_key(key)
    checks.check_counts({"repeats": repeats}, 2)
    keys = jax.random.split(key, repeats)
    images = {name: move(params) for name, move in symmetries.items()}

    def measured(measure: Callable, point: PyTree) -> np.ndarray:  # the values and their standard errors
        values = [measure(point, key) for key in keys]
        return np.array([[float(getattr(v, "value", v)), float(getattr(v, "sem", 0.0))] for v in values])

    findings = []
    for name, measure in measures.items():
        before = measured(measure, params)
        for symmetry, image in images.items():
            after = measured(measure, image)
            a, b = float(before[:, 0].mean()), float(after[:, 0].mean())
            factor = b / a if a else math.nan
            findings.append(Finding(name, symmetry, a, b, factor, _verdict(before, after, tolerance)))
    return findings


def _verdict(before: np.ndarray, after: np.ndarray, tolerance: float) -> str:
    a, b = before[:, 0], after[:, 0]
    if not np.isfinite([a, b]).all():
        return "not resolved"
    positive = bool((a > 0).all() and (b > 0).all())
    changes, scale = (np.log(b / a), 1.0) if positive else (b - a, max(abs(a.mean()), abs(b.mean())))
    relative = [sem and (sem / abs(value) if value else math.inf) for value, sem in (*before, *after)]
    error = math.hypot(changes.std(ddof=1) / math.sqrt(len(a)), scale * math.hypot(*relative) / len(a))
    change = abs(changes.mean())
    if change > max(tolerance * scale, 3 * error):
        return "changed"
    return "unchanged" if change <= tolerance * scale or 3 * error <= scale / 3 else "not resolved"


def _check(params: PyTree, layers: Sequence[Layer], arguments: Sequence[Any], count: int) -> None:
    """Refuse a wrong number of arguments, and parameters that do not fit the layers."""
    flat.layout_of(params)
    if len(arguments) != count:
        raise ValueError(f"{len(arguments)} are given; there must be {count}, one for each layer that is changed")
    before = None
    for layer in layers:
        shape = _shape(params, layer.kernel)
        if len(shape) < 2:
            raise ValueError(f"{layer.kernel} has the shape {shape}; it must be a kernel [..., in, units]")
        *kernel, reads, units = shape
        for where in (*layer.linear[1:], *(layer.norm or ())):
            others = _shape(params, where)
            if others[-1:] != (units,) or math.prod(others) != units:
                raise ValueError(f"{where} has the shape {others}; the units of {layer.kernel} are {units}")
        # A dense layer may read a flattened image; a convolution without groups reads the units themselves.
        if before is not None and (reads % before or (kernel and reads != before)):
            raise ValueError(
                f"{layer.kernel} has the shape {shape} and reads {reads}; before it are {before} units"
            )
        before = units


def _moved(params: PyTree, made: Sequence[Where], after: Layer, make: Callable, read: Callable) -> Any:
    """`make` of what makes a layer's units and `read` of what reads them, as arrays [before, units, after]."""
    units = _shape(params, made[0])[-1]
    for where in made:
        params = _changed(params, where, lambda leaf: make(leaf.reshape(-1, units, 1)))
    # In a flattened axis, channels vary fastest.
    return _changed(params, after.kernel, lambda leaf: read(leaf.reshape(-1, units, leaf.shape[-1])))


def _changed(params: Any, where: Where, change: Callable[[Array], Array]) -> Any:
    """The parameters with one leaf changed, computed in float32 or wider and returned in its type and shape."""
    if where:
        return {**params, where[0]: _changed(params[where[0]], where[1:], change)}
    dtype = jnp.result_type(params)
    leaf = change(jnp.asarray(params, jnp.promote_types(dtype, jnp.float32)))
    return leaf.reshape(np.shape(params)).astype(dtype)


def _shape(params: Any, where: Where) -> tuple[int, ...]:
    return np.shape(functools.reduce(operator.getitem, where, params))
