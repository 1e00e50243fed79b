"""Fine-tuning: make a classifier, or an early-exit model at once, from labelled text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.early_exit import EarlyExitModel
from models.exits.task import Task
from pipeline.corpus.chunks import Chunk, MemorySource
from pipeline.corpus.columns import Columns
from pipeline.corpus.labelled import Texts, hold_out, label_reader, label_text, read_texts
from pipeline.errors import InputError
from pipeline.schema import VALUE
from pipeline.storage.model_cache import checked_model
from pipeline.training.checkpoint import FOLDER
from pipeline.training.config import TrainingConfig
from pipeline.training.frozen import standardize_heads
from pipeline.training.loop import score_name, train
from pipeline.training.process_group import ProcessGroup
from pipeline.training.progress import TRAINING_LOG, Log, TrainState
from pipeline.training.recipes import FrozenHeads, Objective, Recipe, WholeModel

HOLD_OUT = 0.1
"""Fraction of the training rows that become dev rows where none are given."""
HOLD_OUT_ROWS = 2000
"""Most rows that become dev rows in this way."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSpec:
    """A fine-tuning as plain values, which travel to every worker."""

    backbone: str
    classes: list[str]
    """Names of the classes or labels by index; [VALUE] for regression."""
    head: str
    """Kind of the heads, the last one included."""
    strategy: str | None
    """One of training.config.FINETUNE_STRATEGIES, which train all exits; None makes a full-depth classifier."""
    exit_weights: str
    """Weights of the exits' losses: 'equal' (BERxiT), or 'depth', proportional to the layer (PABEE)."""
    train: Chunk
    dev: Chunk
    output: Path
    training: TrainingConfig
    second_stage: TrainingConfig
    """Settings for the branch heads, with 'two-stage'."""
    task: Task | None = None
    """What is predicted; None is a value if there is one class, else a class."""
    weights: str | None = None
    """Digest of the backbone's weights; a worker that finds others raises StorageError. None trusts what is there."""


def finetune(spec: FinetuneSpec, group: ProcessGroup, device: str, log: Log) -> None:
    """Train, and save the model into `spec.output`."""
    model = _new_model(spec).to(device)
    standardize_heads(model, spec.dev.rows, group)
    weights = [layer / model.shape.layers if spec.exit_weights == "depth" else 1.0 for layer in model.exit_layers]
    strategy = "alternating" if spec.strategy == "alternating" else "joint"
    objective = Objective(soft=False, task=model.task)
    recipe = WholeModel(model, objective, strategy=strategy, weights=weights)
    state = _train_stage(spec, recipe, group, log, branches=False)
    if spec.strategy == "two-stage":
        score = state.selection_scores(branches_only=False)[-1]
        if group.is_rank_zero:
            log(f"dev {score:.4f} at full depth; now the branch heads, on the frozen backbone")
        torch.manual_seed(spec.training.seed)
        model.add_exits(spec.head)
        model.to(device)
        standardize_heads(model, spec.dev.rows, group)
        state = _train_stage(spec, FrozenHeads(model, objective), group, log, branches=True)
    if group.is_rank_zero:
        model.save_pretrained(spec.output)
        log(
            f"dev {score_name(model.task)} by exit: "
            + ", ".join(f"{n}: {score:.4f}" for n, score in state.best_scores.items())
        )


def _new_model(spec: FinetuneSpec) -> EarlyExitModel:
    """Load the backbone under a new last head, with all exits if they are trained along with it."""
    torch.manual_seed(spec.training.seed)
    last = "attention" if spec.head == "attention" else "classifier"
    backbone = spec.backbone if spec.weights is None else checked_model(spec.backbone, spec.weights)
    model = EarlyExitModel.from_pretrained(backbone, new_labels=spec.classes, new_last_head=last, new_task=spec.task)
    if spec.strategy in ("joint", "alternating"):
        model.add_exits(spec.head)
    return model


