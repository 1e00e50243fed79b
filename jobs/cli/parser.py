"""The parser of a job: options on the command line and in a TOML file, with help that shows defaults.

A config file becomes words in front of the command line, so that argparse checks both alike and the command line wins:

    speed = 0.3                          --speed=0.3
    keep = ["user", "url"]         ->    --keep user url
    strict = true                        --strict
"""

import argparse
import contextlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jobs.cli.stop import ORDERLY_SECONDS
from pipeline.errors import UserError

CONFIG_VARIABLE = "OFFRAMP_CONFIG"
COMMAND = "offramp"
"""Name of the console command, whose second word is a job."""


class _RaisingParser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and end the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class JobParser(_RaisingParser):
    """Parses the options of a job, those in its config file included."""

    def __init__(
        self, description: str | None, *, kept: str = "nothing is kept", stop_seconds: float = ORDERLY_SECONDS
    ) -> None:
        """Take the job's docstring, first line to examples, as its description.

        `kept` says what a job that is stopped leaves behind; it has `stop_seconds` to end in order.
        """
        self.kept, self.stop_seconds = kept, stop_seconds
        self.options: dict[str, argparse.Action] = {}
        """Options by their name in the parsed arguments."""
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        self.add_argument(
            "--config",
            metavar="FILE",
            help=f"TOML file with any of these options, names as keys; ${CONFIG_VARIABLE} names one too. The command line wins",
        )

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an option, and its default to its help where the default says something."""
        action = super().add_argument(*names, **settings)
        if action.dest != "help":
            self.options[action.dest] = action
            silent = action.default is None or action.default is False or action.default in ([], [None])
            if not silent and not action.required:
                action.help = f"{action.help} (default: %(default)s)"
        return action

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the command line over the config file; raise UserError for what is wrong in either."""
        argv = list(sys.argv[1:] if argv is None else argv)
        early, _ = _config_only().parse_known_args(argv)
        file = early.config if early.config is not None else os.environ.get(CONFIG_VARIABLE) or None
        words = argv if file is None else [*self._words_of(Path(file)), *argv]
        for word in words:
            if "\0" in word:
                raise UserError(f"{word.split('=')[0]}: a value has a NUL character, which no name of anything may")
        return self.parse_args(words)

    def option(self, field: str) -> str:
        """Write a field as its option, `max_tokens` as `--max-tokens`; one that is no option stays as it is."""
        return self.options[field].option_strings[-1] if field in self.options else field

    def format_help(self) -> str:
        """Write the help; of a job that was called as `offramp JOB`, examples call it in the same way."""
        text = super().format_help()
        return re.sub(r"(?:python )?jobs/(\w+)\.py", rf"{COMMAND} \1", text) if self._is_command() else text

    def _is_command(self) -> bool:
        return self.prog.startswith(f"{COMMAND} ")

    def _words_of(self, file: Path) -> list[str]:
        """Return the words that say what a config file says, after a check that they can be parsed."""
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
            words = [word for key, value in values.items() for word in self._words_for(key, value)]
            with self._nothing_required():
                self.parse_args(words)
        except OSError as error:
            raise UserError(f"config file {file}: {error.strerror}") from error
        except (UserError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"config file {file}: {error}") from error
        return words

    def _words_for(self, key: str, value: object) -> list[str]:
        options = {name: action for name, action in self.options.items() if name != "config"}
        action = options.get(key.replace("-", "_"))
        if action is None:
            known = ", ".join(sorted(name.replace("_", "-") for name in options))
            raise UserError(f"no option '{key}'; options are {known}")
        option = action.option_strings[-1]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UserError(f"{key} is true or false, not {value!r}")
            return [option] if value else []
        items = value if isinstance(value, list) and action.nargs in ("*", "+") else [value]
        for item in items:
            if isinstance(item, bool | list | dict):
                raise UserError(f"{key}: {item!r} is not a value of this option")
        if action.nargs in ("*", "+"):
            if dashed := [item for item in items if str(item).startswith("-")]:
                raise UserError(f"{key}: {dashed[0]!r} begins with a dash, which no value of a list may")
            return [option, *map(str, items)] if items or action.nargs == "*" else []
        return [f"{option}={value}"]  # one word, since a value may begin with a dash

    @contextlib.contextmanager
    def _nothing_required(self) -> Iterator[None]:
        """Let options be missing: the command line may have those that a config file has not."""
        required = [action for action in self.options.values() if action.required]
        for action in required:
            action.required = False
        try:
            yield
        finally:
            for action in required:
                action.required = True


def words_of(options: Mapping[str, object]) -> list[str]:
    """Return the command line that gives options, by name, these values; True is an option without one, False none."""
    given = {name: value for name, value in options.items() if value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def _config_only() -> argparse.ArgumentParser:
    parser = _RaisingParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    return parser
