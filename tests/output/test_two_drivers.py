"""Two drivers on one folder: refused on a disk; on S3 they end with one correct result, and what was done twice goes."""

import pytest

from pipeline.corpus.listing import Corpus
from pipeline.errors import StorageError, UserError
from pipeline.output.ledger import Ledger
from pipeline.output.results import published, shards
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
