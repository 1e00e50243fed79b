#!/usr/bin/env python
"""Count the requests to S3 of a whole run, by what they are for, on an S3 server (moto) of this process.

Every file is a bundle of 16 rows, one of them a reject. So runs differ in nothing but the number of bundles: the difference is
what a bundle costs, and the rest is what a run costs. Then the last command once more, which has nothing to do.

  python docs/results/odd-inputs/count_requests.py --bundles 4 12
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import os
import re
import subprocess
import tempfile
from collections import Counter

from pipeline.benchmark.synthetic import reviews
from pipeline.storage.locate import storage_of
from tests.support.models import save_tiny_model, wordpiece_tokenizer
from tests.support.s3_server import BUCKET, S3Server

REPOSITORY = Path(__file__).resolve().parents[3]
ROWS = 16
"""Rows of a bundle."""
KINDS = {
    "corpus": r"/in/",
    "parts": r"/out/part-",
    "rejects": r"/out/_rejects/part-",
    "attempt logs": r"/out/_attempts/",
    "receipts and run.json": r"/out/_receipts/",
    "manifests and their lists": r"/out/_(manifest|shards)",
    "report": r"/out/_report",
    "probe": r"/out/\.probe",
    "listings and batched deletes": rf"/{BUCKET}/?$",
}
"""Pattern of the paths of requests, by what they are for."""


def kind_of(path: str) -> str:
    """Return what a request is for."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, path))


def count(server: S3Server, model: Path, root: str, *more: str) -> Counter[tuple[str, str]]:
    """Run the job and count its requests by kind and method."""
    server.requests.clear()
    command = [sys.executable, str(REPOSITORY / "jobs" / "classify.py"), "--model", str(model), "--speed", "0.5"]
    command += ["--input", f"{root}/in", "--output", f"{root}/out", "--bundle-rows", str(ROWS), "--actors", "1", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return Counter((kind_of(path), method) for method, path in server.requests)


def write_corpus(root: str, bundles: int) -> None:
    """Write a file for each bundle, whose first line is empty: a reject."""
    texts = [review.text for review in reviews(bundles * ROWS, seed=1)]
    lines = ["" if row % ROWS == 0 else text for row, text in enumerate(texts)]
    for number in range(bundles):
        data = "\n".join(lines[number * ROWS : (number + 1) * ROWS]) + "\n"
        storage_of(root).write(f"{root}/in/{number:04}.txt", data.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=int, nargs="+", default=[4, 12])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, S3Server() as server:
        os.environ |= server.environment
        server.reset()
        model = save_tiny_model(Path(scratch), wordpiece_tokenizer([review.text for review in reviews(500, seed=0)]))
        counts: dict[str, Counter[tuple[str, str]]] = {}
        for bundles in args.bundles:
            root = f"s3://{BUCKET}/requests-{bundles}"
            write_corpus(root, bundles)
            counts[f"{bundles} bundles"] = count(server, model, root)
        counts["again"] = count(server, model, root)
        print("| for | method |", " | ".join(counts), "|")
        print("| --- | --- |", " | ".join(["---:"] * len(counts)), "|")
        for kind, method in sorted({key for counted in counts.values() for key in counted}):
            print(f"| {kind} | {method} |", " | ".join(str(each[kind, method]) for each in counts.values()), "|")
        print("| all | |", " | ".join(str(each.total()) for each in counts.values()), "|")


if __name__ == "__main__":
    main()
