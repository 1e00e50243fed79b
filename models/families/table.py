"""The families by the `model_type` of config.json."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from models.errors import UnsupportedModelError
from models.families.bert import BERT, DISTILBERT, ELECTRA, ERNIE, ROBERTA
from models.families.deberta import DEBERTA
from models.families.modernbert import MODERNBERT
from models.families.mpnet import MPNET
from models.families.names import Family
from models.families.shape import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES: Mapping[str, Family] = {
    "bert": BERT,
    "ernie": ERNIE,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": ELECTRA,
    "distilbert": DISTILBERT,
    "mpnet": MPNET,
    "modernbert": MODERNBERT,
    "deberta-v2": DEBERTA,
}


def family_of(config: "PretrainedConfig") -> Family:
    """Return the family of a config, or raise UnsupportedModelError naming what is supported."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        supported = ", ".join(sorted(FAMILIES))
        raise UnsupportedModelError(f"model type '{config.model_type}' is not supported; supported are: {supported}")
    return family


def shape_of(config: "PretrainedConfig") -> Shape:
    """Read the sizes of an encoder off its config; raise UnsupportedModelError for what offramp does not compute."""
    return family_of(config).read(config)
