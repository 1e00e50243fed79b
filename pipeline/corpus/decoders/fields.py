"""Fields inside structs by dotted names: `doc.text` is the field `text` of the column `doc`.

A column, or a field, whose own name holds the dot comes before a field inside of a struct, at every level.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.decoders.raw import FileFormatError

Path = tuple[str, ...]
"""Names of a column and of the fields in it, from the outside: `("doc", "text")`."""
V = TypeVar("V")


def splits(name: str) -> Iterator[tuple[str, str | None]]:
    """Yield the ways to read a name, the longest first: ("a.b", None), ("a", "b") for "a.b"; None is a name to its end."""
    yield name, None
    end = name.rfind(".")
    while end >= 0:
        yield name[:end], name[end + 1 :]
        end = name.rfind(".", 0, end)


def fields_towards(
    columns: Mapping[str, V], names: list[str], inner: Callable[[V], Mapping[str, V] | None]
) -> dict[Path, V]:
    """Return all columns, and of those with fields, as `inner` tells, the fields beside what these names may mean."""
    found: dict[Path, V] = {(column,): value for column, value in columns.items()}

    def look_into(fields: Mapping[str, V], above: Path, name: str) -> None:
        for head, rest in splits(name):
            within = inner(fields[head]) if rest is not None and head in fields else None
            if rest is not None and within is not None:
                found.update({(*above, head, field): value for field, value in within.items()})
                look_into(within, (*above, head), rest)

    for name in names:
        look_into(columns, (), name)
    return found


def find_field(fields: Mapping[Path, object], name: str, above: Path = ()) -> Path | None:
    """Return what a name means, by what `fields_towards` returned; None if there is no such column or field."""
    for head, rest in splits(name):
        path = (*above, head)
        if path in fields:
            found = path if rest is None else find_field(fields, rest, path)
            if found is not None:
                return found
    return None


def what_is_there(fields: Mapping[Path, object], name: str, above: Path = ()) -> str:
    """Describe what there is in place of a name that means nothing: `it has id, doc`, or `doc has lang, text`."""
    if above and not any(len(path) > len(above) and path[: len(above)] == above for path in fields):
        kind = fields[above]
        return f"{'.'.join(above)} {'has no fields' if kind is None else f'is of type {kind}, which has no fields'}"
    for head, rest in splits(name):
        if rest is not None and (*above, head) in fields:
            return what_is_there(fields, rest, (*above, head))
    names = [path[-1] for path in fields if path[:-1] == above]
    return f"{'.'.join(above) or 'it'} has {', '.join(names) or 'none'}"


def fields_of(kind: pa.DataType) -> dict[str, pa.DataType] | None:
    """Return the fields of a struct; None for other types."""
    if isinstance(kind, pa.BaseExtensionType):
        return fields_of(kind.storage_type)
    if not pa.types.is_struct(kind):
        return None
    return {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}


def fields_in(schema: pa.Schema, names: list[str]) -> dict[Path, pa.DataType | None]:
    """Return the columns of a file with their types, and the fields of structs that these names lead into."""
    return {**fields_towards(dict(zip(schema.names, schema.types, strict=True)), names, fields_of)}


def paths_of(schema: pa.Schema, names: list[str]) -> list[Path]:
    """Return what these names mean in a file; raise FileFormatError unless each means one column or field."""
    fields = fields_in(schema, names)
    paths = []
    for name in names:
        path = find_field(fields, name)
        if path is None:
            raise FileFormatError(f"no column '{name}'; {what_is_there(fields, name)}")
        _check_only_one(schema, path, name)
        paths.append(path)
    return paths


def _check_only_one(schema: pa.Schema, path: Path, name: str) -> None:
    """Raise FileFormatError if a name on a path is that of several columns or fields."""
    fields = list(schema)
    for step in path:
        same = [field for field in fields if field.name == step]
        if len(same) > 1:
            raise FileFormatError(f"several columns '{name}'")
        kind = same[0].type
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        fields = [kind.field(number) for number in range(kind.num_fields)]


def column_at(batch: pa.RecordBatch, path: Path) -> pa.Array:
    """Return a column, or a field inside of one, which is null where a struct around it is."""
    array = batch.column(batch.schema.get_field_index(path[0]))
    for step in path[1:]:
        array = array.storage if isinstance(array, pa.ExtensionArray) else array
        array = pc.struct_field(array, [array.type.get_field_index(step)])
    return array


MISSING = object()
"""Stands for a value that an object does not have."""


def value_at(row: Mapping[str, object], name: str) -> object:
    """Return a value of a JSON object by its name; None inside of a null, MISSING where there is no such value."""
    for head, rest in splits(name):
        if head in row:
            value = row[head]
            if rest is not None and isinstance(value, dict):
                value = value_at(value, rest)
            elif rest is not None and value is not None:
                continue
            if value is not MISSING:
                return value
    return MISSING
