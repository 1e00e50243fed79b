"""The training loop: one for fine-tuning and distillation, for one process and for many, for rows in memory and for streams.

    for each epoch:
        for chunk in source:            some thousand rows; a checkpoint may follow each of them
            for batch in chunk:         shuffled by a seed, rows of similar length together
                recipe.loss -> gradients, averaged over workers -> clip -> AdamW
        dev scores of every exit; keep the best epoch's weights

Matrix products run in bf16 where the hardware has it, weights stay fp32. The learning rate follows the fraction of the work
that is done, so that nobody needs to know beforehand how many rows a stream has. Every step has its own seed, so that a run
that was killed goes on exactly as it would have; on a GPU but for the last bits, as FlashAttention sums gradients in any order.
"""

import itertools
import math
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.early_exit import EarlyExitModel
from models.exits.task import Task
from models.precision import autocast
from pipeline.corpus.chunks import Chunk, Source
from pipeline.engine.all_exits import all_exits
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.packing import training_batches
from pipeline.errors import UserError
from pipeline.evaluation.metrics import accuracy, correlation, micro_f1
from pipeline.rows import IntArray
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.config import TrainingConfig
from pipeline.training.frozen import States
from pipeline.training.optimizer import new_optimizer, set_learning_rates
from pipeline.training.process_group import GradientAverage, ProcessGroup
from pipeline.training.progress import Log, TrainingLog, TrainState
from pipeline.training.recipes import Recipe

WINDOW_BATCHES = 50
"""Batches sorted by length together: enough for nearly equal lengths, little enough that epochs differ."""
MAX_GRADIENT_NORM = 1.0


def train(
    recipe: Recipe,
    source: Source,
    dev: Chunk,
    config: TrainingConfig,
    *,
    folder: Path | None = None,
    log_file: Path | None = None,
    group: ProcessGroup | None = None,
    branches_only: bool = False,
    log: Log = print,
) -> TrainState:
    """Train until all epochs are done, put the best epoch's weights into the model, and return how it went.

    `folder` keeps checkpoints, from which the same call goes on; `log_file` gets the lines of JSON of TrainingLog. The best
    epoch is the one with the highest `selection_score` on `dev`. `group` names this worker among many, all of which end with
    the same weights; rank 0 logs and writes.
    """
    group = group or ProcessGroup()
    training_log = TrainingLog(log, log_file, config) if group.is_rank_zero else TrainingLog(_drop, None, config)
    return Trainer(recipe, source, dev, config, folder, group, branches_only, training_log).run()


