"""Counters: one declaration takes a counter from the receipt through Arrow into totals and the manifest."""

from dataclasses import asdict, dataclass, field, fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.output.counts import MAX_BY_KEY, MERGE, SUM, SUM_BY_KEY, SUM_BY_POSITION, arrow_schema, merge_rules
from pipeline.output.receipts import RECEIPTS, Receipt, receipts_table
from pipeline.output.totals import NAMED_FILES, Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptWithMore(Receipt):
    """A receipt with a new counter of each kind."""

    emojis: int = field(default=0, metadata=SUM)
    by_weekday: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    by_language: dict[str, int] = field(default_factory=dict, metadata=SUM_BY_KEY)
    longest: dict[str, float] = field(default_factory=dict, metadata=MAX_BY_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalsWithMore(Totals):
    """The same counters added up."""

    emojis: int = field(default=0, metadata=SUM)
    by_weekday: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    by_language: dict[str, int] = field(default_factory=dict, metadata=SUM_BY_KEY)
    longest: dict[str, float] = field(default_factory=dict, metadata=MAX_BY_KEY)


receipts = st.builds(
    ReceiptWithMore,
    shard=st.just("0123456789abcdef"), file=st.sampled_from("ab"), size=st.just(1), version=st.just("m"),
    start=st.just(0), span=st.just(0), last=st.just(True), read_error=st.none() | st.just("cut"),
    rows_in=st.integers(0, 9), flops=st.integers(0, 9).map(float), exits=st.lists(st.integers(0, 9), max_size=3),
    rejected=st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9)),
    emojis=st.integers(0, 9), by_weekday=st.lists(st.integers(0, 9), max_size=7),
    by_language=st.dictionaries(st.sampled_from(["de", "en", "fr"]), st.integers(1, 9)),
    longest=st.dictionaries(st.sampled_from(["de", "en", "fr"]), st.integers(1, 9).map(float)),
)  # fmt: skip


IDENTITY = {
    "shard": "0123456789abcdef",
    "file": "f",
    "size": 1,
    "version": "m",
    "start": 0,
    "span": 0,
    "last": True,
}


def example(emojis: int, by_weekday: list[int], by_language: dict[str, int], longest: float) -> ReceiptWithMore:
    return ReceiptWithMore(
        **IDENTITY,  # type: ignore[arg-type]
        emojis=emojis,
        by_weekday=by_weekday,
        by_language=by_language,
        longest={"de": longest},
    )


def test_a_new_counter_travels_from_the_receipt_to_the_totals() -> None:
    published, fresh = example(2, [1, 2], {"de": 3}, 7.0), example(5, [1, 1, 4], {"de": 1, "en": 2}, 6.0)
    sink = pa.BufferOutputStream()
    pq.write_table(receipts_table([published, fresh], arrow_schema(ReceiptWithMore)), sink)
    table = pq.read_table(sink.getvalue())
    assert table.schema.field("by_weekday").type == pa.list_(pa.int64())
    totals = TotalsWithMore().plus_table(table)
    assert (totals.emojis, totals.by_weekday, totals.by_language) == (7, [2, 3, 4], {"de": 4, "en": 2})
    assert totals.longest == {"de": 7.0}


@settings(deadline=None)
@given(st.lists(receipts, max_size=6), st.integers(0, 6))
def test_totals_are_the_same_one_by_one_and_by_table_and_merged(done: list[ReceiptWithMore], cut: int) -> None:
    before, single = TotalsWithMore(), TotalsWithMore()
    for receipt in done[:cut]:
        before = before.plus(receipt)
    for receipt in done:
        single = single.plus(receipt)
    tables = [receipts_table(part, arrow_schema(ReceiptWithMore)) for part in (done[:cut], done[cut:])]
    assert TotalsWithMore().plus_table(tables[0]).plus_table(tables[1]) == single
    assert before.merged(TotalsWithMore().plus_table(tables[1])) == single
    assert all(number >= 0 for number in single.numbers())


def test_adding_a_receipt_leaves_earlier_totals_as_they_were() -> None:
    one = example(2, [1, 2], {"de": 3}, 7.0)
    before = TotalsWithMore().plus(one)
    copy = TotalsWithMore(**asdict(before))
    before.plus(one)
    before.plus_table(receipts_table([one], arrow_schema(ReceiptWithMore)))
    assert before == copy


def test_receipts_and_totals_have_the_same_counters_and_a_column_each() -> None:
    assert merge_rules(Receipt) == merge_rules(Totals)
    assert len(merge_rules(Receipt)) > 20
    assert {f.name for f in fields(Receipt) if MERGE not in f.metadata} == {*RECEIPTS.names[:12]} == {
        "shard", "file", "size", "version", "start", "last", "span", "read_error",
        "part", "part_row", "rejects_part", "rejects_row",
    }  # fmt: skip
    assert set(RECEIPTS.names) == {f.name for f in fields(Receipt)}
    assert [column.name for column in RECEIPTS if column.nullable] == ["read_error", "rejects_part"]


def test_a_counter_of_a_type_without_a_column_type_is_refused() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Odd(Receipt):
        words: set[str] = field(default_factory=set, metadata=SUM)

    with pytest.raises(KeyError, match="set"):
        arrow_schema(Odd)


def test_totals_name_a_bounded_number_of_unreadable_files_and_count_all() -> None:
    """Millions of broken files must not fill the driver's memory, nor the manifest; their names are others' as well."""
    single, merged, table = Totals(), Totals(), []
    for number in range(3 * NAMED_FILES):
        name = f"/in/{number // 2}\x1b[2J\n.gz"  # two stretches of each file
        one = Receipt(**IDENTITY | {"file": name}, read_error="x\n" * 1000, rows_in=1)  # type: ignore[arg-type]
        table.append(one)
        single, merged = single.plus(one), merged.merged(Totals().plus(one))
    assert single == merged == Totals().plus_table(receipts_table(table))
    assert (len(single.unreadable), single.read_errors) == (NAMED_FILES, 3 * NAMED_FILES)
    assert next(iter(single.unreadable)) == "/in/0\\x1b[2J\\n.gz"
    assert all(text.isprintable() and len(text) <= 300 for pair in single.unreadable.items() for text in pair)
