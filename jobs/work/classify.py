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
from pipeline.calibration.limits.conditions import NAMED
from pipeline.calibration.limits.limits import Limits
from pipeline.calibration.sequential import rows_until
from pipeline.calibration.targets import Target
from pipeline.calibration.verdict import Guarantee
from pipeline.engine.config import EngineConfig
from pipeline.engine.texts.engine import check_combination
from pipeline.errors import InputError
from pipeline.histograms import MAX_CLASS_BINS
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
        audit=audit_spec(args, calibration, len(model.meta.labels)),
        guarantee=replace(guarantee(args, calibration, choice), labels=tuple(model.meta.labels)),
    )


def target_of(args: argparse.Namespace) -> Target:
    """Return what the options ask of the exits; raise InputError for options that exclude each other."""
    values = {field.name: getattr(args, field.name) for field in fields(Target)}
    return Target(**(values | {"exits": tuple(args.exits) if args.exits else None}))


def calibration_for(args: argparse.Namespace, model: BulkModel) -> Calibration | None:
    """Load the model's calibration if an option needs one; raise UserError if it is missing or about something else."""
    target = target_of(args)
    if args.audit_fail and (not args.audit or target.limits is None):
        raise InputError("audit_fail", "needs --audit and a limit, such as --max-disagreement 1%")
    classes = len(model.meta.labels)
    if args.audit_fail and args.max_missed is not None and classes > MAX_CLASS_BINS:
        raise InputError(
            "audit_fail",
            f"cannot judge `max_missed` of {classes:,} classes, since up to {MAX_CLASS_BINS} are audited one by one; "
            "limit `max_disagreement` in its place",
        )
    if not target.needs_calibration:
        return None
    long_texts = model.tokenizer.long_texts
    return targets.load_calibration(model.directory, target, model.meta, model.identity, args.dtype, long_texts)


def choose(args: argparse.Namespace, calibration: Calibration | None) -> Choice | None:
    """Choose thresholds for what the options ask, and print what may be expected of them."""
    if calibration is None:
        return None
    target = target_of(args)
    choice = targets.choose(target, calibration.curve, calibration.timing)
    if target.limits is not None:
        for line in _expected(choice, calibration, target.limits):
            print_line(line)
    timing = calibration.timing
    time = f", {timing.time_speedup_at(choice.flops_speedup):.2f}x faster on {timing.hardware}" if timing else ""
    print_line(f"{choice.criterion.describe()}: {choice.flops_speedup:.2f}x fewer FLOPs expected{time}")
    if calibration.curve.risks_at(choice.point) is None:
        print_line(
            "the calibration is of an older version: run calibrate.py again to have every night's expected disagreement"
        )
    return choice


def _expected(choice: Choice, calibration: Calibration, limits: Limits) -> list[str]:
    """Return what may differ at most, of some classes the nearest to their limits, or why full depth is all there is."""
    curve, point = calibration.curve, int(choice.point)  # with limits it is a point of the path itself
    if choice.criterion.full_depth:
        return [f"nothing faster can be guaranteed, so every row runs at full depth: {curve.shortage(limits)}"]
    conditions = curve.conditions(limits)
    of_all = [condition for condition in conditions if condition.name is None]
    of_class = [condition for condition in conditions if condition.name is not None]
    of_class.sort(key=lambda c: upper_bound(c.worse[point], c.rows, limits.confidence) / c.limit, reverse=True)
    lines = [condition.shown(point, limits.confidence) for condition in of_all + of_class[:NAMED]]
    more = len(of_class) - NAMED
    return lines + ([f"{more:,} other classes are further from their limits"] if more > 0 else [])


def audit_spec(args: argparse.Namespace, calibration: Calibration | None, classes: int) -> AuditSpec | None:
    """Say what actors count; None if nothing needs to be."""
    if not args.audit:
        return None
    if args.max_disagreement is not None:
        _say_audited_rows(args, args.max_disagreement, f"at most {args.max_disagreement:.3%} differ")
    by_class = args.max_missed is not None and classes <= MAX_CLASS_BINS
    if by_class and calibration is not None and (limits := target_of(args).limits) is not None:
        rarest = min(
            (c for c in calibration.curve.conditions(limits) if c.name is not None), key=lambda c: c.limit * c.rows
        )
        what = f"at most {rarest.limit:.3%} of '{rarest.name}' are missed"
        _say_audited_rows(args, rarest.limit, what, rarest.rows / max(rarest.tested, 1))
    elif args.max_missed is not None:
        print_line(f"the audit says nothing of single classes: up to {MAX_CLASS_BINS} are counted one by one")
    edges = () if calibration is None else tuple(calibration.reference.uncertainty_edges)
    return AuditSpec(fraction=args.audit, uncertainty_edges=edges, by_class=by_class)


def _say_audited_rows(args: argparse.Namespace, limit: float, what: str, fraction: float = 1.0) -> None:
    """Say how many rows an audit takes to show what it is to show of this fraction of all rows."""
    audited = rows_until(limit, 1 / (1 - args.confidence), 0.0, above=False)
    if audited is not None and fraction > 0:
        rows = audited / fraction
        print_line(
            f"the audit needs {rows:,.0f} audited rows or more over all nights, which are {rows / args.audit:,.0f} rows at "
            f"{args.audit:.3%}, to show that {what}"
        )


def guarantee(args: argparse.Namespace, calibration: Calibration | None, choice: Choice | None) -> Guarantee:
    """Say what the run is held to."""
    return Guarantee(
        limits=target_of(args).limits or Limits(confidence=args.confidence),
        exits=() if choice is None else tuple(choice.exits),
        reference=None if calibration is None else calibration.reference,
        risks=None if calibration is None or choice is None else calibration.curve.risks_at(choice.point),
        withhold=args.audit_fail,
        price_per_hour=args.price_per_hour,
    )
