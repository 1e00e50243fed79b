"""Tables that jobs/calibrate.py prints: what temperature scaling did, and what a calibrated model can guarantee."""

from collections.abc import Sequence

from pipeline.calibration.curve import Calibration, Scaling
from pipeline.calibration.guarantees import upper_bound
from pipeline.calibration.history.changes import Change
from pipeline.reports.page import Table


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
    head = ["target", "thresholds", "fewer FLOPs", "faster", "differing", f"bound ({confidence:.0%})"]
    note = (
        f"Differing: of the {curve.tested:,} test rows, those whose prediction is not that of full depth; "
        "bound: Clopper-Pearson, on the fraction of all rows."
    )
    return Table("What can be asked for", head, rows, note)


def changes_table(changes: Sequence[Change], tested: int, confidence: float) -> Table:
    """Return what each limit had and would have: what is saved, and what differs, both on the audited rows."""
    rows = []
    for change in changes:
        old, new = change.before, change.after
        before = ["", ""] if old is None else [f"{old.speedup:.2f}x", f"{old.disagreement:.3%}"]
        bound = upper_bound(new.differing or 0, tested, confidence)
        after = [f"{new.flops_speedup:.2f}x", f"{(new.differing or 0) / max(tested, 1):.3%}", f"{bound:.3%}"]
        rows.append([f"{change.limit:g}", *before, *after])
    head = ["at most", "fewer FLOPs so far", "differ", "fewer FLOPs from now on", "differ", f"bound ({confidence:.0%})"]
    note = (
        "So far: the thresholds that the calibration in the model has, on the audited rows. "
        f"From now on: those that these rows give, and the {tested:,} of them that test what differs."
    )
    return Table("What changes", head, rows, note)
