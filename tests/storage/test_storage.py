"""Local paths and s3:// behave alike: whole files, listings with versions, conditions, errors that name path and cause."""

import errno
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.connect import worker_environment
from pipeline.corpus.columns import Columns
from pipeline.corpus.formats import file_columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import read_shards
from pipeline.errors import RefusedError, StorageError, UserError
from pipeline.storage.base import absolute, buffered, is_remote
from pipeline.storage.locate import storage_of, use_endpoint
from pipeline.storage.model_cache import local_model
from tests.support.jobs import REPOSITORY, small_disk
from tests.support.s3_server import BUCKET, Fault, S3Server


def fill(folder: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        storage_of(folder).make_folder(os.path.dirname(f"{folder}/{name}"))
        storage_of(folder).write(f"{folder}/{name}", data)


def test_what_is_written_is_read_and_listed_with_its_version(place: str) -> None:
    fill(place, {"a": b"one", "sub/b": b"", "sub/deep/c": b"three"})
    storage = storage_of(place)
    found = {entry.path.removeprefix(f"{place}/"): entry for entry in storage.walk(place)}
    assert {name: entry.size for name, entry in found.items()} == {"a": 3, "sub/b": 0, "sub/deep/c": 5}
    assert storage.stat(f"{place}/a") == found["a"]
    assert storage.read(f"{place}/a") == (b"one", found["a"].version)
    assert list(storage.names(place)) == ["a"]
    assert list(storage.names(f"{place}/sub", "x")) == []
    with storage.open(f"{place}/a") as file:
        assert (file.entry, file.read()) == (found["a"], b"one")
    storage.write(f"{place}/a", b"two")
    after = storage.stat(f"{place}/a")
    assert after
    assert after.version != found["a"].version


def test_what_is_absent_is_none_or_named(place: str) -> None:
    storage = storage_of(place)
    assert storage.read(f"{place}/x") is None
    assert storage.stat(f"{place}/x") is None
    assert not list(storage.walk(f"{place}/nowhere"))
    assert not list(storage.names(f"{place}/nowhere"))
    storage.delete([f"{place}/x"])
    with pytest.raises(RefusedError, match=f"{place}/x: "):
        storage.open(f"{place}/x")


def test_a_write_with_a_condition_happens_only_if_it_holds(place: str) -> None:
    storage, path = storage_of(place), f"{place}/x"
    assert storage.write_if(path, b"first", None)
    assert not storage.write_if(path, b"second", None)
    first = storage.read(path)
    assert first
    assert storage.write_if(path, b"second", first[1])
    assert not storage.write_if(path, b"third", first[1])
    assert (storage.read(path) or (b"",))[0] == b"second"
    storage.delete([path])
    assert not storage.write_if(path, b"third", first[1])


def test_listings_and_deletions_have_more_than_one_page(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.s3.PAGE_KEYS", 3)
    fill("s3://bucket/pages", {f"{number}.txt": b"x" for number in range(7)})
    assert len(list_inputs("s3://bucket/pages").files) == 7
    storage_of("s3://").delete(f"s3://bucket/pages/{number}.txt" for number in range(7))
    assert not list(storage_of("s3://").walk("s3://bucket/pages"))
    assert len([method for method, _ in s3.requests if method == "POST"]) == 3


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a.csv", "b.jsonl", "sub/c.txt.gz", "sub/deep/d.txt"]),
        ("/sub", ["c.txt.gz", "deep/d.txt"]),
        ("/sub/", ["c.txt.gz", "deep/d.txt"]),
        ("/a.csv", ["a.csv"]),
        ("/*.csv", ["a.csv"]),
        ("/**/*.gz", ["sub/c.txt.gz"]),
        ("/*/?.txt*", ["sub/c.txt.gz"]),
        ("/**/[c-d].*", ["sub/c.txt.gz", "sub/deep/d.txt"]),
        ("/sub/**", ["c.txt.gz", "deep/d.txt"]),
    ],
)
def test_a_file_a_folder_or_a_glob_means_the_same_everywhere(pattern: str, names: list[str], place: str) -> None:
    files = (
        "b.jsonl",
        "a.csv",
        "sub/c.txt.gz",
        "sub/deep/d.txt",
        "_manifest.json",
        ".x.txt",
        "_rejects/p.parquet",
        "n.md",
    )
    fill(f"{place}/in", dict.fromkeys(files, b""))
    fill(place, {"in-between.txt": b""})
    corpus = list_inputs(f"{place}/in{pattern}")
    assert [file.name for file in corpus.files] == names
    assert all(file.path.startswith(f"{place}/in/") for file in corpus.files)


