"""Rows that raise and rows that kill: found by bisection, at a bounded price, and never at the price of a good row."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.bulk.actor import ClassifyBundle
from pipeline.bulk.attempts import MAX_DEATHS, AttemptLog, BrokenStageError, bounded, clear_attempts
from pipeline.bulk.quarantine import PROBE_ROWS, Isolated, isolate
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextRows
from pipeline.rejects import Reason
from pipeline.rows import TokenRows


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of a stage for which a function of a test stands in."""

    name = "classify"
    failure = Reason.CLASSIFY_FAILED

    function: Callable[[range], list[int]]
    broken: bool = False

    def run(self, rows: range) -> list[int]:
        return self.function(rows)

    def probe(self) -> None:
        if self.broken:
            raise RuntimeError("no weights")


def work_of(function: Callable[[range], list[int]], *, broken: bool = False) -> Work:
    return Work(function=function, broken=broken)


def raising(bad: set[int], error: Callable[[str], BaseException] = ValueError) -> Callable[[range], list[int]]:
    def work(rows: range) -> list[int]:
        if bad & {*rows}:
            raise error("bad\nrow")
        return [*rows]

    return work


def rows_of(isolated: Isolated[list[int]]) -> list[int]:
    return [row for piece in isolated.pieces for row in piece]


@given(count=st.integers(1, 400), bad=st.sets(st.integers(0, 399), max_size=6))
def test_rows_that_raise_are_lost_alone_and_the_rest_stays_in_order(count: int, bad: set[int]) -> None:
    bad = {row for row in bad if row < count}
    assume(len(bad) < count)
    calls: list[int] = []

    def work(rows: range) -> list[int]:
        calls.append(len(rows))
        return raising(bad)(rows)

    isolated = isolate(work_of(work), count)
    assert set(isolated.lost) == bad
    assert rows_of(isolated) == sorted({*range(count)} - bad) == isolated.kept(count).tolist()
    assert sum(calls) <= count + len(bad) * 2 * (count + 10)  # a bad row is searched for among halves: n, n/2, n/4 ...
    assert {(problem.reason, problem.detail) for problem in isolated.lost.values()} <= {
        ("classify_failed", "ValueError: bad row")
    }


def test_a_row_too_large_for_the_memory_is_named_so() -> None:
    isolated = isolate(work_of(raising({3}, MemoryError)), 8)
    assert isolated.lost[3].reason == "out_of_memory"


@pytest.mark.parametrize("count", [PROBE_ROWS, 1000])
def test_a_stage_that_fails_on_every_row_of_a_shard_ends_the_run(count: int) -> None:
    tried: list[int] = []

    def work(rows: range) -> list[int]:
        tried.append(len(rows))
        raise RuntimeError("no weights")

    with pytest.raises(BrokenStageError, match="classify fails on every row: RuntimeError: no weights"):
        isolate(work_of(work), count)
    assert len(tried) < 100  # not one try a row


def test_a_few_rows_that_all_fail_are_bad_rows_if_the_stage_works_on_its_probe() -> None:
    isolated = isolate(work_of(raising({0, 1})), 2)
    assert (set(isolated.lost), rows_of(isolated)) == ({0, 1}, [])
    with pytest.raises(BrokenStageError, match="no weights"):
        isolate(work_of(raising({0, 1}), broken=True), 2)


def test_many_bad_rows_at_the_start_of_a_shard_are_no_broken_stage() -> None:
    bad = {*range(3 * PROBE_ROWS)}
    assert set(isolate(work_of(raising(bad)), 1000).lost) == bad


def test_a_request_to_stop_is_no_bad_row(tmp_path: Path) -> None:
    (tmp_path / "_attempts").mkdir()
    attempts = AttemptLog(str(tmp_path / "_attempts" / "x.json"), "a shard")
    with pytest.raises(KeyboardInterrupt):
        isolate(work_of(raising({3}, KeyboardInterrupt)), 8, attempts)
    assert not Path(attempts.path).exists()  # nobody died


