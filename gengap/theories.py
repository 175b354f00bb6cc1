"""Why flat minima should be good: the description length, the evidence and the free energy of a minimum.

Keskar et al. (2016) name these three reasons where they define flat and sharp minima. Each measure takes a loss f,
the mean over N examples in nats, and params, the point x. None can be traced.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float, Key, PyTree

from gengap import checks, flat, lanczos, program, words
from gengap import progress as shown
from gengap.hessian import Loss

__all__ = ["DescriptionLength", "Evidence", "FreeEnergy", "description_length", "evidence", "free_energy"]


class DescriptionLength(NamedTuple):
    """How few bits describe a minimum.

    Attributes:
      value, sem: bits per parameter at which the loss rises by `rise`, and the standard error, shaped like `rise`.
      total, total_sem: the least sum of the bits of the data given the network and of the network, and its error.
      best: bits per parameter at that least sum.
      bits, rises: the bits per parameter that were tried, and the mean rise of the loss for each.
      gradients: the cost in gradients; a value counts as half.
    """

    value: float | np.ndarray
    sem: float | np.ndarray
    total: float
    total_sem: float
    best: float
    bits: Float[np.ndarray, " levels"]
    rises: Float[np.ndarray, " levels"]
    gradients: int

    def __repr__(self) -> str:
        return words.in_one_line(self)


class Evidence(NamedTuple):
    """The log evidence per example, in nats, and its parts, each shaped like `prior`.

    Attributes:
      value, sem: ln p(data) / N = fit - penalty - occam, and the standard error, that of the trace in `occam`.
      fit, penalty: -f(x), and alpha |x|^2 / 2 N.
      occam: the Occam factor, 1/2 tr ln(1 + N H / alpha) / N.
      prior: alpha, the precision.
      determined: tr N H (N H + alpha)^-1, how many parameters the data determine.
      negative: the share of tr |H| from negative eigenvalues, as far as the products resolve those near 0.
      converged: whether neither the last eighth nor the last quarter of the products moves it by more than 3 sem
        and 5 % of the Occam factor.
      gradients: the cost in gradients.
    """

    value: float | np.ndarray
    sem: float | np.ndarray
    fit: float | np.ndarray
    penalty: float | np.ndarray
    occam: float | np.ndarray
    prior: float | np.ndarray
    determined: float | np.ndarray
    negative: float | np.ndarray
    converged: bool | np.ndarray
    gradients: int | np.ndarray

    def __repr__(self) -> str:
        return words.in_one_line(self)


class FreeEnergy(NamedTuple):
    """A local free energy, in nats.

    Attributes:
      value, sem: its estimate, and the standard error over the chains.
      up, down: the mean work from the prior to the posterior, and back; the value lies between them.
      converged: whether `up` and `down` differ by at most 6 nats or a tenth of the value; else do not trust `sem`.
      gradients: the cost in gradients; a value counts as half.
    """

    value: float
    sem: float
    up: float
    down: float
    converged: bool
    gradients: int

    def __repr__(self) -> str:
        return words.in_one_line(self)


def description_length(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    examples: int,
    rise: float | Sequence[float] = 0.01,
    num_samples: int = 8,
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> DescriptionLength:
    r"""The fewest bits per parameter at which the mean loss rises by at most `rise`, and the total length in bits.

    With b bits each leaf is rounded to steps of its range times $2^{-b}$, with a random offset for each parameter.
    The error is uniform: for steps $d_i$ a quadratic f rises by $\sum_i h_i d_i^2 / 24$ on average. The total is
    $N (f + \text{rise}) / \ln 2 + n b$ for n parameters, without the bits that describe the grid.

    Args:
      loss: `params -> f`; or the error, for which `total` means nothing.
      params: x.
      key: random key for the offsets, which are the same for every number of bits.
      examples: N.
      rise: how far f may rise; several values cost no more than one.
      num_samples: offsets, at least 2.
      only: which leaves to round, by their name such as "Dense_0/kernel"; n counts only these.
      progress: as in `sharpness.full_space`.

    Returns:
      NaN, with a RuntimeWarning, if f(x) is not finite. Another RuntimeWarning says if `value` is only a bound.

    Reference: Hinton and van Camp, "Keeping Neural Networks Simple", 1993; Hochreiter and Schmidhuber, "Flat
    Minima", 1997.
    """
    keys = checks.sample_keys(key, num_samples)
    checks.check_counts({"examples": examples})
    for each in np.atleast_1d(rise).tolist() or [rise]:
        checks.check_positive({"rise": each})
    f, x, layout = flat.of(loss, params, only=only)
    checks.check_untraced("description_length", key, x, base := program.compiled(f)(x))
    rounded, spread = program.compiled(partial(_rounded, f)), layout.ranges(x)
    bits = np.arange(1, 16.5, 0.5)
    at_key = lambda key: [rounded(x, jax.random.clone(key), spread * 2.0**-b) for b in bits.tolist()]  # noqa: E731
    losses = shown.each(at_key, keys, progress, "description length")
    rises = np.asarray(jax.device_get(losses), float) - float(base)
    gradients = -(-(1 + rises.size) // 2)
    mean, sem = rises.mean(0), rises.std(0, ddof=1) / math.sqrt(num_samples)
    if not np.isfinite(checks.warn_not_finite(base)):
        lost = np.full(np.shape(rise), math.nan)[()]
        return DescriptionLength(lost, lost, math.nan, math.nan, math.nan, bits, mean, gradients)
    logs = np.log(np.clip(np.nan_to_num(mean, nan=np.inf), 1e-6 * np.min(rise), 1e6 * np.max(rise)))  # near linear
    logs, log_rise = np.maximum.accumulate(logs[::-1])[::-1], np.log(rise)
    value = np.interp(log_rise, logs[::-1], bits[::-1])
    if np.any((log_rise < logs[-1]) | (log_rise > logs[0])):
        checks.warn(f"no number of bits from 1 to 16 makes the loss rise by {rise}; the value is a bound")
    slope = (np.interp(value - 0.25, bits, logs) - np.interp(value + 0.25, bits, logs)) / 0.5
    value_sem = np.interp(value, bits, sem) / (np.asarray(rise) * np.where(slope > 0, slope, math.nan))
    fine = np.linspace(1, 16, 1024)
    lengths = examples * (float(base) + np.exp(np.interp(fine, bits, logs))) / math.log(2) + len(x) * fine
    best = float(fine[lengths.argmin()])
    total_sem = examples * float(np.interp(best, bits, sem)) / math.log(2)
    return DescriptionLength(value, value_sem, float(lengths.min()), total_sem, best, bits, mean, gradients)


def evidence(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    examples: int,
    prior: float | Sequence[float | None] | None = None,
    num_samples: int = 8,
    num_products: int = 20,
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> Evidence:
    r"""Laplace's approximation of $\ln p(\text{data}) / N$ with the prior $N(0, 1 / \alpha)$ on each parameter.

    $-f(x) - \frac{\alpha}{2 N} |x|^2 - \frac{1}{2 N} \mathrm{tr} \ln(1 + N H / \alpha)$, which assumes that x is a
    minimum of $N f + \alpha |x|^2 / 2$. For linear regression it is exact at that minimum. A negative eigenvalue
    counts down to $-\alpha / 2 N$, where the posterior is half as precise as the prior, and no further. To count
    it as 0 would put a kink where most eigenvalues of a network are, which no quadrature resolves.

    Args:
      loss: `params -> f`, the mean negative log likelihood.
      params: x.
      key: random key for the starts.
      examples: N.
      prior: the precision $\alpha$; by default the one with the most evidence, MacKay's fixed point
        $\alpha = \gamma / |x|^2$, with $\gamma = \mathrm{tr}\, N H (N H + \alpha)^{-1}$ over the positive
        eigenvalues. Several values cost no more than one.
      num_samples: random starts of stochastic Lanczos quadrature, at least 2.
      num_products: products with the Hessian for each start.
      only: which leaves have the prior, by their name such as "Dense_0/kernel"; the others are taken as known.
      progress: as in `description_length`.

    Returns:
      The evidence; NaN, with a RuntimeWarning, if the loss is not finite, or if no prior is given and the loss has
      no positive curvature.

    Reference: MacKay, "A Practical Bayesian Framework for Backpropagation Networks", 1992; Smith and Le, "A
    Bayesian Perspective on Generalization and Stochastic Gradient Descent", 2018.
    """
    keys = checks.sample_keys(key, num_samples)
    checks.check_counts({"examples": examples, "num_products": num_products})
    several: Sequence[Any] = prior if isinstance(prior, Sequence) else [prior]
    for each in several or [prior]:
        checks.check_positive({"prior": 1 if each is None else each})
    f, x, _ = flat.of(loss, params, only=only)
    checks.check_untraced("evidence", key, x, base := program.compiled(f)(x))
    times, square = lanczos.product(f), float(flat.unit(x)[0]) ** 2
    of_start = lambda key: lanczos.tridiagonal(times, x, key, num_products)  # noqa: E731
    spectra = shown.each(of_start, keys, progress, "evidence", "start")

    def with_share(share: float) -> list[tuple[np.ndarray, np.ndarray]]:
        sizes = [math.ceil(share * len(T)) for T in spectra]
        return [lanczos.rule(T[:m, :m]) for T, m in zip(spectra, sizes, strict=True)]

    rules = [with_share(share) for share in (6 / 8, 7 / 8, 1)]  # of the products

    def of(prior: float | None) -> Evidence:
        found, fit = [_laplace(each, len(x), square, examples, prior) for each in rules], -float(base)
        values = [fit - alpha * square / (2 * examples) - float(occam.mean()) for alpha, occam, *_ in found]
        alpha, occam, determined, negative = found[-1]
        penalty, sem = alpha * square / (2 * examples), float(occam.std(ddof=1) / math.sqrt(num_samples))
        value, moved = values[-1], max(abs(values[-1] - fewer) for fewer in values[:-1])
        converged = bool(moved <= max(3 * sem, 0.05 * abs(occam.mean())))
        if np.isfinite(checks.warn_not_finite(jnp.asarray(value))) and not converged:
            checks.warn(
                f"the last quarter of the products moves the evidence by {moved:.3g}; give it more products"
            )
        rest = alpha, determined, negative, converged, 2 * sum(map(len, spectra)) + 1
        return Evidence(value, sem, fit, penalty, float(occam.mean()), *rest)

    found = [of(each) for each in several]
    return Evidence(*map(np.array, zip(*found, strict=True))) if several is prior else found[0]


def free_energy(
    loss: Loss,
    params: PyTree,
    key: Key[Array, ""],
    *,
    width: float,
    examples: int,
    num_chains: int = 8,
    num_steps: int = 150,
    only: flat.Only | None = None,
    progress: str | None = "auto",
) -> FreeEnergy:
    r"""$-\ln E_d \exp(-N (f(x + d) - f(x)))$ for $d \sim N(0, \mathrm{width}^2)$: minus the local entropy.

    Thermodynamic integration: chains of the preconditioned Crank-Nicolson sampler, which needs no gradients, go
    from the prior to the posterior and back. Bennett's acceptance ratio gives the value from the work both ways.
    The steps needed do not depend on n, but grow with the eigenvalues of $N\, \mathrm{width}^2 H$ above 1.

    Args:
      loss, params: `params -> f`, and x.
      key: random key for the chains.
      width: standard deviation of d, for each parameter.
      examples: N.
      num_chains: chains, at least 2.
      num_steps: steps of each chain, each way.
      only: which leaves to move, by their name such as "Dense_0/kernel"; the others stay.
      progress: as in `description_length`.

    Returns:
      The free energy. A RuntimeWarning says if it has not converged: give it more steps, or a smaller width.

    Reference: Chaudhari et al., "Entropy-SGD", 2017; Cotter et al., "MCMC Methods for Functions", 2013; Neal,
    "Annealed Importance Sampling", 2001; Bennett, "Efficient Estimation of Free Energy Differences", 1976.
    """
    keys = checks.sample_keys(key, num_chains)
    checks.check_positive({"width": width})
    checks.check_counts({"examples": examples})
    checks.check_counts({"num_steps": num_steps}, 10)
    f, x, layout = flat.of(loss, params, only=only)
    checks.check_untraced("free_energy", key, x, base := program.compiled(f)(x))
    flat.warn_rounded(layout, x, width * jnp.ones_like(x))
    step, evaluations = program.compiled(partial(_crank_nicolson, f)), 1
    begun = jnp.zeros_like(x), jnp.zeros_like(base), jnp.array(True)

    def lead(state: tuple, betas: np.ndarray, sizes: np.ndarray) -> tuple[tuple, np.ndarray]:
        """The last state of a chain, and N (f(x + d) - f(x)) after each of its steps."""
        nonlocal evaluations
        evaluations, energies = evaluations + len(betas), []
        for beta, size in zip(betas, sizes, strict=True):
            state = step(state, x, base, *map(np.float32, (examples, width, beta, size)))
            energies.append(state[1])
        return state, np.asarray(jax.device_get(energies), float)

    total = 20 + num_steps + num_chains * (2 * num_steps + num_steps // 2)
    with shown.of_measure(progress, "free energy", total, "step") as line:
        step = line.counting(step)
        state, energies = lead((*begun, flat.key_for(key, "pilot")), np.zeros(20), np.ones(20))
        spread = np.std(energies[np.isfinite(energies)]) if np.isfinite(energies).any() else math.nan
        if not np.isfinite(checks.warn_not_finite(base + spread)):
            return FreeEnergy(math.nan, math.nan, math.nan, math.nan, False, -(-evaluations // 2))
        logs, sizes = np.linspace(math.log(min(0.5, 0.3 / max(spread, 1e-9))), 0, num_steps), np.ones(num_steps)
        for i, beta in enumerate(np.exp(logs)):
            state, _ = lead(state, beta[None], sizes[i : i + 1])
            sizes[i + 1 :] = min(1, sizes[i] * math.exp(0.5 * (float(state[2]) - 0.3)))
        time = np.cumsum(sizes**-2)  # go slower where the chain relaxes slower
        time = (time - time[0]) / (time[-1] - time[0]) + np.linspace(0, 1, num_steps)
        logs, sizes = (np.interp(np.linspace(0, 2, num_steps + 1), time, v) for v in (logs, sizes))
        betas, sizes, works = np.append(0, np.exp(logs)), np.append(1, sizes), np.zeros((2, num_chains))
        for i, key in enumerate(keys):
            state, energies = lead((*begun, key), betas[:-1], sizes[:-1])
            works[0, i] = np.diff(betas) @ energies
            state, _ = lead(state, np.ones(num_steps // 2), np.full(num_steps // 2, sizes[-1]))
            state, energies = lead(state, betas[:0:-1], sizes[:0:-1])
            works[1, i] = np.diff(betas) @ energies[::-1]
    value, (up, down) = _bennett(works), works.mean(1).tolist()
    left_out = [_bennett(np.delete(works, i, 1)) for i in range(num_chains)]
    converged = up - down <= max(6.0, 0.1 * abs(value))
    if not converged:
        checks.warn(f"the free energy has not converged: work {up:.4g} up, {down:.4g} down; give it more steps")
    sem = math.sqrt(num_chains - 1) * float(np.std(left_out))  # jackknife
    return FreeEnergy(value, sem, up, down, converged, -(-evaluations // 2))


def _laplace(
    rules: list, n: int, square: float, examples: int, prior: float | None
) -> tuple[float, np.ndarray, float, float]:
    """The precision of the prior, the Occam factor for each rule, `determined` and `negative`."""

    def trace(g: Callable) -> np.ndarray:
        return n * np.array([weights @ g(nodes) for nodes, weights in rules])

    def determined(alpha: float, least: float = 0.0) -> float:
        return float(trace(lambda h: 1 - 1 / (1 + np.maximum(examples * h / alpha, least))).mean())

    alpha = math.nan if prior is None else float(prior)
    if prior is None and square > 0 and determined(most := n / square) > 0:
        excess = lambda log: log + math.log(most * square / determined(most * math.exp(log)))  # noqa: E731
        alpha = most * math.exp(scipy.optimize.brentq(excess, -60, 0))
    occam = trace(lambda h: np.log1p(np.maximum(examples * h / alpha, -0.5))) / (2 * examples)
    below, whole = trace(lambda h: np.maximum(-h, 0)).sum(), trace(np.abs).sum()
    return alpha, occam, determined(alpha, -0.5), float(below / whole) if whole else 0.0


def _rounded(f: Callable, x: Array, key: Key[Array, ""], step: Array) -> Array:
    """f at x rounded to grids of these steps, with random offsets."""
    offset = jax.random.uniform(key, x.shape, x.dtype) - 0.5
    safe = jnp.where(step > 0, step, 1)
    return f(jnp.where(step > 0, safe * (jnp.round(x / safe + offset) - offset), x))


def _crank_nicolson(
    f: Callable, state: tuple, x: Array, base: Array, examples: Array, width: Array, beta: Array, size: Array
) -> tuple:
    """A step from (d, energy, accepted, key); the target is exp(-beta N (f(x + d) - f(x))) times the prior."""
    d, energy, _, key = state
    key, of_noise, of_choice = jax.random.split(key, 3)
    new = jnp.sqrt(1 - size**2) * d + size * width * jax.random.normal(of_noise, x.shape, x.dtype)
    proposed = examples * (f(x + new) - base)
    proposed = jnp.where(jnp.isnan(proposed), jnp.inf, proposed)
    takes = (beta == 0) | (jnp.log(jax.random.uniform(of_choice)) < beta * (energy - proposed))
    return jnp.where(takes, new, d), jnp.where(takes, proposed, energy), takes, key


def _bennett(works: Float[np.ndarray, "2 chains"]) -> float:
    """The free energy from the work of each chain, up and down."""
    up, down = works
    ends = works[np.isfinite(works)]
    excess = lambda value: np.sum(scipy.special.expit(value - up) - scipy.special.expit(down - value))  # noqa: E731
    return float(scipy.optimize.brentq(excess, ends.min() - 1, ends.max() + 1))
