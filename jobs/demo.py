#!/usr/bin/env python
"""Show the whole path on a synthetic corpus, offline: train a small early-exit model, classify 50,000 rows, look at them.

Every step is a command that you can run yourself, and is printed before it runs.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from jobs.cli import command, options
from jobs.cli.parser import JobParser
from jobs.cli.stop import ORDERLY_SECONDS


def main(args: argparse.Namespace) -> int:
    """Do the work, whose modules are loaded here: by now the options are known to be right."""
    from jobs.work.demo import run

    return run(args)


def build_parser() -> JobParser:
    """Make the parser of this job's options."""
    parser = JobParser(__doc__, kept="the same command begins again", stop_seconds=ORDERLY_SECONDS + 0.8)
    add = parser.add_argument
    add("--folder", default="demo", metavar="DIR", help="folder for corpus, models and results")
    add("--rows", type=options.positive, default=50_000, metavar="N", help="rows of the corpus")
    add("--speed", type=float, default=0.2, metavar="S", help="threshold to classify with")
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
