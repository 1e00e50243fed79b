"""zstd with windows of up to 2 GiB, as the largest dumps have: Arrow, whose limit is 128 MiB, has no way to ask for more.

A frame asks for a window in its header. Where one asks for more than Arrow gives, the file is read anew by the machine's own
libzstd, which gives 2 GiB and takes as much memory as the window, as far as the content fills it.
"""

import ctypes
import ctypes.util
import functools
from typing import BinaryIO

import pyarrow as pa

from pipeline.corpus.decoders.raw import DAMAGE, FileFormatError

WINDOW_LOG = 31
"""Largest window, as a power of two, that the format's own library takes."""
STORED_BYTES = 1 << 16
"""Stored bytes that are read at once."""
TOO_LARGE = "requires too much memory"
"""What zstd says of windows alone."""
WINDOW_LOG_MAX = 100
"""The number of the parameter ZSTD_d_windowLogMax in zstd.h."""


class ZstdStream:
    """The content of zstd frames that follow each other: by Arrow, and from the first window that it refuses on by libzstd."""

    def __init__(self, stored: BinaryIO) -> None:
        self._stored = stored
        self._arrow = pa.CompressedInputStream(stored, "zstd")  # closed, it would close the file
        self._long: LongZstd | None = None
        self._given = 0
        """Bytes that were returned."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes more, none at the end; raise one of `raw.DAMAGE` or FileFormatError at damage."""
        piece: bytes
        if self._long is None:
            try:
                piece = self._arrow.read(size)
            except DAMAGE as error:
                if TOO_LARGE not in str(error):
                    raise
                self._long = self._begin_again()
        if self._long is not None:
            piece = self._long.read(size)
        self._given += len(piece)
        return piece

    def _begin_again(self) -> "LongZstd":
        """Return a stream that has read as far as this one."""
        self._stored.seek(0)
        stream = LongZstd(self._stored)
        left = self._given
        while left:
            piece = stream.read(min(left, STORED_BYTES))
            if not piece:  # the file was cut meanwhile
                raise EOFError("the compressed data ends in the middle")
            left -= len(piece)
        return stream


class _InBuffer(ctypes.Structure):
    _fields_ = (("src", ctypes.c_char_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))


class _OutBuffer(ctypes.Structure):
    _fields_ = (("dst", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))


class LongZstd:
    """The content of zstd frames, by libzstd."""

    def __init__(self, stored: BinaryIO) -> None:
        """Begin to read; raise FileFormatError if this machine has no libzstd."""
        library = libzstd()
        if library is None:
            raise FileFormatError(
                "its zstd window is larger than 128 MiB, and this machine has no libzstd for it; "
                "install that (Debian: libzstd1), or compress it again with a smaller one"
            )
        self._library, self._stored = library, stored
        self._context = library.ZSTD_createDCtx()
        self._input = _InBuffer(b"", 0, 0)
        self._in_frame = self._is_full = False
        """Whether a frame has begun and not ended, and whether it has more to give without more input."""
        self._check(library.ZSTD_DCtx_setParameter(self._context, WINDOW_LOG_MAX, WINDOW_LOG))

    def __del__(self) -> None:
        if context := getattr(self, "_context", None):
            self._library.ZSTD_freeDCtx(context)

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes more, none at the end; raise EOFError if a frame is cut off, ValueError at damage."""
        target = ctypes.create_string_buffer(size)
        output = _OutBuffer(ctypes.addressof(target), size, 0)
        while not output.pos:
            if self._input.pos == self._input.size and not self._is_full:
                data = self._stored.read(STORED_BYTES)
                if not data and self._in_frame:
                    raise EOFError("the compressed data ends in the middle")
                if not data:
                    return b""
                self._input = _InBuffer(data, len(data), 0)
            left = self._library.ZSTD_decompressStream(self._context, ctypes.byref(output), ctypes.byref(self._input))
            self._in_frame = self._check(left) > 0
            self._is_full = self._in_frame and output.pos == size
        return target.raw[: output.pos]

    def _check(self, code: int) -> int:
        """Return what a function of the library returned; raise ValueError if that is an error."""
        if self._library.ZSTD_isError(code):
            raise ValueError(self._library.ZSTD_getErrorName(code).decode())
        return code


@functools.cache
def libzstd() -> ctypes.CDLL | None:
    """Load the machine's libzstd; None where there is none of version 1.4 or later."""
    for name in ("libzstd.so.1", ctypes.util.find_library("zstd")):
        try:
            library = ctypes.CDLL(name) if name else None
            size, pointer = ctypes.c_size_t, ctypes.c_void_p
            for function, result, arguments in (
                ("ZSTD_createDCtx", pointer, []),
                ("ZSTD_freeDCtx", size, [pointer]),
                ("ZSTD_DCtx_setParameter", size, [pointer, ctypes.c_int, ctypes.c_int]),
                ("ZSTD_decompressStream", size, [pointer, pointer, pointer]),
                ("ZSTD_isError", ctypes.c_uint, [size]),
                ("ZSTD_getErrorName", ctypes.c_char_p, [size]),
            ):
                found = getattr(library, function)
                found.restype, found.argtypes = result, arguments
        except (OSError, AttributeError):
            continue
        return library
    return None
