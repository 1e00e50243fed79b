"""int8 products for inference on CPUs, with scales that are fixed when the model is loaded.

Scales that follow every batch would cost what the products save, and would make a row's logits depend on its neighbours. Fixed
ones need to know what values occur; in an encoder with LayerNorm those are a matter of the weights far more than of the text:
random tokens show them as well as real ones did (docs/results/speed/README.md), and no data is needed.

Weights have a scale for every output, activations one for every matrix. What makes one enough:

- *The input*, out of a LayerNorm, has a few wide channels. Each channel is divided by a factor of its own, which the weights
  take over (SmoothQuant: Xiao et al. 2023, equation 4).
- *The inner values* come out of the first product as uint8. Their few widest channels stay in the model's own dtype, in a
  narrow product of their own (the decomposition of LLM.int8(): Dettmers et al. 2022).

Both products take uint8. VNNI multiplies uint8 by int8, AMX all of them; for int8 by int8 without AMX oneDNN has, under torch's
packed weights, only a reference kernel, over a thousand times slower.

Only feed-forward blocks are done so, two thirds of a layer's products: there one rounded input serves two products four times
as wide. For queries, keys and values, and for the output of attention, rounding the input costs what int8 saves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.backbone import FeedForward, PackedTokens
from models.cpu.fused import POST_OPS, FusedLinear
from models.cpu.support import multiplies_int8
from models.early_exit import EarlyExitModel
from models.length_group import LengthGroup

SMOOTHING = 0.75
"""How much of a channel's width goes to the weights, of [0, 1]; the best of 0.5, 0.75, 0.85 and 1."""
WIDE_CHANNELS = 32
"""Inner channels of a feed-forward block that are not rounded; equal from 16 to 64."""
HEADROOM = 1.25
"""Factor by which inner values may exceed the largest that was measured, before they are cut off."""
GELU_LOWEST = -0.17
"""The least value of GELU."""
INPUT_ZERO = 128
"""The uint8 that stands for an input of zero."""
SAMPLE = LengthGroup(rows=128, length=64)
"""Random rows that are run to measure which values occur."""


@dataclass(slots=True)
class Ranges:
    """Ranges measured in the channels of a feed-forward block: largest absolute inputs [H], largest inner values [I]."""

    inputs: Tensor
    inner: Tensor


def measure_ranges(model: EarlyExitModel) -> list[Ranges]:
    """Run random tokens through all layers and return the ranges in each; the same at every call."""
    length = min(SAMPLE.length, model.shape.max_tokens)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.shape.vocabulary, (SAMPLE.rows * length,), generator=generator)
    groups = (LengthGroup(SAMPLE.rows, length),)
    segments = torch.full((SAMPLE.rows,), length)
    ranges = []
    with torch.inference_mode():
        x_TH = model.backbone.embeddings(PackedTokens(token_ids=ids, segments=segments, groups=groups))
        for number in range(1, model.shape.layers + 1):
            layer = model.backbone.layer(number)
            seen: list[Tensor] = []
            with _watched(layer.ffn, seen):
                x_TH = layer(x_TH, groups)
            inputs, inner = (values.float() for values in seen)
            ranges.append(Ranges(inputs.abs().amax(0), inner.amax(0)))
    return ranges


