"""Which task reads what: many small files together, and the sections of a large file side by side.

plan_reading(files, readers=4)      # 10,000 files of 3 KB: 20 tasks; one file of 1 GB: 32 tasks of some row groups each
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from pipeline.corpus.formats import FileFormatError, count_sections
from pipeline.corpus.listing import InputFile

MIN_TASK_BYTES, MAX_TASK_BYTES = 2 << 20, 32 << 20
"""Stored bytes of a task. Less would not fill a bundle, and much more leaves other readers idle at the end."""
MAX_TASK_FILES = 512
"""Files of a task: with thirty rows in each of them still a full bundle, and on S3 some seconds of waiting for answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a task reads of a file."""

    file: InputFile
    sections: range | None = None
    """Numbers of the sections (`formats.iter_sections`) to read; None is the whole file."""
    size: int
    """Stored bytes, about."""


def plan_reading(files: Sequence[InputFile], readers: int) -> list[list[Piece]]:
    """Deal files out to tasks, in their order, so that `readers` tasks may be at work at once.

    A Parquet file is divided only where there are fewer files than readers, since that takes a look into it.
    """
    size = sum(file.size for file in files)
    task_bytes = min(max(size // max(readers, 1), MIN_TASK_BYTES), MAX_TASK_BYTES)
    divides = len(files) < readers
    pieces = [piece for file in files for piece in (_divide(file, task_bytes) if divides else _whole(file))]
    count = len(_deal(pieces, task_bytes, MAX_TASK_FILES))
    if not pieces:
        return []
    # As many tasks once more, but of equal size, by what ended them, so that the last one is no remainder.
    if count == ceil(len(pieces) / MAX_TASK_FILES):
        return _deal(pieces, task_bytes, ceil(len(pieces) / count))
    return _deal(pieces, ceil(size / count), MAX_TASK_FILES)


def _deal(pieces: Sequence[Piece], task_bytes: int, most: int) -> list[list[Piece]]:
    """Deal pieces out, in their order, to tasks that end at `task_bytes` or `most` pieces; a larger piece has its own task."""
    tasks: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if tasks[-1] and (size >= task_bytes or piece.size >= task_bytes or len(tasks[-1]) == most):
            tasks.append([])
            size = 0
        tasks[-1].append(piece)
        size += piece.size
    return tasks


def _whole(file: InputFile) -> Iterable[Piece]:
    return (Piece(file=file, size=file.size),)


def _divide(file: InputFile, task_bytes: int) -> Iterator[Piece]:
    """Divide a Parquet file into pieces of about `task_bytes`; one that cannot be read is left to its task, which says so."""
    try:
        sections = count_sections(file) if file.size >= 2 * task_bytes else 1
    except FileFormatError:
        sections = 1
    count = min(file.size // task_bytes, sections)
    if count <= 1:
        yield from _whole(file)
        return
    for number in range(count):
        numbers = range(number * sections // count, (number + 1) * sections // count)
        yield Piece(file=file, sections=numbers, size=file.size * len(numbers) // sections)
