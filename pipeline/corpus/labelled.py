"""Texts in memory, with labels or without, for training and evaluation, and the chunks of token rows made of them."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import pyarrow as pa

from models.exits.task import Task
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.listing import InputFile, list_inputs
from pipeline.corpus.reader import read_shards
from pipeline.corpus.tokenize import Tokenizer
from pipeline.errors import InputError, UserError
from pipeline.rows import FloatArray
from pipeline.schema import KEPT, PAIR, ROW, TEXT

Label = str | tuple[str, ...]
"""The label of a row as text, or its label set: () is a row without any, which is a label set too."""
ReadLabel = Callable[[object], Label | None]
"""Reads the label in a cell of a file; None is a row without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts in memory, such as `Texts(texts=["fine", "dull"], pairs=None, labels=["positive", "negative"], rejected=0)`."""

    texts: list[str]
    pairs: list[str] | None
    """Second texts, one for each row; None for single texts."""
    labels: Sequence[Label | None] | None
    """Labels as written in the file, one for each row, or label sets; None if no label column was read. A sample may have rows
    without a label, which are None."""
    rejected: int
    """Number of rows left out because they hold no usable text."""
    found: int = 0
    """Number of usable rows that a sample is drawn from."""

    @classmethod
    def empty(cls, columns: Columns) -> Self:
        """Return no rows, but with the lists that these columns fill."""
        return cls(texts=[], pairs=[] if columns.pair else None, labels=[] if columns.label else None, rejected=0)

    def joined(self, more: Self) -> Self:
        """Return these rows followed by others of the same columns."""
        return type(self)(
            texts=self.texts + more.texts,
            pairs=None if self.pairs is None else self.pairs + (more.pairs or []),
            labels=None if self.labels is None else [*self.labels, *(more.labels or ())],
            rejected=self.rejected + more.rejected,
        )

    def take(self, rows: Sequence[int]) -> Self:
        """Return these rows in this order."""
        pairs, labels = self.pairs, self.labels
        return type(self)(
            texts=[self.texts[row] for row in rows],
            pairs=None if pairs is None else [pairs[row] for row in rows],
            labels=None if labels is None else [labels[row] for row in rows],
            rejected=self.rejected,
        )

    def class_names(self) -> list[str]:
        """Return all labels that occur: numbers first, by value, then names in alphabetical order."""
        names = {name for label in self.labels or () for name in ([label] if isinstance(label, str) else label or ())}
        return sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))


def read_texts(path: str, columns: Columns, limit: int | None = None, read_label: ReadLabel | None = None) -> Texts:
    """Read files, a folder or a glob into memory, at most `limit` rows; raise UserError if files or columns are missing.

    `read_label` is `label_text`, the default, or what `label_reader` returns for a task.
    """
    read = Texts.empty(columns)
    for texts in _texts_by_shard(path, columns, read_label or label_text):
        read = read.joined(texts)
        if limit is not None and len(read.texts) >= limit:
            break
    return read.take(range(min(limit or len(read.texts), len(read.texts))))


def sample_texts(path: str, columns: Columns, rows: int, seed: int, read_label: ReadLabel | None = None) -> Texts:
    """Draw `rows` rows at random from files, a folder or a glob, all equally likely; return all if there are no more.

    Every row draws a random key and the smallest keys stay, so that memory holds a shard more than the sample at most. A row
    without a label has None for it; `read_label` is that of `read_texts`.
    """
    random = np.random.default_rng(seed)
    sample, keys, found = Texts.empty(columns), np.empty(0), 0
    for texts in _texts_by_shard(path, columns, read_label or label_text, all_labelled=False):
        sample, keys = sample.joined(texts), np.append(keys, random.random(len(texts.texts)))
        smallest = np.sort(np.argsort(keys)[:rows])
        sample, keys = sample.take(smallest.tolist()), keys[smallest]
        found += len(texts.texts)
    return replace(sample, found=found)


def _texts_by_shard(
    path: str, columns: Columns, read_label: ReadLabel, *, all_labelled: bool = True
) -> Iterator[Texts]:
    """Yield the usable rows of shard after shard; raise UserError if there are none, or a label is missing that must not be."""
    usable = 0
    for file in _list_files(path):
        for shard in read_shards(file, resolve_columns([file], columns)):
            if shard.read_error is not None:
                raise UserError(f"{file.path}: {shard.read_error}")
            rows = shard.rows
            usable += len(rows)
            yield Texts(
                texts=rows[TEXT].to_pylist(),
                pairs=rows[PAIR].to_pylist() if columns.pair else None,
                labels=_labels(file, rows, columns.label, read_label, all_labelled=all_labelled)
                if columns.label
                else None,
                rejected=len(shard.rejects),
            )
    if not usable:
        raise UserError(f"{path}: no usable text in column '{columns.text}'")


def _list_files(path: str) -> list[InputFile]:
    """List the files of labelled texts, and say on stderr what is left alone.

    Raises UserError for a wrong path, which is not the argument `input` here.
    """
    try:
        corpus = list_inputs(path)
    except InputError as error:
        raise UserError(error.message) from error
    for remark in corpus.remarks:
        print(remark, file=sys.stderr)
    return corpus.files


def tokenize_texts(
    texts: Texts,
    tokenizer: Tokenizer,
    classes: Sequence[str] = (),
    path: str | None = None,
    task: Task | None = None,
) -> Chunk:
    """Tokenize texts and convert their labels with `label_array`; without labels these are NaN.

    Raises UserError for a label that is none of the classes; it names `path`, where the texts are from.
    """
    rows = tokenizer(texts.texts, texts.pairs).rows
    labels = [None] * len(rows) if texts.labels is None else texts.labels
    try:
        numbers = label_array(labels, classes, task)
    except UserError as error:
        raise UserError(f"{path}: {error}" if path else str(error)) from error
    return Chunk(rows=rows, labels=numbers, global_rows=len(rows))


def label_array(labels: Sequence[Label | None], classes: Sequence[str], task: Task | None) -> FloatArray:
    """Convert labels by `label_numbers`, [B], or for a task of label sets by `label_sets`, [B, C]."""
    if task is Task.LABELS:
        return label_sets([label if isinstance(label, tuple | None) else (label,) for label in labels], classes)
    return label_numbers([label if isinstance(label, str | None) else str(label) for label in labels], classes)


def label_sets(sets: Sequence[tuple[str, ...] | None], classes: Sequence[str]) -> FloatArray:
    """Convert label sets to [B, C] float32 of 0 and 1; None becomes a row of NaN.

    `label_sets([("b", "a"), (), None], ["a", "b"])` is `[[1, 1], [0, 0], [NaN, NaN]]`. Labels are names, or indices, as in
    `label_numbers`, which also says when UserError is raised.
    """
    known = sorted({name for labels in sets for name in labels or ()})
    columns = dict(zip(known, _indices(known, classes), strict=True))
    numbers = np.zeros((len(sets), len(classes)), np.float32)
    for row, labels in zip(numbers, sets, strict=True):
        row[[columns[name] for name in labels or ()]] = 1.0
        if labels is None:
            row[:] = math.nan
    return numbers


def label_numbers(labels: Sequence[str | None], classes: Sequence[str]) -> FloatArray:
    """Convert labels to class indices, or for regression to values, as [B] float32; None becomes NaN.

    A label is the name of a class or its index: both `label_numbers(["good", "bad"], ["bad", "good"])` and
    `label_numbers(["1", "0"], ["bad", "good"])` return `[1.0, 0.0]`. With one class, as in transformers, it is a value. Raises
    UserError for anything else.
    """
    if len(classes) == 1:
        return np.array([math.nan if label is None else _value(label) for label in labels], np.float32)
    known = sorted({label for label in labels if label is not None})
    numbers = dict(zip(known, _indices(known, classes), strict=True))
    return np.array([math.nan if label is None else numbers[label] for label in labels], np.float32)


def _indices(labels: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the class index of each label: all are names of classes, or all are indices.

    Whole numbers may be written as 1.0: pandas makes floats of a column of integers in which one is missing.
    """
    numbers = {name: index for index, name in enumerate(classes)}
    labels = [label if label in numbers else label.removesuffix(".0") for label in labels]
    if not set(labels) <= set(numbers):
        numbers = {str(index): index for index in range(len(classes))}
    unknown = sorted(set(labels) - set(numbers))
    if unknown:
        raise UserError(f"label '{unknown[0]}' is none of the model's classes: {', '.join(classes)}")
    return [numbers[label] for label in labels]


