"""By when a limit was broken: the nights that count for it, and those that are pooled then."""

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calibration.history.nights import Change, change_of, night_of
from pipeline.calibration.sequential import log_evidence_above, log_evidence_of_change
from pipeline.corpus.listing import Corpus
from pipeline.nights import Night
from pipeline.output.ledger import Ledger
from tests.support.audits import FILES, MADE, audits_of, read, rows_in, rows_of, shards_of
from tests.support.ledger import SCHEMA, finish, make_corpus, make_folder

NIGHTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12)


@given(first=NIGHTS, second=NIGHTS, limit=st.sampled_from([None, 0.01, 0.1, 0.5]))
def test_the_nights_of_a_broken_limit_begin_where_its_change_is_hardly_yet_to_come(
    first: list[tuple[int, int]], second: list[tuple[int, int]], limit: float | None
) -> None:
    def night(number: int, counts: tuple[int, int]) -> Night:
        return Night(published=f"2026-11-{number + 1:02}T00:00:00Z", audited=max(counts), differing=min(counts))

    folders = [[night(2 * n, c) for n, c in enumerate(first)], [night(2 * n + 1, c) for n, c in enumerate(second)]]
    audited = sorted((n for folder in folders for n in folder if n.audited), key=lambda n: n.published)
    change = change_of(folders, limit)
    if limit is None or not audited:
        assert change is None
        return
    evidence, likeliest = log_evidence_of_change([(n.differing, n.audited) for n in audited], limit)
    assert (change is not None) == (evidence >= np.log(100))
    if change is not None:
        weights = [
            float(
                np.exp(
                    log_evidence_above(
                        sum(n.differing for n in audited[s:]), sum(n.audited for n in audited[s:]), limit
                    )
                )
            )
            for s in range(len(audited))
        ]
        start = change.nights_before
        assert change.since == audited[start].published
        assert sum(weights[: start + 1]) >= 0.95 * sum(weights) * (1 - 1e-9)
        assert start == 0 or sum(weights[:start]) < 0.95 * sum(weights) * (1 + 1e-9)
        assert start >= likeliest or sum(weights[likeliest:]) < 0.05 * sum(weights)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True), st.integers(0, 60))
def test_what_is_written_belongs_to_the_night_that_published_it(published: list[int], written: int) -> None:
    nights = [Night(published=f"2026-11-27T00:00:{second:02}Z") for second in sorted(published)]
    later = [n.published for n in nights if int(n.published[-3:-1]) >= written]
    assert night_of(f"2026-11-27T00:00:{written:02}Z", nights) == (later[0] if later else nights[-1].published)


def test_nights_before_a_change_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    for number in range(4):
        now = f"2026-11-2{number}T00:00:00Z"
        monkeypatch.setattr("time.strftime", lambda *_, now=now: now)
        with Ledger(folder, MADE) as ledger:
            ledger.begin(SCHEMA)
            receipts = shards_of(corpus, number)
            audits = audits_of(receipts, number)
            counts = [len(rows_of(audits, done)) for done in receipts]
            differing = [count if number >= 2 else 0 for count in counts]
            done = [
                replace(one, audited=count, differing=other)
                for one, count, other in zip(receipts, counts, differing, strict=True)
            ]
            finish(ledger, *done, audits=audits)
            ledger.publish(1.0, {"audit": {"limit": 0.01}} if number < 3 else {"audit": {"limit": 0.02}})
    history = read(folder)
    assert history.change == Change(since="2026-11-22T00:00:00Z", nights_before=2)
    assert history.nights == 2
    assert {draw for _, draw in rows_in(history)} == {2.0, 3.0}


@pytest.mark.parametrize("ends", ["published", "withheld"])
def test_a_night_that_breaks_a_limit_is_seen_in_a_folder_of_its_own_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """One that was withheld has no manifest to say which limit it broke."""
    corpus, folders = make_corpus(str(tmp_path), FILES), []
    for number, end in enumerate(("published", ends)):
        now = f"2026-11-2{number}T00:00:00Z"
        monkeypatch.setattr("time.strftime", lambda *_, now=now: now)
        (tmp_path / str(number)).mkdir()
        folders.append(make_folder(str(tmp_path / str(number))))
        with Ledger(folders[-1], MADE) as ledger:
            ledger.begin(SCHEMA)
            receipts = shards_of(corpus, number)
            audits = audits_of(receipts, number)
            counts = [len(rows_of(audits, done)) for done in receipts]
            finish(
                ledger,
                *(
                    replace(one, audited=count, differing=number * count)
                    for one, count in zip(receipts, counts, strict=True)
                ),
                audits=audits,
            )
            ledger.flush()
            if end == "published":
                ledger.publish(1.0, {"audit": {"limit": 0.01}})
    history = read(*folders)
    assert history.change == Change(since="2026-11-21T00:00:00Z", nights_before=1)
    assert {draw for _, draw in rows_in(history)} == {1.0}


