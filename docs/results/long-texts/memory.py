#!/usr/bin/env python
"""Measure what cutting texts of 8 MiB into windows takes: python docs/results/long-texts/memory.py MODEL KIND WINDOWS TEXTS.

KIND is english or marks, of which every one is a token; WINDOWS are those of a text at most, 0 to truncate.
"""

import os
import sys
import time

from models.early_exit import EarlyExitModel
from pipeline.api.pretrained import load_tokenizer_spec
from pipeline.clock import peak_memory_mb
from pipeline.corpus.tokenize import Tokenizer
from pipeline.windows import LongTexts

UNITS = {"english": "the room was clean and the staff was kind , but the food was never fresh . ", "marks": "! ? "}


def main() -> None:
    """Tokenize some texts and print the time and the memory."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as tokenize tasks have it
    model, kind, windows, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    spec = load_tokenizer_spec(model, EarlyExitModel.from_config(model))
    tokenizer = Tokenizer(spec.with_windows(LongTexts(most=windows)) if windows else spec)
    text = UNITS[kind] * ((8 << 20) // len(UNITS[kind]))
    before, began = peak_memory_mb(), time.monotonic()
    made = tokenizer([text] * count)
    seconds, more = time.monotonic() - began, peak_memory_mb() - before
    print(
        f"{len(made.rows):,} rows, {len(made.rows.token_ids):,} tokens, {seconds:.1f} s, {more:,.0f} MB more than before"
    )


if __name__ == "__main__":
    main()
