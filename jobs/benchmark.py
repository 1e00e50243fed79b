#!/usr/bin/env python
"""Measure the engine against what a user would run instead, in one process, as ratios. The last line is one JSON document.

Without --model, weights are random, rows have log-normal lengths, and early exit follows a plan with the given mean, so that
speed does not depend on weights. With --model and --input, texts, lengths and exits are real.

  python jobs/benchmark.py --shape bert-base --mean-tokens 50 --mean-exit 4
  python jobs/benchmark.py --shape 6x384 --peers hf-bf16-sorted --token-budget 1024 512 2048
  python jobs/benchmark.py --model my-model --input corpus/ --speed 0.3
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import copy
import itertools
import json
import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from jobs.cli import command, options
from jobs.cli.parser import JobParser
from models.early_exit import HEAD_KINDS, EarlyExitModel, quiet_transformers
from models.exits.criterion import Criterion
from pipeline.benchmark.measure import System, Timing, matmul_ceiling, measure
from pipeline.benchmark.peers import PEERS, SLOW, MissingPeerError, PeerNeeds
from pipeline.benchmark.workload import Workload, make_workload
from pipeline.corpus.labelled import read_texts, tokenize_texts
from pipeline.engine.config import DTYPE_NAMES, EngineConfig
from pipeline.engine.engine import Engine
from pipeline.errors import InputError

SHAPES = {"bert-base": (12, 768), "bert-large": (24, 1024)}
FULL, EARLY = "full-depth", "early-exit"


def main(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(args)
    exits = exits_every(model, args.exit_every[0])
    config = EngineConfig(
        criterion=Criterion(speed=args.speed), token_budget=args.token_budget[0], exits=exits, dtype=args.dtype[0]
    )
    work = real_work(args, model, config, device) if args.input else made_work(args, model)
    engine = Engine(copy.deepcopy(model), config, device)
    systems = our_systems(args, model, config, work, engine)
    missing = add_peers(systems, args, model, work, device)
    ceiling = matmul_ceiling(model.shape, engine.device, engine.dtype)
    print_card(args, engine, work, ceiling, missing)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    timings = measure(systems, args.repetitions, wait, lambda line: print(line, file=sys.stderr, flush=True))
    result = summarize(timings, systems, model, ceiling) | {"missing": missing, "options": vars(args)}
    print_table(timings, result)
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def load_model(args: argparse.Namespace) -> EarlyExitModel:
    if args.model:
        return EarlyExitModel.from_pretrained(args.model)
    try:
        layers, hidden = SHAPES.get(args.shape) or (int(part) for part in args.shape.split("x"))
    except ValueError as error:
        known = ", ".join(SHAPES)
        raise InputError("shape", f"{args.shape}: is one of {known}, or <layers>x<hidden>, such as 6x384") from error
    sizes = {"num_attention_heads": 12 if hidden == 384 else hidden // 64, "intermediate_size": 4 * hidden}
    model = EarlyExitModel(BertConfig(num_hidden_layers=layers, hidden_size=hidden, **sizes))
    model.add_exits(args.head)
    return model


def exits_every(model: EarlyExitModel, block: int) -> tuple[int, ...]:
    """Layers after which rows are looked at, with this many layers in a block."""
    return tuple(layer for layer in model.exit_layers if layer % block == 0)


def made_work(args: argparse.Namespace, model: EarlyExitModel) -> Workload:
    sizes = {"mean_tokens": args.mean_tokens, "sigma": args.sigma, "longest": model.shape.max_tokens}
    sizes |= {"layers": model.shape.layers, "mean_exit": args.mean_exit, "vocabulary": model.shape.vocabulary}
    return make_workload(args.rows, **sizes, seed=args.seed)


def real_work(args: argparse.Namespace, model: EarlyExitModel, config: EngineConfig, device: str) -> Workload:
    """Rows of a corpus, and the exits that the model takes for them: the plan of every early-exit system."""
    if not args.model:
        raise InputError("input", "needs --model, whose tokenizer and exits make work of the texts")
    tokenizer = options.load_tokenizer(args.model, model, args.max_tokens)
    texts = read_texts(args.input, options.text_columns(args, None), limit=args.rows)
    rows = tokenize_texts(texts, tokenizer, model.labels).rows
    exits = Engine(copy.deepcopy(model), config, device).run(rows).exit_layers
    return Workload(rows=rows, exit_plan=exits.astype(np.int64))


def our_systems(
    args: argparse.Namespace, model: EarlyExitModel, config: EngineConfig, work: Workload, engine: Engine
) -> dict[str, System]:
    """Full depth and early exit; without first-token-first; and early exit with other budgets and blocks, if wanted."""

    def make(config: EngineConfig) -> Engine:
        return Engine(copy.deepcopy(model), config, engine.device.type)

    def planned(engine: Engine) -> System:
        return System(run=lambda work: engine.run(work.rows, work.exit_plan), work=work)

    def whole(engine: Engine) -> System:
        return System(run=lambda work: engine.run(work.rows), work=work)

    systems = {FULL: whole(make(replace(config, criterion=Criterion()))), EARLY: planned(engine)}
    plain = replace(config, first_token_first=False)
    if model.branch_head == "pooled":
        systems[f"{EARLY}, all tokens"] = planned(make(plain))
    if model.last_head == "classifier":
        systems[f"{FULL}, all tokens"] = whole(make(replace(plain, criterion=Criterion())))
    for dtype in args.dtype[1:]:
        systems[f"{FULL}, {dtype}"] = whole(make(replace(config, criterion=Criterion(), dtype=dtype)))
        systems[f"{EARLY}, {dtype}"] = planned(make(replace(config, dtype=dtype)))
    for budget, block in list(itertools.product(args.token_budget, args.exit_every))[1:]:
        name = f"{EARLY}, token budget {budget or engine.token_budget}, exit every {block}"
        systems[name] = planned(make(replace(config, token_budget=budget, exits=exits_every(model, block))))
    for count in args.rows_per_call:
        systems[f"{EARLY}, {count:,} rows a call"] = System(
            run=partial(run_calls, engine, work.in_calls_of(count)), work=work
        )
    return systems


def run_calls(engine: Engine, calls: Sequence[Workload], _whole: Workload) -> None:
    for call in calls:
        engine.run(call.rows, call.exit_plan)


def add_peers(
    systems: dict[str, System], args: argparse.Namespace, model: EarlyExitModel, work: Workload, device: str
) -> list[str]:
    """Add the peers that are installed; return what the others lack."""
    with quiet_transformers():
        if args.model:
            theirs = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
        else:
            theirs = AutoModelForSequenceClassification.from_config(model.config)
    step = max(len(work.rows) // 256, 1)
    needs = PeerNeeds(
        theirs=theirs.eval().to(device), ours=model, threads=torch.get_num_threads(), calibration=work.every(step)
    )
    missing = []
    for name in args.peers:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # exporters' remarks about models that are not ours
                systems[name] = System(run=PEERS[name](needs), work=work.every(SLOW.get(name, 1)))
        except MissingPeerError as error:
            missing.append(f"{name} (pip install {error})")
    return missing


def summarize(
    timings: dict[str, Timing], systems: dict[str, System], model: EarlyExitModel, ceiling: float
) -> dict[str, object]:
    """Work the ratios out: the JSON document."""
    rates = {name: len(systems[name].work.rows) / timing.median for name, timing in timings.items()}
    work, plain = systems[EARLY].work, f"{FULL}, all tokens"
    whole = plain if plain in rates else FULL
    flops = model.flops.full_depth(work.rows.lengths).sum() / timings[whole].median
    paper = model.shape.layers / work.mean_exit
    wall = rates[EARLY] / rates[FULL]
    result: dict[str, object] = {
        "rows_per_s": {name: round(rate, 2) for name, rate in rates.items()},
        "spread": {name: round(timing.spread, 3) for name, timing in timings.items()},
        "mean_tokens": round(float(work.rows.lengths.mean()), 1),
        "mean_exit": round(work.mean_exit, 3),
        "flops_speedup": round(paper, 3),
        "wall_speedup": round(wall, 3),
        "wall_over_flops": round(wall / paper, 3),
        "ceiling_tflops": round(ceiling / 1e12, 3),
        "ceiling_share": round(flops / ceiling, 3),
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()},
    }
    if whole == plain:
        early_plain = rates.get(f"{EARLY}, all tokens", rates[EARLY])
        result["wall_over_flops_all_tokens"] = round(early_plain / rates[plain] / paper, 3)
        result["wall_over_flops_against_all_tokens"] = round(rates[EARLY] / rates[plain] / paper, 3)
    return result


def print_card(args: argparse.Namespace, engine: Engine, work: Workload, ceiling: float, missing: list[str]) -> None:
    lengths, shape = work.rows.lengths, engine.model.shape
    print(f"{args.model or args.shape}: {shape.layers} layers of {shape.hidden}, {engine.model.branch_head} heads")
    print(f"{len(lengths):,} rows of {lengths.mean():.1f} tokens; mean exit {work.mean_exit:.2f} of {shape.layers}")
    where = (
        torch.cuda.get_device_name()
        if engine.device.type == "cuda"
        else f"{os.cpu_count()} cores, {platform.machine()}"
    )
    print(f"{where}; {engine.precision}, {engine.threads} threads, {engine.token_budget} tokens in a micro-batch")
    print(f"matrix products of this model alone reach {ceiling / 1e12:.2f} TFLOP/s")
    if missing:
        print(f"missing: {', '.join(missing)}; or all of them: pip install 'offramp[bench]'")


def print_table(timings: dict[str, Timing], result: dict[str, object]) -> None:
    rates = result["rows_per_s"]
    assert isinstance(rates, dict)
    print("\n| system | rows/s | against full depth | slowest / fastest round |\n| --- | --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.1f} | {rate / rates[FULL]:.2f} | {timings[name].spread:.2f} |")
    print()
    for key, value in result.items():
        if isinstance(value, float):
            print(f"{key}: {value}")


def build_parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("--shape", default="bert-base", metavar="S", help="bert-base, bert-large or <layers>x<hidden>")
    parser.add_argument("--head", choices=HEAD_KINDS, default="pooled", help="kind of the exit heads, with --shape")
    parser.add_argument("--model", metavar="MODEL", help="a real model in place of a shape: hub id or directory")
    parser.add_argument("--input", metavar="PATH", help="real texts, with --model: file, folder or glob")
    options.add_text_options(parser)
    parser.add_argument(
        "--speed", type=float, default=0.5, metavar="S", help="threshold that decides the exits, with --input"
    )
    parser.add_argument("--rows", type=options.positive, default=3000, metavar="N", help="rows of the workload")
    parser.add_argument("--mean-tokens", type=float, default=50, metavar="X", help="mean length of a row")
    parser.add_argument("--sigma", type=float, default=0.6, metavar="X", help="sigma of the logarithm of the length")
    parser.add_argument("--mean-exit", type=float, default=4, metavar="X", help="mean exit layer of the plan")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=[*PEERS],
        default=["hf-bf16-sorted", "hf-fp32-arrival", "papers-batch-1"],
        metavar="NAME",
        help=f"of {', '.join(PEERS)}",
    )
    parser.add_argument("--repetitions", type=options.positive, default=3, metavar="N", help="counted rounds")
    parser.add_argument("--threads", type=options.positive, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--token-budget",
        type=options.positive,
        nargs="+",
        default=[None],
        metavar="N",
        help="tokens in a micro-batch (default: the engine's choice); more than one: all are measured",
    )
    parser.add_argument(
        "--exit-every", type=options.positive, nargs="+", default=[1], metavar="K", help="layers in a block; or several"
    )
    parser.add_argument(
        "--rows-per-call",
        type=options.positive,
        nargs="+",
        default=[],
        metavar="N",
        help="measure calls of this many rows too: what a shard's size is worth",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPE_NAMES,
        nargs="+",
        default=["auto"],
        help="precision of the matrices; more than one: all are measured",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of lengths and plan")
    parser.add_argument("--output", metavar="FILE", help="write the JSON document there too")
    return parser


if __name__ == "__main__":
    command.run(main, build_parser())
