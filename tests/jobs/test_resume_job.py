"""A run that is killed half way, or fills the disk: the same command does the rest alone, also in other bundles."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from pipeline.benchmark.synthetic import reviews
from tests.support.jobs import classify, finished_files, said, shards_kept, small_disk, start_job

pytestmark = pytest.mark.e2e

FILES, ROWS = 50, 1500
IN_FLIGHT = 3
"""Bundles of three files that may have been done and not noted: written, or on their way to the log."""


def make_corpus(folder: Path, rows: int) -> None:
    folder.mkdir()
    lines = [json.dumps({"text": review.text}) for review in reviews(rows, seed=1)]
    for number in range(FILES):
        (folder / f"{number:03}.jsonl").write_text("\n".join(lines))


def test_a_run_killed_half_way_does_the_rest_and_opens_no_finished_file(model_directory: Path, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    make_corpus(corpus, ROWS)
    job = start_job(model_directory, corpus, out, "--bundle-rows", str(2 * ROWS))
    deadline = time.monotonic() + 300
    while shards_kept(out) < FILES // 5 and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.05)
    job.kill()
    job.communicate(timeout=200)
    finished = finished_files(out)
    assert FILES // 5 <= len(finished) < FILES

    for path in finished:  # now of other content, under the same marks: who opens one of them gets rejects
        versions = os.stat(path)
        Path(path).write_bytes(b"\xff" * versions.st_size)
        os.utime(path, ns=(versions.st_atime_ns, versions.st_mtime_ns))
    resumed = classify(model_directory, corpus, out, "--bundle-rows", str(5 * ROWS), "--actors", "2")
    assert resumed.returncode == 0, resumed.stderr
    done = int(re.search(r"^([\d,]+) rows in", resumed.stdout, re.MULTILINE)[1].replace(",", ""))  # type: ignore[index]
    missing = (FILES - len(finished)) * ROWS
    assert missing <= done <= missing + 3 * IN_FLIGHT * ROWS
    rows = pd.read_parquet(out)
    assert len(rows) == FILES * ROWS
    assert rows.id.is_unique
    assert not list((out / "_rejects").glob("part-*"))
    predicted = json.loads((out / "_manifest.json").read_text())["predictions"]
    assert {name: count for name, count in predicted["classes"].items() if count} == rows.label.value_counts().to_dict()


def test_a_run_that_fills_the_disk_goes_on_when_there_is_room(model_directory: Path, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    make_corpus(corpus, 400)
    out.mkdir()
    with small_disk(out, "64k"):
        failed = classify(model_directory, corpus, out, "--bundle-rows", "400")
        assert failed.returncode == 1, failed.stdout + failed.stderr
        assert re.search(rf"error: {out}/\S+: No space left on device", failed.stderr)
        assert "the same command goes on from there" in failed.stderr
        assert len(said(failed.stderr)) == 2
        assert shards_kept(out) < FILES
        subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
        done = classify(model_directory, corpus, out)
        assert done.returncode == 0, done.stderr
        rows = pd.read_parquet(out)
        assert len(rows) == FILES * 400
        assert rows.id.is_unique
