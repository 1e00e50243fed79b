"""Options and loading steps that more than one training job needs."""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer

from models.early_exit import EarlyExitModel, quiet_transformers
from pipeline.errors import UserError
from pipeline.labelled import Examples, TextColumns, Texts
from pipeline.tokenise import Tokeniser, TokeniserSpec
from pipeline.training import TrainingConfig


def positive(text: str) -> int:
    """Parse a whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where texts stand in a file."""
    parser.add_argument("--text-column", default="text", metavar="NAME", help="column of the text")
    parser.add_argument("--pair-column", metavar="NAME", help="column of the second text, for pairs")
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="tokens kept of a row (default: what the model can take)"
    )


def add_training_options(parser: argparse.ArgumentParser, *, epochs: int, batch: int, rate: float) -> None:
    """Add the options of the training loop, with the job's own defaults."""
    parser.add_argument("--epochs", type=positive, default=epochs, metavar="N", help="passes over the training rows")
    parser.add_argument("--batch-rows", type=positive, default=batch, metavar="N", help="rows in a training step")
    parser.add_argument("--learning-rate", type=float, default=rate, metavar="X", help="peak learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of shuffling, dropout and new heads")


def training_config(options: argparse.Namespace) -> TrainingConfig:
    """Build the training loop's config; raise UserError for values out of range."""
    try:
        return TrainingConfig(
            epochs=options.epochs,
            batch_rows=options.batch_rows,
            learning_rate=options.learning_rate,
            seed=options.seed,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def text_columns(options: argparse.Namespace, label: str | None) -> TextColumns:
    """Where this job finds its texts and, if it needs them, labels."""
    return TextColumns(text=options.text_column, pair=options.pair_column, label=label)


def load_tokeniser(name: str, model: EarlyExitModel, max_tokens: int | None) -> Tokeniser:
    """Load the tokenizer that belongs to a model; raise UserError if there is none to use."""
    return Tokeniser(load_tokeniser_spec(name, model, max_tokens))


def load_tokeniser_spec(name: str, model: EarlyExitModel, max_tokens: int | None) -> TokeniserSpec:
    """Load the tokenizer that belongs to a model as a spec; raise UserError if there is none to use."""
    limit = model.shape.max_tokens
    if max_tokens is not None and max_tokens > limit:
        raise UserError(f"--max-tokens {max_tokens}: the model takes {limit} tokens at most")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name)
        return TokeniserSpec.from_hugging_face(tokenizer, max_tokens or min(limit, tokenizer.model_max_length))
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name}: no usable tokenizer: {error}") from error


def save_model(model: EarlyExitModel, tokenizer_from: str, output: str) -> None:
    """Write model and tokenizer into one directory."""
    model.save_pretrained(output)
    with quiet_transformers():
        AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(output)


def class_names(texts: Texts, given: str | None) -> list[str]:
    """Class names in order of index: a JSON file with a list, a comma-separated list, or the labels that occur."""
    if given is None:
        return texts.class_names()
    if not given.endswith(".json"):
        return given.split(",")
    try:
        names = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--class-names {given}: {error}") from error
    if not isinstance(names, list):
        raise UserError(f"--class-names {given}: holds no JSON list of names")
    return [str(name) for name in names]


HOLD_OUT = 0.1
HOLD_OUT_ROWS = 2000


def hold_out(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Split off the dev rows where the user gave none: a tenth, at most HOLD_OUT_ROWS."""
    return examples.hold_out(min(int(len(examples) * HOLD_OUT), HOLD_OUT_ROWS), seed)


def absolute_model(name: str) -> str:
    """Make a local directory absolute, since workers have another working directory; leave hub ids alone."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
