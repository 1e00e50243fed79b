"""What is published is whole, whoever is killed and whoever else writes: on a disk and on S3."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.corpus.listing import Corpus, list_inputs
from pipeline.errors import UserError
from pipeline.output.ledger import Ledger
from pipeline.output.parts import Output, parquet_bytes
from pipeline.output.results import open_results, published, results_as_corpus, shards
from pipeline.storage.locate import storage_of
from tests.support.jobs import REPOSITORY
from tests.support.ledger import (
    ALL_IDS,
    FINGERPRINT,
    OTHER,
    SCHEMA,
    files_in,
    finish,
    make_corpus,
    make_folder,
    read_all,
    receipt,
    run_all,
    write,
)
from tests.support.s3_server import S3Server


def test_a_stored_result_leaves_nothing_but_itself(corpus: Corpus, folder: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    names = {re.sub("[0-9a-f]{16}", "*", name) for name in files_in(folder)}
    assert names == {"_manifest.json", "_shards-*.parquet", "part-*.parquet", "_rejects/part-*.parquet"}


def test_the_manifest_and_its_list_account_for_every_row_once(corpus: Corpus, folder: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    manifest = published(folder)
    totals, table = manifest.facts["totals"], shards(manifest)
    assert totals["rows_in"] == totals["rows_out"] + totals["rows_rejected"] == sum(table["rows_in"].to_pylist()) == 60
    assert (manifest.facts["flops_speedup"], manifest.facts["files"]) == (2.0, 2)
    assert manifest.fingerprint == FINGERPRINT
    assert set(table["part"].to_pylist()) | set(table["rejects_part"].to_pylist()) <= files_in(folder)
    assert read_all(folder) == (ALL_IDS, {"good"})


def test_who_knows_nothing_of_offramp_can_read_and_audit_a_result(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    run_all(folder, corpus, OTHER, "new", overwrite=True)
    manifest = json.loads(Path(folder, "_manifest.json").read_text())
    listed = Path(folder, manifest["shards"]["path"])
    assert hashlib.blake2b(listed.read_bytes(), digest_size=16).hexdigest() == manifest["shards"]["digest"]
    ids: list[str] = []
    for shard in pq.read_table(listed).to_pylist():
        rows, rejects = pq.read_table(f"{folder}/{shard['part']}"), pq.read_table(f"{folder}/{shard['rejects_part']}")
        assert shard["rows_in"] == len(rows) + len(rejects) == shard["rows_out"] + sum(dict(shard["rejected"]).values())
        ids += rows["id"].to_pylist() + rejects["id"].to_pylist()
    assert sorted(ids) == ALL_IDS


def test_a_job_that_reads_results_takes_published_parts_only(corpus: Corpus, folder: str) -> None:
    plain = results_as_corpus(f"{folder.removesuffix('/out')}/in")  # a folder that no run has written to
    assert plain.files == corpus.files
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, receipt(corpus, 0, 0, 30, last=True))
    with pytest.raises(UserError, match="the run that writes there has not ended"):
        results_as_corpus(folder)
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.publish(1.0, {})
        write(ledger, receipt(corpus, 1, 0, 30, last=True))  # by a run that goes on
    (part,) = set(shards(published(folder))["part"].to_pylist())
    (file,) = results_as_corpus(folder).files
    (alone,) = results_as_corpus(file.path).files  # a file is an input as any
    assert alone.path == file.path
    assert file.path == f"{folder}/{file.name}" == f"{folder}/{part}"


def test_there_is_nothing_to_read_before_the_end(corpus: Corpus, folder: str) -> None:
    with pytest.raises(UserError, match=r"no _manifest\.json: no results are there"):
        open_results(folder)
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, receipt(corpus, 0, 0, 30, last=True))
    with pytest.raises(UserError, match="the run that writes there has not ended"):
        open_results(folder)


def test_what_others_keep_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    others = [Path(folder, name) for name in ("sub/part-0123456789abcdef.parquet", "sub/_rejects/x", "part-0.parquet")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
    others[0].touch()
    others[1].touch()
    run_all(folder, corpus, FINGERPRINT)
    others[2].touch()  # by a tool that names its files in this way
    more = make_corpus(str(tmp_path), ("c.txt",))
    run_all(folder, more, FINGERPRINT)
    assert all(path.exists() for path in others)


def test_parts_of_unknown_origin_are_not_mixed_in(corpus: Corpus, folder: str) -> None:
    stray = Output(folder).part("0123456789abcdef")
    storage_of(folder).write(f"{folder}/{stray}", parquet_bytes(SCHEMA.empty_table()))
    with pytest.raises(UserError, match=r"holds parts but no _manifest\.json"), Ledger(folder, FINGERPRINT):
        pass
    run_all(folder, corpus, FINGERPRINT, overwrite=True)
    assert read_all(folder) == (ALL_IDS, {"good"})
    assert stray not in files_in(folder)


def test_overwriting_leaves_the_old_results_whole_until_the_new_ones_are(corpus: Corpus, folder: str) -> None:
    run_all(folder, corpus, FINGERPRINT, "old")
    with Ledger(folder, OTHER, overwrite=True) as ledger:  # ended half way
        ledger.begin(SCHEMA)
        assert set(ledger.unfinished(corpus.files)) == {file.path for file in corpus.files}
        finish(ledger, receipt(corpus, 0, 0, 20, last=False), label="new")
    assert read_all(folder) == (ALL_IDS, {"old"})
    assert run_all(folder, corpus, FINGERPRINT, "old") is None  # nothing was lost for the command before, either
    with Ledger(folder, OTHER, overwrite=True) as ledger:  # goes on, does not start over
        assert ledger.unfinished(corpus.files) == {corpus.files[0].path: (0,), corpus.files[1].path: ()}
    run_all(folder, corpus, OTHER, "new", overwrite=True)
    assert read_all(folder) == (ALL_IDS, {"new"})
    assert all(".g2." in name for name in files_in(folder) if "part-" in name)
    assert not [name for name in files_in(folder) if name.startswith("_receipts")]
    assert run_all(folder, corpus, OTHER) is None
    run_all(folder, corpus, OTHER, "newest", overwrite=True)
    assert read_all(folder) == (ALL_IDS, {"newest"})
    assert len(files_in(folder)) == 2 + 2 + 4 + 4  # two manifests with their lists, parts and rejects


@pytest.mark.parametrize("moment", ["list written", "manifest written"])
def test_a_kill_while_publishing_is_made_good(
    moment: str, corpus: Corpus, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing after the moment happens, as if the process had ended there."""

    class KilledError(BaseException):
        pass

    def killed(*_arguments: object) -> None:
        raise KilledError

    run_all(folder, corpus, FINGERPRINT, "old")
    storage = type(storage_of(folder))
    with monkeypatch.context() as patch:
        write_if = storage.write_if
        if moment == "list written":
            patch.setattr(
                storage,
                "write_if",
                lambda s, path, *rest: killed() if "_manifest" in path else write_if(s, path, *rest),
            )
        else:
            patch.setattr(Ledger, "finish", killed)
        with pytest.raises(KilledError):
            run_all(folder, corpus, OTHER, "new", overwrite=True)
    assert read_all(folder) == (ALL_IDS, {"old" if moment == "list written" else "new"})
    again = run_all(folder, corpus, OTHER, "done twice", overwrite=True)
    assert (again is None) == (moment == "manifest written")
    assert read_all(folder) == (ALL_IDS, {"new"})
    assert len([name for name in files_in(folder) if not name.startswith("_shards-")]) == 2 + 4 + 4


