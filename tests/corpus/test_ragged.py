"""Ragged token ids, by hand."""

import numpy as np
import pytest

from pipeline.corpus.ragged import Ragged, repeated, side_by_side
from pipeline.rows import spans


def ragged(*texts: list[int]) -> Ragged:
    ids = np.array([token for text in texts for token in text], np.int32)
    return Ragged(ids=ids, lengths=np.array([len(text) for text in texts], np.int64))


def lists(tokens: Ragged) -> list[list[int]]:
    assert tokens.ids.dtype == np.int32
    assert tokens.lengths.dtype == np.int64
    assert len(tokens.ids) == tokens.lengths.sum()
    return [tokens.take(np.array([index])).ids.tolist() for index in range(len(tokens))]


def test_rows_are_taken_in_any_order() -> None:
    tokens = ragged([1, 2], [], [3])
    assert tokens.take(np.array([2, 0, 2, 1])) == ragged([3], [1, 2], [3], [])
    assert tokens != ragged([1], [2], [3])
    assert tokens != ragged([1, 2], [], [4])
    assert tokens != "tokens"


def test_spans_follow_each_other() -> None:
    assert spans(np.array([5, 0, 2]), np.array([2, 0, 1])).tolist() == [5, 6, 2]
    assert spans(np.array([], np.int64), np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize(("left", "kept"), [(False, [[1, 2], [], [5]]), (True, [[2, 3], [], [5]])])
def test_a_cut_keeps_either_end(left: bool, kept: list[list[int]]) -> None:
    assert lists(ragged([1, 2, 3], [4], [5]).cut(np.array([2, 0, 1]), left=left)) == kept


def test_rows_are_replaced_where_they_stand() -> None:
    tokens = ragged([1, 2], [3], [], [4])
    assert lists(tokens.replace(np.array([1, 2]), ragged([7, 8, 9], [6]))) == [[1, 2], [7, 8, 9], [6], [4]]
    assert lists(tokens) == [[1, 2], [3], [], [4]]


def test_pieces_stand_side_by_side() -> None:
    pieces = [repeated([101], 3), ragged([1, 2], [], [3]), repeated([], 3), ragged([], [], [4]), repeated([102, 0], 3)]
    assert lists(side_by_side(pieces)) == [[101, 1, 2, 102, 0], [101, 102, 0], [101, 3, 4, 102, 0]]
    assert lists(side_by_side([repeated([101], 0), ragged()])) == []
