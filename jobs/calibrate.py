#!/usr/bin/env python
"""Measure what early exit saves and changes, so that classify.py can be asked for a speed-up or a limit.

Give it a random sample of the texts to come. Labels are not needed: a prediction at an exit is compared with that of the same
model at full depth. Every row goes through every exit once, in the precision of classify.py. The result is written into the
model directory: calibration.json, with thresholds for any target, and calibration.png, a picture of it.

Once classify.py has run with --audit, the audited rows are such a sample: what every exit says of them is in the output folder.
With --from-audits, which takes a folder or several, all their nights are one sample, or the nights since the limit was broken,
if the audit says it is. A table shows what each limit had so far and has from now on; with --plan nothing is written.

  python jobs/calibrate.py --model my-model --data sample.parquet
  python jobs/classify.py --model my-model --input corpus/ --output out/ --max-disagreement 1% --audit 0.5%
  python jobs/classify.py --model my-model --input corpus/ --output out/ --target-speedup 2
  python jobs/calibrate.py --model my-model --from-audits out/ --plan

The table of sample sizes says how large a sample a limit on a rare class takes (classify.py --max-missed spam=2%). Where some
rows have true labels, limits on lost accuracy can be asked for too (--label-column, then classify.py --max-quality-loss 1%).

docs/guarantees.md says what is guaranteed, and how many rows it takes.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from jobs.cli import command, long_texts, options
from jobs.cli.parser import JobParser
from models.exits.criterion import THRESHOLD_CRITERIA
from pipeline.calibration.guarantees import CONFIDENCE
from pipeline.engine.config import DTYPE_NAMES
from pipeline.errors import InputError, require


def main(args: argparse.Namespace) -> None:
    """Do the work, whose modules are loaded here: by now the options are known to be right."""
    require("matplotlib", extra="report")
    if (args.data is None) == (args.from_audits is None):
        raise InputError("data", "or --from-audits says where the rows are: give one of the two")
    if args.plan and args.temperature:
        raise InputError("plan", "writes nothing, and --temperature writes into the model's weights")
    from jobs.work.calibration import audits, sample

    (sample if args.from_audits is None else audits).run(args)


def build_parser() -> JobParser:
    """Make the parser of this job's options."""
    parser = JobParser(__doc__, kept="no calibration is written")
    add = parser.add_argument
    add(
        "--model",
        required=True,
        type=options.local_path,
        metavar="DIR",
        help="early-exit model; the calibration is written there",
    )
    add("--data", metavar="PATH", help="sample of the texts to come: file, folder or glob")
    audits = "in place of --data: the audited rows of these output folders of classify.py, local or s3://"
    add("--from-audits", nargs="+", metavar="DIR", help=audits)
    add("--rows", type=options.positive, default=20_000, metavar="N", help="rows to use at most, drawn at random")
    add("--criterion", choices=THRESHOLD_CRITERIA, help="uncertainty that decides (default: the model's, else entropy)")
    tolerance = (
        "values, with regression, differ if they are further apart (default: 0.1; with --from-audits, as so far)"
    )
    add("--tolerance", type=float, metavar="X", help=tolerance)
    options.add_label_threshold_option(parser)
    limit = "a limit to report, beside 0.5%%, 1%% and 2%%; with --from-audits, one that its rows must be enough for"
    add("--max-disagreement", type=options.fraction, metavar="E", help=limit)
    confidence = "probability with which limits hold"
    add("--confidence", type=options.fraction, default=CONFIDENCE, metavar="C", help=confidence)
    temperature = "scale exits by temperatures first, in the model's weights: no prediction changes, probabilities do"
    add("--temperature", action="store_true", help=temperature)
    label = "column of true labels, which may be null: count right answers too, for classify.py --max-quality-loss, and with "
    label += "--temperature fit to them (default: to the predictions at full depth)"
    add("--label-column", metavar="NAME", help=label)
    options.add_label_separator_option(parser)
    add("--plan", action="store_true", help="print what can be asked for, and what would change, and write nothing")
    add("--no-timing", action="store_true", help="leave out the wall-clock measurement")
    add("--seed", type=int, default=0, metavar="N", help="seed of the sample and of its split")
    add("--dtype", choices=DTYPE_NAMES, default="auto", help="precision of the matrices, as for classify.py")
    options.add_text_options(parser)
    long_texts.add_options(parser)
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
