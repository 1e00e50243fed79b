"""Attention over packed rows: inside every row, or from its first token alone. With gradients: models.training.attention.

Legend of suffixes: T tokens, Q tokens or rows, B rows, L length of a row, N attention heads, D width of a head, H hidden.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import to_device
from models.length_group import LengthGroup
from models.sdpa import ScoreBias, sdpa
from models.training import attention as training

KEY_MULTIPLE = 16
"""Keys are padded, in attention alone, to a multiple of this on CPUs: torch's flash kernel there handles the rest of a row one
by one. 2 cores with AMX, bf16, 12 heads of 32, 2,048 tokens: 2.67 ms with rows of 31 tokens, 1.07 ms with rows of 32."""


def lengths_of(groups: Sequence[LengthGroup], device: torch.device) -> Tensor:
    """Return the lengths of all rows: [B] int64."""
    lengths = np.repeat([group.length for group in groups], [group.rows for group in groups])
    return to_device(lengths.astype(np.int64), device)


def first_tokens(x_TH: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
    """Gather the first token of every row: [T, H] -> [B, H]."""
    lengths_B = lengths_of(groups, x_TH.device)
    return x_TH.index_select(0, lengths_B.cumsum(0) - lengths_B)


def attend(
    qkv_T3H: Tensor,
    groups: Sequence[LengthGroup],
    heads: int,
    *,
    dropout: float = 0.0,
    bias: ScoreBias | None = None,
) -> Tensor:
    """Compute multi-head attention inside every row: queries, keys and values side by side, [T, 3H] -> [T, H]."""
    if dropout or torch.is_grad_enabled() or qkv_T3H.is_cuda:  # a launch for every length would be slow there
        return training.attend(qkv_T3H, groups, heads, dropout, bias)
    return attend_by_group(qkv_T3H, groups, heads, bias)


def takes_ragged_rows(x: Tensor, head_width: int) -> bool:
    """Return whether FlashAttention's varlen kernel can run: 16 bits, Ampere or later, head widths that it knows."""
    return (
        x.is_cuda
        and head_width % 8 == 0
        and head_width <= 256
        and x.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def attend_ragged(qkv_T3H: Tensor, bounds_B1: Tensor, longest: int, heads: int) -> Tensor:
    """Run rows between these bounds, int32 [B + 1], in one kernel where `takes_ragged_rows`: [T, 3H] -> [T, H]."""
    from torch.nn.attention.varlen import varlen_attn  # brings torch's compiler along: two seconds

    q_TND, k_TND, v_TND = qkv_T3H.unflatten(1, (3, heads, -1)).unbind(1)
    out_TND = varlen_attn(q_TND, k_TND, v_TND, bounds_B1, bounds_B1, longest, longest)
    assert isinstance(out_TND, Tensor)
    return out_TND.flatten(1)


def attend_by_group(
    qkv_T3H: Tensor, groups: Sequence[LengthGroup], heads: int, bias: ScoreBias | None = None
) -> Tensor:
    """Run each group of equal lengths as a dense rectangle."""
    hidden = qkv_T3H.shape[1] // 3
    pad = qkv_T3H.device.type == "cpu"
    outputs, token = [], 0
    for group in groups:
        span = slice(token, token + group.tokens)
        q_BLH, kv_BL2H = qkv_T3H[span].view(group.rows, group.length, -1).split((hidden, 2 * hidden), dim=2)
        q_BNLD = q_BLH.unflatten(2, (heads, -1)).transpose(1, 2)
        padding = -group.length % KEY_MULTIPLE if pad else 0
        mask_LL = None if bias is None else bias.of(group.length, padding, qkv_T3H)
        if padding:
            kv_BL2H = F.pad(kv_BL2H, (0, 0, 0, padding))
            if mask_LL is None:
                mask_LL = _hide_padding(group.length, padding, qkv_T3H.dtype)
        k_BNLD, v_BNLD = kv_BL2H.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        out_BNLD = sdpa(q_BNLD, k_BNLD, v_BNLD, mask=mask_LL)
        outputs.append(out_BNLD.transpose(1, 2).reshape(group.tokens, hidden))
        token += group.tokens
    if token < len(qkv_T3H):
        outputs.append(qkv_T3H.new_zeros(len(qkv_T3H) - token, hidden))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def attend_from_first(
    q_BH: Tensor,
    x_TH: Tensor,
    groups: Sequence[LengthGroup],
    heads: int,
    kv_2HH: Tensor,
    bias_2H: Tensor | None,
    *,
    score_bias: ScoreBias | None = None,
) -> Tensor:
    """Compute what `attend` returns for the first token of every row, without keys and values of the others: [B, H].

    With one query a row, q . (K x) is better computed as (K^T q) . x, and sum_l a_l (V x_l) as V (sum_l a_l x_l): two small
    products a row in place of two a token. The keys' bias moves all scores of a query alike, so softmax drops it; the values'
    bias is added once, since the weights a_l sum to 1. Queries past the last row are padding, for inference on CPUs alone.

    The same re-ordering serves the latent attention of DeepSeek-V2 (Liu et al. 2024, section 2.1.2).
    """
    if torch.is_grad_enabled() or x_TH.is_cuda:
        return training.attend_from_first(q_BH, x_TH, groups, heads, kv_2HH, bias_2H, score_bias)
    width = q_BH.shape[1] // heads
    key_NDH, value_NDH = kv_2HH.view(2, heads, width, -1)
    asked_BNH = torch.matmul(q_BH.view(-1, heads, width).transpose(0, 1), key_NDH).transpose(0, 1)
    mixed = mix_by_group(asked_BNH, x_TH, groups, width**-0.5, score_bias)
    row = sum(group.rows for group in groups)
    if row < len(q_BH):
        mixed.append(x_TH.new_zeros(len(q_BH) - row, heads, x_TH.shape[1]))
    mixed_NBH = torch.cat(mixed).transpose(0, 1)
    out_BH = torch.matmul(mixed_NBH, value_NDH.mT).transpose(0, 1).reshape(q_BH.shape)
    return out_BH if bias_2H is None else out_BH + bias_2H[len(bias_2H) // 2 :]


def mix_by_group(
    asked_BNH: Tensor, x_TH: Tensor, groups: Sequence[LengthGroup], scale: float, bias: ScoreBias | None = None
) -> list[Tensor]:
    """Average the tokens of every row by their attention weights for its queries: [B, N, H], one tensor a group.

    The queries are those of the first token's heads, and so are the biases.
    """
    mixed, row, token = [], 0, 0
    for group in groups:
        x_B1LH = x_TH[token : token + group.tokens].view(group.rows, 1, group.length, -1)
        asked_B1NH = asked_BNH[row : row + group.rows, None]
        mask_NL = None if bias is None else bias.of_first(group.length, x_TH)
        if mask_NL is not None:
            mask_NL = mask_NL.expand(asked_B1NH.shape[2], group.length)[None, None]
        mixed.append(sdpa(asked_B1NH, x_B1LH, x_B1LH, mask=mask_NL, scale=scale)[:, 0])
        row, token = row + group.rows, token + group.tokens
    return mixed


@lru_cache(maxsize=2048)
def _hide_padding(length: int, padding: int, dtype: torch.dtype) -> Tensor:
    """Return the additive mask [1, length + padding] that hides padded keys from every query."""
    mask = torch.zeros(1, length + padding, dtype=dtype)
    mask[:, length:] = -torch.inf
    return mask