def hold_out(whole: Chunk, count: int, seed: int) -> tuple[Chunk, Chunk]:
    """Split off `count` random rows, the same for the same seed; return the other rows, then these."""
    order = np.random.default_rng(seed).permutation(len(whole))
    return whole.take(np.sort(order[count:])), whole.take(np.sort(order[:count]))


def _value(label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if math.isnan(value) or math.isinf(value):
        raise UserError(f"label '{label}' is no number, which regression needs")
    return value


def label_text(value: object) -> str | None:
    """Write a label as text, alike for all formats of files; return None for a row without one: null, blank or NaN.

    `label_text(True)` is `"true"`, as JSON has it, and `label_text(" ")` None. Raises UserError for what can be no label, such
    as a list.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"label {value!r} is no UTF-8") from error
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, list | tuple | dict) or (text[:1] in ("[", "{") and _is_json(text)):
        raise UserError(f"label {text} is a list or an object; a label is a name, a number or a truth value")
    absent = value is None or not text.strip() or text == "NaN" or (isinstance(value, float) and math.isnan(value))
    return None if absent else text


def label_set(value: object, separator: str | None = None) -> tuple[str, ...] | None:
    """Read a label set: a list of labels, in JSON where the file has no lists; return None for a row without one: null, blank.

    `label_set(["b", "a"])` and `label_set('["b", "a"]')` are ("b", "a"), an empty list is (). With a separator, text is split:
    `label_set("b; a", ";")`. Raises UserError for anything else, such as a single label in place of a list.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    ):
        return None
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and _is_json(value):
        value = json.loads(value)
    elif isinstance(value, str) and separator is not None:
        value = [part.strip() for part in value.split(separator) if part.strip()]
    if not isinstance(value, list | tuple):
        raise UserError(f"label {value} is no list of labels, which the task multi-label needs; text needs a separator")
    labels = [label_text(label) for label in value]
    if None in labels:
        raise UserError(f"label {value} has a null or empty label in its list")
    return tuple(label for label in labels if label is not None)


def label_reader(task: Task, separator: str | None = None) -> ReadLabel:
    """Return what reads the labels of a task; raise InputError for a separator where a row has one label."""
    if task is Task.LABELS:
        return partial(label_set, separator=separator)
    if separator is not None:
        raise InputError("label_separator", "is for the task multi-label, where a row has any number of labels")
    return label_text


def _is_json(text: str) -> bool:
    """Return whether a text is JSON, as which lists and objects come out of JSON lines."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _labels(
    file: InputFile, rows: pa.Table, column: str, read_label: ReadLabel, *, all_labelled: bool
) -> list[Label | None]:
    """Return the labels of all rows; raise UserError for a row without one, wherever labels are what the rows are read for."""
    try:
        labels = [read_label(value) for value in rows[KEPT + column].to_pylist()]
    except UserError as error:
        raise UserError(f"{file.path}: column '{column}': {error}") from error
    if all_labelled and None in labels:
        row = rows[ROW][labels.index(None)].as_py()
        raise UserError(f"{file.path}: column '{column}' has a null or empty label in row {row}; leave such rows out")
    return labels
