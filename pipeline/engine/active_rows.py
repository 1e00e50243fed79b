"""The rows under way: which they are, how long, where their tokens lie, and how often the exits have agreed on them."""

from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.exits.uncertainty import extend_streak
from pipeline.rows import IntArray, TokenRows

BoolArray = npt.NDArray[np.bool_]


class Streaks:
    """Number of consecutive exits that agreed on each active row: what patience remembers between exits."""

    def __init__(self) -> None:
        self._before_BC: Tensor | None = None
        self._streak_B: Tensor | None = None

    def extend(self, logits_BC: Tensor, tolerance: float) -> Tensor:
        """Add the next exit's logits of the active rows; return their streaks: [B] int64."""
        if self._before_BC is None or self._streak_B is None:
            self._streak_B = torch.zeros(len(logits_BC), dtype=torch.int64, device=logits_BC.device)
        else:
            self._streak_B = extend_streak(self._streak_B, self._before_BC, logits_BC, tolerance)
        self._before_BC = logits_BC
        return self._streak_B

    def keep(self, stays_B: Tensor) -> None:
        """Forget the rows that exited."""
        if self._before_BC is not None and self._streak_B is not None:
            self._before_BC, self._streak_B = self._before_BC[stays_B], self._streak_B[stays_B]


class ActiveRows:
    """Rows that have not exited, in order of length, one after the other in the runner's buffer of hidden states.

    Example: rows of 2, 3 and 3 tokens fill buffer[0:8]. When the second exits, `keep` notes that the tokens of the others are
    at [0, 1, 5, 6, 7]; once they are gathered from there and written back they fill buffer[0:5], and `compacted` says so.
    """

    def __init__(self, indices: IntArray, tokens: TokenRows) -> None:
        self.indices = indices
        """[B]: their numbers in the call."""
        self.lengths: IntArray = tokens.lengths
        """[B]: their tokens."""
        self.tokens: TokenRows | None = tokens
        """Their token ids, until these are embedded."""
        self.positions_T: Tensor | None = None
        """[T]: where their tokens are in the buffer, on the device; None if they fill it from its start."""
        self.streaks = Streaks()

    @classmethod
    def of(cls, rows: TokenRows, indices: IntArray) -> Self:
        """Start with the rows of these numbers, which are in order of length."""
        return cls(indices, rows.take(indices))

    def compacted(self) -> None:
        """Note that their hidden states now fill the buffer from its start."""
        self.tokens = self.positions_T = None

    def keep(self, stays: BoolArray, device: torch.device, padding: int) -> None:
        """Drop the rows that exited; positions are followed by this many of any token, which serve as padding."""
        if not stays.all():
            positions = np.pad(np.flatnonzero(np.repeat(stays, self.lengths)), (0, padding))
            self.positions_T = torch.from_numpy(positions).to(device)
            self.streaks.keep(torch.from_numpy(stays).to(device))
        self.indices, self.lengths = self.indices[stays], self.lengths[stays]
