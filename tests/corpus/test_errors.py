"""Messages of exceptions fit on one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MAX_LINE, one_line, printable


@pytest.mark.parametrize(
    ("error", "plain", "with_type"),
    [
        (ValueError("bad\n  row"), "bad row", "ValueError: bad row"),
        (EOFError(), "EOFError", "EOFError"),
        (OSError(28, "No space left"), "[Errno 28] No space left", "OSError: [Errno 28] No space left"),
    ],
)
def test_an_exception_becomes_one_line_with_or_without_its_type(error: Exception, plain: str, with_type: str) -> None:
    assert one_line(error) == plain
    assert one_line(error, with_type=True) == with_type


def test_a_long_message_is_cut_and_says_so() -> None:
    assert one_line(ValueError("x" * 10), limit=10) == "x" * 10
    assert one_line(ValueError("x" * 11), limit=10) == "x" * 7 + "..."


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain, ä, 漢字, עברית and 🙂", "plain, ä, 漢字, עברית and 🙂"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\nb\r\tc\x0b\x85d", "a\\nb\\r\\tc\\x0b\\x85d"),
        ("line\u2028paragraph\u2029", "line\\u2028paragraph\\u2029"),
        ("evil\u202etxt.exe", "evil\\u202etxt.exe"),
        ("\u2066\u2067\u2068\u2069\u200e\u200f\u061c", "\\u2066\\u2067\\u2068\\u2069\\u200e\\u200f\\u061c"),
        ("caf\udce9", "caf\\udce9"),
        ("\ufeff\u200b\xad\x00\x7f\x9b", "\\ufeff\\u200b\\xad\\x00\\x7f\\x9b"),
        ("\U000e0041", "\\U000e0041"),
        ("\\x1b", "\\x1b"),
    ],
)
def test_what_does_not_print_is_escaped_and_what_does_is_left_alone(text: str, printed: str) -> None:
    assert printable(text) == printed
    assert printable(printed) == printed
    assert one_line(ValueError(f"a{text}b")).isprintable()


@given(st.text(st.characters()), st.integers(10, 100))
def test_every_text_prints_on_one_line_of_bounded_length(text: str, limit: int) -> None:
    printed = printable(text, limit)
    assert printed.isprintable()
    assert len(printed) <= limit
    printed.encode()


def test_a_text_of_any_length_is_bounded() -> None:
    assert len(printable("x" * (10 << 20))) == MAX_LINE
    assert len(printable("\udc80" * 5000)) == MAX_LINE
    assert len(one_line(ValueError("x " * (1 << 20)))) == MAX_LINE
