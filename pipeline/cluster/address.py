"""Which Ray cluster a job joins: found as `ray.init` finds it, and refused in seconds where nothing answers.

    RAY_ADDRESS        host:port, ray://host:port, "local" for a Ray of our own, or "auto", which is the note alone
    ray_current_cluster   the note that `ray start` leaves in RAY_TMPDIR, TMPDIR or /tmp; else a Ray of our own

In two points this differs from `ray.init`, on purpose. "auto" there also finds the private Ray of any other program on this
machine, which ends when that program does. And it believes a note whoever wrote it: on a machine that others use too, one of
them could lead a job to a cluster of theirs, with the job's credentials.
"""

import os
import pwd
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import UserError, one_line

RAY_ADDRESS = "RAY_ADDRESS"
"""Environment variable that names the cluster to join."""
PROBE_SECONDS = 5.0
"""Time for a cluster's port to answer; ray.init itself tries for 14 minutes."""
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What an HTTP/2 client, such as gRPC's, says first: the preface and empty settings (RFC 9113, section 3.4)."""
SETTINGS_FRAME = 4
"""Type of the frame that every HTTP/2 server answers with, in the fourth byte."""


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """The address of a cluster, and who gave it."""

    address: str
    """As ray.init takes it: host:port or ray://host:port."""
    source: str
    """Where it was found: RAY_ADDRESS, or the path of the note."""

    @property
    def way_out(self) -> str:
        """Say how to go on without this cluster."""
        if self.source == RAY_ADDRESS:
            return "unset RAY_ADDRESS, or set it to local, to start Ray here"
        return f"{self.source} names it; if it has crashed, `ray stop` takes the note away; RAY_ADDRESS=local starts Ray here"


def find_cluster(log: Callable[[str], None] = lambda _: None) -> ClusterAddress | None:
    """Return the cluster to join, or None where a Ray of our own is to be started; `log` gets a note that is left aside.

    Raises UserError if RAY_ADDRESS makes no sense.
    """
    given = os.environ.get(RAY_ADDRESS, "").strip()
    if given == "local":
        return None
    if given not in ("", "auto"):
        _check_form(given)
        return ClusterAddress(given, RAY_ADDRESS)
    found = _noted(log)
    if found is None and given == "auto":
        raise UserError("RAY_ADDRESS is auto, and `ray start` has left no cluster on this machine; give host:port")
    return found


def check_answers(cluster: ClusterAddress) -> None:
    """Raise UserError, within PROBE_SECONDS, if no server of Ray's kind answers at the address."""
    host, port = _host_and_port(cluster.address)
    try:
        with socket.create_connection((host, port), timeout=PROBE_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):  # its handshake is Ray's matter
                return
            connection.sendall(HTTP2_PREFACE)
            answer = connection.recv(9, socket.MSG_WAITALL)
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {cluster.address} ({one_line(error)}); {cluster.way_out}"
        ) from error
    if len(answer) < 9 or answer[3] != SETTINGS_FRAME:
        raise UserError(f"what answers at {cluster.address} is no Ray cluster; {cluster.way_out}")


def _noted(log: Callable[[str], None]) -> ClusterAddress | None:
    """Read the note of `ray start`, if there is one that may be believed."""
    note = Path(temporary_folder(), "ray", "ray_current_cluster")
    try:
        with note.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            address = file.read(1000).strip()
    except (OSError, UnicodeDecodeError):
        return None
    if status.st_uid not in (0, os.getuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        log(f"leaving {note} aside, which {_user(status.st_uid)} may have written; RAY_ADDRESS joins another's cluster")
        return None
    if not address:
        return None
    try:
        _host_and_port(address)
    except ValueError as error:
        raise UserError(f"{note}: {address!r} is no address of a cluster; `ray stop` takes the note away") from error
    return ClusterAddress(address, str(note))


def temporary_folder() -> str:
    """Return the folder in which Ray keeps its own, as Ray chooses it."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def _check_form(address: str) -> None:
    """Raise UserError if this is no address that ray.init takes."""
    scheme = urlsplit(address).scheme if "://" in address else ""
    if scheme in ("http", "https"):
        raise UserError(
            f"RAY_ADDRESS is {address!r}, to which `ray job submit` sends jobs; a job itself joins host:port, such as "
            "192.0.2.7:6379"
        )
    try:
        _host_and_port(address)
    except ValueError as error:
        raise UserError(f"RAY_ADDRESS is {address!r}, not host:port, ray://host:port, auto or local") from error


def _host_and_port(address: str) -> tuple[str, int]:
    """Take host:port or ray://host:port apart; raise ValueError if it is neither."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if parts.scheme != "ray" or not parts.hostname or parts.port is None or parts.path.strip("/"):
        raise ValueError(f"{address} is not host:port")
    return parts.hostname, parts.port


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
