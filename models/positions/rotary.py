"""Rotary positions (RoFormer: Su et al. 2021): queries and keys turned by angles that grow with their position.

Channel c of a head and channel c + D/2 are turned together, as in transformers' apply_rotary_pos_emb.

Legend of suffixes: T tokens, B rows, L longest row, N attention heads, D width of a head, H hidden.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import lengths_of
from models.length_group import LengthGroup


@lru_cache(maxsize=8)  # layer after layer asks for the same rows
def positions_of(groups: tuple[LengthGroup, ...], tokens: int, device: torch.device) -> Tensor:
    """Return the position of every token in its row, [T] int64; padding has 0."""
    with torch.inference_mode(False):  # whoever asks first
        lengths_B = lengths_of(groups, device)
        real = sum(group.tokens for group in groups)
        starts_T = (lengths_B.cumsum(0) - lengths_B).repeat_interleave(lengths_B, output_size=real)
        return F.pad(torch.arange(real, device=device) - starts_T, (0, tokens - real))


@lru_cache(maxsize=16)
def _turns(base: float, width: int, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the angles at so many positions, in fp32: [positions, D / 2] each."""
    with torch.inference_mode(False):
        frequencies_D = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width))
        angles_LD = torch.arange(positions, dtype=torch.float32, device=device)[:, None] * frequencies_D
        return angles_LD.cos(), angles_LD.sin()


class Rotary:
    """Turns queries and keys of tokens by their positions."""

    def __init__(self, base: float, positions: int) -> None:
        """Turn by periods up to about 2 pi times `base`, in rows of up to so many tokens."""
        self.base, self.positions = base, positions

    def turn(self, x_TND: Tensor, positions_T: Tensor) -> Tensor:
        """Turn queries or keys of any number of heads, in fp32, and return them in their own dtype: [T, N, D]."""
        cos, sin = _turns(self.base, x_TND.shape[-1], self.positions, x_TND.device)
        cos_T1D, sin_T1D = cos[positions_T][:, None], sin[positions_T][:, None]
        low_TND, high_TND = x_TND.float().chunk(2, dim=-1)
        turned = (low_TND * cos_T1D - high_TND * sin_T1D, high_TND * cos_T1D + low_TND * sin_T1D)
        return torch.cat(turned, dim=-1).to(x_TND.dtype)

    def turn_queries_and_keys(self, qkv_T3H: Tensor, heads: int, positions_T: Tensor) -> Tensor:
        """Turn queries and keys beside values, [T, 3H] -> [T, 3H]; in place, where no gradients are kept."""
        qk_TND = qkv_T3H.unflatten(1, (3 * heads, -1))[:, : 2 * heads]
        turned_TND = self.turn(qk_TND, positions_T)
        if not torch.is_grad_enabled():
            qk_TND.copy_(turned_TND)
            return qkv_T3H
        return torch.cat([turned_TND.flatten(1), qkv_T3H[:, turned_TND[0].numel() :]], dim=1)
