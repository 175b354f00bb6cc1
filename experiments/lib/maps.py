"""Maps of the parameters that leave the function of a network with batch norm as it is."""

from typing import Any

from jaxtyping import PyTree

from gengap import symmetry

MAPS = ("before batch norm", "behind batch norm")


def moved(params: PyTree, name: str, factor: float) -> Any:
    """Parameters of the same function, scaled before or behind each batch norm."""
    layers = symmetry.chain(params)
    if name == MAPS[0]:
        norms = sum(layer.norm is not None for layer in layers)
        return symmetry.scale_before_norm(params, layers, [factor] * norms)
    return symmetry.rescale(params, layers, [factor] * (len(layers) - 1))