@contextmanager
def _watched(ffn: FeedForward, seen: list[Tensor]) -> Iterator[None]:
    """Append the inputs of the block's two products to `seen`, in order."""
    products = (ffn.expand, ffn.contract)
    hooks = [product.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for product in products]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Rounding(nn.Module):
    """Rounds a matrix to uint8 around INPUT_ZERO, each channel divided by a step of its own."""

    def __init__(self, range_H: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
        """Choose the steps for a matrix whose values have these ranges [H] and which meets this weight [out, H]."""
        super().__init__()
        range_H = range_H.clamp(min=1e-5)
        smooth_H = range_H**SMOOTHING / weight.float().abs().amax(0).clamp(min=1e-5) ** (1 - SMOOTHING)
        self.scale = float((range_H / smooth_H).max()) / 127
        """Scale of the rounded matrix, when the weight's columns are multiplied by `smooth_H`."""
        self.smooth_H = smooth_H
        self._per_step_H = (1 / (smooth_H * self.scale)).to(dtype)

    def forward(self, x_TH: Tensor) -> Tensor:
        whole_TH = (x_TH * self._per_step_H).clamp_(-127, 127).round_().to(torch.int8)
        return whole_TH.view(torch.uint8).bitwise_xor_(INPUT_ZERO)  # adds 128; bf16 would round again if it did


class Int8Linear:
    """A product of whole numbers: uint8 in, uint8 or the residual's dtype out; bias, activation and residual are part of it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: float, zero: int, tokens: int) -> None:
        """Round and pack [out, in] for matrices of about `tokens` rows whose values are (whole - zero) x scale."""
        self._input = (scale, zero)
        weight = weight.detach().float()
        scales = weight.abs().amax(1).clamp(min=1e-8) / 127
        whole = (weight / scales[:, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(whole, [tokens, weight.shape[1]])
        self._weight = (packed, scales, torch.zeros(len(scales), dtype=torch.int64))
        self._bias = None if bias is None else bias.detach().float()

    def to_uint8(self, x: Tensor, scale: float, zero: int, activation: str) -> Tensor:
        """Return activation(linear(x)) rounded to uint8 with this scale and zero point."""
        post_op = POST_OPS[activation]
        return torch.ops.onednn.qlinear_pointwise(
            x, *self._input, *self._weight, self._bias, scale, zero, torch.uint8, *post_op
        )

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return linear(x) + residual, in the residual's dtype."""
        return torch.ops.onednn.qlinear_pointwise.binary(
            x,
            *self._input,
            *self._weight,
            residual,
            self._bias,
            1.0,
            0,
            residual.dtype,
            1.0,
            0,
            "add",
            1.0,
            "none",
            [],
            "",
        )


def can_use_int8(device: torch.device) -> bool:
    """Return whether this torch has the operators and the CPU the instructions; see models.cpu.probe for what it is worth."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return hasattr(torch.ops.onednn, "qlinear_pointwise") and multiplies_int8()


def use_int8(model: EarlyExitModel, tokens: int) -> None:
    """Replace the feed-forward blocks, in place, for matrices of about `tokens` rows; the activation is one of POST_OPS."""
    for number, ranges in enumerate(measure_ranges(model), start=1):
        layer = model.backbone.layer(number)
        setattr(layer, "ffn", Int8FeedForward(layer.ffn, ranges, tokens))  # noqa: B010 - typed as what it replaces


class Int8FeedForward(nn.Module):
    """Takes the place of a FeedForward whose activation oneDNN can apply."""

    def __init__(self, ffn: FeedForward, ranges: Ranges, tokens: int) -> None:
        super().__init__()
        self.activation = ffn.activation_name
        expand, contract = ffn.expand.weight.detach(), ffn.contract.weight.detach()
        order = ranges.inner.argsort(descending=True, stable=True)
        wide = order[: min(WIDE_CHANNELS, len(order) // 2)]
        self._wide_in = FusedLinear(expand[wide], ffn.expand.bias[wide], tokens, self.activation)
        self._wide_out = FusedLinear(contract[:, wide], None, tokens)
        # The wide channels stay in the matrix, as zeros: a width that is a multiple of 64 is faster than the rest alone.
        others = torch.ones(len(order)).index_fill(0, wide, 0.0)
        self.rounding = Rounding(ranges.inputs, expand, expand.dtype)
        smoothed, bias = expand * self.rounding.smooth_H, ffn.expand.bias * others
        self._expand = Int8Linear(smoothed * others[:, None], bias, self.rounding.scale, INPUT_ZERO, tokens)
        lowest = GELU_LOWEST if self.activation == "gelu" else 0.0
        highest = max(float(ranges.inner[order[len(wide)]]), 1e-5) * HEADROOM
        self._inner_scale = (highest - lowest) / 255
        self._inner_zero = round(-lowest / self._inner_scale)
        self._contract = Int8Linear(contract * others, ffn.contract.bias, self._inner_scale, self._inner_zero, tokens)

    def forward(self, x_QH: Tensor) -> Tensor:
        whole = self._expand.to_uint8(self.rounding(x_QH), self._inner_scale, self._inner_zero, self.activation)
        return self._wide_out.plus(self._wide_in(x_QH), self._contract.plus(whole, x_QH))
