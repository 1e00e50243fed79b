"""Write parts: Parquet files that appear under their final name whole or not at all."""

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError

REJECTS_FOLDER = "_rejects"
MANIFEST, LEDGER = "_manifest.json", "_receipts.jsonl"


def part_name(shard: str) -> str:
    """File name of a shard's part: repeating a shard rewrites the same file."""
    return f"part-{shard}.parquet"


def write_part(folder: Path, shard: str, rows: pa.Table) -> None:
    """Write a part under a temporary name, flush it to disk, and rename it."""
    temporary = folder / f".{part_name(shard)}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as file:
            pq.write_table(rows, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / part_name(shard))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def prepare_folder(output: str, corpus: str) -> Path:
    """Make the output folder and see that it can be written; raise UserError if not, or if it lies in the corpus."""
    if "://" in output:
        raise UserError(f"--output {output}: only local folders are written so far")
    folder = Path(output).expanduser().absolute()
    if folder.resolve().is_relative_to(Path(corpus).expanduser().resolve()):
        raise UserError(f"--output {output}: lies inside --input, where the next run would read it as corpus")
    try:
        (folder / REJECTS_FOLDER).mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from error
    return folder


def clear_folder(folder: Path) -> None:
    """Remove the results of earlier runs, and nothing else, manifest first."""
    for name in (MANIFEST, LEDGER):
        (folder / name).unlink(missing_ok=True)
    for place in (folder, folder / REJECTS_FOLDER):
        for part in place.glob("part-*.parquet"):
            part.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed run left behind."""
    for place in (folder, folder / REJECTS_FOLDER):
        for leftover in place.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
