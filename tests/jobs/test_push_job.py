"""A model is published as it is, and nothing but the model: by the Hub's own library, on a server of its protocol."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.hub_server import READ_TOKEN, TOKEN, Hub, hub_server
from tests.support.jobs import run_job, run_job_here

PUBLISHED = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "calibration.json",
}


pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to its HTTP client


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)  # HF_ENDPOINT, as it was read at import
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, in Rust
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def model(model_directory: Path, tmp_path: Path) -> Path:
    """Copy a model, and put beside it what belongs to it and what does not."""
    model = tmp_path / "model"
    shutil.copytree(model_directory, model)
    (model / "README.md").write_text("---\nlibrary_name: offramp\n---\n# A model\n")
    (model / "calibration.json").write_text("{}")
    for stray in ("training.jsonl", "notes.txt", ".env", "customers.parquet", "sub/config.json"):
        (model / stray).parent.mkdir(exist_ok=True)
        (model / stray).write_text("nobody's business")
    return model


def push(model: Path, repo: str = "me/model", *more: str) -> tuple[int, str]:
    done = run_job_here("push.py", "--model", str(model), "--repo", repo, *more)
    assert done.stderr.count("\n") <= 1, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.e2e
def test_a_model_is_published_privately_and_opens_from_what_was_published(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    options = ["--model", str(model), "--repo", "me/model"]
    done = run_job("push.py", *options, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"{hub.url}/me/model/commit/" in done.stdout
    repository = hub.repositories["me/model"]
    assert repository.private
    assert set(repository.files) == PUBLISHED
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in repository.files.items():
        assert content == (model / name).read_bytes(), name
        (copy / name).write_bytes(content)
    AutoModelForSequenceClassification.from_pretrained(copy)
    AutoTokenizer.from_pretrained(copy)


def test_a_model_is_published_again_and_publicly_on_request_alone(hub: Hub, model: Path) -> None:
    assert push(model, "me/open", "--public")[0] == 0
    assert not hub.repositories["me/open"].private
    assert push(model, "me/hidden")[0] == 0
    (model / "README.md").write_text("# Another card\n")
    assert push(model, "me/hidden", "--public")[0] == 0  # what is private stays so
    assert hub.repositories["me/hidden"].private
    assert hub.repositories["me/hidden"].files["README.md"] == b"# Another card\n"
    code, text = push(model, "me/open")
    assert (code, text) == (2, "push.py: error: --repo me/open: is public; with --public the model will be, too\n")


def test_what_cannot_be_published_is_told_in_one_line(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(code: int, words: str, repo: str = "me/model") -> None:
        found, text = push(model, repo)
        assert (found, words in text) == (code, True), text
        assert TOKEN not in text

    told(2, "--repo model: is no name of a repository (OWNER/NAME)", "model")
    told(2, "--repo me/a..b: is no name of a repository (OWNER/NAME)", "me/a..b")
    told(2, "--repo you/model: there is no such owner (404)", "you/model")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    told(2, "--repo me/model: the Hub refuses the token (401)")
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    told(2, "--repo me/model: the token may not write there (403)")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.broken = True
    told(1, f"error: {hub.url}: Server error '500")
    hub.broken, hub.full = False, True
    told(1, f"error: {hub.url}: the upload failed: HfHubHTTPError: ")
    assert hub.repositories["me/model"].files == {}  # a commit is whole or not at all
    hub.full = False
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
        told(1, f"error: {nowhere}: the upload failed: ConnectError: ")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    told(2, "the Hub may not be asked (HF_HUB_OFFLINE)")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(model / "no-token"))
    monkeypatch.delenv("HF_TOKEN")
    told(2, "there is no token for the Hub; set HF_TOKEN, or log in with `hf auth login`")
    (model / "_checkpoint").mkdir()
    told(2, "its training has not ended")
    (model / "_checkpoint").rmdir()
    (model / "model.safetensors").unlink()
    told(2, "no weights there")
    shutil.rmtree(model)
    told(2, "no model there")
    assert [*hub.repositories] == ["me/model"]
