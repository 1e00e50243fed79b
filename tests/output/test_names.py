"""Whoever may write to an output folder may write any name into its notes; none of them leads out of the folder."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bulk.attempts import clear_attempts
from pipeline.errors import InputError, UserError
from pipeline.output.generations import MAX_GENERATION, Generations
from pipeline.output.ledger import Ledger
from pipeline.output.manifest import DamagedNoteError, digest_of
from pipeline.output.parts import Output, generation_of, parquet_bytes, prepare_folder
from pipeline.output.receipt_log import receipts_in_parts
from pipeline.output.results import open_rejects, open_results, published, results_as_corpus, shards
from pipeline.schema import REJECTS
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

DIGITS = "0123456789abcdef"
LEADING_OUT = [
    "../../victim.txt",
    "../victim/{name}",
    "/etc/passwd",
    "/{name}",
    "//host/{name}",
    "./{name}",
    "sub/{name}",
    "{name}/../../victim.txt",
    "{name}/",
    "{name}\n",
    "\n{name}",
    "{name}\0",
    " {name}",
    "s3://bucket/{name}",
    "file:///{name}",
    "http://host/{name}",
    "..",
    "",
    "_manifest.json",
    "_lock",
    "..\\{name}",
    "%2e%2e/{name}",
    "{name}.parquet",
    "{upper}",
    "\u2024\u2024/{name}",
]
"""Forms of a name that is none of ours, `name` being one of ours."""


def forms_of(name: str) -> list[str]:
    return [form.format(name=name, upper=name.upper()) for form in LEADING_OUT]


def forge_list(folder: str, column: str, name: str | None) -> None:
    """Put a name into the list of shards, which the manifest vouches for, as its author would have."""
    manifest = published(folder)
    table = shards(manifest)
    values = [name, *table[column].to_pylist()[1:]]
    table = table.set_column(
        table.schema.names.index(column), table.schema.field(column), pa.array(values, pa.string())
    )
    data = parquet_bytes(table)
    listed = {"path": f"_shards-{digest_of(data)[:16]}.parquet", "rows": len(table), "digest": digest_of(data)}
    Path(folder, str(listed["path"])).write_bytes(data)
    Path(folder, "_manifest.json").write_text(json.dumps(manifest.facts | {"shards": listed}))


@pytest.mark.parametrize("name", [*forms_of(f"_shards-{DIGITS}.parquet"), None, 7, [], {}])
def test_a_manifest_names_its_list_in_its_own_folder_or_is_none(name: object, tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    (tmp_path / "victim").mkdir()
    victims = [
        tmp_path / "victim.txt",
        tmp_path / "victim" / f"_shards-{DIGITS}.parquet",
        tmp_path / "out" / "victim.txt",
    ]
    for victim in victims:
        victim.write_text("precious")
    facts = published(folder).facts
    facts["shards"]["path"] = name
    for note in ("_manifest.json", "_manifest.previous.json"):
        Path(folder, note).write_text(json.dumps(facts))
    for reader in (open_results, open_rejects, published, results_as_corpus):
        with pytest.raises(UserError, match=r"_manifest\.json: is damaged or not ours"):
            reader(folder)
    with pytest.raises(DamagedNoteError), Ledger(folder, FINGERPRINT):
        pass
    run_all(folder, corpus, OTHER, "new", overwrite=True)
    run_all(folder, corpus, OTHER, "newer", overwrite=True)
    assert read_all(folder) == (ALL_IDS, {"newer"})
    assert all(victim.read_text() == "precious" for victim in victims)


@pytest.mark.parametrize("column", ["part", "rejects_part", "shard"])
def test_a_list_of_shards_names_parts_in_its_own_folder_or_is_made_again(column: str, tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    whole = Path(folder, "_manifest.json").read_bytes()
    own = {"part": f"part-{DIGITS}.parquet", "rejects_part": f"_rejects/part-{DIGITS}.parquet", "shard": DIGITS}[column]
    for name in [*forms_of(own), f"_receipts/{own}", f"_rejects/../{own}", "part-0.parquet"]:
        Path(folder, "_manifest.json").write_bytes(whole)
        forge_list(folder, column, name)
        for reader in (open_results, open_rejects, results_as_corpus, lambda folder: shards(published(folder))):
            with pytest.raises(UserError, match="is damaged or not ours"):
                reader(folder)
    with Ledger(folder, FINGERPRINT) as ledger:
        assert len(ledger.remarks) == 1
        assert ledger.unfinished(corpus.files) == {}
        ledger.begin(SCHEMA)
        ledger.publish(1.0, {})
    assert read_all(folder) == (ALL_IDS, {"good"})
    check_positions(folder)


@pytest.mark.parametrize("column", ["part", "rejects_part"])
def test_a_segment_that_names_other_files_is_damaged(column: str, tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    victim = tmp_path / f"part-{DIGITS}.parquet"
    pq.write_table(SCHEMA.empty_table(), victim)
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, receipt(corpus, 0, 0, 30, last=True))
    (segment,) = Path(folder, "_receipts", "g1").glob("*.parquet")
    table = pq.read_table(segment)
    forged = pa.array([f"../{victim.name}"] * len(table), pa.string())
    segment.write_bytes(
        parquet_bytes(table.set_column(table.schema.names.index(column), table.schema.field(column), forged))
    )
    run_all(folder, corpus, FINGERPRINT)
    assert read_all(folder) == (ALL_IDS, {"good"})
    assert victim.exists()


def test_a_part_that_carries_other_names_or_garbage_tells_nothing(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    output, done = Output(folder), replace(receipt(corpus, 0, 0, 30, last=True), rows_out=0, rejected={})
    odd = [
        replace(done, shard="../x"),
        replace(done, rows_in="many"),  # type: ignore[arg-type]
        replace(done, exits=[[]]),  # type: ignore[list-item]
        replace(done, rejected=7),  # type: ignore[arg-type]
        replace(done, file=None),  # type: ignore[arg-type]
    ]
    parts = [output._write("", [one], SCHEMA.empty_table()) for one in odd]
    for number, text in enumerate(["", "x", "eJw=", "////", "e30="]):
        parts.append(f"part-{number:016x}.parquet")
        Path(folder, parts[-1]).write_bytes(parquet_bytes(SCHEMA.empty_table(), {"offramp.receipts": text}))
    parts.append(f"part-{99:016x}.parquet")
    Path(folder, parts[-1]).write_bytes(b"no Parquet")
    assert receipts_in_parts(folder, [*parts, f"part-{'f' * 16}.parquet"]) == []
    (good,) = output.write([done], SCHEMA.empty_table(), REJECTS.empty_table())
    (segment,) = receipts_in_parts(folder, [*parts, good.part])
    assert pq.read_table(pa.BufferReader(segment))["part"].to_pylist() == [good.part]


def test_only_names_of_our_own_pattern_are_swept(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    names = [
        f"part-{DIGITS}.parquet.bak",
        f"part-{DIGITS}.g0.parquet",
        f"part-{DIGITS}.g01.parquet",
        f"part-{DIGITS.upper()}.parquet",
        f"part-{DIGITS}\n.parquet",
        "part-00000-snappy.parquet",
        "_rejects/notes.txt",
        f"_rejects/part-{DIGITS}.csv",
        f"_rejects/sub/part-{DIGITS}.parquet",
        "_attempts/mine.json",
        "_attempts/read-notes.txt",
        "_receipts/g1/mine.txt",
        "_receipts/g1/archive/0123456789ab-000000.parquet",
        "_receipts/mine/g1/run.json",
        "_receipts/g01/run.json",
        "_receipts/gx/run.json",
        "_shards-mine.parquet",
        f"_shards-{DIGITS}.csv",
        ".mine.tmp",
        ".probe",
    ]
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    prepare_folder(folder, f"{tmp_path}/in")
    run_all(folder, corpus, FINGERPRINT, overwrite=True)
    run_all(folder, corpus, OTHER, "new", overwrite=True)
    run_all(folder, corpus, FINGERPRINT, "newer", overwrite=True)
    clear_attempts(folder)
    assert {name for name in names if Path(folder, name).read_text() == "precious"} == {*names}
    assert read_all(folder) == (ALL_IDS, {"newer"})


@pytest.mark.parametrize("name", ["_rejects", "_receipts", "_attempts"])
def test_a_folder_of_ours_that_is_a_link_is_refused_and_named(name: str, tmp_path: Path) -> None:
    """What is removed in it would be somebody else's."""
    make_corpus(str(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"out/{name}: is a link"):
        prepare_folder(f"{tmp_path}/out", f"{tmp_path}/in")
    (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / name).write_text("a file")
    with pytest.raises(InputError, match=rf"out/{name}: File exists"):
        prepare_folder(f"{tmp_path}/out", f"{tmp_path}/in")


def test_a_part_that_is_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT)
    victim = tmp_path / "victim.parquet"
    victim.write_text("precious")
    for name in (f"part-{DIGITS}.parquet", f"_rejects/part-{DIGITS}.parquet", f"_shards-{DIGITS}.parquet"):
        Path(folder, name).symlink_to(victim)
    run_all(folder, corpus, OTHER, "new", overwrite=True)
    run_all(folder, corpus, FINGERPRINT, "newer", overwrite=True)
    assert not [name for name in files_in(folder) if DIGITS in name]
    assert victim.read_text() == "precious"


