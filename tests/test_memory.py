"""Where memory runs out: fewer draws at once, the same numbers, one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gengap import ascent, memory, placement, sharpness

KEY, X = jax.random.key(0), jnp.linspace(-1.0, 1.0, 12)


def loss(x):
    return (x**2).sum() + jnp.sin(3 * x).sum() + 5


def ran_out():
    """As a GPU says it."""
    return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 35.42GiB.")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(memory, "_fitted", {})


def groups(total, at_once, fits, *, least=1, asked=None):
    """The groups that succeeded; `asked` collects those that were tried."""

    def work(first, count):
        if asked is not None:
            asked.append(count)
        if count > fits:
            raise ran_out()
        return first, count

    return memory.in_groups(work, total, at_once, least=least, kind="work")


def test_groups_are_halved_until_they_fit_and_that_is_said_once(capsys):
    assert groups(10, 10, fits=3) == [(0, 2), (2, 2), (4, 2), (6, 2), (8, 2)]
    said = capsys.readouterr().err
    assert said == "Memory does not hold 10 draws at once; 2 are taken. The numbers stay the same.\n"


def test_what_fitted_before_is_what_work_of_the_same_kind_begins_with(capsys):
    groups(10, 10, fits=3)
    capsys.readouterr()
    asked = []
    groups(10, 10, fits=3, asked=asked)
    assert set(asked) == {2} and capsys.readouterr().err == ""


def test_groups_are_multiples_of_the_devices():
    assert groups(24, 24, fits=9, least=8) == [(0, 8), (8, 8), (16, 8)]
    with pytest.raises(jax.errors.JaxRuntimeError):
        groups(24, 24, fits=7, least=8)


def test_where_one_does_not_fit_the_error_of_the_device_is_raised():
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        groups(4, 4, fits=0)


def test_another_error_is_not_taken_for_it():
    def work(first, count):
        raise jax.errors.JaxRuntimeError("INTERNAL: of another kind")

    with pytest.raises(jax.errors.JaxRuntimeError, match="another kind"):
        memory.in_groups(work, 4, 4, least=1, kind="other")


@pytest.mark.parametrize("fits", [1, 3, 8])
def test_draws_where_memory_runs_out_are_the_same(monkeypatch, fits, capsys):
    few = {"dim": 3, "num_draws": 6, "max_evaluations": 4, "num_directions": 1, "with_step": True}
    expected = sharpness.random_subspaces(loss, X, KEY, **few)
    maximise, at_once = ascent.maximise, []

    def with_little_memory(evaluate, radius, *args, **known):
        at_once.append(len(radius) if radius.ndim == 2 else 1)
        if at_once[-1] > fits:
            raise ran_out()
        return maximise(evaluate, radius, *args, **known)

    monkeypatch.setattr(ascent, "maximise", lambda evaluate, **known: with_little_memory(evaluate, **known))
    monkeypatch.setattr(placement, "on_accelerator", lambda array: True)  # where all are taken at once
    found = sharpness.random_subspaces(loss, X, KEY, **few)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
    np.testing.assert_allclose(found.step, expected.step, rtol=1e-4, atol=1e-6)
    assert at_once[0] == 6 and set(at_once[-2:]) == {min(fits, 6)}
    assert ("Memory" in capsys.readouterr().err) == (fits < 6)


def test_on_a_cpu_one_draw_is_taken_at_a_time(monkeypatch):
    maximise, shapes = ascent.maximise, []
    monkeypatch.setattr(
        ascent,
        "maximise",
        lambda evaluate, **known: shapes.append(known["radius"].ndim) or maximise(evaluate, **known),
    )
    sharpness.random_subspaces(loss, X, KEY, dim=3, num_draws=2, max_evaluations=3, num_directions=1)
    assert shapes == [1, 1]
