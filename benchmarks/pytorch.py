"""C1 in JAX and in PyTorch, side by side in one process: epochs of training, and the sharpness by SciPy over it.

    pip install torch; python -m benchmarks.pytorch --precision tensorfloat32

The same network, loss, optimiser, batch and precision, on random images that lie on the device. PyTorch has its
channels last and, on a GPU, `torch.compile`. For the sharpness in random subspaces PyTorch draws A, and SciPy's
L-BFGS-B takes the paper's 10 iterations.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import scipy.optimize
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import common
from gengap import objective, sharpness

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main(
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32",
    train_size: int = 50_000,
    batch_size: int = 256,
    chunk: int = 5000,
    dim: int = 100,
    draws: int = 2,
    rounds: int = 3,
    out: Path | None = None,
) -> dict[str, Any]:
    """Print seconds and ratios as JSON.

    Args:
      precision: of matrix products; bfloat16 is `autocast` in PyTorch.
      train_size: training examples.
      batch_size: of training.
      chunk: examples at once in the sharpness.
      dim: columns of A.
      draws: matrices A.
      rounds: of the timing, whose median is taken.
      out: a JSON file to write too.
    """
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    autocast = partial(torch.autocast, DEVICE, torch.bfloat16, enabled=precision == "bfloat16")
    model, x, y, state, epoch = common.training("c1", train_size, batch_size)

    def timed(calls: dict[str, Callable]) -> dict[str, Any]:
        with jax.default_matmul_precision(precision):
            seconds = common.in_turn(calls, rounds)
        jax_seconds, torch_seconds = (times["median"] for times in seconds.values())
        return {**seconds, "JAX / PyTorch": jax_seconds / torch_seconds}

    images = torch.tensor(np.asarray(x)).to(DEVICE).permute(0, 3, 1, 2)  # channels last in memory
    labels = torch.tensor(np.asarray(y)).long().to(DEVICE)
    torch_epoch = partial(train_epoch, torch_training(state.params, autocast), images, labels, batch_size)
    row: dict[str, Any] = {
        "torch": torch.__version__,
        "precision": precision,
        "train_size": train_size,
        "batch_size": batch_size,
        "an epoch": timed({"JAX": partial(epoch, state), "PyTorch": torch_epoch}),
    }

    params, key = epoch(state).params, state.key
    f = objective.over_dataset(model.apply, x, y, chunk=chunk)

    ours = partial(sharpness.random_subspaces, f, params, key, dim=dim, num_draws=draws, max_evaluations=12)
    g = partial(torch_loss, network := c1(params).to(DEVICE), images, labels, chunk, autocast)
    theirs = partial(torch_subspaces, network, g, dim, draws)
    row["sharpness"] = timed({"JAX": ours, "SciPy over PyTorch": theirs})
    with jax.default_matmul_precision(precision):
        mine, (values, evaluations) = ours(), theirs()
    row["sharpness"] |= {
        "mean value": {"JAX": float(mine.mean), "SciPy over PyTorch": float(np.mean(values))},
        "evaluations": {"JAX": float(mine.evaluations.mean()), "SciPy over PyTorch": float(np.mean(evaluations))},
    }
    return common.report(row, out)


def c1(params: Any) -> nn.Sequential:
    """C1 with these parameters, for images `[batch, channels, height, width]` from 0 to 1."""
    layers: list[nn.Module] = []
    for i, inputs in enumerate((3, 64)):
        layers += [nn.Conv2d(inputs, 64, 5, padding=2), nn.BatchNorm2d(64, track_running_stats=False), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2, ceil_mode=True)]
        _set(layers[-4], params[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1), params[f"Conv_{i}"]["bias"])
        _set(layers[-3], params[f"BatchNorm_{i}"]["scale"], params[f"BatchNorm_{i}"]["bias"])
    layers += [nn.Flatten()]
    for i, (inputs, outputs) in enumerate(((4096, 384), (384, 192), (192, 10))):
        kernel = params[f"Dense_{i}"]["kernel"]
        if i == 0:  # flattened with the channels last there, first here
            kernel = kernel.reshape(8, 8, 64, outputs).transpose(2, 0, 1, 3).reshape(inputs, outputs)
        layers += [nn.Linear(inputs, outputs)]
        _set(layers[-1], kernel.T, params[f"Dense_{i}"]["bias"])
        if i < 2:
            layers += [nn.BatchNorm1d(outputs, track_running_stats=False), nn.ReLU(), nn.Dropout(0.5)]
            norm = params[f"BatchNorm_{i + 2}"]
            _set(layers[-3], norm["scale"], norm["bias"])
    return nn.Sequential(*layers)


def _set(layer: nn.Module, weight: Any, bias: Any) -> None:
    layer.weight.data, layer.bias.data = torch.tensor(np.asarray(weight)), torch.tensor(np.asarray(bias))


def torch_training(params: Any, autocast: Callable) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A step of Adam on a batch of uint8 images, for a network of its own."""
    network = c1(params).to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with autocast():
            return F.cross_entropy(network(x.float() / 255), y)

    compiled = torch.compile(loss) if DEVICE == "cuda" else loss

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        compiled(x, y).backward()
        optimizer.step()

    return step


