"""A model that is damaged, incomplete, or of a kind that offramp does not run is refused in one line that names it.

Each is opened as every job opens one: by its headers alone, as the jobs that send it to workers do, and whole.
"""

import argparse
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from jobs.work import bulk
from jobs.work.loading import find_model
from models.checkpoint import check_finite, check_weights
from models.directory.config import check_name
from models.early_exit import EarlyExitModel
from models.errors import UserError
from pipeline.api.pretrained import load_tokenizer_spec
from tests.support.broken_models import BROKEN, HARMLESS_TO_A_BACKBONE
from tests.support.models import CONFIGS, random_classifier

LONGEST = 420
"""Characters of a refusal, the test's own long folder among them."""


@pytest.fixture
def broken(request: pytest.FixtureRequest, model_directory: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(model_directory, folder)
    BROKEN[request.param][0](folder)
    return folder


def by_headers(folder: Path) -> None:
    """Open a model as jobs do that send it to workers."""
    options = argparse.Namespace(model=str(folder), max_tokens=None, fast_tokenizer=False)
    model = bulk.open_model(options)
    check_weights(model.directory, model.meta)
    check_finite(model.directory, model.meta)


def whole(folder: Path) -> None:
    """Load a model as jobs do that use it themselves."""
    find_model(str(folder))
    load_tokenizer_spec(str(folder), EarlyExitModel.from_pretrained(folder))


def as_backbone(folder: Path) -> None:
    """Load a model as fine-tuning does."""
    find_model(str(folder))
    load_tokenizer_spec(str(folder), EarlyExitModel.from_pretrained(folder, new_labels=["x", "y"]))


@pytest.mark.parametrize("opened", [by_headers, whole, as_backbone])
@pytest.mark.parametrize(("broken", "what"), [(name, name) for name in BROKEN], ids=[*BROKEN], indirect=["broken"])
def test_a_broken_model_is_one_line(opened: Callable[[Path], None], what: str, broken: Path) -> None:
    if opened is as_backbone and what in HARMLESS_TO_A_BACKBONE:
        opened(broken)
        return
    with pytest.raises((UserError, FileNotFoundError), match=BROKEN[what][1]) as refused:
        opened(broken)
    line = str(refused.value)
    assert str(broken) in line
    assert "\n" not in line
    assert len(line) < LONGEST


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="the package is there")
@pytest.mark.parametrize(
    ("family", "file"),
    [("xlm-roberta", "sentencepiece.bpe.model"), ("camembert", "sentencepiece.bpe.model"), ("deberta-v2", "spm.model")],
)
def test_the_package_that_a_tokenizer_needs_is_named(family: str, file: str, tmp_path: Path) -> None:
    """Transformers tries another one in vain, and asks for that."""
    random_classifier(family).save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(b"\x0a\x0eunigrams")
    with pytest.raises(UserError, match=f"{file} needs the package sentencepiece, which is not installed"):
        load_tokenizer_spec(str(tmp_path), EarlyExitModel.from_config(tmp_path))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_family_without_files_of_a_tokenizer_gets_none(family: str, tmp_path: Path) -> None:
    """Transformers makes up one of five to eight special tokens, to which every word is unknown."""
    random_classifier(family).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no usable tokenizer: there are no files of one"):
        load_tokenizer_spec(str(tmp_path), EarlyExitModel.from_config(tmp_path))


NAMES = {
    "models/reviews": "no such directory in models;",
    "./reviews": "no such directory",
    "../reviews": "no such directory",
    "/models/reviews": "no such directory",
    "~/reviews": "no such directory",
    "models/reviews/final": "no such directory",
    "reviews/": "no such directory",
    "my reviews": "no such directory",
    "-reviews": "no such directory",
    "models\\reviews": "no such directory",
    "a.txt": "it is no directory",
    "models": r"no config\.json in that directory",
    "dangling": "it is no directory",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_leads_nowhere_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "a.txt").touch()
    (tmp_path / "dangling").symlink_to("gone")
    for find in (check_name, find_model, EarlyExitModel.from_config):
        with pytest.raises(FileNotFoundError, match=rf"no model there \({NAMES[name]}"):
            find(name)


@pytest.mark.parametrize("name", ["bert-base-uncased", "org/reviews", "a.b-c_d/e.f"])
def test_a_hub_id_is_taken_for_one_and_said_to_be(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_model(name) == name
    assert capsys.readouterr().out.startswith(
        f"{name} is no directory here: taking the model of that name from the Hugging"
    )
    with pytest.raises(FileNotFoundError, match=f"{name}: neither a directory here nor a model that the hub gives"):
        EarlyExitModel.from_config(name)
