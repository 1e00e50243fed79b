"""What jobs that train share: options, the claim on the output folder, the run itself and how it ends."""

import argparse
import json
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.train import TrainingFailedError
from transformers import AutoTokenizer

from jobs.cli import command, options
from models.early_exit import quiet_transformers
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.labelled import Texts, hold_out
from pipeline.errors import InputError
from pipeline.storage.base import absolute, is_remote
from pipeline.training.checkpoint import FOLDER, claim, release
from pipeline.training.config import TrainingConfig
from pipeline.training.workers import Work, run_workers

HOLD_OUT = 0.1
HOLD_OUT_ROWS = 2000


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
        help="peak learning rate of the heads, which start anew",
    )
    parser.add_argument(
        "--workers", type=options.positive, default=1, metavar="N", help="Ray Train workers; 1 trains in this process"
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=60.0,
        metavar="X",
        help="write a checkpoint this often, between chunks",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of shuffling, dropout and new heads")


def config(args: argparse.Namespace, **changes: Any) -> TrainingConfig:
    """Build the training loop's config; raise UserError for values out of range."""
    values = {"epochs": args.epochs, "batch_rows": args.batch_rows, "learning_rate": args.learning_rate}
    values |= {"seed": args.seed, "checkpoint_seconds": args.checkpoint_seconds}
    return TrainingConfig(**(values | changes))


def output_folder(args: argparse.Namespace) -> Path:
    """Return the folder of --output; raise UserError if it is no local one, which checkpoints need."""
    if is_remote(args.output):
        raise InputError(
            "output", f"{args.output}: training writes to a folder on disk that all workers see; copy it then"
        )
    return Path(absolute(args.output))


def run(args: argparse.Namespace, work: Work, *, tokenizer_from: str, about: str) -> int:
    """Train into --output, or go on with a training that was begun there by the same command; return the exit code."""
    output = output_folder(args)
    claim(output, _command(args))
    print(about)
    try:
        run_workers(work, args.workers, output / FOLDER)
    except (RayError, TrainingFailedError) as error:
        go_on = "the same command goes on from the last checkpoint"
        raise command.FailedError(f"{command.cause_of(error)}\n{go_on}") from error
    _save_tokenizer(tokenizer_from, output)
    release(output)
    print(f"the model is in {args.output}")
    return command.DONE


def class_names(texts: Texts, given: str | None) -> list[str]:
    """Class names in order of index: a JSON file with a list, a comma-separated list, or the labels that occur."""
    if given is None:
        return texts.class_names()
    if not given.endswith(".json"):
        return given.split(",")
    try:
        names = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("class_names", f"{given}: {error}") from error
    if not isinstance(names, list):
        raise InputError("class_names", f"{given}: holds no JSON list of names")
    return [str(name) for name in names]


def split_off_dev(whole: Chunk, seed: int) -> tuple[Chunk, Chunk]:
    """Split off the dev rows where the user gave none: a tenth, at most HOLD_OUT_ROWS."""
    return hold_out(whole, max(1, min(int(len(whole) * HOLD_OUT), HOLD_OUT_ROWS)), seed)


def _command(args: argparse.Namespace) -> dict[str, str]:
    """Tell two trainings apart: all options that decide the result."""
    silent = ("config", "workers", "output", "checkpoint_seconds")
    return {name: str(value) for name, value in vars(args).items() if name not in silent}


def _save_tokenizer(tokenizer_from: str, output: Path) -> None:
    """Write the tokenizer beside the model."""
    with quiet_transformers():
        AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(output)
