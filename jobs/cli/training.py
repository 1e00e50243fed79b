"""Options that jobs which train share."""

import argparse

from jobs.cli import options


def add_options(parser: argparse.ArgumentParser, *, epochs: int, batch: int, rate: float) -> None:
    """Add the options of the training loop, with the job's own defaults."""
    parser.add_argument(
        "--epochs", type=options.positive, default=epochs, metavar="N", help="passes over the training rows"
    )
    parser.add_argument(
        "--batch-rows", type=options.positive, default=batch, metavar="N", help="rows in a training step"
    )
    parser.add_argument(
        "--learning-rate", type=float, default=rate, metavar="X", help="peak learning rate of the backbone (AdamW)"
    )
    parser.add_argument(
        "--head-learning-rate",
        type=float,
        default=1e-3,
        metavar="X",
        help="peak learning rate of the heads, which start from random weights",
    )
    parser.add_argument(
        "--workers", type=options.positive, default=1, metavar="N", help="Ray Train workers; 1 trains in this process"
    )
    options.add_wait_option(parser)
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=60.0,
        metavar="X",
        help="write a checkpoint this often, between chunks",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of shuffling, dropout and new heads")
