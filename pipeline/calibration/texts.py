"""Samples of texts of several windows: windows exit, and texts are counted.

Thresholds are found on windows, which are rows of the engine. What is guaranteed is of texts: one counts as differing if what
its windows make of it, as they exit, is not what they make of it at full depth. So texts may be tested like rows, and all that
is said of exchangeable rows (calibration.guarantees) holds of exchangeable texts, however many windows they have.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np

from models.exits.criterion import Criterion
from models.exits.flops import FlopCounter
from pipeline.calibration.drift.cells import count_cells
from pipeline.calibration.thresholds import Bools, Floats, Published, Sample, ThresholdOutcome
from pipeline.engine.texts.combine import combine
from pipeline.engine.texts.rows import TextRows
from pipeline.evaluation.recorded import AllExits
from pipeline.rows import FloatArray, IntArray, Predictions, offsets_of, spans
from pipeline.windows import LongTexts


class Combined(NamedTuple):
    """What windows make of their texts."""

    predictions: Predictions
    """Predictions of the B texts."""
    computed: Bools
    """Which windows it would compute, as [W]."""


@dataclass(frozen=True, kw_only=True)
class TextSample:
    """The outputs of all exits for the W windows of B texts: what any thresholds make of the texts follows by arithmetic."""

    windows: Sample
    """The windows as rows, on which thresholds are found."""
    recorded: AllExits
    measured: FloatArray
    """The uncertainty of every window at every exit, the last included, as [E + 1, W]."""
    counts: IntArray
    """Windows of each text, as [B]."""
    long_texts: LongTexts
    tolerance: float
    """Values further apart than this differ."""

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(
        cls, recorded: AllExits, criterion: Criterion, texts: TextRows, flops: FlopCounter, long_texts: LongTexts
    ) -> Self:
        """Make a sample of the recorded exits of these texts' windows, as this criterion sees them."""
        return cls(
            windows=Sample.of(recorded, criterion, texts.windows.lengths, flops),
            recorded=recorded,
            measured=recorded.uncertainty(criterion),
            counts=texts.counts,
            long_texts=long_texts,
            tolerance=criterion.tolerance,
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the exits below the last, ascending: [E]."""
        return self.windows.layers

    @property
    def depth(self) -> int:
        """The number of layers."""
        return self.windows.depth

    def take(self, texts: IntArray) -> Self:
        """Return these texts in this order."""
        counts = self.counts[texts]
        rows = spans(offsets_of(self.counts)[:-1][texts], counts)
        return replace(
            self,
            windows=self.windows.take(rows),
            recorded=self.recorded.take(rows),
            measured=self.measured[:, rows],
            counts=counts,
        )

    @cached_property
    def full_depth(self) -> Combined:
        """Return what windows at full depth make of their texts."""
        return self._combined(np.full(self.measured.shape[1], len(self.layers)))

    def outcome(self, speeds: Floats) -> ThresholdOutcome:
        """Return cost, differing predictions and exits of all texts with these thresholds [E].

        The cost is in FLOPs of full depth on all windows, also where a run does not compute all of them.
        """
        first_W = self.windows.first_exits(speeds)
        predictions, computed_W = self._combined(first_W)
        spent_W = self.windows.spent(speeds, first_W)
        exits = np.searchsorted([*self.layers, self.depth], predictions.exit_layers)
        return ThresholdOutcome(
            flops_fraction=float(spent_W[computed_W].sum() / self.windows.full_depth.sum()),
            differing=int(self.full_depth.predictions.differs(predictions, self.tolerance).sum()),
            exits=np.bincount(exits, minlength=len(self.layers) + 1),
        )

    def published(self, speeds: Floats) -> Published:
        """Return what a run with these thresholds [E] would publish.

        A text of which one window went to full depth counts there, and may differ for its other windows.
        """
        made = self._combined(self.windows.first_exits(speeds)).predictions
        differs_B = self.full_depth.predictions.differs(made, self.tolerance)
        exits_B = np.searchsorted([*self.layers, self.depth], made.exit_layers)
        cells = count_cells(exits_B, made.uncertainty, differs_B, len(self.layers))
        return Published(cells=cells, predicted=None if self.recorded.regression else made.predicted)

    def _combined(self, first_W: IntArray) -> Combined:
        """Combine windows that exit where `first_W` says, by the index of the exit."""
        every_W = np.arange(len(first_W))
        windows = Predictions(
            logits=self.recorded.logits[first_W, every_W],
            boundaries=self.recorded.boundaries,
            exit_layers=np.array([*self.layers, self.depth], np.int16)[first_W],
            uncertainty=self.measured[first_W, every_W],
            layer_tokens=0,
            padding_tokens=0,
        )
        computed_W = np.ones(len(first_W), np.bool_)
        if self.long_texts.in_turn:
            computed_W = until_certain(windows.uncertainty <= np.float32(self.long_texts.certain), self.counts)
        counts = (
            np.add.reduceat(computed_W.astype(np.int64), offsets_of(self.counts)[:-1]) if len(self) else self.counts
        )
        return Combined(combine(self.long_texts.combine, windows.take(np.flatnonzero(computed_W)), counts), computed_W)


def without_broken(recorded: AllExits, texts: TextRows) -> tuple[IntArray, AllExits, TextRows]:
    """Leave out texts of which an exit gives a window NaN or infinity; return which are kept, and both of these.

    A NaN has no rank among uncertainties, and neither differs nor agrees.
    """
    broken_W = np.flatnonzero(~recorded.finite)
    kept = np.delete(np.arange(len(texts)), np.searchsorted(texts.bounds, broken_W, side="right") - 1)
    return kept, recorded.take(spans(texts.bounds[:-1][kept], texts.counts[kept])), texts.take(kept)


def until_certain(certain_W: Bools, counts: IntArray) -> Bools:
    """Return which windows are computed if each text stops at its first certain one: [W].

    With texts of 3 and 2 windows, [False, True, True, False, False] is [True, True, False, True, True].
    """
    before_W: IntArray = np.cumsum(certain_W) - certain_W
    computed_W: Bools = before_W == np.repeat(before_W[offsets_of(counts)[:-1]], counts)
    return computed_W
