"""What eight devices make of data and parameters that are spread over them, as JSON; run by `test_devices`."""

import json
import os
import re
import sys
from functools import partial

# On a busy machine a device may wait long for the others; XLA ends the process after 40 s by default.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gengap import (
    flat,
    hessian,
    landscape,
    measures,
    methods,
    metric,
    models,
    objective,
    placement,
    sharpness,
    subspace,
    theories,
    train,
)

jax.config.update("jax_cpu_enable_async_dispatch", False)  # eight devices that wait for each other on few cores
KEY, N = jax.random.key(0), 800
MODEL = models.dense(10, widths=(64, 32))
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 48)).astype(np.float32), RNG.integers(0, 10, N)
SMALL, LARGE = (MODEL.init(jax.random.key(seed), jnp.asarray(X[:2])) for seed in (0, 1))
FEW = {"dim": 20, "num_draws": 2, "max_evaluations": 4, "num_directions": 1}

MEASURES = {
    "loss": lambda f, p, q: f(p),
    "gradient": lambda f, p, q: jax.jit(jax.grad(f))(p)["Dense_0"]["kernel"],
    "full space": lambda f, p, q: sharpness.full_space(f, p, KEY, max_evaluations=6).max_loss,
    "subspaces": lambda f, p, q: sharpness.random_subspaces(f, p, KEY, **FEW).max_loss,
    "eigenvalue": lambda f, p, q: hessian.eigenpairs(f, p, KEY, tolerance=1e-3).values,
    "trace": lambda f, p, q: hessian.trace(f, p, KEY, num_samples=2).value,
    "worst case": lambda f, p, q: measures.worst_case(f, p, KEY, max_evaluations=3),
    "average case": lambda f, p, q: f(p) + measures.average_case(f, p, KEY, num_samples=2).value,
    "distance": lambda f, p, q: measures.distance(p, q),
    "path": lambda f, p, q: landscape.along(f, landscape.linear(p, q), [0.0, 0.5]),
    "bits": lambda f, p, q: 1 + theories.description_length(f, p, KEY, examples=N, num_samples=2).rises[:8],
}


def loss_over(x, y, chunk):
    return objective.over_dataset(MODEL.apply, x, y, chunk=chunk)


def fsdp(mesh):
    """Every array spread along its last axis where that can be divided."""
    return jax.tree.map(
        lambda a: NamedSharding(mesh, P(*[None] * (a.ndim - 1), "data") if a.shape[-1] % 8 == 0 else P()), SMALL
    )


