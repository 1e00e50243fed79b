"""The memory of a run: receipts in an append-only file, and the manifest that publishes the result.

`_receipts.jsonl` holds the run's fingerprint and then one line for each finished shard; it is what a stopped run resumes from.
`_manifest.json` is written last and at once; a reader trusts it and nothing else. State is O(shards), never O(rows).
"""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pipeline.errors import UserError
from pipeline.inputs import Corpus, InputFile
from pipeline.output import LEDGER, MANIFEST, clear_folder, part_name, remove_leftovers, write_text
from pipeline.receipts import Receipt, Totals

MANIFEST_VERSION = 1
Fingerprint = dict[str, str]
"""What decides the answers, by name: model, tokenizer, speed, columns, schema, code version."""


class Ledger:
    """Receipts of one output folder. Use as a context manager: it holds the file open."""

    def __init__(self, folder: Path, fingerprint: Fingerprint, *, overwrite: bool = False) -> None:
        """Open or start the ledger; raise UserError if the folder holds results of another kind of run."""
        self.folder, self.fingerprint = folder, fingerprint
        if overwrite:
            clear_folder(folder)
        remove_leftovers(folder)
        self._receipts: dict[str, Receipt] = {}
        path = folder / LEDGER
        if path.exists():
            self._read(path)
        elif next(folder.glob("part-*.parquet"), None) is not None:
            raise UserError(
                f"--output {folder}: holds parts but no {LEDGER}; choose another folder or give --overwrite"
            )
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        if self._file.tell() == 0:
            self._append(json.dumps({"fingerprint": fingerprint}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, receipt: Receipt) -> None:
        """Write down a finished shard; from here on no run does it again."""
        self._append(receipt.to_json())
        self._receipts[receipt.shard] = receipt

    def totals(self) -> Totals:
        """All receipts added up."""
        totals = Totals()
        for receipt in self._receipts.values():
            totals.add(receipt)
        return totals

    def unfinished(self, files: Iterable[InputFile]) -> dict[str, set[int]]:
        """Return the files that still have work, by path, with the starts of their shards that are done.

        Raises UserError naming a file that changed since its shards were done.
        """
        done: dict[str, dict[int, Receipt]] = {}
        for receipt in self._receipts.values():
            done.setdefault(receipt.file, {})[receipt.start] = receipt
        left: dict[str, set[int]] = {}
        for file in files:
            shards = done.get(file.path, {})
            for start, receipt in shards.items():
                if receipt.shard != file.shard_id(start):
                    raise UserError(
                        f"{file.path}: changed since {self.folder} was made from it; "
                        "give the new content a new name, or start over with --overwrite"
                    )
            if not _complete(shards):
                left[file.path] = set(shards)
        return left

    def published(self) -> bool:
        """Say whether the manifest already tells of exactly these receipts."""
        path = self.folder / MANIFEST
        if not path.exists():
            return False
        return {shard["id"] for shard in json.loads(path.read_text(encoding="utf-8"))["shards"]} == set(self._receipts)

    def publish(self, corpus: Corpus, seconds: float) -> Path:
        """Write the manifest; the results are valid from here on."""
        receipts = sorted(self._receipts.values(), key=lambda r: (r.file, r.start))
        totals = self.totals()
        manifest: dict[str, Any] = {
            "version": MANIFEST_VERSION,
            "fingerprint": self.fingerprint,
            "inputs": [{"path": file.path, "size": file.size, "modified": file.modified} for file in corpus.files],
            "totals": asdict(totals) | {"rows_rejected": totals.rows_rejected},
            "mean_exit_layer": totals.mean_exit_layer,
            "flops_speedup": totals.flops_speedup,
            "seconds": round(seconds, 3),
            "versions": _versions(),
            "shards": [
                {
                    "id": r.shard,
                    "part": part_name(r.shard),
                    "file": r.file,
                    "start": r.start,
                    "rows_in": r.rows_in,
                    "rows_out": r.rows_out,
                    "rejected": r.rejected,
                }
                for r in receipts
            ],
        }
        path = self.folder / MANIFEST
        write_text(path, json.dumps(manifest, indent=1) + "\n")
        return path

    def _append(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        if lines[-1]:  # a line torn by a crash: its shard is done again
            whole = text[: len(text) - len(lines[-1])]
            write_text(path, whole)
        if len(lines) < 2:
            return
        before = json.loads(lines[0])["fingerprint"]
        names = sorted(k for k in before.keys() | self.fingerprint.keys() if before.get(k) != self.fingerprint.get(k))
        if names:
            what = "; ".join(
                f"{k} was {before.get(k, 'not set')}, is {self.fingerprint.get(k, 'not set')}" for k in names
            )
            raise UserError(
                f"--output {self.folder}: holds results of another run: {what}. Choose another folder or --overwrite"
            )
        for line in lines[1:-1]:
            receipt = Receipt.from_json(line)
            if (self.folder / part_name(receipt.shard)).exists():
                self._receipts[receipt.shard] = receipt


def _complete(shards: dict[int, Receipt]) -> bool:
    """Say whether these shards of a file follow each other without a gap up to its end."""
    position = 0
    while position in shards:
        receipt = shards[position]
        if receipt.last:
            return True
        position += receipt.rows_in
    return False


def code_version() -> str:
    """Version of offramp: of the installed distribution, or 'source' when it runs from a checkout."""
    try:
        return version("offramp")
    except PackageNotFoundError:
        return "source"


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "ray", "pyarrow", "tokenizers")
    return {"offramp": code_version(), "python": platform.python_version()} | {name: version(name) for name in packages}
