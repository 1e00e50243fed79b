"""Notes that are cut, foreign or gone: one line that names the file and a way out, and overwriting gets past every one."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.corpus.listing import Corpus
from pipeline.errors import UserError
from pipeline.output.ledger import Ledger
from pipeline.output.manifest import DamagedNoteError, read_manifest
from pipeline.output.parts import parquet_bytes
from pipeline.output.results import open_rejects, open_results, published, shards
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
)

GARBAGE = {
    "empty": b"",
    "blank": b" \n",
    "zeros": bytes(512),
    "no UTF-8": b"\xff\xfe\x00{",
    "a list": b"[]",
    "a number": b"12",
    "null": b"null",
    "another program's": b'{"index.html": {"file": "assets/index.js"}}',
    "a version that is none": b'{"version": "4"}',
    "nothing but a version": b'{"version": 4}',
    "brackets": b"[" * 100_000,
    "digits": b"9" * 10_000,
    "Parquet": parquet_bytes(pa.table({"a": [1]})),
}
"""What a power cut, a full disk, another program or a hand may leave in the stead of a note."""
NO_LIST = ("empty", "zeros", "Parquet")
"""Those of it that a reader of Parquet files tells apart."""
EDITS: dict[str, Callable[[dict[str, object]], object]] = {
    "no fingerprint": lambda facts: facts.pop("fingerprint"),
    "a fingerprint of numbers": lambda facts: facts.update(fingerprint={"model": 1}),
    "no schema": lambda facts: facts.pop("schema"),
    "a schema that is none": lambda facts: facts.update(schema={"arrow": "AAAA"}),
    "no list": lambda facts: facts.pop("shards"),
    "no digest": lambda facts: facts.update(shards={"path": "_shards-0123456789abcdef.parquet", "rows": 1}),
    "a generation below one": lambda facts: facts.update(generation=0),
    "a generation that is none": lambda facts: facts.update(generation="1"),
    "no totals": lambda facts: facts.pop("totals"),
}


def damage(folder: str, name: str, data: bytes) -> None:
    storage_of(folder).write(f"{folder}/{name}", data)


def cut(folder: str, name: str) -> bytes:
    """Cut a note in half; return what it was."""
    found = storage_of(folder).read(f"{folder}/{name}")
    assert found
    damage(folder, name, found[0][: len(found[0]) // 2])
    return found[0]


def edited(folder: str, edit: Callable[[dict[str, object]], object]) -> bytes:
    facts = published(folder).facts
    edit(facts)
    return json.dumps(facts).encode()


def refused(folder: str, name: str, fingerprint: dict[str, str] = FINGERPRINT) -> str:
    """Return the one line with which a run is refused; it names the note."""
    before = files_in(folder)
    with pytest.raises(DamagedNoteError) as error, Ledger(folder, fingerprint):
        pass
    assert files_in(folder) == before
    assert str(error.value).startswith(f"output {folder}/{name}: ")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("start over with `overwrite`")
    return str(error.value)


@pytest.mark.parametrize("what", [*GARBAGE, *EDITS])
def test_a_damaged_manifest_keeps_out_who_does_not_overwrite_it(what: str, tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    damage(folder, "_manifest.json", GARBAGE[what] if what in GARBAGE else edited(folder, EDITS[what]))
    refused(folder, "_manifest.json")
    for reader in (open_results, open_rejects, published):
        with pytest.raises(UserError, match=r"_manifest\.json: is (empty|damaged or not ours)"):
            reader(folder)
    run_all(folder, corpus, OTHER, "new", overwrite=True)
    assert read_all(folder) == (ALL_IDS, {"new"})
    assert run_all(folder, corpus, OTHER) is None


def test_overwriting_a_damaged_manifest_is_resumed_and_leaves_nothing_else(corpus: Corpus, folder: str) -> None:
    run_all(folder, corpus, FINGERPRINT, "old")
    cut(folder, "_manifest.json")
    with Ledger(folder, OTHER, overwrite=True) as stopped:
        stopped.begin(SCHEMA)
        finish(stopped, receipt(corpus, 0, 0, 20, last=False), label="new")
    with Ledger(folder, OTHER, overwrite=True) as again:
        assert again.unfinished(corpus.files) == {corpus.files[0].path: (0,), corpus.files[1].path: ()}
    run_all(folder, corpus, OTHER, "new", overwrite=True)
    assert read_all(folder) == (ALL_IDS, {"new"})
    assert all(".g2." in name for name in files_in(folder) if "part-" in name)
    assert not [name for name in files_in(folder) if name.startswith("_receipts")]


def test_the_previous_manifest_stands_in_for_a_damaged_one(corpus: Corpus, folder: str, place: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    assert "_manifest.previous.json" not in files_in(folder)
    more = make_corpus(place, ("c.txt",))
    run_all(folder, more, FINGERPRINT)
    cut(folder, "_manifest.json")
    assert "put _manifest.previous.json, the one before it, in its stead, or start over" in refused(
        folder, "_manifest.json"
    )
    previous = storage_of(folder).read(f"{folder}/_manifest.previous.json")
    assert previous
    damage(folder, "_manifest.json", previous[0])
    assert read_all(folder) == (ALL_IDS, {"good"})
    assert run_all(folder, more, FINGERPRINT)
    assert len(read_all(folder)[0]) == 90


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_what_was_published_since_the_previous_manifest_is_found_again(
    how: str, corpus: Corpus, folder: str, place: str
) -> None:
    """Its list of shards is still there, so that nothing is lost even if the input of the last run is gone."""
    run_all(folder, corpus, FINGERPRINT)
    more = make_corpus(place, ("c.txt",))
    run_all(folder, more, FINGERPRINT)
    damage(folder, "_manifest.json", b"")
    previous = storage_of(folder).read(f"{folder}/_manifest.previous.json")
    assert previous
    damage(folder, "_manifest.json", previous[0])
    storage_of(folder).delete([f"{place}/in/c.txt", *([f"{folder}/_manifest.previous.json"] if how == "moved" else [])])
    with Ledger(folder, FINGERPRINT) as ledger:
        assert ledger.unfinished(corpus.files, keep_gone=True) == {}
        assert (ledger.totals().rows_in, ledger.unpublished().rows_in) == (90, 30)
        last = make_corpus(place, ("d.txt",))
        ledger.begin(SCHEMA)
        finish(ledger, receipt(last, 2, 0, 30, last=True))
        ledger.publish(1.0, {})
    assert len(read_all(folder)[0]) == 120
    check_positions(folder)
    with Ledger(folder, FINGERPRINT):  # which sweeps
        assert len([name for name in files_in(folder) if name.startswith("_shards-")]) <= 2 + (place[:2] == "s3")


def test_a_list_of_another_generation_is_not_taken_in(corpus: Corpus, folder: str, place: str) -> None:
    """A run that overwrites leaves one if it is killed between its list and its manifest."""
    run_all(folder, corpus, FINGERPRINT)
    with Ledger(folder, OTHER, overwrite=True) as stopped:
        stopped.begin(SCHEMA)
        finish(stopped, receipt(corpus, 0, 0, 30, last=True), label="new")
        stopped.flush()
        (segment,) = (
            name for name in files_in(folder) if name.startswith("_receipts/g2/") and name != "_receipts/g2/run.json"
        )
        data = storage_of(folder).read(f"{folder}/{segment}")
        assert data
        damage(folder, "_shards-0123456789abcdef.parquet", data[0])
    run_all(folder, make_corpus(place, ("c.txt",)), FINGERPRINT)
    assert (len(read_all(folder)[0]), read_all(folder)[1]) == (90, {"good"})


def test_the_previous_manifest_of_overwritten_results_is_no_way_out(corpus: Corpus, folder: str) -> None:
    run_all(folder, corpus, FINGERPRINT, "old")
    run_all(folder, corpus, OTHER, "new", overwrite=True)
    cut(folder, "_manifest.json")
    assert "in its stead" not in refused(folder, "_manifest.json", OTHER)


def test_a_damaged_previous_manifest_is_in_nobodys_way(folder: str, place: str) -> None:
    for names in (("c.txt",), ("d.txt",)):
        run_all(folder, make_corpus(place, names), FINGERPRINT)
        damage(folder, "_manifest.previous.json", b"{")
    assert len(read_all(folder)[0]) == 120


@pytest.mark.parametrize("what", [*GARBAGE, "half"])
def test_a_damaged_run_file_keeps_out_who_does_not_overwrite_it(what: str, tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    with Ledger(folder, FINGERPRINT) as stopped:
        stopped.begin(SCHEMA)
        finish(stopped, receipt(corpus, 0, 0, 30, last=True), label="old")
    if what == "half":
        cut(folder, "_receipts/g1/run.json")
    else:
        damage(folder, "_receipts/g1/run.json", GARBAGE[what])
    refused(folder, "_receipts/g1/run.json")
    run_all(folder, corpus, FINGERPRINT, "new", overwrite=True)
    assert read_all(folder) == (ALL_IDS, {"new"})
    assert {name.split("/")[0] for name in files_in(folder)} == {"_rejects", "_manifest.json"} | {
        name for name in files_in(folder) if name.startswith(("part-", "_shards-"))
    }


def test_a_damaged_run_file_beside_a_manifest_may_be_removed(corpus: Corpus, folder: str, place: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    more = make_corpus(place, ("c.txt",))
    with Ledger(folder, FINGERPRINT) as stopped:
        stopped.begin(SCHEMA)
        finish(stopped, receipt(more, 2, 0, 20, last=False))
    cut(folder, "_receipts/g1/run.json")
    assert "remove it, as _manifest.json says the same" in refused(folder, "_receipts/g1/run.json")
    storage_of(folder).delete([f"{folder}/_receipts/g1/run.json"])
    with Ledger(folder, FINGERPRINT) as again:
        assert again.unfinished(more.files) == {more.files[2].path: (0,)}
    run_all(folder, more, FINGERPRINT)
    assert len(read_all(folder)[0]) == 90


@pytest.mark.parametrize("what", ["gone", *NO_LIST, "half"])
def test_a_list_of_shards_is_made_again_from_the_parts(what: str, corpus: Corpus, folder: str, place: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    listed = published(folder).shards_path.rsplit("/", 1)[1]
    before = shards(published(folder)).drop_columns(["seconds", "peak_mb", "cpu_seconds", "waits"]).sort_by("shard")
    if what == "gone":
        storage_of(folder).delete([f"{folder}/{listed}"])
    elif what == "half":
        cut(folder, listed)
    else:
        damage(folder, listed, GARBAGE[what])
    with pytest.raises(UserError, match=rf"{listed}: is .* the command that wrote the folder makes it again"):
        open_results(folder)
    with Ledger(folder, FINGERPRINT) as ledger:
        assert ledger.unfinished(corpus.files) == {}
        assert not ledger.published()
        (line,) = ledger.remarks
        assert line.startswith(f"{folder}/{listed}: is ")
        assert line.endswith("; it is made again from what the parts say")
        assert (ledger.totals().rows_in, ledger.unpublished().rows_in) == (60, 0)
        ledger.begin(SCHEMA)
        ledger.publish(1.0, {})
    assert read_all(folder) == (ALL_IDS, {"good"})
    after = shards(published(folder)).drop_columns(["seconds", "peak_mb", "cpu_seconds", "waits"]).sort_by("shard")
    assert after.equals(before)
    assert run_all(folder, corpus, FINGERPRINT) is None
    more = make_corpus(place, ("c.txt",))
    run_all(folder, more, FINGERPRINT)
    assert len(read_all(folder)[0]) == 90
    check_positions(folder)


def test_a_list_that_is_gone_with_some_parts_is_made_again_with_what_is_left(tmp_path: Path) -> None:
    """The rejects of a part that is gone tell which shards it had; these are lost, and made again."""
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    lost = shards(published(folder))["part"][0].as_py()
    storage_of(folder).delete([published(folder).shards_path, f"{folder}/{lost}"])
    with Ledger(folder, FINGERPRINT) as ledger:
        assert len(ledger.unfinished(corpus.files)) == 1
        assert len(ledger.remarks) == 2
    run_all(folder, corpus, FINGERPRINT)
    assert read_all(folder) == (ALL_IDS, {"good"})
    check_positions(folder)


def test_a_list_that_the_parts_cannot_tell_is_refused_by_name(corpus: Corpus, folder: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    table, listed = shards(published(folder)), published(folder).shards_path
    lost = [table["part"][0].as_py(), table["rejects_part"][0].as_py()]
    storage_of(folder).delete([listed, *(f"{folder}/{name}" for name in lost)])
    line = refused(folder, listed.rsplit("/", 1)[1])
    assert "the parts that are left tell of 3 of its 4 shards; bring it or them back, or" in line
    run_all(folder, corpus, FINGERPRINT, "new", overwrite=True)
    assert read_all(folder) == (ALL_IDS, {"new"})


@pytest.mark.parametrize("what", [*NO_LIST, "half"])
def test_a_damaged_segment_costs_no_work(what: str, corpus: Corpus, folder: str) -> None:
    with Ledger(folder, FINGERPRINT) as stopped:
        stopped.begin(SCHEMA)
        finish(stopped, receipt(corpus, 0, 0, 20, last=False), receipt(corpus, 0, 20, 10, last=True))
        finish(stopped, receipt(corpus, 1, 0, 20, last=False))
    (segment,) = (name for name in files_in(folder) if name.startswith("_receipts/g1/") and name.endswith(".parquet"))
    if what == "half":
        cut(folder, segment)
    else:
        damage(folder, segment, GARBAGE[what])
    with Ledger(folder, FINGERPRINT) as again:
        assert again.unfinished(corpus.files) == {corpus.files[1].path: (0,)}
        assert again.remarks == [f"{folder}/{segment}: is damaged; what it said is taken from the parts"]
        assert again.unpublished().rows_in == 50
    run_all(folder, corpus, FINGERPRINT)
    assert read_all(folder) == (ALL_IDS, {"good"})
    check_positions(folder)


def test_a_reader_between_manifest_and_list_reads_the_manifest_again(corpus: Corpus, folder: str, place: str) -> None:
    run_all(folder, corpus, FINGERPRINT)
    first = published(folder)
    for count, name in ((90, "c.txt"), (120, "d.txt"), (150, "e.txt")):
        run_all(folder, make_corpus(place, (name,)), FINGERPRINT)
        rows = sum(shards(first)["rows_in"].to_pylist())
        assert rows == (60 if count == 90 else count)  # its own list stays while one manifest replaces it
    run_all(folder, make_corpus(place), OTHER, "new", overwrite=True)
    assert len(shards(first)) == 10
    names = [name for name in files_in(folder) if name.startswith("_shards-")]
    assert len(names) == 2


def test_a_reader_that_a_run_overtakes_opens_what_that_run_has_published(
    corpus: Corpus, folder: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(folder, corpus, FINGERPRINT)
    more = [("c.txt",), ("d.txt",)]

    def slow(location: str) -> object:
        manifest = read_manifest(location)
        while more:  # two runs publish between the manifest and its list
            run_all(folder, make_corpus(place, more.pop()), FINGERPRINT)
        return manifest

    monkeypatch.setattr("pipeline.output.results.read_manifest", slow)
    assert open_results(folder).count_rows() == 4 * 28
