"""Which columns of the input mean what, and the checks of them against the first file."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.corpus.formats import FileFormatError, file_columns, is_text
from pipeline.corpus.listing import Corpus, InputFile
from pipeline.errors import InputError, UserError


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the input mean what."""

    text: str
    pair: str | None = None
    id: str | None = None
    keep: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """Columns to carry through, with the type that every part gives them."""

    @property
    def names(self) -> list[str]:
        """All columns to read."""
        return list(dict.fromkeys(name for name in (self.text, self.pair, self.id, *self.keep.names) if name))


def resolve_columns(
    corpus: Corpus, *, text: str, pair: str | None, id_column: str | None, keep: list[str], results: Sequence[str]
) -> Columns:
    """Check the wanted columns against the first readable file; raise UserError naming file, column and type.

    Later files that differ are no error of the command: they land in the rejects, by name.
    """
    clash = [name for name in keep if name in results]
    if clash:
        raise InputError("keep", f"{clash[0]}: the output has a column of that name itself")
    file, there = _first_readable(corpus.files)
    for column, name in (("text_column", text), ("pair_column", pair), ("id_column", id_column)):
        if name is None:
            continue
        if name not in there:
            raise InputError(column, f"{name}: {file.path} has no such column; it has {', '.join(there) or 'none'}")
        kind = there[name]
        if column != "id_column" and kind is not None and not is_text(kind):
            raise InputError(column, f"{name}: in {file.path} it is of type {kind}, not text")
    missing = [name for name in keep if name not in there]
    if missing:
        raise InputError("keep", f"{missing[0]}: {file.path} has no such column; it has {', '.join(there)}")
    return Columns(
        text=text, pair=pair, id=id_column, keep=pa.schema([(name, _kept_type(there[name])) for name in keep])
    )


def _kept_type(kind: pa.DataType | None) -> pa.DataType:
    """Return a type that all files can give a column: text where the first knows none, and no dictionary: those may grow."""
    if kind is None or pa.types.is_null(kind):
        return pa.string()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _first_readable(files: list[InputFile]) -> tuple[InputFile, dict[str, pa.DataType | None]]:
    for file in files:
        try:
            columns = file_columns(file)
        except FileFormatError as error:
            problem = f"{file.path}: {error}"
            continue
        if columns or file is files[-1]:
            return file, columns
    raise UserError(f"no input file can be read; the last one: {problem}")


def columns_of(
    corpus: Corpus,
    recorded: pa.Schema | None,
    *,
    text: str,
    pair: str | None,
    id_column: str | None,
    keep: list[str],
    results: Sequence[str],
) -> Columns:
    """Take the columns as the parts that are there have them, and open nothing; or resolve them, where there are none yet."""
    keep = list(dict.fromkeys(keep))
    if recorded is None:
        return resolve_columns(corpus, text=text, pair=pair, id_column=id_column, keep=keep, results=results)
    return Columns(text=text, pair=pair, id=id_column, keep=pa.schema([recorded.field(name) for name in keep]))
