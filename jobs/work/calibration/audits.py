"""Calibrate a model on the audited rows of past nights: the work of jobs/calibrate.py with --from-audits."""

import argparse
import hashlib
from dataclasses import replace

from jobs.cli.command import print_line
from jobs.work import loading
from jobs.work.calibration.sample import limits_of, sample_of, save, tokenizer_spec
from models.directory.digest import weights_digest
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.calibration import fit
from pipeline.calibration.curve import (
    FILE,
    LIMITS,
    LONG_TEXTS,
    TRUNCATED,
    Calibration,
    NotCalibratedError,
    choices,
    sample_for,
    tested_of,
)
from pipeline.calibration.drift.signals import reference_of
from pipeline.calibration.guarantees import rows_needed
from pipeline.calibration.history.changes import changes
from pipeline.calibration.history.pool import History, read_history
from pipeline.calibration.limits.audited import NAMED
from pipeline.calibration.limits.limits import percent
from pipeline.calibration.targets import label_thresholds
from pipeline.calibration.texts import TextSample
from pipeline.calibration.thresholds import Sample
from pipeline.errors import InputError, UserError
from pipeline.identity import ModelIdentity
from pipeline.reports.calibration_report import changes_table
from pipeline.rows import FloatArray
from pipeline.windows import LongTexts

WITHOUT = {
    "temperature": "changes the weights that the audits are of; calibrate with it on `data`",
    "label_column": "is of texts, and audits record no labels; calibrate with it on `data`",
    "label_separator": "is of texts, and audits record no labels",
}
"""Options that need texts, and why."""


def run(args: argparse.Namespace) -> None:
    """Pool the audited rows, fit the curve, print what it changes, and write the calibration unless that is all."""
    for name, why in WITHOUT.items():
        if getattr(args, name):
            raise InputError(name, why)
    loading.writable_model(args.model)
    model, weights = EarlyExitModel.from_pretrained(args.model), weights_digest(args.model)
    before = calibration_so_far(args.model, weights)
    criterion = criterion_of(args, model, before)
    spec = tokenizer_spec(args, model, criterion)
    identity = ModelIdentity.of(model, weights, spec).parts()
    windows = {LONG_TEXTS: TRUNCATED if spec.long_texts is None else spec.long_texts.describe()}
    history = read_history(
        args.from_audits,
        identity | windows | {"dtype": args.dtype},
        model,
        rows=args.rows,
        seed=args.seed,
        label_thresholds=criterion.label_thresholds,
    )
    check_enough(args, history)
    sample, uncertainty = seen_by(criterion, history, model, spec.long_texts)
    curve = fit.fit_curve(sample, criterion, args.seed, names=model.labels)
    old = criterion if before is None else earlier_criterion(before)
    made_of = identity | ({} if spec.long_texts is None else windows)
    made = criterion, made_of, history.precision
    limits = limits_of(args)
    rows, data = history.texts.windows, fit.describe_data(history.texts.windows, history.broken, args.seed)
    digest = hashlib.blake2b(history.recorded.logits.tobytes() + rows.offsets.tobytes(), digest_size=8).hexdigest()
    calibration = Calibration(
        model=made_of,
        precision=history.precision,
        data=data | {"rows": len(sample), "digest": digest, "nights": history.nights},
        curve=curve,
        reference=reference_of(history.texts.lengths, history.truncated.to_numpy(), uncertainty),
        timing=None
        if before is None or args.no_timing or made != (old, before.model, before.precision)
        else before.timing,
        scalings=[] if before is None else before.scalings,
        choices=choices(curve, args.confidence, limits),
    )
    seen = sample if old == criterion else seen_by(old, history, model, spec.long_texts)[0]
    table = changes_table(
        changes(before, seen, curve, limits=limits, confidence=args.confidence), curve.tested, args.confidence
    )
    print(f"\n{table.markdown()}\n")
    save(args, model, calibration, f"{len(sample):,} audited rows of {nights(history.nights)}")


