"""Messages of exceptions fit on one line."""

import pytest

from pipeline.errors import one_line


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
