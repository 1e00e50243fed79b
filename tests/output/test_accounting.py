"""What was published stays accounted for: it is in the next manifest, or a run is refused, with the name of what is missing."""

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.corpus.listing import Corpus, list_inputs
from pipeline.errors import InputError, UserError
from pipeline.output.ledger import Ledger
from pipeline.output.parts import parquet_bytes
from pipeline.output.publish import ShardList, check_accounted_for, manifest_facts
from pipeline.output.receipts import receipts_table
from pipeline.output.results import published, shards
from pipeline.output.totals import Totals
from pipeline.storage.locate import storage_of
from tests.support.ledger import (
    ALL_IDS,
    FINGERPRINT,
    SCHEMA,
    check_positions,
    finish,
    make_corpus,
    make_folder,
    read_all,
    receipt,
    run_all,
)

KINDS = ("part", "rejects_part")
"""Columns of the list of shards that name files which may be lost."""


def lose(folder: str, file: str, kind: str, start: int | None = None) -> list[str]:
    """Remove the parts, or rejects, of a file's shards, or of the one that begins at a row; return their names."""
    table = shards(published(folder))
    wanted = pc.ends_with(table["file"], file)
    if start is not None:
        wanted = pc.and_(wanted, pc.equal(table["start"], start))
    names: list[str] = pc.unique(table.filter(wanted)[kind]).to_pylist()
    storage_of(folder).delete([f"{folder}/{name}" for name in names])
    return names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [None, 0, 20])
@pytest.mark.parametrize("keep_gone", [False, True])
def test_rows_that_are_lost_with_their_input_are_refused_by_name(
    keep_gone: bool, start: int | None, kind: str, tmp_path: Path
) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    lost = lose(folder, "b.txt", kind, start)
    before = published(folder).facts
    (tmp_path / "in" / "b.txt").unlink()
    left = list_inputs(f"{tmp_path}/in").files
    with Ledger(folder, FINGERPRINT) as ledger:
        with pytest.raises(UserError, match=r"/b\.txt, which the input has no more; .*overwrite") as error:
            ledger.unfinished(left, keep_gone=keep_gone)
        assert any(re.search(rf"out/{Path(name).name}|out/part-", str(error.value)) for name in lost)
    assert published(folder).facts == before
    with Ledger(folder, FINGERPRINT, overwrite=True) as ledger:  # the way out that was named
        assert set(ledger.unfinished(left, keep_gone=keep_gone)) == {left[0].path}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [None, 0, 20])
