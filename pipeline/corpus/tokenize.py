"""Convert texts to ragged token ids, without padding and without torch; an encoder does the work, outside of Python.

A long text costs only what is kept of it. It is cut to a window, and the window's tokens are used if they provably equal those
of the whole text: a tokenizer first splits a text into words (left to right, with a look-ahead of a character or two) and then
tokenizes every word by itself, so the tokens before the window's last few words cannot depend on what was cut off. If not all
kept tokens lie before those words, the window grows, if need be to the whole text.

Those windows are of characters, and a matter of this module. With `LongTexts`, a text that does not fit becomes several rows,
windows of its tokens, cut where transformers cuts them with `stride` and `return_overflowing_tokens`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.directory.digest import document_hash
from pipeline.corpus.encoders import NanotokenEncoder, encoder_of, parts_of, plain_tokenizer
from pipeline.corpus.ragged import Ragged, repeated, side_by_side
from pipeline.errors import InputError
from pipeline.rows import IntArray, TokenRows, offsets_of
from pipeline.windows import LongTexts

BoolArray = npt.NDArray[np.bool_]

WINDOW_CHARACTERS_PER_TOKEN = 8
"""Size of the first window: English WordPiece has 4 to 5 characters a token, so that twice that rarely has to grow."""
WINDOW_GROWTH = 4
"""Factor by which a window grows whose tokens do not suffice."""
UNSETTLED_WORDS = 2
"""Last words of a window that may differ in the whole text: the one that was cut, and white space before it."""
PROBE = "a"
"""Text that shows where a tokenizer puts its special tokens."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """Everything that a worker needs to build a Tokenizer: plain values, cheap to send and to compare."""

    tokenizer_json: str
    """The fast tokenizer, serialized by `tokenizers` to the content of a tokenizer.json."""
    max_tokens: int
    """Most tokens of a row, special tokens included; further ones are cut off, and the row counts as truncated."""
    segments: bool
    """Whether the model has token types, which distinguish the two texts of a pair."""
    cut_left: bool = False
    """Whether truncation drops the start of a long text instead of its end."""
    split_special: bool = False
    """Whether special tokens that are typed in a text are split like any word; the content of a tokenizer.json has no say."""
    fast_tokenizer: str | None = None
    """Library that makes the ids in place of `tokenizers`, with its version, such as "nanotoken 0.1.0"."""
    long_texts: LongTexts | None = None
    """How a text that is longer than `max_tokens` is cut into windows; None truncates it."""

    @classmethod
    def from_hugging_face(cls, tokenizer: Any, max_tokens: int) -> "TokenizerSpec":
        """Serialize a transformers tokenizer.

        Raises ValueError if it is not fast, `max_tokens` leaves no room for text, or it puts special tokens where offramp does
        not follow.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; save the model with a tokenizer.json"
            )
        if max_tokens <= tokenizer.num_special_tokens_to_add(pair=True):
            raise ValueError(f"max tokens {max_tokens} leaves no room for text between the special tokens")
        spec = cls(
            tokenizer_json=tokenizer.backend_tokenizer.to_str(),
            max_tokens=max_tokens,
            segments="token_type_ids" in tokenizer.model_input_names,
            cut_left=tokenizer.truncation_side == "left",
            split_special=bool(tokenizer.split_special_tokens),
        )
        Tokenizer(spec)
        return spec

    def with_fast_tokenizer(self) -> "TokenizerSpec":
        """Have ids made by nanotoken; raise a UserError if it is not installed or makes other ids than `tokenizers`."""
        if self.split_special:
            raise InputError(
                "fast_tokenizer", "takes special tokens in a text for such, and this model's tokenizer splits them"
            )
        return replace(self, fast_tokenizer=NanotokenEncoder(plain_tokenizer(self.tokenizer_json)).name)

    def with_windows(self, long_texts: LongTexts) -> "TokenizerSpec":
        """Have long texts cut into windows; raise InputError if these would share more than half of their tokens."""
        room = Tokenizer(self).room
        return replace(self, long_texts=replace(long_texts, stride=long_texts.shared(room)))

    def document(self) -> dict[str, object]:
        """List what decides the ids of a row, one by one, so that a new field of this class changes no digest.

        Windows of a text are rows like any other, and how they are cut is named in a fingerprint by itself. So is a faster
        library, whose ids are checked to be the same: what was calibrated without it holds with it.
        """
        document: dict[str, object] = {
            "tokenizer_json": self.tokenizer_json,
            "max_tokens": self.max_tokens,
            "segments": self.segments,
            "cut_left": self.cut_left,
        }
        if self.split_special:
            document["split_special"] = True
        return document

    @property
    def digest(self) -> str:
        """Hash what decides the ids."""
        return document_hash(self.document())


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Token rows, and which of them are truncated.

    With at most 5 tokens a row, "a fine day in May" and "fine" become

        Tokenized(
            rows=TokenRows(token_ids=[101, 1037, 2986, 2154, 102, 101, 2986, 102], offsets=[0, 5, 8], segments=[5, 3]),
            truncated=[True, False],
        )
    """

    rows: TokenRows
    truncated: npt.NDArray[np.bool_]
    """Whether text of a row was cut off, as [B] bool."""
    windows: IntArray | None = None
    """Rows of each text, as [B], where long ones have several; None where each has one."""

    @classmethod
    def join(cls, parts: list["Tokenized"]) -> "Tokenized":
        """Put texts one after the other that are all in windows."""
        return cls(
            rows=TokenRows.join([part.rows for part in parts]),
            truncated=np.concatenate([part.truncated for part in parts]),
            windows=np.concatenate([part.windows for part in parts if part.windows is not None]),
        )


class Tokenizer:
    """Tokenizes texts or pairs exactly as transformers does with truncation to `max_tokens` and no padding.

    Truncation is ours, because `tokenizers` also builds all overflowing pieces, and for pairs all their combinations.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        self._tokenizer = plain_tokenizer(spec.tokenizer_json)
        self._tokenizer.encode_special_tokens = spec.split_special
        self._encoder = encoder_of(self._tokenizer, spec.fast_tokenizer)
        added = self._tokenizer.get_added_tokens_decoder().values()
        # A special token that occurs in the text itself and is cut splits into further words, at most one a character.
        self._unsettled_words = UNSETTLED_WORDS + max((len(token.content) for token in added), default=0)
        self._single, self._pair = self._template(None), self._template(PROBE)
        self._needed = spec.max_tokens if spec.long_texts is None else spec.long_texts.needed(self.room)

    @property
    def room(self) -> int:
        """Tokens of a single text that fit into a row."""
        return self.spec.max_tokens - self._single.width

    def __call__(self, texts: list[str], pairs: list[str] | None = None) -> Tokenized:
        """Tokenize texts, or pairs of texts whose second ones are `pairs`; raise InputError for windows of pairs."""
        if self.spec.long_texts is not None:
            check_windows(pairs)
            return self._windows(texts, self.spec.long_texts)
        firsts, first_whole = self._encode(texts)
        if pairs is None:
            return self._assemble_singles(firsts)
        seconds, second_whole = self._encode(pairs)
        rows = self._lacking_lengths(firsts, seconds, first_whole & second_whole)
        if len(rows):
            firsts = firsts.replace(rows, self._encoder.encode([texts[row] for row in rows]))
            seconds = seconds.replace(rows, self._encoder.encode([pairs[row] for row in rows]))
        return self._assemble_pairs(firsts, seconds)

    def _encode(self, texts: list[str]) -> tuple[Ragged, BoolArray]:
        """Encode B texts without special tokens; return whether they are those of the whole text, too, as [B] bool."""
        prefixes = texts if self.spec.cut_left else self._shorten(texts)
        whole = [len(prefix) == len(text) for prefix, text in zip(prefixes, texts, strict=True)]
        return self._encoder.encode(prefixes), np.array(whole, np.bool_)

    def _lacking_lengths(self, firsts: Ragged, seconds: Ragged, whole: BoolArray) -> IntArray:
        """Return the pairs whose cut depends on lengths that are not known: both overflow, and one is but a prefix.

        Each text keeps half of the room then, and the longer one the odd token.
        """
        limit = self.spec.max_tokens
        return np.flatnonzero(~whole & (firsts.lengths > limit) & (seconds.lengths > limit))

    def _assemble_singles(self, texts: Ragged) -> Tokenized:
        before, after = (repeated(ids, len(texts)) for ids in (self._single.before, self._single.after))
        kept = texts.cut(np.minimum(texts.lengths, self.room), left=self.spec.cut_left)
        rows = side_by_side([before, kept, after])
        return _tokenized(rows, segments=rows.lengths, truncated=texts.lengths > self.room)

    def _windows(self, texts: list[str], long_texts: LongTexts) -> Tokenized:
        """Tokenize texts some at a time, since all tokens of long ones are kept."""
        prefixes = texts if self.spec.cut_left else self._shorten(texts)
        parts = list(parts_of(prefixes)) or [[]]
        return Tokenized.join([self._assemble_windows(self._encoder.encode(part), long_texts) for part in parts])

    def _assemble_windows(self, texts: Ragged, long_texts: LongTexts) -> Tokenized:
        """Cut texts into windows, each with its special tokens; the first is what truncation would keep."""
        room, all_windows = self.room, long_texts.windows_in(texts.lengths, self.room)
        counts = np.minimum(all_windows, long_texts.most)
        of_text = np.repeat(np.arange(len(texts)), counts)
        number = np.arange(len(of_text)) - np.repeat(np.cumsum(counts) - counts, counts)
        begin, length = number * (room - long_texts.shared(room)), texts.lengths[of_text]
        kept = np.minimum(length - begin, room)
        starts = length - begin - kept if self.spec.cut_left else begin  # from the end on, as truncation on the left
        before, after = (repeated(ids, len(of_text)) for ids in (self._single.before, self._single.after))
        rows = side_by_side([before, texts.pieces(of_text, starts, kept), after])
        made = _tokenized(rows, segments=rows.lengths, truncated=all_windows > counts)
        return replace(made, windows=counts)

    def _assemble_pairs(self, firsts: Ragged, seconds: Ragged) -> Tokenized:
        before, between, after = (
            repeated(ids, len(firsts)) for ids in (self._pair.before, self._pair.between, self._pair.after)
        )
        room = self.spec.max_tokens - self._pair.width
        keep_first, keep_second = longest_first(firsts.lengths, seconds.lengths, room)
        left = self.spec.cut_left
        first, second = firsts.cut(keep_first, left=left), seconds.cut(keep_second, left=left)
        rows = side_by_side([before, first, between, second, after])
        segments = rows.lengths if self._pair.first_segment is None else keep_first + self._pair.first_segment
        return _tokenized(rows, segments=segments, truncated=firsts.lengths + seconds.lengths > room)

    def _shorten(self, texts: list[str]) -> list[str]:
        """Replace every long text by a prefix that has the same tokens, as many as are kept and one more."""
        window = self._needed * WINDOW_CHARACTERS_PER_TOKEN
        most = window * self._encoder.whole_windows
        return [text if len(text) <= most else self._settled_prefix(text, window) for text in texts]

    def _settled_prefix(self, text: str, window: int) -> str:
        """Grow the window until enough of its tokens cannot depend on the rest of the text."""
        while window < len(text):
            prefix = text[:window]
            words = self._tokenizer.encode(prefix, add_special_tokens=False).word_ids
            # One token more than can be kept must be settled, so that truncation is detected as well.
            if len(words) > self._needed:
                last, kept = words[-1], words[self._needed]
                if last is not None and kept is not None and kept <= last - self._unsettled_words:
                    return prefix
            window *= WINDOW_GROWTH
        return text

    def _template(self, pair: str | None) -> "_Template":
        """Find out, from a probe, which special tokens the tokenizer puts before, between and after texts."""
        content = self._tokenizer.encode(PROBE, add_special_tokens=False).ids
        encoding = self._tokenizer.encode(PROBE, pair)
        ids, width = encoding.ids, len(content)
        starts = [i for i in range(len(ids) - width + 1) if ids[i : i + width] == content]
        if not starts or len(starts) != 1 + (pair is not None):
            raise ValueError("the tokenizer adds special tokens in a way that offramp does not understand")
        first, last = starts[0], starts[-1]
        types, zeros = encoding.type_ids, encoding.type_ids.count(0)
        told_apart = self.spec.segments and zeros < len(types)
        if told_apart and (
            pair is None or types != [0] * zeros + [1] * (len(types) - zeros) or not first + width <= zeros <= last
        ):
            raise ValueError("the tokenizer gives tokens types in a way that offramp does not understand")
        return _Template(
            before=ids[:first],
            between=ids[first + width : last],
            after=ids[last + width :],
            first_segment=zeros - width if told_apart else None,
        )


