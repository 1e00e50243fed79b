"""Ragged rows know where their tokens are, against lists of tokens."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.gpu.rows import BLOCKS, RaggedRows, Span, send
from models.length_group import LengthGroup

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=30).map(sorted)


def rows_of(lengths: list[int]) -> RaggedRows:
    return RaggedRows.of(np.array(lengths), CPU)


def test_rows_by_hand() -> None:
    rows = rows_of([2, 3, 3, 16, 17, 130])
    assert rows.bounds.tolist() == [0, 2, 5, 8, 24, 41, 171]
    assert (rows.bounds.dtype, rows.lengths.dtype) == (torch.int32, torch.int32)
    assert rows.lengths.tolist() == [2, 3, 3, 16, 17, 130]
    assert (len(rows), rows.num_tokens, rows.longest) == (6, 171, 130)
    assert rows.groups == tuple(LengthGroup(*group) for group in [(1, 2), (2, 3), (1, 16), (1, 17), (1, 130)])
    assert rows.spans == (Span(0, 4, 16), Span(4, 5, 32))
    assert rows.longer is not None
    assert (rows.longer.tokens, rows.longer.bounds.tolist()) == (slice(41, 171), [0, 130])
    assert rows_of([1, 128]).longer is None


@given(LENGTHS)
def test_every_row_is_in_the_smallest_block_that_holds_it(lengths: list[int]) -> None:
    rows = rows_of(lengths)
    blocks = {row: span.block for span in rows.spans for row in range(span.start, span.stop)}
    expected = {row: min(b for b in BLOCKS if b >= n) for row, n in enumerate(lengths) if n <= BLOCKS[-1]}
    assert blocks == expected
    assert sum(span.stop - span.start for span in rows.spans) == len(expected)
    assert (len(rows.longer) if rows.longer else 0) == len(lengths) - len(expected)


@given(LENGTHS, st.data())
def test_parts_of_rows_are_at_their_tokens(lengths: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lengths) - 1))
    stop = data.draw(st.integers(start + 1, len(lengths)))
    tokens = [(row, offset) for row, length in enumerate(lengths) for offset in range(length)]
    whole = rows_of(lengths)
    part = whole.part(slice(start, stop))
    assert tokens[part.tokens] == [token for token in tokens if start <= token[0] < stop]
    alone = rows_of(lengths[start:stop])
    assert part.bounds.tolist() == alone.bounds.tolist()
    assert part.lengths.tolist() == alone.lengths.tolist()
    assert part.spans == alone.spans
    again = part.part(slice(1, len(part)))  # counts from the part, not from the whole
    assert again.tokens.start == lengths[start]


@given(LENGTHS, st.data())
def test_rows_that_stay_are_found_where_they_were(lengths: list[int], data: st.DataObject) -> None:
    stays = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)).filter(any))
    tokens = [(row, offset) for row, length in enumerate(lengths) for offset in range(length)]
    rows = rows_of(lengths)
    kept, kept_B = rows.keep(np.array(stays))
    assert kept_B.tolist() == [row for row, stay in enumerate(stays) if stay]
    index_T = kept.index_from(rows.starts[kept_B])
    assert index_T.dtype == torch.int32
    assert [tokens[at] for at in index_T.tolist()] == [token for token in tokens if stays[token[0]]]


def test_rows_are_found_in_any_order() -> None:
    assert rows_of([2, 3]).index_from(torch.tensor([7, 0], dtype=torch.int32)).tolist() == [7, 8, 0, 1, 2]


def test_what_is_sent_is_a_copy() -> None:
    array = np.array([1, 2, 3])
    array.flags.writeable = False
    sent = send(array, CPU)
    sent[0] = 5
    assert (sent.dtype, sent.tolist(), array.tolist()) == (torch.int32, [5, 2, 3], [1, 2, 3])
