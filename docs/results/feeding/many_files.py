#!/usr/bin/env python
"""Classify the same rows in many small files and in twenty larger ones, on a disk or on an S3 server (moto) of this process.

For each: wall-clock time, parts and the rows of the smallest one, requests to S3. Then the many files once more, killed half
way and resumed with other bundles and another number of actors: what was done twice, and whether every row is there once.

  python docs/results/feeding/many_files.py --model demo/model --files 10000 --rows 30
  python docs/results/feeding/many_files.py --model demo/model --files 2000 --rows 30 --s3
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import tempfile
import time

import pyarrow.compute as pc

from pipeline.benchmark.synthetic import reviews
from pipeline.output.parts import Output
from pipeline.output.results import finished_shards, open_results, published, shards
from pipeline.storage.locate import storage_of
from tests.support.s3_server import BUCKET, S3Server

REPOSITORY = Path(__file__).resolve().parents[3]
FEW = 20


def write_corpus(folder: str, files: int, rows: int) -> None:
    """Write JSONL files with this many rows in all."""
    storage = storage_of(folder)
    storage.make_folder(folder)
    texts = itertools.cycle([review.text for review in reviews(20_000, seed=1)])
    for number in range(files):
        lines = (json.dumps({"text": next(texts)}) + "\n" for _ in range(rows // files))
        storage.write(f"{folder}/{number:06}.jsonl", "".join(lines).encode())


def start(model: str, corpus: str, out: str, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(REPOSITORY / "jobs" / "classify.py"), "--model", model, "--speed", "0.5"]
    command += ["--input", corpus, "--output", out, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(model: str, corpus: str, out: str, *more: str) -> float:
    """Run the job to its end and return the seconds that it took; end here if it fails."""
    started, job = time.monotonic(), start(model, corpus, out, *more)
    said, _ = job.communicate()
    if job.returncode:
        sys.exit(said)
    return time.monotonic() - started


def compare(model: str, root: str, server: S3Server | None) -> None:
    """Run both corpora to their end, one after the other."""
    for name in ("few", "many"):
        if server:
            server.requests.clear()
        seconds = run(model, f"{root}/{name}", f"{root}/out-{name}")
        done = shards(published(f"{root}/out-{name}"))
        parts = done.group_by("part").aggregate([("rows_in", "sum")])
        requests = ""
        if server:
            inputs = sum(f"/{name}/" in path for _, path in server.requests)
            requests = f"{len(server.requests):,} requests, {inputs:,} of them to the corpus"
        smallest = pc.min(parts["rows_in_sum"]).as_py()
        print(f"| {name} | {seconds:.1f} s | {len(parts):,} parts, the smallest of {smallest:,} rows | {requests} |")


def kill_and_resume(model: str, root: str, rows: int) -> None:
    """Kill a run when a third of its rows is noted, and resume it in bundles of another size."""
    out = f"{root}/out-killed"
    job = start(model, f"{root}/many", out, "--bundle-rows", "4000")
    while job.poll() is None and noted(out) < rows / 3:
        time.sleep(0.1)
    job.kill()
    job.communicate()
    before, written = noted(out), list(storage_of(out).names(out, "part-"))
    time.sleep(3)
    run(model, f"{root}/many", out, "--bundle-rows", "9000", "--actors", "2")
    ids = open_results(out).to_table(columns=["id"])["id"]
    left = [name for name in storage_of(out).names(out, "part-") if name in written]
    print(
        f"\nkilled with {before:,} of {rows:,} rows noted and {len(written)} parts written, of which {len(left)} are left; "
        f"resumed: {len(ids):,} rows, {len(pc.unique(ids)):,} different ids"
    )


def noted(out: str) -> int:
    """Count the rows of the shards that are done."""
    return int(pc.sum(finished_shards(Output(out))["rows_in"]).as_py() or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=30, help="of each file")
    parser.add_argument("--s3", action="store_true")
    args = parser.parse_args()
    rows = args.files * args.rows
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        server, root = None, scratch
        if args.s3:
            server, root = stack.enter_context(S3Server()), f"s3://{BUCKET}/feeding"
            os.environ |= server.environment
            server.reset()
        write_corpus(f"{root}/few", FEW, rows)
        write_corpus(f"{root}/many", args.files, rows)
        compare(str(Path(args.model).resolve()), root, server)
        kill_and_resume(str(Path(args.model).resolve()), root, rows)


if __name__ == "__main__":
    main()
