"""Columns of the input: what each of them means, and their check against the first file that can be read."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.corpus.decoders.plain import plain_type
from pipeline.corpus.decoders.raw import FileFormatError
from pipeline.corpus.formats import file_columns, is_text
from pipeline.corpus.kept import can_carry, kept_type
from pipeline.corpus.listing import InputFile
from pipeline.errors import InputError, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the input's columns by meaning: `Columns(text="review", id="key", label="stars")`."""

    text: str = "text"
    pair: str | None = None
    """Column of the second text, for a model of text pairs."""
    id: str | None = None
    """Column that names the rows; without it a row is named `<file>:<row>`."""
    label: str | None = None
    """Column of true labels."""
    keep: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """Columns that travel with their rows, the label's among them, and their types; filled in by `resolve_columns`."""

    @property
    def names(self) -> list[str]:
        """All columns to read, each once."""
        return list(dict.fromkeys(name for name in (self.text, self.pair, self.id, *self.keep.names) if name))


def resolve_columns(
    files: Sequence[InputFile],
    columns: Columns,
    *,
    keep: Sequence[str] = (),
    results: Collection[str] = (),
    recorded: pa.Schema | None = None,
) -> Columns:
    """Return the columns with the types of those that travel with their rows: the label's and all that `keep` names.

    Raises InputError, naming file, column and type, unless the first readable file has all of them and `results`, the output's
    own columns, none of `keep`. Later files may differ; their rows become rejects. No file is opened where `recorded`, the
    schema of parts that are written already, has the types.
    """
    travelling = list(dict.fromkeys([*keep, *filter(None, [columns.label])]))
    if recorded is not None:
        return replace(columns, keep=pa.schema([recorded.field(name) for name in travelling]))
    clash = [name for name in keep if name in results]
    if clash:
        raise InputError("keep", f"{clash[0]}: the output has a column of that name itself")
    file, types = _first_readable(files)
    _check_columns(columns, keep, file.path, types)
    return replace(columns, keep=pa.schema([(name, kept_type(types[name])) for name in travelling]))


def _check_columns(columns: Columns, keep: Sequence[str], path: str, types: dict[str, pa.DataType | None]) -> None:
    """Raise InputError for the first column that a file has not, or that should hold text and does not."""
    texts = [("text_column", columns.text), ("pair_column", columns.pair)]
    others = [("id_column", columns.id), ("label_column", columns.label), *(("keep", name) for name in keep)]
    for argument, name in [*texts, *others]:
        if name is not None and name not in types:
            raise InputError(argument, f"{name}: {path} has no such column; it has {', '.join(types) or 'none'}")
    for argument, name in texts:
        kind = types[name] if name is not None else None
        if kind is not None and not is_text(kind):
            raise InputError(argument, f"{name}: in {path} it is of type {kind}, not text")
    if columns.id is not None and pa.types.is_nested(plain_type(types[columns.id] or pa.string())):
        raise InputError("id_column", f"{columns.id}: in {path} it is of type {types[columns.id]}, which names no row")
    for argument, name in others[1:]:
        if name is not None and not can_carry(kept_type(types[name])):
            raise InputError(argument, f"{name}: in {path} it is of type {types[name]}, which Parquet cannot hold")


def _first_readable(files: Sequence[InputFile]) -> tuple[InputFile, dict[str, pa.DataType | None]]:
    """Return the first file that has columns, or the last one, with its columns; raise UserError if none can be read."""
    for file in files:
        try:
            columns = file_columns(file)
        except FileFormatError as error:
            problem = f"{file.path}: {error}"
            continue
        if columns or file is files[-1]:
            return file, columns
    raise UserError(f"no input file can be read; the last one: {problem}" if len(files) > 1 else problem)
