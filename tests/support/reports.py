"""A made-up run with something in every section of its page, and names that would break one."""

from dataclasses import replace

import numpy as np

from pipeline.bulk.progress import Timeline
from pipeline.calibration.drift.expected import ExpectedDisagreement
from pipeline.calibration.drift.hard import HardRows
from pipeline.calibration.drift.signals import Signal
from pipeline.calibration.limits.limits import Limits
from pipeline.calibration.verdict import AuditResult
from pipeline.histograms import UNCERTAINTY_BINS, length_histogram, uncertainty_bins
from pipeline.nights import Night
from pipeline.output.receipts import Receipt
from pipeline.output.totals import Totals
from pipeline.predicted import Comparison, Predicted, PredictionBins
from pipeline.reports.page import Table
from pipeline.reports.run_report import RunSummary

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>' + "x" * 200


def receipt(number: int) -> Receipt:
    """Make the receipt of a shard of 1,010 rows."""
    random = np.random.default_rng(number)
    lengths, doubt = random.integers(3, 300, 1000), random.random(1000).astype(np.float32)
    return Receipt(
        shard=f"{number:016x}",
        file=f"/corpus/{number}.parquet",
        size=1_000_000,
        version="m",
        start=0,
        span=1010,
        last=True,
        input_bytes=1e6,
        read_error="Unexpected end of <file>" if number == 3 else None,
        rows_in=1010,
        rows_out=1000,
        rejected={"null_text": 7, "invalid_utf8": 3},
        truncated=12,
        tokens=int(lengths.sum()),
        exits=[400, 300, 0, 200, 60, 40],
        uncertainty_histogram=np.bincount(uncertainty_bins(doubt), minlength=UNCERTAINTY_BINS).tolist(),
        length_histogram=length_histogram(lengths),
        layer_tokens=300_000,
        padding_tokens=3_000,
        flops=2e12,
        flops_full_depth=5e12,
        seconds={"read": 0.2, "tokenize": 0.5, "classify": 2.0 + number / 10, "write": 0.1},
        cpu_seconds={"read": 0.1, "tokenize": 0.9, "classify": 4.0, "write": 0.1},
        peak_mb={"read": 200, "tokenize": 300, "classify": 900, "write": 150},
    )


AUDIT = AuditResult(
    expected=ExpectedDisagreement(
        rows=8000, expected=0.014, at_least=0.011, at_most=0.018, confidence=0.95, calibration=0.007, chance=0.002, limit=0.01,
        cells="rows that exit at layer 5 with uncertainty 0.2 to 0.3 went from 5.0% to 10.2%",
    ),
    hard=HardRows(rows="rows that go beyond layer 4", calibration=0.05, now=0.102, chance=0.02),
    rows=2000, differing=12, limits=Limits(max_disagreement=0.01), proved=True,
    signals=[Signal(name="length", psi=0.31, watch=0.1, alarm=0.25, moved="rows of 33 to 48 tokens went from 5.0% to 31.2%")],
    flops=1e12, flops_full_depth=3e12, audit_flops=4e10, device_seconds=3600.0, audit_seconds=120.0,
    full_depth_seconds=9000.0, price_per_hour=2.0,
)  # fmt: skip


def compared(classes: int = 60) -> Comparison:
    """Compare two nights of a model whose class 3 has become frequent, and has a hostile name."""
    labels = [f"class {number}" if number != 3 else HOSTILE for number in range(classes)]
    bins = PredictionBins.of(["label", "score"], labels)

    def night(rows: int, frequent: int) -> Predicted:
        counts = [rows // classes] * classes
        counts[3] += frequent
        return Predicted.of(bins, rows=rows + frequent, classes=counts, scores=[0] * 12 + [rows, *[0] * 6, frequent])

    before, now = night(6000, 0), night(6000, 2000)
    return Comparison(
        bins=bins, all=night(12_000, 2000), new=now, all_before=before, new_before=before, since="2026-11-26T02:13:20Z"
    )


def many_nights(nights: int = 30) -> list[Night]:
    """Make nights of which the last third is of other rows: more differ, fewer FLOPs are saved, and a class is frequent."""
    made = []
    for number in range(nights):
        late = number >= 2 * nights // 3
        night = Night(
            published=f"2026-{10 + number // 30}-{number % 30 + 1:02}T02:13:20Z",
            rows=10_000 + number,
            audited=200,
            differing=(6 if late else 1) + number % 2,
            flops=4e12 if late else 2e12,
            flops_full_depth=8e12,
            drift={"length": 0.3 if late else 0.02, "exits": 0.2 if late else 0.01},
            classes={HOSTILE: 4000 if late else 500, "good": 5000, "bad": 800},
            expected={}
            if number == 1
            else {"expected": 0.007, "at_least": 0.006, "at_most": 0.009, "calibration": 0.0071},
            alarms=["length: rows of 33 to 48 tokens went from 5.0% to 30.0%"] if late else [],
        )
        made.append(night)
    return made


def example_run(shards: int = 24) -> RunSummary:
    """Make a run with something in every section of its page."""
    totals, timeline = Totals(), Timeline()
    for number in range(shards):
        one = receipt(number)
        totals = totals.plus(one)
        timeline.add(Totals().plus(one), 2.0 + number * 1.5 + number % 3)
    return RunSummary(
        folder="/data/out",
        fingerprint={"model": "/models/reviews 5e9d01f6a1b2c3d4", "criterion": "entropy 0.3", "dtype": "auto"},
        files=shards,
        input_bytes=24_000_000,
        seconds=41.5,
        totals=totals,
        fresh=totals,
        timeline=timeline,
        audit=replace(AUDIT, all_nights=many_nights()),
        predictions=compared(),
        examples=Table("Examples", ["exit", "text"], [["1", "a <b>bold</b> claim, and much more text than that"]]),
    )
