"""Options and loading steps that more than one training job needs."""

import argparse
from dataclasses import replace
from pathlib import Path

from transformers import AutoTokenizer

from models.early_exit import EarlyExitModel
from models.exits.criterion import CRITERIA, Criterion
from models.hugging_face import quiet_transformers
from pipeline.corpus.columns import Columns
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.errors import InputError


def positive(text: str) -> int:
    """Parse a whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def share(text: str) -> float:
    """Parse a share in (0, 1), as 0.005 or as 0.5%, for argparse."""
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1 (or 0% and 100%)")
    return number


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where texts stand in a file."""
    parser.add_argument("--text-column", default="text", metavar="NAME", help="column of the text")
    parser.add_argument("--pair-column", metavar="NAME", help="column of the second text, for pairs")
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="tokens kept of a row (default: what the model can take)"
    )


def add_criterion_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say when a row may leave."""
    parser.add_argument(
        "--criterion",
        choices=CRITERIA,
        help="what decides that a row leaves (default: what the model was stored with, else entropy, or lte for values)",
    )
    parser.add_argument(
        "--speed",
        type=float,
        metavar="S",
        help="leave when the uncertainty is at most S: 0 full depth, 1 fastest (default: the model's, else 0.1)",
    )
    parser.add_argument(
        "--patience",
        type=positive,
        metavar="N",
        help="with criterion patience: leave when N exits in a row agree with the one before (default: the model's, else 1)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="with patience and values: changes below X agree (default: the model's, else 0.1)",
    )


def criterion(options: argparse.Namespace, model: EarlyExitModel) -> Criterion:
    """Complete the given options by the model's own criterion, then by defaults; raise InputError for impossible values."""
    stored = model.criterion
    if stored is not None and options.criterion not in (None, stored.name):
        stored = None  # another criterion's threshold says nothing
    if stored is None:
        name = options.criterion or ("lte" if model.regression and model.lte is not None else "entropy")
        full_depth = options.criterion is None and model.regression and name == "entropy"  # a teacher without exits
        stored = Criterion(name=name, speed=0.0 if full_depth else 0.1)
    given = {name: getattr(options, name) for name in ("speed", "patience", "tolerance")}
    given |= {"speeds": None if options.speed is None else ()}  # one threshold replaces one for every exit
    return replace(stored, **{name: value for name, value in given.items() if value is not None})


def text_columns(options: argparse.Namespace, label: str | None) -> Columns:
    """Return the columns that hold this job's texts and, if it needs them, labels."""
    return Columns(text=options.text_column, pair=options.pair_column, label=label)


def load_tokenizer(name: str, model: EarlyExitModel, max_tokens: int | None) -> Tokenizer:
    """Load the tokenizer that belongs to a model; raise UserError if there is none to use."""
    return Tokenizer(load_tokenizer_spec(name, model, max_tokens))


def load_tokenizer_spec(name: str, model: EarlyExitModel, max_tokens: int | None) -> TokenizerSpec:
    """Load the tokenizer that belongs to a model as a spec; raise UserError if there is none to use."""
    limit = model.shape.max_tokens
    if max_tokens is not None and max_tokens > limit:
        raise InputError("max_tokens", f"{max_tokens}: the model takes {limit} tokens at most")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name)
        return TokenizerSpec.from_hugging_face(tokenizer, max_tokens or min(limit, tokenizer.model_max_length))
    except (OSError, ValueError) as error:
        raise InputError("model", f"{name}: no usable tokenizer: {error}") from error


def absolute_model(name: str) -> str:
    """Make a local directory absolute, since workers have another working directory; leave hub ids alone."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
