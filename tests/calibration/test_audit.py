"""The audit: the same rows at every call, counts as by hand, verdicts, and what it says of cost."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.calibration.audit import AuditResult, AuditSpec, Guarantee, audit, drawn, judge, summary
from pipeline.calibration.drift import bin_counts, length_counts, reference_of
from pipeline.calibration.guarantees import lower_bound, upper_bound
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.output.receipts import Receipt
from pipeline.output.totals import Totals
from tests.support.models import random_rows

SPEC = AuditSpec(share=0.3, uncertainty_edges=(0.2, 0.5, 0.8))


@given(shard=st.text("0123456789abcdef", min_size=1, max_size=16), rows=st.integers(0, 500), share=st.floats(0.01, 1))
def test_a_repeated_shard_draws_the_same_rows_and_a_longer_one_draws_them_too(
    shard: str, rows: int, share: float
) -> None:
    places = drawn(shard, rows, share)
    assert places.tolist() == drawn(shard, rows, share).tolist()
    assert places.tolist() == [place for place in drawn(shard, rows + 50, share) if place < rows]
    assert set(places) <= set(drawn(shard, rows, min(1.0, share * 1.5)))


def test_rows_are_drawn_with_the_wanted_probability_in_every_place() -> None:
    counts = np.zeros(50)
    for shard in range(2000):
        counts[drawn(f"{shard:x}", 50, 0.1)] += 1
    assert counts.sum() == pytest.approx(10_000, abs=400)
    assert counts.min() > 140
    assert counts.max() < 260


def test_an_audit_counts_what_two_runs_by_hand_say(exit_model: EarlyExitModel) -> None:
    rows = random_rows(300, 40, seed=1)
    engine = Engine(LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.5), dtype="fp32")))
    answers = engine.run(rows)
    full = Engine(LoadedModel(exit_model, EngineConfig(dtype="fp32"))).run(rows)
    sums = audit(engine, SPEC, "abc", rows, answers)
    places = drawn("abc", 300, 0.3)
    assert sums["audited"] == len(places)
    assert sums["differing"] == (answers.label_ids != full.label_ids)[places].sum() > 0
    assert [sums[f"length {n}"] for n in range(11)] == length_counts(rows.lengths)
    assert [sums[f"uncertainty {n}"] for n in range(4)] == bin_counts(full.uncertainty[places], SPEC.uncertainty_edges)
    flops = engine.flops.rows(rows.lengths, answers.exit_layers)[places].sum()
    flops += engine.flops.full_depth(rows.lengths)[places].sum()
    assert sums["audit_flops"] == pytest.approx(flops)
    assert min(sums["early_seconds"], sums["full_seconds"]) > 0
    again = audit(engine, SPEC, "abc", rows, answers)
    timed = ("early_seconds", "full_seconds")
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in sums.items() if k not in timed}
    assert set(audit(engine, AuditSpec(share=0.0), "abc", rows, answers)) == {f"length {n}" for n in range(11)}


def test_values_differ_when_they_are_further_apart_than_the_tolerance(exit_model: EarlyExitModel) -> None:
    rows = random_rows(100, 40, seed=1)
    engine = Engine(LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.5), dtype="fp32")))
    full = engine.with_criterion(Criterion()).run(rows)
    assert audit(engine, replace(SPEC, share=1.0), "abc", rows, full)["differing"] == 0


def totals_with(audited: int, differing: int, **more: float) -> Totals:
    totals = Totals()
    sums = {"audited": audited, "differing": differing, "early_seconds": 1.0, "full_seconds": 3.0, "audit_flops": 5.0}
    lengths = {"length 0": 50.0, "length 1": 50.0} | {f"length {n}": 0.0 for n in range(2, 11)}
    for shard in ("a", "b"):
        half = {name: value / 2 for name, value in (sums | lengths | more).items()}
        receipt = Receipt(
            shard=shard, file="f", size=1, version="m", start=0, last=True, input_bytes=1, rows_out=50, exits=[30, 20],
            flops=100.0, flops_full_depth=250.0, seconds={"classify": 10.0, "audit": 2.0}, sums=half,
        )  # fmt: skip
        totals.add(receipt)
    return totals


@pytest.mark.parametrize(
    ("audited", "differing", "verdict"),
    [(2000, 4, "kept"), (2000, 20, "open"), (100, 0, "open"), (2000, 60, "broken"), (2000, 30, "open"), (0, 0, "none")],
)
def test_a_limit_is_kept_or_broken_only_if_the_rows_prove_it(audited: int, differing: int, verdict: str) -> None:
    found = judge(totals_with(audited, differing), Guarantee(limit=0.01))
    assert (found.rows, found.differing, found.verdict) == (audited, differing, verdict)
    if audited:
        assert found.at_most == upper_bound(differing, audited, 0.95)
        assert found.at_least == lower_bound(differing, audited, 0.95)
    assert found.failed == (verdict == "broken")


def test_drift_alarms_and_fails_unless_the_limit_is_proved_to_be_kept() -> None:
    reference = reference_of(np.repeat([5, 300], 500), np.zeros(1000, np.bool_), np.linspace(0, 1, 1000))
    guarantee = Guarantee(limit=0.01, reference=reference, exits=(600, 400))
    few, many, worse = (judge(totals_with(*counts), guarantee) for counts in ((100, 0), (2000, 4), (2000, 60)))
    assert few.alarms == many.alarms == ["length"]
    assert [found.failed for found in (few, many, worse)] == [True, False, True]
    states = {signal.name: signal.state for signal in few.signals}
    assert states == {"exits": "ok", "truncation": "ok", "length": "alarm"}
    assert "length" in summary(few)[2]
    assert "(ALARM)" in summary(few)[2]


def test_cost_is_that_of_full_depth_by_the_audited_rows() -> None:
    found = judge(totals_with(2000, 4), Guarantee(limit=0.01, price_per_hour=36.0))
    assert (found.flops, found.flops_full_depth, found.audit_flops) == (200, 500, 5)
    assert (found.device_seconds, found.audit_seconds, found.full_depth_seconds) == (20, 4, 60)
    assert found.money(20) == pytest.approx(0.2)
    cost = summary(found)[-1]
    assert "20.0 device-seconds, 0.24 in money with the audit; full depth 500 FLOPs, about 60.0 device-seconds" in cost
    assert "so 0.36 saved" in cost
    told = found.to_json()
    assert set(told) == {"audit", "drift", "cost"}
    plain = judge(Totals(), Guarantee())
    assert isinstance(plain, AuditResult)
    assert (plain.verdict, plain.full_depth_seconds, len(summary(plain))) == ("none", None, 1)
