#!/usr/bin/env python
"""Simulate years of nightly audits: how often a limit that is kept is called broken, and how soon one that is broken is.

python docs/results/guarantees/nights.py
"""

import argparse
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from pipeline.calibration.audit import draw_rows
from pipeline.calibration.guarantees import upper_bound
from pipeline.calibration.sequential import Floats, log_evidence_above, log_evidence_below, upper_bound_ever
from pipeline.calibration.verdict import FALSE_ALARMS
from pipeline.rows import IntArray

LIMIT, CONFIDENCE = 0.01, 0.95
NIGHTS, AUDITED = 365, 100
YEARS = 1_000


def evidence_of_change(counts_TN: IntArray) -> Floats:
    """Return `log_evidence_of_change` of N histories of T nights, of AUDITED rows each: [N]."""
    since = counts_TN[::-1].cumsum(axis=0)[::-1]
    nights = len(counts_TN)
    start = np.arange(nights)[:, None]
    terms = log_evidence_above(since, (nights - start) * AUDITED, LIMIT) - np.log((start + 1.0) * (start + 2.0))
    return np.asarray(np.logaddexp.reduce(terms, axis=0))


def first_night(counts_TN: IntArray, is_told: Callable[[IntArray], IntArray]) -> IntArray:
    """Return the first night, from 1 on, after which each history is told of; 0 for those that never are: [N]."""
    first = np.zeros(counts_TN.shape[1], np.int64)
    for night in range(1, len(counts_TN) + 1):
        open_ = np.flatnonzero(first == 0)
        if len(open_):
            first[open_] = np.where(is_told(counts_TN[:night, open_]), night, 0)
    return first


def broken(counts_TN: IntArray) -> IntArray:
    return evidence_of_change(counts_TN) >= np.log(1 / FALSE_ALARMS)


def kept(counts_TN: IntArray) -> IntArray:
    return log_evidence_below(counts_TN.sum(axis=0), len(counts_TN) * AUDITED, LIMIT) >= np.log(1 / (1 - CONFIDENCE))


def line(name: str, nights: IntArray) -> None:
    told = nights[nights > 0] * AUDITED
    when = f"{np.median(told):,.0f} | {np.quantile(told, 0.95):,.0f}" if len(told) else "- | -"
    print(f"| {name} | {len(told)} of {len(nights)} | {when} |", flush=True)


def years(rng: np.random.Generator) -> None:
    print(
        "| true rate, and what is said | years in which it is | audited rows until then: median | 95 % |"
        "\n| --- | --- | --- | --- |"
    )
    for factor in (1.0, 1.2, 1.5, 2.0, 3.0):
        counts = rng.binomial(AUDITED, factor * LIMIT, (NIGHTS, YEARS))
        line(f"{factor:g} x the limit, *broken*", first_night(counts, broken))
    change = rng.binomial(AUDITED, 0.5 * LIMIT, (NIGHTS, YEARS))
    change[180:] = rng.binomial(AUDITED, 3 * LIMIT, (NIGHTS - 180, YEARS))
    found = first_night(change, broken)
    line("half the limit for 180 nights, then 3 x, *broken*", np.where(found > 180, found - 180, 0))
    for factor in (0.0, 0.5, 0.8, 1.0):
        counts = rng.binomial(AUDITED, factor * LIMIT, (NIGHTS, YEARS))
        line(f"{factor:g} x the limit, *kept*", first_night(counts, kept))


def one_look(rng: np.random.Generator) -> None:
    """Compare bounds of one look, asked for every night over all rows so far, with those of a sequence."""
    years = rng.binomial(AUDITED, LIMIT, (NIGHTS, 100)).cumsum(axis=0)
    rows = AUDITED * np.arange(1, NIGHTS + 1)
    for name, bound in (("Clopper-Pearson", upper_bound), ("the sequence", upper_bound_ever)):
        wrong = [
            any(bound(int(k), int(n), CONFIDENCE) < LIMIT for k, n in zip(year, rows, strict=True)) for year in years.T
        ]
        print(
            f"upper bound of {name}, looked at every night: below the true rate at some time in {sum(wrong)} of 100 years"
        )


def supplier(rng: np.random.Generator) -> None:
    """Let a supplier who knows the drawing behave on the rows that are drawn: 3 % of the others differ, and none of those."""
    predictable, secret, rows, fraction = np.zeros(60, np.int64), np.zeros(60, np.int64), 10_000, AUDITED / 10_000
    for night in range(60):
        shard = f"{night:016x}"
        known = (
            np.random.default_rng(zlib.crc32(shard.encode())).random(rows) < fraction
        )  # by the shard alone, as it was once
        differs = (rng.random(rows) < 0.03) & ~known
        predictable[night] = differs[known].sum()
        secret[night] = differs[draw_rows(shard, rows, fraction, f"{rng.integers(1 << 62):x}")].sum()
    for name, counts in (("predictable", predictable), ("secret", secret)):
        line(
            f"a supplier who behaves on the rows that a {name} drawing takes, *broken*",
            first_night(counts[:, None], broken),
        )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rng = np.random.default_rng(0)
    years(rng)
    supplier(rng)
    one_look(rng)


if __name__ == "__main__":
    main()
