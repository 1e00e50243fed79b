"""Fixtures that many tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import PreTrainedTokenizerFast

from models.early_exit import EarlyExitModel
from pipeline.benchmark.synthetic import reviews
from tests.support.models import CONFIGS, random_classifier, random_exits, save_tiny_model, wordpiece_tokenizer
from tests.support.s3_server import BUCKET, S3Server

# Several tests run at a time on few cores, and threads that wait for each other would wait for the other tests as well.
torch.set_num_threads(1)
settings.register_profile("offramp", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("offramp")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with tests that start Ray first: they take minutes, and at the end all workers should have something to do."""
    long = {item.path for item in items if item.get_closest_marker("e2e")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster or config of the machine's reaches a test."""
    for name in ("OFFRAMP_CONFIG", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="module")
def _configs_stay_as_they_are() -> Iterator[None]:
    """Fail the file of tests that changes what all share, and not whichever comes after it."""
    before = {family: config.to_json_string() for family, config in CONFIGS.items()}
    yield
    assert {family: config.to_json_string() for family, config in CONFIGS.items()} == before


@pytest.fixture(scope="session")
def bert_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bert")
    random_classifier("bert").save_pretrained(directory)
    return directory


@pytest.fixture(params=["pooled", "attention"])
def exit_model(request: pytest.FixtureRequest, bert_directory: Path) -> EarlyExitModel:
    return random_exits(EarlyExitModel.from_pretrained(bert_directory), request.param)


@pytest.fixture(scope="session")
def review_tokenizer() -> PreTrainedTokenizerFast:
    return wordpiece_tokenizer([review.text for review in reviews(500, seed=0)])


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory, review_tokenizer: PreTrainedTokenizerFast) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), review_tokenizer)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Start with an empty S3 server, which this process and those that it starts use."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.reset()
    return s3_server


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the location of a folder on either file system."""
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/some/place"
