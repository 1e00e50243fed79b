"""What is trained, and on what: FrozenHeads for branch heads on a frozen backbone, WholeModel for backbone and exits together.

two-stage     backbone and last exit on labels; then the branch heads on the frozen backbone (DeeBERT), on labels or on the
              teacher's soft labels (FastBERT's self-distillation)
joint         backbone and all exits at once, sum of their losses (BERxiT; PABEE with weights by depth)
alternating   odd steps: backbone and last exit; even steps: joint (BERxiT)
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from models.early_exit import EarlyExitModel, ExitOutput
from models.exits.losses import label_losses, lte_loss, soft_label_losses
from models.layers import to_device
from models.precision import autocast
from pipeline.corpus.chunks import Chunk
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.pack import pack
from pipeline.engine.packing import length_groups_of
from pipeline.training.config import STRATEGIES
from pipeline.training.frozen import FrozenBackbone, States

TOKEN_MULTIPLE = 256
"""Token counts are rounded up to this, so that few matrix shapes occur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What exits are trained on: true labels, the teacher's soft labels, or a mixture."""

    soft: bool
    """Train on the teacher's soft labels; False trains on true labels alone."""
    temperature: float = 1.0
    """Divides the logits of teacher and exit alike before they are compared."""
    label_weight: float = 0.0
    """Weight of the true label where a row has one, with soft labels; the soft label has the rest."""

    def loss(self, logits_BC: Tensor, labels_B: Tensor, teacher_BC: Tensor | None) -> Tensor:
        """Return the loss of one exit, a scalar."""
        known_B = ~labels_B.isnan()
        if not self.soft:
            return label_losses(logits_BC, labels_B).sum() / known_B.sum().clamp(min=1)  # without labels 0, not NaN
        assert teacher_BC is not None
        losses_B = soft_label_losses(logits_BC, teacher_BC, self.temperature)
        if self.label_weight:
            weight_B = self.label_weight * known_B
            losses_B = (1 - weight_B) * losses_B + weight_B * label_losses(logits_BC, labels_B)
        return losses_B.sum() / max(len(losses_B), 1)


class Recipe(Protocol):
    """One way to train a model, which it changes in place."""

    model: EarlyExitModel

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        ...

    def left_out(self, step: int) -> list[nn.Parameter]:
        """Return the parameters on which the loss of this step, counted from 1, does not depend."""
        ...

    def prepare(self, chunk: Chunk) -> Chunk:
        """Add the teacher's logits to a chunk if they are needed, missing, and not a by-product of the loss."""
        ...

    def prefetch(self, batches: Iterable[Chunk]) -> Iterator[tuple[Chunk, States | None]]:
        """Yield the batches in order, each with what was computed of it ahead of time."""
        ...

    def loss(self, batch: Chunk, step: int, states: States | None = None) -> Tensor:
        """Return the loss of a batch at this step, counted from 1."""
        ...


class WholeModel:
    """A recipe that trains backbone and exits together; of a model without branch exits the last one, whatever the strategy."""

    def __init__(
        self,
        model: EarlyExitModel,
        objective: Objective,
        *,
        strategy: str = "joint",
        weights: Sequence[float] | None = None,
        teacher: EarlyExitModel | None = None,
    ) -> None:
        """Check the strategy and copy the teacher, which gives soft labels where chunks have none.

        `weights` are those of the exits' losses, lowest layer first (default: 1 each).
        """
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not '{strategy}'")
        self.model, self.objective, self.strategy = model, objective, strategy
        self.weights = list(weights or [1.0] * len(model.exit_layers))
        self.device = next(model.parameters()).device
        self.engine = (
            Engine(LoadedModel(copy.deepcopy(teacher), EngineConfig(), self.device)) if teacher is not None else None
        )

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def left_out(self, step: int) -> list[nn.Parameter]:
        return self.model.branch_parameters() if self._is_last_alone(step) else []

    def prepare(self, chunk: Chunk) -> Chunk:
        return add_teacher_logits(self.engine, chunk) if self.objective.soft and chunk.logits is None else chunk

    def prefetch(self, batches: Iterable[Chunk]) -> Iterator[tuple[Chunk, States | None]]:
        return ((batch, None) for batch in batches)

    def loss(self, batch: Chunk, step: int, states: States | None = None) -> Tensor:
        self.model.train()
        padding = -len(batch.rows.token_ids) % TOKEN_MULTIPLE
        packed = pack(batch.rows, length_groups_of(batch.rows.lengths), padding, self.device)
        last = self.model.shape.layers
        with autocast(self.device):
            outputs = {last: self.model.last_output(packed)} if self._is_last_alone(step) else self.model(packed)
        weights = dict(zip(self.model.exit_layers, self.weights, strict=True))
        teacher_BC = logits_of(batch, self.device)
        return loss_of(outputs, {layer: weights[layer] for layer in outputs}, batch, teacher_BC, self.objective)

    def _is_last_alone(self, step: int) -> bool:
        """Return whether the last exit is the only one of this step."""
        return self.strategy == "alternating" and step % 2 == 1


