"""Two drivers on one folder: refused on a disk; on S3 they end with one correct result, and what was done twice goes."""

from dataclasses import replace

import pyarrow as pa
import pytest

from pipeline.corpus.listing import Corpus
from pipeline.errors import StorageError, UserError
from pipeline.output.ledger import Ledger
from pipeline.output.receipts import Receipt
from pipeline.output.results import open_rejects, open_results, published, shards
from pipeline.schema import REJECTS
from pipeline.storage.base import is_remote
from pipeline.storage.locate import storage_of
from tests.support.ledger import (
    ALL_IDS,
    FINGERPRINT,
    OTHER,
    SCHEMA,
    check_positions,
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


def test_drivers_of_one_run_share_its_secret_which_is_not_published(corpus: Corpus, folder: str) -> None:
    with Ledger(folder, FINGERPRINT) as first:
        secret = first.begin(SCHEMA)
        if is_remote(folder):
            with Ledger(folder, FINGERPRINT) as second:
                assert second.begin(SCHEMA) == secret
    with Ledger(folder, FINGERPRINT) as resumed:
        assert resumed.begin(SCHEMA) == secret
        finish(resumed, receipt(corpus, 0, 0, 30, last=True))
        resumed.publish(1.0, {})
    for path in storage_of(folder).walk(folder):
        data = storage_of(folder).read(path.path)
        assert data is None or secret.encode() not in data[0]
    with Ledger(folder, FINGERPRINT) as next_night:
        assert next_night.begin(SCHEMA) != secret


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
    check_positions(folder)
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
            check_positions(folder)
    assert read_all(folder) == (sorted([*ALL_IDS, *(f"c.txt:{row}" for row in range(30))]), {"good"})


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


def test_who_publishes_second_keeps_the_parts_of_the_first(s3: S3Server) -> None:
    """Its own may be gone: nobody names them once the first has published."""
    location = "s3://bucket/second"
    corpus, folder = make_corpus(location), make_folder(location)
    with Ledger(folder, FINGERPRINT) as first, Ledger(folder, FINGERPRINT) as second:
        for driver in (first, second):
            driver.begin(SCHEMA)
        done = finish(first, *(receipt(corpus, number, 0, 30, last=True) for number in (0, 1)))
        (own,) = {part.part for part in finish(second, *(receipt(corpus, n, 0, 30, last=True) for n in (1, 0)))}
        first.publish(1.0, {})
        storage_of(folder).delete([f"{folder}/{own}"])
        second.publish(1.0, {})
    assert {shard.part for shard in done} == set(shards(published(folder))["part"].to_pylist())
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


def write_rejecting(ledger: Ledger, done: Receipt, rejects: int) -> list[Receipt]:
    """Write a part of which the first rows are rejects, and return the receipt that names it."""
    name = done.file.rsplit("/", 1)[1]
    ids = [f"{name}:{row}" for row in range(done.start, done.start + done.rows_in)]
    good = pa.table({"id": ids[rejects:], "label": ["good"] * (done.rows_in - rejects)}, schema=SCHEMA)
    bad = [
        {"id": row, "file": done.file, "row": n, "reason": "x", "detail": None} for n, row in enumerate(ids[:rejects])
    ]
    counts = {"x": rejects} if rejects else {}
    placed = replace(done, rows_out=len(good), rejected=counts)
    return ledger.output.write([placed], good, pa.Table.from_pylist(bad, REJECTS))


@pytest.mark.parametrize("rejects", [(4, 0), (1, 4), (30, 0), (0, 30)])
@pytest.mark.parametrize("order", ["a publishes", "b publishes", "both publish", "b publishes, then a"])
def test_two_drivers_that_differ_in_rejects_leave_one_of_the_two_results(
    order: str, rejects: tuple[int, int], s3: S3Server
) -> None:
    """Whoever writes last, and whoever dies: what the manifest counts is what its parts hold, each row in one place."""
    location = "s3://bucket/rejects"
    corpus, folder = make_corpus(location), make_folder(location)
    shard = receipt(corpus, 0, 0, 30, last=True)
    with Ledger(folder, FINGERPRINT) as a, Ledger(folder, FINGERPRINT) as b:
        for driver, count in ((a, rejects[0]), (b, rejects[1])):
            driver.begin(SCHEMA)
            driver.add(write_rejecting(driver, shard, count))
            driver.add(write_rejecting(driver, receipt(corpus, 1, 0, 30, last=True), 1))
            driver.flush()
        for driver in {"a publishes": [a], "b publishes": [b], "both publish": [a, b]}.get(order, [b, a]):
            driver.publish(1.0, {})
            totals = published(folder).facts["totals"]
            rows, bad = open_results(folder).to_table(), open_rejects(folder).to_table()
            assert sorted(rows["id"].to_pylist() + bad["id"].to_pylist()) == ALL_IDS
            assert (totals["rows_out"], totals["rows_rejected"]) == (len(rows), len(bad))
            assert len(bad) - 1 in rejects
    assert run_all(folder, corpus, FINGERPRINT) is None


def test_a_second_driver_with_other_types_of_kept_columns_is_refused(corpus: Corpus, folder: str) -> None:
    """Their names are equal, and so are the fingerprints; the parts would not fit together."""
    other = pa.schema([SCHEMA.field("id"), pa.field("label", pa.large_string(), nullable=False)])
    with Ledger(folder, FINGERPRINT) as first:
        first.begin(SCHEMA)
        finish(first, receipt(corpus, 0, 0, 30, last=True))
        if is_remote(folder):
            refusal = pytest.raises(UserError, match="label was string, is large_string; choose another folder")
            with Ledger(folder, FINGERPRINT) as second, refusal:
                second.begin(other)
    with Ledger(folder, FINGERPRINT) as resumed, pytest.raises(UserError, match="label was string, is large_string"):
        resumed.begin(other)


def test_a_driver_with_other_types_that_comes_second_does_not_publish(s3: S3Server) -> None:
    location = "s3://bucket/types"
    corpus, folder = make_corpus(location), make_folder(location)
    other = pa.schema([SCHEMA.field("id"), pa.field("label", pa.large_string(), nullable=False)])
    with Ledger(folder, FINGERPRINT) as second:
        run_all(folder, corpus, FINGERPRINT)  # whose notes are gone by the time that the second begins
        second.begin(other)
        finish(second, receipt(corpus, 0, 0, 30, last=True))
        with pytest.raises(UserError, match="another run has published other results there meanwhile"):
            second.publish(1.0, {})
    assert published(folder).schema == SCHEMA
    assert read_all(folder) == (ALL_IDS, {"good"})
