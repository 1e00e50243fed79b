"""Random sequences of nights, overwritings and deaths: the table is the manifest, or the version before, and never between."""

import tempfile
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.output.results import open_results
from pipeline.tables.delta import has_table, table_of
from tests.support.ledger import FINGERPRINT, make_corpus, make_folder, run_all
from tests.support.tables import check_against_manifest, open_table

POINTS = [
    "",
    "pipeline.output.publish.storage_of",
    "pipeline.output.ledger.remove_list",
    "pipeline.tables.delta.DeltaLog._adds",
    "pipeline.tables.delta.DeltaLog._flush",
    "pipeline.output.ledger.clean_up",
    "pipeline.output.publish._remove_unused_parts",
]
"""Where a run is killed: not at all; before the manifest, after it, before the commit, after it, and while it cleans up."""


class Killed(BaseException):
    """Stands for a death: nothing of ours catches it."""


class Night(NamedTuple):
    """A run: new files, whether it overwrites, whether it asks for a table, and where it is killed."""

    files: int
    overwrite: bool
    table: bool
    point: str


NIGHTS = st.lists(
    st.builds(Night, st.integers(0, 2), st.booleans(), st.booleans(), st.sampled_from(POINTS)), min_size=2, max_size=5
)


def killed(*_arguments: object, **_options: object) -> None:
    raise Killed


def rows_of(read: Callable[[], pa.Table]) -> list[tuple[str, str]]:
    return sorted((row["id"], row["label"]) for row in read().select(["id", "label"]).to_pylist())


@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])  # a sequence takes seconds, and shrinking minutes
@given(nights=NIGHTS)
def test_the_table_is_the_manifest_or_the_version_before(nights: list[Night]) -> None:
    with tempfile.TemporaryDirectory() as place:
        files, generation = 1, 0
        make_corpus(place, ("0.txt",))
        folder = make_folder(place)
        for night in nights:
            corpus = make_corpus(place, tuple(f"{files + number}.txt" for number in range(night.files)))
            files, generation = files + night.files, generation + night.overwrite
            label = f"label {generation}"
            table = table_of(folder, "delta" if night.table else None, lambda _line: None)
            follow = table.follow if table else lambda: None
            before = rows_of(open_table(folder).to_pyarrow_table) if has_table(folder) else None
            with pytest.MonkeyPatch.context() as patch:
                if table:
                    table.catch_up(overwrite=night.overwrite)
                if night.point:
                    patch.setattr(night.point, killed)
                fingerprint = FINGERPRINT | {"criterion": label}
                try:
                    run_all(folder, corpus, fingerprint, label, overwrite=night.overwrite, follow=follow)
                except Killed:
                    patch.undo()
                    _check_after_death(folder, before)
                    if table:
                        table.catch_up(overwrite=False)
                    run_all(folder, corpus, fingerprint, label, overwrite=night.overwrite, follow=follow)
            assert len(open_results(folder).to_table()) == 28 * files
            if has_table(folder):
                assert rows_of(lambda: check_against_manifest(folder)) == rows_of(open_results(folder).to_table)


def _check_after_death(folder: str, before: list[tuple[str, str]] | None) -> None:
    """See that the table is what it was before the run, or what the manifest says now."""
    if not has_table(folder):
        return
    now = rows_of(open_table(folder).to_pyarrow_table)
    assert now in (before, rows_of(open_results(folder).to_table))
