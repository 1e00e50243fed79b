"""Run rows through every exit, without re-packing."""

from collections.abc import Iterator

import torch

from models.early_exit import EarlyExitModel, ExitOutput
from models.gpu.dispatch import kernels_for
from models.gpu.encoder import head_features, hidden_states, run_layer_for_first_tokens
from models.gpu.rows import RaggedRows, send
from models.heads import PooledHead
from pipeline.engine.memory import sizes_on
from pipeline.engine.pack import pack
from pipeline.engine.packing import cut_by_tokens, length_groups_of, pad_multiple, sort_by_length
from pipeline.rows import IntArray, TokenRows

TOKEN_BUDGET = {"cpu": 2048, "cuda": 1 << 15}
"""Tokens of a micro-batch, at most: on a GPU they take half a gigabyte of BERT-base."""


def all_exits(
    model: EarlyExitModel, rows: TokenRows, token_budget: int | None = None
) -> Iterator[tuple[IntArray, dict[int, ExitOutput]]]:
    """Run rows through every exit by the model's `forward`: yield (row numbers, exit layer -> output) by micro-batch.

    For models in training. Whether gradients are kept is up to the caller.
    """
    device = next(model.parameters()).device
    token_budget = token_budget or _budget(model, device)
    order = sort_by_length(rows.lengths)
    for part in cut_by_tokens(rows.lengths[order], token_budget):
        members = rows.take(order[part])
        padding = -len(members.token_ids) % pad_multiple(token_budget)
        yield order[part], model(pack(members, length_groups_of(members.lengths), padding, device))


def all_exits_as_run(model: EarlyExitModel, rows: TokenRows) -> Iterator[tuple[IntArray, dict[int, ExitOutput]]]:
    """Do what `all_exits` does by the operators that the engine's runner has for the model's device.

    For calibration and evaluation: 16 bits round otherwise in other operators, and what is judged should be what will run.
    """
    device = next(model.parameters()).device
    return _on_gpu(model, rows, device) if device.type == "cuda" else all_exits(model, rows)


def _on_gpu(
    model: EarlyExitModel, rows: TokenRows, device: torch.device
) -> Iterator[tuple[IntArray, dict[int, ExitOutput]]]:
    kernels, order = kernels_for(device), sort_by_length(rows.lengths)
    for part in cut_by_tokens(rows.lengths[order], _budget(model, device)):
        members = rows.take(order[part])
        ids_T, segments_B = send(members.token_ids, device), send(members.segments, device)
        ragged = RaggedRows.of(members.lengths, device)
        outputs = {}
        for number, before_TH, x_TH in hidden_states(model.backbone, ids_T, segments_B, ragged, kernels):
            if number not in model.exit_layers:
                continue
            head, layer = model.head(number), model.backbone.layer(number)
            if isinstance(head, PooledHead):
                features_BF = head.features_of_first(run_layer_for_first_tokens(layer, before_TH, ragged, kernels))
            else:
                features_BF = head_features(head, x_TH, ragged, kernels)
            outputs[number] = model.exit_output(number, features_BF)
        yield order[part], outputs


def _budget(model: EarlyExitModel, device: torch.device) -> int:
    """Return the tokens of a micro-batch: TOKEN_BUDGET, or fewer on a GPU with little memory left."""
    if device.type != "cuda":
        return TOKEN_BUDGET["cpu"]
    sizes = sizes_on(device, model.shape, next(model.parameters()).dtype)
    return min(TOKEN_BUDGET["cuda"], sizes.token_budget)
