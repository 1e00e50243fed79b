"""The Delta table of an output folder: `_delta_log/`, which names the very parts that the manifest names; no row is copied.

    table = table_of("s3://bucket/out", "delta", log=print)
    with Ledger(folder, fingerprint, follow=table.follow) as ledger: ...

The manifest is the truth, and the table follows it: `follow` compares the two, and commits what differs as one version, of
files added and files removed. It runs after a manifest is in and before the parts that it replaced are removed. So a run that
is killed leaves the table at the version before, whole, and the next one does what is missing; where nothing differs it does
nothing. Of two drivers that commit at once one is refused, as the version after the one that it read is there: it reads both
again. The table is read before the manifest, so a later version never stands for an earlier manifest.
"""

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import InputError, StorageError, printable, require
from pipeline.output.manifest import AGAIN, PART, DamagedNoteError, Manifest, read_manifest
from pipeline.output.parts import MANIFEST, PART_PATTERN
from pipeline.output.receipt_log import batches
from pipeline.storage.base import Entry, is_remote, translate_errors
from pipeline.storage.local import flush_folder
from pipeline.storage.locate import object_store_options, storage_of
from pipeline.tables.delta_schema import delta_schema, needs_timestamps_without_zone

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable
    from deltalake.transaction import AddAction, RemoveAction

LOG_FOLDER = "_delta_log"
LOG_ENTRY = re.compile(r"\d{20}\.(json|checkpoint\..*)")
"""Name of a version in the log; a file that a killed writer left half written is called otherwise."""
APPLICATION = "offramp"
"""Name under which a table's transactions note that they are ours."""
COMMIT_TRIES = 10
"""A try fails only if another driver has committed meanwhile."""
FEATURES = {"timestampNtz"}
"""What readers of our tables may have to know."""
UNFIT_FOR_URLS = re.compile(r"[%?#\\]|//")
"""What deltalake 1.6 takes for something else in the name of a folder, or of a prefix on S3."""
MOST_STATS = 200
"""Files whose sizes are asked for one by one; those of more come from a listing, which on S3 has 1,000 in a request."""
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class GonePartError(DamagedNoteError):
    """Raised for a part that a manifest names and that is not there."""


def has_table(folder: str) -> bool:
    """Return whether a folder holds a Delta table, whosever it is."""
    return any(map(LOG_ENTRY.fullmatch, storage_of(folder).names(f"{folder}/{LOG_FOLDER}", "0")))


def table_of(folder: str, kind: str | None, log: Callable[[str], None]) -> "DeltaLog | None":
    """Return the table that a run keeps: the one that is there, or one of the kind that is asked for; None without either.

    Raises MissingPackageError or InputError if it cannot be kept.
    """
    if kind is None and not has_table(folder):
        return None
    if kind is None and find_spec("deltalake") is None:
        what = "the Delta table there would fall behind: pip install 'offramp[delta]', or remove it"
        raise InputError("output", f"{folder}/{LOG_FOLDER}: {what}")
    require("deltalake", extra="delta")
    location = folder.partition("://")[2] or folder
    if found := UNFIT_FOR_URLS.search(location):
        raise InputError("output", f"{folder}: the name of a Delta table's folder cannot have {found[0]!r} in it")
    if not is_remote(folder):
        _check_links(folder)
    return DeltaLog(folder, log)


def _check_links(folder: str) -> None:
    """Raise InputError for a disk that has no hard links, by which deltalake commits a version that is not there yet."""
    probe = f"{folder}/.probe.{uuid.uuid4().hex[:8]}.tmp"
    link = f"{probe}.link"
    try:
        with open(probe, "xb"):
            os.link(probe, link)
    except OSError as error:
        cause = error.strerror or str(error)
        raise InputError("output", f"{folder}: cannot hold a Delta table, which takes hard links: {cause}") from error
    finally:
        for path in (probe, link):
            with contextlib.suppress(OSError):
                os.unlink(path)


