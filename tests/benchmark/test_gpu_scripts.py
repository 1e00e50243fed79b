"""The scripts of docs/results/gpu make their models and corpora right, compare right, and outlive a step that fails."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.dataset as ds
import pytest
import torch
from transformers import AutoConfig

from docs.results.gpu import agreement, made, neighbours, run_all, training, whole_job
from docs.results.gpu.whole_job import Arrival
from jobs import benchmark
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.shapes import random_model
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.output.results import published
from pipeline.rows import Predictions, TokenRows
from pipeline.training.recipes import Objective, WholeModel
from tests.support.ledger import FINGERPRINT, make_corpus, make_folder
from tests.support.ledger import run_all as finish_all
from tests.support.models import random_rows


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> made.Case:
    options = {"model": None, "input": None, "text_column": "text", "shape": "4x64", "head": "pooled"}
    args = argparse.Namespace(**options, rows=900, mean_tokens=12)
    return made.open_case(args, tmp_path_factory.mktemp("case"), files=3)


def load(case: made.Case) -> Engine:
    return Engine(LoadedModel(EarlyExitModel.from_pretrained(case.model), EngineConfig(dtype="fp32")))


def predictions(logits: list[list[float]], exits: list[int]) -> Predictions:
    return Predictions(
        logits=np.array(logits, np.float32),
        exit_layers=np.array(exits, np.int16),
        uncertainty=np.zeros(len(exits), np.float32),
        layer_tokens=0,
        padding_tokens=0,
    )


def test_a_corpus_has_the_wanted_rows_and_repeats_its_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "DISTINCT_TEXTS", 40)
    made.write_corpus(tmp_path / "corpus", rows=100, files=3, mean_tokens=20)
    texts = ds.dataset(tmp_path / "corpus").to_table()["text"].to_pylist()
    assert len(list((tmp_path / "corpus").iterdir())) == 3
    assert len(texts) == 100
    assert texts[:40] == texts[40:80]
    assert len(set(texts)) == 40


def test_made_up_texts_have_a_token_for_each_word_and_the_wanted_length(case: made.Case) -> None:
    rows = case.rows(900)
    texts = ds.dataset(case.input).to_table()["text"].to_pylist()
    assert rows.lengths.tolist() == [len(text.split()) + 2 for text in texts]
    assert 1 not in rows.token_ids  # [UNK]
    assert rows.lengths.mean() == pytest.approx(12, rel=0.1)


def test_a_threshold_lets_rows_of_a_made_up_model_exit_where_they_are_wanted(case: made.Case) -> None:
    rows, engine = case.rows(900), load(case)
    speed = made.speed_of(argparse.Namespace(speed=None, mean_exit=2.5), engine, rows)
    found = engine.with_criterion(Criterion(speed=speed)).run(rows)
    assert found.exit_layers.mean() == pytest.approx(2.5, abs=0.2)
    assert {*found.exit_layers} == {1, 2, 3, 4}
    assert {*found.label_ids} == {0, 1}
    assert made.speed_of(argparse.Namespace(speed=0.25), engine, rows) == 0.25


def test_rows_are_the_same_in_every_way_of_calling_the_engine(case: made.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CALLS", (100,))
    rows, engine = case.rows(300), load(case)
    reference = engine.run(rows)
    ways = neighbours.ways(engine, rows)
    assert len(ways) == 6
    for name, run in ways.items():
        order, got = run()
        found = neighbours.compare(reference, order, got)
        assert found["rows"] == len({*order}) == {"every other row": 150}.get(name, 64 if "alone" in name else 300)
        assert found["exits_differ"] == found["labels_differ"] == 0
        assert found["largest_logit_difference"] < 1e-3


def test_neighbours_are_compared_row_by_row() -> None:
    reference = predictions([[1, 0], [0, 1], [5, 0]], [1, 2, 2])
    got = predictions([[5, 0.5], [2, 1], [3, 0]], [2, 2, 1])  # of rows 2, 1 and 0
    assert neighbours.compare(reference, np.array([2, 1, 0]), got) == {
        "rows": 3,
        "exits_differ": 0,
        "labels_differ": 1,
        "largest_logit_difference": 2.0,
    }


def test_agreement_leaves_out_the_logits_of_rows_with_another_exit() -> None:
    found = agreement.agreement(predictions([[1, 0], [0, 9]], [1, 1]), predictions([[1, 0.5], [9, 0]], [1, 2]))
    assert found == {
        "labels_differ": 1,
        "exits_differ": 1,
        "largest_logit_difference": 0.5,
        "mean_logit_difference": 0.25,
    }
    nothing_in_common = agreement.agreement(predictions([[1, 0]], [1]), predictions([[1, 0]], [2]))
    assert nothing_in_common["mean_logit_difference"] == 0.0


def test_a_copy_of_a_model_computes_gelu_in_the_form_that_it_names(case: made.Case, tmp_path: Path) -> None:
    rows = case.rows(50)
    logits = {}
    for form, name in agreement.FORMS.items():
        directory = agreement.with_activation(case.model, name, tmp_path)
        assert AutoConfig.from_pretrained(directory).hidden_act == (name or "gelu")
        logits[form] = load(replace(case, model=directory)).run(rows).logits
    np.testing.assert_allclose(logits["own"], logits["erf"], atol=1e-4)
    assert 1e-4 < np.abs(logits["tanh"] - logits["erf"]).max() < 0.1


def test_parts_are_listed_as_they_were_written(tmp_path: Path) -> None:
    folder = make_folder(str(tmp_path))
    finish_all(folder, make_corpus(str(tmp_path)), FINGERPRINT)
    parts = sorted(Path(folder).glob("part-*.parquet"))
    assert len(parts) == 4
    for second, part in enumerate(reversed(parts)):
        os.utime(part, (1000 + second, 1000 + second))
    found = whole_job.arrivals(folder)
    assert [arrival.at for arrival in found] == [1000, 1001, 1002, 1003]
    assert sorted(arrival.rows for arrival in found) == [10, 10, 20, 20]
    assert published(folder)


def test_the_steady_rate_leaves_out_the_first_part() -> None:
    assert whole_job.steady_rate([Arrival(10, 999), Arrival(12, 300), Arrival(14, 100)]) == 100
    assert whole_job.steady_rate([Arrival(10, 999)]) is None
    assert whole_job.steady_rate([Arrival(10, 999), Arrival(10, 999)]) is None


def test_both_loops_are_held_to_the_same_number_of_steps() -> None:
    training.check_steps(3, count=65, batch_rows=32)
    with pytest.raises(AssertionError, match="4 steps for 65 rows in batches of 32"):
        training.check_steps(4, count=65, batch_rows=32)


def test_a_batch_of_trainer_has_its_rows_padded_with_their_labels() -> None:
    rows = TokenRows.from_lists([[5, 6, 7], [8], [9, 9]])
    batch = training.collate(rows, [{"row": 2, "labels": 1}, {"row": 1, "labels": 0}])
    assert batch["input_ids"].tolist() == [[9, 9], [8, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_an_epoch_of_our_loop_takes_as_many_steps_as_there_are_batches() -> None:
    rows = random_rows(40, 12, seed=3)
    assert np.isnan(training.chunk_of(rows, labelled=False).labels).all()
    chunk = training.chunk_of(rows, labelled=True)
    assert {*chunk.labels} == {0.0, 1.0}
    model = EarlyExitModel(random_model("2x64", "pooled").config)
    before = model.head(2).out.weight.detach().clone()
    recipe = WholeModel(model, Objective(soft=False))
    training.our_loop(recipe, chunk, batch_rows=16)(None)  # type: ignore[arg-type]
    assert not torch.equal(before, model.head(2).out.weight)


BENCHMARK = {
    "rows_per_s": {"full-depth": 22_600.0, "early-exit": 71_600.0, "hf, batch 32": 5.0, "hf, batch 256": 1_234.5},
    "wall_over_flops": 1.06,
    "ceiling_fraction": 0.55,
    "ceiling_tflops": 702.4,
}
WAYS = {
    "a": {"rows": 10, "exits_differ": 2, "labels_differ": 1},
    "b": {"rows": 4, "exits_differ": 0, "labels_differ": 3},
}
DIFFERENT = {"threshold": {"labels_differ": 7, "exits_differ": 1_000}}


@pytest.mark.parametrize(
    ("step", "document", "headline"),
    [
        (
            "exit-2",
            BENCHMARK | {"device_use": {"early-exit": {"busy": 0.85, "kernels": 960}}},
            "early 71,600; full 22,600; hf, batch 256 1,234; wall/FLOPs 1.06; ceiling 0.55 of 702 TFLOP/s; busy 0.85; "
            "960 kernels",
        ),
        (
            "exit-2",
            BENCHMARK | {"rows_per_s": {"full-depth": 1.0, "early-exit": 2.0}},
            "early 2; full 1; wall/FLOPs 1.06; ceiling 0.55 of 702 TFLOP/s",
        ),
        (
            "whole-job",
            {
                "job_rows_per_s": 900.0,
                "engine_rows_per_s": 1000.0,
                "job_over_engine": 0.9,
                "seconds_to_first_part": 35.4,
            },
            "job 900; engine 1,000; ratio 0.90; first 35 s",
        ),
        (
            "whole-job",
            {
                "job_rows_per_s": None,
                "engine_rows_per_s": 1000.0,
                "job_over_engine": None,
                "seconds_to_first_part": 35.4,
            },
            "too few parts; engine 1,000; first 35 s",
        ),
        ("training", {"rows_per_s": {"ours": 1234.5, "theirs": 99.9}}, "ours 1,234; theirs 100"),
        ("neighbours", {"bf16": {"ways": WAYS}}, "bf16: 2 exits, 4 labels of 14 differ"),
        (
            "agreement",
            {"rows": 20_000, "bf16, own": DIFFERENT, "fp32, tanh": DIFFERENT},
            "bf16, own: 7 labels, 1,000 exits; fp32, tanh: 7 labels, 1,000 exits of 20,000 differ",
        ),
    ],
)
def test_a_document_is_written_in_a_few_words(step: str, document: dict[str, Any], headline: str) -> None:
    assert run_all.STEPS[step].headline(document) == headline


SCRIPTS = (agreement, benchmark, neighbours, training, whole_job)
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    script.__name__.rpartition(".")[2]: script.build_parser for script in SCRIPTS
}


@pytest.mark.parametrize("name", run_all.STEPS)
def test_the_command_of_every_step_is_one_that_its_script_takes(name: str, tmp_path: Path) -> None:
    step = run_all.STEPS[name]
    words = run_all.command_of(step, tmp_path / "a.json", quick=True, given=["--model=m", "--input=i"])
    assert Path(words[1]).exists()
    assert ("--model=m" in words) == step.takes_model
    assert words[words.index("--output") + 1] == str(tmp_path / "a.json")
    assert words[words.index("--") :] == ["--", "--fast-tokenizer"] if "nanotoken" in name else "--" not in words
    for quick in (True, False):
        words = run_all.command_of(step, tmp_path / "a.json", quick=quick, given=["--model=m", "--input=i"])[2:]
        parsed = PARSERS[step.script.stem]().parse_args(words)
        assert str(parsed.output) == str(tmp_path / "a.json")
        assert getattr(parsed, "job_options", []) == step.job_options.split()


def test_a_step_that_fails_or_takes_too_long_leaves_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all, "GRACE_SECONDS", 1)
    document = tmp_path / "a.json"
    writes = f"import json; json.dump({json.dumps(BENCHMARK)}, open({str(document)!r}, 'w'))"
    sleeps = "import os; os.fork(); print(os.getpid(), flush=True); import time; time.sleep(600)"
    codes = {"fails": "print('starting'); raise ValueError('no such kernel')", "sleeps": sleeps, "works": writes}
    results = {}
    with open(tmp_path / "log.txt", "w") as log:
        for name, code in codes.items():
            seconds = 5.0 if name == "sleeps" else 60.0
            command = [sys.executable, "-c", code]
            results[name] = run_all.measure(run_all.STEPS["exit-2"], command, document, seconds, log)
        results["late"] = run_all.measure(run_all.STEPS["exit-2"], [], document, -1.0, log)
    assert [found["status"] for found in results.values()] == ["exit code 1", "took too long", "ok", "not started"]
    assert results["fails"]["headline"] == "ValueError: no such kernel"
    assert results["works"]["document"] == BENCHMARK
    slept = [int(line) for line in (tmp_path / "log.txt").read_text().splitlines() if line.isdecimal()]
    assert len(slept) == 2
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in slept)
    lines = run_all.table(results).splitlines()
    assert lines[0].split()[:4] == ["fails", "exit", "code", "1"]
    assert lines[2].endswith("ceiling 0.55 of 702 TFLOP/s")
