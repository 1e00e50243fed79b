"""The training loop: one for fine-tuning and distillation, for one process and for many, for memory and for streams.

Chunks of rows come from a source; every chunk is cut into batches of rows of similar length, shuffled and seeded; matrices are
bf16 where the hardware has it, weights fp32; the learning rate follows the share of the work that is done, so that nobody needs
to know beforehand how many rows a stream has. A checkpoint is written between chunks; every step has a seed of its own, so
that a run that was killed goes on exactly as it would have.
"""

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.early_exit import EarlyExitModel
from models.precision import autocast
from pipeline.corpus.chunks import Chunk, Source
from pipeline.engine.all_exits import all_exits
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.packing import training_batches
from pipeline.evaluation.metrics import CLASSIFICATION, correlation
from pipeline.rows import FloatArray
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.config import TrainingConfig
from pipeline.training.frozen import States
from pipeline.training.process_group import ProcessGroup
from pipeline.training.recipes import Recipe

WINDOW_BATCHES = 50
"""Batches sorted by length together: enough for nearly equal lengths, little enough that epochs differ."""
WARMUP = 0.1
"""Share of the work in which the learning rate rises; it then falls linearly to 0 (Devlin et al. 2019)."""
TRAINING_LOG = "training.jsonl"
"""Beside the model: a line of JSON for every step that is told, and for every epoch."""
MAX_GRADIENT_NORM = 1.0
LOG_SECONDS = 15.0

Say = Callable[[str], None]


@dataclass(slots=True)
class TrainState:
    """How far a run is."""

    epoch: int = 1
    done: list[str] = field(default_factory=list)
    """Chunks of this epoch that are learned."""
    share: float = 0.0
    """Share of this epoch that is done."""
    step: int = 0
    rows: int = 0
    """Rows seen over all workers and epochs."""
    seconds: float = 0.0
    scores: list[dict[str, float]] = field(default_factory=list)
    """Dev score by exit layer (as text) after each epoch."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each epoch."""
    best_epoch: int = 1
    finished: bool = False
    loss_sum: float = 0.0
    loss_rows: int = 0

    @property
    def best_scores(self) -> dict[str, float]:
        """Dev score by exit layer of the state that was kept."""
        return self.scores[self.best_epoch - 1]

    def mean_scores(self, branches_only: bool) -> list[float]:
        """One number an epoch: the mean over branch exits, or the last exit's."""
        return [mean_score(score, branches_only) for score in self.scores]


def mean_score(scores: dict[str, float], branches_only: bool) -> float:
    """Boil scores by exit down to the one that the best epoch is chosen by."""
    *branches, last = [scores[layer] for layer in sorted(scores, key=int)]
    return sum(branches) / len(branches) if branches_only and branches else last


def train(
    recipe: Recipe,
    source: Source,
    dev: Chunk,
    config: TrainingConfig,
    *,
    folder: Path | None = None,
    log: Path | None = None,
    group: ProcessGroup | None = None,
    branches_only: bool = False,
    say: Say = print,
) -> TrainState:
    """Train until all epochs are done, put the best epoch's state into the model, and return how it went.

    `folder` keeps checkpoints, from which the same call goes on; `log` gets a line of JSON for every step that is told.
    The best epoch is the one whose mean branch score, or last exit's score, on `dev` is highest. `group` is this worker's place
    among many; all of them end with the same weights.
    """
    return Trainer(recipe, source, dev, config, folder, log, group or ProcessGroup(), branches_only, say).run()


