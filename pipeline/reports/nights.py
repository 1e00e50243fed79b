"""All nights of an output folder on the page of its newest run: disagreement and its bounds, savings, drift, classes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.calibration.limits.limits import percent
from pipeline.calibration.sequential import lower_bound_ever, upper_bound_ever
from pipeline.calibration.verdict import AuditResult
from pipeline.nights import EXPECTED, Night
from pipeline.reports.page import Lines, Section, Table

FEWEST_NIGHTS = 2
SHOWN_NIGHTS = 366
"""Nights on a chart, the newest: a year."""
SHOWN_CLASSES = 6
CLASSES_NOTE = "Percent of each night's rows. Of a night the most frequent classes are kept, and others count as 0."
EXPECTED_NOTE = (
    "Percent of each night's rows, audited or not, if they are as risky as rows of the calibration with the same exit and "
    "uncertainty. The bounds are for what the calibration did not know."
)
TONIGHT = "tonight"
SHOWN_ALARMS = 12
"""Drift alarms in the list, the newest."""
TALLEST = 4
"""Bounds are drawn up to so many times the limit, or the largest disagreement: those of the first nights are far above."""


def over_nights(audit: AuditResult, classes: Mapping[str, int]) -> list[Section]:
    """Chart the nights, tonight last, whose rows by class are given; nothing of a single night, or that no night has."""
    if len(audit.all_nights) < FEWEST_NIGHTS:
        return []
    *earlier, tonight = audit.all_nights
    psi = {signal.name: signal.psi for signal in audit.signals}
    expected = {} if audit.expected is None else {name: getattr(audit.expected, name) for name in EXPECTED}
    alarms = [f"{name}: {audit.drift[name].moved}" for name in audit.alarms]
    now = replace(tonight, published=TONIGHT, drift=psi, classes=dict(classes), expected=expected, alarms=alarms)
    nights = [*earlier, now]
    charts = (
        *_disagreement(nights, audit),
        *_expected(nights, audit),
        *_savings(nights),
        *_drift(nights),
        *_classes(nights),
    )
    return [*charts, *_alarms(nights)]


def _chart(title: str, nights: Sequence[Night], values: dict[str, list[float]], unit: str, note: str) -> Lines:
    first, last = nights[-SHOWN_NIGHTS:][0], nights[-1]
    shown = {name: line[-SHOWN_NIGHTS:] for name, line in values.items()}
    return Lines(title, shown, first.published[:10], last.published[:10], unit, note)


def _disagreement(nights: Sequence[Night], audit: AuditResult) -> list[Lines]:
    """Chart the fraction of audited rows that differ, of all nights up to each, between bounds that hold at every look."""
    audited = [night for night in nights if night.audited]
    if len(audited) < FEWEST_NIGHTS:
        return []
    counts = np.cumsum([(night.differing, night.audited) for night in audited], axis=0)[-SHOWN_NIGHTS:].T
    differ = counts[0] / counts[1]
    top = TALLEST * max(audit.limit or 0.0, differ.max()) or 1.0
    lines = {"differ": differ}
    for name, bound in (("at most", upper_bound_ever), ("at least", lower_bound_ever)):
        lines[name] = np.minimum(bound(counts[0], counts[1], audit.confidence), top)
    if audit.limit is not None:
        lines["limit"] = np.full(len(differ), audit.limit)
    values = {name: (100 * line).tolist() for name, line in lines.items()}
    note = (
        f"Percent of the audited rows of all nights so far, {counts[1, -1]:,} in the end. Each bound holds on every night, "
        f"with {percent(audit.confidence)} confidence, if the true rate is the same on all of them."
    )
    return [_chart("Disagreement with full depth, over the nights", audited, values, "percent", note)]


def _expected(nights: Sequence[Night], audit: AuditResult) -> list[Lines]:
    """Chart the disagreement that each night's rows let one expect, with its bounds, beside that of the calibration's rows."""
    known = [night for night in nights if night.expected]
    if len(known) < FEWEST_NIGHTS:
        return []
    names = {"expected": "expected", "at most": "at_most", "at least": "at_least", "calibration": "calibration"}
    values = {name: [100 * night.expected.get(key, 0.0) for night in known] for name, key in names.items()}
    if audit.limit is not None:
        values["limit"] = [100 * audit.limit] * len(known)
    return [_chart("Expected disagreement over the nights", known, values, "percent", EXPECTED_NOTE)]


def _alarms(nights: Sequence[Night]) -> list[Table]:
    """List the nights with a drift alarm, the newest first, and what had moved."""
    cells = [[night.published[:10], alarm] for night in reversed(nights) for alarm in night.alarms]
    note = "" if len(cells) <= SHOWN_ALARMS else f"The newest {SHOWN_ALARMS} of {len(cells):,}."
    return [Table("Drift alarms over the nights", ["night", "what moved"], cells[:SHOWN_ALARMS], note)] if cells else []


def _savings(nights: Sequence[Night]) -> list[Lines]:
    worked = [night for night in nights if night.flops]
    saved = {"fewer FLOPs": [night.flops_full_depth / night.flops for night in worked]}
    note = "FLOPs of the plain full-depth model over those spent, of each night's rows."
    return [_chart("Savings over the nights", worked, saved, "times", note)] if len(worked) >= FEWEST_NIGHTS else []


def _drift(nights: Sequence[Night]) -> list[Lines]:
    compared = [night for night in nights if night.drift]
    names = sorted({name for night in compared for name in night.drift})
    values = {name: [night.drift.get(name, 0.0) for night in compared] for name in names}
    note = "Population stability index of each night's rows against the calibration sample."
    return [_chart("Drift over the nights", compared, values, "PSI", note)] if len(compared) >= FEWEST_NIGHTS else []


def _classes(nights: Sequence[Night]) -> list[Lines]:
    counted = [night for night in nights if night.classes and night.rows]
    if len(counted) < FEWEST_NIGHTS:
        return []

    def fraction(night: Night, name: str) -> float:
        return night.classes.get(name, 0) / night.rows

    most = {name: max(fraction(night, name) for night in counted) for night in counted for name in night.classes}
    names = sorted(most, key=lambda name: -most[name])[:SHOWN_CLASSES]
    values = {name: [100 * fraction(night, name) for night in counted] for name in names}
    return [_chart("Classes over the nights", counted, values, "percent", CLASSES_NOTE)]