class FrozenHeads:
    """A recipe that trains all branch heads side by side, on a backbone that is run without gradients."""

    def __init__(self, model: EarlyExitModel, objective: Objective, *, teacher_known: bool = False) -> None:
        """Copy the backbone; its last layer is run for soft labels, unless chunks bring them (`teacher_known`)."""
        self.model, self.objective = model, objective
        self.device = next(model.parameters()).device
        self.branches = [layer for layer in model.exit_layers if layer != model.shape.layers]
        if not self.branches:
            raise ValueError("the model has no branch exits to train; add_exits first")
        self.backbone = FrozenBackbone(model, with_last=objective.soft and not teacher_known)

    def parameters(self) -> list[nn.Parameter]:
        return self.model.branch_parameters()

    def left_out(self, step: int) -> list[nn.Parameter]:
        return []

    def prepare(self, chunk: Chunk) -> Chunk:
        return chunk

    def prefetch(self, batches: Iterable[Chunk]) -> Iterator[tuple[Chunk, States | None]]:
        return self.backbone.prefetch(batches)

    def loss(self, batch: Chunk, step: int, states: States | None = None) -> Tensor:
        self.model.train()
        states = states or self.backbone.run(batch.rows)
        with autocast(self.device):
            outputs = {
                layer: self.model.exit_output(layer, self.backbone.features(self.model.head(layer), states, layer))
                for layer in self.branches
            }
        teacher_BC = states.teacher.float() if states.teacher is not None else logits_of(batch, self.device)
        return loss_of(outputs, dict.fromkeys(outputs, 1.0), batch, teacher_BC, self.objective)


def loss_of(
    outputs: dict[int, ExitOutput],
    weights: dict[int, float],
    batch: Chunk,
    teacher_BC: Tensor | None,
    objective: Objective,
) -> Tensor:
    """Return the weighted sum of the exits' losses, plus the losses of the learning-to-exit (LTE) scores.

    Nothing of it is read back from the device, which would wait for all of the step before.
    """
    labels_B = to_device(batch.labels, next(iter(outputs.values())).logits.device)
    targets_B = targets_of(labels_B, teacher_BC) if objective.soft and teacher_BC is not None else labels_B
    losses = []
    for layer, output in outputs.items():
        losses.append(weights[layer] * objective.loss(output.logits, labels_B, teacher_BC))
        if output.lte is not None:
            losses.append(lte_loss(output.lte, output.logits, targets_B))
    return torch.stack(losses).sum()


def logits_of(batch: Chunk, device: torch.device) -> Tensor | None:
    """Return the teacher's logits that a batch brings along, on the device: [B, C]."""
    return None if batch.logits is None else to_device(batch.logits, device)


def targets_of(labels_B: Tensor, teacher_BC: Tensor) -> Tensor:
    """Compute `Chunk.targets` on the device: the label of every row, else the teacher's class or value: [B]."""
    teacher_B = teacher_BC[:, 0] if teacher_BC.shape[1] == 1 else teacher_BC.argmax(1).float()
    return torch.where(labels_B.isnan(), teacher_B, labels_B)


def add_teacher_logits(engine: Engine | None, chunk: Chunk) -> Chunk:
    """Return the chunk with the logits of the teacher's last exit."""
    if engine is None:
        raise ValueError("the rows have no soft labels and there is no teacher to give them")
    return replace(chunk, logits=engine.run(chunk.rows).logits)
