"""Ragged rows on a device: where each of them lies in a buffer of tokens, known on the device and on the host.

Indices of tokens are made on the device from the bounds of rows. The host knows the rows' lengths, from which it chooses blocks
and micro-batches, and makes no array with an entry for every token.
"""

from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.length_group import LengthGroup

Lengths = npt.NDArray[np.int64]
BLOCKS = (16, 32, 64, 128)
"""Tokens of the blocks in which attention kernels hold whole rows."""


def send(array: npt.NDArray[np.integer], device: torch.device) -> Tensor:
    """Copy whole numbers to the device as int32; to a GPU through pinned memory, so that the host does not wait."""
    staged = torch.empty(len(array), dtype=torch.int32, pin_memory=device.type == "cuda")
    np.copyto(staged.numpy(), array, casting="same_kind")
    return staged.to(device, non_blocking=True)


class Span(NamedTuple):
    """Neighbouring rows `[start, stop)` that fit into a block of so many tokens, and not into the next smaller one."""

    start: int
    stop: int
    block: int


class RaggedRows:
    """B rows one after the other in a buffer, in order of length.

    Example: `RaggedRows.of(np.array([2, 3]), device)` has bounds [0, 2, 5] and lengths [2, 3], both int32 on the device.
    """

    def __init__(self, bounds_B1: Tensor, lengths_B: Tensor, host_lengths: Lengths, first_token: int = 0) -> None:
        self.bounds = bounds_B1
        """[B + 1] int32: where each row starts, counted from the first row's start, and the end."""
        self.lengths = lengths_B
        """[B] int32."""
        self.host_lengths = host_lengths
        """[B], ascending: the lengths on the host."""
        self.num_tokens = int(host_lengths.sum())
        self.tokens = slice(first_token, first_token + self.num_tokens)
        """Tokens that these rows are: of their buffer, or of the rows that they are a part of."""

    @classmethod
    def of(cls, host_lengths: Lengths, device: torch.device) -> Self:
        """Lay out rows of these lengths, which ascend, from the start of a buffer."""
        bounds_B1 = send(np.concatenate([[0], np.cumsum(host_lengths)]), device)
        return cls(bounds_B1, bounds_B1.diff(), host_lengths)

    def __len__(self) -> int:
        return len(self.host_lengths)

    @property
    def starts(self) -> Tensor:
        """Where each row starts, counted from the first row's start: [B] int32."""
        return self.bounds[:-1]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.host_lengths[-1])

    @cached_property
    def positions(self) -> Tensor:
        """The position of every token in its row: [T] int32."""
        return self.index_from(torch.zeros_like(self.starts))

    @cached_property
    def groups(self) -> tuple[LengthGroup, ...]:
        """The rows in groups of equal length, for operators that cannot take ragged rows."""
        lengths, rows = np.unique(self.host_lengths, return_counts=True)
        return tuple(map(LengthGroup, rows.tolist(), lengths.tolist()))

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The rows that fit into a block, by the block that each fits into; longer ones are in none."""
        ends = np.searchsorted(self.host_lengths, BLOCKS, side="right").tolist()
        spans = map(Span, [0, *ends[:-1]], ends, BLOCKS)
        return tuple(span for span in spans if span.stop > span.start)

    @cached_property
    def longer(self) -> "RaggedRows | None":
        """The rows that are longer than any block, or None."""
        start = self.spans[-1].stop if self.spans else 0
        return self.part(slice(start, len(self))) if start < len(self) else None

    def part(self, rows: slice) -> "RaggedRows":
        """Return neighbouring rows, whose bounds count from the first of them; `tokens` says where that is among these."""
        first = int(self.host_lengths[: rows.start].sum())
        bounds_B1 = self.bounds[rows.start : rows.stop + 1]
        shifted_B1 = bounds_B1 - first if first else bounds_B1
        return RaggedRows(shifted_B1, self.lengths[rows], self.host_lengths[rows], first)

    def index_from(self, starts_B: Tensor) -> Tensor:
        """Return where the tokens of these rows are in a buffer in which the rows start there: [T] int32.

        Example: rows of 2 and 3 tokens that start at [7, 0] there are at [7, 8, 0, 1, 2].
        """
        shift_T = (starts_B - self.starts).repeat_interleave(self.lengths, output_size=self.num_tokens)
        return shift_T + torch.arange(self.num_tokens, dtype=torch.int32, device=shift_T.device)

    def keep(self, stays: npt.NDArray[np.bool_]) -> tuple["RaggedRows", Tensor]:
        """Lay out the rows that stay from the start of a buffer; return them, and which rows those are here: [B] int32."""
        kept_B = send(np.flatnonzero(stays), self.bounds.device)
        return RaggedRows.of(self.host_lengths[stays], self.bounds.device), kept_B
