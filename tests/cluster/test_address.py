"""Which cluster is joined, what is reported of one that cannot be, and the folder of a Ray of our own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster import address as addresses
from pipeline.cluster import private_folder
from pipeline.cluster.address import ClusterAddress, check_answers, find_cluster
from pipeline.errors import UserError
from tests.support.jobs import REPOSITORY

SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""The empty settings of an HTTP/2 server."""


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the note of `ray start` into a temporary folder of its own."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    path = tmp_path / "ray" / "ray_current_cluster"
    path.write_text("192.0.2.7:6379\n")
    path.chmod(0o644)
    return path


@contextlib.contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """Answer one connection with these bytes and hang up, or never answer; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(100)
                    if answer is None:
                        connection.recv(100)  # until the other side has enough
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    "given", ["192.0.2.7:6379", "head.example:6379", "ray://192.0.2.7:10001", "[2001:db8::7]:6379"]
)
def test_an_address_that_is_given_is_taken(given: str, note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert find_cluster() == ClusterAddress(given, "RAY_ADDRESS")


@pytest.mark.parametrize(
    "given",
    ["http://127.0.0.1:8265", "https://a.example", "head", "192.0.2.7", "a:b", "a:70000", "redis://a:1", ":6379"],
)
def test_what_is_no_address_is_refused_in_a_line_that_names_it(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(UserError, match=r"^RAY_ADDRESS is '") as caught:
        find_cluster()
    assert given in str(caught.value)
    assert ("ray job submit" in str(caught.value)) == given.startswith("http")


@pytest.mark.parametrize("given", ["", "auto"])
def test_without_an_address_the_note_counts(given: str, note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert find_cluster() == ClusterAddress("192.0.2.7:6379", str(note))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_cluster() is None


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_note_is_where_ray_writes_it(variable: str, note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import get_ray_address_file

    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv(variable, str(note.parents[1]))
    assert get_ray_address_file(None) == str(note)
    assert find_cluster() == ClusterAddress("192.0.2.7:6379", str(note))


def test_without_a_note_a_ray_of_our_own_is_started_unless_auto_was_asked_for(
    note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note.unlink()
    assert find_cluster() is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"`ray start` has left no cluster"):
        find_cluster()


def test_a_note_that_another_user_may_have_written_is_left_aside_with_a_word(note: Path) -> None:
    reported: list[str] = []
    note.chmod(0o666)
    assert find_cluster(reported.append) is None
    assert len(reported) == 1
    assert str(note) in reported[0]
    note.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(note, 12345, 12345)
        assert find_cluster(reported.append) is None
        assert "user 12345" in reported[1]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"  \n"])
def test_a_note_that_says_nothing_is_none(content: bytes, note: Path) -> None:
    note.write_bytes(content)
    assert find_cluster() is None


def test_a_note_that_holds_no_address_is_named(note: Path) -> None:
    note.write_text("<html>")
    with pytest.raises(UserError, match=r"ray_current_cluster: '<html>' is no address of a cluster; `ray stop`"):
        find_cluster()


def test_a_port_that_nobody_listens_on_is_refused_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(UserError, match=rf"no Ray cluster answers at 127.0.0.1:{port} .*refused.*RAY_ADDRESS"):
        check_answers(ClusterAddress(f"127.0.0.1:{port}", "RAY_ADDRESS"))
    with pytest.raises(UserError, match=r"/tmp/ray/ray_current_cluster names it"):
        check_answers(ClusterAddress(f"127.0.0.1:{port}", "/tmp/ray/ray_current_cluster"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"no Ray cluster answers at .*timed out"),
        (b"", r"what answers at .* is no Ray cluster"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"what answers at .* is no Ray cluster"),
        (b"-ERR unknown command\r\n", r"what answers at .* is no Ray cluster"),
    ],
)
def test_what_answers_otherwise_is_no_cluster(
    answer: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "PROBE_SECONDS", 0.5)
    with server(answer) as address, pytest.raises(UserError, match=message):
        check_answers(ClusterAddress(address, "RAY_ADDRESS"))


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_http2_server_may_be_a_cluster(scheme: str) -> None:
    with server(SETTINGS) as address:
        check_answers(ClusterAddress(scheme + address, "RAY_ADDRESS"))


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder with a short name, in which the folders of our own Rays are made."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_nobody_else_may_enter_the_folder_of_our_own_ray_and_it_goes_at_the_end(temporary: Path) -> None:
    folder = Path(private_folder.make())
    assert folder.parent == temporary
    assert folder.stat().st_mode & 0o777 == 0o700
    session = "session_2026-11-26_18-40-40_123456_4194304/sockets/plasma_store"
    assert len(os.fsencode(folder / session)) <= 107
    private_folder.remove()
    assert list(temporary.iterdir()) == []


def test_a_long_temporary_folder_gives_way_to_one_that_sockets_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("a_long_scratch_directory_of_a_batch_system/" * 2)
    deep.mkdir(parents=True)
    monkeypatch.setenv("RAY_TMPDIR", str(deep))
    folder = Path(private_folder.make())
    private_folder.remove()
    assert folder.parent == Path("/tmp")


def test_a_temporary_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/not-there")
    with pytest.raises(UserError, match=r"/tmp/not-there.*set TMPDIR"):
        private_folder.make()


def test_the_next_one_removes_what_a_killed_process_left_and_nothing_else(temporary: Path) -> None:
    held = Path(private_folder.make())
    code = "from pipeline.cluster import private_folder as p; print(p.make(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        assert left.parent == temporary
        other.send_signal(signal.SIGKILL)
        other.wait()
    (temporary / f"{private_folder.PREFIX}mine").mkdir()  # a folder without a lock is not ours to judge
    mine = Path(private_folder.make())
    assert {path.name for path in temporary.iterdir()} == {held.name, mine.name, f"{private_folder.PREFIX}mine"}
    private_folder.remove()
