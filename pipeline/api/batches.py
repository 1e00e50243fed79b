"""Take texts out of a batch and put predictions into it, in whatever form the batch comes.

A batch is what Ray Data hands to a function: a dict of NumPy arrays, a pandas DataFrame, or an Arrow table. It is returned in
the same form, with its own columns and those of the predictions. Their types are the same for every batch, whether all of its
rows could be classified or none:

    column         Arrow and pandas            NumPy
    label          string, null                object, None
    label_id       int32, null                 float32, NaN
    labels         list of string, null        object, None       of a model of label sets, in place of label and label_id
    score          float32, null or NaN        float32, NaN
    probabilities  list of float32, null       float32 [B, C], NaN
    probability    float32, null or NaN        float32, NaN       of a model of one logit, in place of probabilities
    exit_layer     int16, null                 float32, NaN
    uncertainty    float32, null or NaN        float32, NaN
    truncated      bool, null                  object, None
    windows        int32, null                 float32, NaN          where long texts have windows
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.rows import FloatArray

Batch: TypeAlias = pa.Table | pd.DataFrame | dict[str, npt.NDArray[Any]]
NULLABLE = {pa.int16(): pd.Int16Dtype(), pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
"""pandas types that keep their kind beside missing values."""


def column_of(batch: Batch, name: str, field: str) -> list[object]:
    """Return a column as Python values; raise InputError, which names the argument `field`, if there is none."""
    names = names_of(batch)
    if name not in names:
        raise InputError(field, f"{name}: the batch has no such column; it has {', '.join(names)}")
    column: Any = batch[name]
    return list(column.to_pylist() if isinstance(batch, pa.Table) else column.tolist())


def names_of(batch: Batch) -> list[str]:
    """Return the names of a batch's columns."""
    return list(batch.column_names if isinstance(batch, pa.Table) else batch.keys())


def with_columns(batch: Batch, added: pa.Table, prefix: str) -> Batch:
    """Return the batch with further columns, `prefix` before their names; raise InputError if it has one of them already."""
    added = added.rename_columns([f"{prefix}{name}" for name in added.column_names])
    clash = [name for name in added.column_names if name in names_of(batch)]
    if clash:
        raise InputError("prefix", f"'{prefix}': the batch has a column '{clash[0]}' already; choose another prefix")
    if isinstance(batch, pa.Table):
        for field in added.schema:
            batch = batch.append_column(field, added[field.name])
        return batch
    if isinstance(batch, pd.DataFrame):
        frame = to_pandas(added)
        return batch.assign(**{name: frame[name].array for name in frame.columns})
    return {**batch, **{name: to_numpy(added[name]) for name in added.column_names}}


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Convert predictions to pandas, integers and booleans to its nullable types."""
    frame: pd.DataFrame = table.to_pandas(types_mapper=NULLABLE.get)
    return frame


def to_numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Convert a column of predictions to NumPy: numbers to float32 with NaN, the rest to objects with None."""
    if pa.types.is_list(column.type) and pa.types.is_floating(column.type.value_type):
        return _matrix(column.to_pylist())
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.cast(pa.float32()).to_numpy().astype(np.float32)
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values


def _matrix(rows: Sequence[Sequence[float] | None]) -> FloatArray:
    width = max((len(row) for row in rows if row is not None), default=0)
    return np.array([[np.nan] * width if row is None else row for row in rows], np.float32).reshape(len(rows), width)
