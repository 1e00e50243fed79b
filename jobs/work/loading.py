"""Turn the options that jobs share into a criterion, columns, a tokenizer and the address of a model."""

import argparse
from pathlib import Path

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.api.pretrained import load_tokenizer_spec as load_tokenizer_spec
from pipeline.calibration.targets import Target, own_criterion
from pipeline.corpus.columns import Columns
from pipeline.corpus.tokenize import Tokenizer


def criterion(options: argparse.Namespace, model: EarlyExitModel) -> Criterion:
    """Complete the given options by the model's own criterion, then by defaults; raise InputError for impossible values."""
    given = {name: getattr(options, name) for name in ("criterion", "speed", "patience", "tolerance")}
    return own_criterion(Target(**given), model)


def text_columns(options: argparse.Namespace, label: str | None) -> Columns:
    """Return the columns that hold this job's texts and, if it needs them, labels."""
    return Columns(text=options.text_column, pair=options.pair_column, label=label)


def load_tokenizer(name: str, model: EarlyExitModel, max_tokens: int | None) -> Tokenizer:
    """Load the tokenizer that belongs to a model; raise UserError if there is none to use."""
    return Tokenizer(load_tokenizer_spec(name, model, max_tokens))


def absolute_model(name: str) -> str:
    """Make a local directory absolute, since workers have another working directory; leave hub ids alone."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
