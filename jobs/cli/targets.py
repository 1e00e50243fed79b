"""Options of classify.py that ask for a speed or a limit in place of a threshold, and for checks of what comes out."""

import argparse

from jobs.cli import options
from pipeline.calibration.guarantees import CONFIDENCE


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--target-speedup",
        type=float,
        metavar="X",
        help="choose thresholds that save so many FLOPs: 2 is half of full depth's (needs jobs/calibrate.py)",
    )
    parser.add_argument(
        "--speedup-in",
        choices=["flops", "time"],
        default="flops",
        help="what --target-speedup counts; time is wall-clock, as calibrate.py measured it on the same hardware",
    )
    parser.add_argument(
        "--max-disagreement",
        type=options.fraction,
        metavar="E",
        help="choose the fastest thresholds with at most this fraction of predictions (1%% or 0.01) other than at full depth",
    )
    parser.add_argument(
        "--max-missed",
        type=options.class_limit,
        nargs="+",
        metavar="E|CLASS=E",
        help="likewise, with at most this fraction of the rows that full depth gives a class getting another answer: "
        "spam=2%% for one, 2%% for every class that is not named. A rare class needs a large calibration, which says how large",
    )
    parser.add_argument(
        "--max-quality-loss",
        type=options.fraction,
        metavar="E",
        help="likewise, with accuracy at most so far below that of full depth (needs jobs/calibrate.py --label-column)",
    )
    parser.add_argument(
        "--confidence",
        type=options.fraction,
        default=CONFIDENCE,
        metavar="C",
        help="probability with which these limits hold, all together",
    )
    parser.add_argument(
        "--audit",
        type=options.fraction,
        metavar="FRACTION",
        help="send this fraction of rows (0.5%% or 0.005) to full depth as well",
    )
    parser.add_argument(
        "--audit-fail",
        action="store_true",
        help="end with exit code 1 and publish nothing if the audit shows that a limit is broken, or cannot show that all are "
        "kept and the rows have drifted",
    )
    parser.add_argument(
        "--price-per-hour", type=float, metavar="P", help="of what one actor runs on: tell what was spent and saved"
    )
