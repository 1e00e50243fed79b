"""The audit: some rows of every shard go to full depth as well, to know what leaving early changed and saved.

Rows are drawn by shard and place, so that a repeated shard draws the same ones. Both passes over them are timed, in calls of
the same size: their ratio says what full depth would have taken for the whole run.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.calibration.drift import Reference, Signal, bin_counts, length_counts
from pipeline.calibration.guarantees import CONFIDENCE, lower_bound, upper_bound
from pipeline.clock import Clock
from pipeline.output.totals import Totals
from pipeline.rows import IntArray, Predictions, TokenRows

if TYPE_CHECKING:  # task workers get an AuditSpec, and need no torch
    from pipeline.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSpec:
    """What an actor needs to know to audit its own answers (pipeline.audit)."""

    share: float
    """Of rows that go to full depth as well, in [0, 1]; with 0 nothing but lengths is counted."""
    uncertainty_edges: tuple[float, ...] = ()
    """Of the bins in which the audited rows' uncertainty at full depth is counted."""


ROWS, DIFFERING, EARLY, FULL, FLOPS = "audited", "differing", "early_seconds", "full_seconds", "audit_flops"
LENGTH, UNCERTAINTY = "length", "uncertainty"
FALSE_ALARMS = 0.001
"""Share of runs that would be told broken by chance if the true share were the limit itself; a nightly job is many runs."""


def drawn(shard: str, rows: int, share: float) -> IntArray:
    """Draw places of a shard's rows, each with this probability, the same at every call; ascending."""
    return np.flatnonzero(np.random.default_rng(zlib.crc32(shard.encode())).random(rows) < share)


def audit(engine: "Engine", spec: AuditSpec, shard: str, tokens: TokenRows, answers: Predictions) -> dict[str, float]:
    """Send a share of rows through the engine again, to full depth, and return the sums that go on the receipt."""
    sums = _numbered(LENGTH, length_counts(tokens.lengths))
    places = drawn(shard, len(tokens), spec.share)
    if not len(places):
        return sums
    rows = tokens.take(places)
    clock = Clock()
    early = engine.run(rows)
    early_seconds, clock = clock.seconds, Clock()
    full = engine.with_criterion(engine.config.criterion.at_full_depth()).run(rows)
    full_seconds = clock.seconds
    if engine.model.regression:
        differs = np.abs(full.logits[:, 0] - answers.logits[places, 0]) > engine.config.criterion.tolerance
    else:
        differs = full.label_ids != answers.label_ids[places]
    flops = engine.flops.rows(rows.lengths, early.exit_layers) + engine.flops.full_depth(rows.lengths)
    sums |= {ROWS: len(rows), DIFFERING: int(differs.sum()), EARLY: early_seconds, FULL: full_seconds}
    return (
        sums
        | {FLOPS: float(flops.sum())}
        | _numbered(UNCERTAINTY, bin_counts(full.uncertainty, spec.uncertainty_edges))
    )


def _numbered(name: str, counts: Sequence[int]) -> dict[str, float]:
    return {f"{name} {number}": count for number, count in enumerate(counts)}


