"""Make the request of a classification: the model, what decides that a row exits, and what the run is held to."""

import argparse
from dataclasses import fields, replace

from jobs.cli.command import print_line
from jobs.cli.long_texts import long_texts_of
from jobs.work import bulk, loading
from pipeline.bulk.run import BulkModel, BulkRequest
from pipeline.calibration import targets
from pipeline.calibration.audit import AuditSpec
from pipeline.calibration.curve import Calibration, Choice
from pipeline.calibration.guarantees import upper_bound
from pipeline.calibration.sequential import rows_until
from pipeline.calibration.targets import Target
from pipeline.calibration.verdict import Guarantee
from pipeline.engine.config import EngineConfig
from pipeline.engine.texts.engine import check_combination
from pipeline.errors import InputError
from pipeline.schema import EXIT_LAYER, ID, ON_REQUEST, PREDICTED, TRUNCATED, UNCERTAINTY, WINDOWS


def request_of(args: argparse.Namespace) -> BulkRequest:
    """Read the model, choose the criterion, and build the request; raise UserError for what cannot be met."""
    long_texts = long_texts_of(args)
    model = bulk.open_model(args)
    if long_texts is not None:
        model = replace(model, tokenizer=model.tokenizer.with_windows(long_texts))
    calibration = calibration_for(args, model)
    choice = choose(args, calibration)
    criterion = loading.criterion(args, model.meta) if choice is None else choice.criterion
    exits = tuple(args.exits) if args.exits else None
    task = model.meta.task
    if long_texts is not None:
        check_combination(long_texts, criterion, regression=model.meta.regression)
    windows = () if long_texts is None else (WINDOWS,)
    predictions = PREDICTED[task] + ((ON_REQUEST[task],) if args.probabilities else ())
    return bulk.request_of(
        args,
        model=model,
        engine=EngineConfig(criterion=criterion, exits=exits, dtype=args.dtype),
        precision=None if calibration is None else calibration.computed_in,
        results=(ID, *predictions, EXIT_LAYER, UNCERTAINTY, TRUNCATED, *windows),
        audit=audit_spec(args, calibration),
        guarantee=guarantee(args, calibration, choice),
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
    long_texts = model.tokenizer.long_texts
    return targets.load_calibration(model.directory, target, model.meta, model.identity, args.dtype, long_texts)


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
    print_line(f"{choice.criterion.describe()}: {choice.flops_speedup:.2f}x fewer FLOPs expected{time}")
    if calibration.curve.risks_at(choice.point) is None:
        print_line(
            "the calibration is of an older version: run calibrate.py again to have every night's expected disagreement"
        )
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
    if args.max_disagreement is not None:
        rows = rows_until(args.max_disagreement, 1 / (1 - args.confidence), 0.0, above=False)
        if rows is not None:
            print_line(
                f"the audit needs {rows:,} audited rows or more over all nights, which are {rows / args.audit:,.0f} rows at "
                f"{args.audit:.3%}, to show that at most {args.max_disagreement:.3%} differ"
            )
    edges = () if calibration is None else tuple(calibration.reference.uncertainty_edges)
    return AuditSpec(fraction=args.audit, uncertainty_edges=edges)


def guarantee(args: argparse.Namespace, calibration: Calibration | None, choice: Choice | None) -> Guarantee:
    """Say what the run is held to."""
    return Guarantee(
        limit=args.max_disagreement,
        confidence=args.confidence,
        exits=() if choice is None else tuple(choice.exits),
        reference=None if calibration is None else calibration.reference,
        risks=None if calibration is None or choice is None else calibration.curve.risks_at(choice.point),
        withhold=args.audit_fail,
        price_per_hour=args.price_per_hour,
    )
