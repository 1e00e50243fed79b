"""Columns of the input: what each of them means, and their check against the first file that can be read.

A name with dots is a field inside of structs (`doc.text`), unless a column has that name itself: `decoders.fields`. A column
that a folder gives to its files (`lang=de/`) may travel with their rows: `folders.hive`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.corpus.decoders.fields import Path, find_field, splits, what_is_there
from pipeline.corpus.decoders.plain import plain_type
from pipeline.corpus.decoders.raw import FileFormatError
from pipeline.corpus.formats import file_fields, is_text
from pipeline.corpus.kept import can_carry, kept_type
from pipeline.corpus.listing import InputFile
from pipeline.errors import InputError, UserError

UNFIT_FOR_NAMES = frozenset(' ,;{}()=.`"\n\t')
"""Characters that Spark refuses in the name of a column, or that it and DuckDB want quoted."""
MOST_LOOKED_AT = 64
"""Files of a table that are looked into for one that has all columns: each takes a request or two to S3."""


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
    sources: tuple[str, ...] = ()
    """The names that the columns of `keep` have in the input, where any of them has another."""

    @property
    def kept(self) -> Iterator[tuple[pa.Field, str]]:
        """The columns that travel, each with its name in the input."""
        return zip(self.keep, self.sources or self.keep.names, strict=True)

    @property
    def names(self) -> list[str]:
        """All columns to read, each once."""
        sources = self.sources or self.keep.names
        return list(dict.fromkeys(name for name in (self.text, self.pair, self.id, *sources) if name))

    def given(self, file: InputFile) -> dict[str, str | None]:
        """Return what a file's folders give to all its rows; texts and ids are never among it."""
        return {name: value for name, value in file.partitions if name not in (self.text, self.pair, self.id)}

    def names_in(self, file: InputFile) -> list[str]:
        """Return the columns to read of a file: all but those that travel and that its folders give."""
        given = self.given(file)
        return [name for name in self.names if name not in given]


def resolve_columns(
    files: Sequence[InputFile],
    columns: Columns,
    *,
    keep: Sequence[str] = (),
    results: Collection[str] = (),
    recorded: pa.Schema | None = None,
) -> Columns:
    """Return the columns with the types of those that travel with their rows: the label's and all that `keep` names.

    `keep` holds names of the input, `lang`, and may say how they are written, `lang=tongue`; a field of a struct is written
    under its own name, `lang` for `doc.lang`. Raises InputError, naming file, column and type, unless the first readable file
    has all of them, what is written has names that differ from each other and from `results`, the output's own columns, and
    all files have the same folders' columns of these. Later files may differ otherwise; their rows become rejects. No file is
    opened where `recorded`, the schema of parts that are written already, has the types.
    """
    there = recorded.names if recorded is not None else ()  # before names could be chosen, a=b was the name of a column
    kept = [(each, each) if each in there else _parsed(each) for each in dict.fromkeys(keep)]
    sources = list(dict.fromkeys([*(source for source, _ in kept), *filter(None, [columns.label])]))
    given = _given_by_folders(files, [name for name in sources if name not in (columns.text, columns.pair, columns.id)])
    if recorded is not None:
        types = {name: recorded.field(name).type for name in recorded.names}
        travelling = [(source, name or _recorded_name(source, types, kept)) for source, name in kept]
        travelling += [(columns.label, columns.label)] if columns.label else []
        return _with_kept(columns, [(source, name, types[name]) for source, name in travelling])
    file, fields = _first_readable(files, [*columns.names, *sources])
    found = {name: find_field(fields, name) for name in [*columns.names, *sources]}
    _check_columns(columns, [source for source, _ in kept], given, file, fields)
    paths = {source: (source,) if source in given else found[source] or () for source in sources}
    travelling = [(source, name or paths[source][-1]) for source, name in kept]
    _check_names(travelling, results)
    label = [(columns.label, columns.label)] if columns.label else []
    kinds = {source: kept_type(None if source in given else fields[paths[source]]) for source in sources}
    return _with_kept(columns, [(source, name, kinds[source]) for source, name in dict.fromkeys([*travelling, *label])])


def _with_kept(columns: Columns, travelling: list[tuple[str, str, pa.DataType]]) -> Columns:
    """Return columns with those that travel: names in the input, names in the output, types."""
    sources = tuple(source for source, _, _ in travelling)
    keep = pa.schema([(name, kind) for _, name, kind in travelling])
    return replace(columns, keep=keep, sources=sources if [*sources] != keep.names else ())


def source_of(keep: str) -> str:
    """Return the name in the input of a column that is kept: `source_of("lang=tongue")` is `lang`."""
    return _parsed(keep)[0]