def calibration_so_far(directory: str, weights: str) -> Calibration | None:
    """Return the calibration that is to be replaced; None if there is none that is of these weights and can be read.

    Raises UserError if it counted right answers: audits have no labels, so a run held to `--max-quality-loss` would have no
    calibration any more.
    """
    try:
        before = Calibration.load(directory)
    except NotCalibratedError:
        return None
    except UserError as error:
        print_line(f"{error}: the calibration so far is left out of account")
        return None
    if before.model["weights"] != weights:
        return None
    if before.curve.quality is not None:
        raise UserError(
            f"{directory}: was calibrated with labels, for --max-quality-loss, and audits have none; calibrate on --data with "
            f"--label-column, or remove {FILE} to calibrate without"
        )
    return before


def criterion_of(args: argparse.Namespace, model: EarlyExitModel, before: Calibration | None) -> Criterion:
    """Return the criterion to calibrate, as the options name it; what they leave open is as in the calibration so far."""
    if before is None:
        return fit.criterion_for(model, args.criterion, args.tolerance, label_thresholds(args.label_threshold, model))
    curve, given = before.curve, args.label_threshold
    tolerance = curve.tolerance if args.tolerance is None else args.tolerance
    thresholds = tuple(curve.label_thresholds) if given is None else label_thresholds(given, model)
    return fit.criterion_for(model, args.criterion or curve.criterion, tolerance, thresholds)


def earlier_criterion(before: Calibration) -> Criterion:
    """Return the criterion whose thresholds an earlier calibration has, without them."""
    curve = before.curve
    thresholds = tuple(curve.label_thresholds)
    return Criterion(name=curve.criterion, speed=1.0, tolerance=curve.tolerance, label_thresholds=thresholds)


def seen_by(
    criterion: Criterion, history: History, model: EarlyExitModel, long_texts: LongTexts | None
) -> tuple[Sample | TextSample, FloatArray]:
    """Make the sample of the audited rows as a criterion sees them; return it with their uncertainty at full depth: [B]."""
    recorded = replace(history.recorded, boundaries=model.boundaries(criterion.label_thresholds))
    return sample_of(recorded, criterion, history.texts, model, long_texts)


def check_enough(args: argparse.Namespace, history: History) -> None:
    """Print what the rows are of; raise UserError if they are too few for the limit even if none of them differs.

    Without one that is asked for it is the largest usual one: a calibration that allows nothing is not to replace another.
    """
    folders, rows = " ".join(args.from_audits), len(history.texts)
    print_line(f"{args.model}: {rows:,} of {history.found:,} recorded audited rows, of {nights(history.nights)}")
    if history.change is not None:
        left_out = f"; {nights(history.change.nights_before)} before that are left out" * (
            history.change.nights_before > 0
        )
        print_line(f"the limit that they were held to is broken, at the latest since {history.change.since}{left_out}")
    if history.broken_classes:
        print_line(
            f"limits are broken of {', '.join(map(repr, history.broken_classes[:NAMED]))}; since when is not known, so that "
            "leaves out no nights: if it is not since the first, calibrate on --data, or on folders of later nights alone"
        )
    loading.tell_broken(history.broken)
    if history.damaged:
        print_line(f"{history.damaged:,} files of audits are gone, damaged or of another model, and are left out")
    asked = args.max_disagreement or max(LIMITS)
    least = rows_needed(asked, args.confidence) or 0
    needed = sample_for(least)
    limit = f"a limit of {asked:.3%} with {percent(args.confidence)} confidence takes {needed:,} rows or more"
    if tested_of(args.rows) < least:
        raise InputError("rows", f"{args.rows:,} are too few: {limit}")
    if tested_of(rows) < least:
        more = f", about {nights(-(-(needed - rows) * history.nights // rows))} more like these" if rows else ""
        raise UserError(f"{folders}: {limit}, and {rows:,} are recorded: {needed - rows:,} are missing{more}")


def nights(number: int) -> str:
    """Write a number of nights."""
    return f"{number:,} night{'s' * (number != 1)}"
