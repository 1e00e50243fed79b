"""Labelled (or, for distillation, unlabelled) text in memory, for training and evaluation: texts in, token rows out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from pipeline.corpus.chunks import Chunk
from pipeline.corpus.columns import Columns
from pipeline.corpus.formats import FileFormatError, file_columns
from pipeline.corpus.listing import InputFile, list_inputs
from pipeline.corpus.reader import read_shards
from pipeline.corpus.tokenize import Tokenizer
from pipeline.errors import UserError
from pipeline.rows import FloatArray
from pipeline.schema import KEPT, PAIR, TEXT, VALUE


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumns:
    """Where texts and labels stand in a training file."""

    text: str = "text"
    pair: str | None = None
    label: str | None = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts in memory; `labels` are None where no label column was asked for."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[str] | None
    rejected: int
    """Rows left out because they hold no usable text."""

    @classmethod
    def none(cls, columns: TextColumns) -> Self:
        """No texts yet, of these columns."""
        return cls(texts=[], pairs=[] if columns.pair else None, labels=[] if columns.label else None, rejected=0)

    def joined(self, more: Self) -> Self:
        """Return these rows and then the others."""
        return type(self)(
            texts=self.texts + more.texts,
            pairs=None if self.pairs is None else self.pairs + (more.pairs or []),
            labels=None if self.labels is None else self.labels + (more.labels or []),
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
        """All labels that occur: numbers in order of value, else alphabetical."""
        found = set(self.labels or ())
        return sorted(found, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))


def read_texts(path: str, columns: TextColumns, limit: int | None = None) -> Texts:
    """Read files, a folder or a glob into memory, at most `limit` rows; raise UserError for missing columns or files."""
    read = Texts.none(columns)
    for texts in _texts_by_shard(path, columns):
        read = read.joined(texts)
        if limit is not None and len(read.texts) >= limit:
            break
    return read.take(range(min(limit or len(read.texts), len(read.texts))))


def sample_texts(path: str, columns: TextColumns, rows: int, seed: int) -> Texts:
    """Read files, a folder or a glob, and keep `rows` at random, all being equally likely; or all, if there are no more.

    Memory holds twice as many at most, however many are read: every row draws a number, and the smallest ones stay.
    """
    random = np.random.default_rng(seed)
    kept, numbers = Texts.none(columns), np.empty(0)
    for texts in _texts_by_shard(path, columns):
        kept, numbers = kept.joined(texts), np.append(numbers, random.random(len(texts.texts)))
        order = np.sort(np.argsort(numbers)[:rows])
        kept, numbers = kept.take(order.tolist()), numbers[order]
    return kept


def _texts_by_shard(path: str, columns: TextColumns) -> Iterator[Texts]:
    """Yield the usable rows of shard after shard; raise UserError if there is none at all."""
    found = False
    for file in list_inputs(path).files:
        for shard in read_shards(file, _columns_of(file, columns)):
            if shard.read_error is not None:
                raise UserError(f"{file.path}: {shard.read_error}")
            rows = shard.rows
            found = found or len(rows) > 0
            yield Texts(
                texts=rows[TEXT].to_pylist(),
                pairs=rows[PAIR].to_pylist() if columns.pair else None,
                labels=_labels(file, rows, columns.label) if columns.label else None,
                rejected=len(shard.rejects),
            )
    if not found:
        raise UserError(f"{path}: no usable text in column '{columns.text}'")


def tokenize_texts(texts: Texts, tokenizer: Tokenizer, classes: Sequence[str] = ()) -> Chunk:
    """Tokenize texts and number their labels by `label_numbers`; without labels they are NaN."""
    rows = tokenizer(texts.texts, texts.pairs).rows
    labels = [None] * len(rows) if texts.labels is None else texts.labels
    return Chunk(rows=rows, labels=label_numbers(labels, classes), global_rows=len(rows))


def label_numbers(labels: Sequence[str | None], classes: Sequence[str]) -> FloatArray:
    """Turn labels, names of `classes` or indices into it, into indices; for regression, into values: [B], NaN for None.

    Raises UserError for what is neither.
    """
    if list(classes) == [VALUE]:
        return np.array([math.nan if label is None else _value(label) for label in labels], np.float32)
    known = {label for label in labels if label is not None}
    numbers = {name: index for index, name in enumerate(classes)}
    if not known <= set(numbers):
        numbers = {str(index): index for index in range(len(classes))}
    unknown = sorted(known - set(numbers))
    if unknown:
        raise UserError(f"label '{unknown[0]}' is none of the model's classes: {', '.join(classes)}")
    return np.array([math.nan if label is None else numbers[label] for label in labels], np.float32)


def hold_out(whole: Chunk, count: int, seed: int) -> tuple[Chunk, Chunk]:
    """Split at random, reproducibly, into the rest and `count` rows."""
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


def _columns_of(file: InputFile, columns: TextColumns) -> Columns:
    try:
        there = file_columns(file)
    except FileFormatError as error:
        raise UserError(f"{file.path}: {error}") from error
    for name in (columns.text, columns.pair, columns.label):
        if name is not None and name not in there:
            raise UserError(f"{file.path}: no column '{name}'; it has {', '.join(there) or 'none'}")
    keep = pa.schema([(columns.label, there[columns.label] or pa.string())]) if columns.label else pa.schema([])
    return Columns(text=columns.text, pair=columns.pair, keep=keep)


def _labels(file: InputFile, rows: pa.Table, column: str) -> list[str]:
    values = rows[KEPT + column].to_pylist()
    if None in values:
        raise UserError(f"{file.path}: column '{column}' has a null label")
    return [str(value) for value in values]
