#!/usr/bin/env python
"""Find out what leaving early saves and changes, so that classify.py can be asked for a speed or a limit.

Give it a random sample of the texts to come. Labels are not needed: an early answer is compared with that of the same model at
full depth. Every row goes through every exit once, in the precision of classify.py. What was found is written into the model
directory: calibration.json, with thresholds for any target, and calibration.png, a picture of it.

  python jobs/calibrate.py --model my-model --data sample.parquet
  python jobs/classify.py --model my-model --input corpus/ --output out/ --max-disagreement 1% --audit 0.5%
  python jobs/classify.py --model my-model --input corpus/ --output out/ --target-speedup 2

docs/guarantees.md says what is promised, and how many rows it takes.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

import numpy as np
import torch

from jobs.cli import command, options
from jobs.cli.parser import JobParser
from models.digest import weights_digest
from models.early_exit import EarlyExitModel
from pipeline.calibration import fit
from pipeline.calibration.curve import LIMITS, Calibration, Scaling, choices
from pipeline.calibration.drift import reference_of
from pipeline.calibration.guarantees import CONFIDENCE
from pipeline.calibration.temperature import fit_exits, scale_exits
from pipeline.calibration.thresholds import Sample
from pipeline.calibration.timing import time_curve
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.labelled import label_numbers, sample_texts
from pipeline.engine.config import DTYPE_NAMES
from pipeline.errors import InputError
from pipeline.evaluation.recorded import record_as_run
from pipeline.reports import evaluation_report
from pipeline.reports.plots import disagreement_curve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main(args: argparse.Namespace) -> None:
    model = EarlyExitModel.from_pretrained(args.model)
    criterion = fit.criterion_for(model, args.criterion, args.tolerance)
    tokenizer = options.load_tokenizer(args.model, model, args.max_tokens)
    texts = sample_texts(args.data, options.text_columns(args, args.label_column), args.rows, args.seed)
    tokens = tokenizer(texts.texts, texts.pairs)
    labels = label_numbers(texts.labels or [None] * len(tokens.rows), model.labels)
    examples = Chunk(rows=tokens.rows, labels=labels)
    print(f"{args.model}: {len(examples):,} rows of {args.data}; {texts.rejected:,} cannot be used")
    scalings = scale(args, model, examples) if args.temperature else []
    model = EarlyExitModel.from_pretrained(args.model)
    digest = weights_digest(args.model)
    recorded = record_as_run(model, examples, args.dtype, DEVICE)
    sample = Sample.of(recorded, criterion, tokens.rows.lengths, model.flops)
    curve = fit.curve_of(sample, criterion, args.seed, chose=args.temperature)
    calibration = Calibration(
        model=digest,
        precision=args.dtype,
        max_tokens=tokenizer.spec.max_tokens,
        data=fit.data_of(tokens.rows, texts.rejected, args.seed),
        curve=curve,
        reference=reference_of(tokens.rows.lengths, tokens.truncated, recorded.uncertainty(criterion)[-1]),
        timing=None if args.no_timing else time_curve(args.model, curve, tokens.rows, args.dtype, DEVICE),
        scalings=scalings,
        choices=choices(curve, args.confidence, sorted({*LIMITS, args.max_disagreement})),
    )
    print(f"\n{evaluation_report.calibration_table(calibration, args.confidence).markdown()}")
    print(f"\nthe calibration is in {calibration.save(args.model)}")
    disagreement_curve(curve, args.confidence).savefig(Path(args.model) / "calibration.png")


def scale(args: argparse.Namespace, model: EarlyExitModel, examples: Chunk) -> list[Scaling]:
    """Put a temperature on every exit, in the model directory; fitted on rows that test no promise."""
    if model.regression:
        raise InputError("temperature", "needs classes, and the model predicts a value")
    fitting = examples.take(fit.finding_rows(len(examples), args.seed))
    if args.label_column:
        fitting = fitting.take(np.flatnonzero(~np.isnan(fitting.labels)))
    if not len(fitting):
        raise InputError(
            "temperature", f"of {len(examples):,} rows a quarter is used, and none of it can be; give more"
        )
    recorded = record_as_run(model, fitting, args.dtype, DEVICE)
    scalings = fit_exits(recorded, fitting.labels.astype(np.int64) if args.label_column else None)
    fresh = EarlyExitModel.from_pretrained(args.model)
    scale_exits(fresh, scalings)
    fresh.save_weights(args.model)
    if fresh.criterion is not None and fresh.criterion.name in ("entropy", "confidence"):
        print(f"its stored {fresh.criterion.describe()} meant the old uncertainties, so it is taken out: choose again")
        fresh.criterion = None
        fresh.save_criterion(args.model)
    print(f"\n{evaluation_report.scaling_table(scalings).markdown()}")
    return scalings


def build_parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="early-exit model; the calibration is written there"
    )
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="sample of the texts to come: file, folder or glob"
    )
    parser.add_argument(
        "--rows", type=options.positive, default=20_000, metavar="N", help="rows to use at most, drawn at random"
    )
    parser.add_argument(
        "--criterion", choices=fit.CALIBRATED, help="uncertainty that decides (default: the model's, else entropy)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        metavar="X",
        help="values, with regression, differ if they are further apart",
    )
    parser.add_argument(
        "--max-disagreement", type=options.share, default=0.01, metavar="E", help="a limit to report, beside usual ones"
    )
    parser.add_argument(
        "--confidence", type=options.share, default=CONFIDENCE, metavar="C", help="probability with which limits hold"
    )
    parser.add_argument(
        "--temperature",
        action="store_true",
        help="scale every exit's logits by a temperature first, in the model's weights; no answer changes, probabilities do",
    )
    parser.add_argument(
        "--label-column",
        metavar="NAME",
        help="with --temperature, fit to true labels (default: to full depth's answers)",
    )
    parser.add_argument("--no-timing", action="store_true", help="leave out the wall-clock measurement")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sample and of its split")
    parser.add_argument(
        "--dtype", choices=DTYPE_NAMES, default="auto", help="precision of the matrices, as for classify.py"
    )
    options.add_text_options(parser)
    return parser


if __name__ == "__main__":
    command.run(main, build_parser())
