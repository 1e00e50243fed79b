"""Errors that the caller can correct: the command, a file or a model is wrong.

UserError                        the message is one line that names what is wrong; jobs print it and exit with code 2
├── InputError(field, message)   one argument or setting has a wrong value; jobs name the option of that name
├── UnsupportedModelError        a checkpoint of a family, or with a shape, that offramp cannot run
└── UnsupportedPrecisionError    the device cannot compute in the requested precision
"""


class UserError(Exception):
    """Raised for a wrong command, file or model; the message is one line that names it and what to do about it."""


class InputError(UserError, ValueError):
    """Raised for a wrong value of one argument or setting.

    `field` is its name in Python, and the message continues it: `InputError("speed", "must be in [0, 1], not 2.0")`, or
    `InputError("output", "/data/out: cannot be written")`. A message names other fields in back-ticks, and jobs write those
    as options too.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field, self.message = field, message

    def __str__(self) -> str:
        return f"{self.field} {self.message}"


class UnsupportedModelError(UserError, ValueError):
    """Raised for a checkpoint that offramp cannot run."""


class UnsupportedPrecisionError(UserError, ValueError):
    """Raised where the device cannot compute in the requested precision."""
