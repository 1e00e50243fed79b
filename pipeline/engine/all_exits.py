"""Run rows through every exit, without re-packing."""

from collections.abc import Iterator

from models.early_exit import EarlyExitModel, ExitOutput
from pipeline.engine.pack import pack
from pipeline.engine.packing import cut_by_tokens, length_groups_of, pad_multiple, sort_by_length
from pipeline.rows import IntArray, TokenRows


def all_exits(
    model: EarlyExitModel, rows: TokenRows, token_budget: int = 2048
) -> Iterator[tuple[IntArray, dict[int, ExitOutput]]]:
    """Run rows through every exit, without re-packing: yield (row numbers, exit layer -> output) by micro-batch.

    Whether gradients are kept is up to the caller. For calibration, evaluation and the scores of training.
    """
    device = next(model.parameters()).device
    order = sort_by_length(rows.lengths)
    for part in cut_by_tokens(rows.lengths[order], token_budget):
        members = rows.take(order[part])
        padding = -len(members.token_ids) % pad_multiple(token_budget)
        yield order[part], model(pack(members, length_groups_of(members.lengths), padding, device))
