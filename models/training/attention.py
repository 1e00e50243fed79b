"""Attention with gradients: what `models.attention` computes, where a backward pass follows.

On CPUs rows of equal length are a dense rectangle, in plain products: backwards, torch's flash kernel takes twice the time
there. On GPUs a call for every length would be some dozen launches a layer, so all rows go into one:

    FlashAttention     over ragged rows, in 16 bits on Ampere or later
    a rectangle        padded to the longest row, elsewhere; rows of a training batch are of nearly equal length

Legend of suffixes: T tokens, B rows, L length of a row, N attention heads, D width of a head, H hidden.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import dropout as drop
from models.layers import to_device
from models.length_group import LengthGroup
from models.sdpa import ScoreBias, sdpa

FLASH_WIDTH = 192
"""Widest attention head whose gradients FlashAttention computes on every GPU that it runs on."""
LENGTH_MULTIPLE = 16
"""Lengths of padded rows are rounded up to this: the memory-efficient kernel wants masks of aligned rows, or copies them."""


def attend(
    qkv_T3H: Tensor, groups: Sequence[LengthGroup], heads: int, dropout: float, bias: ScoreBias | None = None
) -> Tensor:
    """Compute multi-head attention inside every row: queries, keys and values side by side, [T, 3H] -> [T, H]."""
    if qkv_T3H.device.type == "cpu":
        return _attend_by_group(qkv_T3H, groups, heads, dropout, bias)
    if bias is None and _takes_flash(qkv_T3H, qkv_T3H.shape[1] // (3 * heads)):
        return _attend_ragged(qkv_T3H, tuple(groups), heads, dropout)
    return _attend_padded(qkv_T3H, tuple(groups), heads, dropout, bias)


def attend_from_first(
    q_BH: Tensor,
    x_TH: Tensor,
    groups: Sequence[LengthGroup],
    heads: int,
    kv_2HH: Tensor,
    bias_2H: Tensor | None,
    score_bias: ScoreBias | None = None,
) -> Tensor:
    """Compute `models.attention.attend_from_first`, one query a row; all may have an axis of exits in front."""
    q_BND = q_BH.unflatten(-1, (heads, -1))
    key_NDH, value_NDH = kv_2HH.unflatten(-2, (2, heads, -1)).unbind(-4)
    asked_BNH = torch.einsum("...bnd,...ndh->...bnh", q_BND, key_NDH)
    mix = _mix_by_group if x_TH.device.type == "cpu" else _mix_padded
    mixed_BNH = mix(asked_BNH, x_TH, tuple(groups), q_BND.shape[-1] ** -0.5, score_bias)
    out_BND = torch.einsum("...bnh,...ndh->...bnd", mixed_BNH, value_NDH)
    return out_BND.flatten(-2) if bias_2H is None else out_BND.flatten(-2) + bias_2H[..., q_BH.shape[-1] :]


def _attend_by_group(
    qkv_T3H: Tensor, groups: Sequence[LengthGroup], heads: int, dropout: float, bias: ScoreBias | None = None
) -> Tensor:
    """Run each group of equal lengths as a dense rectangle.

    All groups are split off in one call: the gradient of a single slice would be a matrix of the size of the whole.
    """
    tokens = [group.tokens for group in groups]
    *parts, padding = qkv_T3H.split([*tokens, len(qkv_T3H) - sum(tokens)])
    outputs = []
    for group, part in zip(groups, parts, strict=True):
        q_BNLD, k_BNLD, v_BNLD = part.view(group.rows, group.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        scores_BNLL = (q_BNLD * q_BNLD.shape[-1] ** -0.5) @ k_BNLD.mT
        bias_NLL = None if bias is None else bias.of(group.length, 0, scores_BNLL)
        if bias_NLL is not None:
            scores_BNLL = scores_BNLL + bias_NLL
        weights_BNLL = drop(scores_BNLL.softmax(-1, dtype=torch.float32).to(v_BNLD.dtype), dropout)
        outputs.append((weights_BNLL @ v_BNLD).transpose(1, 2).reshape(group.tokens, -1))
    return torch.cat([*outputs, torch.zeros_like(padding[:, : padding.shape[1] // 3])])


def _mix_by_group(
    asked_BNH: Tensor, x_TH: Tensor, groups: Sequence[LengthGroup], scale: float, bias: ScoreBias | None = None
) -> Tensor:
    """Average the tokens of every row by their attention weights for its queries, [B, N, H]: length by length."""
    tokens, rows = [group.tokens for group in groups], [group.rows for group in groups]
    *texts, _padding = x_TH.split([*tokens, x_TH.shape[-2] - sum(tokens)], dim=-2)
    mixed = []
    for group, text, query_BNH in zip(groups, texts, (asked_BNH * scale).split(rows, dim=-3), strict=True):
        x_BLH = text.unflatten(-2, (group.rows, group.length))
        scores_BNL = query_BNH @ x_BLH.mT
        bias_NL = None if bias is None else bias.of_first(group.length, scores_BNL)
        if bias_NL is not None:
            scores_BNL = scores_BNL + bias_NL
        weights_BNL = scores_BNL.softmax(-1, dtype=torch.float32).to(x_BLH.dtype)
        mixed.append(weights_BNL @ x_BLH)
    return torch.cat(mixed, dim=-3)


def _takes_flash(x: Tensor, head_width: int) -> bool:
    """Return whether FlashAttention can run and has gradients."""
    return (
        x.is_cuda
        and x.dtype in (torch.bfloat16, torch.float16)
        and head_width % 8 == 0
        and head_width <= FLASH_WIDTH
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def _attend_ragged(qkv_T3H: Tensor, groups: tuple[LengthGroup, ...], heads: int, dropout: float) -> Tensor:
    """Run all rows in one kernel.

    It is the operator under torch.nn.attention.varlen.varlen_attn, which has no dropout.
    """
    bounds, longest = _bounds(groups, len(qkv_T3H), qkv_T3H.device)
    q_TND, k_TND, v_TND = qkv_T3H.unflatten(1, (3, heads, -1)).unbind(1)
    out_TND, *_ = torch.ops.aten._flash_attention_forward(
        q_TND, k_TND, v_TND, bounds, bounds, longest, longest, dropout, is_causal=False, return_debug_mask=False
    )
    return out_TND.flatten(1)


@lru_cache(maxsize=8)  # layer after layer asks for the same rows
def _bounds(groups: tuple[LengthGroup, ...], tokens: int, device: torch.device) -> tuple[Tensor, int]:
    """Return the first token of every row and the end, as int32 [B + 1], and the longest row.

    Padding is rows of its own, which nobody reads, none of them longer than the others: it must hold numbers, since its
    gradients, which are 0, are multiplied with them.
    """
    lengths = np.repeat([group.length for group in groups], [group.rows for group in groups])
    ends, longest = np.cumsum(lengths), int(lengths.max())
    bounds = np.unique(np.concatenate([[0], ends, np.arange(ends[-1], tokens, longest), [tokens]]))
    with torch.inference_mode(False):  # whoever asks first
        return to_device(bounds.astype(np.int32), device), longest


class _Rectangle(NamedTuple):
    """Where the tokens of B rows are, if each row is padded to L."""

    slots: Tensor
    """[T]: the position of every token among B * L."""
    hidden: Tensor
    """[B, L]: which positions hold no token."""

    def spread(self, x_TH: Tensor) -> Tensor:
        """Lay tokens out by row, with zeros behind the shorter ones: [T, H] -> [B, L, H]; padding is left out."""
        flat = x_TH.new_zeros(*x_TH.shape[:-2], self.hidden.numel(), x_TH.shape[-1])
        flat = flat.index_copy(-2, self.slots, x_TH[..., : len(self.slots), :])
        return flat.unflatten(-2, self.hidden.shape)

    def gather(self, x_BLH: Tensor, tokens: int) -> Tensor:
        """Undo `spread`, with zeros for tokens past the last row: [B, L, H] -> [tokens, H]."""
        return F.pad(x_BLH.flatten(0, 1).index_select(0, self.slots), (0, 0, 0, tokens - len(self.slots)))


@lru_cache(maxsize=8)
def _rectangle(groups: tuple[LengthGroup, ...], device: torch.device) -> _Rectangle:
    """Lay out rows of these lengths."""
    lengths = np.repeat([group.length for group in groups], [group.rows for group in groups])
    width = -(-int(lengths.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    hidden_BL = np.arange(width) >= lengths[:, None]
    with torch.inference_mode(False):
        return _Rectangle(to_device(np.flatnonzero(~hidden_BL), device), to_device(hidden_BL, device))


def _attend_padded(
    qkv_T3H: Tensor, groups: tuple[LengthGroup, ...], heads: int, dropout: float, bias: ScoreBias | None = None
) -> Tensor:
    """Run all rows as one rectangle."""
    rows = _rectangle(groups, qkv_T3H.device)
    q_BNLD, k_BNLD, v_BNLD = rows.spread(qkv_T3H).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mask = ~rows.hidden[:, None, None]
    bias_NLL = None if bias is None else bias.of(rows.hidden.shape[1], 0, qkv_T3H)
    if bias_NLL is not None:
        # The queries of padding see every key, so that none is left without, which would make numbers of nothing.
        mask = bias_NLL.masked_fill(rows.hidden[:, None, None] & ~rows.hidden[:, None, :, None], -torch.inf)
    out_BNLD = sdpa(q_BNLD, k_BNLD, v_BNLD, mask=mask, dropout=dropout)
    return rows.gather(out_BNLD.transpose(1, 2).flatten(2), len(qkv_T3H))


def _mix_padded(
    asked_BNH: Tensor, x_TH: Tensor, groups: tuple[LengthGroup, ...], scale: float, bias: ScoreBias | None = None
) -> Tensor:
    """Do what `_mix_by_group` does, with all rows as one rectangle."""
    rows = _rectangle(groups, x_TH.device)
    x_BLH = rows.spread(x_TH)
    scores_BNL = (asked_BNH * scale) @ x_BLH.mT
    bias_NL = None if bias is None else bias.of_first(x_BLH.shape[-2], scores_BNL)
    if bias_NL is not None:
        scores_BNL = scores_BNL + bias_NL
    scores_BNL = scores_BNL.masked_fill(rows.hidden[:, None], -torch.inf)
    weights_BNL = scores_BNL.softmax(-1, dtype=torch.float32).to(x_BLH.dtype)
    return weights_BNL @ x_BLH
