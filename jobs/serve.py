#!/usr/bin/env python
"""Serve a model over HTTP on Ray Serve: the engine of classify.py, for single requests. Same texts, same predictions.

Requests of all clients, each with a speed of its own, share batches by token budget. A full queue answers 429 with Retry-After.
The server listens to this machine only unless --host says otherwise, and then wants a token, in $OFFRAMP_TOKEN or --token-file,
which clients have to send; --open does without. SIGTERM and Ctrl-C finish the accepted requests and stop.

  python jobs/serve.py --model my-model --speed 0.3
  curl localhost:8000/classify --json '{"text": "the room was clean"}'
  curl localhost:8000/classify --json '{"text": ["one", "two"], "speed": 0.6, "probabilities": true}'
  curl localhost:8000/classify --json '{"text": "is it open?", "pair": "we close at noon"}'
  curl localhost:8000/classify --json '{"text": "with a token"}' -H "Authorization: Bearer $OFFRAMP_TOKEN"

Also GET /healthz, /model, and /docs, a page to try it on. In a Serve config file: import_path jobs.serve:application, and these
options as args.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import math
from typing import TYPE_CHECKING

from jobs.cli import command, options
from jobs.cli.parser import JobParser, words_of
from pipeline.engine.config import DTYPE_NAMES
from pipeline.errors import require
from pipeline.serving.token import TOKEN_VARIABLE

if TYPE_CHECKING:
    from ray.serve import Application


def main(args: argparse.Namespace) -> int:
    """Do the work, whose modules are loaded here: by now the options are known to be right."""
    require("fastapi", extra="serve")
    from jobs.work.serve import run

    return run(args)


def application(values: dict[str, object]) -> "Application":
    """Build the application of a Serve config file, whose `args` are this job's options."""
    args = build_parser().parse(words_of(values))
    from jobs.work import serve

    return serve.application(args)


def build_parser() -> JobParser:
    parser = JobParser(__doc__, kept="what was accepted is answered", stop_seconds=math.inf)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        type=options.local_path,
        metavar="MODEL",
        help="early-exit model or any classifier: hub id, directory or s3://",
    )
    add("--host", default="127.0.0.1", metavar="IP", help="address to listen on; 0.0.0.0 is all of them")
    add("--port", type=options.positive, default=8000, metavar="N", help="port to listen on")
    add("--replicas", type=options.positive, metavar="N", help="default: one a GPU, else one for 8 cores")
    options.add_wait_option(parser)
    options.add_criterion_options(parser)
    add("--dtype", choices=DTYPE_NAMES, default="auto", help="precision, as for classify.py")
    add("--max-tokens", type=options.positive, metavar="N", help="tokens kept of a text")
    add("--max-rows", type=options.positive, default=1000, metavar="N", help="texts in one request")
    add("--timeout", type=float, default=30.0, metavar="S", help="seconds from a request to its response at most")
    add("--batch-tokens", type=options.positive, metavar="N", help="tokens in a batch (default: by device)")
    add("--queue-tokens", type=options.positive, metavar="N", help="tokens that may wait; more get 429")
    add("--open", action="store_true", help="answer without a token on addresses that other machines reach")
    add(
        "--token-file",
        type=options.local_path,
        metavar="FILE",
        help=f"file with the bearer token (default: ${TOKEN_VARIABLE})",
    )
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
