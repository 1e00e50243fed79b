"""What tests on a GPU share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from pipeline.engine.config import EngineConfig


def unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load frozen backbones in fp32, with the weights that the operators for GPUs read: in bf16 CPUs fuse them into others."""
    monkeypatch.setattr("pipeline.training.frozen.EngineConfig", partial(EngineConfig, dtype="fp32"))


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
