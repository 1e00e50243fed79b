"""Text -> ragged token ids. No padding, no torch; the work is done in Rust by `tokenizers`, on all cores.

A long text costs only what is kept of it. It is cut to a window, and the window's tokens are taken when they provably
equal those of the whole text: tokenizers split a text into words first (left to right, looking a character or two ahead)
and then handle every word by itself, so all tokens before the window's last few words cannot depend on what was cut off.
If the kept tokens are not all of that kind, the window grows, in the end to the whole text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from pipeline.rows import TokenRows

WINDOW_CHARACTERS_PER_TOKEN = 8
"""First window: English WordPiece has 4 to 5 characters a token; twice that makes a second look rare."""
WORDS_AT_THE_CUT = 2
"""Words that may look different in the whole text: the one cut through, and one of white space before it."""
PROBE = "a"


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """All that a worker needs to tokenize: plain values, cheap to send and to compare."""

    tokenizer_json: str
    """The fast tokenizer, serialized."""
    max_tokens: int
    """Tokens kept of a row, special tokens included; more are cut off and the row is marked as truncated."""
    segments: bool
    """Whether the model is told which text of a pair a token belongs to."""
    cut_left: bool = False
    """The tokenizer drops the start of a long text, not its end."""

    @classmethod
    def from_hugging_face(cls, tokenizer: Any, max_tokens: int) -> "TokenizerSpec":
        """Take a transformers tokenizer; raise ValueError if it is not a fast one or `max_tokens` leaves no room for text."""
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; save the model with a tokenizer.json"
            )
        if max_tokens <= tokenizer.num_special_tokens_to_add(pair=True):
            raise ValueError(f"max tokens {max_tokens} leaves no room for text between the special tokens")
        return cls(
            tokenizer_json=tokenizer.backend_tokenizer.to_str(),
            max_tokens=max_tokens,
            segments="token_type_ids" in tokenizer.model_input_names,
            cut_left=tokenizer.truncation_side == "left",
        )


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Token rows and which of them lost text."""

    rows: TokenRows
    truncated: npt.NDArray[np.bool_]
    """[B]."""


