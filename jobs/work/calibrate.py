"""Measure on a sample what early exits save and change: the work of jobs/calibrate.py."""

import argparse
from pathlib import Path

import torch

from jobs.cli.command import print_line
from jobs.work import loading
from models.directory.digest import weights_digest
from models.early_exit import EarlyExitModel
from models.exits.task import Task
from models.precision import precision_on
from pipeline.calibration import fit
from pipeline.calibration.curve import LIMITS, Calibration, Scaling, choices
from pipeline.calibration.drift import reference_of
from pipeline.calibration.targets import label_thresholds
from pipeline.calibration.temperature import scale_stored_model
from pipeline.calibration.thresholds import Sample
from pipeline.calibration.timing import time_curve
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.labelled import label_array, sample_texts
from pipeline.evaluation.recorded import record_as_run
from pipeline.identity import ModelIdentity
from pipeline.reports import card
from pipeline.reports.calibration_report import calibration_table, scaling_table
from pipeline.reports.plots import disagreement_curve


def run(args: argparse.Namespace) -> None:
    """Draw the sample, record all exits, fit the curve, and write the calibration."""
    loading.writable_model(args.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = EarlyExitModel.from_pretrained(args.model)
    criterion = fit.criterion_for(model, args.criterion, args.tolerance, label_thresholds(args.label_threshold, model))
    tokenizer = loading.load_tokenizer(args.model, model, args.max_tokens)
    label_column = (
        args.label_column if args.temperature and model.task is Task.CLASSES else None
    )  # nobody else reads it
    texts = sample_texts(args.data, loading.text_columns(args, label_column), args.rows, args.seed)
    tokens = tokenizer(texts.texts, texts.pairs)
    labels = label_array(texts.labels or [None] * len(tokens.rows), model.labels, model.task)
    examples = Chunk(rows=tokens.rows, labels=labels)
    print_line(f"{args.model}: {len(examples):,} rows of {args.data}; {texts.rejected:,} cannot be used")
    scalings = scale(args, examples, device) if args.temperature else []
    model = EarlyExitModel.from_pretrained(args.model)
    recorded = record_as_run(model, examples, args.dtype, device, criterion.label_thresholds)
    sample = Sample.of(recorded, criterion, tokens.rows.lengths, model.flops)
    curve = fit.fit_curve(sample, criterion, args.seed, temperatures_fitted=args.temperature)
    calibration = Calibration(
        model=ModelIdentity.of(model, weights_digest(args.model), tokenizer.spec).parts(),
        precision=precision_on(args.dtype, torch.device(device)),
        data=fit.describe_data(tokens.rows, texts.rejected, args.seed),
        curve=curve,
        reference=reference_of(tokens.rows.lengths, tokens.truncated, recorded.uncertainty(criterion)[-1]),
        timing=None if args.no_timing else time_curve(args.model, curve, tokens.rows, args.dtype, device),
        scalings=scalings,
        choices=choices(curve, args.confidence, sorted({*LIMITS, args.max_disagreement})),
    )
    table = calibration_table(calibration, args.confidence).markdown()
    print(f"\n{table}\n")
    print_line(f"the calibration is in {calibration.save(args.model)}")
    about = f"By {len(examples):,} rows of {Path(args.data).name}, in {calibration.precision}; uncertainty: {criterion.name}."
    card.write_section(Path(args.model), model, "Calibration", f"{about}\n\n{table}")
    disagreement_curve(curve, args.confidence).savefig(Path(args.model) / "calibration.png")


def scale(args: argparse.Namespace, examples: Chunk, device: str) -> list[Scaling]:
    """Put temperatures on the exits of the stored model, and print what they did."""
    fitting = examples.take(fit.fit_rows(len(examples), args.seed))
    to_labels = args.label_column is not None
    scalings, removed = scale_stored_model(args.model, fitting, to_labels=to_labels, dtype=args.dtype, device=device)
    if removed is not None:
        print_line(f"its stored {removed.describe()} meant the old uncertainties, so it is taken out: choose again")
    print(f"\n{scaling_table(scalings).markdown()}")
    return scalings
