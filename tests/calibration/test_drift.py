"""Drift in expected disagreement and in hard rows: counts as row by row, bounds that hold, alarms that name what moved."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import chdtri

from models.exits.criterion import Criterion
from pipeline.calibration.curve import Curve
from pipeline.calibration.drift.cells import BINS, EDGES, cells_of, count_cells
from pipeline.calibration.drift.expected import (
    ComparedCells,
    Risks,
    expected_disagreement,
    joined_cells,
    standardized_bounds,
)
from pipeline.calibration.drift.hard import hard_rows
from pipeline.calibration.drift.predictions import prediction_signals
from pipeline.calibration.drift.signals import compare
from pipeline.calibration.fit import fit_curve
from pipeline.calibration.limits.limits import Limits
from pipeline.calibration.summary import summary
from pipeline.calibration.verdict import Guarantee, judge
from pipeline.output.totals import Totals
from pipeline.predicted import Comparison, Predicted, PredictionBins
from tests.support.samples import made_up

SAMPLE = made_up(3000, 5)
CURVE: Curve = fit_curve(SAMPLE, Criterion(speed=1.0))


@given(rows=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, width=32), st.booleans()), max_size=40))
def test_cells_count_rows_as_one_by_one(rows: list[tuple[int, float, bool]]) -> None:
    exits, uncertainty, differs = (
        (np.array(column) for column in zip(*rows, strict=True)) if rows else [np.zeros(0)] * 3
    )
    counted = count_cells(exits.astype(np.int64), uncertainty, differs.astype(np.bool_), 3)
    slow = np.zeros((2, 3 * BINS + 1), np.int64)
    for exit_, doubt, other in rows:
        cell = 3 * BINS if exit_ == 3 else exit_ * BINS + sum(doubt > edge for edge in EDGES)
        slow[:, cell] += (1, other)
    assert counted.tolist() == slow.tolist()


def test_risks_are_those_of_the_tested_rows_and_add_up_to_what_differs() -> None:
    for point in range(0, len(CURVE.speeds), 40):
        risks = CURVE.risks_at(point)
        assert risks is not None
        assert sum(risks.differing) == CURVE.differing[point]
        assert sum(risks.rows) == CURVE.tested
        slow: dict[int, list[int]] = {}
        for row in range(len(SAMPLE)):
            certain = [i for i in range(3) if 0 < np.float32(CURVE.speeds[point][i]) >= SAMPLE.uncertainty[i, row]]
            exit_ = certain[0] if certain else 3
            doubt = 0.0 if exit_ == 3 else float(SAMPLE.uncertainty[exit_, row])
            cell = min(exit_ * BINS + sum(doubt > edge for edge in EDGES), 3 * BINS)
            seen = slow.setdefault(cell, [0, 0])
            seen[0] += 1
            seen[1] += exit_ < 3 and bool(SAMPLE.differs[exit_, row])
        assert {cell: [risks.rows[cell], risks.differing[cell]] for cell in slow} == slow
    low, between, high = (CURVE.risks_at(point) for point in (40, 40.25, 41))
    assert low is not None and between is not None and high is not None  # noqa: PT018
    assert between.rows == pytest.approx(0.75 * np.array(low.rows) + 0.25 * np.array(high.rows))


def test_a_choice_knows_its_point_of_the_path() -> None:
    choice = CURVE.at_speedup(2.0)
    risks = CURVE.risks_at(choice.point)
    assert risks is not None
    by_layer = [sum(risks.rows[index * BINS : (index + 1) * BINS]) for index in range(3)]
    assert [*by_layer, risks.rows[-1]] == pytest.approx(choice.exits)  # all rows are tested in a small sample


@given(rows=st.lists(st.lists(st.integers(0, 60), min_size=4, max_size=4), max_size=5), least=st.integers(1, 100))
def test_cells_are_joined_with_neighbors_until_each_has_enough_rows(rows: list[list[int]], least: int) -> None:
    table = np.array(rows, np.float64).reshape(-1, 4)
    runs = joined_cells(table, least)
    assert sorted(np.concatenate([np.zeros(0, np.int64), *runs]).tolist()) == list(range(table.size))
    sums = [table.ravel()[run].sum() for run in runs]
    assert min(sums, default=least) >= least or (len(runs) == 1 and table.sum() < least)
    for run in runs:  # no exit with enough rows of its own shares a run with another one that has enough
        whole = [index for index in set(run // 4) if table[index].sum() >= least]
        assert len(whole) <= 1


def test_bounds_of_one_cell_are_those_of_a_poisson_count() -> None:
    low, high = standardized_bounds(np.array([7.0]), np.array([0.001]), 0.95)
    assert low == pytest.approx(0.001 * chdtri(14, 0.95) / 2)
    assert high == pytest.approx(0.001 * chdtri(16, 0.05) / 2)
    assert standardized_bounds(np.zeros(3), np.array([0.1, 0.2, 0.0]), 0.95)[0] == 0.0
    assert standardized_bounds(np.zeros(0), np.zeros(0), 0.95) == (0.0, 0.0)


def test_bounds_hold_as_often_as_stated() -> None:
    """500 calibrations of 2,000 rows: 25 may miss on a side, and 45 or more would happen by chance once in 5,000."""
    random, p, risk = np.random.default_rng(0), np.array([0.6, 0.3, 0.1]), np.array([0.001, 0.01, 0.05])
    q = np.array([0.5, 0.3, 0.2])
    seen = random.multinomial(2000, p, 500)
    bounds = [standardized_bounds(random.binomial(n, risk).astype(float), q / n, 0.95) for n in seen]
    assert sum(high < q @ risk for _, high in bounds) < 45
    assert sum(low > q @ risk for low, _ in bounds) < 45


RISKS = Risks(
    layers=(1, 3),
    depth=4,
    rows=(2000, 1500, 0, 0, 0, 0, 0, 0, 0, 0, 1800, 0, 300, 0, 0, 0, 400),
    differing=(2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 30, 0, 0, 0, 0),
)
"""A calibration by hand: 5 % of its 6,000 rows are hard, and carry most of its disagreement of 0.7 %."""
P = np.array(RISKS.rows) / 6000


def night(fractions: np.ndarray, rows: int, seed: int) -> list[int]:
    """Draw a night, by cell of all four layers; those of full depth are spread over the bins."""
    drawn = np.random.default_rng(seed).multinomial(rows, fractions)
    table = np.zeros((4, BINS), np.int64)
    table[0], table[2] = drawn[:-1].reshape(2, BINS)
    table[3, 2:4] = drawn[-1] // 2, drawn[-1] - drawn[-1] // 2
    return table.ravel().tolist()


def harder(fraction: float) -> np.ndarray:
    """Give the hard rows this fraction."""
    moved = P * (1 - fraction) / (1 - P[12])
    moved[12] = fraction
    return moved


def totals_of(counts: list[int]) -> Totals:
    exits = np.reshape(counts, (4, BINS)).sum(1).tolist()
    return Totals(rows_out=sum(counts), exits=exits, exit_uncertainty=counts)


GUARANTEE = Guarantee(limits=Limits(max_disagreement=0.01), exits=(3500, 0, 2100, 400), risks=RISKS)


def test_what_is_expected_is_what_each_row_brings_along() -> None:
    counts = night(harder(0.2), 5000, 0)
    cells = ComparedCells.of(counts, RISKS)
    assert cells is not None
    found = expected_disagreement(cells, limit=0.01)
    slow = 0.0
    for cell, number in enumerate(counts):
        layer, bin_ = cell // BINS + 1, cell % BINS
        risk = {(1, 0): 2 / 2000, (1, 1): 3 / 1500, (3, 2): 7 / 1800, (3, 4): 30 / 300}.get((layer, bin_), 0.0)
        slow += number * risk / 5000
    assert found.expected == pytest.approx(slow)
    assert found.at_least < found.expected < found.at_most
    assert found.calibration == pytest.approx(0.007)
    assert found.rows == 5000
    same = ComparedCells.of(night(P, 6000, 0), RISKS)
    assert same is not None
    assert ComparedCells.of([0] * 4 * BINS, RISKS) is None
    assert ComparedCells.of([], RISKS) is None
    exact = expected_disagreement(replace(same, now=same.seen))
    assert exact.expected == pytest.approx(exact.calibration)


def test_hard_rows_that_double_alarm_and_ordinary_nights_do_not() -> None:
    for seed in range(10):
        ordinary = judge(totals_of(night(P, 3000, seed)), GUARANTEE, [])
        assert {name: signal.state for name, signal in ordinary.drift.items() if signal.state != "ok"} == {}
        drifted = judge(totals_of(night(harder(0.1), 3000, seed)), GUARANTEE, [])
        assert drifted.alarms == ["expected disagreement", "hard rows"]
        psi = compare("x", [5700, 300], [2700, 300])  # what did not see it
        assert (psi.state, psi.psi < 0.04, psi.one_moved) == ("watch", True, True)
    (line,) = [line for line in summary(drifted) if line.startswith("drift alarm  expected")]
    assert (
        "(calibration 0.700%, limit 1.000%): rows that exit at layer 3 with uncertainty 0.2 to 0.3 went from 5.0% to"
        in line
    )
    (line,) = [line for line in summary(drifted) if line.startswith("drift alarm  hard rows")]
    assert "rows where 10.0% or more differ went from 5.0% to" in line
    block = drifted.to_json()["expected_disagreement"]
    assert isinstance(block, dict)
    assert (block["state"], block["rows"], block["limit"]) == ("alarm", 3000, 0.01)
    few = judge(totals_of(night(harder(0.1), 60, 0)), GUARANTEE, [])
    assert few.alarms == []
    easier = judge(totals_of(night(harder(0.01), 3000, 0)), GUARANTEE, [])
    assert "expected disagreement" not in easier.alarms
    assert judge(totals_of(night(P, 3000, 0)), replace(GUARANTEE, risks=None), []).expected is None


def test_more_than_the_limit_alarms_though_the_calibration_was_near_it() -> None:
    cells = ComparedCells.of(night(P, 6000, 0), RISKS)
    assert cells is not None
    near = replace(expected_disagreement(cells), expected=0.0082, calibration=0.007, chance=0.001)
    states = [replace(near, limit=limit).state for limit in (None, 0.01, 0.008)]
    assert states == ["watch", "watch", "alarm"]
    assert replace(near, chance=0.002, limit=0.008).state == "ok"
    assert replace(near, expected=0.0088).state == "alarm"


@given(data=st.data())
def test_hard_rows_are_the_tails_that_grew(data: st.DataObject) -> None:
    counts = st.lists(st.integers(0, 5000), min_size=4, max_size=4)
    before, now = data.draw(counts), data.draw(counts)
    found = hard_rows(before, now)
    if not sum(before) or not sum(now):
        assert found is None
        return
    tails = {layer: (sum(before[layer:]) / sum(before), sum(now[layer:]) / sum(now)) for layer in (1, 2, 3)}
    assert found is not None
    assert (found.calibration, found.now) in tails.values()
    grown = [(p, q) for p, q in tails.values() if q - p >= 0.02 and q >= 1.25 * p]
    assert grown or found.state != "alarm"
    if found.state != "ok":
        assert found.now - found.calibration > found.chance > 0


def test_rows_that_go_deep_are_hard_and_named() -> None:
    found = hard_rows([5000, 3000, 1500, 500], [4700, 2800, 1500, 1000])
    assert found is not None
    assert (found.state, found.moved) == ("alarm", "rows that go beyond layer 3 went from 5.0% to 10.0%")
    assert hard_rows((), [1, 2]) is None
    few = hard_rows([5000, 3000, 1500, 500], [47, 28, 15, 10])
    assert few is not None
    assert few.state == "ok"


def test_classes_and_scores_are_compared_with_all_nights_before() -> None:
    bins = PredictionBins.of(["label", "score"], ["good", "bad", "spam"])

    def predicted(counts: list[int]) -> Predicted:
        return Predicted.of(bins, rows=sum(counts), classes=counts, scores=[0] * 18 + [sum(counts[1:]), counts[0]])

    before, now = predicted([7000, 2900, 100]), predicted([580, 280, 140])
    compared = Comparison(bins=bins, all=predicted([7580, 3180, 240]), new=now, all_before=before)
    classes, scores = prediction_signals(compared)
    assert (classes.name, classes.state) == ("classes", "alarm")
    assert classes.moved == "rows of class spam went from 1.0% to 14.0%"
    assert (scores.name, scores.state) == ("scores", "ok")
    assert scores.moved.startswith("rows of score 0.")
    assert prediction_signals(Comparison(bins=bins, all=now, new=now, all_before=before)) == []  # of an overwritten run
    assert prediction_signals(Comparison()) == []


def test_cells_lie_between_their_edges() -> None:
    assert cells_of(np.array([0, 1, 1]), [0.0, 0.01, 0.9]).tolist() == [0, BINS, 2 * BINS - 1]
