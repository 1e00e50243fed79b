#!/usr/bin/env python
"""Report quality against cost on labelled text: tables, figures, and one HTML page with all of them.

Every row goes through every exit once; the outcome of any threshold follows from that by arithmetic. Precision is that of
classify.py on this machine. With --output the page, report.html, and its figures as PNG are written there.

--choose stores the cheapest criterion and threshold within a given loss in the model, where classify.py finds it. Choose on
rows that you do not report on.

  python jobs/evaluate.py --model my-model --data test.parquet --output report
  python jobs/evaluate.py --model my-model --data dev.parquet --choose 0.5
  python jobs/evaluate.py --model frozen --compare along=other-model labels=third-model --data test.parquet --output report
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from collections.abc import Mapping, Sequence

import torch

from jobs.cli import command, options
from jobs.cli.parser import JobParser
from models.early_exit import EarlyExitModel
from models.exits.criterion import CRITERIA
from pipeline.benchmark.measure import time_criteria
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.labelled import read_texts, tokenize_texts
from pipeline.engine.config import DTYPE_NAMES, EngineConfig
from pipeline.engine.loaded import LoadedModel
from pipeline.errors import InputError, require
from pipeline.evaluation.evaluation import Evaluation, OperatingPoint, cheapest_within
from pipeline.reports import evaluation_report as report
from pipeline.reports.plots import figures
from pipeline.training.progress import TRAINING_LOG

Curves = Mapping[str, Sequence[OperatingPoint]]


def main(args: argparse.Namespace) -> None:
    """Evaluate the model, print the tables, and store the choice and write the page if asked to."""
    require("sklearn", *(["matplotlib"] if args.output else []), extra="report")
    if args.choose is not None and len(EarlyExitModel.from_config(args.model).exit_layers) == 1:
        raise InputError("choose", f"{args.choose:g}: the model has no exits to choose from; jobs/distill.py adds them")
    if args.compare and not args.output:
        raise InputError("compare", "needs --output, where the models stand side by side")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    evaluation, examples, model = evaluate(args.model, args, device)
    others = dict(pair.split("=", 1) if "=" in pair else (Path(pair).name, pair) for pair in args.compare)
    compared = {other: evaluate(path, args, device)[0] for other, path in others.items()}
    curves = {name: evaluation.curve(name) for name in evaluation.criteria()}
    name = args.criterion or next(iter(curves), "")
    if curves and name not in curves:
        raise InputError("criterion", f"{name}: this model can use {', '.join(curves)}")
    tables = [report.quality_table(evaluation)]
    if curves:
        points = report.points_to_report(evaluation, name, curves[name], args.speeds or [])
        tables += [report.savings_table(curves, evaluation.metric), report.point_table(points, evaluation.metric)]
        if not args.no_timing:
            criteria = [point.criterion for point in points]
            timings = time_criteria(args.model, criteria, examples.rows, args.dtype, device)
            tables.append(report.timing_table(points, timings, len(examples)))
    for table in tables:
        print(f"\n{table.markdown()}")
    if args.choose is not None:
        store(args, model, curves)
    if args.output:
        log, title = Path(args.model) / TRAINING_LOG, Path(args.model).name
        pictures = figures(title, evaluation, curves, name, compared, log) if curves else []
        facts = f"{args.model} on {args.data}: {len(examples):,} rows, {model.shape.layers} layers, {device}."
        page = report.write_report(Path(args.output), f"Early exits of {title}", facts, tables, pictures)
        print(f"\nthe report is {page}")


def evaluate(name: str, args: argparse.Namespace, device: str) -> tuple[Evaluation, Chunk, EarlyExitModel]:
    """Load a model and run the data through all its exits."""
    model = EarlyExitModel.from_pretrained(name)
    tokenizer = options.load_tokenizer(name, model, args.max_tokens)
    texts = read_texts(args.data, options.text_columns(args, args.label_column))
    examples = tokenize_texts(texts, tokenizer, model.labels)
    with LoadedModel(model, EngineConfig(dtype=args.dtype), device):
        return Evaluation(model, examples, args.metric), examples, model


def store(args: argparse.Namespace, model: EarlyExitModel, curves: Curves) -> None:
    """Store the cheapest point within the wanted loss as the model's own criterion."""
    wanted = [args.criterion] if args.criterion else list(curves)
    best = max((cheapest_within(curves[name], args.choose / 100) for name in wanted), key=lambda p: p.flops_speedup)
    model.criterion = best.criterion
    model.save_criterion(args.model)
    saving = f"{best.flops_speedup:.2f}x fewer FLOPs on these rows"
    print(f"\nstored in {args.model}: {best.criterion.describe()} ({saving})")


def build_parser() -> JobParser:
    """Make the parser of this job's options."""
    parser = JobParser(__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="early-exit model: hub id or directory")
    add("--data", required=True, metavar="PATH", help="labelled rows: file, folder or glob")
    add("--output", metavar="DIR", help="folder for report.html and the figures")
    add("--label-column", default="label", metavar="NAME", help="column of the label: a name or an index")
    add("--metric", metavar="NAME", help="accuracy, f1 or mcc; pearson or spearman (default: the first)")
    add("--criterion", choices=CRITERIA, help="criterion of the tables and figures (default: the first)")
    add("--speeds", type=float, nargs="+", metavar="S", help="further thresholds to report")
    add("--choose", type=float, metavar="X", help="store the cheapest point at most X points below full depth")
    add("--compare", nargs="+", default=[], metavar="NAME=DIR", help="further models for the figures")
    add("--no-timing", action="store_true", help="leave out the wall-clock measurement")
    add("--dtype", choices=DTYPE_NAMES, default="auto", help="precision of the matrices")
    options.add_text_options(parser)
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
