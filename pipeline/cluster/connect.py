"""Join a Ray cluster or start one here, and see that the wanted actors fit before anything can hang."""

import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import ray
import ray.data
from ray._raylet import Config  # type: ignore[attr-defined]

from pipeline.errors import UserError


def worker_environment() -> dict[str, str]:
    """Name what workers on other machines need to find the same S3. Credentials are not among it: every node has its own.

    What the submission of the job gives them already is left out, since Ray takes nothing twice.
    """
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    given = submitted.get("env_vars") or {}
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_MAX_ATTEMPTS")
    return {name: os.environ[name] for name in names if os.environ.get(name, given.get(name)) != given.get(name)}


INSTALLED = __name__.startswith("offramp.")
"""Whether this runs from a wheel, which has one package, `offramp`, around `models` and `pipeline`."""
PACKAGES = Path(__file__).resolve().parents[3 if INSTALLED else 2]
"""The folder that our packages are imported from."""
PACKAGE_NAMES = ("offramp",) if INSTALLED else ("models", "pipeline")
"""What workers need of it."""
METRICS_PORT = "OFFRAMP_METRICS_PORT"
"""Environment variable: where a Ray of our own shows its metrics; a cluster has `ray start --metrics-export-port`."""
OBJECT_STORE_BYTES = 1 << 30
"""For a Ray of our own: a shard on its way takes a few MB, so this holds a hundred."""


def join_or_start() -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine; else start Ray here. Quiet logs.

    Does nothing in a process that has joined one already.
    """
    if ray.is_initialized():
        return
    with _sigterm_kept():
        _join_or_start()


def _join_or_start() -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(
        logging.CRITICAL
    )  # errors reach the driver as exceptions; said once is enough
    # One E line of Ray's for every actor pool that may restart is no error; the level is announced in a line of its own.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = running_cluster()
    if address is not None:
        try:
            # Workers on other machines get the code from here; inside `ray job submit` they may have it already.
            modules = [str(PACKAGES / name) for name in PACKAGE_NAMES]
            with _held_back_stderr():
                environment = {"py_modules": modules, "env_vars": worker_environment()}
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
        except ConnectionError as error:
            raise UserError(f"no Ray cluster answers at {address}; unset RAY_ADDRESS to start one here") from error
        return
    # A token of our own. Without one, Ray's ports would be open to the network; and Ray's default, a token file in the home
    # folder, changes how every later `ray start` and `ray job submit` on this machine behaves.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    Config.initialize("")  # Ray reads the mode once, at import; this is how Ray itself makes it look again
    if not INSTALLED:  # where workers find it by themselves
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(PACKAGES) + (os.pathsep + path if path else "")
    with _held_back_stderr():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _metrics_export_port=int(os.environ[METRICS_PORT]) if METRICS_PORT in os.environ else None,
        )


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the caller's handler of SIGTERM: Ray puts one in its place that ends the process with exit code 15."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


@contextlib.contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Hold back what Ray's C++ part prints while it starts, and show it only if that fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def running_cluster() -> str | None:
    """Return the cluster to join: RAY_ADDRESS, else one that `ray start` left on this machine, else None.

    Not Ray's "auto": that also finds the private Ray of any other program here, which ends when that program does.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return None if address == "local" else address
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    try:
        return note.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
