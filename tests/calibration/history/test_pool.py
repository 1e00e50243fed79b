"""Pooled audits are those of the shards that stand, each row once, whatever happened to the folder."""

import json
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.calibration.curve import TRUNCATED
from pipeline.calibration.history.pool import read_history
from pipeline.errors import UserError
from pipeline.output.ledger import Ledger
from pipeline.schema import AUDITS
from tests.support.audits import (
    FILES,
    MADE,
    MODEL,
    NOW,
    audits_of,
    do,
    read,
    rows_in,
    shards_of,
)
from tests.support.ledger import SCHEMA, files_in, finish, make_corpus, make_folder, receipt
from tests.support.s3_server import S3Server


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


def test_a_run_that_replaces_results_hides_none_of_them(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    with Ledger(folder, MADE) as ledger:
        ledger.begin(SCHEMA)
        published = do(ledger, 0, *shards_of(corpus, 0))
        ledger.publish(1.0, {})
    with Ledger(folder, MADE, overwrite=True) as ledger:
        ledger.begin(SCHEMA)
        assert rows_in(read(folder)) == sorted(published)
        begun = do(ledger, 1, *shards_of(corpus, 1))
        ledger.flush()
    assert rows_in(read(folder)) == sorted((row % 1000, draw) for row, draw in published | begun)
    with Ledger(folder, MADE | {"dtype": "bf16"}, overwrite=True) as ledger:  # whichever precision is best there
        ledger.begin(SCHEMA)
        do(ledger, 1, *shards_of(corpus, 3))
        ledger.flush()
    assert rows_in(read(folder)) == sorted(published)
    other = MADE | {"weights": "2b"}
    with Ledger(folder, other, overwrite=True) as ledger:
        ledger.begin(SCHEMA)
        do(ledger, 2, *shards_of(corpus, 2))
        ledger.flush()
    assert rows_in(read(folder)) == sorted(published)
    with pytest.raises(UserError, match="made with weights 2b, now it is 3c"):
        read_history([folder], NOW | {"weights": "3c"}, MODEL, rows=10)


def test_audited_rows_of_which_none_is_recorded_are_no_damage_and_broken_classes_are_named(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    with Ledger(folder, MADE) as ledger:
        ledger.begin(SCHEMA)
        expected = do(ledger, 0, *shards_of(corpus, 0))
        first = replace(shards_of(corpus, 1)[0], audited=2)  # of many classes, few of the audited rows are recorded
        finish(ledger, first, audits=AUDITS.empty_table())
        classes = [{"name": "spam", "verdict": "broken"}, {"name": "ham", "verdict": "open"}, 7]
        ledger.publish(1.0, {"audit": {"limit": 0.01, "classes": classes, "all_nights": {"false_alarms": "x"}}})
    history = read(folder)
    assert (history.damaged, history.found, history.broken_classes) == (0, len(expected), ["spam"])
    foreign: list[Any] = [[], "x", {"classes": 7}, {"classes": {"a": 1}, "limit": "x", "all_nights": []}, None]
    for audit in foreign:
        path = Path(folder, "_manifest.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"audit": audit}))
        assert read(folder).broken_classes == []


def test_rows_without_finite_numbers_are_left_out_of_a_history(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path), FILES), make_folder(str(tmp_path))
    receipts = shards_of(corpus, 0)
    audits = audits_of(receipts, 0).to_pylist()
    audits[1]["logits"][-1], audits[4]["logits"][0] = float("nan"), float("inf")
    with Ledger(folder, MADE) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, replace(receipts[0], audited=19), receipts[1], audits=pa.Table.from_pylist(audits, AUDITS))
        ledger.publish(1.0, {})
    history = read(folder)
    whole = [line for line in audits if line["shard"] == receipts[0].shard and np.isfinite(line["logits"]).all()]
    lost = sum(line["shard"] == receipts[0].shard for line in audits) - len(whole)
    assert (history.broken, lost) == (2, 2)
    assert rows_in(history) == sorted((line["logits"][0], 0.0) for line in whole)