def _train_stage(spec: FinetuneSpec, recipe: Recipe, group: ProcessGroup, log: Log, *, branches: bool) -> TrainState:
    """Train the branch heads, or else the last head with the backbone; each stage has checkpoints of its own."""
    return train(
        recipe,
        MemorySource(whole=spec.train, seed=spec.training.seed, rank=group.rank, world_size=group.world_size),
        spec.dev,
        spec.second_stage if branches else spec.training,
        folder=spec.output / FOLDER / ("branches" if branches else "last"),
        log_file=None if branches else spec.output / TRAINING_LOG,
        group=group,
        branches_only=branches,
        log=log,
    )


def read_labelled(
    path: str,
    columns: Columns,
    limit: int | None,
    *,
    task: Task,
    class_names: str | None,
    separator: str | None = None,
) -> tuple[Texts, list[str]]:
    """Read labelled texts, at most `limit` rows, and their classes by index, which are [VALUE] for regression.

    `separator` stands between the labels of a label set where a file has it as text. Raises UserError for missing columns,
    files or labels, and InputError where all rows have the same label, or none has any.
    """
    texts = read_texts(path, columns, limit, label_reader(task, separator))
    if task is Task.VALUE and class_names is not None:
        raise InputError("class_names", f"{class_names}: values have no classes")
    if task is Task.VALUE:
        return texts, [VALUE]
    if class_names is not None:
        return texts, parse_class_names(class_names)
    classes = texts.class_names()
    if not classes:
        raise InputError("train", f"{path}: no row has a label; there is nothing to learn")
    if len(classes) < 2 and task is Task.CLASSES:
        raise InputError("train", f"{path}: all labels are '{classes[0]}'; there is nothing to tell apart")
    return texts, classes


def parse_class_names(given: str) -> list[str]:
    """Return class names by index: `negative,positive` as it is, `classes.json` from that file, which holds a list.

    Raises InputError unless there are two of them or more, each a name of its own.
    """
    names: object = given.split(",")
    if given.endswith(".json"):
        try:
            names = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError("class_names", f"{given}: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise InputError("class_names", f"{given}: holds no JSON list of names")
    texts = [label_text(name) or "" for name in names]
    if len(texts) < 2:
        raise InputError("class_names", f"{given}: one class leaves nothing to tell apart")
    if "" in texts or len(set(texts)) < len(texts):
        raise InputError("class_names", f"{given}: has a name twice, or one that is empty")
    return texts


def split_off_dev(whole: Chunk, seed: int, least: int = 1) -> tuple[Chunk, Chunk]:
    """Split into training rows and dev rows: a tenth at random, but at least `least` and at most HOLD_OUT_ROWS."""
    return hold_out(whole, max(least, min(int(len(whole) * HOLD_OUT), HOLD_OUT_ROWS)), seed)


def check_trainable(train: Chunk, dev: Chunk, classes: Sequence[str], *, path: str, dev_path: str | None) -> None:
    """Raise InputError if there is nothing to learn from the training rows, or no epoch to be told from another by dev rows.

    `path` is where the training rows are from, and `dev_path` the dev rows, None if these were held out of the others.
    """
    held_out = "" if dev_path else f", with {len(dev):,} held out to score epochs by; give more, or dev rows"
    if not len(train):
        raise InputError("train", f"{path}: no row is left to train on{held_out}")
    if len(classes) == 1 and train.labels.ndim == 1:
        if np.ptp(train.labels) == 0:
            raise InputError(
                "train", f"{path}: all values are {train.labels[0]:g}{held_out}; there is nothing to learn"
            )
        if np.ptp(dev.labels) == 0:
            where = ("dev", dev_path) if dev_path else ("train", f"{path}, held out")
            raise InputError(
                where[0], f"{where[1]}: all values are {dev.labels[0]:g}, which tell no epoch from another"
            )
        return
    if train.labels.ndim == 2:
        absent = [name for name, column_B in zip(classes, train.labels.T, strict=True) if not column_B.any()]
        what = "has the label"
        if (train.labels == train.labels[0]).all():
            raise InputError(
                "train", f"{path}: all rows have the same labels{held_out}; there is nothing to tell apart"
            )
    else:
        absent = [name for index, name in enumerate(classes) if not (train.labels == index).any()]
        what = "is of class"
    if absent:
        raise InputError("train", f"{path}: no row to train on {what} '{absent[0]}'{held_out}")
