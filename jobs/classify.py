#!/usr/bin/env python
"""Classify a corpus: easy texts exit the network early, every row lands once in Parquet.

Reads Parquet, Arrow, JSONL, CSV, TSV or text lines (.gz .zst .bz2 .xz too), streams them through a pool of actors on Ray, and
writes part-*.parquet with label, score, exit layer and uncertainty, _rejects/ with what could not be used and why, and at the
end _manifest.json. The same command again goes on where a stopped run ended, and does nothing when all is done.

  python jobs/classify.py --model my-model --input corpus/ --output out/ --speed 0.3
  python jobs/classify.py --model my-model --input 'logs/*.jsonl.gz' --output out/ --text-column message --keep user
  python jobs/classify.py --model my-model --input corpus/ --output out/ --max-disagreement 1% --audit 0.5%
  python jobs/classify.py --model my-model --input incoming/ --output out/ --incremental --table delta
  ray job submit --working-dir . -- python jobs/classify.py --config nightly.toml

Exit codes: 0 done, 1 the work failed (run the same command to go on), 2 the command or its input is wrong.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from typing import TYPE_CHECKING

from jobs.cli import bulk, command, long_texts, options, targets
from jobs.cli.parser import JobParser

if TYPE_CHECKING:
    from pipeline.bulk.run import BulkRequest


def main(args: argparse.Namespace) -> int:
    """Classify the corpus; return the exit code."""
    request = bulk.beside_ray(args, request_of)
    from jobs.work.bulk import run

    return run(args, request)


def request_of(args: argparse.Namespace) -> "BulkRequest":
    """Make the request, with the modules that this takes."""
    from jobs.work import classify

    return classify.request_of(args)


def build_parser() -> JobParser:
    """Make the parser of this job's options."""
    parser = JobParser(__doc__, kept="the same command goes on with what is left")
    parser.add_argument(
        "--model",
        required=True,
        type=options.local_path,
        metavar="MODEL",
        help="early-exit model or any classifier: hub id, directory or s3://",
    )
    bulk.add_options(parser)
    options.add_criterion_options(parser)
    targets.add_options(parser)
    long_texts.add_options(parser)
    parser.add_argument(
        "--exits",
        type=options.positive,
        nargs="+",
        metavar="LAYER",
        help="evaluate the exits after these layers only (default: all); jobs/evaluate.py reports which of them pay",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="write the probabilities of all classes too; of a model of one logit, which has none, its sigmoid",
    )
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
