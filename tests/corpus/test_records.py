"""Records by the rules of their formats: nothing is swallowed or joined, and one bad record costs itself."""

import csv
import gzip
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.decoders.delimited import parse_record
from pipeline.corpus.decoders.jsonl import parse_json
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import read_shards
from pipeline.errors import UserError
from pipeline.rejects import Reject

Row = tuple[int, str | None, str | None]


def read(path: Path, content: bytes, columns: Columns | None = None) -> tuple[list[Row], str | None]:
    """Write a file and read it; return number, text and reason of every row, and why it cannot be read further."""
    path.write_bytes(content)
    (file,) = list_inputs(str(path)).files
    rows: list[Row] = []
    error = None
    for shard in read_shards(file, columns or Columns(text="text")):
        rows += [(row["row"], row["text"], None) for row in shard.rows.to_pylist()]
        rows += [(row["row"], None, row["reason"]) for row in shard.rejects.to_pylist()]
        error = shard.read_error or error
    assert [row for row, _, _ in sorted(rows)] == [*range(len(rows))]
    return sorted(rows), error


BAD, COUNT = "invalid_csv", "wrong_field_count"
CSV = {
    "a text that ends with an inch mark": ('1,"TV 55""\n2,"never again"\n3,good\n', [BAD, "never again", "good"]),
    "the same, text first": ('"TV 55"",1\n"never again",2\n"good",3\n', None),
    "two such texts": ('1,"TV 55""\n2,"TV 42""\n3,good\n', [BAD, BAD, "good"]),
    "a quote in an unquoted field": ('1,say "hi"\n2,a 5" pipe\n3,good\n', [BAD, BAD, "good"]),
    "text after a closing quote": ('1,"a"b\n2,"a" \n3,good\n', [BAD, BAD, "good"]),
    "a space before a quote": ('1, "a"\n2,good\n', [BAD, "good"]),
    "quotes of Spark": ('1,"it is \\"good\\""\n2,"a \\"b\\", c"\n3,good\n', [BAD, BAD, "good"]),
    "quotes of Spark over lines": ('1,"a \\"b\\" c\nof one, two, three\nend"\n2,good\n', [BAD, "good"]),
    "a quote that is never closed": ('1,a\n2,"b\n3,c\n4,d\n', ["a", BAD, "c", "d"]),
    "one at the end": ('1,a\n2,"b', ["a", BAD]),
    "a text of many lines, cut off": ('1,a\n2,"b\nso it went\nand on, and on, and on\n', ["a", BAD]),
    "a text of many lines": ('1,"a\nb, c\n""d""\n\ne"\n2,good\n', ['a\nb, c\n"d"\n\ne', "good"]),
    "line ends inside quotes": ('1,"a\r\nb\rc"\r\n2,good\r\n', ["a\r\nb\rc", "good"]),
    "a text of many lines with a quote too many": ('1,"a\nbe it said\n"so" and\nend"\n2,good\n', [BAD, "good"]),
    "too many fields": ("1,a,b\n2\n3,good\n", [COUNT, COUNT, "good"]),
    "too many fields over lines": ('1,"a\nb",c\n3,good\n', [COUNT, "good"]),
    "empty fields": (',""\n"",x\n', ["empty_text", "x"]),
    "a lone carriage return ends a record": ("1,a\r2,b\r3,c", ["a", "b", "c"]),
    "NUL bytes": ("1,a\0b\n2,good\n", ["not_text", "good"]),
}


@pytest.mark.parametrize("what", CSV)
def test_csv_is_read_by_rfc_4180_and_a_bad_record_costs_itself(what: str, tmp_path: Path) -> None:
    content, expected = CSV[what]
    header = "text,id\n" if expected is None else "id,text\n"
    rows, error = read(tmp_path / "a.csv", f"{header}{content}".encode())
    assert error is None
    assert [text or reason for _, text, reason in rows] == (expected or [BAD, "never again", "good"])


@given(
    records=st.lists(st.lists(st.text('a",\n\r é', max_size=6), min_size=2, max_size=3), max_size=8), crlf=st.booleans()
)
def test_what_a_strict_writer_writes_comes_back(
    records: list[list[str]], crlf: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\r\n" if crlf else "\n", quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text", "more"], *([*record, "x"][:3] for record in records)])
    rows, error = read(tmp_path_factory.mktemp("csv") / "a.csv", sink.getvalue().encode())
    assert error is None
    assert [text for _, text, _ in rows] == [record[1] if record[1].strip() else None for record in records]


