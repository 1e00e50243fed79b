"""Options that more than one job has."""

import argparse
import os

from models.exits.criterion import CRITERIA


def positive(text: str) -> int:
    """Parse a whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def layers(text: str) -> list[int]:
    """Parse layers for argparse: "3" is the first three, and "1,3,5" those."""
    numbers = [positive(number) for number in text.split(",")]
    if numbers != sorted({*numbers}):
        raise argparse.ArgumentTypeError(f"{text} does not ascend")
    return [*range(1, numbers[0] + 1)] if len(numbers) == 1 else numbers


def local_path(text: str) -> str:
    """Parse a path for argparse, as a shell does: from a config file, or behind an equals sign, `~` comes as it is."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return os.path.expanduser(text)


def fraction(text: str) -> float:
    """Parse a fraction in (0, 1), as 0.005 or as 0.5%, for argparse."""
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1 (or 0% and 100%)")
    return number


def class_limit(text: str) -> tuple[str | None, float]:
    """Parse a limit of every class or of one, for argparse: 2% is (None, 0.02), spam=0.01 is ("spam", 0.01)."""
    name, equals, value = text.rpartition("=")
    try:
        return (name if equals else None), fraction(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no limit, such as 2%, or spam=2% for a class") from error


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where texts stand in a file."""
    parser.add_argument(
        "--text-column", default="text", metavar="NAME", help="column of the text; doc.text is a field of a struct"
    )
    parser.add_argument("--pair-column", metavar="NAME", help="column of the second text, for pairs")
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="tokens kept of a row (default: what the model can take)"
    )


def add_wait_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which nodes of a cluster are still to come."""
    parser.add_argument(
        "--wait-for",
        type=resource,
        nargs="+",
        default=[],
        metavar="NAME=N",
        help="plan once the cluster has so much, such as gpu=8 or cpu=64, in 15 minutes at most (default: what is there)",
    )


def resource(text: str) -> tuple[str, float]:
    """Parse an amount of a resource of Ray's, for argparse: gpu=8 is ("GPU", 8.0)."""
    name, equals, amount = text.partition("=")
    if not equals or not name or not float(amount) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a resource and an amount above 0, such as gpu=8")
    return (name.upper() if name.lower() in ("cpu", "gpu") else name), float(amount)


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
    add_label_threshold_option(parser)


def add_label_threshold_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says when a label of a multi-label model is predicted."""
    parser.add_argument(
        "--label-threshold",
        type=label_threshold,
        nargs="+",
        metavar="P|NAME=P",
        help="of a multi-label model: predict the labels with a probability above P, such as 0.4, or 0.5 toxic=0.3 for one of "
        "its own (default: the model's, else 0.5)",
    )


def add_label_separator_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how a file without lists has the labels of a row."""
    parser.add_argument(
        "--label-separator",
        metavar="TEXT",
        help="between the labels of a row, where a multi-label model learns from text such as 'toxic;insult' "
        "(default: a list, in CSV as JSON)",
    )


def label_threshold(text: str) -> tuple[str | None, float]:
    """Parse a threshold of all labels or of one, for argparse: 0.5 is (None, 0.5), toxic=0.3 is ("toxic", 0.3)."""
    name, equals, value = text.rpartition("=")
    threshold = float(value)
    if not 0 < threshold < 1:
        raise argparse.ArgumentTypeError(f"{text}: a threshold is between 0 and 1")
    return (name if equals else None), threshold
