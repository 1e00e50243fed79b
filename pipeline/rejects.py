"""Reasons for which a row, or the rest of a file, cannot be classified."""

from dataclasses import dataclass
from enum import StrEnum

MAX_DETAIL_CHARACTERS = 300
"""Length to which the message of an exception is cut before it becomes the detail of a reject."""


class Reason(StrEnum):
    """Reason of a reject, as it stands in the column `reason`; docs/operations.md explains each to users."""

    NULL_TEXT = "null_text"
    EMPTY_TEXT = "empty_text"
    NOT_TEXT = "not_text"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    INVALID_CSV = "invalid_csv"
    MISSING_COLUMN = "missing_column"
    WRONG_FIELD_COUNT = "wrong_field_count"
    TOO_LONG = "too_long"
    BAD_KEPT_VALUE = "bad_kept_value"
    UNREADABLE_FILE = "unreadable_file"
    TOKENIZE_FAILED = "tokenize_failed"
    CLASSIFY_FAILED = "classify_failed"
    OUT_OF_MEMORY = "out_of_memory"
    KILLED_WORKER = "killed_worker"


@dataclass(frozen=True, slots=True)
class Reject:
    """Why a row or a value cannot be used, such as `Reject(Reason.INVALID_JSON, "Expecting value: line 1 column 1")`."""

    reason: Reason
    detail: str
    """What is wrong, on one line."""