def check_windows(pairs: object) -> None:
    """Raise InputError if there are second texts: which of the two would be cut into windows, is not settled."""
    if pairs is not None:
        raise InputError("long_texts", "windows are made of single texts, and these are pairs; truncate them")


def longest_first(first: IntArray, second: IntArray, room: int) -> tuple[IntArray, IntArray]:
    """Return how many tokens the texts of B pairs keep within `room`, the longer text being cut first, as by `tokenizers`.

    `longest_first([10, 10], [3, 12], 8)` is `([5, 4], [3, 4])`: the second of two texts that both overflow keeps an odd token,
    unless the first is longer.
    """
    short, long = np.minimum(first, second), np.maximum(first, second)
    keep_short = np.where(2 * short <= room, short, room // 2)
    keep_long = np.minimum(long, room - keep_short)
    swap = first > second
    return np.where(swap, keep_long, keep_short), np.where(swap, keep_short, keep_long)


def _tokenized(rows: Ragged, *, segments: IntArray, truncated: BoolArray) -> Tokenized:
    return Tokenized(
        rows=TokenRows(token_ids=rows.ids, offsets=offsets_of(rows.lengths), segments=segments.astype(np.int32)),
        truncated=truncated,
    )


@dataclass(frozen=True, slots=True)
class _Template:
    """Special tokens that a tokenizer puts around texts."""

    before: list[int]
    between: list[int]
    after: list[int]
    first_segment: int | None
    """How many of them belong to the first segment of a pair; None if the texts of a pair are not told apart."""

    @property
    def width(self) -> int:
        """Number of them all."""
        return len(self.before) + len(self.between) + len(self.after)