def test_nothing_to_read_is_the_users_error_unless_it_may_be(place: str) -> None:
    with pytest.raises(UserError, match="no such file, folder or match"):
        list_inputs(f"{place}/absent")
    with pytest.raises(UserError, match="no such file, folder or match"):
        list_inputs(f"{place}/*.csv")
    assert not list_inputs(f"{place}/*.csv", may_be_empty=True).files
    fill(place, {"in/x.md": b""})
    assert not list_inputs(f"{place}/in", may_be_empty=True).files


def test_an_emptied_prefix_is_an_empty_folder(s3: S3Server) -> None:
    assert not list_inputs("s3://bucket/emptied", may_be_empty=True).files


def test_a_glob_lists_a_file_once_and_says_when_it_matches_folders_only(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.txt").touch()
    assert [file.name for file in list_inputs(f"{tmp_path}/**/**/*.txt").files] == ["in/deep/a.txt"]
    with pytest.raises(UserError, match=r"matches folders and no file; write .*/in/\*/\* "):
        list_inputs(f"{tmp_path}/in/*", may_be_empty=True)


def test_what_cannot_be_listed_is_not_left_out_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.txt").touch()
    scan = os.scandir

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:  # tests may run as root, whom no permission stops
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(RefusedError, match=r"locked: Permission denied"):
        list_inputs(str(tmp_path))


def test_unknown_schemes_are_named() -> None:
    with pytest.raises(UserError, match="gs://bucket: known are local paths and s3://"):
        list_inputs("gs://bucket")


def test_every_format_is_read(place: str) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["first", "zwei ä"]}), sink)
    lines = '{"text": "first"}\n{"text": "zwei ä"}\n'.encode()
    fill(
        place,
        {"a.parquet": sink.getvalue(), "b.jsonl": lines, "c.txt.zst": pa.compress(b"first\n", "zstd", asbytes=True)},
    )
    a, b, c = list_inputs(place).files
    assert [list(file_columns(file)) for file in (a, b, c)] == [["text"]] * 3
    for file, texts in ((a, ["first", "zwei ä"]), (b, ["first", "zwei ä"]), (c, ["first"])):
        (shard,) = read_shards(file, Columns(text="text"))
        assert shard.rows["text"].to_pylist() == texts
        assert shard.read_error is None


def test_a_file_that_changed_after_it_was_listed_is_not_read(place: str) -> None:
    fill(place, {"a.txt": b"first\n"})
    (file,) = list_inputs(place).files
    fill(place, {"a.txt": b"other\n"})
    with pytest.raises(StorageError, match=r"a\.txt: changed after it was listed"):
        list(read_shards(file, Columns(text="text")))


def test_a_storage_that_fails_is_no_damaged_file(s3: S3Server) -> None:
    """Else the rows of a file would be rejected for good because a server was down for a minute."""
    sink = io.BytesIO()
    pq.write_table(
        pa.table({"text": ["x" * 1000] * 5000, "n": range(5000)}), sink, compression="none", row_group_size=1000
    )
    fill("s3://bucket/down", {"a.parquet": sink.getvalue(), "b.txt": b"line\n" * (4 << 20)})
    for file in list_inputs("s3://bucket/down").files:
        shards = read_shards(file, Columns(text="text"))
        s3.faults[:] = [Fault("GET", file.name)]
        with pytest.raises(StorageError, match=f"{file.path}: .*"):
            list(shards)
        s3.faults.clear()


def test_a_file_that_may_not_be_read_is_named_too(tmp_path: Path) -> None:
    fill(str(tmp_path), {"a.txt": b"x\n"})
    (file,) = list_inputs(str(tmp_path)).files
    (tmp_path / "a.txt").unlink()
    with pytest.raises(RefusedError, match=r"a\.txt: No such file"):
        list(read_shards(file, Columns(text="text")))


def test_reading_goes_in_large_pieces(s3: S3Server) -> None:
    fill("s3://bucket/big", {"a": b"line\n" * (4 << 20)})
    s3.requests.clear()
    with buffered(storage_of("s3://").open("s3://bucket/big/a")) as file:
        assert sum(1 for _ in file) == 4 << 20
    assert len([method for method, _ in s3.requests if method == "GET"]) <= 4


