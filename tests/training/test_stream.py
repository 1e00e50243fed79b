"""Rows held out of a stream."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.errors import UserError
from pipeline.training.stream import HOLD_OUT_ROWS, StreamSpec, held_out


def spec_of(folder: Path, tokenizer: PreTrainedTokenizerFast) -> StreamSpec:
    return StreamSpec(
        corpus=list_inputs(str(folder)),
        columns=Columns(text="text"),
        tokenizer=TokenizerSpec.from_hugging_face(tokenizer, 64),
        classes=["a", "b"],
    )


def test_rows_are_held_out_of_as_many_files_as_it_takes(
    tmp_path: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("a room\n" * 16)
    held, files = held_out(spec_of(tmp_path, review_tokenizer))
    assert (len(held), len(files)) == (10, 5)
    (tmp_path / "0.txt").write_text("a room\n" * (8 * HOLD_OUT_ROWS + 80))
    held, files = held_out(spec_of(tmp_path, review_tokenizer))
    assert len(held) == HOLD_OUT_ROWS
    assert files == {str(tmp_path / "0.txt")}


def test_a_stream_without_a_row_to_hold_out_is_told_of(
    tmp_path: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "0.txt").write_text("\n")
    with pytest.raises(UserError, match=r"0\.txt: no usable row to hold out at its start; give dev rows"):
        held_out(spec_of(tmp_path, review_tokenizer))
