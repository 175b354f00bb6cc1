"""All that needs a GPU or TPU, the most telling first: rates, ratios, errors, and Tables 2 to 4.

    make accelerator ARGS="--minutes 25"
    make accelerator ARGS="--toy"

A line of the table at the end is one measurement. Its row is written to `rows.jsonl` as soon as it is known, and
it is not measured again: a second call goes on, or only prints the table. A group of lines is a process of its
own, with a log beside the rows: its peak memory is its own, and what ends it ends no other. Shares and ratios are
of medians in one process, measured in turn, without compilation. A precision is that of
`jax.default_matmul_precision`, and a share is of the rate of a product of matrices under the same setting. Where
JAX is asked for "bfloat16" on a GPU it may take TF32, hence the product of bfloat16 arrays. What could not be
measured, for want of a data set or of PyTorch, has a line that says so, and is tried again with `--retry` only.
"""

import contextlib
import importlib.util
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from tabulate import tabulate

from benchmarks import common, flops, precision
from experiments import cifar, digits, mnist
from experiments.lib import command, settings
from experiments.lib.settings import Training
from gengap import ascent, models, objective, records, report, sharpness
from gengap.comparison import Metric

OUT = Path("results/accelerator")
SECONDS = 480  # the most for a line, but for those of the tables, whose experiments go on by themselves
DATASETS = {"c1": "cifar10", "c2": "cifar10", "c3": "cifar100", "c4": "cifar100", "f1": "mnist"}
Line = Callable[[], records.Row]


class Size(NamedTuple):
    """Of what is measured."""

    side: int = 16384
    train_size: int = 50_000
    batch_size: int = 256
    chunk: int = 5000
    dim: int = flops.DIM
    draws: int = 64
    at_once: int = 16
    examples: int = 1000  # of the comparisons with SciPy and with float64
    epochs: int = 100
    rounds: int = 3
    training: Mapping[str, Any] = {}  # what the tables have in place of their defaults
    tables: Mapping[str, Any] = {}


# Its networks are one layer of eight units on the digits, see `_small_networks`.
TOY = Size(
    *(64, 24, 8, 12, 2, 3, 2, 40, 1, 1),
    training={"dataset": "digits", "train_size": 40, "epochs": 1, "num_seeds": 1},
    tables={"epsilons": (1e-3,), "dim": 2, "num_draws": 1, "max_evaluations": 1, "num_directions": 0},
)


