"""The engine: token ids in, predictions out. It knows nothing of text, Arrow or Ray.

A call deals its rows to runners (pipeline.engine.runner), one for each CPU thread, or one on a GPU. Each takes its rows through
the model on its own:

    active = its rows, sorted by length
    for exit in exits:
        for micro-batch of active:                  # the survivors, re-packed
            x = gather(micro-batch)                 # embeddings, or hidden states of the layer before
            x = run(layers up to exit, x)
            write x back
        features = the exit head's, of all active rows
        exiting = judge(features)                   # ExitRule: by uncertainty; recorded
        active = those that stay

Every call returns exactly its own rows, in their order, and keeps no state: a repeated call returns the same predictions.

Memory, beside the model: two bytes (bf16) x hidden x the tokens of a call, at most `resident_tokens`, an eighth more at worst,
and about 0.4 GB of what torch, oneDNN and malloc keep at hand (docs/results/speed/README.md). A GPU holds hidden states twice,
and takes for both and for its micro-batches what memory it has (pipeline.engine.memory). Larger calls are worked through in
groups of `resident_tokens`, and in smaller ones where the device turns out to have less room.
"""

from concurrent.futures import Future, wait
from dataclasses import replace
from threading import Event

import torch

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.exits.task import Task
from models.families.shape import Shape
from models.gpu.dispatch import kernels_for
from pipeline.engine.config import EngineConfig
from pipeline.engine.cpu_runner import CpuRunner
from pipeline.engine.gpu_runner import GpuRunner
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.memory import Workspace, run_within_memory
from pipeline.engine.packing import sort_by_length
from pipeline.engine.results import Results
from pipeline.engine.rules import CriterionRule, ExitRule
from pipeline.engine.runner import Runner, RunnerConfig
from pipeline.errors import InputError
from pipeline.rows import IntArray, Predictions, TokenRows

SIGNAL_SECONDS = 0.1
"""Time after which a call looks for signals: one that the system hands to another thread does not end the wait for runners."""
WARM_UP_LENGTHS = (8, 24, 48, 100, 200)
"""Lengths of rows: each has a kernel of its own for attention on a GPU."""
_ONE = {Task.CLASSES: "class", Task.VALUE: "value"}


