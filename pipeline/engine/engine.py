"""The engine: token ids in, predictions out. It knows nothing of text, Arrow or Ray.

A call deals its rows to lanes (see pipeline.lane), one for every CPU thread or one for the GPU, and each lane takes its rows
through the model on its own. Threads inside an operator would have to meet after every one of them, and oneDNN leaves
all but one idle for some shapes; whole lanes never wait for each other.

Every call returns exactly its own rows, in their order, and keeps no state: a repeated call gives the same answer.

Memory, beside the model: two bytes (bf16) x hidden x the tokens of a call, at most `resident_tokens`, an eighth more at worst,
and about 0.4 GB of what torch, oneDNN and malloc keep at hand (docs/results/speed.md). Larger calls are worked through in
groups of `resident_tokens`, and in smaller ones where the device turns out to have less room.
"""

import copy
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Self

import torch

from models.cpu.fused import can_fuse, fuse, fuse_head
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.precision import DTYPES, set_precision
from pipeline.engine.config import EngineConfig
from pipeline.engine.memory import run_within_memory
from pipeline.engine.packing import sort_by_length
from pipeline.engine.runner import ModelRunner, Results, RunnerConfig
from pipeline.errors import InputError
from pipeline.rows import IntArray, Predictions, Thresholds, TokenRows

FIRST_TOKENS = {"cpu": 256, "cuda": 32768}
"""Rows whose first tokens are worked on at once: a dense matrix; memory is 4 x hidden x heads bytes a row in bf16."""
CACHED_VALUES = 1024 * 768
"""Hidden states of a micro-batch on CPUs: 1.5 MB in bf16."""


