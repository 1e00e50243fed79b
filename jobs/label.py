#!/usr/bin/env python
"""Label a corpus with a teacher: the logits of any classifier for every row, at full depth. No labels are read.

The same chain as classify.py: Parquet, Arrow, JSONL, CSV, TSV or text lines in; part-*.parquet with id, logits, label,
uncertainty and the text itself out; _rejects/, _manifest.json, and resume.

  python jobs/label.py --model my-teacher --input unlabelled/ --output soft-labels/
  python jobs/label.py --model my-teacher --input corpus/ --output soft-labels/ --no-text --id-column url

Exit codes: 0 done, 1 the work failed (run the same command to go on), 2 the command or its input is wrong.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from typing import TYPE_CHECKING

from jobs.cli import bulk, command, options
from jobs.cli.parser import JobParser

if TYPE_CHECKING:
    from pipeline.bulk.run import BulkRequest


def main(args: argparse.Namespace) -> int:
    """Label the corpus; return the exit code."""
    request = bulk.beside_ray(args, request_of)
    from jobs.work.bulk import run

    return run(args, request)


def request_of(args: argparse.Namespace) -> "BulkRequest":
    """Make the request, with the modules that this takes."""
    from jobs.work import label

    return label.request_of(args)


def build_parser() -> JobParser:
    """Make the parser of this job's options."""
    parser = JobParser(__doc__, kept="the same command goes on with what is left")
    parser.add_argument(
        "--model",
        required=True,
        type=options.local_path,
        metavar="MODEL",
        help="fine-tuned classifier: hub id, directory or s3://",
    )
    bulk.add_options(parser)
    parser.add_argument("--no-text", action="store_true", help="leave the texts out")
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
