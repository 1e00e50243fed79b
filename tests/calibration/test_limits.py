"""Limits of single classes and of quality: counts and bounds against slow oracles, and how rarely they are broken."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig

from jobs.cli.options import class_limit
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.calibration.curve import Calibration, Curve, choices
from pipeline.calibration.drift.signals import reference_of
from pipeline.calibration.fit import count_along, fit_curve
from pipeline.calibration.guarantees import loss_bound, rows_for_loss, upper_bound
from pipeline.calibration.limits.audited import audit_classes, over_classes
from pipeline.calibration.limits.conditions import Condition, passing
from pipeline.calibration.limits.counts import ClassCounts, QualityCounts, count
from pipeline.calibration.limits.limits import Limits, percent
from pipeline.calibration.summary import summary
from pipeline.calibration.targets import Target, by_name, choose, load_calibration
from pipeline.calibration.thresholds import single_path
from pipeline.calibration.verdict import Guarantee, judge
from pipeline.errors import InputError, UserError
from pipeline.identity import ModelIdentity
from pipeline.nights import Night
from pipeline.output.totals import Totals
from pipeline.reports.calibration_report import calibration_table, sizes_table
from tests.support.models import BERT_SIZES, label_set_model, regression_model
from tests.support.samples import with_classes

NAMES = ["news", "a=b, c", "", "rare"]
NEWS, RARE, LOSS = 0.05, 0.05, 0.03
"""Limits of two classes and of quality."""
IDENTITY = ModelIdentity(weights="a", config="b", tokenizer="c", max_tokens=64)


def within_binomial(missed: int, rows: int, limit: float, confidence: float) -> bool:
    """Return whether P(Binomial(rows, limit) <= missed) is small enough, summed term by term."""
    log_ways = [math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1) for k in range(missed + 1)]
    terms = [ways + k * math.log(limit) + (rows - k) * math.log1p(-limit) for k, ways in enumerate(log_ways)]
    return math.fsum(map(math.exp, terms)) <= 1 - confidence


@given(
    rows=st.integers(1, 25), lost=st.floats(0, 1), gained=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.8, 0.95])
)
def test_a_loss_is_above_its_bound_as_rarely_as_stated(
    rows: int, lost: float, gained: float, confidence: float
) -> None:
    """By all outcomes of so many rows, with their probabilities: whatever is lost and gained, in however few rows."""
    lost, gained = lost / max(lost + gained, 1), gained / max(lost + gained, 1)
    same = max(1 - lost - gained, 0.0)
    above = 0.0
    for worse in range(rows + 1):
        for better in range(rows + 1 - worse):
            if loss_bound(worse, better, rows, confidence) < lost - gained - 1e-12:
                ways = math.comb(rows, worse) * math.comb(rows - worse, better)
                above += ways * lost**worse * gained**better * same ** (rows - worse - better)
    assert above <= 1 - confidence + 1e-9


def test_a_loss_is_bounded_better_than_by_what_is_lost_alone_if_as_much_is_gained() -> None:
    assert loss_bound(0, 0, 437, 0.95) <= 0.01 < loss_bound(0, 0, 436, 0.95)
    assert rows_for_loss(0.01, 0.95) == 437
    assert loss_bound(30, 25, 3000, 0.95) < 0.0084 < 0.0135 < upper_bound(30, 3000, 0.95)
    assert loss_bound(5, 500, 3000, 0.95) == 0.0
    assert loss_bound(0, 0, 0, 0.95) == loss_bound(3, 0, 3, 0.95) == 1.0
    assert rows_for_loss(0.01, 0.95, 0.02, 0.01) is None
    rows = rows_for_loss(0.01, 0.95, 0.01, 0.006)
    assert rows is not None
    assert loss_bound(math.ceil(0.01 * rows), math.floor(0.006 * rows), rows, 0.95) <= 0.01


@given(data=st.data(), sets=st.booleans(), rows=st.integers(1, 12), points=st.integers(1, 4))
def test_counts_along_a_path_are_those_by_hand(data: st.DataObject, sets: bool, rows: int, points: int) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    if sets:
        full, *path = random.random((points + 1, rows, 4)) < 0.5
        labels = (random.random((rows, 4)) < 0.5).astype(np.float32)
    else:
        full, *path = random.integers(0, 4, (points + 1, rows))
        labels = random.integers(0, 4, rows).astype(np.float32)
    labels[random.random(rows) < 0.3] = np.nan
    path = [full, *path]
    classes, quality = count(path, NAMES, labels)
    assert classes is not None
    with_class = full.T if sets else [full == number for number in range(4)]
    assert classes.rows == [int(np.sum(of)) for of in with_class]
    for number in range(4):
        kept = [early[:, number] if sets else early == number for early in path]
        assert classes.missed(number, points + 1) == [int((with_class[number] & ~now).sum()) for now in kept]
    known = [row for row in range(rows) if not np.isnan(labels[row]).any()]
    if not known:
        assert quality is None
        return
    right = [[bool((answers[row] == labels[row]).all()) for row in known] for answers in (full, *path)]
    lost = [sum(before and not after for before, after in zip(right[0], now, strict=True)) for now in right[1:]]
    gained = [sum(after and not before for before, after in zip(right[0], now, strict=True)) for now in right[1:]]
    assert quality == QualityCounts(labelled=len(known), right=sum(right[0]), lost=lost, gained=gained)


def fitted(rows: int = 5000, *, unlabelled: int = 0) -> Curve:
    sample, labels = with_classes(rows, 0)
    labels[:unlabelled] = np.nan
    return fit_curve(sample, Criterion(speed=1.0), 0, names=NAMES, labels=labels)


CURVE = fitted(unlabelled=500)


@given(
    all_rows=st.none() | st.floats(0.005, 0.1),
    every=st.none() | st.floats(0.01, 0.3),
    rare=st.none() | st.floats(0.01, 0.5),
    loss=st.none() | st.floats(0.002, 0.05),
    confidence=st.sampled_from([0.8, 0.95]),
)
def test_a_point_passes_only_if_every_limit_does(
    all_rows: float | None, every: float | None, rare: float | None, loss: float | None, confidence: float
) -> None:
    by_class = ((None, every), ("rare", rare))
    missed = tuple((name, limit) for name, limit in by_class if limit is not None)
    limits = Limits(max_disagreement=all_rows, max_missed=missed, max_quality_loss=loss, confidence=confidence)
    choice, passed, curve = CURVE.within_limits(limits), 0, CURVE
    assert curve.classes is not None
    assert curve.quality is not None
    for point in range(1, len(curve.differing)):
        good = limits.to_json() != {}  # without a limit nothing is shown to be kept
        good = good and (
            all_rows is None or within_binomial(curve.differing[point], curve.tested, all_rows, confidence)
        )
        for index, name in enumerate(NAMES):
            limit = rare if name == "rare" and rare is not None else every
            lost, of = curve.classes.missed(index, len(curve.differing))[point], curve.classes.rows[index]
            good = good and (limit is None or within_binomial(lost, of, limit, confidence))
        if loss is not None:
            counts = curve.quality.lost[point], curve.quality.gained[point], curve.quality.labelled
            good = good and loss_bound(*counts, confidence) <= loss
        if not good:
            break
        passed = point
    assert choice.point == min(range(passed + 1), key=lambda point: curve.flops_fractions[point])
    assert choice.differing == curve.differing[int(choice.point)]


def test_limits_that_hold_together_break_as_rarely_as_stated() -> None:
    """200 random calibrations at 90 %: 20 may break any of their limits; 34 or more would happen by chance once in 500."""
    sample, labels = with_classes(16_000, 1)
    limits = Limits(max_missed=(("news", NEWS), ("rare", RARE)), max_quality_loss=LOSS, confidence=0.9)
    path, broken, speedups = single_path(3)[510::5], 0, []
    full, zeros = sample.published(np.zeros(3)).predicted, np.zeros((1, 3))
    assert full is not None
    for seed in range(200):
        rows = np.random.default_rng(seed).permutation(16_000)[:2000]
        part = sample.take(rows)
        curve = count_along(np.concatenate([zeros, path]), part, part, Criterion(speed=1.0), NAMES, labels[rows])
        choice = curve.within_limits(limits)
        speeds = np.array([choice.criterion.speed_at(layer) for layer in sample.layers])
        early = sample.published(speeds).predicted
        assert early is not None
        missed = [float((early[full == number] != number).mean()) for number in range(4)]
        loss = float((full == labels).mean() - (early == labels).mean())
        broken += missed[0] > NEWS or missed[3] > RARE or loss > LOSS
        speedups.append(choice.flops_speedup)
    assert broken <= 33
    assert np.mean(speedups) > 1.5


def test_what_cannot_be_guaranteed_says_how_many_rows_of_a_class_are_missing() -> None:
    curve = CURVE
    assert curve.classes is not None
    assert curve.quality is not None
    rare = Limits(max_missed=(("rare", 0.01),))
    assert curve.within_limits(rare).criterion.full_depth
    rows = curve.classes.rows[3]
    sample = math.ceil(math.ceil(299 * 3750 / rows) / 0.75)
    assert (
        f"0 of {rows} rows that full depth gives 'rare' get another answer at the safest thresholds: 299 such rows are needed, "
        f"{299 - rows} more, so calibrate on about {sample:,} rows or more" == curve.shortage(rare)
    )
    each = Limits(max_missed=((None, 0.0005),), max_disagreement=0.0001, max_quality_loss=0.0001)
    assert curve.shortage(each).count("; ") == 3
    assert curve.shortage(each).endswith("; and so with 3 others")
    absent = replace(curve, classes=replace(curve.classes, rows=[*curve.classes.rows[:3], 0]))
    assert absent.within_limits(rare).criterion.full_depth
    assert absent.shortage(rare) == "full depth gives none of 3,750 rows 'rare', and 299 such rows are needed"
    few = replace(curve, quality=replace(curve.quality, labelled=100))
    assert "0 of 100 labelled rows lose a right answer and 0 gain one" in few.shortage(Limits(max_quality_loss=0.01))
    assert "437 such rows are needed, 337 more" in few.shortage(Limits(max_quality_loss=0.01))


def test_tables_tell_sizes_beforehand_and_what_every_limit_buys() -> None:
    reference = reference_of([3], [False], [0.1])
    calibration = Calibration(
        model={}, precision="fp32", data={}, curve=CURVE, reference=reference, choices=choices(CURVE, 0.95)
    )
    targets = [row[0] for row in calibration_table(calibration, 0.95).rows]
    assert {"at most 0.01", "at most 0.02 of each class", "accuracy at most 0.01 lower"} <= {*targets}
    table = sizes_table(CURVE, 0.95)
    assert CURVE.classes is not None
    rare = CURVE.classes.rows[3]
    assert [row[0] for row in table.rows[:3]] == ["all rows", "quality", "'rare'"]
    assert table.rows[2][1:3] == [f"{rare}", f"{upper_bound(0, rare, 0.95):.2%}"]
    assert table.rows[0][3:] == ["299", "149", "59"]  # a small sample is not split
    assert table.rows[2][3] == f"{math.ceil(math.ceil(299 * 3750 / rare) / 0.75):,}"
    absent = replace(CURVE, classes=replace(CURVE.classes, rows=[*CURVE.classes.rows[:3], 0]), quality=None)
    assert sizes_table(absent, 0.95).rows[1] == ["'rare'", "0", "100.00%", "?", "?", "?"]


def stored(directory: Path, model: EarlyExitModel, curve: Curve) -> Path:
    model.save_pretrained(directory)
    reference = reference_of([3], [False], [0.1])
    made = choices(curve, 0.95)
    Calibration(model=IDENTITY.parts(), precision="fp32", data={}, curve=curve, reference=reference, choices=made).save(
        directory
    )
    return directory / "calibration.json"


def test_a_file_keeps_counts_and_an_older_one_is_calibrated_again(tmp_path: Path) -> None:
    model = EarlyExitModel(BertConfig(**(BERT_SIZES | {"num_labels": 4})))
    file = stored(tmp_path, model, CURVE)
    assert Calibration.load(tmp_path).curve == CURVE
    assert file.stat().st_size < 100_000
    names = list(model.labels)
    target = Target(max_missed=[(names[3], 0.05), (None, 0.1)], max_disagreement=0.05, max_quality_loss=0.02)

    def load(target: Target) -> Calibration:
        return load_calibration(str(tmp_path), target, model, IDENTITY, "fp32")

    assert target.limits is not None
    named = replace(CURVE, classes=replace(CURVE.classes, names=names) if CURVE.classes else None)
    stored(tmp_path, model, named)
    assert choose(target, load(target).curve) == named.within_limits(target.limits)
    for wrong, problem in (
        (Target(max_missed=[("no such", 0.1)]), f"'no such' is none of the model's labels: {', '.join(names)}"),
        (Target(max_missed=[(None, 0.1), (None, 0.2)]), "one for all labels is given twice"),
    ):
        with pytest.raises(InputError, match=problem):
            load(wrong)
    values = json.loads(file.read_text())
    for key in ("classes", "quality"):
        del values["curve"][key]
    file.write_text(json.dumps(values | {"version": 3}))
    load(Target(max_disagreement=0.05))
    with pytest.raises(UserError, match=r"needs a calibration that counted classes; run jobs/calibrate\.py again$"):
        load(Target(max_missed=[(None, 0.1)]))
    with pytest.raises(InputError, match=r"needs a calibration on rows with true labels; run jobs/calibrate\.py"):
        load(Target(max_quality_loss=0.1))


def test_limits_exclude_thresholds_and_values_have_no_classes(tmp_path: Path) -> None:
    wanted: dict[str, Any]
    for wanted in ({"max_missed": [(None, 0.1)]}, {"max_quality_loss": 0.1}):
        with pytest.raises(InputError, match="and `speed` exclude each other"):
            Target(speed=0.1, **wanted)
        with pytest.raises(InputError, match=f"is chosen by `{next(iter(wanted))}`"):
            Target(exits=(1,), **wanted)
    with pytest.raises(InputError, match="must be between 0 and 1, not 1"):
        Target(max_missed=[("rare", 1.0)])
    values = regression_model()
    stored(tmp_path, values, replace(CURVE, classes=None, quality=None))
    for target in (Target(max_missed=[(None, 0.1)]), Target(max_quality_loss=0.1)):
        with pytest.raises(InputError, match="is for models of classes or label sets, and this one predicts one value"):
            load_calibration(str(tmp_path), target, values, IDENTITY, "fp32")


def test_labels_of_label_sets_have_limits_too(tmp_path: Path) -> None:
    model = label_set_model(tmp_path)
    target = Target(max_missed=[("staff", 0.1)])
    counts = ClassCounts.of(list(model.labels), np.array([900] * 5), np.zeros((len(CURVE.differing), 5), np.int64))
    stored(tmp_path, model, replace(CURVE, classes=counts))
    choice = choose(target, load_calibration(str(tmp_path), target, model, IDENTITY, "fp32").curve)
    assert choice.flops_speedup > 1.5  # nothing was counted against it, and no other limit was asked for


def test_names_of_classes_may_have_equals_signs_and_commas() -> None:
    assert class_limit("2%") == (None, 0.02)
    assert class_limit("spam=0.01") == ("spam", 0.01)
    assert class_limit("a=b, c=2%") == ("a=b, c", 0.02)
    for wrong in ("spam", "spam:2%", "spam=", "=x"):
        with pytest.raises(Exception, match="is no limit, such as 2%, or spam=2% for a class"):
            class_limit(wrong)
    with pytest.raises(Exception, match="is not between 0 and 1"):
        class_limit("spam=0")


def test_audited_classes_are_judged_by_all_nights_and_one_that_is_broken_fails_the_run() -> None:
    limits = Limits(max_missed=(("a=b, c", 0.02), ("rare", 0.05)))
    audited, missed = [5000, 3000, 0, 400], [900, 10, 0, 60]
    guarantee = Guarantee(limits=limits, labels=tuple(NAMES))
    whole = Totals(audited_by_class=audited, missed_by_class=missed)
    result = judge(Totals(), guarantee, [], whole=whole)
    assert [(each.name, each.verdict) for each in result.classes] == [("rare", "broken"), ("a=b, c", "kept")]
    assert result.failed
    assert "1 broken, 1 kept: 'rare' broken (60 of 400 missed, limit 5%)" in "\n".join(summary(result))
    assert "at most 5% of the rows that full depth gives 'rare' get another answer: together" in summary(result)[0]
    facts = result.to_json()
    assert facts["guarantee"] == {"max_missed_by_class": {"a=b, c": 0.02, "rare": 0.05}, "confidence": 0.95}
    kept = replace(whole, missed_by_class=[900, 10, 0, 25])
    assert not judge(Totals(), guarantee, [], whole=kept).failed  # 6.25 % of 400 prove nothing
    assert judge(Totals(), guarantee, [], whole=Totals()).classes == []
    both = replace(guarantee, limits=replace(limits, max_disagreement=0.01))
    night = [Night(audited=1000, differing=24)]  # enough for a chance of 1 % in all, and not for a half of it
    many_labels = replace(both, labels=tuple(map(str, range(257))))  # which no audit counts
    for held, verdict, chance in ((guarantee, "none", 0.01), (both, "open", 0.005), (many_labels, "broken", 0.01)):
        found = judge(Totals(), held, night, whole=whole)
        assert (found.verdict, found.false_alarms) == (verdict, chance)
    near = Totals(audited_by_class=audited, missed_by_class=[900, 10, 0, 37])
    for held, verdict in ((guarantee, "broken"), (both, "open")):
        alone_rare = replace(held, limits=replace(held.limits, max_missed=(("rare", 0.05),)))
        assert [each.verdict for each in judge(Totals(), alone_rare, night, whole=near).classes] == [verdict]
    alone_limit = replace(both, limits=Limits(max_disagreement=0.01))
    assert judge(Totals(), alone_limit, night).verdict == "broken"
    every = Limits(max_missed=((None, 0.05),))
    many = audit_classes(NAMES, [1, 1, 10, 400], [0, 0, 0, 38], every, 0.01)
    alone = audit_classes(NAMES[3:], [400], [38], every, 0.01)
    assert (alone[0].verdict, many[0].verdict) == ("broken", "open")  # of several, one is more often so by chance
    assert over_classes(many).startswith("4 open: 'rare' open (38 of 400 missed")


def test_limits_that_name_nothing_are_refused_and_without_a_condition_nothing_passes() -> None:
    with pytest.raises(InputError, match="max_missed names no class"):
        Target(max_missed=by_name({}))
    with pytest.raises(InputError, match="label_threshold names no class"):
        Target(label_threshold=by_name({}))
    assert passing([], 0.95) == 0


def test_confidences_are_written_as_they_were_given() -> None:
    assert [percent(confidence) for confidence in (0.95, 0.995, 0.9999)] == ["95%", "99.5%", "99.99%"]
    counted = Condition(limit=0.01, rows=1000, tested=1000, worse=[0, 1])
    assert counted.shown(1, 0.995).endswith("(99.5%)")
