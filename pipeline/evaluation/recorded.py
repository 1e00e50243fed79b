"""The outputs of every exit for every row, recorded in one pass: what any threshold would do follows by arithmetic."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.exits.uncertainty import exits_at, extend_streak, uncertainty_of
from pipeline.corpus.chunks import Chunk
from pipeline.engine.all_exits import all_exits_as_run
from pipeline.engine.config import EngineConfig
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import FloatArray, IntArray, above


@dataclass(frozen=True, slots=True, kw_only=True)
class AllExits:
    """Outputs of E exits for B rows of C classes."""

    layers: tuple[int, ...]
    """Exit layers, ascending: E of them."""
    logits: FloatArray
    """[E, B, C]: the logits of every exit."""
    lte: FloatArray | None
    """[E, B]: logits of the learned certainty; the last exit has none, and zeros here."""
    boundaries: tuple[float, ...] | None = None
    """The logits above which labels are predicted: C of them; None where rows have one class, or a value."""

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Whether every exit gives a row numbers, and neither NaN nor infinity: [B]."""
        finite: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(self.logits), axis=(0, 2))
        return finite if self.lte is None else finite & np.logical_and.reduce(np.isfinite(self.lte), axis=0)

    def take(self, rows: IntArray) -> Self:
        """Return these rows in this order."""
        return replace(self, logits=self.logits[:, rows], lte=None if self.lte is None else self.lte[:, rows])

    @property
    def answers(self) -> FloatArray:
        """Predictions of every exit, class indices as float or values: [E, B]; label sets as [E, B, C] of 0 and 1."""
        if self.boundaries is not None:
            return above(self.logits, self.boundaries).astype(np.float32)
        return self.logits[..., 0] if self.logits.shape[2] == 1 else self.logits.argmax(2).astype(np.float32)

    @property
    def regression(self) -> bool:
        """Whether the exits predict a value."""
        return self.boundaries is None and self.logits.shape[2] == 1

    def differs(self, tolerance: float) -> npt.NDArray[np.bool_]:
        """Return whether a prediction at an exit below the last is not that of full depth: [E - 1, B].

        A label set is another one if any label differs, a value if it is more than `tolerance` apart.
        """
        answers = self.answers
        if self.regression:
            return np.abs(answers[:-1] - answers[-1]) > tolerance
        apart: npt.NDArray[np.bool_] = answers[:-1] != answers[-1]
        return apart if self.boundaries is None else np.logical_or.reduce(apart, axis=2)

    def uncertainty(self, criterion: Criterion) -> FloatArray:
        """Compute the uncertainty of a criterion at every exit: [E, B].

        Label sets are those of `boundaries`, whatever thresholds of labels the criterion has.
        """
        logits = torch.from_numpy(self.logits)
        boundaries = None if self.boundaries is None else torch.tensor(self.boundaries)
        streak = torch.zeros(logits.shape[1], dtype=torch.int64)
        measured = []
        for index in range(len(self.layers)):
            if index:
                streak = extend_streak(streak, logits[index - 1], logits[index], criterion.tolerance, boundaries)
            last = index == len(self.layers) - 1
            lte = None if self.lte is None or last else torch.from_numpy(self.lte[index])
            measured.append(uncertainty_of(criterion, logits[index], lte, streak, boundaries))
        return torch.stack(measured).numpy()

    def exits_at(self, criterion: Criterion) -> npt.NDArray[np.bool_]:
        """Return which rows would exit at every exit if they were still active there: [E, B]."""
        by_exit = zip(self.layers, torch.from_numpy(self.uncertainty(criterion)), strict=True)
        exiting = [exits_at(criterion, layer, uncertainty_B) for layer, uncertainty_B in by_exit]
        exits_EB: npt.NDArray[np.bool_] = torch.stack(exiting).numpy()
        exits_EB[-1] = True
        return exits_EB


def record_all_exits(model: EarlyExitModel, examples: Chunk, label_thresholds: tuple[float, ...] = ()) -> AllExits:
    """Run every row through every exit once, without gradients, in the model's own precision.

    `label_thresholds` are those of a Criterion, for a model of label sets.
    """
    layers = model.exit_layers
    logits = np.zeros((len(layers), len(examples), model.shape.classes), np.float32)
    lte = None if model.lte is None else np.zeros(logits.shape[:2], np.float32)
    with torch.inference_mode():
        for rows, outputs in all_exits_as_run(model.eval(), examples.rows):
            for index, layer in enumerate(layers):
                logits[index, rows] = outputs[layer].logits.float().cpu().numpy()
                certainty = outputs[layer].lte
                if lte is not None and certainty is not None:
                    lte[index, rows] = certainty.float().cpu().numpy()
    return AllExits(layers=layers, logits=logits, lte=lte, boundaries=model.boundaries(label_thresholds))


def record_as_run(
    model: EarlyExitModel, examples: Chunk, dtype: str, device: str, label_thresholds: tuple[float, ...] = ()
) -> AllExits:
    """Record all exits as a run computes them: in its precision, on its device. The model is taken over (LoadedModel)."""
    with LoadedModel(model, EngineConfig(dtype=dtype), device) as loaded:
        return record_all_exits(loaded.model, examples, label_thresholds)
