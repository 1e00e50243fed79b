"""A model made ready for inference: its precision, its device, its fused weights, and the threads that run it.

    with LoadedModel(EarlyExitModel.from_pretrained("my-model"), EngineConfig(dtype="auto"), "cpu") as loaded:
        engine = Engine(loaded, EngineConfig(criterion=Criterion(speed=0.3)))

On a GPU it has one worker. On CPUs it has as many as torch has threads in the calling thread, and each runs whole layers alone:
threads inside an operator would have to meet after every one of them, and oneDNN leaves all but one idle for some shapes. So
torch's own threads are taken away while the workers are busy.
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
from pipeline.engine.memory import Workspace, cpu_sizes, sizes_on


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
        cpu_budget = config.token_budget or cpu_sizes(model.shape.hidden).token_budget  # read on CPUs alone
        self.precision = set_precision(model, config.dtype, self.device, cpu_budget)
        self.dtype = hidden_dtype(self.precision, self.device)
        sizes = sizes_on(self.device, model.shape, self.dtype)
        self.sizes = sizes._replace(token_budget=config.token_budget or sizes.token_budget)
        """How much is worked on at once, by the device and its memory unless the config says otherwise."""
        self._fuse()
        model.backbone.freeze()
        self.threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self.workspaces = [Workspace(self.device, self.dtype) for _ in range(self.threads)]
        """Memory of each worker for hidden states."""
        self.turn = Lock()
        """Held by the engine that is running."""
        self.pool = self._start_workers()
        """The workers; give them work inside `single_threaded` only."""

    @property
    def token_budget(self) -> int:
        """Tokens in a micro-batch."""
        return self.sizes.token_budget

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
        # Every thread has a current GPU of its own, on which Triton launches kernels.
        on_gpu = self.device.type == "cuda"
        settle = partial(torch.cuda.set_device, self.device) if on_gpu else partial(torch.set_num_threads, 1)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="runner", initializer=settle)
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
