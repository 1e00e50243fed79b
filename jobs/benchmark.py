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

On a GPU, Hugging Face and TensorRT run in batches of 32, 256 or 1,024 rows, whichever is fastest, and the table names it; for
the engine it also has the fraction of the time in which kernels are at work, and their number. A peer that cannot run here is
left out, with the reason.

Without a stored model, weights are random and every row has a planned exit; with a model and texts, lengths and exits are
real. An option with several values measures each of them. The last line of the output is one JSON document.

  python jobs/benchmark.py --shape bert-base --mean-tokens 50 --mean-exit 4
  python jobs/benchmark.py --shape 6x384 --peers hf-bf16-sorted --token-budget 1024 512 2048
  python jobs/benchmark.py --peers hf-bf16-sorted hf-bf16-compiled tensorrt-fp16 --rows-per-call 1000 16384 65536
  python jobs/benchmark.py --model my-model --input corpus/ --speed 0.3
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from jobs.cli import command, options
from jobs.cli.parser import JobParser
from models.exits.kinds import HEAD_KINDS
from pipeline.benchmark.peers.names import PEER_NAMES
from pipeline.engine.config import DTYPE_NAMES

PEERS_RUN = ["hf-bf16-sorted", "hf-fp32-arrival", "papers-batch-1"]


def main(args: argparse.Namespace) -> None:
    """Do the work, whose modules are loaded here: by now the options are known to be right."""
    from jobs.work.benchmark import run

    run(args)


def build_parser() -> JobParser:
    """Make the parser of this job's options."""
    parser = JobParser(__doc__)
    add, positive = parser.add_argument, options.positive
    add("--shape", default="bert-base", metavar="S", help="bert-base, bert-large or <layers>x<hidden>")
    add("--head", choices=HEAD_KINDS, default="pooled", help="kind of the exit heads, with --shape")
    add(
        "--model",
        type=options.local_path,
        metavar="MODEL",
        help="a real model in place of a shape: hub id or directory",
    )
    add("--input", metavar="PATH", help="real texts, with --model: file, folder or glob")
    options.add_text_options(parser)
    add("--speed", type=float, default=0.5, metavar="S", help="threshold that decides the exits, with --input")
    add("--rows", type=positive, metavar="N", help="rows of the workload (default: 3,000; on a GPU 65,536)")
    add("--mean-tokens", type=float, default=50, metavar="X", help="mean length of a row")
    add("--sigma", type=float, default=0.6, metavar="X", help="sigma of the logarithm of the length")
    add("--mean-exit", type=float, default=4, metavar="X", help="mean exit layer of the plan")
    add(
        "--peers",
        nargs="*",
        choices=PEER_NAMES,
        default=PEERS_RUN,
        metavar="NAME",
        help=f"any of {', '.join(PEER_NAMES)}",
    )
    add("--repetitions", type=positive, default=3, metavar="N", help="counted rounds")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)")
    add("--token-budget", type=positive, nargs="+", default=[None], metavar="N", help="tokens in a batch; or several")
    add("--exit-every", type=positive, nargs="+", default=[1], metavar="K", help="layers between exits; or several")
    add("--rows-per-call", type=positive, nargs="+", default=[], metavar="N", help="rows in a call; or several")
    add("--dtype", choices=DTYPE_NAMES, nargs="+", default=["auto"], help="precision of the matrices; or several")
    add("--seed", type=int, default=0, metavar="N", help="seed of lengths and plan")
    add("--output", type=options.local_path, metavar="FILE", help="write the JSON document to this file too")
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
