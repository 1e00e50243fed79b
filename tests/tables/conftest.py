"""Fixtures of the tables' tests: a corpus and an empty folder for its results, on a disk and on S3."""

import pytest

from pipeline.corpus.listing import Corpus
from tests.support.ledger import make_corpus, make_folder


@pytest.fixture
def corpus(place: str) -> Corpus:
    return make_corpus(place)


@pytest.fixture
def folder(place: str, corpus: Corpus) -> str:
    return make_folder(place)
