"""The verdict on a run: whether the audit's counts keep the guarantee, whether rows have drifted, and what the run cost."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, repeat

from pipeline.calibration.drift.expected import ComparedCells, ExpectedDisagreement, Risks, expected_disagreement
from pipeline.calibration.drift.hard import HardRows, hard_rows
from pipeline.calibration.drift.predictions import prediction_signals
from pipeline.calibration.drift.signals import Reference, Signal
from pipeline.calibration.guarantees import lower_bound, upper_bound
from pipeline.calibration.limits.audited import ClassAudit, audit_classes
from pipeline.calibration.limits.limits import Limits
from pipeline.calibration.sequential import (
    log_evidence_of_change,
    lower_bound_ever,
    rows_until,
    upper_bound_ever,
)
from pipeline.histograms import MAX_CLASS_BINS
from pipeline.nights import AuditedNights, Night
from pipeline.output.manifest import EXPECTED_DISAGREEMENT, HARD_ROWS
from pipeline.output.totals import Totals
from pipeline.predicted import Comparison

EXPECTED, HARD = "expected disagreement", "hard rows"
NO_COMPARISON = Comparison()
FALSE_ALARMS = 0.01
"""Probability of *ever* calling any limit broken, in all nights together, if the true fractions are the limits themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What a run is held to."""

    limits: Limits = field(default_factory=Limits)
    """What is guaranteed, if anything is."""
    labels: tuple[str, ...] = ()
    """Names of the model's classes, or labels."""
    exits: tuple[float, ...] = ()
    """Rows by exit layer that the calibration saw at these thresholds."""
    reference: Reference | None = None
    """Rows of the calibration, to compare with; None looks for no drift."""
    risks: Risks | None = None
    """Risks by cell that the calibration saw at these thresholds; None expects nothing of a run's rows."""
    withhold: bool = False
    """Whether results that fail stay unpublished."""
    price_per_hour: float | None = None
    """Price of the device that one actor runs on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What the audit says about the rows that were not published before, and about those of all nights together.

    Times and FLOPs are of the former.
    """

    rows: int
    """Audited rows."""
    differing: int
    """Audited rows whose prediction at full depth is another one."""
    all_nights: Sequence[Night] = ()
    """The nights of these results, tonight last; shards that were made again are in one of them alone."""
    limits: Limits
    proved: bool
    """Whether these audited rows alone prove that all limits are kept; without limits there is nothing to prove.

    While nights are withheld these rows only grow in number, so it is a bound that may be looked at again and again.
    """
    false_alarms: float = FALSE_ALARMS
    """Probability of ever calling the limit of all rows broken if it is kept; and of classes with limits, any of these."""
    classes: Sequence[ClassAudit] = ()
    """The classes that have limits, by all nights together, the nearest to broken first."""
    signals: list[Signal]
    expected: ExpectedDisagreement | None = None
    """What tonight's rows, audited or not, let one expect; None without a calibration that knows risks."""
    hard: HardRows | None = None
    """Tonight's rows that go deep, audited or not; None without a calibration."""
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
    def limit(self) -> float | None:
        """Largest fraction of all predictions that may differ from those at full depth; None if there is no such limit."""
        return self.limits.max_disagreement

    @property
    def confidence(self) -> float:
        """Probability with which the limits hold, and all bounds."""
        return self.limits.confidence

    @property
    def disagreement(self) -> float:
        """Fraction of the audited rows that differ."""
        return self.differing / max(self.rows, 1)

    @property
    def at_most(self) -> float:
        """Upper confidence bound of the true disagreement, by these rows alone."""
        return upper_bound(self.differing, self.rows, self.confidence)

    @property
    def at_least(self) -> float:
        """Lower confidence bound of the true disagreement, by these rows alone."""
        return lower_bound(self.differing, self.rows, self.confidence)

    @property
    def nights(self) -> int:
        """Nights that had an audit."""
        return sum(night.nights for night in self.all_nights if night.audited)

    @property
    def pooled(self) -> tuple[int, int]:
        """Differing and audited rows of all nights."""
        return sum(night.differing for night in self.all_nights), sum(night.audited for night in self.all_nights)

    @property
    def ever_at_most(self) -> float:
        """Upper bound of the true disagreement by all nights: with the confidence, it holds on every one of them."""
        return float(upper_bound_ever(*self.pooled, self.confidence))

    @property
    def ever_at_least(self) -> float:
        """Lower bound of the true disagreement by all nights, likewise."""
        return float(lower_bound_ever(*self.pooled, self.confidence))

    @property
    def verdict(self) -> str:
        """'kept' or 'broken' as far as all nights prove it, 'open' if that is not known yet, 'none' without a limit or rows."""
        if self.limit is None or not self.nights:
            return "none"
        evidence, _ = self._change(self.limit)
        broken = evidence >= -math.log(self.false_alarms)
        return "broken" if broken else "kept" if self.ever_at_most <= self.limit else "open"

    @property
    def broken_since(self) -> str:
        """When the night was published from which on the evidence against the limit is largest; empty if it is tonight."""
        if self.limit is None or not self.nights:
            return ""
        return self._change(self.limit)[1].published

    def _change(self, limit: float) -> tuple[float, Night]:
        """Return the logarithm of the evidence against a limit, and the night from which on it is largest."""
        audited = AuditedNights.of(self.all_nights)
        evidence, first = log_evidence_of_change(audited.counts, limit, audited.numbers)
        return evidence, audited.nights[first]

    @property
    def rows_to_tell(self) -> int | None:
        """About how many more audited rows would tell, if as many differ as so far; None if none would, or it is known."""
        differing, audited = self.pooled
        if self.limit is None or self.verdict != "open":
            return None
        fraction = differing / audited
        above = fraction > self.limit
        asked = 2 / self.false_alarms if above else 1 / (1 - self.confidence)
        rows = rows_until(self.limit, asked, fraction, above=above)
        return None if rows is None else max(rows - audited, 1)

    @property
    def failed(self) -> bool:
        """Whether a limit is broken, or tonight's rows have drifted and do not prove by themselves that all limits are kept."""
        return self.verdict == "broken" or bool(self.broken_classes) or (bool(self.alarms) and not self.proved)

    @property
    def broken_classes(self) -> list[ClassAudit]:
        """The classes whose limits are shown to be broken."""
        return [each for each in self.classes if each.verdict == "broken"]

    @property
    def alarms(self) -> list[str]:
        """Names of the signals by which the rows are of another kind than those of the calibration."""
        return [name for name, signal in self.drift.items() if signal.state == "alarm"]

    @property
    def drift(self) -> dict[str, Signal | ExpectedDisagreement | HardRows]:
        """Everything that may have drifted, by name; what is expected of the disagreement first."""
        others = {EXPECTED: self.expected, HARD: self.hard}
        found = {name: signal for name, signal in others.items() if signal is not None}
        return {**found, **{signal.name: signal for signal in self.signals}}

    def money(self, seconds: float) -> float:
        """Return the price of this many device-seconds."""
        return seconds / 3600 * (self.price_per_hour or 0.0)

    def to_json(self) -> dict[str, object]:
        """Return the blocks of the manifest: "audit", "drift" and "cost", and "guarantee" where there is one."""
        guarantee = self.limits.to_json()
        blocks: dict[str, object] = {"guarantee": guarantee} if guarantee else {}
        return {
            **blocks,
            **self._expected(),
            "audit": {
                "rows": self.rows,
                "differing": self.differing,
                "disagreement": self.disagreement,
                "confidence": self.confidence,
                "at_most": self.at_most,
                "at_least": self.at_least,
                "limit": self.limit,
                "verdict": self.verdict,
                "all_nights": self._all_nights(),
                **({"classes": [each.to_json() for each in self.classes]} if self.classes else {}),
                "flops": self.audit_flops,
                "device_seconds": self.audit_seconds,
            },
            "drift": {
                s.name: {"psi": s.psi, "watch": s.watch, "alarm": s.alarm, "state": s.state, "moved": s.moved}
                for s in self.signals
            },
            "cost": {
                "flops": self.flops,
                "flops_full_depth": self.flops_full_depth,
                "device_seconds": self.device_seconds,
                "full_depth_device_seconds": self.full_depth_seconds,
                "price_per_hour": self.price_per_hour,
            },
        }

    def _expected(self) -> dict[str, object]:
        blocks = {EXPECTED_DISAGREEMENT: self.expected, HARD_ROWS: self.hard}
        return {
            name: asdict(found) | {"state": found.state, "moved": found.moved}
            for name, found in blocks.items()
            if found is not None
        }

    def _all_nights(self) -> dict[str, object]:
        differing, audited = self.pooled
        return {
            "nights": self.nights,
            "rows": audited,
            "differing": differing,
            "disagreement": differing / max(audited, 1),
            "at_most": self.ever_at_most,
            "at_least": self.ever_at_least,
            "false_alarms": self.false_alarms,
            "broken_since": self.broken_since if self.verdict == "broken" else None,
            "rows_to_tell": self.rows_to_tell,
        }


