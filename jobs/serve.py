#!/usr/bin/env python
"""Serve a model over HTTP on Ray Serve: the engine of classify.py, for single requests. Same texts, same predictions.

Requests of all clients, each with a speed of its own, share batches by token budget. A full queue answers 429 with Retry-After.
The server listens to this machine only unless --host says otherwise; with a token in $OFFRAMP_TOKEN or --token-file, clients
have to send it. SIGTERM and Ctrl-C finish the accepted requests and stop.

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
import time

from ray.serve import Application

from jobs.cli import command, options
from jobs.cli.parser import JobParser, words_of
from models.checkpoint import check_weights
from models.early_exit import EarlyExitModel
from models.precision import check_precision
from pipeline.cluster.connect import join_or_start, running_cluster
from pipeline.cluster.resources import ActorPlan, check_free, plan_actors, plan_when_nodes_come
from pipeline.engine.config import DTYPE_NAMES, EngineConfig
from pipeline.engine.engine import check_exits
from pipeline.errors import UserError, one_line
from pipeline.serving import deployment
from pipeline.serving.auth import TOKEN_VARIABLE, load_token_hash
from pipeline.serving.limits import Limits
from pipeline.serving.spec import ServingSpec, calibrated_curve
from pipeline.storage.model_cache import local_model


def main(args: argparse.Namespace) -> int:
    started = time.monotonic()
    spec = serving_spec(args)
    deployment.check_port(args.host, args.port)
    join_or_start()
    plan = plan_actors(args.replicas)
    check_free(plan)
    try:
        with deployment.running(deployment.application(spec, plan), args.host, args.port):
            announce(args, spec, plan, time.monotonic() - started)
            deployment.wait()
    except RuntimeError as error:
        raise command.FailedError(one_line(error)) from error
    return command.FAILED


def application(values: dict[str, str]) -> Application:
    """Build the application of a Serve config file, whose `args` are this job's options; replicas as the cluster has room."""
    args = build_parser().parse(words_of(values))
    return deployment.application(serving_spec(args), plan_when_nodes_come(args.replicas))


def serving_spec(args: argparse.Namespace) -> ServingSpec:
    """Check the options against the model, and return what a replica needs."""
    directory = local_model(args.model)
    model = EarlyExitModel.from_config(directory)
    check_weights(directory, model)  # here a fault is reported once, not by every replica
    engine = EngineConfig(criterion=options.criterion(args, model), dtype=args.dtype)
    check_exits(model, engine)
    if running_cluster() is None:  # the machines of a cluster are others than this one, and check for themselves
        check_precision(engine.dtype, model.shape)
    tokenizer = options.load_tokenizer_spec(directory, model, args.max_tokens)
    try:
        curve = calibrated_curve(directory, engine, tokenizer.max_tokens)
    except UserError as problem:  # most requests do without
        print(f"{directory}: requests cannot ask for a speed-up or a limit: {problem}", file=sys.stderr)
        curve = None
    return ServingSpec(
        model=options.absolute_model(args.model),
        tokenizer=tokenizer,
        engine=engine,
        limits=Limits(rows=args.max_rows, answer_seconds=args.timeout),
        batch_tokens=args.batch_tokens,
        queue_tokens=args.queue_tokens,
        token_hash=load_token_hash(args.token_file),
        curve=curve,
    )


def announce(args: argparse.Namespace, spec: ServingSpec, plan: ActorPlan, seconds: float) -> None:
    """Print what is served, and where."""
    url = f"http://{args.host}:{args.port}"
    print(f"{args.model}: {spec.engine.criterion.describe()}, {plan.actors} replicas, {plan.threads} threads each")
    if spec.token_hash is None and not deployment.is_loopback(args.host):
        print(f"anybody who reaches {url} may use it: set ${TOKEN_VARIABLE} to ask for a token")
    print(f"ready after {seconds:.0f} s: {url}/classify, page at {url}/docs", flush=True)


def build_parser() -> JobParser:
    parser = JobParser(__doc__, kept="what was accepted is answered", stop_seconds=math.inf)
    add = parser.add_argument
    add(
        "--model", required=True, metavar="MODEL", help="early-exit model or any classifier: hub id, directory or s3://"
    )
    add("--host", default="127.0.0.1", metavar="IP", help="address to listen on; 0.0.0.0 is all of them")
    add("--port", type=options.positive, default=8000, metavar="N", help="port to listen on")
    add("--replicas", type=options.positive, metavar="N", help="default: one a GPU, else one for 8 cores")
    options.add_criterion_options(parser)
    add("--dtype", choices=DTYPE_NAMES, default="auto", help="precision, as for classify.py")
    add("--max-tokens", type=options.positive, metavar="N", help="tokens kept of a text")
    add("--max-rows", type=options.positive, default=1000, metavar="N", help="texts in one request")
    add("--timeout", type=float, default=30.0, metavar="S", help="seconds from a request to its response at most")
    add("--batch-tokens", type=options.positive, metavar="N", help="tokens in a batch (default: by device)")
    add("--queue-tokens", type=options.positive, metavar="N", help="tokens that may wait; more get 429")
    add("--token-file", metavar="FILE", help=f"file with the bearer token (default: ${TOKEN_VARIABLE})")
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
