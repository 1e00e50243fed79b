"""Packing is integers: literal goldens, and properties against a slow reading of the rules."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.length_group import LengthGroup
from pipeline.engine.packing import (
    cut_by_tokens,
    length_groups_of,
    micro_batches,
    pad_multiple,
    sort_by_length,
    training_batches,
)
from pipeline.rows import TokenRows

LENGTHS = st.lists(st.integers(1, 80), min_size=1, max_size=60)


def array(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


def test_micro_batches_by_hand() -> None:
    first, second, third = micro_batches(array([2, 2, 3, 5, 9]), token_budget=8)
    assert (first.rows, first.tokens, first.groups) == (
        slice(0, 3),
        slice(0, 7),
        (LengthGroup(2, 2), LengthGroup(1, 3)),
    )
    assert (second.rows, second.tokens, second.groups) == (slice(3, 4), slice(7, 12), (LengthGroup(1, 5),))
    assert (third.rows, third.tokens, third.groups) == (slice(4, 5), slice(12, 21), (LengthGroup(1, 9),))


def test_padding_rounds_up_to_the_tile_by_hand() -> None:
    (batch,) = micro_batches(array([5, 6]), token_budget=32)
    assert pad_multiple(32) == 4
    assert batch.padding == 1  # 11 tokens -> 12


def slow_cut(lengths: list[int], limit: int) -> list[list[int]]:
    """One row at a time: a row joins the last group if it fits, else starts a new one."""
    groups: list[list[int]] = []
    for row, length in enumerate(lengths):
        if groups and sum(lengths[other] for other in groups[-1]) + length <= limit:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


@given(LENGTHS, st.integers(1, 200))
def test_cutting_equals_the_slow_rule(lengths: list[int], limit: int) -> None:
    got = [list(range(part.start, part.stop)) for part in cut_by_tokens(array(lengths), limit)]
    assert got == slow_cut(lengths, limit)


@given(LENGTHS, st.integers(1, 200))
def test_micro_batches_hold_every_row_and_token_once(lengths: list[int], budget: int) -> None:
    lengths = sorted(lengths)
    row = token = 0
    for batch in micro_batches(array(lengths), budget):
        assert (batch.row_start, batch.token_start) == (row, token)
        assert [run.length for run in batch.groups for _ in range(run.rows)] == lengths[batch.rows]
        assert batch.num_tokens <= budget or batch.row_stop - batch.row_start == 1
        assert (batch.num_tokens + batch.padding) % pad_multiple(budget) == 0
        assert batch.padding < pad_multiple(budget)
        row, token = batch.row_stop, batch.token_stop
    assert (row, token) == (len(lengths), sum(lengths))


@given(LENGTHS)
def test_runs_join_equal_neighbours_and_only_those(lengths: list[int]) -> None:
    groups = length_groups_of(array(lengths))
    assert [run.length for run in groups for _ in range(run.rows)] == lengths
    assert all(a.length != b.length for a, b in itertools.pairwise(groups))


@given(LENGTHS)
def test_sorting_is_stable(lengths: list[int]) -> None:
    assert sort_by_length(array(lengths)).tolist() == sorted(range(len(lengths)), key=lambda row: lengths[row])


@given(LENGTHS, st.integers(1, 9), st.integers(1, 5), st.integers(0, 9))
def test_training_batches_hold_every_row_once_and_repeat_with_their_seed(
    lengths: list[int], rows: int, window: int, seed: int
) -> None:
    batches = training_batches(array(lengths), rows, window, seed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(len(batch) for batch in batches) <= rows
    again = training_batches(array(lengths), rows, window, seed)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=20), st.data())
def test_taking_rows_equals_taking_lists(rows: list[list[int]], data: st.DataObject) -> None:
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))
    taken = TokenRows.from_lists(rows).take(np.array(order, np.int64))
    wanted = TokenRows.from_lists([rows[row] for row in order])
    np.testing.assert_array_equal(taken.token_ids, wanted.token_ids)
    np.testing.assert_array_equal(taken.offsets, wanted.offsets)
