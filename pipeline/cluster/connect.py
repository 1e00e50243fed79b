"""Join a Ray cluster or start one here. What a run changes in the environment of the processes it starts is changed here.

Ray has no public call for six things that a Ray of our own needs, nor to wait for the threads of a chain (`DATA_THREADS`). They
are used here and nowhere else, each with its reason beside it: `Config.initialize`, `RAY_JOB_CONFIG_JSON_ENV_VAR`,
`_metrics_export_port`, `_temp_dir`, `_global_node` and its `destroy_external_storage`; and address.py reads the file
`ray_current_cluster`.
tests/repository/test_private_apis.py checks that the installed version still has them.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import ray
from ray._private import worker
from ray._private.node import Node
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError

from pipeline.cluster import private_folder
from pipeline.cluster.address import RAY_ADDRESS, ClusterAddress, check_answers, find_cluster
from pipeline.errors import UserError, one_line, printable

INSTALLED = __name__.startswith("offramp.")
"""Whether this runs from a wheel, which has one package, `offramp`, around `models` and `pipeline`."""
PACKAGES = Path(__file__).resolve().parents[3 if INSTALLED else 2]
"""The folder that our packages are imported from."""
PACKAGE_NAMES = ("offramp",) if INSTALLED else ("models", "pipeline")
"""The packages of that folder that workers need."""
METRICS_PORT = "OFFRAMP_METRICS_PORT"
"""Environment variable with the port on which a Ray of our own exports metrics; a cluster has `ray start` for that."""
MAX_PORT = 65_535
OBJECT_STORE_SHARE, MIN_OBJECT_STORE_BYTES = 1 / 16, 256 << 20
"""Object store of a Ray of our own, as a share of the machine's memory: a bundle in flight takes up to some ten MB, and every
actor and every core keeps a few of them."""
SERVE_PROXY_SECONDS = 60
"""Time that a Ray of our own gives Serve's HTTP proxy to start: a busy machine takes longer than Ray's 5 s for a process."""
CORE_LINE = re.compile(
    rb"\[\d{4}-\d\d-\d\d [\d:,]+ [A-Z] \d+ \d+\] |[IWEF]\d{4} [\d:.]+ +\d+ |WARNING: All log messages before absl"
)
"""A line of the log of Ray's C++ core, or of the libraries below it, on stderr."""
JOIN_TRIES = 5
"""Attempts to join a cluster whose port answers, each of about a second."""
IDLE_WORKER_MS = 600_000
"""Time until a Ray of our own ends a worker process without work. After Ray's one second, a task that comes between two shards
would find none, and a new process takes a second of CPU time to import what it needs."""
DATA_THREADS, DATA_SECONDS = ("StreamingExecutor-", "ray-data-metadata-prefetch"), 10.0
"""Beginnings of the names of the threads by which Ray Data runs a chain, and the longest wait for them. Ray Data itself gives a
chain that is closed two seconds, which a busy machine exceeds."""
DEATH_SECONDS = 3.0
"""Longest wait for killed processes. A busy system takes a second to take down one that holds gigabytes."""
_ours = threading.Event()
"""Set from the moment in which a Ray of our own starts until it has ended."""
S3_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_MAX_ATTEMPTS")
"""Environment variables that workers need to reach the same S3. Credentials are not among them: every node has its own."""


def worker_environment() -> dict[str, str]:
    """Return the S3 variables that workers on other machines need, without those that the job's submission sets already.

    Ray refuses a runtime environment that sets a variable which the submission has set to something else.
    """
    # Ray hands a submitted job its runtime environment in this variable; the public API returns it only after ray.init.
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    given = submitted.get("env_vars") or {}
    return {name: os.environ[name] for name in S3_VARIABLES if os.environ.get(name, given.get(name)) != given.get(name)}


