#!/usr/bin/env python
"""Measure what state costs: listing 100,000 files, resuming and publishing 1,000,000 shards, and finding nothing to do.

Files, segments and parts are real, but empty or made up; every step runs in a process of its own, and prints its seconds and
the memory that it took beyond its imports.

  python docs/results/ledger/run.py --files 100000 --shards 10
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import re
import subprocess
import tempfile
import time
from dataclasses import replace

import pyarrow as pa

from pipeline.corpus.listing import InputFile, list_inputs
from pipeline.output.ledger import Ledger
from pipeline.output.parts import Output, parquet_bytes, prepare_folder
from pipeline.output.receipt_log import SEGMENT_RECEIPTS
from pipeline.output.receipts import Receipt, receipts_table
from pipeline.output.results import open_results, published

FINGERPRINT = {"model": "made up"}
SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False)])
STAGES = ("read", "tokenize", "classify", "write")
STEPS = ("plan", "resume", "jobs", "publish", "again", "read")


def make(folder: Path, files: int, shards_of_file: int) -> None:
    """Make the corpus, and a run of it that has all shards but the last one of every thousandth file."""
    for number in range(files):
        place = folder / "in" / f"{number // 1000:03}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        (place / f"part-{number:06}-with-a-name-of-the-usual-length.parquet").touch()
    corpus = list_inputs(str(folder / "in"))
    out = prepare_folder(str(folder / "out"), str(folder / "in"))
    with Ledger(out, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
    batch: list[Receipt] = []
    segments = 0
    for number, file in enumerate(corpus.files):
        done = shards_of_file - (number % 1000 == 0)
        for shard in range(done):
            batch.append(receipt(file, shard, last=shard + 1 == shards_of_file))
            (folder / "out" / batch[-1].part).touch()
            if len(batch) == SEGMENT_RECEIPTS:
                write_segment(folder, segments, batch)
                batch, segments = [], segments + 1
    write_segment(folder, segments, batch)


def receipt(file: InputFile, shard: int, *, last: bool) -> Receipt:
    return Receipt(
        shard=file.shard_id(shard * 16_384),
        file=file.path,
        size=file.size,
        version=file.version,
        start=shard * 16_384,
        span=16_384,
        last=last,
        input_bytes=1e6 + shard / 7,
        rows_in=16_384,
        rows_out=16_380 - shard,
        rejected={"null_text": 4 + shard},
        tokens=800_000 + shard,
        exits=[1000 + shard * layer for layer in range(12)],
        layer_tokens=3_000_000 + shard,
        flops=1e12 + shard,
        flops_full_depth=4e12 + shard,
        seconds=dict.fromkeys(STAGES, 1.0 + shard / 7),
        cpu_seconds=dict.fromkeys(STAGES, 2.0 + shard / 7),
        peak_mb=dict.fromkeys(STAGES, 500.0),
        waits=dict.fromkeys(STAGES, 3.0 + shard / 7),
        part=Output("").part(file.shard_id(shard * 16_384)),
    )


def write_segment(folder: Path, number: int, batch: list[Receipt]) -> None:
    path = folder / "out" / "_receipts" / "g1" / f"{0:012x}-{number:06}.parquet"
    path.write_bytes(parquet_bytes(receipts_table(batch)))


def step(name: str, folder: Path) -> str:
    """Run one step here; say what was seen."""
    if name == "read":
        return f"{len(open_results(folder / 'out').files):,} parts in the data set"
    corpus = list_inputs(str(folder / "in"))
    if name == "plan":
        return f"{len(corpus.files):,} files"
    with Ledger(str(folder / "out"), FINGERPRINT) as ledger:
        left = ledger.unfinished(corpus.files)
        done = ledger.totals().shards
        if name == "resume":
            return f"{done:,} shards done, {len(left):,} files left"
        if name == "jobs":
            return plan_jobs(corpus.files, left)
        if name == "again":
            assert not left
            assert ledger.published()
            return f"{done:,} shards published"
        for file in corpus.files:
            if file.path in left:
                last = receipt(file, len(left[file.path]), last=True)
                empty = replace(last, rows_in=0, rows_out=0, rejected={})
                (placed,) = ledger.output.write([empty], SCHEMA.empty_table(), pa.table({}))
                ledger.add([replace(last, part=placed.part)])
        ledger.publish(1.0, {})
        size = Path(published(str(folder / "out")).shards_path).stat().st_size
        return f"{ledger.totals().shards:,} shards, a list of {size / 1e6:.0f} MB"


def plan_jobs(files: list[InputFile], left: dict[str, tuple[int, ...]]) -> str:
    """Hand every file to Ray Data as a job, as if none were done."""
    from pipeline.bulk.stages import tokenized_bundles
    from pipeline.cluster.connect import join_or_start
    from pipeline.corpus.columns import Columns
    from pipeline.corpus.tokenize import TokenizerSpec

    join_or_start()
    started = time.monotonic()
    tokenized_bundles(
        files, left, Columns(text="text"), TokenizerSpec(tokenizer_json="{}", max_tokens=8, segments=False)
    )
    return f"{len(files):,} jobs in {time.monotonic() - started:.1f} s of it"


def peak_mb() -> float:
    """VmHWM, which, unlike ru_maxrss, does not start with what the parent process had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--files", type=int, default=100_000)
parser.add_argument("--shards", type=int, default=10, help="of each file")
parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
parser.add_argument("--folder", type=Path, help="keep the made-up corpus here, and use it again")


def main() -> None:
    args = parser.parse_args()
    if args.step:
        import pipeline.cluster.connect  # noqa: F401 - its memory is not of the state

        before, started, worked = peak_mb(), time.monotonic(), time.process_time()
        seen = step(args.step, args.folder)
        times = f"{time.monotonic() - started:.1f} | {time.process_time() - worked:.1f}"
        print(f"| {args.step} | {seen} | {times} | {peak_mb() - before:.0f} |")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "in").exists():
            started = time.monotonic()
            make(folder, args.files, args.shards)
            print(f"made in {time.monotonic() - started:.0f} s\n", file=sys.stderr)
        print(
            "| step | seen | seconds | CPU seconds | MB beyond imports |\n| --- | --- | --- | --- | --- |", flush=True
        )
        for name in STEPS:
            command = [sys.executable, __file__, "--step", name, "--folder", str(folder)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
