"""The line that says how far a run is: over the whole folder, at the rate of this run."""

import io
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bulk.progress import MAX_BINS, ROWS, Progress, Timeline, duration, slowest_stage
from pipeline.output.receipts import Receipt
from pipeline.output.totals import Totals


def totals_of(*shards: tuple[int, list[int]]) -> Totals:
    """Add up shards of 100 bytes, given by rejects and rows by exit layer."""
    totals = Totals()
    for number, (rejects, exits) in enumerate(shards):
        totals = totals.plus(
            Receipt(
                shard=f"{number:016x}",
                file="a.txt",
                size=1000,
                version="1",
                start=0,
                span=0,
                last=False,
                input_bytes=100.0,
                rows_in=sum(exits) + rejects,
                rows_out=sum(exits),
                rejected={"null_text": rejects},
                exits=exits,
            )
        )
    return totals


def test_a_line_counts_what_earlier_runs_did_and_the_rate_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1000.0, 1002.0, 1002.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    progress = Progress(totals_of((1, [9, 0]), (0, [10, 0])), bytes_left=800, stream=io.StringIO())
    line = progress.line(totals_of((3, [0, 17]), (0, [20, 0])))
    assert line == " 40%  60 rows  20 rows/s  0:06 left  mean exit 1.30  4 rejects  waiting for reading"
    assert progress.line(Totals()).startswith(" 20%  20 rows  0 rows/s  ? left  mean exit 1.00  1 rejects")


def receipt_of(file: str, start: int, input_bytes: float, *, last: bool = False) -> Receipt:
    return Receipt(
        shard="0" * 16, file=file, size=1, version="1", start=start, span=10, last=last, input_bytes=input_bytes,
        rows_in=10, rows_out=10, exits=[10],
    )  # fmt: skip


def test_no_time_is_left_to_tell_while_the_files_that_were_read_are_packed_a_thousandfold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file of 50 KB is read in one piece with its first bundle, which then stands for all of it."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress, fresh = Progress(Totals(), bytes_left=20 * 50_000, stream=io.StringIO()), Totals()

    def line_after(*receipts: Receipt) -> str:
        nonlocal fresh
        for one in receipts:
            clock[0] += 1
            fresh = fresh.plus(one)
            progress.update(fresh, Totals().plus(one), [one])
        return progress.line(fresh)

    assert line_after(*(receipt_of(f"{number}.gz", 0, 50_000) for number in range(4))).startswith(
        "  0%  40 rows  10 rows/s  ? left"
    )
    for number in range(4):
        line = line_after(*(receipt_of(f"{number}.gz", 10 * n, 0) for n in range(1, 25)))
        assert ("  ? left" in line) == (number < 3)
        line_after(receipt_of(f"{number}.gz", 250, 0, last=True))
    assert progress.line(fresh).startswith(" 20%  1,040 rows  10 rows/s  6:56 left")  # 104 s for 4 files of 20
    assert "  ? left" in line_after(*(receipt_of(f"{number}.gz", 0, 50_000) for number in range(4, 8)))
    assert " 21%" in line_after(receipt_of("large.txt", 0, 75_536))  # of which one piece is not done
    plain = Progress(Totals(), bytes_left=10_000_000, stream=io.StringIO())
    clock[0] += 1
    big = receipt_of("large.parquet", 0, 1_000_000)
    plain.update(Totals().plus(big), Totals().plus(big), [big])
    assert plain.line(Totals().plus(big)).startswith("  9%  10 rows  10 rows/s  0:10 left")


def test_progress_leaves_the_totals_alone_that_it_is_given() -> None:
    before, fresh = totals_of((1, [9, 0])), totals_of((0, [0, 10]))
    progress = Progress(before, bytes_left=100, stream=io.StringIO())
    for _ in range(3):
        progress.update(fresh, fresh)
    assert (before, fresh) == (totals_of((1, [9, 0])), totals_of((0, [0, 10])))


