"""The numbers of Keskar et al. (2016), arXiv:1609.04836v2: tables and digitised curves of figures.

Tables hold `(mean, standard deviation)` over the paper's 5 runs, as printed, and are indexed by network
(`"F1"` ... `"C4"`), then `"SB"` (small batch, 256) or `"LB"` (large batch, 10 % of the training set), then
column: `"train"` or `"test"` for an accuracy in percent, 1e-3 or 5e-4 (the paper's epsilon) for a sharpness
(Metric 2.1, equation 4, in units of 1/100 of the loss).

    >>> TABLE_3["F1"]["LB"][1e-3]
    (205.14, 69.52)
"""

import functools
import json
from importlib import resources
from typing import NamedTuple

__all__ = [
    "DATASET",
    "DISTANCE_RATIO",
    "NAMES",
    "NETWORKS",
    "TABLE_2",
    "TABLE_3",
    "TABLE_4",
    "TABLE_6",
    "TABLE_7",
    "Curve",
    "beside",
    "figure",
    "nearest",
    "where",
]  # fmt: skip

MeanStd = tuple[float, float]
AccuracyTable = dict[str, dict[str, dict[str, MeanStd]]]
SharpnessTable = dict[str, dict[str, dict[float, MeanStd]]]
RemedyTable = dict[str, dict[str, dict[str | float, MeanStd]]]

#: Table 1: the data set each network is trained on, by its TFDS name ("timit" is not in TFDS).
DATASET = {"F1": "mnist", "F2": "timit", "C1": "cifar10", "C2": "cifar10", "C3": "cifar100", "C4": "cifar100"}

