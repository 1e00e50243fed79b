#!/usr/bin/env python
"""Report quality against cost on labelled text: tables, figures, and one HTML page with all of them.

Every row goes through every exit once; what a threshold would do follows from that by arithmetic. Precision is that of
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

import torch

from jobs.cli import command, options
from jobs.cli.parser import JobParser
from models.early_exit import EarlyExitModel
from models.exits.criterion import CRITERIA, Criterion
from models.precision import set_precision
from pipeline.benchmark.measure import time_criteria
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.labelled import read_texts, tokenize_texts
from pipeline.engine.config import DTYPE_NAMES
from pipeline.engine.engine import default_token_budget
from pipeline.errors import InputError
from pipeline.evaluation.evaluation import Evaluation, OperatingPoint, cheapest_within
from pipeline.reports import evaluation_report
from pipeline.reports.plots import Picture, figures
from pipeline.training.loop import TRAINING_LOG


def main(args: argparse.Namespace) -> None:
    if args.choose is not None and len(EarlyExitModel.from_config(args.model).exit_layers) == 1:
        raise InputError("choose", "the model has no exits to choose from; jobs/distill.py adds them")
    evaluation, examples, model = evaluate(args.model, args)
    metric, names = evaluation.metric, evaluation.criteria()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = [f"{args.model} on {args.data}: {len(examples):,} rows, {model.shape.layers} layers, {device}."]
    tables = [evaluation_report.quality_table(evaluation)]
    pictures: list[Picture] = []
    curves = {name: evaluation.curve(name) for name in names}
    if names:
        name = args.criterion or names[0]
        if name not in names:
            raise InputError("criterion", f"{name}: this model can use {', '.join(names)}")
        chosen = [cheapest_within(curves[name], drop) for drop in evaluation_report.DROPS]
        wanted = [Criterion(name=name, speed=speed) for speed in args.speeds or []]
        points = [evaluation.full_depth(), *(evaluation.at(criterion) for criterion in wanted), *chosen]
        points = list({point.criterion: point for point in points}.values())
        tables += [evaluation_report.savings_table(curves, metric), evaluation_report.point_table(points, metric)]
        if not args.no_timing:
            criteria = [point.criterion for point in points]
            timings = time_criteria(args.model, criteria, examples.rows, args.dtype, device)
            tables.append(evaluation_report.timing_table(points, timings, len(examples)))
        others = dict(pair.split("=", 1) if "=" in pair else (Path(pair).name, pair) for pair in args.compare)
        compared = {other: evaluate(path, args)[0] for other, path in others.items()}
        log = Path(args.model) / TRAINING_LOG
        pictures = figures(Path(args.model).name, evaluation, curves, name, compared, log)
    for table in tables:
        print(f"\n{table.markdown()}")
    if args.choose is not None:
        store(args, model, curves)
    if args.output:
        page = evaluation_report.write_report(
            Path(args.output), f"Early exits of {Path(args.model).name}", facts, tables, pictures
        )
        print(f"\nthe report is {page}")


def evaluate(name: str, args: argparse.Namespace) -> tuple[Evaluation, Chunk, EarlyExitModel]:
    """Load a model and let all its exits judge the data."""
    model = EarlyExitModel.from_pretrained(name)
    tokenizer = options.load_tokenizer(name, model, args.max_tokens)
    texts = read_texts(args.data, options.text_columns(args, args.label_column))
    examples = tokenize_texts(texts, tokenizer, model.labels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_precision(model, args.dtype, device, default_token_budget(device, model.shape.hidden))
    return Evaluation(model, examples, args.metric), examples, model


def store(args: argparse.Namespace, model: EarlyExitModel, curves: dict[str, list[OperatingPoint]]) -> None:
    """Keep the cheapest point within the wanted loss as the model's own criterion."""
    wanted = [args.criterion] if args.criterion else list(curves)
    best = max((cheapest_within(curves[name], args.choose / 100) for name in wanted), key=lambda p: p.flops_speedup)
    model.criterion = best.criterion
    model.save_criterion(args.model)
    print(
        f"\nstored in {args.model}: {best.criterion.describe()} ({best.flops_speedup:.2f}x fewer FLOPs on these rows)"
    )


def build_parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("--model", required=True, metavar="MODEL", help="early-exit model: hub id or directory")
    parser.add_argument("--data", required=True, metavar="PATH", help="labelled rows: file, folder or glob")
    parser.add_argument("--output", metavar="DIR", help="folder for report.html and the figures")
    parser.add_argument(
        "--label-column", default="label", metavar="NAME", help="column of the label: a name or an index"
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="accuracy, f1 or mcc; pearson or spearman (default: the first)"
    )
    parser.add_argument(
        "--criterion", choices=CRITERIA, help="criterion of the tables and figures (default: the first)"
    )
    parser.add_argument("--speeds", type=float, nargs="+", metavar="S", help="further thresholds to report")
    parser.add_argument(
        "--choose", type=float, metavar="X", help="store the cheapest point at most X points below full depth"
    )
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME=DIR", help="further models for the figures")
    parser.add_argument("--no-timing", action="store_true", help="leave out the wall-clock measurement")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="auto", help="precision of the matrices")
    options.add_text_options(parser)
    return parser


if __name__ == "__main__":
    command.run(main, build_parser())
