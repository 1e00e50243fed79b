"""Branch heads side by side, for training them on a frozen backbone: one product for all, not one for each.

A head is small. On a GPU a step of a dozen heads, one after the other, is nothing but launches, many hundreds of them; side by
side it is some dozens. The heads of the model are views into the matrices that lie here, so what one learns the other has.

Legend of suffixes: E exits, T tokens, B rows, H hidden, W width per token of an attention head, F features, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention import lengths_of
from models.early_exit import EarlyExitModel, ExitOutput
from models.heads import ATTENTION_HEAD_HEADS, AttentionHead, PooledHead, normed
from models.length_group import LengthGroup
from models.training.attention import attend_from_first


class LinearStack(nn.Module):
    """Linear maps of one shape, each for its own input: [E, B, I] -> [E, B, O]."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        """Move the weights of the parts together; their own become views of these."""
        super().__init__()
        self.weight = nn.Parameter(torch.stack([part.weight.detach() for part in parts]))
        # One vector, since what has one dimension is not decayed.
        self.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))
        biases_EO = self.bias.detach().view(len(parts), -1)
        for part, weight, bias in zip(parts, self.weight.detach(), biases_EO, strict=True):
            part.weight.data, part.bias.data = weight, bias

    def forward(self, x_EBI: Tensor) -> Tensor:
        # The other way round the gradient of the weights would come transposed, and be copied into their layout.
        return torch.baddbmm(self.biases.mT, self.weight, x_EBI.mT).mT

    @property
    def biases(self) -> Tensor:
        """The biases by exit: [E, 1, O]."""
        return self.bias.view(len(self.weight), 1, -1)


class PooledHeadStack(nn.Module):
    """Pooled heads side by side; see PooledHead."""

    def __init__(self, heads: Sequence[PooledHead]) -> None:
        super().__init__()
        self.activation, self.dropout = heads[0].activation, heads[0].dropout
        self.read_through = heads[0].read_through
        self.dense, self.out = LinearStack([h.dense for h in heads]), LinearStack([h.out for h in heads])
        self.mean, self.deviation = _stack_buffer(heads, "mean"), _stack_buffer(heads, "deviation")

    def forward(self, first_EBH: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Compute the features from the first tokens: [E, B, H] -> [E, B, F]."""
        first_EBH = normed(first_EBH, self.read_through)
        if self.mean is not None and self.deviation is not None:
            first_EBH = ((first_EBH.float() - self.mean) / self.deviation).to(first_EBH.dtype)
        features_EBF: Tensor = self.dropout(self.activation(self.dense(first_EBH)))
        return features_EBF


class AttentionHeadStack(nn.Module):
    """Attention heads side by side; see AttentionHead."""

    def __init__(self, heads: Sequence[AttentionHead]) -> None:
        super().__init__()
        self.dropout, self.read_through = heads[0].dropout, heads[0].read_through
        self.narrow, self.query = LinearStack([h.narrow for h in heads]), LinearStack([h.query for h in heads])
        self.key_value = LinearStack([h.key_value for h in heads])
        self.attention_out = LinearStack([h.attention_out for h in heads])
        self.dense, self.out = LinearStack([h.dense for h in heads]), LinearStack([h.out for h in heads])

    def forward(self, x_ETH: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Compute the features from all tokens: [E, T, H] -> [E, B, F]."""
        narrow_ETW = torch.tanh(self.narrow(normed(x_ETH, self.read_through)))
        lengths_B = lengths_of(groups, x_ETH.device)
        query_EBW = self.query(narrow_ETW.index_select(1, lengths_B.cumsum(0) - lengths_B))
        weight, bias = self.key_value.weight, self.key_value.biases
        mixed_EBW = attend_from_first(query_EBW, narrow_ETW, groups, ATTENTION_HEAD_HEADS, weight, bias)
        features_EBF: Tensor = torch.tanh(self.dense(self.dropout(self.attention_out(mixed_EBW))))
        return features_EBF


class BranchHeads(nn.Module):
    """All exits of a model below the last."""

    def __init__(self, model: EarlyExitModel) -> None:
        """Move the heads' weights together; the model's become views of these, so it has what is learned here.

        It must be on its device, and stay there: a model that is moved has weights of its own again.
        """
        super().__init__()
        heads = [model.head(layer) for layer in model.exit_layers[:-1]]
        pooled = [head for head in heads if isinstance(head, PooledHead)]
        attention = [head for head in heads if isinstance(head, AttentionHead)]
        self.heads = PooledHeadStack(pooled) if pooled else AttentionHeadStack(attention)
        self.lte = model.lte

    def forward(self, states_EXH: Tensor, groups: Sequence[LengthGroup]) -> ExitOutput:
        """Compute logits [E, B, C] and certainties [E, B] from first tokens, or from all tokens for attention heads."""
        features_EBF = self.heads(states_EXH, groups)
        logits_EBC = self.heads.out(features_EBF)
        return ExitOutput(logits_EBC, None if self.lte is None else self.lte(features_EBF)[..., 0])


def _stack_buffer(heads: Sequence[PooledHead], name: str) -> Tensor | None:
    """Move a vector of all heads together, or return None if they have none; theirs become views of it: [E, 1, H]."""
    buffers = [getattr(head, name) for head in heads]
    if any(buffer is None for buffer in buffers):
        return None
    stacked_EH = torch.stack(buffers)
    for head, buffer_H in zip(heads, stacked_EH, strict=True):
        setattr(head, name, buffer_H)
    return stacked_EH[:, None]
