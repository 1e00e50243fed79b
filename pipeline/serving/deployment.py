"""The Ray Serve deployment: a replica holds a model, the queue of its engine, and the HTTP application around them.

Two private parts of Serve are used here and nowhere else: the name of its controller (SERVE_CONTROLLER_NAME, SERVE_NAMESPACE),
and the hook `__serve_build_asgi_app__`, which only the docstring of `serve.ingress` documents.
tests/repository/test_private_apis.py checks that the installed version still has them.
"""

import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from ray.serve.schema import ApplicationStatus, DeploymentStatus

from models.early_exit import EarlyExitModel
from models.precision import precision_on
from pipeline.cluster.connect import has_own_ray
from pipeline.cluster.resources import ActorPlan, ask_node
from pipeline.corpus.tokenize import Tokenizer
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.errors import InputError
from pipeline.identity import dtype_of
from pipeline.serving.app import build_app
from pipeline.serving.classifier import TextClassifier
from pipeline.serving.metrics import ServingMetrics
from pipeline.serving.queue import EngineQueue
from pipeline.serving.spec import ServingSpec, engine_criterion
from pipeline.storage.model_cache import checked_model
from pipeline.version import code_version

APPLICATION = "offramp"
POLL_SECONDS = 5.0
"""Time between two checks that the application still runs."""
MICRO_BATCHES_PER_BATCH = 4
"""Micro-batches in a batch for each runner: survivors of so many still fill one when three of four rows have exited."""
GPU_BATCH_TOKENS = 1 << 16
"""Tokens of a batch on a GPU. There a micro-batch may be as large as memory allows, and requests would wait for one at work."""
BATCHES_WAITING = 8
"""Batches that may wait in a queue, which is some seconds of work. Beyond this, reject with 429."""
CONCURRENT_REQUESTS = 1000
"""Requests that a replica may hold. The queue is full long before, so that clients learn from it when to come back."""


class Replica:
    """A process that answers requests."""

    def __init__(self, spec: ServingSpec, plan: ActorPlan) -> None:
        torch.set_num_threads(plan.threads)
        precision = precision_on(spec.engine.dtype, torch.device(plan.device))
        directory = checked_model(spec.model, spec.identity.weights, precision=(precision, str(spec.precision)))
        model = EarlyExitModel.from_pretrained(directory, config=spec.config)
        criterion = spec.engine.criterion
        config = replace(spec.engine, criterion=engine_criterion(criterion, model))
        loaded = LoadedModel(model, config, plan.device)
        engine = Engine(loaded)
        engine.warm_up()  # before the first request
        on_cpu = MICRO_BATCHES_PER_BATCH * loaded.threads * loaded.token_budget
        batch_tokens = spec.batch_tokens or (GPU_BATCH_TOKENS if plan.device == "cuda" else on_cpu)
        self.metrics = ServingMetrics()
        self.queue = EngineQueue(
            engine,
            batch_tokens=batch_tokens,
            queue_tokens=spec.queue_tokens or BATCHES_WAITING * batch_tokens,
            on_batch=self.metrics.count_batch,
        )
        self.spec = spec
        self.classifier = TextClassifier(self.queue, Tokenizer(spec.tokenizer), criterion, spec.limits, spec.curve)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the application around this replica's model; `serve.ingress(app)` would pickle one that the driver made."""
        return build_app(
            self.classifier,
            token_hash=self.spec.token_hash,
            version=code_version(),
            on_response=self.metrics.count_request,
        )

    def check_health(self) -> None:
        """Raise if the engine is stuck; Serve calls this, and replaces a replica that raises."""
        if self.queue.is_stuck():
            raise RuntimeError("the engine does not come back")


def settled(spec: ServingSpec, plan: ActorPlan) -> ServingSpec:
    """Settle what replicas compute in, so that one that starts later, on another machine, computes in the same."""
    asked = spec.engine.dtype
    precision = spec.precision or ask_node(plan, precision_on, asked, torch.device(plan.device))
    return replace(spec, precision=precision, engine=replace(spec.engine, dtype=dtype_of(precision)))


def application(spec: ServingSpec, plan: ActorPlan) -> Application:
    """Build the Serve application, with `plan.actors` replicas."""
    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        name="classifier",
        num_replicas=plan.actors,
        ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus, "resources": plan.resources},
        max_ongoing_requests=CONCURRENT_REQUESTS,
        max_queued_requests=CONCURRENT_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=spec.limits.answer_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=10,
    )
    return deployment.bind(settled(spec, plan), plan)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False


def check_port(host: str, port: int) -> None:
    """Raise InputError if this process cannot listen there."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError("port", f"{port}: cannot listen on {host}: {reason}") from error


@contextmanager
def running(app: Application, host: str, port: int) -> Iterator[None]:
    """Run an application until the block ends, then finish the accepted requests and stop.

    Where Serve runs on the cluster already, its own address counts, and only this application is removed at the end. Raises
    RuntimeError if no replica can be started.
    """
    ours = not _serve_runs()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its progress means nothing to whoever starts a server
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
        serve.run(app, name=APPLICATION, route_prefix="/")
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not cut the drain short
        if ray.is_initialized():
            serve.delete(APPLICATION)
            if ours and not has_own_ray():  # a Ray of our own ends with this process
                serve.shutdown()


def _serve_runs() -> bool:
    """Return whether Serve runs on the cluster; its own `serve.status` would start it."""
    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def wait(on_problem: Callable[[str], None]) -> None:
    """Wait forever; raise RuntimeError when the application has failed for good, or Ray is gone.

    `on_problem` takes what Serve says while replicas fail, or refuse to start, which it tries again and again.
    """
    while True:
        try:
            status = serve.status().applications[APPLICATION]
        except (RayError, RayServeException, KeyError) as error:
            raise RuntimeError(f"Ray Serve is gone: {type(error).__name__}") from error
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(status.message)
        for deployment in status.deployments.values():
            if deployment.status == DeploymentStatus.UNHEALTHY:
                on_problem(deployment.message)
        time.sleep(POLL_SECONDS)
