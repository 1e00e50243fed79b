"""Attention of the first token over its row where keys or scores depend on positions, so that keys of all tokens are needed.

Values still are not: see `models.attention.attend_from_first`, which does without keys too.

Legend of suffixes: T tokens, B rows, Q rows and padding, L length of a row, N attention heads, D width of a head, H hidden.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.length_group import LengthGroup

Added = Callable[[Tensor, Tensor], Tensor | None]
"""What is added to the scores of a group, [B, N, L] or what spreads to it, from its queries [B, N, D] and keys [B, N, L, D]."""


def keys_of(x_TH: Tensor, heads: int, kv_2HH: Tensor, bias_2H: Tensor | None) -> Tensor:
    """Compute the keys of all tokens by the first half of keys' and values' weights: [T, N, D]."""
    hidden = len(kv_2HH) // 2
    bias_H = None if bias_2H is None else bias_2H[:hidden]
    return F.linear(x_TH, kv_2HH[:hidden], bias_H).unflatten(1, (heads, -1))


def attend_from_keys(
    q_QND: Tensor,
    key_TND: Tensor,
    x_TH: Tensor,
    groups: Sequence[LengthGroup],
    kv_2HH: Tensor,
    bias_2H: Tensor | None,
    added: Added,
) -> Tensor:
    """Compute what attention gives the first token of every row from its queries, scaled already, and all keys: [Q, H]."""
    heads, hidden = q_QND.shape[1], len(kv_2HH) // 2
    rows, tokens = [group.rows for group in groups], [group.tokens for group in groups]
    mixed = []
    parts = (q_QND[: sum(rows)].split(rows), key_TND.split(tokens), x_TH[: sum(tokens)].split(tokens))
    for group, q_BND, key, x in zip(groups, *parts, strict=True):
        key_BNLD = key.unflatten(0, (group.rows, group.length)).transpose(1, 2)
        scores_BNL = (key_BNLD @ q_BND[..., None])[..., 0]
        more_BNL = added(q_BND, key_BNLD)
        if more_BNL is not None:
            scores_BNL = scores_BNL + more_BNL
        weights_BNL = scores_BNL.softmax(-1, dtype=torch.float32).to(x.dtype)
        mixed.append(weights_BNL @ x.view(group.rows, group.length, -1))
    mixed_QNH = F.pad(torch.cat(mixed), (0, 0, 0, 0, 0, len(q_QND) - sum(rows)))
    value_NHD = kv_2HH[hidden:].view(heads, -1, kv_2HH.shape[1]).mT
    out_QH = torch.matmul(mixed_QNH.transpose(0, 1), value_NHD).transpose(0, 1).flatten(1)
    return out_QH if bias_2H is None else out_QH + bias_2H[hidden:]
