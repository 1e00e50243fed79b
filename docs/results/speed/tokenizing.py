#!/usr/bin/env python
"""Measure what tokenizing costs: microseconds of CPU a row, on one thread, of libraries alone and of offramp with each of them.

Shards of a file take turns between the systems, so that each sees every shard once, as in a run; the median of the shards is
printed, and that of the first one, in which nanotoken has seen no word yet. Every shard's rows are compared.

  python docs/results/speed/tokenizing.py --tokenizer all-MiniLM-L6-v2 --input reviews.parquet --before ../old
  python docs/results/speed/tokenizing.py --tokenizer all-MiniLM-L6-v2 --code-points
  python docs/results/speed/tokenizing.py --tokenizer all-MiniLM-L6-v2 --input pairs.parquet --pair-column text_pair
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import importlib.util
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from pipeline.corpus.encoders import HuggingFaceEncoder, NanotokenEncoder, plain_tokenizer
from pipeline.corpus.tokenize import Tokenized, Tokenizer, TokenizerSpec

SHARD_ROWS = 16_384
FEWEST_SHARDS = 4
System = Callable[[list[str], list[str] | None], Tokenized | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, metavar="MODEL", help="directory or hub id")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", metavar="FILE", help="Parquet file with a column `text`")
    what.add_argument(
        "--code-points", action="store_true", help="compare every code point of Unicode, and time nothing"
    )
    parser.add_argument("--pair-column", metavar="NAME")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--before", metavar="DIR", help="checkout of an older offramp to compare with")
    args = parser.parse_args()
    spec = TokenizerSpec.from_hugging_face(AutoTokenizer.from_pretrained(args.tokenizer), args.max_tokens)
    if args.code_points:
        return compare_code_points(spec)
    table = pq.read_table(args.input)
    rows = min(SHARD_ROWS, len(table) // FEWEST_SHARDS)
    shards = [table.slice(start, rows) for start in range(0, len(table) - rows + 1, rows)]
    measure(systems_of(spec, args.before), shards, args.pair_column)


def systems_of(spec: TokenizerSpec, before: str | None) -> dict[str, System]:
    """Return what is compared, by name; only offramp's own tokenizers return rows."""
    tokenizer = plain_tokenizer(spec.tokenizer_json)
    fast = NanotokenEncoder(tokenizer)

    def library(texts: list[str], pairs: list[str] | None) -> None:
        for column in (texts, pairs):
            if column is not None:
                tokenizer.encode_batch_fast(column, add_special_tokens=False)

    def nanotoken(texts: list[str], pairs: list[str] | None) -> None:
        for column in (texts, pairs):
            if column is not None:
                fast.encode(column)

    older = {} if before is None else {f"offramp at {before}": older_tokenizer(before, spec)}
    ours = {"offramp": Tokenizer(spec), "offramp, --fast-tokenizer": Tokenizer(spec.with_fast_tokenizer())}
    return {"tokenizers alone": library, **older, **ours, "nanotoken alone": nanotoken}


def older_tokenizer(checkout: str, spec: TokenizerSpec) -> System:
    """Return the tokenizer of another checkout, of which only the module `tokenize` is loaded."""
    found = importlib.util.spec_from_file_location("older", Path(checkout) / "pipeline" / "corpus" / "tokenize.py")
    assert found is not None
    assert found.loader is not None
    module = sys.modules["older"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    old = module.TokenizerSpec(
        tokenizer_json=spec.tokenizer_json,
        max_tokens=spec.max_tokens,
        segments=spec.segments,
        cut_left=spec.cut_left,
    )
    return module.Tokenizer(old)


def measure(systems: dict[str, System], shards: list[pa.Table], pair_column: str | None) -> None:
    """Run all systems over all shards in turns, and print a table."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    tokens = characters = 0
    for shard in shards:
        texts = shard["text"].to_pylist()
        pairs = None if pair_column is None else shard[pair_column].to_pylist()
        made: list[Tokenized] = []
        for name, system in systems.items():
            start = time.process_time()
            tokenized = system(texts, pairs)
            seconds[name].append(time.process_time() - start)
            made += [] if tokenized is None else [tokenized]
        assert all(equal(made[0], other) for other in made)
        tokens += len(made[0].rows.token_ids)
        characters += sum(map(len, [*texts, *(pairs or [])]))
    rows = sum(map(len, shards))
    print(
        f"{rows:,} rows in {len(shards)} shards, {tokens / rows:.1f} tokens and {characters / rows:.0f} characters a row"
    )
    print("\n| | us of CPU a row | against tokenizers alone | first shard |\n| --- | --- | --- | --- |")
    base = float(np.median(seconds["tokenizers alone"]))
    for name, each in seconds.items():
        median, per_row = float(np.median(each)), 1e6 / len(shards[0])
        print(f"| {name} | {median * per_row:.2f} | {median / base:.3f} | {each[0] * per_row:.2f} |")


def compare_code_points(spec: TokenizerSpec) -> None:
    """Put every code point inside of a word and at the end of one, and print for how many the ids of nanotoken differ."""
    tokenizer = plain_tokenizer(spec.tokenizer_json)
    slow, fast = HuggingFaceEncoder(tokenizer), NanotokenEncoder(tokenizer)
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = [f"Ab{chr(point)}C d{chr(point)}" for point in points]
    differ = 0
    for start in range(0, len(texts), SHARD_ROWS):
        part = texts[start : start + SHARD_ROWS]
        ours, theirs = fast.encode(part), slow.encode(part)
        if ours != theirs:
            rows = np.arange(len(part))
            differ += sum(ours.take(rows[row : row + 1]) != theirs.take(rows[row : row + 1]) for row in rows)
    print(f"{differ} of {len(points):,} code points differ")


def equal(one: Tokenized, other: Tokenized) -> bool:
    """Return whether two tokenizers made the same rows."""
    names = ("token_ids", "offsets", "segments")
    same = all(np.array_equal(getattr(one.rows, name), getattr(other.rows, name)) for name in names)
    return same and np.array_equal(one.truncated, other.truncated)


if __name__ == "__main__":
    main()