def test_no_bucket_is_the_servers_no(s3: S3Server) -> None:
    with pytest.raises(RefusedError, match="s3://absent/x: NoSuchBucket: "):
        storage_of("s3://").write("s3://absent/x", b"")


def test_workers_hear_of_the_endpoint_and_never_of_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_environment() == {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "3",
    }
    submitted = {"runtime_env": {"env_vars": {"AWS_ENDPOINT_URL": s3.url, "AWS_MAX_ATTEMPTS": "9"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    assert worker_environment() == {"AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "3"}


def test_an_endpoint_that_is_asked_for_wins_over_the_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    use_endpoint(s3.url)
    assert storage_of("s3://").read(f"s3://{BUCKET}/absent") is None


def test_locations_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("x/") == f"{tmp_path}/x"
    assert absolute("s3://bucket/x/") == "s3://bucket/x"
    assert absolute(f"{tmp_path}/a/../b//c/") == f"{tmp_path}/b/c"
    assert is_remote("s3://bucket")
    assert not is_remote("/s3")


def test_a_model_in_a_bucket_is_copied_once_for_each_version(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    storage, address = storage_of("s3://"), f"s3://{BUCKET}/models/reviews"
    with pytest.raises(UserError, match=f"model {address}: no model there"):
        local_model(address)
    for name, data in (("config.json", b"{}"), ("model.safetensors", bytes(3 << 20)), ("_checkpoint/step", b"x")):
        storage.write(f"{address}/{name}", data)
    storage.write(f"{address}-other/config.json", b"[]")
    folders = {local_model(address), local_model(f"{address}/")}
    assert len([path for method, path in s3.requests if method == "GET" and path.endswith(".safetensors")]) == 1
    folder = Path(folders.pop())
    assert not folders
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == {
        "config.json": 2,
        "model.safetensors": 3 << 20,
    }
    storage.write(f"{address}/config.json", b"{ }")
    assert Path(local_model(address), "config.json").read_bytes() == b"{ }"
    assert (folder / "config.json").read_bytes() == b"{}"
    assert len(list(folder.parent.iterdir())) == 2
    s3.faults.append(Fault("GET", "/config.json", "403 Forbidden", times=1))
    storage.write(f"{address}/config.json", b"{  }")
    with pytest.raises(StorageError, match=f"{address}/config.json: "):
        local_model(address)
    assert len(list(folder.parent.iterdir())) == 2


def test_a_model_that_is_replaced_while_it_is_copied_is_no_model(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    storage, address = storage_of("s3://"), f"s3://{BUCKET}/models/changing"
    for name in ("config.json", "model.safetensors"):
        storage.write(f"{address}/{name}", b"old")
    copy = shutil.copyfileobj

    def replaced(source: Any, target: Any, length: int) -> None:
        copy(source, target, length)
        storage.write(f"{address}/model.safetensors", b"new")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.storage.model_cache.shutil.copyfileobj", replaced)
        with pytest.raises(StorageError, match=f"{address}/model.safetensors: was replaced while the model was copied"):
            local_model(address)
    assert not [*(tmp_path / "offramp").iterdir()]
    folder = Path(local_model(address))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"old",
        "model.safetensors": b"new",
    }


def test_other_names_of_models_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert local_model("~/m") == "/home/me/m"
    for name in ("bert-base-uncased", "/models/m", "m/"):
        assert local_model(name) == name
    with pytest.raises(UserError, match="gs://bucket/m: known are local paths and s3://"):
        local_model("gs://bucket/m")


def test_a_full_disk_is_named_and_leaves_nothing_half(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, "1m"):
        storage_of("/").write(f"{disk}/small", b"x")
        with pytest.raises(StorageError, match=rf"{disk}/large: No space left on device"):
            storage_of("/").write(f"{disk}/large", b"x" * (2 << 20))
        assert [path.name for path in disk.iterdir()] == ["small"]


def test_lost_permission_is_named(tmp_path: Path) -> None:
    """In a process without root's rights, where there is one to be had."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IXOTH | stat.S_IROTH)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    code = "import os; from pipeline.storage.locate import storage_of\nif not os.getuid(): os.setuid(65534)\n"
    code += f"storage_of('/').write('{folder}/x', b'')"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert f"RefusedError: {folder}/x: Permission denied" in done.stderr