@given(line=st.text('a",', max_size=12))
def test_a_record_is_what_a_strict_reader_takes_it_for_or_a_reject(line: str) -> None:
    """Python's strict reader still takes a quote inside an unquoted field for text; apart from that they agree."""
    fields = parse_record(line)
    try:
        (strict,) = csv.reader([line], strict=True) if line else ([""],)
    except csv.Error:
        strict = None
    if isinstance(fields, Reject):
        assert strict is None or any('"' in field for field in strict)
    else:
        assert fields == strict


@given(
    texts=st.lists(st.text("ab, ", min_size=1, max_size=5).filter(str.strip), min_size=3, max_size=9),
    where=st.integers(0, 8),
    position=st.integers(0, 4),
)
def test_a_stray_quote_anywhere_costs_one_record(
    texts: list[str], where: int, position: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where %= len(texts)
    spoiled = texts[where][:position] + '"' + texts[where][position:]
    lines = [f'{row},"{spoiled if row == where else text}"\n' for row, text in enumerate(texts)]
    rows, error = read(tmp_path_factory.mktemp("stray") / "a.csv", ("id,text\n" + "".join(lines)).encode())
    assert error is None
    assert [text for _, text, _ in rows] == [None if row == where else text for row, text in enumerate(texts)]


WIDE = "хороший отель\r\nгрубый персонал\r\nочень холодно\r\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.txt.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("text", [WIDE, "plain ascii\nof two lines\n", "ascii"])
def test_wide_encodings_are_no_rows(name: str, encoding: str, text: str, tmp_path: Path) -> None:
    header = {"csv": "text\n", "tsv": "text\n"}.get(name[2:5], "")
    body = "".join(json.dumps({"text": line}) + "\n" for line in text.splitlines()) if "jsonl" in name else text
    content = (header + body).encode(encoding)
    rows, error = read(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    assert [text for _, text, _ in rows if text is not None] == []
    if encoding in ("utf-16", "utf-32"):
        assert rows == []
        assert f"it is {encoding.upper()}, by its first bytes" in str(error)
    elif encoding.startswith("utf-16") and len(text) > 5:
        assert "it looks like UTF-16 without a byte order mark" in str(error)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_lines_end_and_begin_as_they_may(name: str, end: str, start: str, tmp_path: Path) -> None:
    lines = ['{"text": "a"}', '{"text": "b"}'] if name == "a.jsonl" else ["a", "b"]
    header = [] if name in ("a.txt", "a.jsonl") else ["text"]
    for last in ("", end):
        content = start + end.join([*header, *lines]) + last
        assert read(tmp_path / name, content.encode()) == ([(0, "a", None), (1, "b", None)], None)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"x\n", mtime=0), "gzip"),
        (pa.compress(b"x\n" * 99, codec="zstd", asbytes=True), "zstd"),
        (b"BZh91AY&SY\x01", "bzip2"),
        (b"\xfd7zXZ\x00\x00", "xz"),
        (b"PK\x03\x04\x14", "a zip archive"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"ARROW1\x00\x00", "an Arrow file"),
        (b"%PDF-1.7\n", "PDF"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv.gz"])
def test_a_file_under_a_wrong_name_is_said_to_be_what_it_is(
    name: str, content: bytes, kind: str, tmp_path: Path
) -> None:
    packed = gzip.compress(content) if name.endswith("gz") else content
    rows, error = read(tmp_path / name, packed)
    assert (rows, error) == ([], f"its content is {kind}, not lines of text; name it after what it is")
    if "txt" not in name:
        with pytest.raises(UserError, match=f"its content is {kind}"):
            resolve_columns(list_inputs(str(tmp_path)).files, Columns(text="text"))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst"])
@pytest.mark.parametrize(("content", "cause"), [(b"", "it is empty"), (b"plain\n", "it is no (gzip|zstd) file")])
def test_what_is_named_compressed_and_is_not_is_unreadable(
    name: str, content: bytes, cause: str, tmp_path: Path
) -> None:
    rows, error = read(tmp_path / name, content)
    assert rows == []
    assert re.match(cause, str(error))


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '[\n {"text": "a"},\n {"text": "b"}\n]\n',
        '\n\n[{"text": "a"},\n{"text": "b"}]',
        '[\n{"text": "a"}\n,\n{"text": "b"}\n]',
        json.dumps([{"text": "a" * (9 << 20)}]),
        json.dumps([{"text": "a"}] * 3, indent=2),
    ],
)
def test_a_json_array_is_said_to_be_one(content: str, tmp_path: Path) -> None:
    rows, error = read(tmp_path / "a.json", content.encode())
    assert (rows, error) == ([], "it is a JSON array; write an object a line")
    with pytest.raises(UserError, match="it is a JSON array; write an object a line"):
        resolve_columns(list_inputs(str(tmp_path)).files, Columns(text="text"))


