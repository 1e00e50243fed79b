"""Compress bytes as the name of a file says."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Mapping
from pathlib import PurePath

import pyarrow as pa


def zstd(data: bytes) -> bytes:
    compressed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return compressed


COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
"""Compressions by the last part of a name."""


def packed(path: PurePath, data: bytes) -> bytes:
    """Return what a file of this name holds: the data, compressed if its name says so."""
    compress = COMPRESS.get(path.suffix)
    return data if compress is None else compress(data)
