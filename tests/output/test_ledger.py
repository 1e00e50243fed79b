"""The ledger resumes what is missing, refuses what differs, and publishes once: on a disk and on S3."""

import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.listing import Corpus
from pipeline.errors import StorageError, UserError
from pipeline.output.ledger import Ledger
from pipeline.output.parts import Output, prepare_folder
from pipeline.output.receipt_log import SEGMENT_RECEIPTS, are_among, parse_ids, shard_ids
from pipeline.output.receipts import Receipt, receipts_table
from pipeline.output.results import published, shards
from pipeline.output.totals import Totals
from pipeline.schema import REJECTS
from pipeline.storage.base import is_remote
from pipeline.storage.locate import storage_of
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
from tests.support.s3_server import Fault, S3Server


def test_only_missing_shards_are_left_after_a_stop(corpus: Corpus, folder: str) -> None:
    a, b = corpus.files
    with Ledger(folder, FINGERPRINT) as ledger:
        assert ledger.unfinished(corpus.files) == {a.path: (), b.path: ()}
        ledger.begin(SCHEMA)
        finish(ledger, receipt(corpus, 0, 0, 20, last=False))
        finish(ledger, receipt(corpus, 0, 20, 10, last=True))
        finish(ledger, receipt(corpus, 1, 20, 10, last=True))  # shards finish in any order
    with Ledger(folder, FINGERPRINT) as again:
        assert again.unfinished(corpus.files) == {b.path: (20,)}
        assert again.schema == SCHEMA
        finish(again, receipt(corpus, 1, 0, 20, last=False))
        again.flush()
        assert again.unfinished(corpus.files) == {}
        assert (again.totals().rows_in, again.totals().rows_out, again.totals().rejected) == (60, 56, {"null_text": 4})
        assert again.totals().exits == [56, 0]
        assert again.totals().peak_mb == {"read": 101.0}


def test_the_same_again_does_nothing_and_new_files_only_are_added(corpus: Corpus, folder: str, place: str) -> None:
    assert run_all(folder, corpus, FINGERPRINT)
    before = storage_of(folder).read(f"{folder}/_manifest.json")
    assert run_all(folder, corpus, FINGERPRINT) is None
    assert storage_of(folder).read(f"{folder}/_manifest.json") == before
    parts = {name for name in files_in(folder) if name.startswith("part-")}
    more = make_corpus(place, ("c.txt",))
    with Ledger(folder, FINGERPRINT) as ledger:
        assert ledger.unfinished(more.files) == {more.files[2].path: ()}
    assert run_all(folder, more, FINGERPRINT)
    assert {name for name in files_in(folder) if name.startswith("part-")} > parts
    assert len(read_all(folder)[0]) == 90


def test_totals_are_a_snapshot(corpus: Corpus, folder: str) -> None:
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, receipt(corpus, 0, 0, 20, last=False))
        ledger.flush()
        before = ledger.totals()
        finish(ledger, receipt(corpus, 0, 20, 10, last=True))
        ledger.flush()
        assert (before.shards, before.rows_in, before.exits, before.rejected) == (1, 20, [19, 0], {"null_text": 1})
        after = ledger.totals()
        assert (after.shards, after.rows_in, after.exits, after.rejected) == (2, 30, [28, 0], {"null_text": 2})


def test_receipts_are_stored_within_about_a_second(corpus: Corpus, folder: str) -> None:
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, receipt(corpus, 0, 0, 20, last=False))
        finish(ledger, receipt(corpus, 0, 20, 10, last=True))
        deadline = time.monotonic() + 120
        while ledger.totals().shards < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        (segment,) = (
            name for name in files_in(folder) if name.startswith("_receipts/g1/") and name.endswith("parquet")
        )
        data = storage_of(folder).read(f"{folder}/{segment}")
        assert data
        assert len(pq.read_table(pa.BufferReader(data[0]))) == 2


