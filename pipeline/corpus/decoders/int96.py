"""Times of 96 bits, as Spark and Impala wrote them: nanoseconds of any day of the calendar.

Arrow reads them as nanoseconds since 1970 in 64 bits, silently modulo 2^64, so that the year 9999 becomes 1816; or as
microseconds, which hold every year, and silently cuts the digits below. So they are read both ways: what is used are
microseconds, and a time that has digits below them is known by the difference of the two.
"""

from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.decoders.fields import Path, column_at
from pipeline.corpus.decoders.raw import FileFormatError

UNIT = "us"
"""Unit in which Parquet files are opened to read such times."""


def int96_columns(parquet: pq.ParquetFile, columns: list[str]) -> list[str]:
    """Return those of these columns that hold such times; raise FileFormatError if they do so in lists or structs."""
    found: list[str] = []
    leaf_columns = [parquet.schema.column(number) for number in range(len(parquet.schema))]
    single = {column.path for column in leaf_columns}
    for column in leaf_columns:
        if column.physical_type == "INT96":
            found += [name for name in columns if column.path == name]
            above = [name for name in columns if column.path.startswith(f"{name}.")]  # or a name with a dot in it
            nested = next((name for name in above if name not in single), None)
            if nested is not None:
                raise FileFormatError(
                    f"column '{nested}' holds times of 96 bits in a list or a struct, which are not read"
                )
    return found


def has_digits_below(
    stored: BinaryIO, paths: Mapping[str, Path], groups: list[int], rows: int
) -> Iterator[Mapping[str, npt.NDArray[np.bool_]]]:
    """Yield for each batch, by column, which times have digits below microseconds: [B]."""
    opened = (
        pq.ParquetFile(stored, buffer_size=1 << 20, pre_buffer=False, coerce_int96_timestamp_unit=unit)
        for unit in ("ns", UNIT)
    )
    batches = (file.iter_batches(rows, row_groups=groups, columns=[*paths], use_threads=False) for file in opened)
    for nanoseconds, microseconds in zip(*batches, strict=True):
        yield {
            name: _differ(column_at(nanoseconds, path), column_at(microseconds, path)) for name, path in paths.items()
        }


def _differ(nanoseconds: pa.Array, microseconds: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which times are no whole microseconds, by arithmetic modulo 2^64."""
    fine, coarse = (
        array.view(pa.int64()).fill_null(0).to_numpy().astype(np.uint64) for array in (nanoseconds, microseconds)
    )
    return fine != coarse * np.uint64(1000)
