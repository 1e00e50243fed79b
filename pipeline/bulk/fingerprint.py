"""What decides the answers of a run, by name."""

import hashlib
from collections.abc import Mapping, Sequence

from models.early_exit import EarlyExitModel
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.output.manifest import Fingerprint
from pipeline.version import code_version


def fingerprint_of(
    model: EarlyExitModel,
    weights: str,
    engine: EngineConfig,
    tokenizer: TokenizerSpec,
    *,
    columns: Mapping[str, str | None],
    schema: Sequence[str],
) -> Fingerprint:
    """Name and hash everything that decides the answers, but not where it is: a copy of a model is the same model.

    `weights` is `models.digest` of the model; `columns` says what those of the input mean, `schema` names those of the output.
    """
    kind = repr((model.config.model_type, model.shape, model.labels, model.last_head, model.branch_head))
    return {
        "model": hashlib.blake2b(f"{weights} {kind}".encode(), digest_size=8).hexdigest(),
        "tokenizer": hashlib.blake2b(repr(tokenizer).encode(), digest_size=8).hexdigest(),
        "max-tokens": str(tokenizer.max_tokens),
        "criterion": engine.criterion.describe(),
        "exits": " ".join(map(str, engine.exits or model.exit_layers)),
        "dtype": engine.dtype,
        "columns": " ".join(f"{meaning}={name}" for meaning, name in columns.items()),
        "schema": ", ".join(schema),
        "offramp": code_version(),
    }
