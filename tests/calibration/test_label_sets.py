"""Label sets in calibrations: what differs from full depth, what is guaranteed of it, and thresholds that have to fit."""

from pathlib import Path

import numpy as np
import pytest

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.exits.flops import FlopCounter
from pipeline.calibration.audit import AuditSpec, audit
from pipeline.calibration.curve import Calibration
from pipeline.calibration.drift.signals import reference_of
from pipeline.calibration.fit import count_along, criterion_for, fit_curve
from pipeline.calibration.targets import Target, choose, load_calibration, own_criterion
from pipeline.calibration.temperature import scale_stored_model
from pipeline.calibration.thresholds import Sample, single_path
from pipeline.corpus.chunks import Chunk
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextRows
from pipeline.errors import InputError
from pipeline.evaluation.recorded import AllExits, record_all_exits
from pipeline.identity import ModelIdentity
from tests.support.models import label_set_model, new_model, random_rows
from tests.support.samples import SHAPE

SPLITS, ROWS, LIMIT = 200, 700, 0.03
IDENTITY = ModelIdentity(weights="a", config="b", tokenizer="c", max_tokens=64)


def made_up_exits(rows: int, seed: int) -> AllExits:
    """Draw logits of six labels, most of them far from 0, and exits that know them the better the later they are."""
    random = np.random.default_rng(seed)
    last = random.normal(0, 8, (rows, 6)) * random.beta(2, 1, (rows, 1))
    earlier = [last + noise * random.normal(size=last.shape) for noise in (0.8, 0.4, 0.2)]
    logits = np.stack([*earlier, last]).astype(np.float32)
    return AllExits(layers=(1, 2, 3, 4), logits=logits, lte=None, boundaries=(0.0, -1.0, 0.0, 0.5, 0.0, 0.0))


def test_a_row_differs_from_full_depth_if_any_label_does() -> None:
    logits = np.array([[[1, 1], [1, 1], [1, 0.5]], [[2, 2], [2, -1], [2, 3]]], np.float32)
    recorded = AllExits(layers=(1, 2), logits=logits, lte=None, boundaries=(0.0, 0.75))
    assert recorded.differs(0.1).tolist() == [[False, True, True]]
    assert recorded.answers[0].tolist() == [[1, 1], [1, 1], [1, 0]]
    assert not recorded.regression


def test_guarantees_break_as_rarely_as_stated() -> None:
    """200 random splits of one set at 90 %: 20 may break it; 34 or more would happen by chance once in 500."""
    recorded, criterion = made_up_exits(20_000, 0), Criterion(speed=1.0)
    flops = FlopCounter(SHAPE, dict.fromkeys((1, 2, 3, 4), "pooled"))
    lengths = np.random.default_rng(1).integers(5, 60, 20_000)
    whole, broken, speedups = Sample.of(recorded, criterion, lengths, flops), 0, []
    path = single_path(3)[::6]  # a sixth of the thresholds that a sample of this size has, for the sake of time
    differ = recorded.answers[:-1] != recorded.answers[-1]
    assert (whole.differs == differ.any(2)).all()
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(whole))
        sample = whole.take(order[:ROWS])
        choice = count_along(path, sample, sample, criterion).within(LIMIT, 0.9)
        speeds = np.array([choice.criterion.speed_at(layer) for layer in whole.layers])
        fraction, differing, _ = whole.take(order[ROWS:]).outcome(speeds)
        broken += differing > LIMIT * (len(whole) - ROWS)
        speedups.append(1 / fraction)
    assert broken <= 33
    assert np.mean(speedups) > 1.2


