"""Distillation: give a classifier exits that learn from its own predictions on unlabelled text."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.early_exit import EarlyExitModel
from pipeline.corpus.chunks import Chunk
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.schema import LOGITS
from pipeline.storage.model_cache import local_model
from pipeline.training.checkpoint import FOLDER
from pipeline.training.config import TrainingConfig
from pipeline.training.frozen import standardize_heads
from pipeline.training.loop import train
from pipeline.training.process_group import ProcessGroup
from pipeline.training.progress import TRAINING_LOG, Log, TrainState
from pipeline.training.recipes import FrozenHeads, Objective, Recipe, WholeModel, add_teacher_logits
from pipeline.training.stream import StreamSource, StreamSpec, held_out


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
    train_backbone: str | None = None
    """None freezes the backbone; 'joint' or 'alternating' trains a copy of it along."""


def distill(spec: DistillSpec, group: ProcessGroup, device: str, log: Log) -> None:
    """Train the exits, and save the model into `spec.output`."""
    torch.manual_seed(spec.training.seed)
    spec = replace(spec, model=local_model(spec.model))  # once, so that teacher and student are of one version
    model = EarlyExitModel.from_pretrained(spec.model).to(device)
    recipe = _recipe(spec, model, device)
    dev, leave_out = (spec.dev, frozenset[str]()) if spec.dev is not None else held_out(spec.stream)
    standardize_heads(model, dev.rows)
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
        branches_only=True,
        log=log,
    )
    if group.is_rank_zero:
        model.save_pretrained(spec.output)
        _log_result(state, "correlation" if model.regression else "agreement", log)


def _recipe(spec: DistillSpec, model: EarlyExitModel, device: str) -> Recipe:
    """Add new exits to the model, and choose how they are trained."""
    objective = Objective(soft=True, temperature=spec.temperature, label_weight=spec.label_weight)
    known = LOGITS in spec.stream.columns.keep.names
    needs_teacher = spec.train_backbone is not None and not known  # a frozen backbone is its own teacher
    teacher = EarlyExitModel.from_pretrained(spec.model).to(device) if needs_teacher else None
    model.add_exits(spec.head)
    model.to(device)
    if spec.train_backbone is None:
        return FrozenHeads(model, objective, teacher_known=known)
    weights = [layer / model.shape.layers for layer in model.exit_layers]
    return WholeModel(model, objective, strategy=spec.train_backbone, weights=weights, teacher=teacher)


def _log_result(state: TrainState, metric: str, log: Log) -> None:
    """Log how well every exit predicts what the teacher does."""
    scores = ", ".join(f"{layer}: {score:.3f}" for layer, score in state.best_scores.items())
    log(f"{metric} with the teacher by exit: {scores}")
    log(f"{state.rows:,} rows seen in {state.seconds:.0f} s")