class Shard:
    """A shard whose processes die: what they leave is the attempt log, as after `kill -9`."""

    def __init__(self, folder: Path, count: int, deadly: set[int]) -> None:
        self.path, self.count, self.deadly = folder / "_attempts" / "classify-shard.json", count, deadly
        self.path.parent.mkdir(parents=True)
        self.deaths = self.worked = 0

    def one_process(self, die_at: int | None = None) -> Isolated[list[int]] | None:
        """Try the shard in a new process; None if it dies, of a row or at the n-th range of rows that it begins."""
        attempts = AttemptLog(str(self.path), "rows 0 to 9 of a.txt")
        begun = 0

        def work(rows: range) -> list[int]:
            nonlocal begun
            begun += 1
            self.worked += len(rows)
            if self.deadly & {*rows} or begun - 1 == die_at:
                left.append(self.path.read_text())
                raise SystemExit  # unwinds this process; the log is put back, since a real one unwinds nothing
            return [*rows]

        left: list[str] = []
        try:
            return isolate(work_of(work), self.count, attempts)
        except SystemExit:
            self.deaths += 1
            self.path.write_text(left[0])
            return None

    def run(self) -> Isolated[list[int]]:
        while (done := self.one_process()) is None:
            pass
        return done


@given(count=st.integers(1, 300), deadly=st.sets(st.integers(0, 299), max_size=3))
def test_rows_that_kill_are_lost_alone_after_finite_deaths(
    tmp_path_factory: pytest.TempPathFactory, count: int, deadly: set[int]
) -> None:
    shard = Shard(tmp_path_factory.mktemp("out"), count, {row for row in deadly if row < count})
    isolated = shard.run()
    assert set(isolated.lost) == shard.deadly
    assert {problem.reason for problem in isolated.lost.values()} <= {"killed_worker"}
    assert rows_of(isolated) == sorted({*range(count)} - shard.deadly)
    assert shard.deaths <= 1 + len(shard.deadly) * (2 + (count - 1).bit_length())
    assert shard.worked <= count * (2 + 3 * len(shard.deadly))
    assert not shard.path.exists()


@pytest.mark.parametrize("deadly", [set(), {5}])
@pytest.mark.parametrize("count", [1, 16])
def test_a_lost_node_at_any_moment_costs_no_row(tmp_path: Path, count: int, deadly: set[int]) -> None:
    deadly = {row for row in deadly if row < count}
    moments = 0
    for death in range(12):
        for die_at in range(6):
            shard = Shard(tmp_path / f"{death}-{die_at}", count, deadly)
            done, tries = None, 0
            while done is None:
                before = shard.deaths
                done = shard.one_process(die_at if tries == death else None)
                moments += tries == death and shard.deaths > before
                tries += 1
            assert set(done.lost) == deadly
            assert rows_of(done) == sorted({*range(count)} - deadly)
    assert moments >= 6 * len(deadly) + 1


def test_a_row_that_kills_and_then_raises_is_named_by_what_it_did_last(tmp_path: Path) -> None:
    shard = Shard(tmp_path, 32, {7})
    while shard.deaths < 3:
        assert shard.one_process() is None

    def work(rows: range) -> list[int]:
        if 7 in rows:
            raise ValueError("now it raises")
        return [*rows]

    isolated = isolate(work_of(work), 32, AttemptLog(str(shard.path), "a shard"))
    assert isolated.lost[7].reason == "classify_failed"
    assert rows_of(isolated) == [row for row in range(32) if row != 7]


def test_a_shard_that_goes_on_killing_ends_the_run_and_may_be_tried_again(tmp_path: Path) -> None:
    shard = Shard(tmp_path, 4096, {*range(0, 4096, 2)})
    with pytest.raises(BrokenStageError, match=r"65 workers died at rows 0 to 9 of a.txt.*take these rows out"):
        shard.run()
    assert shard.deaths == MAX_DEATHS + 1
    shard.deadly = set()
    assert len(rows_of(shard.run())) == 4096


def test_an_attempt_log_of_other_rows_is_no_use(tmp_path: Path) -> None:
    shard = Shard(tmp_path, 64, {7})
    for _ in range(9):
        shard.one_process()
    shard.count, shard.deadly = 63, set()
    assert rows_of(shard.run()) == [*range(63)]


