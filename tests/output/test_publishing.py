"""What is published is whole, whoever is killed and whoever else writes: on a disk and on S3."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.listing import Corpus, list_inputs
from pipeline.errors import StorageError, UserError
from pipeline.output.ledger import Ledger
from pipeline.output.parts import Output, parquet_bytes
from pipeline.output.results import open_results, published, results_as_corpus, shards
from pipeline.schema import REJECTS
from pipeline.storage.base import is_remote
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


@pytest.mark.parametrize("overwrite", [False, True])
def test_results_of_another_version_of_offramp_are_refused_in_one_line(
    overwrite: bool, corpus: Corpus, folder: str
) -> None:
    run_all(folder, corpus, FINGERPRINT)
    storage, path = storage_of(folder), f"{folder}/_manifest.json"
    facts = published(folder).facts
    storage.write(path, json.dumps(facts | {"version": facts["version"] - 2}).encode())
    before = files_in(folder)
    with (
        pytest.raises(UserError, match=r"holds results of another version of offramp; choose another folder$"),
        Ledger(folder, FINGERPRINT, overwrite=overwrite),
    ):
        pass
    assert files_in(folder) == before


def make_older(folder: str) -> None:
    """Turn a published folder into one of version 3: a part for every shard, named after it, and a list that tells less."""
    storage, manifest = storage_of(folder), published(folder)
    facts, table = manifest.facts, shards(manifest)
    for shard in table.to_pylist():
        for column, place in (("part", ""), ("rejects_part", "_rejects/")):
            data = storage.read(f"{folder}/{shard[column]}")
            assert data
            storage.delete([f"{folder}/{shard[column]}"])
            storage.write(f"{folder}/{place}part-{shard['shard']}.parquet", data[0])
    names = [f"part-{shard}.parquet" for shard in table["shard"].to_pylist()]
    places = {"part": names, "rejects_part": [f"_rejects/{name}" for name in names]}
    columns = [name for name in table.column_names if name not in ("span", "part_row", "rejects_row", "waits", *places)]
    older = parquet_bytes(pa.table(places | {name: table[name] for name in columns}))
    storage.delete([manifest.shards_path])
    digest = hashlib.blake2b(older, digest_size=16).hexdigest()
    named = {"path": f"_shards-{digest[:16]}.parquet", "rows": len(table), "digest": digest}
    storage.write(f"{folder}/{named['path']}", older)
    del facts["totals"]["waits"]
    storage.write(f"{folder}/_manifest.json", json.dumps(facts | {"version": 3, "shards": named}).encode())


def test_a_folder_of_an_older_version_is_read_and_added_to(corpus: Corpus, folder: str, place: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    make_older(folder)
    assert read_all(folder) == (ALL_IDS, {"good"})
    assert run_all(folder, corpus, FINGERPRINT) is None
    before = {name for name in files_in(folder) if "part-" in name}
    more = make_corpus(place, ("c.txt",))
    assert run_all(folder, more, FINGERPRINT)
    assert before < files_in(folder)
    assert read_all(folder) == (sorted([*ALL_IDS, *(f"c.txt:{row}" for row in range(30))]), {"good"})
    check_places(folder)
    assert published(folder).facts["version"] == 4


def test_a_folder_of_an_older_version_that_lacks_parts_is_not_patched(tmp_path: Path) -> None:
    """Its shards begin elsewhere, so that rows would be there twice."""
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    make_older(folder)
    storage_of(folder).delete([f"{folder}/part-{corpus.files[0].shard_id(20)}.parquet"])
    with (
        pytest.raises(UserError, match=r"was written by another version of offramp and lacks parts; overwrite it$"),
        Ledger(folder, FINGERPRINT),
    ):
        pass
    run_all(folder, corpus, FINGERPRINT, overwrite=True)
    assert read_all(folder) == (ALL_IDS, {"good"})


def test_parts_of_unknown_origin_are_not_mixed_in(corpus: Corpus, folder: str) -> None:
    stray, _ = Output(folder).write(["0123456789abcdef"], SCHEMA.empty_table(), REJECTS.empty_table())
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
    assert len(files_in(folder)) == 2 + 4 + 4


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
    assert len([name for name in files_in(folder) if not name.startswith("_shards-")]) == 1 + 4 + 4


def test_two_drivers_end_with_one_correct_result(corpus: Corpus, folder: str) -> None:
    """On a disk the second is refused; on S3 both run, and neither loses what the other has done."""
    with Ledger(folder, FINGERPRINT) as first:
        first.begin(SCHEMA)
        if not is_remote(folder):
            with pytest.raises(UserError, match="another run is writing there"), Ledger(folder, FINGERPRINT):
                pass
            return
        with Ledger(folder, FINGERPRINT) as second:
            second.begin(SCHEMA)
            for done in (receipt(corpus, 0, 0, 20, last=False), receipt(corpus, 0, 20, 10, last=True)):
                finish(first, done)
                finish(second, done)
            finish(first, receipt(corpus, 1, 0, 20, last=False))
            finish(second, receipt(corpus, 1, 20, 10, last=True))
            first.publish(1.0, {})
            assert len(read_all(folder)[0]) == 50
            second.publish(1.0, {})
    assert read_all(folder) == (ALL_IDS, {"good"})
    assert run_all(folder, corpus, FINGERPRINT) is None


def test_shards_that_two_drivers_bundled_in_their_own_ways_are_published_once(s3: S3Server) -> None:
    """Parts with the same shard in them cannot both stand: one is written anew without it."""
    location = "s3://bucket/overlap"
    corpus, folder = make_corpus(location), make_folder(location)
    a0, a1 = receipt(corpus, 0, 0, 20, last=False), receipt(corpus, 0, 20, 10, last=True)
    b0, b1 = receipt(corpus, 1, 0, 20, last=False), receipt(corpus, 1, 20, 10, last=True)
    with Ledger(folder, FINGERPRINT) as first, Ledger(folder, FINGERPRINT) as second:
        for driver in (first, second):
            driver.begin(SCHEMA)
        finish(first, a0, a1, b0)
        finish(first, b1)
        finish(second, b1, a1)
        finish(second, b0, a0)
        first.publish(1.0, {})
        assert read_all(folder) == (ALL_IDS, {"good"})
        second.publish(1.0, {})
    assert read_all(folder) == (ALL_IDS, {"good"})
    check_places(folder)
    assert published(folder).facts["totals"]["rows_in"] == 60
    assert run_all(folder, corpus, FINGERPRINT) is None


def test_a_part_of_two_drivers_whose_files_differ_keeps_what_only_it_has(s3: S3Server) -> None:
    location = "s3://bucket/overlap-of-inputs"
    corpus, folder = make_corpus(location, ("a.txt", "b.txt", "c.txt")), make_folder(location)
    a, b, c = (receipt(corpus, number, 0, 30, last=True) for number in range(3))
    with Ledger(folder, FINGERPRINT) as first, Ledger(folder, FINGERPRINT) as second:
        for driver, bundle in ((first, (a, b)), (second, (b, c))):
            driver.begin(SCHEMA)
            finish(driver, *bundle)
        for driver in (first, second):
            driver.publish(1.0, {})
            check_places(folder)
    assert read_all(folder) == (sorted([*ALL_IDS, *(f"c.txt:{row}" for row in range(30))]), {"good"})


def check_places(folder: str) -> None:
    """See that every shard's rows and rejects are where its receipt says, and nothing else is in a part."""
    counts: dict[str, int] = {}
    for shard in shards(published(folder)).to_pylist():
        name = shard["file"].rsplit("/", 1)[1]
        for part, row, count in (
            (shard["part"], shard["part_row"], shard["rows_out"]),
            (shard["rejects_part"], shard["rejects_row"], 1),
        ):
            data = storage_of(folder).read(f"{folder}/{part}")
            assert data
            ids = pq.read_table(pa.BufferReader(data[0]))["id"].to_pylist()
            counts[part] = counts.get(part, len(ids)) - count
            first = shard["start"] + (1 if part == shard["part"] else 0)  # the first row is the reject
            assert ids[row : row + count] == [f"{name}:{number}" for number in range(first, first + count)]
    assert set(counts.values()) == {0}


