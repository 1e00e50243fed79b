"""Make a classifier, or an early-exit model at once, from labelled text."""

from dataclasses import dataclass
from pathlib import Path

import torch

from models.early_exit import EarlyExitModel
from pipeline.corpus.chunks import Chunk, MemorySource
from pipeline.training.checkpoint import FOLDER
from pipeline.training.config import TrainingConfig
from pipeline.training.frozen import standardize_heads
from pipeline.training.loop import TRAINING_LOG, Say, TrainState, train
from pipeline.training.process_group import ProcessGroup
from pipeline.training.recipes import FrozenHeads, Objective, WholeModel


@dataclass(frozen=True, kw_only=True)
class FinetuneSpec:
    """A fine-tuning as plain values, which travel to every worker."""

    backbone: str
    classes: list[str]
    head: str
    """Kind of the heads, the last one included."""
    strategy: str | None
    """None makes a full-depth classifier; 'two-stage', 'joint' or 'alternating' trains all exits."""
    exit_weights: str
    """'equal' (BERxiT) or 'depth' (PABEE: an exit weighs as its layer)."""
    train: Chunk
    dev: Chunk
    output: Path
    training: TrainingConfig
    second_stage: TrainingConfig
    """Of the branch heads, with 'two-stage'."""


def finetune(spec: FinetuneSpec, group: ProcessGroup, device: str, say: Say) -> None:
    """Train, and save the model into `spec.output`."""
    torch.manual_seed(spec.training.seed)
    last = "attention" if spec.head == "attention" else "classifier"
    model = EarlyExitModel.from_pretrained(spec.backbone, new_labels=spec.classes, new_last_head=last)
    if spec.strategy in ("joint", "alternating"):
        model.add_exits(spec.head)
    model.to(device)
    standardize_heads(model, spec.dev.rows)
    objective = Objective(soft=False)
    source = MemorySource(whole=spec.train, seed=spec.training.seed, rank=group.rank, workers=group.workers)

    def stage(recipe: WholeModel | FrozenHeads, config: TrainingConfig, name: str, branches: bool) -> TrainState:
        folder, log = spec.output / FOLDER / name, spec.output / TRAINING_LOG
        return train(
            recipe, source, spec.dev, config, folder=folder, log=log if name == "last" else None, group=group,
            branches_only=branches, say=say,
        )  # fmt: skip

    weights = [layer / model.shape.layers if spec.exit_weights == "depth" else 1.0 for layer in model.exit_layers]
    strategy = "alternating" if spec.strategy == "alternating" else "joint"
    position = stage(WholeModel(model, objective, strategy=strategy, weights=weights), spec.training, "last", False)
    if spec.strategy == "two-stage":
        say(f"dev {position.mean_scores(False)[-1]:.4f} at full depth; now the branch heads, on the frozen backbone")
        torch.manual_seed(spec.training.seed)
        model.add_exits(spec.head)
        model.to(device)
        standardize_heads(model, spec.dev.rows)
        position = stage(FrozenHeads(model, objective), spec.second_stage, "branches", True)
    if group.first:
        model.save_pretrained(spec.output)
        name = "correlation" if model.regression else "accuracy"
        say(f"dev {name} by exit: " + ", ".join(f"{n}: {score:.4f}" for n, score in position.best_scores.items()))