def main(
    out: Path | None = None,
    minutes: float | None = None,
    toy: bool = False,
    retry: bool = False,
    data_dir: Path | None = None,
) -> None:
    """Measure what `out` does not hold yet, and print the table.

    Args:
      out: the directory of the rows, the logs, the minima and the tables' experiments; by default
        results/accelerator, and toy in it for a toy.
      minutes: stop after so many, within a line too; the next call goes on.
      toy: everything at a size that ends in minutes on a CPU.
      retry: measure again what could not be measured.
      data_dir: the TFDS directory; by default TFDS_DATA_DIR, then ~/tensorflow_datasets.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise ValueError(f"--minutes is {minutes}; it must be a finite number above 0")
    end = time.monotonic() + 60 * (minutes or math.inf)
    out = out or (OUT / "toy" if toy else OUT)
    groups = lines(out, toy, data_dir)
    try:
        for names in [list(groups)] if toy else [[group] for group in groups]:
            asked = {line for group in names for line in groups[group]}
            if asked <= _done(_rows(out, toy), retry) or (left := end - time.monotonic()) <= 0:
                continue
            sys.stderr.write(f"{', '.join(names)} ...\n")
            log = out / f"{names[0].lower().replace(' ', '-').replace(',', '')}.log"
            if code := _in_a_process(names, left, log, out=out, toy=toy, retry=retry, data_dir=data_dir):
                sys.stderr.write(f"It ended with exit code {code}; see {log}\n")
    finally:
        print(table(groups, _rows(out, toy)), flush=True)


def lines(out: Path, toy: bool, data_dir: Path | None) -> dict[str, dict[str, Line]]:
    """Each group with the names of its lines and what measures them."""
    size, precisions = TOY if toy else Size(), precision.PRECISIONS
    products = {f"a product, {p}": partial(product, size, p) for p in precisions}
    products["a product of bfloat16 arrays"] = partial(product, size, "bfloat16", jnp.bfloat16)
    groups: dict[str, dict[str, Line]] = {"Products": products}
    for network in ("c1", "c2"):
        for what in (training, gradient):
            group = f"{network.upper()} {what.__name__}"
            groups[group] = {f"{group}, {p}": partial(what, size, network, p) for p in precisions}
    minima = {network: "digits" if toy or network == "f1" else DATASETS[network] for network in ("f1", "c1")}
    of_minimum = {"epochs": size.epochs, "store": out / "minima", "data_dir": data_dir}
    for network, dataset in minima.items():
        group = f"{network.upper()} {size.draws} subspaces"
        of_group = partial(subspaces, size, network, dataset, of_minimum)
        groups[group] = {f"{group}, {n} at once": partial(of_group, n) for n in (size.at_once, 1)}
    for p in ("tensorfloat32", "float32"):
        ratios = cache(partial(_beside_pytorch, size, p))
        group = f"C1 beside PyTorch, {p}"
        groups[group] = {f"{group}, {part}": partial(_part, ratios, part) for part in ("an epoch", "sharpness")}
    for network, dataset in minima.items():
        measure_errors = partial(precision.main, network, dataset, examples=size.examples, dim=size.dim)
        errors = cache(partial(measure_errors, **of_minimum))
        group = f"{network.upper()} beside float64"
        cells = [(space, p) for space in ("full", "random") for p in precisions]
        groups[group] = {f"{group}, {space}, {p}": partial(_error, errors, space, p) for space, p in cells}
    for num_seeds, num_draws in ((1, 2), (5, 10)):
        for network in DATASETS:
            group = f"Tables 2 to 4 of {network.upper()}, {num_seeds} seeds"
            groups[group] = {group: partial(paper_tables, size, network, num_seeds, num_draws, out, data_dir)}
    return groups


def product(size: Size, setting: str, dtype: Any = float) -> records.Row:
    """The rate of a product of two square matrices."""
    return _rate(size, setting, dtype=dtype)["product"] | {"unit": "TFLOP/s"}


def training(size: Size, network: str, setting: str) -> records.Row:
    """An epoch of training on random images."""
    _, _, _, state, epoch = common.training(network, size.train_size, size.batch_size)
    steps = -(-size.train_size // size.batch_size)
    operations = steps * size.batch_size * flops.count(network).gradient
    return _share(_rate(size, setting, partial(epoch, state), operations)) | {"steps": steps}


def gradient(size: Size, network: str, setting: str) -> records.Row:
    """An evaluation of the sharpness in a random subspace: the loss over all images at x + A y, with gradient."""
    model, x, y, state, _ = common.training(network, size.train_size, size.batch_size)
    f = objective.over_dataset(model.apply, x, y, chunk=size.chunk)
    evaluate, radius = precision.problem(f, state.params, size.dim)
    count = flops.count(network)
    operations = size.train_size * count.gradient + 4 * size.dim * count.parameters
    return _share(_rate(size, setting, partial(evaluate, 1e-3 * radius, precision=setting), operations))


def _rate(
    size: Size, setting: str, call: Callable | None = None, operations: float = 0, dtype: Any = float
) -> dict[str, records.Row]:
    """TFLOP/s of a product of matrices and, in turn with it, of a call of so many operations."""
    a, b = jax.random.normal(jax.random.key(0), (2, size.side, size.side), dtype)
    calls = {"product": partial(jax.jit(jnp.matmul), a, b)} | ({"own": call} if call else {})
    counts = {"product": 2 * size.side**3 / 1e12, "own": operations / 1e12}
    with jax.default_matmul_precision(setting):
        seconds = common.in_turn(calls, size.rounds)
    return {n: {"value": counts[n] / s["median"], "TFLOP": counts[n], "seconds": s} for n, s in seconds.items()}


def _share(rows: Mapping[str, records.Row]) -> records.Row:
    rates = {"TFLOP/s": rows["own"]["value"], "product, TFLOP/s": rows["product"]["value"]}
    share = rates["TFLOP/s"] / rates["product, TFLOP/s"]
    return rows["own"] | rates | {"value": share, "unit": "of the product's rate"}


def subspaces(size: Size, network: str, dataset: str, of_minimum: Mapping[str, Any], at_once: int) -> records.Row:
    """Sharpness of an LB minimum in many subspaces, 12 gradients each, beside SciPy's 10 iterations in each."""
    model, ds, params = precision.minimum(network, dataset, "LB", size.examples, **of_minimum)
    loss, key = objective.over_dataset(model.apply, ds.x_train, ds.y_train), jax.random.key(0)

    def theirs() -> list[ascent.Maximum]:
        maxima = []
        for draw_key in sharpness.draw_keys(key, size.draws):
            evaluate, radius = precision.problem(loss, params, size.dim, draw_key)
            maxima.append(ascent.scipy_lbfgsb(evaluate, 1e-3 * radius, 0 * radius))
        return maxima

    def here() -> sharpness.SubspaceSharpness:
        return sharpness.random_subspaces(
            *(loss, params, key),
            dim=size.dim,
            num_draws=size.draws,
            max_evaluations=12,
            draws_at_once=at_once,
        )

    seconds = common.in_turn({"SciPy": theirs, "here": here}, size.rounds)
    tops, ours = theirs(), here()
    base = float(ours.base_loss[0])
    values = [precision.phi(float(top.value), base) for top in tops]
    spent = [int(top.evaluations) for top in tops]
    ratio = seconds["SciPy"]["median"] / seconds["here"]["median"]
    return {
        "value": ratio,
        "unit": "seconds SciPy / here",
        "seconds": seconds,
        "mean value": {"SciPy": sum(values) / size.draws, "here": float(ours.mean)},
        "gradients": {"SciPy": sum(spent), "here": int(ours.evaluations.sum() + ours.shared_evaluations[0])},
    }


