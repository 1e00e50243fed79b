"""Training refuses what it cannot learn from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from models.exits.task import Task
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.errors import InputError, UserError
from pipeline.rows import TokenRows
from pipeline.training.distill import check_stream
from pipeline.training.finetune import check_trainable, parse_class_names, read_labelled, split_off_dev
from pipeline.training.stream import StreamSpec, held_out


def chunk(labels: list[float]) -> Chunk:
    rows = TokenRows.from_lists([[1]] * len(labels))
    return Chunk(rows=rows, labels=np.array(labels, np.float32))


REFUSED: dict[str, tuple[list[float], list[float], list[str], str, str]] = {
    "nothing is left": ([], [0], ["a", "b"], "train", r"in: no row is left to train on, with 1 held out"),
    "no row of a class": ([0, 0, 2], [1], ["a", "b", "c"], "train", r"in: no row to train on is of class 'b', with 1"),
    "values that do not vary": ([2.5, 2.5], [1, 2], ["value"], "train", r"in: all values are 2.5, .* nothing to learn"),
    "one value": ([2.5], [1, 2], ["value"], "train", "all values are 2.5"),
    "dev values that do not vary": (
        [1, 2],
        [3, 3],
        ["value"],
        "train",
        "in, held out: all values are 3, which tell no",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_rows_that_teach_nothing_are_refused(what: str) -> None:
    train, dev, classes, field, problem = REFUSED[what]
    with pytest.raises(InputError, match=problem) as refused:
        check_trainable(chunk(train), chunk(dev), classes, path="in", dev_path=None)
    assert refused.value.field == field


def test_dev_rows_that_tell_nothing_are_refused_by_their_own_name() -> None:
    with pytest.raises(InputError, match=r"^dev other: all values are 3, which tell no epoch from another") as refused:
        check_trainable(chunk([1, 2]), chunk([3]), ["value"], path="in", dev_path="other")
    assert refused.value.field == "dev"
    with pytest.raises(InputError, match=r"in: no row to train on is of class 'b'$"):
        check_trainable(chunk([0]), chunk([1]), ["a", "b"], path="in", dev_path="other")
    check_trainable(chunk([0, 1]), chunk([1]), ["a", "b"], path="in", dev_path=None)
    check_trainable(chunk([0, 1]), chunk([1, 2]), ["value"], path="in", dev_path=None)


def test_values_are_told_apart_by_two_dev_rows_at_least() -> None:
    train, dev = split_off_dev(chunk([0, 1, 2, 3, 4]), seed=0, least=2)
    assert (len(train), len(dev)) == (3, 2)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("only", "one class leaves nothing to tell apart"),
        ("a,a", "has a name twice"),
        ("a,,b", "or one that is empty"),
        ("a, ", "or one that is empty"),
        ('["a"]', "one class leaves"),
        ('["a", null]', "holds no JSON list of names"),
        ('[["a"], "b"]', "holds no JSON list of names"),
        ('["a", "a"]', "has a name twice"),
    ],
)
def test_class_names_are_two_or_more_each_its_own(given: str, problem: str, tmp_path: Path) -> None:
    if given.startswith("["):
        (tmp_path / "names.json").write_text(given)
        given = str(tmp_path / "names.json")
    with pytest.raises(InputError, match=problem) as refused:
        parse_class_names(given)
    assert refused.value.field == "class_names"


def test_values_have_no_class_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\ngood,1\n")
    with pytest.raises(InputError, match="a,b: values have no classes"):
        read_labelled(str(tmp_path), Columns(label="label"), None, task=Task.VALUE, class_names="a,b")


def stream(folder: Path, tokenizer: PreTrainedTokenizerFast) -> StreamSpec:
    return StreamSpec(
        corpus=list_inputs(str(folder)),
        columns=Columns(text="text"),
        tokenizer=TokenizerSpec.from_hugging_face(tokenizer, 64),
        classes=["a", "b"],
    )


def test_a_stream_of_which_all_is_held_out_is_refused(
    tmp_path: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "0.txt").write_text("a room\n")
    spec = stream(tmp_path, review_tokenizer)
    with pytest.raises(
        UserError, match=r"0\.txt: no usable row is left to train on, beside those that are held out to"
    ):
        check_stream(spec, held_out(spec)[1])
    check_stream(spec, ())  # with dev rows of its own
    (tmp_path / "1.txt").write_text("\n\n\n")
    spec = stream(tmp_path, review_tokenizer)
    with pytest.raises(UserError, match="no usable row is left to train on"):
        check_stream(spec, held_out(spec)[1])
    (tmp_path / "1.txt").write_text("\na room\n")
    spec = stream(tmp_path, review_tokenizer)
    check_stream(spec, held_out(spec)[1])
    with pytest.raises(UserError, match="no usable row is left to train on"):
        check_stream(replace(spec, limit=1), held_out(spec)[1])
    check_stream(replace(spec, limit=3), held_out(spec)[1])


def test_a_stream_without_a_usable_row_is_refused(tmp_path: Path, review_tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "0.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"0\.txt: no usable row is left to train on$"):
        check_stream(stream(tmp_path, review_tokenizer), ())
