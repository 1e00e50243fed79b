"""Training on the made-up corpus: every recipe learns, repeats with its seed, and goes on as if it had never been stopped."""

import copy
import json
import math
from collections.abc import Collection, Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, PreTrainedTokenizerFast

from models.early_exit import EarlyExitModel
from models.layers import Dropout
from pipeline.benchmark.synthetic import CLASSES, reviews
from pipeline.corpus.chunks import Chunk, MemorySource
from pipeline.corpus.columns import Columns
from pipeline.corpus.labelled import Texts, hold_out, label_numbers, read_texts, tokenize_texts
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.errors import UserError
from pipeline.schema import VALUE
from pipeline.training.checkpoint import claim, release
from pipeline.training.config import TrainingConfig
from pipeline.training.finetune import FinetuneSpec, finetune
from pipeline.training.loop import scores_by_exit, train
from pipeline.training.optimizer import linear_warmup_decay
from pipeline.training.process_group import ProcessGroup
from pipeline.training.progress import TrainState, selection_score
from pipeline.training.recipes import FrozenHeads, Objective, Recipe, WholeModel, add_teacher_logits

CONFIG = TrainingConfig(epochs=3, batch_rows=32, learning_rate=2e-3, seed=1)
LABELS, SOFT = Objective(soft=False), Objective(soft=True)


def quiet(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def examples(review_tokenizer: PreTrainedTokenizerFast) -> Chunk:
    made = [review for review in reviews(2500, seed=21) if review.level == "easy"]
    texts = Texts(texts=[r.text for r in made], pairs=None, labels=[CLASSES[r.label] for r in made], rejected=0)
    return tokenize_texts(texts, Tokenizer(TokenizerSpec.from_hugging_face(review_tokenizer, 64)), CLASSES)


def new_model(classes: int = 2) -> EarlyExitModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label=dict(enumerate(CLASSES if classes == 2 else [VALUE])),
    )
    model = EarlyExitModel(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.05)
    return model


def with_exits(model: EarlyExitModel, kind: str = "pooled") -> EarlyExitModel:
    grown = copy.deepcopy(model)
    torch.manual_seed(0)
    grown.add_exits(kind)
    return grown


def fit(
    recipe: Recipe, rows: Chunk, dev: Chunk, config: TrainingConfig = CONFIG, folder: Path | None = None
) -> TrainState:
    return train(recipe, MemorySource(whole=rows, seed=1, chunk_rows=200), dev, config, folder=folder, log=quiet)


@pytest.fixture(scope="module")
def split(examples: Chunk) -> tuple[Chunk, Chunk]:
    return hold_out(examples, 300, seed=0)


@pytest.fixture(scope="module")
def teacher(split: tuple[Chunk, Chunk]) -> tuple[EarlyExitModel, TrainState]:
    model = new_model()
    return model, fit(WholeModel(model, LABELS), *split)


def test_fine_tuning_learns_and_repeats_with_its_seed(
    teacher: tuple[EarlyExitModel, TrainState], split: tuple[Chunk, Chunk]
) -> None:
    model, state = teacher
    assert scores_by_exit(model, split[1])[3] > 0.9
    assert state.rows == 3 * len(split[0])
    again = new_model()
    assert fit(WholeModel(again, LABELS), *split).losses == state.losses


