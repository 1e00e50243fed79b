"""The exceptions that jobs turn into one line.

    UserError, InputError(field, message)   see models.errors; exit code 2
    StorageError                            a disk or an object store failed; exit code 1
    └── RefusedError                        it works and says no, so trying again does not help; exit code 2

Beside them, each where it arises: `corpus.formats.FileFormatError` (a file cannot be read further; becomes a reject),
`bulk.attempts.BrokenStageError` (a stage fails on every row; exit code 1), `cluster.resources.DoesNotFitError` (the cluster
is too small; exit code 1), `serving.queue.QueueFullError` (status 429), `benchmark.peers.MissingPeerError` (not installed).
"""

from models.errors import InputError, UserError

__all__ = ["InputError", "RefusedError", "StorageError", "UserError"]


class StorageError(Exception):
    """Raise when a disk or an object store fails; the message names path and cause."""


class RefusedError(StorageError):
    """Raise when the storage works and says no: permission denied, no such bucket."""
