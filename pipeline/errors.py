"""The exceptions that jobs turn into one line.

    UserError, InputError(field, message)   see models.errors; exit code 2
    └── MissingPackageError                 an optional package is not installed; exit code 2
    StorageError                            a disk or an object store failed; exit code 1
    └── RefusedError                        it works but refuses the request, so that a retry cannot help; exit code 2
    DoesNotFitError                     the cluster is too small for the wanted actors; exit code 1

Some are defined where they arise: `corpus.formats.FileFormatError` (a file cannot be read further; becomes a reject),
`bulk.attempts.BrokenStageError` (a stage fails on every row; exit code 1), `serving.queue.QueueFullError` (status 429).
"""

from importlib.util import find_spec

from models.errors import InputError, UserError

__all__ = [
    "DoesNotFitError",
    "InputError",
    "MissingPackageError",
    "RefusedError",
    "StorageError",
    "UserError",
    "is_failure",
    "one_line",
    "printable",
    "require",
]


class MissingPackageError(UserError):
    """Raise where an optional package is not installed; the message names the extra of offramp that brings it.

    `MissingPackageError("matplotlib", "report")` reads "matplotlib is not installed: pip install 'offramp[report]'".
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.package, self.extra = package, extra

    def __str__(self) -> str:
        return f"{self.package} is not installed: pip install 'offramp[{self.extra}]'"


def require(*packages: str, extra: str) -> None:
    """Raise MissingPackageError for the first of these packages, which an extra brings, that is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingPackageError(package, extra)


class StorageError(Exception):
    """Raised when a disk or an object store fails; the message names path and cause."""


class RefusedError(StorageError):
    """Raised when the storage works but refuses a request: permission denied, no such bucket."""


class DoesNotFitError(Exception):
    """Raise when the cluster lacks the resources for the wanted actors. Exit code 1: elsewhere the command may be right."""


MAX_LINE = 2000
"""Characters of a line that quotes others: enough for any usual path and cause, and no screen is drowned by a hostile one."""


def printable(text: str, limit: int = MAX_LINE) -> str:
    r"""Write a text that is not ours as one line of at most `limit` characters, for terminals, logs, pages and notes.

    What does not print is escaped: control codes, line breaks, marks that turn the direction of writing, and lone surrogates,
    which stand for bytes that are no UTF-8. A line break becomes a backslash and an n.
    """
    head = text[: limit + 1]
    if not head.isprintable():
        head = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return head if len(head) <= limit else f"{head[: limit - 3]}..."


def one_line(error: BaseException, *, with_type: bool = False, limit: int = MAX_LINE) -> str:
    """Write the message of an exception on one line of at most `limit` characters, by `printable`.

    `with_type` puts the name of the exception's class in front; an exception without a message is that name alone.
    """
    message, name = " ".join(str(error).split()), type(error).__name__
    return printable(f"{name}: {message}" if with_type and message else message or name, limit)


def is_failure(error: BaseException) -> bool:
    """Return whether something failed, an Exception or a panic in Rust, and not someone asked to stop."""
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"
