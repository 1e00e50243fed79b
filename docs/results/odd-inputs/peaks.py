#!/usr/bin/env python
"""Measure the memory that reading takes for the worst files of each format: python docs/results/odd-inputs/peaks.py.

Each file is read to its end in a process of its own, shard after shard, as a reading task does; what is printed is the peak of
its resident memory, and how much of that was there before the file was opened.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pipeline.corpus.columns import Columns
from pipeline.corpus.decoders.raw import MAX_ROW_BYTES
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import read_shards

MIB = 1 << 20


def repeated(piece: bytes, size: int) -> Iterator[bytes]:
    """Yield `size` bytes of the same piece, some at a time."""
    block = piece * (MIB // len(piece))
    for _ in range(size // len(block)):
        yield block


def pack(path: Path, pieces: Iterable[bytes]) -> None:
    """Write pieces into a file, compressed as its name says."""
    codec = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pa.output_stream(str(path), compression=codec) as out:
        for piece in pieces:
            out.write(piece)


def one_line(path: Path) -> None:
    pack(path, repeated(b"a", 3 << 30))


def blank_lines(path: Path) -> None:
    pack(path, repeated(b"\n", 4 * MIB))


def short_lines(path: Path) -> None:
    pack(path, repeated(b"a\n", 8 * MIB))


def json_of(item: bytes) -> Callable[[Path], None]:
    """Return what writes lines that hold a list of small values, each line as long as a line may be."""

    def write(path: Path) -> None:
        line = b'{"text": "good", "k": [' + item * ((MAX_ROW_BYTES - 64) // len(item)) + b"0]}\n"
        pack(path, [line] * 20)

    return write


def open_quote(path: Path) -> None:
    pack(path, [b"id,text\n", b'1,"', *repeated(b"a\n", 256 * MIB)])


def stray_quotes(path: Path) -> None:
    pack(path, [b"id,text\n", *([b'1,"TV 55"" x"\n', *repeated(b"2,b\n", 7 * MIB)] * 5)])


def table(path: Path, text: pa.Array, **options: object) -> None:
    pq.write_table(pa.table({"text": text}), path, **options)


def same_text(size: int, rows: int) -> Callable[[Path], None]:
    return lambda path: table(path, pa.array(["a" * size] * rows))


def prefixes(path: Path) -> None:
    texts = pa.array(["a" * 300_000] * 1024)
    table(path, texts, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})


def categories(path: Path) -> None:
    table(path, pa.DictionaryArray.from_arrays(pa.array([0] * 1024, pa.int32()), pa.array(["a" * 300_000])))


def row_group(path: Path) -> None:
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), use_dictionary=False) as writer:
        writer.write_table(
            pa.table({"text": ["b" * 1000 + str(n) for n in range(1_500_000)]}), row_group_size=1_500_000
        )


def one_value(path: Path) -> None:
    table(path, pa.array(["a" * (500 * MIB), "good"]), use_dictionary=False)


def arrow_batch(compression: str | None) -> Callable[[Path], None]:
    """Return what writes a file of one batch."""

    def write(path: Path) -> None:
        texts = pa.table({"text": ["b" * 1000 + str(n) for n in range(1_500_000)]})
        with pa.ipc.new_file(
            str(path), texts.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
        ) as writer:
            writer.write_table(texts)

    return write


def long_window(path: Path) -> None:
    """Write a frame as `zstd --long=31` begins it, of blocks that are stored as they are (RFC 8878)."""
    block, blocks = (b"a" * 999 + b"\n") * 128, 20_312
    with path.open("wb") as out:
        out.write(b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]))
        for number in range(blocks):
            out.write((len(block) << 3 | (number == blocks - 1)).to_bytes(3, "little") + block)


def books(path: Path) -> None:
    book = "the room was clean and the food was cold " * 73_000
    with pq.ParquetWriter(path, pa.schema([("text", pa.large_string())])) as writer:
        for start in range(0, 750, 250):
            rows = [f"{start + number} {book}" for number in range(250)]
            writer.write_table(pa.table({"text": pa.array(rows, pa.large_string())}))


FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a line of 3 GiB": ("a.txt.gz", one_line),
    "the same, zstd": ("a.txt.zst", one_line),
    "the same, plain, JSONL": ("a.jsonl", one_line),
    "4 million line feeds": ("a.txt.gz", blank_lines),
    "the same, JSONL": ("a.jsonl.gz", blank_lines),
    "4 million lines of one letter": ("a.txt", short_lines),
    "JSON lines of 8 MiB, of empty lists": ("a.jsonl", json_of(b"[],")),
    "JSON lines of 8 MiB, of empty objects": ("a.jsonl", json_of(b"{},")),
    "JSON lines of 8 MiB, of small objects": ("a.jsonl", json_of(b'{"b":0},')),
    "a quote that is never closed, 256 MiB": ("a.csv.zst", open_quote),
    "a quote too many, every 7 MiB": ("a.csv", stray_quotes),
    "a field of 3 GiB": ("a.tsv.gz", lambda path: pack(path, [b"id\ttext\n1\t", *repeated(b"a", 3 << 30)])),
    "1,024 rows of one text of 300 kB": ("a.parquet", same_text(300_000, 1024)),
    "500 rows of one text of 8 MB, a page of 2.1 GB": ("a.parquet", same_text(8_000_000, 500)),
    "the same as prefixes": ("a.parquet", prefixes),
    "the same as a category": ("a.parquet", categories),
    "a row group of 1.5 GB": ("a.parquet", row_group),
    "a value of 500 MiB": ("a.parquet", one_value),
    "750 texts of 3 MB, dictionaries of 750 MB": ("a.parquet", books),
    "an Arrow batch of 1.5 GB": ("a.arrow", arrow_batch(None)),
    "the same, compressed": ("a.arrow", arrow_batch("zstd")),
    "2.6 GB of lines, a zstd window of 2 GiB": ("a.txt.zst", long_window),
}


def read(path: str) -> None:
    """Read a file to its end; print the peak of memory, the one before, the seconds and what came of the rows."""
    (file,) = list_inputs(path).files
    before = peak()
    rows, reasons, largest, error = 0, Counter[str](), 0, None
    columns = Columns(text="text", keep=pa.schema([("k", pa.string())] if file.format == "jsonl" else []))
    for shard in read_shards(file, columns):
        rows += len(shard.rows)
        reasons.update(shard.rejects["reason"].to_pylist())
        largest, error = max(largest, shard.rows.nbytes), shard.read_error or error
    print(json.dumps([peak(), before, time.process_time(), rows, dict(reasons), largest, error]))


def peak() -> int:
    """Return the largest resident memory of this process so far, in KiB; unlike getrusage's it has nothing of the parent's."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--read", help="read this file, in this process")
    parser.add_argument("--write", metavar="FOLDER", help="write the files there, and read none")
    parser.add_argument("--only", default="", help="files with a match of this regular expression in their description")
    options = parser.parse_args()
    wanted = {what: made for what, made in FILES.items() if re.search(options.only, what)}
    if options.read:
        read(options.read)
        return
    if options.write:
        for what, (name, write) in wanted.items():
            words = re.sub(r"\W+", "-", what)
            write(Path(options.write) / f"{words}{name.removeprefix('a')}")
        return
    print(
        "| file | stored | peak MB | above the start | largest shard MB | CPU s | rows | rejects |\n"
        + "| --- " * 8
        + "|"
    )
    for what, (name, write) in wanted.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write(path)
            command = [sys.executable, __file__, "--read", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
            if done.returncode:
                print(f"| {what} | {path.stat().st_size:,} | {done.stderr.strip().splitlines()[-1]} |")
                continue
            peak, before, seconds, rows, reasons, largest, error = json.loads(done.stdout)
            rejects = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items()) + (
                f"; {error}" if error else ""
            )
            print(
                f"| {what} | {path.stat().st_size:,} | {peak / 1024:,.0f} | {(peak - before) / 1024:,.0f} "
                f"| {largest / 1e6:,.0f} | {seconds:.1f} | {rows:,} | {rejects} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
