#!/usr/bin/env python
"""Simulate histories of audited nights, and calibrate on what they audited: how often the new thresholds break the limit.

python docs/results/guarantees/histories.py

Rows are numbers: uncertainties and differing predictions at every exit of a population whose true disagreement is known at any
thresholds (run.py, `synthetic`). Nights draw from it; thresholds, curves and nights are chosen by the product's functions.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
from transformers import BertConfig

from docs.results.guarantees.run import CONFIDENCE, CRITERION, LIMIT, hindsight, synthetic
from models.exits.flops import FlopCounter
from models.families.table import shape_of
from pipeline.calibration.curve import Choice
from pipeline.calibration.fit import fit_curve
from pipeline.calibration.guarantees import rows_needed
from pipeline.calibration.history.nights import change_of
from pipeline.calibration.sequential import log_evidence_of_change
from pipeline.calibration.thresholds import Floats, Sample, single_path
from pipeline.nights import Night
from pipeline.rows import IntArray

HISTORIES, AUDITED, MOST_NIGHTS = 200, 100, 200
POPULATION = 60_000


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a history ends with."""

    rows: int
    """Rows that were calibrated on."""
    disagreement: float
    """True disagreement at the new thresholds, in the population that the nights to come are of."""
    speedup: float
    too_early: float = 0.0
    """Fraction of the rows that are of nights before the change."""


def flop_counter() -> FlopCounter:
    shape = shape_of(BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))
    return FlopCounter(shape, dict.fromkeys(range(1, 6), "attention") | {6: "pooled"})


def speeds_of(choice: Choice, sample: Sample) -> Floats:
    return np.array([choice.criterion.speed_at(layer) for layer in sample.layers])


def differing_at(sample: Sample, speeds: Floats) -> np.ndarray:
    """Return which rows of a population differ from full depth at these thresholds: [B] bool."""
    first_B = sample.first_exits(speeds)
    return np.vstack([sample.differs, np.zeros((1, len(sample)), np.bool_)])[first_B, np.arange(len(sample))]


def calibrated(sample: Sample, seed: int, truth: Sample) -> Found:
    choice = fit_curve(sample, CRITERION, seed).within(LIMIT, CONFIDENCE)
    outcome = truth.outcome(speeds_of(choice, truth))
    return Found(rows=len(sample), disagreement=outcome.differing / len(truth), speedup=1 / outcome.flops_fraction)


def drawn(random: np.random.Generator, sample: Sample, rows: int) -> IntArray:
    return random.integers(len(sample), size=rows)


def steady(truth: Sample, nights: int) -> Iterator[Found]:
    """Calibrate on all nights, a number that was fixed beforehand."""
    for seed in range(HISTORIES):
        random = np.random.default_rng([nights, seed])
        yield calibrated(truth.take(drawn(random, truth, nights * AUDITED)), seed, truth)


def alarmed(
    before: Sample, after: Sample, speeds: Floats, latest: int, *, from_likeliest: bool = False
) -> Iterator[Found]:
    """Calibrate when the audit calls the limit broken, on the nights of `change_of`; if they are too few, a night later.

    Rows are of one population up to some night, 0 to `latest`, and of another one from then on. `from_likeliest` takes the
    nights since the one that the audit names, for comparison.
    """
    needed = rows_needed(LIMIT, CONFIDENCE) or 0
    wrong = {id(sample): differing_at(sample, speeds) for sample in (before, after)}
    for seed in range(HISTORIES):
        random = np.random.default_rng([latest, seed])
        change = int(random.integers(latest + 1))
        nights: list[Night] = []
        rows: list[IntArray] = []
        while len(nights) < MOST_NIGHTS:
            source = before if len(nights) < change else after
            rows.append(drawn(random, source, AUDITED))
            differing = int(wrong[id(source)][rows[-1]].sum())
            nights.append(Night(published=f"{len(nights):04}", audited=AUDITED, differing=differing))
            found = change_of([nights], LIMIT)
            if found is None:
                continue
            first = found.nights_before
            if from_likeliest:
                first = log_evidence_of_change([(night.differing, night.audited) for night in nights], LIMIT)[1]
            if (len(nights) - first) * AUDITED >= needed:
                yield since(rows, first, change, before, after, seed)
                break


