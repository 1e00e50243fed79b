#!/usr/bin/env python
"""Measure the engine against what a user would run instead.

All systems classify the same rows in one process and take turns, so what slows the machine slows them all. Compared are

  full-depth    the engine without exits: every row goes through all layers
  early-exit    the engine with exits: a row stops at its exit layer
  peers         transformers, ONNX Runtime, OpenVINO, and early exit one row at a time, as the papers' published code runs it

and the ratios say

  flops_speedup     layers of the model over the mean exit layer: what early exit could save
  wall_speedup      rows a second of early-exit over full-depth: what it does save
  wall_over_flops   the second over the first: 1 if the engine turns every saved layer into saved time
  ceiling_fraction  the FLOPs a second of full-depth over those of the model's matrix products alone on this machine

Without a stored model, weights are random and every row has a planned exit; with a model and texts, lengths and exits are
real. An option with several values measures each of them. The last line of the output is one JSON document.

  python jobs/benchmark.py --shape bert-base --mean-tokens 50 --mean-exit 4
  python jobs/benchmark.py --shape 6x384 --peers hf-bf16-sorted --token-budget 1024 512 2048
  python jobs/benchmark.py --model my-model --input corpus/ --speed 0.3
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
from functools import partial

import torch

from jobs.cli import command, options
from jobs.cli.parser import JobParser
from models.early_exit import HEAD_KINDS, EarlyExitModel
from pipeline.benchmark.ceiling import matmul_ceiling
from pipeline.benchmark.measure import measure, synchronizer
from pipeline.benchmark.peers import PEERS
from pipeline.benchmark.shapes import random_model
from pipeline.benchmark.summary import card, summarize, table
from pipeline.benchmark.systems import Variants, engine_systems, make_engine, peer_systems, plan_exits
from pipeline.benchmark.workload import Workload, make_workload
from pipeline.corpus.labelled import read_texts, tokenize_texts
from pipeline.engine.config import DTYPE_NAMES
from pipeline.engine.engine import Engine
from pipeline.errors import InputError

PEERS_RUN = ["hf-bf16-sorted", "hf-fp32-arrival", "papers-batch-1"]


def main(args: argparse.Namespace) -> None:
    """Compose the systems, time them, and print card, table and document."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.input and not args.model:
        raise InputError("input", "needs --model, whose tokenizer and exits make work of the texts")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = EarlyExitModel.from_pretrained(args.model) if args.model else random_model(args.shape, args.head)
    settings = {"dtypes": args.dtype, "token_budgets": args.token_budget, "exit_blocks": args.exit_every}
    variants = Variants(**settings, rows_per_call=args.rows_per_call)
    engine = make_engine(model, variants.config(model, args.speed), device)
    work = real_work(args, model, engine) if args.input else planned_work(args, model)
    peers, missing = peer_systems(args.peers, model, args.model, work, device)
    systems = engine_systems(engine, model, work, variants) | peers
    ceiling = matmul_ceiling(model.shape, engine.loaded.device, engine.loaded.dtype)
    print(card(args.model or args.shape, engine, work, ceiling, missing))
    timings = measure(systems, args.repetitions, synchronizer(device), partial(print, file=sys.stderr, flush=True))
    result = summarize(timings, systems, model, ceiling) | {"missing": missing, "options": vars(args)}
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
    tokenizer = options.load_tokenizer(args.model, model, args.max_tokens)
    texts = read_texts(args.input, options.text_columns(args, None), limit=args.rows)
    return plan_exits(engine, tokenize_texts(texts, tokenizer, model.labels).rows)


def build_parser() -> JobParser:
    """Make the parser of this job's options."""
    parser = JobParser(__doc__)
    add, positive = parser.add_argument, options.positive
    add("--shape", default="bert-base", metavar="S", help="bert-base, bert-large or <layers>x<hidden>")
    add("--head", choices=HEAD_KINDS, default="pooled", help="kind of the exit heads, with --shape")
    add("--model", metavar="MODEL", help="a real model in place of a shape: hub id or directory")
    add("--input", metavar="PATH", help="real texts, with --model: file, folder or glob")
    options.add_text_options(parser)
    add("--speed", type=float, default=0.5, metavar="S", help="threshold that decides the exits, with --input")
    add("--rows", type=positive, default=3000, metavar="N", help="rows of the workload")
    add("--mean-tokens", type=float, default=50, metavar="X", help="mean length of a row")
    add("--sigma", type=float, default=0.6, metavar="X", help="sigma of the logarithm of the length")
    add("--mean-exit", type=float, default=4, metavar="X", help="mean exit layer of the plan")
    add("--peers", nargs="*", choices=[*PEERS], default=PEERS_RUN, metavar="NAME", help=f"any of {', '.join(PEERS)}")
    add("--repetitions", type=positive, default=3, metavar="N", help="counted rounds")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)")
    add("--token-budget", type=positive, nargs="+", default=[None], metavar="N", help="tokens in a batch; or several")
    add("--exit-every", type=positive, nargs="+", default=[1], metavar="K", help="layers between exits; or several")
    add("--rows-per-call", type=positive, nargs="+", default=[], metavar="N", help="rows in a call; or several")
    add("--dtype", choices=DTYPE_NAMES, nargs="+", default=["auto"], help="precision of the matrices; or several")
    add("--seed", type=int, default=0, metavar="N", help="seed of lengths and plan")
    add("--output", metavar="FILE", help="write the JSON document to this file too")
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