def test_the_audit_counts_rows_with_another_label_set(tmp_path: Path) -> None:
    rows, model = random_rows(200, 30, seed=1), label_set_model(tmp_path)
    texts = TextRows.whole(rows)
    second = record_all_exits(model, Chunk(rows=rows, labels=np.zeros(200, np.float32))).uncertainty(Criterion())[1]
    criterion = Criterion(speeds=((2, float(np.median(second))),), label_thresholds=(0.4,))
    engine = TextEngine(Engine(LoadedModel(model, EngineConfig(criterion=criterion, dtype="fp32"))))
    full = engine.with_criterion(criterion.at_full_depth())
    early = engine.run(texts).predictions
    counted = audit(engine, full, AuditSpec(fraction=0.999, by_class=True), {"a": 200}, texts, early)["a"]
    differ = (early.label_sets != full.run(texts).predictions.label_sets).any(1)
    assert 0 < differ.sum() < 200
    assert counted["differing"] == pytest.approx(differ.sum(), abs=2)
    of, now = full.run(texts).predictions.label_sets, early.label_sets
    np.testing.assert_allclose(counted["audited_by_class"], of.sum(0), atol=2)
    np.testing.assert_allclose(counted["missed_by_class"], (of & ~now).sum(0), atol=2)
    assert sum(counted["missed_by_class"]) > 0


def calibrated(directory: Path, *thresholds: float) -> EarlyExitModel:
    """Save a model with a calibration at these thresholds of labels."""
    model = label_set_model(directory)
    rows = random_rows(300, 30, seed=1)
    criterion = criterion_for(model, None, 0.1, thresholds)
    recorded = record_all_exits(model, Chunk(rows=rows, labels=np.zeros(300, np.float32)), criterion.label_thresholds)
    curve = fit_curve(Sample.of(recorded, criterion, rows.lengths, model.flops), criterion)
    reference = reference_of([3], [False], [0.1])
    Calibration(model=IDENTITY.parts(), precision="fp32", data={}, curve=curve, reference=reference).save(directory)
    return model


def test_a_calibration_holds_at_its_own_thresholds_of_labels_only(tmp_path: Path) -> None:
    model, each = calibrated(tmp_path, 0.4), [(None, 0.4), ("staff", 0.3)]
    for given in (None, each):
        target = Target(max_disagreement=0.2, label_threshold=given)
        with pytest.raises(InputError, match=r"is not what the model was calibrated with: above 0\.4"):
            load_calibration(str(tmp_path), target, model, IDENTITY, "fp32")
    target = Target(max_disagreement=0.9, label_threshold=[(None, 0.4)])
    choice = choose(target, load_calibration(str(tmp_path), target, model, IDENTITY, "fp32").curve)
    assert choice.criterion.label_thresholds == (0.4,)
    model.criterion = Criterion(label_thresholds=(0.4,))  # as the stored one is
    load_calibration(str(tmp_path), Target(max_disagreement=0.2), model, IDENTITY, "fp32")


def test_thresholds_of_labels_are_those_given_else_those_stored(tmp_path: Path) -> None:
    model = label_set_model(tmp_path)
    given = own_criterion(Target(speed=0.3, label_threshold=[("staff", 0.3)]), model)
    assert (given.speed, given.label_thresholds) == (0.3, (0.5, 0.3, 0.5, 0.5, 0.5))
    model.criterion = given
    model.save_pretrained(tmp_path)
    stored = EarlyExitModel.from_pretrained(tmp_path)
    assert own_criterion(Target(), stored) == given
    assert own_criterion(Target(criterion="patience"), stored).label_thresholds == given.label_thresholds
    with pytest.raises(InputError, match="'rude' is none of the model's labels: clean, staff, price, noise, view"):
        own_criterion(Target(label_threshold=[("rude", 0.3)]), model)
    for twice, message in (
        ([(None, 0.4), (None, 0.5)], "one for all labels is given"),
        ([("staff", 0.3)] * 2, "'staff' is"),
    ):
        with pytest.raises(InputError, match=message):
            own_criterion(Target(label_threshold=twice), model)
    with pytest.raises(InputError, match="is for models of label sets, and this one predicts one class"):
        own_criterion(Target(label_threshold=[(None, 0.3)]), new_model())


def test_temperatures_are_not_fitted_to_label_sets(tmp_path: Path) -> None:
    label_set_model(tmp_path)
    examples = Chunk(rows=random_rows(5, 9, seed=0), labels=np.zeros(5, np.float32))
    with pytest.raises(InputError, match="needs classes, and the model predicts label sets"):
        scale_stored_model(tmp_path, examples, to_labels=False, dtype="fp32", device="cpu")
