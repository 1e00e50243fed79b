"""Which shards of which files are done, for a million of them: some 25 bytes each, and a file's name once."""

from array import array
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from pipeline.corpus.listing import InputFile
from pipeline.errors import UserError
from pipeline.output.receipts import Receipt


class ShardIndex:
    """Done shards, in no order, each of them once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        """Files in the order in which they came."""
        self._versions: list[tuple[int, str]] = []
        self._file, self._start, self._rows, self._last = array("i"), array("q"), array("q"), array("b")

    def __len__(self) -> int:
        return len(self._file)

    @property
    def files(self) -> Iterable[str]:
        """Paths of all files with a shard that is done."""
        return self._numbers.keys()

    def changed(self, file: InputFile) -> bool:
        """Say whether shards of this file were done while it was another."""
        number = self._numbers.get(file.path)
        return number is not None and self._versions[number] != (file.size, file.version)

    def outdated(self, files: Iterable[InputFile], folder: str, *, keep_gone: bool) -> str:
        """Say which file is not what its shards were made of, or, without `keep_gone`, is no more; empty if none is."""
        there = set()
        for file in files:
            there.add(file.path)
            if self.changed(file):
                return (
                    f"{file.path}: changed since {folder} was made from it; "
                    "give the new content a new name, or start over (overwrite)"
                )
        gone = None if keep_gone else next((path for path in self.files if path not in there), None)
        if gone is None:
            return ""
        return (
            f"{gone}: {folder} has results of it, but the input has it no more; "
            "an incremental run keeps them, overwriting starts over"
        )

    def add(self, receipt: Receipt) -> None:
        """Note a finished shard."""
        self._file.append(self._number(receipt.file, receipt.size, receipt.version))
        self._start.append(receipt.start)
        self._rows.append(receipt.rows_in)
        self._last.append(receipt.last)

    def add_table(self, receipts: pa.Table) -> None:
        """Note many finished shards at once: `file`, `size`, `mark`, `start`, `rows_in` and `last` of `schema.RECEIPTS`."""
        for kind in receipts.group_by(["file", "size", "version"]).aggregate([]).to_pylist():
            self._number(kind["file"], kind["size"], kind["version"])
        files = receipts["file"].combine_chunks().dictionary_encode()
        numbers = np.array([self._numbers[path] for path in files.dictionary.to_pylist()], np.int32)
        self._file.frombytes(numbers[files.indices.to_numpy()].tobytes())
        self._start.frombytes(receipts["start"].to_numpy().astype(np.int64).tobytes())
        self._rows.frombytes(receipts["rows_in"].to_numpy().astype(np.int64).tobytes())
        self._last.frombytes(receipts["last"].to_numpy().astype(np.int8).tobytes())

    def unfinished(self, files: Iterable[InputFile]) -> dict[str, tuple[int, ...]]:
        """Return the files that still have work, by path, with the starts of their shards that are done."""
        order = np.lexsort((self._start, self._file))
        file, start, rows, last = (np.asarray(a)[order] for a in (self._file, self._start, self._rows, self._last))
        first = np.diff(file, prepend=-1) != 0
        expected = np.where(first, 0, np.roll(start + rows, 1))
        whole = np.zeros(len(self._numbers), bool)
        whole[file[last.astype(bool)]] = True
        whole[file[start != expected]] = False  # shards of a file follow each other without a gap up to its end
        bounds = np.searchsorted(file, np.arange(len(self._numbers) + 1))
        left: dict[str, tuple[int, ...]] = {}
        for candidate in files:
            number = self._numbers.get(candidate.path)
            if number is None:
                left[candidate.path] = ()
            elif not whole[number]:
                left[candidate.path] = tuple(start[bounds[number] : bounds[number + 1]].tolist())
        return left

    def _number(self, path: str, size: int, version: str) -> int:
        number = self._numbers.setdefault(path, len(self._numbers))
        if number == len(self._versions):
            self._versions.append((size, version))
        elif self._versions[number] != (size, version):
            raise UserError(f"{path}: has results from before and after it changed; start over (overwrite)")
        return number