class Trainer:
    """The state of one call of `train`."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        dev: Chunk,
        config: TrainingConfig,
        folder: Path | None,
        group: ProcessGroup,
        branches_only: bool,
        log: TrainingLog,
    ) -> None:
        self.recipe, self.source, self.dev, self.config = recipe, source, dev, config
        self.group, self.branches_only, self.log = group, branches_only, log
        self.parameters = recipe.parameters()
        self.optimizer = new_optimizer(recipe, config)
        self.gradients = GradientAverage(group, self.parameters)
        self.stand_in = dev.take(np.zeros(1, np.int64))
        """A row for steps in which this worker has none."""
        self.state, self.best = TrainState(), [p.detach().clone() for p in self.parameters]
        self.sums = self._on_device(0.0, 0, 0)
        """`loss_sum`, `loss_rows` and `left_out` of the state, on the device, since reading them waits for all steps before."""
        self.checkpoint = None if folder is None else Checkpoint(folder, self.parameters, self.optimizer)
        self.started = self.saved = time.monotonic()

    def run(self) -> TrainState:
        """Resume if there is a checkpoint, train all epochs that are left, and load the best weights."""
        keep_freed_memory()
        self._resume()
        self.started = time.monotonic() - self.state.seconds
        while not self.state.finished:
            self._run_epoch()
            self._end_epoch()
        self.gradients.close()
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.best, strict=True):
                parameter.copy_(value)
        self.recipe.model.eval()
        return self.state

    def _resume(self) -> None:
        if self.checkpoint is not None and self.checkpoint.exists():
            fields, self.best = self.checkpoint.load()
            self.state = TrainState(**fields)
            if not self.state.finished:
                self.log.log(f"going on at epoch {self.state.epoch}, after {self.state.rows:,} rows")
        self.log.resume(self.state.step)

    def _run_epoch(self) -> None:
        """Train on the chunks of this epoch that are left."""
        state = self.state
        self.sums = self._on_device(state.loss_sum, state.loss_rows, state.left_out)
        # Where a signal ends the epoch, what reads the stream ends with it, while its Ray is still there.
        with closing(self.source.chunks(state.epoch, frozenset(state.done_chunks))) as chunks:
            for chunk in chunks:
                self._train_on(self.recipe.prepare(chunk))
                state.done_chunks.extend(chunk.keys)
                state.fraction = min(state.fraction + chunk.fraction, 1.0)
                if time.monotonic() - self.saved > self.config.checkpoint_seconds:
                    self._read_sums()
                    self._save()
        self._read_sums()

    def _read_sums(self) -> None:
        """Put into the state what has been summed on the device."""
        loss_sum, loss_rows, left_out = self.sums.tolist()
        self.state.loss_sum, self.state.loss_rows, self.state.left_out = loss_sum, int(loss_rows), int(left_out)

    def _train_on(self, chunk: Chunk) -> None:
        """Take one step for every batch of a chunk."""
        state, config = self.state, self.config
        steps = math.ceil(chunk.most_rows / math.ceil(config.batch_rows / self.group.world_size))
        rows_each = max(1, math.ceil(len(chunk) / max(steps, 1)))
        batches = training_batches(chunk.rows.lengths, rows_each, WINDOW_BATCHES, self._seed())
        # All workers take the same number of steps; one that has fewer rows than the others brings nothing to the last of them.
        idle = [(chunk.take(np.zeros(0, np.int64)), None)] * (steps - len(batches))
        prefetched = self.recipe.prefetch(chunk.take(rows) for rows in batches)
        for number, (batch, states) in enumerate(itertools.chain(prefetched, idle)):
            state.step += 1
            state.epoch_steps += 1
            of_epoch = min(state.fraction + chunk.fraction * number / steps, 1.0)
            fraction = (state.epoch - 1 + of_epoch) / config.epochs
            set_learning_rates(self.optimizer, fraction)
            torch.manual_seed(self._seed())
            loss = self._step(batch, states)
            known = loss.isfinite()
            self.sums[0] += torch.where(known, loss, 0.0) * len(batch)
            self.sums[1] += known * len(batch)
            self.log.end_step(state, loss, fraction, time.monotonic() - self.started)
        state.rows += chunk.global_rows

    def _step(self, batch: Chunk, states: States | None) -> Tensor:
        """Take one step; return the loss of this worker's rows, on the device.

        Where a row gives no finite numbers, by a damaged weight, say, its step would make all weights NaN: it changes nothing.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.gradients.start(len(batch), self.recipe.left_out(self.state.step))
        # Without rows it is the loss of another row, times 0: the parameters with a gradient must be those of all workers.
        loss = self.recipe.loss(batch if len(batch) else self.stand_in, self.state.step, states) * (len(batch) > 0)
        loss.backward()
        self.gradients.finish()
        finite = nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM).isfinite()
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~finite, 0.0)  # on the device: to ask whether it is would wait for the step
        self.sums[2] += ~finite
        self.optimizer.step()
        return loss.detach().double()

    def _end_epoch(self) -> None:
        """Score the epoch, keep its weights if it is the best so far, and decide whether to stop."""
        state, config = self.state, self.config
        if state.left_out == state.epoch_steps > 0:
            raise UserError(
                f"none of the {state.epoch_steps:,} steps of epoch {state.epoch} gave numbers to learn from: model or teacher "
                "compute NaN or infinity on such rows"
            )
        if state.left_out:
            self.log.log(
                f"{state.left_out:,} of {state.epoch_steps:,} steps are left out: a row in each gave no numbers"
            )
        # One worker's scores, so that all stop together.
        scores = self.group.gather(scores_by_exit(self.recipe.model, self.dev))[0]
        state.scores.append({str(layer): score for layer, score in scores.items()})
        state.losses.append(state.loss_sum / max(state.loss_rows, 1))
        *before, score = state.selection_scores(self.branches_only)
        if score > max(before, default=-math.inf):
            state.best_epoch = state.epoch
            self.best = [p.detach().clone() for p in self.parameters]
        state.seconds = time.monotonic() - self.started
        self.log.end_epoch(state, score)
        since_best = state.epoch - state.best_epoch
        stop = config.early_stopping is not None and since_best >= config.early_stopping
        if stop:
            self.log.log(f"no better dev score for {since_best} epochs: that is enough")
        state.finished = stop or state.epoch == config.epochs
        state.start_next_epoch()
        self._save()

    def _save(self) -> None:
        """Write a checkpoint, on rank 0 alone."""
        if self.checkpoint is not None and self.group.is_rank_zero:
            self.state.seconds = time.monotonic() - self.started
            self.checkpoint.save(asdict(self.state), self.best)
        self.saved = time.monotonic()

    def _on_device(self, *values: float) -> Tensor:
        """Return numbers where the parameters are, in as many digits as Python's."""
        return torch.tensor(values, dtype=torch.float64, device=self.parameters[0].device)

    def _seed(self) -> int:
        """Mix the training's seed, the step and the rank into one seed."""
        numbers = (self.config.seed, self.state.step, self.group.rank)
        return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def scores_by_exit(model: EarlyExitModel, chunk: Chunk) -> dict[int, float]:
    """Score every exit against the chunk's targets, by the metric of `score_name`."""
    predictions: dict[int, list[Tensor]] = {layer: [] for layer in model.exit_layers}
    order: list[IntArray] = []
    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast(next(model.parameters()).device):
        for rows, outputs in all_exits(model, chunk.rows):
            order.append(rows)
            for layer, output in outputs.items():
                predictions[layer].append(predicted(output.logits, model.task))
    model.train(was_training)
    back, targets = np.argsort(np.concatenate(order)), chunk.targets()
    metric = {Task.CLASSES: accuracy, Task.VALUE: correlation, Task.LABELS: micro_f1}[model.task]
    return {layer: metric(torch.cat(parts).cpu().numpy()[back], targets) for layer, parts in predictions.items()}


def score_name(task: Task) -> str:
    """Return the name of the metric by which exits are scored: accuracy, Pearson's correlation or F1 over all labels."""
    return {Task.CLASSES: "accuracy", Task.VALUE: "correlation", Task.LABELS: "micro F1"}[task]


def predicted(logits_BC: Tensor, task: Task) -> Tensor:
    """Return class indices or values, [B, C] -> [B], or label sets at a threshold of 0.5, [B, C] of 0 and 1; as float."""
    if task is Task.LABELS:
        return (logits_BC > 0).float()
    predictions_B = logits_BC[:, 0] if task is Task.VALUE else logits_BC.argmax(-1)
    return predictions_B.float()


def _drop(_line: str) -> None:
    """Log nothing, on all ranks but 0."""
