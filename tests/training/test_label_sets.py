"""Training on label sets: what files may hold, what is refused, and models that learn which words bring which label."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from models.early_exit import EarlyExitModel
from models.exits.task import Task
from pipeline.corpus.chunks import Chunk, MemorySource
from pipeline.corpus.columns import Columns
from pipeline.corpus.labelled import label_reader, label_set, label_sets, read_texts, tokenize_texts
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.errors import InputError, UserError
from pipeline.training.config import TrainingConfig
from pipeline.training.finetune import FinetuneSpec, check_trainable, finetune, read_labelled, split_off_dev
from pipeline.training.loop import scores_by_exit, train
from pipeline.training.process_group import ProcessGroup
from pipeline.training.recipes import FrozenHeads, Objective, WholeModel, add_teacher_logits
from tests.training.test_training import new_model

WORDS = {"clean": "tidy", "staff": "waiter", "noise": "loud"}
"""Labels, each with the word that brings it."""
CONFIG = TrainingConfig(epochs=4, batch_rows=16, learning_rate=4e-3, seed=1)


def made_set(rows: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Draw texts of filling words, and of the words of a random label set, which may be empty."""
    random = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(rows):
        own = [label for label in WORDS if random.random() < 0.4]
        filling = random.choice(["with", "here", "view", "never"], 4).tolist()
        words = [*(WORDS[label] for label in own for _ in range(2)), *filling]
        texts.append(" ".join(random.permutation(words).tolist()))
        labels.append(own)
    return texts, labels


def write(path: Path, texts: list[str], labels: list[list[str]] | list[list[str] | None]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "label": pa.array(labels, pa.list_(pa.string()))}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": s}) + "\n" for t, s in zip(texts, labels, strict=True)))
    else:
        lines = [f'{t},"{json.dumps(s).replace(chr(34), chr(34) * 2)}"\n' for t, s in zip(texts, labels, strict=True)]
        path.write_text("text,label\n" + "".join(lines))
    return str(path)


