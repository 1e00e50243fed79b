"""The index of finished shards finds the files that lack some, as a slow walk along every file does."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.listing import InputFile
from pipeline.output.receipts import Receipt, receipts_table
from pipeline.output.shard_index import ShardIndex

lengths = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=5)
"""Rows of every shard of every file; a shard of none is a file without rows, or rows that are all beyond damage."""


def input_file(number: int) -> InputFile:
    return InputFile(path=f"/{number}", name=f"{number}", size=1, version="m", format="text", compression=None)


def shards_of(number: int, rows: list[int]) -> list[Receipt]:
    """Make the receipts of a file; like a reader's, its shards have rows, unless there is only one."""
    rows = [count for count in rows if count] or [0]
    starts = [sum(rows[:shard]) for shard in range(len(rows))]
    return [
        Receipt(
            shard=f"{number:08x}{shard:08x}",
            file=f"/{number}",
            size=1,
            version="m",
            start=start,
            span=rows[shard],
            last=shard + 1 == len(rows),
            rows_in=rows[shard],
        )
        for shard, start in enumerate(starts)
    ]


def slowly_unfinished(files: list[InputFile], done: list[Receipt]) -> dict[str, tuple[int, ...]]:
    """Walk along every file, from its first row to its end."""
    by_file: dict[str, dict[int, Receipt]] = defaultdict(dict)
    for receipt in done:
        by_file[receipt.file][receipt.start] = receipt
    left = {}
    for file in files:
        row, ended = 0, False
        while not ended and row in by_file[file.path]:
            receipt = by_file[file.path][row]
            row, ended = row + receipt.rows_in, receipt.last
        if not ended:
            left[file.path] = tuple(sorted(by_file[file.path]))
    return left


@settings(deadline=None)
@given(st.data(), lengths)
def test_files_that_lack_shards_are_found(data: st.DataObject, corpus: list[list[int]]) -> None:
    files = [input_file(number) for number in range(len(corpus) + 1)]  # nothing is done of the last
    everything = [receipt for number, rows in enumerate(corpus) for receipt in shards_of(number, rows)]
    done = data.draw(st.permutations([receipt for receipt in everything if data.draw(st.booleans())]))
    singly, by_table = ShardIndex(), ShardIndex()
    for receipt in done:
        singly.add(receipt)
    half = len(done) // 2
    for part in (done[:half], done[half:]):
        by_table.add_table(receipts_table(part))
    expected = slowly_unfinished(files, done)
    assert singly.unfinished(files) == by_table.unfinished(files) == expected
    assert len(singly) == len(by_table) == len(done)


def test_a_file_is_finished_only_with_all_of_its_shards() -> None:
    first, second, third = shards_of(0, [2, 1, 3])
    for done, left in (((first, third), (0, 3)), ((first, second), (0, 2)), ((second, third), (2, 3))):
        index = ShardIndex()
        for receipt in done:
            index.add(receipt)
        assert index.unfinished([input_file(0)]) == {"/0": left}
    index.add(first)
    assert index.unfinished([input_file(0)]) == {}
