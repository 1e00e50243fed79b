"""What goes in, the windows of texts, and what comes out, one prediction a text and what it took."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from pipeline.rows import IntArray, Predictions, TokenRows, offsets_of, spans


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRows:
    """Token rows of B texts, which have one window or more: text i is the windows `bounds[i]` to `bounds[i + 1]`.

    Example: texts of two windows and of one are `TextRows(windows=TokenRows.from_lists([[1], [2], [3]]), counts=[2, 1])`.
    """

    windows: TokenRows
    """[W]: the windows of all texts, those of a text in order."""
    counts: IntArray
    """[B]: number of windows of each text, at least 1."""

    def __post_init__(self) -> None:
        if self.counts.sum() != len(self.windows) or (len(self.counts) and self.counts.min() < 1):
            raise ValueError("the counts do not describe these windows")

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def whole(cls, rows: TokenRows) -> Self:
        """Take rows for texts of one window each."""
        return cls(windows=rows, counts=np.ones(len(rows), np.int64))

    @property
    def bounds(self) -> IntArray:
        """Return where the windows of each text start, and the end: [B + 1]."""
        return offsets_of(self.counts)

    @property
    def lengths(self) -> IntArray:
        """Return the tokens of each text, those that windows share counted in each of them: [B]."""
        return np.diff(self.windows.offsets[self.bounds])

    def take(self, texts: IntArray) -> Self:
        """Return these texts in this order."""
        counts = self.counts[texts]
        return type(self)(windows=self.windows.take(spans(self.bounds[:-1][texts], counts)), counts=counts)

    def slice(self, texts: range) -> Self:
        """Return neighbouring texts, without a copy of their tokens."""
        bounds = self.bounds
        windows = range(int(bounds[texts.start]), int(bounds[texts.stop]))
        return type(self)(windows=self.windows.slice(windows), counts=self.counts[texts.start : texts.stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPredictions:
    """Predictions for B texts, in the order in which they came in, and what was computed for each."""

    predictions: Predictions
    """[B]: one for each text, at the deepest of the layers that its windows went through."""
    windows: IntArray
    """[B]: windows that were computed."""
    tokens: IntArray
    """[B]: tokens of those."""
    layer_tokens: IntArray
    """[B]: their tokens x layers."""
    flops: npt.NDArray[np.float64]
    """[B]: the FLOPs that they took."""

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """Put the predictions of several calls one after the other."""
        return cls(
            predictions=Predictions.join([part.predictions for part in parts]),
            windows=np.concatenate([part.windows for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
            layer_tokens=np.concatenate([part.layer_tokens for part in parts]),
            flops=np.concatenate([part.flops for part in parts]),
        )

    def checked(self) -> Self:
        """Return itself; raise FloatingPointError if a logit is NaN or infinite, of a window that was computed."""
        self.predictions.checked()
        return self