def test_rows_that_are_lost_are_made_again_from_their_input(start: int | None, kind: str, tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    lose(folder, "b.txt", kind, start)
    with Ledger(folder, FINGERPRINT) as ledger:
        assert set(ledger.unfinished(corpus.files)) == {corpus.files[1].path}
        assert ledger.remarks == [
            f"parts of {2 if start is None else 1} shards are gone from {folder}; they are made again"
        ]
    assert run_all(folder, corpus, FINGERPRINT)
    assert read_all(folder) == (ALL_IDS, {"good"})
    check_positions(folder)


@pytest.mark.parametrize("keep_gone", [False, True])
def test_a_file_that_changed_after_all_its_parts_were_lost_is_refused_too(keep_gone: bool, tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    lose(folder, "b.txt", "part")
    (tmp_path / "in" / "b.txt").write_bytes(b"other\n" * 30)
    with (
        Ledger(folder, FINGERPRINT) as ledger,
        pytest.raises(UserError, match=rf"b\.txt: changed since {folder} was made from it"),
    ):
        ledger.unfinished(list_inputs(f"{tmp_path}/in").files, keep_gone=keep_gone)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_unpublished_is_counted_and_never_below_zero_when_published_parts_are_gone(
    kind: str, tmp_path: Path
) -> None:
    """What was published and lost is in no total, so it may not be taken out of one."""
    corpus, folder = make_corpus(str(tmp_path), ("a.txt", "b.txt", "c.txt")), make_folder(str(tmp_path))
    run_all(folder, Corpus(corpus.files[:2]), FINGERPRINT)
    lose(folder, "a.txt", kind)
    with Ledger(folder, FINGERPRINT) as ledger:
        assert ledger.unpublished() == Totals()
        assert ledger.totals().rows_in == 30
        ledger.begin(SCHEMA)
        finish(ledger, receipt(corpus, 2, 0, 30, last=True))
        ledger.flush()
        assert (ledger.unpublished().rows_in, ledger.unpublished().exits, ledger.unpublished().flops) == (
            30,
            [29, 0],
            1.0,
        )
        assert (ledger.totals().rows_in, ledger.totals().shards) == (60, 3)
    with Ledger(folder, FINGERPRINT) as again:  # also after a stop
        assert again.unpublished().rows_in == 30
        assert all(number >= 0 for number in again.unpublished().numbers())


def test_after_a_stop_only_what_no_manifest_names_is_unpublished(corpus: Corpus, folder: str, place: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    more = make_corpus(place, ("c.txt",))
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, receipt(more, 2, 0, 20, last=False))
    with Ledger(folder, FINGERPRINT) as ledger:
        assert (ledger.unpublished().rows_in, ledger.totals().rows_in) == (20, 80)
        finish(ledger, receipt(more, 2, 20, 10, last=True))
        ledger.publish(1.0, {})
        assert (ledger.unpublished().rows_in, ledger.totals().rows_in) == (0, 90)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["own", "earlier", "published"])
def test_a_part_that_goes_while_a_run_is_at_work_is_named_and_made_again(when: str, kind: str, tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path), ("a.txt", "b.txt", "c.txt")), make_folder(str(tmp_path))
    done = [receipt(corpus, number, 0, 30, last=True) for number in range(3)]
    names: dict[str, str] = {}
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        names["published"] = getattr(finish(ledger, done[0])[0], kind)
        ledger.publish(1.0, {})
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        names["earlier"] = getattr(finish(ledger, done[1])[0], kind)
    with Ledger(folder, FINGERPRINT) as ledger:
        names["own"] = getattr(finish(ledger, done[2])[0], kind)
        ledger.flush()
        Path(folder, names[when]).unlink()
        file = {"published": "a", "earlier": "b", "own": "c"}[when]
        with pytest.raises(
            InputError, match=rf"rows of .*/{file}\.txt from row 0 on is gone; the same command makes it"
        ):
            ledger.publish(1.0, {})
        assert published(folder).facts["files"] == 1
    run_all(folder, corpus, FINGERPRINT)
    assert len(read_all(folder)[0]) == 90
    check_positions(folder)


def test_overwriting_says_which_files_the_new_results_will_lack(corpus: Corpus, folder: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    a, b = corpus.files
    with Ledger(folder, FINGERPRINT) as ledger:
        assert ledger.left_out([a]) == ""  # nothing is overwritten
    with Ledger(folder, FINGERPRINT, overwrite=True) as ledger:
        assert ledger.left_out(corpus.files) == ""
        assert ledger.left_out([a]) == f"1 files have results, and the input has them no more, such as {b.path}"


def test_a_list_that_lacks_a_published_shard_is_not_published(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    part = "part-0123456789abcdef.parquet"
    receipts = [replace(receipt(corpus, 0, start, 20, last=False), part=part) for start in (0, 20)]
    before, after = (parquet_bytes(receipts_table(some)) for some in (receipts, receipts[:1]))
    whole = ShardList(data=before, shards=2, files=1, totals=Totals(), new=Totals())
    check_accounted_for([after], whole, "/out")
    with pytest.raises(
        InputError, match=r"/out: the part with rows of .*/a\.txt from row 20 on is gone; .*`overwrite`"
    ):
        check_accounted_for([before], replace(whole, data=after), "/out")


def test_counts_below_zero_are_never_published() -> None:
    totals = replace(Totals(), rejected={"null_text": -1})
    shards_of = ShardList(data=b"", shards=0, files=0, totals=totals, new=Totals())
    with pytest.raises(AssertionError, match="counts below zero"):
        manifest_facts(shards_of, FINGERPRINT, pa.schema([]), generation=1, seconds=0.0, published="", checked={})
