"""The ledger resumes what is missing, refuses what differs, and publishes once."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.inputs import Corpus, list_inputs
from pipeline.ledger import Ledger
from pipeline.output import prepare_folder, write_part
from pipeline.receipts import Receipt, Totals
from pipeline.schema import REJECTS

FINGERPRINT = {"model": "m 1", "speed": "0.1"}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("x\n" * 30)
    return list_inputs(str(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare_folder(str(tmp_path / "out"), str(tmp_path / "in"))


def receipt(corpus: Corpus, file: int, start: int, rows: int, *, last: bool) -> Receipt:
    source = corpus.files[file]
    return Receipt(
        shard=source.shard_id(start),
        file=source.path,
        start=start,
        last=last,
        input_bytes=10.0,
        rows_in=rows,
        rows_out=rows - 1,
        rejected={"null_text": 1},
        exits=[rows - 1, 0],
        flops=1.0,
        flops_full_depth=2.0,
    )


def finish(ledger: Ledger, done: Receipt) -> None:
    write_part(ledger.folder, done.shard, REJECTS.empty_table())
    ledger.add(done)


def test_only_missing_shards_are_left_after_a_stop(corpus: Corpus, folder: Path) -> None:
    a, b = corpus.files
    with Ledger(folder, FINGERPRINT) as ledger:
        assert ledger.unfinished(corpus.files) == {a.path: set(), b.path: set()}
        finish(ledger, receipt(corpus, 0, 0, 20, last=False))
        finish(ledger, receipt(corpus, 0, 20, 10, last=True))
        finish(ledger, receipt(corpus, 1, 20, 10, last=True))  # shards finish in any order
    with Ledger(folder, FINGERPRINT) as again:
        assert again.unfinished(corpus.files) == {b.path: {20}}
        finish(again, receipt(corpus, 1, 0, 20, last=False))
        assert again.unfinished(corpus.files) == {}
        assert (again.totals().rows_in, again.totals().rows_out, again.totals().rejected) == (60, 56, {"null_text": 4})


def test_a_receipt_without_its_part_and_a_torn_line_count_as_not_done(corpus: Corpus, folder: Path) -> None:
    with Ledger(folder, FINGERPRINT) as ledger:
        finish(ledger, receipt(corpus, 0, 0, 30, last=True))
        ledger.add(receipt(corpus, 1, 0, 30, last=True))  # no part
    path = folder / "_receipts.jsonl"
    path.write_text(path.read_text() + '{"shard":"torn')
    with Ledger(folder, FINGERPRINT) as again:
        assert set(again.unfinished(corpus.files)) == {corpus.files[1].path}
        finish(again, receipt(corpus, 1, 0, 30, last=True))
    with Ledger(folder, FINGERPRINT) as third:
        assert third.unfinished(corpus.files) == {}


def test_another_fingerprint_is_refused_with_the_difference(corpus: Corpus, folder: Path) -> None:
    with Ledger(folder, FINGERPRINT) as ledger:
        finish(ledger, receipt(corpus, 0, 0, 30, last=True))
    with pytest.raises(UserError, match=r"holds results of another run: speed was 0\.1, is 0\.2"):
        Ledger(folder, FINGERPRINT | {"speed": "0.2"})
    with Ledger(folder, FINGERPRINT | {"speed": "0.2"}, overwrite=True) as fresh:
        assert len(fresh.unfinished(corpus.files)) == 2
    assert not list(folder.glob("part-*"))


def test_parts_of_unknown_origin_are_not_mixed_in(folder: Path) -> None:
    write_part(folder, "abc", REJECTS.empty_table())
    with pytest.raises(UserError, match="holds parts but no _receipts"):
        Ledger(folder, FINGERPRINT)


def test_a_file_that_changed_after_it_was_done_is_named(corpus: Corpus, folder: Path) -> None:
    with Ledger(folder, FINGERPRINT) as ledger:
        finish(ledger, receipt(corpus, 0, 0, 30, last=True))
        changed = replace(corpus.files[0], size=corpus.files[0].size + 1)
        with pytest.raises(UserError, match=f"{changed.path}: changed since {folder} was made from it"):
            ledger.unfinished([changed])


def test_the_manifest_tells_of_exactly_the_finished_shards(corpus: Corpus, folder: Path) -> None:
    with Ledger(folder, FINGERPRINT) as ledger:
        finish(ledger, receipt(corpus, 1, 0, 30, last=True))
        finish(ledger, receipt(corpus, 0, 0, 30, last=True))
        assert not ledger.published()
        manifest = json.loads(ledger.publish(corpus, 1.5).read_text())
        assert ledger.published()
    assert [shard["file"] for shard in manifest["shards"]] == [file.path for file in corpus.files]
    assert all((folder / shard["part"]).exists() for shard in manifest["shards"])
    assert manifest["totals"]["rows_in"] == manifest["totals"]["rows_out"] + manifest["totals"]["rows_rejected"] == 60
    assert manifest["flops_speedup"] == 2.0
    assert manifest["fingerprint"] == FINGERPRINT


def test_leftovers_of_a_killed_writer_are_removed(folder: Path) -> None:
    (folder / ".part-1.parquet.ab.tmp").touch()
    Ledger(folder, FINGERPRINT).__exit__(None, None, None)
    assert not list(folder.glob(".*.tmp"))


def test_a_failed_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_part(folder, "abc", REJECTS.empty_table())
    assert [path.name for path in folder.iterdir()] == ["_rejects"]


def test_an_output_folder_inside_the_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies inside --input"):
        prepare_folder(str(tmp_path / "in" / "out"), str(tmp_path / "in"))
    assert not list(tmp_path.iterdir())


def test_totals_add_up() -> None:
    totals = Totals()
    for exits in ([3, 1], [0, 4]):
        totals.add(Receipt(shard="s", file="f", start=0, last=True, input_bytes=1, rows_in=4, rows_out=4, exits=exits))
    assert totals.exits == [3, 5]
    assert totals.mean_exit_layer == pytest.approx((3 + 10) / 8)