def _parsed(keep: str) -> tuple[str, str | None]:
    """Return the name in the input, and the one to write if there is any: the last sign of equality divides the two."""
    source, equals, name = keep.rpartition("=")
    if not equals:
        return keep, None
    if not source or not name:
        raise InputError(
            "keep", f"{keep}: a name is missing beside the =, as in lang=tongue, which writes lang as tongue"
        )
    if UNFIT_FOR_NAMES & {*name} or not name.isprintable():
        raise InputError("keep", f"{keep}: name it by letters, digits and _, so that Spark and DuckDB can")
    return source, name


def _recorded_name(source: str, types: Mapping[str, pa.DataType], kept: list[tuple[str, str | None]]) -> str:
    """Return the name under which parts have a column: its own, or that of a field, and rather one that no other column has."""
    names = [source, *(rest for _, rest in reversed([*splits(source)]) if rest is not None)]
    others = {name or other for other, name in kept if name or other != source}
    return min((name for name in names if name in types), key=lambda name: name in others)


def _check_names(travelling: list[tuple[str, str]], results: Collection[str]) -> None:
    """Raise InputError for a column that would be written under the name of another one, capital letters or not."""
    taken = {name.casefold(): "the output has a column of that name itself" for name in results}
    for source, name in travelling:
        if name.casefold() in taken:
            raise InputError(
                "keep", f"{source}: {taken[name.casefold()]}; write it as another, such as {source}=my_{name}"
            )
        taken[name.casefold()] = f"{source} is written as {name} already"


def _given_by_folders(files: Sequence[InputFile], names: Collection[str]) -> set[str]:
    """Return which of these columns folders give; raise InputError unless they give them to all files, and once to each."""
    counts = [[[key for key, _ in file.partitions].count(name) for name in names] for file in files if file.partitions]
    given = [name for number, name in enumerate(names) if any(count[number] for count in counts)]
    for name in given:
        for file in files:
            keys = [key for key, _ in file.partitions]
            if keys.count(name) != 1:
                where = f"several folders {name}=..." if name in keys else f"no folder {name}=..., as others do"
                raise InputError("keep", f"{name}: {file.path} lies in {where}")
    return {*given}


def _check_columns(
    columns: Columns,
    keep: Sequence[str],
    given: Collection[str],
    file: InputFile,
    fields: Mapping[Path, pa.DataType | None],
) -> None:
    """Raise InputError for the first column that a file has not, or that should hold text and does not."""
    path, folders = file.path, {key for key, _ in file.partitions}
    texts = [("text_column", columns.text), ("pair_column", columns.pair)]
    travelling = [("label_column", columns.label), *(("keep", name) for name in keep)]
    types: dict[str, pa.DataType | None] = dict.fromkeys(given, pa.string())
    for argument, name in [*texts, ("id_column", columns.id), *travelling]:
        if name is None or (name in given and argument in ("label_column", "keep")):
            continue
        found = find_field(fields, name)
        if found is None:
            same = f"; a folder {name}=... names no row, and holds no text" if name in folders else ""
            raise InputError(argument, f"{name}: {path} has no such column{same}; {what_is_there(fields, name)}")
        types[name] = fields[found]
    for argument, name in texts:
        kind = types[name] if name is not None else None
        if kind is not None and not is_text(kind):
            raise InputError(argument, f"{name}: in {path} it is of type {kind}, not text")
    if columns.id is not None and pa.types.is_nested(plain_type(types[columns.id] or pa.string())):
        raise InputError("id_column", f"{columns.id}: in {path} it is of type {types[columns.id]}, which names no row")
    for argument, name in travelling:
        if name is not None and not can_carry(kept_type(types[name])):
            raise InputError(argument, f"{name}: in {path} it is of type {types[name]}, which Parquet cannot hold")


def _first_readable(
    files: Sequence[InputFile], names: list[str]
) -> tuple[InputFile, Mapping[Path, pa.DataType | None]]:
    """Return the first file that has columns, or the last one, with its columns; of a table the first that has all of these.

    Raises UserError if none can be read.
    """
    first, looked_at = None, 0
    for file in files:
        try:
            fields = file_fields(file, names)
        except FileFormatError as error:
            problem = f"{file.path}: {error}"
            continue
        complete = all(find_field(fields, name) or name in dict(file.partitions) for name in names)
        if complete or not file.may_lack_columns:
            if fields or file is files[-1]:
                return file, fields
        elif first is None:
            first = file, fields
        looked_at += 1
        if first is not None and looked_at == MOST_LOOKED_AT:
            break
    if first is not None:
        return first
    raise UserError(f"no input file can be read; the last one: {problem}" if len(files) > 1 else problem)
