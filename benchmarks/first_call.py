"""CPU seconds from the start of a process to its first sharpness, beside PyTorch with SciPy's L-BFGS-B.

    python -m benchmarks.first_call --torch ~/torchenv/lib/python3.11/site-packages

The full-space sharpness of F1's large-batch minimum on the digits for two epsilons, 24 gradients each. Every line
is a process of its own, on one core and with one thread: one gradient and no more; nothing cached; with what an
earlier process left in JAX's compilation cache; and SciPy's 10 iterations, where PyTorch is to be found.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EPSILONS = (1e-3, 5e-4)
COMPILED = "/jax/core/compile/backend_compile_duration"


def main(
    widths: tuple[int, ...] = (512,) * 5,
    examples: int = 1437,
    rounds: int = 3,
    torch: Path | None = None,
    store: Path = Path("results/minima"),
    out: Path | None = None,
) -> dict[str, Any]:
    """Print the medians as JSON.

    Args:
      widths: of F1's layers.
      examples: of the digits.
      rounds: of all processes, in turn.
      torch: the directory in which PyTorch is installed; without it its line is left out.
      store: where the minimum is found, or trained and kept.
      out: a JSON file to write too.
    """
    from benchmarks import common

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        problem = Path(folder) / "problem.npz"
        _prepare(problem, widths, examples, store)
        for i in range(rounds):
            cache = {
                "JAX_COMPILATION_CACHE_DIR": f"{folder}/{i}",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            lines = {
                "one gradient": ("gradient", {"JAX_ENABLE_COMPILATION_CACHE": "false"}),
                "nothing cached": ("gengap", {"JAX_ENABLE_COMPILATION_CACHE": "false"}),
                "filling the cache": ("gengap", cache),
                "with the cache": ("gengap", cache),
                "PyTorch and SciPy": ("pytorch", {"PYTHONPATH": str(torch)}),
            }
            for name, (what, environment) in lines.items():
                if torch is not None or what != "pytorch":
                    found.setdefault(name, []).append(_process(what, problem, environment))
    found = {n: {of: statistics.median(row[of] for row in rows) for of in rows[0]} for n, rows in found.items()}
    return common.report(found, out)


def _prepare(path: Path, widths: tuple[int, ...], examples: int, store: Path) -> None:
    """The images and the minimum, in a file that is read without JAX."""
    import numpy as np

    from benchmarks import common
    from gengap import data, models

    ds = data.head(data.load("digits"), examples)
    model = models.dense(ds.num_classes, widths=widths)
    params = common.pair(model, ds, store=store)[1].params
    leaves = {f"{layer}/{name}": leaf for layer, one in params.items() for name, leaf in one.items()}
    np.savez(path, x=ds.x_train, y=ds.y_train, **leaves)


def _process(what: str, problem: Path, environment: dict[str, str]) -> dict[str, float]:
    """What a function of this file prints in a process of its own."""
    one_thread = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
    code = f"from benchmarks import first_call; first_call.{what}({str(problem)!r})"
    path = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["taskset", "-c", "0", sys.executable, "-c", code],
        env={**os.environ, **one_thread, **environment, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def gradient(problem: str) -> None:
    """Compile and compute one gradient."""
    import jax

    loss, params = _problem(problem)
    spent = {"imports": time.process_time()}
    jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(params))
    print(json.dumps(spent | {"to the value": time.process_time()}))


def gengap(problem: str) -> None:
    """Compute the sharpness, and once more with other parameters, another key and other sizes of the box."""
    import jax

    from gengap import sharpness

    loss, params = _problem(problem)
    spent = {"imports": time.process_time()}
    first = sharpness.full_space(loss, params, jax.random.key(0), epsilon=EPSILONS)
    spent |= {
        "loss": float(first.base_loss[0]),
        "value": float(first.value[0]),
        "to the value": time.process_time(),
    }
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    other = jax.tree.map(lambda a: a + 1, params)
    key = jax.random.key(1)
    begin, before = time.process_time(), compiled.count(COMPILED)
    jax.block_until_ready(sharpness.full_space(loss, other, key, epsilon=[2 * e for e in EPSILONS]))
    spent |= {"second call": time.process_time() - begin, "compiled in it": compiled.count(COMPILED) - before}
    print(json.dumps(spent))


def _problem(path: str) -> Any:
    """The loss and the parameters."""
    import jax
    import numpy as np

    from gengap import models, objective

    arrays = jax.device_put(dict(np.load(path)))
    x, y = arrays.pop("x"), arrays.pop("y")
    params: dict[str, Any] = {}
    for name, leaf in arrays.items():
        layer, which = name.split("/")
        params.setdefault(layer, {})[which] = leaf
    widths = tuple(params[f"Dense_{i}"]["bias"].size for i in range(len(params) // 2))
    model = models.dense(10, widths=widths)
    return objective.over_dataset(model.apply, x, y), params


def pytorch(problem: str) -> None:
    """The same with SciPy's L-BFGS-B over PyTorch, 10 iterations."""
    import numpy as np
    import scipy.optimize
    import torch
    from torch.nn import functional as F

    arrays = {name: torch.from_numpy(a) for name, a in np.load(problem).items()}
    images, labels = arrays.pop("x").flatten(1).float() / 255, arrays.pop("y").long()
    shapes = {name: leaf.shape for name, leaf in arrays.items()}
    layers = len(shapes) // 4  # kernel, bias, scale and bias of each, and the last one without batch norm
    spent = {"imports": time.process_time()}

    def f(point: torch.Tensor) -> torch.Tensor:
        parts = zip(shapes.items(), point.split([shape.numel() for shape in shapes.values()]), strict=True)
        p = {name: part.reshape(shape) for (name, shape), part in parts}
        h = images
        for i in range(layers):
            h = h @ p[f"Dense_{i}/kernel"] + p[f"Dense_{i}/bias"]
            h = F.batch_norm(h, None, None, p[f"BatchNorm_{i}/scale"], p[f"BatchNorm_{i}/bias"], training=True)
            h = F.relu(h)
        return F.cross_entropy(h @ p[f"Dense_{layers}/kernel"] + p[f"Dense_{layers}/bias"], labels)

    def negative(point: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(point, dtype=torch.float32, requires_grad=True)
        value = f(at)
        value.backward()
        seen.append(value.item())
        return -value.item(), -at.grad.double().numpy()

    x = torch.cat([leaf.flatten() for leaf in arrays.values()]).double().numpy()
    values, gradients = [], 0
    for epsilon in EPSILONS:
        seen: list[float] = []
        radius = epsilon * (np.abs(x) + 1)
        bounds = scipy.optimize.Bounds(x - radius, x + radius)
        options = {"maxiter": 10, "ftol": 0.0, "gtol": 0.0}
        scipy.optimize.minimize(negative, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        values.append(100 * (max(seen) - seen[0]) / (1 + seen[0]))
        gradients += len(seen)
    spent |= {"loss": seen[0], "value": values[0], "gradients": gradients, "to the value": time.process_time()}
    print(json.dumps(spent))


if __name__ == "__main__":
    from benchmarks import common

    common.cli(main)