class Tokenizer:
    """Tokenizes texts or pairs exactly as transformers does with truncation to `max_tokens` and no padding.

    Truncation is done here: that of `tokenizers` also builds every overflowing piece, for pairs every combination of them.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        self._tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(spec.tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = self._tokenizer.get_added_tokens_decoder().values()
        # A special token typed into a text and cut through falls into words too, at most one a character.
        self._unsettled_words = WORDS_AT_THE_CUT + max((len(token.content) for token in added), default=0)
        self._single, self._pair = self._template(None), self._template(PROBE)

    def __call__(self, texts: list[str], pairs: list[str] | None = None) -> Tokenized:
        """Tokenize rows; `pairs` are their second texts."""
        firsts = self._encode(texts)
        if pairs is None:
            return self._collect([self._assemble_single(ids) for ids in firsts])
        seconds = self._encode(pairs)
        for row in range(len(texts)):
            if self._order_unknown(firsts[row], seconds[row]):
                firsts[row], seconds[row] = self._encode_whole([texts[row], pairs[row]])
        return self._collect([self._assemble_pair(a, b) for a, b in zip(firsts, seconds, strict=True)])

    def _encode(self, texts: list[str]) -> list["_Ids"]:
        if self.spec.cut_left:
            return self._encode_whole(texts)
        prefixes = self._shorten(texts)
        encodings = self._tokenizer.encode_batch_fast(prefixes, add_special_tokens=False)
        return [
            _Ids(encoding.ids, whole=len(prefix) == len(text))
            for encoding, prefix, text in zip(encodings, prefixes, texts, strict=True)
        ]

    def _encode_whole(self, texts: list[str]) -> list["_Ids"]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [_Ids(encoding.ids, whole=True) for encoding in encodings]

    def _order_unknown(self, first: "_Ids", second: "_Ids") -> bool:
        """Both overflow and one was cut: which one gets the odd token depends on which is longer as a whole."""
        limit = self.spec.max_tokens
        return not (first.whole and second.whole) and len(first.ids) > limit and len(second.ids) > limit

    def _assemble_single(self, text: "_Ids") -> tuple[list[int], int, bool]:
        before, after = self._single.before, self._single.after
        room = self.spec.max_tokens - len(before) - len(after)
        ids = before + self._cut(text.ids, room) + after
        return ids, len(ids), len(text.ids) > room

    def _assemble_pair(self, first: "_Ids", second: "_Ids") -> tuple[list[int], int, bool]:
        before, between, after = self._pair.before, self._pair.between, self._pair.after
        room = self.spec.max_tokens - len(before) - len(between) - len(after)
        keep_first, keep_second = longest_first(len(first.ids), len(second.ids), room)
        a, b = self._cut(first.ids, keep_first), self._cut(second.ids, keep_second)
        ids = before + a + between + b + after
        segment = len(a) + self._pair.zeros if self.spec.segments else len(ids)
        return ids, segment, len(first.ids) + len(second.ids) > room

    def _cut(self, ids: list[int], keep: int) -> list[int]:
        return ids[max(len(ids) - keep, 0) :] if self.spec.cut_left else ids[:keep]

    def _collect(self, assembled: list[tuple[list[int], int, bool]]) -> Tokenized:
        rows = TokenRows.from_lists([ids for ids, _, _ in assembled], [segment for _, segment, _ in assembled])
        return Tokenized(rows=rows, truncated=np.array([cut for _, _, cut in assembled], np.bool_))

    def _shorten(self, texts: list[str]) -> list[str]:
        """Replace every long text by a prefix that gives the same kept tokens, and one more."""
        window = self.spec.max_tokens * WINDOW_CHARACTERS_PER_TOKEN
        return [text if len(text) <= window else self._settled_prefix(text, window) for text in texts]

    def _settled_prefix(self, text: str, window: int) -> str:
        while window < len(text):
            prefix = text[:window]
            words = self._tokenizer.encode(prefix, add_special_tokens=False).word_ids
            # One token more than is ever kept must be settled, so that truncation is seen as well.
            if len(words) > self.spec.max_tokens:
                last, kept = words[-1], words[self.spec.max_tokens]
                if last is not None and kept is not None and kept <= last - self._unsettled_words:
                    return prefix
            window *= 4
        return text

    def _template(self, pair: str | None) -> "_Template":
        """See, on a probe, which special tokens this tokenizer puts before, between and after texts."""
        content = self._tokenizer.encode(PROBE, add_special_tokens=False).ids
        whole = self._tokenizer.encode(PROBE, pair)
        ids, width = whole.ids, len(content)
        starts = [i for i in range(len(ids) - width + 1) if ids[i : i + width] == content]
        if not starts or len(starts) != 1 + (pair is not None):
            raise ValueError("the tokenizer adds special tokens in a way that offramp does not understand")
        first, last = starts[0], starts[-1]
        return _Template(
            before=ids[:first],
            between=ids[first + width : last],
            after=ids[last + width :],
            zeros=whole.type_ids.count(0) - width,
        )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of a pair's texts stay within `room`: the longer one is cut first, as in `tokenizers`."""
    if first + second <= room:
        return first, second
    short, swap = min(first, second), first > second
    long = max(short, room - short)
    if short > room or short + long > room:
        short = room // 2
        long = short + room % 2
    return (long, short) if swap else (short, long)


@dataclass(frozen=True, slots=True)
class _Ids:
    """Tokens of one text without special tokens; if not `whole`, of a settled prefix."""

    ids: list[int]
    whole: bool


@dataclass(frozen=True, slots=True)
class _Template:
    """Special tokens around texts; `zeros` of them belong to the first segment of a pair."""

    before: list[int]
    between: list[int]
    after: list[int]
    zeros: int
