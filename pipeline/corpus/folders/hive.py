"""Partitions by Hive's naming: `lang=de/date=2026-01-01/a.parquet` has the columns lang and date, the same for all its rows.

The rules are those that Spark, pyarrow and DuckDB have in common: names and values are percent-decoded, one name stands for
null, and folders count from the input on. Values are text, since the three guess types differently.
"""

from urllib.parse import unquote_to_bytes

NULL = "__HIVE_DEFAULT_PARTITION__"
"""The value that stands for null."""

Partitions = tuple[tuple[str, str | None], ...]
"""Names and values of the partitions that a file lies in, from the outermost folder: `(("lang", "de"), ("date", None))`."""


def partitions_of(name: str) -> Partitions:
    """Return the partitions of a file by its name, relative to the input.

    `partitions_of("a%20b=1/x.csv")` is `(("a b", "1"),)`.
    """
    folders = (folder.partition("=") for folder in name.split("/")[:-1])
    return tuple(
        (_decoded(key), None if value == NULL else _decoded(value)) for key, equals, value in folders if key and equals
    )


def _decoded(text: str) -> str:
    """Decode percent signs; what they make no UTF-8 of stays as it stands."""
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return text
