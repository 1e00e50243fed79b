"""The steps of an encoder over ragged rows, for inference: embeddings, layers, and the features of exit heads.

They run the weights of the model's own modules; what these compute step by step is here done in fewer passes over memory.

Legend of suffixes: T tokens, Q tokens or rows, B rows, N attention heads, D width of a head, H hidden, W width per token of an
attention head, F features.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from models.attention import attend_by_group
from models.backbone import Backbone, Embeddings, EncoderLayer, FeedForward, PreNormLayer
from models.gpu.dispatch import Kernels
from models.gpu.rows import RaggedRows
from models.heads import ATTENTION_HEAD_HEADS, AttentionHead, Head, MeanHead
from models.positions.self_attention import SelfAttention


def embed(
    embeddings: Embeddings, ids_T: Tensor, segments_B: Tensor, rows: RaggedRows, out_TH: Tensor, kernels: Kernels
) -> None:
    """Write the embeddings of rows to `out`; ids and segments are int32."""
    project = embeddings.project
    if not isinstance(project, torch.nn.Linear):
        kernels.embed(embeddings, ids_T, segments_B, rows, out_TH)
        return
    narrow_TE = out_TH.new_empty(len(out_TH), project.in_features)
    kernels.embed(embeddings, ids_T, segments_B, rows, narrow_TE)
    torch.addmm(project.bias, narrow_TE, project.weight.t(), out=out_TH)


def run_layer(layer: EncoderLayer, x_TH: Tensor, rows: RaggedRows, out_TH: Tensor, kernels: Kernels) -> None:
    """Write a whole layer's hidden states to `out`, which is not `x`."""
    mixed_TH = attend(layer.attention, layer.query_key_value(layer.attention_input(x_TH)), rows, kernels)
    _after_attention(layer, x_TH, mixed_TH, out_TH, kernels)
    if layer.convolution is not None:
        out_TH.copy_(layer.convolution.module(x_TH, out_TH, rows.groups))


def run_layer_for_first_tokens(layer: EncoderLayer, x_TH: Tensor, rows: RaggedRows, kernels: Kernels) -> Tensor:
    """Compute what `run_layer` gives the first token of every row, at a small part of the cost: [B, H]."""
    first_BH = x_TH.index_select(0, rows.starts)
    query, key_value = layer.query_and_key_value()
    q_BH = torch.nn.functional.linear(layer.attention_input(first_BH), *query)
    attention, read_TH = layer.attention, layer.attention_input(x_TH)
    if attention.bias is None and attention.rotary is None and attention.takes_kernels:
        mixed_BH = attend_from_first(q_BH, read_TH, rows, attention.heads, *key_value, kernels)
    else:
        mixed_BH = attention.from_first(q_BH, read_TH, rows.groups, *key_value)
    out_BH = torch.empty_like(first_BH)
    _after_attention(layer, first_BH, mixed_BH, out_BH, kernels)
    return out_BH if layer.convolution is None else layer.convolution.module.first_tokens(x_TH, out_BH, rows.groups)


def attend(attention: SelfAttention, qkv_T3H: Tensor, rows: RaggedRows, kernels: Kernels) -> Tensor:
    """Compute what every token reads of its row, [T, 3H] -> [T, H]; with biases by torch's operators, length by length.

    Rows so short that nothing is added to their scores are first, and go to the kernels all the same.
    """
    if not attention.takes_kernels:
        return attention.mix(qkv_T3H, rows.groups)
    if attention.rotary is not None:
        qkv_T3H = attention.turned(qkv_T3H, rows.positions)
    if attention.bias is None:
        return kernels.attend(qkv_T3H, rows, attention.heads)
    short = int(np.searchsorted(rows.host_lengths, attention.bias.nothing_up_to, side="right"))
    if short == len(rows):
        return kernels.attend(qkv_T3H, rows, attention.heads)
    mixed = []
    if short:
        part = rows.part(slice(0, short))
        mixed.append(kernels.attend(qkv_T3H[part.tokens], part, attention.heads))
    part = rows.part(slice(short, len(rows)))
    mixed.append(attend_by_group(qkv_T3H[part.tokens], part.groups, attention.heads, attention.bias))
    return torch.cat(mixed)