def read(path: str, separator: str | None = None) -> tuple[list[object], list[str]]:
    texts, names = read_labelled(
        path, Columns(label="label"), None, task=Task.LABELS, class_names=None, separator=separator
    )
    return list(texts.labels or ()), names


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_lists_of_labels_are_read_alike_from_all_formats(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{suffix}", ["a", "b", "c"], [["x", "y"], [], ["10"]])
    assert read(path) == ([("x", "y"), (), ("10",)], ["10", "x", "y"])


def test_text_with_a_separator_is_split_and_other_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\ngood,x; y\nbad,[]\nfine,y\n")
    assert read(str(tmp_path / "a.csv"), ";") == ([("x", "y"), (), ("y",)], ["x", "y"])
    with pytest.raises(UserError, match=r"a\.csv: column 'label': label x; y is no list of labels"):
        read(str(tmp_path / "a.csv"))
    with pytest.raises(InputError, match="is for the task multi-label"):
        label_reader(Task.CLASSES, ";")


def test_an_empty_list_is_a_label_set_and_null_is_none() -> None:
    assert label_set(b'["b", "a"]') == ("b", "a")
    assert [label_set(value) for value in ([], "[]", None, " ", float("nan"), "", ["b", True])] == [
        *[(), ()],
        *[None] * 4,
        ("b", "true"),
    ]
    for wrong in (3, {"a": 1}, ["a", None], ["a", ["b"]], "a", '{"a": 1}'):
        with pytest.raises(UserError, match="label"):
            label_set(wrong)
    numbers = label_sets([("b", "a"), (), None], ["a", "b"])
    assert numbers[:2].tolist() == [[1, 1], [0, 0]]
    assert np.isnan(numbers[2]).all()
    assert label_sets([("1",)], ["a", "b"]).tolist() == [[0, 1]]
    with pytest.raises(UserError, match="label 'c' is none of the model's classes: a, b"):
        label_sets([("c",)], ["a", "b"])


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([["a"], None], "has a null or empty label in row 1"),
        ([[], []], "no row has a label; there is nothing to learn"),
        ([["a"], ["a", None]], "has a null or empty label in its list"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels: list[list[str] | None], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        read(write(tmp_path / "a.parquet", ["x", "y"], labels))


def test_every_label_occurs_in_the_rows_to_train_on(tokens: Tokenizer) -> None:
    chunk = Chunk(rows=tokens(["a", "b"]).rows, labels=np.array([[1, 0], [0, 0]], np.float32))
    with pytest.raises(InputError, match="no row to train on has the label 'y'"):
        check_trainable(chunk, chunk, ["x", "y"], path="in", dev_path="other")
    same = replace(chunk, labels=np.ones((2, 2), np.float32))
    with pytest.raises(InputError, match="all rows have the same labels; there is nothing to tell apart"):
        check_trainable(same, same, ["x", "y"], path="in", dev_path="other")


@pytest.fixture(scope="module")
def tokens(review_tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer(TokenizerSpec.from_hugging_face(review_tokenizer, 64))


@pytest.fixture(scope="module")
def examples(tokens: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Chunk:
    path = write(tmp_path_factory.mktemp("labelled") / "a.parquet", *made_set(1200, 0))
    texts = read_texts(path, Columns(label="label"), read_label=label_reader(Task.LABELS))
    return tokenize_texts(texts, tokens, list(WORDS), task=Task.LABELS)


@pytest.fixture(scope="module")
def trained(examples: Chunk, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    backbone, output, lines = tmp_path_factory.mktemp("backbone"), tmp_path_factory.mktemp("tagger"), list[str]()
    new_model().save_pretrained(backbone)
    rows, dev = split_off_dev(examples, seed=0)
    check_trainable(rows, dev, list(WORDS), path="in", dev_path=None)
    spec = FinetuneSpec(
        backbone=str(backbone),
        classes=list(WORDS),
        task=Task.LABELS,
        head="pooled",
        strategy="joint",
        exit_weights="equal",
        train=rows,
        dev=dev,
        output=output,
        training=CONFIG,
        second_stage=CONFIG,
    )
    finetune(spec, ProcessGroup(), "cpu", lines.append)
    return output, lines


def test_all_exits_learn_the_labels_and_transformers_opens_the_model(
    trained: tuple[Path, list[str]], examples: Chunk
) -> None:
    directory, lines = trained
    assert lines[-1].startswith("dev micro F1 by exit: 1: ")
    model = EarlyExitModel.from_pretrained(directory)
    assert (model.task, model.labels, model.exit_layers) == (Task.LABELS, list(WORDS), (1, 2, 3))
    scores = scores_by_exit(model, examples)
    assert scores[3] > 0.95
    assert min(scores.values()) > 0.6
    theirs = AutoModelForSequenceClassification.from_pretrained(directory)
    assert theirs.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("along", [False, True])
def test_new_exits_learn_from_the_teacher_what_its_label_sets_are(
    along: bool, trained: tuple[Path, list[str]], examples: Chunk
) -> None:
    """The frozen backbone, and one that is trained along; on soft labels, with a true label here and there."""
    teacher = EarlyExitModel.from_pretrained(trained[0])
    loaded = LoadedModel(EarlyExitModel.from_pretrained(trained[0]), EngineConfig())
    labels = np.full_like(examples.labels, np.nan)
    labels[::3] = examples.labels[::3]
    chunk = add_teacher_logits(Engine(loaded), replace(examples, labels=labels))
    assert chunk.labelled.tolist() == list(range(0, len(chunk), 3))
    targets = chunk.targets()
    assert chunk.logits is not None
    np.testing.assert_array_equal(targets[1], chunk.logits[1] > 0)
    np.testing.assert_array_equal(targets[3], examples.labels[3])
    teacher.add_exits("pooled")
    objective = Objective(soft=True, temperature=2.0, label_weight=0.3, task=Task.LABELS)
    recipe = WholeModel(teacher, objective) if along else FrozenHeads(teacher, objective, teacher_known=True)
    before = scores_by_exit(teacher, chunk)
    source = MemorySource(whole=chunk, seed=0)
    train(recipe, source, chunk, replace(CONFIG, epochs=2), branches_only=True, log=lambda _line: None)
    after = scores_by_exit(teacher, chunk)
    assert after[2] > max(0.75, before[2] + 0.05)
    assert after[3] > 0.95