def judge(
    totals: Totals,
    guarantee: Guarantee,
    nights: Sequence[Night],
    predictions: Comparison = NO_COMPARISON,
    whole: Totals | None = None,
) -> AuditResult:
    """Judge what was counted by what is guaranteed.

    `nights` are those of the same results, tonight last; `predictions` are tonight's beside those of all nights before.
    `whole` has the counts of all nights, by which classes are judged.
    """
    seconds = totals.seconds.get("classify", 0.0)
    early, full = totals.early_seconds, totals.full_seconds
    limits, risks = guarantee.limits, guarantee.risks
    cells = None if risks is None else ComparedCells.of(totals.exit_uncertainty, risks)
    return AuditResult(
        rows=totals.audited,
        differing=totals.differing,
        all_nights=nights,
        limits=limits,
        proved=all(
            float(upper_bound_ever(count, rows, limits.confidence)) <= limit
            for count, rows, limit in _limited(totals, guarantee)
        ),
        false_alarms=_false_alarms(guarantee),
        classes=[] if whole is None else _classes(whole, guarantee),
        signals=drift_signals(totals, guarantee, predictions),
        expected=None
        if cells is None
        else expected_disagreement(cells, limit=limits.max_disagreement, confidence=limits.confidence),
        hard=hard_rows(guarantee.exits, totals.exits, cells),
        flops=totals.flops,
        flops_full_depth=totals.flops_full_depth,
        audit_flops=totals.audit_flops,
        device_seconds=seconds,
        audit_seconds=totals.seconds.get("audit", 0.0),
        full_depth_seconds=seconds * full / early if early else None,
        price_per_hour=guarantee.price_per_hour,
    )


