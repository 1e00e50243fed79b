"""Reading tasks whose processes die: the file that they die of is found and given up, and no other row is lost."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bulk.attempts import MAX_DEATHS, BrokenStageError
from pipeline.bulk.bundle import Bundle
from pipeline.bulk.stages import _read
from pipeline.corpus import reader
from pipeline.corpus.columns import Columns
from pipeline.corpus.decoders.raw import RawRows
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.plan import Piece, encode_task
from tests.support.s3_server import S3Server

COLUMNS = Columns(text="text")


class Task:
    """A reading task whose processes die at some texts; what is left of them is the log, as after `kill -9`."""

    def __init__(self, folder: Path, corpus: str, pieces: list[Piece] | None = None) -> None:
        self.folder = folder
        (folder / "_attempts").mkdir(parents=True)
        files = list_inputs(corpus).files
        pieces = pieces or [Piece(file=file, size=file.size) for file in files]
        self.task = pa.table({"item": [encode_task(pieces, {})]})
        self.bundles: list[pa.Table] = []
        """What was received so far: Ray keeps what a process gave before it died, and takes the next from another one."""
        self.deaths = 0

    def one_process(self) -> bool:
        """Go through the task in a new process; return whether it lived."""
        left = ""
        blocks = _read(self.task, COLUMNS, 4, str(self.folder))
        number = 0
        try:
            for number, block in enumerate(blocks, 1):
                if number > len(self.bundles):
                    self.bundles.append(block)
                else:
                    assert [r.shard for r in Bundle.from_arrow(block).receipts] == [
                        r.shard for r in Bundle.from_arrow(self.bundles[number - 1]).receipts
                    ]
        except Killed as death:
            left = death.log
        if left:
            self.deaths += 1
            name, log = left.split("\n", 1)
            (self.folder / "_attempts" / name).write_text(log)
        return not left

    def run(self) -> list[Bundle]:
        while not self.one_process():
            assert self.deaths < 100
        return [Bundle.from_arrow(block) for block in self.bundles]


class Killed(BaseException):
    """Stands for a kill; it carries the log that is there at that moment, since a real one unwinds nothing."""

    def __init__(self, log: str) -> None:
        self.log = log


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Let a process die when it reads one of these texts."""
    texts: set[bytes] = set()
    check = reader.check_rows

    def checked(file: Any, columns: Columns, raw: RawRows, schema: pa.Schema) -> pa.Table:
        values = raw.columns["text"]
        if texts & {*(values.to_pylist() if isinstance(values, pa.Array) else values)}:
            (log,) = (tmp_path / "out" / "_attempts").iterdir()
            raise Killed(f"{log.name}\n{log.read_text()}")
        return check(file, columns, raw, schema)

    monkeypatch.setattr(reader, "check_rows", checked)
    return texts


def rows_of(bundles: list[Bundle]) -> tuple[list[str], dict[str, str]]:
    """Return the texts that were read, and the files that were given up, with the cause."""
    texts = [text for bundle in bundles for text in bundle.rows["text"].to_pylist()]
    rejects = [row for bundle in bundles for row in bundle.rejects_part().to_pylist()]
    assert {row["reason"] for row in rejects} <= {"unreadable_file"}
    return texts, {row["id"]: row["detail"] for row in rejects}


def write_corpus(folder: Path, files: int) -> list[str]:
    folder.mkdir()
    texts = []
    for number in range(files):
        lines = [f"{number} {row}" for row in range(3)]
        (folder / f"{number:03}.txt").write_text("\n".join(lines))
        texts += lines
    return texts


