"""Serving without Ray: the HTTP application around a real engine and its queue."""

import asyncio
import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from starlette.testclient import TestClient
from starlette.types import Message
from transformers import PreTrainedTokenizerFast

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.synthetic import reviews
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.engine.engine import Engine
from pipeline.serving.app import build_app
from pipeline.serving.classifier import TextClassifier
from pipeline.serving.limits import RequestLimits
from pipeline.serving.observer import OnResponse
from pipeline.serving.queue import EngineQueue
from pipeline.serving.schema import ClassifyRequest
from pipeline.serving.spec import engine_criterion
from pipeline.serving.token import hash_token
from tests.support.models import regression_model
from tests.support.serving import LIMITS, new_engine

TEXTS = [review.text for review in reviews(60, seed=3)]


def new_app(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    criterion: Criterion,
    *,
    limits: RequestLimits = LIMITS,
    token: bytes | None = None,
    queue_tokens: int = 1 << 20,
    on_response: OnResponse = lambda status, seconds: None,
) -> FastAPI:
    token_hash = None if token is None else hash_token(token)
    classifier = new_classifier(directory, tokenizer, criterion, limits=limits, queue_tokens=queue_tokens)
    return build_app(classifier, token_hash=token_hash, version="1", on_response=on_response)


def new_classifier(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    criterion: Criterion,
    *,
    limits: RequestLimits = LIMITS,
    queue_tokens: int = 1 << 20,
) -> TextClassifier:
    model = EarlyExitModel.from_pretrained(directory)
    engine = new_engine(engine_criterion(criterion, model), model)
    queue = EngineQueue(engine, batch_tokens=256, queue_tokens=queue_tokens)
    return TextClassifier(queue, Tokenizer(TokenizerSpec.from_hugging_face(tokenizer, 64)), criterion, limits)


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
    result = client.post("/classify", json={"text": TEXTS[0], "probabilities": True}).json()["results"][0]
    assert result["probability"] == pytest.approx(1 / (1 + math.exp(-result["value"])))


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
    "misspelt": (b'{"text": "a", "sped": 0.5}', 422, "body: 'sped' are no fields of a request"),
    "thousands of names": (
        json.dumps({f"k{n}": 1 for n in range(1500)}).encode(),
        422,
        "and 1,497 others are no fields",
    ),
    "a long name": (json.dumps({"text": "a", "\x1b[31m" * 1000: 1}).encode(), 422, r"'\x1b[31m"),
    "no object": (b"[1, 2]", 422, "body: Input should be a valid"),
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
    assert client.get("/nowhere").status_code == 401  # nobody learns without a token what there is
    assert client.get("/nowhere", headers={"Authorization": "bearer  secret "}).status_code == 404
    assert client.get("/healthz").json() == {"status": "ok"}
    assert [client.get(path).status_code for path in ("/docs", "/openapi.json")] == [200, 200]


def test_a_request_without_the_token_is_refused_before_its_body_is_read(
    model_directory: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    app = new_app(model_directory, review_tokenizer, Criterion(speed=0.6), token=b"secret")
    assert asyncio.run(status_of(app, body=None)) == 401


def test_a_body_that_does_not_arrive_in_time_is_refused(
    model_directory: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    app = new_app(model_directory, review_tokenizer, Criterion(speed=0.6), limits=replace(LIMITS, body_seconds=0.05))
    assert asyncio.run(status_of(app, body=b'{"text": ')) == 408


async def status_of(app: FastAPI, body: bytes | None) -> int:
    """Post the start of a body that never ends, or none that may be read at all; return the status of the response."""
    headers = [(b"host", b"test"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/classify", "raw_path": b"/classify", "query_string": b"", "headers": headers,
    }  # fmt: skip
    sent: list[Message] = []
    parts = iter([] if body is None else [body])

    async def receive() -> Message:
        assert body is not None, "the body was read"
        for part in parts:
            return {"type": "http.request", "body": part, "more_body": True}
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


def test_a_stuck_engine_is_no_healthy_one(
    model_directory: Path, review_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(new_app(model_directory, review_tokenizer, Criterion(speed=0.6)))
    assert client.get("/healthz").status_code == 200
    monkeypatch.setattr(EngineQueue, "is_stuck", lambda _queue: True)
    refused = client.get("/healthz")
    assert (refused.status_code, refused.json()) == (503, {"detail": "the engine does not come back"})


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


def test_texts_that_wait_to_be_tokenized_are_bounded_by_their_characters(
    model_directory: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    classifier = new_classifier(model_directory, review_tokenizer, Criterion(speed=0.6), queue_tokens=100)
    long = ClassifyRequest.model_validate(
        {"text": "a" * 700}
    )  # some tokens, and nearly all the characters that may wait
    working, may_end = threading.Event(), threading.Event()
    tokenizer = classifier.tokenizer

    def held(*texts: Any) -> Any:
        working.set()
        assert may_end.wait(60)
        return tokenizer(*texts)

    classifier.tokenizer = held  # type: ignore[assignment]

    async def requests() -> list[Any]:
        first = asyncio.ensure_future(classifier.classify(long))
        await asyncio.to_thread(working.wait, 60)
        refused = await asyncio.gather(classifier.classify(long), return_exceptions=True)
        may_end.set()
        return [await first, *refused, await classifier.classify(long)]

    first, refused, later = asyncio.run(requests())
    assert first == later
    assert isinstance(refused, HTTPException)
    assert refused.status_code == 429


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
    assert "securitySchemes" not in schema["components"]  # there is no token to send


def test_the_openapi_page_shows_where_the_token_goes(
    model_directory: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    client = TestClient(new_app(model_directory, review_tokenizer, Criterion(speed=0.6), token=b"secret"))
    schema = client.get("/openapi.json").json()
    assert [(scheme["type"], scheme["scheme"]) for scheme in schema["components"]["securitySchemes"].values()] == [
        ("http", "bearer")
    ]
    (name,) = schema["components"]["securitySchemes"]
    assert schema["paths"]["/classify"]["post"]["security"] == [{name: []}]
    assert schema["paths"]["/model"]["get"]["security"] == [{name: []}]
    assert "security" not in schema["paths"]["/healthz"]["get"]