def test_a_terminal_gets_a_live_line_and_a_log_one_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    terminal, log = io.StringIO(), io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    fresh = totals_of((0, [10, 0]))
    shown = [Progress(Totals(), 100, stream) for stream in (terminal, log)]
    for clock[0] in (1.0, 2.0, 11.0, 12.0, 30.0):
        for progress in shown:
            progress.update(fresh, fresh)
    for progress in shown:
        progress.close(fresh)
    assert len(re.findall("\r\x1b\\[K100%  10 rows", terminal.getvalue())) == 5
    assert terminal.getvalue().endswith("waiting for reading\n")
    assert [line[:13] for line in log.getvalue().splitlines()] == ["100%  10 rows"] * 2


@pytest.mark.parametrize(
    ("waits", "stage"),
    [
        ({}, "read"),
        ({"tokenize": 50.0}, "tokenize"),
        ({"tokenize": 50.0, "classify": 19.0}, "classify"),  # what is held back before the model waits as well
        ({"tokenize": 2.0, "classify": 19.0, "write": 2.0}, "classify"),  # a task takes a moment to start
        ({"tokenize": 5.0, "classify": 19.0, "write": 20.0}, "write"),
    ],
)
def test_the_stage_that_holds_the_others_up_is_the_last_with_a_queue(waits: dict[str, float], stage: str) -> None:
    assert slowest_stage(waits, elapsed=10.0) == stage


def test_the_line_says_what_the_run_waits_for_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress(Totals(), 100, io.StringIO())
    for stage, words in (("tokenize", "the tokenizer"), ("classify", "the model")):
        for _ in range(20):
            clock[0] += 1.0
            done = replace(totals_of((0, [10, 0])), waits={stage: 3.0})
            progress.update(done, done)
        assert progress.line(done).endswith(f"waiting for {words}")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (float("nan"), "?"), (float("inf"), "?")]
)
def test_durations_are_written_as_people_read_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


moments = st.lists(
    st.tuples(st.floats(0.0, 3.0) | st.floats(0.0, 5000.0), st.integers(0, 1000), st.floats(0.0, 9.0)),
    min_size=2,
    max_size=400,
)
"""Time since the bundle before, rows, and seconds in a stage, by bundle."""


@given(moments, st.integers(1, 60))
def test_a_timeline_keeps_all_sums_in_few_bins(bundles: list[tuple[float, int, float]], steps: int) -> None:
    timeline, at = Timeline(), 3.0
    for wait, rows, seconds in bundles:
        at += wait
        timeline.add(replace(Totals(), rows_in=rows, seconds={"read": seconds}), at)
    assert len(timeline._bins) <= MAX_BINS
    assert (timeline.bundles, timeline.last) == (len(bundles), at)
    if timeline.last > timeline.first:
        span = timeline.last - timeline.first
        for name, number in ((ROWS, 1), ("read", 2)):
            rates = timeline.rates(name, steps)
            assert len(rates) == steps
            assert min(rates) >= 0
            total = sum(bundle[number] for bundle in bundles[1:])
            assert sum(rates) * span / steps == pytest.approx(total, abs=1e-6)


def test_a_timeline_shows_when_work_was_done() -> None:
    """Of a run of ten hours whose second half is three times as fast."""
    timeline = Timeline()
    for minute in range(601):
        rows = 100 if minute <= 300 else 300
        timeline.add(replace(Totals(), rows_in=rows, seconds={"read": 6.0}), 60.0 * minute)
    rates = timeline.rates(ROWS, 10)
    assert rates == pytest.approx([100 / 60] * 5 + [300 / 60] * 5, rel=0.03)
    assert timeline.rates("read", 10) == pytest.approx([0.1] * 10, rel=0.03)
    assert timeline.names == [ROWS, "read"]


def test_a_timeline_of_one_moment_has_no_length() -> None:
    timeline = Timeline()
    for _ in range(3):
        timeline.add(replace(Totals(), rows_in=5), 2.0)
    assert (timeline.first, timeline.last, timeline.bundles) == (2.0, 2.0, 3)
