"""Training on the made-up corpus: it learns, it repeats with its seed, and distillation needs no labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, PreTrainedTokenizerFast

from models.early_exit import EarlyExitModel
from pipeline.errors import UserError
from pipeline.evaluation import at_speed, record_all_exits
from pipeline.labelled import Examples, TextColumns, Texts, read_texts, tokenise_texts
from pipeline.synthetic import CLASSES, reviews
from pipeline.tokenise import Tokeniser, TokeniserSpec
from pipeline.training import TrainingConfig, agreement_by_exit, distill, finetune

CONFIG = TrainingConfig(epochs=3, batch_rows=32, learning_rate=2e-3, seed=1)


@pytest.fixture(scope="module")
def examples(review_tokenizer: PreTrainedTokenizerFast) -> Examples:
    made = [review for review in reviews(2500, seed=21) if review.level == "easy"]
    texts = Texts(texts=[r.text for r in made], pairs=None, labels=[CLASSES[r.label] for r in made], rejected=0)
    return tokenise_texts(texts, Tokeniser(TokeniserSpec.from_hugging_face(review_tokenizer, 64)), CLASSES)


def new_model() -> EarlyExitModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label=dict(enumerate(CLASSES)),
    )
    model = EarlyExitModel(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.05)
    return model


@pytest.fixture(scope="module")
def teacher(examples: Examples) -> tuple[EarlyExitModel, list[float]]:
    train, dev = examples.hold_out(300, seed=0)
    model = new_model()
    report = finetune(model, train, dev, CONFIG, say=lambda _line: None)
    return model, report.losses


def test_fine_tuning_learns_and_repeats_with_its_seed(
    teacher: tuple[EarlyExitModel, list[float]], examples: Examples
) -> None:
    model, losses = teacher
    train, dev = examples.hold_out(300, seed=0)
    full_depth = at_speed(model, dev, record_all_exits(model, dev), 0.0)
    assert full_depth.accuracy > 0.9
    assert full_depth.flops_speedup == 1.0
    again = new_model()
    assert finetune(again, train, dev, CONFIG, say=lambda _line: None).losses == losses


@pytest.mark.parametrize("kind", ["pooled", "attention"])
def test_distilled_exits_agree_with_full_depth_and_leave_the_rest_alone(
    kind: str, teacher: tuple[EarlyExitModel, list[float]], examples: Examples
) -> None:
    model = new_model()
    model.load_state_dict(teacher[0].state_dict())
    train, dev = examples.hold_out(300, seed=0)
    torch.manual_seed(0)
    model.add_exits(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    untrained = agreement_by_exit(model, dev.rows)
    report = distill(model, train.rows, dev.rows, CONFIG, say=lambda _line: None)
    trained = agreement_by_exit(model, dev.rows)
    assert report.losses[-1] < report.losses[0]
    assert trained[2] > 0.9
    assert trained[1] + trained[2] > untrained[1] + untrained[2]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("exits.1.", "exits.2.")) for name in changed)
    point = at_speed(model, dev, record_all_exits(model, dev), 0.9)
    assert point.mean_exit_layer < 2
    assert sum(point.exits.values()) == len(dev)


def test_the_best_epoch_is_kept_not_the_last(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.5, 0.1])
    monkeypatch.setattr("pipeline.training.accuracy_by_exit", lambda _model, _examples: {3: next(scores)})
    seen: list[dict[str, torch.Tensor]] = []
    model = new_model()

    def say(_line: str) -> None:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})

    few = examples.take(np.arange(96))
    finetune(model, few, few, CONFIG, say=say)
    assert all(torch.equal(value, seen[0][name]) for name, value in model.state_dict().items())
    assert not torch.equal(seen[0]["exits.3.out.weight"], seen[2]["exits.3.out.weight"])


def test_labels_are_names_or_indices_and_anything_else_is_named(
    tmp_path: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokeniser = Tokeniser(TokeniserSpec.from_hugging_face(review_tokenizer, 64))
    for labels in (["positive", "negative"], ["1", "0"]):
        texts = Texts(texts=["a", "b"], pairs=None, labels=labels, rejected=0)
        label_ids = tokenise_texts(texts, tokeniser, CLASSES).label_ids
        assert label_ids is not None
        assert label_ids.tolist() == [1, 0]
    with pytest.raises(UserError, match="label 'neutral' is none of the model's classes: negative, positive"):
        tokenise_texts(Texts(texts=["a"], pairs=None, labels=["neutral"], rejected=0), tokeniser, CLASSES)
    (tmp_path / "a.csv").write_text("text,label\ngood,10\nbad,9\n,1\n")
    texts = read_texts(str(tmp_path / "a.csv"), TextColumns())
    assert (texts.texts, texts.class_names(), texts.rejected) == (["good", "bad"], ["9", "10"], 1)