class Trainer:
    """State of one call of `train`."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        dev: Chunk,
        config: TrainingConfig,
        folder: Path | None,
        log: Path | None,
        group: ProcessGroup,
        branches_only: bool,
        say: Say,
    ) -> None:
        self.recipe, self.source, self.dev, self.config = recipe, source, dev, config
        self.group, self.branches_only = group, branches_only
        self.say: Say = say if group.first else (lambda _line: None)
        self.log = log if group.first else None
        self.parameters = recipe.parameters()
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(_param_groups(recipe, config), fused=True)
        self.position, self.best = TrainState(), [p.detach().clone() for p in self.parameters]
        self.checkpoint = None if folder is None else Checkpoint(folder, self.parameters, self.optimizer)
        self.saved = self.told = time.monotonic()

    def run(self) -> TrainState:
        keep_freed_memory()
        self._resume()
        position = self.position
        self.started = time.monotonic() - position.seconds
        while not position.finished:
            for chunk in self.source.chunks(position.epoch, frozenset(position.done)):
                self._learn(self.recipe.prepare(chunk))
                position.done.append(chunk.key)
                position.share = min(position.share + chunk.share, 1.0)
                if time.monotonic() - self.saved > self.config.checkpoint_seconds:
                    self._save()
            self._end_epoch()
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.best, strict=True):
                parameter.copy_(value)
        self.recipe.model.eval()
        return position

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            self._trim_log(0)
            return
        state, self.best = self.checkpoint.load()
        self.position = TrainState(**state)
        self._trim_log(self.position.step)
        if not self.position.finished:
            self.say(f"going on at epoch {self.position.epoch}, after {self.position.rows:,} rows")

    def _learn(self, chunk: Chunk) -> None:
        """Take one step for every batch of a chunk."""
        position, config = self.position, self.config
        steps = math.ceil(chunk.global_rows / config.batch_rows)
        rows_each = max(1, math.ceil(len(chunk) / max(steps, 1)))
        seed = _seed(config.seed, position.step, self.group.rank)
        mine = training_batches(chunk.rows.lengths, rows_each, WINDOW_BATCHES, seed)
        # Workers keep step, also one with a row less: it has nothing to learn in its last step.
        idle = [(chunk.take(np.zeros(0, np.int64)), None)] * (steps - len(mine))
        batches = self.recipe.prefetch(chunk.take(rows) for rows in mine)
        for number, (batch, states) in enumerate(itertools.chain(batches, idle)):
            position.step += 1
            epoch_share = min(position.share + chunk.share * number / steps, 1.0)
            share = (position.epoch - 1 + epoch_share) / config.epochs
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = parameters["peak_lr"] * linear_warmup_decay(share)
            torch.manual_seed(_seed(config.seed, position.step, self.group.rank))
            loss = self._step(batch, states)
            position.loss_sum += loss * len(batch)
            position.loss_rows += len(batch)
            if time.monotonic() - self.told > LOG_SECONDS or position.step % 50 == 0:
                self._tell(loss, share)
        position.rows += chunk.global_rows

    def _step(self, batch: Chunk, states: States | None) -> float:
        """Take one step; return the loss of this worker's rows."""
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        if len(batch):
            loss = self.recipe.loss(batch, self.position.step, states)
            loss.backward()
            value = float(loss.detach())
        self.group.average_gradients(self.parameters, len(batch))
        nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self.optimizer.step()
        return value

    def _end_epoch(self) -> None:
        position, config = self.position, self.config
        scores = {str(layer): score for layer, score in scores_by_exit(self.recipe.model, self.dev).items()}
        position.scores.append(scores)
        position.losses.append(position.loss_sum / max(position.loss_rows, 1))
        totals = position.mean_scores(self.branches_only)
        if totals[-1] > max(totals[:-1], default=-math.inf):
            position.best_epoch = position.epoch
            self.best = [p.detach().clone() for p in self.parameters]
        position.seconds = time.monotonic() - self.started
        self.say(
            f"epoch {position.epoch}/{config.epochs}: loss {position.losses[-1]:.4f}, dev {totals[-1]:.4f}, "
            f"{position.rows / position.seconds:,.0f} rows/s, {position.seconds:.0f} s"
        )
        self._write_log(loss=position.losses[-1], dev=scores)
        since_best = position.epoch - position.best_epoch
        stop = config.early_stopping is not None and since_best >= config.early_stopping
        if stop:
            self.say(f"no better dev score for {since_best} epochs: that is enough")
        position.finished = stop or position.epoch == config.epochs
        position.epoch, position.done, position.share = position.epoch + 1, [], 0.0
        position.loss_sum, position.loss_rows = 0.0, 0
        self._save()

    def _save(self) -> None:
        if self.checkpoint is not None and self.group.first:
            self.position.seconds = time.monotonic() - self.started
            self.checkpoint.save(asdict(self.position), self.best)
        self.saved = time.monotonic()

    def _tell(self, loss: float, share: float) -> None:
        if self.position.step % 50 == 0:
            self._write_log(loss=loss, dev=None)
        if time.monotonic() - self.told <= LOG_SECONDS:
            return
        self.told = time.monotonic()
        seconds = self.told - self.started
        left = seconds * (1 - share) / share if share else float("nan")
        rate = self.position.step * self.config.batch_rows / seconds
        self.say(
            f"{share:4.0%}  step {self.position.step:,}  loss {loss:.4f}  {rate:,.0f} rows/s  about {left:.0f} s left"
        )

    def _write_log(self, *, loss: float, dev: dict[str, float] | None) -> None:
        if self.log is None:
            return
        position = self.position
        line = {"step": position.step, "epoch": position.epoch, "rows": position.rows, "loss": round(loss, 6)}
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | ({"dev": dev} if dev else {})) + "\n")

    def _trim_log(self, step: int) -> None:
        """Drop what a killed run logged after its last checkpoint."""
        if self.log is None or not self.log.exists():
            return
        kept = [line for line in self.log.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
        self.log.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def scores_by_exit(model: EarlyExitModel, chunk: Chunk) -> dict[int, float]:
    """Score every exit against the chunk's targets: share of rows that are right, or Pearson's correlation of values."""
    said = {layer: np.zeros(len(chunk), np.float32) for layer in model.exit_layers}
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast(device):
        for where, answers in all_exits(model, chunk.rows):
            for layer, answer in answers.items():
                said[layer][where] = predicted(answer.logits)
    model.train(was_training)
    targets = chunk.targets()
    measure = correlation if model.regression else CLASSIFICATION["accuracy"]
    return {layer: measure(answers, targets) for layer, answers in said.items()}


def predicted(logits_BC: Tensor) -> FloatArray:
    """Class indices, or values where there is one class: [B, C] -> [B]."""
    answers = logits_BC[:, 0] if logits_BC.shape[1] == 1 else logits_BC.argmax(-1)
    said: FloatArray = answers.float().cpu().numpy()
    return said


def linear_warmup_decay(share: float) -> float:
    """Factor of the learning rate when this share of the work is done."""
    return max(share, 1e-3) / WARMUP if share < WARMUP else (1.0 - share) / (1.0 - WARMUP)


def _seed(*numbers: int) -> int:
    """Mix numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _param_groups(recipe: Recipe, config: TrainingConfig) -> list[dict[str, Any]]:
    """Heads and backbone with rates of their own; weight decay for matrices only, as usual for BERT."""
    backbone = {id(parameter) for parameter in recipe.model.backbone.parameters()}
    groups = []
    for in_backbone, rate in ((True, config.learning_rate), (False, config.head_learning_rate or config.learning_rate)):
        for matrices in (True, False):
            members = [
                p for p in recipe.parameters() if (id(p) in backbone) == in_backbone and (p.dim() > 1) == matrices
            ]
            decay = config.weight_decay if matrices else 0.0
            groups.append({"params": members, "peak_lr": rate, "weight_decay": decay, "lr": rate})
    return [group for group in groups if group["params"]]