def collectives(text):
    """The type and the number of what each gathering operation of a program gathers."""
    found = re.findall(r"= \(?(\w+)\[([\d,]*)\]\S* (all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    return [[kind, int(np.prod([int(d) for d in shape.split(",") if d]))] for kind, shape, _ in found]


def reduced(text):
    """How many numbers the all-reduces of a program sum over the devices, those in a loop once."""
    types = re.findall(r"= (\(?[^=]*?) all-reduce(?:-start)?\(", re.sub(r"/\*.*?\*/", "", text))
    shapes = [shape for kind in types for shape in re.findall(r"f32\[([\d,]*)\]", kind)]
    return sum(int(np.prod([int(d) for d in shape.split(",") if d])) for shape in shapes)


def compiled(f, params):
    program = jax.jit(jax.value_and_grad(f)).lower(params).compile()
    text = program.as_text()
    return {"flops": program.cost_analysis()["flops"], "gathers": collectives(text), "reduced": reduced(text)}


def trained(x, y, params):
    loss = train.batch_loss(methods.PLAIN, MODEL.apply)
    _, history = train.fit(loss, train.start(params, KEY), x, y, batch_size=80, epochs=2, patience=None)
    return history["train_loss"].tolist()


def step_of(x, y, rows):
    sgd = train.sgd(0.1)
    step = train.training_step(train.batch_loss(methods.PLAIN, MODEL.apply), sgd, None, rows)
    state = train.start(SMALL, KEY, optimizer=sgd)
    batches, sums = train.epoch_of(N, 400, state.key, state.epoch)
    program = jax.jit(lambda *args: step(*args)).lower(state, sums, batches, x, y).compile()
    return {"flops": program.cost_analysis()["flops"], "gathers": collectives(program.as_text())}


def draws_of(mesh):
    """Eight draws at once, of parameters and data that every device has a copy of."""
    whole = NamedSharding(mesh, P())
    f, params = loss_over(*(jax.device_put(a, whole) for a in (X, Y)), 250), jax.device_put(SMALL, whole)
    eight = FEW | {"num_draws": 8, "draws_at_once": 8}
    return np.asarray(sharpness.random_subspaces(f, params, KEY, **eight).max_loss).tolist()


def step_of_draws(f, params, place=lambda keys: keys):
    """What evaluates eight draws at once."""
    f, x, _ = flat.of(f, params)
    draw = jax.jit(lambda keys: jax.vmap(lambda key: subspace.draw(key, len(x), 20))(keys))
    A = draw(place(jax.random.split(KEY, 8)))
    steps = place(jnp.full((8, 20), 1e-3))
    program = jax.jit(lambda x, A, y: metric.evaluate_at(f, x, A, y)).lower(x, A, steps).compile()
    return {"flops": program.cost_analysis()["flops"], "gathers": collectives(program.as_text())}


def step_of_spread_parameters(f, params):
    """What evaluates one draw, whose A follows the parameters."""
    f, x, _ = flat.of(f, params)
    A = subspace.draw(KEY, len(x), 20, spread=placement.parameters_of(params))
    program = jax.jit(lambda x, A, y: metric.evaluate_at(f, x, A, y)).lower(x, A, jnp.zeros(20)).compile()
    return {"gathers": collectives(program.as_text()), "entries": 20 * len(x), "tiles": list(A.tiles.shape)}


def main():
    found = {
        "flops": {},
        "values": {},
        "trained": {},
        "draws": {},
        "parameters": sum(a.size for a in jax.tree.leaves(SMALL)),
    }
    x, y = jnp.asarray(X), jnp.asarray(Y)
    one = loss_over(x, y, 250)  # chunks of 200
    found["values"]["one"] = {name: np.asarray(fn(one, SMALL, LARGE)).tolist() for name, fn in MEASURES.items()}
    found["trained"]["one"] = trained(x, y, SMALL)
    found["flops"]["one"] = {str(chunk): compiled(loss_over(x, y, chunk), SMALL) for chunk in (N, 80, 77)}
    found["step"] = {"one": step_of(x, y, None)}
    draws = sharpness.random_subspaces(one, SMALL, KEY, **FEW | {"num_draws": 8}).max_loss
    found["draws"] = {"one": np.asarray(draws).tolist(), "step of one": step_of_draws(one, SMALL)}
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        rows, replicated = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        x, y = jax.device_put(X, rows), jax.device_put(Y, rows)
        f, params, other = loss_over(x, y, 250), *(jax.device_put(p, fsdp(mesh)) for p in (SMALL, LARGE))
        values = {name: np.asarray(fn(f, params, other)).tolist() for name, fn in MEASURES.items()}
        found["values"][kind.name] = values
        found["trained"][kind.name] = trained(x, y, jax.device_put(SMALL, replicated))
        found["flops"][kind.name] = {
            str(chunk): compiled(loss_over(x, y, chunk), jax.device_put(SMALL, replicated))
            for chunk in (N, 80, 77)
        }
        found["draws"][kind.name] = draws_of(mesh)
        if kind is AxisType.Auto:
            everywhere = loss_over(*(jax.device_put(a, replicated) for a in (X, Y)), 250)
            whole = jax.device_put(SMALL, replicated)
            found["draws"]["step"] = step_of_draws(everywhere, whole, partial(jax.device_put, device=rows))
            found["draws"]["spread"] = step_of_spread_parameters(everywhere, params)
            found["step"]["eight"] = step_of(x, y, placement.rows_of([x]))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