def since(rows: list[IntArray], first: int, change: int, before: Sample, after: Sample, seed: int) -> Found:
    """Calibrate on the nights from one on, of which those before `change` are of other rows."""
    early = [part for number, part in enumerate(rows) if first <= number < change]
    late = [part for number, part in enumerate(rows) if number >= max(first, change)]
    parts = [s.take(np.concatenate(p)) for s, p in ((before, early), (after, late)) if p]
    found = calibrated(joined(parts), seed, after)
    return Found(
        rows=found.rows,
        disagreement=found.disagreement,
        speedup=found.speedup,
        too_early=len(early) / (len(early) + len(late)),
    )


def joined(parts: list[Sample]) -> Sample:
    return Sample(
        layers=parts[0].layers,
        depth=parts[0].depth,
        uncertainty=np.hstack([part.uncertainty for part in parts]),
        differs=np.hstack([part.differs for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        flops=parts[0].flops,
    )


def picky(truth: Sample) -> Iterator[Found]:
    """Look after 10, 15, 20, 25 and 30 nights, and take the thresholds of the look that is fastest."""
    for seed in range(HISTORIES):
        random = np.random.default_rng([4, seed])
        rows = drawn(random, truth, 30 * AUDITED)
        looks = [calibrated(truth.take(rows[: nights * AUDITED]), seed, truth) for nights in range(10, 31, 5)]
        yield max(looks, key=lambda found: found.speedup)


def line(name: str, found: list[Found], best: float) -> None:
    broken = sum(one.disagreement > LIMIT for one in found)
    rows, early = np.median([one.rows for one in found]), np.mean([one.too_early for one in found])
    worst, speedup = max(one.disagreement for one in found), np.mean([one.speedup for one in found])
    cells = [name, f"{broken} of {len(found)}", f"{worst:.2%}", f"{rows:,.0f}", f"{early:.1%}"]
    print(f"| {' | '.join(cells)} | {speedup:.2f}x | {best:.2f}x |", flush=True)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    flops = flop_counter()
    usual = synthetic(POPULATION, 0, flops)
    path = single_path(len(usual.layers))
    names = "history", "limit broken", "largest true disagreement", "rows: median", "of before the change"
    print(f"| {' | '.join(names)} | speed-up | in hindsight |\n|{' --- |' * 7}")
    best = partial(hindsight, path=path)
    for nights in (10, 20, 40):
        name = f"{nights} nights of {AUDITED} rows, one kind"
        line(name, list(steady(usual, nights)), best(usual))
    safe = speeds_of(fit_curve(usual.take(np.arange(12_000)), CRITERION).within(LIMIT, CONFIDENCE), usual)
    for worse in (2.0, 3.0):
        other = synthetic(POPULATION, 0, flops, worse)
        rate = usual.outcome(safe).differing / POPULATION, other.outcome(safe).differing / POPULATION
        name = f"alarm: {rate[0]:.2%} differ, from a night on {rate[1]:.2%}"
        line(name, list(alarmed(usual, other, safe, 60)), best(other))
        line(
            "the same, from the likeliest night",
            list(alarmed(usual, other, safe, 60, from_likeliest=True)),
            best(other),
        )
    other = synthetic(POPULATION, 0, flops, 1.6)
    name = f"alarm: {other.outcome(safe).differing / POPULATION:.2%} differ from the first night on"
    line(name, list(alarmed(other, other, safe, 0)), best(other))
    line("the fastest of five looks", list(picky(usual)), best(usual))


if __name__ == "__main__":
    main()
