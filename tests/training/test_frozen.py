"""States of a frozen backbone: computed for many batches at once, they are those of each batch alone."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from models.early_exit import EarlyExitModel
from pipeline.corpus.chunks import Chunk
from pipeline.engine.packing import sort_by_length, training_batches
from pipeline.rows import TokenRows
from pipeline.training.frozen import CALLS_AHEAD, STATE_BYTES, FrozenBackbone, States
from tests.support.gpu import unfused
from tests.support.models import random_rows


def batches_of(rows: TokenRows, size: int) -> list[Chunk]:
    """Cut rows into batches as training does, in whose order of length each of them is."""
    chunk = Chunk(rows=rows, labels=np.zeros(len(rows), np.float32), global_rows=len(rows))
    return [chunk.take(members) for members in training_batches(rows.lengths, size, 3, seed=0)]


def same(got: States, expected: States) -> None:
    torch.testing.assert_close(got.inputs, expected.inputs, atol=2e-2, rtol=2e-2)
    assert got.lengths.tolist() == expected.lengths.tolist()
    if expected.teacher is not None:
        torch.testing.assert_close(got.teacher, expected.teacher, atol=2e-2, rtol=2e-2)


@pytest.fixture(params=[1, 3])
def backbone(request: pytest.FixtureRequest, exit_model: EarlyExitModel) -> Iterator[FrozenBackbone]:
    torch.set_num_threads(request.param)
    found = FrozenBackbone(copy.deepcopy(exit_model), with_last=request.param == 3)
    torch.set_num_threads(1)
    assert found.loaded.threads == request.param
    yield found
    found.loaded.close()


@pytest.mark.parametrize("limit", [1, 40_000, 1 << 24])
def test_every_batch_gets_the_states_of_its_own_rows(
    limit: int, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STATE_BYTES, "cpu", limit)
    batches = batches_of(random_rows(90, 30, seed=2), 8)
    got = list(backbone.prefetch(batches))
    assert [batch for batch, _ in got] == batches
    for batch, states in got:
        same(states, backbone.run(batch.rows))


@pytest.mark.parametrize("limit", [1, 5_000, 40_000, 1 << 24])
def test_a_call_takes_as_many_batches_as_fit_into_its_bound(
    limit: int, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size(call: list[Chunk]) -> int:
        return backbone.run(TokenRows.join([batch.rows for batch in call])).inputs.nbytes

    monkeypatch.setitem(STATE_BYTES, "cpu", limit)
    batches = batches_of(random_rows(60, 30, seed=3), 8)
    calls = list(backbone._calls(iter(batches)))
    assert [batch for call in calls for batch in call] == batches
    assert all(len(call) == 1 or size(call) <= limit for call in calls)
    assert all(size([*call, following[0]]) > limit for call, following in pairwise(calls))


def test_calls_are_under_way_before_their_batches_are_asked_for(
    backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STATE_BYTES, "cpu", 1)
    taken: list[Chunk] = []

    def source() -> Iterator[Chunk]:
        for batch in batches_of(random_rows(40, 9, seed=1), 4):
            taken.append(batch)
            yield batch

    next(iter(backbone.prefetch(source())))
    assert len(taken) == CALLS_AHEAD + 2  # the one that would not fit into the last call as well


@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("last", ["classifier", "attention"])
def test_the_operators_for_gpus_give_the_same_states(
    kind: str, last: str, exit_model: EarlyExitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfused(monkeypatch)
    model = EarlyExitModel(exit_model.config, last_head=last)
    model.add_exits(kind)
    found = FrozenBackbone(model.eval(), with_last=True)
    rows = random_rows(40, 30, seed=4)
    rows = rows.take(sort_by_length(rows.lengths))
    expected = found.run(rows)
    on_gpu = replace(expected, inputs=torch.zeros_like(expected.inputs), teacher=torch.zeros(40, 3))
    with torch.no_grad():
        found._encode_on_gpu(rows, on_gpu)
    same(on_gpu, expected)
    found.loaded.close()


@pytest.mark.parametrize("kind", ["pooled", "attention"])
def test_rows_that_do_not_fit_together_are_encoded_in_smaller_parts(
    kind: str, exit_model: EarlyExitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfused(monkeypatch)
    model = EarlyExitModel(exit_model.config)
    model.add_exits(kind)
    found = FrozenBackbone(model.eval(), with_last=True)
    rows = random_rows(40, 30, seed=4)
    rows = rows.take(sort_by_length(rows.lengths))
    expected = found.run(rows)
    sizes: list[int] = []
    encode = found._encode_part_on_gpu

    def on_a_small_device(rows: TokenRows, states: States, part: slice) -> int:
        sizes.append(int(rows.lengths[part].sum()))
        if sizes[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return encode(rows, states, part)

    monkeypatch.setattr(found, "_encode_part_on_gpu", on_a_small_device)
    monkeypatch.setattr(found, "_encode_on_cpu", found._encode_on_gpu)
    same(found.run(rows), expected)
    assert max(sizes) > 100
    assert sum(size for size in sizes if size <= 100) == len(rows.token_ids)
    found.loaded.close()
