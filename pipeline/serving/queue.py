"""The queue between requests and the engine: batches by token budget, rows of many speeds in one batch. No Ray, no HTTP.

One thread runs the engine. Whenever it is free it takes what waits, in order of arrival, up to `batch_tokens`; nobody waits
for a batch to fill, and under load batches fill by themselves. A request that is longer than a batch is cut, and its rest
goes to the end of the queue: a long list holds the short ones up by one batch, not by its length.
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

RATE_MEMORY = 0.8
"""Weight of the past in the running rate of tokens a second: about the last five batches."""
LONGEST_RETRY_S = 60


class QueueFullError(Exception):
    """No room for these rows now."""

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
    """Rows by exit layer, 1 first."""
    layer_tokens: int
    padding_tokens: int
    seconds: float
    """Of the engine."""
    waiting_rows: int
    """In the queue when the batch was done."""


@dataclass(slots=True, eq=False)
class _Request:
    """Rows of one caller, and their answers as they come in."""

    rows: TokenRows
    thresholds: Thresholds | None
    future: Future[Predictions] = field(default_factory=Future)
    taken: int = 0
    """Rows that are in a batch already."""
    parts: list[Predictions] = field(default_factory=list)

    def tokens_left(self) -> int:
        return int(self.rows.offsets[-1] - self.rows.offsets[self.taken])

    def deliver(self, part: Predictions) -> None:
        self.parts.append(part)
        if sum(len(p.exit_layers) for p in self.parts) == len(self.rows):
            with suppress(InvalidStateError):  # nobody waits for it any more
                self.future.set_result(Predictions.join(self.parts))

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a request, in a batch."""

    request: _Request
    first: int
    last: int

    def rows(self) -> TokenRows:
        return self.request.rows.slice(range(self.first, self.last))

    def thresholds(self) -> Thresholds | None:
        return None if self.request.thresholds is None else self.request.thresholds[self.first : self.last]


class EngineQueue:
    """Runs an engine for many callers at once; thread-safe."""

    def __init__(
        self,
        engine: Engine,
        *,
        batch_tokens: int,
        queue_tokens: int,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
    ) -> None:
        """Take at most `batch_tokens` (or one long row) to the engine at once, and let at most `queue_tokens` wait."""
        self.engine, self.batch_tokens, self.queue_tokens = engine, batch_tokens, queue_tokens
        self._on_batch = on_batch
        self._waiting: deque[_Request] = deque()
        self._waiting_tokens = 0
        self._changed = threading.Condition()
        self._closing = False
        self._tokens_per_second = 0.0
        self._batch_started: float | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, rows: TokenRows, thresholds: Thresholds | None) -> Future[Predictions]:
        """Queue rows; cancelling the future takes those out that no batch holds yet.

        `thresholds` as in `PerRowThresholds`; all callers give them or none does. Raises QueueFullError if more than `queue_tokens`
        would wait; an empty queue takes a request of any size.
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
        """Raise QueueFullError if the queue is full already, before any work is put into a request."""
        if self._waiting_tokens >= self.queue_tokens:
            raise QueueFullError(self.retry_after_s())

    def retry_after_s(self) -> int:
        """Return after how many seconds the queue of now will be worked off, as far as is known."""
        seconds = self._waiting_tokens / self._tokens_per_second if self._tokens_per_second else 1
        return int(min(max(np.ceil(seconds), 1), LONGEST_RETRY_S))

    def waiting_rows(self) -> int:
        """Rows in the queue."""
        with self._changed:
            return sum(len(request.rows) - request.taken for request in self._waiting)

    def stuck_for(self) -> float:
        """Seconds that the batch at work has taken so far; infinity if the thread is gone."""
        if not self._thread.is_alive():
            return float("inf")
        started = self._batch_started
        return 0.0 if started is None else monotonic() - started

    def close(self) -> None:
        """Finish what waits, take nothing more, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _forget(self, request: _Request) -> None:
        """Take out what is left of a request that was cancelled, or that failed."""
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
            self._batch_started = None

    def _next_batch(self) -> list[_Part]:
        """Wait for rows and take a batch of them; nothing once the queue is closed and empty."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            return list(self._take())

    def _take(self) -> Iterator[_Part]:
        room = self.batch_tokens
        while self._waiting and room > 0:
            request = self._waiting[0]
            offsets = request.rows.offsets
            last = int(np.searchsorted(offsets, offsets[request.taken] + room, side="right")) - 1
            if last == request.taken and room == self.batch_tokens:
                last += 1  # one row that is longer than a batch
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
        given = [t for t in thresholds if t is not None]
        rule = PerRowThresholds(self.engine.config.criterion, np.concatenate(given)) if given else None
        started = perf_counter()
        predictions = self.engine.run(rows, rule).checked()
        seconds = perf_counter() - started
        start = 0
        for part in parts:
            stop = start + part.last - part.first
            part.request.deliver(_slice(predictions, start, stop))
            start = stop
        self._note(parts, rows, predictions, seconds)

    def _run_alone(self, parts: list[_Part], error: Exception) -> None:
        """A batch failed: find out whose rows it was, so that nobody pays for a neighbour."""
        if len(parts) == 1:
            parts[0].request.fail(error)
            return
        for part in parts:
            try:
                self._run([part])
            except Exception as own:
                part.request.fail(own)

    def _note(self, parts: list[_Part], rows: TokenRows, predictions: Predictions, seconds: float) -> None:
        tokens = len(rows.token_ids)
        rate = tokens / max(seconds, 1e-9)
        past = self._tokens_per_second or rate
        self._tokens_per_second = RATE_MEMORY * past + (1 - RATE_MEMORY) * rate
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
    """Return the answers of some neighbouring rows; the work counted stays with the whole."""
    return Predictions(
        logits=whole.logits[start:stop],
        exit_layers=whole.exit_layers[start:stop],
        uncertainty=whole.uncertainty[start:stop],
        layer_tokens=0,
        padding_tokens=0,
    )
