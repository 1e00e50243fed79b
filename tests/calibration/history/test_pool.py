"""Pooled audits are those of the shards that stand, each row once, of the right nights, whatever happened to the folder."""

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.calibration.curve import TRUNCATED
from pipeline.calibration.history.nights import Change, change_of, night_of
from pipeline.calibration.history.pool import History, read_history
from pipeline.calibration.sequential import log_evidence_above, log_evidence_of_change
from pipeline.corpus.listing import Corpus
from pipeline.errors import UserError
from pipeline.nights import Night
from pipeline.output.ledger import Ledger
from pipeline.output.receipts import Receipt
from pipeline.schema import AUDITS
from tests.support.ledger import FINGERPRINT, SCHEMA, files_in, finish, make_corpus, make_folder, receipt
from tests.support.models import new_model
from tests.support.s3_server import S3Server

MODEL = new_model()
NOW = {"weights": "1a", "max-tokens": "64", "long-texts": TRUNCATED, "dtype": "auto"}
MADE = FINGERPRINT | {"weights": "1a", "max-tokens": "64", "dtype": "fp32"}
FILES = tuple(f"{name}.txt" for name in "abcd")
EXITS, CLASSES = len(MODEL.exit_layers), MODEL.shape.classes
LTE = [0.0] * (EXITS if MODEL.lte is not None else 0)


def audits_of(receipts: Sequence[Receipt], draw: int) -> pa.Table:
    """Record of each shard a third of its rows, another third for each draw, with values that tell row and draw."""
    lines = []
    for done in receipts:
        for row in range(done.start + 1, done.start + done.rows_in):
            if (row + draw) % 3 == 0:
                values = [float(row), float(draw), *np.zeros(EXITS * CLASSES - 2)]
                line = {"shard": done.shard, "row": row, "truncated": row % 2 == 0, "lengths": [row + 1]}
                lines.append(line | {"logits": values, "lte": LTE})
    return pa.Table.from_pylist(lines, AUDITS)


def do(ledger: Ledger, draw: int, *receipts: Receipt) -> set[tuple[int, int]]:
    """Finish shards with the audits of a draw in one part; return their rows, each with its draw."""
    audits = audits_of(receipts, draw)
    counted = [
        replace(done, audited=sum(shard == done.shard for shard in audits["shard"].to_pylist())) for done in receipts
    ]
    finish(ledger, *counted, label=f"draw {draw}", audits=audits)
    return {(row + 1000 * number_of(done), draw) for done in receipts for row in rows_of(audits, done)}


def number_of(done: Receipt) -> int:
    return FILES.index(Path(done.file).name)


def rows_of(audits: pa.Table, done: Receipt) -> list[int]:
    return [line["row"] for line in audits.to_pylist() if line["shard"] == done.shard]


def read(*folders: str, rows: int = 10_000, seed: int = 0) -> History:
    return read_history(folders, NOW, MODEL, rows=rows, seed=seed)


def rows_in(history: History) -> list[tuple[float, float]]:
    """Return the row and the draw that each record is of; they do not tell its file."""
    logits = history.recorded.logits
    assert logits.shape == (EXITS, len(history.texts), CLASSES)
    assert history.texts.lengths.tolist() == (logits[0, :, 0] + 1).tolist()
    assert history.truncated.to_pylist() == (logits[0, :, 0] % 2 == 0).tolist()
    return sorted(zip(logits[0, :, 0].tolist(), logits[0, :, 1].tolist(), strict=True))


def shards_of(corpus: Corpus, file: int) -> tuple[Receipt, Receipt]:
    return receipt(corpus, file, 0, 20, last=False), receipt(corpus, file, 20, 10, last=True)


@settings(max_examples=6, deadline=None)
@given(
    nights=st.lists(st.sampled_from(["one part", "two parts", "stopped", "lost"]), min_size=1, max_size=4),
    ends=st.sampled_from(["published", "withheld"]),
    cap=st.integers(1, 30),
)
def test_the_pool_is_what_the_shards_that_stand_recorded(nights: list[str], ends: str, cap: int) -> None:
    location = tempfile.mkdtemp()
    corpus, folder = make_corpus(location, FILES), make_folder(location)
    expected: set[tuple[int, int]] = set()
    for number, night in enumerate(nights):
        first, second = shards_of(corpus, number)
        draw = 10 * number
        if night == "stopped":
            with Ledger(folder, MADE) as ledger:
                ledger.begin(SCHEMA)
                expected |= do(ledger, draw, first)
        with Ledger(folder, MADE) as ledger:
            ledger.begin(SCHEMA)
            if night == "one part":
                expected |= do(ledger, draw, first, second)
            else:
                expected |= set() if night == "stopped" else do(ledger, draw, first)
                expected |= do(ledger, draw + 1, second)
            ledger.flush()
            if number + 1 < len(nights) or ends == "published":
                ledger.publish(1.0, {})
        if night == "lost":
            for part in Path(folder).glob("part-*"):
                part.unlink()
            expected = set()
            with Ledger(folder, MADE) as ledger:
                ledger.begin(SCHEMA)
                for earlier in range(number + 1):
                    expected |= do(ledger, draw + 2, *shards_of(corpus, earlier))
                ledger.publish(1.0, {})
    history = read(folder)
    assert rows_in(history) == sorted((row % 1000, draw) for row, draw in expected)
    assert (history.found, history.precision, history.change, history.damaged) == (len(expected), "fp32", None, 0)
    few = read(folder, rows=cap, seed=1)
    assert len(few.texts) == min(cap, len(expected))
    assert few.found == len(expected)
    assert not set(rows_in(few)) - set(rows_in(history))
    assert rows_in(few) == rows_in(read(folder, rows=cap, seed=1))
    shutil.rmtree(location)


