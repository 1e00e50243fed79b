"""Say how a long text is cut into windows of tokens, and how the predictions of its windows become one of the text.

LongTexts(stride=128, combine="mean")      # of 512 tokens: 0 to 509, 382 to 891, ..., each between special tokens
LongTexts(combine="first-certain")         # window after window, until one is certain; the others are not computed

It is plain values and integers: tokenizers cut by it (corpus.tokenize), and engines combine by it (engine.texts).
"""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError
from pipeline.rows import IntArray

TRUNCATE, WINDOWS = "truncate", "windows"
KINDS = (TRUNCATE, WINDOWS)
"""What may become of texts that are longer than the model reads."""
COMBINATIONS = ("mean", "max", "first-certain")
MAX_WINDOWS = 256
"""Windows of a text, unless another number is asked for: some 400 kB of English in windows of 512 tokens."""
CERTAIN = 0.1
"""Uncertainty up to which a window is certain, unless another one is asked for: the default speed of exits."""
SHARED_FRACTION = 4
"""A window shares one in so many of its tokens with the next, unless a number is asked for: for a third more work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LongTexts:
    """What becomes of texts that are longer than the model reads.

    mean            the mean of the windows' probabilities, or of their values
    max             the largest: of classes the window that is surest of its class decides, a label is predicted where any
                    window has it, and a value is the largest
    first-certain   the first window whose uncertainty is at most `certain` decides, and those after it are not computed;
                    where none is, the least uncertain one
    """

    stride: int | None = None
    """Tokens that a window has in common with the one before it; None is a quarter of the most tokens of a row."""
    most: int = MAX_WINDOWS
    """Most windows of a text; what comes after them is cut off, and the text counts as truncated."""
    combine: str = "mean"
    certain: float = CERTAIN
    """Uncertainty in [0, 1] up to which a window decides for its text, with 'first-certain'."""

    def __post_init__(self) -> None:
        if self.stride is not None and self.stride < 0:
            raise InputError("window_stride", f"must be at least 0, not {self.stride}")
        if self.most < 1:
            raise InputError("max_windows", f"must be at least 1, not {self.most}")
        if self.combine not in COMBINATIONS:
            raise InputError("window_combine", f"must be one of {', '.join(COMBINATIONS)}, not '{self.combine}'")
        if not 0.0 <= self.certain <= 1.0:
            raise InputError("window_certain", f"must be in [0, 1], not {self.certain:g}")

    @property
    def in_turn(self) -> bool:
        """Whether the windows of a text are computed one after the other, until one decides."""
        return self.combine == "first-certain"

    def shared(self, room: int) -> int:
        """Return the tokens that neighbouring windows share, of the `room` tokens that a window has beside special ones.

        Raises InputError for more than half of them: no token is read more than twice.
        """
        if self.stride is None:
            return room // SHARED_FRACTION
        if self.stride > room // 2:
            raise InputError(
                "window_stride", f"{self.stride}: windows have {room} tokens of a text, and share half of them at most"
            )
        return self.stride

    def needed(self, room: int) -> int:
        """Return the tokens of a text that are read at most."""
        return room + (self.most - 1) * (room - self.shared(room))

    def windows_in(self, lengths_B: IntArray, room: int) -> IntArray:
        """Return the number of windows of texts of so many tokens, however many are read: [B].

        With windows of 10 tokens that share 4, texts of 0, 10, 11 and 17 tokens have 1, 1, 2 and 3.
        """
        step = room - self.shared(room)
        return 1 + np.maximum(-(-(lengths_B - room) // step), 0)

    def describe(self) -> str:
        """Describe it for a fingerprint: "windows, 128 tokens shared, 256 at most, mean"."""
        shared = "a quarter" if self.stride is None else f"{self.stride} tokens"
        certain = f" up to {self.certain:.6g}" if self.in_turn else ""
        return f"windows, {shared} shared, {self.most} at most, {self.combine}{certain}"


def long_texts_of(
    kind: str,
    *,
    window_stride: int | None = None,
    max_windows: int | None = None,
    window_combine: str | None = None,
    window_certain: float | None = None,
) -> LongTexts | None:
    """Return what a user asks for, by what it is called to users; None to truncate.

    Raises InputError for values that are impossible, or that mean nothing beside the others.
    """
    given = {
        "window_stride": window_stride,
        "max_windows": max_windows,
        "window_combine": window_combine,
        "window_certain": window_certain,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if kind not in KINDS:
        raise InputError("long_texts", f"must be one of {', '.join(KINDS)}, not '{kind}'")
    if kind == TRUNCATE:
        if given:
            raise InputError(next(iter(given)), "is for `long_texts` windows, and texts are truncated")
        return None
    long_texts = LongTexts(
        stride=window_stride,
        most=MAX_WINDOWS if max_windows is None else max_windows,
        combine=window_combine or COMBINATIONS[0],
        certain=CERTAIN if window_certain is None else window_certain,
    )
    if window_certain is not None and not long_texts.in_turn:
        raise InputError("window_certain", "is for `window_combine` first-certain")
    return long_texts
