"""Tables that jobs/calibrate.py prints: what temperature scaling did, and what a calibrated model can guarantee."""

from collections.abc import Sequence

from pipeline.calibration.curve import Calibration, Scaling
from pipeline.calibration.guarantees import upper_bound
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