def test_one_json_object_over_lines_is_said_to_be_one(tmp_path: Path) -> None:
    rows, error = read(tmp_path / "a.json", json.dumps({"a": {"text": "x"}}, indent=1).encode())
    assert (rows, error) == ([], "it is one JSON object over several lines; write an object a line")


def test_lines_that_are_no_objects_are_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"a"\n"b"\n')
    with pytest.raises(UserError, match="its lines are no JSON objects: the line holds str, not an object"):
        resolve_columns(list_inputs(str(tmp_path)).files, Columns(text="text"))


@pytest.mark.parametrize("first", ["[1]", "[oops", '["a", "b"]'])
def test_a_bad_first_line_is_no_array(first: str, tmp_path: Path) -> None:
    rows, error = read(tmp_path / "a.jsonl", f'{first}\n{{"text": "a"}}\n'.encode())
    assert (rows, error) == ([(0, None, "invalid_json"), (1, "a", None)], None)


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ('{"text": "a", "text": "b"}', "several values of 'text'"),
        ('{"text": "a", "k": {"x": 1, "x": 2}}', "several values of 'x'"),
        ('{"text": "a", "k": NaN}', "NaN is no JSON"),
        ('{"text": "a", "k": [-Infinity]}', "-Infinity is no JSON"),
        ('{"text": "a", "k": ' + "1" * 5000 + "}", "Exceeds the limit"),
        ('{"text": "a"} x', "Extra data"),
        ("{'text': 'a'}", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ('{"text": "a\tb"}', "Invalid control character"),
    ],
)
def test_what_json_forbids_or_leaves_open_is_a_reject(line: str, detail: str) -> None:
    problem = parse_json(line.encode())
    assert isinstance(problem, Reject)
    assert problem.reason == "invalid_json"
    assert detail in problem.detail


NUMBERS = {
    "1.5": "1.5",
    "1.10": "1.1",
    "-0.0": "-0.0",
    "1e5": "100000.0",
    "12345678901234567890": "12345678901234567890",
    "0.1": "0.1",
    "1e400": None,
    "-1e400": None,
    "1e-400": None,
    "0.1000000000000000055511151231257827": None,
    "12345678901234567.89": None,
    "1e99999999999999999999": None,
}


@pytest.mark.parametrize("nested", ["{}", "[{}]", '{{"x": [{}]}}'])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_that_float64_would_change_costs_the_row_that_keeps_it(
    number: str, nested: str, tmp_path: Path
) -> None:
    line = f'{{"text": "a", "k": {nested.format(number)}}}\n'.encode()
    assert read(tmp_path / "a.jsonl", line) == ([(0, "a", None)], None)
    (file,) = list_inputs(str(tmp_path / "a.jsonl")).files
    (shard,) = read_shards(file, Columns(text="text", keep=pa.schema([("k", pa.string())])))
    kept = NUMBERS[number]
    if kept is None:
        assert shard.rejects["reason"].to_pylist() == ["bad_kept_value"]
    else:
        assert shard.rows["keep.k"].to_pylist() == [nested.format(kept)]


def test_row_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    lines = [b'{"text": "a"}', b"", b"broken", b"  ", b'{"text": "\xff"}', b'{"text": "b"}']
    rows, _ = read(tmp_path / "a.jsonl", b"\n".join(lines))
    assert rows == [(0, "a", None), (1, None, "invalid_json"), (2, None, "invalid_utf8"), (3, "b", None)]
    rows, _ = read(tmp_path / "a.txt", b"a\n\n\0\0\0\0\n\xff\nb")
    assert rows == [
        (0, "a", None),
        (1, None, "empty_text"),
        (2, None, "not_text"),
        (3, None, "invalid_utf8"),
        (4, "b", None),
    ]