class Engine:
    """Runs token rows through a loaded model. It is cheap: make one for every criterion."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig | None = None) -> None:
        """`config` defaults to the loaded model's; another one may differ in all but `dtype` and `token_budget`.

        Raises InputError if the model has no exit where the config wants one, or cannot use its criterion.
        """
        config = config or loaded.config
        if (config.dtype, config.token_budget) != (loaded.config.dtype, loaded.config.token_budget):
            raise ValueError("dtype and token_budget are fixed when the model is loaded")
        self.loaded, self.config, self.model = loaded, config, loaded.model
        exits = plan_exits(self.model, config)
        self.flops = self.model.flops.with_heads_at(exits)
        """Counts what this engine computes: heads that it never evaluates cost nothing."""
        self.boundaries = self.model.boundaries(config.criterion.label_thresholds)
        """The logits above which labels are predicted; None for a model that predicts no label sets."""
        how = RunnerConfig(
            exits=exits,
            criterion=config.criterion,
            boundaries=self.boundaries,
            token_budget=loaded.token_budget,
            first_tokens=loaded.sizes.first_tokens,
            first_token_first=config.first_token_first,
        )
        self._cancelled = Event()
        self._runners = [self._new_runner(how, workspace) for workspace in loaded.workspaces]

    def _new_runner(self, how: RunnerConfig, workspace: Workspace) -> Runner:
        if workspace.device.type == "cuda":
            return GpuRunner(self.model, how, workspace, self._cancelled, kernels_for(workspace.device))
        return CpuRunner(self.model, how, workspace, self._cancelled)

    def with_criterion(self, criterion: Criterion) -> "Engine":
        """Return an engine of the same loaded model that judges rows by another criterion."""
        return Engine(self.loaded, replace(self.config, criterion=criterion))

    def warm_up(self) -> None:
        """Have all kernels compiled, for rows of each length that has some of its own; on CPUs there is nothing to compile."""
        if self.loaded.device.type == "cuda":
            lengths = [length for length in WARM_UP_LENGTHS if length <= self.model.shape.max_tokens]
            self.run(TokenRows.from_lists([[0] * length for length in lengths]))

    def run(self, rows: TokenRows, rule: ExitRule | None = None) -> Predictions:
        """Classify rows; the predictions are of exactly these rows, in this order.

        `rule` decides which rows exit in place of the criterion's thresholds; exits that the criterion does not use are not
        evaluated for it either. Rows that do not fit into memory together are worked through in smaller groups; one that does
        not fit alone raises MemoryError. What a signal raises, such as KeyboardInterrupt, ends the call within a layer.

        Raises ValueError for ids that the vocabulary does not have, and for rows longer than the model takes: on a GPU they
        would be read from the memory beside the tables.
        """
        check_rows(rows, self.model.shape)
        rule = (rule or CriterionRule(self.config.criterion)).to(self.loaded.device)
        results = Results.empty(len(rows), self.model.shape.classes)
        order = sort_by_length(rows.lengths)
        # Round-robin over the length-sorted rows: every runner gets the same mix of lengths. Small calls use fewer runners.
        used = max(1, min(len(self._runners), len(rows.token_ids) // self.loaded.token_budget))
        with self.loaded.turn, self.loaded.single_threaded():
            at_work = [
                self.loaded.pool.submit(self._run_part, runner, order[number::used], rows, rule, results)
                for number, runner in enumerate(self._runners[:used])
            ]
            self._wait(at_work)
        padding = sum(part.result() for part in at_work)
        return _predictions(rows, results, padding, self.boundaries)

    def _wait(self, at_work: list[Future[int]]) -> None:
        """Wait for all runners, also where one fails or a signal ends the call: they must be idle when the next one begins."""
        try:
            while wait(at_work, SIGNAL_SECONDS).not_done:
                pass
        except BaseException:
            self._cancelled.set()
            wait(at_work)
            self._cancelled.clear()
            raise

    def _run_part(self, runner: Runner, indices: IntArray, rows: TokenRows, rule: ExitRule, results: Results) -> int:
        """Run one runner's rows, which are in order of length; return the padding tokens computed."""

        def run(part: slice) -> int:
            return runner.run(rows, indices[part], rule, results)

        resident = max(1, (self.config.resident_tokens or self.loaded.sizes.resident_tokens) // self.loaded.threads)
        with torch.inference_mode():
            return run_within_memory(run, runner.free, rows.lengths[indices], resident)


def _predictions(rows: TokenRows, results: Results, padding: int, boundaries: tuple[float, ...] | None) -> Predictions:
    exit_layers = results.exit_layers.numpy()
    if len(rows) and exit_layers.min() < 1:
        raise AssertionError("a row came out of the engine without an exit")
    return Predictions(
        logits=results.logits.numpy(),
        exit_layers=exit_layers,
        uncertainty=results.uncertainty.numpy(),
        layer_tokens=int((rows.lengths * exit_layers).sum()),
        padding_tokens=padding,
        boundaries=boundaries,
    )


def check_rows(rows: TokenRows, shape: Shape) -> None:
    """Raise ValueError unless the embedding tables have an entry for every id and every position."""
    if not len(rows):
        return
    lowest, highest, longest = int(rows.token_ids.min()), int(rows.token_ids.max()), int(rows.lengths.max())
    if lowest < 0 or highest >= shape.vocabulary:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"token id {wrong} is not in the model's vocabulary of {shape.vocabulary:,}")
    if longest > shape.max_tokens:
        raise ValueError(f"a row of {longest:,} tokens is longer than the model takes: {shape.max_tokens:,}")


def plan_exits(model: EarlyExitModel, config: EngineConfig) -> list[int]:
    """List the layers after which rows are judged, ascending, the last one included; raise as `check_exits` does."""
    last = model.shape.layers
    check_exits(model, config)
    if config.criterion.full_depth:
        return [last]
    wanted = model.exit_layers if config.exits is None else config.exits
    return sorted({*filter(config.criterion.uses_exit, wanted), last})


def check_exits(model: EarlyExitModel, config: EngineConfig) -> None:
    """Raise InputError if the config wants exits, or a criterion, that the model does not have."""
    criterion = config.criterion
    if model.regression and criterion.name in ("entropy", "confidence") and not criterion.full_depth:
        raise InputError(
            "criterion", f"{criterion.name} needs classes, and the model predicts a value; take lte or patience"
        )
    check_label_thresholds(model, criterion.label_thresholds)
    if criterion.name == "lte" and model.lte is None and len(model.exit_layers) > 1:
        raise InputError("criterion", "lte: the model has no learned exit; its exits were trained without one")
    missing = sorted({*(config.exits or ()), *dict(criterion.speeds)} - {*model.exit_layers})
    if missing:
        has = " ".join(map(str, model.exit_layers))
        raise InputError("exits", f"the model has no exit after layer {missing[0]}; it has them after {has}")


def check_label_thresholds(model: EarlyExitModel, thresholds: tuple[float, ...]) -> None:
    """Raise InputError for thresholds of labels that the model does not have."""
    if thresholds and model.task is not Task.LABELS:
        raise InputError(
            "label_threshold", f"is for models of label sets, and this one predicts one {_ONE[model.task]}"
        )
    if len(thresholds) > 1 and len(thresholds) != model.shape.classes:
        raise InputError("label_threshold", f"has {len(thresholds)} values for {model.shape.classes} labels")
