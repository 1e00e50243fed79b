"""Columns that a Delta table can have are read by all as they were kept, and every other type is refused by name."""

from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from models.errors import InputError
from pipeline.corpus.decoders.plain import plain, plain_type
from pipeline.corpus.kept import can_carry, kept_type
from pipeline.output.ledger import Ledger
from pipeline.tables.delta import DeltaLog
from pipeline.tables.delta_schema import delta_schema, needs_timestamps_without_zone
from tests.support.arrow_types import CASES
from tests.support.ledger import FINGERPRINT, make_corpus, make_folder, receipt
from tests.support.tables import open_table

REFUSED = {
    "uint8 uint16 uint32 uint64": "write it as a signed integer that is wide enough",
    "halffloat": "write it as float32",
    "decimal32 decimal64 decimal256": "write it as decimal128 of at most 38 digits",
    "date64": "write it as date32",
    "timestamp[us,tz=+": "write it as a timestamp of UTC in microseconds",
    "timestamp[s timestamp[ms timestamp[ns": "write it as a timestamp",
    "time32 time64": "write it as an integer or text",
    "duration": "write it as an integer",
    "fixed_size_binary": "write it as binary",
    "fixed_size_list": "write it as a list without a fixed size",
    "null": "leave it out",
}
"""Types that Delta lacks, by the beginning of their names, with what to do."""
OUT_OF_PYTHON = {"date far", "timestamp far"}


def refusal_of(kind: pa.DataType) -> str:
    try:
        delta_schema(pa.schema([("k", kind)]))
    except InputError as error:
        return str(error)
    return ""


def advice_for(kind: pa.DataType) -> str:
    """Return what is to be said of a type, or of the first of those inside of it that is refused."""
    for names, advice in REFUSED.items():
        if str(kind).replace(" ", "").startswith(tuple(names.split())):
            return advice
    inner = [advice_for(kind.field(number).type) for number in range(kind.num_fields)]
    return next((advice for advice in inner if advice), "")


def test_every_type_is_taken_or_refused_with_what_to_do() -> None:
    taken, refused = 0, 0
    for name, case in CASES.items():
        kind = kept_type(case.type)
        advice = "it is there twice" if name == "twins" else advice_for(kind)
        assert can_carry(kind)
        if advice:
            refused += 1
            assert refusal_of(kind).startswith("keep k")
            assert advice in refusal_of(kind), name
        else:
            taken += 1
            assert not refusal_of(kind), name
    assert taken > 35
    assert refused > 25


def test_what_is_taken_is_read_by_all_as_it_was_kept(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path), ("a.txt",)), make_folder(str(tmp_path))
    cases = {
        name: pa.concat_arrays([plain(case), pa.nulls(4 - len(case), plain_type(case.type))])
        for name, case in CASES.items()
        if name != "null" and len(case) <= 4 and not refusal_of(kept_type(case.type))
    }
    columns = {f"k{number}": case for number, case in enumerate(cases.values())}
    rows = pa.table({"id": ["0", "1", "2", "3"], **columns})
    with Ledger(folder, FINGERPRINT, follow=DeltaLog(folder, print).follow) as ledger:
        ledger.begin(rows.schema)
        rejects = pa.Table.from_pylist([{"id": "x", "file": "f", "row": 0, "reason": "r"}])
        ledger.add(ledger.output.write([receipt(corpus, 0, 0, 5, last=True)], rows, rejects))
        ledger.publish(1.0, {})
    table = open_table(folder)
    files = table.file_uris()
    found = {"deltalake": table.to_pyarrow_table(), "Polars": pl.read_delta(folder).to_arrow()}
    for (name, case), column in zip(cases.items(), columns, strict=True):
        if name in OUT_OF_PYTHON:
            continue
        expected = repr(case.to_pylist())
        for reader, values in found.items():
            zoned = values[column].cast(case.type) if pa.types.is_timestamp(case.type) else values[column]
            assert repr(zoned.to_pylist()) == expected, (reader, name)
    with duckdb.connect() as connection:
        counts = ", ".join(f"count({name})" for name in columns)
        (count,) = connection.read_parquet(files).aggregate(counts).fetchall()
    assert count == tuple(4 - case.null_count for case in columns.values())


@pytest.mark.parametrize("name", ["a b", "a,b", "a=b", "a{b}", "a(b)", "a\tb", "a\nb", "a;b", ""])
def test_a_name_that_readers_refuse_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="a column of a Delta table has a name, without any of"):
        delta_schema(pa.schema([("id", pa.string()), (name, pa.string())]))
    with pytest.raises(InputError, match="a column of a Delta table has a name, without any of"):
        delta_schema(pa.schema([("user", pa.list_(pa.struct([(name, pa.string())])))]))


def test_names_that_differ_in_capital_letters_alone_are_refused() -> None:
    with pytest.raises(InputError, match="keep Label: Delta tables do not tell names by capital letters"):
        delta_schema(pa.schema([("Label", pa.string()), ("label", pa.string())]))


def test_what_is_inside_a_column_is_named() -> None:
    kind = pa.map_(pa.string(), pa.list_(pa.struct([("age", pa.uint8())])))
    with pytest.raises(InputError, match=r"keep user\.value\.element\.age: is of type uint8"):
        delta_schema(pa.schema([("user", kind)]))


def test_all_columns_may_be_null_and_timestamps_without_zone_are_noticed() -> None:
    schema = pa.schema([pa.field("id", pa.string(), nullable=False), ("at", pa.timestamp("us", "Europe/Berlin"))])
    assert delta_schema(schema) == pa.schema([("id", pa.string()), ("at", pa.timestamp("us", "UTC"))])
    assert not needs_timestamps_without_zone(delta_schema(schema))
    assert needs_timestamps_without_zone(pa.schema([("k", pa.list_(pa.struct([("t", pa.timestamp("us"))])))]))
