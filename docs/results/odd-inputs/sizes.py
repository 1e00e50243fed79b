#!/usr/bin/env python
"""Tell what two bounds cost: the driver's timeline after many bundles, and the receipts in the metadata of a part.

python docs/results/odd-inputs/sizes.py --bundles 1000000
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import tracemalloc

from pipeline.bulk.progress import Timeline
from pipeline.histograms import LENGTH_EDGES, UNCERTAINTY_BINS
from pipeline.output.receipts import Receipt, pack_receipts
from pipeline.output.totals import Totals

STAGES = ("read", "tokenize", "classify", "write")


def receipt(number: int) -> Receipt:
    """Make the receipt of a shard of thirty rows of a model with twelve layers."""
    return Receipt(
        shard=f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}",
        file=f"/data/incoming/2026/11/26/reviews-{number:06}.jsonl.gz",
        size=2000 + number % 977,
        version=f"{1_795_719_873_912_841_896 + number * 1009}",
        start=0,
        span=30,
        last=True,
        input_bytes=2000.0 + number % 977,
        rows_in=30,
        rows_out=30 - number % 2,
        rejected={"empty_text": 1} if number % 2 else {},
        tokens=1400 + number % 211,
        exits=[(number + layer) % 5 for layer in range(12)],
        uncertainty_histogram=[(number + bin_) % 3 for bin_ in range(UNCERTAINTY_BINS)],
        length_histogram=[(number + bin_) % 4 for bin_ in range(len(LENGTH_EDGES) + 1)],
        layer_tokens=5000 + number % 1009,
        padding_tokens=number % 97,
        flops=1.7e12 + number,
        flops_full_depth=4.4e12 + number,
        seconds=dict.fromkeys(STAGES, 0.5),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=int, default=1_000_000)
    args = parser.parse_args()
    bundle, timeline = Totals(rows_in=16_384, seconds=dict.fromkeys(STAGES, 0.5)), Timeline()
    tracemalloc.start()
    for number in range(args.bundles):
        timeline.add(bundle, 0.3 * number)
    print(f"the timeline of {args.bundles:,} bundles: {tracemalloc.get_traced_memory()[0] / 1e3:,.0f} kB")
    for shards in (1, 10, 100, 1000):
        size = len(pack_receipts([receipt(number) for number in range(shards)]))
        print(f"the receipts of {shards:,} shards in a part: {size:,} bytes, {size / shards:,.0f} a shard")


if __name__ == "__main__":
    main()
