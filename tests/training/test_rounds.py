"""Workers that read one stream together: every row is one worker's, once an epoch, whatever is dealt out, stopped or limited.

The workers are threads here, and read and tokenize by the chain's own functions, but without Ray; test_workers.py has both.
"""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.bulk import stages
from pipeline.corpus import formats, plan, reader
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import InputFile, list_inputs
from pipeline.corpus.plan import Piece
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.schema import VALUE
from pipeline.training import stream
from pipeline.training.process_group import ProcessGroup, T
from pipeline.training.stream import StreamSource, StreamSpec, held_out, tasks_of

ROWS = 700
Round = tuple[tuple[str, ...], float, int, int]
"""Keys, fraction, global_rows and most_rows of a chunk, which all workers must agree on."""


@dataclass(frozen=True)
class Threads(ProcessGroup):
    """Workers that are threads of one process."""

    barrier: threading.Barrier | None = None
    table: dict[int, Any] | None = None

    def gather(self, value: T) -> list[T]:
        assert self.barrier is not None
        assert self.table is not None
        self.table[self.rank] = value
        self.barrier.wait(60)
        values = [self.table[rank] for rank in range(self.world_size)]
        self.barrier.wait(60)
        return values


class ReadHere:
    """A chain that is run in this process: a context to set, and blocks."""

    def __init__(self, blocks: Iterator[pa.Table]) -> None:
        self.blocks = blocks
        self.context = type("Context", (), {"execution_options": type("Options", (), {})()})()


def bundles_here(
    tasks: Sequence[Sequence[Piece]],
    done: Mapping[str, Collection[int]],
    columns: Columns,
    tokenizer: TokenizerSpec,
    *,
    bundle_rows: int,
    part: tuple[int, int],
) -> ReadHere:
    def blocks() -> Iterator[pa.Table]:
        for task in tasks:
            for block in stages._read(pa.table({"item": [plan.encode_task(task, done)]}), columns, bundle_rows, None):
                yield stages._tokenize(block, tokenizer, columns.keep, part, None)

    return ReadHere(blocks())


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "bundles_of_tasks", bundles_here)
    monkeypatch.setattr(stream, "blocks_of", lambda chain: chain.blocks)
    monkeypatch.setattr(plan, "MIN_TASK_BYTES", 1)
    monkeypatch.setattr(formats, "SECTION_ROWS", 30)
    monkeypatch.setattr(reader, "SHARD_ROWS", 20)


@pytest.fixture(params=["many", "one", "text"])
def spec(request: pytest.FixtureRequest, tmp_path: Path, review_tokenizer: PreTrainedTokenizerFast) -> StreamSpec:
    """Make a stream of ROWS rows, of which number 7 has no text: of many files, or of one that can be divided, or cannot."""
    labels = list(range(ROWS))
    texts = [None if row == 7 else "a fine room " * (row % 5 + 1) for row in labels]
    if request.param == "text":
        lines = [f"{text or ''},{label}" for text, label in zip(texts, labels, strict=True)]
        (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    else:
        bounds = [0, *range(3, ROWS, 23), ROWS] if request.param == "many" else [0, ROWS]
        for start, end in pairwise(bounds):
            table = pa.table({"text": texts[start:end], "label": labels[start:end]})
            pq.write_table(table, tmp_path / f"{start:04}.parquet", row_group_size=10)
    return StreamSpec(
        corpus=list_inputs(str(tmp_path)),
        columns=Columns(text="text", keep=pa.schema([("label", pa.string())])),
        tokenizer=TokenizerSpec.from_hugging_face(review_tokenizer, 64),
        classes=[VALUE],
        label_column="label",
        seed=3,
    )


def run(
    spec: StreamSpec,
    workers: int,
    done: Collection[str] = (),
    rounds: int | None = None,
    epoch: int = 1,
    leave_out: Collection[str] = (),
) -> tuple[list[Round], list[list[int]]]:
    """Let workers go through an epoch, or the first rounds of it; return the rounds, and the labels of each worker by round."""
    barrier, table = threading.Barrier(workers), dict[int, Any]()

    def work(rank: int) -> list[Chunk]:
        group = Threads(rank, workers, barrier, table)
        found: list[Chunk] = []
        try:
            for chunk in StreamSource(spec, group, leave_out, chunk_rows=50).chunks(epoch, frozenset(done)):
                found.append(chunk)
                if len(found) == rounds:
                    break
        except BaseException:
            barrier.abort()
            raise
        return found

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(work, range(workers)))
    assert len({len(chunks) for chunks in found}) == 1
    agreed, labels = [], []
    for chunks in zip(*found, strict=True):
        (same,) = {(chunk.keys, chunk.fraction, chunk.global_rows, chunk.most_rows) for chunk in chunks}
        assert same[3] == max(map(len, chunks))
        agreed.append(same)
        labels.append([int(label) for chunk in chunks for label in chunk.labels])
    return agreed, labels