def _limited(totals: Totals, guarantee: Guarantee) -> Iterator[tuple[int, int, float]]:
    """Yield what was counted for each limit: rows that count against it, rows that it is about, and the limit.

    Accuracy cannot fall by more than differs, and without labels nothing finer is known of it.
    """
    limits = guarantee.limits
    for limit in (limits.max_disagreement, limits.max_quality_loss):
        if limit is not None:
            yield totals.differing, totals.audited, limit
    counted = zip(totals.audited_by_class, totals.missed_by_class, strict=True)
    uncounted = repeat((0, 0))  # without an audited row, or of too many classes to count them one by one
    for name, (rows, missed) in zip(guarantee.labels, chain(counted, uncounted), strict=False):
        if (of_class := limits.missed_of(name)) is not None:
            yield missed, rows, of_class


def _classes(whole: Totals, guarantee: Guarantee) -> list[ClassAudit]:
    counts = whole.audited_by_class, whole.missed_by_class
    return audit_classes(guarantee.labels, *counts, guarantee.limits, _false_alarms(guarantee))


def _false_alarms(guarantee: Guarantee) -> float:
    """Return the false alarms of each kind of limit that an audit tests, of all rows and of classes: of two, each has half."""
    limits, by_class = guarantee.limits, len(guarantee.labels) <= MAX_CLASS_BINS  # of more, classes are not counted
    both = limits.max_disagreement is not None and bool(limits.max_missed) and by_class
    return FALSE_ALARMS / 2 if both else FALSE_ALARMS


def drift_signals(totals: Totals, guarantee: Guarantee, predictions: Comparison = NO_COMPARISON) -> list[Signal]:
    """Compare a run's rows with those of the calibration, and what is predicted with all nights before.

    Without a reference there are no signals.
    """
    if guarantee.reference is None:
        return []
    counts: dict[str, Sequence[float]] = {"exits": totals.exits} if guarantee.exits else {}
    counts |= {
        "truncation": [totals.rows_out - totals.truncated, totals.truncated],
        "length": totals.length_histogram,
        "uncertainty": totals.audit_uncertainty,
    }
    return [*guarantee.reference.signals(guarantee.exits, counts), *prediction_signals(predictions)]
