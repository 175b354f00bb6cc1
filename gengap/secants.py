"""A quadratic model of a function from its gradients at a few points, and the corner that it thinks highest."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

LIMIT = 4096
"""The most coordinates for which points and gradients are worth keeping."""

_RANDOM_CORNERS = 32
_STEPS = 20


def corner(
    points: Float[Array, "k p"], gradients: Float[Array, "k p"], best: Float[Array, " p"], key: Key[Array, ""]
) -> Float[Array, " p"]:
    r"""The unseen corner of $[-1, 1]^p$ at which the model is highest.

    About the point $y_0$, with $S$ and $Y$ the differences of points and gradients to it, the model has the
    Hessian $Y (S^T Y)^{-1} Y^T$, exact for a quadratic on the span of $S$ (the block form of the symmetric
    rank-one update); directions of negative curvature are left out. From random corners, those of its
    eigenvectors and those of the points it steps to the corner that its gradient points at, 20 times.

    Args:
      points: rows; one that holds a NaN is not looked at.
      gradients: at these points.
      best: one of the points, to expand about.
      key: of the random corners.

    Reference: Nocedal and Wright, "Numerical Optimization", 2006, eq. 6.24.
    """
    size = best.size
    use = jnp.isfinite(points).all(1) & jnp.isfinite(gradients).all(1)
    points, gradients = (jnp.where(use[:, None], rows, 0) for rows in (points, gradients))
    here = jnp.argmax(use & (points == best[None]).all(1))
    slope = gradients[here]
    S, Y = (jnp.where(use[:, None], rows - rows[here][None], 0) for rows in (points, gradients))
    length = jnp.linalg.norm(Y, axis=1, keepdims=True)
    unit = jnp.where(length > 0, length, 1)
    S, Y = S / unit, Y / unit
    product = S @ Y.T
    curvature, V = jnp.linalg.eigh((product + product.T) / 2)
    keep = curvature > 1e-6 * jnp.abs(curvature).max()
    Z = jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, curvature, 1)), 0)[:, None] * (V.T @ Y)

    random = jax.random.rademacher(key, (_RANDOM_CORNERS, size), points.dtype)
    corners = jnp.concatenate([random, _sign(Z), _sign(-Z), _sign(points)])

    def step(corners: Array, _: None) -> tuple[Array, None]:
        return _sign(slope[None] + ((corners - best[None]) @ Z.T) @ Z), None

    corners, _ = jax.lax.scan(step, corners, None, length=_STEPS)
    corners = jnp.concatenate([corners, random])
    away = corners - best[None]
    height = away @ slope + jnp.sum((away @ Z.T) ** 2, axis=1) / 2
    seen = jnp.any((corners @ jnp.where(use[:, None], points, 0).T) >= size, axis=1)
    return corners[jnp.argmax(jnp.where(seen, -jnp.inf, height))]


def _sign(x: Array) -> Array:
    return jnp.where(x < 0, -1, jnp.ones_like(x))
