"""The copy of a model in an object store is whole, or it is made again: nobody loads a torn one, or a mixture of two."""

import os
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import model_cache
from pipeline.storage.base import StoredFile
from pipeline.storage.locate import storage_of
from pipeline.storage.model_cache import local_model
from pipeline.storage.s3 import S3Storage
from tests.support.s3_server import BUCKET, S3Server

ADDRESS = f"s3://{BUCKET}/models/reviews"
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 5000, "tokenizer.json": b"{...}"}


@pytest.fixture
def cache(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, data in FILES.items():
        storage_of(ADDRESS).write(f"{ADDRESS}/{name}", data)
    return tmp_path / "offramp"


def content(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", ["gone", "empty", "cut", "longer", "a folder"])
def test_a_torn_copy_is_made_again(what: str, name: str, cache: Path) -> None:
    path = Path(local_model(ADDRESS), name)
    if what in ("gone", "a folder"):
        path.unlink()
    if what == "a folder":
        path.mkdir()
    if what in ("empty", "cut", "longer"):
        path.write_bytes({"empty": b"", "cut": FILES[name][:-1], "longer": FILES[name] + b"x"}[what])
    assert content(local_model(ADDRESS)) == FILES
    assert len([*cache.iterdir()]) == 1


def test_all_of_a_copy_is_on_the_disk_before_it_has_its_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def flushed(descriptor: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    folder = local_model(ADDRESS)
    assert calls[:3] == sorted(FILES)
    assert calls[3].startswith(f".{Path(folder).name}-")
    assert calls[4:] == ["rename", "offramp"]


def test_a_model_that_is_replaced_while_it_is_copied_is_no_mixture(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = S3Storage.open

    def slow(self: S3Storage, path: str) -> StoredFile:
        if path.endswith("model.safetensors"):
            storage_of(ADDRESS).write(path, b"n" * 5000)
        return opened(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(S3Storage, "open", slow)
        with pytest.raises(
            StorageError, match=rf"{ADDRESS}/model\.safetensors: was replaced while the model was copied"
        ):
            local_model(ADDRESS)
    assert not [*cache.iterdir()]
    assert content(local_model(ADDRESS))["model.safetensors"] == b"n" * 5000


def test_who_comes_second_uses_the_copy_of_the_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_file = model_cache._copy_file
    first: list[str] = []

    def overtaken(*arguments: object) -> None:
        copy_file(*arguments)  # type: ignore[arg-type]
        if not first:
            first.append("")
            first[0] = local_model(ADDRESS)

    monkeypatch.setattr(model_cache, "_copy_file", overtaken)
    assert local_model(ADDRESS) == first[0]
    assert content(first[0]) == FILES
    assert len([*cache.iterdir()]) == 1
