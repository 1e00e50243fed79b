"""The identity of a model: a digest of each thing that decides its predictions, whatever machine and folder it lies on.

It is what an output folder, a calibration, the actors of a run and the replicas of a server compare, each with the precision
that it computes in beside it. The criterion of the exits is no part of it, since every run chooses that anew.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol, Self


class ConfigParts(Protocol):
    """The part of a `models.early_exit.EarlyExitModel` that belongs to its identity."""

    @property
    def config_digest(self) -> str: ...


class TokenizerParts(Protocol):
    """The parts of a `corpus.tokenize.TokenizerSpec` that belong to a model's identity."""

    @property
    def digest(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What decides the predictions of a model: in one precision, equal identities predict the same.

    ModelIdentity(weights="9bb58f26192e4ba0", config="3bc48c843a88e6b1", tokenizer="0f01e2e7b136bbd8", max_tokens=512)
    """

    weights: str
    """Digest of the weight files, by `models.directory.digest.weights_digest`."""
    config: str
    """Digest of what config.json says that counts, by `EarlyExitModel.config_digest`."""
    tokenizer: str
    """Digest of the tokenizer as it is used, by `TokenizerSpec.digest`."""
    max_tokens: int
    """The number of tokens to which rows are cut."""

    @classmethod
    def of(cls, model: ConfigParts, weights: str, tokenizer: TokenizerParts) -> Self:
        """Identify a model, whose weights need not be in memory: `weights` is their digest."""
        digest, max_tokens = tokenizer.digest, tokenizer.max_tokens
        return cls(weights=weights, config=model.config_digest, tokenizer=digest, max_tokens=max_tokens)

    def parts(self) -> dict[str, str]:
        """List the parts by the names that people read, such as `max-tokens`."""
        return {name.replace("_", "-"): str(value) for name, value in asdict(self).items()}


def is_precision(name: str) -> bool:
    """Return whether a name is one of `models.precision.precision_on`, and not a word for what depends on the machine."""
    return name in ("fp32", "bf16") or name.startswith("int8 in ")


def dtype_of(precision: str) -> str:
    """Return the dtype to ask for to compute in a precision: 'int8' for 'int8 in bf16'."""
    return precision.split()[0]


def first_difference(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Describe the first part that is stored in `then` and is another now; empty if there is none.

    `first_difference({"weights": "1a"}, {"weights": "2b", "config": "3c"})` is "weights 1a, now it is 2b".
    """
    return next((f"{name} {value}, now it is {now[name]}" for name, value in then.items() if now[name] != value), "")
