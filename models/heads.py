"""Exit heads: pooled (DeeBERT) and attention (FastBERT).

Both work in three steps: `per_token` on every token, `[T, H] -> [T, W]`, which a pooled head does not need; `features_from` on
every row, `[T, W] -> [B, F]`; and `out`, which maps features to logits, `[B, F] -> [B, C]`. The engine runs the first step
micro-batch by micro-batch and the others for many rows at once.

Legend of suffixes: T tokens, B rows, H hidden, W width per token, F features, C classes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import attend_from_first, first_tokens
from models.layers import Dropout, Shared
from models.layers import activation as activation_of
from models.length_group import LengthGroup

ATTENTION_HEAD_WIDTH = 128
"""FastBERT, section 4.1 and the released code: classifiers work in 128 dimensions with 2 attention heads."""
ATTENTION_HEAD_HEADS = 2
LEAST_VARIANCE = 1e-6
"""Added to the variance of a pooled head's input: where that varies less, bf16 has rounded the differences away."""


def normed(x_QH: Tensor, norm: Shared[nn.LayerNorm] | None) -> Tensor:
    """Return hidden states as a head reads them: through the backbone's last norm, where its layers do not normalize.

    States may have another dtype than the norm, as those of a frozen backbone have while heads are trained.
    """
    if norm is None:
        return x_QH
    normed_QH: Tensor = norm.module(x_QH.to(norm.module.weight.dtype))
    return normed_QH


class _DenseHead(nn.Module):
    """One vector a row -> dense -> activation -> norm -> classes: what heads without attention do with it."""

    token_width: int | None = None
    """Width of what `per_token` keeps of a token; None, since the head reads the hidden states themselves."""

    mean: Tensor | None
    """[H], of the vectors that it reads; fp32 in every precision, since small differences of large numbers matter here."""
    deviation: Tensor | None
    """[H], of the vectors that it reads; None, as `mean`, in a head that does not standardize."""

    def __init__(
        self,
        hidden: int,
        classes: int,
        *,
        activation: str = "tanh",
        dropout: float = 0.1,
        input_dropout: float = 0.0,
        standardized: bool = False,
        bias: bool = True,
        norm: nn.LayerNorm | None = None,
        read_through: Shared[nn.LayerNorm] | None = None,
    ) -> None:
        """Make a head; `norm` follows the activation, and `read_through` is what the backbone normalizes hidden states with."""
        super().__init__()
        self.read_through, self.norm = read_through, norm
        self.register_buffer("mean", torch.zeros(hidden) if standardized else None)
        self.register_buffer("deviation", torch.ones(hidden) if standardized else None)
        self.dense = nn.Linear(hidden, hidden, bias=bias)
        self.activation = activation_of(activation)
        self.dropout, self.input_dropout = Dropout(dropout), Dropout(input_dropout)
        self.out = nn.Linear(hidden, classes)

    @property
    def width(self) -> int:
        """Number of the features."""
        return self.dense.out_features

    def per_token(self, x_TH: Tensor) -> Tensor:
        """Return the hidden states as they are."""
        return x_TH

    def features_of_read(self, read_BH: Tensor) -> Tensor:
        """Compute the features from what the head has read of every row: [B, H] -> [B, F]."""
        if self.mean is not None and self.deviation is not None:
            read_BH = ((read_BH.float() - self.mean) / self.deviation).to(read_BH.dtype)
        features_BH: Tensor = self.activation(self.dense(self.input_dropout(read_BH)))
        if self.norm is not None:
            features_BH = self.norm(features_BH)
        return self.dropout(features_BH)  # type: ignore[no-any-return]


