"""Why a row or a value cannot be used."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reject:
    """A value that is no text, and why."""

    reason: str
    detail: str
