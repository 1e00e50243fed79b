"""The bytes of an Arrow batch: ranges of its buffers, unpacked if they are compressed."""

import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.corpus.decoders.ipc.flatbuffer import Table
from pipeline.corpus.decoders.ipc.messages import Message
from pipeline.corpus.decoders.raw import FileFormatError
from pipeline.rows import IntArray

MAX_UNPACKED_BYTES = 1 << 31
"""Most bytes of the compressed buffers of a batch that are read, unpacked: as many as of Parquet's pages."""
CODECS = ("lz4", "zstd")
"""Compressions by their number in the metadata; lz4 by frames, as Arrow names it."""
OF_0_17 = b"ARROW:experimental_compression"
"""What the metadata of a batch has whose compression came before the format had any."""
AS_IT_IS = -1
"""The length that stands before a buffer which would have become longer."""

Buffer = tuple[int, int]
"""Where a buffer begins in its body, and its bytes as it is stored."""


class Body:
    """The body of one batch."""

    def __init__(self, stored: BinaryIO, message: Message, batch: Table) -> None:
        """Read from a file's message; `batch` is what its metadata says of the batch."""
        if OF_0_17 in message.head:
            raise FileFormatError("it is compressed as only Arrow 0.17 did; write it anew")
        self._stored, self._start = stored, message.body
        compression = batch.table(3)
        self._codec = None if compression is None else self._codec_of(compression.number(0, "b"))
        self._unpacked: dict[Buffer, pa.Buffer] = {}

    @staticmethod
    def _codec_of(number: int) -> str:
        if not 0 <= number < len(CODECS):
            raise FileFormatError("a batch is compressed in an unknown way")
        return CODECS[number]

    def check_unpacked(self, buffers: Sequence[Buffer]) -> None:
        """Raise FileFormatError if these buffers are compressed, and too large to be unpacked."""
        if self._codec is None:
            return
        size = sum(map(self.size, buffers))
        if size > MAX_UNPACKED_BYTES:
            raise FileFormatError(f"a batch has {size:,} bytes to unpack at once; {MAX_UNPACKED_BYTES:,} are the most")

    def size(self, buffer: Buffer) -> int:
        """Return the bytes of a buffer, unpacked."""
        if self._codec is None or buffer[1] == 0:
            return buffer[1]
        (length,) = struct.unpack("<q", self._stored_bytes(buffer, 0, 8))
        if length < AS_IT_IS:
            raise FileFormatError("a compressed buffer of less than no bytes")
        return buffer[1] - 8 if length == AS_IT_IS else int(length)

    def read(self, buffer: Buffer, start: int, size: int) -> pa.Buffer:
        """Return a range of a buffer; raise FileFormatError if it is not in it."""
        if size == 0:
            return pa.py_buffer(b"")
        if self._codec is None:
            return pa.py_buffer(self._stored_bytes(buffer, start, size))
        if buffer not in self._unpacked:
            self._unpacked[buffer] = self._unpack(buffer)
        whole = self._unpacked[buffer]
        if start < 0 or size < 0 or start + size > whole.size:
            raise FileFormatError("a buffer is too short")
        return whole.slice(start, size)

    def numbers(self, buffer: Buffer, start: int, count: int, kind: str) -> IntArray:
        """Return integers of a buffer, by their index and their type as numpy names it."""
        width = np.dtype(kind).itemsize
        return np.frombuffer(self.read(buffer, start * width, count * width), kind).astype(np.int64)

    def _unpack(self, buffer: Buffer) -> pa.Buffer:
        length = self.size(buffer)
        packed = self._stored_bytes(buffer, 8, buffer[1] - 8)
        if length == buffer[1] - 8 and struct.unpack("<q", self._stored_bytes(buffer, 0, 8)) == (AS_IT_IS,):
            return pa.py_buffer(packed)
        unpacked = pa.decompress(packed, length, codec=self._codec)
        if unpacked.size != length:
            raise FileFormatError("a compressed buffer has another length than it says")
        return unpacked

    def _stored_bytes(self, buffer: Buffer, start: int, size: int) -> bytes:
        if start < 0 or size < 0 or start + size > buffer[1]:
            raise FileFormatError("a buffer is too short")
        self._stored.seek(self._start + buffer[0] + start)
        data = self._stored.read(size)
        if len(data) < size:
            raise FileFormatError("it ends in the middle")
        return data
