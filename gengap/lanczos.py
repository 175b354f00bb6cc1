"""Lanczos iterations on a Hessian, from several random starts where one does not show it all; see `hessian`."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gengap import flat, program

_CHANCE = 1e-3  # that there is an eigenvalue further out


class Lanczos:
    """Orthonormal vectors from random starts: what H times one has beside them all is the next.

    Attributes:
      product: as `product` gives it.
      V: the vectors, in the first of its rows.
      T: v_i . H v_j for i <= j.
      left: the length of what H v_j has beside the vectors, if another start follows it.
      first: of the vectors of the last start.
      v: the next vector; `None` where those of this start are exhausted.
      tails: what would have been the next of earlier starts, by the last row of each.
    """

    def __init__(self, product: Callable, x: Array, key: Array) -> None:
        self.product, self.x, self.key, self.V = product, x, key, jnp.zeros((16, len(x)), x.dtype)
        self.T, self.left, self.v = np.zeros((0, 0)), np.zeros(0), None
        self.tails: dict[int, Array] = {}
        self.begin()

    def begin(self, tail: int | None = None) -> None:
        """A random start beside the vectors, or one where another had left off."""
        if self.v is not None:
            self.tails[len(self.T) - 1] = self.v
        self.first, self.random = len(self.T), tail is None
        if tail is None:
            w = jax.random.normal(jax.random.fold_in(self.key, self.first), self.x.shape, self.x.dtype)
        else:
            w, self.left[tail] = self.tails.pop(tail), 0
        self.v = _beside(self.V, _beside(self.V, w)[1])[1]  # little of a tail may be left

    def step(self) -> None:
        """One product."""
        j = len(self.T)
        if j == len(self.V):
            self.V = jnp.concatenate([self.V, jnp.zeros_like(self.V)])
        self.V = _put(self.V, j, self.v)
        scale, w = self.product(self.x, self.v)
        flat.check_untraced("a Lanczos iteration", scale)
        along, self.v, left = _beside(self.V, w)
        self.left[self.first :] = 0
        self.T, self.left = np.pad(self.T, (0, 1)), np.append(self.left, float(scale) * float(left))
        self.T[:, j] = float(scale) * np.asarray(along, float)[: j + 1]
        noise = 10 * np.finfo(self.x.dtype).eps * np.linalg.norm(self.T, axis=0).max()
        if self.left[j] <= noise or j + 1 == len(self.x):
            self.v = None

    def ritz(self, first: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues and vectors of H between the vectors, and bounds of their residuals; or one NaN for each."""
        if not np.isfinite(self.T).all():
            return np.full(1, np.nan), np.full((1, 1), np.nan), np.full(1, np.nan)
        values, S = np.linalg.eigh(self.T[first:, first:], UPLO="U")
        return values, S, self.left[first:] @ np.abs(S)

    def chance(self, sign: int, bound: float, slack: float) -> float:
        """That an eigenvalue beyond a bound has not shown in the last start; infinite if one shows.

        A part c of the start along its vector has c^2 sum(p^2) <= 1, with p the Lanczos polynomials at the bound,
        p_0 = 1; and in n dimensions P(|c| < t) <= t sqrt(2 n / pi).
        """
        values, S, residuals = self.ritz(self.first)
        away = sign * (bound - values) + slack
        outer = np.argmin(away)
        if away[outer] < 0 or not self.random:
            return math.inf
        if residuals[outer] <= slack:
            return 0.0
        p = S @ (S[-1] / away)
        return math.sqrt(2 * len(self.x) / math.pi) * abs(p[0]) / np.linalg.norm(p)

    def goes_on(self, high: int, low: int, tolerance: float) -> bool:
        """Whether there is more to do for so many pairs at either end; begins another start where it is due."""
        if self.v is not None and len(self.T) % (1 + len(self.T) // 50):
            return True  # an eigendecomposition for every product would cost more than many a product
        values, S, residuals = self.ritz()
        if len(self.T) == len(self.x) or np.isnan(values[0]):
            return False
        slack, wanted, chance = tolerance * np.abs(values).max(), outermost(values, high, low), 1.0
        worst = wanted[np.argmax(residuals[wanted])]
        tail = int(np.argmax(self.left * np.abs(S[:, worst])))
        if residuals[worst] > slack and tail in self.tails:
            self.begin(tail)
            return True
        if residuals[worst] <= slack and len(wanted) == high + low:
            last = [(sign, values[of[-1]]) for sign, of in ((1, wanted[:high]), (-1, wanted[high:])) if of]
            chance = max(self.chance(sign, bound, slack) for sign, bound in last)
        if chance <= _CHANCE:
            return False
        if self.v is None or chance == math.inf:
            self.begin()
        return True


def outermost(values: np.ndarray, high: int, low: int) -> list[int]:
    """Where in rising numbers the highest are, and then the lowest."""
    most = list(range(len(values)))[::-1][:high]
    return most + list(range(len(values) - len(most)))[:low]


def product(f: Callable) -> Callable[[Array, Array], tuple[Array, Array]]:
    """`(x, v) -> ` the largest entry of H v, and H v over it: squares of small numbers would be 0."""
    return program.compiled(partial(_product, f))


def _product(f: Callable, x: Array, v: Array) -> tuple[Array, Array]:
    w = jax.jvp(jax.grad(f), (x,), (v,))[1]
    scale = jnp.max(jnp.abs(w))
    return scale, w / jnp.where(scale == 0, 1, scale)


@partial(jax.jit, donate_argnums=0)
def _put(V: Array, i: Array, v: Array) -> Array:
    return V.at[i].set(v)


@jax.jit
def _beside(V: Array, w: Array) -> tuple[Array, Array, Array]:
    """The parts of w along the rows of V, the direction of what is left beside them, and its length."""
    along = jnp.zeros(len(V), V.dtype)
    for _ in range(2):  # the second removes what rounding left
        parts = jnp.dot(V, w, precision="highest")
        along, w = along + parts, w - jnp.dot(parts, V, precision="highest")
    length = jnp.linalg.norm(w)
    return along, w / jnp.where(length == 0, 1, length), length
