#!/usr/bin/env python
"""Read one Parquet file and tokenize it in up to four tasks at a time; tell how many were at work, and for how long.

No actor is there, so that nothing but reading can hold the tasks up.

  python docs/results/feeding/one_file.py --model demo/model --rows 5000000
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

import argparse
import itertools
import os
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from transformers import AutoTokenizer

from pipeline.benchmark.synthetic import reviews
from pipeline.bulk.bundle import Bundle
from pipeline.bulk.stages import blocks_of, tokenized_bundles
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.rows import FloatArray

TASKS = 4
TASK_CPUS = {"read": 0.2, "tokenize": 1.0}
ROW_GROUP = 65_536


def write_file(path: Path, rows: int) -> None:
    """Write this many short texts into one Parquet file of many row groups."""
    texts = itertools.cycle([review.text for review in reviews(50_000, seed=1)])
    with pq.ParquetWriter(path, pa.schema({"text": pa.string()})) as file:
        for start in range(0, rows, ROW_GROUP):
            file.write_table(pa.table({"text": list(itertools.islice(texts, min(ROW_GROUP, rows - start)))}))


def spans_of(block: pa.Table) -> list[float]:
    """Return when the task that tokenized a bundle began and ended, and the rows and seconds of reading and waiting."""
    bundle = Bundle.from_arrow(block)
    seconds = {name: sum(receipt.seconds[name] for receipt in bundle.receipts) for name in ("read", "tokenize")}
    waited = sum(receipt.waits["tokenize"] for receipt in bundle.receipts)
    return [bundle.sent - seconds["tokenize"], bundle.sent, len(bundle.rows), seconds["read"], waited]


def _spans(batch: pa.Table) -> pa.Table:
    return pa.table({"span": [spans_of(batch)]})


def time_at_work(starts: FloatArray, ends: FloatArray) -> FloatArray:
    """Return the seconds in which 0, 1, 2, ... tasks were at work, between the first start and the last end."""
    moments = np.concatenate([starts, ends])
    steps = np.concatenate([np.ones_like(starts), -np.ones_like(ends)])
    order = np.argsort(moments, kind="stable")
    seconds: FloatArray = np.bincount(
        np.cumsum(steps[order])[:-1].astype(int), np.diff(moments[order]), minlength=TASKS + 1
    )
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--fast-tokenizer", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "one.parquet")
        write_file(path, args.rows)
        environment = {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
        cpus = TASKS + 1  # the fifth for the tasks that read
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, runtime_env=environment)
        spec = TokenizerSpec.from_hugging_face(AutoTokenizer.from_pretrained(args.model), max_tokens=128)
        spec = spec.with_fast_tokenizer() if args.fast_tokenizer else spec
        chain = tokenized_bundles(list_inputs(str(path)).files, {}, Columns(text="text"), spec, task_cpus=TASK_CPUS)
        started = time.monotonic()
        chain = chain.map_batches(_spans, batch_size=1, batch_format="pyarrow", num_cpus=0)
        spans = [block["span"][0].as_py() for block in blocks_of(chain)]
        seconds = time.monotonic() - started
    starts, ends, rows, read, waited = np.array(spans).T
    busy = time_at_work(starts, ends)
    print(f"{int(rows.sum()):,} rows in {len(spans)} bundles, {seconds:.0f} s on {os.cpu_count()} cores: ", end="")
    print(
        f"{1e6 * read.sum() / rows.sum():.2f} us a row read, {1e6 * (ends - starts).sum() / rows.sum():.1f} us tokenized"
    )
    print(f"tasks at work: {(busy * np.arange(len(busy))).sum() / busy.sum():.2f} in the mean; ", end="")
    print(", ".join(f"{count}: {100 * share / busy.sum():.1f} %" for count, share in enumerate(busy)))
    print(f"a bundle was waiting to be tokenized for {np.median(waited):.2f} s (median)")


if __name__ == "__main__":
    main()