#: The paper's names of the data sets.
NAMES = {"mnist": "MNIST", "timit": "TIMIT", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

#: Table 1 and appendix B: the networks in words.
NETWORKS = {
    "F1": "five dense layers of 512 ReLUs with batch norm",
    "F2": "seven dense layers of 512 ReLUs with batch norm",
    "C1": "two convolutions and two dense layers, with batch norm and dropout",
    "C2": "a VGG of thirteen convolutions and one dense layer, with batch norm and dropout",
    "C3": "C1 with 100 classes",
    "C4": "C2 with 100 classes",
}

#: Section 2.2.1, in words: the range of |x_SB - x_0| / |x_LB - x_0|, Euclidean.
DISTANCE_RATIO = (3.0, 10.0)

#: Table 2: accuracy in percent of the SB and LB minima.
TABLE_2: AccuracyTable = {
    "F1": {"SB": {"train": (99.66, 0.05), "test": (98.03, 0.07)},
           "LB": {"train": (99.92, 0.01), "test": (97.81, 0.07)}},
    "F2": {"SB": {"train": (99.99, 0.03), "test": (64.02, 0.2)},
           "LB": {"train": (98.35, 2.08), "test": (59.45, 1.05)}},
    "C1": {"SB": {"train": (99.89, 0.02), "test": (80.04, 0.12)},
           "LB": {"train": (99.66, 0.2), "test": (77.26, 0.42)}},
    "C2": {"SB": {"train": (99.99, 0.04), "test": (89.24, 0.12)},
           "LB": {"train": (99.99, 0.01), "test": (87.26, 0.07)}},
    "C3": {"SB": {"train": (99.56, 0.44), "test": (49.58, 0.39)},
           "LB": {"train": (99.88, 0.30), "test": (46.45, 0.43)}},
    "C4": {"SB": {"train": (99.10, 1.23), "test": (63.08, 0.5)},
           "LB": {"train": (99.57, 1.84), "test": (57.81, 0.17)}},
}  # fmt: skip

#: Table 3: full-space sharpness, A = I.
TABLE_3: SharpnessTable = {
    "F1": {"SB": {1e-3: (1.23, 0.83), 5e-4: (0.61, 0.27)},
           "LB": {1e-3: (205.14, 69.52), 5e-4: (42.90, 17.14)}},
    "F2": {"SB": {1e-3: (1.39, 0.02), 5e-4: (0.90, 0.05)},
           "LB": {1e-3: (310.64, 38.46), 5e-4: (93.15, 6.81)}},
    "C1": {"SB": {1e-3: (28.58, 3.13), 5e-4: (7.08, 0.88)},
           "LB": {1e-3: (707.23, 43.04), 5e-4: (227.31, 23.23)}},
    "C2": {"SB": {1e-3: (8.68, 1.32), 5e-4: (2.07, 0.86)},
           "LB": {1e-3: (925.32, 38.29), 5e-4: (175.31, 18.28)}},
    "C3": {"SB": {1e-3: (29.85, 5.98), 5e-4: (8.56, 0.99)},
           "LB": {1e-3: (258.75, 8.96), 5e-4: (105.11, 13.22)}},
    "C4": {"SB": {1e-3: (12.83, 3.84), 5e-4: (4.07, 0.87)},
           "LB": {1e-3: (421.84, 36.97), 5e-4: (109.35, 16.57)}},
}  # fmt: skip

#: Table 4: sharpness in random subspaces of dimension 100. The ± mixes seeds and draws in a way not stated.
TABLE_4: SharpnessTable = {
    "F1": {"SB": {1e-3: (0.11, 0.00), 5e-4: (0.05, 0.00)},
           "LB": {1e-3: (9.22, 0.56), 5e-4: (9.17, 0.14)}},
    "F2": {"SB": {1e-3: (0.29, 0.02), 5e-4: (0.05, 0.00)},
           "LB": {1e-3: (23.63, 0.54), 5e-4: (6.28, 0.19)}},
    "C1": {"SB": {1e-3: (2.18, 0.23), 5e-4: (0.71, 0.15)},
           "LB": {1e-3: (137.25, 21.60), 5e-4: (29.50, 7.48)}},
    "C2": {"SB": {1e-3: (0.95, 0.34), 5e-4: (0.31, 0.08)},
           "LB": {1e-3: (25.09, 2.61), 5e-4: (5.82, 0.52)}},
    "C3": {"SB": {1e-3: (17.02, 2.20), 5e-4: (4.03, 1.45)},
           "LB": {1e-3: (236.03, 31.26), 5e-4: (86.96, 27.39)}},
    "C4": {"SB": {1e-3: (6.05, 1.13), 5e-4: (1.89, 0.33)},
           "LB": {1e-3: (72.99, 10.96), 5e-4: (19.85, 4.12)}},
}  # fmt: skip

#: Table 6 (appendix E.1): both methods trained with data augmentation; sharpness of LB only, full space.
TABLE_6: RemedyTable = {
    "C1": {"SB": {"test": (83.63, 0.14)},
           "LB": {"test": (82.50, 0.67), 1e-3: (231.77, 30.50), 5e-4: (45.89, 3.83)}},
    "C2": {"SB": {"test": (89.82, 0.12)},
           "LB": {"test": (90.26, 1.15), 1e-3: (468.65, 47.86), 5e-4: (105.22, 19.57)}},
    "C3": {"SB": {"test": (54.55, 0.44)},
           "LB": {"test": (53.03, 0.33), 1e-3: (103.68, 11.93), 5e-4: (37.67, 3.46)}},
    "C4": {"SB": {"test": (63.05, 0.5)},
           "LB": {"test": (65.88, 0.13), 1e-3: (271.06, 29.69), 5e-4: (45.31, 5.93)}},
}  # fmt: skip

#: Table 7 (appendix E.2): conservative training of LB against plain SB. As printed: SB's standard deviations
#: for C2 and C4 are not those of Table 2.
TABLE_7: RemedyTable = {
    "F1": {"SB": {"test": (98.03, 0.07)},
           "LB": {"test": (98.12, 0.01), 1e-3: (232.25, 63.81), 5e-4: (46.02, 12.58)}},
    "F2": {"SB": {"test": (64.02, 0.2)},
           "LB": {"test": (61.94, 1.10), 1e-3: (928.40, 51.63), 5e-4: (190.77, 25.33)}},
    "C1": {"SB": {"test": (80.04, 0.12)},
           "LB": {"test": (78.41, 0.22), 1e-3: (520.34, 34.91), 5e-4: (171.19, 15.13)}},
    "C2": {"SB": {"test": (89.24, 0.05)},
           "LB": {"test": (88.495, 0.63), 1e-3: (632.01, 208.01), 5e-4: (108.88, 47.36)}},
    "C3": {"SB": {"test": (49.58, 0.39)},
           "LB": {"test": (45.98, 0.54), 1e-3: (337.92, 33.09), 5e-4: (110.69, 3.88)}},
    "C4": {"SB": {"test": (63.08, 0.10)},
           "LB": {"test": (62.51, 0.67), 1e-3: (354.94, 20.23), 5e-4: (68.76, 16.29)}},
}  # fmt: skip


class Curve(NamedTuple):
    """One curve of a figure: points `(x[i], y[i])`, in the order of the figure."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@functools.cache
def _figures() -> dict[str, dict[str, dict[str, Curve]]]:
    stored = json.loads(resources.files("gengap").joinpath("paper.json").read_text(encoding="utf-8"))
    return {
        name: {
            network: {
                curve: Curve(tuple(map(float, points["x"])), tuple(map(float, points["y"])))
                for curve, points in curves.items()
            }
            for network, curves in networks.items()
        }
        for name, networks in stored.items()
    }


def figure(name: str) -> dict[str, dict[str, Curve]]:
    """The curves of one of the paper's figures, as network -> curve -> `Curve`.

    Read off the vector graphics of arXiv:1609.04836v2, good to 0.3 % of the axis range. `acc` is accuracy in
    percent, `xent` cross entropy, a trailing `1e-3` or `5e-4` the epsilon of a full-space sharpness.

    | name | networks | x | curves |
    | --- | --- | --- | --- |
    | `fig2_curves` | F2 C1 | epoch, from 1 | `SB_train` `SB_test` `LB_train` `LB_test`: accuracy in percent |
    | `fig3_linear` | all | alpha: 0 is SB, 1 is LB | `train_xent` `test_xent` `train_acc` `test_acc` |
    | `fig4_batchsize` | F2 C1 | batch size | `test_acc` `sharp_1e-3` `sharp_5e-4`, as smooth splines |
    | `fig5_warmstart` | F2 C1 | SB epoch, from 0 | `SB_test` `LB_piggyback_test` `sharp_1e-3` `sharp_5e-4` |
    | `fig6_sharp_vs_xent` | F2 C1 | cross entropy | `LB_1e-3` `LB_5e-4` `SB_1e-3` `SB_5e-4`: sharpness |
    | `fig7_curvilinear` | all | alpha | as `fig3_linear` |

    The legend of the paper's Fig. 5 says 5E-3 for its second sharpness; it is read as 5e-4 here.

    Args:
        name: one of the names above.

    Returns:
        A new dictionary at the outer level; the curves themselves are shared tuples.

    Raises:
        ValueError: the paper has no digitised figure of that name.

    Example:
        >>> figure("fig2_curves")["C1"]["SB_test"].y[0]
        62.45
    """
    stored = _figures()
    if name not in stored:
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(stored)}")
    return {network: dict(curves) for network, curves in stored[name].items()}


def where(network: str) -> str:
    """A network and the data set that the paper trains it on.

    >>> where("C1")
    'C1 on CIFAR-10'
    """
    return f"{network} on {NAMES[DATASET[network]]}"


def beside(network: str, dataset: str) -> bool:
    """Whether the paper has numbers for a network that may be shown beside those of a data set.

    They may be shown beside every data set of the paper, by its TFDS name, and "digits", a small MNIST.
    """
    return network in DATASET and dataset.split(":")[0] in (*NAMES, "digits")


def nearest(name: str, network: str) -> tuple[str, dict[str, Curve]]:
    """The curves of a figure for a network, or for the most similar one if the figure does not show it.

    F2 is most similar to F1, both dense with batch norm, and C1 to the convolutional networks.

    Returns:
        The network that the curves are for, and the curves.

    Example:
        >>> nearest("fig4_batchsize", "F1")[0]
        'F2'
    """
    stored = figure(name)
    if network not in stored:
        network = "F2" if network.startswith("F") else "C1"
    return network, stored[network]
