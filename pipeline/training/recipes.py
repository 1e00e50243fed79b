"""What is trained, and from what: one class for heads on a frozen backbone, one for whole models.

two-stage     backbone and last exit from labels; then all other heads on the frozen backbone (DeeBERT), or from the
              teacher's soft labels in place of true ones (FastBERT's self-distillation)
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
from models.precision import autocast
from pipeline.corpus.chunks import Chunk
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.pack import pack
from pipeline.engine.packing import length_groups_of
from pipeline.training.frozen import FrozenBackbone, States

TOKEN_MULTIPLE = 256
"""Token counts are rounded up to this, so that few matrix shapes occur."""
STRATEGIES = ("joint", "alternating")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an exit learns from: true labels, the teacher's soft labels, or a mixture."""

    soft: bool
    temperature: float = 1.0
    label_share: float = 0.0
    """With soft labels: weight of the true label where a row has one."""

    def loss(self, logits_BC: Tensor, labels_B: Tensor, teacher_BC: Tensor | None) -> Tensor:
        """Return the loss of one exit, a scalar."""
        known_B = ~labels_B.isnan()
        if not self.soft:
            return label_losses(logits_BC, labels_B).sum() / known_B.sum().clamp(min=1)  # without labels 0, not NaN
        assert teacher_BC is not None
        losses_B = soft_label_losses(logits_BC, teacher_BC, self.temperature)
        if self.label_share:
            share_B = self.label_share * known_B
            losses_B = (1 - share_B) * losses_B + share_B * label_losses(logits_BC, labels_B)
        return losses_B.sum() / max(len(losses_B), 1)


class Recipe(Protocol):
    """One way to train a model, which it changes in place."""

    model: EarlyExitModel

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        ...

    def prepare(self, chunk: Chunk) -> Chunk:
        """Fill in what the teacher says of a chunk, if it is needed and not there."""
        ...

    def prefetch(self, batches: Iterable[Chunk]) -> Iterator[tuple[Chunk, States | None]]:
        """Hand out batches, with what could be computed of them beforehand."""
        ...

    def loss(self, batch: Chunk, step: int, states: States | None = None) -> Tensor:
        """Return the loss of a batch at this step, counted from 1."""
        ...


class WholeModel:
    """Backbone and exits learn together."""

    def __init__(
        self,
        model: EarlyExitModel,
        objective: Objective,
        *,
        strategy: str = "joint",
        weights: Sequence[float] | None = None,
        teacher: EarlyExitModel | None = None,
    ) -> None:
        """`weights` of the exits' losses, ascending by layer, default to 1 each; `teacher` is asked for missing soft labels.

        A model without branch exits learns its last one, whatever the strategy.
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
            if self.strategy == "alternating" and step % 2 == 1:
                answers = {last: self.model.last_output(packed)}
            else:
                answers = self.model(packed)
        weights = dict(zip(self.model.exit_layers, self.weights, strict=True))
        return loss_of(answers, {layer: weights[layer] for layer in answers}, batch, self.objective, self.device)


class FrozenHeads:
    """The branch heads learn, side by side, on a backbone that is run without gradients."""

    def __init__(self, model: EarlyExitModel, objective: Objective, *, teacher_known: bool = False) -> None:
        """`teacher_known` says that chunks come with the teacher's logits, so that the last layer need not be run."""
        self.model, self.objective = model, objective
        self.device = next(model.parameters()).device
        self.branches = [layer for layer in model.exit_layers if layer != model.shape.layers]
        if not self.branches:
            raise ValueError("the model has no branch exits to train; add_exits first")
        self.backbone = FrozenBackbone(model, with_last=objective.soft and not teacher_known)

    def parameters(self) -> list[nn.Parameter]:
        heads = [p for layer in self.branches for p in self.model.head(layer).parameters()]
        return heads + ([] if self.model.lte is None else list(self.model.lte.parameters()))

    def prepare(self, chunk: Chunk) -> Chunk:
        return chunk

    def prefetch(self, batches: Iterable[Chunk]) -> Iterator[tuple[Chunk, States | None]]:
        return self.backbone.prefetch(batches)

    def loss(self, batch: Chunk, step: int, states: States | None = None) -> Tensor:
        self.model.train()
        states = states or self.backbone.run(batch.rows)
        with autocast(self.device):
            answers = {
                layer: self.model.exit_output(layer, self.backbone.features(self.model.head(layer), states, layer))
                for layer in self.branches
            }
        if batch.logits is None and states.teacher is not None:
            batch = replace(batch, logits=states.teacher.float().cpu().numpy())
        return loss_of(answers, dict.fromkeys(answers, 1.0), batch, self.objective, self.device)


def loss_of(
    answers: dict[int, ExitOutput], weights: dict[int, float], batch: Chunk, objective: Objective, device: torch.device
) -> Tensor:
    """Sum the weighted losses of exits, and what the learned certainty costs."""
    labels_B = torch.from_numpy(batch.labels).to(device)
    teacher_BC = None if batch.logits is None else torch.from_numpy(batch.logits).to(device)
    targets_B = torch.from_numpy(batch.targets()).to(device) if objective.soft else labels_B
    losses = []
    for layer, answer in answers.items():
        losses.append(weights[layer] * objective.loss(answer.logits, labels_B, teacher_BC))
        if answer.lte is not None:
            losses.append(lte_loss(answer.lte, answer.logits, targets_B))
    return torch.stack(losses).sum()


def add_teacher_logits(engine: Engine | None, chunk: Chunk) -> Chunk:
    """Let the teacher say what it thinks of a chunk."""
    if engine is None:
        raise ValueError("the rows have no soft labels and there is no teacher to ask")
    return replace(chunk, logits=engine.run(chunk.rows).logits)
