"""Options of classify.py that ask for a speed or a limit in place of a threshold, and for checks of what comes out."""

import argparse

from jobs.cli import options
from pipeline.bulk.run import BulkModel
from pipeline.calibration.audit import AuditSpec
from pipeline.calibration.curve import Calibration, Choice
from pipeline.calibration.guarantees import CONFIDENCE, upper_bound
from pipeline.calibration.verdict import Guarantee
from pipeline.errors import InputError

TARGETS = ("speed", "target_speedup", "max_disagreement")
SEARCHED = ("criterion", "patience", "exits")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--target-speedup",
        type=float,
        metavar="X",
        help="choose thresholds that save so many FLOPs: 2 is half of full depth's (needs jobs/calibrate.py)",
    )
    parser.add_argument(
        "--speedup-in",
        choices=["flops", "time"],
        default="flops",
        help="what --target-speedup counts; time is wall-clock, as calibrate.py measured it on the same hardware",
    )
    parser.add_argument(
        "--max-disagreement",
        type=options.share,
        metavar="E",
        help="choose the fastest thresholds with at most this share of answers (1%% or 0.01) other than at full depth",
    )
    parser.add_argument(
        "--confidence",
        type=options.share,
        default=CONFIDENCE,
        metavar="C",
        help="probability with which that limit holds",
    )
    parser.add_argument(
        "--audit",
        type=options.share,
        metavar="SHARE",
        help="send this share of rows (0.5%% or 0.005) to full depth as well",
    )
    parser.add_argument(
        "--audit-fail",
        action="store_true",
        help="end with exit code 1 and publish nothing if the audit shows that the limit is broken, or cannot show that it is "
        "kept and the rows have drifted",
    )
    parser.add_argument(
        "--price-per-hour", type=float, metavar="P", help="of what one actor runs on: tell what was spent and saved"
    )


def calibration_for(args: argparse.Namespace, model: BulkModel) -> Calibration | None:
    """Load the model's calibration if an option needs one; raise UserError if it is missing or about something else."""
    given = [name for name in TARGETS if getattr(args, name) is not None]
    if len(given) > 1:
        raise InputError(given[1], f"and --{given[0].replace('_', '-')} exclude each other")
    if args.audit_fail and (args.audit is None or args.max_disagreement is None):
        raise InputError("audit_fail", "needs --audit and --max-disagreement")
    if not given or given == ["speed"]:
        return None
    clash = [name for name in SEARCHED if getattr(args, name) is not None]
    if clash:
        raise InputError(clash[0], f"is chosen by --{given[0].replace('_', '-')}, from what calibrate.py found")
    calibration = Calibration.load(model.directory)
    calibration.check(model.weights, args.dtype, model.tokenizer.max_tokens)
    known = calibration.curve.tolerance
    if args.tolerance not in (None, known):
        raise InputError(
            "tolerance", f"{args.tolerance:g}: the model was calibrated with {known:g}; run calibrate.py again"
        )
    return calibration


def choose(args: argparse.Namespace, calibration: Calibration | None) -> Choice | None:
    """Choose thresholds for what was asked, and say what may be expected of them."""
    if calibration is None:
        return None
    try:
        choice = _for_limit(args, calibration) if args.target_speedup is None else _for_speedup(args, calibration)
    except ValueError as error:
        raise InputError("target_speedup", str(error)) from error
    timing = calibration.timing
    time = f", {timing.time_speedup_at(choice.flops_speedup):.2f}x faster on {timing.hardware}" if timing else ""
    print(f"{choice.criterion.describe()}: {choice.flops_speedup:.2f}x fewer FLOPs expected{time}")
    return choice


def _for_speedup(args: argparse.Namespace, calibration: Calibration) -> Choice:
    if args.speedup_in == "flops":
        return calibration.curve.at_speedup(args.target_speedup)
    if calibration.timing is None:
        raise ValueError("in time: calibrate.py was run without timing")
    return calibration.curve.at_speedup(calibration.timing.flops_speedup_for(args.target_speedup))


def _for_limit(args: argparse.Namespace, calibration: Calibration) -> Choice:
    limit, confidence, curve = args.max_disagreement, args.confidence, calibration.curve
    choice = curve.within(limit, confidence)
    if choice.criterion.full_depth:
        print(f"nothing faster can be promised, so every row runs at full depth: {curve.shortage(limit, confidence)}")
    else:
        bound = upper_bound(choice.differing or 0, curve.tested, confidence)
        print(
            f"{choice.differing:,} of {curve.tested:,} calibration rows differ, so at most {bound:.3%} ({confidence:.0%})"
        )
    return choice


def audit_spec(args: argparse.Namespace, calibration: Calibration | None) -> AuditSpec | None:
    """Say what actors count; None if nothing needs to be."""
    if not args.audit:
        return None
    edges = () if calibration is None else tuple(calibration.reference.uncertainty_edges)
    return AuditSpec(fraction=args.audit, uncertainty_edges=edges)


def guarantee(args: argparse.Namespace, calibration: Calibration | None, choice: Choice | None) -> Guarantee:
    """Say what the run is held to."""
    return Guarantee(
        limit=args.max_disagreement,
        confidence=args.confidence,
        exits=() if choice is None else tuple(choice.exits),
        reference=None if calibration is None else calibration.reference,
        withhold=args.audit_fail,
        price_per_hour=args.price_per_hour,
    )
