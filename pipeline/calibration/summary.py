"""What a run says at its end of what it was held to: the guarantee, the audit, drift and cost, line by line."""

from collections.abc import Sequence

from pipeline.calibration.drift.expected import ExpectedDisagreement
from pipeline.calibration.drift.signals import Signal
from pipeline.calibration.limits.audited import over_classes
from pipeline.calibration.limits.limits import percent
from pipeline.calibration.verdict import AuditResult


def summary(result: AuditResult) -> list[str]:
    """Return the lines on audit, drift and cost that end the log of a run."""
    audit = _audit_lines(result) if result.rows else _night_lines(result)
    drift = [_drift_line(result.signals)] if result.signals else []
    expected = [] if result.expected is None else [_expected_line(result.expected)]
    classes = [f"classes      {over_classes(result.classes)}"] if result.classes else []
    moved = [*drift, *expected, *drift_lines(result)]
    return [*_guarantee_lines(result), *audit, *classes, *moved, _cost_line(result)]


def _guarantee_lines(result: AuditResult) -> list[str]:
    """Return what is guaranteed, where it is more than the disagreement of all rows."""
    clauses, confidence = "; ".join(result.limits.describe()), result.limits.confidence
    return [f"guarantee    {clauses}: together, with {percent(confidence)} confidence"] if result.limits.finer else []


def _audit_lines(result: AuditResult) -> list[str]:
    """Return what differs from full depth, and what it cost to find out."""
    extra = result.audit_flops / result.flops if result.flops else 0.0
    return [
        f"audit        {result.differing:,} of {result.rows:,} rows differ from full depth ({result.disagreement:.3%}), "
        f"at most {result.at_most:.3%} with {percent(result.confidence)} confidence",
        *_night_lines(result),
        f"audit cost   {result.audit_seconds:,.1f} device-seconds, {extra:.1%} of the FLOPs on top",
    ]


def _night_lines(result: AuditResult) -> list[str]:
    return [] if result.verdict == "none" else [f"all nights   {over_all_nights(result)}"]


def over_all_nights(result: AuditResult) -> str:
    """Say what all nights together prove of the limit, and what would if they do not."""
    differing, audited = result.pooled
    line = (
        f"{differing:,} of {audited:,} audited rows in {result.nights:,} night{'s' * (result.nights > 1)}, "
        f"at most {result.ever_at_most:.3%} whenever looked at; the limit of {result.limit:.3%} is "
    )
    if result.verdict == "broken":
        return f"{line}broken, since {result.broken_since or 'tonight'}"
    if result.verdict == "kept":
        return f"{line}kept"
    more = result.rows_to_tell
    return f"{line}open: {f'about {more:,} more audited rows would tell' if more else 'no number of rows would tell'}"


def _drift_line(signals: Sequence[Signal]) -> str:
    """Return the index of every signal, and the state of those that are not ok."""
    states = (f"{s.name} {s.psi:.3f}{'' if s.state == 'ok' else f' ({s.state.upper()})'}" for s in signals)
    return f"drift (PSI)  {', '.join(states)}"


def _expected_line(expected: ExpectedDisagreement) -> str:
    return (
        f"expected     {expected.expected:.3%} of these rows differ from full depth, {expected.at_least:.3%} to "
        f"{expected.at_most:.3%} ({percent(expected.confidence)} each), if rows are as risky as they look; of the "
        f"calibration's {expected.calibration:.3%} did"
    )


def drift_lines(result: AuditResult) -> list[str]:
    """Name what has moved, alarms first: "drift alarm  expected disagreement 1.400% (calibration 0.700%): rows that ..."."""
    moved = [signal for state in ("alarm", "watch") for signal in result.drift.values() if signal.state == state]
    return [f"{f'drift {signal.state}':13}{signal.describe()}" for signal in moved]


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
