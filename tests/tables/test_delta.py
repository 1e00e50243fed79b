"""The Delta table says what the manifest says: after a run, an addition, an overwriting, a death, and of two drivers."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipeline.corpus.listing import Corpus
from pipeline.errors import InputError, StorageError
from pipeline.output.ledger import Ledger
from pipeline.output.results import open_results
from pipeline.storage.base import is_remote
from pipeline.storage.locate import storage_of
from pipeline.tables.delta import DeltaLog, has_table, table_of
from tests.output.test_older_versions import make_older
from tests.support.ledger import (
    ALL_IDS,
    FINGERPRINT,
    OTHER,
    SCHEMA,
    files_in,
    finish,
    make_corpus,
    make_folder,
    receipt,
    run_all,
)
from tests.support.s3_server import Fault, S3Server
from tests.support.tables import check_against_manifest, open_table, read_by_all


def labels(found: pa.Table) -> set[str]:
    return {*found["label"].to_pylist()}


def log_of(folder: str) -> set[str]:
    return {name for name in files_in(folder) if name.startswith("_delta_log/")}


def test_every_publishing_is_a_version_over_the_same_files(
    corpus: Corpus, folder: str, place: str, table: DeltaLog, lines: list[str]
) -> None:
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    assert len(check_against_manifest(folder)) == 56
    before = log_of(folder)
    assert run_all(folder, corpus, FINGERPRINT, follow=table.follow) is None
    assert log_of(folder) == before == {f"_delta_log/{0:020}.json"}
    more = make_corpus(place, ("c.txt",))
    run_all(folder, more, FINGERPRINT, follow=table.follow)
    assert len(check_against_manifest(folder)) == 84
    run_all(folder, corpus, OTHER, "new", follow=table.follow, overwrite=True)
    found = check_against_manifest(folder)
    assert (len(found), labels(found)) == (56, {"new"})
    assert lines[0] == "Delta table: version 0, parts added: 4"
    assert lines[1] == "Delta table: version 1, parts added: 2, removed: 0"
    assert lines[2] == "Delta table: version 2, parts added: 4, removed: 6"
    assert open_results(folder).count_rows() == len(found)


def test_results_without_a_table_get_one_and_a_table_is_kept_up_unasked(
    corpus: Corpus, folder: str, place: str, table: DeltaLog, lines: list[str]
) -> None:
    run_all(folder, corpus, FINGERPRINT)
    assert table_of(folder, None, print) is None
    table.catch_up(overwrite=True)
    assert not has_table(folder)
    table.catch_up(overwrite=False)
    assert len(check_against_manifest(folder)) == 56
    kept = table_of(folder, None, lines.append)
    assert kept
    run_all(folder, make_corpus(place, ("c.txt",)), FINGERPRINT, follow=kept.follow)
    assert len(check_against_manifest(folder)) == 84


def test_results_of_an_older_version_get_a_table(corpus: Corpus, folder: str, table: DeltaLog) -> None:
    run_all(folder, corpus, FINGERPRINT)
    make_older(folder)
    table.catch_up(overwrite=False)
    assert len(check_against_manifest(folder)) == 56


class Killed(BaseException):
    """Stands for a death: nothing of ours catches it."""


@pytest.fixture
def dies() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def killed(*_arguments: object, **_options: object) -> None:
    raise Killed


POINTS = {
    "before the manifest": "pipeline.output.ledger.write_manifest",
    "before the commit": "pipeline.tables.delta.DeltaLog._bring",
    "after the commit": "pipeline.tables.delta.DeltaLog._flush",
    "before the cleaning up": "pipeline.output.ledger.clean_up",
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("point", POINTS)
def test_a_death_leaves_the_version_before_or_the_one_after_and_the_next_run_the_latter(
    point: str, overwrite: bool, tmp_path: Path, dies: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path)
    corpus, folder = make_corpus(place), make_folder(place)
    table = DeltaLog(folder, print)
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    before = read_by_all(folder).sort_by("id")
    corpus = make_corpus(place, ("c.txt",))
    fingerprint, label = (OTHER, "new") if overwrite else (FINGERPRINT, "good")
    dies.setattr(POINTS[point], killed)
    with pytest.raises(Killed):
        run_all(folder, corpus, fingerprint, label, follow=table.follow, overwrite=overwrite)
    dies.undo()
    left = read_by_all(folder).sort_by("id")
    if point in ("before the manifest", "before the commit"):
        assert left.equals(before)
        assert open_table(folder).version() == 0
    else:
        assert len(left) == 84
    if (
        point != "before the manifest"
    ):  # the manifest is in, and a run that has nothing else to do brings the table to it
        table.catch_up(overwrite=False)
        assert check_against_manifest(folder).sort_by("id").equals(read_by_all(folder).sort_by("id"))
        assert labels(read_by_all(folder)) == {label}
    run_all(folder, corpus, fingerprint, label, follow=table.follow, overwrite=overwrite)
    found = check_against_manifest(folder)
    assert (len(found), labels(found)) == (84, {label})


def test_two_drivers_that_commit_at_once_lose_nothing_and_add_nothing_twice(s3: S3Server) -> None:
    """Both have read the same version; the first commits, and the second, whose manifest says more, reads both again."""
    location = "s3://bucket/at-once"
    corpus, folder = make_corpus(location), make_folder(location)
    first_has_read, second_has_read, first_is_done = threading.Event(), threading.Event(), threading.Event()
    calls: list[str] = []

    class Slow(DeltaLog):
        def _bring(self, *arguments: object) -> bool:
            name = threading.current_thread().name
            calls.append(name)
            if name == "first":
                first_has_read.set()
                assert second_has_read.wait(60)
            elif not second_has_read.is_set():
                second_has_read.set()
                assert first_is_done.wait(60)
            return super()._bring(*arguments)  # type: ignore[arg-type]

    table = Slow(folder, print)
    a0, a1 = receipt(corpus, 0, 0, 20, last=False), receipt(corpus, 0, 20, 10, last=True)
    with (
        Ledger(folder, FINGERPRINT, follow=table.follow) as one,
        Ledger(folder, FINGERPRINT, follow=table.follow) as two,
    ):
        for driver, bundle in ((one, (a0, a1)), (two, (a1, receipt(corpus, 1, 0, 30, last=True)))):
            driver.begin(SCHEMA)
            finish(driver, *bundle)

        def publish() -> None:
            one.publish(1.0, {})
            first_is_done.set()

        thread = threading.Thread(name="first", target=publish)
        thread.start()
        assert first_has_read.wait(60)
        two.publish(1.0, {})
        thread.join()
    main = threading.current_thread().name
    assert calls == ["first", main, main]
    found = check_against_manifest(folder)
    assert sorted(found["id"].to_pylist()) == sorted({*ALL_IDS} - {"a.txt:0", "a.txt:20", "b.txt:0"})
    assert open_table(folder).version() == 1


def test_who_reads_the_manifest_late_commits_no_older_one(s3: S3Server) -> None:
    """A driver that is slow between manifest and commit finds a newer version there, and does nothing."""
    location = "s3://bucket/slow"
    corpus, folder = make_corpus(location), make_folder(location)
    table = DeltaLog(folder, print)
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    bring = DeltaLog._bring
    with pytest.MonkeyPatch.context() as patch:

        def slowly(self: DeltaLog, *arguments: object) -> bool:
            patch.undo()
            run_all(folder, make_corpus(location, ("d.txt",)), FINGERPRINT, follow=table.follow)
            return bring(self, *arguments)  # type: ignore[arg-type]

        patch.setattr(DeltaLog, "_bring", slowly)
        run_all(folder, make_corpus(location, ("c.txt",)), FINGERPRINT, follow=table.follow)
    assert len(check_against_manifest(folder)) == 4 * 28
    assert open_table(folder).version() == 1


def test_overwriting_may_change_the_columns(tmp_path: Path) -> None:
    """New columns replace the old ones in the same version; timestamps without zone take a version of their own before."""
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    table = DeltaLog(folder, print)
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    schema = pa.schema(
        [SCHEMA.field("id"), pa.field("seen", pa.timestamp("us")), pa.field("at", pa.timestamp("us", "UTC"))]
    )
    with Ledger(folder, OTHER, overwrite=True, follow=table.follow) as ledger:
        ledger.begin(schema)
        done = [receipt(corpus, number, 0, 30, last=True) for number in (0, 1)]
        rows = pa.table(
            {name: [None] * 58 if name != "id" else [str(n) for n in range(58)] for name in schema.names}, schema
        )
        rejects = pa.Table.from_pylist([{"id": "x", "file": "f", "row": 0, "reason": "r"}] * 2)
        ledger.add(ledger.output.write(done, rows, rejects))
        ledger.publish(1.0, {})
    found = check_against_manifest(folder)
    assert found.schema.names == ["id", "seen", "at"]
    assert open_table(folder).version() == 2
    assert len(DeltaTable(folder, version=1).file_uris()) == 4


def test_a_part_that_is_gone_is_named_and_the_version_before_stays(
    corpus: Corpus, folder: str, table: DeltaLog
) -> None:
    run_all(folder, corpus, FINGERPRINT)
    part = next(name for name in sorted(files_in(folder)) if name.startswith("part-"))
    storage_of(folder).delete([f"{folder}/{part}"])
    with pytest.raises(InputError, match=f"{part}: is gone, though _manifest.json names it"):
        table.follow()
    assert not has_table(folder)
    if is_remote(folder):  # where nobody makes it again
        with pytest.raises(InputError, match=f"{part}: is gone, .*; start over with `overwrite`"):
            table.catch_up(overwrite=False)
    else:
        table.catch_up(overwrite=False)  # a run may be about to make it again
    table.catch_up(overwrite=True)
    assert not has_table(folder)


def test_a_storage_that_fails_is_one_line(s3: S3Server) -> None:
    location = "s3://bucket/fails"
    corpus, folder = make_corpus(location), make_folder(location)
    table = DeltaLog(folder, print)
    s3.faults.append(Fault("PUT", "/_delta_log/", "403 Forbidden"))
    with pytest.raises(StorageError, match=f"{folder}/_delta_log: .*403") as raised:
        run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    assert str(raised.value).isprintable()
    s3.faults.clear()
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    assert len(check_against_manifest(folder)) == 56
    s3.faults.append(Fault("PUT", "/_delta_log/", times=1))  # what passes is tried again
    run_all(folder, make_corpus(location, ("c.txt",)), FINGERPRINT, follow=table.follow)
    assert len(check_against_manifest(folder)) == 84
    s3.faults.append(Fault("PUT", "/_delta_log/", times=1, happens=True))  # the response alone is lost
    run_all(folder, make_corpus(location, ("d.txt",)), FINGERPRINT, follow=table.follow)
    assert len(check_against_manifest(folder)) == 112
    assert open_table(folder).version() == 2


def test_a_version_says_which_list_of_shards_it_stands_for(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT, follow=DeltaLog(folder, print).follow)
    manifest = json.loads(Path(folder, "_manifest.json").read_text())
    (commit,) = open_table(folder).history()
    assert commit["offramp.shards"] == manifest["shards"]["path"]