@pytest.mark.parametrize("publish_first", [False, True])
def test_overwriting_that_was_stopped_starts_over_when_its_input_changed(
    publish_first: bool, corpus: Corpus, folder: str, place: str
) -> None:
    if publish_first:
        run_all(folder, corpus, FINGERPRINT, "old")
    with Ledger(folder, OTHER, overwrite=True) as stopped:
        stopped.begin(SCHEMA)
        finish(stopped, receipt(corpus, 0, 0, 30, last=True), label="stopped")
    storage_of(place).write(f"{place}/in/a.txt", b"y\n" * 31)
    changed = list_inputs(f"{place}/in")
    with Ledger(folder, OTHER, overwrite=True) as again:
        assert set(again.unfinished(changed.files)) == {file.path for file in changed.files}
        again.begin(SCHEMA)
        finish(again, receipt(changed, 0, 0, 31, last=True), label="new")
        finish(again, receipt(changed, 1, 0, 30, last=True), label="new")
        again.publish(1.0, {})
    ids, labels = read_all(folder)
    assert (ids, labels) == (sorted([*ALL_IDS, "a.txt:30"]), {"new"})
    names = {re.sub("[0-9a-f]{16}", "*", name) for name in files_in(folder)}
    assert len(names - {"_manifest.previous.json"}) == 4  # the manifest, its list, parts and rejects of one generation


