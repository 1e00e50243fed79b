"""Options of classify.py that ask for a speed or a limit in place of a threshold, and for checks of what comes out."""

import argparse
from dataclasses import fields

from jobs.cli import options
from pipeline.bulk.run import BulkModel
from pipeline.calibration import targets
from pipeline.calibration.audit import AuditSpec
from pipeline.calibration.curve import Calibration, Choice
from pipeline.calibration.guarantees import CONFIDENCE, upper_bound
from pipeline.calibration.targets import Target
from pipeline.calibration.verdict import Guarantee
from pipeline.errors import InputError


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
        type=options.fraction,
        metavar="E",
        help="choose the fastest thresholds with at most this fraction of predictions (1%% or 0.01) other than at full depth",
    )
    parser.add_argument(
        "--confidence",
        type=options.fraction,
        default=CONFIDENCE,
        metavar="C",
        help="probability with which that limit holds",
    )
    parser.add_argument(
        "--audit",
        type=options.fraction,
        metavar="FRACTION",
        help="send this fraction of rows (0.5%% or 0.005) to full depth as well",
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


def target_of(args: argparse.Namespace) -> Target:
    """Return what the options ask of the exits; raise InputError for options that exclude each other."""
    values = {field.name: getattr(args, field.name) for field in fields(Target)}
    return Target(**(values | {"exits": tuple(args.exits) if args.exits else None}))


def calibration_for(args: argparse.Namespace, model: BulkModel) -> Calibration | None:
    """Load the model's calibration if an option needs one; raise UserError if it is missing or about something else."""
    target = target_of(args)
    if args.audit_fail and (args.audit is None or args.max_disagreement is None):
        raise InputError("audit_fail", "needs --audit and --max-disagreement")
    if not target.needs_calibration:
        return None
    return targets.load_calibration(
        model.directory, target, weights=model.weights, dtype=args.dtype, max_tokens=model.tokenizer.max_tokens
    )


def choose(args: argparse.Namespace, calibration: Calibration | None) -> Choice | None:
    """Choose thresholds for what the options ask, and print what may be expected of them."""
    if calibration is None:
        return None
    target = target_of(args)
    choice = targets.choose(target, calibration)
    if target.max_disagreement is not None:
        print(_expected_disagreement(choice, calibration, target.max_disagreement, target.confidence))
    timing = calibration.timing
    time = f", {timing.time_speedup_at(choice.flops_speedup):.2f}x faster on {timing.hardware}" if timing else ""
    print(f"{choice.criterion.describe()}: {choice.flops_speedup:.2f}x fewer FLOPs expected{time}")
    return choice


def _expected_disagreement(choice: Choice, calibration: Calibration, limit: float, confidence: float) -> str:
    """Say how many predictions may differ at most, or why nothing faster than full depth can be guaranteed."""
    curve = calibration.curve
    if choice.criterion.full_depth:
        why = curve.shortage(limit, confidence)
        return f"nothing faster can be guaranteed, so every row runs at full depth: {why}"
    bound = upper_bound(choice.differing or 0, curve.tested, confidence)
    return (
        f"{choice.differing:,} of {curve.tested:,} calibration rows differ, so at most {bound:.3%} ({confidence:.0%})"
    )


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
