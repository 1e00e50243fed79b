"""What a run would take, by a sample: which rows that reads, what follows from them, and that nothing of it is left."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bulk import forecast, stages
from pipeline.bulk.bundle import Bundle
from pipeline.bulk.forecast import TASK_PIECES, TASKS, sample_tasks, whole_of
from pipeline.bulk.stages import Sampling
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.plan import Piece, encode_task, plan_reading
from pipeline.corpus.reader import SHARD_ROWS, read_shards
from pipeline.output.totals import Totals
from pipeline.schema import ROW
from tests.support.compressed import COMPRESS, packed
from tests.support.jobs import run_job_here

COLUMNS = Columns(text="text", keep=pa.schema([]))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forecast") / "a.jsonl"
    lines = [json.dumps({"text": f"text {row}" if row % 3 else ""}) for row in range(2 * SHARD_ROWS + 100)]
    path.write_text("\n".join(lines))
    return path


@given(st.integers(0, 40_000))
def test_every_piece_is_sampled_once_or_as_many_as_tasks_may_have(count: int) -> None:
    pieces = [Piece(file=None, size=number) for number in range(count)]  # type: ignore[arg-type]
    tasks = sample_tasks(pieces)
    dealt = [piece.size for task in tasks for piece in task]
    assert len(set(dealt)) == len(dealt) == min(count, TASKS * TASK_PIECES)
    assert len(tasks) <= TASKS
    assert max(map(len, tasks), default=0) <= TASK_PIECES
    assert tasks == sample_tasks(pieces)


def test_the_fraction_of_a_shard_is_that_of_its_rows(file: Path) -> None:
    """Blocks of text are larger than these shards."""
    (listed,) = list_inputs(str(file)).files
    rows = 2 * SHARD_ROWS + 100
    for shard_rows in (300, SHARD_ROWS):
        shards = list(read_shards(listed, COLUMNS, shard_rows=shard_rows))
        assert [len(shard) for shard in shards[:-1]] == [shard_rows] * (len(shards) - 1)
        for shard in shards[:-1]:
            assert shard.fraction == pytest.approx(len(shard) / rows, rel=0.1)
        assert sum(shard.fraction for shard in shards) == pytest.approx(1.0)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_fractions_of_a_file_that_is_packed_tightly_add_up_to_one(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(packed(path, b"the room was clean\n" * 100_000))
    (listed,) = list_inputs(str(path)).files
    fractions = [shard.fraction for shard in read_shards(listed, COLUMNS)]
    assert min(fractions) >= 0
    assert sum(fractions) == pytest.approx(1.0)


def test_a_sample_reads_the_first_rows_of_each_piece(file: Path) -> None:
    files = list_inputs(str(file.parent)).files
    ((piece,),) = plan_reading(files, 4)
    batch = pa.table({"item": [encode_task([piece, piece], {})]})
    bundles = stages._read(batch, COLUMNS, 5, None, Sampling(rows=20, shards=2))
    read = [row for bundle in bundles for row in Bundle.from_arrow(bundle).rows[ROW].to_pylist()]
    once = [row for row in range(40) if row % 3]
    assert read == once + once


@given(
    st.lists(
        st.tuples(st.integers(1, 10**9), st.integers(1, 5000), st.floats(0.001, 1.0), st.booleans()),
        min_size=1,
        max_size=20,
    ).filter(lambda files: any(sampled for *_, sampled in files))
)
def test_every_file_stands_for_its_bytes_however_much_of_it_was_read(files: list[tuple[int, int, float, bool]]) -> None:
    """Of files that are alike but for their sizes, any sample gives the exact counts."""
    sizes = {str(number): float(size) for number, (size, *_) in enumerate(files)}
    by_file = {
        str(number): Totals(input_bytes=size * part, rows_in=1000, tokens=7000, exits=[0, 1000], rejected={"a": 10})
        for number, (size, _, part, sampled) in enumerate(files)
        if sampled
    }
    alike = {path: replace(totals, input_bytes=10_000.0) for path, totals in by_file.items()}
    whole, total = whole_of(alike, sizes), sum(sizes.values())
    assert whole["rows_in"][""] == pytest.approx(total / 10)
    assert whole["tokens"][""] == pytest.approx(total / 10 * 7)
    assert whole["exits"][2] == pytest.approx(total / 10)
    assert whole["rejected"]["a"] == pytest.approx(total / 1000)
    if len(by_file) == len(files):  # by hand, where every file was sampled
        rows = sum(1000 / part for *_, part, _ in files)
        assert whole_of(by_file, sizes)["rows_in"][""] == pytest.approx(rows)


def planned_values(stdout: str) -> Callable[[str], float]:
    def value(pattern: str) -> float:
        found = re.search(pattern, stdout)
        assert found, stdout
        return float(found[1].replace(",", ""))

    return value


def test_a_plan_tells_of_what_is_left_and_harms_nothing(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()

    def write(name: str, rows: int) -> None:
        texts = [f"the room {row} was clean" if row % 10 else None for row in range(rows)]
        pq.write_table(pa.table({"text": texts}), corpus / name, row_group_size=3000)

    write("first.parquet", 200)
    options = ["--model", str(model_directory), "--input", str(corpus), "--output", str(out)]
    assert run_job_here("classify.py", *options).returncode == 0
    done = run_job_here("classify.py", *options, "--plan")
    assert done.stdout.startswith("1 files")
    assert f"nothing to classify: {out} already holds the results of every file" in done.stdout
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for number in range(3):
        write(f"{number}.parquet", 9000)
    (out / "_plan-0123abcd").mkdir()
    mine = out / "_plan-of-mine"
    mine.mkdir()
    monkeypatch.setattr(forecast, "SAMPLE_ROWS", {"cpu": 200})
    monkeypatch.setattr(forecast, "LEAST_SECONDS", 0.0)
    planned = run_job_here("classify.py", *options, "--plan", "--price-per-hour", "3600", "--actors", "1")
    assert planned.returncode == 0, planned.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert list(out.glob("_plan*")) == [mine]
    value = planned_values(planned.stdout)
    assert value(r"what the run would be, by ([\d,]+) rows") < 9000
    assert value(r"files +([\d,]+), ") == 3
    assert value(r"rows +about ([\d,]+)") == pytest.approx(27_000, rel=0.05)
    assert value(r"rejects +([\d.]+)%, [\d.]+% null_text") == pytest.approx(10.0)
    minutes, seconds = re.search(r"time +about (\d+):(\d\d), ", planned.stdout).groups()  # type: ignore[union-attr]
    assert value(r"cost +about ([\d.]+)") == pytest.approx(60 * int(minutes) + int(seconds), abs=1)
    assert "waiting for " in planned.stdout
