"""Audits a result without a line of the pipeline's code: reads the input in its own way, and the output by its manifest.

Every row of the input must be found exactly once, in the parts or in the rejects, whichever of the two its text calls for.
"""

import csv
import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.chaos.corpus import POISON


@dataclass(frozen=True)
class Audit:
    """What was found; all but `rows` must be 0."""

    rows: int
    lost: int
    twice: int
    strange: int
    """Ids that no row of the input has."""
    misplaced: int
    """Good rows among the rejects, or bad ones in the parts."""
    differing: int
    """Rows whose answer is not that of the undisturbed run."""
    unlisted: int
    """Parts in the folder that the manifest does not know, or the other way round."""

    @property
    def clean(self) -> bool:
        return not (
            self.lost
            or self.twice
            or self.strange
            or self.misplaced
            or self.differing
            or self.unlisted
            or not self.rows
        )

    def line(self) -> str:
        found = f"{self.rows:,} rows: {self.lost} lost, {self.twice} twice, {self.differing} labels differ"
        others = (self.strange, self.misplaced, self.unlisted)
        return found + (f", strange {others[0]}, misplaced {others[1]}, unlisted {others[2]}" if any(others) else "")


Answers = dict[str, tuple[str, int]]
"""Label and exit layer by id."""


def audit(corpus: Path, output: Path, reference: Path | None = None, *, has_orphans: bool = False) -> Audit:
    """Audit an output folder; `reference` is that of an undisturbed run. Orphans are parts that no manifest tells of."""
    expected = expected_rows(corpus)
    parts, rejects = listed_parts(output)
    answers, counts = read_answers(output, parts)
    bad = Counter(row for name in rejects for row in pq.read_table(output / name, columns=["id"])["id"].to_pylist())
    found = counts + bad
    truth = read_answers(reference, listed_parts(reference)[0])[0] if reference else answers
    there = {path.name for path in output.glob("part-*")} | {
        f"_rejects/{p.name}" for p in output.glob("_rejects/part-*")
    }
    return Audit(
        rows=sum(found.values()),
        lost=sum(row not in found for row in expected),
        twice=sum(count > 1 for count in found.values()),
        strange=sum(row not in expected for row in found),
        misplaced=sum(row in (bad if good else counts) for row, good in expected.items()),
        differing=sum(answers.get(row) != answer for row, answer in truth.items()),
        unlisted=len({*parts, *rejects} - there if has_orphans else {*parts, *rejects} ^ there),
    )


def listed_parts(output: Path) -> tuple[list[str], list[str]]:
    """Return the parts that the manifest tells of, and those of rejects: names relative to the folder."""
    shards = json.loads((output / "_manifest.json").read_text())["shards"]["path"]
    rows = pq.read_table(output / shards, columns=["part", "rejects_part"]).to_pylist()
    parts = dict.fromkeys(row["part"] for row in rows)  # which many shards share
    return [*parts], [*dict.fromkeys(row["rejects_part"] for row in rows if row["rejects_part"])]


def read_answers(output: Path, parts: list[str]) -> tuple[Answers, Counter[str]]:
    """Read labels by id, and how often each id is there."""
    tables = [pq.read_table(output / name, columns=["id", "label", "exit_layer"]) for name in parts]
    table = pa.concat_tables(tables)
    ids, labels, exits = (table[name].to_pylist() for name in ("id", "label", "exit_layer"))
    return dict(zip(ids, zip(labels, exits, strict=True), strict=True)), Counter(ids)


def expected_rows(corpus: Path) -> dict[str, bool]:
    """Return the id of every row of the input and whether it holds a usable text; of the truncated file, its name."""
    rows: dict[str, bool] = {}
    for path in sorted(corpus.iterdir()):
        if path.name.startswith("truncated"):
            rows[path.name] = False
            continue
        for number, text in enumerate(read_texts(path)):
            rows[f"{path.name}:{number}"] = bool(text and text.strip()) and text not in POISON
    return rows


def read_texts(path: Path) -> list[str | None]:
    """Read a file's texts; None for a row that has none."""
    if path.suffix == ".parquet":
        values: list[str | None] = pq.read_table(path)["text"].to_pylist()
        return values
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if path.suffix == ".csv":
        return [row["text"] for row in csv.DictReader(data.decode().splitlines())]
    lines = data.split(b"\n")[:-1]
    return [_text(line, plain=path.suffix == ".txt") for line in lines]


def _text(line: bytes, *, plain: bool) -> str | None:
    try:
        return line.decode() if plain else json.loads(line)["text"]
    except ValueError:
        return None
