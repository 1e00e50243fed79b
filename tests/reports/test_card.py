"""The model card: sections that jobs write beside what its owner wrote, under metadata that the Hub reads."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from models.early_exit import EarlyExitModel
from pipeline.reports.card import CARD, facts_table, hub_name, write_section


def test_sections_are_replaced_and_all_else_stays(exit_model: EarlyExitModel, tmp_path: Path) -> None:
    write_section(tmp_path, exit_model, "Training", "first", base="google-bert/bert-base-uncased")
    path = tmp_path / CARD
    path.write_text(path.read_text() + "\nWritten by hand: a \\1 group.\n")
    write_section(tmp_path, exit_model, "Calibration", facts_table({"rows": 5, "a|b": "c|d"}))
    write_section(tmp_path, exit_model, "Training", "second")
    text = path.read_text()
    assert "first" not in text
    assert text.index("second") < text.index("Written by hand: a \\1 group.") < text.index(r"| a\|b | c\|d |")
    assert text.count("## Training") == text.count("## Calibration") == 1
    card = ModelCard.load(path)
    assert card.data.base_model == "google-bert/bert-base-uncased"
    assert card.data.pipeline_tag == "text-classification"
    assert "4 layers" in card.text
    assert f"A {exit_model.branch_head} head after layers 1, 2, 3" in card.text
    assert "3 classes: LABEL_0, LABEL_1, LABEL_2" in card.text


def test_a_card_of_somebody_else_is_gone_on_with(exit_model: EarlyExitModel, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("# Mine")
    write_section(tmp_path, exit_model, "Calibration", "text")
    begin, end = "<!-- offramp: calibration -->", "<!-- offramp: end of calibration -->"
    assert (tmp_path / CARD).read_text() == f"# Mine\n\n{begin}\n## Calibration\n\ntext\n{end}\n"


def test_what_is_no_utf8_and_other_line_ends_stay(exit_model: EarlyExitModel, tmp_path: Path) -> None:
    mine = b"# M\xe9lange\r\n\r\nline\r\n"
    (tmp_path / CARD).write_bytes(mine)
    for text in ("first", "second"):
        write_section(tmp_path, exit_model, "Calibration", text)
    written = (tmp_path / CARD).read_bytes()
    assert written.startswith(mine.rstrip())
    assert written.count(b"## Calibration") == 1
    assert b"second" in written


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("s3://bucket/model", None),
        ("/models/mine", None),
        ("a/b/c", None),
    ],
)
def test_only_names_of_the_hub_are_metadata(address: str, name: str | None) -> None:
    assert hub_name(address) == name


def test_a_directory_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert hub_name("model") is None