def join_or_start(log: Callable[[str], None] = lambda _: None) -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine; else start Ray here, with quiet logs.

    Does nothing in a process that has joined one already. `log` takes a line on what is waited for. Raises UserError, within
    seconds, if the cluster does not answer or cannot be joined. Call it from the main thread, or from one that lives as long as
    the process: the system ends Ray's processes with the thread that started them.
    """
    if ray.is_initialized():
        return
    _quiet_logs()
    cluster = find_cluster(log)
    log("starting Ray" if cluster is None else f"joining the Ray cluster at {cluster.address}")
    with _sigterm_kept():
        if cluster is None:
            _start()
        else:
            _join(cluster)


def shut_down() -> None:
    """Leave Ray in the middle of work; of a Ray of our own no process is at work any more when this returns.

    Ray asks its workers to end and does not wait: one that computes in native code would go on for minutes.
    """
    _wait_for_data()
    own = worker._global_node if has_own_ray() else None
    if own is not None:
        worker._global_node = None  # Ray would end its processes one after the other
    ray.shutdown()
    if threading.current_thread() is threading.main_thread():
        # Ray's C++ core has left it to the system: a second one would end this process now, and orphan Ray's.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    if has_own_ray():
        _wait_for(_end_own_ray(own))
    _ours.clear()


def _wait_for_data() -> None:
    """Wait for the threads of chains that are closed: one that asks Ray for something while it is left ends this process."""
    deadline = time.monotonic() + DATA_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith(DATA_THREADS):
            thread.join(max(deadline - time.monotonic(), 0.0))


def leave_ray() -> None:
    """Leave Ray at the end of this process; a Ray of our own is killed, with what it has spilled to the disk.

    To end its processes one after the other and with grace, as Ray does when Python exits, takes three seconds. The process has
    to end at once after this: where a thread of it misses the raylet, Ray's C++ core ends it with an exit code of its own.
    """
    if has_own_ray():
        _end_own_ray(worker._global_node if ray.is_initialized() else None)  # it may be in the middle of its start
    else:
        ray.shutdown()  # here, because at Python's exit it sleeps first


def has_own_ray() -> bool:
    """Return whether the Ray of this process was started by it, and ends with it."""
    return _ours.is_set()


def _end_own_ray(node: Node | None) -> list[psutil.Process]:
    """Kill the processes of a Ray of our own, also of one that is still starting, wait for their ends, and remove its files.

    Returns the raylets, killed and not waited for: this process may have to end before it misses them.

    The raylet is stopped first, so that it starts no more of them and what waits for it goes on waiting, and killed last:
    what it has started would outlive it by a minute.
    """
    raylets = [process for process in psutil.Process().children() if _name(process) == "raylet"]
    for raylet in raylets:
        with contextlib.suppress(psutil.NoSuchProcess):
            raylet.suspend()
    try:
        if node is not None:
            # What Ray has spilled to the disk would stay there; only its own end removes it.
            node.destroy_external_storage()
    finally:
        others = [process for process in psutil.Process().children(recursive=True) if process not in raylets]
        _kill(others)
        _wait_for(others)
        private_folder.remove()
        _kill(raylets)
    return raylets


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _wait_for(killed: list[psutil.Process]) -> None:
    """Wait until no killed process is at work any more: it is, until the system has taken it down."""
    deadline = time.monotonic() + DEATH_SECONDS
    while any(_is_at_work(process) for process in killed) and time.monotonic() < deadline:
        time.sleep(0.005)


def _is_at_work(process: psutil.Process) -> bool:
    try:
        return bool(process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.NoSuchProcess:
        return False


def _quiet_logs() -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray logs at level E for every actor pool that may restart, which is no error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def _join(cluster: ClusterAddress) -> None:
    check_answers(cluster)
    # Workers on other machines get the code from here; inside `ray job submit` they may have it already.
    modules = [str(PACKAGES / name) for name in PACKAGE_NAMES]
    environment = {"py_modules": modules, "env_vars": worker_environment()}
    # Without an address Ray reads the note itself, and only then takes the token of this user, if there is one.
    address = cluster.address if cluster.source == RAY_ADDRESS else None
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(JOIN_TRIES))
    try:
        with _held_back_stderr(of_failure=False):
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    except (AuthenticationError, ConnectionError, OSError, RuntimeError, ValueError, RayError) as error:
        # Ray's own messages end with a page of advice or with a traceback.
        cause = one_line(error.__cause__ or error)
        if isinstance(error, AuthenticationError) or "InvalidAuthToken" in cause:
            cause = "it wants another token (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or ~/.ray/auth_token)"
        else:
            cause = cause[:300]
        raise UserError(f"cannot join the Ray cluster at {cluster.address}: {cause}; {cluster.way_out}") from error


def _start() -> None:
    # A token of our own. Without one, Ray's ports would be open to the network; and Ray's default, a token file in the home
    # folder, changes how every later `ray start` and `ray job submit` on this machine behaves.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    Config.initialize("")  # Ray reads the mode once, at import; its own set-up of tokens makes it read again this way
    if not INSTALLED:  # where workers find it by themselves
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(PACKAGES) + (os.pathsep + path if path else "")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(SERVE_PROXY_SECONDS))
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(IDLE_WORKER_MS))
    port = _metrics_port()
    _ours.set()
    with _held_back_stderr():
        ray.init(
            address="local",
            _temp_dir=private_folder.make(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=max(MIN_OBJECT_STORE_BYTES, int(psutil.virtual_memory().total * OBJECT_STORE_SHARE)),
            # The only way to choose the port without `ray start`.
            _metrics_export_port=port,
        )


def _metrics_port() -> int | None:
    """Return the port that the environment names, None without one; raise UserError if it names something else."""
    text = os.environ.get(METRICS_PORT, "")
    if text and not (re.fullmatch("[0-9]{1,5}", text) and 0 < int(text) <= MAX_PORT):
        raise UserError(f"{METRICS_PORT} is {printable(text, 40)!r}, and no port from 1 to {MAX_PORT}")
    return int(text) if text else None


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the caller's SIGTERM handler, which ray.init replaces by one that raises SystemExit(15), and let it have its say."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as end:
        if end.code == signal.SIGTERM and callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


@contextlib.contextmanager
def _held_back_stderr(*, of_failure: bool = True) -> Iterator[None]:
    """Hold back what is printed while Ray starts, then print it: without the log of Ray's C++ core.

    That log is printed if the start fails, unless what is raised says enough (`of_failure=False`).
    """
    sys.stderr.flush()
    kept = os.dup(2)
    quiet = not of_failure
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
            quiet = True
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            os.write(2, b"".join(line for line in held if not (quiet and CORE_LINE.match(line))))
