"""A calibration keeps its targets on other rows; files, refusals, temperatures and drift."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.calibration.curve import SPLIT_ROWS, Calibration, Curve, WallClock, choices
from pipeline.calibration.drift.signals import ALARM, WATCH, compare, reference_of, stability_index
from pipeline.calibration.fit import fit_curve, fit_rows
from pipeline.calibration.guarantees import rows_needed, upper_bound
from pipeline.calibration.limits.limits import Limits
from pipeline.calibration.temperature import calibration_error, fit_exits, fit_temperature, scale_exits
from pipeline.calibration.thresholds import Sample
from pipeline.corpus.columns import Columns
from pipeline.corpus.labelled import sample_texts
from pipeline.errors import UserError
from pipeline.evaluation.recorded import AllExits
from pipeline.histograms import bin_counts, length_histogram
from pipeline.identity import ModelIdentity
from tests.support.samples import made_up

CALIBRATIONS = 60
"""The number of calibrations in the statistical test."""


def curve_from(sample: Sample, seed: int = 0) -> Curve:
    return fit_curve(sample, Criterion(speed=1.0), seed)


def outcome(sample: Sample, criterion: Criterion) -> tuple[float, float]:
    """Return speed-up in FLOPs and fraction of differing predictions of a criterion on rows."""
    speeds = np.array([criterion.speed_at(layer) for layer in sample.layers])
    fraction, differing, _ = sample.outcome(speeds)
    return 1 / fraction, differing / len(sample)


@pytest.mark.parametrize("rows", [1500, 8000])
def test_a_wanted_speedup_comes_out_on_other_rows(rows: int) -> None:
    curve, other = curve_from(made_up(rows, 0)), made_up(20_000, 99)
    for speedup in (1.0, 1.2, 1.5, 2.0, 2.5, 3.0):
        choice = curve.at_speedup(speedup)
        assert choice.flops_speedup == pytest.approx(speedup, rel=1e-6)
        assert outcome(other, choice.criterion)[0] == pytest.approx(speedup, rel=0.05)
        assert sum(choice.exits) == pytest.approx(rows)
    with pytest.raises(ValueError, match="9 cannot be reached"):
        curve.at_speedup(9)
    with pytest.raises(ValueError, match="at least 1"):
        curve.at_speedup(0.5)


def test_rows_that_are_equally_certain_exit_together_so_it_may_be_faster() -> None:
    sample = made_up(5000, 0)
    coarse = replace(sample, uncertainty=np.maximum(sample.uncertainty, 0.2).astype(np.float32))
    choice = curve_from(coarse).at_speedup(1.2)
    assert choice.flops_speedup > 1.25
    assert outcome(coarse, choice.criterion)[0] == pytest.approx(choice.flops_speedup, rel=1e-3)


@given(first=st.floats(1, 3), second=st.floats(1, 3))
def test_faster_targets_never_have_lower_thresholds(first: float, second: float) -> None:
    curve = CURVE
    slow, fast = (curve.at_speedup(speedup).criterion for speedup in sorted((first, second)))
    assert all(slow.speed_at(layer) <= fast.speed_at(layer) for layer in (1, 2, 3))


CURVE = curve_from(made_up(5000, 3))


@pytest.mark.parametrize("rows", [1200, SPLIT_ROWS])
def test_guarantees_break_as_rarely_as_stated(rows: int) -> None:
    """60 calibrations at 90 %: 6 may break it; 13 or more would happen by chance once in 300."""
    truth, broken, speedups = made_up(200_000, 12345), 0, []
    for seed in range(CALIBRATIONS):
        choice = curve_from(made_up(rows, seed), seed).within(0.02, 0.9)
        speedup, differing = outcome(truth, choice.criterion)
        broken += differing > 0.02
        speedups.append(speedup)
    assert broken <= 12
    assert np.mean(speedups) > 1.3


def test_more_confidence_or_a_lower_limit_is_never_faster() -> None:
    speedups = [CURVE.within(0.02, confidence).flops_speedup for confidence in (0.5, 0.9, 0.99, 0.9999)]
    assert speedups == sorted(speedups, reverse=True)
    speedups = [CURVE.within(limit, 0.95).flops_speedup for limit in (0.05, 0.02, 0.01, 0.005)]
    assert speedups == sorted(speedups, reverse=True)
    assert speedups[0] > speedups[-1]
    best = CURVE.within(0.02, 0.95)
    assert best.differing is not None
    assert upper_bound(best.differing, CURVE.tested, 0.95) <= 0.02


def test_too_few_rows_guarantee_full_depth_only_and_the_shortage_says_how_many_are_needed() -> None:
    curve, limits = curve_from(made_up(100, 0)), Limits(max_disagreement=0.01)
    assert curve.within_limits(limits).criterion.full_depth
    assert "about 299 rows or more" in curve.shortage(limits)
    hopeless = replace(curve, differing=[0, *[5] * (len(curve.differing) - 1)])
    assert "no number of rows would do" in hopeless.shortage(limits)
    costly = replace(curve, differing=[0] * len(curve.differing), tested=1000)
    assert "costs more than it saves" in costly.shortage(limits)


def test_a_shortage_is_of_the_first_thresholds_that_save_anything() -> None:
    """Those before may cost more than they save: with a head that few rows take, for one."""
    curve, limits = curve_from(made_up(5000, 0)), Limits(max_disagreement=0.01)
    points = 40
    made = replace(
        curve,
        speeds=curve.speeds[:points],
        exits=curve.exits[:points],
        flops_fractions=[1.0, *[1.01] * 9, *np.linspace(0.99, 0.5, points - 10)],
        differing=[0] * 10 + [30 + point for point in range(points - 10)],
    )
    assert made.within_limits(limits).criterion.full_depth
    line = made.shortage(limits)
    needed = rows_needed(0.01, 0.95, 30 / curve.tested)
    assert needed is not None
    assert line.startswith("30 of 3,750 rows differ at the safest thresholds that save anything: calibrate on about ")
    assert f"{math.ceil(needed / 0.75):,} rows" in line
    stopped = replace(made, differing=[0, *[300] * 9, *[30] * (points - 10)], tested=20_000)
    assert stopped.shortage(limits).startswith("300 of 20,000 rows differ at the safest thresholds, more than 1%")
    never = replace(made, flops_fractions=[1.0, *[1.01] * (points - 1)])
    assert "costs more than it saves" in never.shortage(limits)
    assert (curve.sample_of(2000), curve.sample_of(6000)) == (2000, 8000)  # a small sample is not split
    fitted = fit_curve(made_up(1000, 0), Criterion(speed=1.0), fitted=fit_rows(1000, 0))
    assert fitted.sample_of(1500) == 2000


def test_rows_that_fitted_temperatures_test_no_guarantee() -> None:
    sample, fit = made_up(1000, 0), fit_rows(1000, 0)
    curve = fit_curve(sample, Criterion(speed=1.0), fitted=fit_rows(len(sample), 0))
    others = sample.take(np.setdiff1d(np.arange(1000), fit))
    assert curve.tested == len(others) == 750
    assert curve.differing == [others.outcome(np.array(speeds))[1] for speeds in curve.speeds]


IDENTITY = ModelIdentity(weights="abc", config="def", tokenizer="ghi", max_tokens=64)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 4}', '{"version": 3}', '{"version": 2}'])
def test_a_damaged_calibration_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(UserError, match=r"calibration\.json(: damaged| is empty); (or )?run jobs/calibrate\.py again$"):
        Calibration.load(tmp_path)


def test_a_calibration_of_an_older_version_is_held_to_what_it_knows(tmp_path: Path) -> None:
    """It has the digest of the weights, the precision by its word, and no word of config.json and tokenizer."""
    reference = reference_of([3, 9, 400], [False, False, True], [0.1, 0.2, 0.3])
    Calibration(model={}, precision="auto", data={}, curve=CURVE, reference=reference).save(tmp_path)
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 2, "model": "abc", "max_tokens": 64}))
    older = Calibration.load(tmp_path)
    assert older.computed_in is None
    older.check(replace(IDENTITY, config="another", tokenizer="another"), "auto")
    for identity, dtype, problem in (
        (replace(IDENTITY, weights="x"), "auto", "weights abc, now it is x"),
        (replace(IDENTITY, max_tokens=32), "auto", "max-tokens 64, now it is 32"),
        (IDENTITY, "fp32", "dtype auto, now it is fp32"),
    ):
        with pytest.raises(UserError, match=problem):
            older.check(identity, dtype)


def test_a_calibration_of_before_risks_is_read_and_expects_nothing(tmp_path: Path) -> None:
    reference = reference_of([3, 9, 400], [False, False, True], [0.1, 0.2, 0.3])
    made = Calibration(model=IDENTITY.parts(), precision="bf16", data={}, curve=CURVE, reference=reference)
    file = made.save(tmp_path)
    values = json.loads(file.read_text())
    for name in ("cell_rows", "cell_differing"):
        del values["curve"][name]
    file.write_text(json.dumps(values | {"version": 3, "choices": {}}))
    older = Calibration.load(tmp_path)
    choice = older.curve.within(0.02, 0.95)
    assert choice == CURVE.within(0.02, 0.95)
    assert older.curve.risks_at(choice.point) is None
    assert CURVE.risks_at(choice.point) is not None


def test_a_calibration_survives_its_file_and_knows_its_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not calibrated.*jobs/calibrate.py"):
        Calibration.load(tmp_path)
    calibration = Calibration(
        model=IDENTITY.parts(),
        precision="bf16",
        data={"rows": 5000},
        curve=CURVE,
        reference=reference_of([3, 9, 400], [False, False, True], [0.1, 0.2, 0.3]),
        timing=WallClock(hardware="a machine", flops_speedups=[1, 2, 3], time_speedups=[1, 1.8, 2.4]),
        choices=choices(CURVE, 0.95),
    )
    calibration.save(tmp_path)
    again = Calibration.load(tmp_path)
    assert again == calibration
    assert again.curve.at_speedup(2) == CURVE.at_speedup(2)
    assert again.computed_in == "bf16"
    again.check(IDENTITY, "auto")
    again.check(IDENTITY, "bf16")
    with pytest.raises(UserError, match=r"with dtype bf16, now it is fp32; run jobs/calibrate\.py again"):
        again.check(IDENTITY, "fp32")
    for name, value in asdict(IDENTITY).items():
        other: Any = 32 if name == "max_tokens" else "other"
        with pytest.raises(UserError, match=rf"with {name.replace('_', '-')} {value}, now it is {other}; run jobs/cal"):
            again.check(replace(IDENTITY, **{name: other}), "auto")
    values = json.loads((tmp_path / "calibration.json").read_text())
    assert values["version"] == 4
    for version in (0, 1, 5):
        (tmp_path / "calibration.json").write_text(json.dumps(values | {"version": version}))
        with pytest.raises(UserError, match=r"of another version of offramp; run jobs/calibrate\.py again"):
            Calibration.load(tmp_path)


def test_wall_clock_time_is_read_off_both_ways() -> None:
    clock = WallClock(hardware="", flops_speedups=[1, 2, 3], time_speedups=[1, 1.8, 2.4])
    assert clock.time_speedup_at(2.5) == pytest.approx(2.1)
    assert clock.flops_speedup_for(2.1) == pytest.approx(2.5)
    with pytest.raises(ValueError, match=r"the fastest was 2\.40"):
        clock.flops_speedup_for(3)


def overconfident(rows: int, seed: int) -> tuple[AllExits, np.ndarray]:
    """Return two exits with logits twice and half of what they should be, and labels drawn from the right ones."""
    random = np.random.default_rng(seed)
    true = random.normal(0, 2, (rows, 3)).astype(np.float32)
    powers = np.exp(true)
    labels = (random.random((rows, 1)) > np.cumsum(powers / powers.sum(1, keepdims=True), 1)).sum(1).clip(0, 2)
    return AllExits(layers=(2, 4), logits=np.stack([2 * true, true / 2]), lte=None), labels


def test_temperatures_are_found_again_and_take_the_calibration_error_away() -> None:
    recorded, labels = overconfident(20_000, 0)
    first, last = fit_exits(recorded, labels)
    assert (first["layer"], last["layer"]) == (2, 4)
    assert first["temperature"] == pytest.approx(2, rel=0.05)
    assert last["temperature"] == pytest.approx(0.5, rel=0.05)
    assert first["error_before"] > 0.05 > 0.02 > first["error_after"]
    assert last["error_before"] > 0.05 > 0.02 > last["error_after"]
    assert [scaling["layer"] for scaling in fit_exits(recorded, None)] == [2]


def test_calibration_error_by_hand() -> None:
    logits = np.log(np.array([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]], np.float32))
    assert calibration_error(logits, np.array([0, 1, 1, 1])) == pytest.approx(0.5 * 0.3 + 0.5 * 0.4)
    assert fit_temperature(logits, np.array([0, 0, 1, 1])) == pytest.approx(
        0.05, rel=0.01
    )  # always right: as sure as may be


def test_scaled_weights_give_scaled_logits_and_the_same_labels(exit_model: EarlyExitModel, tmp_path: Path) -> None:
    exit_model.save_pretrained(tmp_path)
    before = {layer: exit_model.head(layer).out.weight.clone() for layer in exit_model.exit_layers}
    scale_exits(exit_model, [{"layer": 2, "temperature": 4.0, "error_before": 0.0, "error_after": 0.0}])
    exit_model.save_weights(tmp_path)
    again = EarlyExitModel.from_pretrained(tmp_path)
    for layer, weight in before.items():
        np.testing.assert_allclose(again.head(layer).out.weight.detach() * (4 if layer == 2 else 1), weight.detach())
    assert not list(tmp_path.glob(".*"))


def test_stability_index_by_hand_and_its_thresholds() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.3, 0.4])
    expected = float(((q - p) * np.log(q / p)).sum())
    assert stability_index(p * 1e7, q * 1e7) == pytest.approx(expected, rel=1e-5)
    assert stability_index([5, 5], [5, 5]) == 0.0
    large = compare("x", [5000, 3000, 2000], [3000, 3000, 4000])
    assert (large.watch, large.alarm, large.state) == (WATCH, ALARM, "watch")
    assert compare("x", [5000, 5000], [500, 9500]).state == "alarm"
    assert compare("x", [5000, 5000], [1, 4]).state == "ok"  # five rows prove nothing
    assert compare("x", [5, 0, 5], [4, 0, 6]).psi == compare("x", [5, 5], [4, 6]).psi


def test_equal_rows_do_not_alarm_whatever_their_number() -> None:
    random = np.random.default_rng(0)
    expected = random.multinomial(5000, [0.1] * 10)
    for rows in (10, 30, 100, 300, 1000, 10_000):
        states = [
            compare("x", expected.tolist(), random.multinomial(rows, [0.1] * 10).tolist()).state for _ in range(100)
        ]
        assert states.count("ok") >= 99


def test_bins_hold_their_upper_edge() -> None:
    assert bin_counts([1, 2, 2, 3, 9], [2, 3]) == [3, 1, 1]
    assert length_histogram([1, 8, 9, 256, 257]) == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_a_sample_is_drawn_evenly_from_all_shards(tmp_path: Path) -> None:
    for file in range(4):
        texts = [f"text {file} {row}" for row in range(1000)] + [None]
        pq.write_table(pa.table({"text": texts, "mood": ["good"] * 1001}), tmp_path / f"{file}.parquet")
    drawn = sample_texts(str(tmp_path), Columns(label="mood"), 400, seed=1)
    assert len(set(drawn.texts)) == len(drawn.texts) == 400
    assert drawn.labels == ["good"] * 400
    assert drawn.rejected == 4
    by_file = np.bincount([int(text.split()[1]) for text in drawn.texts])
    assert by_file.min() > 70
    assert drawn.texts == sample_texts(str(tmp_path), Columns(label="mood"), 400, seed=1).texts
    assert len(sample_texts(str(tmp_path), Columns(), 9999, seed=1).texts) == 4000
    some = {"text": ["a", "b", "c"], "mood": ["good", None, " "]}  # a row without a label is a row of the sample
    pq.write_table(pa.table(some), tmp_path / "0.parquet")
    few = sample_texts(str(tmp_path / "0.parquet"), Columns(label="mood"), 9, seed=1)
    assert sorted(zip(few.texts, few.labels or (), strict=True)) == [("a", "good"), ("b", None), ("c", None)]
