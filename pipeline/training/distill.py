"""Give a classifier exits, from its own answers on unlabelled text."""

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
from pipeline.training.loop import TRAINING_LOG, Say, train
from pipeline.training.process_group import ProcessGroup
from pipeline.training.recipes import FrozenHeads, Objective, Recipe, WholeModel, add_teacher_logits
from pipeline.training.stream import StreamSource, StreamSpec, held_out


@dataclass(frozen=True, kw_only=True)
class DistillSpec:
    """A distillation as plain values, which travel to every worker."""

    model: str
    head: str
    stream: StreamSpec
    """With the LOGITS column kept, its soft labels are used; without, the model is asked for them on the way."""
    dev: Chunk | None
    """Rows to see how it goes by; None holds some out of the stream."""
    output: Path
    training: TrainingConfig
    temperature: float = 1.0
    label_share: float = 0.0
    train_backbone: str | None = None
    """None freezes the backbone; 'joint' or 'alternating' trains a copy of it along."""


def distill(spec: DistillSpec, group: ProcessGroup, device: str, say: Say) -> None:
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
    position = train(
        recipe,
        StreamSource(spec.stream, group.rank, group.workers, leave_out),
        dev,
        spec.training,
        folder=spec.output / FOLDER,
        log=spec.output / TRAINING_LOG,
        group=group,
        branches_only=True,
        say=say,
    )
    if group.first:
        model.save_pretrained(spec.output)
        name = "correlation" if model.regression else "agreement"
        say(
            f"{name} with the teacher by exit: "
            + ", ".join(f"{n}: {score:.3f}" for n, score in position.best_scores.items())
        )
        say(f"{position.rows:,} rows seen in {position.seconds:.0f} s")


def _recipe(spec: DistillSpec, model: EarlyExitModel, device: str) -> Recipe:
    objective = Objective(soft=True, temperature=spec.temperature, label_share=spec.label_share)
    known = LOGITS in spec.stream.columns.keep.names
    if spec.train_backbone is None:
        model.add_exits(spec.head)
        model.to(device)
        return FrozenHeads(model, objective, teacher_known=known)
    teacher = None if known else EarlyExitModel.from_pretrained(spec.model).to(device)
    model.add_exits(spec.head)
    model.to(device)
    weights = [layer / model.shape.layers for layer in model.exit_layers]
    return WholeModel(model, objective, strategy=spec.train_backbone, weights=weights, teacher=teacher)
