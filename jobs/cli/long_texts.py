"""Options that say what becomes of texts that are longer than the model reads."""

import argparse

from jobs.cli import options
from pipeline import windows
from pipeline.errors import InputError
from pipeline.windows import CERTAIN, COMBINATIONS, KINDS, MAX_WINDOWS, LongTexts

NAMES = ("window_stride", "max_windows", "window_combine", "window_certain")
"""Options beside the one that asks for windows."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--long-texts",
        choices=KINDS,
        default=KINDS[0],
        help="of a text longer than --max-tokens read the beginning, or all of it, in windows that overlap (single texts only)",
    )
    parser.add_argument(
        "--window-stride",
        type=int,
        metavar="N",
        help="tokens that a window has in common with the one before it, half of them at most (default: a quarter)",
    )
    parser.add_argument(
        "--max-windows",
        type=options.positive,
        metavar="N",
        help=f"windows read of a text; a longer one counts as truncated (default: {MAX_WINDOWS})",
    )
    parser.add_argument(
        "--window-combine",
        choices=COMBINATIONS,
        help="what a text gets: mean: the mean of its windows' probabilities; max: the largest of any window; first-certain: "
        f"those of the first window that is certain, and windows after it are not computed (default: {COMBINATIONS[0]})",
    )
    parser.add_argument(
        "--window-certain",
        type=float,
        metavar="U",
        help=f"with first-certain: a window is certain when its uncertainty is at most U (default: {CERTAIN:g})",
    )


def long_texts_of(args: argparse.Namespace) -> LongTexts | None:
    """Return what the options ask for; None to truncate. Raises InputError for values that exclude each other."""
    long_texts = windows.long_texts_of(args.long_texts, **{name: getattr(args, name) for name in NAMES})
    if long_texts is not None and args.pair_column is not None:
        raise InputError("long_texts", "windows are made of single texts, and `pair_column` makes pairs; truncate them")
    return long_texts
