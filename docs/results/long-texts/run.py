#!/usr/bin/env python
"""Measure what becomes of long texts: accuracy and cost of truncation and of windows, on documents joined from short texts.

python docs/results/long-texts/run.py --data $DATA --models models

`models` has model-sst2 and model-ag_news; README.md has the commands that made them. Prints a table in Markdown.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.api.pretrained import load_tokenizer_spec
from pipeline.calibration.texts import until_certain
from pipeline.corpus.tokenize import Tokenizer
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.texts.combine import combine
from pipeline.engine.texts.rows import TextRows
from pipeline.rows import IntArray
from pipeline.windows import LongTexts

WINDOW = 128
"""Tokens of a window: the models have learned on texts of some 40."""
SPEEDS = (0.0, 0.3)
TRUNCATED = (128, 512)
"""Tokens that are kept of a text."""
WAYS = {
    "windows, mean": LongTexts(combine="mean"),
    "windows, max": LongTexts(combine="max"),
    "windows, first-certain 0.1": LongTexts(combine="first-certain", certain=0.1),
    "windows, first-certain 0.3": LongTexts(combine="first-certain", certain=0.3),
    "windows, first-certain 0.5": LongTexts(combine="first-certain", certain=0.5),
}


@dataclass(frozen=True)
class Documents:
    """Documents with the labels that they were made by."""

    texts: list[str]
    labels: IntArray


def news(data: Path, count: int, random: np.random.Generator) -> Documents:
    """Join 12 news of one class into each document."""
    rows = pd.read_parquet(data / "ag_news" / "test.parquet")
    by_class = [rows.text[rows.label == label].to_numpy() for label in range(4)]
    labels = random.integers(0, 4, count)
    return Documents([" ".join(random.choice(by_class[label], 12)) for label in labels], labels)


def news_in_chatter(data: Path, count: int, random: np.random.Generator) -> Documents:
    """Put 6 news of one class, together, somewhere among 20 sentences about movies, which no class is about."""
    rows = pd.read_parquet(data / "ag_news" / "test.parquet")
    by_class = [rows.text[rows.label == label].to_numpy() for label in range(4)]
    chatter = pd.read_parquet(sorted((data / "unlabeled_movie").glob("*.parquet"))[-1]).text.to_numpy()
    labels, texts = random.integers(0, 4, count), []
    for label in labels:
        position, around = random.integers(0, 21), list(random.choice(chatter, 20))
        texts.append(" ".join([*around[:position], *random.choice(by_class[label], 6), *around[position:]]))
    return Documents(texts, labels)


def reviews(data: Path, count: int, random: np.random.Generator) -> Documents:
    """Join 32 sentences of reviews in random order, 24 of one sentiment and 8 of the other; the label is that of the 24."""
    rows = pd.read_parquet(data / "sst2" / "dev.parquet")
    by_class = [rows.text[rows.label == label].to_numpy() for label in range(2)]
    labels = random.integers(0, 2, count)
    texts = [
        " ".join(random.permutation([*random.choice(by_class[label], 24), *random.choice(by_class[1 - label], 8)]))
        for label in labels
    ]
    return Documents(texts, labels)


SETS: dict[str, tuple[str, Callable[[Path, int, np.random.Generator], Documents]]] = {
    "news of one class": ("model-ag_news", news),
    "news among chatter": ("model-ag_news", news_in_chatter),
    "reviews, three quarters of one sentiment": ("model-sst2", reviews),
}


def texts_of(
    directory: Path, model: EarlyExitModel, texts: list[str], max_tokens: int, windows: LongTexts | None
) -> TextRows:
    """Tokenize texts, cut off or cut into windows."""
    spec = load_tokenizer_spec(str(directory), model, max_tokens)
    made = Tokenizer(spec if windows is None else spec.with_windows(windows))(texts)
    return TextRows(windows=made.rows, counts=np.ones(len(texts), np.int64) if made.windows is None else made.windows)


def measure(directory: Path, documents: Documents) -> Iterator[list[str]]:
    """Yield a row of the table for each way to read the documents, at each speed.

    Windows go through the engine once for each speed, since they exit alike however they are combined, and what TextEngine
    would compute of them follows. Cost is over that of all windows at full depth.
    """
    loaded = LoadedModel(EarlyExitModel.from_pretrained(directory), EngineConfig())
    cut = texts_of(directory, loaded.model, documents.texts, WINDOW, LongTexts())
    whole = loaded.model.flops.full_depth(cut.windows.lengths).sum()
    sources = [(f"truncated to {kept}", kept, {"": LongTexts()}) for kept in TRUNCATED] + [("", WINDOW, WAYS)]
    for name, max_tokens, ways in sources:
        texts = cut if not name else texts_of(directory, loaded.model, documents.texts, max_tokens, None)
        for speed in SPEEDS:
            engine = Engine(loaded, EngineConfig(criterion=Criterion(speed=speed)))
            windows = engine.run(texts.windows)
            flops, lengths = engine.flops.rows(texts.windows.lengths, windows.exit_layers), texts.windows.lengths
            for way, long_texts in ways.items():
                computed = np.ones(len(lengths), np.bool_)
                if long_texts.in_turn:
                    computed = until_certain(windows.uncertainty <= np.float32(long_texts.certain), texts.counts)
                counts = np.add.reduceat(computed.astype(np.int64), texts.bounds[:-1])
                got = combine(long_texts.combine, windows.take(np.flatnonzero(computed)), counts)
                right, tokens = (got.label_ids == documents.labels).mean(), lengths[computed].sum()
                layers = (lengths * windows.exit_layers)[computed].sum() / tokens
                cells = [name or way, f"{speed:g}" if speed else "full depth", f"{right:.3f}", f"{counts.mean():.2f}"]
                cells += [
                    f"{tokens / len(texts):,.0f}",
                    f"{layers:.2f}",
                    f"{flops[computed].sum() / len(texts) / 1e9:.2f}",
                ]
                yield [*cells, f"{flops[computed].sum() / whole:.1%}"]


def main() -> None:
    """Make the documents and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(2)
    for name, (model, make) in SETS.items():
        documents = make(args.data, args.documents, np.random.default_rng(0))
        print(f"\n**{name}**, {len(documents.texts)} documents\n")
        print("| way | speed | accuracy | windows | tokens | layers | GFLOPs | of whole |\n|" + " --- |" * 8)
        for cells in measure(args.models / model, documents):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
