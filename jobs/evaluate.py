#!/usr/bin/env python
"""Report quality against cost on labelled text: tables, figures, and one HTML page with all of them.

Every row goes through every exit once; the outcome of any threshold follows from that by arithmetic. Precision is that of
classify.py on this machine. With --output the page, report.html, and its figures as PNG are written there.

--choose stores the cheapest criterion and threshold within a given loss in the model, where classify.py finds it. Choose on
rows that you do not report on.

  python jobs/evaluate.py --model my-model --data test.parquet --output report
  python jobs/evaluate.py --model my-model --data dev.parquet --choose 0.5
  python jobs/evaluate.py --model frozen --compare along=other-model labels=third-model --data test.parquet --output report
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from jobs.cli import command, options
from jobs.cli.parser import JobParser
from models.exits.criterion import CRITERIA
from pipeline.engine.config import DTYPE_NAMES
from pipeline.errors import require


def main(args: argparse.Namespace) -> None:
    """Do the work, whose modules are loaded here: by now the options are known to be right."""
    require("sklearn", *(["matplotlib"] if args.output else []), extra="report")
    from jobs.work.evaluate import run

    run(args)


def build_parser() -> JobParser:
    """Make the parser of this job's options."""
    parser = JobParser(__doc__)
    add = parser.add_argument
    add(
        "--model", required=True, type=options.local_path, metavar="MODEL", help="early-exit model: hub id or directory"
    )
    add("--data", required=True, metavar="PATH", help="labelled rows: file, folder or glob")
    add("--output", type=options.local_path, metavar="DIR", help="folder for report.html and the figures")
    add("--label-column", default="label", metavar="NAME", help="column of the label: a name or an index, or a list")
    options.add_label_separator_option(parser)
    add(
        "--metric",
        metavar="NAME",
        help="accuracy, f1 or mcc; pearson or spearman; micro-f1, macro-f1 or subset-accuracy (default: the first)",
    )
    add("--criterion", choices=CRITERIA, help="criterion of the tables and figures (default: the first)")
    options.add_label_threshold_option(parser)
    add("--speeds", type=float, nargs="+", metavar="S", help="further thresholds to report")
    add("--choose", type=float, metavar="X", help="store the cheapest point at most X points below full depth")
    add("--card", action="store_true", help="write the tables into the model card, README.md in the model's directory")
    add("--compare", nargs="+", default=[], metavar="NAME=DIR", help="further models for the figures")
    add("--no-timing", action="store_true", help="leave out the wall-clock measurement")
    add("--dtype", choices=DTYPE_NAMES, default="auto", help="precision of the matrices")
    options.add_text_options(parser)
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
