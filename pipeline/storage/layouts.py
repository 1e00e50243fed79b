"""Folders whose own rules say which of their files count, known by the names in them.

The plain listing of such a folder has rows that were deleted or rewritten, or that no job has finished. We do not follow those
rules, so the folder is refused by name, and never read as if it were a plain one.
"""

import re
from collections.abc import Callable, Collection

TABLES = [
    ("an Apache Hudi table", {".hoodie"}),
    ("an Apache Hudi table", {".hoodie_partition_metadata"}),
    ("an Apache Paimon table", {"snapshot", "manifest", "schema"}),
    ("a transactional table of Hive", {"_orc_acid_version"}),
    ("what a stream of Spark wrote", {"_spark_metadata"}),
]
"""Kinds of folders, and names that are all in them."""
ICEBERG_METADATA = re.compile(r".*\.metadata\.json(\.gz)?|version-hint\.text")
HIVE_TRANSACTION = re.compile(r"(base|delta|delete_delta)_\d{7,}.*")
OUR_PART = re.compile(r"part-[0-9a-f]{16}(\.g\d+)?\.parquet")
OUR_MANIFEST = "_manifest.json"
OUR_TABLE = "_delta_log"
"""Log of a table over our parts, which names those that our manifest names too."""
DELTA = "is a Delta Lake table, whose log says which files count; name the folder of the table, as a whole"
OUR_RESULTS = (
    "holds results of offramp, whose manifest says which parts count; classify, label and distill take it as a whole"
)
OUR_RUN = "holds a run of offramp that has not ended; the command that began it goes on with it"


def layout_of(names: Collection[str], inside: Callable[[str], Collection[str]]) -> str | None:
    """Say what a folder is in whose listing not every file counts, and what to do about it; None for a plain folder.

    `names` are those of its files and folders, and `inside(name)` are those in one of its folders.
    """
    there = {*names}
    if {OUR_MANIFEST, OUR_TABLE} <= there and any(map(OUR_PART.fullmatch, there)):
        there.remove(OUR_TABLE)
    return _table(there, inside) or _unfinished(there) or _saved(there)


def is_saved(names: Collection[str]) -> bool:
    """Return whether a folder is what `save_to_disk` of datasets wrote, whose state.json says which files count."""
    return "state.json" in names and _has_arrow(names)


def _has_arrow(names: Collection[str]) -> bool:
    return any(name.endswith(".arrow") for name in names)


def _table(names: set[str], inside: Callable[[str], Collection[str]]) -> str | None:
    if "_delta_log" in names:
        return DELTA
    kind = next((kind for kind, signs in TABLES if signs <= names), None)
    if "metadata" in names and any(map(ICEBERG_METADATA.fullmatch, inside("metadata"))):
        kind = "an Apache Iceberg table"
    elif any(map(HIVE_TRANSACTION.fullmatch, names)):
        kind = "a transactional table of Hive"
    return kind and f"is {kind}, whose metadata says which files count; export its rows to plain files"


def _unfinished(names: set[str]) -> str | None:
    """Tell of a job that writes into the folder; Databricks notes the begin and the end of each by its number."""
    started, committed = (
        {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        for prefix in ("_started_", "_committed_")
    )
    left = "_temporary" if "_temporary" in names else None
    left = left or next((f"_started_{job}" for job in sorted(started - committed)), None)
    if left is None:
        return None
    return f"is being written by a job of Spark or Hadoop, or was left half written; see to that, and remove {left}"


def _saved(names: set[str]) -> str | None:
    if "dataset_dict.json" in names:
        return "is what datasets' save_to_disk wrote of several splits; name the folder of one of them"
    if "dataset_info.json" in names and "state.json" not in names and _has_arrow(names):
        return "is a cache of datasets, or lacks the state.json of its save_to_disk, which says which files count"
    if not any(map(OUR_PART.fullmatch, names)):
        return None
    if OUR_MANIFEST in names:
        return OUR_RESULTS
    return OUR_RUN if {"_receipts", "_attempts"} & names else None
