"""Text: a line is a row, and its only column is TEXT_COLUMN."""

from collections.abc import Iterator

from pipeline.corpus.decoders.lines import Lines, content_of, nul_problem
from pipeline.corpus.decoders.raw import FileFormatError
from pipeline.rejects import Reject

TEXT_COLUMN = "text"
"""Name of the only column of a text file."""


def text_rows(lines: Lines, columns: list[str]) -> Iterator[tuple[list[object], int]]:
    """Yield each line and its bytes; raise FileFormatError if another column is asked for."""
    others = [name for name in columns if name != TEXT_COLUMN]
    if others:
        raise FileFormatError(f"a text file has the column '{TEXT_COLUMN}' only, not '{others[0]}'")
    for line in lines:
        if isinstance(line, Reject):
            yield [line] * len(columns), 0
        else:
            content = content_of(line)
            yield [nul_problem(content) or content] * len(columns), len(line)
