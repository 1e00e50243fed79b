"""Report quality against cost on labelled text: the work of jobs/evaluate.py."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from jobs.cli.command import print_line
from jobs.work import loading
from models.early_exit import EarlyExitModel
from models.precision import precision_on
from pipeline.benchmark.measure import time_criteria
from pipeline.calibration.targets import label_thresholds
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.labelled import label_reader, read_texts, tokenize_texts
from pipeline.engine.config import EngineConfig
from pipeline.engine.loaded import LoadedModel
from pipeline.errors import InputError
from pipeline.evaluation.evaluation import Evaluation, OperatingPoint, cheapest_within
from pipeline.reports import card
from pipeline.reports import evaluation_report as report
from pipeline.reports.plots import figures, lines_of
from pipeline.training.progress import TRAINING_LOG

Curves = Mapping[str, Sequence[OperatingPoint]]


def run(args: argparse.Namespace) -> None:
    """Evaluate the model, print the tables, and store the choice and write the page if asked to."""
    writes = args.choose is not None or args.card
    args.model = loading.writable_model(args.model) if writes else loading.find_model(args.model)
    if args.choose is not None and len(EarlyExitModel.from_config(args.model).exit_layers) == 1:
        raise InputError("choose", f"{args.choose:g}: the model has no exits to choose from; jobs/distill.py adds them")
    if args.compare and not args.output:
        raise InputError("compare", "needs --output, where the models stand side by side")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    evaluation, examples, model = evaluate(args.model, args, device)
    others = dict(pair.split("=", 1) if "=" in pair else (Path(pair).name, pair) for pair in args.compare)
    found = {other: loading.find_model(os.path.expanduser(path)) for other, path in others.items()}
    compared = {other: evaluate(path, args, device)[0] for other, path in found.items()}
    curves = {name: evaluation.curve(name) for name in evaluation.criteria()}
    name = args.criterion or next(iter(curves), "")
    if curves and name not in curves:
        raise InputError("criterion", f"{name}: this model can use {', '.join(curves)}")
    tables = [report.quality_table(evaluation)]
    if curves:
        points = report.points_to_report(evaluation, name, curves[name], args.speeds or [])
        tables += [report.savings_table(curves, evaluation.metric), report.point_table(points, evaluation.metric)]
        if compared:
            lines = {name: curves[name]} | lines_of(evaluation, compared, name)
            tables.append(report.comparison_table(Path(args.model).name, lines, evaluation.metric))
        if not args.no_timing:
            criteria = [point.criterion for point in points]
            timings = time_criteria(args.model, criteria, examples.rows, args.dtype, device)
            tables.append(report.timing_table(points, timings, len(examples)))
    for table in tables:
        print(f"\n{table.markdown()}")
    if args.choose is not None:
        store(args, model, curves)
    if args.card:
        precision = precision_on(args.dtype, torch.device(device))
        about = f"By {len(examples):,} rows of {Path(args.data).name}, in {precision} on {device}."
        text = "\n\n".join([about, *(table.markdown() for table in tables)])
        card.write_section(Path(args.model), model, "What the exits are worth", text)
    if args.output:
        log, title = Path(args.model) / TRAINING_LOG, Path(args.model).name
        pictures = figures(title, evaluation, curves, name, compared, log) if curves else []
        facts = f"{args.model} on {args.data}: {len(examples):,} rows, {model.shape.layers} layers, {device}."
        page = report.write_report(Path(args.output), f"Early exits of {title}", facts, tables, pictures)
        print()
        print_line(f"the report is {page}")


def evaluate(name: str, args: argparse.Namespace, device: str) -> tuple[Evaluation, Chunk, EarlyExitModel]:
    """Load a model and run the data through all its exits."""
    model = EarlyExitModel.from_pretrained(name)
    tokenizer = loading.load_tokenizer(name, model, args.max_tokens)
    read_label = label_reader(model.task, args.label_separator)
    texts = read_texts(args.data, loading.text_columns(args, args.label_column), read_label=read_label)
    examples = tokenize_texts(texts, tokenizer, model.labels, args.data, model.task)
    print(f"{name}: {len(examples):,} rows of {args.data}; {texts.rejected:,} cannot be used")
    thresholds = label_thresholds(args.label_threshold, model)
    with LoadedModel(model, EngineConfig(dtype=args.dtype), device):
        evaluation = Evaluation(model, examples, args.metric, thresholds)
    loading.tell_broken(len(examples) - len(evaluation.rows))
    loading.check_any_whole(name, args.data, len(evaluation.rows))
    return evaluation, examples.take(evaluation.rows), model


def store(args: argparse.Namespace, model: EarlyExitModel, curves: Curves) -> None:
    """Store the cheapest point within the wanted loss as the model's own criterion."""
    wanted = [args.criterion] if args.criterion else list(curves)
    best = max((cheapest_within(curves[name], args.choose / 100) for name in wanted), key=lambda p: p.flops_speedup)
    model.criterion = best.criterion
    model.save_criterion(args.model)
    saving = f"{best.flops_speedup:.2f}x fewer FLOPs on these rows"
    print()
    print_line(f"stored in {args.model}: {best.criterion.describe()} ({saving})")
