"""Training in one process: fine-tune a classifier, then distil its exits from its own answers.

Rows come in batches of similar length, shuffled and seeded; matrices are bf16 where the hardware has it, weights fp32; the
state with the best score on the dev set is the one that stays.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import PackedTokens
from models.early_exit import EarlyExitModel
from models.losses import self_distillation
from models.precision import DTYPES, best_dtype
from pipeline.engine import all_exits
from pipeline.labelled import Examples
from pipeline.lane import pack
from pipeline.packing import runs_of, training_batches
from pipeline.rows import IntArray, TokenRows

WINDOW_BATCHES = 50
"""Batches sorted by length together: enough for nearly equal lengths, little enough that epochs differ."""
TILE_TOKENS = 256
"""Token counts are rounded up to this, so that few matrix shapes occur."""
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; it then falls linearly to 0 (Devlin et al. 2019)."""
MAX_GRADIENT_NORM = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How to train; the same for fine-tuning and distillation."""

    epochs: int
    batch_rows: int
    learning_rate: float
    weight_decay: float = 0.01
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_rows", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")


@dataclass(slots=True)
class TrainingReport:
    """What happened: dev score by epoch, mean loss by epoch, and rows a second overall."""

    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rows_per_second: float = 0.0

    @property
    def best_score(self) -> float:
        return max(self.scores)


def finetune(
    model: EarlyExitModel, train: Examples, dev: Examples, config: TrainingConfig, say: Say = print
) -> TrainingReport:
    """Train backbone and last head on labels by cross-entropy; the score is dev accuracy. Changes the model in place."""
    if train.label_ids is None or dev.label_ids is None:
        raise ValueError("fine-tuning needs labels")
    labels = torch.from_numpy(train.label_ids)
    last = model.shape.layers

    def loss(packed: PackedTokens, batch: IntArray) -> Tensor:
        x_TH = model.backbone.embeddings(packed)
        for layer in model.backbone.layers:
            x_TH = layer(x_TH, packed.runs)
        logits_BC = model.exits[str(last)](x_TH, packed.runs)
        return F.cross_entropy(logits_BC.float(), labels[batch].to(logits_BC.device))

    def score() -> float:
        return accuracy_by_exit(model, dev)[last]

    parameters = [*model.backbone.parameters(), *model.exits[str(last)].parameters()]
    return _fit(model, parameters, train.rows, loss, score, config, "dev accuracy", say)


def distill(
    model: EarlyExitModel, train: TokenRows, dev: TokenRows, config: TrainingConfig, say: Say = print
) -> TrainingReport:
    """Train all branch heads at once to give the last exit's soft labels, backbone and last head frozen (FastBERT).

    No label is read. The score is the mean agreement of the branch exits with the last one on dev rows. Changes the model
    in place.
    """
    last = model.shape.layers
    branches = [layer for layer in model.exit_layers if layer != last]
    if not branches:
        raise ValueError("the model has no branch exits to distil; add_exits first")
    dtype = _training_dtype(config)
    # A copy in the engine's precision: heads learn on the very features that they will judge, and no weight is cast twice.
    frozen = copy.deepcopy(model.backbone).to(config.device, dtype).eval()
    teacher = copy.deepcopy(model.exits[str(last)]).to(config.device, dtype).eval()

    def loss(packed: PackedTokens, _batch: IntArray) -> Tensor:
        students = []
        with torch.no_grad():
            x_TH = frozen.embeddings(packed)
        for number, layer in enumerate(frozen.layers, start=1):
            with torch.no_grad():
                x_TH = layer(x_TH, packed.runs)
            if number in branches:
                students.append(model.exits[str(number)](x_TH, packed.runs))
        with torch.no_grad():
            target = teacher(x_TH, packed.runs)
        return self_distillation(students, target)

    def score() -> float:
        agreement = agreement_by_exit(model, dev)
        return sum(agreement[layer] for layer in branches) / len(branches)

    parameters = [p for layer in branches for p in model.exits[str(layer)].parameters()]
    return _fit(model, parameters, train, loss, score, config, "mean agreement with full depth", say)


def accuracy_by_exit(model: EarlyExitModel, examples: Examples) -> dict[int, float]:
    """Share of rows that every exit gets right."""
    if examples.label_ids is None:
        raise ValueError("accuracy needs labels")
    label_ids = torch.from_numpy(examples.label_ids)
    return _share_by_exit(model, examples.rows, lambda rows, _last: label_ids[rows])


def agreement_by_exit(model: EarlyExitModel, rows: TokenRows) -> dict[int, float]:
    """Share of rows on which every exit says what the last one says."""
    return _share_by_exit(model, rows, lambda _rows, last: last)


def _share_by_exit(
    model: EarlyExitModel, rows: TokenRows, target: Callable[[IntArray, Tensor], Tensor]
) -> dict[int, float]:
    hits = dict.fromkeys(model.exit_layers, 0)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode(), _autocast(device):
        for where, logits in all_exits(model, rows):
            wanted = target(where, logits[model.shape.layers].argmax(-1).cpu())
            for layer, logits_BC in logits.items():
                hits[layer] += int((logits_BC.argmax(-1).cpu() == wanted).sum())
    model.train(was_training)
    return {layer: count / max(len(rows), 1) for layer, count in hits.items()}


def _fit(
    model: EarlyExitModel,
    parameters: list[nn.Parameter],
    rows: TokenRows,
    loss_of: Callable[[PackedTokens, IntArray], Tensor],
    score: Callable[[], float],
    config: TrainingConfig,
    score_name: str,
    say: Say,
) -> TrainingReport:
    """Run the epochs of AdamW over `parameters` and put the best state back into the model."""
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    model.to(device).train()
    steps = config.epochs * math.ceil(len(rows) / config.batch_rows)
    optimiser = torch.optim.AdamW(_decay_groups(parameters, config.weight_decay), lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _warm_up_then_fall(step, steps))
    report, best, started, done = TrainingReport(), _snapshot(model), time.monotonic(), 0
    for epoch in range(1, config.epochs + 1):
        batches = training_batches(rows.lengths, config.batch_rows, WINDOW_BATCHES, config.seed + epoch)
        losses: list[Tensor] = []
        for batch in _with_progress(batches, epoch, config, say, started, done, losses):
            packed = _pack_batch(rows, batch, device)
            with _autocast(device):
                loss = loss_of(packed, batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
        done += len(rows)
        report.losses.append(float(torch.stack(losses).mean()))
        report.scores.append(score())
        if report.scores[-1] == report.best_score:
            best = _snapshot(model)
        seconds = time.monotonic() - started
        report.rows_per_second = done / seconds
        say(
            f"epoch {epoch}/{config.epochs}: loss {report.losses[-1]:.4f}, {score_name} {report.scores[-1]:.4f}, "
            f"{report.rows_per_second:,.0f} rows/s, {seconds:.0f} s"
        )
    model.load_state_dict(best)
    model.eval()
    return report


PROGRESS_SECONDS = 15.0


def _with_progress(
    batches: Sequence[IntArray],
    epoch: int,
    config: TrainingConfig,
    say: Say,
    started: float,
    done: int,
    losses: list[Tensor],
) -> Iterable[IntArray]:
    """Pass batches through, with a line about every quarter of a minute."""
    last = time.monotonic()
    for number, batch in enumerate(batches):
        now = time.monotonic()
        if now - last > PROGRESS_SECONDS and losses:
            last = now
            rate = (done + number * config.batch_rows) / (now - started)
            left = (config.epochs - epoch + 1) * len(batches) - number
            recent = torch.stack(losses[-50:]).mean()
            say(
                f"epoch {epoch}/{config.epochs}, step {number}/{len(batches)}: loss {recent:.4f}, "
                f"{rate:,.0f} rows/s, about {left * config.batch_rows / rate:.0f} s left"
            )
        yield batch


def _pack_batch(rows: TokenRows, batch: IntArray, device: torch.device) -> PackedTokens:
    members = rows.take(batch)
    return pack(members, runs_of(members.lengths), -len(members.token_ids) % TILE_TOKENS, device)


def _training_dtype(config: TrainingConfig) -> torch.dtype:
    return DTYPES[best_dtype(torch.device(config.device))]


def _autocast(device: torch.device) -> torch.autocast:
    dtype = DTYPES[best_dtype(device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def _decay_groups(parameters: list[nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices only; biases and LayerNorms are left alone, as usual for BERT."""
    matrices, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def _warm_up_then_fall(step: int, steps: int) -> float:
    rise = max(1, int(WARM_UP * steps))
    return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
