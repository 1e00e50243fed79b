"""What is recorded of audited rows is what every exit says of them, on either runner, whatever thresholds are in force."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.calibration.audit import AuditSpec, draw_rows
from pipeline.calibration.history import recording
from pipeline.calibration.history.recording import ExitRecorder
from pipeline.corpus.chunks import Chunk
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.rules import RecordedExits
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextRows
from pipeline.evaluation.recorded import record_all_exits
from pipeline.schema import AUDITS
from tests.support.engines import EngineOfGpuRunners
from tests.support.models import new_model, random_rows, regression_model

SPEC = AuditSpec(fraction=0.4, secret="secret")
SHARDS = {"a" * 16: 50, "b" * 16: 0, "c" * 16: 40}
COUNTS = np.random.default_rng(0).choice([1, 2, 3], 90)
TEXTS = TextRows(windows=random_rows(int(COUNTS.sum()), 30, 1), counts=COUNTS)
TABLE = pa.table({"row": [*range(100, 150), *range(40)], "truncated": [False, True] * 45})


def recorder_of(model: EarlyExitModel, criterion: Criterion) -> ExitRecorder:
    config = EngineConfig(criterion=criterion, exits=(2, 3), dtype="fp32")
    return ExitRecorder(TextEngine(Engine(LoadedModel(model, config))))


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_every_exit_of_the_drawn_rows_is_recorded(kind: str) -> None:
    model = new_model() if kind == "classes" else regression_model()
    expected = record_all_exits(model, Chunk(rows=TEXTS.windows, labels=np.zeros(len(TEXTS.windows), np.float32)))
    criterion = Criterion(speed=0.9) if kind == "classes" else Criterion(name="lte", speed=0.9)
    recorder = recorder_of(model, criterion)
    found = recorder.record(SPEC, SHARDS, TEXTS, TABLE)
    assert found.rows.schema == AUDITS
    drawn = [(name, int(row)) for name, rows in SHARDS.items() for row in draw_rows(name, rows, 0.4, "secret")]
    starts = {"a" * 16: 0, "c" * 16: 50}
    assert len(found.rows) == len(drawn) > 20
    for line, (shard, row) in zip(found.rows.to_pylist(), drawn, strict=True):
        text = starts[shard] + row
        windows = np.arange(TEXTS.bounds[text], TEXTS.bounds[text + 1])
        assert (line["shard"], line["row"]) == (shard, TABLE["row"][text].as_py())
        assert line["truncated"] == bool(text % 2)
        assert line["lengths"] == TEXTS.windows.lengths[windows].tolist()
        wanted = expected.logits[:, windows].transpose(1, 0, 2).ravel()
        np.testing.assert_allclose(line["logits"], wanted, atol=1e-4)
        assert (expected.lte is None) == (line["lte"] == [])
        if expected.lte is not None:
            np.testing.assert_allclose(line["lte"], expected.lte[:, windows].T.ravel(), atol=1e-4)
    tokens = {
        name: TEXTS.take(np.array([s for n, r in drawn if n == name for s in [starts[n] + r]])) for name in starts
    }
    for name, texts in tokens.items():
        assert found.flops[name] == pytest.approx(
            model.flops.rows(texts.windows.lengths, np.full(len(texts.windows), 4)).sum()
        )
    assert recorder.record(replace(SPEC, fraction=0.0), SHARDS, TEXTS, TABLE).rows == AUDITS.empty_table()


def test_the_runner_for_gpus_records_the_same() -> None:
    model, rows = new_model("attention"), random_rows(60, 40, 3)
    loaded = LoadedModel(model, EngineConfig(criterion=Criterion(speed=0.9), dtype="fp32"))
    rules = []
    for engine in (Engine(loaded), EngineOfGpuRunners(loaded)):
        rules.append(RecordedExits(model.exit_layers, 60, model.shape.classes, learned=model.lte is not None))
        assert (engine.run(rows, rules[-1]).exit_layers == 4).all()
    np.testing.assert_allclose(rules[0].logits_BEC, rules[1].logits_BEC, atol=1e-4)
    assert float(rules[0].logits_BEC.abs().min()) > 0


def test_of_a_model_with_many_classes_some_of_the_audited_rows_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model()
    whole = recorder_of(model, Criterion(speed=0.9)).record(SPEC, SHARDS, TEXTS, TABLE).rows
    monkeypatch.setattr(recording, "MOST_BYTES", 4 * len(model.exit_layers) * (model.shape.classes + 1) // 2)
    half = recorder_of(model, Criterion(speed=0.9))
    assert half.fraction == 0.5
    rows = half.record(SPEC, SHARDS, TEXTS, TABLE).rows
    assert 0 < len(rows) < len(whole)
    assert {(line["shard"], line["row"]) for line in rows.to_pylist()} < {
        (line["shard"], line["row"]) for line in whole.to_pylist()
    }
