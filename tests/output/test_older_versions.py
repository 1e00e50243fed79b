"""Folders of an older version are read and added to, and those of still older ones refused in one line."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.corpus.listing import Corpus
from pipeline.errors import UserError
from pipeline.output.generations import Generations
from pipeline.output.ledger import Ledger
from pipeline.output.parts import parquet_bytes
from pipeline.output.results import published, shards
from pipeline.storage.locate import storage_of
from tests.support.ledger import (
    ALL_IDS,
    FINGERPRINT,
    SCHEMA,
    check_positions,
    files_in,
    make_corpus,
    make_folder,
    read_all,
    run_all,
)


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
    check_positions(folder)
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


def test_the_precision_of_an_older_version_is_not_guessed(corpus: Corpus, folder: str) -> None:
    """Its fingerprint has the word for it, which stood for something else on every machine."""
    older, now = FINGERPRINT | {"dtype": "auto"}, FINGERPRINT | {"dtype": "bf16"}
    run_all(folder, corpus, older)
    with (
        pytest.raises(UserError, match=r"results of another run: dtype was auto, is bf16\. Choose"),
        Ledger(folder, now),
    ):
        pass


def test_a_run_knows_the_fingerprint_of_what_it_goes_on_with(corpus: Corpus, folder: str) -> None:
    def gone_on_with(*, overwrite: bool) -> str:
        return Generations.read(folder).goes_on_from(overwrite=overwrite).get("dtype", "nothing")

    assert (gone_on_with(overwrite=False), gone_on_with(overwrite=True)) == ("nothing", "nothing")
    begun = FINGERPRINT | {"dtype": "fp32"}
    with Ledger(folder, begun) as ledger:
        ledger.begin(SCHEMA)
    assert (gone_on_with(overwrite=False), gone_on_with(overwrite=True)) == ("fp32", "nothing")
    run_all(folder, corpus, begun)
    assert (gone_on_with(overwrite=False), gone_on_with(overwrite=True)) == ("fp32", "nothing")
    with Ledger(folder, FINGERPRINT | {"dtype": "bf16"}, overwrite=True) as ledger:
        ledger.begin(SCHEMA)
    assert (gone_on_with(overwrite=False), gone_on_with(overwrite=True)) == ("fp32", "bf16")
