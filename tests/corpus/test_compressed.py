"""Compressed files: streams that follow each other, that are cut off or damaged, and that ask for much memory."""

import io
import lzma
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.columns import Columns
from pipeline.corpus.decoders.compression import compressed
from pipeline.corpus.decoders.compression.compressed import open_compressed
from pipeline.corpus.decoders.raw import DAMAGE
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import read_shards
from pipeline.schema import TEXT
from tests.support.compressed import COMPRESS, packed

NAMES = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
PADDED = {".xz": b"\0" * 8}
"""What may stand between streams."""


def content(data: bytes, suffix: str, size: int = 4096) -> bytes:
    stream = open_compressed(io.BytesIO(data), NAMES[suffix])
    return b"".join(iter(lambda: stream.read(size), b""))


def read(path: Path) -> tuple[list[str], str | None]:
    """Return the texts of a file, and why the rest cannot be read."""
    texts, error = [], None
    for shard in read_shards(list_inputs(str(path)).files[0], Columns()):
        texts += shard.rows[TEXT].to_pylist()
        error = shard.read_error or error
    return texts, error


@pytest.mark.parametrize("suffix", COMPRESS)
@given(parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=4), size=st.integers(1, 5000))
def test_streams_that_follow_each_other_are_read_as_one(suffix: str, parts: list[bytes], size: int) -> None:
    padding = PADDED.get(suffix, b"")
    data = b"".join(COMPRESS[suffix](part) + padding for part in parts)
    assert content(data, suffix, size) == b"".join(parts)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_what_is_read_at_once_does_not_matter(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "STORED_BYTES", 1)
    parts = [b"first\n" * 50, b"", b"last\n"]
    assert content(b"".join(COMPRESS[suffix](part) for part in parts), suffix, 7) == b"".join(parts)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_rows_before_a_cut_are_read_and_the_rest_is_told(suffix: str, tmp_path: Path) -> None:
    texts = [f"text {number * 7919 % 10007}" for number in range(60_000)]
    path = tmp_path / f"a.txt{suffix}"
    whole = packed(path, "".join(f"{text}\n" for text in texts).encode())
    path.write_bytes(whole)
    assert read(path) == (texts, None)
    path.write_bytes(whole[: len(whole) // 2])
    found, error = read(path)
    assert found == texts[: len(found)]
    assert error
    path.write_bytes(whole + b"garbage")
    found, error = read(path)
    assert found == texts[: len(found)]
    assert len(found) > 59_000  # gzip and zstd lose the piece that they find the damage in
    assert error


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
def test_a_bomb_is_unpacked_piece_by_piece(suffix: str) -> None:
    bomb = COMPRESS[suffix](bytes(64 << 20))
    tracemalloc.start()
    stream, total = open_compressed(io.BytesIO(bomb), NAMES[suffix]), 0
    while piece := stream.read(4096):
        total += len(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 12 << 20  # the dictionary of xz is 8 MiB


def test_an_xz_file_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    data = lzma.compress(b"text\n", filters=filters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "XZ_BYTES", 1 << 19)
        (tmp_path / "a.txt.xz").write_bytes(data)
        found, error = read(tmp_path / "a.txt.xz")
    assert (found, error) == ([], "it asks for more memory than 1 MB; compress it again with a smaller dictionary")
    assert content(data, ".xz") == b"text\n"


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
def test_damage_raises_what_decoders_raise(suffix: str) -> None:
    data = bytearray(COMPRESS[suffix](b"some text that is damaged\n" * 100))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DAMAGE):
        content(bytes(data), suffix)
