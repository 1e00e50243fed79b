"""Compressed files as streams, of which no more than some pieces are in memory, whatever they hold.

gzip is Arrow's, and so is zstd but for large windows. bzip2 and xz are the standard library's decompressors: its file classes
have no bound on what an xz file may ask for.
"""

import re
from bz2 import BZ2Decompressor
from collections.abc import Callable
from functools import partial
from lzma import FORMAT_XZ, LZMADecompressor
from typing import BinaryIO, Protocol

import pyarrow as pa

from pipeline.corpus.decoders.compression.zstd import TOO_LARGE, ZstdStream
from pipeline.corpus.decoders.raw import FileFormatError

XZ_BYTES = 257 << 20
"""Memory that an xz file may ask for, for its dictionary and a megabyte beside: `xz -9` takes 65 MiB."""
STORED_BYTES = 1 << 16
"""Stored bytes that are read at once."""
FIRST_BYTES = {
    "gzip": rb"\x1f\x8b",
    "zstd": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",  # a frame, or one to be skipped
    "bzip2": rb"BZh[1-9]",
    "xz": rb"\xfd7zXZ\x00",
}
"""How files of each compression begin, as regular expressions."""


class Readable(Protocol):
    """A stream of decompressed bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes more; none at the end."""
        ...


def open_compressed(stored: BinaryIO, compression: str) -> Readable:
    """Open a stream of what a compressed file holds; reading raises one of `raw.DAMAGE` where it is damaged or cut off."""
    if compression == "bzip2":
        return Decompressed(stored, BZ2Decompressor)
    if compression == "xz":
        return Decompressed(stored, partial(LZMADecompressor, FORMAT_XZ, memlimit=XZ_BYTES))
    if compression == "zstd":
        return ZstdStream(stored)
    return pa.CompressedInputStream(stored, compression)  # type: ignore[no-any-return]


def check_compressed(stored: BinaryIO, compression: str) -> None:
    """Raise FileFormatError for a file whose name says that it is compressed and whose first bytes say that it is not."""
    start = stored.read(8)
    stored.seek(0)
    if not re.match(FIRST_BYTES[compression], start, re.DOTALL):
        raise FileFormatError(
            f"it is no {compression} file, as its name says" if start else "it is empty: not even compressed"
        )


def memory_error_of(error: BaseException) -> FileFormatError | None:
    """Return an error that tells what to do about a file that asks for more memory than it may; None for other errors."""
    if TOO_LARGE in str(error):
        return FileFormatError("its zstd window is larger than 2 GiB; compress it again with a smaller one")
    if "Memory usage limit" in str(error):  # of liblzma
        limit = f"{XZ_BYTES / 1e6:,.0f} MB"
        return FileFormatError(f"it asks for more memory than {limit}; compress it again with a smaller dictionary")
    return None


class Decompressed:
    """The content of one or more compressed streams in a file, which follow each other; zeros between them are skipped."""

    def __init__(self, stored: BinaryIO, new: Callable[[], BZ2Decompressor | LZMADecompressor]) -> None:
        self.stored, self.new, self.stream = stored, new, new()
        self.unread = b""
        """Stored bytes that were read already, and belong to the stream that is begun."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes more, none at the end; raise EOFError if a stream is cut off."""
        while not self.stream.eof or self._begin_next():
            data = b""
            if self.stream.needs_input:
                data, self.unread = self.unread or self.stored.read(STORED_BYTES), b""
                if not data:
                    raise EOFError("the compressed data ends in the middle")
            piece = self.stream.decompress(data, size)
            if piece:
                return piece
        return b""

    def _begin_next(self) -> bool:
        """Go on with the next stream; return whether there is one."""
        self.unread = self.stream.unused_data.lstrip(b"\0")
        while not self.unread:
            more = self.stored.read(STORED_BYTES)
            if not more:
                return False
            self.unread = more.lstrip(b"\0")
        self.stream = self.new()
        return True
