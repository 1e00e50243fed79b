"""A bias of attention by distance, from a table that all layers share: T5's (Raffel et al. 2020), as MPNet has it.

Legend of suffixes: N attention heads, D distances of key to query, L length of a row.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

FARTHEST = 128
"""Distance from which on all share a bucket: `max_distance` of transformers' MPNetEncoder.relative_position_bucket."""
BUCKETS = 32
"""Buckets that distances fall into, half of them on each side: `num_buckets` there."""
MOST_KEPT = 1 << 24
"""Values of biases that are kept for the next layer and the next rows of a length: 64 MB in fp32."""


@lru_cache(maxsize=64)
def distance_buckets(length: int, device: torch.device) -> Tensor:
    """Return the bucket of every distance in a row, from that of its first key to its last query on: [2 x length - 1].

    Near distances have buckets of their own, farther ones share them on a logarithmic scale; computed as transformers does.
    """
    with torch.inference_mode(False):  # whoever asks first
        distances_D = torch.arange(1 - length, length)
        exact = BUCKETS // 4
        magnitudes_D = distances_D.abs()
        farther_D = torch.log(magnitudes_D.float() / exact) / math.log(FARTHEST / exact) * (BUCKETS // 2 - exact)
        shared_D = (exact + farther_D.clamp(min=0).long()).clamp(max=BUCKETS // 2 - 1)
        side_D = (distances_D > 0).long() * (BUCKETS // 2)
        return (side_D + torch.where(magnitudes_D < exact, magnitudes_D, shared_D)).to(device)


class RelativeBias(nn.Module):
    """Biases by bucket of distance and head, [buckets, N], spread over the queries and keys of a row."""

    def __init__(self, buckets: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(buckets, heads))
        self._kept: dict[tuple[int, int], Tensor] | None = None

    def freeze(self) -> None:
        """Keep biases from call to call from now on: weights, their dtype and their device are final."""
        self._kept = {}

    @property
    def nothing_up_to(self) -> int:
        """The longest row without a bias: none."""
        return 0

    def of(self, length: int, padding: int, like: Tensor) -> Tensor:
        """Return the biases of a row's queries for its keys, [1, N, L, L + padding], -inf for keys that are padding."""
        kept = self._kept
        if kept is None:
            return self._spread(length, padding).to(like.dtype)
        if (length, padding) not in kept:
            with torch.inference_mode(False), torch.no_grad():
                made = self._spread(length, padding).to(like.dtype)
            if sum(bias.numel() for bias in list(kept.values())) + made.numel() > MOST_KEPT:
                kept = self._kept = {}  # other threads go on with what they hold
            kept[length, padding] = made
            return made
        return kept[length, padding]

    def of_first(self, length: int, like: Tensor) -> Tensor:
        """Return the biases of a row's first query for its keys: [N, L]."""
        buckets_L = distance_buckets(length, self.weight.device)[length - 1 :]
        return self.weight.index_select(0, buckets_L).mT.to(like.dtype)

    def _spread(self, length: int, padding: int) -> Tensor:
        """Lay the bias of distance j - i at query i and key j: [1, N, L, L + padding]."""
        by_distance_ND = self.weight.index_select(0, distance_buckets(length, self.weight.device)).mT
        bias_NLL = by_distance_ND.unfold(1, length, 1).flip(1)
        return torch.nn.functional.pad(bias_NLL, (0, padding), value=-torch.inf)[None]
