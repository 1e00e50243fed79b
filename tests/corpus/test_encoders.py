"""The fast encoder's ids are those of `tokenizers`, and where they are not, those of `tokenizers` are used."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from pipeline.corpus.encoders import (
    CHECK_EVERY,
    CheckedEncoder,
    HuggingFaceEncoder,
    NanotokenEncoder,
    encoder_of,
    plain_tokenizer,
)
from pipeline.corpus.probes import probe_texts
from pipeline.corpus.ragged import Ragged
from pipeline.corpus.tokenize import Tokenized, Tokenizer, TokenizerSpec
from pipeline.errors import InputError, MissingPackageError
from tests.support.tokenizers import PIECES, TOKENIZERS

pytest.importorskip("nanotoken")


def spec_of(kind: str, max_tokens: int, side: str = "right") -> TokenizerSpec:
    """Return the spec of a tokenizer by a name of TOKENIZERS, or of the WordPiece one with another normalizer."""
    plain = TokenizerSpec.from_hugging_face(TOKENIZERS["wordpiece" if kind == "cased" else kind], max_tokens)
    spec = replace(plain, cut_left=side == "left")
    if kind != "cased":
        return spec
    tokenizer = plain_tokenizer(spec.tokenizer_json)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False, handle_chinese_chars=False)
    tokenizer.add_special_tokens([AddedToken("<user name>", lstrip=True, special=True)])
    return replace(spec, tokenizer_json=tokenizer.to_str())


SPECS = {
    (kind, max_tokens, side): spec_of(kind, max_tokens, side)
    for kind in ("wordpiece", "cased")
    for max_tokens in (9, 24)
    for side in ("left", "right")
}
FAST = {key: Tokenizer(spec.with_fast_tokenizer()) for key, spec in SPECS.items()}
SLOW = {key: Tokenizer(spec) for key, spec in SPECS.items()}

texts = st.text(max_size=60) | st.lists(st.sampled_from([*PIECES, "<user name>", " [CLS]"]) | st.characters()).map(
    "".join
)


def assert_equal(fast: Tokenized, slow: Tokenized) -> None:
    for name in ("token_ids", "offsets", "segments"):
        np.testing.assert_array_equal(getattr(fast.rows, name), getattr(slow.rows, name))
        assert getattr(fast.rows, name).dtype == getattr(slow.rows, name).dtype
    np.testing.assert_array_equal(fast.truncated, slow.truncated)


def assert_still_fast(capsys: pytest.CaptureFixture[str]) -> None:
    """See that no tokenizer has fallen back since it was made."""
    assert "goes on in its place" not in capsys.readouterr().err
    for tokenizer in FAST.values():
        assert tokenizer._encoder.whole_windows == NanotokenEncoder.whole_windows


@given(rows=st.lists(st.tuples(texts, texts), max_size=8), key=st.sampled_from(sorted(SPECS)))
def test_single_texts_and_pairs_are_tokenized_alike(rows: list[tuple[str, str]], key: tuple[str, int, str]) -> None:
    first, second = [a for a, _ in rows], [b for _, b in rows]
    assert_equal(FAST[key](first), SLOW[key](first))
    assert_equal(FAST[key](first, second), SLOW[key](first, second))
    assert FAST[key]._encoder.whole_windows == NanotokenEncoder.whole_windows


@pytest.mark.parametrize("key", sorted(SPECS), ids=lambda key: "-".join(map(str, key)))
def test_long_texts_are_tokenized_alike(key: tuple[str, int, str], capsys: pytest.CaptureFixture[str]) -> None:
    window = "the room was clean , not ".ljust(40)
    long = [window * count for count in (1, 20, 60)] + ["中" * 3000, "x" * 3000, " " * 3000, "[SEP]" * 600]
    assert_equal(FAST[key](long), SLOW[key](long))
    assert_equal(FAST[key](long, long[::-1]), SLOW[key](long, long[::-1]))
    assert_still_fast(capsys)


@pytest.mark.parametrize("text", ["the room was clean . ", "中文", "a", "e\u0301 "])
def test_a_megabyte_is_tokenized_alike(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    megabyte = text * (1_000_000 // len(text.encode()))
    for key in (("wordpiece", 24, "right"), ("wordpiece", 24, "left")):
        assert_equal(FAST[key]([megabyte], ["the"]), SLOW[key]([megabyte], ["the"]))
    assert_still_fast(capsys)


def test_a_megabyte_costs_some_windows() -> None:
    tokenizer = FAST["wordpiece", 24, "right"]
    (prefix,) = tokenizer._shorten(["the room was clean . " * 50_000])
    assert len(prefix) == 24 * 8


def test_probes_hold_what_tokenizers_differ_on() -> None:
    probes = "".join(probe_texts(plain_tokenizer(SPECS["cased", 24, "right"].tokenizer_json)))
    for what in ("\u0301", "\x00", "中", "👍🏽", "[MASK]", "<user name>", "İ", "ﬁ", "w" * 101):
        assert what in probes


class Differing(NanotokenEncoder):
    """nanotoken with a planted difference: if `wrong`, the first id of every text with an "x" is another one."""

    wrong = False
    calls = 0

    def encode(self, texts: Sequence[str]) -> Ragged:
        self.calls += 1
        tokens = super().encode(texts)
        ids, starts = tokens.ids.copy(), np.cumsum(tokens.lengths) - tokens.lengths
        if self.wrong:
            ids[[start for start, text in zip(starts, texts, strict=True) if "x" in text]] += 1
        return Ragged(ids=ids, lengths=tokens.lengths)


class Failing(NanotokenEncoder):
    """nanotoken that fails on some texts."""

    def encode(self, texts: Sequence[str]) -> Ragged:
        if "panic" in texts:
            raise RuntimeError("index out\nof bounds")
        return super().encode(texts)


def test_a_difference_in_the_sample_ends_it_for_good(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = plain_tokenizer(SPECS["wordpiece", 24, "right"].tokenizer_json)
    reference = HuggingFaceEncoder(tokenizer)
    fast = Differing(tokenizer)
    encoder = CheckedEncoder(fast, reference)
    batch = ["x clean room"] * 5
    wanted = reference.encode(batch)
    assert encoder.encode(batch) == wanted
    assert capsys.readouterr().err == ""
    fast.wrong = True
    assert fast.encode(batch) != wanted
    for _ in range(2):
        assert encoder.encode(batch) == wanted
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nanotoken ")
    assert " gives other ids than tokenizers " in line
    assert line.endswith(" goes on in its place")
    assert fast.calls == 4  # for the probes, twice for the encoder, and here
    assert encoder.whole_windows == 1


def test_a_rare_difference_is_found_sooner_or_later(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = plain_tokenizer(SPECS["wordpiece", 24, "right"].tokenizer_json)
    fast = Differing(tokenizer)
    fast.wrong = True
    encoder = CheckedEncoder(fast, HuggingFaceEncoder(tokenizer))
    batch = ["clean"] * (2 * CHECK_EVERY - 1)
    for row in range(0, len(batch), 40):
        batch[row] = "x"
    batches = 0
    while not capsys.readouterr().err:
        encoder.encode(batch)
        batches += 1
    assert 1 < batches < 200  # two rows of each are looked at, and one in forty differs


def test_a_failure_ends_it_for_good_too(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = plain_tokenizer(SPECS["wordpiece", 24, "right"].tokenizer_json)
    reference = HuggingFaceEncoder(tokenizer)
    encoder = CheckedEncoder(Failing(tokenizer), reference)
    assert encoder.encode(["the", "panic"]) == reference.encode(["the", "panic"])
    assert " fails (RuntimeError: index out of bounds); tokenizers " in capsys.readouterr().err
    assert encoder.whole_windows == 1


def test_an_encoder_that_fails_on_probes_is_refused() -> None:
    class Wrong(Differing):
        wrong = True

    with pytest.raises(
        InputError, match=r"fast_tokenizer nanotoken .+ gives other ids than tokenizers .+; run without"
    ):
        Wrong(plain_tokenizer(SPECS["wordpiece", 24, "right"].tokenizer_json))


@pytest.mark.parametrize(("kind", "model"), [("byte-level", "BPE"), ("unigram", "Unigram")])
def test_other_models_are_refused_by_name(kind: str, model: str) -> None:
    with pytest.raises(InputError, match=f"is for WordPiece, and this model's is {model}; run without the option"):
        spec_of(kind, 24).with_fast_tokenizer()


def test_what_nanotoken_cannot_read_is_refused() -> None:
    tokenizer = plain_tokenizer(spec_of("wordpiece", 24).tokenizer_json)
    tokenizer.normalizer = normalizers.Replace("a", "b")
    with pytest.raises(InputError, match=r"nanotoken .+: unsupported tokenizer: .*Replace.*; run without the option"):
        replace(spec_of("wordpiece", 24), tokenizer_json=tokenizer.to_str()).with_fast_tokenizer()


def test_a_machine_without_the_library_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "nanotoken", raising=False)
    monkeypatch.setattr(sys, "path", [])
    sys.path_importer_cache.clear()
    spec = spec_of("wordpiece", 24)
    with pytest.raises(
        MissingPackageError, match=r"nanotoken is not installed: pip install 'offramp\[fast-tokenizer\]'"
    ):
        spec.with_fast_tokenizer()
    encoder = encoder_of(plain_tokenizer(spec.tokenizer_json), "nanotoken 0.1.0")
    assert isinstance(encoder, HuggingFaceEncoder)
    assert capsys.readouterr().err.startswith("nanotoken is not installed: ")


def test_a_machine_with_another_version_goes_on_with_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    encoder = encoder_of(plain_tokenizer(spec_of("wordpiece", 24).tokenizer_json), "nanotoken 0.0.1")
    assert isinstance(encoder, HuggingFaceEncoder)
    line = capsys.readouterr().err
    assert "on this machine, and was nanotoken 0.0.1 where the run began; tokenizers " in line
