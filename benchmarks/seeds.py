"""Seeds side by side: one after another in a compiled loop, or under one `vmap`?

    python -m benchmarks.seeds

Epochs of F1 on the digits for 5 seeds, compilation apart, interleaved; prints the ratio of the medians.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from gengap import data, models, objective, train


def main() -> None:
    ds = data.load("digits")
    model = models.f1(ds.num_classes)
    keys = jax.random.split(jax.random.key(0), 5)
    x0 = jax.vmap(lambda key: model.init(key, jnp.zeros(ds.x_train[:2].shape)))(keys)
    loss = objective.batch_loss(model.apply)

    def seconds(batch_size: int, at_once: int) -> float:
        begin = time.perf_counter()
        state, _ = train.fit(
            loss,
            train.start(x0, keys),
            ds.x_train,
            ds.y_train,
            batch_size=batch_size,
            epochs=2,
            patience=None,
            seeds_at_once=at_once,
        )
        jax.block_until_ready(state)
        return time.perf_counter() - begin

    for batch_size in (32, 144):
        times: dict[int, list[float]] = {1: [], 5: []}
        for round_ in range(6):
            for at_once, found in times.items():
                elapsed = seconds(batch_size, at_once)
                if round_:  # the first compiles
                    found.append(elapsed)
        ratio = statistics.median(times[5]) / statistics.median(times[1])
        print(f"{jax.devices()[0].device_kind}, batch {batch_size}: vmap / one by one = {ratio:.2f}")


if __name__ == "__main__":
    main()
