"""Calibration on texts of several windows: what is counted along a path is what runs at those thresholds publish."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.calibration.audit import AuditSpec, audit, draw_rows
from pipeline.calibration.drift.cells import count_cells
from pipeline.calibration.fit import fit_curve
from pipeline.calibration.texts import TextSample, until_certain
from pipeline.calibration.thresholds import Sample
from pipeline.corpus.chunks import Chunk
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextRows
from pipeline.evaluation.recorded import record_all_exits
from pipeline.rows import TokenRows
from pipeline.windows import COMBINATIONS, LongTexts
from tests.support.models import new_model, random_rows

COUNTS = np.random.default_rng(0).choice([1, 2, 3, 6], 150)
TEXTS = TextRows(windows=random_rows(int(COUNTS.sum()), 30, 1), counts=COUNTS)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=8))
def test_a_text_is_computed_up_to_its_first_certain_window(texts: list[list[bool]]) -> None:
    wanted = [
        number <= (text.index(True) if True in text else len(text)) for text in texts for number in range(len(text))
    ]
    certain = np.array([window for text in texts for window in text])
    assert until_certain(certain, np.array([len(text) for text in texts])).tolist() == wanted


def sample_of(model: EarlyExitModel, texts: TextRows, long_texts: LongTexts, criterion: Criterion) -> TextSample:
    recorded = record_all_exits(model, Chunk(rows=texts.windows, labels=np.zeros(len(texts.windows), np.float32)))
    return TextSample.of(recorded, criterion, texts, model.flops, long_texts)


def between(values: np.ndarray, fraction: float) -> float:
    """Return a value in the middle of two neighbors, so that rounding puts none of them on its other side."""
    ordered = np.sort(values)
    place = int(fraction * len(ordered))
    return float(ordered[place : place + 2].mean())


@pytest.mark.parametrize("how", COMBINATIONS)
def test_what_is_counted_is_what_the_engine_and_the_audit_find(how: str) -> None:
    model, criterion = new_model(), Criterion(speed=1.0)
    first = sample_of(model, TEXTS, LongTexts(), criterion)
    long_texts = LongTexts(combine=how, certain=between(first.measured.ravel(), 0.4))
    sample = sample_of(model, TEXTS, long_texts, criterion)
    speeds = np.array([float(f"{between(row, 0.3):.6g}") for row in sample.measured[:-1]])
    outcome = sample.outcome(speeds)
    chosen = Criterion(speeds=tuple(zip(sample.layers, speeds.tolist(), strict=True)))
    engine = TextEngine(Engine(LoadedModel(model, EngineConfig(criterion=chosen, dtype="fp32"))), long_texts)
    full_depth = engine.with_criterion(chosen.at_full_depth())
    early, full = engine.run(TEXTS), full_depth.run(TEXTS)
    differs = full.predictions.differs(early.predictions, 0.1)
    assert outcome.differing == differs.sum() > 0
    assert outcome.exits.tolist() == np.bincount(early.predictions.exit_layers, minlength=5)[1:].tolist()
    assert outcome.flops_fraction == pytest.approx(early.flops.sum() / engine.full_depth_flops(TEXTS).sum())
    exits = np.searchsorted([*sample.layers, sample.depth], early.predictions.exit_layers)
    cells = count_cells(exits, early.predictions.uncertainty, differs, len(sample.layers))
    assert sample.published(speeds).cells.tolist() == cells.tolist()
    assert (sample.take(np.arange(40, 90)).outcome(speeds).differing) == differs[40:90].sum()
    counted = audit(engine, full_depth, AuditSpec(fraction=0.5), {"a": 150}, TEXTS, early.predictions)["a"]
    drawn = draw_rows("a", 150, 0.5, "")
    assert (counted["audited"], counted["differing"]) == (len(drawn), differs[drawn].sum())
    assert counted["audit_flops"] == pytest.approx((early.flops + full.flops)[drawn].sum())
    assert sample.outcome(np.zeros(3)).differing == 0
    full_cost = full.flops.sum() / engine.full_depth_flops(TEXTS).sum()
    assert sample.outcome(np.zeros(3)).flops_fraction == pytest.approx(full_cost)
    assert (full_cost < 0.95) == (how == "first-certain")


def test_texts_of_one_window_are_calibrated_as_rows() -> None:
    model, criterion = new_model(), Criterion(speed=1.0)
    rows = random_rows(120, 30, 2)
    recorded = record_all_exits(model, Chunk(rows=rows, labels=np.zeros(120, np.float32)))
    texts = sample_of(model, TextRows.whole(rows), LongTexts(combine="max"), criterion)
    plain = Sample.of(recorded, criterion, rows.lengths, model.flops)
    assert fit_curve(texts, criterion) == fit_curve(plain, criterion)


def test_a_large_sample_is_split_by_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.calibration.fit.SPLIT_ROWS", 100)
    curve = fit_curve(sample_of(new_model(), TEXTS, LongTexts(), Criterion(speed=1.0)), Criterion(speed=1.0))
    assert curve.tested == 150 - 37
    assert sum(curve.exits[0]) == 150
    assert curve.differing[0] == 0
    assert (np.diff(curve.speeds, axis=0) >= 0).all()
    assert curve.flops_fractions[0] == pytest.approx(1.0)
    assert TokenRows.from_lists([[1]]).lengths.tolist() == [1]
