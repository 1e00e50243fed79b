#!/usr/bin/env python
"""Measure what early exit saves and changes, so that classify.py can be asked for a speed-up or a limit.

Give it a random sample of the texts to come. Labels are not needed: a prediction at an exit is compared with that of the same
model at full depth. Every row goes through every exit once, in the precision of classify.py. The result is written into the
model directory: calibration.json, with thresholds for any target, and calibration.png, a picture of it.

  python jobs/calibrate.py --model my-model --data sample.parquet
  python jobs/classify.py --model my-model --input corpus/ --output out/ --max-disagreement 1% --audit 0.5%
  python jobs/classify.py --model my-model --input corpus/ --output out/ --target-speedup 2

docs/guarantees.md says what is guaranteed, and how many rows it takes.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

import torch

from jobs.cli import command, options
from jobs.cli.parser import JobParser
from models.digest import weights_digest
from models.early_exit import EarlyExitModel
from pipeline.calibration import fit
from pipeline.calibration.curve import LIMITS, Calibration, Scaling, choices
from pipeline.calibration.drift import reference_of
from pipeline.calibration.guarantees import CONFIDENCE
from pipeline.calibration.temperature import scale_stored_model
from pipeline.calibration.thresholds import Sample
from pipeline.calibration.timing import time_curve
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.labelled import label_numbers, sample_texts
from pipeline.engine.config import DTYPE_NAMES
from pipeline.errors import require
from pipeline.evaluation.recorded import record_as_run
from pipeline.reports.calibration_report import calibration_table, scaling_table
from pipeline.reports.plots import disagreement_curve


def main(args: argparse.Namespace) -> None:
    """Draw the sample, record all exits, fit the curve, and write the calibration."""
    require("matplotlib", extra="report")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = EarlyExitModel.from_pretrained(args.model)
    criterion = fit.criterion_for(model, args.criterion, args.tolerance)
    tokenizer = options.load_tokenizer(args.model, model, args.max_tokens)
    texts = sample_texts(args.data, options.text_columns(args, args.label_column), args.rows, args.seed)
    tokens = tokenizer(texts.texts, texts.pairs)
    labels = label_numbers(texts.labels or [None] * len(tokens.rows), model.labels)
    examples = Chunk(rows=tokens.rows, labels=labels)
    print(f"{args.model}: {len(examples):,} rows of {args.data}; {texts.rejected:,} cannot be used")
    scalings = scale(args, examples, device) if args.temperature else []
    model = EarlyExitModel.from_pretrained(args.model)
    digest = weights_digest(args.model)
    recorded = record_as_run(model, examples, args.dtype, device)
    sample = Sample.of(recorded, criterion, tokens.rows.lengths, model.flops)
    curve = fit.fit_curve(sample, criterion, args.seed, temperatures_fitted=args.temperature)
    calibration = Calibration(
        model=digest,
        precision=args.dtype,
        max_tokens=tokenizer.spec.max_tokens,
        data=fit.describe_data(tokens.rows, texts.rejected, args.seed),
        curve=curve,
        reference=reference_of(tokens.rows.lengths, tokens.truncated, recorded.uncertainty(criterion)[-1]),
        timing=None if args.no_timing else time_curve(args.model, curve, tokens.rows, args.dtype, device),
        scalings=scalings,
        choices=choices(curve, args.confidence, sorted({*LIMITS, args.max_disagreement})),
    )
    print(f"\n{calibration_table(calibration, args.confidence).markdown()}")
    print(f"\nthe calibration is in {calibration.save(args.model)}")
    disagreement_curve(curve, args.confidence).savefig(Path(args.model) / "calibration.png")


def scale(args: argparse.Namespace, examples: Chunk, device: str) -> list[Scaling]:
    """Put temperatures on the exits of the stored model, and print what they did."""
    fitting = examples.take(fit.fit_rows(len(examples), args.seed))
    to_labels = args.label_column is not None
    scalings, removed = scale_stored_model(args.model, fitting, to_labels=to_labels, dtype=args.dtype, device=device)
    if removed is not None:
        print(f"its stored {removed.describe()} meant the old uncertainties, so it is taken out: choose again")
    print(f"\n{scaling_table(scalings).markdown()}")
    return scalings


def build_parser() -> JobParser:
    """Make the parser of this job's options."""
    parser = JobParser(__doc__, kept="no calibration is written")
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="early-exit model; the calibration is written there")
    add("--data", required=True, metavar="PATH", help="sample of the texts to come: file, folder or glob")
    add("--rows", type=options.positive, default=20_000, metavar="N", help="rows to use at most, drawn at random")
    add("--criterion", choices=fit.CALIBRATED, help="uncertainty that decides (default: the model's, else entropy)")
    tolerance = "values, with regression, differ if they are further apart"
    add("--tolerance", type=float, default=0.1, metavar="X", help=tolerance)
    limit = "a limit to report, beside usual ones"
    add("--max-disagreement", type=options.fraction, default=0.01, metavar="E", help=limit)
    confidence = "probability with which limits hold"
    add("--confidence", type=options.fraction, default=CONFIDENCE, metavar="C", help=confidence)
    temperature = "scale exits by temperatures first, in the model's weights: no prediction changes, probabilities do"
    add("--temperature", action="store_true", help=temperature)
    label = "with --temperature, fit to true labels (default: to the predictions at full depth)"
    add("--label-column", metavar="NAME", help=label)
    add("--no-timing", action="store_true", help="leave out the wall-clock measurement")
    add("--seed", type=int, default=0, metavar="N", help="seed of the sample and of its split")
    add("--dtype", choices=DTYPE_NAMES, default="auto", help="precision of the matrices, as for classify.py")
    options.add_text_options(parser)
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
