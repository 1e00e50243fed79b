"""Shape: sizes and constants of an encoder, whatever its family; each family's module reads it off config.json."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes and constants of an encoder, read off its Hugging Face config.

    Fields with a default are of some families alone: at the default they say nothing, and are in no digest.
    """

    layers: int
    hidden: int
    intermediate: int
    attention_heads: int
    embedding: int
    """Width of the word embeddings; ELECTRA projects them up to `hidden`."""
    vocabulary: int
    positions: int
    """Rows of the position table."""
    first_position: int
    """Row of the first token's position: 0, or `padding_idx + 1` in the RoBERTa line."""
    token_types: int
    task_types: int
    """ERNIE adds the embedding of task 0 to every token when its config says so; 0 elsewhere."""
    pad_id: int
    activation: str
    norm_eps: float
    dropout: float
    attention_dropout: float
    head_dropout: float
    """Dropout before the last product of every head."""
    classes: int
    relative_buckets: int = 0
    """Rows of MPNet's table of relative positions, which all layers share; 0 in families without one."""

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the position table can hold."""
        return self.positions - self.first_position


ONLY_IN_TRAINING = frozenset({"dropout", "attention_dropout", "head_dropout"})
"""Fields that predictions know nothing of."""
