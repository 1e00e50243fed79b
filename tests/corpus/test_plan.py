"""Reading tasks: small files share one, large Parquet files are read side by side, and every row is read once."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.columns import Columns
from pipeline.corpus.formats import section_starts
from pipeline.corpus.listing import InputFile, list_inputs
from pipeline.corpus.plan import MAX_TASK_BYTES, MAX_TASK_FILES, MIN_TASK_BYTES, plan_reading
from pipeline.corpus.reader import Shard, read_shards

KIB = 1 << 10


def files_of(sizes: list[int]) -> list[InputFile]:
    """Make up files that nobody opens."""
    return [
        InputFile(path=f"/{number}", name=f"{number}", size=size, version="1", format="jsonl", compression=None)
        for number, size in enumerate(sizes)
    ]


@given(
    sizes=st.lists(st.integers(0, 3 * MAX_TASK_BYTES) | st.integers(0, 9 * KIB), max_size=60),
    readers=st.integers(1, 99),
)
def test_every_file_is_in_one_task_in_order(sizes: list[int], readers: int) -> None:
    files = files_of(sizes)
    tasks = plan_reading(files, readers)
    assert [piece.file for task in tasks for piece in task] == files
    for task in tasks:
        assert len(task) == 1 or sum(piece.size for piece in task) <= 2 * MAX_TASK_BYTES


def test_ten_thousand_small_files_make_some_twenty_tasks() -> None:
    tasks = plan_reading(files_of([3 * KIB] * 10_000), readers=8)
    assert [len(task) for task in tasks] == [500] * 20
    assert len(tasks[0]) <= MAX_TASK_FILES
    for count in (33, 250, 257):  # no task is a remainder
        lengths = [len(task) for task in plan_reading(files_of([100 * KIB] * count), readers=8)]
        assert min(lengths) >= max(lengths) / 2


def test_a_few_files_are_spread_over_the_readers() -> None:
    assert len(plan_reading(files_of([10 << 20] * 12), readers=4)) == 4
    assert len(plan_reading(files_of([MIN_TASK_BYTES // 4] * 8), readers=8)) == 2
    assert plan_reading([], readers=4) == []


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.corpus.plan.MIN_TASK_BYTES", 1 * KIB)
    monkeypatch.setattr("pipeline.corpus.plan.MAX_TASK_BYTES", 2 * KIB)
    monkeypatch.setattr("pipeline.corpus.formats.SECTION_ROWS", 100)


def parquet(path: Path, rows: int, group: int) -> InputFile:
    pq.write_table(
        pa.table({"text": [f"row {row}" for row in range(rows)]}), path, row_group_size=group, compression="none"
    )
    (file,) = list_inputs(str(path)).files
    return file


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("group", [1, 30, 100, 101, 1000])
def test_the_sections_of_a_large_file_are_read_side_by_side_and_give_what_one_reader_gives(
    tmp_path: Path, group: int
) -> None:
    file = parquet(tmp_path / "a.parquet", 1000, group)
    columns = Columns(text="text")
    tasks = plan_reading([file], readers=4)
    assert len(tasks) == 1 if group == 1000 else len(tasks) > 4
    pieces = [piece for task in tasks for piece in task]
    numbers = [number for piece in pieces for number in piece.sections or [0]]
    assert numbers == [*range(len(section_starts(file)))]
    apart = [shard for piece in pieces for shard in read_shards(file, columns, piece.sections)]
    whole = list(read_shards(file, columns))
    assert [facts(shard) for shard in apart] == [facts(shard) for shard in whole]
    assert [row for shard in whole for row in shard.rows["row"].to_pylist()] == [*range(1000)]
    assert sum(shard.fraction for shard in apart) == pytest.approx(1.0)
    assert [shard.last for shard in whole] == [False] * (len(whole) - 1) + [True]


def facts(shard: Shard) -> tuple[object, ...]:
    return (shard.id, shard.start, shard.span, shard.last, shard.read_error, shard.rows.to_pylist())


@pytest.mark.usefixtures("small_tasks")
def test_pieces_of_equal_size_are_tasks_of_their_own(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", 10_000, 100)
    tasks = plan_reading([file], readers=4)
    assert len(tasks) >= file.size // (3 * KIB)
    assert max(piece.size for task in tasks for piece in task) < 3 * KIB
    rows = [piece.rows for task in tasks for piece in task]
    assert [each.stop for each in rows[:-1] if each] == [each.start for each in rows[1:] if each]


@pytest.mark.usefixtures("small_tasks")
def test_a_large_file_without_the_column_is_reported_once(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", 1000, 100)
    pieces = [piece for task in plan_reading([file], readers=4) for piece in task]
    assert len(pieces) > 1
    (shard,) = (shard for piece in pieces for shard in read_shards(file, Columns(text="body"), piece.sections))
    assert "no column 'body'" in str(shard.read_error)
    assert shard.last


@pytest.mark.usefixtures("small_tasks")
def test_a_damaged_row_group_costs_itself_and_the_rest_of_its_section(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", 1000, 100)
    group = pq.read_metadata(file.path).row_group(3).column(0)
    data = bytearray(Path(file.path).read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    Path(file.path).write_bytes(data)
    (file,) = list_inputs(file.path).files
    shards = list(read_shards(file, Columns(text="text")))
    rows = [row for shard in shards for row in shard.rows["row"].to_pylist()]
    assert rows == [*range(300), *range(400, 1000)]
    (broken,) = (shard for shard in shards if shard.read_error)
    assert (broken.start, len(broken), broken.span, broken.last) == (300, 0, 100, False)
    assert sum(shard.span for shard in shards) == 1000


@pytest.mark.usefixtures("small_tasks")
def test_a_file_that_cannot_be_opened_is_left_to_its_task(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" * 4000)
    (file,) = list_inputs(str(tmp_path)).files
    (task,) = plan_reading([file], readers=4)
    assert [(piece.file, piece.sections) for piece in task] == [(file, None)]
    (shard,) = read_shards(file, Columns(text="text"))
    assert shard.read_error
    assert shard.last
