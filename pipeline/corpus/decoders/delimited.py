"""CSV and TSV: records of fields, the first of which names the columns.

CSV is read by RFC 4180, to the letter: a quote begins a field or is doubled inside a quoted one, and a closing quote ends its
field. What breaks that is a reject. A quote too many opens a field that takes further lines along: where those are records by
themselves, they are read as such, so that a bad record costs itself and no other one.

A TSV record is a line, as registered with IANA: quotes mean nothing.
"""

import re
from collections.abc import Iterator, Sequence

from pipeline.corpus.decoders import raw
from pipeline.corpus.decoders.lines import Line, Lines, content_of, nul_problem
from pipeline.corpus.decoders.raw import FileFormatError, check_header, too_long
from pipeline.rejects import Reason, Reject

Fields = list[str]

FIELD = re.compile(r'"((?:[^"]++|"")*+)"(?=,|\Z)|([^",]*+)(?=,|\Z)')
OPENED = re.compile(r'"(?:[^"]++|"")*+')
JUDGED_LINES = 100
"""Lines after a quote too many by which it is decided whether they are records of their own."""


def delimited_rows(lines: Lines, columns: list[str], *, tabs: bool) -> Iterator[tuple[list[object], int]]:
    """Yield the values of each record and its bytes; raise FileFormatError unless the header names each column once."""
    header = read_header(lines, tabs=tabs)
    check_header(header, columns)
    indices = [header.index(name) for name in columns]
    for fields, size in _Records(lines, len(header), tabs=tabs):
        if isinstance(fields, Reject):
            yield [fields] * len(columns), size
        else:
            yield [_checked(fields[index]) for index in indices], size


def read_header(lines: Lines, *, tabs: bool) -> list[str]:
    """Read the names of the columns, none of an empty file; raise FileFormatError if the first record is broken."""
    fields, _ = next(iter(_Records(lines, None, tabs=tabs)), ([], 0))
    if isinstance(fields, Reject):
        raise FileFormatError(f"its header cannot be read: {fields.detail}")
    return fields


def parse_record(text: str) -> Fields | Reject:
    """Split a CSV record: `parse_record('1,"a ""b"", c"')` is `["1", 'a "b", c']`."""
    fields: Fields = []
    start = 0
    while (found := FIELD.match(text, start)) is not None:
        quoted, plain = found.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        if found.end() == len(text):
            return fields
        start = found.end() + 1
    opened = OPENED.match(text, start)
    if opened is None:
        problem = "a quote stands inside an unquoted field"
    else:
        problem = "text follows a closing quote" if opened.end() < len(text) else "a quote is opened and never closed"
    return Reject(Reason.INVALID_CSV, f"field {len(fields) + 1}: {problem}")


class _Records:
    """Records of a file, each with its bytes; a `Reject` stands for one that breaks the rules."""

    def __init__(self, lines: Lines, width: int | None, *, tabs: bool) -> None:
        """Read records that should have `width` fields; None, for the header, is any number."""
        self._lines, self._width, self._tabs = lines, width, tabs

    def __iter__(self) -> Iterator[tuple[Fields | Reject, int]]:
        for line in self._lines:
            if isinstance(line, Reject):
                yield line, 0
            elif content := content_of(line):  # a blank line is no record
                # With an odd number of quotes a field is open at the end of the line, or there is one too many.
                over_lines = not self._tabs and content.count(b'"') % 2 == 1
                yield self._over_lines(line) if over_lines else (self._record(content), len(line))

    def _record(self, content: bytes) -> Fields | Reject:
        """Return the fields of a record, or why it is none."""
        problem = nul_problem(content)
        if problem is not None:
            return problem
        text = content.decode("utf-8", "surrogateescape")  # so that invalid bytes cost their own record
        if self._tabs or '"' not in text:
            fields: Fields | Reject = text.split("\t" if self._tabs else ",")
        else:
            fields = parse_record(text)
        if isinstance(fields, Reject) or self._width in (None, len(fields)):
            return fields
        return Reject(Reason.WRONG_FIELD_COUNT, f"{len(fields)} fields where the header has {self._width}")

    def _over_lines(self, first: bytes) -> tuple[Fields | Reject, int]:
        """Read a record up to the next line with an odd number of quotes, or reject its first line, or what it took along."""
        taken, size, closed = self._take_to_quote(len(first))
        if size > raw.MAX_ROW_BYTES:
            fields: Fields | Reject = too_long("a quote is open, and the record so far", size)
        else:
            fields = self._record(content_of(first + b"".join(line for line in taken if isinstance(line, bytes))))
        if isinstance(fields, list):
            return fields, size
        # Of a single column nothing tells whether its lines are records. A text that long is more likely than a lost quote.
        broken = fields.reason is not Reason.WRONG_FIELD_COUNT
        if self._are_records(taken, broken=broken) and (self._width != 1 or size <= raw.MAX_ROW_BYTES):
            self._lines.put_back(taken)
            return self._record(content_of(first)), len(first)
        while not closed and (line := self._lines.next()) is not None:
            closed = _has_odd_quotes(line)
        return fields, size

    def _take_to_quote(self, size: int) -> tuple[list[Line], int, bool]:
        """Take the lines of a record that has `size` bytes so far: return them, its bytes, and whether its quote is closed."""
        taken: list[Line] = []
        closed = False
        while not closed and size <= raw.MAX_ROW_BYTES and (line := self._lines.next()) is not None:
            taken.append(line)
            size += len(line) if isinstance(line, bytes) else raw.MAX_ROW_BYTES
            closed = _has_odd_quotes(line)
        return taken, size, closed

    def _are_records(self, lines: Sequence[Line], *, broken: bool) -> bool:
        """Return whether most of these lines, as far as they are judged, have as many fields as a record of this file.

        With `broken`, so may lines whose quotes are broken.
        """
        judged = [content_of(line) for line in lines[:JUDGED_LINES] if isinstance(line, bytes)]
        judged = [content for content in judged if content]
        return 2 * sum(self._is_like_record(content, broken=broken) for content in judged) > len(judged)

    def _is_like_record(self, content: bytes, *, broken: bool) -> bool:
        if self._width is None:
            return False
        fields = parse_record(content.decode("utf-8", "surrogateescape"))
        if isinstance(fields, list):
            return len(fields) == self._width
        return broken and content.count(b",") + 1 >= self._width  # some of its commas may be text


def _has_odd_quotes(line: Line) -> bool:
    return isinstance(line, bytes) and line.count(b'"') % 2 == 1


def _checked(field: str) -> str | Reject:
    """Return a field, or a reject if its bytes were no UTF-8, which surrogates stand for."""
    if not field.isascii():
        try:
            field.encode()
        except UnicodeEncodeError:
            return Reject(Reason.INVALID_UTF8, "the field holds bytes that are no UTF-8")
    return field
