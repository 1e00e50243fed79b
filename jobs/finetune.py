#!/usr/bin/env python
"""Fine-tune a Hugging Face encoder into a classifier, or into an early-exit model at once.

Without --strategy it trains the backbone and the last head on labelled text: a teacher, whose exits jobs/distill.py makes from
unlabelled text. With --strategy all exits learn from the labels:

  two-stage     backbone and last head first, then the other heads on the frozen backbone (DeeBERT)
  joint         everything at once (BERxiT; with --exit-weights depth as PABEE does)
  alternating   last head and joint in turn (BERxiT)

The best epoch by dev score is kept. A killed run goes on with the same command.

  python jobs/finetune.py --backbone bert-base-uncased --train train.parquet --dev dev.parquet --output my-teacher
  python jobs/finetune.py --backbone bert-base-uncased --train train.parquet --output my-model --strategy alternating
  python jobs/finetune.py --backbone bert-base-uncased --train pairs.csv --pair-column b --task regression --output scorer
  python jobs/finetune.py --backbone bert-base-uncased --train tagged.parquet --task multi-label --output my-tagger
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from jobs.cli import command, options, training
from jobs.cli.parser import JobParser
from models.exits.kinds import HEAD_KINDS
from pipeline.training.config import FINETUNE_STRATEGIES


def main(args: argparse.Namespace) -> int:
    """Do the work, whose modules are loaded here: by now the options are known to be right."""
    from jobs.work.finetune import run

    return run(args)


def build_parser() -> JobParser:
    """Make the job's parser."""
    parser = JobParser(__doc__, kept="the same command goes on from the last checkpoint")
    parser.add_argument(
        "--backbone",
        required=True,
        type=options.local_path,
        metavar="MODEL",
        help="pretrained encoder: hub id or directory",
    )
    parser.add_argument("--train", required=True, metavar="PATH", help="labelled rows: file, folder or glob")
    parser.add_argument(
        "--dev", metavar="PATH", help="labelled rows to choose the epoch by (default: a tenth of --train)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write the model to")
    parser.add_argument(
        "--label-column", default="label", metavar="NAME", help="column of the label: a name or an index, or a list"
    )
    parser.add_argument(
        "--task",
        choices=["classification", "regression", "multi-label"],
        default="classification",
        help="kind of label: one class, one number, or a list of any number of labels",
    )
    options.add_label_separator_option(parser)
    parser.add_argument(
        "--class-names",
        type=options.local_path,
        metavar="A,B,...|FILE",
        help="names by index, or a JSON file that lists them",
    )
    parser.add_argument("--head", choices=HEAD_KINDS, default="pooled", help="kind of the heads")
    parser.add_argument("--strategy", choices=FINETUNE_STRATEGIES, help="train all exits, in this way")
    parser.add_argument(
        "--exit-weights",
        choices=["equal", "depth"],
        default="equal",
        help="weights of the exits' losses in joint steps",
    )
    parser.add_argument(
        "--early-stopping", type=options.positive, metavar="N", help="stop after N epochs without a better dev score"
    )
    parser.add_argument("--limit", type=options.positive, metavar="N", help="use the first N rows of --train only")
    options.add_text_options(parser)
    training.add_options(parser, epochs=3, batch=64, rate=1e-4)
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
