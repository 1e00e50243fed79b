#!/usr/bin/env python
"""Measure the engine against what a user would run instead, in one process, as ratios. The last line is one JSON document.

Rows have log-normal lengths; early exit follows a plan with the given mean, so that speed does not depend on weights.

  python jobs/benchmark.py --shape bert-base --mean-tokens 50 --mean-exit 4
  python jobs/benchmark.py --shape 6x384 --peers hf-bf16-sorted --output speed.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import copy
import json
import platform
from importlib.metadata import version

import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from jobs import command, options
from models.early_exit import EarlyExitModel
from pipeline.benchmark import Timing, matmul_ceiling, measure
from pipeline.config import EngineConfig
from pipeline.engine import Engine
from pipeline.errors import UserError
from pipeline.peers import MissingPeerError, Runner, hugging_face, one_row_at_a_time, openvino
from pipeline.workload import Workload, make_workload

SHAPES = {"bert-base": (12, 768), "bert-large": (24, 1024)}
SLOW = {"hf-fp32-arrival": 8, "papers-batch-1": 8, "openvino-fp32": 4}
"""Peers that get a fraction of the rows, since they take that many times longer; all figures are rows a second."""
PEERS = ["hf-bf16-sorted", "hf-fp32-arrival", "papers-batch-1", "openvino-bf16", "openvino-fp32"]


def main(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    config = shape_config(args.shape)
    model = EarlyExitModel(config)
    model.add_exits(args.head)
    layers = model.shape.layers
    sizes = {"mean_tokens": args.mean_tokens, "sigma": args.sigma, "longest": 512, "layers": layers}
    sizes |= {"mean_exit": args.mean_exit, "vocabulary": config.vocab_size, "seed": args.seed}
    work = make_workload(args.rows, **sizes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    systems, engine = our_systems(model, device, args.head)
    missing = add_peers(systems, config, model, args.peers)
    share = {name: make_workload(max(args.rows // SLOW.get(name, 1), 64), **sizes) for name in systems}
    share |= {name: work for name in systems if name not in SLOW}
    ceiling = matmul_ceiling(model.shape, engine.device, engine.dtype)
    print_card(args, engine, ceiling, missing)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    timings = measure(systems, share, args.repetitions, wait, lambda line: print(line, file=sys.stderr, flush=True))
    result = summarise(timings, share, model, ceiling, layers) | {"missing": missing, "options": vars(args)}
    print_table(timings, result)
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def shape_config(name: str) -> BertConfig:
    try:
        layers, hidden = SHAPES.get(name) or (int(part) for part in name.split("x"))
    except ValueError as error:
        raise UserError(
            f"--shape {name}: is one of {', '.join(SHAPES)}, or <layers>x<hidden>, such as 6x384"
        ) from error
    heads = 12 if hidden == 384 else hidden // 64
    return BertConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden
    )


def our_systems(model: EarlyExitModel, device: str, head: str) -> tuple[dict[str, Runner], Engine]:
    full = Engine(copy.deepcopy(model), EngineConfig(speed=0.0), device)
    early = Engine(copy.deepcopy(model), EngineConfig(speed=0.5), device)
    systems: dict[str, Runner] = {"full-depth": lambda work: none(full.run(work.rows))}
    systems["early-exit"] = lambda work: none(early.run(work.rows, work.exit_plan))
    if head == "pooled":
        plain = Engine(copy.deepcopy(model), EngineConfig(speed=0.5, first_token_first=False), device)
        plain_full = Engine(copy.deepcopy(model), EngineConfig(speed=0.0, first_token_first=False), device)
        systems["early-exit, all tokens"] = lambda work: none(plain.run(work.rows, work.exit_plan))
        systems["full-depth, all tokens"] = lambda work: none(plain_full.run(work.rows))
    return systems, full


def none(_result: object) -> None:
    """Drop a result."""


def add_peers(systems: dict[str, Runner], config: BertConfig, model: EarlyExitModel, wanted: list[str]) -> list[str]:
    """Add the peers that are installed; return what the others lack."""
    theirs = (
        AutoModelForSequenceClassification.from_config(config).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    )
    missing = []
    for name in wanted:
        try:
            if name == "hf-bf16-sorted":
                systems[name] = hugging_face(copy.deepcopy(theirs).to(torch.bfloat16), in_order_of_length=True)
            elif name == "hf-fp32-arrival":
                systems[name] = hugging_face(theirs, in_order_of_length=False)
            elif name == "papers-batch-1":
                systems[name] = one_row_at_a_time(copy.deepcopy(model).eval())
            else:
                precision = "bf16" if name.endswith("bf16") else "f32"
                systems[name] = openvino(copy.deepcopy(theirs), precision=precision, threads=torch.get_num_threads())
        except MissingPeerError as error:
            missing.append(f"{name} (pip install {error})")
    return missing


def summarise(
    timings: dict[str, Timing], work: dict[str, Workload], model: EarlyExitModel, ceiling: float, layers: int
) -> dict[str, object]:
    """Work the ratios out: the JSON document."""
    rates = {name: len(work[name].rows) / timing.median for name, timing in timings.items()}
    whole = "full-depth, all tokens" if "full-depth, all tokens" in rates else "full-depth"
    flops = model.flops.full_depth(work[whole].rows.lengths).sum() / timings[whole].median
    paper = layers / work["early-exit"].mean_exit
    wall = rates["early-exit"] / rates["full-depth"]
    result: dict[str, object] = {
        "rows_per_s": {name: round(rate, 2) for name, rate in rates.items()},
        "spread": {name: round(timing.spread, 3) for name, timing in timings.items()},
        "mean_exit": work["early-exit"].mean_exit,
        "flops_speedup": round(paper, 3),
        "wall_speedup": round(wall, 3),
        "wall_over_flops": round(wall / paper, 3),
        "ceiling_tflops": round(ceiling / 1e12, 3),
        "ceiling_share": round(flops / ceiling, 3),
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()},
    }
    if whole != "full-depth":
        result["wall_over_flops_all_tokens"] = round(rates["early-exit, all tokens"] / rates[whole] / paper, 3)
        result["wall_over_flops_against_all_tokens"] = round(rates["early-exit"] / rates[whole] / paper, 3)
    return result


def print_card(args: argparse.Namespace, engine: Engine, ceiling: float, missing: list[str]) -> None:
    print(
        f"{args.shape}, {args.head} heads, {args.rows:,} rows of mean {args.mean_tokens} tokens, mean exit {args.mean_exit}"
    )
    print(
        f"{engine.device.type}, {str(engine.dtype)[6:]}, {torch.get_num_threads()} threads, {platform.processor() or 'cpu'}"
    )
    print(f"matrix products of this model alone reach {ceiling / 1e12:.2f} TFLOP/s")
    if missing:
        print(f"missing: {', '.join(missing)}")


def print_table(timings: dict[str, Timing], result: dict[str, object]) -> None:
    rates = result["rows_per_s"]
    assert isinstance(rates, dict)
    print("\n| system | rows/s | against full depth | slowest / fastest round |\n| --- | --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.1f} | {rate / rates['full-depth']:.2f} | {timings[name].spread:.2f} |")
    for key in ("flops_speedup", "wall_speedup", "wall_over_flops", "ceiling_share"):
        print(f"{key}: {result[key]}")


parser = command.new_parser(__doc__)
parser.add_argument("--shape", default="bert-base", metavar="S", help="bert-base, bert-large or <layers>x<hidden>")
parser.add_argument("--head", choices=["pooled", "attention"], default="pooled", help="kind of the exit heads")
parser.add_argument("--rows", type=options.positive, default=2000, metavar="N", help="rows of the workload")
parser.add_argument("--mean-tokens", type=float, default=50, metavar="X", help="mean length of a row")
parser.add_argument("--sigma", type=float, default=0.6, metavar="X", help="sigma of the logarithm of the length")
parser.add_argument("--mean-exit", type=float, default=4, metavar="X", help="mean exit layer of the plan")
parser.add_argument(
    "--peers", nargs="*", choices=PEERS, default=PEERS[:3], metavar="NAME", help=f"of {', '.join(PEERS)}"
)
parser.add_argument("--repetitions", type=options.positive, default=3, metavar="N", help="counted rounds")
parser.add_argument("--threads", type=options.positive, metavar="N", help="CPU threads (default: torch's choice)")
parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of lengths and plan")
parser.add_argument("--output", metavar="FILE", help="write the JSON document there too")

if __name__ == "__main__":
    command.run(main, parser)
