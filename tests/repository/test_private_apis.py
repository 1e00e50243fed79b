"""Private parts of other packages that we need, in the installed versions. To check another one, add it to PRIVATE."""

import importlib
import importlib.metadata
import mmap
import re
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.support.jobs import REPOSITORY


class Private(NamedTuple):
    """A private part of a package, whether it is there, and what breaks without it."""

    package: str
    name: str
    is_there: Callable[[], bool]
    breaks: str


def module(name: str) -> Any:
    return importlib.import_module(name)


def has(module_name: str, attribute: str) -> Callable[[], bool]:
    """Check that a module has an attribute, which may be a dotted path."""

    def is_there() -> bool:
        try:
            return attrgetter(attribute)(module(module_name)) is not None
        except (ImportError, AttributeError):
            return False

    return is_there


def mentions(module_name: str, text: str) -> Callable[[], bool]:
    """Check that a module's file, source or compiled, holds a text: a keyword argument or the name of a variable."""

    def is_there() -> bool:
        try:
            path = Path(module(module_name).__file__)
        except ImportError:
            return False
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text.encode()) >= 0

    return is_there


PRIVATE = [
    Private(
        "ray",
        "ray._raylet.Config.initialize",
        has("ray._raylet", "Config.initialize"),
        "cluster.connect starts a Ray whose driver does not send its own token",
    ),
    Private(
        "ray",
        "ray._private.worker._global_node.destroy_external_storage",
        lambda: (
            hasattr(module("ray._private.worker"), "_global_node")
            and has("ray._private.node", "Node.destroy_external_storage")()
        ),
        "what a Ray of our own has spilled to the disk stays there",
    ),
    Private(
        "ray",
        "ray.init(_metrics_export_port=)",
        mentions("ray._private.worker", 'kwargs.pop("_metrics_export_port"'),
        "OFFRAMP_METRICS_PORT no longer chooses where a Ray of our own exports metrics",
    ),
    Private(
        "ray",
        "ray.init(_temp_dir=)",
        mentions("ray._private.worker", 'kwargs.pop("_temp_dir"'),
        "the sockets and logs of a Ray of our own are where other users of the machine reach them",
    ),
    Private(
        "ray",
        "RAY_gcs_server_port_wait_time_s",
        mentions("ray._private.node", "RAY_gcs_server_port_wait_time_s"),
        "a cluster that does not let a job in is tried for 20 s in place of 5",
    ),
    Private(
        "ray",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        lambda: (
            module("ray._private.runtime_env.constants").RAY_JOB_CONFIG_JSON_ENV_VAR == "RAY_JOB_CONFIG_JSON_ENV_VAR"
        ),
        "cluster.connect sets S3 variables that the submission of a job has set, and Ray refuses the job",
    ),
    Private(
        "ray",
        "ray_current_cluster",
        lambda: module("ray._common.utils").get_ray_address_file("/tmp/ray") == "/tmp/ray/ray_current_cluster",
        "cluster.connect does not find a cluster that `ray start` left on this machine, and starts another one",
    ),
    Private(
        "ray",
        "StreamingExecutor-",
        mentions("ray.data._internal.execution.streaming_executor", 'f"StreamingExecutor-'),
        "cluster.connect leaves Ray while a chain is ending, and now and then the process ends with it",
    ),
    Private(
        "ray",
        "ray-data-metadata-prefetch",
        mentions("ray.data._internal.execution.metadata_fetcher", 'name="ray-data-metadata-prefetch"'),
        "cluster.connect leaves Ray while a chain is ending, and now and then the process ends with it",
    ),
    Private(
        "ray",
        "RAY_BACKEND_LOG_LEVEL",
        mentions("ray._raylet", "RAY_BACKEND_LOG_LEVEL"),
        "Ray's C++ core logs an error for every actor pool that may restart",
    ),
    Private(
        "ray",
        "RAY_idle_worker_killing_time_threshold_ms",
        mentions("ray._raylet", "idle_worker_killing_time_threshold_ms"),
        "a Ray of our own ends workers that wait a second for their next shard, and new ones import all again",
    ),
    Private(
        "ray",
        "RAY_JOB_STOP_WAIT_TIME_S",
        mentions("ray.dashboard.modules.job.job_supervisor", "RAY_JOB_STOP_WAIT_TIME_S"),
        "`ray job stop` kills a run after 3 s, whatever infra/ sets, so it loses the shards of its last second",
    ),
    Private(
        "ray",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S",
        mentions("ray.serve._private.constants", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"),
        "Serve gives up on its proxy after 5 s, so that servers do not start on busy machines",
    ),
    Private(
        "ray",
        "ray.serve._private.constants.SERVE_CONTROLLER_NAME",
        has("ray.serve._private.constants", "SERVE_CONTROLLER_NAME"),
        "serving.deployment cannot tell whether Serve runs already, and would shut down a Serve that others use",
    ),
    Private(
        "ray",
        "ray.serve._private.constants.SERVE_NAMESPACE",
        has("ray.serve._private.constants", "SERVE_NAMESPACE"),
        "serving.deployment cannot tell whether Serve runs already, and would shut down a Serve that others use",
    ),
    Private(
        "ray",
        "__serve_build_asgi_app__",
        lambda: module("ray.serve._private.replica").SERVE_BUILD_ASGI_APP_METHOD == "__serve_build_asgi_app__",
        "Serve does not ask serving.deployment.Replica for its application",
    ),
    Private(
        "torch",
        "torch.ops.aten._flash_attention_forward",
        lambda: (
            {"cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p"}
            <= {argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments}
            and torch._C._dispatch_has_kernel_for_dispatch_key("aten::_flash_attention_forward", "Autograd")
        ),
        "training on GPUs cannot run ragged rows with dropout and gradients",
    ),
]
HOMES = {"pipeline/cluster/address.py", "pipeline/cluster/connect.py", "pipeline/serving/deployment.py"}
"""The only files that may use private parts of Ray."""
PRIVATE_OF_RAY = re.compile(
    r"\bray(?:\.\w+)*\._\w|__serve_\w|RAY_JOB_CONFIG_JSON|_metrics_export_port|ray_current_cluster"
)


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: private.name)
def test_what_is_private_is_still_there(private: Private) -> None:
    version = importlib.metadata.version(private.package)
    assert private.is_there(), f"{private.package} {version} has no {private.name} any more: {private.breaks}"


def test_a_part_that_is_gone_is_noticed() -> None:
    assert not has("ray._raylet", "Config.initialise")()
    assert not has("ray._no_such_module", "name")()
    assert not mentions("ray.serve._private.constants", "RAY_SERVE_NO_SUCH_VARIABLE")()


def test_private_parts_of_ray_are_used_in_three_files_only() -> None:
    files = [path for top in ("jobs", "models", "pipeline") for path in (REPOSITORY / top).rglob("*.py")]
    users = {path.relative_to(REPOSITORY).as_posix() for path in files if PRIVATE_OF_RAY.search(path.read_text())}
    assert users == HOMES
