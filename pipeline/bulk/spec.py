"""All that the stages of a bulk run need, as plain values."""

from dataclasses import dataclass
from types import SimpleNamespace

from pipeline.calibration.audit import AuditSpec
from pipeline.corpus.columns import Columns
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.output.parts import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifySpec:
    """What the stages do with every bundle; plain values that travel to every worker."""

    columns: Columns
    tokenizer: TokenizerSpec
    model: str
    """Directory, hub id or s3:// address, the same on every machine."""
    weights: str
    """Digest of the model's weights, by `models.digest`; an actor that finds others refuses to start."""
    config: SimpleNamespace
    """The model's configuration, by `models.checkpoint.plain_config`, so that actors need not import transformers for it."""
    engine: EngineConfig
    output: Output
    results: tuple[str, ...]
    """Columns of the output beside the kept ones, of `schema.RESULTS`."""
    audit: AuditSpec | None = None
    """What actors count of their own predictions; None if they do not."""
    bundle_rows: int | None = None
    """Rows of a bundle, about; None is `bundle.BUNDLE_ROWS` of the device."""
