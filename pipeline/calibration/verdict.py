"""The verdict on a run: whether the audit's counts keep the guarantee, whether rows have drifted, and what the run cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.calibration.drift import Reference, Signal
from pipeline.calibration.guarantees import CONFIDENCE, lower_bound, upper_bound
from pipeline.output.totals import Totals

FALSE_ALARMS = 0.01
"""Probability of *ever* calling a limit broken, in all nights together, if the true disagreement is the limit itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What a run is held to."""

    limit: float | None = None
    """Largest fraction of predictions that may differ from those at full depth; None guarantees nothing."""
    confidence: float = CONFIDENCE
    exits: tuple[float, ...] = ()
    """Rows by exit layer that the calibration saw at these thresholds."""
    reference: Reference | None = None
    """Rows of the calibration, to compare with; None looks for no drift."""
    withhold: bool = False
    """Whether results that fail stay unpublished."""
    price_per_hour: float | None = None
    """Price of the device that one actor runs on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What the audit says about the rows that were not published before. Times and FLOPs are of those rows."""

    rows: int
    """Audited rows."""
    differing: int
    """Audited rows whose prediction at full depth is another one."""
    limit: float | None
    confidence: float
    signals: list[Signal]
    flops: float
    flops_full_depth: float
    audit_flops: float
    device_seconds: float
    """Time of all actors, classifying; the audit is left out."""
    audit_seconds: float
    full_depth_seconds: float | None
    """Time that full depth would have taken, estimated by the audited rows; None without any."""
    price_per_hour: float | None

    @property
    def disagreement(self) -> float:
        """Fraction of the audited rows that differ."""
        return self.differing / max(self.rows, 1)

    @property
    def at_most(self) -> float:
        """Upper confidence bound of the true disagreement."""
        return upper_bound(self.differing, self.rows, self.confidence)

    @property
    def at_least(self) -> float:
        """Lower confidence bound of the true disagreement."""
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
        """Whether the limit is broken, or the rows have drifted and there is no proof that it is kept."""
        return self.verdict == "broken" or (self.limit is not None and bool(self.alarms) and self.verdict != "kept")

    @property
    def alarms(self) -> list[str]:
        """Names of the signals by which the rows are of another kind than those of the calibration."""
        return [signal.name for signal in self.signals if signal.state == "alarm"]

    def money(self, seconds: float) -> float:
        """Return the price of this many device-seconds."""
        return seconds / 3600 * (self.price_per_hour or 0.0)

    def to_json(self) -> dict[str, object]:
        """Return the blocks of the manifest: "audit", "drift" and "cost"."""
        return {
            "audit": {
                "rows": self.rows,
                "differing": self.differing,
                "disagreement": self.disagreement,
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


def judge(totals: Totals, guarantee: Guarantee) -> AuditResult:
    """Judge what was counted by what is guaranteed."""
    seconds = totals.seconds.get("classify", 0.0)
    early, full = totals.early_seconds, totals.full_seconds
    return AuditResult(
        rows=totals.audited,
        differing=totals.differing,
        limit=guarantee.limit,
        confidence=guarantee.confidence,
        signals=drift_signals(totals, guarantee),
        flops=totals.flops,
        flops_full_depth=totals.flops_full_depth,
        audit_flops=totals.audit_flops,
        device_seconds=seconds,
        audit_seconds=totals.seconds.get("audit", 0.0),
        full_depth_seconds=seconds * full / early if early else None,
        price_per_hour=guarantee.price_per_hour,
    )


def drift_signals(totals: Totals, guarantee: Guarantee) -> list[Signal]:
    """Compare a run's rows with those of the calibration; without a reference there are no signals."""
    if guarantee.reference is None:
        return []
    counts: dict[str, Sequence[float]] = {"exits": totals.exits} if guarantee.exits else {}
    counts |= {
        "truncation": [totals.rows_out - totals.truncated, totals.truncated],
        "length": totals.length_histogram,
        "uncertainty": totals.audit_uncertainty,
    }
    return guarantee.reference.signals(guarantee.exits, counts)


def summary(result: AuditResult) -> list[str]:
    """Return the lines on audit, drift and cost that end the log of a run."""
    audit = _audit_lines(result) if result.rows else []
    drift = [_drift_line(result.signals)] if result.signals else []
    return [*audit, *drift, _cost_line(result)]


def _audit_lines(result: AuditResult) -> list[str]:
    """Return what differs from full depth, and what it cost to find out."""
    limit = "" if result.limit is None else f"; the limit is {result.limit:.3%}: {result.verdict}"
    extra = result.audit_flops / result.flops if result.flops else 0.0
    return [
        f"audit        {result.differing:,} of {result.rows:,} rows differ from full depth ({result.disagreement:.3%}), "
        f"at most {result.at_most:.3%} with {result.confidence:.0%} confidence{limit}",
        f"audit cost   {result.audit_seconds:,.1f} device-seconds, {extra:.1%} of the FLOPs on top",
    ]


def _drift_line(signals: Sequence[Signal]) -> str:
    """Return the index of every signal, and the state of those that are not ok."""
    states = (f"{s.name} {s.psi:.3f}{'' if s.state == 'ok' else f' ({s.state.upper()})'}" for s in signals)
    return f"drift (PSI)  {', '.join(states)}"


def _cost_line(result: AuditResult) -> str:
    """Return what was spent, and, where the audit can estimate it, what full depth would have taken."""
    line = f"cost         {result.flops:.3g} FLOPs, {result.device_seconds:,.1f} device-seconds"
    if result.price_per_hour is not None:
        line += f", {result.money(result.device_seconds + result.audit_seconds):.4g} in money with the audit"
    if result.full_depth_seconds is not None:
        saved = result.full_depth_seconds - result.device_seconds - result.audit_seconds
        line += (
            f"; full depth {result.flops_full_depth:.3g} FLOPs, about {result.full_depth_seconds:,.1f} device-seconds"
        )
        if result.price_per_hour is not None:
            line += f", so {result.money(saved):.4g} saved"
    return line
