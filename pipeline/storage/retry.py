"""Whole operations of a storage, tried again as long as their failure may pass.

A client tries single requests again, and knows nothing of a body that breaks off while it is read, of the keys that a batch
has left over, or of a mount that was away between the flush of a file and its rename. So what is repeated here is all of an
operation, from its beginning.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

MAX_WAIT_SECONDS = 20.0
"""Longest wait between two attempts."""


def retried(operation: Callable[[], T], may_pass: Callable[[Exception], bool], waits: Iterable[float]) -> T:
    """Return what an operation returns, trying again after each of `waits` (seconds) while its error may pass.

    Raises the last error. The operation may have happened before its error: it has to be one that can be done twice.
    """
    for wait in waits:
        try:
            return operation()
        except Exception as error:
            if not may_pass(error):
                raise
            time.sleep(wait)
    return operation()


def growing_waits(attempts: int) -> Iterator[float]:
    """Yield the waits between so many attempts: growing ones, and random, so that many clients do not come back at once."""
    for number in range(attempts - 1):
        yield random.uniform(0.0, min(2.0**number, MAX_WAIT_SECONDS))
