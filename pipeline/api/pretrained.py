"""Load the tokenizer of a model directory or hub id."""

from transformers import AutoTokenizer

from models.early_exit import EarlyExitModel
from models.hugging_face import quiet_transformers
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.errors import InputError


def load_tokenizer_spec(name: str, model: EarlyExitModel, max_tokens: int | None = None) -> TokenizerSpec:
    """Load the tokenizer that belongs to a model; raise InputError if it has none to use, or reads fewer tokens."""
    limit = model.shape.max_tokens
    if max_tokens is not None and max_tokens > limit:
        raise InputError("max_tokens", f"{max_tokens}: the model takes {limit} tokens at most")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name)
        return TokenizerSpec.from_hugging_face(tokenizer, max_tokens or min(limit, tokenizer.model_max_length))
    except (OSError, ValueError) as error:
        raise InputError("model", f"{name}: no usable tokenizer: {error}") from error
