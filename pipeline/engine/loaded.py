"""A model made ready for inference: its precision, its device, its fused weights, and the threads that run it.

    with LoadedModel(EarlyExitModel.from_pretrained("my-model"), EngineConfig(dtype="auto"), "cpu") as loaded:
        engine = Engine(loaded, EngineConfig(criterion=Criterion(speed=0.3)))

On CPUs it has as many workers as torch has threads in the calling thread. Each of them runs whole layers alone: threads inside
an operator would have to meet after every one of them, and oneDNN leaves all but one idle for some shapes. So torch's own
threads are taken away while the workers are busy.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from threading import Barrier, Lock
from typing import Self

import torch

from models.cpu.fused import can_fuse, fuse, fuse_head
from models.early_exit import EarlyExitModel
from models.precision import hidden_dtype, set_precision
from pipeline.engine.config import EngineConfig
from pipeline.engine.memory import Workspace

CACHED_VALUES = 1024 * 768
"""Hidden states of a micro-batch on CPUs: 1.5 MB in bf16."""


def default_token_budget(device: torch.device, hidden: int) -> int:
    """Return the tokens of a micro-batch.

    CPU: what one core's cache holds of hidden states; the fastest of 256..4096 at hidden 384 and 768
    (docs/results/speed/README.md).
    GPU: unmeasured; anchored on A100 figures, where some thousand tokens fill the device.
    """
    if device.type == "cuda":
        return 16384
    return min(max(CACHED_VALUES // hidden // 256 * 256, 512), 4096)


class LoadedModel:
    """Weights in memory that any number of engines share; they take turns, since they share its workers and buffers too."""

    def __init__(self, model: EarlyExitModel, config: EngineConfig, device: str | torch.device = "cpu") -> None:
        """Take the model over, casting, moving and fusing it in place; of the config `dtype` and `token_budget` matter.

        Raises UnsupportedPrecisionError if the device cannot compute in the dtype that is asked for, or is slower in int8.
        """
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:  # every thread has a current device of its own
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.model, self.config = model, config
        self.token_budget = config.token_budget or default_token_budget(self.device, model.shape.hidden)
        self.precision = set_precision(model, config.dtype, self.device, self.token_budget)
        self.dtype = hidden_dtype(self.precision, self.device)
        self._fuse()
        self.threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self.workspaces = [Workspace(self.device, self.dtype) for _ in range(self.threads)]
        """Memory of each worker for hidden states."""
        self.turn = Lock()
        """Held by the engine that is running."""
        self.pool = self._start_workers()
        """The workers; give them work inside `single_threaded` only."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, once they have finished."""
        self.pool.shutdown()

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        """Leave the cores to the workers: take torch's own threads away, and give them back at the end.

        torch keeps their number partly by thread, partly (MKL) for the process: the workers set their own when they start.
        """
        if self.device.type != "cpu":
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _start_workers(self) -> ThreadPoolExecutor:
        """Start all workers now: one that starts late would set torch's number of threads behind `single_threaded`'s back."""
        keep_to_one_core = partial(torch.set_num_threads, 1) if self.device.type == "cpu" else None
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="runner", initializer=keep_to_one_core)
        with self.single_threaded():
            all_started = Barrier(self.threads)
            wait([pool.submit(all_started.wait) for _ in range(self.threads)])
        return pool

    def _fuse(self) -> None:
        if can_fuse(self.device, self.dtype):
            for number in range(1, self.model.shape.layers + 1):
                fuse(self.model.backbone.layer(number), self.token_budget)
            for head in self.model.exits.values():
                fuse_head(head, self.token_budget)
