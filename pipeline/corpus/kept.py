"""Kept values: they come back from the output as they went in, or their row is a reject.

A column has one type in all files, that of the first one. Where a later file has another, each value is converted with checks,
converted back, and compared: `fit(pa.array([1.0, 1.5]), pa.int64())` is `([1, None], [1])`. Values of another meaning are not
converted at all, whatever Arrow allows: a number is no time, a time without a zone is no instant, and 1 is not true.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, InvalidOperation

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.decoders.plain import plain_type
from pipeline.rejects import Reason, Reject

BoolArray = npt.NDArray[np.bool_]

UNREADABLE = Reject(Reason.NOT_TEXT, "the value cannot be read")
"""Stands for a value that Python cannot hold, such as a date in the year 30,000."""
UNFIT = (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError, RecursionError)
"""What conversions raise for a value that does not fit."""


def kept_type(kind: pa.DataType | None) -> pa.DataType:
    """Return the type that a column has in all files: text if the first file has no type for it, and always a plain one."""
    return pa.string() if kind is None or pa.types.is_null(kind) else plain_type(kind)


def can_carry(kind: pa.DataType) -> bool:
    """Return whether the output can hold values of this type."""
    try:
        pq.write_table(pa.table({"k": pa.array([], kind)}), io.BytesIO())
    except (*UNFIT, OSError):  # of bytes of a fixed length of none
        return False
    return True


def fit(values: pa.Array | Sequence[object], kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Convert a column to a type; return it, null where a value would not come back as it went in, and those rows."""
    array, fits_B = _fit_array(values, kind) if isinstance(values, pa.Array) else _fit_values(values, kind)
    if not fits_B.all():
        array = array.take(pa.array(np.arange(len(array)), mask=~fits_B))
    return array, np.flatnonzero(~fits_B).tolist()


def _fit_values(values: Sequence[object], kind: pa.DataType) -> tuple[pa.Array, BoolArray]:
    """Convert values of JSON or CSV: together those of one Python type, which Arrow would bring to a type of its own choice."""
    by_type: dict[type, list[int]] = {}
    for row, value in enumerate(values):
        by_type.setdefault(type(value), []).append(row)
    if len(by_type) == 1 or _is_text(kind):
        return _fit_alike(values, kind)
    array, fits_B = _joined([_fit_alike([values[row] for row in rows], kind) for rows in by_type.values()], kind)
    back = np.argsort(np.concatenate([*by_type.values()])) if by_type else np.zeros(0, np.int64)
    return array.take(pa.array(back)), fits_B[back]


def _fit_alike(values: Sequence[object], kind: pa.DataType) -> tuple[pa.Array, BoolArray]:
    """Convert values together if they all come back, else one by one."""
    all_fit = np.ones(len(values), np.bool_)
    try:
        if _is_text(kind):
            return pa.array([_as_text(value) for value in values], kind), all_fit
        if not isinstance(next(iter(values), None), list | dict):
            return _fit_array(pa.array(values), kind)
        made = pa.array(values, kind)
        back = made.to_pylist()
    except UNFIT:
        return _joined([_fit_one(value, kind) for value in values], kind)
    # As text, 1 and 1.0 and True are not the same.
    others = [row for row, value in enumerate(values) if repr(back[row]) != repr(value)]
    array, fits_B = _joined([(made, all_fit), *(_fit_one(values[row], kind) for row in others)], kind)
    rows = np.arange(len(values))
    rows[others] = len(values) + np.arange(len(others))
    return array.take(pa.array(rows)), fits_B[rows]


def _fit_one(value: object, kind: pa.DataType) -> tuple[pa.Array, BoolArray]:
    try:
        if _is_text(kind):
            return pa.array([_as_text(value)], kind), np.array([True])
        return _fit_array(pa.array([value]), kind)
    except UNFIT:
        return pa.nulls(1, kind), np.array([False])


def _as_text(value: object) -> object:
    """Write numbers, booleans, lists and objects as JSON, and leave all other values as they are."""
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return value


