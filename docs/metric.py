"""The picture of docs/metric.md: `python docs/metric.py` writes docs/metric.svg."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.patches import Rectangle

from gengap import plots, sharpness, subspace

EPSILON = 0.2


def loss(x: jax.Array) -> jax.Array:
    """A valley through (0.5, 3), steep across and shallow along."""
    u, v = x[..., 0] - 0.5, x[..., 1] - 3
    return 0.1 + 2 * (u + 0.5 * v) ** 2 + 0.1 * (v - 0.4 * u) ** 2 + 0.1 * u**3


def main() -> None:
    """Draw the loss, the box, the highest point in it, and a random subspace of one dimension."""
    x, key = jnp.array([0.5, 3.0]), jax.random.key(4)
    full = sharpness.full_space(loss, x, key, epsilon=EPSILON, with_step=True)
    line = sharpness.random_subspaces(loss, x, key, dim=1, num_draws=1, epsilon=EPSILON, with_step=True)
    A = subspace.draw(sharpness.draw_keys(key, 1)[0], 2, 1)
    figure, (ax,) = plots.axes(1)
    s, t = np.meshgrid(np.linspace(-0.6, 1.6, 60), np.linspace(1.8, 4.2, 60))
    ax.contourf(s, t, loss(jnp.stack([s, t], -1)), 12, cmap="Greys", alpha=0.7)
    r = np.asarray(sharpness.box(x, None, EPSILON))
    ax.add_patch(
        Rectangle(np.asarray(x) - r, *(2 * r), fill=False, edgecolor="#00498d", linewidth=1.5, label="the box")
    )
    reach = float(sharpness.box(x, A, EPSILON)[0]) * np.asarray(subspace.times(A, jnp.ones(1)))
    ends = np.stack([x - reach, x + reach])
    ax.plot(*ends.T, color="#e08300", linewidth=1.5, label="random subspace, p = 1")
    ax.plot(*x, "ko", label="x, the minimum")
    ax.plot(*(x + full.step), "o", color="#00498d", label=f"highest in the box: {float(full.value):.0f} %")
    ax.plot(
        *(x + line.step[0]), "s", color="#e08300", label=f"highest in the subspace: {float(line.value[0]):.0f} %"
    )
    ax.set(xlabel="first parameter", ylabel="second parameter", aspect="equal")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    Path(__file__).with_suffix(".svg").write_bytes(plots.image(figure))


if __name__ == "__main__":
    main()