class PooledHead(_DenseHead):
    """First token -> dense -> activation -> classes: BERT's pooler and classifier; DeeBERT's off-ramp (Xin et al. 2020).

    A branch head standardizes the first token with a fixed mean and deviation: in lower layers it may be nearly the same for
    all texts, and gradient steps of the usual size do not find what differs (docs/results/papers/README.md).
    """

    reads_first_token: Literal[True] = True
    """Whether the first token of every row is all that the head reads: `features_of_first` exists then."""

    def features(self, x_TH: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Compute the input of `out`: [T, H] -> [B, F]."""
        return self.features_of_first(first_tokens(x_TH, groups))

    def features_from(self, x_TH: Tensor, groups: Sequence[LengthGroup], padding: int = 0) -> Tensor:
        """Compute the features of every row, and of as many rows of padding: [T, H] -> [B + padding, F]."""
        return self.features_of_first(F.pad(first_tokens(x_TH, groups), (0, 0, 0, padding)))

    def features_of_first(self, first_BH: Tensor) -> Tensor:
        """Compute the features from the first token of every row: [B, H] -> [B, F]."""
        return self.features_of_read(normed(first_BH, self.read_through))

    def standardize(self, first_BH: Tensor) -> None:
        """Set mean and deviation to those of the first tokens of some rows; do nothing if this is not a branch head."""
        if self.mean is not None and self.deviation is not None:
            read_BH = normed(first_BH, self.read_through)
            variance_H, mean_H = torch.var_mean(read_BH.float(), dim=0, correction=0)
            self.mean.copy_(mean_H)
            self.deviation.copy_((variance_H + LEAST_VARIANCE).sqrt())


class MeanHead(_DenseHead):
    """Mean of all tokens -> dense -> activation -> norm -> classes: ModernBERT's classifier, where it pools by the mean."""

    reads_first_token: Literal[False] = False
    """Whether the first token of every row is all that the head reads."""

    def features(self, x_TH: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Compute the input of `out`: [T, H] -> [B, F]."""
        return self.features_from(x_TH, groups)

    def features_from(self, x_TH: Tensor, groups: Sequence[LengthGroup], padding: int = 0) -> Tensor:
        """Compute the features of every row, and of as many rows of padding: [T, H] -> [B + padding, F]."""
        tokens = [group.tokens for group in groups]
        read_TH = normed(x_TH[: sum(tokens)], self.read_through)
        means = [
            part.view(group.rows, group.length, -1).mean(1)
            for group, part in zip(groups, read_TH.split(tokens), strict=True)
        ]
        return self.features_of_read(F.pad(torch.cat(means), (0, 0, 0, padding)))


class AttentionHead(nn.Module):
    """FastBERT's classifier (Liu et al. 2020): narrow, self-attention over all tokens, first token -> classes.

    Layers and activations are those of the released code. Only the first token is ever read after the attention, so only its
    query is computed: the logits are the same.
    """

    reads_first_token: Literal[False] = False
    """Whether the first token of every row is all that the head reads."""
    token_width: int | None = ATTENTION_HEAD_WIDTH
    """Width of what `per_token` keeps of a token."""

    def __init__(
        self, hidden: int, classes: int, *, dropout: float = 0.1, read_through: Shared[nn.LayerNorm] | None = None
    ) -> None:
        super().__init__()
        self.read_through = read_through
        width = ATTENTION_HEAD_WIDTH
        self.narrow = nn.Linear(hidden, width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attention_out = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)
        self.out = nn.Linear(width, classes)
        self.dropout = Dropout(dropout)

    @property
    def width(self) -> int:
        """Number of the features."""
        return self.dense.out_features

    def features(self, x_TH: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Compute the input of `out`: [T, H] -> [B, F]."""
        return self.features_from(self.per_token(x_TH), groups)

    def per_token(self, x_TH: Tensor) -> Tensor:
        """Compute what attention reads of every token: [T, H] -> [T, W]."""
        return torch.tanh(self.narrow(normed(x_TH, self.read_through)))

    def features_from(self, narrow_TW: Tensor, groups: Sequence[LengthGroup], padding: int = 0) -> Tensor:
        """Compute the features of every row, and of as many rows of padding: [T, W] -> [B + padding, F]."""
        query_BW = self.query(F.pad(first_tokens(narrow_TW, groups), (0, 0, 0, padding)))
        weight, bias = self.key_value.weight, self.key_value.bias
        return self.features_of_mixed(
            attend_from_first(query_BW, narrow_TW, groups, ATTENTION_HEAD_HEADS, weight, bias)
        )

    def features_of_mixed(self, mixed_BW: Tensor) -> Tensor:
        """Compute the features from what attention gives the first token of every row: [B, W] -> [B, F]."""
        return torch.tanh(self.dense(self.dropout(self.attention_out(mixed_BW))))


Head = PooledHead | MeanHead | AttentionHead
"""Any exit head."""
