"""Delta Lake tables as input: the files that the newest version of the log names, with the values of their partitions.

What the log says beyond that is refused by name where the plain files would not say it: rows that deletion vectors take out,
columns that are stored under other names, and features that nobody here knows.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from pipeline.corpus.folders.hive import Partitions
from pipeline.errors import InputError, RefusedError, one_line, printable
from pipeline.storage.locate import object_store_options, storage_of

if TYPE_CHECKING:
    from deltalake import DeltaTable

PLAIN_FEATURES = {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}
"""Features by which files hold what they would hold without them."""
CHECKED_FEATURES = {"deletionVectors", "columnMapping"}
"""Features that a table may have and not use."""
UNFIT_FOR_URLS = re.compile(r"[%?#\\]|//")
"""What deltalake 1.6 takes for something else in the name of a folder, or of a prefix on S3."""
COMMIT = re.compile(r"\d{20}\.json")
"""Name of a version in the log."""
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A file of the newest version of a table."""

    name: str
    """Its path, relative to the table's folder."""
    partitions: Partitions


def live_files(folder: str) -> tuple[int, list[LiveFile]]:
    """Return the newest version of the table in a folder, and its files; raise InputError if they cannot be told."""
    where = printable(folder)
    if find_spec("deltalake") is None:
        raise InputError(
            "input",
            f"{where}: is a Delta Lake table, whose log says which files count; to read it pip install 'offramp[delta]', "
            "or export its rows to plain files",
        )
    if found := UNFIT_FOR_URLS.search(folder.partition("://")[2] or folder):
        raise InputError("input", f"{where}: the name of a Delta table's folder cannot have {found[0]!r} in it")
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        table = DeltaTable(folder, storage_options=object_store_options(folder))
        _check_features(where, table)
        return table.version(), [*_files(where, table)]
    except (DeltaError, OSError, ValueError, RefusedError) as error:
        cause = ESCAPES.sub("", one_line(error))
        raise InputError("input", f"{where}: the log of the Delta table cannot be read: {cause}") from error


def _check_features(where: str, table: "DeltaTable") -> None:
    """Raise InputError for what plain files would not say."""
    features = {str(feature) for feature in table.protocol().reader_features or ()}
    if unknown := sorted(features - PLAIN_FEATURES - CHECKED_FEATURES):
        raise InputError("input", f"{where}: the Delta table has {unknown[0]}, which is not read; export its rows")
    mapping = table.metadata().configuration.get("delta.columnMapping.mode") or "none"
    if mapping != "none":
        raise InputError(
            "input", f"{where}: the Delta table has column mapping ({mapping}), which is not read; export its rows"
        )
    if "deletionVectors" in features and pa.table(table.deletion_vectors()).num_rows:
        raise InputError(
            "input",
            f"{where}: rows of the Delta table are deleted by deletion vectors, which are not read; "
            "REORG TABLE ... APPLY (PURGE) rewrites their files",
        )


def _files(where: str, table: "DeltaTable") -> Iterator[LiveFile]:
    actions = pa.table(table.get_add_actions())
    keys = table.metadata().partition_columns
    values = dict.fromkeys(keys, pa.nulls(len(actions), pa.string()))
    if keys:
        partition = actions["partition"].combine_chunks()
        values = {key: partition.field(key).cast(pa.string()) for key in keys}
    columns = [values[key].to_pylist() for key in keys]
    for number, path in enumerate(actions["path"].to_pylist()):
        if path.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path) or ".." in path.split("/"):
            raise InputError("input", f"{where}: the Delta table has files of other folders; export its rows")
        yield LiveFile(unquote(path), tuple((key, column[number]) for key, column in zip(keys, columns, strict=True)))


def check_rewritten(folder: str, fresh: Collection[str], done: Collection[str]) -> None:
    """Raise InputError if a fresh file of a table took the place of files that have results: rows would have them twice.

    So it is after OPTIMIZE, UPDATE, MERGE, an overwriting, and a DELETE of some rows of a file. Paths are absolute. Versions
    that the log has no entry for any more, as it was cleaned up, are not known.
    """
    log, taken = f"{folder}/_delta_log", {*done}
    for name in sorted(name for name in storage_of(folder).names(log, "0") if COMMIT.fullmatch(name)):
        found = storage_of(folder).read(f"{log}/{name}")
        actions = [json.loads(line) for line in (found[0] if found else b"").splitlines() if line.strip()]
        added, removed = (
            {f"{folder}/{unquote(action[kind]['path'])}" for action in actions if kind in action}
            for kind in ("add", "remove")
        )
        if removed & taken:
            taken |= added
    if rewritten := sorted(taken & {*fresh} - {*done}):
        raise InputError(
            "input",
            f"{printable(rewritten[0])}: the Delta table has put it in the place of files whose rows have results already; "
            "start over (overwrite)",
        )
