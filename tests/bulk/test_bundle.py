"""A bundle on its way: one Arrow row, in which every row of its shards is either among the rows or among the rejects."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pipeline.bulk.bundle import BUNDLE_REJECTS, Bundle, gather
from pipeline.bulk.codec import token_rows, with_predictions, with_tokens
from pipeline.bulk.spec import ClassifySpec
from pipeline.bulk.stages import _read, _tokenize, _tokenizer, _write, tokenize_rows
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.plan import Piece, encode_task
from pipeline.corpus.reader import Shard, read_shards
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.identity import ModelIdentity
from pipeline.output.parts import Output
from pipeline.output.receipts import Receipt, decode_receipts
from pipeline.rejects import Reason, Reject
from pipeline.rows import Predictions
from pipeline.schema import REJECTS, output_schema, read_schema, token_schema

KEEP = pa.schema([("tokens", pa.int64())])
"""A kept column whose name is one of ours."""
COLUMNS = Columns(text="text", keep=KEEP)
RESULTS = ("id", "label", "label_id", "score", "probabilities", "exit_layer", "uncertainty", "truncated")


@pytest.fixture(scope="module")
def tokenizer(review_tokenizer: PreTrainedTokenizerFast) -> TokenizerSpec:
    return TokenizerSpec.from_hugging_face(review_tokenizer, 8)


def bundle_of(count: int, read_error: str | None = None) -> Bundle:
    """Make a bundle of one shard of texts whose first row is row 10 of its file."""
    rows = pa.table(
        {
            "id": [f"a.txt:{row}" for row in range(10, 10 + count)],
            "row": range(10, 10 + count),
            "text": ["the room was clean"] * count,
            "keep.tokens": range(count),
        },
        schema=read_schema(KEEP, pairs=False),
    )
    receipt = Receipt(
        shard="0" * 16,
        file="/in/a.txt",
        size=9,
        version="1",
        start=10,
        span=count,
        last=True,
        input_bytes=9.0,
        read_error=read_error,
        rows_in=count,
        rows_out=count,
    )
    return Bundle([receipt], rows, BUNDLE_REJECTS.empty_table(), sent=0.0)


def travel(block: Bundle) -> Bundle:
    """Send a bundle to the next stage, as Ray does: through Arrow's own format."""
    sink, batch = pa.BufferOutputStream(), block.to_arrow()
    assert len(batch) == 1
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_table(batch)
    return Bundle.from_arrow(pa.ipc.open_stream(sink.getvalue()).read_all())


@given(count=st.integers(0, 30), lost=st.lists(st.sets(st.integers(0, 29), max_size=8), max_size=3))
def test_rows_move_to_the_rejects_once_and_travel_as_one_arrow_row(count: int, lost: Sequence[set[int]]) -> None:
    block = bundle_of(count)
    expected = [*range(10, 10 + count)]
    for indices in lost:
        gone = {index for index in indices if index < len(expected)}
        block.reject({index: Reject(Reason.TOKENIZE_FAILED, f"at {index}") for index in sorted(gone, reverse=True)})
        expected = [row for index, row in enumerate(expected) if index not in gone]
        block = travel(block)
        assert block.rows["row"].to_pylist() == expected
        assert block.rows["id"].to_pylist() == [f"a.txt:{row}" for row in expected]
        assert sorted(block.rows["row"].to_pylist() + block.rejects["row"].to_pylist()) == [*range(10, 10 + count)]
    block = travel(block)
    assert block.rows.schema.equals(read_schema(KEEP, pairs=False))
    assert block.rejects.schema.equals(BUNDLE_REJECTS)
    (receipt,) = block.receipts
    assert (receipt.rows_out, sum(receipt.rejected.values())) == (len(expected), count - len(expected))
    assert block.rejects_part().schema.equals(REJECTS)
    assert block.rejects_part()["row"].to_pylist() == sorted({*range(10, 10 + count)} - {*expected})