def test_audits_go_with_their_parts_and_overwriting_begins_anew(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    for overwrite in (False, True):
        with Ledger(folder, MADE, overwrite=overwrite) as ledger:
            ledger.begin(SCHEMA)
            expected = do(ledger, int(overwrite), *shards_of(corpus, 0))
            ledger.flush()
            if overwrite:
                assert len([name for name in files_in(folder) if name.startswith("_audits/")]) == 2
            ledger.publish(1.0, {})
        parts = {name for name in files_in(folder) if name.startswith("part-")}
        assert {name for name in files_in(folder) if name.startswith("_audits/")} == {f"_audits/{p}" for p in parts}
        assert rows_in(read(folder)) == sorted(expected)


def test_a_row_in_two_folders_counts_once_and_folders_are_one_history(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    with Ledger(folder, MADE) as ledger:
        ledger.begin(SCHEMA)
        do(ledger, 0, *shards_of(corpus, 0))
        ledger.publish(1.0, {})
    second = f"{folder}-2"
    shutil.copytree(folder, second)
    assert rows_in(read(folder, second)) == rows_in(read(folder)) == rows_in(read(second, f"{folder}/"))
    with Ledger(second, MADE) as ledger:
        ledger.begin(SCHEMA)
        do(ledger, 0, *shards_of(corpus, 1))
        ledger.publish(1.0, {})
    assert len(read(folder, second).texts) == 2 * len(read(folder).texts)


def test_on_s3_the_audits_of_a_part_that_is_written_anew_go_along(s3: S3Server) -> None:
    location = "s3://bucket/audits-overlap"
    corpus, folder = make_corpus(location, FILES), make_folder(location)
    a, b, c = (receipt(corpus, number, 0, 30, last=True) for number in range(3))
    with Ledger(folder, MADE) as first, Ledger(folder, MADE) as second:
        first.begin(SCHEMA)
        second.begin(SCHEMA)
        expected = do(first, 0, a, b) | {row for row in do(second, 1, b, c) if row[0] >= 2000}
        for driver in (first, second):
            driver.publish(1.0, {})
    assert rows_in(read(folder)) == sorted((row % 1000, draw) for row, draw in expected)


def test_files_that_are_gone_torn_or_of_another_model_cost_themselves_alone(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    with Ledger(folder, MADE) as ledger:
        ledger.begin(SCHEMA)
        kept = [do(ledger, 0, *shards_of(corpus, number)) for number in range(4)]
        ledger.publish(1.0, {})
    names = sorted(Path(folder, "_audits").iterdir())
    names[0].unlink()
    names[1].write_bytes(names[1].read_bytes()[:-9])
    wrong = audits_of(shards_of(corpus, 0), 0)
    logits = pa.array([[1.0]] * len(wrong), pa.list_(pa.float32()))
    pq.write_table(wrong.set_column(4, AUDITS.field(4), logits), names[2])
    history = read(folder)
    assert (history.damaged, history.found) == (3, len(kept[0]))
    assert len(rows_in(history)) == len(kept[0])


def test_a_history_of_something_else_is_refused_and_named(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    with pytest.raises(UserError, match=r"no _manifest\.json: no results are there"):
        read(folder)
    with Ledger(folder, MADE) as ledger:
        ledger.begin(SCHEMA)
        do(ledger, 0, *shards_of(corpus, 0))
        ledger.publish(1.0, {})
    for name, now, line in (
        ("weights", "2b", "made with weights 1a, now it is 2b"),
        ("max-tokens", "32", "max-tokens 64, now it is 32"),
        ("long-texts", "windows, 8 shared", f"long-texts {TRUNCATED}, now it is windows, 8 shared"),
        ("dtype", "bf16", "dtype fp32, now it is bf16"),
        ("tokenizer", "t 2", "tokenizer t 1, now it is t 2"),
    ):
        with pytest.raises(UserError, match=re.escape(line)):
            read_history([folder], NOW | {name: now}, MODEL, rows=10)
    other = f"{folder}-2"
    shutil.copytree(make_folder(f"{tmp_path}/2"), other)
    with Ledger(other, MADE | {"dtype": "bf16"}) as ledger:
        ledger.begin(SCHEMA)
        do(ledger, 0, *shards_of(corpus, 0))
        ledger.publish(1.0, {})
    with pytest.raises(UserError, match=r"out-2 was computed in bf16, and .*/out in fp32"):
        read(folder, other)


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
