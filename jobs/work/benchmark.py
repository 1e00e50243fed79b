"""Time the engine against what users would run instead: the work of jobs/benchmark.py."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch

from jobs.work import loading
from models.early_exit import EarlyExitModel
from pipeline.benchmark.ceiling import matmul_ceiling
from pipeline.benchmark.device_use import device_use
from pipeline.benchmark.measure import measure, synchronizer
from pipeline.benchmark.peers.prepare import peer_systems
from pipeline.benchmark.shapes import random_model
from pipeline.benchmark.summary import card, summarize, summarize_use, table
from pipeline.benchmark.systems import Variants, engine_systems, make_engine, plan_exits
from pipeline.benchmark.workload import Workload, make_workload
from pipeline.corpus.labelled import read_texts, tokenize_texts
from pipeline.engine.engine import Engine
from pipeline.errors import InputError

ROWS = {"cpu": 3_000, "cuda": 65_536}
"""Rows of the workload where no number is given: some seconds of a CPU's work; about one call of a GPU's."""


def run(args: argparse.Namespace) -> None:
    """Compose the systems, time them, and print card, table and document."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.input and not args.model:
        raise InputError("input", "needs --model, whose tokenizer and exits make work of the texts")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.rows = args.rows or ROWS[device]
    if args.model:
        args.model = loading.find_model(args.model)
    model = EarlyExitModel.from_pretrained(args.model) if args.model else random_model(args.shape, args.head)
    settings = {"dtypes": args.dtype, "token_budgets": args.token_budget, "exit_blocks": args.exit_every}
    variants = Variants(**settings, rows_per_call=args.rows_per_call)
    engine = make_engine(model, variants.config(model, args.speed), device)
    work = real_work(args, model, engine) if args.input else planned_work(args, model)
    log = partial(print, file=sys.stderr, flush=True)
    ours = engine_systems(engine, model, work, variants)
    peers, left_out = peer_systems(args.peers, model, args.model, work, device, log)
    ceiling = matmul_ceiling(model.shape, engine.loaded.device, engine.loaded.dtype)
    print(card(args.model or args.shape, engine, work, ceiling, left_out))
    timings = measure(ours | peers, args.repetitions, synchronizer(device), log)
    result = summarize(timings, ours | peers, model, ceiling) | {"left_out": left_out, "options": vars(args)}
    if device == "cuda":
        use = {name: device_use(partial(system.run, system.work)) for name, system in ours.items()}
        result["device_use"] = summarize_use(timings, use)
    print(f"\n{table(timings, result)}")
    print(json.dumps(result), flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")


def planned_work(args: argparse.Namespace, model: EarlyExitModel) -> Workload:
    """Draw rows of random tokens with planned exits."""
    sizes = {"mean_tokens": args.mean_tokens, "sigma": args.sigma, "longest": model.shape.max_tokens}
    sizes |= {"layers": model.shape.layers, "mean_exit": args.mean_exit, "vocabulary": model.shape.vocabulary}
    return make_workload(args.rows, **sizes, seed=args.seed)


def real_work(args: argparse.Namespace, model: EarlyExitModel, engine: Engine) -> Workload:
    """Read rows of a corpus, and plan the exits that the engine takes for them."""
    tokenizer = loading.load_tokenizer(args.model, model, args.max_tokens)
    texts = read_texts(args.input, loading.text_columns(args, None), limit=args.rows)
    return plan_exits(engine, tokenize_texts(texts, tokenizer).rows)
