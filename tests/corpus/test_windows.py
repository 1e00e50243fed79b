"""Windows of long texts are those of transformers: `tokenizer(..., stride=, return_overflowing_tokens=True)`."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.encoders import ENCODED_CHARACTERS, ENCODINGS, parts_of
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.errors import InputError
from pipeline.windows import LongTexts
from tests.support.tokenizers import PIECES, TOKENIZERS

Cut = tuple[list[list[list[int]]], list[bool]]
"""The windows of each text, and whether it is truncated."""


def cut_by_transformers(name: str, texts: list[str], max_tokens: int, long_texts: LongTexts, side: str) -> Cut:
    theirs = TOKENIZERS[name]
    theirs.truncation_side = side
    stride = long_texts.stride or 0
    made = theirs(texts, truncation=True, max_length=max_tokens, stride=stride, return_overflowing_tokens=True)
    theirs.truncation_side = "right"
    windows: list[list[list[int]]] = [[] for _ in texts]
    for ids, text in zip(made["input_ids"], made["overflow_to_sample_mapping"], strict=True):
        windows[text].append(ids)
    return [rows[: long_texts.most] for rows in windows], [len(rows) > long_texts.most for rows in windows]


def cut_here(name: str, texts: list[str], max_tokens: int, long_texts: LongTexts, side: str) -> Cut:
    theirs = TOKENIZERS[name]
    theirs.truncation_side = side
    spec = TokenizerSpec.from_hugging_face(theirs, max_tokens).with_windows(long_texts)
    theirs.truncation_side = "right"
    made = Tokenizer(spec)(texts)
    assert made.windows is not None
    assert (made.rows.segments == made.rows.lengths).all()
    rows = [ids.tolist() for ids in np.split(made.rows.token_ids, made.rows.offsets[1:-1])]
    ends = np.cumsum(made.windows).tolist()
    windows = [rows[end - count : end] for end, count in zip(ends, made.windows.tolist(), strict=True)]
    return windows, made.truncated.tolist()


@pytest.mark.filterwarnings("ignore:.*longer than the specified maximum.*")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_windows_are_those_of_transformers(name: str, side: str) -> None:
    maker = random.Random(5)
    texts = ["".join(maker.choices(PIECES, k=maker.choice([1, 5, 40, 400]))) for _ in range(80)]
    seen = 0
    for stride, most in ((0, 256), (5, 256), (11, 3), (10, 1)):
        long_texts = LongTexts(stride=stride, most=most)
        got = cut_here(name, texts, 24, long_texts, side)
        assert got == cut_by_transformers(name, texts, 24, long_texts, side)
        seen += sum(len(windows) for windows in got[0])
        if most == 1:  # what truncation keeps
            plain = TOKENIZERS[name]
            plain.truncation_side = side
            assert [windows[0] for windows in got[0]] == plain(texts, truncation=True, max_length=24)["input_ids"]
            plain.truncation_side = "right"
    assert seen > 1500


@given(
    st.text(max_size=400),
    st.sampled_from(sorted(TOKENIZERS)),
    st.integers(0, 4),
    st.integers(1, 9),
    st.sampled_from(["left", "right"]),
)
def test_any_text_is_cut_as_by_transformers(text: str, name: str, stride: int, most: int, side: str) -> None:
    long_texts = LongTexts(stride=stride, most=most)
    assert cut_here(name, [text], 10, long_texts, side) == cut_by_transformers(name, [text], 10, long_texts, side)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_megabyte_costs_what_its_windows_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long_texts = LongTexts(stride=10, most=5)
    spec = TokenizerSpec.from_hugging_face(TOKENIZERS[name], 64).with_windows(long_texts)
    text = "the room was clean and the staff was kind . " * 23_000
    (prefix,) = Tokenizer(spec)._shorten([text])
    assert len(prefix) < 5 * 64 * 8 * 4
    got = cut_here(name, [text, "a"], 64, long_texts, "right")
    assert got == cut_by_transformers(name, [text[: len(prefix) * 2], "a"], 64, long_texts, "right")
    assert [len(windows) for windows in got[0]] == [5, 1]


def test_windows_are_counted_as_by_hand() -> None:
    long_texts = LongTexts(stride=4)
    assert long_texts.windows_in(np.array([0, 10, 11, 16, 17]), 10).tolist() == [1, 1, 2, 2, 3]
    assert long_texts.needed(10) == 10 + 255 * 6
    assert LongTexts().shared(510) == 127
    assert LongTexts(stride=128).describe() == "windows, 128 tokens shared, 256 at most, mean"
    certain = LongTexts(combine="first-certain", stride=1, most=2, certain=0.25)
    assert certain.describe() == "windows, 1 tokens shared, 2 at most, first-certain up to 0.25"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stride": -1}, "window_stride must be at least 0, not -1"),
        ({"most": 0}, "max_windows must be at least 1, not 0"),
        ({"combine": "median"}, "window_combine must be one of mean, max, first-certain, not 'median'"),
        ({"certain": 1.5}, r"window_certain must be in \[0, 1\], not 1.5"),
        ({"stride": 12}, "window_stride 12: windows have 22 tokens of a text, and share half of them at most"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, int], message: str) -> None:
    spec = TokenizerSpec.from_hugging_face(TOKENIZERS["wordpiece"], 24)
    with pytest.raises(InputError, match=f"^{message}$"):
        spec.with_windows(LongTexts(**values))  # type: ignore[arg-type]


def test_pairs_are_refused_and_windows_change_no_digest_of_the_tokenizer() -> None:
    spec = TokenizerSpec.from_hugging_face(TOKENIZERS["wordpiece"], 24)
    windows = spec.with_windows(LongTexts())
    assert windows.digest == spec.digest
    assert windows == replace(spec, long_texts=LongTexts(stride=22 // 4))
    with pytest.raises(InputError, match="long_texts windows are made of single texts, and these are pairs"):
        Tokenizer(windows)(["a"], ["b"])


@given(st.lists(st.sampled_from([0, 1, 7, ENCODED_CHARACTERS // 2, ENCODED_CHARACTERS + 1]), max_size=12))
def test_texts_are_encoded_some_at_a_time_in_order(sizes: list[int]) -> None:
    texts = ["x" * size for size in sizes]
    parts = list(parts_of(texts))
    assert [text for part in parts for text in part] == texts
    assert all(len(part) == 1 or sum(map(len, part)) <= ENCODED_CHARACTERS for part in parts)
    assert [len(part) for part in parts_of(["a"] * (2 * ENCODINGS + 1))] == [ENCODINGS, ENCODINGS, 1]