def _counts(name: str, sums: dict[str, float]) -> list[float]:
    found = {int(key.removeprefix(f"{name} ")): value for key, value in sums.items() if key.startswith(f"{name} ")}
    return [found[number] for number in sorted(found)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What a run is held to."""

    limit: float | None = None
    """Share of answers that may differ from those at full depth; None promises nothing."""
    confidence: float = CONFIDENCE
    exits: tuple[float, ...] = ()
    """Rows by exit layer that the calibration saw at these thresholds."""
    reference: Reference | None = None
    withhold: bool = False
    """Whether results that fail stay unpublished."""
    price_per_hour: float | None = None
    """Of what one actor runs on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What the audit found in rows that were not published before. Times and FLOPs are of those rows."""

    rows: int
    differing: int
    limit: float | None
    confidence: float
    signals: list[Signal]
    flops: float
    flops_full_depth: float
    audit_flops: float
    device_seconds: float
    """Of all actors, classifying; the audit is left out."""
    audit_seconds: float
    full_depth_seconds: float | None
    """What full depth would have taken them, by the audited rows; None without any."""
    price_per_hour: float | None

    @property
    def share(self) -> float:
        return self.differing / max(self.rows, 1)

    @property
    def at_most(self) -> float:
        """The true share is at most this, with the confidence."""
        return upper_bound(self.differing, self.rows, self.confidence)

    @property
    def at_least(self) -> float:
        """The same from below."""
        return lower_bound(self.differing, self.rows, self.confidence)

    @property
    def verdict(self) -> str:
        """'kept' or 'broken' as far as these rows prove it, 'open' if they are too few, 'none' without a limit or rows."""
        if self.limit is None or not self.rows:
            return "none"
        proof = lower_bound(self.differing, self.rows, 1 - FALSE_ALARMS)
        return "broken" if proof > self.limit else "kept" if self.at_most <= self.limit else "open"

    @property
    def failed(self) -> bool:
        """Whether the limit is broken, or the rows are of another kind and there is no proof that it is kept."""
        return self.verdict == "broken" or (self.limit is not None and bool(self.alarms) and self.verdict != "kept")

    @property
    def alarms(self) -> list[str]:
        """Signals that say the rows are of another kind than those of the calibration."""
        return [signal.name for signal in self.signals if signal.state == "alarm"]

    def money(self, seconds: float) -> float:
        """Price of this many device-seconds."""
        return seconds / 3600 * (self.price_per_hour or 0.0)

    def to_json(self) -> dict[str, object]:
        """Lay out for the manifest."""
        values: dict[str, object] = {
            "audit": {
                "rows": self.rows,
                "differing": self.differing,
                "disagreement": self.share,
                "confidence": self.confidence,
                "at_most": self.at_most,
                "at_least": self.at_least,
                "limit": self.limit,
                "verdict": self.verdict,
                "flops": self.audit_flops,
                "device_seconds": self.audit_seconds,
            },
            "drift": {
                s.name: {"psi": s.psi, "watch": s.watch, "alarm": s.alarm, "state": s.state} for s in self.signals
            },
            "cost": {
                "flops": self.flops,
                "flops_full_depth": self.flops_full_depth,
                "device_seconds": self.device_seconds,
                "full_depth_device_seconds": self.full_depth_seconds,
                "price_per_hour": self.price_per_hour,
            },
        }
        return values


def judge(totals: Totals, guarantee: Guarantee) -> AuditResult:
    """Judge what was counted against what was promised."""
    sums = totals.sums
    early, full = sums.get(EARLY, 0.0), sums.get(FULL, 0.0)
    seconds = totals.seconds.get("classify", 0.0)
    signals: list[Signal] = []
    if guarantee.reference is not None:
        seen: dict[str, Sequence[float]] = {"exits": totals.exits} if guarantee.exits else {}
        seen |= {"truncation": [totals.rows_out - totals.truncated, totals.truncated]}
        seen |= {"length": _counts(LENGTH, sums), "uncertainty": _counts(UNCERTAINTY, sums)}
        signals = guarantee.reference.signals(guarantee.exits, seen)
    return AuditResult(
        rows=int(sums.get(ROWS, 0)),
        differing=int(sums.get(DIFFERING, 0)),
        limit=guarantee.limit,
        confidence=guarantee.confidence,
        signals=signals,
        flops=totals.flops,
        flops_full_depth=totals.flops_full_depth,
        audit_flops=sums.get(FLOPS, 0.0),
        device_seconds=seconds,
        audit_seconds=totals.seconds.get("audit", 0.0),
        full_depth_seconds=seconds * full / early if early else None,
        price_per_hour=guarantee.price_per_hour,
    )


def summary(found: AuditResult) -> list[str]:
    """Say it in lines for the end of a run."""
    lines = []
    if found.rows:
        limit = "" if found.limit is None else f"; the limit is {found.limit:.3%}: {found.verdict}"
        lines.append(
            f"audit        {found.differing:,} of {found.rows:,} rows differ from full depth ({found.share:.3%}), at most "
            f"{found.at_most:.3%} with {found.confidence:.0%} confidence{limit}"
        )
        extra = found.audit_flops / found.flops if found.flops else 0.0
        lines.append(f"audit cost   {found.audit_seconds:,.1f} device-seconds, {extra:.1%} of the FLOPs on top")
    if found.signals:
        told = ", ".join(
            f"{s.name} {s.psi:.3f}{'' if s.state == 'ok' else f' ({s.state.upper()})'}" for s in found.signals
        )
        lines.append(f"drift (PSI)  {told}")
    cost = f"cost         {found.flops:.3g} FLOPs, {found.device_seconds:,.1f} device-seconds"
    if found.price_per_hour is not None:
        cost += f", {found.money(found.device_seconds + found.audit_seconds):.4g} in money with the audit"
    if found.full_depth_seconds is not None:
        saved = found.full_depth_seconds - found.device_seconds
        cost += f"; full depth {found.flops_full_depth:.3g} FLOPs, about {found.full_depth_seconds:,.1f} device-seconds"
        if found.price_per_hour is not None:
            cost += f", so {found.money(saved - found.audit_seconds):.4g} saved"
    return [*lines, cost]
