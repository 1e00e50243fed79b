"""Attention to a window around every token, as a bias that hides all other keys.

Legend of suffixes: L length of a row.
"""

from functools import lru_cache

import torch
from torch import Tensor

LONGEST_KEPT = 1024
"""Longest row whose mask is kept for the next layer: 4 MB in fp32."""


class Window:
    """Lets a token see those that are at most `reach` tokens away, in both directions."""

    def __init__(self, reach: int) -> None:
        self.reach = reach

    @property
    def nothing_up_to(self) -> int:
        """The longest row in which every token sees all others."""
        return self.reach + 1

    def of(self, length: int, padding: int, like: Tensor) -> Tensor | None:
        """Return 0 for keys that a query sees and -inf for others, [1, 1, L, L + padding]; None where all are seen."""
        if length <= self.nothing_up_to:
            return None
        make = _kept_band if length <= LONGEST_KEPT else _band
        return make(length, padding, self.reach, like.dtype, like.device)

    def of_first(self, length: int, like: Tensor) -> Tensor | None:
        """Return 0 for keys that a row's first token sees and -inf for others, [1, L]; None where all are seen."""
        if length <= self.nothing_up_to:
            return None
        return like.new_zeros(1, length).index_fill_(
            1, torch.arange(self.reach + 1, length, device=like.device), -torch.inf
        )


def _band(length: int, padding: int, reach: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # whoever asks first
        seen_LL = torch.ones(length, length, dtype=torch.bool, device=device).triu_(-reach).tril_(reach)
        mask_LL = torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(
            seen_LL.logical_not_(), -torch.inf
        )
        return torch.nn.functional.pad(mask_LL, (0, padding), value=-torch.inf)[None, None]


_kept_band = lru_cache(maxsize=32)(_band)