def test_rejects_name_their_row_their_file_and_their_reason() -> None:
    block = bundle_of(4, read_error="the rest is cut off")
    block.reject({3: Reject(Reason.OUT_OF_MEMORY, "too large"), 1: Reject(Reason.TOKENIZE_FAILED, "bad")})
    assert block.rejects_part().to_pylist() == [
        {"id": "a.txt:11", "file": "/in/a.txt", "row": 11, "reason": "tokenize_failed", "detail": "bad"},
        {"id": "a.txt:13", "file": "/in/a.txt", "row": 13, "reason": "out_of_memory", "detail": "too large"},
        {
            "id": "a.txt",
            "file": "/in/a.txt",
            "row": None,
            "reason": "unreadable_file",
            "detail": "from row 14 on: the rest is cut off",
        },
    ]


def test_a_stage_takes_one_bundle_at_a_time() -> None:
    two = pa.concat_tables([bundle_of(1).to_arrow()] * 2)
    with pytest.raises(AssertionError, match="a stage got 2 bundles at once"):
        Bundle.from_arrow(two)


@pytest.mark.parametrize(("given", "used"), [(None, "false"), ("true", "true")])
def test_a_tokenize_task_uses_one_thread_unless_told_otherwise(
    tokenizer: TokenizerSpec, monkeypatch: pytest.MonkeyPatch, given: str | None, used: str
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "of the test")  # so that it is put back afterwards
    if given is None:
        monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    else:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", given)
    Tokenizer(tokenizer)
    assert os.environ.get("TOKENIZERS_PARALLELISM") == given
    _tokenizer.cache_clear()
    _tokenizer(tokenizer)
    assert os.environ["TOKENIZERS_PARALLELISM"] == used


class Stubborn(Tokenizer):
    """A tokenizer that raises on some texts."""

    def __call__(self, texts: list[str], pairs: list[str] | None = None):  # type: ignore[no-untyped-def]
        if any("RAISE" in text for text in [*texts, *(pairs or [])]):
            raise ValueError("this text cannot be tokenized")
        return super().__call__(texts, pairs)


def test_rows_that_cannot_be_tokenized_are_left_out_and_named(tokenizer: TokenizerSpec) -> None:
    texts = ["the room", "RAISE", "was clean", "the the the the the the the the the"]
    rows = bundle_of(4).rows.set_column(2, "text", pa.array(texts))
    tokenized, lost = tokenize_rows(rows, Stubborn(tokenizer), KEEP)
    assert lost == {1: Reject(Reason.TOKENIZE_FAILED, "ValueError: this text cannot be tokenized")}
    assert tokenized.schema.equals(token_schema(KEEP))
    assert tokenized["row"].to_pylist() == [10, 12, 13]
    assert tokenized["keep.tokens"].to_pylist() == [0, 2, 3]
    assert tokenized["truncated"].to_pylist() == [False, False, True]
    alone = [Tokenizer(tokenizer)([texts[row]]).rows for row in (0, 2, 3)]
    assert tokenized["tokens"].to_pylist() == [row.token_ids.tolist() for row in alone]
    np.testing.assert_array_equal(token_rows(tokenized).lengths, [len(row.token_ids) for row in alone])


def test_a_pair_is_tokenized_as_one_row(tokenizer: TokenizerSpec) -> None:
    rows = bundle_of(3).rows.append_column("pair", pa.array(["was clean", "RAISE", "the"]))
    tokenized, lost = tokenize_rows(rows, Stubborn(tokenizer), KEEP)
    assert [*lost] == [1]
    expected = Tokenizer(tokenizer)(["the room was clean"] * 2, ["was clean", "the"]).rows
    np.testing.assert_array_equal(token_rows(tokenized).token_ids, expected.token_ids)
    np.testing.assert_array_equal(token_rows(tokenized).segments, expected.segments)


