"""The nights that a manifest keeps: what each publishing added, over overwriting, earlier versions and many years."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.listing import Corpus
from pipeline.nights import MOST_NIGHTS, Night, with_tonight
from pipeline.output.ledger import Ledger
from pipeline.output.manifest import DamagedNoteError, read_manifest
from tests.support.ledger import FINGERPRINT, SCHEMA, finish, make_corpus, make_folder, receipt

CHECKED: dict[str, Any] = {
    "drift": {"length": {"psi": 0.25, "state": "ok"}, "exits": {"psi": 0.5, "state": "alarm", "moved": "x" * 900}},
    "expected_disagreement": {"expected": 0.02, "at_most": 0.03, "state": "alarm", "moved": "rows that \x1b moved"},
    "hard_rows": {"now": 0.1, "state": "watch", "moved": "nothing"},
}


def publish(
    folder: str,
    corpus: Corpus,
    file: int,
    audited: int,
    *,
    overwrite: bool = False,
    checked: dict[str, Any] = CHECKED,
) -> None:
    """Add the 30 rows of a file as a night, with audited rows of which one differs."""
    with Ledger(folder, FINGERPRINT, overwrite=overwrite) as ledger:
        ledger.begin(SCHEMA)
        counted = replace(receipt(corpus, file, 0, 30, last=True), audited=audited, differing=1, flops=5.0)
        finish(ledger, counted)
        ledger.publish(1.0, checked)


def test_every_publishing_is_a_night_and_overwriting_begins_anew(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    publish(folder, corpus, 0, 10)
    publish(folder, corpus, 1, 20)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert [(night.rows, night.audited, night.differing, night.flops) for night in manifest.nights] == [
        (receipt(corpus, 0, 0, 30, last=True).rows_out, 10, 1, 5.0),
        (receipt(corpus, 1, 0, 30, last=True).rows_out, 20, 1, 5.0),
    ]
    assert manifest.nights[1].drift == {"length": 0.25, "exits": 0.5}
    assert manifest.nights[1].expected == {"expected": 0.02, "at_most": 0.03}
    assert manifest.nights[1].alarms[0] == "expected disagreement: rows that \\x1b moved"
    assert [len(alarm) <= 400 for alarm in manifest.nights[1].alarms] == [True, True]
    assert manifest.nights[1].published == manifest.facts["published"]
    with Ledger(folder, FINGERPRINT) as ledger:
        assert ledger.nights() == [*manifest.nights, Night()]
    checked = {"audit": {"rows": 30, "all_nights": {"broken_since": "", "nights": 1}}}
    publish(folder, corpus, 0, 30, overwrite=True, checked=checked)
    manifest = read_manifest(folder)
    assert manifest is not None
    since = {"broken_since": manifest.facts["published"], "nights": 1}  # tonight
    assert manifest.facts["audit"] == {"rows": 30, "all_nights": since}
    assert [night.audited for night in manifest.nights] == [30]


def test_a_part_that_is_lost_and_made_again_is_no_night_of_its_own(tmp_path: Path) -> None:
    """Its shards are audited by another secret, so that more of fewer rows may differ than before."""
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    publish(folder, corpus, 0, 20)
    for part in Path(folder).glob("part-*"):
        part.unlink()
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, replace(receipt(corpus, 0, 0, 30, last=True), audited=18, differing=2, flops=5.0))
        nights = ledger.nights()
        ledger.publish(1.0, {})
    assert [(night.audited, night.differing) for night in nights] == [(20, 1), (0, 0)]
    manifest = read_manifest(folder)
    assert manifest is not None
    assert [(night.audited, night.differing) for night in manifest.nights] == [(20, 1), (0, 0)]


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("again", [(0, 0), (29, 29)])
def test_what_is_new_beside_a_part_that_is_made_again_is_the_night(
    tmp_path: Path, again: tuple[int, int], stopped: bool
) -> None:
    """Whether fewer or more of its rows are audited and differ the second time, also if the run was stopped between the two."""
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    publish(folder, corpus, 0, 20)
    for part in Path(folder).glob("part-*"):
        part.unlink()
    audited, differing = again
    lost = replace(receipt(corpus, 0, 0, 30, last=True), audited=audited, differing=differing)
    new = replace(receipt(corpus, 1, 0, 30, last=True), audited=9, differing=8)
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, lost)
        if not stopped:
            finish(ledger, new)
            ledger.flush()
            nights = ledger.nights()
            ledger.publish(1.0, {})
    if stopped:
        with Ledger(folder, FINGERPRINT) as ledger:
            assert [(night.audited, night.differing) for night in ledger.nights()] == [(20, 1), (0, 0)]
            ledger.begin(SCHEMA)
            finish(ledger, new)
            ledger.flush()
            nights = ledger.nights()
            ledger.publish(1.0, {})
    manifest = read_manifest(folder)
    assert manifest is not None
    for found in (nights, manifest.nights):
        assert [(night.audited, night.differing) for night in found] == [(20, 1), (9, 8)]


def test_a_manifest_of_before_is_one_night_and_what_is_no_night_is_damage(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    publish(folder, corpus, 0, 10)
    path = Path(folder, "_manifest.json")
    facts = json.loads(path.read_text())
    nights = facts.pop("nights")
    path.write_text(json.dumps(facts))
    manifest = read_manifest(folder)
    assert manifest is not None
    assert [(night.audited, night.published) for night in manifest.nights] == [(10, facts["published"])]
    publish(folder, corpus, 1, 20)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert [night.audited for night in manifest.nights] == [10, 20]
    older = {name: value for name, value in nights[0].items() if name not in ("expected", "alarms", "nights")}
    assert replace(Night.from_json(nights[0]), expected={}, alarms=[]) == Night.from_json(older)
    changes: list[dict[str, Any]] = [{"audited": -1}, {"differing": 11}, {"flops": "5"}, {"flops": 1e999}]
    changes += [{"audited": 10**30}, {"rows": 1.5}, {"published": "x" * 99}, {"expected": {"expected": 1e999}}]
    changes += [
        {"nights": 0},
        {"nights": None},
        {"nights": 1 << 62},
        {"alarms": ["x"] * 9},
        {"alarms": ["x" * 999]},
        {"alarms": [7]},
        {"alarms": "x"},
    ]
    wrongs: list[Any] = [{}, 7, *(nights[0] | change for change in changes)]
    for wrong in wrongs:
        path.write_text(json.dumps(facts | {"nights": [wrong]}))
        with pytest.raises(DamagedNoteError, match="no night"):
            read_manifest(folder)
    for totals in ({"audited": "x"}, {"audited": None}, {"rows_out": 1.5}):
        path.write_text(json.dumps(facts | {"totals": facts["totals"] | totals}))
        with pytest.raises(DamagedNoteError):
            read_manifest(folder)


@given(audited=st.lists(st.integers(0, 9), max_size=5))
def test_nights_add_up_when_they_become_too_many(audited: list[int]) -> None:
    nights = [Night(published=f"{number}", audited=1, rows=2, classes={"a": 2}) for number in range(MOST_NIGHTS - 2)]
    for number, count in enumerate(audited):
        before = nights
        nights = with_tonight(nights, Night(published=f"late {number}", audited=count))
        assert len(nights) <= MOST_NIGHTS
        assert sum(night.audited for night in nights) == sum(night.audited for night in before) + count
        assert sum(night.rows for night in nights) == sum(night.rows for night in before)
        assert nights[-1].published == f"late {number}"
    assert [Night.from_json(json.loads(json.dumps(asdict(night)))) for night in nights] == nights
