"""What goes into the engine, TokenRows, and what comes out of it, Predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Thresholds = npt.NDArray[np.float32]
"""[B, L]: the uncertainty up to which a row exits after each layer; 0 where it may not."""


def spans(starts: IntArray, lengths: IntArray) -> IntArray:
    """Return the indices of B spans one after the other: `spans([5, 0, 2], [2, 0, 1])` is `[5, 6, 2]`."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def offsets_of(lengths: IntArray) -> IntArray:
    """Return where each of B rows starts, and the end, as [B + 1]: `offsets_of([3, 2])` is `[0, 3, 5]`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRows:
    """Token ids of B rows, ragged: row i is `token_ids[offsets[i]:offsets[i + 1]]`.

    Example: `TokenRows.from_lists([[101, 7, 102], [101, 102]])` has token_ids [101, 7, 102, 101, 102], offsets [0, 3, 5] and
    segments [3, 2].
    """

    token_ids: npt.NDArray[np.int32]
    """[T]: all rows one after the other, special tokens included."""
    offsets: npt.NDArray[np.int64]
    """[B + 1]: where each row starts in `token_ids`, and the end."""
    segments: npt.NDArray[np.int32]
    """[B]: where the second text of a pair starts, counted from the row's start; the row's length for single texts."""

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.segments) + 1 or self.offsets[-1] != len(self.token_ids):
            raise ValueError("offsets, segments and token_ids do not describe the same rows")
        if len(self) and self.lengths.min() < 1:
            raise ValueError("a row has no tokens")

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each row: [B]."""
        return np.diff(self.offsets)

    def take(self, rows: IntArray) -> Self:
        """Return these rows in this order."""
        lengths = self.lengths[rows]
        return type(self)(
            token_ids=self.token_ids[spans(self.offsets[:-1][rows], lengths)],
            offsets=offsets_of(lengths),
            segments=self.segments[rows],
        )

    def slice(self, rows: range) -> Self:
        """Return neighbouring rows, without a copy of their tokens."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        return type(self)(
            token_ids=self.token_ids[offsets[0] : offsets[-1]],
            offsets=offsets - offsets[0],
            segments=self.segments[rows.start : rows.stop],
        )

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """Put rows one after the other; the inverse of `slice`."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            token_ids=np.concatenate([part.token_ids for part in parts]),
            offsets=offsets_of(np.concatenate([part.lengths for part in parts])),
            segments=np.concatenate([part.segments for part in parts]),
        )

    @classmethod
    def from_lists(cls, rows: list[list[int]], segments: list[int] | None = None) -> Self:
        """Build rows from one list of ids each; `segments` defaults to single texts."""
        lengths = np.array([len(row) for row in rows], np.int64)
        flat = [token for row in rows for token in row]
        return cls(
            token_ids=np.array(flat, np.int32),
            offsets=offsets_of(lengths),
            segments=np.array(lengths if segments is None else segments, np.int32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Predictions of the engine for B rows, in the order in which they came in."""

    logits: npt.NDArray[np.float32]
    """[B, C]: those of the exit that the row took."""
    boundaries: tuple[float, ...] | None = None
    """The logits above which labels are predicted: C of them; None where a row has one class, or a value."""
    exit_layers: npt.NDArray[np.int16]
    """[B], 1..L: number of layers that the row went through."""
    uncertainty: npt.NDArray[np.float32]
    """[B], in [0, 1]: uncertainty at that exit."""
    layer_tokens: int
    """Sum over rows of tokens x layers that were computed."""
    padding_tokens: int
    """Padding tokens x layers that were computed, since matrices are padded to a multiple of some tokens."""

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """Put the predictions of several calls one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            logits=np.concatenate([part.logits for part in parts]),
            boundaries=parts[0].boundaries,
            exit_layers=np.concatenate([part.exit_layers for part in parts]),
            uncertainty=np.concatenate([part.uncertainty for part in parts]),
            layer_tokens=sum(part.layer_tokens for part in parts),
            padding_tokens=sum(part.padding_tokens for part in parts),
        )

    def checked(self) -> Self:
        """Return itself; raise FloatingPointError if a logit is NaN or infinite, which would pass for a prediction."""
        broken = int((~np.isfinite(self.logits)).any(1).sum())
        if broken:
            raise FloatingPointError(f"the model's logits are no numbers for {broken:,} of {len(self.logits):,} rows")
        return self

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Softmax of the logits, or the sigmoid of each where rows have label sets: [B, C]."""
        if self.boundaries is not None:
            return _sigmoid(self.logits)
        powers: npt.NDArray[np.float32] = np.exp(self.logits - self.logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    @property
    def value_probabilities(self) -> FloatArray:
        """Sigmoid of the value: [B]; for classifiers of one logit, such as those trained by binary cross-entropy."""
        return _sigmoid(self.logits[:, 0])

    @property
    def label_ids(self) -> npt.NDArray[np.int32]:
        """Index of the most probable class: [B]; for models that predict one."""
        return self.logits.argmax(1).astype(np.int32)

    @property
    def label_sets(self) -> npt.NDArray[np.bool_]:
        """Which labels are predicted, those above their thresholds: [B, C]; for models that predict label sets."""
        assert self.boundaries is not None
        return above(self.logits, self.boundaries)

    @property
    def predicted(self) -> npt.NDArray[np.int32] | npt.NDArray[np.bool_]:
        """The classes, [B], or the label sets, [B, C]; not for values."""
        return self.label_ids if self.boundaries is None else self.label_sets

    @property
    def scores(self) -> FloatArray:
        """Probability of the most probable class: [B]. For label sets, that of the least probable decision on a label.

        Of a label that is predicted the decision has its probability p, of another one 1 - p. So a low score marks a row that
        is worth a look, whichever the task.
        """
        if self.boundaries is None:
            return self.probabilities.max(1)
        signed: FloatArray = np.where(self.label_sets, self.logits, -self.logits)
        return _sigmoid(signed.min(1))

    def differs(self, others: Self, tolerance: float) -> npt.NDArray[np.bool_]:
        """Return which rows have another prediction: another class, a set with another label, a value so far apart: [B]."""
        if self.boundaries is not None:
            return (self.label_sets != others.label_sets).any(1)
        if self.logits.shape[1] == 1:
            return np.abs(self.logits[:, 0] - others.logits[:, 0]) > tolerance
        return self.label_ids != others.label_ids

    def take(self, rows: IntArray, *, with_work: bool = False) -> Self:
        """Return the predictions of these rows in this order; the counts of work stay with the whole, unless these are all."""
        return type(self)(
            logits=self.logits[rows],
            boundaries=self.boundaries,
            exit_layers=self.exit_layers[rows],
            uncertainty=self.uncertainty[rows],
            layer_tokens=self.layer_tokens if with_work else 0,
            padding_tokens=self.padding_tokens if with_work else 0,
        )


def above(logits: FloatArray, boundaries: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Return which labels are predicted, by logits [..., C] and the boundaries of C labels; it compares in float32."""
    return logits > np.asarray(boundaries, np.float32)


def _sigmoid(logits: FloatArray) -> FloatArray:
    """Return the probability that a logit stands for, without overflow: `_sigmoid(0)` is 0.5."""
    powers = np.exp(-np.abs(logits))
    probabilities: FloatArray = np.where(logits < 0, powers, 1.0).astype(np.float32) / (1 + powers)
    return probabilities