def train_epoch(step: Callable, images: torch.Tensor, labels: torch.Tensor, size: int) -> None:
    """An epoch, the last batch filled up as `train.fit` does."""
    count = -(-len(images) // size)
    order = torch.randperm(len(images), device=DEVICE)
    order = torch.cat([order] * -(-count * size // len(order)))[: count * size]
    for batch in order.split(size):
        step(images[batch], labels[batch])
    _wait()


def torch_loss(
    network: nn.Sequential, images: torch.Tensor, labels: torch.Tensor, chunk: int, autocast: Callable
) -> tuple[float, torch.Tensor]:
    """The loss over all the images, without dropout, and its gradient as one vector."""
    for layer in network:
        layer.train(not isinstance(layer, nn.Dropout))
    network.zero_grad()
    dtype = next(network.parameters()).dtype
    total = torch.zeros((), dtype=torch.float64, device=DEVICE)
    for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
        with autocast():
            part = F.cross_entropy(network(x.to(dtype) / 255), y, reduction="sum") / len(images)
        part.backward()
        total += part.detach()
    return float(total), torch.cat([p.grad.ravel() for p in network.parameters()])


def torch_subspaces(network: nn.Sequential, loss: Callable, dim: int, draws: int) -> tuple[list, list]:
    """Sharpness and evaluations of each draw; the network is left as it was."""
    x = torch.cat([p.detach().ravel() for p in network.parameters()])
    values, evaluations = [], []
    for _ in range(draws):
        A = torch.randn(len(x), dim, device=DEVICE)
        radius = 1e-3 * (torch.linalg.solve(A.T @ A, A.T @ x).abs() + 1).cpu().double().numpy()
        seen: list[float] = []

        def negative(y: np.ndarray, A: torch.Tensor = A, seen: list[float] = seen) -> tuple[float, np.ndarray]:
            nn.utils.vector_to_parameters(
                x + A @ torch.tensor(y, dtype=A.dtype, device=DEVICE), network.parameters()
            )
            value, slope = loss()
            seen.append(value)
            return -value, -(A.T @ slope).cpu().double().numpy()

        scipy.optimize.minimize(
            negative,
            np.zeros(dim),
            jac=True,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(-radius, radius),
            options={"maxiter": 10, "ftol": 0.0, "gtol": 0.0},
        )
        values.append(100 * (max(seen) - seen[0]) / (1 + seen[0]))
        evaluations.append(len(seen))
    nn.utils.vector_to_parameters(x, network.parameters())
    return values, evaluations


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    common.cli(main)