@pytest.mark.parametrize("bad", [[], [0], [5], [4, 5], [11]])
def test_files_that_kill_are_given_up_and_all_others_are_read(
    bad: list[int], tmp_path: Path, deadly: set[bytes]
) -> None:
    texts = write_corpus(tmp_path / "in", 12)
    for number in bad:
        deadly.add(f"{number} 1".encode())
    task = Task(tmp_path / "out", str(tmp_path / "in"))
    found, lost = rows_of(task.run())
    assert found == [text for text in texts if int(text.split()[0]) not in bad]
    assert lost == {f"{number:03}.txt": "from row 0 on: 2 workers died while they read it" for number in bad}
    assert task.deaths == (1 + 2 * len(bad) if bad else 0)
    assert not list((tmp_path / "out" / "_attempts").iterdir())


def test_what_was_read_of_a_file_before_it_killed_is_kept(
    tmp_path: Path, deadly: set[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SHARD_ROWS", 10)
    monkeypatch.setattr("pipeline.corpus.decoders.raw.CHUNK_ROWS", 5)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("\n".join(map(str, range(40))))
    (tmp_path / "in" / "b.txt").write_text("last")
    deadly.add(b"27")
    found, lost = rows_of(Task(tmp_path / "out", str(tmp_path / "in")).run())
    assert found == [*map(str, range(25)), "last"]
    assert lost == {"a.txt": "from row 25 on: 2 workers died while they read it"}


def test_a_stretch_of_a_large_file_that_kills_costs_itself(
    tmp_path: Path, deadly: set[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.corpus.formats.SECTION_ROWS", 10)
    texts = [str(row) for row in range(50)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=10)
    (file,) = list_inputs(str(tmp_path / "a.parquet")).files
    pieces = [Piece(file=file, size=1, sections=range(1, 4), rows=range(10, 40))]
    deadly.add(b"12")
    found, lost = rows_of(Task(tmp_path / "out", str(tmp_path / "a.parquet"), pieces).run())
    assert found == texts[20:40]
    assert lost == {"a.parquet": "rows 10 to 19: 2 workers died while they read it"}


def test_a_lost_node_costs_no_file(tmp_path: Path, deadly: set[bytes]) -> None:
    texts = write_corpus(tmp_path / "in", 5)
    task = Task(tmp_path / "out", str(tmp_path / "in"))
    deadly.add(b"3 0")
    assert not task.one_process()
    assert not task.one_process()  # the second one was at that file, too
    deadly.clear()
    assert rows_of(task.run()) == (texts, {})


def test_a_machine_that_kills_all_that_is_read_ends_the_run(tmp_path: Path, deadly: set[bytes]) -> None:
    for text in write_corpus(tmp_path / "in", 60):
        deadly.add(text.encode())
    task = Task(tmp_path / "out", str(tmp_path / "in"))
    with pytest.raises(
        BrokenStageError, match=r"65 workers died while they read .*000.txt, or one of the 59 files after it"
    ):
        task.run()
    assert task.deaths == MAX_DEATHS + 1


@pytest.mark.parametrize("left", ["", "{", "[]", '{"deaths": "x"}', '{"deaths": 3, "alone": [[1]], "at": 7}'])
def test_a_damaged_log_is_one_death(left: str, tmp_path: Path, deadly: set[bytes]) -> None:
    texts = write_corpus(tmp_path / "in", 3)
    task = Task(tmp_path / "out", str(tmp_path / "in"))
    deadly.add(b"1 1")
    assert not task.one_process()
    (log,) = (tmp_path / "out" / "_attempts").iterdir()
    log.write_text(left)
    found, _ = rows_of(task.run())
    assert found == texts[:3] + texts[6:]


def test_small_files_of_s3_are_fetched_ahead_and_read_one_after_the_other(s3: S3Server, tmp_path: Path) -> None:
    from pipeline.storage.locate import storage_of

    for number in range(20):
        storage_of("s3://").write(f"s3://bucket/in/{number:02}.txt", f"{number}".encode())
    task = Task(tmp_path / "out", "s3://bucket/in")
    s3.requests.clear()
    found, lost = rows_of(task.run())
    assert (found, lost) == ([*map(str, range(20))], {})
    assert len([path for method, path in s3.requests if method == "GET"]) == 20
