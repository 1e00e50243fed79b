"""What a run would take, by a sample: which rows that reads, what follows from them, and that nothing of it is left."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bulk import forecast, stages
from pipeline.bulk.bundle import Bundle
from pipeline.bulk.forecast import TASK_PIECES, TASKS, sample_tasks
from pipeline.bulk.stages import Sampling
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.plan import Piece, encode_task, plan_reading
from pipeline.corpus.reader import SHARD_ROWS, read_shards
from pipeline.schema import ROW
from tests.support.jobs import run_job_here

COLUMNS = Columns(text="text", keep=pa.schema([]))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forecast") / "a.jsonl"
    lines = [json.dumps({"text": f"text {row}" if row % 3 else ""}) for row in range(2 * SHARD_ROWS + 100)]
    path.write_text("\n".join(lines))
    return path


@given(st.integers(1, 40_000))
def test_every_piece_is_sampled_once_or_as_many_as_tasks_may_have(count: int) -> None:
    pieces = [Piece(file=None, size=number) for number in range(count)]  # type: ignore[arg-type]
    tasks = sample_tasks(pieces)
    dealt = [piece.size for task in tasks for piece in task]
    assert len(set(dealt)) == len(dealt) == min(count, TASKS * TASK_PIECES)
    assert 1 <= len(tasks) <= TASKS
    assert max(map(len, tasks)) <= TASK_PIECES
    assert tasks == sample_tasks(pieces)


def test_the_beginning_of_a_shard_is_a_shard_of_its_first_rows(file: Path) -> None:
    (listed,) = list_inputs(str(file)).files
    _, second, third = read_shards(listed, COLUMNS)
    cut = second.beginning(300)
    assert cut.rows[ROW].to_pylist() == [row for row in range(SHARD_ROWS, SHARD_ROWS + 300) if row % 3]
    assert cut.rejects[ROW].to_pylist() == [row for row in range(SHARD_ROWS, SHARD_ROWS + 300) if row % 3 == 0]
    assert (len(cut), cut.span, cut.start) == (300, 300, SHARD_ROWS)
    assert cut.fraction == pytest.approx(second.fraction * 300 / SHARD_ROWS)
    assert third.beginning(100) is third


def test_the_fraction_of_a_shard_is_that_of_its_rows(file: Path) -> None:
    """Chunks of text are larger than shards, and say how far they go only at their ends."""
    (listed,) = list_inputs(str(file)).files
    rows = 2 * SHARD_ROWS + 100
    for shard in read_shards(listed, COLUMNS):
        assert shard.fraction == pytest.approx(len(shard) / rows, rel=0.1)


def test_a_sample_reads_the_beginnings_of_the_first_shards_of_each_piece(file: Path) -> None:
    files = list_inputs(str(file.parent)).files
    ((piece,),) = plan_reading(files, 4)
    batch = pa.table({"item": [encode_task([piece, piece], {})]})
    bundles = stages._read(batch, COLUMNS, 5, None, Sampling(rows=20, shards=2))
    read = [row for bundle in bundles for row in Bundle.from_arrow(bundle).rows[ROW].to_pylist()]
    once = [row for start in (0, SHARD_ROWS) for row in range(start, start + 20) if row % 3]
    assert read == once + once


def test_a_plan_tells_of_the_whole_corpus_and_leaves_nothing(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    for number in range(3):
        texts = [f"the room {row} was clean" if row % 10 else None for row in range(9000)]
        pq.write_table(pa.table({"text": texts}), corpus / f"{number}.parquet", row_group_size=3000)
    monkeypatch.setattr(forecast, "SAMPLE_ROWS", 200)
    monkeypatch.setattr(forecast, "LEAST_SECONDS", 0.0)
    options = ["--model", str(model_directory), "--input", str(corpus), "--output", str(out), "--plan"]
    planned = run_job_here("classify.py", *options, "--price-per-hour", "3")
    assert planned.returncode == 0, planned.stderr
    assert not out.exists()

    def value(pattern: str) -> float:
        found = re.search(pattern, planned.stdout)
        assert found, planned.stdout
        return float(found[1].replace(",", ""))

    assert value(r"what the run would be, by ([\d,]+) rows") < 9000
    assert value(r"rows +about ([\d,]+)") == pytest.approx(27_000, rel=0.05)
    assert value(r"rejects +([\d.]+)%, [\d.]+% null_text") == pytest.approx(10.0)
    assert value(r"cost +about ([\d.]+)") > 0
