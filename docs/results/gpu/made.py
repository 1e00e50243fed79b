"""The model and the rows that the scripts of this folder measure: given ones, or made up where there is no network.

A made-up model has random weights, and heads whose uncertainties differ between rows, so that thresholds let rows exit at all
layers. It shows speed and rounding as any model of its shape does, and nothing of accuracy.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from transformers import BertTokenizer

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.hugging_face import quiet_transformers
from pipeline.api.pretrained import load_tokenizer_spec
from pipeline.benchmark.shapes import random_model
from pipeline.benchmark.synthetic import vocabulary
from pipeline.corpus.columns import Columns
from pipeline.corpus.labelled import read_texts
from pipeline.corpus.tokenize import Tokenizer
from pipeline.engine.all_exits import all_exits
from pipeline.engine.engine import Engine
from pipeline.rows import TokenRows
from pipeline.training.frozen import standardize_heads
from pipeline.training.process_group import ProcessGroup

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DISTINCT_TEXTS = 65_536
"""Texts that are drawn for a corpus, which repeats them if it is larger."""
SIGMA = 0.6
"""Standard deviation of the logarithm of a text's length, as in jobs/benchmark.py."""
LOGIT_DEVIATION = 2.0
"""Of every class at every exit of a made-up model: uncertainties of two classes then fill their range."""
ATTENTION_GAIN = 1.6
"""Standard deviation of the weights in attention of a made-up model, times the root of the hidden size. With the 0.02 that BERT
starts from, first tokens are nearly equal, and 19 to 41 % of what heads make of the difference is bf16's rounding (4x128 and
12x256); with 1.6 it is 1 to 2 %; with twice that, layers magnify it to 17 %."""
SAMPLE_ROWS = 1_000
"""Rows from which a made-up model's heads and a threshold are set."""
SEARCH_STEPS = 12


def add_options(parser: argparse.ArgumentParser, *, rows: int) -> None:
    """Add the options that choose model and rows, and --output."""
    parser.add_argument("--model", help="directory of an early-exit model with its tokenizer (default: made up)")
    parser.add_argument("--input", help="corpus of --model: file, folder or glob (default: made up)")
    parser.add_argument("--text-column", default="text", help="(default: text)")
    parser.add_argument("--shape", default="bert-base", help="of a made-up model (default: bert-base)")
    parser.add_argument("--head", default="pooled", help="kind of its exit heads (default: pooled)")
    parser.add_argument("--rows", type=int, default=rows, help=f"rows to measure (default: {rows:,})")
    parser.add_argument("--mean-tokens", type=float, default=50, help="mean length of made-up texts (default: 50)")
    parser.add_argument("--speed", type=float, help="threshold (default: one that makes --mean-exit)")
    parser.add_argument("--mean-exit", type=float, help="mean exit layer (default: a third of the layers)")
    parser.add_argument("--output", help="write a JSON document here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model in a directory, and a corpus for it."""

    model: str
    input: str
    text_column: str

    def rows(self, limit: int) -> TokenRows:
        """Read and tokenize the first rows of the corpus."""
        meta = EarlyExitModel.from_config(self.model)
        texts = read_texts(self.input, Columns(text=self.text_column), limit)
        return Tokenizer(load_tokenizer_spec(self.model, meta))(texts.texts).rows


def open_case(args: argparse.Namespace, folder: Path, files: int = 1) -> Case:
    """Return the given model and corpus, or make those that are not given, inside `folder`."""
    model, corpus = args.model, args.input
    if model is None:
        model = str(folder / "model")
        make_model(Path(model), args.shape, args.head)
    if corpus is None:
        corpus = str(folder / "corpus")
        write_corpus(Path(corpus), args.rows, files, args.mean_tokens)
    return Case(model=model, input=corpus, text_column=args.text_column)


def make_texts(count: int, mean_tokens: float, seed: int) -> list[str]:
    """Draw texts of the synthetic vocabulary, one token a word, whose lengths with [CLS] and [SEP] are log-normal."""
    random, words = np.random.default_rng(seed), np.array(vocabulary())
    lengths = np.exp(random.normal(np.log(mean_tokens) - SIGMA**2 / 2, SIGMA, count))
    lengths = np.clip(lengths.round().astype(np.int64) - 2, 1, 500)
    drawn = words[random.integers(len(words), size=lengths.sum())].tolist()
    ends = np.cumsum(lengths).tolist()
    return [" ".join(drawn[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def write_corpus(folder: Path, rows: int, files: int, mean_tokens: float) -> None:
    """Write Parquet files with this many rows in all, in the column `text`."""
    folder.mkdir(parents=True)
    texts = pa.array(make_texts(min(rows, DISTINCT_TEXTS), mean_tokens, seed=1))
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        pq.write_table(pa.table({"text": texts.take(pa.array(part % len(texts)))}), folder / f"{number:04}.parquet")


def make_model(folder: Path, shape: str, head: str) -> None:
    """Write a random model of this shape, with heads that tell rows apart, and a tokenizer of the synthetic vocabulary."""
    torch.manual_seed(0)
    model = random_model(shape, head)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if "query_key_value.weight" in name or "attention_out.weight" in name:
                nn.init.normal_(parameter, std=ATTENTION_GAIN / model.shape.hidden**0.5)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    words += [f"[unused{number}]" for number in range(model.shape.vocabulary - len(words))]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    with quiet_transformers():
        BertTokenizer(str(folder / "vocab.txt"), model_max_length=model.shape.max_tokens).save_pretrained(folder)
    texts = make_texts(SAMPLE_ROWS, mean_tokens=30, seed=2)
    spread_heads(model, Tokenizer(load_tokenizer_spec(str(folder), model))(texts).rows)
    model.save_pretrained(folder)


def spread_heads(model: EarlyExitModel, rows: TokenRows) -> None:
    """Scale and shift every exit so that the logits of each class have mean 0 and LOGIT_DEVIATION over these rows."""
    model.eval().to(DEVICE)
    standardize_heads(model, rows, ProcessGroup())
    logits: dict[int, list[torch.Tensor]] = {layer: [] for layer in model.exit_layers}
    with torch.no_grad():
        for _rows, outputs in all_exits(model, rows):
            for layer, output in outputs.items():
                logits[layer].append(output.logits.float())
        for layer, parts in logits.items():
            variance_C, mean_C = torch.var_mean(torch.cat(parts), dim=0)
            factor_C, out = LOGIT_DEVIATION / variance_C.sqrt(), model.head(layer).out
            out.bias.copy_((out.bias - mean_C) * factor_C)
            out.weight.mul_(factor_C[:, None])
    model.cpu()


def speed_of(args: argparse.Namespace, engine: Engine, rows: TokenRows) -> float:
    """Return --speed, or else the threshold by which rows exit after --mean-exit layers on the mean, nearly."""
    if args.speed is not None:
        return float(args.speed)
    wanted = args.mean_exit or engine.model.shape.layers / 3
    sample = rows.take(np.arange(0, len(rows), max(len(rows) // SAMPLE_ROWS, 1)))
    low, high = 0.0, 1.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        found = float(engine.with_criterion(Criterion(speed=middle)).run(sample).exit_layers.mean())
        low, high = (middle, high) if found > wanted else (low, middle)
    return round(high, 4)


def write_document(document: Mapping[str, Any], path: str | None) -> None:
    """Write a JSON document, if there is a path for it."""
    if path:
        Path(path).write_text(json.dumps(document, indent=1) + "\n")
