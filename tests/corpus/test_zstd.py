"""Windows of zstd: as large as the format's own library takes, in any frame of a file, and refused in one line beyond."""

import io
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.columns import Columns
from pipeline.corpus.decoders.compression import zstd
from pipeline.corpus.decoders.compression.compressed import open_compressed
from pipeline.corpus.decoders.compression.zstd import LongZstd, libzstd
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import read_shards
from pipeline.schema import TEXT

BLOCK = 1 << 17
SKIPPED = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
"""A frame that readers skip."""

needs_libzstd = pytest.mark.skipif(libzstd() is None, reason="this machine has no libzstd")


def frame(content: bytes, window_log: int) -> bytes:
    """Write a frame with a window of 2 ** window_log bytes, by RFC 8878: stored blocks, no checksum."""
    blocks = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)] or [b""]
    made = b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3])
    for number, block in enumerate(blocks):
        made += (len(block) << 3 | (number == len(blocks) - 1)).to_bytes(3, "little") + block
    return made


def packed(content: bytes, window_log: int) -> bytes:
    return frame(content, window_log) if window_log else bytes(pa.compress(content, codec="zstd", asbytes=True))


frames = st.lists(st.tuples(st.binary(max_size=3000), st.sampled_from([0, 10, 27, 28, 31])), min_size=1, max_size=5)


@needs_libzstd
@given(parts=frames, size=st.integers(1, 5000), stored=st.integers(1, 200))
def test_frames_of_all_windows_that_follow_each_other_are_read_as_one(
    parts: list[tuple[bytes, int]], size: int, stored: int
) -> None:
    data = SKIPPED.join(packed(content, window) for content, window in parts)
    whole = b"".join(content for content, _ in parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zstd, "STORED_BYTES", stored)
        for stream in (open_compressed(io.BytesIO(data), "zstd"), LongZstd(io.BytesIO(data))):
            assert b"".join(iter(partial(stream.read, size), b"")) == whole
            assert stream.read(size) == b""


def read(path: Path) -> tuple[list[str], str | None]:
    (file,) = list_inputs(str(path)).files
    shards = [*read_shards(file, Columns())]
    return [text for shard in shards for text in shard.rows[TEXT].to_pylist()], shards[-1].read_error


LINES = "".join(f"text {number}\n" for number in range(30_000)).encode()


@needs_libzstd
def test_rows_before_a_cut_or_damage_are_read_and_the_rest_is_told(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.txt.zst", LINES.decode().splitlines()
    whole = packed(LINES, 0) + frame(LINES, 31)
    path.write_bytes(whole)
    assert read(path) == (texts * 2, None)
    for damaged in (whole[:-1000], whole + b"garbage"):
        path.write_bytes(damaged)
        found, error = read(path)
        assert found == (texts * 2)[: len(found)]
        assert len(found) > 45_000
        assert error


@needs_libzstd
def test_a_file_that_is_emptied_meanwhile_comes_to_an_end() -> None:
    stored = io.BytesIO(packed(b"x" * 100, 0) + frame(b"y" * 100, 31))
    stream = open_compressed(stored, "zstd")
    assert stream.read(10) == b"x" * 10
    stored.truncate(0)
    with pytest.raises(EOFError, match="ends in the middle"):
        [*iter(partial(stream.read, 200), b"")]


def test_a_window_beyond_all_limits_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(packed(b"first\n", 0) + frame(b"second\n", 32))
    if libzstd() is not None:
        assert read(path) == (["first"], "its zstd window is larger than 2 GiB; compress it again with a smaller one")
    monkeypatch.setattr(zstd, "libzstd", lambda: None)
    found, error = read(path)
    assert found in ([], ["first"])  # Arrow loses the piece that it finds an error in
    assert str(error).startswith("its zstd window is larger than 128 MiB, and this machine has no libzstd for it")
