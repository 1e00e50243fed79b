#!/usr/bin/env python
"""Serve a model over HTTP on Ray Serve: the engine of classify.py, for single requests. Same texts, same answers.

Requests of all callers, each with a speed of its own, share batches by token budget. A full queue answers 429 with Retry-After.
Only this machine is listened to unless --host says otherwise; with a token in $OFFRAMP_TOKEN or --token-file, callers have to
send it. SIGTERM and Ctrl-C finish what was accepted and stop.

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
import os
import time

from ray.serve import Application

from jobs.cli import command, options
from jobs.cli.parser import JobParser, words_of
from models.digest import weights_digest
from models.early_exit import EarlyExitModel
from pipeline.calibration.curve import FILE as CALIBRATION_FILE
from pipeline.calibration.curve import Calibration, Curve
from pipeline.cluster.connect import join_or_start
from pipeline.cluster.resources import check_free, plan_actors, plan_when_nodes_come
from pipeline.engine.config import DTYPE_NAMES, EngineConfig
from pipeline.engine.engine import check_exits
from pipeline.errors import InputError, UserError
from pipeline.serving import deployment
from pipeline.serving.classifier import Limits
from pipeline.serving.limits import hash_token
from pipeline.storage.model_cache import local_model

TOKEN_VARIABLE = "OFFRAMP_TOKEN"


def main(args: argparse.Namespace) -> int:
    started = time.monotonic()
    spec = spec_of(args)
    deployment.check_port(args.host, args.port)
    # Serve kills a proxy that is not there after 5 s, and a busy machine takes longer to start a process.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    join_or_start()
    plan = plan_actors(args.replicas)
    check_free(plan)
    try:
        with deployment.running(deployment.application(spec, plan), args.host, args.port):
            url = f"http://{args.host}:{args.port}"
            print(
                f"{args.model}: {spec.engine.criterion.describe()}, {plan.actors} replicas, {plan.threads} threads each"
            )
            if spec.token_hash is None and not deployment.is_loopback(args.host):
                print(f"anybody who reaches {url} may use it: set ${TOKEN_VARIABLE} to ask for a token")
            print(f"ready after {time.monotonic() - started:.0f} s: {url}/classify, page at {url}/docs", flush=True)
            deployment.wait()
    except RuntimeError as error:
        raise command.FailedError(" ".join(str(error).split())) from error
    return command.FAILED


def spec_of(args: argparse.Namespace) -> deployment.ServingSpec:
    """Check the options against the model."""
    address, args.model = args.model, local_model(args.model)
    model = EarlyExitModel.from_pretrained(args.model)
    engine = EngineConfig(criterion=options.criterion(args, model), dtype=args.dtype)
    check_exits(model, engine)
    token = Path(args.token_file).read_text() if args.token_file else os.environ.get(TOKEN_VARIABLE, "")
    if args.token_file and not token.strip():
        raise InputError("token_file", f"{args.token_file}: is empty")
    tokenizer = options.load_tokenizer_spec(args.model, model, args.max_tokens)
    return deployment.ServingSpec(
        model=options.absolute_model(address),
        tokenizer=tokenizer,
        engine=engine,
        limits=Limits(rows=args.max_rows, answer_seconds=args.timeout),
        batch_tokens=args.batch_tokens,
        queue_tokens=args.queue_tokens,
        token_hash=hash_token(token.strip().encode()) if token.strip() else None,
        curve=curve_of(args, engine.criterion.name, tokenizer.max_tokens),
    )


def curve_of(args: argparse.Namespace, criterion: str, max_tokens: int) -> Curve | None:
    """Load what the model's calibration knows, if it fits; requests by speed-up or limit need it, others do not."""
    if not (Path(args.model) / CALIBRATION_FILE).is_file():
        return None
    try:
        calibration = Calibration.load(args.model)
        calibration.check(weights_digest(args.model), args.dtype, max_tokens)
        if calibration.curve.criterion != criterion:
            raise UserError(f"it is about {calibration.curve.criterion}, and the model is served by {criterion}")
    except UserError as problem:
        print(f"{args.model}: requests cannot ask for a speed-up or a limit: {problem}", file=sys.stderr)
        return None
    return calibration.curve


def application(values: dict[str, str]) -> Application:
    """For Serve config files: `args` are this job's options; replicas, and what each takes, as the cluster has room."""
    args = build_parser().parse(words_of(values))
    return deployment.application(spec_of(args), plan_when_nodes_come(args.replicas))


def build_parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="early-exit model or any classifier: hub id, directory or s3://"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="IP", help="address to listen on; 0.0.0.0 is all of them"
    )
    parser.add_argument("--port", type=options.positive, default=8000, metavar="N", help="port to listen on")
    parser.add_argument(
        "--replicas", type=options.positive, metavar="N", help="default: one a GPU, else one for 8 cores"
    )
    options.add_criterion_options(parser)
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="auto", help="precision, as for classify.py")
    parser.add_argument("--max-tokens", type=options.positive, metavar="N", help="tokens kept of a text")
    parser.add_argument("--max-rows", type=options.positive, default=1000, metavar="N", help="texts in one request")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds until an answer is given up")
    parser.add_argument(
        "--batch-tokens", type=options.positive, metavar="N", help="tokens in a batch (default: by device)"
    )
    parser.add_argument("--queue-tokens", type=options.positive, metavar="N", help="tokens that may wait; more get 429")
    parser.add_argument("--token-file", metavar="FILE", help=f"file with the bearer token (default: ${TOKEN_VARIABLE})")
    return parser


if __name__ == "__main__":
    command.run(main, build_parser())