@pytest.mark.parametrize("count", [0, 3])
def test_predictions_stand_beside_the_ids_and_kept_columns_of_their_rows(tokenizer: TokenizerSpec, count: int) -> None:
    rows = bundle_of(count).rows
    rows = with_tokens(rows, [Tokenizer(tokenizer)(rows["text"].to_pylist())], KEEP)
    predictions = Predictions(
        logits=np.array([[0, 3], [2, 0], [0, 1]], np.float32)[:count],
        exit_layers=np.array([1, 4, 2], np.int16)[:count],
        uncertainty=np.array([0.1, 0.2, 0.3], np.float32)[:count],
        layer_tokens=1,
        padding_tokens=0,
    )
    made = with_predictions(rows, predictions, ["neg", "pos"], RESULTS, KEEP)
    assert made.schema.equals(output_schema(RESULTS, KEEP))
    assert made["id"].to_pylist() == ["a.txt:10", "a.txt:11", "a.txt:12"][:count]
    assert made["label"].to_pylist() == ["pos", "neg", "pos"][:count]
    assert made["label_id"].to_pylist() == [1, 0, 1][:count]
    assert made["exit_layer"].to_pylist() == [1, 4, 2][:count]
    assert made["tokens"].to_pylist() == [0, 1, 2][:count]
    probabilities = np.array(made["probabilities"].to_pylist()).reshape(count, 2)
    np.testing.assert_allclose(probabilities, predictions.probabilities)
    np.testing.assert_allclose(made["score"].to_numpy(), predictions.scores)


