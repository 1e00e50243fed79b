"""The main job as a user runs it: real Ray, real files, its own process."""

import gzip
import io
import json
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.benchmark.synthetic import reviews
from pipeline.errors import UserError
from pipeline.output.results import open_results
from pipeline.storage.locate import storage_of
from tests.support.jobs import classify, classify_options, run_job, run_job_here, running, said, shards_kept, start_job
from tests.support.s3_server import BUCKET, Fault, S3Server

TEXTS = [review.text for review in reviews(600, seed=9)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Every format, with bad rows and a file cut short among good ones."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    pq.write_table(pa.table({"text": [*TEXTS[:200], None], "source": ["parquet"] * 201}), folder / "a.parquet")
    lines = [json.dumps({"text": text, "source": "jsonl"}) for text in TEXTS[200:400]]
    lines += ["{broken", json.dumps({"text": "the room was clean . " * 50_000, "source": "a megabyte"})]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    csv = "text,source\n" + "".join(f'"{text}",csv\n' for text in TEXTS[400:])
    (folder / "c.csv").write_bytes(csv.encode() + b"\xff\xfe,csv\n")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "d.parquet").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.e2e
def test_a_mixed_corpus_from_first_run_to_nightly_run(model_directory: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = classify_options(model_directory, corpus, out, "--keep", "source", "--probabilities")
    first = run_job("classify.py", *options)
    assert first.returncode == 0, first.stderr
    assert "Traceback" not in first.stderr

    rows, rejects = pd.read_parquet(out), pd.read_parquet(out / "_rejects")
    manifest = json.loads((out / "_manifest.json").read_text())
    assert len(rows) == 601
    assert rows.id.is_unique
    assert set(rows.source) == {"parquet", "jsonl", "csv", "a megabyte"}
    assert set(rows.label) <= {"negative", "positive"}
    assert rows.exit_layer.between(1, 4).all()
    assert rows.exit_layer.nunique() > 1
    assert rows.uncertainty.between(0, 1).all()
    assert (rows.score - rows.probabilities.map(max)).abs().max() < 1e-6
    assert rows.set_index("id").truncated.loc["b.jsonl.gz:201"]
    assert sorted(rejects.reason) == ["invalid_json", "invalid_utf8", "null_text", "unreadable_file"]
    assert rejects.set_index("reason").loc["unreadable_file", "file"] == str(corpus / "d.parquet")
    assert set(rejects.id) & set(rows.id) == set()
    totals = manifest["totals"]
    assert totals["rows_in"] == totals["rows_out"] + totals["rows_rejected"] == 604
    assert sum(totals["exits"]) == totals["rows_out"] == len(rows)
    predicted = manifest["predictions"]
    assert predicted == manifest["new_predictions"]
    assert predicted["classes"] == {name: int((rows.label == name).sum()) for name in ("negative", "positive")}
    assert sum(predicted["scores"].values()) == predicted["rows"] == len(rows)
    assert "Rows, by class" in (out / "_report.html").read_text()
    assert "604 rows" in first.stdout
    waits = [
        line
        for line in first.stdout.splitlines()
        if line.startswith(("starting Ray", "loading the model on 1 actor of "))
    ]
    assert [line.split(" of ")[0] for line in waits] == ["starting Ray", "loading the model on 1 actor"]
    assert "d.parquet: " in first.stdout

    before = (out / "_manifest.json").read_bytes()
    again = run_job_here("classify.py", *options)
    assert (again.returncode, (out / "_manifest.json").read_bytes()) == (0, before)
    assert "nothing to do" in again.stdout
    assert "loading the model" not in again.stdout

    other = run_job_here("classify.py", *options, "--speed", "0.5")
    assert other.returncode == 2
    assert "criterion was entropy 0.6, is entropy 0.5" in other.stderr

    moved = tmp_path / "moved"
    shutil.copytree(model_directory, moved)
    (corpus / "a.parquet").touch()  # the same bytes, but who could know without reading them all
    changed = classify(moved, corpus, out, "--keep", "source", "--probabilities")
    assert changed.returncode == 2
    assert f"{corpus / 'a.parquet'}: changed since {out} was made from it" in changed.stderr
    (corpus / "a.parquet").unlink()

    parts = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    (corpus / "e.jsonl").write_text(json.dumps({"text": TEXTS[0], "source": "new"}))
    nightly = classify(moved, corpus, out, "--keep", "source", "--probabilities", "--strict", "--incremental")
    assert nightly.returncode == 1  # --strict: the rejects of the night before are still there
    assert len(pd.read_parquet(out)) == 602
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert "1 rows in" in nightly.stdout


@pytest.mark.e2e
def test_a_stopped_run_keeps_what_was_done_and_goes_on(model_directory: Path, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    texts = pa.table({"text": [review.text for review in reviews(1500, seed=1)]})
    for number in range(64):
        pq.write_table(texts, corpus / f"{number:02}.parquet")
    job = start_job(model_directory, corpus, out, "--bundle-rows", "1500")
    deadline = time.monotonic() + 300
    while shards_kept(out) < 2 and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.02)
    family = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGTERM)
    stdout, stderr = job.communicate(timeout=200)
    assert family
    assert not running(psutil.wait_procs(family, timeout=20)[1])
    assert job.returncode == 128 + signal.SIGTERM, stdout + stderr
    assert "the same command goes on from there" in stdout
    assert "Traceback" not in stderr
    assert not (out / "_manifest.json").exists()
    assert not list(out.glob("_attempts/*"))
    kept = shards_kept(out)
    assert 2 <= kept < 64

    resumed = classify(model_directory, corpus, out)
    assert resumed.returncode == 0, resumed.stderr
    rows = pd.read_parquet(out)
    assert len(rows) == 96_000
    assert rows.id.is_unique
    assert f"{96_000 - 1500 * kept:,} rows in" in resumed.stdout  # only what was missing


