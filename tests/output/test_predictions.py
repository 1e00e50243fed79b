"""What a manifest tells of predictions is what its parts hold: over nights, kills, lost notes, lost parts and overwriting."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import UserError
from pipeline.bulk.bundle import Bundle
from pipeline.bulk.codec import label_counts, score_histograms
from pipeline.corpus.listing import Corpus
from pipeline.histograms import MAX_CLASS_BINS, SCORE_BINS, VALUE_EDGES, classes_per_bin
from pipeline.output.ledger import Ledger
from pipeline.output.manifest import (
    NEW_PREDICTIONS,
    PREDICTIONS,
    DamagedNoteError,
    read_manifest,
    read_previous_manifest,
)
from pipeline.output.receipts import Receipt, encode_receipts
from pipeline.output.results import open_results, published
from pipeline.predicted import NO_LABEL, Predicted, PredictionBins
from pipeline.schema import REJECTS, output_schema
from pipeline.storage.locate import storage_of
from tests.support.ledger import FINGERPRINT, make_corpus, make_folder, receipt, with_shards

LABELS = ["good", "<b>bad</b>", "so\x1b[2J so\u202e"]
KINDS = {"classes": ("id", "label", "score"), "labels": ("id", "labels", "score"), "values": ("id", "value")}


def predicted_rows(kind: str, rows: int, seed: int, labels: list[str] = LABELS) -> pa.Table:
    """Make rows with predictions, some of them exactly at the edges between bins."""
    random = np.random.default_rng(seed)
    scores = np.where(random.random(rows) < 0.2, random.integers(0, 21, rows) / 20, random.random(rows))
    columns: dict[str, Any] = {"id": [f"{seed}:{row}" for row in range(rows)]}
    if kind == "classes":
        columns |= {"label": random.choice(labels, rows), "score": scores}
    elif kind == "labels":
        columns |= {"labels": [[n for n in labels if random.random() < 0.4] for _ in range(rows)], "score": scores}
    else:
        columns |= {
            "value": np.where(random.random(rows) < 0.2, 2.5, random.normal(0, 10.0 ** random.integers(-3, 9), rows))
        }
    return pa.table(columns, schema=output_schema(KINDS[kind], pa.schema([])))


def counts_of(kind: str, rows: pa.Table, labels: list[str] = LABELS) -> tuple[list[int], list[int]]:
    """Count rows one by one: the oracle."""
    width, by_class = classes_per_bin(len(labels)), Counter[int]()
    bins = -(-len(labels) // width)
    scores = [0] * (SCORE_BINS if kind != "values" else len(VALUE_EDGES) + 1)
    for row in rows.to_pylist():
        if kind == "values":
            scores[sum(row["value"] > edge for edge in VALUE_EDGES)] += 1
            continue
        names = [row["label"]] if kind == "classes" else row["labels"]
        for name in names:
            by_class[labels.index(name) // width] += 1
        by_class[bins] += not names
        scores[sum(row["score"] >= edge / SCORE_BINS for edge in range(1, SCORE_BINS))] += 1
    classes = {"classes": bins, "labels": bins + 1, "values": 0}[kind]
    return [by_class[number] for number in range(classes)], scores


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.integers(0, 12), min_size=1, max_size=5), classes=st.sampled_from([1, 2, 256, 257, 1000]))
def test_shards_are_counted_as_their_rows_are_written(kind: str, rows: list[int], classes: int) -> None:
    labels = [f"class {number}" for number in range(classes)]
    tables = [predicted_rows(kind, count, seed, labels) for seed, count in enumerate(rows)]
    numbers = np.repeat(np.arange(len(rows)), rows)
    whole = pa.concat_tables(tables)
    by_label = label_counts(whole, labels, KINDS[kind], numbers, len(rows))
    by_score = score_histograms(whole, KINDS[kind], numbers, len(rows))
    expected = [counts_of(kind, table, labels) for table in tables]
    assert by_label == [classes for classes, _ in expected]
    assert by_score == [scores for _, scores in expected]
    bins = PredictionBins.of(KINDS[kind], labels)
    assert (len(bins.classes), len(bins.scores)) == (len(by_label[0]), len(by_score[0]))
    assert len(by_label[0]) <= MAX_CLASS_BINS + 1


def work(ledger: Ledger, kind: str, corpus: Corpus, seed: int, limit: int) -> None:
    """Classify the shards that are left, `limit` at most, and note them."""
    left, done = ledger.unfinished(corpus.files), 0
    ledger.begin(output_schema(KINDS[kind], pa.schema([])))
    for number, file in enumerate(corpus.files):
        for start, rows in ((0, 20), (20, 10)):
            if file.path in left and start not in left[file.path] and done < limit:
                finish(
                    ledger, kind, receipt(corpus, number, start, rows, last=start == 20), seed + 100 * number + start
                )
                done += 1
    ledger.flush()


def finish(ledger: Ledger, kind: str, one: Receipt, seed: int) -> None:
    rows = predicted_rows(kind, one.rows_out, seed)
    numbers = np.zeros(len(rows), np.int64)
    noted = replace(
        one,
        label_counts=label_counts(rows, LABELS, KINDS[kind], numbers, 1)[0],
        score_histogram=score_histograms(rows, KINDS[kind], numbers, 1)[0],
    )
    reject = {"id": "x", "file": one.file, "row": one.start, "reason": "null_text", "detail": None}
    rejects = with_shards(pa.Table.from_pylist([reject], REJECTS))
    bundle = Bundle(receipts=[noted], rows=rows, rejects=rejects, sent=0.0)
    bundle.write(ledger.output)
    ledger.add(bundle.receipts)


def check(kind: str, folder: str, bins: PredictionBins, earlier: set[str]) -> set[str]:
    """See that the manifest counts the rows of its parts, and those that are new, by their ids; return all ids."""
    rows, manifest = open_results(folder).to_table(), published(folder)
    new = rows.filter(pa.array([name not in earlier for name in rows["id"].to_pylist()]))
    for key, table in ((PREDICTIONS, rows), (NEW_PREDICTIONS, new)):
        classes, scores = counts_of(kind, table)
        assert manifest.predicted(key) == Predicted.of(bins, rows=len(table), classes=classes, scores=scores), key
    return set(rows["id"].to_pylist())


STEPS = st.lists(
    st.sampled_from(["night", "night", "kill", "lose the list", "lose a part", "tear a segment", "overwrite", "again"]),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=8)
@given(kind=st.sampled_from([*KINDS]), steps=STEPS)
def test_a_manifest_counts_the_rows_of_its_parts_and_the_new_ones_over_nights(
    tmp_path_factory: pytest.TempPathFactory, kind: str, steps: list[str]
) -> None:
    location = str(tmp_path_factory.mktemp("nights"))
    folder, bins, ids, seed = "", PredictionBins.of(KINDS[kind], LABELS), set[str](), 0
    for night, step in enumerate(["night", *steps, "night"]):
        corpus = make_corpus(location, (f"{night}.txt",))
        folder = folder or make_folder(location)
        if step == "lose the list":
            storage_of(folder).delete([published(folder).shards_path])
        if step == "lose a part":
            Path(open_results(folder).files[0]).unlink()
        if step == "overwrite":
            ids, seed = set(), seed + 1000
        with Ledger(folder, FINGERPRINT, overwrite=step == "overwrite") as ledger:
            before = ledger.compare(bins)
            work(ledger, kind, corpus, seed, limit=1 if step in ("kill", "tear a segment") else 99)
            if step in ("kill", "tear a segment"):
                for segment in Path(folder).glob("_receipts/g*/*.parquet") if step == "tear a segment" else ():
                    segment.write_bytes(segment.read_bytes()[:-9])
                continue
            compared = ledger.compare(bins)
            ledger.publish(1.0, {}, bins)
        ids = check(kind, folder, bins, ids)
        manifest, previous = published(folder), read_previous_manifest(folder)
        assert (compared.all, compared.new) == (manifest.predicted(PREDICTIONS), manifest.predicted(NEW_PREDICTIONS))
        assert (compared.all_before, compared.new_before) == (before.all_before, before.new_before)
        assert compared.all_before == (previous.predicted(PREDICTIONS) if previous else None)


def test_a_manifest_from_before_predictions_were_counted_is_added_to_and_a_damaged_one_refused(tmp_path: Path) -> None:
    corpus, folder = make_corpus(str(tmp_path)), make_folder(str(tmp_path))
    bins, path = PredictionBins.of(KINDS["classes"], LABELS), Path(folder, "_manifest.json")
    with Ledger(folder, FINGERPRINT) as ledger:
        work(ledger, "classes", corpus, 0, 99)
        ledger.publish(1.0, {}, bins)
    facts = json.loads(path.read_text())
    older = {key: value for key, value in facts.items() if key not in (PREDICTIONS, NEW_PREDICTIONS)}
    counters = ("label_counts", "score_histogram")
    older["totals"] = {key: value for key, value in facts["totals"].items() if key not in counters}
    path.write_text(json.dumps(older))
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.predicted(PREDICTIONS) is None
    with Ledger(folder, FINGERPRINT) as ledger:
        assert ledger.compare(bins).all_before is None
    wrong: dict[str, Any]
    for wrong in (
        {PREDICTIONS: {"rows": 1, "classes": {"a": "1"}, "scores": {}}},
        {NEW_PREDICTIONS: {"rows": "1", "classes": {}, "scores": {}}},
        {PREDICTIONS: []},
        {"totals": facts["totals"] | {"label_counts": {"a": 1}}},
        {"totals": facts["totals"] | {"score_histogram": [1.5]}},
        {"totals": facts["totals"] | {"rows_out": None}},
    ):
        path.write_text(json.dumps(facts | wrong))
        with pytest.raises(DamagedNoteError, match="damaged or not ours"):
            read_manifest(folder)
        with pytest.raises(UserError), Ledger(folder, FINGERPRINT):
            pass


@pytest.mark.parametrize("classes", [151, 10_000])
def test_receipts_and_manifest_are_bounded_however_many_classes_there_are(classes: int, tmp_path: Path) -> None:
    labels = [f"{'<&>' * 50}{number // 2}" for number in range(classes)]  # alike in all characters that are kept
    for results in (KINDS["classes"], KINDS["labels"]):
        bins = PredictionBins.of(results, labels)
        several = results == KINDS["labels"]
        assert len(set(bins.classes)) == len(bins.classes) == (151 if classes == 151 else 250) + several
        assert (NO_LABEL in bins.classes) == several
        counted = Predicted.of(bins, rows=9, classes=[10**9] * len(bins.classes), scores=[10**9] * SCORE_BINS)
        assert Predicted.from_json(json.loads(json.dumps(counted.to_json()))) == counted
        assert len(json.dumps(counted.to_json())) < 30_000
    corpus = make_corpus(str(tmp_path))
    full = replace(receipt(corpus, 0, 0, 20, last=False), label_counts=[16_384] * 257, score_histogram=[16_384] * 147)
    assert len(encode_receipts([full])) < 4_000
