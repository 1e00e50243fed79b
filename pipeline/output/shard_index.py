"""Which shards of which files are done, for a million of them: some 25 bytes each, and a file's path once."""

from array import array
from collections.abc import Iterable, KeysView

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.listing import InputFile
from pipeline.errors import UserError
from pipeline.output.receipts import Receipt


class ShardIndex:
    """Finished shards, in no order, each of them once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        """Number of each file by path, in the order in which they came."""
        self._versions: list[tuple[int, str]] = []
        """Size and version of each file when its shards were done, by number."""
        self._file, self._start, self._rows, self._last = array("i"), array("q"), array("q"), array("b")

    def __len__(self) -> int:
        return len(self._file)

    @property
    def files(self) -> KeysView[str]:
        """Paths of all files with a shard that is done."""
        return self._numbers.keys()

    def changed(self, file: InputFile) -> bool:
        """Return whether shards of this file were done while it had other content."""
        number = self._numbers.get(file.path)
        return number is not None and self._versions[number] != (file.size, file.version)

    def outdated(self, files: Iterable[InputFile], folder: str, *, keep_gone: bool) -> str:
        """Name a file that changed since its shards were done, or, without `keep_gone`, one that is gone; empty if none is."""
        listed = set()
        for file in files:
            listed.add(file.path)
            if self.changed(file):
                return (
                    f"{file.path}: changed since {folder} was made from it; "
                    "give the new content a new name, or start over (overwrite)"
                )
        gone = None if keep_gone else next((path for path in self.files if path not in listed), None)
        if gone is None:
            return ""
        return (
            f"{gone}: {folder} has results of it, but the input has it no more; "
            "an incremental run keeps them, overwriting starts over"
        )

    def add(self, receipt: Receipt) -> None:
        """Record a finished shard; raise UserError if its file had other content when earlier shards were done."""
        self._file.append(self._number(receipt.file, receipt.size, receipt.version))
        self._start.append(receipt.start)
        self._rows.append(receipt.span)
        self._last.append(receipt.last)

    def add_table(self, receipts: pa.Table) -> None:
        """Record many finished shards at once, by `receipts.RECEIPTS`; raise UserError as `add` does."""
        for file in receipts.group_by(["file", "size", "version"]).aggregate([]).to_pylist():
            self._number(file["file"], file["size"], file["version"])
        files = receipts["file"].combine_chunks().dictionary_encode()
        numbers = np.array([self._numbers[path] for path in files.dictionary.to_pylist()], np.int32)
        self._file.frombytes(numbers[files.indices.to_numpy()].tobytes())
        self._start.frombytes(receipts["start"].to_numpy().astype(np.int64).tobytes())
        self._rows.frombytes(receipts["span"].to_numpy().astype(np.int64).tobytes())
        self._last.frombytes(receipts["last"].to_numpy().astype(np.int8).tobytes())

    def unfinished(self, files: Iterable[InputFile]) -> dict[str, tuple[int, ...]]:
        """Return the files that still have work, by path, with the starts of their shards that are done."""
        starts = self._starts_of_incomplete()
        left: dict[str, tuple[int, ...]] = {}
        for file in files:
            number = self._numbers.get(file.path)
            if number is None:
                left[file.path] = ()
            elif number in starts:
                left[file.path] = tuple(sorted(starts[number]))
        return left

    def _starts_of_incomplete(self) -> dict[int, list[int]]:
        """Return the starts of finished shards of the files that lack some, by number.

        Shards of a file do not overlap: it is complete if its last one is there, and as many rows as lie before its end.
        """
        start, rows = np.array(self._start), np.array(self._rows)
        shards = {"file": np.array(self._file), "start": start, "rows": rows, "end": start + rows}
        by_file = (
            pa.table(shards | {"last": np.array(self._last)})
            .group_by("file")
            .aggregate([("start", "list"), ("rows", "sum"), ("end", "max"), ("last", "max")])
        )
        complete = pc.and_(pc.equal(by_file["last_max"], 1), pc.equal(by_file["rows_sum"], by_file["end_max"]))
        incomplete = by_file.filter(pc.invert(complete))
        return dict(zip(incomplete["file"].to_pylist(), incomplete["start_list"].to_pylist(), strict=True))

    def _number(self, path: str, size: int, version: str) -> int:
        """Return the number of a file, a new one if need be; raise UserError if it was recorded with other content."""
        number = self._numbers.setdefault(path, len(self._numbers))
        if number == len(self._versions):
            self._versions.append((size, version))
        elif self._versions[number] != (size, version):
            raise UserError(f"{path}: has results from before and after it changed; start over (overwrite)")
        return number
