"""What we need of transformers beside its configs: a quiet mode, and the classifier class of a config.

transformers takes the better part of a second to import, so it is imported where it is used: workers do without.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def classifier_class(config: "PretrainedConfig") -> "type[PreTrainedModel]":
    """Return transformers' sequence classifier of a config: `BertForSequenceClassification` of a BertConfig.

    Its auto class hands out instances only, so this reads the private mapping behind it.
    """
    from transformers import AutoModelForSequenceClassification  # takes seconds to import

    found: type[PreTrainedModel] = AutoModelForSequenceClassification._model_mapping[type(config)]
    return found


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' load report, progress bars and warnings: what matters in them we check and report ourselves."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
