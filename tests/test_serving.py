"""Serving without Ray: the queue in front of a real engine, and the HTTP application around it."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from models.criterion import Criterion
from models.early_exit import EarlyExitModel
from pipeline.config import EngineConfig
from pipeline.engine import Engine
from pipeline.rows import Predictions, Thresholds, TokenRows
from pipeline.serving import engine_criterion
from pipeline.serving_http import Classifier, Limits, OnResponse, build_app, hash_token
from pipeline.serving_queue import BatchReport, EngineQueue, QueueFullError
from pipeline.synthetic import reviews
from pipeline.tokenise import Tokeniser, TokeniserSpec
from tests.conftest import random_rows
from tests.test_engine import TOLERANCE, new_model, regression_model

TEXTS = [review.text for review in reviews(60, seed=3)]
SPEEDS = (0.0, 0.35, 0.6, 0.85, 1.0)


def new_engine(criterion: Criterion, model: EarlyExitModel | None = None) -> Engine:
    return Engine(model or new_model(), EngineConfig(criterion=criterion, dtype="fp32", token_budget=64))


def assert_equal(served: Predictions, batch: Predictions, criterion: Criterion) -> int:
    """Compare two answers, but for rows so near the threshold that rounding may decide; return how many were compared."""
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
    together = mixed.run(rows, thresholds=np.repeat(speeds[:, None], 4, 1))
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
            filler_tokens=0,
        )
        compared += assert_equal(part, alone, criterion)
    assert compared > 150
    assert len(np.unique(together.exit_layers)) > 2


def test_a_criterion_without_a_threshold_takes_no_speeds() -> None:
    rows = random_rows(3, 10, seed=1)
    with pytest.raises(ValueError, match="patience"):
        new_engine(Criterion(name="patience")).run(rows, thresholds=ones(3))


class HeldEngine(Engine):
    """An engine that waits to be let go, and notes the rows and speeds of every call."""

    def __init__(self) -> None:
        criterion = Criterion(speed=1.0)
        super().__init__(new_model(), EngineConfig(criterion=criterion, dtype="fp32", token_budget=64))
        self.let_go, self.entered = threading.Semaphore(0), threading.Semaphore(0)
        self.calls: list[tuple[list[int], list[float]]] = []

    def run(
        self,
        rows: TokenRows,
        exit_plan: object = None,
        thresholds: Thresholds | None = None,
        *,
        full_depth: bool = False,
    ) -> Predictions:
        assert thresholds is not None
        self.calls.append((rows.lengths.tolist(), thresholds[:, 0].tolist()))
        self.entered.release()
        assert self.let_go.acquire(timeout=60)
        if 13 in rows.lengths:
            raise MemoryError("thirteen")
        return super().run(rows, thresholds=thresholds)


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


def test_closing_finishes_what_was_accepted(held: tuple[HeldEngine, EngineQueue]) -> None:
    engine, queue = held
    futures = [queue.submit(rows_of(50), ones(1)) for _ in range(4)]
    engine.let_go.release(1000)
    queue.close()
    assert all(future.done() for future in futures)
    with pytest.raises(QueueFullError):
        queue.submit(rows_of(1), ones(1))


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


LIMITS = Limits(rows=50, body_bytes=20_000, body_seconds=5.0, answer_seconds=30.0)


def new_app(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    criterion: Criterion,
    *,
    limits: Limits = LIMITS,
    token: bytes | None = None,
    queue_tokens: int = 1 << 20,
    on_response: OnResponse = lambda status, seconds: None,
) -> FastAPI:
    model = EarlyExitModel.from_pretrained(directory)
    engine = new_engine(engine_criterion(criterion, model), model)
    queue = EngineQueue(engine, batch_tokens=256, queue_tokens=queue_tokens)
    tokeniser = Tokeniser(TokeniserSpec.from_hugging_face(tokenizer, 64))
    token_hash = None if token is None else hash_token(token)
    classifier = Classifier(queue, tokeniser, criterion, limits)
    return build_app(classifier, token_hash=token_hash, version="1", on_response=on_response)


@pytest.fixture(scope="module")
def client(model_directory: Path, review_tokenizer: PreTrainedTokenizerFast) -> TestClient:
    return TestClient(new_app(model_directory, review_tokenizer, Criterion(speed=0.6)), raise_server_exceptions=False)


def test_a_text_a_pair_and_a_list_are_answered(client: TestClient) -> None:
    one = client.post("/classify", json={"text": TEXTS[0]}).json()["results"]
    assert set(one[0]) == {"label", "label_id", "score", "exit_layer", "uncertainty", "truncated"}
    assert one[0]["label"] == ["negative", "positive"][one[0]["label_id"]]
    many = client.post("/classify", json={"text": TEXTS[:20], "probabilities": True}).json()["results"]
    assert len(many) == 20
    assert many[0]["exit_layer"] == one[0]["exit_layer"]
    assert all(max(row["probabilities"]) == pytest.approx(row["score"]) for row in many)
    pair = client.post("/classify", json={"text": TEXTS[0], "pair": TEXTS[1]}).json()["results"]
    assert pair[0]["score"] != one[0]["score"]
    assert len(client.post("/classify", json={"text": TEXTS[:2], "pair": TEXTS[2:4]}).json()["results"]) == 2
    long = client.post("/classify", json={"text": " ".join(TEXTS)}).json()["results"]
    assert [row["truncated"] for row in long + one] == [True, False]


def test_a_request_chooses_its_speed(client: TestClient) -> None:
    def exits(speed: float | None) -> list[int]:
        body = {"text": TEXTS[:50]} | ({} if speed is None else {"speed": speed})
        return [row["exit_layer"] for row in client.post("/classify", json=body).json()["results"]]

    assert set(exits(0)) == {4}
    assert set(exits(1)) == {1}
    assert exits(None) == exits(0.6)
    assert len({*exits(0.6)}) > 1


def test_thresholds_of_every_exit_are_kept(model_directory: Path, review_tokenizer: PreTrainedTokenizerFast) -> None:
    criterion = Criterion(speeds=((2, 1.0),))
    client = TestClient(new_app(model_directory, review_tokenizer, criterion))
    assert client.post("/classify", json={"text": TEXTS[0]}).json()["results"][0]["exit_layer"] == 2
    assert client.post("/classify", json={"text": TEXTS[0], "speed": 1}).json()["results"][0]["exit_layer"] == 1


def test_full_depth_is_only_a_default(model_directory: Path, review_tokenizer: PreTrainedTokenizerFast) -> None:
    client = TestClient(new_app(model_directory, review_tokenizer, Criterion(speed=0.0)))
    assert client.post("/classify", json={"text": TEXTS[0]}).json()["results"][0]["exit_layer"] == 4
    assert client.post("/classify", json={"text": TEXTS[0], "speed": 1}).json()["results"][0]["exit_layer"] == 1


def test_a_served_patience_takes_no_speed(model_directory: Path, review_tokenizer: PreTrainedTokenizerFast) -> None:
    client = TestClient(new_app(model_directory, review_tokenizer, Criterion(name="patience", patience=1)))
    assert client.post("/classify", json={"text": TEXTS[0]}).status_code == 200
    refused = client.post("/classify", json={"text": TEXTS[0], "speed": 0.5})
    assert (refused.status_code, refused.json()["detail"][:21]) == (422, "speed: this model is ")


def test_a_model_of_values_answers_values(tmp_path: Path, review_tokenizer: PreTrainedTokenizerFast) -> None:
    regression_model().save_pretrained(tmp_path)
    client = TestClient(new_app(tmp_path, review_tokenizer, Criterion(name="lte", speed=0.5)))
    result = client.post("/classify", json={"text": TEXTS[0]}).json()["results"][0]
    assert set(result) == {"value", "exit_layer", "uncertainty", "truncated"}


WRONG = {
    "malformed": (b'{"text": ', 400, "the body is no JSON"),
    "not UTF-8": (b'{"text": "\xff\xfe"}', 400, "error parsing the body"),
    "empty body": (b"", 422, "Field required"),
    "no text": (b"{}", 422, "text: Field required"),
    "number": (b'{"text": 7}', 422, "text.str: Input should be a valid string"),
    "null in a list": (b'{"text": ["a", null]}', 422, "text.list[str].1: Input should be a valid string"),
    "thousands of numbers": (json.dumps({"text": [1] * 6000}).encode(), 422, "text.list[str].0: Input should be"),
    "nested list": (b'{"text": [["a"]]}', 422, "text.list[str].0: Input should be a valid string"),
    "empty list": (b'{"text": []}', 422, "at least 1 item"),
    "empty text": (b'{"text": ["a", " "]}', 422, "text: number 1 is empty"),
    "lone surrogate": (b'{"text": "\\ud800"}', 422, "text: number 0 holds an escape"),
    "too many rows": (json.dumps({"text": ["a"] * 51}).encode(), 422, "text: 51 texts; at most 50"),
    "pairs do not match": (b'{"text": ["a", "b"], "pair": ["c"]}', 422, "pair: 1 second texts for 2 first ones"),
    "one pair for a list": (b'{"text": ["a"], "pair": "c"}', 422, "pair: 1 second texts"),
    "speed too high": (b'{"text": "a", "speed": 1.5}', 422, "speed: Input should be less than or equal to 1"),
    "speed is text": (b'{"text": "a", "speed": "0.5"}', 422, "speed: Input should be a valid number"),
    "speed is not a number": (b'{"text": "a", "speed": NaN}', 422, "speed"),
    "misspelt": (b'{"text": "a", "sped": 0.5}', 422, "sped: Extra inputs are not permitted"),
    "too large": (b'{"text": "' + b"a" * 20_000 + b'"}', 413, "the body is larger than 20,000 bytes"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_requests_are_refused_in_one_line(client: TestClient, what: str) -> None:
    body, status, detail = WRONG[what]
    answer = client.post("/classify", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.text
    assert "\n" not in answer.json()["detail"]
    assert len(answer.text) < 300


def test_a_body_of_unknown_length_is_measured_too(client: TestClient) -> None:
    answer = client.post("/classify", content=iter([b'{"text": "'] + [b"a" * 5000] * 5))
    assert answer.status_code == 413


def test_a_token_is_wanted_where_there_is_one(model_directory: Path, review_tokenizer: PreTrainedTokenizerFast) -> None:
    client = TestClient(new_app(model_directory, review_tokenizer, Criterion(speed=0.6), token=b"secret"))

    def status(**headers: str) -> int:
        return client.post("/classify", json={"text": "a room"}, headers=headers).status_code

    assert status() == status(Authorization="Bearer wrong") == status(Authorization="Basic secret") == 401
    assert status(Authorization="Bearer secret") == 200
    assert client.get("/model").status_code == 401
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_full_queue_and_a_late_answer_have_codes_of_their_own(
    model_directory: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    late = replace(LIMITS, answer_seconds=1e-6)
    client = TestClient(new_app(model_directory, review_tokenizer, Criterion(speed=0.6), limits=late))
    assert client.post("/classify", json={"text": TEXTS}).status_code == 422  # checked before anything is spent
    assert client.post("/classify", json={"text": TEXTS[:50]}).status_code == 504

    full = TestClient(new_app(model_directory, review_tokenizer, Criterion(speed=0.6), queue_tokens=0))
    refused = full.post("/classify", json={"text": "a room"})
    assert (refused.status_code, int(refused.headers["Retry-After"]) >= 1) == (429, True)


def test_every_answer_is_counted_by_its_code(
    model_directory: Path, review_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    app = new_app(
        model_directory,
        review_tokenizer,
        Criterion(speed=0.6),
        on_response=lambda status, _seconds: codes.append(status),
    )
    client = TestClient(app, raise_server_exceptions=False)
    client.post("/classify", json={"text": "a room"})
    client.post("/classify", json={"text": 7})
    monkeypatch.setattr(Engine, "run", lambda *_args, **_options: 1 / 0)
    failed = client.post("/classify", json={"text": "a room"})
    assert failed.json() == {"detail": "the engine failed: ZeroDivisionError"}
    assert codes == [200, 422, 500]


def test_the_model_and_the_openapi_page_tell_what_is_served(client: TestClient) -> None:
    model = client.get("/model").json()
    assert model["exit_layers"] == [1, 2, 3, 4]
    assert model["labels"] == ["negative", "positive"]
    assert "/openapi.json" in client.get("/docs").text
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/classify", "/model", "/healthz"}
    assert {"200", "400", "401", "413", "422", "429", "504"} <= set(schema["paths"]["/classify"]["post"]["responses"])
