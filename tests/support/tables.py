"""The Delta table of an output folder, as other programs read it."""

from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipeline.output.results import published, shards
from pipeline.storage.base import is_remote
from pipeline.storage.locate import object_store_options


def open_table(folder: str | Path) -> DeltaTable:
    return DeltaTable(str(folder), storage_options=object_store_options(str(folder)))


def read_by_all(folder: str | Path) -> pa.Table:
    """Read the rows of a table by deltalake, Polars and DuckDB; see that all read the same, and return them."""
    table = open_table(folder)
    found = table.to_pyarrow_table()
    options = object_store_options(str(folder))
    options.pop("max_retries", None)  # Polars has that as a number, elsewhere
    by_polars = pl.scan_delta(str(folder), storage_options=options or None).select("id").collect()["id"].to_list()
    assert sorted(by_polars) == sorted(found["id"].to_pylist())
    with duckdb.connect() as connection:
        if is_remote(str(folder)):  # DuckDB's own reader of S3 is an extension
            by_duckdb = connection.from_arrow(found).project("id").fetchall()
        else:
            by_duckdb = connection.read_parquet(table.file_uris()).project("id").fetchall() if len(found) else []
        assert sorted(row for (row,) in by_duckdb) == sorted(by_polars)
    return found


def check_against_manifest(folder: str | Path) -> pa.Table:
    """See that a table names exactly the parts of the manifest, with their sizes and rows; return its rows."""
    table, listed = open_table(folder), shards(published(folder))
    actions = pa.table(table.get_add_actions())
    rows = listed.group_by("part").aggregate([("rows_out", "sum")]).to_pylist()
    assert dict(zip(actions["path"].to_pylist(), actions["num_records"].to_pylist(), strict=True)) == {
        row["part"]: row["rows_out_sum"] for row in rows
    }
    found = read_by_all(folder)
    assert len(found) == pc.sum(listed["rows_out"]).as_py()
    return found
