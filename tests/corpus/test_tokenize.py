"""Our tokens are those of transformers, however long the text and whatever the tokenizer."""

import random
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from pipeline.corpus.tokenize import WINDOW_CHARACTERS_PER_TOKEN, Tokenizer, TokenizerSpec, longest_first
from pipeline.errors import InputError
from tests.support.tokenizers import PIECES, TOKENIZERS


def assert_equal_to_transformers(
    name: str, max_tokens: int, texts: list[str], pairs: list[str] | None, side: str = "right"
) -> int:
    """Compare ids, segments and truncation; return how many rows were truncated."""
    theirs = TOKENIZERS[name]
    theirs.truncation_side = side
    ours = Tokenizer(TokenizerSpec.from_hugging_face(theirs, max_tokens))(texts, pairs)
    wanted = theirs(texts, pairs, truncation=True, max_length=max_tokens)
    whole = theirs(texts, pairs)
    for row in range(len(texts)):
        ids = ours.rows.token_ids[ours.rows.offsets[row] : ours.rows.offsets[row + 1]].tolist()
        assert ids == wanted["input_ids"][row]
        assert ours.truncated[row] == (len(whole["input_ids"][row]) > max_tokens)
        if "token_type_ids" in wanted:
            types = [int(index >= ours.rows.segments[row]) for index in range(len(ids))]
            assert types == wanted["token_type_ids"][row]
    theirs.truncation_side = "right"
    return int(ours.truncated.sum())


@pytest.mark.filterwarnings("ignore:.*longer than the specified maximum.*")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_single_texts_equal_transformers(name: str, side: str) -> None:
    maker = random.Random(7)
    texts = ["".join(maker.choices(PIECES, k=maker.choice([1, 5, 30, 400]))) for _ in range(150)]
    assert assert_equal_to_transformers(name, 24, texts, None, side) > 40


# transformers itself builds every combination of a pair's overflowing pieces, so its reference is kept to short texts.
@pytest.mark.parametrize(("max_tokens", "side"), [(23, "right"), (24, "right"), (23, "left")])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_pairs_equal_transformers(name: str, max_tokens: int, side: str) -> None:
    maker = random.Random(8)
    texts = ["".join(maker.choices(PIECES, k=maker.choice([1, 4, 9, 60]))) for _ in range(120)]
    pairs = ["".join(maker.choices(PIECES, k=maker.choice([1, 4, 9, 60]))) for _ in range(120)]
    assert assert_equal_to_transformers(name, max_tokens, texts, pairs, side) > 30


@given(st.text(max_size=300), st.sampled_from(sorted(TOKENIZERS)))
def test_any_text_equals_transformers(text: str, name: str) -> None:
    assert_equal_to_transformers(name, 10, [text], None)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_megabyte_costs_a_window(name: str) -> None:
    tokenizer = Tokenizer(TokenizerSpec.from_hugging_face(TOKENIZERS[name], 64))
    text = "the room was clean and the staff was kind . " * 23_000
    assert len(text) > 1_000_000
    (window,) = tokenizer._shorten([text])
    assert len(window) == 64 * WINDOW_CHARACTERS_PER_TOKEN
    assert tokenizer([text]).truncated.tolist() == [True]


def test_a_megabyte_without_a_space_is_still_exact() -> None:
    texts = ["a" * 1_000_000, "中" * 1_000_000]
    assert assert_equal_to_transformers("wordpiece", 64, texts, None) == 1  # the first is one unknown word


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 30))
def test_longest_first_keeps_all_that_fits(first: int, second: int, room: int) -> None:
    (a,), (b,) = longest_first(np.array([first]), np.array([second]), room)
    assert a <= first
    assert b <= second
    assert a + b == min(first + second, room)


def test_a_budget_without_room_for_text_is_refused() -> None:
    with pytest.raises(ValueError, match="max tokens 3 leaves no room"):
        TokenizerSpec.from_hugging_face(TOKENIZERS["wordpiece"], 3)


def with_template(pair: str, **options: Any) -> PreTrainedTokenizerFast:
    """Make a WordPiece tokenizer of BERT's kind that joins the texts of a pair in this way."""
    made = tokenizers.Tokenizer.from_str(TOKENIZERS["wordpiece"].backend_tokenizer.to_str())
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **names, **options)


TEMPLATES = {
    "BERT's": "[CLS] $A [SEP] $B:1 [SEP]:1",
    "the separator with the second text": "[CLS] $A [SEP]:1 $B:1 [SEP]:1",
    "one type for all": "[CLS] $A [SEP] $B [SEP]",
}


@pytest.mark.parametrize("what", TEMPLATES)
def test_types_of_tokens_are_those_of_transformers(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENIZERS, what, with_template(TEMPLATES[what]))
    assert_equal_to_transformers(
        what, 12, ["the room", "clean and kind", "a"] * 5, ["a bed", "the staff was kind"] * 7 + ["a"]
    )


@pytest.mark.parametrize(
    "pair", ["[CLS] $A [SEP] $B:2 [SEP]:2", "[CLS]:1 $A [SEP] $B:1 [SEP]:1", "[CLS] $A [SEP] $B [SEP]:1"]
)
def test_types_that_offramp_does_not_follow_are_refused(pair: str) -> None:
    with pytest.raises(ValueError, match="gives tokens types in a way that offramp does not understand"):
        TokenizerSpec.from_hugging_face(with_template(pair), 12)


def test_special_tokens_in_a_text_are_split_where_the_tokenizer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is in tokenizer_config.json, and not in the tokenizer.json that is sent to workers."""
    texts = ["a [SEP] room", "[CLS][MASK]", "plain"]
    rows = []
    for split in (False, True):
        theirs = with_template(TEMPLATES["BERT's"], split_special_tokens=split)
        monkeypatch.setitem(TOKENIZERS, "split", theirs)
        assert_equal_to_transformers("split", 12, texts, None)
        spec = TokenizerSpec.from_hugging_face(theirs, 12)
        rows.append(Tokenizer(spec)(texts).rows.token_ids.tolist())
        assert spec.split_special is split
    assert rows[0] != rows[1]
    with pytest.raises(InputError, match="this model's tokenizer splits them"):
        spec.with_fast_tokenizer()
