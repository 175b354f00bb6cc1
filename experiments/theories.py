"""Why should flat be good? Description length, evidence and free energy of SB and LB minima.

    make exp-theories
    make exp-theories ARGS="--dataset mnist"

The paper names three reasons: a flat minimum needs fewer bits, has more Bayesian evidence, and has a lower free
energy. Each is measured on pairs of minima, at several values of what it leaves open. There are two controls. One
is the pair at equal training loss: the minimum with the lower loss is trained again and stopped earlier. The other
is two maps that leave the function as it is, which no reason for generalisation should see.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from experiments.lib import command, settings
from experiments.lib.claims import Claim
from experiments.lib.maps import MAPS, moved
from experiments.lib.rows import converged, diverged, means, pairs, test_accuracy
from experiments.lib.settings import SIDES, Training
from gengap import comparison, data, minima, plots, records, report, stats, theories
from gengap.comparison import Metric, column
from gengap.records import Cell, Row
from gengap.report import DASH, Section, frame, number, plain

END, EQUAL = "end", "equal loss"
_BOUNDS = "In their place stands a bound that can only weaken the claim: for SB from above, for LB from below."
REASONS = {
    "bits": "bits per parameter",
    "evidence": "- ln evidence (nats per example)",
    "energy": "free energy (nats)",
}


class Config(NamedTuple):
    """The three reasons, measured at pairs of minima."""

    training: Training = Training()
    metric: Metric = Metric(epsilons=(1e-3,), num_draws=0)
    examples: int = 2000
    """maximum number of training examples in the measures"""
    rises: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """description length: allowed rises of the loss, in nats"""
    priors: tuple[float, ...] = (0.0, 100.0, 1000.0)
    """evidence: precisions of the prior; 0: the precision with the most evidence"""
    widths: tuple[float, ...] = (0.003, 0.01)
    """free energy: standard deviations of the steps of each parameter"""
    num_samples: int = 4
    """number of offsets (description length), starts (evidence) and chains (free energy)"""
    num_products: int = 20
    """evidence: Hessian-vector products per start"""
    num_steps: int = 100
    """free energy: steps per chain and direction"""
    factor: float = 3.0
    """control: scale factor of the maps"""


CONFIG = Config()
SMOKE = CONFIG._replace(
    training=Training(num_seeds=1, train_size=200, epochs=2),
    metric=Metric(epsilons=(1e-3,), num_draws=0, max_evaluations=3),
    examples=50, rises=(1e-2,), priors=(0.0,), widths=(0.003,), num_samples=2, num_products=5, num_steps=10,
)  # fmt: skip


def cells(config: Config) -> list[Cell]:
    """One for each minimum at the end of training and at equal loss, and for each map of the first pair."""
    ends = settings.cells_of(config.training)
    states = [{**cell, "state": state} for state in (END, EQUAL) for cell in ends]
    return [*states, *({**cell, "state": name} for name in MAPS for cell in ends[:2])]


def row(config: Config, cell: Cell, store: Path) -> Row:
    """The three measures and Metric 2.1 of one minimum; `same` if that at equal loss is the one at the end."""
    training, label, state = config.training, settings.label(config.training, cell), cell["state"]
    pair = settings.pair(training, cell["network"], cell["seed"], store)
    minimum = pair[cell["side"]]
    ds, model, loss, train, test = settings.problem(training, cell["network"])
    if state == EQUAL:
        losses = {side: float(loss(other.params)) for side, other in pair.items()}
        if losses[cell["side"]] >= max(losses.values()) or not np.isfinite(list(losses.values())).all():
            return {"same": True}
        recipe = settings.recipe(training, settings.batch_size(training, cell["side"]))
        recipe, key = recipe._replace(target=max(losses.values())), settings.training_key(training)
        minimum = minima.find(model, ds, key, recipe, seed=cell["seed"], store=store, progress=label)
    if minimum.diverged_at is not None:
        return minimum.summary()
    params = minimum.params if state in (END, EQUAL) else moved(minimum.params, state, config.factor)
    key = settings.measure_key(training, cell["seed"])
    measured = comparison.measure(loss, params, key, config.metric, train=train, test=test, progress=label)
    some = data.head(ds, min(config.examples, len(ds.x_train)))
    few = settings.loss_over(training, model, some)
    return minimum.summary() | measured | {"reasons": _reasons(config, few, params, key, len(some.x_train))}


def _reasons(config: Config, loss: Callable, params: PyTree, key: Any, examples: int) -> dict[str, dict[str, Any]]:
    """Reason -> setting -> what was found; "converged" says whether it can be used."""
    kinds: dict[str, Any] = {"num_samples": config.num_samples, "examples": examples}
    energy = partial(
        theories.free_energy, examples=examples, num_chains=config.num_samples, num_steps=config.num_steps
    )
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        bits = theories.description_length(loss, params, key, rise=config.rises, **kinds)
        priors = [at or None for at in config.priors]
        evidence = theories.evidence(loss, params, key, prior=priors, num_products=config.num_products, **kinds)
        energies = [energy(loss, params, key, width=width) for width in config.widths]
    shared = bits._asdict()
    values, sems = np.asarray(bits.value), np.asarray(bits.sem)
    lengths = [shared | {"value": value, "sem": sem} for value, sem in zip(values, sems, strict=True)]
    columns = (np.asarray(of).tolist() for of in evidence)
    evidences = [dict(zip(evidence._fields, of, strict=True)) for of in zip(*columns, strict=True)]
    found = {"bits": (config.rises, lengths), "evidence": (config.priors, evidences)}
    found |= {"energy": (config.widths, [of._asdict() for of in energies])}
    return {name: dict(zip(map(str, at), of, strict=True)) for name, (at, of) in found.items()}


def run(config: Config = CONFIG, out: str | PathLike | None = None, **options: Any) -> records.Run:
    """A row for each minimum in each state; the options are those of `records.fill`."""
    for name in ("rises", "priors", "widths"):
        values, least = getattr(config, name), -1 if name == "priors" else 0
        if not values or not all(least < value < np.inf and value >= 0 for value in values):
            raise ValueError(f"{name} is {values}; it needs at least one value, each above 0 (priors: 0 or above)")
        settings.check_distinct({name: values})
    for name, low in {"examples": 1, "num_samples": 2, "num_products": 4, "num_steps": 10}.items():
        if getattr(config, name) < low:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least {low}")
    if not 0 < config.factor < np.inf:
        raise ValueError(f"factor is {config.factor}; it must be above 0")
    config = config._replace(training=settings.resolved(config.training))
    settings.check_metric(config.training, config.metric)

    def seconds(left: Sequence[Cell]) -> float:
        samples, whole = config.num_samples, len(settings.dataset(config.training).x_train)
        values = samples * (31 + 2.5 * config.num_steps * len(config.widths))
        gradients = (values / 2 + 2 * config.num_products * samples) * min(1, config.examples / whole)
        epochs = 3 * config.training.num_seeds * config.training.epochs
        return settings.seconds(
            config.training, gradients=len(left) * (gradients + config.metric.gradients), epochs=epochs
        )

    return records.fill("theories", config, cells(config), row, out, seconds=seconds, **options)


def value(row: Row, reason: str, setting: str) -> float | None:
    """The value of a reason in a row, lower is better; `None` if there is none or it has not converged."""
    found = row.get("reasons", {}).get(reason, {}).get(setting, {})
    known = number(found.get("value"))
    if known is None or found.get("converged") is False:
        return None
    return -known if reason == "evidence" else known


def compared(row: Row, reason: str, setting: str) -> float | None:
    """The value for a comparison of SB and LB; of a free energy that has not converged, its bound.

    The mean work is above it on the way up, and below it on the way back. SB has the upper bound and LB the lower
    one, which can only weaken the claim that SB is lower.
    """
    found = row.get("reasons", {}).get(reason, {}).get(setting, {})
    if reason == "energy" and found.get("converged") is False:
        return number(found["up" if row["side"] == "SB" else "down"])
    return value(row, reason, setting)


def at_end(rows: Sequence[Row]) -> list[Row]:
    """The minima at the end of training."""
    return [row for row in rows if row["state"] == END]


def at_equal_loss(rows: Sequence[Row]) -> list[Row]:
    """The minima at equal training loss; those at the end of training stand for themselves."""
    ends = {(row["seed"], row["side"]): row for row in at_end(rows)}
    equal = [row for row in rows if row["state"] == EQUAL]
    return [ends.get((row["seed"], row["side"]), row) if row.get("same") else row for row in equal]


def claims(rows: list[Row]) -> list[Claim]:
    """Section 2.1: flat minima need fewer bits, have more evidence and lower free energy. Margins: LB minus SB."""
    words = {
        "bits": "SB minima need fewer bits per parameter than LB (each rise of the loss)",
        "evidence": "SB minima have more evidence than LB (each prior)",
        "energy": "SB minima have a lower free energy than LB (each width)",
    }
    found = []
    for reason, claim in words.items():
        of = {setting: _pairs(at_end(rows), reason, setting) for setting in _settings(rows, reason)}
        verdicts = [stats.verdict([large - small for small, large in both]) for both in of.values()]
        here = next((f"{_means(at_end(rows), reason, at)} at {float(at):g}" for at in of if of[at]), "")
        given = [at for at in of if float(at)]
        parts = (
            [_parts_of(rows, at) for at in given] if reason == "evidence" else _compared(rows, reason, (EQUAL,))
        )
        found.append(Claim("sec. 2.1", claim, {}, here, verdicts, " ".join([*parts, *_ends(rows)])))
    return found


def _settings(rows: Sequence[Row], reason: str) -> list[str]:
    return list(next((row["reasons"][reason] for row in rows if row.get("reasons")), {}))


def _pairs(rows: Sequence[Row], reason: str, setting: str) -> list[tuple[float, float]]:
    return pairs(rows, lambda row: compared(row, reason, setting))


def _means(rows: Sequence[Row], reason: str, setting: str) -> str:
    """The means of SB and LB; "at most" or "at least" stands before one that a bound is part of."""
    both = _pairs(rows, reason, setting)
    if not both:
        return ""
    bounded = {row["side"] for row in rows if compared(row, reason, setting) != value(row, reason, setting)}
    bounds = ("at most " * ("SB" in bounded), "at least " * ("LB" in bounded))
    return " | ".join(bound + plain(mean) for bound, mean in zip(bounds, np.mean(both, axis=0), strict=True))


def _ends(rows: Sequence[Row]) -> list[str]:
    """Training loss and test accuracy at the end."""
    losses, accuracies = (pairs(at_end(rows), column) for column in ("train_loss", test_accuracy))
    if not losses:
        return []
    tests = stats.verdict([small - large for small, large in accuracies])
    return [
        f"At the end of training the losses are {means(losses)}, the test accuracies {means(accuracies, ' %')} "
        f"(SB | LB). SB tests better: {tests}."
    ]


@report.apart
def figures(rows: list[Row]) -> list[Section]:
    """A section with a figure for each reason, and one for the two controls."""
    lost, kept = diverged(rows), [row for row in converged(rows) if row.get("reasons") or row.get("same")]
    if not at_end(kept):
        return lost
    return [*lost, _bits(kept), _evidence(kept), _energy(kept), _controls(kept)]


def _compared(rows: Sequence[Row], reason: str, states: Sequence[str] = (END, EQUAL)) -> list[str]:
    """A sentence for each setting and state: SB against LB."""
    minima_of = {END: at_end(rows), EQUAL: at_equal_loss(rows)}
    names = {"bits": "rise of the loss", "evidence": "precision of the prior", "energy": "width"}
    sentences = []
    for setting in _settings(rows, reason):
        at = "with most evidence" if (reason, float(setting)) == ("evidence", 0) else setting
        for state in states:
            both = _pairs(minima_of[state], reason, setting)
            sentences.append(
                f"{names[reason].capitalize()} {at}, at {'the end of training' if state == END else state}: "
                f"{_means(minima_of[state], reason, setting) or DASH} (SB | LB). SB is lower: "
                f"{stats.verdict([large - small for small, large in both])}."
            )
    return sentences


def _bits(rows: Sequence[Row]) -> Section:
    """The rise of the loss against the bits per parameter, down to a third of the least rise asked for."""
    lines, least = [], min(map(float, _settings(rows, "bits"))) / 3
    for side in SIDES:
        found = [next(iter(r["reasons"]["bits"].values())) for r in at_end(rows) if r["side"] == side]
        curves = [
            (of["bits"], [rise if (number(rise) or 0) > least else None for rise in of["rises"]]) for of in found
        ]
        lines += plots.seeds(curves, side, side, marker="o" if side == "SB" else "s")
    title = f"rounded minima, {stats.where(rows[0])}"
    panel = plots.Panel(title, "bits per parameter", "rise of the loss (nats)\nlower is better", lines, log_y=True)
    totals = pairs(at_end(rows), lambda row: number(next(iter(row["reasons"]["bits"].values()))["total"]))
    findings = [
        *_compared(rows, "bits"),
        f"The total length of data and network is smallest at {plain(_best(rows))} bits per parameter: "
        f"{means(totals, ' bits')} (SB | LB).",
        "If there are many parameters, their bits are nearly all of it.",
    ]
    caption = (
        "Each parameter is rounded to a grid over the range of its leaf, with a random offset. The lower "
        "the curve, the fewer bits describe the minimum. Smaller rises are lost in the noise of the offsets."
    )
    return Section("Description length", findings, figure=plots.panels([panel]), caption=caption, name="bits")


def _best(rows: Sequence[Row]) -> float:
    return float(np.mean([next(iter(r["reasons"]["bits"].values()))["best"] for r in at_end(rows)]))


def _evidence(rows: Sequence[Row]) -> Section:
    """The evidence and its Occam factor against the precision of the prior."""
    parts = {"value": REASONS["evidence"], "occam": "Occam factor (nats per example)\nlower is flatter"}
    panels = []
    for part, label in parts.items():
        lines = []
        for side in SIDES:
            seeds = [_at_priors(row, part) for row in at_end(rows) if row["side"] == side]
            lines += plots.seeds(seeds, side, side, marker="o" if side == "SB" else "s")
        title = f"{'evidence' if part == 'value' else 'its Occam factor'}, {stats.where(rows[0])}"
        panels.append(
            plots.Panel(title, "precision of the prior", label, lines, log_x=True, log_y=part == "value")
        )
    of_first = [next(iter(row["reasons"]["evidence"].values())) for row in at_end(rows)]
    negative = float(np.mean([number(of["negative"]) or 0.0 for of in of_first]))
    findings = [
        *_compared(rows, "evidence"),
        f"Negative eigenvalues make up {plain(100 * negative)} % of tr |H|, as far as the products resolve it.",
        *(_parts_of(rows, setting) for setting in _settings(rows, "evidence") if float(setting)),
        _lost(rows, "evidence", "values of the evidence", "They are left out."),
    ]
    caption = (
        "Left: minus the logarithm of the evidence by Laplace's approximation; lower is more probable. Right: the "
        "part of it that depends on the curvature. The rest is the loss and the penalty on |x|."
    )
    return Section("Evidence", findings, figure=plots.panels(panels), caption=caption, name="evidence")


def _at_priors(row: Row, part: str) -> tuple[list[float], list[float | None]]:
    """The given precisions at which the evidence has converged, and a part of it there."""
    found = {at: value(row, "evidence", at) for at in row["reasons"]["evidence"] if float(at)}
    given = {at: known for at, known in found.items() if known is not None}
    of_part = [known if part == "value" else row["reasons"]["evidence"][at][part] for at, known in given.items()]
    return [float(at) for at in given], of_part


def _parts_of(rows: Sequence[Row], setting: str) -> str:
    """The parts of the evidence of a prior, apart from f; the Occam factor only of what has converged."""

    def of(part: str) -> str:
        def of_row(row: Row) -> float | None:
            known = part == "penalty" or value(row, "evidence", setting) is not None
            return number(row["reasons"]["evidence"][setting][part]) if known else None

        return means(pairs(at_end(rows), of_row)) or DASH

    parts = f"the penalty on |x| is {of('penalty')}, the Occam factor {of('occam')} (SB | LB)"
    return f"Precision of the prior {setting}: {parts}."


def _lost(rows: Sequence[Row], reason: str, words: str, instead: str) -> str:
    found = [of for row in rows for of in row.get("reasons", {}).get(reason, {}).values()]
    lost = sum(of.get("converged") is False for of in found)
    return (
        f"{lost} of {len(found)} {words} have not converged. {instead}" if lost else f"All {words} have converged."
    )


def _energy(rows: Sequence[Row]) -> Section:
    """Free energy against width."""
    known, lines = _settings(rows, "energy"), []
    widths = [float(setting) for setting in known]
    for side in SIDES:
        seeds = [row for row in at_end(rows) if row["side"] == side]
        curves = [(widths, [compared(row, "energy", setting) for setting in known]) for row in seeds]
        lines += plots.seeds(curves, side, side, marker="o" if side == "SB" else "s")
    title, y = f"free energy, {stats.where(rows[0])}", REASONS["energy"]
    shown = (compared(row, "energy", setting) for setting in known for row in at_end(rows))
    log_y = all(energy is None or energy > 0 for energy in shown)
    panel = plots.Panel(title, "width of the step of each parameter", y, lines, log_x=True, log_y=log_y)
    findings = [*_compared(rows, "energy"), _lost(rows, "energy", "free energies", _BOUNDS)]
    caption = "The free energy says how improbable it is that a random step leaves the loss low: lower is flatter."
    return Section("Free energy", findings, figure=plots.panels([panel]), caption=caption, name="energy")


def _controls(rows: Sequence[Row]) -> Section:
    """How a reparametrisation changes each reason, and sharpness at equal loss."""
    first = {row["side"]: row for row in at_end(rows) if row["seed"] == 0}
    lines = []
    changed: dict[str, list[str]] = {name: [] for name in MAPS}
    sizes = {reason: _settings(rows, reason)[-1:] for reason in REASONS}
    for reason, words in REASONS.items():
        for setting in sizes[reason]:
            line = {"": words, "at": setting}
            for side, row in first.items():
                line[f"{side}, as trained"] = plain(value(row, reason, setting))
                for name in MAPS:
                    images = [r for r in rows if r["state"] == name and (r["side"], r["seed"]) == (side, 0)]
                    line[f"{side}, {name}"] = plain(value(images[0], reason, setting)) if images else DASH
                    if images and _differ(row, images[0], reason, setting) and words not in changed[name]:
                        changed[name].append(words)
            lines.append(line)
    epsilon = next((name for name in at_end(rows)[0] if name.startswith("sharpness_full_")), column("full", 1e-3))
    ends, equal = (pairs(of, epsilon) for of in (at_end(rows), at_equal_loss(rows)))
    findings = [
        f'The map "{name}" leaves the function as it is, and changes: '
        f"{', '.join(changed[name]) or 'none of these'}."
        for name in MAPS
    ]
    findings += ["A number that has not converged (-) is not compared.", *_ends(rows)]
    for words, both in (("at the end of training", ends), ("at equal training loss", equal)):
        findings.append(
            f"Sharpness in the full space {words}: {means(both, ' %')} (SB | LB). SB is flatter: "
            f"{stats.verdict([stats.log_ratio(large, small) for small, large in both])}."
        )
    losses = pairs(at_equal_loss(rows), "train_loss")
    findings.append(f"At equal training loss the losses are {means(losses)} (SB | LB).")
    return Section("Controls: reparametrisation, and equal loss", findings, frame(lines), name="controls")


def _differ(row: Row, image: Row, reason: str, setting: str) -> bool:
    """Whether two numbers, both converged, are farther apart than three of their standard errors, and than 5 %."""
    a, b = (r["reasons"][reason][setting] for r in (row, image))
    before, after = (value(r, reason, setting) for r in (row, image))
    if before is None or after is None:
        return False
    error = np.hypot(number(a["sem"]) or 0, number(b["sem"]) or 0)
    return bool(abs(after - before) > max(3 * error, 0.05 * abs(before)))


if __name__ == "__main__":
    command.main("theories", run, figures, CONFIG, __doc__)
