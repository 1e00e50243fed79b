"""DeBERTa-v2's convolution beside its first layer: what a token's neighbours say is added to the layer's output.

Legend of suffixes: T tokens, B rows, Q rows and padding, L length of a row, H hidden.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.families import shape
from models.layers import Dropout, activation
from models.length_group import LengthGroup


class Convolution(nn.Module):
    """A convolution over the tokens of every row, added to what the layer returns, and normalized."""

    def __init__(self, sizes: shape.Convolution, hidden: int, norm_eps: float, dropout: float) -> None:
        super().__init__()
        self.product = nn.Conv1d(hidden, hidden, sizes.kernel, padding=sizes.kernel // 2, groups=sizes.groups)
        self.norm = nn.LayerNorm(hidden, eps=norm_eps)
        self.dropout, self.activation = Dropout(dropout), activation(sizes.activation)

    def forward(self, x_TH: Tensor, out_TH: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Return the output for a layer's input and output of all tokens: [T, H]; padding keeps to itself."""
        tokens = [group.tokens for group in groups]
        *parts, padding = x_TH.split([*tokens, len(x_TH) - sum(tokens)])
        near = [self._over(part.view(group.rows, group.length, -1)) for group, part in zip(groups, parts, strict=True)]
        near_TH = torch.cat([*(part.flatten(0, 1) for part in near), torch.zeros_like(padding)])
        return self._added(near_TH, out_TH)

    def first_tokens(self, x_TH: Tensor, out_QH: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Return the output for the first token of every row: [Q, H]; rows past the last are padding."""
        reach = self.product.kernel_size[0] // 2
        tokens = [group.tokens for group in groups]
        parts = x_TH[: sum(tokens)].split(tokens)
        near = [
            self._over(part.view(group.rows, group.length, -1)[:, : reach + 1])[:, 0]
            for group, part in zip(groups, parts, strict=True)
        ]
        near_BH = torch.cat(near)
        return self._added(F.pad(near_BH, (0, 0, 0, len(out_QH) - len(near_BH))), out_QH)

    def _over(self, x_BLH: Tensor) -> Tensor:
        near_BLH: Tensor = self.product(x_BLH.transpose(1, 2)).transpose(1, 2)
        return near_BLH

    def _added(self, near_QH: Tensor, out_QH: Tensor) -> Tensor:
        normed_QH: Tensor = self.norm(out_QH + self.activation(self.dropout(near_QH)))
        return normed_QH
