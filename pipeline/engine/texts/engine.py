"""The engine for texts: windows are rows of the engine, which exit early as others do.

    TextEngine(engine, LongTexts(combine="max")).run(TextRows(windows=..., counts=...))

All windows of all texts go through the engine together. Where the first that is certain decides, they go in rounds: the first
windows of all texts, then the second ones of those that have no decision yet, and so on. So a window that is not needed is not
computed. What a text gets depends on its own windows alone.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.exits.criterion import Criterion
from pipeline.engine.engine import Engine
from pipeline.engine.texts.combine import combine
from pipeline.engine.texts.rows import TextPredictions, TextRows
from pipeline.errors import InputError
from pipeline.rows import IntArray, Predictions
from pipeline.windows import LongTexts

Floats = npt.NDArray[np.float64]


class TextEngine:
    """Runs texts of one window or more through an engine."""

    def __init__(self, engine: Engine, long_texts: LongTexts | None = None) -> None:
        """Combine windows by `long_texts`; None is for texts of one window each.

        Raises InputError if the first certain one should decide, and the engine's criterion cannot tell which windows are.
        """
        self.engine, self.long_texts = engine, long_texts or LongTexts()
        if long_texts is not None:
            check_combination(long_texts, engine.config.criterion, regression=engine.model.regression)

    def with_criterion(self, criterion: Criterion) -> "TextEngine":
        """Return an engine of the same loaded model whose windows exit by another criterion."""
        return TextEngine(self.engine.with_criterion(criterion), self.long_texts)

    def run(self, texts: TextRows) -> TextPredictions:
        """Classify texts; the predictions are of exactly these texts, in this order. Raises as `Engine.run`."""
        if self.long_texts.in_turn and len(texts.windows) > len(texts):
            done, windows = self._in_turn(texts)
        else:
            done, windows = np.arange(len(texts.windows)), self.engine.run(texts.windows)
        of_text = np.repeat(np.arange(len(texts)), texts.counts)[done]
        counts, lengths = np.bincount(of_text, minlength=len(texts)), texts.windows.lengths[done]
        layer_tokens = lengths * windows.exit_layers
        return TextPredictions(
            predictions=combine(self.long_texts.combine, windows, counts),
            windows=counts,
            tokens=_sums(of_text, lengths, len(texts)).astype(np.int64),
            layer_tokens=_sums(of_text, layer_tokens, len(texts)).astype(np.int64),
            flops=_sums(of_text, self.engine.flops.rows(lengths, windows.exit_layers), len(texts)),
        )

    def full_depth_flops(self, texts: TextRows) -> Floats:
        """Count the FLOPs of the plain model at full depth on all windows of each text: [B]."""
        of_text = np.repeat(np.arange(len(texts)), texts.counts)
        return _sums(of_text, self.engine.flops.full_depth(texts.windows.lengths), len(texts))

    def _in_turn(self, texts: TextRows) -> tuple[IntArray, Predictions]:
        """Run the windows of each text until one is certain; return their indices, ascending, and their predictions."""
        starts, waiting, number = texts.bounds[:-1], np.arange(len(texts)), 0
        done, parts = [], []
        while len(waiting):
            done.append(starts[waiting] + number)
            parts.append(self.engine.run(texts.windows.take(done[-1])))
            number += 1
            certain = parts[-1].uncertainty <= np.float32(self.long_texts.certain)
            waiting = waiting[~certain & (texts.counts[waiting] > number)]
        windows, joined = np.concatenate(done), Predictions.join(parts)
        order = np.argsort(windows)
        return windows[order], joined.take(order, with_work=True)


def check_combination(long_texts: LongTexts, criterion: Criterion, *, regression: bool) -> None:
    """Raise InputError if the first certain window should decide and windows have no uncertainty to tell that by."""
    if long_texts.in_turn and (regression or criterion.name == "patience"):
        why = "the model predicts a value" if regression else "criterion patience counts exits"
        raise InputError(
            "window_combine", f"first-certain needs an uncertainty of each window, and {why}; take mean or max"
        )


def _sums(of_text: IntArray, values_W: npt.NDArray[Any], texts: int) -> Floats:
    """Add up the values of each text's windows: [W] -> [B]."""
    return np.bincount(of_text, values_W.astype(np.float64), minlength=texts).astype(np.float64)
