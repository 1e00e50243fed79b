"""What jobs that train share: the claim on the output folder, the training itself and how it ends."""

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.train import TrainingFailedError

from jobs.cli import command
from jobs.cli.command import print_line
from models.early_exit import EarlyExitModel
from models.hugging_face import quiet_transformers
from pipeline.api.pretrained import load_tokenizer
from pipeline.errors import InputError
from pipeline.reports import card
from pipeline.storage.base import absolute, is_remote
from pipeline.training.checkpoint import claim, release
from pipeline.training.config import TrainingConfig
from pipeline.training.workers import Work, run_workers
from pipeline.version import code_version

PATHS = ("backbone", "model", "train", "dev", "input", "labels", "class_names")
"""Options that name places of this machine, or models of the Hub."""
INDIFFERENT = ("config", "workers", "wait_for", "output", "checkpoint_seconds")
"""Options that may change when an unfinished training goes on, since they do not decide its result."""


def config(args: argparse.Namespace, **changes: Any) -> TrainingConfig:
    """Build the training loop's config; raise InputError for values out of range."""
    values = {"epochs": args.epochs, "batch_rows": args.batch_rows, "learning_rate": args.learning_rate}
    values |= {"seed": args.seed, "checkpoint_seconds": args.checkpoint_seconds}
    return TrainingConfig(**(values | changes))


def output_folder(args: argparse.Namespace) -> Path:
    """Return the folder of --output; raise InputError if it is not on a disk, where checkpoints must be."""
    if is_remote(args.output):
        raise InputError(
            "output", f"{args.output}: training writes to a folder on disk that all workers see; copy it then"
        )
    return Path(absolute(args.output))


def run(args: argparse.Namespace, work: Work, *, tokenizer_from: str, about: str, **resolved: str) -> int:
    """Train into --output, or go on with a training that the same command began there; return the exit code.

    `resolved` has what options stand for today, such as the local copy of a model in an object store, and the digests of its
    weights and tokenizer: a training does not go on with another model of the same name.
    """
    output = output_folder(args)
    claim(output, _identity(vars(args) | resolved))
    print_line(about)
    try:
        run_workers(work, args.workers, wait_for=dict(args.wait_for))
    except (RayError, TrainingFailedError) as error:
        go_on = "the same command goes on from the last checkpoint"
        raise command.FailedError(f"{command.cause_of(error)}\n{go_on}") from error
    _save_tokenizer(tokenizer_from, output)
    release(output)
    _write_card(args, output, about)
    print_line(f"the model is in {args.output}")
    return command.DONE


def _identity(args: Mapping[str, object]) -> dict[str, object]:
    """Return the options that decide the result, by which two trainings are told apart."""
    return {name: value for name, value in args.items() if name not in INDIFFERENT}


def _write_card(args: argparse.Namespace, output: Path, about: str) -> None:
    """Write into the model card how it was trained."""
    facts = {"trained": about.partition(": ")[2], **_options(args), **_versions()}
    base = card.hub_name(getattr(args, "backbone", None) or args.model)
    card.write_section(output, EarlyExitModel.from_config(output), "Training", card.facts_table(facts), base=base)


def _options(args: argparse.Namespace) -> dict[str, object]:
    """Return the options that have a value, for the model card; of paths, which are this machine's, the last part."""
    given = {name: value for name, value in vars(args).items() if value is not None and value is not False}
    options: dict[str, object] = {}
    for name, value in given.items():
        if name not in (*INDIFFERENT, "endpoint_url"):
            path = name in PATHS and card.hub_name(str(value)) is None
            options[f"--{name.replace('_', '-')}"] = Path(value).name if path else value
    return options


def _versions() -> dict[str, object]:
    """Return what trained the model, and when."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"offramp": code_version(), **versions, "date": datetime.now(UTC).date().isoformat()}


def _save_tokenizer(tokenizer_from: str, output: Path) -> None:
    """Write the tokenizer beside the model."""
    tokenizer = load_tokenizer(tokenizer_from)
    with quiet_transformers():
        tokenizer.save_pretrained(output)