@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("objective", [LABELS, SOFT, Objective(soft=True, temperature=2.0, label_weight=0.5)])
def test_heads_on_a_frozen_backbone_learn_and_leave_the_rest_alone(
    kind: str, objective: Objective, teacher: tuple[EarlyExitModel, TrainState], split: tuple[Chunk, Chunk]
) -> None:
    model = with_exits(teacher[0], kind)
    dev = add_teacher_logits(Engine(LoadedModel(copy.deepcopy(teacher[0]), EngineConfig())), split[1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    untrained = scores_by_exit(model, dev)
    state = fit(FrozenHeads(model, objective), split[0], dev)
    trained = scores_by_exit(model, dev)
    assert state.losses[-1] < state.losses[0]
    assert trained[2] > 0.9
    assert trained[1] + trained[2] > untrained[1] + untrained[2]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("exits.")} == {"1", "2"}
    assert "lte.weight" in changed
    assert all(name.startswith(("exits.1.", "exits.2.", "lte.")) for name in changed)


class OneRowOfThree:
    """What a worker gets of a chunk whose other rows are other workers'."""

    def __init__(self, whole: Chunk) -> None:
        self.chunk = replace(whole.take(np.arange(1)), keys=("0",), fraction=1.0, global_rows=3, most_rows=3)

    def chunks(self, epoch: int, done: Collection[str]) -> Generator[Chunk, None, None]:
        yield self.chunk


@pytest.mark.parametrize("frozen", [True, False])
def test_a_worker_with_fewer_rows_takes_as_many_steps_as_the_others(
    frozen: bool, teacher: tuple[EarlyExitModel, TrainState], split: tuple[Chunk, Chunk]
) -> None:
    model = with_exits(teacher[0])
    recipe = FrozenHeads(model, LABELS) if frozen else WholeModel(model, LABELS)
    config = replace(CONFIG, epochs=1, batch_rows=1)
    state = train(recipe, OneRowOfThree(split[0]), split[1], config, log=quiet)
    assert (state.step, state.rows) == (3, 3)


def test_soft_labels_from_a_file_train_the_same_heads_as_the_teacher_itself(
    teacher: tuple[EarlyExitModel, TrainState], split: tuple[Chunk, Chunk]
) -> None:
    rows = add_teacher_logits(Engine(LoadedModel(copy.deepcopy(teacher[0]), EngineConfig())), split[0])
    asked, read = with_exits(teacher[0]), with_exits(teacher[0])
    losses = fit(FrozenHeads(asked, SOFT), split[0], split[1]).losses
    np.testing.assert_allclose(
        fit(FrozenHeads(read, SOFT, teacher_known=True), rows, split[1]).losses, losses, rtol=0.02
    )


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_backbone_and_exits_learn_together_from_soft_labels(
    strategy: str, teacher: tuple[EarlyExitModel, TrainState], split: tuple[Chunk, Chunk]
) -> None:
    model = with_exits(teacher[0])
    dev = add_teacher_logits(Engine(LoadedModel(copy.deepcopy(teacher[0]), EngineConfig())), split[1])
    nobody_knows = replace(split[0], labels=np.full(len(split[0]), math.nan, np.float32))
    frozen = {name: value.clone() for name, value in teacher[0].state_dict().items()}
    fit(WholeModel(model, SOFT, strategy=strategy, weights=[1, 2, 3], teacher=teacher[0]), nobody_knows, dev)
    assert min(scores_by_exit(model, dev).values()) > 0.9
    assert not torch.equal(model.state_dict()["backbone.layers.0.ffn.expand.weight"],
                           frozen["backbone.layers.0.ffn.expand.weight"])  # fmt: skip
    assert all(torch.equal(value, frozen[name]) for name, value in teacher[0].state_dict().items())


def test_alternating_leaves_branches_out_of_odd_steps(split: tuple[Chunk, Chunk]) -> None:
    model = with_exits(new_model())
    recipe = WholeModel(model, LABELS, strategy="alternating")
    for step, wanted in ((1, False), (2, True)):
        model.zero_grad(set_to_none=True)
        recipe.loss(split[0].take(np.arange(8)), step).backward()
        assert (model.head(1).out.weight.grad is not None) == wanted
        assert model.head(3).out.weight.grad is not None


def test_regression_learns_values_and_how_far_off_it_is(split: tuple[Chunk, Chunk]) -> None:
    train_rows, dev = (replace(part, labels=part.labels * 3 + 1) for part in split)
    model = with_exits(new_model(classes=1))
    fit(WholeModel(model, LABELS), train_rows, dev)
    assert scores_by_exit(model, dev)[3] > 0.8
    lte_before = model.lte.weight.clone() if model.lte is not None else None
    fit(FrozenHeads(model, LABELS), train_rows, dev, replace(CONFIG, epochs=1))
    assert model.lte is not None
    assert lte_before is not None
    assert not torch.equal(model.lte.weight, lte_before)


class StoppedError(Exception):
    pass


class Interrupted:
    """A source that stops after some chunks, as a killed process does."""

    def __init__(self, source: MemorySource, after: int) -> None:
        self.source, self.left = source, after

    def chunks(self, epoch: int, done: Collection[str]) -> Generator[Chunk, None, None]:
        for chunk in self.source.chunks(epoch, done):
            if self.left == 0:
                raise StoppedError
            self.left -= 1
            yield chunk


@pytest.mark.parametrize("after", [1, 4, 8])
def test_a_stopped_run_ends_as_an_undisturbed_one(after: int, split: tuple[Chunk, Chunk], tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2, checkpoint_seconds=0.0)
    rows = split[0].take(np.arange(900))
    source = MemorySource(whole=rows, seed=1, chunk_rows=200)
    log_file = tmp_path / "log.jsonl"
    whole, parts = with_exits(new_model()), with_exits(new_model())
    expected = train(WholeModel(whole, LABELS), source, split[1], config, log=quiet)
    with pytest.raises(StoppedError):
        train(
            WholeModel(parts, LABELS),
            Interrupted(source, after),
            split[1],
            config,
            folder=tmp_path,
            log_file=log_file,
            log=quiet,
        )
    again = with_exits(new_model())
    lines: list[str] = []
    got = train(
        WholeModel(again, LABELS), source, split[1], config, folder=tmp_path, log_file=log_file, log=lines.append
    )
    assert lines[0].startswith("going on at epoch")
    assert (got.rows, got.step, got.losses) == (expected.rows, expected.step, expected.losses)
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    steps = [json.loads(line)["step"] for line in log_file.read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_the_best_epoch_is_kept_not_the_last(split: tuple[Chunk, Chunk], monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.5, 0.1])
    seen: list[dict[str, torch.Tensor]] = []
    model = new_model()

    def score(_model: EarlyExitModel, _dev: Chunk) -> dict[int, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {3: next(scores)}

    monkeypatch.setattr("pipeline.training.loop.scores_by_exit", score)
    few = split[0].take(np.arange(96))
    state = fit(WholeModel(model, LABELS), few, few)
    assert state.best_epoch == 1
    assert all(torch.equal(value, seen[0][name]) for name, value in model.state_dict().items())
    assert not torch.equal(seen[0]["exits.3.out.weight"], seen[2]["exits.3.out.weight"])


def test_early_stopping_gives_up_after_epochs_without_gain(split: tuple[Chunk, Chunk]) -> None:
    stuck = replace(CONFIG, epochs=9, learning_rate=1e-12, early_stopping=2)
    assert len(fit(WholeModel(new_model(), LABELS), split[0].take(np.arange(64)), split[1], stuck).scores) <= 4


def test_workers_share_every_chunk_and_take_the_same_number_of_steps(split: tuple[Chunk, Chunk]) -> None:
    rows = split[0].take(np.arange(437))
    whole = list(MemorySource(whole=rows, seed=3, chunk_rows=200).chunks(1, ()))
    parts = [
        list(MemorySource(whole=rows, seed=3, chunk_rows=200, rank=rank, world_size=3).chunks(1, ()))
        for rank in range(3)
    ]
    for number, chunk in enumerate(whole):
        mine = [part[number] for part in parts]
        assert {part.keys for part in mine} == {chunk.keys}
        assert {part.global_rows for part in mine} == {len(chunk)}
        assert {part.most_rows for part in mine} == {max(map(len, mine))}
        seen = sorted(tuple(part.rows.take(np.array([row])).token_ids) for part in mine for row in range(len(part)))
        assert seen == sorted(tuple(chunk.rows.take(np.array([row])).token_ids) for row in range(len(chunk)))
    assert sum(chunk.fraction for chunk in whole) == pytest.approx(1.0)


def test_two_stages_end_in_a_model_with_exits(model_directory: Path, examples: Chunk, tmp_path: Path) -> None:
    spec = FinetuneSpec(
        backbone=str(model_directory),
        classes=CLASSES,
        head="attention",
        strategy="two-stage",
        exit_weights="equal",
        train=examples.take(np.arange(200)),
        dev=examples.take(np.arange(200, 260)),
        output=tmp_path,
        training=replace(CONFIG, epochs=1),
        second_stage=replace(CONFIG, epochs=1),
    )
    lines: list[str] = []
    finetune(spec, ProcessGroup(), "cpu", lines.append)
    model = EarlyExitModel.from_pretrained(tmp_path)
    assert (model.last_head, model.branch_head, model.exit_layers) == ("attention", "attention", (1, 2, 3, 4))
    assert lines[-1].startswith("dev accuracy by exit: 1: ")


def test_an_output_that_another_training_began_is_refused(tmp_path: Path) -> None:
    assert not claim(tmp_path, {"epochs": "1", "seed": "0"})
    assert claim(tmp_path, {"epochs": "1", "seed": "0"})
    with pytest.raises(UserError, match="not finished, with another seed"):
        claim(tmp_path, {"epochs": "1", "seed": "1"})
    release(tmp_path)
    assert not claim(tmp_path, {"epochs": "1", "seed": "1"})


def test_the_learning_rate_rises_and_falls_with_the_fraction_done() -> None:
    rates = [linear_warmup_decay(fraction) for fraction in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0])


def test_selection_score_reads_layers_as_numbers() -> None:
    scores = {"2": 0.5, "10": 0.9, "1": 0.1}
    assert selection_score(scores, branches_only=False) == 0.9
    assert selection_score(scores, branches_only=True) == pytest.approx(0.3)


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = Dropout(0.1), torch.ones(1000, 1000)
    dropped = layer.train()(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(26 / 256, abs=0.002)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.002)
    assert torch.equal(layer.eval()(x), x)


def test_labels_are_names_or_indices_and_anything_else_is_named(
    tmp_path: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = Tokenizer(TokenizerSpec.from_hugging_face(review_tokenizer, 64))
    for labels in (["positive", "negative"], ["1", "0"]):
        texts = Texts(texts=["a", "b"], pairs=None, labels=labels, rejected=0)
        assert tokenize_texts(texts, tokenizer, CLASSES).labels.tolist() == [1, 0]
    with pytest.raises(UserError, match="label 'neutral' is none of the model's classes: negative, positive"):
        tokenize_texts(Texts(texts=["a"], pairs=None, labels=["neutral"], rejected=0), tokenizer, CLASSES)
    (tmp_path / "a.csv").write_text("text,label\ngood,10\nbad,9\n,1\n")
    texts = read_texts(str(tmp_path / "a.csv"), Columns(label="label"))
    assert (texts.texts, texts.class_names(), texts.rejected) == (["good", "bad"], ["9", "10"], 1)
    assert label_numbers(["2.5", None], [VALUE]).tolist()[0] == 2.5
    with pytest.raises(UserError, match="label 'high' is no number"):
        label_numbers(["high"], [VALUE])
