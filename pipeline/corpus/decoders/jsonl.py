"""JSONL: a line is a JSON object in UTF-8, as RFC 8259 has it; blank lines are none.

What JSON leaves to its readers, and Python's reader decides silently, is a reject here: two values of one name, NaN and
Infinity, numbers that float64 would change.
"""

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import NoReturn

from pipeline.corpus.decoders.fields import MISSING, Path, fields_towards, value_at
from pipeline.corpus.decoders.lines import Line, Lines
from pipeline.corpus.decoders.raw import FileFormatError
from pipeline.errors import one_line
from pipeline.rejects import MAX_DETAIL_CHARACTERS, Reason, Reject

EXACT_DIGITS = 15
"""Significant decimal digits that float64 keeps, whatever they are."""


def jsonl_rows(lines: Lines, columns: list[str]) -> Iterator[tuple[list[object], int]]:
    """Yield the values of each row and its bytes; raise FileFormatError for one JSON document over several lines."""
    _refuse_document(lines)
    for line, value in _parsed(lines):
        if isinstance(value, Reject):
            yield [value] * len(columns), _bytes_of(line)
        else:
            found = (value_at(value, name) for name in columns)
            values = [_missing(name) if each is MISSING else each for name, each in zip(columns, found, strict=True)]
            yield values, _bytes_of(line)


def jsonl_columns(lines: Lines, names: list[str], rows: int, size: int) -> list[Path]:
    """Return the columns of the first rows, up to this many rows and bytes, in the order in which they occur.

    Where one of `names` may mean a field of an object, the fields of that object are among them.

    Raises FileFormatError if not one of these lines is a JSON object.
    """
    _refuse_document(lines)
    found: dict[Path, object] = {}
    objects = 0
    problem: Reject | None = None
    for number, (line, value) in enumerate(_parsed(lines), 1):
        if isinstance(value, Reject):
            problem = problem or value
        else:
            objects += 1
            found |= fields_towards(value, names, _object)
        size -= _bytes_of(line)
        if number == rows or size < 0:
            break
    if problem is not None and not objects:
        raise FileFormatError(f"its lines are no JSON objects: {problem.detail}")
    return list(found)


def _object(value: object) -> dict[str, object] | None:
    return value if isinstance(value, dict) else None


def _parsed(lines: Lines) -> Iterator[tuple[Line, dict[str, object] | Reject]]:
    for line in lines:
        if isinstance(line, Reject):
            yield line, line
        elif line.strip():  # a blank line is no record, here and in every other reader of JSONL
            yield line, parse_json(line)


def parse_json(line: bytes) -> dict[str, object] | Reject:
    """Parse a line; a number in it that float64 would change is a `Reject` in its place."""
    try:
        value = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        return Reject(Reason.INVALID_UTF8, one_line(error, limit=MAX_DETAIL_CHARACTERS))
    except (ValueError, RecursionError) as error:
        return Reject(Reason.INVALID_JSON, one_line(error, limit=MAX_DETAIL_CHARACTERS))
    if not isinstance(value, dict):
        return Reject(Reason.INVALID_JSON, f"the line holds {type(value).__name__}, not an object")
    return value


def _refuse_document(lines: Lines) -> None:
    """Raise FileFormatError if the file is one JSON document: an array, or an object over several lines."""
    bracket = lines.head.lstrip()[:1]
    if bracket in (b"[", b"{"):
        first, second = _first_lines(lines)
        if first == b"{":
            raise FileFormatError("it is one JSON object over several lines; write an object a line")
        if bracket == b"[" and _begins_array(first, second):
            raise FileFormatError("it is a JSON array; write an object a line")


def _begins_array(first: bytes | None, second: bytes | None) -> bool:
    """Return whether a file whose first line begins with a bracket is an array, and the line not merely a bad row of JSONL."""
    if first is None or second is None or first == b"[" or first.endswith(b","):
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return isinstance(parse_json(second), Reject)
    return False


def _first_lines(lines: Lines) -> tuple[bytes | None, bytes | None]:
    """Return the first two lines that are not blank, without white space around them, and leave them to be read.

    None stands for a line that is too long, and for one that is not there.
    """
    taken: list[Line] = []
    while len(taken) < 2 and (line := lines.next()) is not None:
        taken += [line] if isinstance(line, Reject) or line.strip() else []
    lines.put_back(taken)
    first, second, *_ = [line.strip() if isinstance(line, bytes) else None for line in taken] + [None, None]
    return first, second


def _bytes_of(line: Line) -> int:
    """Return the bytes that a line takes in memory."""
    return len(line) if isinstance(line, bytes) else 0


def _missing(name: str) -> Reject:
    return Reject(Reason.MISSING_COLUMN, f"the row has no '{name}'")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object; raise ValueError if two of its values have one name."""
    made = dict(pairs)
    if len(made) < len(pairs):
        name = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"several values of '{name}'")
    return made


def _number(literal: str) -> float | Reject:
    """Return a number with a point or an exponent, unless float64 holds another number in its stead."""
    value = float(literal)
    if len(literal) <= EXACT_DIGITS and "e" not in literal and "E" not in literal:
        return value
    try:
        exact = math.isfinite(value) and Decimal(repr(value)) == Decimal(literal)
    except ArithmeticError:  # an exponent beyond what Decimal knows
        exact = False
    return value if exact else Reject(Reason.NOT_TEXT, f"float64 has no number {literal[:40]}")


def _no_json(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_number, parse_constant=_no_json)
