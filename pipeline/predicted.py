"""What a run predicts, as counts: rows by class, and by score or value, under the names of their bins.

    bins = PredictionBins.of(["label", "score"], ["good", "bad"])
    bins.classes                       # ("good", "bad")
    bins.scores[-1]                    # "0.95 to 1"
    Predicted.of(bins, rows=5, classes=[3, 2], scores=[0] * 19 + [5]).classes      # {"good": 3, "bad": 2}

Receipts have the counts alone, by the position of a bin. A model of more than `histograms.MAX_CLASS_BINS` classes is counted by
runs of neighboring ones, so that receipts, manifest and page are bounded however many classes there are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

from pipeline.errors import printable
from pipeline.histograms import SCORE_BINS, VALUE_EDGES, classes_per_bin
from pipeline.schema import LABEL, LABELS, SCORE, VALUE

NAME_CHARACTERS = 60
"""Most characters of the name of a bin: names of classes are others' texts."""
NO_LABEL = "no label"
"""Name of the bin of rows without any label, after those of the labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionBins:
    """The names of the bins by which a run counts what it predicts, in the order of the counts."""

    classes: tuple[str, ...] = ()
    """Names of classes or labels; empty where a run writes neither."""
    scores: tuple[str, ...] = ()
    """Ranges of the score, or of the predicted value; empty where a run writes neither."""
    several: bool = False
    """Whether a row may have several labels: then the last of the classes are the rows without any."""
    values: bool = False
    """Whether the scores are predicted values."""

    @classmethod
    def of(cls, results: Sequence[str], labels: Sequence[str]) -> Self:
        """Name the bins of a run that writes some columns of `schema.RESULTS` by a model with these labels."""
        classes = _class_names(labels) if LABEL in results or LABELS in results else []
        scores = _score_names() if SCORE in results else _value_names() if VALUE in results else []
        several = LABELS in results
        names = _distinct([*classes, *([NO_LABEL] if several else [])])
        return cls(classes=tuple(names), scores=tuple(scores), several=several, values=VALUE in results)


NO_BINS = PredictionBins()
"""The bins of a run that writes no predictions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What was predicted of some rows: how many of them lie in which bin."""

    rows: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    """Rows by class; by label, of which a row may have several."""
    scores: dict[str, int] = field(default_factory=dict)
    """Rows by score or value, without the bins that are empty."""

    @classmethod
    def of(cls, bins: PredictionBins, *, rows: int, classes: Iterable[int], scores: Iterable[int]) -> Self:
        """Name counts, which are fewer than the bins where nothing has been counted."""
        by_class = dict.fromkeys(bins.classes, 0) | dict(zip(bins.classes, classes, strict=False))
        by_score = {name: count for name, count in zip(bins.scores, scores, strict=False) if count}
        return cls(rows=rows, classes=by_class, scores=by_score)

    def to_json(self) -> dict[str, Any]:
        """Lay the counts out as a manifest has them."""
        return {"rows": self.rows, "classes": self.classes, "scores": self.scores}

    @classmethod
    def from_json(cls, facts: Any) -> Self:
        """Parse what `to_json` returned; raise ValueError for anything else."""
        if not isinstance(facts, dict) or type(facts.get("rows")) is not int:
            raise ValueError("no counts of predictions")
        return cls(rows=facts["rows"], classes=_counts(facts.get("classes")), scores=_counts(facts.get("scores")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is predicted of all rows and of new ones, beside what the manifest before says of its rows and of its new ones."""

    bins: PredictionBins = field(default_factory=PredictionBins)
    all: Predicted = field(default_factory=Predicted)
    new: Predicted = field(default_factory=Predicted)
    """The rows that the manifest before did not have."""
    all_before: Predicted | None = None
    """None where there is no manifest before, or none that counts predictions."""
    new_before: Predicted | None = None
    since: str = ""
    """When the manifest before was published, by UTC; empty without one."""


def _counts(counts: Any) -> dict[str, int]:
    """Return counts by name as they were parsed; raise ValueError for anything else."""
    if not isinstance(counts, dict) or not all(type(count) is int and count >= 0 for count in counts.values()):
        raise ValueError("no counts of predictions by name")
    return dict(counts)


def _class_names(labels: Sequence[str]) -> list[str]:
    """Name runs of neighboring classes, mostly of one: "good", or "alarm ... audio (40 classes)"."""
    width = classes_per_bin(len(labels))
    if width <= 1:
        return [printable(label, NAME_CHARACTERS) for label in labels]
    names = []
    for start in range(0, len(labels), width):
        run = labels[start : start + width]
        first, last = (printable(label, NAME_CHARACTERS * 2 // 5) for label in (run[0], run[-1]))
        names.append(f"{first} ... {last} ({len(run)} classes)")
    return names


def _score_names() -> list[str]:
    """Name the bins of a score: "0 to 0.05", ..., "0.95 to 1"."""
    return [f"{number / SCORE_BINS:g} to {(number + 1) / SCORE_BINS:g}" for number in range(SCORE_BINS)]


def _value_names() -> list[str]:
    """Name the bins of a value: "-1000000 or less", ..., "4 to 5", ..., "above 1000000"."""
    between = [f"{low:.10g} to {high:.10g}" for low, high in pairwise(VALUE_EDGES)]
    return [f"{VALUE_EDGES[0]:.10g} or less", *between, f"above {VALUE_EDGES[-1]:.10g}"]


def _distinct(names: Iterable[str]) -> list[str]:
    """Tell names apart that are the same once they are cut: the second "a" becomes "a #2", by its position."""
    seen: dict[str, None] = {}
    for number, name in enumerate(names, 1):
        while name in seen:
            name = f"{name} #{number}"
        seen[name] = None
    return list(seen)
