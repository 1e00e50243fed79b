"""Measure on a sample what early exits save and change: the work of jobs/calibrate.py."""

import argparse
from pathlib import Path

import numpy as np
import torch

from jobs.cli.command import print_line
from jobs.cli.long_texts import long_texts_of
from jobs.work import loading
from models.directory.digest import weights_digest
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.exits.task import Task
from models.precision import precision_on
from pipeline.calibration import fit
from pipeline.calibration.curve import LIMITS, LONG_TEXTS, Calibration, Scaling, choices
from pipeline.calibration.drift.signals import reference_of
from pipeline.calibration.targets import label_thresholds
from pipeline.calibration.temperature import scale_stored_model
from pipeline.calibration.texts import TextSample, without_broken
from pipeline.calibration.thresholds import Sample
from pipeline.calibration.timing import time_curve
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.labelled import label_array, label_reader, sample_texts
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.engine.texts.engine import check_combination
from pipeline.engine.texts.rows import TextRows
from pipeline.errors import InputError
from pipeline.evaluation.recorded import AllExits, record_as_run
from pipeline.identity import ModelIdentity
from pipeline.reports import card
from pipeline.reports.calibration_report import calibration_table, scaling_table, sizes_table
from pipeline.reports.plots import disagreement_curve
from pipeline.rows import FloatArray
from pipeline.windows import LongTexts


