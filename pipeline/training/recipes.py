"""What is trained, and on what: FrozenHeads for branch heads on a frozen backbone, WholeModel for backbone and exits together.

two-stage     backbone and last exit on labels; then the branch heads on the frozen backbone (DeeBERT), on labels or on the
              teacher's soft labels (FastBERT's self-distillation)
joint         backbone and all exits at once, sum of their losses (BERxiT; PABEE with weights by depth)
alternating   odd steps: backbone and last exit; even steps: joint (BERxiT)
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from models.branch_heads import BranchHeads
from models.early_exit import EarlyExitModel, ExitOutput
from models.exits.losses import is_known, label_losses, lte_losses, soft_label_losses
from models.exits.task import Task
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
    task: Task | None = None
    """What the model predicts; None takes one logit for a value, and more for classes."""

    def losses(self, logits_EBC: Tensor, labels_B: Tensor, teacher_BC: Tensor | None) -> Tensor:
        """Return the loss of every exit: [E]."""
        known_B = is_known(labels_B)
        if not self.soft:
            # Without labels 0, not NaN.
            return label_losses(logits_EBC, labels_B).sum(-1) / known_B.sum().clamp(min=1)
        assert teacher_BC is not None
        losses_EB = soft_label_losses(logits_EBC, teacher_BC, self.temperature, self.task)
        if self.label_weight:
            weight_B = self.label_weight * known_B
            losses_EB = (1 - weight_B) * losses_EB + weight_B * label_losses(logits_EBC, labels_B)
        return losses_EB.sum(-1) / max(len(labels_B), 1)


class Recipe(Protocol):
    """One way to train a model, which it changes in place."""

    model: EarlyExitModel

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained, in the order in which the loss first uses them."""
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
        self.device = next(model.parameters()).device
        self.weights_E = torch.tensor(weights or [1] * len(model.exit_layers), dtype=torch.float32, device=self.device)
        self.engine = (
            Engine(LoadedModel(copy.deepcopy(teacher), EngineConfig(), self.device)) if teacher is not None else None
        )

    def parameters(self) -> list[nn.Parameter]:
        return self.model.in_order_of_use()

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
        teacher_BC = logits_of(batch, self.device)
        return loss_of(stack_outputs(outputs), self.weights_E[-len(outputs) :], batch, teacher_BC, self.objective)

    def _is_last_alone(self, step: int) -> bool:
        """Return whether the last exit is the only one of this step."""
        return self.strategy == "alternating" and step % 2 == 1


class FrozenHeads:
    """A recipe that trains all branch heads side by side, on a backbone that is run without gradients."""

    def __init__(self, model: EarlyExitModel, objective: Objective, *, teacher_known: bool = False) -> None:
        """Copy the backbone; its last layer is run for soft labels, unless chunks bring them (`teacher_known`)."""
        self.model, self.objective = model, objective
        self.device = next(model.parameters()).device
        if len(model.exit_layers) == 1:
            raise ValueError("the model has no branch exits to train; add_exits first")
        self.backbone = FrozenBackbone(model, with_last=objective.soft and not teacher_known)
        self.heads = BranchHeads(model)
        self.weights_E = torch.ones(len(model.exit_layers) - 1, device=self.device)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.heads.parameters())

    def left_out(self, step: int) -> list[nn.Parameter]:
        return []

    def prepare(self, chunk: Chunk) -> Chunk:
        return chunk

    def prefetch(self, batches: Iterable[Chunk]) -> Iterator[tuple[Chunk, States | None]]:
        return self.backbone.prefetch(batches)

    def loss(self, batch: Chunk, step: int, states: States | None = None) -> Tensor:
        self.heads.train()
        states = states or self.backbone.run(batch.rows)
        with autocast(self.device):
            output = self.heads(states.inputs, length_groups_of(states.lengths))
        teacher_BC = states.teacher if states.teacher is not None else logits_of(batch, self.device)
        return loss_of(output, self.weights_E, batch, teacher_BC, self.objective)


def stack_outputs(outputs: Mapping[int, ExitOutput]) -> ExitOutput:
    """Put the outputs of exits, lowest first, one above the other: logits [E, B, C], and certainties of those that have one."""
    ltes = [output.lte for output in outputs.values() if output.lte is not None]
    logits_EBC = torch.stack([output.logits for output in outputs.values()])
    return ExitOutput(logits_EBC, torch.stack(ltes) if ltes else None)


def loss_of(
    output: ExitOutput, weights_E: Tensor, batch: Chunk, teacher_BC: Tensor | None, objective: Objective
) -> Tensor:
    """Return the weighted sum of the exits' losses, plus the losses of the learning-to-exit (LTE) scores.

    `output` is that of E exits, of which the lowest have a certainty. Nothing of it is read back from the device, which would
    wait for all of the step before.
    """
    labels_B = to_device(batch.labels, output.logits.device)
    loss = weights_E.dot(objective.losses(output.logits, labels_B, teacher_BC))
    if output.lte is None:
        return loss
    targets_B = targets_of(labels_B, teacher_BC) if objective.soft and teacher_BC is not None else labels_B
    return loss + lte_losses(output.lte, output.logits[: len(output.lte)], targets_B).sum()


def logits_of(batch: Chunk, device: torch.device) -> Tensor | None:
    """Return the teacher's logits that a batch brings along, on the device: [B, C]."""
    return None if batch.logits is None else to_device(batch.logits, device)


def targets_of(labels_B: Tensor, teacher_BC: Tensor) -> Tensor:
    """Compute `Chunk.targets` on the device: the label of every row, else the teacher's class or value: [B].

    Label sets are [B, C], and the teacher's are those at a threshold of 0.5.
    """
    if labels_B.dim() == 2:
        return torch.where(labels_B.isnan(), (teacher_BC > 0).float(), labels_B)
    teacher_B = teacher_BC[:, 0] if teacher_BC.shape[1] == 1 else teacher_BC.argmax(1).float()
    return torch.where(labels_B.isnan(), teacher_B, labels_B)


def add_teacher_logits(engine: Engine | None, chunk: Chunk) -> Chunk:
    """Return the chunk with the logits of the teacher's last exit."""
    if engine is None:
        raise ValueError("the rows have no soft labels and there is no teacher to give them")
    return replace(chunk, logits=engine.run(chunk.rows).logits)
