"""Tiny random models of every family, a tokenizer trained here, and ways to run jobs as users do."""

import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    ErnieConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from models.early_exit import EarlyExitModel
from pipeline.rows import TokenRows
from pipeline.synthetic import CLASSES, reviews
from tests.s3_server import BUCKET, S3Server

Model = TypeVar("Model", bound=torch.nn.Module)
REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# Two tests run at a time on two cores, and threads that wait for each other would wait for the other test as well.
torch.set_num_threads(1)
settings.register_profile("offramp", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("offramp")

SIZES = {"vocab_size": 200, "max_position_embeddings": 70, "num_labels": 3}
BERT_SIZES = SIZES | {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**BERT_SIZES),
    "roberta": RobertaConfig(**BERT_SIZES),
    "xlm-roberta": XLMRobertaConfig(**BERT_SIZES),
    "camembert": CamembertConfig(**BERT_SIZES),
    "electra": ElectraConfig(**BERT_SIZES, embedding_size=16),
    "ernie": ErnieConfig(**BERT_SIZES, use_task_id=True),
    "distilbert": DistilBertConfig(**SIZES, dim=32, n_layers=4, n_heads=4, hidden_dim=48),
}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster, config or hub of the machine's reaches a test."""
    for name in ("OFFRAMP_CONFIG", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return


def random_classifier(family: str, seed: int = 0) -> PreTrainedModel:
    """A classifier made by transformers alone, with weights large enough that logits differ between rows."""
    torch.manual_seed(seed)
    return spread_weights(AutoModelForSequenceClassification.from_config(CONFIGS[family])).eval()


def spread_weights(model: Model) -> Model:
    """Draw weights wide enough that rows get different answers; LayerNorms stay near the identity."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name.lower() and "weight" in name), std=0.3)
    return model


def random_exits(model: EarlyExitModel, kind: str, seed: int = 0) -> EarlyExitModel:
    """Put random heads on the lower layers, spread enough that every exit takes some rows."""
    torch.manual_seed(seed)
    model.add_exits(kind)
    for layer in model.exit_layers[:-1]:
        spread_weights(model.exits[str(layer)])
    if model.lte is not None:
        spread_weights(model.lte)
    return model.eval()


@pytest.fixture(scope="session")
def bert_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bert")
    random_classifier("bert").save_pretrained(directory)
    return directory


@pytest.fixture(params=["pooled", "attention"])
def exit_model(request: pytest.FixtureRequest, bert_directory: Path) -> EarlyExitModel:
    return random_exits(EarlyExitModel.from_pretrained(bert_directory), request.param)


def random_rows(count: int, longest: int, seed: int, *, pairs: bool = False) -> TokenRows:
    """Rows of random ids (0 and 1, which are pad ids of some family, among them) and random lengths."""
    random = np.random.default_rng(seed)
    rows = [random.integers(0, 200, random.integers(1, longest + 1)).tolist() for _ in range(count)]
    return TokenRows.from_lists(rows, [int(random.integers(1, len(row) + 1)) for row in rows] if pairs else None)


def wordpiece_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A BERT-like tokenizer of the characters and words of these texts; trainers of `tokenizers` break ties at random."""
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in counts for character in word})
    pieces = [*characters, *(f"##{character}" for character in characters)]
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *words][:200]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def review_tokenizer() -> PreTrainedTokenizerFast:
    return wordpiece_tokenizer([review.text for review in reviews(500, seed=0)])


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory, review_tokenizer: PreTrainedTokenizerFast) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), review_tokenizer)


def save_tiny_model(directory: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Save an early-exit model with random weights and two classes, complete with its tokenizer."""
    config = BertConfig(**(BERT_SIZES | {"num_labels": 2}), id2label=dict(enumerate(CLASSES)))
    torch.manual_seed(0)
    plain = directory / "plain"
    spread_weights(AutoModelForSequenceClassification.from_config(config)).save_pretrained(plain)
    random_exits(EarlyExitModel.from_pretrained(plain), "pooled").save_pretrained(directory)
    shutil.rmtree(plain)
    tokenizer.save_pretrained(directory)
    return directory


def run_job(name: str, *options: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job in a process of its own, as a user does, on a Ray of its own."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / name), *options],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"RAY_ADDRESS": "local"} | environment,
        check=False,
    )


def run_job_here(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a job in this process, which spares the imports: for commands that end before they need Ray."""
    command = [str(REPOSITORY / "jobs" / name), *options]
    stdout, stderr = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", command)
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, before)
    assert isinstance(code, int)
    return subprocess.CompletedProcess(command, code, stdout.getvalue(), stderr.getvalue())


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a file system of this size on an empty folder; skip the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def shards_kept(out: Path) -> int:
    """Shards whose receipts the driver has written down: parts appear earlier, and count for nothing before."""
    return sum(pq.read_metadata(path).num_rows for path in out.glob("_receipts/g*/*.parquet"))


def finished_files(out: Path) -> set[str]:
    """Files that such receipts tell of."""
    receipts = [pq.read_table(path, columns=["file"]) for path in out.glob("_receipts/g*/*.parquet")]
    return set(pa.concat_tables(receipts)["file"].to_pylist())


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server with nothing in it, which this process and those that it starts use."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.reset()
    return s3_server


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on either file system, as a location."""
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/some/place"
