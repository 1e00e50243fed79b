"""The fingerprint of a run: what decides its predictions, by name, in words where there are some and as a hash elsewhere.

Hashes are of documents that list their parts one by one. So a new field of some class changes no fingerprint, which would make
every output folder refuse to go on, unless it is listed here because it decides predictions.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from models.early_exit import EarlyExitModel
from models.families import Shape
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
    """Name everything that decides predictions, but not where it lies: a copy of a model is the same model.

    `weights` is the `models.digest` of the model; `columns` maps meanings to columns of the input, `schema` names those of the
    output.
    """
    return {
        "model": document_hash(model_document(model, weights)),
        "tokenizer": document_hash(tokenizer_document(tokenizer)),
        "max-tokens": str(tokenizer.max_tokens),
        "criterion": engine.criterion.describe(),
        "exits": " ".join(map(str, engine.exits or model.exit_layers)),
        "dtype": engine.dtype,
        "columns": " ".join(f"{meaning}={name}" for meaning, name in columns.items()),
        "schema": ", ".join(schema),
        "offramp": code_version(),
    }


def document_hash(document: Mapping[str, object]) -> str:
    """Hash a document, whatever the order of its keys."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def model_document(model: EarlyExitModel, weights: str) -> dict[str, object]:
    """List what a model is: its weights, and what its config says of how they are used."""
    return {
        "weights": weights,
        "family": model.config.model_type,
        "shape": shape_document(model.shape),
        "labels": model.labels,
        "last_head": model.last_head,
        "branch_head": model.branch_head,
    }


def shape_document(shape: Shape) -> dict[str, object]:
    """List the sizes and constants of an encoder, but not its dropout, which training alone has."""
    return {
        "layers": shape.layers,
        "hidden": shape.hidden,
        "intermediate": shape.intermediate,
        "attention_heads": shape.attention_heads,
        "embedding": shape.embedding,
        "vocabulary": shape.vocabulary,
        "positions": shape.positions,
        "first_position": shape.first_position,
        "token_types": shape.token_types,
        "task_types": shape.task_types,
        "pad_id": shape.pad_id,
        "activation": shape.activation,
        "norm_eps": shape.norm_eps,
        "classes": shape.classes,
    }


def tokenizer_document(tokenizer: TokenizerSpec) -> dict[str, object]:
    """List what a tokenizer is, and who makes its ids if `tokenizers` does not."""
    fast = {} if tokenizer.fast_tokenizer is None else {"fast_tokenizer": tokenizer.fast_tokenizer}
    return {
        "tokenizer_json": tokenizer.tokenizer_json,
        "max_tokens": tokenizer.max_tokens,
        "segments": tokenizer.segments,
        "cut_left": tokenizer.cut_left,
        **fast,
    }
