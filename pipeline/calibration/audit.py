"""The audit: some rows of every shard go to full depth as well, to measure what exiting early changes and saves.

Rows are drawn by the run's secret, shard and row number, so that a repeated shard draws the same ones, in whatever bundle, and
nobody who supplies texts knows which. Both passes over them are timed, in calls of the same size: their ratio estimates what
full depth would have taken for the whole run.
`calibration.verdict` judges the counts; `calibration.history` keeps what every exit says of these rows.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.calibration.limits.counts import missed_by_class, rows_by_class
from pipeline.clock import Clock
from pipeline.engine.texts.rows import TextRows
from pipeline.histograms import bin_counts
from pipeline.rows import IntArray, Predictions

if TYPE_CHECKING:  # task workers get an AuditSpec, and need no torch
    from pipeline.engine.texts.engine import TextEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSpec:
    """What an actor needs to know to audit its own predictions."""

    fraction: float
    """Fraction of rows that go to full depth as well, in [0, 1]."""
    secret: str = ""
    """Secret of the run, which decides the rows that are drawn."""
    uncertainty_edges: tuple[float, ...] = ()
    """Edges between the bins in which the audited rows' uncertainty at full depth is counted."""
    by_class: bool = False
    """Whether rows are counted by class as well, or by label; not for values."""


def draw_rows(shard: str, rows: int, fraction: float, secret: str) -> IntArray:
    """Draw row numbers of a shard, each with this probability, ascending; the same ones at every call."""
    digest = hashlib.blake2b(shard.encode(), key=secret.encode(), digest_size=16).digest()
    return np.flatnonzero(np.random.default_rng(int.from_bytes(digest)).random(rows) < fraction)


def draw_from_bundle(shards: Mapping[str, int], fraction: float, secret: str) -> list[IntArray]:
    """Draw rows of each shard of a bundle, which has these numbers of rows of each: their numbers in the bundle, by shard."""
    starts = np.cumsum([0, *shards.values()])
    return [
        start + draw_rows(shard, rows, fraction, secret)
        for start, (shard, rows) in zip(starts.tolist(), shards.items(), strict=False)
    ]


def audit(
    engine: "TextEngine",
    full_depth: "TextEngine",
    spec: AuditSpec,
    shards: Mapping[str, int],
    texts: TextRows,
    predictions: Predictions,
) -> dict[str, dict[str, Any]]:
    """Run some rows of a bundle again, early and at full depth; return what was counted by shard, as fields of its receipt.

    `shards` has the number of rows of each, in order; `full_depth` is `engine` with exits off. A shard without rows to audit is
    left out. Of a text with several windows the predictions that are compared are those of the text.
    """
    by_shard = draw_from_bundle(shards, spec.fraction, spec.secret)
    drawn = np.concatenate(by_shard)
    if not len(drawn):
        return {}
    rows = texts.take(drawn)
    clock = Clock()
    early = engine.run(rows)
    early_seconds, clock = clock.seconds, Clock()
    full = full_depth.run(rows)
    full_seconds = clock.seconds
    published = predictions.take(drawn)
    differs = full.predictions.differs(published, engine.engine.config.criterion.tolerance)
    flops = early.flops + full.flops
    counted, end = {}, 0
    for shard, audited in zip(shards, map(len, by_shard), strict=True):
        part, end = slice(end, end + audited), end + audited
        if audited:
            counted[shard] = {
                "audited": audited,
                "differing": int(differs[part].sum()),
                "early_seconds": early_seconds * audited / len(drawn),
                "full_seconds": full_seconds * audited / len(drawn),
                "audit_flops": float(flops[part].sum()),
                "audit_uncertainty": bin_counts(full.predictions.uncertainty[part], spec.uncertainty_edges),
            }
            if spec.by_class:
                counted[shard] |= _by_class(full.predictions, published, part)
    return counted


def _by_class(full: Predictions, published: Predictions, rows: slice) -> dict[str, list[int]]:
    """Count some rows by class at full depth, and those of them that are missed, as fields of a receipt."""
    classes, of, now = full.logits.shape[1], full.predicted[rows], published.predicted[rows]
    return {
        "audited_by_class": rows_by_class(of, classes).tolist(),
        "missed_by_class": missed_by_class(of, now, classes).tolist(),
    }
