"""Whose table a folder holds, what its name may be, and what becomes of what others do to it."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import TableFeatures, write_deltalake

from pipeline.corpus.listing import Corpus, list_inputs
from pipeline.errors import InputError, MissingPackageError
from pipeline.output.parts import prepare_folder
from pipeline.output.results import results_as_corpus
from pipeline.storage.base import is_remote
from pipeline.storage.locate import storage_of
from pipeline.storage.tree import OwnResultsError
from pipeline.tables.delta import DeltaLog, table_of
from tests.support.ledger import FINGERPRINT, make_corpus, make_folder, run_all
from tests.support.tables import check_against_manifest, open_table


def test_a_table_that_others_have_written_to_is_not_overwritten(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    table = DeltaLog(folder, print)
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    open_table(folder).optimize.compact()
    more = make_corpus(str(tmp_path), ("c.txt",))
    with pytest.raises(
        InputError, match=r"_delta_log: part-\S+ was put in by another program; .* remove _delta_log, and"
    ):
        table.catch_up(overwrite=False)
    shutil.rmtree(f"{folder}/_delta_log")
    run_all(folder, more, FINGERPRINT, follow=table.follow)
    assert len(check_against_manifest(folder)) == 84


def test_rows_that_others_have_deleted_do_not_come_back_in_silence(tmp_path: Path) -> None:
    """Of a file that is gone as a whole nothing is left that is foreign."""
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    table = DeltaLog(folder, print)
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    open_table(folder).alter.set_table_properties({"delta.logRetentionDuration": "interval 7 days"})
    table.catch_up(overwrite=False)  # other versions are no matter
    run_all(folder, make_corpus(str(tmp_path), ("c.txt",)), FINGERPRINT, follow=table.follow)
    assert len(check_against_manifest(folder)) == 84
    open_table(folder).delete("true")
    with pytest.raises(InputError, match=r"_delta_log: part-\S+ was taken out by another program"):
        table.catch_up(overwrite=False)


def test_a_table_with_features_that_we_do_not_keep_is_refused(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    table = DeltaLog(folder, print)
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    open_table(folder).alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)
    with pytest.raises(InputError, match="_delta_log: deletionVectors was turned on by another program"):
        table.follow()


def test_somebody_elses_table_is_left_alone(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), f"{tmp_path}/out"
    write_deltalake(folder, pa.table({"id": ["a"]}))
    prepare_folder(folder, f"{tmp_path}/in")
    theirs = table_of(folder, None, print)
    assert theirs
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"is a Delta table of another program, .*remove _delta_log, or choose"):
            theirs.catch_up(overwrite=overwrite)
    assert corpus.files


def test_results_with_a_table_are_read_by_their_manifest(
    corpus: Corpus, folder: str, place: str, table: DeltaLog
) -> None:
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    with pytest.raises(OwnResultsError, match="holds results of offramp"):
        list_inputs(folder)
    by_manifest = {file.path for file in results_as_corpus(folder).files}
    storage_of(folder).delete([f"{folder}/_manifest.json"])
    assert {file.path for file in list_inputs(folder).files} == by_manifest  # by the table, which is left


def test_a_vacuum_touches_no_note_of_ours(corpus: Corpus, folder: str, table: DeltaLog) -> None:
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    if is_remote(folder):
        return
    Path(folder, "part-of-nobody.parquet").write_bytes(b"x")
    os.utime(Path(folder, "part-of-nobody.parquet"), (0, 0))
    removed = open_table(folder).vacuum(0, enforce_retention_duration=False, dry_run=True, full=True)
    assert removed == ["part-of-nobody.parquet"]


@pytest.mark.parametrize("name", ["a%20b", "a#b", "a?b", "a\\b"])
def test_a_folder_whose_name_the_library_takes_for_another_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the name of a Delta table's folder cannot have"):
        table_of(f"{tmp_path}/{name}", "delta", print)


@pytest.mark.parametrize("name", ["a b", "é=ü", "c:d", "b[1]{2}*"])
def test_a_folder_may_have_an_odd_name(name: str, place: str) -> None:
    corpus = make_corpus(place)
    folder = prepare_folder(f"{place}/{name}", f"{place}/in")
    table = table_of(folder, "delta", print)
    assert table
    run_all(folder, corpus, FINGERPRINT, follow=table.follow)
    assert len(open_table(folder).to_pyarrow_table()) == 56  # file_uris() are quoted, which others take as they are


def test_without_the_library_a_table_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    run_all(folder, corpus, FINGERPRINT, follow=DeltaLog(folder, print).follow)
    for module in ("pipeline.tables.delta", "pipeline.errors"):
        monkeypatch.setattr(f"{module}.find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"deltalake is not installed: pip install 'offramp\[delta\]'"):
        table_of(f"{tmp_path}/new", "delta", print)
    with pytest.raises(InputError, match=r"would fall behind: pip install 'offramp\[delta\]', or remove it"):
        table_of(folder, None, print)
