#!/usr/bin/env python
"""Give a classifier exits that learn from its own predictions on unlabelled text (FastBERT's self-distillation).

No true label is needed. A head on every layer is trained to predict the last exit's soft labels. Any text of the domain will
do, and more of it helps. The text streams through, in one pass or more, and is not kept: a corpus may be of any size.

  --input    text: the model labels it on the way
  --labels   output of jobs/label.py: the same without running the last layer again, or with another teacher's labels

The backbone is frozen, so the full-depth predictions stay what they were. With --train-backbone a copy of the whole model is
trained on the soft labels: lower layers become useful earlier, and the last exit changes a little.

With --layers the output is a student instead: a plain model of some of the teacher's layers, trained as a whole. It may have
exits too, by distilling once more with the student as --model; evaluate.py --compare draws them side by side.

A killed run goes on with the same command.

  python jobs/distill.py --model my-teacher --input unlabelled/ --output my-model --head attention
  python jobs/distill.py --model my-teacher --input unlabelled/ --output my-student --layers 3
  python jobs/distill.py --model my-teacher --labels soft-labels/ --output my-model --train-backbone joint --epochs 2
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from jobs.cli import command, options, training
from jobs.cli.parser import JobParser
from models.exits.kinds import HEAD_KINDS
from pipeline.errors import UserError
from pipeline.training.config import STRATEGIES


def main(args: argparse.Namespace) -> int:
    """Do the work, whose modules are loaded here: by now the options are known to be right."""
    if (args.input is None) == (args.labels is None):
        raise UserError("give either --input (text) or --labels (output of jobs/label.py)")
    from jobs.work.distill import run

    return run(args)


def build_parser() -> JobParser:
    """Make the job's parser."""
    parser = JobParser(__doc__, kept="the same command goes on from the last checkpoint")
    parser.add_argument(
        "--model",
        required=True,
        type=options.local_path,
        metavar="MODEL",
        help="classifier: hub id, directory or s3://",
    )
    parser.add_argument("--input", metavar="PATH", help="text of the domain: file, folder or glob")
    parser.add_argument("--labels", metavar="DIR", help="output folder of jobs/label.py")
    parser.add_argument(
        "--dev", metavar="PATH", help="text to score epochs by (default: held out at the stream's start)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write the early-exit model to")
    parser.add_argument("--head", choices=HEAD_KINDS, help="kind of the exit heads (default: pooled)")
    parser.add_argument(
        "--train-backbone", choices=STRATEGIES, metavar="HOW", help="joint or alternating (default: frozen)"
    )
    parser.add_argument(
        "--layers",
        type=options.layers,
        metavar="K|A,B,...",
        help="make a student without exits: 3 is the first three layers, and 1,3,5 are those",
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="soften teacher and exits alike")
    parser.add_argument("--label-column", metavar="NAME", help="column of true labels to mix in where a row has one")
    options.add_label_separator_option(parser)
    parser.add_argument(
        "--label-share", type=float, default=0.5, metavar="A", help="weight of a true label, with --label-column"
    )
    parser.add_argument("--limit", type=options.positive, metavar="N", help="rows to read in an epoch at most")
    options.add_text_options(parser)
    training.add_options(parser, epochs=1, batch=128, rate=1e-4)
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