def default_token_budget(device: torch.device, hidden: int) -> int:
    """Return the tokens of a micro-batch.

    CPU: what one core's cache holds of hidden states; the fastest of 256..4096 at hidden 384 and 768 (docs/results/speed.md).
    GPU: unmeasured; anchored on A100 figures, where some thousand tokens fill the device.
    """
    if device.type == "cuda":
        return 16384
    return min(max(CACHED_VALUES // hidden // 256 * 256, 512), 4096)


def check_exits(model: EarlyExitModel, config: EngineConfig) -> None:
    """Raise InputError if the config wants exits, or a criterion, that the model does not have."""
    criterion = config.criterion
    if model.regression and criterion.name in ("entropy", "confidence") and not criterion.full_depth:
        raise InputError(
            "criterion", f"{criterion.name} needs classes, and the model predicts a value; take lte or patience"
        )
    if criterion.name == "lte" and model.lte is None and len(model.exit_layers) > 1:
        raise InputError("criterion", "lte: the model has no learned exit; its exits were trained without one")
    missing = sorted({*(config.exits or ()), *dict(criterion.speeds)} - {*model.exit_layers})
    if missing:
        has = " ".join(map(str, model.exit_layers))
        raise InputError("exits", f"the model has no exit after layer {missing[0]}; it has them after {has}")


class Engine:
    """Runs token rows through an early-exit model; takes the model over, casting and moving it in place."""

    def __init__(self, model: EarlyExitModel, config: EngineConfig, device: str = "cpu") -> None:
        """On CPUs it takes as many lanes as torch has threads in the calling thread.

        Raises UnsupportedPrecisionError if the device cannot compute in the dtype that is asked for, ValueError if the model
        has no exit where the config wants one.
        """
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:  # lanes are threads, and each has a current device
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.token_budget = config.token_budget or default_token_budget(self.device, model.shape.hidden)
        self.precision = set_precision(model, config.dtype, self.device, self.token_budget)
        self.dtype = DTYPES[self.precision]
        self.model = model
        self.threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="lane")
        self._follow(config)
        if can_fuse(self.device, self.dtype):
            for number in range(1, self.model.shape.layers + 1):
                fuse(self.model.backbone.layer(number), self.token_budget)
            for head in self.model.exits.values():
                fuse_head(head, self.token_budget)

    def with_criterion(self, criterion: Criterion) -> Self:
        """Return an engine of the same weights in memory that judges rows by another criterion.

        Raises ValueError if the model has no exit where it wants one.
        """
        other = copy.copy(self)
        other._follow(replace(self.config, criterion=criterion))
        return other

    def _follow(self, config: EngineConfig) -> None:
        """Set up what depends on how rows are judged."""
        self.config = config
        exits = self._plan_exits()
        self.flops = self.model.flops.with_heads_at(exits)
        """Counts what this engine computes: heads that it never looks at cost nothing."""
        runner_config = RunnerConfig(
            exits=exits,
            criterion=config.criterion,
            token_budget=self.token_budget,
            first_tokens=FIRST_TOKENS[self.device.type],
            first_token_first=config.first_token_first,
        )
        self._runners = [ModelRunner(self.model, runner_config, self.device, self.dtype) for _ in range(self.threads)]

    def run(
        self, rows: TokenRows, exit_plan: IntArray | None = None, thresholds: Thresholds | None = None
    ) -> Predictions:
        """Classify rows; the answer has exactly these rows, in this order.

        Rows that do not fit into memory together are worked through in smaller groups; one that does not fit alone raises
        MemoryError.

        `exit_plan` [B] forces the layer at which each row leaves, in place of the criterion: for benchmarks, whose speed
        should not depend on the weights. `thresholds` [B, L] gives every row thresholds of its own, by layer, in place of
        the criterion's: for a server, whose callers differ. Exits at which the criterion does not look stay out of sight.
        Raises ValueError if the criterion has no thresholds.
        """
        count = len(rows)
        if thresholds is not None and self.config.criterion.name == "patience":
            raise ValueError("criterion patience has no thresholds")
        results = Results(
            logits=torch.zeros(count, self.model.shape.classes),
            exit_layers=torch.zeros(count, dtype=torch.int16),
            uncertainty=torch.zeros(count),
            exit_plan=exit_plan,
            thresholds=None if thresholds is None else torch.from_numpy(thresholds).to(self.device),
        )
        order = sort_by_length(rows.lengths)
        # Dealt like cards, so that all lanes get the same mix of lengths; a call too small to go round uses fewer lanes.
        used = max(1, min(len(self._runners), len(rows.token_ids) // self.token_budget))
        dealt = [(runner, order[place::used]) for place, runner in enumerate(self._runners[:used])]
        try:
            at_work = [self._pool.submit(self._run_on, runner, part, rows, results) for runner, part in dealt]
            wait(at_work)  # all of them, also where one fails: its lane must be idle when the next call begins
            padding = sum(runner.result() for runner in at_work)
        finally:
            if self.device.type == "cpu":
                torch.set_num_threads(self.threads)
        exit_layers = results.exit_layers.numpy()
        if count and exit_layers.min() < 1:
            raise AssertionError("a row came out of the engine without an exit")
        return Predictions(
            logits=results.logits.numpy(),
            exit_layers=exit_layers,
            uncertainty=results.uncertainty.numpy(),
            layer_tokens=int((rows.lengths * exit_layers).sum()),
            padding_tokens=padding,
        )

    def _run_on(self, runner: ModelRunner, order: IntArray, rows: TokenRows, results: Results) -> int:
        """Work through a lane's rows, which are in order of length; return the padding tokens computed."""
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # partly of this thread, partly (MKL) of the process: `run` sets it back
        resident = max(1, self.config.resident_tokens // self.threads)
        with torch.inference_mode():
            return run_within_memory(
                lambda part: runner.run(rows, order[part], results), runner.free, rows.lengths[order], resident
            )

    def _plan_exits(self) -> list[int]:
        """Layers after which rows are looked at, the last one included; without exits only that one."""
        last = self.model.shape.layers
        check_exits(self.model, self.config)
        if self.config.criterion.full_depth:
            return [last]
        wanted = self.model.exit_layers if self.config.exits is None else self.config.exits
        return sorted({*filter(self.config.criterion.uses_exit, wanted), last})
