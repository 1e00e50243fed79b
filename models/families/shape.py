"""Shape: sizes and constants of an encoder, whatever its family; each family's module reads it off config.json."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Disentangled:
    """How DeBERTa's attention compares content with distances."""

    relative: bool
    """Whether there is a table of distances at all."""
    content_to_position: bool
    position_to_content: bool
    shared_projections: bool
    """Whether keys and queries of distances are made by the projections of content."""
    span: int
    """Rows of the table on each side."""
    buckets: int
    """Buckets of distances, far ones on a logarithmic scale; 0 if every distance has a row."""
    farthest: int
    """Distance at which the scale of the buckets ends."""
    norm: bool
    """Whether the table is normalized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """The convolution beside DeBERTa-v2's first layer."""

    kernel: int
    """Tokens that it goes over."""
    groups: int
    activation: str


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
    ffn_dropout: float = 0.0
    """Dropout between the two products of a feed-forward block, where the family has it."""
    position_table: bool = True
    """Whether the embeddings have a table of positions; without one `positions` is the longest row alone."""
    rotary_bases: tuple[float, ...] = ()
    """The base of the rotations of queries and keys, for each layer."""
    windows: tuple[int | None, ...] = ()
    """How many tokens a token sees on each side, for each layer; None where it sees all."""
    pre_norm: bool = False
    """Whether layers normalize what they read, and not what they return, and gate their feed-forward blocks."""
    norm_bias: bool = True
    attention_bias: bool = True
    ffn_bias: bool = True
    head_activation: str = ""
    """Activation of the last head, where config.json says it and not the family."""
    head_bias: bool = True
    """Whether the first product of the last head has a bias."""
    head_norm: bool = False
    """Whether the last head normalizes what its activation returns."""
    pooling: str = "first"
    """What the last head reads of a row: its 'first' token, or the 'mean' of all."""
    head_input_dropout: float = 0.0
    """Dropout of what the last head reads."""
    disentangled: Disentangled | None = None
    """How attention compares content with distances, in DeBERTa."""
    convolution: Convolution | None = None
    """What stands beside the first layer, in some of DeBERTa-v2."""
    relative_buckets: int = 0
    """Rows of MPNet's table of relative positions, which all layers share; 0 in families without one."""

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the position table can hold."""
        return self.positions - self.first_position


ONLY_IN_TRAINING = frozenset({"dropout", "attention_dropout", "head_dropout", "ffn_dropout", "head_input_dropout"})
"""Fields that predictions know nothing of."""