def test_generations_are_numbers_that_names_have_room_for(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    assert [
        generation_of(f"part-{DIGITS}{middle}.parquet") for middle in ("", ".g2", ".g12", f".g{MAX_GENERATION}")
    ] == [
        1,
        2,
        12,
        MAX_GENERATION,
    ]
    assert not [
        n
        for n in (".g0", ".g1", ".g02", ".g-2", ".g²", ".g١٢", ".g1000000000")
        if generation_of(f"part-{DIGITS}{n}.parquet")
    ]
    last = Path(folder, Output(folder, MAX_GENERATION).part(DIGITS))
    last.touch()
    with pytest.raises(UserError, match="holds parts of generation 999999999, which is the last"):
        run_all(folder, corpus, FINGERPRINT, overwrite=True)
    os.rename(last, Path(folder, Output(folder, 41).part(DIGITS)))
    run_all(folder, corpus, FINGERPRINT, overwrite=True)
    assert published(folder).generation == 42
    assert read_all(folder) == (ALL_IDS, {"good"})


def test_notes_of_other_places_are_no_notes(tmp_path: Path) -> None:
    folder = make_folder(str(tmp_path))
    for name in ("x/g1/run.json", "g1/x/run.json", "g1/run.json.bak", "g1/0123456789AB-000000.parquet", "g1/x.parquet"):
        path = Path(folder, "_receipts", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    found = Generations.read(folder)
    assert (dict(found.pending), dict(found.segments), [*found.begun], [*found.damaged]) == ({}, {}, [], [])