@dataclass(frozen=True, slots=True)
class DeltaLog:
    """The log of the Delta table over an output folder, which is made if there is none."""

    folder: str
    log: Callable[[str], None]
    """Takes a line on every version that is committed."""

    def check(self, schema: pa.Schema) -> None:
        """Raise InputError naming a column of the parts that the table cannot have."""
        delta_schema(schema)

    def catch_up(self, *, overwrite: bool) -> None:
        """Bring the table to what was published before this run, which may have been killed before it did so itself.

        What is damaged stays for the run to make good. Without a table, results that the run is to overwrite get none.
        """
        if overwrite and not has_table(self.folder):
            return
        try:
            self.follow()
        except DamagedNoteError as error:
            if isinstance(error, GonePartError) and is_remote(self.folder) and not overwrite:
                raise  # there nobody looks for parts, and nobody makes it again

    def follow(self) -> None:
        """Commit a version that names exactly the published parts, if the last one does not; do nothing without a manifest.

        Raises InputError if the table is somebody else's, and StorageError if it cannot be written.
        """
        for _ in range(COMMIT_TRIES):
            table = self._open()
            manifest = read_manifest(self.folder)
            if manifest is None:
                return
            try:
                if self._bring(table, manifest, _rows_by_part(manifest)):
                    return
            except DamagedNoteError:
                now = read_manifest(self.folder)
                if now is None or now.version == manifest.version:
                    raise  # else another driver has published meanwhile
        raise StorageError(f"{self.folder}/{LOG_FOLDER}: others commit all the time")

    def _open(self) -> "DeltaTable | None":
        """Read the table's last version; None if there is none. Raise InputError if others than we have written to it."""
        if not has_table(self.folder):
            return None
        from deltalake import DeltaTable

        try:
            with self._translate_errors():
                table = DeltaTable(self.folder, storage_options=object_store_options(self.folder))
                protocol, ours = table.protocol(), table.transaction_version(APPLICATION)
        except StorageError as error:
            instead = (
                f"the manifest stands: if the log is damaged, remove {LOG_FOLDER}, and the same command makes it again"
            )
            raise StorageError(f"{error}; {instead}") from error
        if ours is None:
            what = f"is a Delta table of another program, which would fall behind; remove {LOG_FOLDER}"
            raise InputError("output", f"{self.folder}: {what}, or choose another folder")
        others = {*(protocol.reader_features or ())} - FEATURES
        if others or protocol.min_reader_version == 2:  # which is that of column mapping, before there were features
            raise self._refusal(f"{', '.join(sorted(others)) or 'column mapping'} was turned on")
        return table

    def _refusal(self, what: str) -> InputError:
        again = f"the manifest stands; remove {LOG_FOLDER}, and the same command makes the table again"
        return InputError("output", f"{self.folder}/{LOG_FOLDER}: {what} by another program; {again}")

    def _bring(self, table: "DeltaTable | None", manifest: Manifest, rows: Mapping[str, int]) -> bool:
        """Bring the table to a manifest, of which these are the parts; return False if another driver was faster."""
        from deltalake import Schema

        columns = delta_schema(manifest.schema)
        with self._translate_errors():
            schema = Schema.from_arrow(columns)
        if table is None:
            return self._create(schema, manifest, rows)
        active = self._active(table)
        added, removed = rows.keys() - active.keys(), active.keys() - rows.keys()
        # Other columns come with a generation of their own, all of whose parts are new.
        other_columns = active.keys() == removed and schema != table.schema()
        if not (added or removed or other_columns):
            return True
        if needs_timestamps_without_zone(columns) and not table.protocol().reader_features:
            self._add_feature(table)
            return False
        actions: list[AddAction | RemoveAction] = [*self._adds({part: rows[part] for part in sorted(added)})]
        if not other_columns:  # else the library itself removes what is there
            actions += self._removes({part: active[part] for part in sorted(removed)})
        mode, version = "overwrite" if other_columns else "append", table.version() + 1
        properties = _properties(manifest, version)
        with self._translate_errors():
            if not _committed(
                lambda: table.create_write_transaction(actions, mode, schema, commit_properties=properties)
            ):
                return False
        self._flush(version)
        self.log(f"Delta table: version {version}, parts added: {len(added):,}, removed: {len(removed):,}")
        return True

    def _create(self, schema: object, manifest: Manifest, rows: Mapping[str, int]) -> bool:
        """Make the table; return False if another driver has made it meanwhile."""
        from deltalake.exceptions import DeltaError
        from deltalake.transaction import create_table_with_add_actions

        adds = self._adds(rows)
        storage_of(self.folder).make_folder(f"{self.folder}/{LOG_FOLDER}")
        with self._translate_errors():
            try:
                create_table_with_add_actions(
                    self.folder,
                    schema,
                    adds,
                    storage_options=object_store_options(self.folder),
                    commit_properties=_properties(manifest, 0),
                )
            except DeltaError:
                if has_table(self.folder):
                    return False
                raise
        self._flush(0)
        self.log(f"Delta table: version 0, parts added: {len(adds):,}")
        return True

    def _active(self, table: "DeltaTable") -> dict[str, int]:
        """Return the size in bytes of each file that the table names; raise InputError if others have added or removed some."""
        from deltalake import DeltaTable

        active = self._files(table)
        if foreign := next((path for path in active if not re.fullmatch(PART_PATTERN, path)), None):
            raise self._refusal(f"{foreign} was put in")
        with self._translate_errors():
            ours = table.transaction_version(APPLICATION)
            if ours == table.version():
                return active
            before = DeltaTable(self.folder, version=ours, storage_options=object_store_options(self.folder))
        if lost := min(self._files(before).keys() - active.keys(), default=None):  # rows that were deleted on purpose
            raise self._refusal(f"{lost} was taken out")
        return active

    def _files(self, table: "DeltaTable") -> dict[str, int]:
        """Return the size in bytes of each file that a version of the table names."""
        with self._translate_errors():
            files = pa.table(table.get_add_actions())
        return dict(zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True))

    def _adds(self, rows: Mapping[str, int]) -> "list[AddAction]":
        """Make the actions that add parts, with these numbers of rows; raise DamagedNoteError if one is not there."""
        from deltalake.transaction import AddAction

        entries = self._entries(rows)
        for part in rows:
            if part not in entries:
                instead = "" if is_remote(self.folder) else AGAIN
                raise GonePartError(f"{self.folder}/{part}", f"is gone, though {MANIFEST} names it", instead)
        return [
            AddAction(
                path=part,
                size=entries[part].size,
                partition_values={},
                modification_time=int(entries[part].modified * 1000),
                data_change=True,
                stats=json.dumps({"numRecords": count}),
            )
            for part, count in rows.items()
        ]

    def _removes(self, sizes: Mapping[str, int]) -> "list[RemoveAction]":
        """Make the actions that remove parts of these sizes in bytes."""
        from deltalake.transaction import RemoveAction

        now = int(time.time() * 1000)
        return [RemoveAction(part, True, now, size, {}) for part, size in sizes.items()]

    def _entries(self, parts: Collection[str]) -> dict[str, Entry]:
        """Return the files of those parts that are there."""
        storage, root = storage_of(self.folder), f"{self.folder}/"
        if len(parts) > MOST_STATS:
            found = ((entry.path.removeprefix(root), entry) for entry in storage.walk(self.folder))
            return {name: entry for name, entry in found if name in parts}
        return {part: entry for part in parts if (entry := storage.stat(f"{root}{part}"))}

    def _add_feature(self, table: "DeltaTable") -> None:
        """Give the table timestamps without a time zone, in a version of its own, which changes no row."""
        from deltalake import TableFeatures

        feature = TableFeatures.TimestampWithoutTimezone
        with self._translate_errors():
            _committed(lambda: table.alter.add_feature(feature, allow_protocol_versions_increase=True))

    def _flush(self, version: int) -> None:
        """Wait until a version is on the disk: the parts that it removed go after that."""
        if is_remote(self.folder):
            return
        path = f"{self.folder}/{LOG_FOLDER}/{version:020}.json"
        with translate_errors(path):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            flush_folder(os.path.dirname(path))

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn the errors of deltalake into a StorageError that names the log and the cause."""
        from deltalake.exceptions import DeltaError

        try:
            yield
        except (DeltaError, OSError, ValueError) as error:
            cause = " ".join(ESCAPES.sub("", str(error)).split())
            raise StorageError(f"{self.folder}/{LOG_FOLDER}: {printable(cause)}") from error


def _rows_by_part(manifest: Manifest) -> dict[str, int]:
    """Return the published parts with their numbers of rows; raise DamagedNoteError if their list is gone or damaged."""
    rows: dict[str, int] = {}
    for table in batches([manifest.read_shards()], [PART, "rows_out"]):
        for part, count in zip(table[PART].to_pylist(), table["rows_out"].to_pylist(), strict=True):
            rows[part] = rows.get(part, 0) + count
    return rows


def _properties(manifest: Manifest, version: int) -> "CommitProperties":
    """Say of a version that it is ours, and which list of shards it stands for; the library is not to try it again."""
    from deltalake import CommitProperties, Transaction

    return CommitProperties(
        custom_metadata={f"{APPLICATION}.shards": manifest.facts["shards"]["path"]},
        max_commit_retries=0,  # it would add the same files to what another driver has made of the table
        app_transactions=[Transaction(APPLICATION, version)],
    )


def _committed(commit: Callable[[], None]) -> bool:
    """Commit a version; return False if another driver has committed it."""
    from deltalake.exceptions import CommitFailedError

    try:
        commit()
    except CommitFailedError:
        return False
    return True