def test_a_receipt_without_its_part_counts_as_not_done_and_what_a_torn_segment_said_is_in_the_parts(
    corpus: Corpus, folder: str
) -> None:
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, receipt(corpus, 0, 0, 30, last=True))
        if not is_remote(folder):  # what S3 has taken it keeps
            (lost,) = finish(ledger, receipt(corpus, 1, 0, 30, last=True))
            storage_of(folder).delete([f"{folder}/{lost.part}"])
    with Ledger(folder, FINGERPRINT) as again:
        assert set(again.unfinished(corpus.files)) == {corpus.files[1].path}
    (name,) = (name for name in files_in(folder) if name.endswith("-000000.parquet"))
    storage, segment = storage_of(folder), f"{folder}/{name}"
    whole = storage.read(segment)
    assert whole
    storage.write(segment, whole[0][: len(whole[0]) // 2])
    with Ledger(folder, FINGERPRINT) as third:
        assert set(third.unfinished(corpus.files)) == {corpus.files[1].path}
        assert third.remarks == [f"{segment}: is damaged; what it said is taken from the parts"]
    run_all(folder, corpus, FINGERPRINT)
    assert read_all(folder) == (ALL_IDS, {"good"})


def test_a_part_that_was_taken_away_is_made_again(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    table = shards(published(folder))
    (lost,) = table.filter(pc.equal(table["shard"], corpus.files[0].shard_id(20)))["part"].to_pylist()
    storage_of(folder).delete([f"{folder}/{lost}"])
    with Ledger(folder, FINGERPRINT) as ledger:
        assert not ledger.published()
        assert ledger.unfinished(corpus.files) == {corpus.files[0].path: (0,)}
    assert run_all(folder, corpus, FINGERPRINT)
    assert read_all(folder) == (ALL_IDS, {"good"})
    assert published(folder).facts["totals"]["rows_in"] == 60


def test_shards_done_twice_are_listed_once(corpus: Corpus, folder: str) -> None:
    done = [receipt(corpus, file, 0, 30, last=True) for file in (0, 1)]
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        for one in (*done, done[0]):
            finish(ledger, one)
        ledger.publish(1.0, {})
    assert read_all(folder) == (ALL_IDS, {"good"})
    assert published(folder).facts["totals"]["shards"] == 2


@pytest.mark.parametrize("name", ["model", "criterion", "tokenizer", "schema"])
def test_another_fingerprint_is_refused_with_the_difference(name: str, corpus: Corpus, folder: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    before = files_in(folder)
    refusal = f"holds results of another run: {name} was {FINGERPRINT[name]}, is another. "
    refusal += "Choose another folder, or overwrite it"
    with pytest.raises(UserError, match=re.escape(refusal)), Ledger(folder, FINGERPRINT | {name: "another"}):
        pass
    assert files_in(folder) == before


def test_a_run_that_has_not_ended_is_not_continued_by_another(corpus: Corpus, folder: str) -> None:
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
    with pytest.raises(UserError, match=r"criterion was entropy 0\.1, is entropy 0\.2"), Ledger(folder, OTHER):
        pass


def test_a_file_that_changed_after_it_was_done_is_named(corpus: Corpus, folder: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    with Ledger(folder, FINGERPRINT) as ledger:
        for changed in (replace(corpus.files[0], size=1), replace(corpus.files[0], version="another")):
            with pytest.raises(UserError, match=f"{changed.path}: changed since {folder} was made from it"):
                ledger.unfinished([changed])


def test_results_of_files_that_are_gone_stay_if_wanted(corpus: Corpus, folder: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    with Ledger(folder, FINGERPRINT) as ledger:
        with pytest.raises(UserError, match=rf"a\.txt: {folder} has results of it, .* an incremental run keeps them"):
            ledger.unfinished(corpus.files[1:], keep_gone=False)
        assert ledger.unfinished(corpus.files[1:], keep_gone=True) == {}
        assert ledger.unfinished([], keep_gone=True) == {}


def test_busy_servers_are_asked_again_and_dead_ones_named(s3: S3Server) -> None:
    location = "s3://bucket/busy"
    corpus, folder = make_corpus(location), make_folder(location)
    s3.faults += [Fault(method, "out", times=1) for method in ("PUT", "GET", "POST")]
    run_all(folder, corpus, FINGERPRINT)
    assert all(fault.times == 0 for fault in s3.faults[:2])
    assert read_all(folder) == (ALL_IDS, {"good"})
    s3.faults[:] = [Fault("PUT", "/out/")]
    with Ledger(folder, FINGERPRINT) as ledger:
        with pytest.raises(StorageError, match=rf"^{folder}/part-.*\.parquet: SlowDown: the test says so") as error:
            ledger.output.write([], SCHEMA.empty_table(), REJECTS.empty_table())
        assert "secret" not in str(error.value)
        s3.faults.clear()


def test_receipts_that_cannot_be_stored_end_the_run(s3: S3Server) -> None:
    location = "s3://bucket/full"
    corpus, folder = make_corpus(location), make_folder(location)

    def run_on() -> None:
        with Ledger(folder, FINGERPRINT) as ledger:
            ledger.begin(SCHEMA)
            write(ledger, receipt(corpus, 0, 0, 30, last=True))
            s3.faults.append(Fault("PUT", "_receipts", "403 Access Denied"))
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                ledger.add([receipt(corpus, 0, 0, 30, last=True)])
                time.sleep(0.05)

    with pytest.raises(StorageError, match="AccessDenied"):
        run_on()
    s3.faults.clear()
    with Ledger(folder, FINGERPRINT) as again:
        assert len(again.unfinished(corpus.files)) == 2


def test_segments_fill_up(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    count = SEGMENT_RECEIPTS * 2 + 10
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        for number in range(count):
            ledger.add([replace(receipt(corpus, 0, number, 1, last=False), part=f"part-{number:016x}.parquet")])
    rows = [pq.read_metadata(path).num_rows for path in sorted(Path(folder).glob("_receipts/g1/*.parquet"))]
    assert rows == [SEGMENT_RECEIPTS, SEGMENT_RECEIPTS, 10]


def test_the_receipts_of_a_part_are_stored_together(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    sizes = [SEGMENT_RECEIPTS - 10, 20, SEGMENT_RECEIPTS + 1, 5]
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        for number, size in enumerate(sizes):
            shard = replace(receipt(corpus, 0, 0, 1, last=False), part=f"part-{number:016x}.parquet")
            ledger.add([replace(shard, start=row) for row in range(size)])
    parts = [pq.read_table(path)["part"] for path in sorted(Path(folder).glob("_receipts/g1/*.parquet"))]
    assert [len(part) for part in parts] == sizes
    assert [len(part.unique()) for part in parts] == [1] * len(sizes)


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    folder = make_folder(str(tmp_path))
    leftovers = [
        Path(folder, ".part-0123456789abcdef.parquet.0a1b2c3d.tmp"),
        Path(folder, "_rejects", ".part-0123456789abcdef.g2.parquet.0a1b2c3d.tmp"),
        Path(folder, "_shards-0123456789abcdef.parquet"),
    ]
    others = [Path(folder, name) for name in (".mine.tmp", ".part-0.tmp", "_shards-mine.parquet", "_rejects/.x.tmp")]
    for path in (*leftovers, *others):
        path.touch()
    with Ledger(folder, FINGERPRINT):
        assert not any(path.exists() for path in leftovers)
        assert all(path.exists() for path in others)


def test_a_failed_write_leaves_nothing_and_names_path_and_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    folder = make_folder(str(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=rf"^{folder}/part-[0-9a-f]+\.parquet: No space left on device$"):
        Output(folder).write([], SCHEMA.empty_table(), REJECTS.empty_table())
    assert not [path for path in Path(folder).rglob("*") if path.is_file()]


def test_a_write_that_failed_in_passing_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures, replace_ = [5, 116], os.replace

    def shaky(source: str, target: str) -> None:
        if failures:
            raise OSError(failures.pop(), "in passing")
        replace_(source, target)

    monkeypatch.setattr(os, "replace", shaky)
    monkeypatch.setattr("pipeline.storage.local.BACK_OFF_SECONDS", (0.0, 0.0))
    storage_of("/").write(str(tmp_path / "x"), b"text")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"text"]


def test_an_output_folder_inside_the_corpus_is_refused(place: str) -> None:
    with pytest.raises(UserError, match="lies inside the input"):
        prepare_folder(f"{place}/in/out", f"{place}/in")
    for pattern in ("**/*.parquet", "*/part-*", "ou?/*"):
        with pytest.raises(UserError, match="lies inside the input"):
            prepare_folder(f"{place}/out", f"{place}/{pattern}")
    prepare_folder(f"{place}/beside", f"{place}/in/*.parquet")
    assert not files_in(place)


def test_totals_of_a_table_are_those_of_its_receipts(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    one = receipt(corpus, 0, 0, 4, last=True)
    receipts = [
        replace(one, exits=[3, 1], rows_out=4, rejected={}),
        replace(
            one, exits=[0, 4, 2], read_error="cut", cpu_seconds={"classify": 2.0}, rejected={"a": 1, "null_text": 2}
        ),
        replace(one, exits=[], seconds={}, peak_mb={"read": 7.0, "write": 1.0}),
    ]
    single = Totals()
    for done in receipts:
        single = single.plus(done)
    table = Totals().plus_table(receipts_table(receipts[:1])).plus_table(receipts_table(receipts[1:]))
    assert table == single
    assert table.exits == [3, 5, 2]


def test_ids_of_shards_are_numbers_too() -> None:
    names = ["0123456789abcdef", "ffffffffffffffff", "0000000000000000", "a0b1c2d3e4f50617"]
    ids = parse_ids(pa.array(names))
    assert ids.dtype == np.uint64
    assert ids.tolist() == [int(name, 16) for name in names]
    assert shard_ids(pa.table({"shard": names}).slice(1)).tolist() == ids[1:].tolist()
    assert are_among(ids, np.sort(ids[:2])).tolist() == [True, True, False, False]
    assert are_among(ids, ids[:0]).tolist() == [False] * 4


def test_parts_are_known_by_their_generation() -> None:
    names = [Output("", generation).part("0123456789abcdef") for generation in (1, 2, 12)]
    names += ["part-short.parquet", "part-0123456789abcdef.parquet.tmp", "part-0123456789abcdefXparquet"]
    for generation in (1, 2, 12):
        assert Output("", generation).digests_of(names).to_pylist() == ["0123456789abcdef"]
    assert Output("", 3).digests_of(names).to_pylist() == []


def test_totals_add_up() -> None:
    totals = Totals()
    plain = {"file": "f", "size": 1, "version": "m", "start": 0, "span": 4, "last": True, "input_bytes": 1.0}
    for exits in ([3, 1], [0, 4]):
        receipt = Receipt(**plain, shard="s", rows_in=4, rows_out=4, exits=exits)  # type: ignore[arg-type]
        totals = totals.plus(receipt)
    assert totals.exits == [3, 5]
    assert totals.mean_exit_layer == pytest.approx((3 + 10) / 8)
