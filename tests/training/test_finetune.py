"""What fine-tuning reads: labelled text, the names of its classes, and dev rows."""

from pathlib import Path

import numpy as np
import pytest

from models.exits.task import Task
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.columns import Columns
from pipeline.errors import InputError
from pipeline.rows import TokenRows
from pipeline.schema import VALUE
from pipeline.training.finetune import HOLD_OUT_ROWS, parse_class_names, read_labelled, split_off_dev


def test_classes_are_those_that_occur_unless_they_are_given(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\ngood,yes\nbad,no\nfine,yes\n")
    texts, classes = read_labelled(str(file), Columns(label="label"), 2, task=Task.CLASSES, class_names=None)
    assert (texts.texts, classes) == (["good", "bad"], ["no", "yes"])
    assert read_labelled(str(file), Columns(label="label"), None, task=Task.CLASSES, class_names="yes,no")[1] == [
        "yes",
        "no",
    ]
    assert read_labelled(str(file), Columns(label="label"), None, task=Task.VALUE, class_names=None)[1] == [VALUE]


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\ngood,yes\nfine,yes\n")
    with pytest.raises(InputError, match=r"a\.csv: all labels are 'yes'; there is nothing to tell apart") as error:
        read_labelled(str(file), Columns(label="label"), None, task=Task.CLASSES, class_names=None)
    assert error.value.field == "train"


def test_class_names_come_from_a_list_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text('["no", 1]')
    assert parse_class_names(str(file)) == ["no", "1"]
    for content, problem in (('{"no": 0}', "holds no JSON list of names"), ("[", "Expecting value")):
        file.write_text(content)
        with pytest.raises(InputError, match=f"names.json: {problem}"):
            parse_class_names(str(file))


@pytest.mark.parametrize(("rows", "held"), [(3, 1), (40, 4), (50_000, HOLD_OUT_ROWS)])
def test_a_tenth_becomes_dev_rows_and_no_row_is_in_both_parts(rows: int, held: int) -> None:
    numbers = np.arange(rows, dtype=np.int32)
    tokens = TokenRows(token_ids=numbers, offsets=np.arange(rows + 1), segments=np.ones(rows, np.int32))
    train, dev = split_off_dev(Chunk(rows=tokens, labels=numbers.astype(np.float32)), seed=0)
    assert (len(train), len(dev)) == (rows - held, held)
    assert sorted([*train.labels.tolist(), *dev.labels.tolist()]) == list(range(rows))
