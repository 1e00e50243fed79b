"""What a job says, and how it ends, where what it published was lost or damaged: one line, exit code 2, and a way out."""

import os
from pathlib import Path

import pyarrow.compute as pc
import pytest

from pipeline.output.results import open_rejects, open_results, published, shards
from tests.support.jobs import classify

pytestmark = pytest.mark.e2e


def rows_of(out: Path) -> list[str]:
    tables = open_results(out).to_table(), open_rejects(out).to_table()
    return sorted(row for table in tables for row in table["id"].to_pylist())


def refused(model: Path, corpus: Path, out: Path, *more: str) -> str:
    """Return the one line with which a job is refused."""
    done = classify(model, corpus, out, *more)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_published_results_that_are_lost_or_damaged_are_named_with_a_way_out(
    model_directory: Path, tmp_path: Path
) -> None:
    corpus, out = tmp_path / "in", tmp_path / "out"
    corpus.mkdir()
    for name in ("a.txt", "b.txt"):
        (corpus / name).write_text("".join(f"text {row}\n" for row in range(20)) + "\n")
    assert classify(model_directory, corpus, out, "--bundle-rows", "10").returncode == 0
    rows = rows_of(out)
    assert len(rows) == 42

    listed = published(out).shards_path
    os.unlink(listed)
    done = classify(model_directory, corpus, out)
    assert done.returncode == 0, done.stderr
    assert (
        f"{listed}: is gone, though _manifest.json names it; it is made again from what the parts say\n" in done.stdout
    )
    assert rows_of(out) == rows

    table = shards(published(out))
    (part,) = pc.unique(table.filter(pc.ends_with(table["file"], "b.txt"))["part"]).to_pylist()
    (out / part).unlink()
    (corpus / "b.txt").rename(tmp_path / "b.txt")
    line = refused(model_directory, corpus, out, "--incremental")
    assert f"{out}/{part}: is gone, with rows of {corpus}/b.txt, which the input has no more" in line
    (tmp_path / "b.txt").rename(corpus / "b.txt")
    done = classify(model_directory, corpus, out, "--incremental")
    assert done.returncode == 0, done.stderr
    assert f"parts of 1 shards are gone from {out}; they are made again\n" in done.stdout
    assert rows_of(out) == rows

    (out / "_manifest.json").write_bytes(b"")
    line = refused(model_directory, corpus, out)
    assert f"error: --output {out}/_manifest.json: is empty; put _manifest.previous.json, the one before it" in line
    assert line.endswith("or start over with --overwrite\n")
    (corpus / "b.txt").unlink()
    assert classify(model_directory, corpus, out, "--overwrite").returncode == 0
    assert rows_of(out) == rows[:21]

    done = classify(model_directory, corpus, out, "--overwrite")
    assert done.returncode == 0
    assert len(rows_of(out)) == 21
