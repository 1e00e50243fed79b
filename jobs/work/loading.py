"""Turn the options that jobs share into a criterion, columns, a tokenizer and the address of a model."""

import argparse
from pathlib import Path

from jobs.cli.command import print_line
from models.directory.config import check_name, is_on_hub
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.api.pretrained import load_tokenizer_spec
from pipeline.calibration.targets import Target, own_criterion
from pipeline.corpus.columns import Columns
from pipeline.corpus.tokenize import Tokenizer
from pipeline.errors import InputError, UserError
from pipeline.storage.base import is_remote
from pipeline.storage.model_cache import local_model


def criterion(options: argparse.Namespace, model: EarlyExitModel) -> Criterion:
    """Complete the given options by the model's own criterion, then by defaults; raise InputError for impossible values."""
    given = {
        name: getattr(options, name) for name in ("criterion", "speed", "patience", "tolerance", "label_threshold")
    }
    return own_criterion(Target(**given), model)


def text_columns(options: argparse.Namespace, label: str | None) -> Columns:
    """Return the columns that hold this job's texts and, if it needs them, labels."""
    return Columns(text=options.text_column, pair=options.pair_column, label=label)


def load_tokenizer(name: str, model: EarlyExitModel, max_tokens: int | None) -> Tokenizer:
    """Load the tokenizer that belongs to a model; raise UserError if there is none to use."""
    return Tokenizer(load_tokenizer_spec(name, model, max_tokens))


def tell_broken(rows: int) -> None:
    """Print how many rows are left out since an exit made NaN or infinity of them, if any are."""
    if rows:
        print_line(f"{rows:,} of the rows are left out: an exit makes no finite numbers of them")


def check_any_whole(name: str, data: str, rows: int) -> None:
    """Raise UserError if a model made finite numbers of no row."""
    if not rows:
        raise UserError(f"{name}: makes no finite numbers of any row of {data}; the model is damaged")


def find_model(name: str) -> str:
    """Return the directory or hub id to load a model from; for an s3:// address the copy on this machine's disk.

    Says so where the name is taken for the hub's. Raises UserError or FileNotFoundError if it is a path that leads nowhere.
    """
    directory = local_model(name)
    check_name(directory)
    if is_on_hub(directory):
        print(f"{name} is no directory here: taking the model of that name from the Hugging Face hub", flush=True)
    return directory


def writable_model(name: str) -> str:
    """Return the directory of a model that a job writes into; raise InputError for one that is not on a disk."""
    if is_remote(name) or is_on_hub(find_model(name)):
        raise InputError("model", f"{name}: this is written into the model, which has to be a directory here")
    return name


def absolute_model(name: str) -> str:
    """Make a local directory absolute, since workers have another working directory; leave hub ids alone."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