def test_a_part_that_no_receipt_names_is_removed_after_publishing(corpus: Corpus, folder: str) -> None:
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        (loser,) = write(ledger, receipt(corpus, 0, 10, 20, last=True), label="done twice")
    assert loser.part in files_in(folder)
    run_all(folder, corpus, FINGERPRINT)
    # On S3 another driver may be at work, whose receipts are on their way, so that only old parts go.
    assert (loser.part in files_in(folder)) == is_remote(folder)
    assert (loser.rejects_part in files_in(folder)) == is_remote(folder)
    assert read_all(folder) == (ALL_IDS, {"good"})


def test_on_s3_old_parts_go_unless_a_receipt_names_them(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.output.publish.UNUSED_SECONDS", -60.0)
    location = "s3://bucket/unused"
    corpus, folder = make_corpus(location), make_folder(location)
    with Ledger(folder, FINGERPRINT) as slow, Ledger(folder, FINGERPRINT) as fast:
        for driver in (slow, fast):
            driver.begin(SCHEMA)
        (kept,) = finish(slow, receipt(corpus, 0, 0, 30, last=True))
        slow.flush()
        (loser,) = write(fast, receipt(corpus, 1, 0, 30, last=True), label="done twice")
        finish(fast, receipt(corpus, 1, 0, 30, last=True))
        fast.publish(1.0, {})
        assert kept.part in files_in(folder)
        assert loser.part not in files_in(folder)
        slow.publish(1.0, {})
    assert read_all(folder) == (ALL_IDS, {"good"})


def test_two_drivers_that_add_to_published_results_lose_nothing(s3: S3Server) -> None:
    location = "s3://bucket/adding"
    old = make_corpus(location, ("a.txt",))
    folder = make_folder(location)
    run_all(folder, old, FINGERPRINT)
    corpus = make_corpus(location)
    with Ledger(folder, FINGERPRINT) as first, Ledger(folder, FINGERPRINT) as second:
        for driver in (first, second):
            driver.begin(SCHEMA)
            finish(driver, receipt(corpus, 1, 0, 30, last=True))
            driver.publish(1.0, {})
    assert read_all(folder) == (ALL_IDS, {"good"})


def test_who_lost_receipts_to_another_driver_does_not_publish_without_them(s3: S3Server) -> None:
    location = "s3://bucket/taken"
    corpus = make_corpus(location)
    folder = make_folder(location)
    with Ledger(folder, FINGERPRINT) as slow:
        slow.begin(SCHEMA)
        finish(slow, receipt(corpus, 1, 0, 30, last=True))
        slow.flush()
        with Ledger(folder, FINGERPRINT) as fast:  # of the other file only
            fast.begin(SCHEMA)
            finish(fast, receipt(corpus, 0, 0, 30, last=True))
            fast.flush()
            storage_of(folder).delete(slow._log.segments)  # as fast.finish() would, had slow stored it a moment later
            fast.publish(1.0, {})
        with pytest.raises(StorageError, match="the same command does their shards again"):
            slow.publish(1.0, {})
    assert len(read_all(folder)[0]) == 30
    run_all(folder, corpus, FINGERPRINT)
    assert read_all(folder) == (ALL_IDS, {"good"})


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
    assert len(names) == 4  # the manifest, its list, parts and rejects of one generation


def test_a_driver_whose_results_were_replaced_publishes_no_more(s3: S3Server) -> None:
    location = "s3://bucket/replaced"
    corpus, folder = make_corpus(location), make_folder(location)
    with Ledger(folder, FINGERPRINT) as zombie:
        zombie.begin(SCHEMA)
        finish(zombie, receipt(corpus, 0, 0, 30, last=True), label="zombie")
        run_all(folder, corpus, OTHER, "new", overwrite=True)
        finish(zombie, receipt(corpus, 1, 0, 30, last=True), label="zombie")
        with pytest.raises(UserError, match="another run has published other results there meanwhile"):
            zombie.publish(1.0, {})
    assert read_all(folder) == (ALL_IDS, {"new"})


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
