"""DeBERTa's disentangled attention (He et al. 2021): content compared with content, and either with distances.

    score(i, j) = (q_i . k_j  +  q_i . key(i - j)  +  k_j . query(i - j)) / sqrt(D x number of terms)

Keys and queries of distances are made of one table for all layers, by projections of each layer. Rows of a length share what is
gathered: only the distances that occur in them are compared. Computed as transformers' DisentangledSelfAttention does.

Legend of suffixes: T tokens, B rows, L length of a row, N attention heads, D width of a head, H hidden, R distances of the
table, C distances that occur in a row.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.families.shape import Disentangled
from models.layers import Dropout, Shared
from models.layers import dropout as drop
from models.length_group import LengthGroup
from models.positions.from_first import attend_from_keys, keys_of
from models.positions.self_attention import SelfAttention


def rows_of_distances(distances: Tensor, shape: Disentangled) -> Tensor:
    """Return the row of the table for each distance of a query from its key, which grows with the distance: int64.

    With buckets, far distances share rows on a logarithmic scale, as in transformers' make_log_bucket_position.
    """
    found = distances
    if shape.buckets:
        middle = shape.buckets // 2
        near = (distances < middle) & (distances > -middle)
        magnitudes = torch.where(near, torch.full_like(distances, middle - 1), distances.abs())
        scale = torch.log(torch.tensor((shape.farthest - 1) / middle))
        shared = torch.ceil(torch.log(magnitudes / middle) / scale * (middle - 1)) + middle
        found = torch.where(magnitudes <= middle, distances.float(), shared * distances.sign()).long()
    return (found + shape.span).clamp(0, 2 * shape.span - 1)


@lru_cache(maxsize=64)
def _rows_in(length: int, shape: Disentangled, device: torch.device) -> tuple[slice, Tensor]:
    """Return which rows of the table occur in a row of text, and where among these that of i - j is: [L, L] int64."""
    with torch.inference_mode(False):  # whoever asks first
        rows_D = rows_of_distances(torch.arange(1 - length, length), shape)
        first, last = int(rows_D[0]), int(rows_D[-1])
        index_LL = (rows_D - first).unfold(0, length, 1).flip(1).contiguous()
        return slice(first, last + 1), index_LL.to(device)


class Distances(nn.Module):
    """The table of distances, [R, H], and its norm, where the family has them."""

    def __init__(self, shape: Disentangled, hidden: int, norm_eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2 * shape.span, hidden)) if shape.relative else None
        self.norm = nn.LayerNorm(hidden, eps=norm_eps) if shape.norm else None

    def forward(self) -> Tensor:
        """Return the embedding of every distance: [R, H]."""
        assert self.weight is not None
        return self.weight if self.norm is None else self.norm(self.weight)


class DisentangledAttention(SelfAttention):
    """Attention of a layer that compares content with distances."""

    def __init__(
        self,
        shape: Disentangled,
        hidden: int,
        heads: int,
        *,
        dropout: float,
        distance_dropout: float,
        distances: Shared[Distances],
    ) -> None:
        super().__init__(heads, dropout)
        self.shape, self.distances, self.distance_dropout = shape, distances, Dropout(distance_dropout)
        terms = 1 + shape.content_to_position + shape.position_to_content
        self.scale = (hidden // heads * terms) ** -0.5  # also where there are no distances, as in transformers
        own = shape.relative and not shape.shared_projections
        self.position_key = nn.Linear(hidden, hidden) if own and shape.content_to_position else None
        self.position_query = nn.Linear(hidden, hidden) if own and shape.position_to_content else None
        self.projections: Shared[nn.Linear] | None = None
        """The layer's queries, keys and values, where distances share their projections."""
        self._kept: tuple[Tensor | None, Tensor | None] | None = None

    @property
    def takes_kernels(self) -> bool:
        return False

    def freeze(self) -> None:
        """Keep keys and queries of distances from call to call from now on: weights, their dtype and their device are final."""
        with torch.inference_mode(False), torch.no_grad():
            self._kept = self._of_distances()

    def mix(self, qkv_T3H: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Run each group of equal lengths as a dense rectangle, with or without gradients."""
        dropout, of_distances = self.dropout if self.training else 0.0, self._kept or self._of_distances()
        tokens = [group.tokens for group in groups]
        *parts, padding = qkv_T3H.split([*tokens, len(qkv_T3H) - sum(tokens)])
        outputs = []
        for group, part in zip(groups, parts, strict=True):
            q_BNLD, k_BNLD, v_BNLD = part.view(group.rows, group.length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            q_BNLD = q_BNLD * self.scale
            scores_BNLL = self._with_distances(q_BNLD @ k_BNLD.mT, q_BNLD, k_BNLD, *of_distances)
            weights_BNLL = drop(scores_BNLL.softmax(-1, dtype=torch.float32).to(v_BNLD.dtype), dropout)
            outputs.append((weights_BNLL @ v_BNLD).transpose(1, 2).reshape(group.tokens, -1))
        return torch.cat([*outputs, torch.zeros_like(padding[:, : padding.shape[1] // 3])])

    def from_first(
        self, q_QH: Tensor, x_TH: Tensor, groups: Sequence[LengthGroup], kv_2HH: Tensor, bias_2H: Tensor | None
    ) -> Tensor:
        key_NRD, query_NRD = self._kept or self._of_distances()

        def of_distances(q_BND: Tensor, key_BNLD: Tensor) -> Tensor | None:
            rows, index_LL = _rows_in(key_BNLD.shape[2], self.shape, q_BND.device)
            added = []
            if key_NRD is not None:
                near_NLD = key_NRD[:, rows][:, index_LL[0]]
                added.append((near_NLD @ q_BND[..., None])[..., 0])
            if query_NRD is not None:
                near_NLD = query_NRD[:, rows][:, index_LL[0]] * self.scale
                added.append((near_NLD * key_BNLD).sum(-1))
            return sum(added) if added else None  # type: ignore[return-value]

        q_QND = q_QH.unflatten(1, (self.heads, -1)) * self.scale
        key_TND = keys_of(x_TH[: sum(group.tokens for group in groups)], self.heads, kv_2HH, bias_2H)
        return attend_from_keys(q_QND, key_TND, x_TH, groups, kv_2HH, bias_2H, of_distances)

    def _with_distances(
        self,
        scores_BNLL: Tensor,
        q_BNLD: Tensor,
        k_BNLD: Tensor,
        key_NRD: Tensor | None,
        query_NRD: Tensor | None,
    ) -> Tensor:
        """Add to scores, of scaled queries, what comparing content with distances gives: [B, N, L, L]."""
        rows, index_LL = _rows_in(q_BNLD.shape[2], self.shape, q_BNLD.device)
        if key_NRD is not None:
            by_row_BNLC = q_BNLD @ key_NRD[:, rows].mT
            scores_BNLL = scores_BNLL + by_row_BNLC.gather(-1, index_LL.expand(scores_BNLL.shape))
        if query_NRD is not None:
            by_row_BNLC = k_BNLD @ (query_NRD[:, rows] * self.scale).mT
            scores_BNLL = scores_BNLL + by_row_BNLC.gather(-1, index_LL.mT.expand(scores_BNLL.shape)).mT
        return scores_BNLL

    def _of_distances(self) -> tuple[Tensor | None, Tensor | None]:
        """Return keys and queries of all distances, [N, R, D] each; None for what is not compared."""
        shape = self.shape
        if not shape.relative or not (shape.content_to_position or shape.position_to_content):
            return None, None
        embedded_RH = self.distance_dropout(self.distances.module())
        key_RH = query_RH = None
        if self.projections is not None:
            weight, bias = self.projections.module.weight, self.projections.module.bias
            hidden = weight.shape[1]
            if shape.content_to_position:
                key_RH = F.linear(embedded_RH, weight[hidden : 2 * hidden], bias[hidden : 2 * hidden])
            if shape.position_to_content:
                query_RH = F.linear(embedded_RH, weight[:hidden], bias[:hidden])
        else:
            key_RH = None if self.position_key is None else self.position_key(embedded_RH)
            query_RH = None if self.position_query is None else self.position_query(embedded_RH)
        return self._by_head(key_RH), self._by_head(query_RH)

    def _by_head(self, x_RH: Tensor | None) -> Tensor | None:
        return None if x_RH is None else x_RH.unflatten(1, (self.heads, -1)).transpose(0, 1).contiguous()
