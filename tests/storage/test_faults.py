"""What fails in passing is tried again, whole and not for ever; what is refused is named at once."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.errors import RefusedError, StorageError, UserError
from pipeline.storage import local, retry
from pipeline.storage import s3 as s3_module
from pipeline.storage.base import Storage
from pipeline.storage.locate import storage_of
from pipeline.storage.retry import growing_waits, retried
from tests.support.s3_server import BUCKET, Fault, S3Server

FOLDER = f"s3://{BUCKET}/faults"
DATA = b"x" * 5000


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MAX_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(local, "BACK_OFF_SECONDS", (0.0, 0.0))


@pytest.fixture
def storage(s3: S3Server) -> Storage:
    storage = storage_of(FOLDER)
    for name in ("a", "b", "c"):
        storage.write(f"{FOLDER}/{name}", DATA)
    s3.requests.clear()
    return storage


Operation = Callable[[Storage], object]
OPERATIONS: dict[str, tuple[str, Operation, object]] = {
    "read": ("GET", lambda storage: (storage.read(f"{FOLDER}/a") or (b"",))[0], DATA),
    "stat": ("HEAD", lambda storage: getattr(storage.stat(f"{FOLDER}/a"), "size", None), len(DATA)),
    "walk": ("GET", lambda storage: sorted(entry.path[-1] for entry in storage.walk(FOLDER)), ["a", "b", "c"]),
    "names": ("GET", lambda storage: sorted(storage.names(FOLDER)), ["a", "b", "c"]),
    "write": ("PUT", lambda storage: storage.write(f"{FOLDER}/d", b"new"), None),
    "write_if": ("PUT", lambda storage: storage.write_if(f"{FOLDER}/d", b"new", None), True),
    "delete": ("POST", lambda storage: storage.delete([f"{FOLDER}/a", f"{FOLDER}/b"]), None),
}
"""Every operation of the interface, with the method of its requests and what it returns."""
PASSING = ["503 Slow Down", "503 Service Unavailable", "500 Internal Error", "502 Bad Gateway", "504 Gateway Timeout"]
PASSING += ["429 Too Many Requests", "400 Request Timeout", "408 Request Timeout", "400 Throttling Exception"]


@pytest.mark.parametrize("status", PASSING)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_tried_again_while_its_error_may_pass(
    name: str, status: str, s3: S3Server, storage: Storage
) -> None:
    method, operation, result = OPERATIONS[name]
    if method == "HEAD" and status.startswith("400"):
        pytest.skip("the response to a HEAD has no body, so the code of its error is its status")
    s3.faults.append(Fault(method, "", status, times=2))
    assert operation(storage) == result
    assert s3.faults[0].times == 0
    s3.faults[:] = [Fault(method, "", status)]
    s3.requests.clear()
    with pytest.raises(StorageError, match=f"^{FOLDER}") as error:
        operation(storage)
    assert not isinstance(error.value, RefusedError)
    assert len(s3.requests) == int(s3.environment["AWS_MAX_ATTEMPTS"])


@pytest.mark.parametrize(
    "status", ["403 Access Denied", "400 Invalid Argument", "501 Not Implemented", "404 No Such Bucket"]
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_cannot_pass_is_asked_once(name: str, status: str, s3: S3Server, storage: Storage) -> None:
    method, operation, _ = OPERATIONS[name]
    if name == "stat" and status.startswith("40"):
        pytest.skip("to a HEAD, 404 is a file that does not exist, and after 400 and 403 boto3 asks for the region")
    s3.faults.append(Fault(method, "", status))
    with pytest.raises(StorageError, match=f"^{FOLDER}"):
        operation(storage)
    assert len(s3.requests) == 1


@pytest.mark.parametrize("cut", [1, 100, len(DATA)])
def test_a_body_that_breaks_off_is_read_again(cut: int, s3: S3Server, storage: Storage) -> None:
    s3.faults.append(Fault("GET", "/a", cut=cut, times=2))
    assert (storage.read(f"{FOLDER}/a") or (b"",))[0] == DATA
    assert len(s3.requests) == 3
    s3.faults[:] = [Fault("GET", "/a", cut=cut)]
    s3.requests.clear()
    with pytest.raises(StorageError, match=f"^{FOLDER}/a: "):
        storage.read(f"{FOLDER}/a")
    assert len(s3.requests) == 3


def test_a_listing_that_breaks_off_is_read_again_from_its_page(
    s3: S3Server, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.s3.PAGE_KEYS", 1)
    pages = storage.names(FOLDER)
    assert next(pages) == "a"
    s3.faults += [Fault("GET", "", cut=50, times=1), Fault("GET", "", "503 Slow Down", times=1)]
    assert [*pages] == ["b", "c"]


def test_keys_that_a_batch_could_not_delete_are_deleted_by_the_next(s3: S3Server, storage: Storage) -> None:
    s3.faults.append(Fault("POST", "", "500 Internal Error", times=1, key="b"))
    s3.faults.append(Fault("POST", "", "503 Slow Down", times=1, key="faults/b"))
    storage.delete(f"{FOLDER}/{name}" for name in ("a", "b", "c"))
    assert s3.deleted == [["faults/a", "faults/b", "faults/c"], ["faults/b"]]
    assert [*storage.names(FOLDER)] == []


@pytest.mark.parametrize(
    ("status", "kind", "times"), [("403 Access Denied", RefusedError, 1), ("500 Internal Error", StorageError, 3)]
)
def test_a_key_that_cannot_be_deleted_is_named(
    status: str, kind: type[StorageError], times: int, s3: S3Server, storage: Storage
) -> None:
    s3.faults.append(Fault("POST", "", status, key="b"))
    with pytest.raises(kind, match=r"faults/b cannot be deleted"):
        storage.delete(f"{FOLDER}/{name}" for name in ("a", "b", "c"))
    assert len(s3.deleted) == times
    assert [*storage.names(FOLDER)] == ["b"]


def test_a_key_that_is_gone_already_counts_as_deleted(s3: S3Server, storage: Storage) -> None:
    s3.faults.append(Fault("POST", "", "404 No Such Key", times=1, key="b"))
    storage.delete(f"{FOLDER}/{name}" for name in ("a", "b"))
    assert len(s3.deleted) == 1


@pytest.mark.parametrize("version", [None, "present"])
def test_a_put_whose_answer_was_lost_is_no_conflict(version: str | None, s3: S3Server, storage: Storage) -> None:
    path = f"{FOLDER}/d" if version is None else f"{FOLDER}/a"
    present = storage.stat(path)
    s3.faults.append(Fault("PUT", path.rsplit("/", 1)[1], "500 Internal Error", times=1, happens=True))
    assert storage.write_if(path, b"new", present.version if present else None)
    assert (storage.read(path) or (b"",))[0] == b"new"
    s3.faults.append(Fault("PUT", path.rsplit("/", 1)[1], "500 Internal Error", times=1))
    assert not storage.write_if(path, b"newer", present.version if present else None)
    assert (storage.read(path) or (b"",))[0] == b"new"


def test_a_listing_that_does_not_say_how_it_goes_on_is_no_listing(
    s3: S3Server, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OddClient:
        page: ClassVar[dict[str, object]] = {"IsTruncated": True}

        def list_objects_v2(self, **_request: object) -> dict[str, object]:
            return self.page

    monkeypatch.setattr("pipeline.storage.s3._client", OddClient)
    for more in ({}, {"NextContinuationToken": "the same"}):
        OddClient.page |= more
        with pytest.raises(StorageError, match="the server ends its listing in the middle"):
            list(storage.names(FOLDER))


@pytest.mark.parametrize("text", ["abc", "0", "00", "-1", "1.5", " ", "1e3", "\uff19", "9999", "3 ", "0x8", "\x1b[2J"])
def test_a_number_of_attempts_that_is_none_is_one_line(
    text: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", text)
    for _, operation, _ in OPERATIONS.values():
        with pytest.raises(UserError, match=r"^AWS_MAX_ATTEMPTS is '.*', and no whole number from 1 to 999$") as error:
            operation(storage)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", "nonsense"),
        ("AWS_ENDPOINT_URL", "http://"),
        ("AWS_ENDPOINT_URL_S3", "http://a b"),
        ("AWS_PROFILE", "nobody"),
        ("AWS_DEFAULT_REGION", "not a region"),
        ("AWS_REGION", "-"),
        ("AWS_CONFIG_FILE", "damaged"),
    ],
)
def test_settings_that_are_no_settings_are_one_line(
    name: str, value: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value == "damaged":
        value = str(tmp_path / "config")
        Path(value).write_text("no section\n")
        monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv(name, value)
    s3_module._region_of_profile.cache_clear()
    s3_module._make_client.cache_clear()
    with pytest.raises(UserError, match=r"^S3 cannot be reached with the settings that are given: "):
        storage_of(FOLDER).read(f"{FOLDER}/a")


@pytest.mark.parametrize("address", ["s3://", "s3:///key", "s3://b", "s3://UPPER_case!/key", "s3://a b/key"])
def test_an_address_without_a_bucket_is_refused(address: str, s3: S3Server) -> None:
    with pytest.raises((RefusedError, UserError)):
        storage_of(address).write(f"{address}/x", b"")


LOCAL: dict[str, Callable[[Storage, str], object]] = {
    "open": lambda storage, folder: storage.open(f"{folder}/a").close(),
    "read": lambda storage, folder: storage.read(f"{folder}/a"),
    "stat": lambda storage, folder: storage.stat(f"{folder}/a"),
    "names": lambda storage, folder: list(storage.names(folder)),
    "make_folder": lambda storage, folder: storage.make_folder(f"{folder}/sub/deep"),
    "write": lambda storage, folder: storage.write(f"{folder}/b", b"new"),
    "write_if": lambda storage, folder: storage.write_if(f"{folder}/c", b"new", None),
    "delete": lambda storage, folder: storage.delete([f"{folder}/a"]),
}
CALLS = {
    "open": "io.open",
    "read": "io.open",
    "stat": "os.stat",
    "names": "os.scandir",
    "make_folder": "os.makedirs",
    "write": "os.fsync",
    "write_if": "os.replace",
    "delete": "os.unlink",
}
"""The call of the system, by operation, that fails in a test."""


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT])
@pytest.mark.parametrize("name", LOCAL)
def test_an_operation_on_a_mount_is_tried_again(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(b"x")
    owner, call = CALLS[name].split(".")
    whole, failures = getattr({"io": io, "os": os}[owner], call), [number, number]

    def shaky(*arguments: object, **options: object) -> object:
        if failures:
            raise OSError(failures.pop(), "in passing")
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open" if owner == "io" else CALLS[name], shaky)
        LOCAL[name](storage_of("/"), f"{tmp_path}/first")
    assert failures == []
    failures[:] = [number] * 3
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open" if owner == "io" else CALLS[name], shaky)
        with pytest.raises(StorageError, match=rf"^{tmp_path}.*: in passing"):
            LOCAL[name](storage_of("/"), f"{tmp_path}/second")


def test_names_are_on_the_disk_before_a_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that a power cut takes back would take a manifest back, whose old parts are gone by then."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source: str, target: str) -> None:
        calls.append(("rename", target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    storage = storage_of("/")
    storage.make_folder(f"{tmp_path}/sub/deep")
    assert calls == [("fsync", str(tmp_path)), ("fsync", f"{tmp_path}/sub")]
    calls.clear()
    storage.write(f"{tmp_path}/sub/a", b"x")
    assert [what for what, _ in calls] == ["fsync", "rename", "fsync"]
    assert calls[0][1].startswith(f"{tmp_path}/sub/.a.")
    assert calls[1:] == [("rename", f"{tmp_path}/sub/a"), ("fsync", f"{tmp_path}/sub")]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_mount_that_cannot_flush_folders_is_written_to_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def of_files_only(descriptor: int) -> None:
        if os.path.isdir(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(number, "not here")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    storage_of("/").write(f"{tmp_path}/a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_attempts_end_and_waits_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    monkeypatch.setattr(retry, "MAX_WAIT_SECONDS", 20.0)
    assert [*growing_waits(8)] == [1, 2, 4, 8, 16, 20, 20]
    assert [*growing_waits(1)] == []
    tries: list[int] = []

    def fails() -> None:
        tries.append(1)
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        retried(fails, lambda error: isinstance(error, ValueError), [0.0] * 4)
    assert len(tries) == 5
    with pytest.raises(ValueError, match=r"^$"):
        retried(fails, lambda _error: False, [0.0] * 4)
    assert len(tries) == 6