def _fit_array(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, BoolArray]:
    """Convert an array; what raises as a whole is halved until the values that do not fit stand alone."""
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), kind), np.ones(len(values), np.bool_)
    if not _means_the_same(values.type, kind):
        return pa.nulls(len(values), kind), values.is_null().to_numpy(zero_copy_only=False)
    values = values.cast(_without_null(values.type, kind))
    convert = _converter(values.type, kind)
    done: list[tuple[pa.Array, BoolArray]] = []
    waiting = [values]
    while waiting:
        part = waiting.pop()
        if pa.types.is_nested(part.type):  # Arrow looks at all that a list's child holds, beyond the slice too
            part = part.take(pa.array(np.arange(len(part))))
        try:
            done.append(convert(part, kind))
        except UNFIT as error:
            if len(part) <= 1 or isinstance(error, pa.ArrowNotImplementedError):  # which no value has a part in
                done.append((pa.nulls(len(part), kind), part.is_null().to_numpy(zero_copy_only=False)))
            else:
                waiting += [part.slice(len(part) // 2), part.slice(0, len(part) // 2)]
    return _joined(done, kind)


def _joined(pieces: Sequence[tuple[pa.Array, BoolArray]], kind: pa.DataType) -> tuple[pa.Array, BoolArray]:
    if len(pieces) == 1:
        return pieces[0]
    made = [array for array, _ in pieces] or [pa.nulls(0, kind)]
    return pa.concat_arrays(made), np.concatenate([np.zeros(0, np.bool_), *(fits for _, fits in pieces)])


Convert = Callable[[pa.Array, pa.DataType], tuple[pa.Array, BoolArray]]
"""A conversion of an array, with whether each value comes back; it may raise UNFIT for all of them."""


def _converter(source: pa.DataType, kind: pa.DataType) -> Convert:
    if source == kind:
        return _validated
    if _is_text(source) and not _is_text(kind):
        return _parsed
    return _written_as_json if pa.types.is_nested(source) and _is_text(kind) else _there_and_back


def _validated(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, BoolArray]:
    """Take values of the same type; a string inside of a list may yet be no UTF-8."""
    values.validate(full=True)
    return values, np.ones(len(values), np.bool_)


def _there_and_back(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, BoolArray]:
    if pa.types.is_integer(values.type) and pa.types.is_decimal(kind):  # Arrow wants room for the largest integer
        made = values.cast(pa.decimal256(76, kind.scale)).cast(kind)
    else:
        made = values.cast(kind)
    made.validate(full=True)
    back = made.cast(values.type)
    if back.equals(values):
        return made, np.ones(len(values), np.bool_)
    return made, _same(back, values)


def _same(back: pa.Array, values: pa.Array) -> BoolArray:
    """Return which values are the same: [B]; NaN is NaN."""
    if pa.types.is_nested(values.type):
        try:
            pairs = zip(back.to_pylist(), values.to_pylist(), strict=True)
            return np.array([repr(one) == repr(other) for one, other in pairs], np.bool_)
        except UNFIT:  # Python cannot hold them
            return np.array([back.slice(row, 1).equals(values.slice(row, 1)) for row in range(len(values))], np.bool_)
    if pa.types.is_float16(values.type):
        back, values = back.cast(pa.float32()), values.cast(pa.float32())
    same = pc.or_(pc.equal(back, values).fill_null(False), pc.and_(back.is_null(), values.is_null()))
    if pa.types.is_floating(values.type):
        same = pc.or_(same, pc.and_(pc.is_nan(values), pc.is_nan(back)).fill_null(False))
    return np.asarray(same.to_numpy(zero_copy_only=False), np.bool_)


def _written_as_json(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, BoolArray]:
    if _has_twins(values.type):
        raise ValueError("two fields have one name, of which Python keeps one")
    texts = [_as_text(value) for value in values.to_pylist()]
    return pa.array(texts, kind), np.ones(len(values), np.bool_)


def _parsed(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, BoolArray]:
    """Parse texts; Arrow's parser is strict with times, and lenient with numbers."""
    texts = values.cast(pa.large_string())
    made = texts.cast(kind)
    if _meaning(kind) not in ("number", "bool"):
        return made, np.ones(len(values), np.bool_)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        same = pc.equal(made.cast(pa.large_string()), texts).fill_null(True)
        return made, same.to_numpy(zero_copy_only=False)
    pairs = zip(texts.to_pylist(), made.to_pylist(), strict=True)
    return made, np.array([text is None or _is_number(text, number) for text, number in pairs], np.bool_)


def _is_number(text: str, number: float | Decimal) -> bool:
    """Return whether a text says this number, and not one that is rounded to it."""
    try:
        return Decimal(text) == (number if isinstance(number, Decimal) else Decimal(repr(number)))
    except InvalidOperation:
        return False


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _has_twins(kind: pa.DataType) -> bool:
    """Return whether a type has a struct with two fields of one name."""
    fields = [kind.field(number) for number in range(kind.num_fields)]
    return len({f.name for f in fields}) < len(fields) or any(_has_twins(f.type) for f in fields)


MEANINGS: dict[str, Sequence[Callable[[pa.DataType], bool]]] = {
    "bool": [pa.types.is_boolean],
    "number": [pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal],
    "date": [pa.types.is_date],
    "time": [pa.types.is_time],
    "duration": [pa.types.is_duration],
    "struct": [pa.types.is_struct],
    "map": [pa.types.is_map],
    "list": [pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list],
}


def _meaning(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "date" if kind.tz is None else "instant"
    return next((meaning for meaning, tests in MEANINGS.items() if any(test(kind) for test in tests)), "text")


def _means_the_same(source: pa.DataType, kind: pa.DataType) -> bool:
    """Return whether values of one type can be values of another: of the same meaning, or text on one side."""
    if pa.types.is_null(source) or source == kind:
        return True
    if _meaning(source) != _meaning(kind):
        return "text" in (_meaning(source), _meaning(kind))
    return all(_means_the_same(one, other) for one, other in _inner(source, kind))


def _without_null(source: pa.DataType, kind: pa.DataType) -> pa.DataType:
    """Return a source's type with those of the target where it has none: the empty list of JSON is a list of anything."""
    if pa.types.is_null(source):
        return kind
    if pa.types.is_struct(source) and pa.types.is_struct(kind):
        fields = [source.field(number) for number in range(source.num_fields)]
        numbers = [kind.get_field_index(f.name) for f in fields]
        pairs = zip(fields, numbers, strict=True)
        return pa.struct(
            [f.with_type(_without_null(f.type, kind.field(number).type)) if number >= 0 else f for f, number in pairs]
        )
    if pa.types.is_list(source) and _meaning(kind) == "list":
        return pa.list_(source.value_field.with_type(_without_null(source.value_type, kind.value_type)))
    return source


def _inner(source: pa.DataType, kind: pa.DataType) -> Iterator[tuple[pa.DataType, pa.DataType]]:
    """Yield the types inside of two nested types that stand for each other."""
    match _meaning(kind):
        case "list":
            yield source.value_type, kind.value_type
        case "map":
            yield source.key_type, kind.key_type
            yield source.item_type, kind.item_type
        case "struct":
            for number in range(kind.num_fields):
                name = kind.field(number).name
                if source.get_field_index(name) >= 0:
                    yield source.field(name).type, kind.field(number).type
