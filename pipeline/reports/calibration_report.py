"""Tables that jobs/calibrate.py prints: what temperatures did, what a calibrated model can guarantee, and on how many rows."""

from collections.abc import Sequence

from pipeline.calibration.curve import Calibration, Curve, Scaling
from pipeline.calibration.guarantees import loss_bound, upper_bound
from pipeline.calibration.history.changes import Change
from pipeline.calibration.limits.conditions import Condition
from pipeline.calibration.limits.limits import Limits, percent
from pipeline.reports.page import Table

USUAL_LIMITS = (0.01, 0.02, 0.05)
"""Limits whose sample sizes are told."""
CLASSES_SHOWN = 12
"""The table of sample sizes has at most this many classes: the rarest, which take the largest samples."""


def scaling_table(scalings: Sequence[Scaling]) -> Table:
    """Return the temperature of every exit, with its calibration error without and with it."""
    rows = [
        [str(s["layer"]), f"{s['temperature']:.3f}", f"{s['error_before']:.2%}", f"{s['error_after']:.2%}"]
        for s in scalings
    ]
    head = ["exit after layer", "temperature", "calibration error before", "after"]
    return Table("Temperature of every exit", head, rows, "Expected calibration error, 15 bins (Guo et al. 2017).")


def calibration_table(calibration: Calibration, confidence: float) -> Table:
    """Return thresholds by target, each with its saving and the bound on disagreement that it keeps."""
    curve, timing, rows = calibration.curve, calibration.timing, []
    for target, choice in calibration.choices.items():
        bound = "" if choice.differing is None else f"{upper_bound(choice.differing, curve.tested, confidence):.3%}"
        time = "" if timing is None else f"{timing.time_speedup_at(choice.flops_speedup):.2f}x"
        thresholds = "full depth" if choice.criterion.full_depth else choice.criterion.describe()
        differing = "" if choice.differing is None else f"{choice.differing:,}"
        rows.append([target, thresholds, f"{choice.flops_speedup:.2f}x", time, differing, bound])
    head = ["target", "thresholds", "fewer FLOPs", "faster", "differing", f"bound ({percent(confidence)})"]
    note = (
        f"Differing: of the {curve.tested:,} test rows, those whose prediction is not that of full depth; "
        "bound: Clopper-Pearson, on the fraction of all rows."
    )
    return Table("What can be asked for", head, rows, note)


def sizes_table(curve: Curve, confidence: float) -> Table:
    """Return how many rows to calibrate on for usual limits on all rows, on every class, and on quality."""
    columns = [_unchanged(curve, limit, confidence) for limit in USUAL_LIMITS]
    lines = list(zip(*columns, strict=True))
    of_class = sorted((line for line in lines if line[0].name is not None), key=lambda line: line[0].rows)
    shown = [line for line in lines if line[0].name is None] + of_class[:CLASSES_SHOWN]
    rows = [_sizes(curve, conditions, confidence) for conditions in shown]
    head = ["of", "tested rows", "least limit", *(f"rows for {limit:.0%}" for limit in USUAL_LIMITS)]
    more = len(of_class) - CLASSES_SHOWN
    note = (
        f"Rows to calibrate on for a limit ({percent(confidence)}), if rows are like these and nothing changes at the safest "
        "thresholds: about four times as many where half of the limit is used up. Least limit: the lowest that the tested rows "
        "can show."
    )
    note += f" Of {len(of_class):,} classes these are the rarest." if more > 0 else ""
    return Table("How many rows a limit takes", head, rows, note)


def _unchanged(curve: Curve, limit: float, confidence: float) -> list[Condition]:
    """Return the conditions that this limit on everything that was counted would put, as of full depth."""
    missed = () if curve.classes is None else ((None, limit),)
    quality = None if curve.quality is None else limit
    limits = Limits(max_disagreement=limit, max_missed=missed, max_quality_loss=quality, confidence=confidence)
    return curve.conditions(limits)


def _sizes(curve: Curve, conditions: Sequence[Condition], confidence: float) -> list[str]:
    """Return a line of the table of sizes, for one condition at every limit."""
    first = conditions[0]
    of = "quality" if first.better is not None else "all rows" if first.name is None else f"'{first.name}'"
    bound = (
        loss_bound(0, 0, first.rows, confidence) if first.better is not None else upper_bound(0, first.rows, confidence)
    )
    needed = [condition.sample_rows(0, confidence, curve.sample_of) for condition in conditions]
    return [of, f"{first.rows:,}", f"{bound:.2%}", *("?" if rows is None else f"{rows:,}" for rows in needed)]


def changes_table(changes: Sequence[Change], tested: int, confidence: float) -> Table:
    """Return what each limit had and would have: what is saved, and what differs, both on the audited rows."""
    rows = []
    for change in changes:
        old, new = change.before, change.after
        before = ["", ""] if old is None else [f"{old.speedup:.2f}x", f"{old.disagreement:.3%}"]
        bound = upper_bound(new.differing or 0, tested, confidence)
        after = [f"{new.flops_speedup:.2f}x", f"{(new.differing or 0) / max(tested, 1):.3%}", f"{bound:.3%}"]
        rows.append([f"{change.limit:g}", *before, *after])
    head = [
        "at most",
        "fewer FLOPs so far",
        "differ",
        "fewer FLOPs from now on",
        "differ",
        f"bound ({percent(confidence)})",
    ]
    note = (
        "So far: the thresholds that the calibration in the model has, on the audited rows. "
        f"From now on: those that these rows give, and the {tested:,} of them that test what differs."
    )
    return Table("What changes", head, rows, note)