def run(args: argparse.Namespace) -> None:
    """Draw the sample, record all exits, fit the curve, and write the calibration."""
    loading.writable_model(args.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = EarlyExitModel.from_pretrained(args.model)
    criterion = fit.criterion_for(model, args.criterion, args.tolerance, label_thresholds(args.label_threshold, model))
    tokenizer = Tokenizer(tokenizer_spec(args, model, criterion))
    long_texts = tokenizer.spec.long_texts
    if args.label_column is None and args.label_separator:
        raise InputError("label_separator", "is of the values of `label_column`, and none is named")
    if args.label_column is not None and model.task is Task.VALUE:
        raise InputError("label_column", "is for models of classes or label sets, and this one predicts one value")
    columns, read_label = loading.text_columns(args, args.label_column), label_reader(model.task, args.label_separator)
    texts = sample_texts(args.data, columns, args.rows, args.seed, read_label)
    tokens = tokenizer(texts.texts, texts.pairs)
    counts = np.ones(len(texts.texts), np.int64) if tokens.windows is None else tokens.windows
    labels = label_array(texts.labels or [None] * len(counts), model.labels, model.task)
    examples = Chunk(rows=tokens.rows, labels=labels.repeat(counts, axis=0))
    drawn = f"{len(counts):,} rows of {args.data}"
    if texts.found > len(counts):
        drawn = f"{len(counts):,} of {texts.found:,} rows of {args.data}, drawn at random (--rows N takes more)"
    print_line(f"{args.model}: {drawn}; {texts.rejected:,} cannot be used{labelled(args, labels)}")
    fitting = fit.fit_rows(len(examples), args.seed) if args.temperature else None
    scalings = [] if fitting is None else scale(args, examples.take(fitting), device)
    model = EarlyExitModel.from_pretrained(args.model)
    recorded = record_as_run(model, examples, args.dtype, device, criterion.label_thresholds)
    rows = TextRows(windows=tokens.rows, counts=counts)
    kept, recorded, rows = without_broken(recorded, rows)
    loading.tell_broken(broken := len(counts) - len(kept))
    loading.check_any_whole(args.model, args.data, len(kept))
    labels = labels[kept]
    sample, uncertainty = sample_of(recorded, criterion, rows, model, long_texts)
    curve = fit.fit_curve(
        sample,
        criterion,
        args.seed,
        fitted=None if fitting is None else np.flatnonzero(np.isin(kept, fitting)),
        names=model.labels,
        labels=None if args.label_column is None else labels,
    )
    timed = not args.no_timing and (long_texts is None or not long_texts.in_turn)
    identity = ModelIdentity.of(model, weights_digest(args.model), tokenizer.spec).parts()
    calibration = Calibration(
        model=identity | ({} if long_texts is None else {LONG_TEXTS: long_texts.describe()}),
        precision=precision_on(args.dtype, torch.device(device)),
        data=fit.describe_data(rows.windows, texts.rejected + broken, args.seed) | {"rows": len(kept)},
        curve=curve,
        reference=reference_of(rows.lengths, tokens.truncated[kept], uncertainty),
        timing=time_curve(args.model, curve, rows.windows, args.dtype, device) if timed else None,
        scalings=scalings,
        choices=choices(curve, args.confidence, limits_of(args)),
    )
    save(args, model, calibration, f"{len(kept):,} rows of {Path(args.data).name}")


def sample_of(
    recorded: AllExits, criterion: Criterion, texts: TextRows, model: EarlyExitModel, long_texts: LongTexts | None
) -> tuple[Sample | TextSample, FloatArray]:
    """Make the sample of rows as a criterion sees them, and return with it their uncertainty at full depth: [B]."""
    if long_texts is None:
        sample = Sample.of(recorded, criterion, texts.windows.lengths, model.flops)
        return sample, recorded.uncertainty(criterion)[-1]
    of_texts = TextSample.of(recorded, criterion, texts, model.flops, long_texts)
    return of_texts, of_texts.full_depth.predictions.uncertainty


def limits_of(args: argparse.Namespace) -> list[float]:
    """Return the usual limits, and the one that is asked for, ascending."""
    return sorted({*LIMITS} | ({args.max_disagreement} - {None}))


def save(args: argparse.Namespace, model: EarlyExitModel, calibration: Calibration, rows: str) -> None:
    """Print what can be asked for, and write the calibration into the model, with a section of its card and a picture."""
    curve = calibration.curve
    tables = [calibration_table(calibration, args.confidence), sizes_table(curve, args.confidence)]
    table = "\n\n".join(table.markdown() for table in tables)
    print(f"\n{table}\n")
    if args.plan:
        print_line("nothing is written")
        return
    print_line(f"the calibration is in {calibration.save(args.model)}")
    about = f"By {rows}, in {calibration.precision}; uncertainty: {curve.criterion}."
    card.write_section(Path(args.model), model, "Calibration", f"{about}\n\n{table}")
    disagreement_curve(curve, args.confidence).savefig(Path(args.model) / "calibration.png")


def labelled(args: argparse.Namespace, labels: FloatArray) -> str:
    """Say how many rows have a label, where a column of labels is named."""
    if args.label_column is None:
        return ""
    return f", {np.count_nonzero(~np.isnan(labels.reshape(len(labels), -1)[:, 0])):,} have a label"


def tokenizer_spec(args: argparse.Namespace, model: EarlyExitModel, criterion: Criterion) -> TokenizerSpec:
    """Load the tokenizer, which makes windows of long texts if the options ask for them; raise InputError if they cannot."""
    spec, long_texts = loading.load_tokenizer(args.model, model, args.max_tokens).spec, long_texts_of(args)
    if long_texts is None:
        return spec
    if args.temperature:
        raise InputError(
            "temperature", "scales exits by rows that are texts; put it on first, without `long_texts` windows"
        )
    check_combination(long_texts, criterion, regression=model.regression)
    return spec.with_windows(long_texts)


def scale(args: argparse.Namespace, fitting: Chunk, device: str) -> list[Scaling]:
    """Put temperatures on the exits of the stored model, and print what they did."""
    to_labels = args.label_column is not None
    scalings, removed = scale_stored_model(args.model, fitting, to_labels=to_labels, dtype=args.dtype, device=device)
    if removed is not None:
        print_line(f"its stored {removed.describe()} meant the old uncertainties, so it is taken out: choose again")
    print(f"\n{scaling_table(scalings).markdown()}")
    return scalings