WRONG = {
    "missing column": ("--text-column", "body", "--text-column body: {good} has no such column; it has text, stars"),
    "wrong type": ("--text-column", "stars", "--text-column stars: in {good} it is of type int64"),
    "empty folder": ("--input", "{tmp}/empty", "--input {tmp}/empty: no file to read"),
    "no model": ("--model", "{tmp}/nowhere", "{tmp}/nowhere: no model there"),
    "output is a file": ("--output", "{tmp}/file", "--output {tmp}/file: cannot be written"),
    "output is no UTF-8": ("--output", "{tmp}/caf\udce9", "--output {tmp}/caf\\udce9: the name is no UTF-8"),
    "output is too long": ("--output", "{tmp}/" + "x" * 300, "cannot be written"),
    "output cannot be made": ("--output", "/proc/nowhere", "--output /proc/nowhere: cannot be written"),
    "speed out of range": ("--speed", "2", "--speed must be in [0, 1], not 2.0"),
    "kept column clashes": ("--keep", "label", "--keep label"),
    "too many tokens": ("--max-tokens", "1000", "--max-tokens 1000: the model takes 70 tokens at most"),
}
"""Options that are wrong in one way, and what the error must name."""


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_command_names_the_culprit_in_one_line(what: str, model_directory: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.parquet"
    pq.write_table(pa.table({"text": ["a room"], "stars": [5]}), good)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    option, value, culprit = (text.format(tmp=tmp_path, good=good) for text in WRONG[what])
    options = {"--model": str(model_directory), "--input": str(good), "--output": str(tmp_path / "out")}
    done = run_job_here("classify.py", *(part for pair in (options | {option: value}).items() for part in pair))
    assert done.returncode == 2
    assert culprit in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_class_name_that_is_no_text_is_named_before_any_work(model_directory: Path, tmp_path: Path) -> None:
    model = shutil.copytree(model_directory, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["id2label"]["1"] = "\ud800\x1b[2J"
    (model / "config.json").write_text(json.dumps(config))
    (tmp_path / "in.txt").write_text("text\n")
    done = classify(model, tmp_path / "in.txt", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.endswith("the name of class 1, '\\ud800\\x1b[2J', is no Unicode text\n")


@pytest.mark.e2e
def test_a_kept_column_may_have_any_name_that_the_output_leaves_free(model_directory: Path, tmp_path: Path) -> None:
    names = ["text", "row", "reason", "detail", "tokens", "segment", "receipt"]
    table = pa.table({name: [f"{name} {number}" for number in range(5)] for name in names})
    pq.write_table(table, tmp_path / "corpus.parquet")
    done = classify(model_directory, tmp_path / "corpus.parquet", tmp_path / "out", "--keep", *names)
    assert done.returncode == 0, done.stderr
    kept = pq.read_table(next((tmp_path / "out").glob("part-*.parquet")))
    assert kept.select(names).equals(table)


def test_only_unreadable_files_are_named_too(model_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.parquet").write_bytes(b"PAR1 no")
    done = run_job_here("classify.py", *classify_options(model_directory, tmp_path / "in", tmp_path / "out"))
    assert done.returncode == 2
    assert "broken.parquet" in done.stderr


@pytest.mark.e2e
def test_s3_from_a_run_that_fails_to_one_that_has_nothing_to_do(
    model_directory: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    storage, root = storage_of("s3://"), f"s3://{BUCKET}/nightly"
    for number in range(30):
        data = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[number * 10 : number * 10 + 10])
        storage.write(f"{root}/in/{number:02}.jsonl.gz", gzip.compress(data.encode()))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS[300:]}), buffer)
    storage.write(f"{root}/in/deep/3.parquet", buffer.getvalue())
    for file in model_directory.iterdir():
        storage.write(f"{root}/model/{file.name}", file.read_bytes())
    options = ["--model", f"{root}/model", "--input", f"{root}/in", "--output", f"{root}/out", "--speed", "0.6"]
    endpoint = ["--endpoint-url", s3.url]

    s3.faults += [Fault("PUT", "/out/part-", times=2), Fault("PUT", "/out/part-", "403 Forbidden", times=1)]
    failed = run_job("classify.py", *options, *endpoint, AWS_ENDPOINT_URL="")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert re.search(rf"error: {root}/out/part-\w+\.parquet: Forbidden: the test says so", failed.stderr)
    assert "the same command goes on from there" in failed.stderr
    assert len(said(failed.stderr)) == 2
    with pytest.raises(UserError, match="has not ended"):
        open_results(f"{root}/out")

    s3.requests.clear()
    done = run_job("classify.py", *options)
    assert done.returncode == 0, done.stderr
    requests = Counter(path.removeprefix(f"/{BUCKET}/nightly/in/") for _, path in s3.requests if "/in/" in path)
    assert set(requests.values()) == {1}
    assert len(requests) == 31
    parts = [path for method, path in s3.requests if method == "PUT" and "/part-" in path]
    assert len(parts) == 1
    ids = open_results(f"{root}/out").to_table()["id"].to_pylist()
    assert sorted(ids) == sorted([f"{n:02}.jsonl.gz:{row}" for n in range(30) for row in range(10)] + [
        f"deep/3.parquet:{row}" for row in range(300)
    ])  # fmt: skip

    manifest = storage.read(f"{root}/out/_manifest.json")
    s3.requests.clear()
    again = run_job_here("classify.py", *options)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout
    assert storage.read(f"{root}/out/_manifest.json") == manifest
    assert not [path for method, path in s3.requests if "/in/" in path or "/model/" in path]
    assert not [method for method, path in s3.requests if "part-" in path]

    written = b"".join((storage.read(entry.path) or (b"", ""))[0] for entry in storage.walk(f"{root}/out"))
    printed = failed.stdout + failed.stderr + done.stdout + done.stderr + again.stdout + again.stderr
    for secret in ("the-key-id", "a-secret-of-the-test"):
        assert secret not in printed
        assert secret.encode() not in written
