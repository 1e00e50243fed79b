"""Which task reads what: many small files together, and the sections of a large file side by side.

plan_reading(files, readers=4)      # 10,000 files of 3 KB: 20 tasks; one file of 1 GB: 32 tasks of some row groups each
"""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from math import ceil
from typing import Any

from pipeline.corpus.decoders.raw import FileFormatError
from pipeline.corpus.formats import section_starts
from pipeline.corpus.listing import InputFile

MIN_TASK_BYTES, MAX_TASK_BYTES = 2 << 20, 32 << 20
"""Stored bytes of a task. Less would not fill a bundle, and much more leaves other readers idle at the end."""
MAX_TASK_FILES = 512
"""Files of a task: with thirty rows in each of them still a full bundle, and on S3 some seconds of waiting for answers."""
FOOTERS = 16
"""Parquet files that are looked into at a time: a request to S3 is mostly waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a task reads of a file."""

    file: InputFile
    sections: range | None = None
    """Numbers of the sections (`formats.iter_sections`) to read; None is the whole file."""
    rows: range | None = None
    """Numbers of its rows in the file, up to the last one's of the file or beyond; None where only reading tells."""
    size: int
    """Stored bytes, about."""


def plan_reading(files: Sequence[InputFile], readers: int) -> list[list[Piece]]:
    """Deal files out to tasks, in their order, so that `readers` tasks may be at work at once.

    A Parquet file is divided only where there are fewer files than readers, since that takes a look into it.
    """
    size = sum(file.size for file in files)
    task_bytes = min(max(size // max(readers, 1), MIN_TASK_BYTES), MAX_TASK_BYTES)
    divides = len(files) < readers
    pieces = _divided(files, task_bytes) if divides else [_whole(file) for file in files]
    count = len(_deal(pieces, task_bytes, MAX_TASK_FILES))
    if not pieces:
        return []
    # As many tasks once more, but of equal size, by what ended them, so that the last one is no remainder.
    if count == ceil(len(pieces) / MAX_TASK_FILES):
        return _deal(pieces, task_bytes, ceil(len(pieces) / count))
    return _deal(pieces, ceil(size / count), MAX_TASK_FILES)


def _deal(pieces: Sequence[Piece], task_bytes: int, most: int) -> list[list[Piece]]:
    """Deal pieces out, in their order, to tasks of about `task_bytes` and at most `most` pieces."""
    tasks: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if tasks[-1] and (size + piece.size / 2 > task_bytes or len(tasks[-1]) == most):
            tasks.append([])
            size = 0
        tasks[-1].append(piece)
        size += piece.size
    return tasks


def _whole(file: InputFile) -> Piece:
    return Piece(file=file, size=file.size)


def _divided(files: Sequence[InputFile], task_bytes: int) -> list[Piece]:
    """Divide the large Parquet files into pieces of about `task_bytes`."""
    with ThreadPoolExecutor(FOOTERS) as pool:
        return list(chain.from_iterable(pool.map(partial(_divide, task_bytes=task_bytes), files)))


def _divide(file: InputFile, task_bytes: int) -> list[Piece]:
    """Divide a Parquet file; one that cannot be read is left to its task, which says so."""
    large = file.format == "parquet" and file.size >= 2 * task_bytes
    try:
        starts = section_starts(file) if large else [0]
    except FileFormatError:
        starts = [0]
    count = min(file.size // task_bytes, len(starts))
    if count <= 1:
        return [_whole(file)]
    firsts = [number * len(starts) // count for number in range(count + 1)]
    bounds = [*(starts[first] for first in firsts[:-1]), sys.maxsize]
    return [
        Piece(
            file=file,
            sections=range(first, end),
            rows=range(bounds[number], bounds[number + 1]),
            size=file.size * (end - first) // len(starts),
        )
        for number, (first, end) in enumerate(pairwise(firsts))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftPiece:
    """What is left for a reading task to read of a file."""

    file: InputFile
    sections: range | None
    first: int
    """Number of its first row in the file."""
    done: frozenset[int]
    """Starts of the shards to leave out."""


def encode_task(task: Sequence[Piece], done: Mapping[str, Collection[int]]) -> str:
    """Encode what a reading task reads; `done` has the starts of the shards that it leaves out, by path."""
    pieces = [
        {
            "file": asdict(piece.file),
            "sections": piece.sections and [piece.sections.start, piece.sections.stop],
            "first": 0 if piece.rows is None else piece.rows.start,
            "done": sorted(row for row in done.get(piece.file.path, ()) if piece.rows is None or row in piece.rows),
        }
        for piece in task
    ]
    return json.dumps(pieces)


def decode_task(task: str) -> list[LeftPiece]:
    """Decode what `encode_task` returned."""
    return [
        LeftPiece(
            file=_decoded(piece["file"]),
            sections=range(*piece["sections"]) if piece["sections"] else None,
            first=piece["first"],
            done=frozenset(piece["done"]),
        )
        for piece in json.loads(task)
    ]


def _decoded(file: dict[str, Any]) -> InputFile:
    """Return a file as it was before JSON made lists of its partitions."""
    return InputFile(**(file | {"partitions": tuple((name, value) for name, value in file["partitions"])}))