def blocks_of(
    path: Path, tokenizer: TokenizerSpec, part: tuple[int, int] = (0, 1), bundle_rows: int = 32
) -> list[Bundle]:
    """Read and tokenize files as Ray Data would, one bundle a block."""
    pieces = [Piece(file=file, size=file.size) for file in list_inputs(str(path)).files]
    task = pa.table({"item": [encode_task(pieces, {})]})
    tokenize: Callable[..., pa.Table] = partial(_tokenize, spec=tokenizer, keep=KEEP, part=part, output=None)
    return [Bundle.from_arrow(tokenize(block)) for block in _read(task, COLUMNS, bundle_rows, None)]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a file of several shards with a bad row in every five."""
    monkeypatch.setattr("pipeline.corpus.reader.SHARD_ROWS", 16)
    texts = [None if row % 5 == 2 else f"the room {row}" for row in range(70)]
    pq.write_table(pa.table({"text": texts, "tokens": range(70)}), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_good_row_is_one_ranks_whatever_is_rejected(
    corpus: Path, tokenizer: TokenizerSpec, world_size: int
) -> None:
    ranks = [blocks_of(corpus, tokenizer, (rank, world_size)) for rank in range(world_size)]
    assert [[receipt.start for receipt in bundle.receipts] for bundle in ranks[0]] == [[0, 16], [32, 48, 64]]
    for rank, bundles in enumerate(ranks):
        for bundle in bundles:
            tokens = token_rows(bundle.rows)
            for receipt, start in zip(bundle.receipts, bundle.bounds.tolist(), strict=False):
                mine = bundle.rows["row"].slice(start, receipt.rows_out).to_pylist()
                rows = range(receipt.start, receipt.start + receipt.rows_in)
                assert mine == [row for row in rows[rank::world_size] if row % 5 != 2]
                assert receipt.tokens == tokens.lengths[start : start + receipt.rows_out].sum()
    found = [row for bundles in ranks for bundle in bundles for row in bundle.rows["row"].to_pylist()]
    assert sorted(found) == [row for row in range(70) if row % 5 != 2]


def spec_of(folder: Path, tokenizer: TokenizerSpec) -> ClassifySpec:
    return ClassifySpec(
        columns=COLUMNS,
        tokenizer=tokenizer,
        model="m",
        identity=ModelIdentity(weights="0", config="0", tokenizer="0", max_tokens=64),
        precision="fp32",
        config=SimpleNamespace(),
        engine=EngineConfig(),
        output=Output(str(folder)),
        results=("id", "truncated"),
    )


def with_results(bundle: Bundle, spec: ClassifySpec) -> Bundle:
    """Put some of its columns in place of predictions."""
    schema = output_schema(spec.results, KEEP)
    bundle.rows = bundle.rows.select([*spec.results, "keep.tokens"]).rename_columns(schema.names).cast(schema)
    return bundle


def test_what_is_written_adds_up_to_what_was_read(corpus: Path, tokenizer: TokenizerSpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "_rejects").mkdir(parents=True)
    spec = spec_of(out, tokenizer)
    for bundle in blocks_of(corpus, tokenizer):
        written = _write(with_results(bundle, spec).to_arrow(), spec)
        for receipt in decode_receipts(written["receipts"][0].as_py()):
            assert receipt.rows_in == receipt.rows_out + receipt.rejected["null_text"]
            part = pq.read_table(out / receipt.part, schema=output_schema(spec.results, KEEP))
            rejects = pq.read_table(out / str(receipt.rejects_part), schema=REJECTS)
            rows = part["tokens"].slice(receipt.part_row, receipt.rows_out).to_pylist()
            rows += rejects["row"].slice(receipt.rejects_row, receipt.rejects).to_pylist()
            assert sorted(rows) == [*range(receipt.start, receipt.start + receipt.rows_in)]
    assert len(list(out.glob("part-*"))) == len(list(out.glob("_rejects/part-*"))) == 2
    assert len(pq.read_table(out, schema=output_schema(spec.results, KEEP))) == 56


def test_files_of_the_same_content_have_parts_of_their_own(tokenizer: TokenizerSpec, tmp_path: Path) -> None:
    """With ids out of a column, two such files give the same rows; each of them counts."""
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    (out / "_rejects").mkdir(parents=True)
    for name in ("a", "b"):
        pq.write_table(pa.table({"text": ["the room"], "tokens": [1]}), tmp_path / "in" / f"{name}.parquet")
    spec = replace(spec_of(out, tokenizer), results=("truncated",))
    parts = set()
    for bundle in blocks_of(tmp_path / "in", tokenizer, bundle_rows=1):
        written = _write(with_results(bundle, spec).to_arrow(), spec)
        parts |= {receipt.part for receipt in decode_receipts(written["receipts"][0].as_py())}
    assert len(parts) == len(list(out.glob("part-*"))) == 2


@pytest.mark.parametrize("what", ["rows", "rejects"])
def test_a_bundle_that_lost_a_row_is_not_taken_for_done(
    what: str, corpus: Path, tokenizer: TokenizerSpec, tmp_path: Path
) -> None:
    (tmp_path / "out" / "_rejects").mkdir(parents=True)
    spec = spec_of(tmp_path / "out", tokenizer)
    bundle = with_results(blocks_of(corpus, tokenizer)[0], spec)
    setattr(bundle, what, getattr(bundle, what).slice(1))
    with pytest.raises(AssertionError, match="lost rows"):
        _write(bundle.to_arrow(), spec)


@given(counts=st.lists(st.integers(1, 24), max_size=40), rows=st.integers(24, 60))
def test_shards_are_gathered_in_order_into_bundles_that_are_neither_tiny_nor_huge(
    counts: list[int], rows: int, shard: Shard
) -> None:
    shards = [replace(shard, start=number, rows=pa.table({"x": range(count)})) for number, count in enumerate(counts)]
    bundles = list(gather(shards, rows))
    assert [held.start for bundle in bundles for held in bundle] == [*range(len(counts))]
    sizes = [sum(map(len, bundle)) for bundle in bundles]
    assert all(rows * 5 / 8 <= size < rows * 13 / 8 for size in sizes[:-1])
    if len(sizes) > 1 and max(counts) <= rows / 4:
        assert sizes[-1] >= rows / 2


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    path = tmp_path_factory.mktemp("shard") / "a.txt"
    path.write_text("")
    (file,) = list_inputs(str(path)).files
    (shard,) = read_shards(file, Columns(text="text"))
    return shard


def test_a_bundle_is_bounded_in_bytes(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.bulk.bundle.BUNDLE_BYTES", 100)
    sizes = [30, 60, 20, 200, 10, 90]
    shards = [replace(shard, rows=pa.table({"x": pa.array([0] * size, pa.int8())})) for size in sizes]
    bundles = [[len(held) for held in bundle] for bundle in gather(shards, 1000)]
    assert bundles == [[30, 60], [20], [200], [10, 90]]


def test_what_a_stage_took_is_shared_out_by_rows() -> None:
    bundle = bundle_of(30)
    (first,) = bundle.receipts
    bundle.receipts = [replace(first, rows_in=10), replace(first, rows_in=20)]
    with bundle.stage("classify"):
        pass
    for name in ("seconds", "cpu_seconds", "waits"):
        taken = [getattr(receipt, name)["classify"] for receipt in bundle.receipts]
        assert taken[1] == pytest.approx(2 * taken[0], abs=2e-6)
    assert sum(receipt.waits["classify"] for receipt in bundle.receipts) > 1e9  # since the epoch, when it was sent
    assert bundle.sent > 1e9
