"""Where the server's token is found, and what is refused in place of serving without one."""

from pathlib import Path

import pytest

from pipeline.errors import InputError, UserError
from pipeline.serving.token import TOKEN_VARIABLE, hash_token, load_token_hash
from tests.support.jobs import run_job_here


def test_a_token_comes_from_the_file_else_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert load_token_hash(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, " secret\n")
    assert load_token_hash(None) == hash_token(b"secret")
    (tmp_path / "token").write_text("other\n")
    assert load_token_hash(str(tmp_path / "token")) == hash_token(b"other")


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_token_is_no_token_but_a_mistake(blank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, blank)
    with pytest.raises(UserError, match=r"OFFRAMP_TOKEN is set and blank"):
        load_token_hash(None)
    (tmp_path / "token").write_text(blank)
    with pytest.raises(InputError, match=r"token: is empty"):
        load_token_hash(str(tmp_path / "token"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_token_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(InputError, match=str(tmp_path / "token")):
        load_token_hash(str(tmp_path / "token"))


def test_a_server_that_others_reach_wants_a_token_or_a_word(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    refused = run_job_here("serve.py", "--model", str(model_directory), "--speed", "0.3", "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "set $OFFRAMP_TOKEN, or give --open" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
