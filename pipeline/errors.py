"""The exceptions that jobs turn into one line.

    UserError, InputError(field, message)   see models.errors; exit code 2
    └── MissingPackageError                 an optional package is not installed; exit code 2
    StorageError                            a disk or an object store failed; exit code 1
    └── RefusedError                        it works and says no, so trying again does not help; exit code 2

Beside them, each where it arises: `corpus.formats.FileFormatError` (a file cannot be read further; becomes a reject),
`bulk.quarantine.BrokenStageError` (a stage fails on every row; exit code 1), `cluster.resources.DoesNotFitError` (the cluster
is too small; exit code 1), `serving.queue.QueueFullError` (status 429).
"""

from importlib.util import find_spec

from models.errors import InputError, UserError

__all__ = ["InputError", "MissingPackageError", "RefusedError", "StorageError", "UserError", "require"]


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
    """Raise when a disk or an object store fails; the message names path and cause."""


class RefusedError(StorageError):
    """Raise when the storage works and says no: permission denied, no such bucket."""
