"""Fixtures of the tables' tests: a corpus, an empty folder for its results and a table over it, on a disk and on S3."""

import pytest

from pipeline.corpus.listing import Corpus
from pipeline.tables.delta import DeltaLog, table_of
from tests.support.ledger import make_corpus, make_folder


@pytest.fixture
def corpus(place: str) -> Corpus:
    return make_corpus(place)


@pytest.fixture
def folder(place: str, corpus: Corpus) -> str:
    return make_folder(place)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def table(folder: str, lines: list[str]) -> DeltaLog:
    made = table_of(folder, "delta", lines.append)
    assert made
    return made
