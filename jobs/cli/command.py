"""Run a job as a command: its exit code, signals, and errors of one line."""

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from jobs.cli.parser import JobParser
from jobs.cli.stop import StopWatch, abandon
from pipeline.errors import (
    DoesNotFitError,
    InputError,
    RefusedError,
    StorageError,
    UserError,
    one_line,
    printable,
)

DONE, FAILED, WRONG = 0, 1, 2
"""Exit codes: all is well; the work failed, and the same command may go on; the command or its input is wrong."""


class FailedError(Exception):
    """Raise in a job whose work failed: the message is printed after the job's name, and the exit code is FAILED."""


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print a line that may quote names and messages of others, by `printable`, to stdout if no other file is given."""
    print(printable(text), file=file, flush=True)


class _LineFormatter(logging.Formatter):
    """Writes the log lines of libraries, which quote what they read."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


Main = Callable[[argparse.Namespace], int | None]
"""A job: it takes the parsed options and returns an exit code, None for DONE."""


def run_alone(main: Main, parser: JobParser, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a job as all that this process is for, and end the process at once with the job's exit code.

    A process that is asked to end does so within some seconds, and says what is kept: see `jobs.cli.stop`.
    """
    stderr = os.dup(2)  # which is held back while Ray starts

    def end(asked: signal.Signals) -> NoReturn:
        os.write(stderr, f"{stopped(parser, asked)}\n".encode())
        abandon(128 + asked)

    watch, code = StopWatch(parser.stop_seconds, end), FAILED
    try:
        run(main, parser, argv, watch)
    except SystemExit as raised:
        code = raised.code if isinstance(raised.code, int) else FAILED
    except BaseException:
        if watch.asked is None:  # else it is what a library makes of the signal
            raise
    if watch.asked is not None:
        print_line(stopped(parser, watch.asked), sys.stderr)
        code = 128 + watch.asked
    leave(code)


def stopped(parser: JobParser, asked: signal.Signals) -> str:
    """Say in one line that the job was asked to end, and what is kept."""
    return f"{parser.prog}: stopped by {asked.name}: {parser.kept}"


def leave(code: int) -> NoReturn:
    """End this process with an exit code, after all that it has printed is out; code 1 if that cannot be written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it would only disturb
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):  # nobody reads it any more, or it is closed
            pass
        except OSError as error:
            os.write(2, f"output is lost: {error}\n".encode())
            code = code or FAILED
    if "ray" in sys.modules:  # a job that has not come so far need not load it
        from pipeline.cluster.connect import leave_ray

        leave_ray()
    os._exit(code)


def run(main: Main, parser: JobParser, argv: Sequence[str] | None = None, watch: StopWatch | None = None) -> NoReturn:
    """Run a job and raise SystemExit with its exit code, a number; `argv` defaults to the command line.

    Once the watch knows of a signal no error is told: it may be what a library makes of the signal.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a hub out of reach is reported once, at the end
    try:
        code = main(parser.parse(argv)) or DONE
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except Exception as error:
        code = FAILED if watch is not None and watch.asked is not None else tell(parser, error)
    sys.exit(code)


def tell(parser: JobParser, error: Exception) -> int:
    """Print what ended a job; return the exit code for it, or raise the error itself if it is none that users can mend."""
    if isinstance(error, UserError | RefusedError | FileNotFoundError):
        return complain(parser, error)
    if isinstance(error, PermissionError):
        return complain(parser, UserError(f"{error.filename}: permission denied"))
    if isinstance(error, StorageError | DoesNotFitError):
        complain(parser, error)
    elif isinstance(error, FailedError):
        first, *more = str(error).split("\n")
        for line in (f"{parser.prog}: error: {first}", *more):
            print_line(line, sys.stderr)
    else:
        raise error
    return FAILED


def complain(parser: JobParser, error: Exception) -> int:
    """Print one line that says what is wrong, fields written as options; return the exit code for it."""
    text = str(error)
    if isinstance(error, InputError):
        message = re.sub(r"`(\w+)`", lambda found: parser.option(found[1]), error.message)
        text = f"{parser.option(error.field)} {message}"
    print_line(f"{parser.prog}: error: {' '.join(text.split())}", sys.stderr)
    return WRONG


def cause_of(error: Exception) -> str:
    """Return the line of a failed task or actor that says why: the first exception that is not one of Ray's wrappers."""
    from ray.exceptions import RayError  # a job that has a cause of Ray's has loaded it

    if isinstance(error, StorageError) and not isinstance(error, RayError):  # Ray makes classes that are both
        return one_line(error)
    raised = re.findall(r"^([\w.]*(?:Error|Exception)): (.+)$", str(error), re.MULTILINE)
    stored = [text for name, text in raised if name.endswith((".StorageError", ".RefusedError"))]  # path and cause
    causes = stored + [
        f"{name}: {text}" for name, text in raised if not name.startswith("ray.") and name != "UserCodeException"
    ]
    return printable(causes[0] if causes else f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
