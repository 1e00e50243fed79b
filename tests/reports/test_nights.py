"""All nights on the page of a run: what is charted of them, and that it is theirs."""

from dataclasses import replace

import pytest

from pipeline.nights import Night
from pipeline.reports.nights import over_nights
from pipeline.reports.page import Lines, Table
from pipeline.reports.run_report import run_page
from tests.support.reports import AUDIT, HOSTILE, example_run, many_nights


def test_the_page_shows_all_nights() -> None:
    def charts_of(nights: list[Night]) -> dict[str, Lines]:
        sections = over_nights(replace(AUDIT, all_nights=nights), {HOSTILE: 4000})
        return {chart.title: chart for chart in sections if isinstance(chart, Lines)}

    charts = charts_of(many_nights())
    assert [*charts] == [
        "Disagreement with full depth, over the nights",
        "Expected disagreement over the nights",
        "Savings over the nights",
        "Drift over the nights",
        "Classes over the nights",
    ]
    disagreement = charts["Disagreement with full depth, over the nights"]
    assert (disagreement.first, disagreement.last) == ("2026-10-01", "tonight")
    lines = disagreement.values
    between = zip(lines["at least"], lines["differ"], lines["at most"], strict=True)
    assert all(low <= mean <= high for low, mean, high in between)
    assert lines["differ"][-1] == pytest.approx(100 * (20 + 60 + 15) / 6000)
    assert lines["limit"] == [1.0] * 30
    expected = charts["Expected disagreement over the nights"].values
    assert len(expected["expected"]) == 29  # one night is of before it was known
    assert [
        expected[name][-1] for name in ("at least", "expected", "at most", "calibration", "limit")
    ] == pytest.approx([1.1, 1.4, 1.8, 0.7, 1.0])
    assert charts["Savings over the nights"].values["fewer FLOPs"] == [4.0] * 20 + [2.0] * 10
    assert charts["Drift over the nights"].values["length"][-2:] == [0.3, 0.31]  # tonight's is the audit's own
    assert charts["Classes over the nights"].values[HOSTILE][0] == pytest.approx(5)
    assert charts_of(many_nights(1)) == charts_of([]) == {}
    year = charts_of(many_nights(400))
    assert {len(line) for chart in year.values() for line in chart.values.values()} == {366}
    plain = [Night(published=night.published, rows=5, flops=1.0, flops_full_depth=2.0) for night in many_nights()]
    assert "Disagreement with full depth, over the nights" not in charts_of(plain)
    (alarms,) = [s for s in over_nights(replace(AUDIT, all_nights=many_nights()), {}) if isinstance(s, Table)]
    assert [row[0] for row in alarms.rows] == ["tonight"] * 3 + [f"2026-10-{day}" for day in range(29, 20, -1)]
    assert alarms.rows[0][1].startswith(
        "expected disagreement: 1.400% (calibration 0.700%, limit 1.000%): rows that exit"
    )
    page = run_page(example_run())
    assert "rows that go beyond layer 4 went from 5.0% to 10.2%" in page
    assert "Classes over the nights" in page
    assert HOSTILE[:20] not in page
