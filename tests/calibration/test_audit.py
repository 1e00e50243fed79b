"""The audit: the same rows at every call, counts as by hand, verdicts, and what it says of cost."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.calibration import verdict
from pipeline.calibration.audit import AuditSpec, audit, draw_rows
from pipeline.calibration.drift.signals import reference_of
from pipeline.calibration.guarantees import lower_bound, upper_bound
from pipeline.calibration.limits.limits import Limits
from pipeline.calibration.summary import summary
from pipeline.calibration.verdict import AuditResult, Guarantee
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextRows
from pipeline.histograms import bin_counts
from pipeline.nights import Night
from pipeline.output.receipts import Receipt
from pipeline.output.totals import Totals
from tests.support.jobs import REPOSITORY
from tests.support.models import random_rows

SPEC = AuditSpec(fraction=0.3, uncertainty_edges=(0.2, 0.5, 0.8))


@given(
    shard=st.text("0123456789abcdef", min_size=1, max_size=16), rows=st.integers(0, 500), fraction=st.floats(0.01, 1)
)
def test_a_repeated_shard_draws_the_same_rows_and_a_longer_one_draws_them_too(
    shard: str, rows: int, fraction: float
) -> None:
    drawn = draw_rows(shard, rows, fraction, "secret")
    assert drawn.tolist() == draw_rows(shard, rows, fraction, "secret").tolist()
    assert drawn.tolist() == [row for row in draw_rows(shard, rows + 50, fraction, "secret") if row < rows]
    assert set(drawn) <= set(draw_rows(shard, rows, min(1.0, fraction * 1.5), "secret"))


def test_rows_are_drawn_with_the_wanted_probability_wherever_they_are() -> None:
    counts = np.zeros(50)
    for shard in range(2000):
        counts[draw_rows(f"{shard:x}", 50, 0.1, "secret")] += 1
    assert counts.sum() == pytest.approx(10_000, abs=400)
    assert counts.min() > 140
    assert counts.max() < 260


def test_nobody_without_the_secret_knows_the_rows() -> None:
    here, there = (set(draw_rows("abc", 10_000, 0.1, secret)) for secret in ("secret", "another"))
    assert len(here & there) == pytest.approx(100, abs=40)  # as many as chance makes


def test_an_audit_counts_what_two_runs_by_hand_say(exit_model: EarlyExitModel) -> None:
    rows = TextRows.whole(random_rows(300, 40, seed=1))
    loaded = LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.5), dtype="fp32"))
    engine, full_depth = TextEngine(Engine(loaded)), TextEngine(Engine(loaded, EngineConfig(dtype="fp32")))
    predictions = engine.run(rows).predictions
    full = full_depth.run(rows).predictions
    counts = audit(engine, full_depth, SPEC, {"abc": 300}, rows, predictions)["abc"]
    drawn = draw_rows("abc", 300, 0.3, SPEC.secret)
    assert counts["audited"] == len(drawn)
    assert counts["differing"] == (predictions.label_ids != full.label_ids)[drawn].sum() > 0
    assert counts["audit_uncertainty"] == bin_counts(full.uncertainty[drawn], SPEC.uncertainty_edges)
    assert len(counts["audit_uncertainty"]) == 4
    flops = engine.engine.flops.rows(rows.lengths, predictions.exit_layers)[drawn].sum()
    flops += engine.engine.flops.full_depth(rows.lengths)[drawn].sum()
    assert counts["audit_flops"] == pytest.approx(flops)
    assert min(counts["early_seconds"], counts["full_seconds"]) > 0
    again = audit(engine, full_depth, SPEC, {"abc": 300}, rows, predictions)["abc"]
    timed = ("early_seconds", "full_seconds")
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in counts.items() if k not in timed}
    by_class = audit(engine, full_depth, replace(SPEC, by_class=True), {"abc": 300}, rows, predictions)["abc"]
    now, then = predictions.label_ids[drawn], full.label_ids[drawn]
    assert by_class["audited_by_class"] == np.bincount(then, minlength=full.logits.shape[1]).tolist()
    assert by_class["missed_by_class"] == np.bincount(then[now != then], minlength=full.logits.shape[1]).tolist()
    assert sum(by_class["missed_by_class"]) == by_class["differing"]
    assert Totals().plus(replace(blank_receipt("a"), **by_class)).missed_by_class == by_class["missed_by_class"]
    assert audit(engine, full_depth, AuditSpec(fraction=0.0), {"abc": 300}, rows, predictions) == {}
    assert Totals().plus(replace(blank_receipt("a"), **counts)).audit_uncertainty == counts["audit_uncertainty"]


def test_shards_of_a_bundle_are_audited_as_each_of_them_alone(exit_model: EarlyExitModel) -> None:
    rows = TextRows.whole(random_rows(90, 40, seed=1))
    loaded = LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.5), dtype="fp32"))
    engine, full_depth = TextEngine(Engine(loaded)), TextEngine(Engine(loaded, EngineConfig(dtype="fp32")))
    shards = {"a": 40, "none": 0, "b": 49, "c": 1}  # nothing is drawn of the last one
    whole = audit(engine, full_depth, SPEC, shards, rows, engine.run(rows).predictions)
    assert whole.keys() == {"a", "b"}
    for shard, start in (("a", 0), ("b", 40)):
        part = rows.slice(range(start, start + shards[shard]))
        alone = audit(engine, full_depth, SPEC, {shard: shards[shard]}, part, engine.run(part).predictions)[shard]
        for name in ("audited", "differing", "audit_uncertainty"):
            assert whole[shard][name] == alone[name]
        assert whole[shard]["audit_flops"] == pytest.approx(alone["audit_flops"])


def test_values_differ_when_they_are_further_apart_than_the_tolerance(exit_model: EarlyExitModel) -> None:
    rows = TextRows.whole(random_rows(100, 40, seed=1))
    loaded = LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.5), dtype="fp32"))
    engine, full_depth = TextEngine(Engine(loaded)), TextEngine(Engine(loaded, EngineConfig(dtype="fp32")))
    full = full_depth.run(rows).predictions
    assert audit(engine, full_depth, replace(SPEC, fraction=1.0), {"abc": 100}, rows, full)["abc"]["differing"] == 0


def test_workers_that_only_carry_a_spec_load_neither_scipy_nor_torch() -> None:
    code = "import sys, pipeline.calibration.audit; print({'scipy', 'torch', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "{'numpy'}\n"


def blank_receipt(shard: str) -> Receipt:
    return Receipt(shard=shard, file="f", size=1, version="m", start=0, span=0, last=True)


def judge(totals: Totals, guarantee: Guarantee, earlier: Sequence[Night] = ()) -> AuditResult:
    """Judge totals as those of a night after some others."""
    return verdict.judge(totals, guarantee, [*earlier, Night(audited=totals.audited, differing=totals.differing)])


def totals_with(audited: int, differing: int) -> Totals:
    totals = Totals()
    for shard in ("a", "b"):
        receipt = replace(
            blank_receipt(shard), rows_out=50, exits=[30, 20], length_histogram=[25, 25, *[0] * 9],
            flops=100.0, flops_full_depth=250.0, seconds={"classify": 10.0, "audit": 2.0},
            audited=audited // 2, differing=differing // 2, early_seconds=0.5, full_seconds=1.5, audit_flops=2.5,
        )  # fmt: skip
        totals = totals.plus(receipt)
    return totals


@pytest.mark.parametrize(
    ("audited", "differing", "verdict"),
    [(2000, 4, "kept"), (2000, 20, "open"), (100, 0, "open"), (2000, 60, "broken"), (2000, 30, "open"), (0, 0, "none")],
)
def test_a_limit_is_kept_or_broken_only_if_the_rows_prove_it(audited: int, differing: int, verdict: str) -> None:
    result = judge(totals_with(audited, differing), Guarantee(limits=Limits(max_disagreement=0.01)))
    assert (result.rows, result.differing, result.verdict) == (audited, differing, verdict)
    if audited:
        assert result.at_most == upper_bound(differing, audited, 0.95)
        assert result.at_least == lower_bound(differing, audited, 0.95)
    assert result.failed == (verdict == "broken")


def test_drift_alarms_and_fails_unless_the_limit_is_proved_to_be_kept() -> None:
    reference = reference_of(np.repeat([5, 300], 500), np.zeros(1000, np.bool_), np.linspace(0, 1, 1000))
    guarantee = Guarantee(limits=Limits(max_disagreement=0.01), reference=reference, exits=(600, 400))
    few, many, worse = (judge(totals_with(*counts), guarantee) for counts in ((100, 0), (2000, 4), (2000, 60)))
    assert few.alarms == many.alarms == ["length"]
    assert [result.failed for result in (few, many, worse)] == [True, False, True]
    states = {signal.name: signal.state for signal in few.signals}
    assert states == {"exits": "ok", "truncation": "ok", "length": "alarm"}
    assert "length" in summary(few)[3]
    assert "(ALARM)" in summary(few)[3]
    good = [Night(rows=10_000, audited=10_000, differing=10)]
    pooled = judge(totals_with(100, 0), guarantee, good)
    assert (pooled.verdict, pooled.failed) == (
        "kept",
        True,
    )  # what was good before says nothing of rows of another kind


def test_uncertainty_in_the_bins_of_another_calibration_is_not_compared() -> None:
    """A run that was withheld goes on after its model was calibrated again, with thresholds that came out the same."""
    reference = reference_of(np.repeat([5, 300], 500), np.zeros(1000, np.bool_), np.linspace(0, 1, 1000))
    counts = {"uncertainty": [10.0] * (len(reference.uncertainty) + 1), "truncation": [100.0, 0.0]}
    assert [signal.name for signal in reference.signals((), counts)] == ["truncation"]


@pytest.mark.parametrize(
    ("limits", "proved"),
    [  # 4 of 2,000 audited rows differ, none of the 50 rare ones
        (Limits(max_disagreement=0.01), True),
        (Limits(max_quality_loss=0.01), True),
        (Limits(max_quality_loss=0.001), False),
        (Limits(max_missed=((None, 0.2),)), True),
        (Limits(max_missed=(("rare", 0.02),)), False),
        (Limits(max_disagreement=0.01, max_missed=(("rare", 0.02),)), False),
        (Limits(), True),
    ],
)
def test_whatever_is_limited_has_to_be_proved_if_rows_have_drifted(limits: Limits, proved: bool) -> None:
    reference = reference_of(np.repeat([5, 300], 500), np.zeros(1000, np.bool_), np.linspace(0, 1, 1000))
    guarantee = Guarantee(limits=limits, reference=reference, exits=(600, 400), labels=("often", "rare"))
    result = judge(replace(totals_with(2000, 4), audited_by_class=[1950, 50], missed_by_class=[4, 0]), guarantee)
    assert result.alarms == ["length"]
    assert (result.proved, result.failed) == (proved, not proved)
    if limits.max_missed:  # too many classes to be counted one by one
        assert not judge(totals_with(2000, 4), guarantee).proved


def test_all_nights_together_tell_what_one_cannot() -> None:
    guarantee, tonight = Guarantee(limits=Limits(max_disagreement=0.01)), totals_with(100, 2)
    assert judge(tonight, guarantee).verdict == "open"
    bad = [Night(published=f"2026-11-{day:02}", audited=100, differing=3) for day in range(1, 20)]
    broken = judge(tonight, guarantee, bad)
    assert (broken.verdict, broken.failed, broken.broken_since) == ("broken", True, "2026-11-01")
    assert "59 of 2,000 audited rows in 20 nights" in summary(broken)[1]
    assert "broken, since 2026-11-01" in summary(broken)[1]
    good = [Night(audited=100, differing=0) for _ in range(20)]
    kept = judge(totals_with(100, 0), guarantee, good)
    assert (kept.verdict, kept.failed) == ("kept", False)
    assert kept.at_most > 0.01 >= kept.ever_at_most  # one night of 100 rows could never tell
    without = judge(Totals(), guarantee, good)  # a night without an audit
    assert without.verdict == "kept"
    assert summary(without)[0].startswith("all nights   0 of 2,000 audited rows in 20 nights")


def test_an_open_verdict_says_how_many_more_rows_would_tell() -> None:
    guarantee = Guarantee(limits=Limits(max_disagreement=0.01))
    few = judge(totals_with(100, 0), guarantee)
    assert f"about {few.rows_to_tell:,} more audited rows would tell" in summary(few)[1]
    assert few.rows_to_tell is not None
    then = judge(totals_with(100, 0), guarantee, [Night(audited=few.rows_to_tell)])
    assert then.verdict == "kept"
    assert judge(totals_with(100, 0), guarantee, [Night(audited=few.rows_to_tell - 1)]).verdict == "open"
    at_the_limit = judge(totals_with(100, 0), guarantee, [Night(audited=100, differing=2)])
    assert at_the_limit.rows_to_tell is None
    assert "no number of rows would tell" in summary(at_the_limit)[1]


def test_cost_is_that_of_full_depth_by_the_audited_rows() -> None:
    result = judge(totals_with(2000, 4), Guarantee(limits=Limits(max_disagreement=0.01), price_per_hour=36.0))
    assert (result.flops, result.flops_full_depth, result.audit_flops) == (200, 500, 5)
    assert (result.device_seconds, result.audit_seconds, result.full_depth_seconds) == (20, 4, 60)
    assert result.money(20) == pytest.approx(0.2)
    cost = summary(result)[-1]
    assert "20.0 device-seconds, 0.24 in money with the audit; full depth 500 FLOPs, about 60.0 device-seconds" in cost
    assert "so 0.36 saved" in cost
    assert set(result.to_json()) == {"audit", "drift", "cost", "guarantee"}
    plain = judge(Totals(), Guarantee())
    assert isinstance(plain, AuditResult)
    assert (plain.verdict, plain.full_depth_seconds, len(summary(plain))) == ("none", None, 1)
