"""Task: what a classifier predicts of a text, as transformers reads it from config.json. Plain values, no torch."""

from enum import StrEnum
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MULTI_LABEL = "multi_label_classification"
"""The `problem_type` of models with a sigmoid for each label."""


class Task(StrEnum):
    """What a model predicts of a text."""

    CLASSES = "classes"
    """One class of C, by softmax."""
    VALUE = "value"
    """One number: as in transformers, a classifier with one class and no other `problem_type`."""
    LABELS = "labels"
    """Any number of C labels, none perhaps, each by a sigmoid of its own (multi-label)."""

    @classmethod
    def of(cls, config: "PretrainedConfig | SimpleNamespace") -> "Task":
        """Return the task of a model by its configuration."""
        if getattr(config, "problem_type", None) == MULTI_LABEL:
            return cls.LABELS
        return cls.VALUE if config.num_labels == 1 else cls.CLASSES

    @property
    def problem_type(self) -> str:
        """The name that transformers has for it."""
        return {Task.CLASSES: "single_label_classification", Task.VALUE: "regression", Task.LABELS: MULTI_LABEL}[self]