def _beside_pytorch(size: Size, setting: str) -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("PyTorch is not installed")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes the memory before PyTorch can
    from benchmarks import pytorch

    return pytorch.main(
        setting,  # type: ignore[arg-type]
        train_size=size.train_size,
        batch_size=size.batch_size,
        chunk=size.chunk,
        dim=size.dim,
        rounds=size.rounds,
    )


def _part(measured: Callable[[], Mapping[str, Any]], part: str) -> records.Row:
    return measured()[part] | {"value": measured()[part]["JAX / PyTorch"], "unit": "seconds JAX / PyTorch"}


def _error(errors: Callable[[], list[records.Row]], space: str, setting: str) -> records.Row:
    row = next(row for row in errors() if (row["space"], row["precision"]) == (space, setting))
    return {"value": row["error of the arithmetic"], "unit": "relative error", "sharpness": row}


def paper_tables(
    size: Size, network: str, num_seeds: int, num_draws: int, out: Path, data_dir: Path | None
) -> records.Row:
    """Tables 2 to 4 by the experiment for the data set, whose own report has the numbers."""
    experiment = mnist if network == "f1" else cifar
    name = experiment.__name__.rsplit(".", 1)[-1]
    asked = {"dataset": DATASETS[network], "network": network, "num_seeds": num_seeds, **size.training}
    metric = {"num_draws": num_draws, "precision": "tensorfloat32", **size.tables}
    config = digits.Config(Training()._replace(**asked), Metric()._replace(**metric))
    where = out / name / f"{network}-{num_seeds}-seeds"
    if data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = str(data_dir)
    run = experiment.run(config, where)
    report.write(name, experiment.figures(run.rows), run, where)
    return {"value": len(run.rows), "unit": f"minima, in {where.relative_to(out)}/report.html"}


def measure(names: Sequence[str], out: Path, toy: bool, retry: bool, data_dir: Path | None) -> None:
    """Measure the lines of groups that `out` does not hold yet."""
    groups = lines(out, toy, data_dir)
    opened = records.opened("accelerator", {"toy": toy}, out)
    with _small_networks() if toy else contextlib.nullcontext(), opened as run:
        done = _done(run.rows, retry)
        for group in names:
            seconds = 0 if group.startswith("Tables") else SECONDS
            for name in [name for name in groups[group] if name not in done]:
                run.add({"name": name, **_measured(groups[group][name], seconds)})


def _measured(line: Line, seconds: int) -> records.Row:
    """The row of a line, or one that says why there is none."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        row = line()
    except Exception as error:
        traceback.print_exc()
        row = {"value": None, "unit": " ".join(str(error).split())[:300] or type(error).__name__}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return row | {"peak_bytes": common.peak_bytes()}


@contextlib.contextmanager
def _small_networks() -> Iterator[None]:
    def small(num_classes: int = 10) -> models.Model:
        return models.dense(num_classes, widths=(8,))

    networks = dict.fromkeys(settings.NETWORKS, small)
    with (
        mock.patch.multiple(models, **dict.fromkeys(DATASETS, small)),
        mock.patch.dict(settings.NETWORKS, networks),
    ):
        yield


def _in_a_process(names: Sequence[str], seconds: float, log: Path, **how: Any) -> int:
    """The exit code of `measure` in a process that ends with this one; 0 where its time was over."""
    code = f"from pathlib import *; from benchmarks import accelerator; accelerator._alone({names!r}, **{how!r})"
    command_line = [sys.executable, "-c", code]
    with (
        open(log, "a", encoding="utf-8") as file,
        subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=file, stderr=file) as child,
    ):
        try:
            return child.wait(None if seconds == math.inf else seconds)
        except subprocess.TimeoutExpired:
            return 0
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(20)
                child.kill()


def _alone(names: Sequence[str], **how: Any) -> None:
    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    command.cache_compilations()
    measure(names, **how)


def _rows(out: Path, toy: bool) -> list[records.Row]:
    with records.opened("accelerator", {"toy": toy}, out) as run:
        return run.rows


def _done(rows: list[records.Row], retry: bool) -> set[str]:
    return {row["name"] for row in rows if not retry or row["value"] is not None}


def table(groups: Mapping[str, Mapping[str, Line]], rows: list[records.Row]) -> str:
    """A line for each measurement: what, value, unit, peak memory of its process so far in GB, device."""
    body = {name: (name, "-", "not measured yet", "", "") for own in groups.values() for name in own}
    for row in rows:
        value = "-" if row["value"] is None else f"{row['value']:.4g}"
        memory, device = f"{row['peak_bytes'] / 1e9:.2f}", row["origin"]["device"]
        body[row["name"]] = (row["name"], value, shorten(row["unit"], 60), memory, device)
    heads = ("what", "value", "unit", "peak GB", "device")
    return tabulate(
        body.values(), heads, disable_numparse=True, colalign=("left", "right", "left", "right", "left")
    )


if __name__ == "__main__":
    common.cli(main)
