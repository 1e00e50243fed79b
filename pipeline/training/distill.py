"""Distillation: give a classifier exits that learn from its own predictions on unlabelled text."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from models.early_exit import EarlyExitModel
from models.exits.task import Task
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.reader import read_shards
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.errors import InputError, UserError
from pipeline.schema import LOGITS, ROW
from pipeline.storage.model_cache import checked_model, local_model
from pipeline.training.checkpoint import FOLDER
from pipeline.training.config import TrainingConfig
from pipeline.training.frozen import standardize_heads
from pipeline.training.loop import score_name, scores_by_exit, train
from pipeline.training.process_group import ProcessGroup
from pipeline.training.progress import TRAINING_LOG, Log, TrainState
from pipeline.training.recipes import FrozenHeads, Objective, Recipe, WholeModel, add_teacher_logits
from pipeline.training.stream import HOLD_OUT_EVERY, HOLD_OUT_ROWS, StreamSource, StreamSpec, held_out


@dataclass(frozen=True, kw_only=True)
class DistillSpec:
    """A distillation as plain values, which travel to every worker."""

    model: str
    head: str
    stream: StreamSpec
    """Rows to train on: with their soft labels where the LOGITS column is kept, else the teacher adds these on the way."""
    dev: Chunk | None
    """Rows to score every epoch by; None holds some out of the stream."""
    output: Path
    training: TrainingConfig
    temperature: float = 1.0
    label_weight: float = 0.0
    """Weight of the true label where a row has one; see Objective."""
    weights: str | None = None
    """Digest of the model's weights; a worker that finds others raises StorageError. None trusts what is there."""
    train_backbone: str | None = None
    """None freezes the backbone; 'joint' or 'alternating' trains a copy of it along."""
    layers: tuple[int, ...] = ()
    """Layers of the teacher that make a student without exits, which is trained as a whole; none trains exits."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError("temperature", f"must be above 0, not {self.temperature}")
        if not 0 <= self.label_weight <= 1:
            raise InputError("label_share", f"must be in [0, 1], not {self.label_weight}")


def distill(spec: DistillSpec, group: ProcessGroup, device: str, log: Log) -> None:
    """Train the exits, and save the model into `spec.output`."""
    torch.manual_seed(spec.training.seed)
    # Once, so that teacher and student are of one version.
    found = local_model(spec.model) if spec.weights is None else checked_model(spec.model, spec.weights)
    spec = replace(spec, model=found)
    model = EarlyExitModel.from_pretrained(spec.model)
    model = (model.with_layers(spec.layers) if spec.layers else model).to(device)
    recipe = _recipe(spec, model, device)
    dev, leave_out = (spec.dev, frozenset[str]()) if spec.dev is not None else held_out(spec.stream)
    standardize_heads(model, dev.rows, group)
    if dev.logits is None:
        teacher = EarlyExitModel.from_pretrained(spec.model)
        with LoadedModel(teacher, EngineConfig(), device) as loaded:
            dev = add_teacher_logits(Engine(loaded), dev)
    state = train(
        recipe,
        StreamSource(spec.stream, group, leave_out),
        dev,
        spec.training,
        folder=spec.output / FOLDER,
        log_file=spec.output / TRAINING_LOG,
        group=group,
        branches_only=not spec.layers,
        log=log,
    )
    if group.is_rank_zero:
        model.save_pretrained(spec.output)
        _log_result(model, dev, state, log)


def _recipe(spec: DistillSpec, model: EarlyExitModel, device: str) -> Recipe:
    """Add new exits to the model, unless it is a student without any, and choose how they are trained."""
    objective = Objective(soft=True, temperature=spec.temperature, label_weight=spec.label_weight, task=model.task)
    known = LOGITS in spec.stream.columns.keep.names
    frozen = spec.train_backbone is None and not spec.layers
    needs_teacher = not frozen and not known  # a frozen backbone is its own teacher
    teacher = EarlyExitModel.from_pretrained(spec.model).to(device) if needs_teacher else None
    if not spec.layers:
        model.add_exits(spec.head)
        model.to(device)
    if frozen:
        return FrozenHeads(model, objective, teacher_known=known)
    weights = [layer / model.shape.layers for layer in model.exit_layers]
    strategy = spec.train_backbone or "joint"
    return WholeModel(model, objective, strategy=strategy, weights=weights, teacher=teacher)


def _log_result(model: EarlyExitModel, dev: Chunk, state: TrainState, log: Log) -> None:
    """Log how well every exit predicts what the teacher does, and the labels of the dev rows, where any of these has one."""
    agreement = scores_by_exit(model, replace(dev, labels=np.full_like(dev.labels, np.nan)))
    metric = score_name(model.task)
    named = {f"{'agreement' if model.task is Task.CLASSES else metric} with the teacher": agreement}
    labelled = dev.take(dev.labelled)
    if len(labelled):
        named[f"{metric} by the labels"] = scores_by_exit(model, labelled)
    for name, scores in named.items():
        log(f"{name} by exit: " + ", ".join(f"{layer}: {score:.3f}" for layer, score in scores.items()))
    log(f"{state.rows:,} rows seen in {state.seconds:.0f} s")


def check_stream(spec: StreamSpec, leave_out: Collection[str]) -> None:
    """Raise UserError unless a row is left to train on, beside those that `held_out` takes out of the files in `leave_out`.

    Reads no further than the first such row.
    """
    left = math.inf if spec.limit is None else spec.limit
    for shard in (shard for file in spec.corpus.files for shard in read_shards(file, spec.columns)):
        numbers = shard.rows[ROW].to_numpy()
        usable = numbers < shard.start + left
        if shard.file.path in leave_out:
            usable &= (numbers % HOLD_OUT_EVERY != 0) | (numbers >= HOLD_OUT_EVERY * HOLD_OUT_ROWS)
        if usable.any():
            return
        left -= shard.span
        if left <= 0:
            break
    held = ", beside those that are held out to score epochs by; give more, or dev rows" if leave_out else ""
    raise UserError(f"{spec.corpus.files[0].path}: no usable row is left to train on{held}")
