"""A synthetic corpus of graded difficulty: hotel reviews whose label follows from rules.

    easy    all remarks agree                                         "the room was clean and the staff was kind"
    medium  all remarks agree, but some say so by a negation          "the bed was not dirty , the pool was never cold"
    hard    the part after "but" decides and contradicts the one before
            "the room was clean and the staff was kind but the food was not fresh"

A model that only counts words gets the easy rows right; the hard ones take composition.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CLASSES = ["negative", "positive"]
LEVELS = ["easy", "medium", "hard"]
LEVEL_FRACTIONS = [0.6, 0.25, 0.15]
"""The fraction of reviews of each level: most text is easy."""

NOUNS = """
    room bed staff food breakfast pool view lobby bar coffee service location shower towel garden
    kitchen music parking lift balcony carpet desk internet waiter manager dinner terrace beach sauna
    gym bathroom window pillow
""".split()  # noqa: SIM905 - as lists they would fill two screens
GOOD = """
    clean kind fresh quiet warm friendly bright lovely comfortable tasty spacious modern cosy polite
    charming excellent perfect helpful generous elegant relaxing superb pleasant tidy wonderful
""".split()  # noqa: SIM905 - as lists they would fill two screens
BAD = """
    dirty rude stale loud cold hostile dark awful hard bland cramped shabby damp slow broken terrible
    smelly unhelpful mean ugly stressful poor nasty messy dreadful
""".split()  # noqa: SIM905 - as lists they would fill two screens
NEGATIONS = ["not", "never", "hardly"]
OPENINGS = [
    "we stayed two nights .",
    "i was here in may .",
    "booked for a wedding .",
    "a short trip with friends .",
    "",
]
TURNS = ["but", "however", "yet"]


@dataclass(frozen=True, slots=True)
class Review:
    """One review of the corpus."""

    text: str
    label: int
    """The index of its class in CLASSES."""
    level: str
    """Its difficulty, one of LEVELS."""


def reviews(count: int, seed: int) -> Iterator[Review]:
    """Yield this many reviews, the same for the same seed."""
    random = np.random.default_rng(seed)
    for level in random.choice(LEVELS, size=count, p=LEVEL_FRACTIONS):
        yield _review(random, str(level))


def _review(random: np.random.Generator, level: str) -> Review:
    """Draw a review of this difficulty, with either label equally likely."""
    label = int(random.integers(2))
    opening = str(random.choice(OPENINGS))
    if level == "easy":
        body = _remarks(random, [label] * int(random.integers(1, 5)), negate=0.0)
    elif level == "medium":
        body = _remarks(random, [label] * int(random.integers(1, 4)), negate=0.7)
    else:
        before = _remarks(random, [1 - label] * int(random.integers(1, 4)), negate=0.3)
        after = _remarks(random, [label] * int(random.integers(1, 3)), negate=0.3)
        body = f"{before} {random.choice(TURNS)} {after}"
    return Review(f"{opening} {body} .".strip(), label, level)


def _remarks(random: np.random.Generator, polarities: list[int], negate: float) -> str:
    """Draw one remark for each polarity (1 is positive), negated with this probability, and join them."""
    remarks = []
    for polarity in polarities:
        negated = random.random() < negate
        words = GOOD if bool(polarity) != negated else BAD
        negation = f"{random.choice(NEGATIONS)} " if negated else ""
        remarks.append(f"the {random.choice(NOUNS)} was {negation}{random.choice(words)}")
    return f" {random.choice(['and', ','])} ".join(remarks)


def vocabulary() -> list[str]:
    """Return every word that a review can contain, sorted."""
    opening = " ".join(OPENINGS).split()
    return sorted({*NOUNS, *GOOD, *BAD, *NEGATIONS, *TURNS, *opening, "the", "was", "and", ",", "."})
