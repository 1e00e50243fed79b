"""Real text, where a folder of data sets lies beside the checkout; skipped elsewhere."""

import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import read_shards
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from tests.support.jobs import SHARED_DATA

pytestmark = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no folder of data sets beside the checkout")


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("trec/test.parquet", Columns(text="text", id="id")),
        ("stsb/test.parquet", Columns(text="text", pair="text_pair", id="id")),
        ("chnsenticorp/test.parquet", Columns(text="text", id="id")),
        ("unlabeled_movie/part-00005.parquet", Columns(text="text", id="id")),
    ],
)
def test_every_real_row_is_read_once_and_tokenized_as_by_transformers(
    name: str, columns: Columns, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = SHARED_DATA / name
    (file,) = list_inputs(str(path)).files
    shards = list(read_shards(file, columns))
    ids = [row for shard in shards for row in shard.rows["id"].to_pylist()]
    wanted = pd.read_parquet(path)
    assert ids == wanted.id.tolist()
    assert all(len(shard.rejects) == 0 for shard in shards)
    tokenizer = Tokenizer(TokenizerSpec.from_hugging_face(review_tokenizer, 48))
    sample = wanted.head(300)
    pairs = sample.text_pair.tolist() if columns.pair else None
    ours = tokenizer(sample.text.tolist(), pairs).rows
    theirs = review_tokenizer(sample.text.tolist(), pairs, truncation=True, max_length=48)["input_ids"]
    assert [ours.token_ids[a:b].tolist() for a, b in zip(ours.offsets, ours.offsets[1:], strict=False)] == theirs
