"""LengthGroup: the unit in which attention sees packed rows. Plain integers, so that packing needs no torch."""

from typing import NamedTuple


class LengthGroup(NamedTuple):
    """`rows` neighbouring rows of `length` tokens each."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length
