"""What every exit says of every row, recorded in one pass."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.exits.uncertainty import exits_at, extend_streak, uncertainty_of
from models.precision import set_precision
from pipeline.corpus.chunks import Chunk
from pipeline.engine.all_exits import all_exits
from pipeline.engine.engine import default_token_budget
from pipeline.rows import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class AllExits:
    """What every exit says of every row. E exits, B rows, C classes."""

    layers: tuple[int, ...]
    logits: FloatArray
    """[E, B, C]."""
    lte: FloatArray | None
    """[E, B]: what the learned certainty says, before its sigmoid; of no use at the last exit."""

    @property
    def answers(self) -> FloatArray:
        """[E, B]: class indices as float, or values."""
        return self.logits[..., 0] if self.logits.shape[2] == 1 else self.logits.argmax(2).astype(np.float32)

    @property
    def regression(self) -> bool:
        return self.logits.shape[2] == 1

    def uncertainty(self, criterion: Criterion) -> FloatArray:
        """What a criterion sees at every exit: [E, B]."""
        logits = torch.from_numpy(self.logits)
        streak = torch.zeros(logits.shape[1], dtype=torch.int64)
        seen = []
        for place in range(len(self.layers)):
            if place:
                streak = extend_streak(streak, logits[place - 1], logits[place], criterion.tolerance)
            last = place == len(self.layers) - 1
            lte = None if self.lte is None or last else torch.from_numpy(self.lte[place])
            seen.append(uncertainty_of(criterion, logits[place], lte, streak))
        return torch.stack(seen).numpy()

    def exits_at(self, criterion: Criterion) -> npt.NDArray[np.bool_]:
        """Which rows would leave at every exit, were they still there: [E, B]."""
        seen = torch.from_numpy(self.uncertainty(criterion))
        leaving = [exits_at(criterion, layer, seen_B) for layer, seen_B in zip(self.layers, seen, strict=True)]
        exits_EB: npt.NDArray[np.bool_] = torch.stack(leaving).numpy()
        exits_EB[-1] = True
        return exits_EB


def record_all_exits(model: EarlyExitModel, examples: Chunk) -> AllExits:
    """Run every row through every exit once, without gradients, in the model's own precision."""
    layers = model.exit_layers
    logits = np.zeros((len(layers), len(examples), model.shape.classes), np.float32)
    lte = None if model.lte is None else np.zeros(logits.shape[:2], np.float32)
    with torch.inference_mode():
        for rows, answers in all_exits(model.eval(), examples.rows):
            for place, layer in enumerate(layers):
                logits[place, rows] = answers[layer].logits.float().cpu().numpy()
                certainty = answers[layer].lte
                if lte is not None and certainty is not None:
                    lte[place, rows] = certainty.float().cpu().numpy()
    return AllExits(layers=layers, logits=logits, lte=lte)


def record_as_run(model: EarlyExitModel, examples: Chunk, dtype: str, device: str) -> AllExits:
    """The same in the precision, and on the device, of a run; the model is cast and moved in place."""
    place = torch.device(device)
    set_precision(model, dtype, place, default_token_budget(place, model.shape.hidden))
    return record_all_exits(model, examples)
