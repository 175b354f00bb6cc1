"""Methods that change the update: SAM, conservative training, learning rates, averages of the weights.

Each is a `methods.Method` around an optimiser; several go around each other, the first the innermost.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from gengap import flat, train
from gengap.methods import Method


def sam(rho: float = 0.05, *, adaptive: bool = False) -> Method:
    r"""SAM, optax's: the gradient at $x + \rho\, T^2 g / \|T g\|$, where g is that at x.

    T is 1, or for ASAM (`adaptive`) $|x_j| + 0.01$ for each parameter, as in its authors' code for all of them.

    References: Foret et al. 2021 (arXiv:2010.01412); Kwon et al. 2021 (arXiv:2102.11600), who have a rho of 0.5.
    """
    flat.check_between({"rho": rho}, 0)

    def climb(gradient: PyTree, params: PyTree) -> Any:
        scale = jax.tree.map(lambda p: jnp.abs(p) + 0.01 if adaptive else jnp.ones_like(p), params)
        length = optax.tree.norm(jax.tree.map(jnp.multiply, scale, gradient))
        step = jnp.where(length > 0, -rho / jnp.where(length > 0, length, 1), 0)
        return jax.tree.map(lambda t, g: step * t**2 * g, scale, gradient)

    def change(own: train.Optimizer) -> train.Optimizer:
        def around(**extra: Any) -> Any:
            inner = optax.GradientTransformation(own.init, partial(own.update, **extra))
            return optax.contrib.sam(inner, optax.stateless(climb), opaque_mode=True)

        def update(gradient: PyTree, state: Any, params: PyTree, **extra: Any) -> Any:
            slope = jax.grad(extra["value_fn"])
            return around(**extra).update(gradient, state, params, grad_fn=lambda x, _: slope(x))

        return own._replace(init=around().init, update=update)

    return Method(f"{'asam' if adaptive else 'sam'}({rho})", optimizer=change, gradients=2)


def conservative(strength: float = 1e-3, *, steps: int = 3) -> Method:
    r"""$x_{k+1} = \arg\min_x f_B(x) + \frac\lambda2 \|x - x_k\|^2$ (eq. 5), by some steps of the optimiser.

    The state of the optimiser, Adam's moments, goes on from batch to batch; the paper does not say. One step is
    plain training, since the proximal term is 0 at x_k. Three at strength 0 are the control.

    Args:
      strength: lambda.
      steps: of the optimiser, each with a gradient; the paper takes 3.

    Reference: appendix E.2, after Li et al. 2014.
    """
    flat.check_between({"strength": strength}, 0)
    flat.check_counts({"steps": steps})

    def change(own: train.Optimizer) -> train.Optimizer:
        def update(gradient: PyTree, state: Any, params: PyTree, **extra: Any) -> Any:
            moved, state = own.update(gradient, state, params, **extra)
            for _ in range(steps - 1):
                x = optax.apply_updates(params, moved)
                slope = jax.tree.map(lambda g, d: g + strength * d, jax.grad(extra["value_fn"])(x), moved)
                step, state = own.update(slope, state, x, **extra)
                moved = jax.tree.map(jnp.add, moved, step)
            return moved, state

        return own._replace(update=update)

    return Method(f"conservative({strength}, steps={steps})", optimizer=change, gradients=steps)


class _Averaged(NamedTuple):
    own: Any
    weight_average: Any
    steps: Array


def weight_averaging(decay: float = 0.99) -> Method:
    """The minimum is an average of the iterates (`optax.incremental_update`); training and its history are plain.

    It is the plain mean of the first 1 / (1 - decay) iterates, then an exponential one (Polyak and Juditsky 1992).
    In `combine` it goes last: a later piece that changes the step would not reach the average.
    """
    flat.check_between({"decay": decay}, 0, 1)

    def change(own: train.Optimizer) -> train.Optimizer:
        def init(params: PyTree) -> _Averaged:
            return _Averaged(own.init(params), params, jnp.zeros((), jnp.int32))

        def update(gradient: PyTree, state: _Averaged, params: PyTree, **extra: Any) -> Any:
            moved, inner = own.update(gradient, state.own, params, **extra)
            share, x = jnp.maximum(1 - decay, 1 / (state.steps + 1)), optax.apply_updates(params, moved)
            average = optax.incremental_update(x, state.weight_average, share)
            return moved, _Averaged(inner, average, state.steps + 1)

        return own._replace(init=init, update=update)

    return Method(f"weight_averaging({decay})", optimizer=change)


def _scaled(name: str, then: Any) -> Method:
    def change(own: train.Optimizer) -> train.Optimizer:
        before = optax.GradientTransformationExtraArgs(own.init, own.update)
        return train.named(own.name, optax.chain(before, then))

    return Method(name, optimizer=change)


def scale_rate(factor: float) -> Method:
    """The learning rate times a factor: B_L / B_S is linear scaling, its root sqrt scaling."""
    flat.check_between({"factor": factor}, 0)
    return _scaled(f"scale_rate({factor:.6g})", optax.scale(factor))


def warm_up(steps: int) -> Method:
    """The learning rate grows linearly over the first steps: update t, from 0, is scaled by (t + 1) / steps."""
    flat.check_counts({"steps": steps}, least=0)
    return _scaled(f"warm_up({steps})", optax.scale_by_schedule(lambda t: jnp.minimum(1, (t + 1) / max(steps, 1))))


def instead(other: train.Optimizer) -> Method:
    """Another optimiser, such as `instead(lamb(0.01))` or `instead(train.adam(1e-3, weight_decay=0.1))`."""
    return Method(other.name, optimizer=lambda own: other)
