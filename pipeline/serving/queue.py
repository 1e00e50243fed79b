"""The queue between requests and the engine: batches by token budget, rows of many speeds in one batch. No Ray, no HTTP.

One thread runs the engine. Whenever it is free it takes the waiting rows, first come, first served, up to `batch_tokens`; no
request waits for a batch to fill, and under load batches fill by themselves. A request that is longer than a batch is cut, and
its rest goes to the end of the queue: a long list delays the short ones by one batch, not by its length.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, perf_counter

import numpy as np

from pipeline.engine.engine import Engine
from pipeline.engine.rules import PerRowThresholds
from pipeline.rows import Predictions, Thresholds, TokenRows

RATE_DECAY = 0.8
"""Weight of the past in the moving average of tokens a second, which then spans about five batches."""
LONGEST_RETRY_S = 60
"""Longest time after which a refused client is asked to come back."""
STUCK_SECONDS = 120.0
"""A batch takes about a second; an engine that has not come back after this long never will."""


class QueueFullError(Exception):
    """Raise when there is no room for a request now."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """What the engine did with one batch, for metrics."""

    requests: int
    rows: int
    tokens: int
    exits: list[int]
    """Rows by exit layer, layer 1 first."""
    layer_tokens: int
    """Tokens x layers computed, without padding."""
    padding_tokens: int
    """Tokens x layers computed for padding."""
    seconds: float
    """Time that the engine took."""
    waiting_rows: int
    """Rows in the queue when the batch was done."""


@dataclass(slots=True, eq=False)
class _Request:
    """Rows of one caller, and their predictions as they come in."""

    rows: TokenRows
    thresholds: Thresholds | None
    future: Future[Predictions] = field(default_factory=Future)
    taken: int = 0
    """Rows that a batch has taken already."""
    parts: list[Predictions] = field(default_factory=list)
    """Predictions of the first rows, in order."""

    def tokens_left(self) -> int:
        """Return the tokens of the rows that no batch has taken yet."""
        return int(self.rows.offsets[-1] - self.rows.offsets[self.taken])

    def deliver(self, part: Predictions) -> None:
        """Add the next rows' predictions, and complete the future with the last of them."""
        self.parts.append(part)
        if sum(len(p.exit_layers) for p in self.parts) == len(self.rows):
            with suppress(InvalidStateError):  # the caller has cancelled it
                self.future.set_result(Predictions.join(self.parts))

    def fail(self, error: Exception) -> None:
        """Complete the future with an exception."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows `first` to `last` (exclusive) of a request, as a part of a batch."""

    request: _Request
    first: int
    last: int

    def rows(self) -> TokenRows:
        """Return these rows."""
        return self.request.rows.slice(range(self.first, self.last))

    def thresholds(self) -> Thresholds | None:
        """Return the thresholds of these rows, or None if the request has none."""
        return None if self.request.thresholds is None else self.request.thresholds[self.first : self.last]


