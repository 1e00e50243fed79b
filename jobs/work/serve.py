"""Serve a model over HTTP on Ray Serve: the work of jobs/serve.py."""

import argparse
import sys
import time
from functools import partial

from ray.serve import Application

from jobs.cli import command
from jobs.cli.command import print_line
from jobs.work import loading
from models.checkpoint import check_finite, check_weights
from models.directory.config import plain_config
from models.directory.digest import weights_digest
from models.early_exit import EarlyExitModel
from models.precision import check_precision
from pipeline.api.pretrained import load_tokenizer_spec
from pipeline.cluster.address import find_cluster
from pipeline.cluster.connect import join_or_start
from pipeline.cluster.resources import ActorPlan, check_free, plan_actors, plan_when_nodes_come, wait_for_nodes
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import check_exits
from pipeline.errors import InputError, UserError, one_line
from pipeline.identity import ModelIdentity
from pipeline.serving import deployment
from pipeline.serving.limits import RequestLimits
from pipeline.serving.spec import ServingSpec, usable_calibration
from pipeline.serving.token import TOKEN_VARIABLE, load_token_hash


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes; return the exit code."""
    started, log = time.monotonic(), partial(print, flush=True)
    spec = serving_spec(args)
    if not deployment.is_loopback(args.host):
        require_token(args, spec)
    deployment.check_port(args.host, args.port)
    join_or_start(log)
    wait_for_nodes(dict(args.wait_for), log)
    plan = plan_actors(args.replicas)
    check_free(plan)
    try:
        with deployment.running(deployment.application(spec, plan), args.host, args.port):
            announce(args, spec, plan, time.monotonic() - started)
            deployment.wait(Complaints())
    except RuntimeError as error:
        raise command.FailedError(one_line(error)) from error
    return command.FAILED


def application(args: argparse.Namespace) -> Application:
    """Build the application of a Serve config file, with replicas as the cluster has room."""
    wait_for_nodes(dict(args.wait_for))
    spec = serving_spec(args)
    require_token(args, spec)  # where Serve listens is said elsewhere
    return deployment.application(spec, plan_when_nodes_come(args.replicas))


def serving_spec(args: argparse.Namespace) -> ServingSpec:
    """Check the options against the model, and return what a replica needs."""
    directory = loading.find_model(args.model)
    model = EarlyExitModel.from_config(directory)
    check_weights(directory, model)  # here a fault is reported once, not by every replica
    check_finite(directory, model)
    engine = EngineConfig(criterion=loading.criterion(args, model), dtype=args.dtype)
    check_exits(model, engine)
    if find_cluster() is None:  # the machines of a cluster are others than this one, and check for themselves
        check_precision(engine.dtype, model.shape)
    tokenizer = load_tokenizer_spec(directory, model, args.max_tokens)
    identity = ModelIdentity.of(model, weights_digest(directory), tokenizer)
    try:
        calibration = usable_calibration(directory, engine, identity, args.tolerance)
    except UserError as problem:  # most requests do without
        print_line(f"{directory}: requests cannot ask for a speed-up or a limit: {problem}", sys.stderr)
        calibration = None
    return ServingSpec(
        model=loading.absolute_model(args.model),
        tokenizer=tokenizer,
        config=plain_config(model.config),
        identity=identity,
        precision=None if calibration is None else calibration.computed_in,
        engine=engine,
        limits=RequestLimits(rows=args.max_rows, answer_seconds=args.timeout),
        batch_tokens=args.batch_tokens,
        queue_tokens=args.queue_tokens,
        token_hash=load_token_hash(args.token_file),
        curve=None if calibration is None else calibration.curve,
    )


def require_token(args: argparse.Namespace, spec: ServingSpec) -> None:
    """Raise InputError if a server that other machines reach would answer everybody, and nobody has asked for that."""
    if spec.token_hash is None and not args.open:
        raise InputError(
            "open", f"other machines would reach the server without a token: set ${TOKEN_VARIABLE}, or give --open"
        )


class Complaints:
    """Prints why replicas cannot serve, each cause once."""

    def __init__(self) -> None:
        self.printed: set[str] = set()

    def __call__(self, message: str) -> None:
        """Print the cause in a message of Serve's, which has the traceback of a replica."""
        cause = command.cause_of(RuntimeError(message))
        if cause not in self.printed:
            print(f"replicas cannot serve: {cause}", file=sys.stderr, flush=True)
        self.printed.add(cause)


def announce(args: argparse.Namespace, spec: ServingSpec, plan: ActorPlan, seconds: float) -> None:
    """Print what is served, and where."""
    url = f"http://{args.host}:{args.port}"
    print_line(f"{args.model}: {spec.engine.criterion.describe()}, {plan.actors} replicas, {plan.threads} threads each")
    if spec.token_hash is None and not deployment.is_loopback(args.host):
        print_line(f"anybody who reaches {url} may use it")
    print_line(f"ready after {seconds:.0f} s: {url}/classify, page at {url}/docs")
