r"""The lines of a file, compressed or not, of which no more than a line and a block are in memory.

A line ends with \n, \r\n or a lone \r, in every format of lines. One that is longer than MAX_ROW_BYTES is skipped to its end,
and a `Reject` stands in its place. Files that hold no UTF-8 lines at all, by their first bytes, are refused as a whole.
"""

import codecs
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from pipeline.corpus.decoders import raw
from pipeline.corpus.decoders.compression.compressed import check_compressed, memory_error_of, open_compressed
from pipeline.corpus.decoders.raw import DAMAGE, FileFormatError, too_long
from pipeline.rejects import Reason, Reject

BLOCK_BYTES = 1 << 18
"""Bytes to split into lines at once."""
DECOMPRESSED_BYTES = 1 << 12
"""Bytes to decompress at once: what is read together with a damaged place is lost with it."""

Line = bytes | Reject

WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of encodings whose line breaks are not bytes of their own."""
SIGNATURES = {
    rb"\x1f\x8b": "gzip",
    rb"\x28\xb5\x2f\xfd": "zstd",
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": "bzip2",
    rb"\xfd7zXZ\x00": "xz",
    rb"\x04\x22\x4d\x18": "lz4",
    rb"PK(\x03\x04|\x05\x06)": "a zip archive",
    rb"PAR1[\x00-\x1f]": "Parquet",
    rb"ARROW1\x00\x00": "an Arrow file",
    rb"ORC[\x00-\x1f]": "ORC",
    rb"Obj\x01": "Avro",
    rb"SQLite format 3\x00": "an SQLite database",
    rb"%PDF-\d": "PDF",
}
"""How files begin that hold no lines; each of them can begin no text, but for the last."""


class Lines:
    r"""The lines of a stream, with their ends: `[b"first\n", b"second\r\n", b"last"]`."""

    def __init__(self, stored: BinaryIO, compression: str | None) -> None:
        """Begin to read; raise FileFormatError if the first bytes are those of another kind of file."""
        self._blocks = _blocks(stored, compression)
        self._ready: deque[Line] = deque()
        self.head = _without_mark(next(self._blocks, b""))
        """The first bytes of the content."""
        self._tail = self.head
        """Begin of the line that the next block goes on with; its first `_skipped` bytes are dropped already."""
        self._skipped = 0
        self._bytes = len(self.head)
        """Bytes of all blocks so far."""
        self._ready_bytes = 0
        """Bytes of the lines that are ready."""
        self._split(self._tail)

    @property
    def fraction_taken(self) -> float:
        """Fraction, of what has been read of the stream, whose lines have been taken, about; the rest waits here."""
        return max(1.0 - (len(self._tail) + self._ready_bytes) / max(self._bytes, 1), 0.0)

    def next(self) -> Line | None:
        """Return the next line, or None at the end; raise what the decompressor raises, after all lines before that place."""
        while not self._ready:
            block = next(self._blocks, None)
            if block is None:
                if not self._tail:
                    return None
                self._finish(self._tail)
                self._tail = b""
            else:
                self._bytes += len(block)
                self._split(self._tail + block)
        line = self._ready.popleft()
        if isinstance(line, bytes):
            self._ready_bytes -= len(line)
        return line

    def put_back(self, lines: Sequence[Line]) -> None:
        """Let these lines be the next ones again."""
        self._ready.extendleft(reversed(lines))
        self._ready_bytes += sum(len(line) for line in lines if isinstance(line, bytes))

    def __iter__(self) -> Iterator[Line]:
        while (line := self.next()) is not None:
            yield line

    def _split(self, data: bytes) -> None:
        """Split bytes into lines; the last one waits for more, unless it ends with a line feed."""
        lines = data.splitlines(keepends=True)
        self._tail = b"" if not lines or lines[-1].endswith(b"\n") else lines.pop()
        for line in lines:
            self._finish(line)
        if self._skipped + len(self._tail) > raw.MAX_ROW_BYTES:
            self._skipped += len(self._tail) - 1
            self._tail = self._tail[-1:]  # it may be half of a line's end

    def _finish(self, line: bytes) -> None:
        size = self._skipped + len(line)
        if size <= raw.MAX_ROW_BYTES:
            self._ready.append(line)
            self._ready_bytes += size
        else:
            self._ready.append(too_long("the line", size))
        self._skipped = 0


def content_of(line: bytes) -> bytes:
    """Return a line without its end."""
    return line[: -2 if line.endswith(b"\r\n") else -1] if line.endswith((b"\n", b"\r")) else line


def nul_problem(line: bytes) -> Reject | None:
    """Return why a line with NUL bytes, such as those of UTF-16 or of a hole that a crash left, is no text; None for others."""
    return Reject(Reason.NOT_TEXT, "the line holds NUL bytes, which no text file has") if b"\0" in line else None


def _blocks(stored: BinaryIO, compression: str | None) -> Iterator[bytes]:
    """Yield the content of a file, decompressed, in blocks of BLOCK_BYTES."""
    if compression is None:
        yield from iter(lambda: stored.read(BLOCK_BYTES), b"")
        return
    check_compressed(stored, compression)
    stream = open_compressed(stored, compression)
    failure: BaseException | None = None
    ended = False
    while not ended and failure is None:
        block = bytearray()
        try:
            while len(block) < BLOCK_BYTES and not ended:
                piece = stream.read(DECOMPRESSED_BYTES)
                block += piece
                ended = not piece
        except DAMAGE as error:
            failure = error
        if block:
            yield bytes(block)
    if failure is not None:
        raise memory_error_of(failure) or failure


def _without_mark(head: bytes) -> bytes:
    """Return the first bytes of a file without a mark of UTF-8; raise FileFormatError if they are of another kind."""
    for start, encoding in WIDE_MARKS.items():
        if head.startswith(start):
            raise FileFormatError(f"it is {encoding}, by its first bytes {start.hex(' ').upper()}; write it as UTF-8")
    for signature, kind in SIGNATURES.items():
        if re.match(signature, head, re.DOTALL):
            raise FileFormatError(f"its content is {kind}, not lines of text; name it after what it is")
    if _looks_like_utf16(head):
        raise FileFormatError("it looks like UTF-16 without a byte order mark; write it as UTF-8")
    return head.removeprefix(codecs.BOM_UTF8)


def _looks_like_utf16(head: bytes) -> bool:
    """Return whether NUL bytes are where UTF-16 has them: in every line break, or in a quarter of all bytes and more."""
    if b"\0" not in head:
        return False
    pairs_N2 = np.frombuffer(head, np.uint8, len(head) // 2 * 2).reshape(-1, 2)
    nuls = (pairs_N2 == 0).sum(0)
    if nuls.min() > 0 or nuls.max() == 0:
        return False
    high = int(nuls.argmax())  # the half of a pair that is 0 in ASCII
    line_feeds = (pairs_N2[:, 1 - high] == ord("\n")) & (pairs_N2[:, high] == 0)
    return bool(2 * line_feeds.sum() > (pairs_N2 == ord("\n")).sum() or 4 * nuls.max() > pairs_N2.size)