class EngineQueue:
    """An engine that many callers share; thread-safe."""

    def __init__(
        self,
        engine: Engine,
        *,
        batch_tokens: int,
        queue_tokens: int,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
    ) -> None:
        """Run at most `batch_tokens` (or one long row) at once, and let at most `queue_tokens` wait."""
        self.engine, self.batch_tokens, self.queue_tokens = engine, batch_tokens, queue_tokens
        self._on_batch = on_batch
        self._waiting: deque[_Request] = deque()
        self._waiting_tokens = 0
        self._changed = threading.Condition()
        self._closing = False
        self._tokens_per_second = 0.0
        self._batch_started: float | None = None
        self._broken = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, rows: TokenRows, thresholds: Thresholds | None) -> Future[Predictions]:
        """Queue rows; cancelling the future removes those that no batch has taken yet.

        `thresholds` are as in `PerRowThresholds`: either all callers pass them or none does. Raises QueueFullError if more than
        `queue_tokens` would wait; an empty queue takes a request of any size.
        """
        request = _Request(rows, thresholds)
        tokens = request.tokens_left()
        with self._changed:
            if self._closing:
                raise QueueFullError(1)
            if self._waiting_tokens and self._waiting_tokens + tokens > self.queue_tokens:
                raise QueueFullError(self.retry_after_s())
            self._waiting.append(request)
            self._waiting_tokens += tokens
            self._changed.notify()
        request.future.add_done_callback(lambda _: self._forget(request))
        return request.future

    def check_room(self) -> None:
        """Raise QueueFullError if the queue is full already, so that no work is wasted on a request."""
        if self._waiting_tokens >= self.queue_tokens:
            raise QueueFullError(self.retry_after_s())

    def retry_after_s(self) -> int:
        """Estimate after how many seconds the rows that wait now will be done, between 1 and LONGEST_RETRY_S."""
        seconds = self._waiting_tokens / self._tokens_per_second if self._tokens_per_second else 1
        return int(min(max(np.ceil(seconds), 1), LONGEST_RETRY_S))

    def waiting_rows(self) -> int:
        """Count the rows in the queue."""
        with self._changed:
            return sum(len(request.rows) - request.taken for request in self._waiting)

    def is_stuck(self) -> bool:
        """Return whether no request can be answered any more.

        The engine has been at a batch for longer than STUCK_SECONDS, or fails whatever it is given, or its thread is gone.
        """
        started = self._batch_started
        late = started is not None and monotonic() - started > STUCK_SECONDS
        return late or self._broken or not self._thread.is_alive()

    def close(self) -> None:
        """Refuse new rows, finish those that wait, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _forget(self, request: _Request) -> None:
        """Remove what is left of a request that was cancelled or has failed."""
        if request.taken == len(request.rows):
            return
        with self._changed, suppress(ValueError):
            self._waiting.remove(request)
            self._waiting_tokens -= request.tokens_left()

    def _work(self) -> None:
        while parts := self._next_batch():
            self._batch_started = monotonic()
            try:
                self._run(parts)
            except Exception as error:
                self._run_alone(parts, error)
                self._broken = not self._still_works(parts[0])
            self._batch_started = None

    def _still_works(self, part: _Part) -> bool:
        """Return whether the engine can classify a row of one token; after a fault of the GPU it never can again."""
        thresholds = part.thresholds()
        rule = None if thresholds is None else PerRowThresholds(self.engine.config.criterion, thresholds[:1])
        try:
            self.engine.run(TokenRows.from_lists([[0]]), rule).checked()
        except Exception:
            return False
        return True

    def _next_batch(self) -> list[_Part]:
        """Wait for rows and take a batch of them; return an empty list once the queue is closed and empty."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            return list(self._take())

    def _take(self) -> Iterator[_Part]:
        """Take up to `batch_tokens` from the front of the queue; a request that is cut goes to its end and ends the batch."""
        room = self.batch_tokens
        while self._waiting and room > 0:
            request = self._waiting[0]
            offsets = request.rows.offsets
            last = int(np.searchsorted(offsets, offsets[request.taken] + room, side="right")) - 1
            if last == request.taken and room == self.batch_tokens:
                last += 1  # a row that is longer than a batch runs alone
            if last == request.taken:
                return
            yield (part := _Part(request, request.taken, last))
            tokens = int(offsets[last] - offsets[part.first])
            room, self._waiting_tokens, request.taken = room - tokens, self._waiting_tokens - tokens, last
            self._waiting.popleft()
            if last < len(request.rows):
                self._waiting.append(request)
                return

    def _run(self, parts: list[_Part]) -> None:
        rows = TokenRows.join([part.rows() for part in parts])
        thresholds = [part.thresholds() for part in parts]
        given = [part for part in thresholds if part is not None]
        rule = PerRowThresholds(self.engine.config.criterion, np.concatenate(given)) if given else None
        started = perf_counter()
        predictions = self.engine.run(rows, rule).checked()
        seconds = perf_counter() - started
        start = 0
        for part in parts:
            stop = start + part.last - part.first
            part.request.deliver(_slice(predictions, start, stop))
            start = stop
        self._report(parts, rows, predictions, seconds)

    def _run_alone(self, parts: list[_Part], error: Exception) -> None:
        """Run the parts of a failed batch one by one, so that only the request whose rows fail gets the error."""
        if len(parts) == 1:
            parts[0].request.fail(error)
            return
        for part in parts:
            try:
                self._run([part])
            except Exception as own:
                part.request.fail(own)

    def _report(self, parts: list[_Part], rows: TokenRows, predictions: Predictions, seconds: float) -> None:
        tokens = len(rows.token_ids)
        rate = tokens / max(seconds, 1e-9)
        past = self._tokens_per_second or rate
        self._tokens_per_second = RATE_DECAY * past + (1 - RATE_DECAY) * rate
        layers = self.engine.model.shape.layers
        self._on_batch(
            BatchReport(
                requests=len(parts),
                rows=len(rows),
                tokens=tokens,
                exits=np.bincount(predictions.exit_layers, minlength=layers + 1)[1:].tolist(),
                layer_tokens=predictions.layer_tokens,
                padding_tokens=predictions.padding_tokens,
                seconds=seconds,
                waiting_rows=self.waiting_rows(),
            )
        )


def _slice(whole: Predictions, start: int, stop: int) -> Predictions:
    """Return the predictions of rows `start` to `stop`; the counts of work stay with the whole batch."""
    return whole.take(np.arange(start, stop))
