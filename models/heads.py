"""Exit heads: pooled (DeeBERT) and attention (FastBERT). All map packed hidden states to logits: [T, H] -> [B, C]."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from models.attention import attend_from_first, first_tokens
from models.runs import Run

ATTENTION_HEAD_WIDTH = 128
"""FastBERT, section 4.1 and the released code: classifiers work in 128 dimensions with 2 attention heads."""
ATTENTION_HEAD_HEADS = 2


class PooledHead(nn.Module):
    """First token -> dense -> activation -> classes: BERT's pooler and classifier; DeeBERT's off-ramp (Xin et al. 2020)."""

    def __init__(self, hidden: int, classes: int, *, activation: str = "tanh", dropout: float = 0.1) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.activation = torch.tanh if activation == "tanh" else ACT2FN[activation]
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x_TH: Tensor, runs: Sequence[Run]) -> Tensor:
        return self.judge(first_tokens(x_TH, runs))

    def judge(self, first_BH: Tensor) -> Tensor:
        """Map first tokens to logits: [B, H] -> [B, C]."""
        logits_BC: Tensor = self.out(self.dropout(self.activation(self.dense(first_BH))))
        return logits_BC


class AttentionHead(nn.Module):
    """FastBERT's classifier (Liu et al. 2020): narrow, self-attention over all tokens, first token -> classes.

    Layers and activations are those of the released code. Only the first token is ever read after the attention, so only its
    query is computed: the answer is the same.
    """

    def __init__(self, hidden: int, classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        width = ATTENTION_HEAD_WIDTH
        self.narrow = nn.Linear(hidden, width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attention_out = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)
        self.out = nn.Linear(width, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_TH: Tensor, runs: Sequence[Run]) -> Tensor:
        return self.judge(self.narrowed(x_TH), runs)

    def narrowed(self, x_TH: Tensor) -> Tensor:
        """Do the part that is done for every token: [T, H] -> [T, W]."""
        return torch.tanh(self.narrow(x_TH))

    def judge(self, narrow_TW: Tensor, runs: Sequence[Run], filler: int = 0) -> Tensor:
        """Do the part that is done for every row: [T, W] -> logits [B + filler, C]."""
        query_BW = self.query(F.pad(first_tokens(narrow_TW, runs), (0, 0, 0, filler)))
        weight, bias = self.key_value.weight, self.key_value.bias
        mixed_BW = attend_from_first(query_BW, narrow_TW, runs, ATTENTION_HEAD_HEADS, weight, bias)
        pooled_BW = torch.tanh(self.dense(self.dropout(self.attention_out(mixed_BW))))
        logits_BC: Tensor = self.out(pooled_BW)
        return logits_BC
