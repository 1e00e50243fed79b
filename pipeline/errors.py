"""The two exceptions that jobs turn into one line: the command is wrong, or the storage failed."""


class UserError(Exception):
    """Wrong command or input. Jobs print the message as one line, without a traceback, and end with exit code 2."""


class StorageError(Exception):
    """A disk or an object store failed. The message names path and cause; jobs print it and end with exit code 1."""


class RefusedError(StorageError):
    """The storage works, and says no: permission denied, no such bucket. Trying again does not help."""