WHOLE: dict[str, object] = {
    "rows": 64,
    "deaths": 3,
    "at": [0, 32],
    "suspects": [[0, 32], [32, 64]],
    "cleared": [],
    "alone": {},
    "lost": [],
}
"""A log as a process leaves it."""
CHANGES: list[dict[str, object]] = [
    {"suspects": [[0, 32]]},  # half of the rows would be in no range, and lost
    {"suspects": [[0, 32], [32, 64], [0, 64]]},
    {"suspects": [[0, 32], [32, 1 << 40]]},
    {"suspects": [[0, 32], [64, 32]]},
    {"suspects": [[-32, 32], [32, 64]]},
    {"suspects": "all"},
    {"suspects": []},
    {"suspects": [], "lost": [*range(64)]},
    {"suspects": [[0]]},
    {"at": [3, 5]},
    {"at": []},
    {"at": None},
    {"deaths": "many"},
    {"deaths": float("inf")},
    {"alone": []},
    {"alone": {"x": 1}},
    {"lost": [7]},
    {"rows": 63},
]
"""What makes it one that does not account for each of the rows."""


@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"\xff",
        b"[",
        b"[" * 100_000,
        b"null",
        b"[1]",
        b"7",
        b"{}",
        *(json.dumps(WHOLE | change).encode() for change in CHANGES),
    ],
)
def test_a_damaged_attempt_log_counts_as_none(left: bytes, tmp_path: Path) -> None:
    shard = Shard(tmp_path, 64, {7})
    shard.path.write_bytes(left)
    isolated = shard.run()
    assert set(isolated.lost) == {7}
    assert rows_of(isolated) == [row for row in range(64) if row != 7]


@pytest.mark.parametrize("left", [b"", b"\xff", b"many", b"[]", b"{}", b"1e3", b'"3"'])
def test_a_damaged_count_of_deaths_counts_as_none(left: bytes, tmp_path: Path) -> None:
    path = tmp_path / "_attempts" / "start-actor.json"
    path.parent.mkdir()
    path.write_bytes(left)
    with bounded(str(tmp_path), "start-actor", 1, "while they loaded the model"):
        assert path.read_text() == "1"


def test_work_that_kills_every_process_is_not_begun_for_ever(tmp_path: Path) -> None:
    def begin() -> None:
        with bounded(str(tmp_path), "start-actor", 4, "while they loaded the model"):
            left.append(path.read_text())
            raise SystemExit

    path, left = tmp_path / "_attempts" / "start-actor.json", list[str]()
    path.parent.mkdir()
    for _ in range(4):
        with pytest.raises(SystemExit):
            begin()
        path.write_text(left[-1])  # a process that is killed leaves it
    with pytest.raises(BrokenStageError, match="4 workers died while they loaded the model"):
        begin()
    with bounded(str(tmp_path), "start-actor", 4, ""), bounded(None, "start-actor", 0, ""):
        pass
    assert not list(path.parent.iterdir())


def test_attempt_logs_go_when_all_is_done(tmp_path: Path) -> None:
    Shard(tmp_path, 4, {1}).one_process()
    assert json.loads((tmp_path / "_attempts" / "classify-shard.json").read_text())["at"] == [0, 4]
    (tmp_path / "_attempts" / ".tokenize-2923b9734274c4e0.json.89876e02.tmp").touch()  # of a worker that was killed
    (tmp_path / "_attempts" / ".mine.tmp").touch()
    clear_attempts(str(tmp_path))
    assert [path.name for path in (tmp_path / "_attempts").iterdir()] == [".mine.tmp"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_row_whose_logits_are_no_numbers_costs_itself_and_leaves_nothing_behind(
    exit_model: EarlyExitModel, dtype: str
) -> None:
    rows = [[int(token) % 190 for token in range(start, start + 9 + start % 5)] for start in range(40)]
    clean = Engine(LoadedModel(copy.deepcopy(exit_model), EngineConfig(criterion=Criterion(speed=0.6), dtype=dtype)))
    with torch.no_grad():
        exit_model.backbone.embeddings.word_embeddings.weight[199] = torch.nan
    engine = Engine(LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.6), dtype=dtype)))
    bad = [[*row, 199] if number in (3, 20) else row for number, row in enumerate(rows)]
    tokens = TokenRows.from_lists(bad)
    isolated = isolate(ClassifyBundle(engine=TextEngine(engine), texts=TextRows.whole(tokens)), len(bad))
    assert {row: problem.reason for row, problem in isolated.lost.items()} == dict.fromkeys((3, 20), "classify_failed")
    assert isolated.lost[3].detail == "FloatingPointError: the model's logits are no numbers for 1 of 1 rows"
    good = TokenRows.from_lists([row for number, row in enumerate(rows) if number not in (3, 20)])
    np.testing.assert_array_equal(engine.run(good).logits, clean.run(good).logits)