def test_a_lost_answer_to_the_publishing_put_is_no_conflict(s3: S3Server) -> None:
    path = "s3://bucket/lost-answer/x"
    storage = storage_of(path)
    assert storage.write_if(path, b"text", None)
    assert storage.write_if(path, b"text", None)  # the second try of the same
    assert not storage.write_if(path, b"other", None)
    there = storage.stat(path)
    assert there
    assert storage.write_if(path, b"other", there.version)
    assert not storage.write_if(path, b"third", there.version)


def test_a_killed_driver_leaves_no_lock(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    code = "import os, signal; from pipeline.output.ledger import Ledger; from tests.support.ledger import *\n"
    code += f"with Ledger({folder!r}, FINGERPRINT) as l:\n l.begin(SCHEMA); print('open', flush=True); signal.pause()"
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert driver.stdout
    assert driver.stdout.readline() == b"open\n"
    with (
        pytest.raises(UserError, match=f"another run is writing there .process {driver.pid} on "),
        Ledger(folder, FINGERPRINT),
    ):
        pass
    driver.kill()
    driver.wait()
    driver.stdout.close()
    assert run_all(folder, corpus, FINGERPRINT)


def test_the_manifest_is_json_that_people_can_read(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    path = run_all(folder, corpus, FINGERPRINT)
    assert path
    facts = json.loads(Path(path).read_text())
    assert facts["schema"]["columns"] == {"id": "string", "label": "string"}
    assert Path(folder, facts["shards"]["path"]).exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x1b[2J\x1b]0;owned\x07", b"line\nbreak" * 1000, b""])
def test_a_lock_with_strange_content_is_one_short_line(content: bytes, tmp_path: Path) -> None:
    folder = make_folder(str(tmp_path))
    with Ledger(folder, FINGERPRINT):
        Path(folder, "_lock").write_bytes(content)
        with pytest.raises(UserError, match="another run is writing there") as error, Ledger(folder, FINGERPRINT):
            pass
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000 + len(folder)
    with Ledger(folder, FINGERPRINT):
        assert Path(folder, "_lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    folder, victim = make_folder(str(tmp_path)), tmp_path / "victim"
    victim.write_text("precious")
    Path(folder, "_lock").symlink_to(victim)
    with pytest.raises(UserError, match="_lock: is no file; remove it"), Ledger(folder, FINGERPRINT, overwrite=True):
        pass
    assert victim.read_text() == "precious"
    Path(folder, "_lock").unlink()
    Path(folder, "_lock").mkdir()
    with pytest.raises(UserError, match="_lock: is no file; remove it"), Ledger(folder, FINGERPRINT):
        pass