def flat(lists: list[list[int]]) -> list[int]:
    return [number for numbers in lists for number in numbers]


USABLE = [row for row in range(ROWS) if row != 7]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_row_is_one_workers_once_an_epoch(workers: int, spec: StreamSpec) -> None:
    rounds, labels = run(spec, workers)
    assert sorted(flat(labels)) == USABLE
    assert sum(rows for _, _, rows, _ in rounds) == ROWS
    assert sum(fraction for _, fraction, _, _ in rounds) == pytest.approx(1.0, abs=0.02)
    assert run(spec, workers) == (rounds, labels)
    other = run(spec, workers, epoch=2)
    assert sorted(flat(other[1])) == USABLE
    if len(spec.corpus.files) > 1:
        assert other[1] != labels


@pytest.mark.parametrize("workers", [1, 3])
def test_these_streams_are_dealt_out_or_read_by_all(workers: int, spec: StreamSpec) -> None:
    tasks = plan.plan_reading(spec.corpus.files, stream.TASKS_PER_WORKER * workers)
    dealt = workers <= (1 if spec.corpus.files[0].format == "csv" else 3)
    assert tasks_of(tasks, 0, workers)[1] == ((0, 1) if dealt else (0, workers))


@pytest.mark.parametrize("workers", [1, 3])
def test_rows_that_are_held_out_are_nobodys(workers: int, spec: StreamSpec) -> None:
    held, files = held_out(spec)
    rounds, labels = run(spec, workers, leave_out=files)
    starts = [0] if len(files) == 1 else [int(Path(path).stem) for path in sorted(files)]
    left_out = {row for start, end in pairwise([*starts, ROWS]) for row in range(start, end, 8)}
    assert sorted(flat(labels)) == sorted({*USABLE} - left_out)
    assert {int(label) for label in held.labels} <= left_out
    assert sum(rows for _, _, rows, _ in rounds) == ROWS


@pytest.mark.parametrize(("workers", "later"), [(1, 1), (2, 2), (3, 3), (2, 3), (3, 1)])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_epoch_goes_on_where_it_was(workers: int, later: int, stop: int, spec: StreamSpec) -> None:
    whole = run(spec, workers)
    rounds, labels = run(spec, workers, rounds=stop)
    assert (rounds, labels) == (whole[0][:stop], whole[1][:stop])
    rest = run(spec, later, done=[key for keys, *_ in rounds for key in keys])
    assert sorted(flat(labels) + flat(rest[1])) == USABLE
    if later == workers:  # to the letter
        assert rest == (whole[0][stop:], whole[1][stop:])


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("limit", [1, 60, 333, 5000])
def test_a_limit_counts_the_rows_of_all_workers(workers: int, limit: int, spec: StreamSpec) -> None:
    limited = StreamSpec(**{name: getattr(spec, name) for name in StreamSpec.__dataclass_fields__} | {"limit": limit})
    rounds, labels = run(limited, workers)
    assert sum(rows for _, _, rows, _ in rounds) == min(limit, ROWS)
    assert len(set(flat(labels))) == len(flat(labels))
    assert min(limit, ROWS) - 1 <= len(flat(labels)) <= min(limit, ROWS)  # row 7 may be among them
    if limit == 333:
        first = run(limited, workers, rounds=2)
        rest = run(limited, workers, done=[key for keys, *_ in first[0] for key in keys])
        assert (first[0] + rest[0], first[1] + rest[1]) == (rounds, labels)
    done = [key for keys, *_ in rounds for key in keys]
    assert run(limited, workers, done=done) == ([], [])


def files(count: int, size: int) -> list[list[Piece]]:
    made = [InputFile(path=f"/{n}", name=f"{n}", size=size + n % 3, version="", format="text", compression=None)
            for n in range(count)]  # fmt: skip
    return [[Piece(file=file, size=file.size)] for file in made]


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("count", [1, 7, 55, 56, 100])
def test_tasks_are_dealt_evenly_or_read_by_all(workers: int, count: int) -> None:
    tasks = files(count, 1000)
    dealt = [tasks_of(tasks, rank, workers) for rank in range(workers)]
    if count < stream.FEWEST_TASKS * workers:
        assert dealt == [(tasks, (rank, workers)) for rank in range(workers)]
        return
    assert {part for _, part in dealt} == {(0, 1)}
    assert sorted(task[0].file.path for mine, _ in dealt for task in mine) == sorted(t[0].file.path for t in tasks)
    sizes = [sum(task[0].size for task in mine) for mine, _ in dealt]
    assert max(sizes) - min(sizes) <= 1002