def publish_nights(folder: str, corpus: Corpus, made: dict[str, str], nights: Sequence[tuple[int, int, int]]) -> None:
    """Publish files as nights of 2026-11-2n, each with a number of audited rows and of those that differ."""
    for file, audited, differing in nights:
        with Ledger(folder, made) as ledger, pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.strftime", lambda *_, file=file: f"2026-11-2{file}T00:00:00Z")
            ledger.begin(SCHEMA)
            receipts = shards_of(corpus, file)
            audits = audits_of(receipts, file)
            finish(
                ledger,
                replace(receipts[0], audited=audited, differing=differing),
                replace(receipts[1], audited=1),
                audits=audits,
            )
            ledger.publish(1.0, {"audit": {"limit": 0.1}})


def test_thresholds_that_are_no_longer_in_force_break_no_limit(tmp_path: Path) -> None:
    corpus, first = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    fast, slow = MADE | {"criterion": "entropy 0.9"}, MADE | {"criterion": "entropy 0.1"}
    publish_nights(first, corpus, fast, [(0, 19, 0), (1, 19, 19)])
    assert (change := read(first).change) is not None
    assert change.nights_before == 1
    (tmp_path / "later").mkdir()
    second = make_folder(str(tmp_path / "later"))
    publish_nights(second, corpus, slow, [(2, 19, 0)])
    history = read(first, second)
    assert (history.change, history.nights) == (None, 3)  # the rows of all nights serve, whatever was in force


def test_a_copied_folder_is_no_further_evidence(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    publish_nights(folder, corpus, MADE, [(0, 19, 0), (1, 19, 5)])
    assert read(folder).change is None
    copies = [shutil.copytree(folder, f"{folder}-{number}") for number in range(5)]
    assert read(folder, *copies).change is None


def test_what_is_to_replace_results_is_no_evidence_beside_them(tmp_path: Path) -> None:
    """It is of the same texts, or of thresholds that are not in force."""
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    fast = MADE | {"criterion": "entropy 0.9"}
    publish_nights(folder, corpus, fast, [(0, 19, 0), (1, 19, 19)])
    before = read(folder)
    assert before.change is not None
    with Ledger(folder, MADE | {"criterion": "entropy 0.1"}, overwrite=True) as ledger:
        ledger.begin(SCHEMA)
    assert read(folder).change == before.change
    second = make_folder(str(shutil.copytree(tmp_path / "in", tmp_path / "later" / "in").parent))
    publish_nights(second, corpus, MADE, [(2, 19, 7)])
    once = read(second)
    assert once.change is None
    with Ledger(second, MADE, overwrite=True) as ledger:
        ledger.begin(SCHEMA)
        receipts = shards_of(corpus, 2)
        finish(ledger, replace(receipts[0], audited=19, differing=8), receipts[1], audits=audits_of(receipts, 2))
        ledger.flush()
    again = read(second)
    assert (again.change, again.found) == (None, once.found)  # each row once


def test_a_copy_of_a_withheld_night_is_no_further_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    publish_nights(folder, corpus, MADE, [(0, 19, 0)])
    with Ledger(folder, MADE) as ledger:
        ledger.begin(SCHEMA)
        receipts = shards_of(corpus, 1)
        finish(ledger, replace(receipts[0], audited=19, differing=7), receipts[1], audits=audits_of(receipts, 1))
        ledger.flush()
    copies = [str(shutil.copytree(folder, f"{folder}-{number}")) for number in range(3)]
    seconds = itertools.count()
    monkeypatch.setattr("time.strftime", lambda *_: f"2026-11-25T00:00:{next(seconds):02}Z")  # reading takes its time
    assert read(folder).change is None
    assert read(folder, *copies).change is None
