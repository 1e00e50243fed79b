"""What tests on a GPU share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def watching_waits(how: str) -> Iterator[None]:
    """Let torch "warn" or raise an "error" where the host waits for the GPU; turning that on is a warning itself."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*prototype feature")
            torch.cuda.set_sync_debug_mode(how)
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
