"""What all jobs share on the command line: the config file, exit codes, and errors of one line."""

import argparse
import logging
import os
import re
import signal
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ray.exceptions import RayError

from pipeline.cluster.resources import DoesNotFitError
from pipeline.errors import InputError, RefusedError, StorageError, UserError

CONFIG_VARIABLE = "OFFRAMP_CONFIG"
DONE, FAILED, WRONG = 0, 1, 2


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the layout of descriptions and show defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False, []) or action.required
        return action.help if silent else super()._get_help_string(action)


def new_parser(description: str) -> argparse.ArgumentParser:
    """Make a job's parser; `description` is the job's docstring, first line to examples."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"TOML file with any of these options, names as keys; ${CONFIG_VARIABLE} names one too. The command line wins",
    )
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line over the config file; raise UserError for a wrong config file."""
    early, _ = _config_only().parse_known_args(argv)
    file = early.config or os.environ.get(CONFIG_VARIABLE)
    if file:
        _apply_config(parser, Path(file))
    return parser.parse_args(argv)


def run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run a job and end the process with its exit code: 0 done, 1 the work failed, 2 the command or its input is wrong."""
    signal.signal(signal.SIGTERM, _stop)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a hub out of reach is said once, at the end
    try:
        code = main(parse(parser, argv)) or DONE
    except (UserError, RefusedError, FileNotFoundError) as error:
        code = complain(parser, error)
    except (StorageError, DoesNotFitError) as error:
        complain(parser, error)
        code = FAILED
    except PermissionError as error:
        code = complain(parser, UserError(f"{error.filename}: permission denied"))
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)


def _stop(number: int, _frame: FrameType | None) -> None:
    """SIGTERM (job stop, pre-emption) unwinds like Ctrl-C, so that every `finally` runs; with its usual exit code."""
    signal.signal(number, signal.SIG_IGN)  # said again, it would only disturb that
    sys.exit(128 + number)


def complain(parser: argparse.ArgumentParser, error: Exception) -> int:
    """Print one line that says what is wrong, fields written as options; return the exit code for it."""
    text, help_text = str(error), parser.format_help()

    def option(field: str) -> str:
        name = f"--{field.replace('_', '-')}"
        return name if f"{name} " in help_text else field

    if isinstance(error, InputError):
        message = re.sub(r"`(\w+)`", lambda found: option(found[1]), error.message)
        text = f"{option(error.field)} {message}"
    print(f"{parser.prog}: error: {' '.join(text.split())}", file=sys.stderr)
    return WRONG


def cause_of(error: Exception) -> str:
    """Return the line of a failed task or actor that says why: the first exception that is not one of Ray's wrappers."""
    if isinstance(error, StorageError) and not isinstance(error, RayError):  # Ray makes classes that are both
        return str(error)
    raised = re.findall(r"^([\w.]*(?:Error|Exception)): (.+)$", str(error), re.MULTILINE)
    stored = [text for name, text in raised if name.endswith((".StorageError", ".RefusedError"))]  # path and cause
    causes = stored + [
        f"{name}: {text}" for name, text in raised if not name.startswith("ray.") and name != "UserCodeException"
    ]
    return causes[0] if causes else f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _config_only() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    return parser


def _apply_config(parser: argparse.ArgumentParser, file: Path) -> None:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"config file {file}: {error}") from error
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    for key, value in values.items():
        action = actions.get(key.replace("-", "_"))
        if action is None:
            known = ", ".join(sorted(name.replace("_", "-") for name in actions))
            raise UserError(f"config file {file}: no option '{key}'; options are {known}")
        action.default = _checked(parser, action, value, f"config file {file}: {key}")
        action.required = False


def _checked(parser: argparse.ArgumentParser, action: argparse.Action, value: object, where: str) -> object:
    """Convert a TOML value as the command line would have."""
    if isinstance(action, argparse._StoreTrueAction):
        if not isinstance(value, bool):
            raise UserError(f"{where} is true or false, not {value!r}")
        return value
    if action.nargs in ("*", "+"):
        items = value if isinstance(value, list) else [value]
        return [_convert(parser, action, item, where) for item in items]
    return _convert(parser, action, value, where)


def _convert(parser: argparse.ArgumentParser, action: argparse.Action, value: object, where: str) -> object:
    if isinstance(value, bool | list | dict):
        raise UserError(f"{where}: {value!r} is not a value of this option")
    try:
        converted = parser._get_value(action, str(value))
        parser._check_value(action, converted)
    except argparse.ArgumentError as error:
        raise UserError(f"{where}: {error.message}") from error
    return converted