def hidden_states(
    backbone: Backbone, token_ids_T: Tensor, segments_B: Tensor, rows: RaggedRows, kernels: Kernels
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the number of every layer, from 1, and the hidden states before and after it, [T, H] each.

    They are in two buffers: what is yielded next takes their place.
    """
    weight = backbone.layer(1).ffn.expand.weight
    x_TH, y_TH = (weight.new_empty(rows.num_tokens, weight.shape[1]) for _ in range(2))
    embed(backbone.embeddings, token_ids_T, segments_B, rows, x_TH, kernels)
    for number in range(1, len(backbone.layers) + 1):
        run_layer(backbone.layer(number), x_TH, rows, y_TH, kernels)
        x_TH, y_TH = y_TH, x_TH
        yield number, y_TH, x_TH


def head_features(head: Head, x_TH: Tensor, rows: RaggedRows, kernels: Kernels) -> Tensor:
    """Compute the features of an exit's head from the hidden states of its layer: [B, F]."""
    if isinstance(head, AttentionHead):
        return attention_head_features(head, x_TH, rows, kernels)
    if isinstance(head, MeanHead):
        return head.features_from(x_TH, rows.groups)
    return head.features_of_first(x_TH.index_select(0, rows.starts))


def attention_head_features(head: AttentionHead, x_TH: Tensor, rows: RaggedRows, kernels: Kernels) -> Tensor:
    """Compute the features of an attention head: [B, F]."""
    narrow_TW = head.per_token(x_TH)
    query_BW = head.query(narrow_TW.index_select(0, rows.starts))
    weight, bias = head.key_value.weight, head.key_value.bias
    mixed_BW = attend_from_first(query_BW, narrow_TW, rows, ATTENTION_HEAD_HEADS, weight, bias, kernels)
    return head.features_of_mixed(mixed_BW)


def attend_from_first(
    q_BH: Tensor, x_TH: Tensor, rows: RaggedRows, heads: int, kv_2HH: Tensor, bias_2H: Tensor | None, kernels: Kernels
) -> Tensor:
    """Compute attention of one query a row without keys and values of its tokens: [B, H].

    models.attention.attend_from_first says how; here queries and what they mix lie head by head, as batched products want them.
    """
    width = q_BH.shape[1] // heads
    key_NDH, value_NDH = kv_2HH.view(2, heads, width, -1)
    asked_NBH = torch.bmm(q_BH.view(-1, heads, width).transpose(0, 1), key_NDH)
    mixed_NBH = kernels.pool(asked_NBH, x_TH, rows, width**-0.5)
    out_BH = torch.bmm(mixed_NBH, value_NDH.mT).transpose(0, 1).reshape(q_BH.shape)
    return out_BH if bias_2H is None else out_BH + bias_2H[len(bias_2H) // 2 :]


def _after_attention(layer: EncoderLayer, x_QH: Tensor, mixed_QH: Tensor, out_QH: Tensor, kernels: Kernels) -> None:
    if isinstance(layer, PreNormLayer):
        out_QH.copy_(layer.after_attention(x_QH, mixed_QH))
        return
    y_QH = layer.attention_out(mixed_QH)
    kernels.add_norm(y_QH, x_QH, layer.attention_norm, y_QH)
    z_QH = layer.ffn.contract(expand(layer.ffn, y_QH))
    kernels.add_norm(z_QH, y_QH, layer.ffn_norm, out_QH)


def expand(ffn: FeedForward, x_QH: Tensor) -> Tensor:
    """Expand and activate: GELU inside the product in 16 bits, where a GPU takes its tanh form (erf on CPUs).

    The two forms differ by 4.7e-4 at most, which 16 bits round away and fp32 would not.
    """
    if ffn.activation_name == "gelu" and x_QH.dtype != torch.float32:
        return torch._addmm_activation(ffn.expand.bias, x_QH, ffn.expand.weight.t(), use_gelu=True)
    return ffn.activation(ffn.expand(x_QH))
