"""The Ray Serve deployment: a replica holds a model, its engine's queue and the HTTP application around them."""

import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.calibration.curve import Curve
from pipeline.cluster.connect import running_cluster
from pipeline.cluster.resources import ActorPlan
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.errors import InputError
from pipeline.serving.app import build_app
from pipeline.serving.classifier import STUCK_S, Classifier, Limits
from pipeline.serving.metrics import ServingMetrics
from pipeline.serving.queue import EngineQueue
from pipeline.storage.model_cache import local_model
from pipeline.version import code_version

APPLICATION = "offramp"
WATCH_S = 5.0
"""Between two looks at whether the application still runs."""
MICRO_BATCHES_PER_BATCH = 4
"""Of each lane: survivors of so many fill a micro-batch still when three of four rows have left."""
BATCHES_WAITING = 8
"""A queue of this many batches: some seconds of work, after which it is kinder to say no."""
REQUESTS_AT_ONCE = 1000
"""In a replica; the queue refuses long before, so that callers learn when to come back."""


@dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """All that a replica needs; plain values."""

    model: str
    tokenizer: TokenizerSpec
    engine: EngineConfig
    """Its criterion judges requests that name no speed."""
    limits: Limits
    batch_tokens: int | None = None
    """Tokens that go to the engine at once; None is MICRO_BATCHES_PER_BATCH for each of its lanes."""
    queue_tokens: int | None = None
    """Tokens that may wait; None is BATCHES_WAITING batches."""
    token_hash: bytes | None = None
    curve: Curve | None = None
    """Of the model's calibration, if it has one that fits how it is served."""


def engine_criterion(criterion: Criterion, model: EarlyExitModel) -> Criterion:
    """Return the criterion for an engine whose rows bring their own thresholds: it has to look at every exit."""
    blind = model.regression and criterion.name != "lte"  # values have no entropy to judge by
    if criterion.name == "patience" or len(model.exit_layers) == 1 or blind:
        return criterion
    return Criterion(name=criterion.name, speed=1.0)


class Replica:
    """A process that answers requests."""

    def __init__(self, spec: ServingSpec, plan: ActorPlan) -> None:
        torch.set_num_threads(plan.threads)
        model = EarlyExitModel.from_pretrained(local_model(spec.model))
        asked = spec.engine.criterion
        config = replace(spec.engine, criterion=engine_criterion(asked, model))
        loaded = LoadedModel(model, config, plan.device)
        engine = Engine(loaded)
        batch_tokens = spec.batch_tokens or MICRO_BATCHES_PER_BATCH * loaded.threads * loaded.token_budget
        self.metrics = ServingMetrics()
        self.queue = EngineQueue(
            engine,
            batch_tokens=batch_tokens,
            queue_tokens=spec.queue_tokens or BATCHES_WAITING * batch_tokens,
            on_batch=self.metrics.batch,
        )
        self.spec = spec
        self.classifier = Classifier(self.queue, Tokenizer(spec.tokenizer), asked, spec.limits, spec.curve)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(
            self.classifier, token_hash=self.spec.token_hash, version=code_version(), on_response=self.metrics.request
        )

    def check_health(self) -> None:
        """Called by Serve, which starts another replica in place of one that raises."""
        if self.queue.stuck_for() > STUCK_S:
            raise RuntimeError("the engine does not come back")


def application(spec: ServingSpec, plan: ActorPlan) -> Application:
    """Build the Serve application: `plan.actors` replicas."""
    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        name="classifier",
        num_replicas=plan.actors,
        ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus, "resources": plan.place},
        max_ongoing_requests=REQUESTS_AT_ONCE,
        max_queued_requests=REQUESTS_AT_ONCE,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=spec.limits.answer_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=10,
    )
    return deployment.bind(spec, plan)


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False


def check_port(host: str, port: int) -> None:
    """Raise UserError if nobody can listen there."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError("port", f"{port}: cannot listen on {host}: {reason}") from error


def _serve_is_there() -> bool:
    """Say whether Serve runs on the cluster already; looking by its own functions would start it."""
    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


@contextmanager
def running(app: Application, host: str, port: int) -> Iterator[None]:
    """Run an application until the block ends, then finish what was accepted and stop.

    Serve may be on the cluster already: then its own address counts, and only this application is taken away at the end.
    Raises RuntimeError if no replica can be started.
    """
    ours = not _serve_is_there()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of what it tells, nothing is for whoever starts a server
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
        serve.run(app, name=APPLICATION, route_prefix="/")
        yield
    finally:
        # A second signal does not cut the drain short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if ray.is_initialized():
            serve.delete(APPLICATION)
            if ours and running_cluster() is not None:  # a Ray of our own ends with this process
                serve.shutdown()


def wait() -> None:
    """Wait for ever; raise RuntimeError when the application has failed for good, or Ray is gone."""
    while True:
        try:
            application = serve.status().applications[APPLICATION]
        except (RayError, RayServeException, KeyError) as error:
            raise RuntimeError(f"Ray Serve is gone: {type(error).__name__}") from error
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(application.message)
        time.sleep(WATCH_S)
