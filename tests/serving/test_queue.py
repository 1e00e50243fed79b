"""The queue in front of a real engine: batches, fairness, limits, cancelled and broken requests."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import numpy as np
import pytest

from models.exits.criterion import Criterion
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.rules import ExitRule, PerRowThresholds
from pipeline.rows import Predictions, Thresholds, TokenRows
from pipeline.serving.queue import BatchReport, EngineQueue, QueueFullError
from tests.support.models import TOLERANCE, new_model, random_rows
from tests.support.serving import new_engine

SPEEDS = (0.0, 0.35, 0.6, 0.85, 1.0)


def assert_equal(served: Predictions, batch: Predictions, criterion: Criterion) -> int:
    """Compare predictions, but for rows so near the threshold that rounding may decide; return how many were compared."""
    clear = np.abs(batch.uncertainty - criterion.speed) > 10 * TOLERANCE
    np.testing.assert_array_equal(served.exit_layers[clear], batch.exit_layers[clear])
    np.testing.assert_allclose(served.logits[clear], batch.logits[clear], atol=TOLERANCE)
    np.testing.assert_allclose(served.uncertainty[clear], batch.uncertainty[clear], atol=TOLERANCE)
    return int(clear.sum())


@pytest.mark.parametrize("name", ["entropy", "confidence", "lte"])
def test_rows_of_many_speeds_in_one_call_get_the_answers_of_calls_of_their_own(name: str) -> None:
    rows = random_rows(200, 40, seed=1)
    mixed = new_engine(Criterion(name=name, speed=1.0))
    speeds = np.resize(np.array(SPEEDS, np.float32), len(rows))
    together = mixed.run(rows, PerRowThresholds(mixed.config.criterion, np.repeat(speeds[:, None], 4, 1)))
    compared = 0
    for speed in SPEEDS:
        criterion = Criterion(name=name, speed=speed)
        own = np.flatnonzero(speeds == np.float32(speed))
        alone = new_engine(criterion).run(rows.take(own))
        part = Predictions(
            logits=together.logits[own],
            exit_layers=together.exit_layers[own],
            uncertainty=together.uncertainty[own],
            layer_tokens=0,
            padding_tokens=0,
        )
        compared += assert_equal(part, alone, criterion)
    assert compared > 150
    assert len(np.unique(together.exit_layers)) > 2


def test_a_criterion_without_a_threshold_takes_no_speeds() -> None:
    with pytest.raises(ValueError, match="patience"):
        PerRowThresholds(Criterion(name="patience"), ones(3))


class HeldEngine(Engine):
    """An engine that waits to be released, and records the rows and speeds of every call."""

    def __init__(self) -> None:
        config = EngineConfig(criterion=Criterion(speed=1.0), dtype="fp32", token_budget=64)
        super().__init__(LoadedModel(new_model(), config))
        self.let_go, self.entered = threading.Semaphore(0), threading.Semaphore(0)
        self.calls: list[tuple[list[int], list[float]]] = []

    def run(self, rows: TokenRows, rule: ExitRule | None = None) -> Predictions:
        assert isinstance(rule, PerRowThresholds)
        self.calls.append((rows.lengths.tolist(), rule.thresholds_BL[:, 0].tolist()))
        self.entered.release()
        assert self.let_go.acquire(timeout=60)
        if 13 in rows.lengths:
            raise MemoryError("thirteen")
        return super().run(rows, rule)


@pytest.fixture
def held() -> Iterator[tuple[HeldEngine, EngineQueue]]:
    engine = HeldEngine()
    queue = EngineQueue(engine, batch_tokens=100, queue_tokens=300)
    first = queue.submit(rows_of(5), ones(1))  # keeps the engine busy until it is let go
    assert engine.entered.acquire(timeout=60)
    yield engine, queue
    engine.let_go.release(1000)
    queue.close()
    assert first.result(60).exit_layers.tolist() == [1]


def rows_of(*lengths: int) -> TokenRows:
    return TokenRows.from_lists([[7] * length for length in lengths])


def ones(count: int, speed: float = 1.0) -> Thresholds:
    return np.full((count, 4), speed, np.float32)


def test_batches_are_cut_by_tokens_and_hold_rows_of_many_speeds(held: tuple[HeldEngine, EngineQueue]) -> None:
    engine, queue = held
    futures = [queue.submit(rows_of(40), ones(1, speed)) for speed in (0.25, 0.5, 0.75)]
    engine.let_go.release(1000)
    assert [len(future.result(60).exit_layers) for future in futures] == [1, 1, 1]
    assert engine.calls[1:] == [([40, 40], [0.25, 0.5]), ([40], [0.75])]


def test_a_long_request_does_not_hold_up_a_short_one(held: tuple[HeldEngine, EngineQueue]) -> None:
    engine, queue = held
    long, short = queue.submit(rows_of(*[50] * 5), ones(5)), queue.submit(rows_of(30), ones(1))
    engine.let_go.release(1000)
    short.result(60)
    assert len(long.result(60).exit_layers) == 5
    assert [lengths for lengths, _ in engine.calls[1:]] == [[50, 50], [30, 50], [50, 50]]


def test_a_row_longer_than_a_batch_goes_alone(held: tuple[HeldEngine, EngineQueue]) -> None:
    engine, queue = held
    future = queue.submit(rows_of(8, 60, 8), ones(3))
    small = EngineQueue(engine, batch_tokens=20, queue_tokens=300)
    other = small.submit(rows_of(8, 60, 8), ones(3))
    engine.let_go.release(1000)
    assert [f.result(60).exit_layers.tolist() for f in (future, other)] == [[1, 1, 1]] * 2
    small.close()
    assert sorted(lengths for lengths, _ in engine.calls[1:]) == [[8], [8], [8, 60, 8], [60]]


def test_a_row_longer_than_a_batch_leaves_those_behind_it_alone(held: tuple[HeldEngine, EngineQueue]) -> None:
    engine, _ = held
    small = EngineQueue(engine, batch_tokens=20, queue_tokens=300)
    futures = [small.submit(rows_of(*lengths), ones(len(lengths))) for lengths in ([9], [60], [3, 4], [5])]
    engine.let_go.release(1000)
    assert [len(future.result(60).exit_layers) for future in futures] == [1, 1, 2, 1]
    small.close()
    assert [60] in [lengths for lengths, _ in engine.calls]


def test_a_full_queue_refuses_and_says_when_to_come_back(held: tuple[HeldEngine, EngineQueue]) -> None:
    _, queue = held
    queue.submit(rows_of(60, 60, 60, 60), ones(4))
    queue.check_room()
    with pytest.raises(QueueFullError) as refused:
        queue.submit(rows_of(61), ones(1))
    assert refused.value.retry_after_s >= 1
    queue.submit(rows_of(60), ones(1))
    with pytest.raises(QueueFullError):
        queue.check_room()


def test_a_cancelled_request_never_reaches_the_engine(held: tuple[HeldEngine, EngineQueue]) -> None:
    engine, queue = held
    gone, stays = queue.submit(rows_of(40, 41), ones(2)), queue.submit(rows_of(30), ones(1))
    assert gone.cancel()
    assert queue.waiting_rows() == 1
    engine.let_go.release(1000)
    stays.result(60)
    with pytest.raises(CancelledError):
        gone.result(60)
    assert [lengths for lengths, _ in engine.calls[1:]] == [[30]]
    queue.submit(rows_of(*[50] * 6), ones(6)).result(60)  # what it had reserved is free again


def test_a_row_that_breaks_the_engine_costs_nobody_else_an_answer(held: tuple[HeldEngine, EngineQueue]) -> None:
    engine, queue = held
    good, bad, other = (queue.submit(rows_of(length), ones(1)) for length in (10, 13, 11))
    engine.let_go.release(1000)
    assert good.result(60).exit_layers.tolist() == other.result(60).exit_layers.tolist() == [1]
    with pytest.raises(MemoryError, match="thirteen"):
        bad.result(60)
    assert queue.submit(rows_of(12), ones(1)).result(60).exit_layers.tolist() == [1]
    assert not queue.is_stuck()


class BrokenEngine(Engine):
    """An engine whose GPU fails at a row of 13 tokens, and from then on at everything."""

    failed = False

    def run(self, rows: TokenRows, rule: ExitRule | None = None) -> Predictions:
        self.failed = self.failed or 13 in rows.lengths
        if self.failed:
            raise RuntimeError("an illegal memory access was encountered")
        return super().run(rows, rule)


def test_an_engine_that_fails_at_everything_is_stuck() -> None:
    engine = BrokenEngine(LoadedModel(new_model(), EngineConfig(criterion=Criterion(speed=1.0), dtype="fp32")))
    queue = EngineQueue(engine, batch_tokens=100, queue_tokens=300)
    assert queue.submit(rows_of(5), ones(1)).result(60).exit_layers.tolist() == [1]
    assert not queue.is_stuck()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        queue.submit(rows_of(13), ones(1)).result(60)
    queue.close()  # when it has looked whether anything works yet
    assert queue._broken


def test_closing_finishes_what_was_accepted(held: tuple[HeldEngine, EngineQueue]) -> None:
    engine, queue = held
    futures = [queue.submit(rows_of(50), ones(1)) for _ in range(4)]
    engine.let_go.release(1000)
    queue.close()
    assert all(future.done() for future in futures)
    with pytest.raises(QueueFullError):
        queue.submit(rows_of(1), ones(1))


def test_an_engine_that_does_not_come_back_is_stuck(
    held: tuple[HeldEngine, EngineQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, queue = held
    assert not queue.is_stuck()
    monkeypatch.setattr("pipeline.serving.queue.STUCK_SECONDS", 0.0)
    assert queue.is_stuck()


def test_a_queue_whose_thread_has_ended_is_stuck() -> None:
    queue = EngineQueue(new_engine(Criterion(speed=1.0)), batch_tokens=256, queue_tokens=300)
    assert not queue.is_stuck()
    queue.close()
    assert queue.is_stuck()


def test_many_callers_get_their_own_answers_and_the_report_adds_up() -> None:
    engine = new_engine(Criterion(speed=1.0))
    reports: list[BatchReport] = []
    queue = EngineQueue(engine, batch_tokens=256, queue_tokens=1 << 20, on_batch=reports.append)
    parts = [random_rows(1 + number % 7, 40, seed=number) for number in range(40)]
    futures = [queue.submit(part, ones(len(part), 0.6)) for part in parts]
    served = [future.result(60) for future in futures]
    queue.close()
    criterion, compared = Criterion(speed=0.6), 0
    for part, answer in zip(parts, served, strict=True):
        compared += assert_equal(answer, new_engine(criterion).run(part), criterion)
    rows = sum(map(len, parts))
    assert compared > 0.9 * rows
    assert sum(report.rows for report in reports) == sum(sum(report.exits) for report in reports) == rows
    assert sum(report.tokens for report in reports) == sum(len(part.token_ids) for part in parts)
    assert len(reports) < len(parts)
