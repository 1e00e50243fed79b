"""End a job when it is asked to, by SIGTERM (a scheduler, a spot node that goes) or SIGINT (Ctrl-C), whatever it is doing.

Python runs the handler of a signal between two steps of the main thread's own code: not while that waits for minutes in a
training step in C++, in an import or in Ray's start. And libraries put handlers of their own in place of ours. So a thread
learns of the signal from the system itself, by `signal.set_wakeup_fd`, gives the main thread some seconds to unwind, and
then ends the process. And where the handler runs inside a finalizer (a generator that falls out of use), Python swallows what
it raises: then it is called once more.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ORDERLY_SECONDS = 4.0
"""Time for an orderly end: a bulk run that stores its receipts and ends its actors takes 2 s on two busy cores."""
FLUSH_SECONDS = 0.5
"""Time that an abandoned process gives to what it has printed."""

SWALLOWED_SECONDS = 0.02
"""Time between a swallowed end and the next attempt."""


def abandon(code: int) -> NoReturn:
    """End this process from any of its threads, whatever the others are at, and with it all that it has started."""
    import psutil  # only here, so that parsing is light

    # Another thread may hold a stream's lock, and wait for a reader that does not come.
    flush = threading.Thread(target=lambda: [stream.flush() for stream in (sys.stdout, sys.stderr)], daemon=True)
    flush.start()
    flush.join(FLUSH_SECONDS)
    # The oldest last: without its raylet, Ray's C++ core ends this process with an exit code of its own.
    for process in reversed(psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(code)


class StopWatch:
    """Unwinds the main thread on the first signal that asks for the end, and ends the process if that takes too long."""

    def __init__(self, seconds: float, end: Callable[[signal.Signals], None]) -> None:
        """Watch from now on; call this in the main thread.

        `end` is called in another thread, and ends the process; `seconds` after the signal, or never if that is infinite.
        """
        self.asked: signal.Signals | None = None
        """The first signal that asked for the end."""
        self._seconds, self._end = seconds, end
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._unwind)
        sys.unraisablehook = self._swallowed
        threading.Thread(target=self._watch, name="stop", daemon=True).start()

    def _unwind(self, number: int, _frame: FrameType | None) -> NoReturn:
        """Raise SystemExit, so that every `finally` runs; signals that follow would only disturb that."""
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self.asked = self.asked or signal.Signals(number)
        sys.exit(128 + number)

    def _swallowed(self, unraisable: "sys.UnraisableHookArgs") -> None:
        in_main, raised = threading.current_thread() is threading.main_thread(), unraisable.exc_value
        if in_main and isinstance(raised, SystemExit):  # by a handler of ours or of Ray's, maybe before `_watch` knows
            self.asked = self.asked or next((n for n in SIGNALS if raised.code in (n, 128 + n)), None)
        if self.asked is None or not in_main or not isinstance(raised, SystemExit):
            sys.__unraisablehook__(unraisable)
            return
        signal.signal(self.asked, self._unwind)
        main = threading.main_thread().ident
        assert main is not None
        # What is raised in this hook is swallowed too, so it must have ended by then.
        threading.Timer(SWALLOWED_SECONDS, signal.pthread_kill, (main, self.asked)).start()

    def _watch(self) -> None:
        while (number := os.read(self._read, 1)[0]) not in SIGNALS:
            pass
        self.asked = self.asked or signal.Signals(number)
        if self._seconds < threading.TIMEOUT_MAX:
            time.sleep(self._seconds)
            self._end(self.asked)
