"""A training step of C1, batch 256, against PyTorch's: the same network, loss and optimiser, float32.

    pip install torch; python -m benchmarks.step

Both take their steps in turn, in one process; prints the median times and their ratio, without compilation.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from gengap import models, objective, train


def jax_step(images: np.ndarray, labels: np.ndarray) -> Iterator[float]:
    """Seconds of each step; the first call compiles."""
    model = models.c1()
    keys = jax.random.split(jax.random.key(0), 1)
    params = model.init(keys[0], jnp.asarray(images))
    state = train.start(jax.tree.map(lambda a: a[None], params), keys)
    state = jax.tree.map(lambda a: a[0], state)
    loss = objective.batch_loss(model.apply, model.apply_train)
    step = partial(train._step, loss, train.ADAM, jnp.asarray(images), jnp.asarray(labels))
    batch = (jnp.arange(len(images)), keys[0])
    while True:
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        yield time.perf_counter() - begin


def torch_step(images: np.ndarray, labels: np.ndarray) -> Iterator[float]:
    """Seconds of each step."""
    layers: list[nn.Module] = []
    for inputs in (3, 64):
        norm = nn.BatchNorm2d(64, track_running_stats=False)
        layers += [nn.Conv2d(inputs, 64, 5, padding=2), norm, nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    layers += [nn.Flatten()]
    for inputs, outputs in ((4096, 384), (384, 192)):
        norm1 = nn.BatchNorm1d(outputs, track_running_stats=False)
        layers += [nn.Linear(inputs, outputs), norm1, nn.ReLU(), nn.Dropout(0.5)]
    network = nn.Sequential(*layers, nn.Linear(192, 10))
    optimizer = torch.optim.Adam(network.parameters())
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy()).float() / 255
    y = torch.tensor(labels).long()
    while True:
        begin = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        yield time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args().steps
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 256).astype(np.int32)
    runs = {"JAX": jax_step(images, labels), "PyTorch": torch_step(images, labels)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(steps + 1):
        for name, run in runs.items():
            seconds = next(run)
            if i:
                times[name].append(seconds)
    median = {name: statistics.median(found) for name, found in times.items()}
    for name, seconds in median.items():
        print(f"{name}: {seconds:.2f} s a step, {min(times[name]):.2f} to {max(times[name]):.2f}")
    print(f"JAX / PyTorch = {median['JAX'] / median['PyTorch']:.2f}")


if __name__ == "__main__":
    main()
